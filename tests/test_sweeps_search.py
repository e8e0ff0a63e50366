"""Searches: arms are proposed from the scores of those before, once each, by whichever worker; runs of nuisance
searches are ended early, and enter nothing."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from optuna.trial import FrozenTrial, TrialState, create_trial
from rich.console import Console

from ablations.contrasts import CHOSEN
from ablations.designs import Search, SpaceFilling
from ablations.factors import Factor
from ablations.studies import Expectation, Study
from ablations.table import load_results
from lvlm.errors import InputError
from lvlm.records import CURVE_FILE, RunRecord
from sweeps import cli
from sweeps.launcher import launch
from sweeps.plan import Place, Plan
from sweeps.planner import describe
from sweeps.pruning import is_behind
from sweeps.queue import CellState, Queue
from sweeps.search import Proposer
from sweeps.standing import Lookout
from sweeps.status import view
from sweeps.worker import Worker
from tests import sweeps_home
from tests.sweeps_fakes import PLANTED_LR, PLANTED_RUNNER, planted_scores, pruning_study, searched_study, write_run
from tests.sweeps_home import calls, enqueued, runs_of

home = sweeps_home.home  # the fixture


class NoTracker:
    """In the place of MLflow, which takes longer than the cells here."""

    trouble = None

    def __init__(self, *_: object) -> None: ...

    def begin(self, *_: object) -> None: ...

    def interrupt(self, *_: object) -> None: ...

    def send(self, *_: object) -> bool:
        return True


def planned(study: Study, home: Path) -> tuple[Plan, Place]:
    plan, place, _ = enqueued(home, study, runner=PLANTED_RUNNER)
    return plan, place


@pytest.fixture
def search(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Carries a search out in this process, by one worker."""
    monkeypatch.setattr("sweeps.worker.Tracker", NoTracker)

    def carry_out(study: Study, home: Path) -> tuple[Plan, Place]:
        plan, place = planned(study, home)
        assert Worker(plan, place).work() == 0
        return plan, place

    return carry_out


def arms_of(plan: Plan) -> list[dict[str, Any]]:
    return [next(cell.levels for cell in plan.cells if cell.arm == arm) for arm in plan.arms]


def scores_of(plan: Plan, place: Place, name: str = "score/multilingual") -> np.ndarray:
    records = {cell.id: RunRecord.load(place.cell(cell.id)).scores[name] for cell in plan.cells}
    return np.array([np.mean([records[cell.id] for cell in plan.cells if cell.arm == arm]) for arm in plan.arms])


@pytest.mark.parametrize(("sampler", "arms"), [("tpe", 32), ("gp", 18)])
def test_a_search_finds_what_was_planted_better_than_its_first_arms(
    sampler: Any, arms: int, search: Any, tmp_path: Path
) -> None:
    plan, place = search(searched_study(sampler=sampler, arms=arms, first=8, draw=1), tmp_path)
    scores = scores_of(plan, place)
    assert len(scores) == arms
    assert scores[8:].max() > scores[:8].max() and scores[-8:].mean() > scores[:8].mean() + 5
    best = arms_of(plan)[int(scores.argmax())]
    assert best["tiles"] == 2 and best["languages"] != "en" and abs(np.log10(best["lr"] / PLANTED_LR)) < 0.7
    for levels in arms_of(plan):
        assert (levels["share"] is None) == (levels["languages"] == "en"), "proposed where it does not apply"


def test_the_front_of_two_objectives_is_the_planted_one(search: Any, tmp_path: Path) -> None:
    objectives = ("score/en", "score/multilingual")
    study = searched_study(sampler="nsga2", arms=60, first=12, objectives=objectives)
    plan, place = search(study, tmp_path)
    points = np.stack([scores_of(plan, place, name) for name in objectives], axis=1)

    def front(points: np.ndarray) -> np.ndarray:
        return np.array([not ((points >= one).all(1) & (points > one).any(1)).any() for one in points])

    found = [levels for levels, best in zip(arms_of(plan), front(points), strict=True) if best]
    assert len(found) >= 3 and all(levels["tiles"] == 2 for levels in found)
    assert all(abs(np.log10(levels["lr"] / PLANTED_LR)) < 1 for levels in found)
    assert all(levels["share"] is None or levels["share"] > 0.25 for levels in found), "both fall below"
    for share in (0.3, 0.65, 0.99):
        planted = np.array([50 + 20 * share, 70 - 40 * (share - 0.3)])
        assert (points >= planted - 7).all(1).any(), f"nothing near the planted front at share {share}"


