"""Studies with planted outcomes, built in memory: the tests of curves, shares, fronts and mixed models read them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ablations.designs import FullGrid
from ablations.designs.design import Design
from ablations.factors import Factor
from ablations.studies import Study, load_study
from ablations.table import LEADING, TRAILING, Results
from lvlm.languages import language

LANGUAGES = ("en", "de", "fr", "ar", "ru", "tr", "fi", "el", "ka", "sw", "ht", "is")

Levels = Mapping[str, Any]


def planted(
    study: Study,
    outcome: Callable[[Levels, int, str], float],
    *,
    seeds: Sequence[int] = (0, 1, 2),
    languages: Sequence[str] = LANGUAGES,
    drop: Sequence[tuple[str, int]] = (),
    folder: Path = Path("planted"),
) -> Results:
    """Scores of one task: `outcome` of an arm's levels, a seed and a language; `drop` (arm, seed) are missing."""
    rows = []
    for arm in study.arms("default"):
        for seed in seeds:
            if (arm.label, seed) in drop:
                continue
            for code in languages:
                row = {"study": study.name, "arm": arm.label, "seed": seed, **arm.levels}
                row |= {"run": f"{arm.label}|{seed}", "task": "vqa", "language": code, "tier": language(code).tier}
                rows.append(row | {"metric": "score", "value": outcome(arm.levels, seed, code), "n": 100})
    table = pd.DataFrame(rows, columns=[*LEADING, *(factor.name for factor in study.factors), *TRAILING])
    return Results(table=table, folder=folder, study=study)


def shares(design: Design | None = None) -> Study:
    """The study `english_share` with its six levels, or a range of shares under another design."""
    study = load_study("english_share")
    if design is None:
        return study
    factor = Factor(name="english_share", path="instruct.mix.english_share", range=(0.01, 0.99))
    return Study(
        name="ranged", question="?", base="tiny", fixed=study.fixed, factors=(factor,), baseline={"english_share": 0.5},
        design=design, seeds=(0, 1, 2),
    )  # fmt: skip


def grid(design: Design | None = None, **options: Any) -> Study:
    """Three mixes x four shares x two numbers of tiles, crossed or under another design."""
    factors = (
        Factor(name="mix", path="instruct.mix.languages", levels=("all", "T5", "T5-T3")),
        Factor(name="share", path="instruct.mix.english_share", levels=(0.5, 0.1, 0.25, 0.9)),
        Factor(name="tiles", path="model.tiles", levels=(1, 2)),
    )
    given = {"baseline": {"mix": "all", "share": 0.5, "tiles": 1}, "seeds": (0, 1, 2), **options}
    return Study(name="grid", question="?", base="tiny", factors=factors, design=design or FullGrid(), **given)


def noise(seed: int, *names: Any) -> np.random.Generator:
    """A generator for what these names share."""
    return np.random.default_rng([seed, *(byte for name in names for byte in str(name).encode())])
