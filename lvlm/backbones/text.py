"""The text that the tiny language models learn from: scenes in words, questions, translations and spelling. Called
by `lvlm.backbones.lm`.

No images. A document is one chat: the first user turn holds a scene described in one language, the questions and
answers may be in another, so that the model learns to read every language against every other. How much of each
language it sees follows its tier.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from lvlm.data.worlds.lexicon import Lexicon, lexicon_codes, load_lexicon
from lvlm.data.worlds.questions import questions_for
from lvlm.data.worlds.reading import TRAINING_WORDS
from lvlm.data.worlds.scenes import Scene, sample_scene
from lvlm.languages import language

TIER_WEIGHT = {"en": 0.30, "T5": 0.075, "T4": 0.055, "T3": 0.040, "T2": 0.028, "T1": 0.018}
"""Share of the documents that each *language* of a tier gets, before normalisation: resource levels in miniature."""

ANSWER_MIX = {"en": 0.0, "T5": 0.25, "T4": 0.30, "T3": 0.35, "T2": 0.40, "T1": 0.45}
"""Share of the requests in a language of the tier that are answered in English, as much instruction text on the web is.

An assumption about the world, declared once and never tuned: it sets the level of fidelity. `NO_MIX` is the control."""

NO_MIX = dict.fromkeys(ANSWER_MIX, 0.0)

KINDS = {"spelling": 0.16, "describe": 0.22, "questions": 0.62}
"""Share of each kind of document."""

TURNS = 5
"""Questions about a scene: as many as a scene with one group has."""

Turns = list[tuple[str, str]]


@dataclass(frozen=True)
class TextWorld:
    """Draws documents. Settings only; all randomness comes from the generator in the call."""

    answer_mix: dict[str, float] = field(default_factory=lambda: dict(ANSWER_MIX))

    def documents(self, rng: np.random.Generator, *, count: int) -> Iterator[tuple[str, Turns]]:
        """Yield `count` documents as (language of the questions, turns)."""
        codes = lexicon_codes()
        weights = np.array([TIER_WEIGHT[language(code).tier] for code in codes])
        drawn = rng.choice(len(codes), size=count, p=weights / weights.sum())
        for index in drawn:
            yield codes[index], self.document(rng, codes[index])

    def document(self, rng: np.random.Generator, code: str) -> Turns:
        """One document whose requests are in language `code`."""
        kind = rng.choice(list(KINDS), p=list(KINDS.values()))
        if kind == "spelling":
            return self._spelling(rng, load_lexicon(code))
        scene = sample_scene(rng)
        told = _told_in(rng, code)
        answered = "en" if rng.random() < self.answer_mix[language(code).tier] else code
        if kind == "describe":
            return [
                (f"{told.caption(scene)}\n{load_lexicon(code).caption_request}", load_lexicon(answered).caption(scene))
            ]
        return scene_questions(
            scene, rng, told=told, asked=load_lexicon(code), answered=load_lexicon(answered), count=TURNS
        )

    def _spelling(self, rng: np.random.Generator, lexicon: Lexicon) -> Turns:
        letters = sorted(set("".join(lexicon.words)))
        turns: Turns = []
        for _ in range(3):
            if rng.random() < 0.5:
                word = lexicon.words[int(rng.integers(TRAINING_WORDS))]
            else:
                word = "".join(letters[int(i)] for i in rng.integers(len(letters), size=int(rng.integers(3, 6))))
            turns.append((f"{' '.join(word)}\n{lexicon.read_request}", word))
        return turns


def text_world_settings() -> dict[str, object]:
    """What the documents are drawn by, besides the answer mix; kept with every draw."""
    return {"tier_weight": TIER_WEIGHT, "kinds": KINDS, "turns": TURNS}


def scene_questions(
    scene: Scene, rng: np.random.Generator, *, told: Lexicon, asked: Lexicon, answered: Lexicon, count: int
) -> Turns:
    """A scene described in `told`, then questions in `asked` with their answers in `answered`."""
    turns: Turns = []
    for number, question in enumerate(questions_for(scene, rng, n=count)):
        text = asked.question(question)
        turns.append((f"{told.caption(scene)}\n{text}" if number == 0 else text, answered.answer(question)))
    return turns


def _told_in(rng: np.random.Generator, code: str) -> Lexicon:
    """The scene is told in English half of the time, else in the language of the request or in any other."""
    kind = rng.random()
    if kind < 0.5:
        return load_lexicon("en")
    if kind < 0.85:
        return load_lexicon(code)
    codes = lexicon_codes()
    return load_lexicon(codes[int(rng.integers(len(codes)))])
