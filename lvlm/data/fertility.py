"""How many tokens a tokenizer makes of a word, and how many samples it makes too long, by language. `lvlm.data.plan`
asks for every plan; `python -m lvlm plan --fertility` prints it and plan.json keeps it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from lvlm.data.boundaries import count_words
from lvlm.data.checks import IMAGE_PLACEHOLDER
from lvlm.data.counts import Counts, Measure
from lvlm.data.mix import Numbers
from lvlm.data.pool import Pool
from lvlm.data.readers import Conversation
from lvlm.data.tally import Total
from lvlm.languages import in_table_order

SAMPLES = 256
"""Samples of a language whose words are counted: enough for tokens per word within some percent, and few enough for a
plan of a million samples in 100 languages, which takes half a second longer."""
FILLERS = ("x", "x x")
"""One word, and the same twice."""
Frame = tuple[tuple[int, ...], int]
"""How many image placeholders each turn of a conversation has, and how many images it shows: all but its texts."""


@dataclass(frozen=True, slots=True)
class Fertility:
    """Tokens and words of some samples of one language, prompts and answers, before anything is cut."""

    samples: int
    words: int
    tokens: int
    """Of the texts, without what the chat template writes around them."""

    @property
    def tokens_per_word(self) -> float | None:
        """None where there are no words."""
        return self.tokens / self.words if self.words else None

    def as_row(self) -> dict[str, Any]:
        """For plan.json."""
        return {**asdict(self), "tokens_per_word": self.tokens_per_word}


def measure_fertility(pool: Pool, used: Numbers, counts: Counts, measure: Measure) -> dict[str, Fertility]:
    """By language, in the order of the table: what up to `SAMPLES` of the `used` samples of a pool show; several
    corpora give in proportion to what they have. `counts` are those of whole samples."""
    parts = list(pool.by_part(used))
    sizes: dict[str, int] = {}
    for part, numbers in parts:
        sizes[part.language] = sizes.get(part.language, 0) + len(numbers)
    chosen: list[tuple[str, Numbers, list[Conversation]]] = []
    for part, numbers in parts:
        wanted = max(1, min(SAMPLES, sizes[part.language]) * len(numbers) // sizes[part.language])
        some = np.sort(np.random.default_rng(0).choice(numbers, wanted, replace=False, shuffle=False))
        chosen.append((part.language, some, part.rows.conversations(pool.row[some])))
    around = _around(
        {_frame(conversation) for _, _, conversations in chosen for conversation in conversations}, measure
    )
    found: dict[str, Fertility] = {}
    for code, some, conversations in chosen:
        words = sum([count_words(_text(conversation), code) for conversation in conversations])
        template = sum([around[_frame(conversation)] for conversation in conversations])
        before = found.get(code, Fertility(0, 0, 0))
        found[code] = Fertility(
            before.samples + len(some),
            before.words + words,
            before.tokens + int(counts[some, 0].sum(dtype=np.int64)) - template,
        )
    return {code: found[code] for code in in_table_order(found)}


def fertility_lines(found: Mapping[str, Fertility], totals: Mapping[str, Total]) -> list[str]:
    """For a terminal: a line for each language."""
    result = [
        f"fertility: tokens per word in up to {SAMPLES} samples of a language (prompts and answers, without the chat "
        "template), and the share of all its samples that is cut at max_text_tokens",
        f"  {'language':<12} {'samples':>9} {'words':>9} {'tokens':>9} {'tokens/word':>12} {'cut':>7}",
    ]
    for code, own in found.items():
        per_word = "-" if own.tokens_per_word is None else f"{own.tokens_per_word:.2f}"
        cut = totals[code].cut_samples / totals[code].samples
        result.append(f"  {code:<12} {own.samples:>9,} {own.words:>9,} {own.tokens:>9,} {per_word:>12} {cut:>7.2%}")
    return result


def _frame(conversation: Conversation) -> Frame:
    turns, images = conversation
    return tuple([user.count(IMAGE_PLACEHOLDER) for user, _ in turns]), images


def _around(frames: Iterable[Frame], measure: Measure) -> dict[Frame, int]:
    """The tokens that the template writes around the texts of each frame: what is left of one filler in the place of
    every text when what the second filler adds is taken off again."""
    each = list(frames)
    counts = measure([
        (tuple([(IMAGE_PLACEHOLDER * shown + filler, filler) for shown in places]), images)
        for filler in FILLERS
        for places, images in each
    ])  # fmt: skip
    once, twice = counts[: len(each)], counts[len(each) :]
    return {frame: 2 * one - two for frame, (one, _), (two, _) in zip(each, once, twice, strict=True)}


def _text(conversation: Conversation) -> str:
    texts = [text for turn in conversation[0] for text in turn]
    return "\n".join(texts).replace(IMAGE_PLACEHOLDER, "\n")
