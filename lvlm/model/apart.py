"""Samples that lie end to end in one row attend as rows of their own. Called by `lvlm.model.lvlm`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

APART = "lvlm_apart"
"""The name under which transformers finds `_attention_apart`."""
ALIKE = 0.75
"""Neighbours attend in one call, padded, as long as none is shorter than this share of the first."""
SHORT = 256
"""Samples of at most so many tokens attend with all of their scores in memory until the backward pass, which saves 7 %
of a step of the built-in world on two cores and 3 % on one. Those of longer samples would take too much of it."""
PROJECTIONS = {"q_proj", "k_proj", "v_proj", "qkv_proj", "o_proj", "dense", "rotary_emb"}
NORMS = {"q_norm", "k_norm", "q_layernorm", "k_layernorm", "query_layernorm", "key_layernorm"}
"""An attention layer of these parts alone mixes tokens in its kernel alone. One with more may mix them before that
(Zaya's convolutions) or make a mask of its own (Doge), and is left as it is."""


@dataclass(frozen=True, slots=True)
class _Alike:
    """Neighbouring samples that attend in one call: none is longer than the first."""

    lengths: tuple[int, ...]
    places: Tensor
    """(tokens,): where each of their tokens stands in (samples * longest) rows padded on the right."""
    tokens: Tensor
    """(samples * longest,): which of their tokens stands there, any of them on the padding."""
    padding: Tensor
    """(padded,): where in those rows no token stands."""


@contextmanager
def samples_attend_apart(llm: Any, position_ids: Tensor | None) -> Iterator[None]:
    """Inside, the samples of a row attend each by itself, a few calls for all, instead of under a mask of all tokens by
    all tokens, whose cost grows with the square of the row.

    `position_ids` (1, tokens) rise by one within each sample and by something else from one to the next, as
    transformers reads them. The caller sees to it that the row has neither an attention mask nor a cache, which are
    left aside here. It acts where a CPU runs `sdpa` over all that comes before; kernels that read lengths do the same
    by themselves. Where blocks are computed a second time for the backward pass, which comes after, all runs as
    without.
    """
    one_row = position_ids is not None and position_ids.dim() == 2 and len(position_ids) == 1
    groups = _groups(position_ids[0]) if one_row else []  # type: ignore[index]
    if sum(len(group.lengths) for group in groups) < 2 or not _can(llm, max(group.lengths[0] for group in groups)):
        yield
        return
    # At the top it would bring in the model, which imports this module.
    from transformers import AttentionInterface

    AttentionInterface.register(APART, _attention_apart)
    attentions = [block.self_attn for block in llm.base_model.layers]
    config = llm.base_model.config
    for attention in attentions:
        attention.samples_apart = groups
    config._attn_implementation = APART
    try:
        yield
    finally:
        config._attn_implementation = "sdpa"
        for attention in attentions:
            del attention.samples_apart


def _can(llm: Any, longest: int) -> bool:
    base = llm.base_model
    attentions, config = [getattr(block, "self_attn", None) for block in getattr(base, "layers", ())], base.config
    limits = (getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size"))
    return (
        getattr(base, "_supports_attention_backend", False)
        and config._attn_implementation == "sdpa"
        and base.device.type == "cpu"
        and all(limit is None or longest <= limit for limit in limits)
        and len(attentions) > 0
        and all(getattr(attention, "config", None) is config and _is_plain(attention) for attention in attentions)
        and not any(getattr(block, "gradient_checkpointing", False) for block in base.layers)
    )


def _is_plain(attention: Any) -> bool:
    parts = {name for name, _ in attention.named_children()}
    own = next(attention.parameters(recurse=False), None)
    return parts <= PROJECTIONS | NORMS and own is None and getattr(attention, "is_causal", True)


def _groups(position_ids: Tensor) -> list[_Alike]:
    starts = [0, *((position_ids.diff() != 1).nonzero()[:, 0] + 1).tolist()]
    groups: list[list[int]] = []
    for start, stop in zip(starts, [*starts[1:], len(position_ids)], strict=True):
        if not groups or not ALIKE * groups[-1][0] <= stop - start <= groups[-1][0]:
            groups.append([])
        groups[-1].append(stop - start)
    return [_alike(lengths) for lengths in groups]


def _alike(lengths: Sequence[int]) -> _Alike:
    longest = lengths[0]
    places = torch.cat([row * longest + torch.arange(length) for row, length in enumerate(lengths)])
    tokens = torch.full((len(lengths) * longest,), -1)
    tokens[places] = torch.arange(len(places))
    return _Alike(tuple(lengths), places, tokens.clamp(min=0), (tokens < 0).nonzero()[:, 0])


def _attention_apart(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """Causal attention of each sample of a row by itself: query (1, heads, tokens, width) -> (1, tokens, heads,
    width)."""
    groups: list[_Alike] = module.samples_apart
    longest = max(group.lengths[0] for group in groups)
    bare = all(options.get(name) is None for name in ("position_bias", "softcap")) and not options.get("dropout")
    plain = bare and query.shape[-1] == value.shape[-1]
    if plain and longest <= SHORT and query.dtype == key.dtype == value.dtype == torch.float32:
        sharing = query.shape[1] // key.shape[1]
        shared = (states[0].repeat_interleave(sharing, 0) if sharing > 1 else states[0] for states in (key, value))
        scale = options.get("scaling")
        found = _ShortAttention.apply(query[0], *shared, groups, query.shape[-1] ** -0.5 if scale is None else scale)  # type: ignore[no-untyped-call]
        return found[None], None
    return _by_kernel(module, query, key, value, groups, options), None


class _ShortAttention(Function):
    """Causal attention of samples end to end, each by itself: query, key and value (heads, tokens, width) -> (tokens,
    heads, width), all in float32."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, groups: list[_Alike], scale: float
    ) -> Tensor:
        heads, tokens, width = query.shape
        found = query.new_empty(tokens, heads, width)
        kept: list[Tensor] = []
        for group, here in _with_places(groups):
            q, k, v = (_rows(states[:, here], group) for states in (query, key, value))
            future = _future(group.lengths[0])
            shares = torch.baddbmm(future, q, k.transpose(1, 2), alpha=scale).softmax(-1)
            _put(found[here], shares @ v, group)
            kept += [q, k, v, shares]
        ctx.save_for_backward(*kept)
        ctx.groups, ctx.scale = groups, scale
        return found

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        dq, dk, dv = (torch.empty_like(grad) for _ in range(3))
        kept, nothing = iter(ctx.saved_tensors), grad.new_zeros(1, 1, 1)
        for group, here in _with_places(ctx.groups):
            q, k, v, shares = (next(kept) for _ in range(4))
            given = _rows(grad[here].transpose(0, 1), group)
            if len(group.padding):  # which gave nothing, and so gets nothing
                given.view(grad.shape[1], -1, grad.shape[2]).index_fill_(1, group.padding, 0.0)
            dscores = torch._softmax_backward_data(given @ v.transpose(1, 2), shares, -1, shares.dtype)
            _put(dq[here], torch.baddbmm(nothing, dscores, k, beta=0, alpha=ctx.scale), group)
            _put(dk[here], torch.baddbmm(nothing, dscores.transpose(1, 2), q, beta=0, alpha=ctx.scale), group)
            _put(dv[here], shares.transpose(1, 2) @ given, group)
        return *(part.transpose(0, 1) for part in (dq, dk, dv)), None, None


def _with_places(groups: list[_Alike]) -> Iterator[tuple[_Alike, slice]]:
    stop = 0
    for group in groups:
        start, stop = stop, stop + len(group.places)
        yield group, slice(start, stop)


def _rows(states: Tensor, group: _Alike) -> Tensor:
    """(heads, tokens, width) -> (heads * samples, longest, width), with anything on the padding: no token before it
    sees it."""
    padded = states.index_select(1, group.tokens) if len(group.padding) else states
    return padded.reshape(-1, group.lengths[0], states.shape[2])


def _put(into: Tensor, rows: Tensor, group: _Alike) -> None:
    """Write `_rows` back into (tokens, heads, width)."""
    rows = rows.view(into.shape[1], -1, into.shape[2])
    into.copy_((rows.index_select(1, group.places) if len(group.padding) else rows).transpose(0, 1))


@cache
def _future(tokens: int) -> Tensor:
    """(tokens, tokens): what is added to scores, -inf where the key comes after the query."""
    return torch.full((tokens, tokens), -torch.inf).triu(1)


def _by_kernel(
    module: Any, query: Tensor, key: Tensor, value: Tensor, groups: list[_Alike], options: dict[str, Any]
) -> Tensor:
    """`_attention_apart` by the kernel that a causal row of its own would have."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    found = []
    for group, here in _with_places(groups):
        samples = len(group.lengths)
        rows = (_rows(states[0, :, here], group) for states in (query, key, value))
        padded = [states.unflatten(0, (-1, samples)).transpose(0, 1) for states in rows]  # type: ignore[no-untyped-call]
        own, _ = ALL_ATTENTION_FUNCTIONS["sdpa"](module, *padded, None, **options | {"is_causal": True})
        found.append(own.flatten(0, 1).index_select(0, group.places))
    return torch.cat(found)[None]