def test_one_worker_twice_proposes_the_same_arms_and_another_draw_other_ones(search: Any, tmp_path: Path) -> None:
    courses = []
    for number, draw in enumerate((0, 0, 1)):
        plan, _ = search(searched_study(arms=14, first=5, draw=draw), tmp_path / str(number))
        courses.append(plan.arms)
    assert courses[0] == courses[1] != courses[2]
    assert len(set(courses[0])) == 14


@pytest.mark.parametrize("sampler", ["tpe", "gp"])
def test_no_arm_is_proposed_twice_though_the_sampler_asks_for_it_again(
    sampler: Any, search: Any, tmp_path: Path
) -> None:
    given = searched_study(arms=6, first=2, sampler=sampler)
    factors = tuple(factor for factor in given.factors if factor.name in ("languages", "tiles"))
    plan, _ = search(replace(given, factors=factors, baseline={"languages": "T5", "tiles": 1}), tmp_path)
    assert len(plan.arms) == len(plan.cells) == 6, "all combinations that there are"


def test_a_search_goes_on_with_what_is_known_and_grows(search: Any, tmp_path: Path) -> None:
    whole, _ = search(searched_study(arms=12, first=4), tmp_path / "whole")
    plan, _ = search(searched_study(arms=7, first=4), tmp_path / "parts")
    again, place = search(searched_study(arms=12, first=4), tmp_path / "parts")
    assert plan.arms == whole.arms[:7] and again.arms == whole.arms
    assert len(calls(tmp_path / "parts")) == 12, "nothing is run twice"
    more, _ = search(searched_study(arms=12, first=4, seeds=(0, 1)), tmp_path / "parts")
    assert more.arms == whole.arms and len(more.cells) == 24
    assert len(calls(tmp_path / "parts")) == 24, "the new seed's cells and no others"
    assert {cell.id for cell in Plan.load(place).cells} == {cell.id for cell in more.cells}
    assert Queue(more, place.storage).add_missing() == 0, "planning twice adds nothing"


def test_the_cells_of_a_proposal_are_those_that_the_study_itself_makes(search: Any, tmp_path: Path) -> None:
    study = searched_study(arms=3, first=2, seeds=(0, 1))
    plan, _ = search(study, tmp_path)
    for cell in plan.cells:
        own = next(one for one in study.cells_of(cell.levels) if (one.arm.label, one.seed) == (cell.arm, cell.seed))
        assert own.config == cell.run_config()


KILLED = """
import os, signal
from pathlib import Path
from sweeps.plan import Place, Plan
from sweeps.queue import Queue
from sweeps.search import Proposer
place = Place(Path({home!r}), "fake")
plan = Plan.load(place)
queue = Queue(plan, place.storage)
while claim := queue.claim():
    import tests.sweeps_fakes as fakes
    config = claim.cell.run_config()
    fakes.write_run(config, place.cell(claim.cell.id), scores=fakes.planted_scores(config))
    queue.complete(claim, 1.0)
Queue._add = lambda self, cells, **_: cells and os.kill(os.getpid(), signal.SIGKILL)
Proposer(plan, place, queue).advance()
"""


def test_a_worker_killed_between_its_proposal_and_the_queue_loses_nothing(search: Any, tmp_path: Path) -> None:
    study = searched_study(arms=5, first=2)
    whole, _ = search(study, tmp_path / "whole")
    plan, place = planned(study, tmp_path / "killed")
    code = KILLED.format(home=str(tmp_path / "killed"))
    killed = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1])
    assert killed.returncode == -signal.SIGKILL
    assert [arm.number for arm in plan.read_proposals(place.folder)] == [1]
    assert Queue(plan, place.storage).claim() is None, "no trial was written for it"
    assert search(study, tmp_path / "killed")[0].arms == whole.arms


def test_workers_are_no_more_arms_ahead_than_there_are_workers_and_propose_none_twice(tmp_path: Path) -> None:
    study = searched_study(arms=7, first=3, seeds=(0, 1))
    _, place = planned(study, tmp_path)
    crew = []
    for _ in range(3):
        plan = Plan.load(place)
        queue = Queue(plan, place.storage)
        crew.append((queue, Proposer(plan, place, queue)))
    assert crew[1][1].advance() and not plan.read_proposals(place.folder), "the baseline waits, so nobody proposes"
    busy: dict[int, Any] = {}
    rng = np.random.default_rng(0)
    for _ in range(200):
        worker = int(rng.integers(3))
        queue, proposer = crew[worker]
        if worker in busy:
            claim = busy.pop(worker)
            config = claim.cell.run_config()
            write_run(config, place.cell(claim.cell.id), scores=planted_scores(config))
            queue.complete(claim, 1.0)
        else:
            claim = queue.claim()
            if claim is None and proposer.advance():
                claim = queue.claim()
            if claim is not None:
                busy[worker] = claim
        states = queue.states()
        open_arms = {cell.arm for cell in queue.plan.cells if states[cell.id].state != "done"}
        assert len(open_arms) <= 3
    plan = Plan.load(place)
    assert len(plan.arms) == len({json.dumps(levels) for levels in arms_of(plan)}) == 7
    assert {state.state for state in Queue(plan, place.storage).states().values()} == {"done"}


