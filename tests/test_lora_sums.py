"""LoRA computed with one summed matrix: the same output and gradients as peft's, for as long as the weights stay."""

from __future__ import annotations

import pytest
import torch
from peft.tuners.lora import Linear as PeftLinear

from lvlm.model.lora import LoraSums, add_lora, lora_layers, summed_lora
from lvlm.model.parts import prepare_training
from lvlm.model.sums import SummableLora
from lvlm.settings import ComputeConfig
from lvlm.train.batches import MicroBatch
from lvlm.train.compute import compute
from lvlm.train.strategies import share_work
from tests.test_model_training import batch_for, stage, train
from tests.tiny import tiny_world

TEXT = MicroBatch(
    input_ids=torch.tensor([[5, 6, 7, 8]]),
    position_ids=None,
    lengths=(4,),
    positions=torch.tensor([1, 2]),
    targets=torch.tensor([7, 8]),
    weights=torch.tensor([0.5, 0.5]),
    images=(),
)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(7, 6), (2, 5, 6)])
def test_summed_lora_gives_the_output_and_gradients_of_peft(bias, shape):
    results = []
    for summed in (True, False):
        torch.manual_seed(0)
        part = torch.nn.Sequential(torch.nn.Linear(6, 4, bias=bias))
        add_lora(part, r=3, alpha=5, dropout=0.0, seed=0)
        layer = part.double()[0]
        torch.nn.init.normal_(layer.lora_B["default"].weight)
        layer.base_layer.requires_grad_(False)
        x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
        if summed:
            layer.summed = (layer.base_layer.weight + layer.get_delta_weight("default")).detach()
        y = layer(x)
        assert isinstance(layer, SummableLora) and ("SummedLora" in type(y.grad_fn).__name__) == summed
        y.square().sum().backward()
        results.append([y, x.grad, layer.lora_A["default"].weight.grad, layer.lora_B["default"].weight.grad])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_summed_lora_stands_back_where_that_would_change_what_is_computed():
    part = torch.nn.Sequential(torch.nn.Linear(6, 4))
    add_lora(part, r=3, alpha=5, dropout=0.5, seed=0)
    layer, x = part[0], torch.randn(2, 6)

    def sums():
        return "SummedLora" in type(layer(x).grad_fn).__name__

    sums_of_part = LoraSums(part)
    layer.base_layer.requires_grad_(True)
    sums_of_part.make()
    assert layer.summed is None, "the gradient of W is not computed"
    layer.base_layer.requires_grad_(False)
    sums_of_part.make()
    assert layer.summed is not None and not sums(), "dropout acts"
    layer.eval()
    assert sums()
    with torch.autocast("cpu", torch.bfloat16):
        assert not sums()
    sums_of_part.drop()
    assert layer.summed is None
    assert not sums()
    layer.merge()
    sums_of_part.make()
    assert layer.summed is None


def lora_part():
    part = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 64))
    add_lora(part, r=8, alpha=8, dropout=0.0, seed=0)
    for layer in part:
        layer.base_layer.requires_grad_(False)
        torch.nn.init.normal_(layer.lora_B["default"].weight, std=1e-4)
    return part


def test_sums_are_not_rounded_where_they_are_made_under_autocast():
    part = lora_part()
    with torch.autocast("cpu", torch.bfloat16):
        LoraSums(part).make()
    expected = part[0].base_layer.weight + part[0].get_delta_weight("default")
    torch.testing.assert_close(part[0].summed, expected, rtol=0, atol=1e-8)


def test_sums_that_found_no_memory_leave_none_behind(monkeypatch):
    part, made = lora_part(), torch.addmm

    def second_fails(*given, **options):
        monkeypatch.setattr(torch, "addmm", fails)
        return made(*given, **options)

    def fails(*given, **options):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(torch, "addmm", second_fails)
    with pytest.raises(torch.OutOfMemoryError), summed_lora(part):
        pass
    assert all(layer.summed is None for layer in part)


def test_a_step_of_training_computes_with_the_weights_of_that_step():
    model, _ = tiny_world().assemble()
    settings = stage(llm="lora")
    prepare_training(model, settings, seed=0)
    (layer, *_) = lora_layers(model.language_model).values()
    with compute(ComputeConfig(device="cpu", precision="fp32")) as machinery:
        strategy = share_work(model, settings, machinery)
        for _ in range(2):
            strategy.backward(TEXT, {})
            torch.testing.assert_close(layer.summed, layer.base_layer.weight + layer.get_delta_weight("default"))
            strategy.step(1.0)
            assert layer.summed is None, "the weights are others after the step"
        strategy.backward(TEXT, {})
        strategy.restore(strategy.state())
        assert layer.summed is None
        strategy.backward(TEXT, {})
        strategy.finish()
        assert layer.summed is None


def test_summed_lora_computes_the_same_and_leaves_the_weights_alone(monkeypatch):
    model, processor = tiny_world().assemble()
    prepare_training(model, stage(llm="lora"), seed=0)
    train(model, processor)
    batch = batch_for(model, processor)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.eval()
    with torch.inference_mode():
        expected = model(**batch).logits
        with summed_lora(model):
            calls = []
            monkeypatch.setattr(PeftLinear, "forward", lambda *_: calls.append(1))
            found = model(**batch).logits
            assert not calls, "the sum stands for the three products"
            assert model.state_dict().keys() == before.keys()
            monkeypatch.undo()
        assert torch.equal(model(**batch).logits, expected)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("why", ["large", "half precision"])
def test_lora_is_not_summed_where_that_costs_memory_or_bits(monkeypatch, why):
    model, _ = tiny_world().assemble()
    prepare_training(model, stage(llm="lora"), seed=0)
    if why == "large":
        monkeypatch.setattr("lvlm.model.lora.SUM_BYTES", 1000)
    else:
        model.to(torch.bfloat16)
    with summed_lora(model):
        assert all(layer.summed is None for layer in lora_layers(model).values())
