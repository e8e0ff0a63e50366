"""LoRA on a part of the model through peft: add, draw, merge, and split the weights for saving. Imports peft for parts
that have LoRA alone. Used by `lvlm.model.parts` and `lvlm.model.checkpoints`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lvlm.errors import InputError
from lvlm.model.seeding import generator_for
from lvlm.model.weights import dequantised, quantised_layers

if TYPE_CHECKING:
    from peft import LoraConfig
    from peft.tuners.lora import LoraLayer

ADAPTER = "default"
SUM_BYTES = 1 << 30
"""Largest sum of weights for which `LoraSums` keeps a second copy. It saves calls, which a small model's time goes
into and a large one's does not."""


class LoraSums:
    """Lets the LoRA layers of a model compute with W + s B A, one product in place of three.

    The weights themselves are not touched, and are not to change while the sums are `made`. A model whose sums would
    take more than `SUM_BYTES`, or that is not in float32, where the sum would be rounded, computes as always.
    """

    def __init__(self, model: nn.Module) -> None:
        layers: list[Any] = [layer for layer in model.modules() if getattr(layer, "summed", layer) is None]
        numbers = sum(layer.get_base_layer().weight.numel() for layer in layers)
        self._layers = layers if numbers * torch.float32.itemsize <= SUM_BYTES else []
        self._made = False

    def make(self) -> None:
        """Compute with the sums from here on; nothing where that is so already."""
        if self._made or not all(_is_plain(layer) for layer in self._layers):
            return
        self._made = True
        with torch.no_grad():
            for layer in self._layers:
                weight = layer.get_base_layer().weight
                a, b = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
                with torch.autocast(weight.device.type, enabled=False):  # which would round the sum
                    layer.summed = torch.addmm(weight, b, a, alpha=layer.scaling[ADAPTER])

    def drop(self) -> None:
        """Compute as always."""
        for layer in self._layers if self._made else ():
            layer.summed = None
        self._made = False


def _is_plain(layer: Any) -> bool:
    """Whether a layer's output is that of W + s B A, with all of it here, in float32 and W frozen."""
    weight = layer.get_base_layer().weight
    if layer.disable_adapters or layer.merged or layer.active_adapters != [ADAPTER] or layer.lora_bias[ADAPTER]:
        return False
    if weight.requires_grad or hasattr(weight, "ds_id"):  # ZeRO 3 has a weight here only while its own layer is called
        return False
    return bool(weight.dtype == layer.lora_A[ADAPTER].weight.dtype == torch.float32)


@contextmanager
def summed_lora(model: nn.Module) -> Iterator[None]:
    """`LoraSums` for as long as this lasts."""
    sums = LoraSums(model)
    try:
        sums.make()
        yield
    finally:
        sums.drop()


def lora_layers(part: nn.Module) -> dict[str, LoraLayer]:
    """The LoRA layers of a part by name; none if it has no LoRA."""
    return {name: module for name, module in part.named_modules() if hasattr(module, "lora_A")}  # type: ignore[misc]


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
    from peft import LoraConfig

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
    from peft import inject_adapter_in_model

    config._register_custom_module(_layer_classes(part))
    with torch.random.fork_rng(devices=[]):
        inject_adapter_in_model(config, part, adapter_name=ADAPTER)
    for name, parameter in part.named_parameters():
        if ".lora_" in name:
            parameter.data = parameter.data.float()


def _layer_classes(part: nn.Module) -> dict[type[nn.Module], type[nn.Module]]:
    """Layer -> what computes it with LoRA, the first that fits; a quantised layer is an `nn.Linear` too."""
    from lvlm.model.sums import SummableLora

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
