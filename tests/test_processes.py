"""Several processes learn what one does, whether each has the whole model or DeepSpeed divides it, and any of them can
go on from what the others left."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch

from lvlm import commands
from lvlm.cli import main
from lvlm.config import RunConfig, make_config, to_yaml
from lvlm.data.corpus import open_corpus
from lvlm.data.plan import build_plan
from lvlm.errors import Diverged
from lvlm.model.checkpoints import load
from lvlm.model.parts import prepare_training
from lvlm.processes import STARTS_AGAIN, process_index
from lvlm.records import RunRecord
from lvlm.run import run
from lvlm.train import resume
from lvlm.train.compute import compute
from lvlm.train.loop import StageLoop
from lvlm.train.stages import Stage
from lvlm.train.strategies import StepLoss, share_work
from tests.processes import together
from tests.test_out_of_memory import with_room_for
from tests.tiny import tiny_world
from tests.train_world import run_config, write_corpus

STEPS = {"pretrain": 4, "instruct": 12}
MOMENTS = ("exp_avg", "exp_avg_sq")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One sample in six has no image: with two samples a step, a process often has text alone while another has an
    image."""
    torch.set_num_threads(1)
    os.environ["DS_ACCELERATOR"] = "cpu"
    for name in ("deepspeed", "deepspeed.runtime.zero.muon.muon_optimizer"):
        importlib.import_module(name)  # before children are forked, which would each take seconds for it
    tiny_world()
    return write_corpus(tmp_path_factory.mktemp("processes") / "noise")


def config_of(corpus: Path, strategy: str, fields: Mapping[str, Any] | None = None, **changes: Any) -> RunConfig:
    """Both stages without dropout, several micro-batches of unequal number a step; the tower learns in the second, and
    each part at a rate of its own. `changes` are compute settings, `fields` those of `run_config`."""
    compute = {"device": "cpu", "threads": 1, "micro_batch_tokens": 150, "feature_cache": "off", "strategy": strategy}
    settings: dict[str, Any] = {
        "compute": compute | changes,
        "instruct__steps": STEPS["instruct"],
        "instruct__batch_samples": 2,
        "instruct__train": {"tower": "full", "adapter": "full", "llm": "lora"},
        "instruct__lora": {"r": 4, "alpha": 8, "dropout": 0.0},
        "instruct__optim": {"lr": 1e-3, "adapter_lr": 5e-4, "tower_lr": 1e-4, "weight_decay": 0.1},
    }
    return run_config(corpus, **settings | dict(fields or {}))


def test_in_some_steps_one_process_has_text_alone(corpus: Path) -> None:
    """Each of them once; otherwise what follows would not show that neither leaves the other waiting."""
    stage = config_of(corpus, "ddp").stages()["instruct"]
    plan = build_plan("instruct", stage, seed=0, corpora={str(corpus): open_corpus(corpus)})
    shown = [[bool(plan.image_paths(entry)) for entry in plan.step_entries(step)] for step in range(plan.steps)]
    assert [True, False] in shown and [False, True] in shown


def curve(folder: Path) -> list[float]:
    """Loss and gradient norm of every step."""
    rows = map(json.loads, (folder / "curve.jsonl").read_text(encoding="utf-8").splitlines())
    return [row[name] for row in rows for name in ("loss", "grad_norm")]


def trained(config: RunConfig, folder: Path, *, processes: int) -> RunRecord:
    """The record of a run by so many processes."""
    assert together(lambda: run(config, folder / "run", home=folder / "home"), processes) == [0] * processes
    return RunRecord.load(folder / "run")


def weights(record: RunRecord) -> dict[str, torch.Tensor]:
    model, _ = load(record.provenance["model"])
    return model.state_dict()


