"""How frozen weights are held to save memory: matrices in bfloat16, those of an LLM in 8 or 4 bits. Used by
`lvlm.model.assembly`, `lvlm.model.parts`, `lvlm.model.lora` and `lvlm.model.checkpoints`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lvlm.config import one_line
from lvlm.errors import InputError

OUTLIERS = 6.0
"""Inputs of an 8-bit layer beyond this are multiplied in 16 bits (LLM.int8, arXiv 2208.07339)."""


def matrices(part: nn.Module) -> Iterator[nn.Parameter]:
    """The weights of a part that autocast rounds to bfloat16 at every use: those of linear layers and convolutions.

    Not LoRA's, which learn; not a head that is tied to the embeddings, which are read as they are; not what is
    quantised.
    """
    tied = getattr(getattr(part, "config", None), "tie_word_embeddings", False)
    head = part.get_output_embeddings() if tied else None  # type: ignore[operator]
    for name, module in part.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d | Conv1D) and module is not head and ".lora_" not in name:
            weight: Any = module.weight
            if weight.is_floating_point():
                yield weight


def halve(part: nn.Module) -> None:
    """Hold the matrices of a frozen part in bfloat16, in place.

    Under autocast this changes no bit of any result: embeddings, norms and positions, which autocast reads in float32,
    keep their type.
    """
    for weight in matrices(part):
        weight.data = weight.data.to(torch.bfloat16)


def check_quantisation(bits: int | None) -> None:
    """Raise unless layers of so many bits can be trained through here; None always can."""
    if bits is None:
        return
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        layer = _quantised(nn.Linear(64, 64, device=device), bits)
        layer(torch.ones(1, 64, device=device, requires_grad=True)).sum().backward()
    except ImportError as error:
        raise InputError(
            f"model.load_{bits}bit needs the package bitsandbytes, which is not installed here ({one_line(error)}). "
            f"Install it (pip install -e '.[quantised]'), or leave load_{bits}bit out."
        ) from error
    except Exception as error:  # its kernels are chosen as they are called, and fail in many ways
        raise InputError(
            f"model.load_{bits}bit: bitsandbytes is installed, but a layer of {bits} bits does not compute on this "
            f"{device}: {one_line(error)}. Install another version of it, or leave load_{bits}bit out."
        ) from error


def quantise(llm: Any, bits: int) -> None:
    """Hold every linear layer of an LLM but its head in 4 bits (nf4, blocks of 64, computed in bfloat16) or 8 bits
    (LLM.int8), in place.

    Weights are rounded to bfloat16 first. `dequantised` then gives bfloat16 numbers that quantise to the same bits
    again, so that saving them loses nothing.
    """
    head = llm.get_output_embeddings()
    layers = {name: module for name, module in llm.named_modules() if type(module) is nn.Linear and module is not head}
    if not layers:
        raise InputError(
            f"The language model {type(llm).__name__} has no linear layers to hold in {bits} bits. Leave "
            f"model.load_{bits}bit out."
        )
    for name, layer in layers.items():
        parent, _, child = name.rpartition(".")
        setattr(llm.get_submodule(parent), child, _quantised(layer, bits))


def _quantised(layer: nn.Linear, bits: int) -> nn.Module:
    import bitsandbytes as bnb

    weight, made = layer.weight.detach().to(torch.bfloat16), bnb.nn.Linear4bit if bits == 4 else bnb.nn.Linear8bitLt
    shape = (layer.in_features, layer.out_features, layer.bias is not None)
    with torch.device("meta"):
        if bits == 4:
            new = made(*shape, compute_dtype=torch.bfloat16, compress_statistics=False, quant_type="nf4")
        else:
            new = made(*shape, has_fp16_weights=False, threshold=OUTLIERS)
    settings = {name: value for name, value in new.weight.__dict__.items() if name != "SCB"}
    new.weight = type(new.weight)(weight, **{"requires_grad": False, **settings})
    new.bias = layer.bias
    # On a CPU, evaluation would pack the weights for a kernel that passes no gradient on when training goes on.
    new.support_avx512bf16_for_cpu = False
    moved: nn.Module = new.to(weight.device)  # quantises
    return moved.train(layer.training)


def quantised_layers(part: nn.Module) -> dict[str, nn.Module]:
    """The quantised layers of a part by name; none if it is not quantised."""
    return {
        name: module
        for name, module in part.named_modules()
        if isinstance(module, nn.Linear) and not module.weight.is_floating_point()
    }


def dequantised(layer: Any) -> Tensor:
    """The weight of a quantised layer in bfloat16: (out, in)."""
    from bitsandbytes import functional

    stored = layer.weight.data
    if hasattr(layer.weight, "quant_state"):
        weight: Tensor = functional.dequantize_4bit(stored, layer.weight.quant_state)
    else:
        weight = functional.int8_vectorwise_dequant(stored, _scales(layer))
    return weight.to(torch.bfloat16)


def _scales(layer: Any) -> Tensor:
    """Those of an 8-bit layer's rows, which bitsandbytes moves from the weight to the layer in its first pass."""
    scales: Tensor = layer.weight.SCB if layer.weight.SCB is not None else layer.state.SCB
    return scales


def keep_scales(part: nn.Module) -> None:
    """After a part was moved: give the weights of 8-bit layers their scales back, which the move has lost."""
    for layer in quantised_layers(part).values():
        weight: Any = layer.weight
        if not hasattr(weight, "quant_state"):
            weight.SCB = _scales(layer).to(weight.device)


def numel(parameter: Tensor) -> int:
    """How many numbers a parameter stands for: 4-bit weights lie two in a byte."""
    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else int(torch.Size(state.shape).numel())
