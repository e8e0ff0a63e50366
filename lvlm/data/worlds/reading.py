"""Words in scenes: which words a split may show, and the image of one word. Called by `writer` and by notebooks.

A reading item asks for the word in its picture; letters are so small that half the resolution is barely legible."""

from __future__ import annotations

import zlib
from functools import cache
from typing import Literal

import numpy as np
from PIL import Image

from lvlm.data.worlds.lexicon import Lexicon, lexicon_codes, load_lexicon
from lvlm.data.worlds.render import Area, background, draw_word, render
from lvlm.data.worlds.scenes import TRAINING_PAIRS, Group, Scene
from lvlm.errors import InputError

TRAINING_WORDS = 45
"""The first so many words of a lexicon are for training; the others appear in `tune` and `test` only."""

DISTRACTOR_SHARE = 0.5
ANYWHERE: Area = (0.0, 0.0, 1.0, 1.0)
BELOW: Area = (0.0, 0.6, 1.0, 1.0)
ABOVE: Area = (0.0, 0.0, 1.0, 0.4)


@cache
def _trained_words() -> frozenset[str]:
    """The training words of all languages together."""
    return frozenset(word for code in lexicon_codes() for word in load_lexicon(code).words[:TRAINING_WORDS])


def words_for(lexicon: Lexicon, pool: Literal["train", "tune", "test"]) -> tuple[str, ...]:
    """The training words, or the unseen words that only `tune` or only `test` shows.

    Languages share words ("sand", "bein"). So a word that any language trains on is unseen in none, and a word's
    checksum says whether it is for `tune` (a third) or `test`, alike in every language: nothing is reported on a word
    tuned on.
    """
    words = tuple(lexicon.words)
    unseen: dict[str, list[str]] = {"tune": [], "test": []}
    for word in words[TRAINING_WORDS:]:
        if word not in _trained_words():
            unseen["test" if zlib.crc32(word.encode()) % 3 else "tune"].append(word)
    if not all(unseen.values()):
        raise InputError(
            f"The lexicon of language '{lexicon.code}' has {len(words)} reading words, which leaves "
            f"{len(unseen['tune'])} to tune and {len(unseen['test'])} to test on beside the {TRAINING_WORDS} for "
            "training (words that another language trains on do not count). "
            f"Add words to the end of `words` in lexicons/{lexicon.code}.yaml, or leave the language out."
        )
    return words[:TRAINING_WORDS] if pool == "train" else tuple(unseen[pool])


def letters_for(lexicon: Lexicon, rng: np.random.Generator) -> str:
    """Two to four letters of a language in random order, each as frequent as in its training words.

    A model that saw only the training words would learn to tell those apart and never to read; a draw that is a word
    of `tune` or `test` in any language is thrown away.
    """
    letters = "".join(lexicon.words[:TRAINING_WORDS])
    while True:
        drawn = "".join(letters[int(i)] for i in rng.integers(len(letters), size=int(rng.integers(2, 5))))
        if drawn not in _all_words():
            return drawn


@cache
def _all_words() -> frozenset[str]:
    return frozenset(word for code in lexicon_codes() for word in load_lexicon(code).words)


def reading_image(word: str, rng: np.random.Generator, *, language: str, size: int = 96) -> Image.Image:
    """`word` on a background and, half of the time, one or two equal shapes on the other side of the image."""
    if rng.random() >= DISTRACTOR_SHARE:
        return draw_word(background(rng, size=size), word, rng, language=language, area=ANYWHERE)
    place, area = ("top", BELOW) if rng.random() < 0.5 else ("bottom", ABOVE)
    # Held-out pairs stay unseen here too, as a model may train on this corpus and be tested on the shapes.
    colour, shape = TRAINING_PAIRS[int(rng.integers(len(TRAINING_PAIRS)))]
    distractor = Group(
        shape=shape,
        colour=colour,
        size="large" if rng.random() < 0.5 else "small",
        place=place,
        count=int(rng.integers(1, 3)),
    )
    return draw_word(render(Scene((distractor,)), rng, size=size), word, rng, language=language, area=area)
