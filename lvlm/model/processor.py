"""Texts and images to model inputs, for training, evaluation and users alike. Registered with `AutoProcessor`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor
from transformers import BatchFeature, ProcessorMixin

from lvlm.errors import InputError
from lvlm.model.chat import IGNORED, IMAGE_PLACEHOLDER, Chat, Turns
from lvlm.model.register import register_processor
from lvlm.model.tiling import ImageTransform, pixels
from lvlm.model.tokenizer import TokenCounter, place_images


class LvlmProcessor(ProcessorMixin):  # type: ignore[misc]
    """A tokenizer, its chat template, and the transform from an image to pixels."""

    def __init__(
        self,
        tokenizer: Any = None,
        image_size: int = 0,
        mean: Sequence[float] = (),
        std: Sequence[float] = (),
        interpolation: str = "bicubic",
        tiles: int = 1,
        fit: str = "squash",
        image_tokens: int = 0,
        image_separator: str = "\n",
        chat_template: str | None = None,
    ) -> None:
        super().__init__(tokenizer, chat_template=chat_template or tokenizer.chat_template)
        tokenizer.chat_template = self.chat_template
        self.image_size = image_size
        self.mean = list(mean)
        self.std = list(std)
        self.interpolation = interpolation
        self.tiles = tiles
        self.fit = fit
        self.image_tokens = image_tokens
        self.image_separator = image_separator
        self.image_token = IMAGE_PLACEHOLDER
        self.image_token_id: int = tokenizer.convert_tokens_to_ids(IMAGE_PLACEHOLDER)
        tokenizer.padding_side = "left"
        self._chat: Chat | None = None

    @property
    def chat(self) -> Chat:
        """The chat template, ready to encode conversations."""
        if self._chat is None:
            self._chat = Chat(self.tokenizer)
        return self._chat

    @property
    def counter(self) -> TokenCounter:
        """What counts the tokens of samples."""
        return TokenCounter(self.chat, separator=self.image_separator)

    @property
    def image_transform(self) -> ImageTransform:
        """Everything that decides an image's pixels."""
        mean, std = tuple(self.mean), tuple(self.std)
        return ImageTransform(self.image_size, mean, std, self.interpolation, self.tiles, self.fit)

    @property
    def pad_token_id(self) -> int:
        """What fills padding; masks come from lengths, so that it may equal the end of turn."""
        pad = self.tokenizer.pad_token_id
        return int(self.tokenizer.eos_token_id if pad is None else pad)

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "attention_mask", "pixel_values", "image_counts"]

    def __call__(
        self,
        text: str | Sequence[str] | None = None,
        images: Any = None,
        *,
        return_tensors: Literal["pt"] | None = None,
        padding_side: Literal["left", "right"] = "left",
    ) -> BatchFeature:
        """Rendered prompts and their images to model inputs.

        `images` is one image, a list over all prompts in the order of their placeholders, or one list per prompt.
        `text` is taken as rendered by a chat template: control strings in it, `<image_placeholder>` among them, are
        control tokens. Returns input_ids and attention_mask (batch, tokens), pixel_values (views of all images, 3,
        size, size), image_counts (batch).
        """
        if text is None:
            raise InputError("The processor needs text; put <image_placeholder> where an image belongs.")
        texts = [text] if isinstance(text, str) else list(text)
        encoded = [self._with_bos(ids) for ids in self.tokenizer(texts, add_special_tokens=False)["input_ids"]]
        groups = self._images_per_text(images, [ids.count(self.image_token_id) for ids in encoded])
        rows = [{"input_ids": self._expand(ids)} for ids in encoded]
        if return_tensors is None:
            data: dict[str, Any] = {"input_ids": [row["input_ids"] for row in rows]}
            data["attention_mask"] = [[1] * len(ids) for ids in data["input_ids"]]
        else:
            data = dict(self.collate(rows, padding_side=padding_side))
        flat = list(chain.from_iterable(groups))
        if flat:
            data["pixel_values"] = torch.cat([pixels(image, self.image_transform) for image in flat])
            data["image_counts"] = torch.tensor([len(group) for group in groups])
        return BatchFeature(data)

    def encode_sample(self, turns: Turns, n_images: int = 0, *, system: str | None = None) -> dict[str, list[int]]:
        """One training sample: `input_ids` with every placeholder expanded, and `labels` on assistant texts and
        end-of-turn only.

        User texts hold exactly one `<image_placeholder>` per image; a single image without any stands at the start of
        the first turn.
        """
        placed = place_images(turns, n_images, self.image_separator)
        ids, labels = self.chat.encode(placed, system=system, placeholders=n_images > 0)
        return self._as_sample(ids, labels)

    def encode_samples(self, samples: Sequence[tuple[Turns, int]]) -> list[dict[str, list[int]]]:
        """`encode_sample` of each (turns, number of images), in less time."""
        placed = [place_images(turns, images, self.image_separator) for turns, images in samples]
        encoded = self.chat.encode_all(placed, [images > 0 for _, images in samples])
        return [self._as_sample(ids, labels) for ids, labels in encoded]

    def encode_prompt(
        self, prompt: str, n_images: int = 0, *, turns: Turns = (), system: str | None = None
    ) -> list[int]:
        """The ids that generation continues, equal to the beginning of `encode_sample` of the same conversation."""
        placed = place_images([*turns, (prompt, "")], n_images, self.image_separator)
        ids = self.chat.encode_prompt(placed[:-1], placed[-1][0], system=system, placeholders=n_images > 0)
        return self._expand(ids)

    def measure(self, samples: Sequence[tuple[Turns, int]]) -> list[tuple[int, int]]:
        """(text tokens, supervised tokens) of each (turns, number of images); an image counts as no text token."""
        return self.counter.measure(samples)

    def collate(
        self, samples: Sequence[Mapping[str, Sequence[int]]], *, padding_side: Literal["left", "right"] = "right"
    ) -> dict[str, Tensor]:
        """Samples to padded tensors (batch, longest): input_ids, attention_mask (from lengths), and labels where the
        samples have them."""
        longest = max(len(sample["input_ids"]) for sample in samples)
        fills = {"input_ids": self.pad_token_id} | ({"labels": IGNORED} if "labels" in samples[0] else {})
        tensors = {name: torch.full((len(samples), longest), fill) for name, fill in fills.items()}
        mask = torch.zeros(len(samples), longest, dtype=torch.long)
        for row, sample in enumerate(samples):
            length = len(sample["input_ids"])
            span = slice(longest - length, longest) if padding_side == "left" else slice(0, length)
            mask[row, span] = 1
            for name in fills:
                tensors[name][row, span] = torch.tensor(sample[name])
        return {**tensors, "attention_mask": mask}

    def apply_chat_template(self, conversation: Any, chat_template: str | None = None, **kwargs: Any) -> Any:
        """Render a conversation; `tokenize=True` also encodes it, with the images that the contents hold.

        A content is a text, or a list of `{"type": "text", "text": ...}` and `{"type": "image", "image": PIL image}`
        entries.
        """
        tokenize = kwargs.pop("tokenize", False)
        return_dict = kwargs.pop("return_dict", True)
        return_tensors = kwargs.pop("return_tensors", None)
        batched = bool(conversation) and isinstance(conversation[0], list | tuple)
        conversations = conversation if batched else [conversation]
        flattened = [_flatten(messages, self.image_separator) for messages in conversations]
        template = chat_template or self.chat_template
        rendered = [
            self.tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False, **kwargs)
            for messages, _ in flattened
        ]
        if not tokenize:
            return rendered if batched else rendered[0]
        encoded = self(text=rendered, images=[images for _, images in flattened], return_tensors=return_tensors)
        return encoded if return_dict else encoded["input_ids"]

    def _with_bos(self, ids: list[int]) -> list[int]:
        begin = self.chat.begin
        return ids if begin is None or ids[:1] == [begin] else [begin, *ids]

    def _as_sample(self, ids: list[int], labels: list[int]) -> dict[str, list[int]]:
        return {"input_ids": self._expand(ids), "labels": self._expand(labels, like=ids)}

    def _expand(self, values: Sequence[int], *, like: Sequence[int] | None = None) -> list[int]:
        """Repeat the value at every placeholder `image_tokens` times."""
        keys = values if like is None else like
        if self.image_token_id not in keys:
            return list(values)
        repeats = [self.image_tokens if key == self.image_token_id else 1 for key in keys]
        return [value for value, repeat in zip(values, repeats, strict=True) for _ in range(repeat)]

    def _images_per_text(self, images: Any, wanted: Sequence[int]) -> list[list[Image.Image]]:
        """Images grouped by prompt, checked prompt by prompt."""
        if images is None:
            images = []
        if isinstance(images, Image.Image):
            images = [images]
        if any(isinstance(entry, list | tuple) for entry in images):
            groups = [list(entry) if isinstance(entry, list | tuple) else [entry] for entry in images]
            if len(groups) != len(wanted):
                raise InputError(
                    f"There are {len(wanted)} texts but {len(groups)} lists of images; give one list per text."
                )
        else:
            if len(images) != sum(wanted):
                raise InputError(
                    f"The texts hold {sum(wanted)} times {IMAGE_PLACEHOLDER} but there are {len(images)} images."
                )
            remaining = iter(images)
            groups = [[next(remaining) for _ in range(count)] for count in wanted]
        for index, (group, count) in enumerate(zip(groups, wanted, strict=True)):
            if len(group) != count:
                raise InputError(f"Text {index} holds {count} times {IMAGE_PLACEHOLDER} but has {len(group)} images.")
        return groups


def _flatten(messages: Sequence[Mapping[str, Any]], separator: str) -> tuple[list[dict[str, Any]], list[Image.Image]]:
    """Messages with plain-text contents, and the images taken out of them; each image leaves a placeholder and the
    separator."""
    images: list[Image.Image] = []
    flat = []
    for message in messages:
        content = message["content"]
        if not isinstance(content, str):
            texts = []
            for entry in content:
                if entry["type"] == "image":
                    images += [entry["image"]] if "image" in entry else []
                    texts.append(f"{IMAGE_PLACEHOLDER}{separator}")
                else:
                    texts.append(entry["text"])
            content = "".join(texts)
        flat.append({**message, "content": content})
    return flat, images


register_processor()
