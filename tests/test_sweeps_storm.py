"""A sweep of real trainings whose workers are killed while they train: its scores are those of a sweep that nobody
disturbed. The storm over everything else that a worker does is in `tests.test_sweeps_launch`."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from optuna.trial import TrialState

from ablations.designs import FullGrid
from ablations.factors import Factor
from ablations.studies import Study
from ablations.table import load_results
from lvlm.records import RunRecord
from sweeps.identity import is_alive
from sweeps.launcher import launch
from sweeps.plan import DEFAULT_RUNNER, Place
from sweeps.queue import MAX_ATTEMPTS
from sweeps.storage import Trials
from tests import sweeps_home
from tests.sweeps_home import lay_database, work_alone
from tests.tiny import tiny_world
from tests.train_world import run_config, write_corpus

home = sweeps_home.home  # the fixture
KILLS = 20
KILLS_OF_A_CELL = MAX_ATTEMPTS - 3  # fewer than make it fail, also where a worker has come to its next cell meanwhile


def study_on(corpus: Path) -> Study:
    """Two arms x two seeds that share a pretrain stage by seed, with a checkpoint after every step and dropout."""
    world = tiny_world()
    config = run_config(
        corpus, llm=world.llm, tower=world.tower,
        pretrain__steps=60, instruct__steps=100,
        compute={"device": "cpu", "threads": 1, "micro_batch_tokens": 300, "checkpoint_every": 1e-6},
    )  # fmt: skip
    return Study(
        name="storm",
        question="Does a kill leave a trace?",
        base=config.model_dump(mode="json"),
        factors=(Factor(name="languages", path="instruct.mix.languages", levels=("en", "all")),),
        baseline={"languages": "en"},
        design=FullGrid(),
        seeds=(0, 1),
    )


def training(home: Path) -> Iterator[tuple[str, int]]:
    """Cells of the study of which a part is trained, each with the process number of its worker."""
    if not Place(home, "storm").storage.exists:
        return
    for trial in Trials(Place(home, "storm").storage).trials((TrialState.RUNNING,)):
        if (who := trial.user_attrs.get("owner")) and is_alive(who) and list(home.glob("stages/*/checkpoint.pt")):
            yield trial.user_attrs["cell_id"], who["pid"]


@contextlib.contextmanager
def storm(home: Path, killed: list[int]) -> Iterator[None]:
    """Inside, workers that train are killed at random moments, `KILLS` of them."""
    moments, over = random.Random(0), threading.Event()
    of_cell = Counter[str]()

    def kill() -> None:
        while not over.wait(0.02) and len(killed) < KILLS:
            alive = [(cell, pid) for cell, pid in training(home) if of_cell[cell] < KILLS_OF_A_CELL]
            if alive and not over.wait(moments.uniform(0, 0.4)):
                cell, pid = moments.choice(alive)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    killed.append(pid)
                    of_cell[cell] += 1

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def losses(curve: Path) -> list[tuple[str, int, float]]:
    """(stage, step, loss) of a curve."""
    lines = map(json.loads, curve.read_text(encoding="utf-8").splitlines())
    return [(line["stage"], line["step"], line["loss"]) for line in lines]


def test_scores_after_a_storm_are_those_of_an_undisturbed_sweep(
    home: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    study = study_on(write_corpus(tmp_path_factory.mktemp("storm") / "noise"))
    calm = tmp_path_factory.mktemp("calm")
    killed: list[int] = []
    lay_database(calm)
    assert work_alone(calm, study, runner=DEFAULT_RUNNER).is_complete
    with storm(home, killed):
        assert launch(study, workers=2, home=home).is_complete
    assert len(killed) == KILLS, "the storm has to hit"
    keys = ["run", "task", "language", "metric"]
    tables = [
        load_results(place / "studies/storm").table.sort_values(keys, ignore_index=True) for place in (calm, home)
    ]
    pd.testing.assert_frame_equal(*tables, check_exact=True)
    curves = [sorted(map(losses, (place / "stages").glob("*/curve.jsonl"))) for place in (calm, home)]
    assert curves[0] == curves[1] and len(curves[0]) == 6, "each stage is trained once, with the same losses"
    cells = [RunRecord.load(folder) for folder in (home / "studies/storm/cells").iterdir()]
    assert len(cells) == 4
