"""Turns the entries of an optimizer step into token tensors. Used by `lvlm.train.loop`
and `lvlm.run`."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lvlm.model.tiling import ImageTransform
from lvlm.train.features import ImageFeatures, TowerFeatures
from lvlm.train.images import load_pixels
from lvlm.train.loss import Reduction, token_weights
from lvlm.train.packing import micro_batches, packed_micro_batches

if TYPE_CHECKING:
    from lvlm.data.corpus import Sample
    from lvlm.data.plan import Plan
    from lvlm.data.pool import PlanEntry
    from lvlm.data.readers import Conversation

IGNORED = -100
"""Label of a token that the loss leaves out."""
KEPT_TOKENS = 1 << 27
"""Tokens that an encoder keeps in memory, at 4 bytes each: 512 MiB."""
HEAVY_STEPS = 16
"""Steps with most tokens, and as many with the longest samples, in which the largest micro-batch is looked for."""
RECENT_SAMPLES = 1 << 12
"""Samples that stay ready to be batched: those of the steps under way and of what is loaded ahead of them."""


@dataclass(frozen=True, slots=True)
class EncodedText:
    """The conversation of one sample as tokens, every image expanded: `ids` (tokens,), and where the loss looks and
    what it expects there."""

    ids: Tensor
    predicted_from: Tensor
    """Positions whose next token is supervised: the only ones that need logits."""
    targets: Tensor
    text_tokens: int


class EncodedSample:
    """One entry of the plan, ready to be batched. Its tokens are made when they are asked for; their number is known
    from the plan."""

    __slots__ = ("_encode", "_text", "images", "length", "number", "supervised")

    def __init__(
        self,
        encode: Callable[[], EncodedText],
        *,
        length: int,
        supervised: int,
        images: tuple[Path, ...],
        number: int = -1,
    ) -> None:
        self._encode = encode
        self._text: EncodedText | None = None
        self.length, self.supervised, self.images = length, supervised, images
        self.number = number
        """In the pool of the plan; -1 for what the plan does not have."""

    @property
    def text(self) -> EncodedText:
        if self._text is None:
            self._text = self._encode()
        return self._text


Group = list[tuple[EncodedSample, float]]
"""Samples of one micro-batch, each with the weight of one of its supervised tokens."""


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """What one forward pass sees: `input_ids` (samples, tokens) padded on the right, or (1, tokens) with the samples
    end to end, and the supervised positions of all rows, flat."""

    input_ids: Tensor
    position_ids: Tensor | None
    """(1, tokens), from 0 in every sample, where samples lie end to end: no sample attends to another. None where each
    has its row."""
    lengths: tuple[int, ...]
    positions: Tensor
    """Into the flattened (samples * tokens) hidden states."""
    targets: Tensor
    weights: Tensor
    images: tuple[Path, ...]
    last: bool = False
    """Whether this process has no other micro-batch in its optimizer step."""
    numbers: tuple[int, ...] = ()
    """Of its samples, in the pool of the plan."""
    pull: Tensor | None = None
    """(samples, hidden): the gradient of the step's contrastive term with respect to the mean state of each sample."""

    @property
    def told(self) -> str:
        """Its size, for a reader."""
        return f"{len(self.lengths)} samples, {self.input_ids.numel()} tokens with padding"

    def to(self, device: torch.device) -> MicroBatch:
        """The same with its tensors on `device`."""
        if device.type == "cpu":
            return self
        names = ("input_ids", "position_ids", "positions", "targets", "weights", "pull")
        tensors = {name: tensor for name in names if (tensor := getattr(self, name)) is not None}
        return replace(self, **{name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()})

    @property
    def inputs(self) -> dict[str, Tensor]:
        """What the LLM is given beside the images."""
        ids = {"input_ids": self.input_ids}
        return ids if self.position_ids is None else ids | {"position_ids": self.position_ids}


