"""LoRA on a part of the model through peft: add, draw, merge, and split the weights for saving. Used by
`lvlm.model.parts` and `lvlm.model.checkpoints`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import Linear as PeftLinear
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from lvlm.errors import InputError
from lvlm.model.seeding import generator_for
from lvlm.model.weights import dequantised, quantised_layers

ADAPTER = "default"
SUM_BYTES = 1 << 30
"""Largest sum of weights for which `summed_lora` keeps a second copy. It saves calls, which a small model's time goes
into and a large one's does not."""


class SummedLora(Function):
    """y = x S^T + b with S = W + s B A, for a frozen W and b and no dropout.

    x: (..., in), S: (out, in), b: (out) or None, A: (r, in), B: (out, r), all of one dtype. The gradient goes to x, A
    and B alone. One product forward and one back do what the formula with its own path through A and B does in six.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x: Tensor, summed: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scaling: float
    ) -> Tensor:
        ctx.save_for_backward(x, summed, a, b)
        ctx.scaling = scaling
        return functional.linear(x, summed, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, summed, a, b = ctx.saved_tensors
        rows, dy = x.reshape(-1, x.shape[-1]), grad.reshape(-1, grad.shape[-1])
        dx = (dy @ summed).view_as(x) if ctx.needs_input_grad[0] else None
        da = ((dy @ b).T @ rows).mul_(ctx.scaling)
        db = (dy.T @ (rows @ a.T)).mul_(ctx.scaling)
        return dx, None, None, da, db, None


class SummableLora(PeftLinear):  # type: ignore[misc]  # peft is untyped
    """peft's LoRA layer of a linear layer, which computes with one matrix in place of three while it is `summed`."""

    summed: Tensor | None = None
    """W + s B A while `sum_lora` holds; whoever changes A or B lets go of it."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        base: Any = self.get_base_layer()
        if self.summed is not None and not torch.is_grad_enabled():
            return functional.linear(x, self.summed, base.bias)
        if self.summed is None or self._draws_or_rounds(x):
            return super().forward(x, *args, **kwargs)  # type: ignore[no-any-return]
        a, b = self.lora_A[ADAPTER].weight, self.lora_B[ADAPTER].weight
        return SummedLora.apply(x, self.summed, base.bias, a, b, self.scaling[ADAPTER])  # type: ignore[no-any-return,no-untyped-call]

    def _draws_or_rounds(self, x: Tensor) -> bool:
        """Whether the sum is not what is asked for: dropout acts on the way through A, or autocast rounds W and B A
        apart."""
        drops = self.training and not isinstance(self.lora_dropout[ADAPTER], nn.Identity)
        return drops or torch.is_autocast_enabled(x.device.type)


def sum_lora(model: nn.Module) -> Callable[[], None]:
    """Let LoRA layers compute with W + s B A, one product in place of three, until the returned function is called.

    The weights themselves are not touched, and are not to change meanwhile. A model whose sums would take more than
    `SUM_BYTES`, or that is not in float32, where the sum would be rounded, computes as always.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, SummableLora) and layer.summed is None]
    weights: list[Tensor] = [layer.get_base_layer().weight for layer in layers]
    if sum(weight.numel() for weight in weights) * torch.float32.itemsize > SUM_BYTES:
        layers = []
    if not all(_is_plain(layer) for layer in layers):
        layers = []
    with torch.no_grad():
        for layer in layers:
            layer.summed = layer.get_base_layer().weight + layer.get_delta_weight(ADAPTER)

    def let_go() -> None:
        for layer in layers:
            layer.summed = None

    return let_go


def _is_plain(layer: SummableLora) -> bool:
    """Whether a layer's output is that of W + s B A, with all of it here, in float32 and W frozen."""
    weight = layer.get_base_layer().weight
    if layer.disable_adapters or layer.merged or layer.active_adapters != [ADAPTER] or layer.lora_bias[ADAPTER]:
        return False
    if weight.requires_grad or hasattr(weight, "ds_id"):  # ZeRO 3 has a weight here only while its own layer is called
        return False
    return bool(weight.dtype == layer.lora_A[ADAPTER].weight.dtype == torch.float32)


@contextmanager
def summed_lora(model: nn.Module) -> Iterator[None]:
    """`sum_lora` for as long as this lasts."""
    let_go = sum_lora(model)
    try:
        yield
    finally:
        let_go()


def lora_layers(part: nn.Module) -> dict[str, LoraLayer]:
    """The LoRA layers of a part by name; none if it has no LoRA."""
    return {name: module for name, module in part.named_modules() if isinstance(module, LoraLayer)}


def linear_names(part: nn.Module) -> list[str]:
    """Every linear layer of a part but the LLM's output head."""
    get_head = getattr(part, "get_output_embeddings", None)
    head = get_head() if get_head else None
    return [
        name for name, module in part.named_modules() if isinstance(module, nn.Linear | Conv1D) and module is not head
    ]


