"""What need not be computed or kept: passes over memory in a frozen RMSNorm, the last block where no output
is read, activations that can be computed again. None changes a number beyond rounding. Called by `lvlm.model.parts` and
`lvlm.model.lvlm`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from copy import copy
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function

from lvlm.model.apart import APART


class FusedRmsNorm(Function):
    """y = x / sqrt(mean(x^2) + epsilon) * w over the last dimension for a frozen w: (..., width) -> (..., width).

    The gradient goes to x alone, from its closed form. Autograd of the same formula passes over memory twice as often.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:  # type: ignore[override]
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        scale: Tensor = length.square_().div_(x.shape[-1]).add_(epsilon).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        return (x * scale).mul_(weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight, scale = ctx.saved_tensors
        dx = grad * weight
        along = (dx * x).sum(dim=-1, keepdim=True).mul_(scale.pow(3)).div_(-x.shape[-1])
        return dx.mul_(scale).addcmul_(x, along), None, None


def fuse_norms(part: nn.Module) -> int:
    """Let each RMSNorm of a part use `FusedRmsNorm` where a gradient passes through it and its weight is frozen, in
    place; returns how many. Evaluation computes as the family does.

    A family's norm is taken by what it computes, not by its name: one that scales by 1 + w stays as it is.
    """
    norms: list[Any] = [module for module in part.modules() if _is_rms_norm(module)]
    for module in norms:
        module.__class__ = _fused(type(module))  # type: ignore[arg-type]
    return len(norms)


def _epsilon(module: nn.Module) -> float | None:
    epsilon = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    return epsilon if isinstance(epsilon, float) else None


@torch.no_grad()
def _is_rms_norm(module: nn.Module) -> bool:
    weight, epsilon = getattr(module, "weight", None), _epsilon(module)
    if not isinstance(weight, Tensor) or weight.dim() != 1 or epsilon is None or hasattr(module, "bias"):
        return False
    if getattr(module, "fused_rms_norm", False) or weight.dtype != torch.float32 or weight.is_meta:
        return False
    x = torch.linspace(-1.0, 2.0, 3 * len(weight), device=weight.device).reshape(3, -1)
    return torch.allclose(module(x), FusedRmsNorm.apply(x, weight, epsilon), rtol=1e-5, atol=1e-6)  # type: ignore[no-untyped-call]


@cache
def _fused(kind: type[nn.Module]) -> type[nn.Module]:
    """The class `kind` with the fused forward wherever that computes the same."""

    def forward(self: Any, x: Tensor) -> Tensor:
        weight = self.weight
        if not x.requires_grad or weight.requires_grad or not x.dtype == weight.dtype == torch.float32:
            return super(fused, self).forward(x)  # type: ignore[misc,no-any-return]
        return FusedRmsNorm.apply(x, weight, _epsilon(self))  # type: ignore[no-any-return,no-untyped-call]

    fused: type[nn.Module] = type(kind.__name__, (kind,), {"forward": forward, "fused_rms_norm": True})
    return fused


@contextmanager
def last_block_only_at(llm: Any, positions: Tensor | None) -> Iterator[None]:
    """Inside, the LLM's last block asks, and works on the answers, at `positions` alone, flat into (batch * tokens),
    rising.

    Everywhere else its output is not that of the block: right where no one reads it, since nothing after the last
    attention mixes positions. Keys and values are those of all tokens. An LLM that keeps its blocks elsewhere, that
    computes the last one a second time for the backward pass, or that mixes neighbours there by a convolution (Inkling
    does so after its MLP), runs whole; a GPU keeps its causal kernel, which is worth more.
    """
    block: Any = _last_block(llm)
    if (
        positions is None
        or not hasattr(block, "mlp")
        or getattr(block, "gradient_checkpointing", False)
        or any(isinstance(module, nn.Conv1d) for module in block.modules())
    ):
        yield
        return
    if not len(positions):
        positions = positions.new_zeros(1)  # parts that take no token fail over none
    parts, attention = [block.mlp], getattr(block, "self_attn", None)
    config = getattr(attention, "config", None)
    with ExitStack() as stack:
        kind = getattr(config, "_attn_implementation", None)
        if kind in ("sdpa", APART) and positions.device.type == "cpu":
            named = (getattr(attention, name, None) for name in ("q_proj", "o_proj"))  # DeepSeek has None for the first
            parts += [part for part in named if part is not None]
            if kind == "sdpa":
                stack.enter_context(_asks_at(attention, positions))
        for part in parts:
            stack.enter_context(_works_at(part, positions))
        yield


@contextmanager
def _works_at(part: Any, positions: Tensor) -> Iterator[None]:
    """Inside, a part that maps each token by itself runs at `positions` and gives zeros elsewhere. One that is given or
    gives more than a tensor (experts with their router's scores) runs whole."""
    whole, own = part.forward, vars(part).get("forward")

    def forward(x: Tensor, *more: Any, **named: Any) -> Any:
        if more or named or x.dim() != 3:
            return whole(x, *more, **named)
        at = positions.to(x.device)  # where a dispatched model has its last block
        found = whole(x.flatten(0, 1).index_select(0, at)[None])
        if not isinstance(found, Tensor):
            return whole(x)
        everywhere = found.new_zeros(x.shape[0] * x.shape[1], found.shape[-1]).index_copy(0, at, found[0])
        return everywhere.view(*x.shape[:2], -1)

    part.forward = forward
    try:
        yield
    finally:
        del part.forward
        if own is not None:  # a hook of accelerate, which brings the weights of a dispatched model
            part.forward = own


@contextmanager
def _asks_at(attention: Any, positions: Tensor) -> Iterator[None]:
    """Inside, an attention layer of transformers has queries at `positions` alone."""
    # At the top it would bring in the model, which imports this module.
    from transformers import AttentionInterface

    AttentionInterface.register(READ_ONLY, _read_only_attention)
    config = attention.config
    attention.config = copy(config)
    attention.config._attn_implementation = READ_ONLY
    attention.read_at = positions
    try:
        yield
    finally:
        attention.config = config
        del attention.read_at


READ_ONLY = "lvlm_read_only"
"""The name under which transformers finds `_read_only_attention`."""


def _read_only_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """Causal attention for the queries at `module.read_at`, and zeros for the others: query (batch, heads, tokens,
    width) -> (batch, tokens, heads, width)."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    batch, heads, tokens, width = query.shape
    row, column = module.read_at // tokens, module.read_at % tokens
    counts = torch.bincount(row, minlength=batch)
    rank = torch.arange(len(row)) - (counts.cumsum(0) - counts)[row]
    asked = torch.zeros(batch, int(counts.max()), dtype=torch.long).index_put((row, rank), column)
    places = asked[:, None, :, None]
    mask, causal = None, options.pop("is_causal", None)
    if attention_mask is not None:  # always where several tokens stand behind others that a cache has
        known = places.expand(-1, attention_mask.shape[1], -1, key.shape[2])
        mask = attention_mask.expand(batch, -1, tokens, -1).gather(2, known)
    elif tokens > 1 and (getattr(module, "is_causal", True) if causal is None else causal):
        mask = torch.arange(key.shape[2]) <= places  # a static cache has keys to come
    some, _ = ALL_ATTENTION_FUNCTIONS["sdpa"](
        module, query.gather(2, places.expand(-1, heads, -1, width)), key, value, mask, **options, is_causal=False
    )
    everywhere = some.new_zeros(batch * tokens, heads, some.shape[-1]).index_copy(0, module.read_at, some[row, rank])
    return everywhere.view(batch, tokens, heads, -1), None


def _last_block(llm: Any) -> nn.Module | None:
    blocks = getattr(llm.base_model, "layers", None)
    return blocks[-1] if isinstance(blocks, nn.ModuleList) and len(blocks) else None


def checkpoint_blocks(llm: Any, on: bool) -> None:
    """Let the blocks of an LLM be computed again in the backward pass, or let them keep their activations, in place.

    The last block keeps its own: `last_block_only_at` then spares the same work, and dropout draws the same masks, with
    and without. It acts in blocks in training mode alone; see `train_mode`.
    """
    if not on:
        llm.activation_checkpointing_disable()
        return
    llm.activation_checkpointing_enable({"use_reentrant": False})
    llm.disable_input_require_grads()  # which only re-entrant checkpoints need
    if hasattr(block := _last_block(llm), "mlp"):
        block.gradient_checkpointing = False  # type: ignore[union-attr,assignment]


def train_mode(part: nn.Module, learns: bool) -> None:
    """Dropout acts in a part that learns; a frozen one computes as in evaluation, though its blocks are told that this
    is training where they are checkpointed, since gradients may pass through them. Batch norms keep the statistics that
    they came with."""
    # At the top it would bring in the model, which imports this module.
    from transformers.modeling_layers import GradientCheckpointingLayer

    part.train(learns)
    for module in part.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):  # whose results would depend on the micro-batch
            module.eval()
        if isinstance(module, GradientCheckpointingLayer) and module.gradient_checkpointing:
            module.training = True