class SampleEncoder:
    """Tokenises conversations and keeps the tokens while there is room, so that measuring for the plan and training
    tokenise a sample once; what has no room is tokenised again when its step comes."""

    def __init__(self, processor: Any) -> None:
        self.processor = processor
        tokenizer = processor.tokenizer
        self.pad_id = int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id)
        self._places: dict[bytes, int] = {}
        self._tokens, self._starts = array("i"), array("q", [0])
        """All kept tokens end to end, ids where the loss does not look and their complements where it does."""

    def __call__(self, sample: Sample) -> EncodedText:
        images = len(sample.images)
        place = self._places.get(_key(_conversation(sample)))
        if place is None:
            (tokens,) = self._encode([_conversation(sample)])
        else:
            tokens = np.array(self._tokens[self._starts[place] : self._starts[place + 1]], dtype=np.int64)
        targets = np.flatnonzero(tokens[1:] < 0)
        ids = torch.from_numpy(np.where(tokens < 0, ~tokens, tokens))
        predicted_from = torch.from_numpy(targets)
        text_tokens = len(ids) - images * self.processor.image_tokens
        return EncodedText(ids, predicted_from, ids[1:][predicted_from], text_tokens)

    def measure(self, conversations: Sequence[Conversation]) -> list[tuple[int, int]]:
        """(text tokens, supervised tokens) of each conversation."""
        if len(self._tokens) >= KEPT_TOKENS:
            counts: list[tuple[int, int]] = self.processor.measure(conversations)
            return counts
        encoded = self._encode(conversations)
        for conversation, tokens in zip(conversations, encoded, strict=True):
            if self._places.setdefault(_key(conversation), len(self._places)) == len(self._starts) - 1:
                self._tokens.frombytes(tokens.astype(np.int32).tobytes())
                self._starts.append(len(self._tokens))
        return [
            (len(tokens) - images * self.processor.image_tokens, int(np.count_nonzero(tokens[1:] < 0)))
            for (_, images), tokens in zip(conversations, encoded, strict=True)
        ]

    def _encode(self, conversations: Sequence[Conversation]) -> list[npt.NDArray[np.int64]]:
        encoded = self.processor.encode_samples(conversations)
        return [
            np.where(np.equal(sample["labels"], IGNORED), sample["input_ids"], np.invert(sample["input_ids"]))
            for sample in encoded
        ]


def _conversation(sample: Sample) -> Conversation:
    return sample.turns, len(sample.images)


def _key(conversation: Conversation) -> bytes:
    return hashlib.blake2b(repr(conversation).encode(), digest_size=16).digest()


