"""A study and a runner that take no time, for the tests of `sweeps`: same attributes and files as the real ones.
Imported by workers too."""

from __future__ import annotations

import errno
import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from ablations.designs import FullGrid, Search
from ablations.factors import Factor
from ablations.studies import Study
from lvlm.config import RunConfig, to_yaml
from lvlm.errors import Diverged
from lvlm.records import (
    CONFIG_FILE,
    CURVE_FILE,
    PLAN_FILE,
    PREDICTION_COLUMNS,
    PREDICTIONS_FILE,
    SCORES_FILE,
    RunRecord,
    write_json,
    write_text,
)

RUNNER = "tests.sweeps_fakes:run"
PLANTED_RUNNER = "tests.sweeps_fakes:run_planted"
PLANTED_LR, PLANTED_SHARE = 1e-3, 0.3
VALIDATIONS = 9
HELD_SEED = 2
CALLS = "calls.txt"
MIX = {"corpora": [{"path": "shapes", "split": "train"}]}
LANGUAGES = ("en", "de", "sw")


def fake_study(
    *, seeds: tuple[int, ...] = (0, 1), languages: tuple[str, ...] = ("en", "all"), name: str = "fake"
) -> Study:
    """Arms: `languages` x tiles {1, 2}; the pretrain stage is shared by arms with the same tiles."""
    base = {"pretrain": {"mix": {**MIX, "languages": "en"}}, "instruct": {"mix": MIX}}
    return Study(
        name=name,
        question="Does a study that trains nothing find anything?",
        base=base,
        factors=(
            Factor(name="languages", path="instruct.mix.languages", levels=languages),
            Factor(name="tiles", path="model.tiles", levels=(1, 2)),
        ),
        baseline={"languages": languages[-1], "tiles": 1},
        design=FullGrid(),
        seeds=seeds,
    )


def run(config: RunConfig, folder: Path, *, home: Path, on_progress: Callable[[dict[str, Any]], None]) -> RunRecord:
    """What `lvlm.run.run` leaves behind, after FAKE_SECONDS; fails for the tiles in FAKE_FAIL, diverges for those in
    FAKE_DIVERGE, finds the disk full while `home/full` is there, and with the seed `HELD_SEED` lasts as long as
    `home/held` is there. Every call is noted in `home/calls.txt`."""
    finished = (folder / "record.json").exists()
    with open(home / CALLS, "a", encoding="utf-8") as calls:
        calls.write(f"{folder.name} {'repeated' if finished else 'started'} {os.environ.get('OMP_NUM_THREADS')}\n")
    if str(config.model.tiles) in os.environ.get("FAKE_FAIL", "").split(","):
        raise ValueError(f"no such tiles: {config.model.tiles}")
    if str(config.model.tiles) in os.environ.get("FAKE_DIVERGE", "").split(","):
        raise Diverged("The loss is nan at step 3.")
    if (home / "full").exists():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder / "checkpoint.pt"))
    while config.seed == HELD_SEED and (home / "held").exists():
        time.sleep(0.05)
    steps = 10
    for step in range(1, steps + 1):
        on_progress({"kind": "step", "stage": "pretrain", "step": step, "steps": steps, "loss": 1 / step})
        time.sleep(float(os.environ.get("FAKE_SECONDS", "0")) / steps)
    return write_run(config, folder)


def searched_study(*, seeds: tuple[int, ...] = (0,), name: str = "fake", **search: Any) -> Study:
    """A search over languages, the share of English where there is more than English, tiles, and the learning rate."""
    return Study(
        name=name,
        question="Does a search find what was planted?",
        base={"instruct": {"mix": MIX}},
        factors=(
            Factor(
                name="share",
                path="instruct.mix.english_share",
                range=(0.01, 0.99),
                requires={"languages": ("T5", "all")},
            ),
            Factor(name="languages", path="instruct.mix.languages", levels=("en", "T5", "all")),
            Factor(name="tiles", path="model.tiles", levels=(1, 2)),
            Factor(name="lr", path="instruct.optim.lr", range=(1e-5, 1e-1), log=True),
        ),
        baseline={"share": 0.9, "languages": "T5", "tiles": 1, "lr": 1e-2},
        design=Search(**{"arms": 4, **search}),
        seeds=seeds,
    )


