"""Samples that lie end to end in one row attend as rows of their own. Called by `lvlm.model.lvlm`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

APART = "lvlm_apart"
"""The name under which transformers finds `_attention_apart`."""
ALIKE = 0.75
"""Neighbours attend in one call, padded, as long as none is shorter than this share of the first."""
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
    return [_Alike(tuple(lengths), _places(lengths)) for lengths in groups]


def _places(lengths: Sequence[int]) -> Tensor:
    return torch.cat([row * lengths[0] + torch.arange(length) for row, length in enumerate(lengths)])


def _attention_apart(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """Causal attention of each sample of a row by itself: query (1, heads, tokens, width) -> (1, tokens, heads,
    width)."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    groups: list[_Alike] = module.samples_apart
    sizes = [len(group.places) for group in groups]
    rows = (torch.split(states[0].transpose(0, 1), sizes) for states in (query, key, value))  # (tokens, heads, width)
    found = []
    for group, *parts in zip(groups, *rows, strict=True):
        padded = [_padded(part, group) for part in parts]
        own, _ = ALL_ATTENTION_FUNCTIONS["sdpa"](module, *padded, None, **options | {"is_causal": True})
        found.append(own.flatten(0, 1).index_select(0, group.places))
    return torch.cat(found)[None], None


def _padded(states: Tensor, group: _Alike) -> Tensor:
    """(tokens, heads, width) -> (samples, heads, longest, width), with zeros behind each sample."""
    samples, longest = len(group.lengths), group.lengths[0]
    rows = states.new_zeros(samples * longest, *states.shape[1:]).index_copy(0, group.places, states)
    return rows.view(samples, longest, *states.shape[1:]).transpose(1, 2)
