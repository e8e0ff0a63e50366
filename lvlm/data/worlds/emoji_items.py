"""What is asked about emoji, as language-free items, and their text in a language. Called by `emoji_writer`, and by
`lvlm.backbones.emoji_text`, whose documents ask the same of names in place of pictures.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal

import numpy as np

from lvlm.data.worlds.emoji import Concepts
from lvlm.languages import language

Kind = Literal["naming", "choice", "pair", "caption"]
LETTERS = "ABCD"
NEAREST = 8
"""Hard negatives are drawn from so many concepts."""
PROMPTS: dict[Kind, str] = {
    "naming": "Name the picture in {language}.",
    "choice": (
        "Which of these choices (in {language}) is shown in the image?\nChoices:\n{choices}\n"
        "Answer with the letter from the given choices directly."
    ),
    "pair": 'Which of the two images shows "{name}"? Answer with 1 or 2.',
    "caption": "Name everything in the picture in {language}, row by row.",
}
"""As in Centurio's evaluation (arXiv 2501.05122, figure 2): instructions in English, names in the language asked for.
`choice` has the words of its BIN-MC."""
JOINER = ", "


@dataclass(frozen=True, slots=True)
class Item:
    """A request about one to four concepts, the same in every language.

    shown: what the pictures show, in order (two pictures for `pair`, one for the rest). answer: which of `options`
    (choice) or `shown` (pair) is right, from 0.
    """

    kind: Kind
    shown: tuple[str, ...]
    options: tuple[str, ...] = ()
    answer: int = 0

    @property
    def asked(self) -> str:
        """The concept that is right; for a caption the first."""
        return self.options[self.answer] if self.kind == "choice" else self.shown[self.answer]


def choice_item(concept: str, others: Sequence[str], *, place: int) -> Item:
    """The name out of four, the right one at `place`."""
    return Item("choice", (concept,), (*others[:place], concept, *others[place:]), place)


def pair_item(concept: str, other: str, *, place: int) -> Item:
    """Which of two pictures shows the concept, at `place`."""
    return Item("pair", (concept, other) if place == 0 else (other, concept), answer=place)


def hard_negatives(
    concept: str, concepts: Concepts, rng: np.random.Generator, *, among: Container[str], count: int
) -> tuple[str, ...] | None:
    """`count` concepts that share keywords with `concept`, drawn from the `NEAREST` of `among` that share most; None
    where fewer share any."""
    related = list(islice((other for other in concepts.related[concept] if other in among), NEAREST))
    if len(related) < count:
        return None
    return tuple(related[int(i)] for i in rng.choice(len(related), size=count, replace=False))


def prompt(item: Item, concepts: Concepts, code: str) -> str:
    """The request in a language, without image placeholders."""
    names = concepts.names[code]
    choices = "\n".join(f"{letter}. {names[option]}" for letter, option in zip(LETTERS, item.options, strict=False))
    return PROMPTS[item.kind].format(language=language(code).name, choices=choices, name=names[item.asked])


def answer(item: Item, concepts: Concepts, code: str) -> str:
    """The gold answer in a language."""
    if item.kind == "choice":
        return LETTERS[item.answer]
    if item.kind == "pair":
        return str(item.answer + 1)
    return told(item.shown, concepts, code)


def told(shown: Sequence[str], concepts: Concepts, code: str) -> str:
    """The names of concepts in a row."""
    return JOINER.join(concepts.names[code][concept] for concept in shown)