def pruning_study(*, seeds: tuple[int, ...] = (0, 1), name: str = "fake", **search: Any) -> Study:
    """A search for the learning rate alone, which prunes."""
    return Study(
        name=name,
        question="Which learning rate?",
        base={
            "instruct": {"mix": MIX, "validate_every": 1},
            "evaluate": {"tune_corpora": [{"path": "shapes", "split": "tune"}]},
        },
        factors=(Factor(name="lr", path="instruct.optim.lr", range=(1e-5, 1e-1), log=True, nuisance=True),),
        baseline={"lr": 1e-2},
        design=Search(**{"arms": 9, "first": 4, "prune": "successive_halving", **search}),
        seeds=seeds,
    )


def planted_scores(config: RunConfig) -> dict[str, float]:
    """Best with two tiles and the planted learning rate; English rises with its share, which has the other languages
    fall from the planted one on. Seeds differ by 30 points, more than arms do."""
    assert config.instruct is not None
    rate = 20 * min(1.0, abs(math.log10(config.instruct.optim.lr / PLANTED_LR)) / 2)
    share = config.instruct.mix.english_share
    share = 1.0 if config.instruct.mix.languages == "en" or share is None else share
    both = 40.0 + 10 * (config.model.tiles - 1) - rate + 30 * (config.seed % 2)
    return {"score/en": both + 20 * share, "score/multilingual": both + 20 - 40 * abs(share - PLANTED_SHARE)}


def run_planted(
    config: RunConfig, folder: Path, *, home: Path, on_progress: Callable[[dict[str, Any]], None]
) -> RunRecord:
    """As `run`, with planted scores, of which the curve has the same share in every run."""
    scores = planted_scores(config)
    with open(home / CALLS, "a", encoding="utf-8") as calls:
        calls.write(f"{folder.name} started\n")
    time.sleep(float(os.environ.get("FAKE_SECONDS", "0")))
    for step in range(1, VALIDATIONS + 1):
        at = {"stage": "instruct", "step": step, "samples": 16 * step}
        on_progress({"kind": "step", **at, "steps": VALIDATIONS, "loss": 1 / step})
        if config.instruct is not None and config.instruct.validate_every:
            on_progress({"kind": "validation", **at, **{name: one * step / 10 for name, one in scores.items()}})
    return write_run(config, folder, scores=scores)


def write_run(
    config: RunConfig,
    folder: Path,
    *,
    languages: tuple[str, ...] = LANGUAGES,
    scores: dict[str, float] | None = None,
) -> RunRecord:
    """The files of a finished run; the score is 50 + seed, and 10 more with two tiles, where no `scores` say it."""
    folder.mkdir(parents=True, exist_ok=True)
    score = scores["score/multilingual"] if scores else 50.0 + config.seed + 10 * (config.model.tiles - 1)
    write_text(folder / CONFIG_FILE, to_yaml(config))
    mix = [{"corpus": "shapes", "language": code, "samples": 16, "cut_samples": 0} for code in languages]
    write_json(folder / PLAN_FILE, {stage: {"stage": stage, "mix": mix} for stage in ("pretrain", "instruct")})
    rows = [
        {"stage": stage, "step": step, "samples": 16 * step, "loss": 1 / step, "tokens_per_second": 1000.0, "lr": 1e-3}
        for stage in ("pretrain", "instruct")
        for step in (1, 2, 3)
    ]
    rows.append({"stage": "instruct", "step": 3, "samples": 48, "score/multilingual": 12.0})
    write_text(folder / CURVE_FILE, "".join(json.dumps(row) + "\n" for row in rows))
    rows_of_scores = [("vqa", code, metric, score, 20) for code in languages for metric in ("score", "fidelity")]
    pd.DataFrame(rows_of_scores, columns=["task", "language", "metric", "value", "n"]).to_parquet(folder / SCORES_FILE)
    same = {"task": "vqa", "score": score, "score_any_language": score}
    blank = dict.fromkeys(PREDICTION_COLUMNS, "a") | same
    answers = [blank | {"language": code, "answer_language": code} for code in languages]
    pd.DataFrame(answers).to_parquet(folder / PREDICTIONS_FILE)
    record = RunRecord(
        name=config.name,
        seed=config.seed,
        folder=str(folder),
        stage_keys={"pretrain": "aaa", "instruct": "bbb"},
        plan_hash="0123456789ab",
        scores={
            "score/en": score,
            "score/T1": score,
            "score/multilingual": score,
            "fidelity/multilingual": 100.0 - score,
            "vqa/en": score,
            "vqa/multilingual": score,
            **(scores or {}),
        },
        budget={"samples": 96.0, "seconds": 1.0},
        provenance={
            "git_commit": "c0ffee",
            "backbones": {"tower": "1234"},
            "plan_hashes": {"pretrain": "0123", "instruct": "4567"},
        },
        tags=list(config.tags),
    )
    record.save(folder)
    return record
