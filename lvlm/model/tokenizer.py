"""The tokenizer of an LLM, and how many tokens conversations have; reads no weights. `lvlm.cli` plans with it, and
`lvlm.model.assembly` and the processor build on it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

from safetensors import SafetensorError
from tokenizers import AddedToken
from transformers import AutoConfig, AutoTokenizer

from lvlm.config import one_line
from lvlm.data.memory import code_digest
from lvlm.errors import InputError
from lvlm.model.backbones import resolve, tokenizer_source
from lvlm.model.chat import IMAGE_PLACEHOLDER, Chat, Turns
from lvlm.model.layouts import locate
from lvlm.model.templates import Template, centurio_template
from lvlm.settings import ModelConfig


class TokenCounter:
    """Counts the tokens of conversations with images, as they are trained on; `separator` comes between an image
    without a placeholder and the text."""

    def __init__(self, chat: Chat, *, separator: str) -> None:
        self.chat, self.separator = chat, separator

    def measure(self, samples: Sequence[tuple[Turns, int]]) -> list[tuple[int, int]]:
        """(text tokens, supervised tokens) of each (turns, number of images); an image counts as no text token."""
        placed = [place_images(turns, images, self.separator) for turns, images in samples]
        counts = self.chat.measure_all(placed, [images > 0 for _, images in samples])
        return [(total - images, own) for (total, own), (_, images) in zip(counts, samples, strict=True)]

    def key(self) -> str | None:
        """Identifies everything that counts depend on: the tokenizer's own state, its template and what that writes
        today, and the code; None for a tokenizer that does not show its state."""
        tokenizer = self.chat.tokenizer
        if not getattr(tokenizer, "is_fast", False):
            return None
        backend = tokenizer.backend_tokenizer
        backend.no_padding(), backend.no_truncation()  # every call sets them anew
        facts = [
            backend.to_str(),
            tokenizer.get_chat_template(),
            sorted(tokenizer.special_tokens_map.items()),
            self.chat.begin,
            self.chat.frame(1),
            self.separator,
            version("tokenizers"),
            version("transformers"),
            code_digest("lvlm.model.tokenizer", "lvlm.model.chat"),
        ]
        return hashlib.blake2b(repr(facts).encode(), digest_size=16).hexdigest()


def place_images(turns: Turns, n_images: int, separator: str) -> Turns:
    """The turns with one `<image_placeholder>` for each image: a single image without any comes first."""
    found = sum([user.count(IMAGE_PLACEHOLDER) for user, _ in turns])
    if found == n_images:
        return turns
    if n_images == 1 and found == 0:
        first, answer = turns[0]
        return [(f"{IMAGE_PLACEHOLDER}{separator}{first}", answer), *turns[1:]]
    raise InputError(
        f"A sample has {n_images} images but {found} times {IMAGE_PLACEHOLDER} in its user texts; it "
        f"needs one for each image. Its first user text begins: {turns[0][0][:80]!r}."
    )


def load_counter(model_config: ModelConfig, *, seed: int) -> TokenCounter:
    """What counts tokens as the processor of a run does."""
    if model_config.checkpoint is not None and (found := locate(model_config.checkpoint)).stands_alone:
        from lvlm.model.assembly import write_as
        from lvlm.model.checkpoints import saved_processor

        return write_as(model_config, *saved_processor(found)).counter
    source = resolve(model_config.llm, seed=seed)
    tokenizer = load_tokenizer(source)
    with llm_named(source):
        template = chosen_template(model_config, AutoConfig.from_pretrained(source, trust_remote_code=False))
    if template is None:
        return TokenCounter(Chat(tokenizer), separator="\n")
    tokenizer.chat_template = template.jinja()
    return TokenCounter(Chat(tokenizer), separator=template.separator)


def load_tokenizer(source: str, *, llm_config: Any = None) -> Any:
    """The tokenizer of a resolved LLM, with `<image_placeholder>` added where it lacks it. `llm_config` stands for a
    `config.json` beside it that transformers does not know."""
    place = tokenizer_source(source)
    with llm_named(source):
        try:
            tokenizer = AutoTokenizer.from_pretrained(place, config=llm_config, trust_remote_code=False)
        except Exception as error:  # the package tokenizers has no class of its own for a file that it cannot read
            raise ValueError(f"tokenizer: {error}") from error
    if tokenizer.convert_tokens_to_ids(IMAGE_PLACEHOLDER) in (None, tokenizer.unk_token_id):
        tokenizer.add_tokens([AddedToken(IMAGE_PLACEHOLDER, special=True, normalized=False)], special_tokens=True)
    return tokenizer


def chosen_template(model_config: ModelConfig, llm_config: Any) -> Template | None:
    """The template to put in the place of the tokenizer's own, if any."""
    return centurio_template(llm_config) if model_config.template == "centurio" else None


@contextmanager
def llm_named(source: str) -> Iterator[None]:
    """What transformers says about files of an LLM, as an error that names it."""
    try:
        yield
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(
            f"The language model '{source}' cannot be loaded: {one_line(error).rstrip('.')}. "
            "Give a shipped one (tiny-lm, tiny-lm-clean), a local folder, or a hub name that can be reached."
        ) from error