def test_two_processes_search_one_study_and_what_they_find_is_read_without_a_verdict(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FAKE_SECONDS", "0.1")
    file = tmp_path / "searched.py"
    file.write_text(
        "from tests.sweeps_fakes import searched_study\n"
        "study = searched_study(name='searched', arms=5, first=3, seeds=(0, 1))\n"
    )
    outcome = launch(file, workers=2, home=home, runner=PLANTED_RUNNER)
    assert outcome.is_complete and (outcome.cells, outcome.done) == (10, 10)
    assert sorted(call[0] for call in calls(home)) == sorted({call[0] for call in calls(home)})
    results = load_results(file, home=home)
    assert len(results.arms()) == 5 and results.is_searched and not results.missing
    effects = results.effects(metric="score")
    assert set(effects["verdict"]) == {"not judged"} and set(effects["reason"]) == {CHOSEN}
    capsys.readouterr()
    assert cli.main(["plan", str(file), "--home", str(home), "--runner", PLANTED_RUNNER]) == 0
    text = capsys.readouterr().out
    assert "search: tpe for score/multilingual; 5 arms so far" in text and "can tell apart: no effects" in text
    assert cli.main(["export", str(file), "--home", str(home)]) == 0
    assert "10 of 10 runs" in capsys.readouterr().out


def history(outcomes: Mapping[str, CellState], place: Place, plan: Plan) -> list[Any]:
    proposer = Proposer(plan, place, Queue(plan, place.storage))
    arms = [*plan.read_proposals(place.folder)]
    states = {cell.id: outcomes.get(cell.arm, CellState("done")) for cell in plan.cells}
    return proposer._history(arms, states)


def test_a_diverged_arm_counts_as_the_worst_and_a_failed_one_is_left_out(search: Any, tmp_path: Path) -> None:
    plan, place = search(searched_study(arms=6, first=3, seeds=(0, 1)), tmp_path)
    outcomes = {
        plan.arms[1]: CellState("failed", diverged=True),
        plan.arms[2]: CellState("failed", error="ValueError: bad"),
        plan.arms[3]: CellState("running"),
    }
    trials = history(outcomes, place, plan)
    done = scores_of(plan, place)[4:]
    assert [trial.state.name for trial in trials] == ["COMPLETE", "FAIL", "RUNNING", "COMPLETE", "COMPLETE"]
    assert trials[0].value == min(done) and [trial.value for trial in trials[3:]] == list(done)


# Pruning


def test_pruned_cells_are_shown_as_pruned_and_are_in_no_table(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = pruning_study(seeds=(0, 1), arms=7)
    plan, place = planned(study, home)
    assert Worker(plan, place).work() == 0
    outcome = launch(study, workers=1, home=home, runner=PLANTED_RUNNER)
    states = Queue(plan, place.storage).states()
    pruned = [cell for cell in plan.cells if states[cell.id].state == "pruned"]
    assert 4 <= len(pruned) <= 10 and outcome.is_complete and outcome.pruned == len(pruned)
    assert outcome.done == 14 - len(pruned)
    by_seed = [{cell.arm for cell in pruned if cell.seed == seed} for seed in (0, 1)]
    assert by_seed[0] == by_seed[1], "each is compared with its own seed, whose scores are 30 points apart"
    assert plan.arms[0] not in by_seed[0]
    for cell in pruned:
        assert not place.is_recorded(cell.id)
        rows = [json.loads(line) for line in (place.cell(cell.id) / CURVE_FILE).read_text().splitlines()]
        assert {row["step"] for row in rows} == set(range(1, rows[-1]["step"] + 1))
    whole = {cell.arm: planted_scores(cell.run_config())["score/en"] for cell in plan.cells}
    assert max(whole, key=whole.__getitem__) not in by_seed[0] | by_seed[1], "the best arm was ended"
    results = load_results(study, home=home)
    ids = {cell.id for cell in pruned}
    assert not ids & set(results.table["run"]) and sorted(results.pruned) == sorted((c.arm, c.seed) for c in pruned)
    assert not results.missing and f"{len(pruned)} pruned" in results.summary()
    shown = {run.data.tags["cell_id"]: run for run in runs_of(home)}
    assert {shown[cell_id].data.tags["state"] for cell_id in ids} == {"pruned"}
    assert {shown[cell_id].info.status for cell_id in ids} == {"KILLED"}
    console = Console(width=200, record=True)
    console.print(view(Lookout(place, plan).standing(states)))
    assert f"{len(pruned)} pruned" in console.export_text()
    assert f", {len(pruned)} pruned" in "\n".join(describe(plan, states))
    assert Queue(plan, place.storage).requeue_failed() == [], "a pruned cell is not run again"
    capsys.readouterr()


def test_successive_halving_looks_at_every_arm_early_and_hyperband_at_some_later() -> None:
    rungs = {f"completed_rung_{rung}": 50.0 for rung in range(3)}
    curve = {step: 50.0 for step in range(1, 10)}
    done = [
        create_trial(state=TrialState.COMPLETE, value=50.0, intermediate_values=curve, system_attrs=rungs)
        for _ in range(30)
    ]
    bad = create_trial(state=TrialState.RUNNING, intermediate_values={1: 10.0})
    good = create_trial(state=TrialState.RUNNING, intermediate_values={1: 60.0})

    def behind(attempt: FrozenTrial, prune: str) -> set[bool]:
        found = ([*done[:place], attempt, *done[place:]] for place in range(30))
        return {is_behind(attempts, place, prune, "fake")[0] for place, attempts in enumerate(found)}

    assert behind(bad, "successive_halving") == {True} and behind(good, "successive_halving") == {False}
    assert behind(bad, "hyperband") == {True, False} and behind(good, "hyperband") == {False}


def test_a_run_that_was_taken_up_again_keeps_the_scores_it_was_compared_by(tmp_path: Path) -> None:
    plan, place = planned(pruning_study(seeds=(0,)), tmp_path)
    queue = Queue(plan, place.storage)
    first = queue.claim()
    assert first is not None and queue.report(first, 1, 5.0) and queue.keep(first, "completed_rung_0", 5.0)
    queue.release(first)
    again = queue.claim()
    assert again is not None and again.attempt == 2 and queue.report(again, 2, 6.0)
    (attempt,) = queue.attempts(0).values()
    assert attempt is not None and attempt.intermediate_values == {1: 5.0, 2: 6.0}
    assert attempt.system_attrs["completed_rung_0"] == 5.0
    assert is_behind([attempt], 0, "successive_halving", "fake")[0] is False


def test_a_search_that_cannot_be_true_or_would_do_nothing_is_refused() -> None:
    lr = Factor(name="lr", path="instruct.optim.lr", range=(1e-5, 1e-1), log=True)
    given = dict(vars(pruning_study()))
    given = {name: value for name, value in given.items() if name in Study.__dataclass_fields__}
    for change, why in (
        ({"factors": (lr,)}, r"ends the runs of arms that do badly.*nothing true of lr"),
        ({"base": {"instruct": given["base"]["instruct"]}}, r"set instruct\.validate_every"),
        ({"design": Search(arms=1)}, "arms is a whole number, at least 2"),
        ({"design": Search(arms=9, sampler="gp", prune="hyperband")}, "prune is for sampler='tpe'"),
        ({"design": Search(arms=9, sampler="nsga2")}, "nsga2 is for two objectives"),
        ({"design": Search(arms=9, sampler="random")}, "sampler is one of tpe, gp, nsga2"),  # type: ignore[arg-type]
        ({"design": Search(arms=9, prune="median")}, "prune is one of"),  # type: ignore[arg-type]
        ({"design": Search(arms=9, objectives=("score/en", "score/T1"))}, "primary, 'score/multilingual', is one"),
        ({"design": Search(arms=9, objectives=("score/en", "scores"))}, "'scores' is not a score"),
        ({"full_design": SpaceFilling(points=2)}, "both searches or both none"),
        ({"factors": (Factor(name="lr", path="model.tiles", levels=(1, 2)),), "baseline": {"lr": 1}}, "2 combinations"),
    ):
        with pytest.raises(InputError, match=why):
            Study(**{**given, **change})
    expected = Expectation(claim="x", metric="score", group="en", arm={"lr": 1e-3}, direction="higher")
    with pytest.raises(InputError, match="draws no conclusions"):
        Study(**{**given, "expectations": (expected,)})


def test_factors_that_require_each_other_are_refused() -> None:
    one = Factor(name="one", path="model.tiles", levels=(1, 2), requires={"two": (4,)})
    two = Factor(name="two", path="instruct.batch_samples", levels=(4, 8), requires={"one": (1,)})
    with pytest.raises(InputError, match="require each other"):
        Search(arms=2).combinations((one, two), {"one": 1, "two": 4})
