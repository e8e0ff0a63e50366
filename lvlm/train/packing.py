"""Splits the samples of one optimizer step into micro-batches, padded or packed. Called by `lvlm.train.batches`; never
changes the step itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from lvlm.errors import InputError

if TYPE_CHECKING:
    from lvlm.model.lvlm import Lvlm

OVERHEAD_TOKENS = 100
"""What one more forward and backward pass costs beside its tokens, in tokens: kernels that are launched whatever the
length. Measured with the tiny backbones on one CPU core; it decides only when a split saves enough padding, never what
is learned."""


def micro_batches(
    lengths: Sequence[int], token_budget: int, *, overhead_tokens: int = OVERHEAD_TOKENS
) -> list[list[int]]:
    """Positions of `lengths`, grouped so that padding and passes together cost least.

    A group of n samples costs `overhead_tokens + n * its longest`, at most `token_budget` tokens with padding; a
    sample beyond the budget goes alone. Groups are runs of the samples sorted by length, longest group first, so that
    a lack of memory shows at once.
    """
    order = sorted(range(len(lengths)), key=lambda position: (-lengths[position], position))
    cheapest = [0.0] + [float("inf")] * len(
        order
    )  # cheapest[j]: the first j samples of `order`, grouped as well as possible
    start_of = [0] * (len(order) + 1)
    for start, position in enumerate(order):
        longest = lengths[position]
        for stop in range(start + 1, len(order) + 1):
            padded = (stop - start) * longest
            if padded > token_budget and stop > start + 1:
                break
            cost = cheapest[start] + overhead_tokens + padded
            if cost < cheapest[stop]:
                cheapest[stop], start_of[stop] = cost, start
    groups: list[list[int]] = []
    stop = len(order)
    while stop:
        groups.append(order[start_of[stop] : stop])
        stop = start_of[stop]
    return groups[::-1]


def packed_micro_batches(lengths: Sequence[int], token_budget: int) -> list[list[int]]:
    """Positions of `lengths`, grouped so that few rows of at most `token_budget` tokens hold all of them end to end.

    Each sample, longest first, goes to the fullest row that has room (best-fit decreasing); one beyond the budget has a
    row of its own.
    """
    rows: list[list[int]] = []
    filled: list[int] = []
    for position in sorted(range(len(lengths)), key=lambda position: (-lengths[position], position)):
        fitting = [row for row, tokens in enumerate(filled) if tokens + lengths[position] <= token_budget]
        if not fitting:
            rows.append([])
            filled.append(0)
            fitting = [len(rows) - 1]
        row = max(fitting, key=lambda row: filled[row])
        rows[row].append(position)
        filled[row] += lengths[position]
    return sorted(rows, key=lambda row: -sum(lengths[position] for position in row))


@torch.no_grad()
def check_isolation(model: Lvlm) -> None:
    """Raise where the LLM lets a sample see what lies before it in its row: not every family reads position ids as
    packed samples."""
    one, two, three, four, *_ = (token for token in range(5) if token != model.config.image_token_id)
    rows = [one, two, three], [four, three, two, one], [0, 1, 2, 0, 1, 2, 3]
    before, after, positions = (torch.tensor([row], device=model.device) for row in rows)
    alone = model.hidden_states({"input_ids": after})
    packed = model.hidden_states({"input_ids": torch.cat([before, after], dim=1), "position_ids": positions})
    if not torch.allclose(packed[:, 3:], alone, rtol=1e-2, atol=1e-2 * float(alone.abs().max())):
        raise InputError(
            f"compute.packing is on, but {type(model.language_model).__name__} lets samples of one row see each other. "
            "Set compute.packing=false."
        )
