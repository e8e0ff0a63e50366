"""Builds the backbones of the emoji world for a written corpus: language models that have read its names as text, and
towers, begun from the shipped ones, that have seen its pictures. Called by `python -m lvlm backbones --corpus DIR`;
nothing of it is shipped.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from lvlm.backbones.build import (
    DRAWS,
    TOKENIZER,
    TRAINING_FILE,
    Say,
    finished,
    is_made,
    load_vit,
    progress_of,
    save_tower,
)
from lvlm.backbones.card import greedy_answers
from lvlm.backbones.emoji_text import EmojiText, emoji_text_settings
from lvlm.backbones.emoji_vision import EmojiVitRecipe, emoji_bank, train_emoji_vit
from lvlm.backbones.lm import LmRecipe, train_lm
from lvlm.backbones.text import ANSWER_MIX, NO_MIX
from lvlm.backbones.tokenizer import train_tokenizer
from lvlm.data.worlds.emoji import Concepts
from lvlm.data.worlds.emoji_items import Item, answer, prompt, told
from lvlm.data.worlds.emoji_writer import CONCEPTS_FILE, PICTURES_FOLDER, read_concepts
from lvlm.languages import language
from lvlm.records import write_json

RECIPE = LmRecipe(documents=60_000)
VOCABULARY = 5_000
"""Tokens: 80 languages write these names with some 1,400 characters."""
TOKENIZER_DOCUMENTS = 10_000
CARD_FILE = "card.json"
FIGURE_ITEMS = 48


def build_emoji(
    corpus: Path,
    folder: Path,
    *,
    draws: Sequence[int],
    parts: Sequence[str],
    say: Say = print,
    scale: float = 1.0,
    compiled: bool = True,
) -> None:
    """Train what is missing among `parts` (`lm`, `clean`, `vit`) of the given draws into `folder`/PART/DRAW.

    `model.llm` and `model.tower` take `folder`/lm and `folder`/vit: seed s of a run uses draw s modulo their number.
    `clean` is a language model that was never answered in English unasked. `scale` shortens every training by a
    factor, to try the script out.
    """
    concepts = read_concepts(corpus)
    content = hashlib.sha256((corpus / CONCEPTS_FILE).read_bytes()).hexdigest()[:12]
    for draw in draws:
        for part, mix in (("lm", ANSWER_MIX), ("clean", NO_MIX)):
            if part in parts:
                _language_model(folder / part / str(draw), concepts, content, draw, mix, say, scale, compiled)
        if "vit" in parts:
            _tower(folder / "vit" / str(draw), corpus, concepts, content, draw, say, scale, compiled)


def _language_model(
    target: Path,
    concepts: Concepts,
    content: str,
    draw: int,
    mix: dict[str, float],
    say: Say,
    scale: float,
    compiled: bool,
) -> None:
    recipe = dataclasses.replace(RECIPE, documents=max(RECIPE.batch, int(RECIPE.documents * scale)))
    making = {
        "seed": draw, "answer_mix": mix, "recipe": dataclasses.asdict(recipe), "vocabulary": VOCABULARY,
        "documents": emoji_text_settings(), "concepts": content,
    }  # fmt: skip
    if is_made(target, making):
        return say(f"{target}: already there")
    name = f"language model {draw}"
    world = EmojiText(concepts, answer_mix=mix)
    documents = max(recipe.batch, int(TOKENIZER_DOCUMENTS * scale))
    shared = {key: making[key] for key in ("answer_mix", "vocabulary", "documents", "concepts")} | {"count": documents}
    tokenizer = _tokenizer(target.parent / TOKENIZER, world, shared, say)
    model = train_lm(
        tokenizer, world=world, recipe=recipe, seed=draw, compiled=compiled, request_weight=0.0,
        on_progress=progress_of(name, say),
    )  # fmt: skip
    figures = name_figures(model, tokenizer, concepts)
    with finished(target) as unfinished:
        model.half().save_pretrained(unfinished)
        write_json(unfinished / TRAINING_FILE, making)
        write_json(unfinished / CARD_FILE, figures)
    say(f"{name}: right of names told in English, by tier: {_by_tier(figures)}")


def _tokenizer(target: Path, world: EmojiText, making: Mapping[str, Any], say: Say) -> PreTrainedTokenizerFast:
    """One for all draws, beside them: in a model's own folder transformers would read it as that of a Qwen2."""
    if not is_made(target, making):
        say("tokenizer: learning merges")
        drawn = world.documents(np.random.default_rng(20_250_112), count=making["count"])
        texts = (text for _, turns in drawn for turn in turns for text in turn)
        with finished(target) as unfinished:
            train_tokenizer(texts, vocabulary_size=VOCABULARY).save_pretrained(str(unfinished))
            write_json(unfinished / TRAINING_FILE, making)
    return PreTrainedTokenizerFast.from_pretrained(str(target))  # type: ignore[no-any-return]


def _tower(
    target: Path, corpus: Path, concepts: Concepts, content: str, draw: int, say: Say, scale: float, compiled: bool
) -> None:
    recipe = EmojiVitRecipe()
    recipe = dataclasses.replace(recipe, steps=max(1, int(recipe.steps * scale)))
    started_from = Path(str(files("lvlm").joinpath("assets"))) / f"tiny-vit-{draw % DRAWS}"
    making = {
        "seed": draw, "recipe": dataclasses.asdict(recipe), "concepts": content, "started_from": started_from.name,
    }  # fmt: skip
    if is_made(target, making):
        return say(f"{target}: already there")
    name = f"tower {draw}"
    bank = emoji_bank(corpus / PICTURES_FOLDER, concepts.ids)
    tower = load_vit(started_from)
    accuracy = train_emoji_vit(
        tower, bank, recipe=recipe, seed=draw, compiled=compiled, on_progress=progress_of(name, say)
    )
    with finished(target) as unfinished:
        save_tower(unfinished, tower)
        write_json(unfinished / TRAINING_FILE, making)
        write_json(unfinished / CARD_FILE, accuracy)
    say(f"{name}: tokens named right: " + ", ".join(f"{view} {share:.2f}" for view, share in accuracy.items()))


def name_figures(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, concepts: Concepts
) -> dict[str, dict[str, float]]:
    """Language -> share of greedy answers that are the right name in it (`right`), or in it or English
    (`or_english`), where the emoji is told in English; over at most `FIGURE_ITEMS` concepts, the same everywhere."""
    shown = concepts.ids[:: max(1, len(concepts.ids) // FIGURE_ITEMS)][:FIGURE_ITEMS]
    items = [Item("naming", (concept,)) for concept in shown]
    figures = {}
    for code in concepts.languages:
        prompts = [f"{told(item.shown, concepts, 'en')}\n{prompt(item, concepts, code)}" for item in items]
        answers = list(zip(greedy_answers(model, tokenizer, prompts), items, strict=True))
        right = [said == answer(item, concepts, code) for said, item in answers]
        either = [said in (answer(item, concepts, code), answer(item, concepts, "en")) for said, item in answers]
        figures[code] = {"right": float(np.mean(right)), "or_english": float(np.mean(either))}
    return figures


def _by_tier(figures: Mapping[str, Mapping[str, float]]) -> str:
    tiers: dict[str, list[float]] = {}
    for code, measures in figures.items():
        tiers.setdefault(language(code).tier, []).append(measures["right"])
    return ", ".join(f"{tier} {np.mean(values):.2f}" for tier, values in tiers.items())
