"""Splits the samples of one optimizer step into micro-batches of similar length. Called by `lvlm.train.batches`; never
changes the step itself."""

from __future__ import annotations

from collections.abc import Sequence

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
