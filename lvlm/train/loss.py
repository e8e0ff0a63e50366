"""The objective of one optimizer step, the same whatever the micro-batches and processes. Called by
`lvlm.train.loop`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Reduction = Literal["token", "sample"]
LOGITS_AT_ONCE = 1 << 25
"""Logits that exist at one time: 128 MiB in fp32. A vocabulary of 152,000 makes that of 220 tokens."""


def token_weights(supervised: Sequence[int], reduction: Reduction) -> list[float]:
    """What one supervised token of each sample weighs in the loss, given the counts of *all* samples of the optimizer
    step.

    `token`: every supervised token of the step counts alike, 1 / total. `sample`: every sample counts alike, the mean
    over its own tokens; a sample without supervised tokens has no mean and does not count. Because the divisor is that
    of the whole step, the losses of micro-batches and processes are *added*, and memory settings cannot move the
    objective towards short answers.
    """
    if reduction == "token":
        total = sum(supervised)
        return [1.0 / total if total else 0.0] * len(supervised)
    with_answer = sum(count > 0 for count in supervised)
    return [1.0 / (count * with_answer) if count else 0.0 for count in supervised]


def weighted_cross_entropy(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Sum over tokens of weight times negative log-likelihood, in fp32; exactly zero (and no NaN) without tokens.

    `logits` (tokens, vocabulary), `targets` (tokens,), `weights` (tokens,).
    """
    nll = F.cross_entropy(logits.float(), targets, reduction="none")
    return torch.dot(nll, weights)


def supervised_loss(
    logits_of: Callable[[Tensor], Tensor], hidden: Tensor, targets: Tensor, weights: Tensor, *, vocabulary: int
) -> Tensor:
    """`weighted_cross_entropy` of the logits (tokens, vocabulary) of `hidden` (tokens, width), in pieces of at most
    `LOGITS_AT_ONCE` logits.

    Where there are several pieces, each computes its logits a second time for its gradient and keeps none: a large
    vocabulary costs the time of its head twice and the memory of one piece.
    """

    def piece(hidden: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        return weighted_cross_entropy(logits_of(hidden), targets, weights)

    tokens = max(1, LOGITS_AT_ONCE // vocabulary)
    if len(hidden) <= tokens:
        return piece(hidden, targets, weights)
    parts = zip(*(torch.split(one, tokens) for one in (hidden, targets, weights)), strict=True)  # type: ignore[no-untyped-call]
    losses: list[Tensor] = [checkpoint(piece, *part, use_reentrant=False) for part in parts]  # type: ignore[misc]
    return torch.stack(losses).sum()