@pytest.fixture(scope="module")
def alone(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    record = trained(config_of(corpus, "zero2"), folder, processes=1)
    assert record.provenance["strategy"] == "one process", "nobody to divide with"
    return folder


@pytest.fixture(scope="module", params=["ddp", "zero2", "zero3"])
def strategy(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def pair(corpus: Path, strategy: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run by two processes."""
    folder = tmp_path_factory.mktemp("pair")
    trained(config_of(corpus, strategy), folder, processes=2)
    return folder


def test_two_processes_learn_and_answer_as_one(alone: Path, pair: Path, strategy: str) -> None:
    record = RunRecord.load(pair / "run")
    assert (record.provenance["strategy"], record.provenance["processes"]) == (strategy, 2)
    assert curve(pair / "run") == pytest.approx(curve(alone / "run"), rel=1e-5)
    expected, found = weights(RunRecord.load(alone / "run")), weights(record)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=2e-5)
    answers = [pd.read_parquet(folder / "run" / "predictions.parquet") for folder in (pair, alone)]
    assert answers[0]["item"].tolist() == answers[1]["item"].tolist(), "every item once, in order"
    assert answers[0]["prediction"].tolist() == answers[1]["prediction"].tolist()


def test_killed_processes_go_on_to_the_same_bits_and_one_alone_can_go_on_too(
    corpus: Path, alone: Path, pair: Path, strategy: str, tmp_path: Path
) -> None:
    config = config_of(corpus, strategy, checkpoint_every=1e-6)
    assert -signal.SIGKILL in together(lambda: dies_in_step_7(config, tmp_path), 2)
    shutil.copytree(tmp_path / "home", tmp_path / "other" / "home")
    stages = [path.parent for path in (tmp_path / "home" / "stages").glob("*/checkpoint.pt")]
    assert len(stages) == 1 and len((stages[0] / "curve.jsonl").read_text().splitlines()) == 7

    record = trained(config, tmp_path, processes=2)
    for name, tensor in weights(RunRecord.load(pair / "run")).items():
        assert torch.equal(weights(record)[name], tensor), name
    assert curve(tmp_path / "run") == curve(pair / "run")

    trained(config, tmp_path / "other", processes=1)
    assert curve(tmp_path / "other" / "run") == pytest.approx(curve(alone / "run"), rel=1e-5)


@pytest.mark.parametrize(
    ("strategy", "settings", "tolerance"),
    [
        ("zero3", {"packing": True, "gradient_checkpointing": True, "feature_cache": "on"}, 1e-5),
        ("zero2", {"precision": "bf16"}, 1e-2),
        ("ddp", {"feature_cache": "on"}, 1e-5),
    ],
    ids=["packed, checkpointed, from the cache", "bf16", "from a cache that fills meanwhile"],
)
def test_memory_settings_hold_in_two_processes(
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    strategy: str,
    settings: dict[str, Any],
    tolerance: float,
) -> None:
    monkeypatch.setattr("lvlm.train.features.FIRST_AHEAD", 1)
    frozen = {"train": {"adapter": "full", "llm": "lora"}, "optim": {}, "steps": 6}
    found, kept = {}, {}
    for processes in (1, 2):
        config = config_of(corpus, strategy, **settings).model_dump() | {"pretrain": None}
        config["instruct"] |= frozen
        record = trained(make_config(config), tmp_path / str(processes), processes=processes)
        found[processes] = curve(tmp_path / str(processes) / "run")[::2]  # the losses
        kept[processes] = weights(record)
    assert found[2] == pytest.approx(found[1], rel=tolerance)
    for name, tensor in kept[1].items():
        assert kept[2][name].dtype == tensor.dtype, name
        if ".lora_" not in name and not name.startswith("multi_modal_projector"):
            assert torch.equal(kept[2][name], tensor), f"{name} was frozen"


def test_processes_whose_clocks_differ_agree_when_a_checkpoint_is_due(
    corpus: Path, pair: Path, strategy: str, tmp_path: Path
) -> None:
    config = config_of(corpus, strategy, checkpoint_every=1e-6).model_copy(update={"instruct": None})

    def with_clocks_apart() -> None:
        signal.alarm(60)
        if process_index() == 1:
            resume.time = SimpleNamespace(monotonic=lambda: 0.0)  # type: ignore[assignment]  # in this process alone
        run(config, tmp_path / "run", home=tmp_path / "home")

    assert together(with_clocks_apart, 2) == [0, 0]
    losses = curve(tmp_path / "run")
    assert losses == curve(pair / "run")[: len(losses)]


@pytest.mark.parametrize("strategy", ["ddp", "zero3"])
def test_where_one_process_has_no_room_all_of_them_get_smaller_micro_batches(
    corpus: Path, tmp_path: Path, strategy: str
) -> None:
    """Copies halve and go on; what DeepSpeed divides ends, and goes on when it is started again."""
    larger = {"pretrain": None, "instruct__batch_samples": 8, "instruct__steps": 3}
    config = config_of(corpus, strategy, larger, micro_batch_tokens=400, checkpoint_every=1e-6)
    trained(config, tmp_path / "roomy", processes=1)

    def with_little_room_in_one() -> None:
        signal.alarm(60)
        if process_index() == 1:
            StepLoss.forward = with_room_for(200, from_call=3)[0]  # type: ignore[method-assign]
        commands.AFTER_THE_FIRST = 0.0
        main_of(config, tmp_path)

    ended = together(with_little_room_in_one, 2)
    if strategy != "ddp":
        assert ended[1] == STARTS_AGAIN
        ended = together(with_little_room_in_one, 2)
    assert ended == [0, 0]
    assert curve(tmp_path / "run") == pytest.approx(curve(tmp_path / "roomy" / "run"), rel=1e-5)
    assert RunRecord.load(tmp_path / "run").provenance["micro_batch_tokens"]["instruct"] <= 200


def test_a_probe_that_is_not_finite_leaves_no_trace(corpus: Path, strategy: str, tmp_path: Path) -> None:
    config = config_of(corpus, strategy, {"pretrain": None, "instruct__steps": 3})
    compute_loss = StepLoss.forward

    def with_nan_in_the_probe() -> None:
        signal.alarm(60)
        calls: list[int] = []

        def loss(*inputs: Any) -> torch.Tensor:
            calls.append(1)
            return compute_loss(*inputs) * (float("nan") if len(calls) == 1 else 1.0)

        StepLoss.forward = loss  # type: ignore[method-assign]
        run(config, tmp_path / "run", home=tmp_path / "home")

    assert together(with_nan_in_the_probe, 2) == [0, 0]
    trained(config, tmp_path / "alone", processes=1)
    assert curve(tmp_path / "run") == pytest.approx(curve(tmp_path / "alone" / "run"), rel=1e-5)


def test_a_gradient_that_is_not_finite_stops_the_run_though_the_loss_is(
    corpus: Path, strategy: str, tmp_path: Path
) -> None:
    config = config_of(corpus, strategy, checkpoint_every=1e-6).model_copy(update={"instruct": None})
    compute_loss = StepLoss.forward

    def with_a_root_at_zero() -> None:
        signal.alarm(60)
        calls: list[int] = []

        def loss(*inputs: Any) -> torch.Tensor:
            calls.append(1)
            value = compute_loss(*inputs)
            return value if len(calls) <= 3 else value + (value * 0).sqrt() * 0

        StepLoss.forward = loss  # type: ignore[method-assign]
        with pytest.raises(Diverged, match=r"gradient norm .* is not finite at step 1, on the samples"):
            run(config, tmp_path / "run", home=tmp_path / "home")

    assert together(with_a_root_at_zero, 2) == [0, 0]
    (checkpoint,) = (tmp_path / "home" / "stages").glob("*/checkpoint.pt")
    state = torch.load(checkpoint, weights_only=True)
    assert state["position"]["step"] == 1 and all(value.isfinite().all() for value in state["model"].values())


@pytest.mark.parametrize("name", ["zero2", "zero3"])
def test_what_is_restored_is_whole_where_it_does_not_divide_evenly(corpus: Path, name: str) -> None:
    """Three processes: no width is a multiple of three."""
    config = config_of(corpus, name)
    assert config.instruct is not None
    stage = config.instruct

    def there_and_back() -> None:
        signal.alarm(60)
        with compute(config.compute) as machinery:
            model, _ = tiny_world().assemble(tiles=2)
            prepare_training(model, stage, seed=0)
            shapes = {name: p.shape for name, p in model.named_parameters() if p.requires_grad}
            strategy: Any = share_work(model, stage, machinery)
            name_of = {parameter: name for name, parameter in strategy.learning.items()}
            numbered = [name_of[parameter] for group in strategy.groups for parameter in group]
            draw = torch.Generator().manual_seed(1)
            drawn = {
                key: {name: torch.rand(shape, generator=draw) for name, shape in shapes.items()}
                for key in ("value", *MOMENTS)
            }
            moments = {
                number: {"step": torch.tensor(3.0), **{key: drawn[key][name] for key in MOMENTS}}
                for number, name in enumerate(numbered)
            }
            strategy.restore({"model": drawn["value"] | dict(model.named_buffers()), "optimizer": {"state": moments}})
            state = strategy.state()
            if process_index() == 0:
                assert all(torch.equal(state["model"][name], value) for name, value in drawn["value"].items())
                for number, name in enumerate(numbered):
                    found = state["optimizer"]["state"][number]
                    assert all(torch.equal(found[key], drawn[key][name]) for key in MOMENTS), name

    assert together(there_and_back, 3) == [0, 0, 0]


def test_runs_of_one_process_each_have_their_own_strategy(corpus: Path, tmp_path: Path) -> None:
    def one_after_another() -> None:
        signal.alarm(120)
        for wanted, found in (("zero3", "zero3"), ("ddp", "ddp"), ("zero2", "zero2"), ("auto", "ddp")):
            config = config_of(corpus, wanted).model_copy(update={"instruct": None})
            record = run(config, tmp_path / wanted, home=tmp_path / f"home-{wanted}")
            assert record.provenance["strategy"] == found

    assert together(one_after_another, 2) == [0, 0]


def test_processes_agree_whether_a_stage_is_finished_though_they_look_at_different_moments(
    corpus: Path, alone: Path, tmp_path: Path
) -> None:
    """The second process looks late, when another worker has finished the stage."""
    config = config_of(corpus, "ddp")
    home = tmp_path / "home"
    shutil.copytree(alone / "home", home)
    finished = {path: path.rename(path.with_suffix(".later")) for path in home.glob("stages/*/stage.json")}
    assert len(finished) == 2

    def looking_late() -> None:
        signal.alarm(60)
        result = Stage.result

        def late(stage: Stage) -> Any:
            path = stage.folder / "stage.json"
            if process_index() == 1:
                time.sleep(1)
                finished[path].rename(path)
            return result(stage)

        Stage.result = late  # type: ignore[method-assign]  # in this process alone
        run(config, tmp_path / "run", home=home)

    assert together(looking_late, 2) == [0, 0]


def main_of(config: RunConfig, folder: Path) -> None:
    """What `python -m lvlm train` does in one process, its exit status included."""
    (folder / f"run-{process_index()}.yaml").write_text(to_yaml(config), encoding="utf-8")
    words = ["train", folder / f"run-{process_index()}.yaml", "--folder", folder / "run", "--home", folder / "home"]
    status = main(list(map(str, words)))
    os._exit(status)


def dies_in_step_7(config: RunConfig, folder: Path) -> None:
    """Both processes of a run, each killed by itself in the second stage."""
    tell = StageLoop._tell

    def dying(loop: StageLoop, *numbers: Any) -> None:
        tell(loop, *numbers)
        if loop.stage == "instruct" and loop.spent.step == 7:
            os.kill(os.getpid(), signal.SIGKILL)

    StageLoop._tell = dying  # type: ignore[method-assign]  # in this process alone
    run(config, folder / "run", home=folder / "home")
