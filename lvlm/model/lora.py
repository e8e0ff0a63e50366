"""LoRA on a part of the model through peft: add, draw, merge, and split the weights for saving. Used by
`lvlm.model.parts` and `lvlm.model.checkpoints`."""

from __future__ import annotations

import math
from collections.abc import Iterator
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

from lvlm.model.seeding import generator_for

ADAPTER = "default"
SUM_BYTES = 1 << 30
"""Largest sum of weights for which `summed_lora` keeps a second copy. It saves calls, which a small model's time goes
into and a large one's does not."""


class FusedLora(Function):
    """y = x W^T + b + x A^T (s B)^T for a frozen W and b, in as few passes over memory as it takes.

    x: (..., in), W: (out, in), b: (out) or None, A: (r, in), B: (out, r), all of one dtype. The gradient goes to x, A
    and B alone. Autograd of the same formula writes and adds two more activations of the layer's width in each
    direction.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scaling: float
    ) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        low = rows @ a.T
        scaled = b * scaling
        y = rows @ weight.T if bias is None else torch.addmm(bias, rows, weight.T)
        ctx.save_for_backward(rows, weight, a, scaled, low)
        ctx.scaling = scaling
        return y.addmm_(low, scaled.T).view(*x.shape[:-1], y.shape[-1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        rows, weight, a, scaled, low = ctx.saved_tensors
        dy = grad.reshape(-1, grad.shape[-1])
        g = dy @ scaled
        dx = (dy @ weight).addmm_(g, a).view(*grad.shape[:-1], rows.shape[-1]) if ctx.needs_input_grad[0] else None
        return dx, None, None, g.T @ rows, (dy.T @ low).mul_(ctx.scaling), None


class FusedLoraLinear(PeftLinear):  # type: ignore[misc]  # peft is untyped
    """peft's LoRA layer of a linear layer, with the fused update wherever that computes the same: W frozen, no
    dropout, nothing merged, one dtype.
    """

    summed: Tensor | None = None
    """W + s B A while `summed_lora` lasts."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        base: Any = self.get_base_layer()
        if self.summed is not None:
            return functional.linear(x, self.summed, base.bias)
        if not self._fusible(x, base) or args or kwargs:
            return super().forward(x, *args, **kwargs)  # type: ignore[no-any-return]
        a, b = self.lora_A[ADAPTER].weight, self.lora_B[ADAPTER].weight
        return FusedLora.apply(x, base.weight, base.bias, a, b, self.scaling[ADAPTER])  # type: ignore[no-any-return]

    def _fusible(self, x: Tensor, base: Any) -> bool:
        if self.disable_adapters or self.merged or self.active_adapters != [ADAPTER] or self.lora_bias[ADAPTER]:
            return False
        if torch.is_autocast_enabled(x.device.type) or base.weight.requires_grad:
            return False
        if self.training and not isinstance(self.lora_dropout[ADAPTER], nn.Identity):
            return False
        if hasattr(base.weight, "ds_id"):  # ZeRO 3 gathers a weight when its own layer is called, and drops it then
            return False
        return bool(x.dtype == base.weight.dtype == self.lora_A[ADAPTER].weight.dtype)


@contextmanager
def summed_lora(model: nn.Module) -> Iterator[None]:
    """Inside, LoRA layers compute with W + s B A, one product in place of three; for generation, without gradients.

    The weights themselves are not touched. A model whose sums would take more than `SUM_BYTES`, or that is not in
    float32, where the sum would be rounded, computes as always.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, FusedLoraLinear)]
    weights: list[Tensor] = [layer.get_base_layer().weight for layer in layers]
    plain = all(layer.active_adapters == [ADAPTER] and not layer.merged for layer in layers)
    small = sum(weight.numel() for weight in weights) * torch.float32.itemsize <= SUM_BYTES
    if not plain or not small or any(layer.disable_adapters for layer in layers):
        layers = []
    if any(weight.dtype != torch.float32 for weight in weights):
        layers = []
    try:
        for layer in layers:
            layer.summed = layer.get_base_layer().weight + layer.get_delta_weight(ADAPTER)
        yield
    finally:
        for layer in layers:
            layer.summed = None


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


def add_lora(part: nn.Module, *, r: int, alpha: float, dropout: float, seed: int) -> None:
    """Put LoRA on every linear layer of a part, in place. B starts at zero; A is drawn layer by layer from its own
    stream of `seed`."""
    config = LoraConfig(r=r, lora_alpha=alpha, lora_dropout=dropout, target_modules=linear_names(part), bias="none")
    inject_lora(part, config)
    for name, layer in lora_layers(part).items():
        weight = layer.lora_A[ADAPTER].weight
        draw = torch.empty(weight.shape)
        nn.init.kaiming_uniform_(draw, a=math.sqrt(5), generator=generator_for(seed, f"lora.{name}"))
        with torch.no_grad():
            weight.copy_(draw)
            layer.lora_B[ADAPTER].weight.zero_()


def inject_lora(part: nn.Module, config: LoraConfig) -> None:
    """Put LoRA layers into a part, in place, without touching the global random state."""
    config._register_custom_module({nn.Linear: FusedLoraLinear})
    with torch.random.fork_rng(devices=[]):
        inject_adapter_in_model(config, part, adapter_name=ADAPTER)


def lora_config(part: nn.Module) -> LoraConfig:
    """The peft config of a part that has LoRA."""
    config: LoraConfig = part.peft_config[ADAPTER]  # type: ignore[index]
    return config


def split_state(part: nn.Module, *, merged: bool) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(plain weights, LoRA weights) of a part.

    Plain keys are those of the part without LoRA; with `merged` the update is added to them and the second dict is
    empty. LoRA keys are peft's own, so that `peft.PeftModel.from_pretrained` reads them.
    """
    layers = lora_layers(part)
    plain: dict[str, Tensor] = {}
    lora: dict[str, Tensor] = {}
    for key, value in part.state_dict().items():
        if ".lora_" in key:
            lora[_peft_key(key)] = value
        else:
            plain[key.replace(".base_layer.", ".")] = value
    if not merged:
        return plain, lora
    for name, layer in layers.items():
        key = f"{name}.weight"
        plain[key] = plain[key] + layer.get_delta_weight(ADAPTER).to(plain[key].dtype)
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
    """Add a part's LoRA to its weights and remove it, in place."""
    for name, layer in lora_layers(part).items():
        base: Any = layer.get_base_layer()
        with torch.no_grad():
            base.weight.add_(layer.get_delta_weight(ADAPTER).to(base.weight.dtype))
        parent, _, child = name.rpartition(".")
        setattr(part.get_submodule(parent), child, base)
    if hasattr(part, "peft_config"):
        del part.peft_config
