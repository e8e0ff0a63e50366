"""Language models that answer other languages in English more or less often than the shipped ones: each shipped draw
trained on with another answer mix. Called by `python -m lvlm backbones --answer-mix`; nothing of it is shipped.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import cast

from transformers import PreTrainedTokenizerFast, Qwen2ForCausalLM

from lvlm.backbones.build import TOKENIZER, TRAINING_FILE, Say, finished, is_made, load_lm, progress_of
from lvlm.backbones.lm import LmRecipe, train_lm
from lvlm.backbones.text import ANSWER_MIX, TextWorld, text_world_settings
from lvlm.errors import InputError
from lvlm.records import write_json

ASSETS = Path(str(files("lvlm").joinpath("assets")))
RECIPE = LmRecipe(documents=16_000, lr=7.5e-4, matrix_lr=4e-3, warmup_steps=50)
"""A sixth of the documents that the shipped models read, at half their rates."""


def scaled_mix(rate: float) -> dict[str, float]:
    """The shipped answer mix with every share multiplied by `rate`; 0 is none."""
    highest = 1 / max(ANSWER_MIX.values())
    if not 0 <= rate <= highest:
        raise InputError(
            f"--answer-mix {rate:g} lies outside 0 to {highest:.2f}: it multiplies the share of requests that are "
            f"answered in English, which is {max(ANSWER_MIX.values()):g} in the lowest tier."
        )
    return {tier: rate * share for tier, share in ANSWER_MIX.items()}


def build_answer_mixes(
    folder: Path,
    rates: Sequence[float],
    *,
    draws: Sequence[int],
    say: Say = print,
    scale: float = 1.0,
    compiled: bool = True,
) -> None:
    """Train what is missing into `folder`/RATE/DRAW, from the shipped draw of that number.

    `model.llm` takes `folder`/RATE: seed s of a run uses draw s modulo their number. With one draw the documents are
    the same at every rate but for the language of their answers. `scale` shortens every training by a factor, to try
    the script out.
    """
    mixes = {rate: scaled_mix(rate) for rate in rates}
    recipe = dataclasses.replace(RECIPE, documents=max(RECIPE.batch, int(RECIPE.documents * scale)))
    for draw in draws:
        if not (start := ASSETS / f"tiny-lm-{draw}").exists():
            raise InputError(f"--draws {draw}: there is no shipped language model {start.name} to train on.")
        for rate, mix in mixes.items():
            making = {
                "seed": draw, "answer_mix": mix, "recipe": dataclasses.asdict(recipe),
                "documents": text_world_settings(), "started_from": start.name,
            }  # fmt: skip
            target = folder / f"{rate:g}" / str(draw)
            if is_made(target, making):
                say(f"{target}: already there")
                continue
            model = train_lm(
                _tokenizer(target.parent / TOKENIZER),
                world=TextWorld(answer_mix=mix),
                recipe=recipe,
                seed=draw,
                start=cast(Qwen2ForCausalLM, load_lm(start)),
                compiled=compiled,
                on_progress=progress_of(f"answer mix {rate:g}, draw {draw}", say),
            )
            with finished(target) as unfinished:
                model.half().save_pretrained(unfinished)
                write_json(unfinished / TRAINING_FILE, making)
            say(f"{target}: written")


def _tokenizer(target: Path) -> PreTrainedTokenizerFast:
    """That of the shipped draws, which lies beside every set of draws."""
    if not target.exists():
        with finished(target) as unfinished:
            shutil.copytree(ASSETS / TOKENIZER, unfinished, dirs_exist_ok=True)
    return PreTrainedTokenizerFast.from_pretrained(str(target))  # type: ignore[no-any-return]
