"""Translations with mistakes of a known rate. Called by the writers of worlds that have such."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from lvlm.data.worlds.lexicon import Lexicon

Turns = list[tuple[str, str]]
"""What is asked and what is answered, in order."""


def with_mistakes(turns: Turns, rate: float, rng: np.random.Generator, lexicon: Lexicon) -> Turns:
    """The same with this share of the words exchanged for others of the language.

    From equal `rng`, words that are wrong at one rate are wrong, and the same, at every higher one.
    """
    known = sorted({word for surface in lexicon.attributes for word in surface.split()})

    def mistaken(text: str) -> str:
        return " ".join(_words(text, rng, known, rate))

    return [(mistaken(question), mistaken(answer)) for question, answer in turns]


def _words(text: str, rng: np.random.Generator, known: Sequence[str], rate: float) -> Iterator[str]:
    for word in text.split():
        chance, other = rng.random(), known[int(rng.integers(len(known)))]
        yield other if chance < rate else word