def add_lora(part: nn.Module, *, r: int, alpha: float, dropout: float, seed: int, stream: str = "lora") -> None:
    """Put LoRA on every linear layer of a part, in place. B starts at zero; A is drawn layer by layer from its own
    stream of `seed`, whose name begins with `stream`."""
    config = LoraConfig(r=r, lora_alpha=alpha, lora_dropout=dropout, target_modules=linear_names(part), bias="none")
    inject_lora(part, config)
    for name, layer in lora_layers(part).items():
        weight = layer.lora_A[ADAPTER].weight
        draw = torch.empty(weight.shape)
        nn.init.kaiming_uniform_(draw, a=math.sqrt(5), generator=generator_for(seed, f"{stream}.{name}"))
        with torch.no_grad():
            weight.copy_(draw)
            layer.lora_B[ADAPTER].weight.zero_()


def inject_lora(part: nn.Module, config: LoraConfig) -> None:
    """Put LoRA layers into a part, in place, in float32 whatever the part is held in, without touching the global
    random state."""
    config._register_custom_module(_layer_classes(part))
    with torch.random.fork_rng(devices=[]):
        inject_adapter_in_model(config, part, adapter_name=ADAPTER)
    for name, parameter in part.named_parameters():
        if ".lora_" in name:
            parameter.data = parameter.data.float()


def _layer_classes(part: nn.Module) -> dict[type[nn.Module], type[nn.Module]]:
    """Layer -> what computes it with LoRA, the first that fits; a quantised layer is an `nn.Linear` too."""
    if not quantised_layers(part):
        return {nn.Linear: SummableLora}
    from bitsandbytes import nn as quantised
    from peft.tuners.lora import bnb

    return {
        quantised.Linear4bit: bnb.Linear4bit,
        quantised.Linear8bitLt: bnb.Linear8bitLt,
        nn.Linear: SummableLora,
    }


def lora_config(part: nn.Module) -> LoraConfig:
    """The peft config of a part that has LoRA."""
    config: LoraConfig = part.peft_config[ADAPTER]  # type: ignore[index]
    return config


def split_state(part: nn.Module, *, merged: bool, halved: bool = False) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(plain weights, LoRA weights) of a part.

    Plain keys are those of the part without LoRA; with `merged` the update is added to them and the second dict is
    empty. LoRA keys are peft's own, so that `peft.PeftModel.from_pretrained` reads them. Quantised layers give the
    numbers that they compute with, in bfloat16 where the part is `halved`, else in float32.
    """
    layers, quantised = lora_layers(part), quantised_layers(part)
    plain: dict[str, Tensor] = {}
    lora: dict[str, Tensor] = {}
    for key, value in part.state_dict().items():
        if ".lora_" in key:
            lora[_peft_key(key)] = value
        elif key.partition(".weight")[0].removesuffix(".SCB") not in quantised:
            plain[key.replace(".base_layer.", ".")] = value
    for name, module in quantised.items():
        weight = dequantised(module).cpu()
        plain[f"{name.removesuffix('.base_layer')}.weight"] = weight if halved else weight.float()
    if not merged:
        return plain, lora
    for name, layer in layers.items():
        weight = plain[f"{name}.weight"]
        delta = layer.get_delta_weight(ADAPTER).to(weight.device)
        plain[f"{name}.weight"] = (weight.float() + delta).to(weight.dtype)
    return plain, {}


def load_lora(part: nn.Module, config: LoraConfig, state: dict[str, Tensor]) -> tuple[list[str], list[str], list[str]]:
    """Put saved LoRA back on a part; returns the keys that are missing, surplus, or of another shape."""
    inject_lora(part, config)
    wanted = {_peft_key(key): value for key, value in part.state_dict(keep_vars=True).items() if ".lora_" in key}
    common = wanted.keys() & state.keys()
    shapes = {key for key in common if wanted[key].shape != state[key].shape}
    with torch.no_grad():
        for key in common - shapes:
            wanted[key].copy_(state[key])
    return sorted(wanted.keys() - common), sorted(state.keys() - common), sorted(shapes)


def _peft_key(key: str) -> str:
    return f"base_model.model.{key.replace(f'.{ADAPTER}.', '.')}"


def merge_lora(part: nn.Module) -> None:
    """Add a part's LoRA to its weights, which are in float32 then, and remove it, in place."""
    if quantised_layers(part):
        raise InputError(
            "A LoRA cannot be merged into quantised weights: rounding would lose most of what it learned. Save the "
            "model, and load it without load_4bit or load_8bit."
        )
    for name, layer in lora_layers(part).items():
        base: Any = layer.get_base_layer()
        base.weight.data = base.weight.data.float() + layer.get_delta_weight(ADAPTER).detach()
        parent, _, child = name.rpartition(".")
        setattr(part.get_submodule(parent), child, base)
    if hasattr(part, "peft_config"):
        del part.peft_config
