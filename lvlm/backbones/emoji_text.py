"""The text that a language model of the emoji world learns from: names of emoji in every language, told in one language
and asked for in another. Called by `lvlm.backbones.emoji`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from lvlm.backbones.text import ANSWER_MIX, TIER_WEIGHT, Turns
from lvlm.data.worlds.emoji import Concepts
from lvlm.data.worlds.emoji_items import (
    LETTERS,
    Item,
    Kind,
    answer,
    choice_item,
    hard_negatives,
    pair_item,
    prompt,
    told,
)
from lvlm.languages import NO_TIER, TIERS, language

KINDS: dict[Kind, float] = {"naming": 0.5, "caption": 0.2, "choice": 0.15, "pair": 0.15}
"""Share of each kind of document."""
TURNS: dict[Kind, int] = {"naming": 4, "caption": 1, "choice": 2, "pair": 3}
"""Requests of a document; documents of like length, as a scene tells of several emoji and a choice is long."""
SCENE = (2, 5)  # emoji of a scene: from two to four
TOLD_IN_ENGLISH, TOLD_IN_ITS_OWN = 0.5, 0.2  # of the requests; the others are told in any language


@dataclass(frozen=True)
class EmojiText:
    """Draws documents over all concepts: a language model has read names that no training picture shows.

    A request is that of the corpus, with names in place of its pictures. How much of each language is read follows its
    tier, and `answer_mix` is the share of requests for names that are answered in English, as in `TextWorld`.
    """

    concepts: Concepts
    answer_mix: dict[str, float] = field(default_factory=lambda: dict(ANSWER_MIX))

    def documents(self, rng: np.random.Generator, *, count: int) -> Iterator[tuple[str, Turns]]:
        """Yield `count` documents as (language of the requests, turns)."""
        codes = self.concepts.languages
        weights = np.array([TIER_WEIGHT[_tier(code)] for code in codes])
        for index in rng.choice(len(codes), size=count, p=weights / weights.sum()):
            yield codes[index], self.document(rng, codes[index])

    def document(self, rng: np.random.Generator, code: str) -> Turns:
        """One document whose requests are in language `code`."""
        kind: Kind = list(KINDS)[int(rng.choice(len(KINDS), p=list(KINDS.values())))]
        answered = "en" if rng.random() < self.answer_mix[_tier(code)] else code
        turns: Turns = []
        for _ in range(TURNS[kind]):
            item = self._item(rng, kind)
            names = [told([concept], self.concepts, self._told_in(rng, code)) for concept in item.shown]
            shown = "\n".join(names) if kind == "pair" else told(item.shown, self.concepts, self._told_in(rng, code))
            turns.append((f"{shown}\n{prompt(item, self.concepts, code)}", answer(item, self.concepts, answered)))
        return turns

    def _item(self, rng: np.random.Generator, kind: Kind) -> Item:
        ids = self.concepts.ids
        if kind == "caption":
            return Item(
                "caption", tuple(ids[int(i)] for i in rng.choice(len(ids), int(rng.integers(*SCENE)), replace=False))
            )
        concept = ids[int(rng.integers(len(ids)))]
        if kind == "naming":
            return Item("naming", (concept,))
        count = len(LETTERS) - 1 if kind == "choice" else 1
        others = hard_negatives(concept, self.concepts, rng, among=self._all, count=count)
        if others is None:
            return Item("naming", (concept,))
        place = int(rng.integers(count + 1))
        return (
            choice_item(concept, others, place=place) if kind == "choice" else pair_item(concept, *others, place=place)
        )

    @cached_property
    def _all(self) -> frozenset[str]:
        return frozenset(self.concepts.ids)

    def _told_in(self, rng: np.random.Generator, code: str) -> str:
        draw = rng.random()
        if draw < TOLD_IN_ENGLISH and "en" in self.concepts.languages:
            return "en"
        if draw < TOLD_IN_ENGLISH + TOLD_IN_ITS_OWN:
            return code
        return self.concepts.languages[int(rng.integers(len(self.concepts.languages)))]


def _tier(code: str) -> str:
    """A language of no tier is read as seldom as those of the lowest."""
    tier = language(code).tier
    return TIERS[-1] if tier == NO_TIER else tier


def emoji_text_settings() -> dict[str, object]:
    """What the documents are drawn by, besides the concepts and the answer mix; kept with every draw."""
    return {
        "tier_weight": TIER_WEIGHT, "kinds": KINDS, "turns": TURNS, "scene": list(SCENE),
        "told": [TOLD_IN_ENGLISH, TOLD_IN_ITS_OWN],
    }  # fmt: skip
