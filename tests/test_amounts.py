"""What arms see is counted before they run, and a study may hold any of it equal; a probe says how long it takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ablations.designs import FullGrid
from ablations.factors import Factor
from ablations.studies import Amount, Study
from lvlm.errors import InputError
from lvlm.run import run
from sweeps.amounts import AMOUNTS, Meter, arm_amounts
from sweeps.cli import main
from sweeps.plan import Plan
from sweeps.planner import describe, make_plan
from sweeps.queue import CellState
from sweeps.read import export
from tests.train_world import run_config, write_corpus

TILES = Factor(name="tiles", path="model.tiles", levels=(1, 2))
LANGUAGES = Factor(name="languages", path="instruct.mix.languages", levels=("all", "en"))
SHORT: dict[str, Any] = {"pretrain__steps": None, "pretrain__epochs": 2, "instruct__steps": None}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("amounts") / "noise", samples=24, items=2)


def study(corpus: Path, held_equal: Amount, factor: Factor = TILES, **changes: Any) -> Study:
    base = run_config(corpus, model__tiles=1, **{**SHORT, **changes}).model_dump(mode="json")
    return Study(
        name="held",
        question="Do tiles pay for themselves?",
        base=base,
        factors=(factor,),
        baseline={factor.name: factor.levels[0]},
        design=FullGrid(),
        seeds=(0, 1),
        held_equal=held_equal,
    )


def sums(plan: Plan, meter: Meter, amount: Amount) -> dict[tuple[str, int], dict[str, float]]:
    """(arm, seed) -> stage -> amount."""
    return {
        (cell.arm, cell.seed): {name: one[amount] for name, one in meter.stages(cell.run_config()).items()}
        for cell in plan.cells
    }


@pytest.mark.parametrize("factor", [TILES, LANGUAGES], ids=lambda factor: factor.name)
@pytest.mark.parametrize("amount", ["llm_tokens", "images", "flops"])
def test_every_arm_sees_as_much_as_the_baseline(corpus: Path, tmp_path: Path, amount: Amount, factor: Factor) -> None:
    meter = Meter(tmp_path)
    plan = make_plan(study(corpus, amount, factor), meter=meter)
    found = sums(plan, meter, amount)
    first = plan.arms[0]
    for cell in plan.cells:
        for stage, seen in found[cell.arm, cell.seed].items():
            largest = meter.pool(cell.run_config(), stage).each[amount].max()
            assert abs(seen - found[first, cell.seed][stage]) <= largest / 2, "to the nearest sample"
    assert plan.held_equal == amount
    states = {cell.id: CellState("waiting") for cell in plan.cells}
    title = {"llm_tokens": "LLM tokens", "images": "images", "flops": "FLOPs"}[amount]
    assert f"held equal in every arm: {title}" in describe(plan, states)
    assert all(cell.config["tags"] == [f"held_equal: {amount}"] for cell in plan.cells)


def test_tiles_at_equal_flops_and_at_equal_samples_are_two_studies(corpus: Path, tmp_path: Path) -> None:
    meter = Meter(tmp_path)
    plans = {amount: make_plan(study(corpus, amount), meter=meter) for amount in AMOUNTS}
    cells = {amount: {(cell.arm, cell.seed): cell for cell in plan.cells} for amount, plan in plans.items()}
    seen = {amount: arm_amounts(plan.cells, meter) for amount, plan in plans.items()}
    one, two = plans["samples"].arms
    more = seen["samples"][two]["flops"] / seen["samples"][one]["flops"]
    assert more > 1.05, "the tower sees five views"
    assert seen["samples"][two]["samples"] == seen["samples"][one]["samples"]
    assert seen["flops"][two]["samples"] == pytest.approx(seen["flops"][one]["samples"] / more, abs=2)
    for seed in (0, 1):
        assert len({cells[amount][one, seed].id for amount in AMOUNTS}) == 1, "the baseline is the same in all"
        ids = {amount: cells[amount][two, seed].id for amount in AMOUNTS}
        assert ids["samples"] == ids["llm_tokens"] == ids["images"] != ids["flops"], "tiles cost no token here"
        config = cells["flops"][two, seed].run_config()
        assert config.instruct is not None and config.instruct.epochs is None and config.instruct.steps is None
        assert config.instruct.samples is not None and config.instruct.samples < 24
    assert plans["samples"].version != plans["flops"].version
    assert make_plan(study(corpus, "flops"), meter=Meter(tmp_path)).version == plans["flops"].version


def test_what_a_run_records_is_what_was_planned(corpus: Path, tmp_path: Path) -> None:
    meter = Meter(tmp_path)
    plan = make_plan(study(corpus, "flops"), meter=meter)
    place = plan.place(tmp_path)
    for cell in (cell for cell in plan.cells if cell.seed == 0):
        record = run(cell.run_config(), place.cell(cell.id), home=tmp_path)
        assert record.tags == ["held_equal: flops"]
        for stage, planned in meter.stages(cell.run_config()).items():
            realised = {amount: record.budget[f"{stage}/{amount}"] for amount in AMOUNTS}
            assert realised == pytest.approx(planned)
    exported = export(place, plan, study=study(corpus, "flops"))
    assert exported.runs == 2
    from ablations.table import load_results

    results = load_results(place.folder)
    one, two = results.budget()["flops"]
    assert two == pytest.approx(one, rel=0.05)
    assert results.origin is not None and ("held equal in every arm", "flops") in results.origin.lines()


def test_what_cannot_be_held_equal_is_one_clear_error(corpus: Path, tmp_path: Path) -> None:
    epochs = Factor(name="epochs", path="instruct.epochs", levels=(1, 2))
    with pytest.raises(InputError, match=r"instruct\.epochs is varied, and held_equal='flops' sets the length"):
        study(corpus, "flops", epochs)
    assert len(study(corpus, "samples", epochs).cells()) == 4, "how long a stage is may be the question itself"
    with pytest.raises(InputError, match="one of samples, llm_tokens, images, flops, not 'tokens'"):
        study(corpus, "tokens")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="gone does not exist"):
        make_plan(study(tmp_path / "gone", "images"), meter=Meter(tmp_path))
    make_plan(study(tmp_path / "gone", "samples"), meter=Meter(tmp_path))


def test_steps_of_another_size_see_as_many_samples(corpus: Path, tmp_path: Path) -> None:
    batch = Factor(name="batch", path="instruct.batch_samples", levels=(8, 4))
    plan = make_plan(study(corpus, "samples", batch, instruct__steps=6), meter=Meter(tmp_path))
    lengths = {(c.config["instruct"]["steps"], c.config["instruct"]["samples"]) for c in plan.cells}
    assert lengths == {(6, None), (None, 48)}


def test_a_probe_times_two_arms_and_leaves_nothing_behind(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    declared = study(corpus, "samples")
    monkeypatch.setattr("sweeps.planner.load_study", lambda _: declared)
    monkeypatch.setattr("sweeps.probe.STEPS", 6)
    asked = ["plan", "held", "--home", str(tmp_path), "--workers", "1", "--probe", "--price-per-hour", "3600"]
    assert main(asked) == 0
    said = capsys.readouterr().out.splitlines()
    assert "probe: 6 steps of each stage of 'tiles 1' and 'tiles 2'" in said[-2]
    assert said[-1].startswith("estimated:") and "for 4 cells" in said[-1] and "at 3600 for an hour" in said[-1]
    seconds = float(said[-1].rpartition(" ")[2].replace(",", ""))
    assert 0.1 < seconds < 900, "an hour costs 3600, so this is in seconds"
    assert any("x1.00" not in line and "(x" in line for line in said), "tiles cost more"
    assert {path.name for path in tmp_path.iterdir()} <= {"data"}, "what was counted is remembered, nothing is started"
    assert main(["plan", "held", "--home", str(tmp_path), "--price-per-hour", "2"]) == 2
    assert "measured by --probe" in capsys.readouterr().err
