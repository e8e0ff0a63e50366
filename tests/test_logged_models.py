"""A cell's last model as MLflow's logged model: loaded from the store, it answers as the checkpoint does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from lvlm import load
from lvlm.evaluate.generate import Prompt, generate_answers
from lvlm.records import RunRecord
from sweeps.plan import Place
from sweeps.planner import make_plan
from sweeps.queue import CellState
from sweeps.tracking import Tracker
from sweeps.tracking_store import connect, tracking_uri
from tests import sweeps_home
from tests.sweeps_fakes import RUNNER, fake_study, write_run
from tests.sweeps_home import runs_of
from tests.tiny import tiny_world

home = sweeps_home.home  # the fixture


def finished_cell(home: Path, checkpoint: Path) -> tuple[Tracker, dict[str, CellState]]:
    """A tracker that keeps models, and a study of which one cell has finished with `checkpoint` as its model."""
    plan = replace(make_plan(fake_study(seeds=(0,)), runner=RUNNER), log_models=True)
    place = Place(home, "fake")
    cell = plan.cells[0]
    record = write_run(cell.run_config(), place.cell(cell.id))
    record.provenance["model"] = str(checkpoint)
    record.save(place.cell(cell.id))
    states = {one.id: CellState("waiting") for one in plan.cells} | {cell.id: CellState("done")}
    return Tracker(place, plan), states


def test_a_logged_model_answers_as_its_checkpoint_does(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, processor = tiny_world().assemble()
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    picture = tmp_path / "red.png"
    Image.new("RGB", (30, 20), "red").save(picture)
    tracker, states = finished_cell(home, tmp_path / "model")
    assert tracker.send_unsent(states) == 0, tracker.trouble
    assert tracker.unsent(states) == []

    (run,) = runs_of(home)
    (output,) = run.outputs.model_outputs
    client = connect(home)
    logged = client.get_logged_model(output.model_id)
    assert str(logged.status) == "READY" and logged.source_run_id == run.info.run_id
    assert output.step == 6, "after the last step of the curve"
    assert {one.key: one.value for one in logged.metrics} == RunRecord.load(
        tracker.place.cell(tracker.plan.cells[0].id)
    ).scores

    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking_uri(home))
    import mlflow

    loaded = mlflow.pyfunc.load_model(f"models:/{output.model_id}")
    assert [column.name for column in loaded.metadata.signature.inputs] == ["image", "prompt"]
    rows = pd.DataFrame({"image": [str(picture)] * 2, "prompt": ["What colour?", "Welche Farbe?"]})
    answers = loaded.predict(rows)["answer"].tolist()
    prompts = [Prompt(prompt, (picture,)) for prompt in rows["prompt"]]
    assert answers == generate_answers(*load(tmp_path / "model"), prompts, max_new_tokens=128)
    with pytest.raises(Exception, match="prompt"):
        loaded.predict(pd.DataFrame({"image": [str(picture)]}))


def test_a_model_is_kept_once_and_only_when_asked_for(home: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "model"
    checkpoint.mkdir()
    (checkpoint / "config.json").write_text("{}")
    tracker, states = finished_cell(home, checkpoint)
    plain = Tracker(tracker.place, replace(tracker.plan, log_models=False))
    assert plain.send_unsent(states) == 0 and plain.unsent(states) == []
    experiment = runs_of(home)[0].info.experiment_id

    def models() -> list[str]:
        return [str(model.status) for model in connect(home).search_logged_models([experiment])]

    assert models() == []
    assert len(tracker.unsent(states)) == 1, "asked for later, it is sent later"
    half = connect(home).create_logged_model(experiment, source_run_id=runs_of(home)[0].info.run_id)
    assert str(half.status) == "PENDING", "as a sending that was killed leaves it"
    assert tracker.send_unsent(states) == 0 and models() == ["READY"]
    assert tracker._send(tracker.plan.cells[0], CellState("done")) and models() == ["READY"]

    checkpoint.rename(tmp_path / "gone")
    record = RunRecord.load(tracker.place.cell(tracker.plan.cells[0].id))
    other, more = finished_cell(home, checkpoint)
    assert record.provenance["model"] == str(checkpoint) and other.send_unsent(more) == 0


def test_the_best_model_of_a_study_is_found_by_its_score(home: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "model"
    checkpoint.mkdir()
    tracker, states = finished_cell(home, checkpoint)
    cells = tracker.plan.cells[:2]
    for cell, score in zip(cells, (20.0, 70.0), strict=True):
        record = write_run(cell.run_config(), tracker.place.cell(cell.id))
        record.provenance["model"] = str(checkpoint)
        record.scores["score/multilingual"] = score
        record.save(tracker.place.cell(cell.id))
    assert tracker.send_unsent(states | {cell.id: CellState("done") for cell in cells}) == 0
    runs = {run.info.run_id: run.data for run in runs_of(home)}
    best, other = connect(home).search_logged_models(
        [runs_of(home)[0].info.experiment_id],
        order_by=[{"field_name": "metrics.score/multilingual", "ascending": False}],
    )
    assert [runs[str(model.source_run_id)].metrics["score/multilingual"] for model in (best, other)] == [70.0, 20.0]