class StepBatches:
    """The micro-batches of any optimizer step of a plan: a pure function of (plan, step), split over processes by
    position."""

    def __init__(
        self,
        plan: Plan,
        encoder: SampleEncoder,
        reduction: Reduction,
        *,
        token_budget: int,
        rank: int = 0,
        processes: int = 1,
        lockstep: bool = False,
        packing: bool = False,
    ) -> None:
        self.plan = plan
        self.encoder = encoder
        self.reduction = reduction
        self.token_budget = token_budget
        self.rank = rank
        self.processes = processes
        self.lockstep = lockstep
        self.packing = packing
        self._samples: dict[int, EncodedSample] = {}

    def samples(self, step: int) -> list[EncodedSample]:
        """What all processes together learn from in this step, in the plan's order."""
        return [self._sample(entry) for entry in self.plan.step_entries(step)]

    def _sample(self, entry: PlanEntry) -> EncodedSample:
        if entry.number not in self._samples:
            if len(self._samples) >= RECENT_SAMPLES:
                del self._samples[next(iter(self._samples))]  # the oldest
            text_tokens, supervised = self.plan.tokens(entry)
            images = self.plan.image_paths(entry)
            self._samples[entry.number] = EncodedSample(
                lambda: self.encoder(self.plan.sample(entry)),
                length=text_tokens + len(images) * self.encoder.processor.image_tokens,
                supervised=supervised,
                images=images,
                number=entry.number,
            )
        return self._samples[entry.number]

    def images(self, first_step: int = 0) -> Iterator[Path]:
        """Every use of an image in the plan from `first_step` on, over all processes."""
        for place in range(first_step * self.plan.batch_samples, len(self.plan.order)):
            yield from self.plan.image_paths(self.plan.order[place])

    def groups(self, step: int) -> list[Group]:
        """This process's samples of the step by micro-batch, each with the weight of its supervised tokens.

        The weights divide by the supervised tokens (or samples) of the step over *all* processes. In lockstep every
        process has as many micro-batches as any other, each with an image where the plan has images: a process that
        lacks some is given an image without text to learn from, which adds exact zeros to the gradient.
        """
        weighted = self._weighted(step)
        if not self.lockstep:
            return self._of_rank(weighted, self.rank)
        of_ranks = [self._of_rank(weighted, rank) for rank in range(self.processes)]
        own = of_ranks[self.rank]
        return own + [[self._unread]] * (max(map(len, of_ranks)) - len(own))

    def _weighted(self, step: int) -> Group:
        samples = self.samples(step)
        weights = token_weights([sample.supervised for sample in samples], self.reduction)
        return list(zip(samples, weights, strict=True))

    def _of_rank(self, weighted: Group, rank: int) -> list[Group]:
        groups = self._split(weighted[rank :: self.processes])
        return self._with_images(groups) if self.lockstep else groups

    def _split(self, members: Group) -> list[Group]:
        split = packed_micro_batches if self.packing else micro_batches
        positions = split([sample.length for sample, _ in members], self.token_budget)
        return [[members[position] for position in group] for group in positions]

    def _with_images(self, groups: list[Group]) -> list[Group]:
        """The same, each with an image; a group of text that has no room for one is divided until it has."""
        image = self._unread[0]
        if not image.images:
            return groups
        whole: list[Group] = []
        while groups:
            group, *groups = groups
            with_image = group if any(sample.images for sample, _ in group) else [*group, self._unread]
            if with_image is not group and self._tokens(with_image) > self.token_budget and len(group) > 1:
                groups = [group[: len(group) // 2], group[len(group) // 2 :], *groups]
            else:
                whole.append(with_image)
        return whole

    def _tokens(self, group: Group) -> int:
        """Tokens of a micro-batch, padding included."""
        lengths = [sample.length for sample, _ in group]
        return sum(lengths) if self.packing else len(lengths) * max(lengths)

    @cached_property
    def _unread(self) -> tuple[EncodedSample, float]:
        """The plan's first image with nothing to learn; a single token where the plan has no image."""
        image = next(self.images(), None)
        tokens = [self.encoder.processor.image_token_id] * self.encoder.processor.image_tokens
        ids = torch.tensor(tokens if image else [self.encoder.pad_id])
        nothing = torch.zeros(0, dtype=torch.long)
        text = EncodedText(ids=ids, predicted_from=nothing, targets=nothing, text_tokens=0)
        images = (image,) if image else ()
        return EncodedSample(lambda: text, length=len(ids), supervised=0, images=images), 0.0

    def image_groups(self, first_step: int) -> Iterator[tuple[Path, ...]]:
        """The image files of every micro-batch from `first_step` on, in order."""
        for step in range(first_step, self.plan.steps):
            for group in self.groups(step):
                yield tuple(image for sample, _ in group for image in sample.images)

    def __call__(self, step: int) -> list[MicroBatch]:
        """This process's share of the step, ready to learn from."""
        groups = self.groups(step)
        return [self._collate(group, last=place == len(groups)) for place, group in enumerate(groups, start=1)]

    def halved(self, step: int) -> int | None:
        """A token budget that makes the longest micro-batch of several samples about half as large, in `step` or in the
        heaviest steps, the same in every process; None where each is a single sample already. One long sample may need
        less memory than several with more images."""
        groups = [
            [member for member in group if member is not self._unread]
            for weighted in map(self._weighted, {step, *self._heaviest()})
            for rank in range(self.processes)
            for group in self._of_rank(weighted, rank)
        ]
        divisible = [self._tokens(group) for group in groups if len(group) > 1]
        return max(divisible) // 2 if divisible else None

    def longest(self) -> MicroBatch | None:
        """The micro-batch with most tokens, padding included, among the steps with most tokens and with the longest
        samples; None where this process has no sample in any of them."""
        groups = [group for step in self._heaviest() for group in self.groups(step)]
        return self._collate(max(groups, key=self._tokens)) if groups else None

    def _heaviest(self) -> set[int]:
        """The steps with most tokens and those with the longest samples."""
        lengths = self.plan.lengths(self.encoder.processor.image_tokens)
        starts = np.arange(0, len(lengths), self.plan.batch_samples)
        by_total = np.argsort(-np.add.reduceat(lengths, starts), kind="stable")[:HEAVY_STEPS].tolist()
        by_longest = np.argsort(-np.maximum.reduceat(lengths, starts), kind="stable")[:HEAVY_STEPS].tolist()
        return {*by_total, *by_longest}

    def _collate(self, members: Group, *, last: bool = False) -> MicroBatch:
        texts = [sample.text for sample, _ in members]
        lengths = tuple(len(text.ids) for text in texts)
        position_ids = None
        if self.packing:
            input_ids = torch.cat([text.ids for text in texts])[None]
            position_ids = torch.cat([torch.arange(length) for length in lengths])[None]
            starts = [sum(lengths[:place]) for place in range(len(lengths))]
        else:
            # Padding on the right of causal attention: no real token can see it, so no attention mask is needed.
            width = max(lengths)
            input_ids = torch.full((len(members), width), self.encoder.pad_id)
            for row, text in enumerate(texts):
                input_ids[row, : lengths[row]] = text.ids
            starts = [row * width for row in range(len(lengths))]
        return MicroBatch(
            input_ids=input_ids,
            position_ids=position_ids,
            lengths=lengths,
            positions=torch.cat([text.predicted_from + start for text, start in zip(texts, starts, strict=True)]),
            targets=torch.cat([text.targets for text in texts]),
            weights=torch.cat([torch.full((sample.supervised,), weight) for sample, weight in members]),
            images=tuple(image for sample, _ in members for image in sample.images),
            last=last,
            numbers=tuple(sample.number for sample, _ in members),
        )


class BatchStream:
    """The micro-batches of consecutive steps together with their image inputs, ready for the model.

    With `store` the features are read; with a frozen tower and no store they are computed by `tower`; with `store` and
    `tower` None the model gets pixels, because its own tower learns. Loader processes only decode images ahead of
    time.
    """

    def __init__(
        self,
        batches: StepBatches,
        transform: ImageTransform,
        *,
        store: ImageFeatures | None,
        tower: TowerFeatures | None,
        device: torch.device,
        first_step: int,
        workers: int = 0,
    ) -> None:
        self.batches = batches
        self.transform = transform
        self.store = store
        self.tower = tower
        self.device = device
        self._pixels: Iterator[Tensor] = iter(())
        if store is None:
            self._pixels = load_pixels(batches.image_groups(first_step), transform, workers=workers)

    def step(self, step: int) -> Iterator[tuple[MicroBatch, dict[str, Tensor]]]:
        """The micro-batches of the next step, each with `image_features` or `pixel_values` (neither without images)."""
        for batch in self.batches(step):
            pixels = next(self._pixels) if self.store is None else None
            yield batch.to(self.device), self._image_inputs(batch, pixels)

    def outside(self, batch: MicroBatch) -> tuple[MicroBatch, dict[str, Tensor]]:
        """A micro-batch that is not the stream's next: the probe before step 0."""
        pixels = next(load_pixels([batch.images], self.transform)) if self.store is None else None
        return batch.to(self.device), self._image_inputs(batch, pixels)

    def _image_inputs(self, batch: MicroBatch, pixels: Tensor | None) -> dict[str, Tensor]:
        if not batch.images:
            return {}
        if pixels is None:
            assert self.store is not None
            return {"image_features": self.store(batch.images)}
        if self.tower is not None:
            return {"image_features": self.tower.from_pixels(pixels).float()}
        return {"pixel_values": pixels.flatten(0, 1).to(self.device, non_blocking=True)}
