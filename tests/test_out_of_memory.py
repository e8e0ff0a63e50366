"""Where memory does not suffice, micro-batches get smaller and nothing else changes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lvlm.errors import Diverged, InputError
from lvlm.run import run
from lvlm.train.batches import MicroBatch
from lvlm.train.budgets import TokenBudgets
from lvlm.train.strategies import StepLoss
from tests.train_world import run_config, write_corpus

PLAIN = {"r": 4, "alpha": 8, "dropout": 0.0}
compute_loss = StepLoss.forward


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return write_corpus(tmp_path_factory.mktemp("memory") / "noise")


def losses(folder: Path) -> list[float]:
    rows = map(json.loads, (folder / "curve.jsonl").read_text(encoding="utf-8").splitlines())
    return [row["loss"] for row in rows]


def with_room_for(limit: int, *, from_call: int = 0) -> Any:
    """The loss on a device that holds `limit` tokens from its `from_call`-th call on; the sizes of what it computed."""
    sizes: list[int] = []

    def loss(module: StepLoss, batch: MicroBatch, images: Mapping[str, Tensor]) -> Tensor:
        sizes.append(batch.input_ids.numel())
        if len(sizes) > from_call and sizes[-1] > limit:
            raise torch.OutOfMemoryError("no room")
        return compute_loss(module, batch, images)

    return loss, sizes


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("from_call", [0, 7])  # in the probe, and in the middle of the run
def test_smaller_micro_batches_learn_the_same(
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    from_call: int,
    workers: int,
) -> None:
    compute = {"device": "cpu", "threads": 1, "loader_workers": workers, "feature_cache": "off"}
    config = run_config(corpus, instruct__lora=PLAIN, compute=compute)
    run(config, tmp_path / "roomy", home=tmp_path / "a")
    loss, sizes = with_room_for(120, from_call=from_call)
    monkeypatch.setattr(StepLoss, "forward", loss)
    run(config, tmp_path / "tight", home=tmp_path / "b")
    assert losses(tmp_path / "tight") == pytest.approx(losses(tmp_path / "roomy"), rel=1e-4)
    assert max(sizes[-6:]) <= 120 < max(sizes)
    said = capfd.readouterr()
    assert "out of memory; micro-batches have at most" in said.out + said.err


@pytest.mark.parametrize("checkpoint_every", [1e-6, 1000.0])  # one before the memory was short, and one after it
def test_a_run_that_goes_on_divides_every_step_as_it_was_divided(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checkpoint_every: float
) -> None:
    """With dropout, whose masks depend on the micro-batches; memory is short once, and not when the run goes on."""
    compute = {"device": "cpu", "threads": 1, "feature_cache": "off", "checkpoint_every": checkpoint_every}
    config = run_config(corpus, compute=compute, pretrain=None)

    def weights(name: str, stop_after: int | None) -> list[bytes]:
        def listener(event: Mapping[str, Any]) -> None:
            if event["kind"] == "step" and event["step"] == stop_after:
                raise KeyboardInterrupt

        calls: list[int] = []

        def short_once(module: StepLoss, batch: MicroBatch, images: Mapping[str, Tensor]) -> Tensor:
            calls.append(1)
            if len(calls) == 4:  # after the probe and two steps of one micro-batch
                raise torch.OutOfMemoryError("no room")
            return compute_loss(module, batch, images)

        monkeypatch.setattr(StepLoss, "forward", short_once)
        home = tmp_path / name
        if stop_after is not None:
            with pytest.raises(KeyboardInterrupt):
                run(config, home / "run", home=home, on_progress=listener)
            monkeypatch.setattr(StepLoss, "forward", compute_loss)
        record = run(config, home / "run", home=home)
        assert record.provenance["micro_batch_tokens"]["instruct"] < 4096
        model = Path(record.provenance["model"])
        assert not (model.parent / "token_budgets.json").exists()
        return [path.read_bytes() for path in sorted(model.rglob("*.safetensors"))]

    assert weights("killed", stop_after=4) == weights("not killed", stop_after=None)


def test_a_budget_counts_under_the_settings_that_it_was_found_with(tmp_path: Path) -> None:
    budgets = TokenBudgets(tmp_path, 4096, {"packing": False})
    budgets.lower(5, 2048, writes=True)
    budgets.lower(3, 1024, writes=True)
    again = TokenBudgets(tmp_path, 4096, {"packing": False})
    assert [again.at(step) for step in (0, 2, 3, 5, 9)] == [4096, 4096, 1024, 1024, 1024]
    assert TokenBudgets(tmp_path, 4096, {"packing": True}).at(9) == 4096
    assert TokenBudgets(tmp_path, 8192, {"packing": False}).at(9) == 8192


def test_a_sample_that_does_not_fit_alone_is_one_clear_error(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StepLoss, "forward", with_room_for(10)[0])
    with pytest.raises(InputError, match=r"pretrain does not fit into memory.*single sample.*no room"):
        run(run_config(corpus), tmp_path / "run", home=tmp_path)


def test_a_loss_that_is_not_finite_names_its_samples(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def loss(module: StepLoss, batch: MicroBatch, images: Mapping[str, Tensor]) -> Tensor:
        calls.append(1)
        value = compute_loss(module, batch, images)
        return value * float("nan") if len(calls) > 3 else value

    monkeypatch.setattr(StepLoss, "forward", loss)
    with pytest.raises(Diverged, match=r"not finite at step \d+, on the samples (s\d{3}, ){3}s\d{3}\."):
        run(run_config(corpus, pretrain__batch_samples=4), tmp_path / "run", home=tmp_path)
