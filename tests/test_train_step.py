"""What one optimizer step computes: the objective does not depend on micro-batches or processes."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType

from lvlm.errors import InputError
from lvlm.settings import ComputeConfig, MixConfig, OptimConfig, StageConfig
from lvlm.train.compute import ASKED_OF_DEEPSPEED, compute
from lvlm.train.loss import supervised_loss, token_weights, weighted_cross_entropy
from lvlm.train.optim import build_optimizer, lr_factor, part_of
from lvlm.train.packing import micro_batches
from lvlm.train.strategies import share_work, sum_over_processes
from tests.tiny import tiny_world


def test_micro_batches_hold_every_sample_once_within_the_budget() -> None:
    lengths = [37, 90, 41, 41, 300, 12, 64, 64, 63, 500]
    groups = micro_batches(lengths, 256)
    assert sorted(position for group in groups for position in group) == list(range(len(lengths)))
    for group in groups:
        assert len(group) * max(lengths[i] for i in group) <= 256 or len(group) == 1
    assert 9 in groups[0], "the longest sample comes first"


def test_micro_batches_split_only_where_padding_costs_more_than_a_pass() -> None:
    assert len(micro_batches([50, 51, 52, 53], 4096, overhead_tokens=100)) == 1
    assert micro_batches([500, 20, 20, 20], 4096, overhead_tokens=100) == [[0], [1, 2, 3]]
    assert micro_batches([], 64) == []


@pytest.mark.parametrize("reduction", ["token", "sample"])
def test_weights_divide_by_the_whole_step(reduction: str) -> None:
    counts = [1, 4, 0, 5]
    weights = token_weights(counts, reduction)  # type: ignore[arg-type]
    assert sum(weight * count for weight, count in zip(weights, counts, strict=True)) == pytest.approx(1.0)
    assert (weights[0] == weights[1]) == (reduction == "token")
    assert token_weights([0, 0], reduction) == [0.0, 0.0]  # type: ignore[arg-type]


def test_loss_without_supervised_tokens_is_zero_and_has_a_gradient() -> None:
    logits = torch.zeros(0, 7, requires_grad=True)
    loss = weighted_cross_entropy(logits, torch.zeros(0, dtype=torch.long), torch.zeros(0))
    loss.backward()
    assert loss.item() == 0.0
    assert logits.grad is not None


def test_schedule_warms_up_in_fractions_and_steps_and_ends_near_zero() -> None:
    by_fraction = [lr_factor(step, steps=100, config=OptimConfig(warmup=0.1)) for step in range(100)]
    by_steps = [lr_factor(step, steps=100, config=OptimConfig(warmup=10)) for step in range(100)]
    assert by_fraction == by_steps
    assert by_fraction[:10] == sorted(by_fraction[:10]) and by_fraction[0] > 0
    assert max(by_fraction) == by_fraction[10] == 1.0
    assert 0 < by_fraction[-1] < 0.01
    constant = [lr_factor(step, steps=100, config=OptimConfig(warmup=0, schedule="constant")) for step in range(100)]
    assert constant == [1.0] * 100
    assert not any(math.isnan(lr_factor(step, steps=1, config=OptimConfig())) for step in range(1))


def test_optimizer_holds_what_learns_with_the_rate_of_its_part() -> None:
    model = torch.nn.ModuleDict(
        {
            "vision_tower": torch.nn.Linear(2, 2),
            "multi_modal_projector": torch.nn.Linear(2, 2),
            "language_model": torch.nn.Linear(2, 2),
        }
    )
    settings = OptimConfig(lr=1e-3, adapter_lr=5e-4, weight_decay=0.1, adapter_weight_decay=0.0, tower_weight_decay=0.2)
    whole = {group["weight_decay"] for group in build_optimizer(model, settings).param_groups}
    assert whole == {0.1, 0.0, 0.2}
    model["vision_tower"].requires_grad_(False)
    optimizer = build_optimizer(model, settings)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    seen = {
        names[id(p)]: (group["lr"], group["weight_decay"]) for group in optimizer.param_groups for p in group["params"]
    }
    assert seen == {
        "multi_modal_projector.weight": (5e-4, 0.0),
        "multi_modal_projector.bias": (5e-4, 0.0),
        "language_model.weight": (1e-3, 0.1),
        "language_model.bias": (1e-3, 0.0),
    }
    assert part_of("vision_tower.model.blocks.0") == "tower"


def test_the_environment_does_not_divide_the_loss_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    weight = torch.nn.Parameter(torch.ones(2))
    with compute(ComputeConfig(device="cpu")) as machinery:
        machinery.accelerator.backward(3 * weight.sum())
    assert weight.grad is not None and weight.grad.tolist() == [3.0, 3.0]


def test_a_strategy_that_the_loop_does_not_know_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Accelerator, "distributed_type", DistributedType.FSDP)
    with pytest.raises(InputError, match=r"asks for ddp, but accelerate runs FSDP"):
        compute(ComputeConfig(device="cpu")).__enter__()


def test_a_parameter_that_no_sample_reached_gets_zeros_in_one_process_too() -> None:
    reached, missed = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    reached.sum().backward()
    with compute(ComputeConfig(device="cpu")) as machinery:
        sum_over_processes(machinery.accelerator, [reached, missed])
    assert reached.grad is not None and reached.grad.tolist() == [1.0, 1.0]
    assert missed.grad is not None and missed.grad.tolist() == [0.0, 0.0]


def test_a_loss_in_pieces_is_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """Same value and gradients with one piece, with several of uneven length, and without tokens; at no time more
    logits than allowed."""
    torch.manual_seed(0)
    head, hidden = torch.nn.Linear(6, 11, dtype=torch.float64), torch.randn(10, 6, dtype=torch.float64)
    targets, weights = torch.randint(0, 11, (10,)), torch.rand(10)
    seen: list[int] = []

    def logits_of(rows: torch.Tensor) -> torch.Tensor:
        seen.append(len(rows))
        return head(rows)

    def outcome(limit: int, count: int = 10) -> list[torch.Tensor]:
        monkeypatch.setattr("lvlm.train.loss.LOGITS_AT_ONCE", limit)
        head.zero_grad()
        inputs = hidden[:count].clone().requires_grad_()
        loss = supervised_loss(logits_of, inputs, targets[:count], weights[:count], vocabulary=11)
        loss.backward()
        return [loss.detach(), inputs.grad, head.weight.grad.clone(), head.bias.grad.clone()]  # type: ignore[list-item]

    whole = outcome(1 << 25)
    assert seen == [10], "one piece is computed once"
    seen.clear()
    for ours, theirs in zip(outcome(4 * 11), whole, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)
    assert sorted(seen) == [2, 2, 4, 4, 4, 4], "each piece once more for its gradient"
    for ours, theirs in zip(outcome(1), whole, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)
    assert outcome(1, count=0)[0] == 0


@pytest.mark.parametrize("name", list(ASKED_OF_DEEPSPEED))
def test_what_accelerate_was_told_about_deepspeed_beyond_the_stage_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv(f"ACCELERATE_DEEPSPEED_{name}", "cpu")
    with pytest.raises(InputError, match=re.escape(ASKED_OF_DEEPSPEED[name])):
        compute(ComputeConfig(device="cpu")).__enter__()


def test_quantised_weights_are_not_divided(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = tiny_world().assemble()
    monkeypatch.setattr("lvlm.train.strategies.quantised_layers", lambda part: {"a": part})
    with compute(ComputeConfig(device="cpu")) as machinery, pytest.raises(InputError, match="cannot be divided"):
        share_work(model, StageConfig(mix=MixConfig(corpora=())), replace(machinery, zero_stage=3))
