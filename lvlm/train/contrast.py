"""The contrastive term of an optimizer step: the two sides of a parallel sample are to be nearer to each other than to
those of the step's other pairs. Used by `lvlm.train.loop` and `lvlm.train.strategies`.

What is compared is the mean, over all tokens of a sample (markers of its turns included, padding not), of what one
block of the LLM puts out (`contrast.layer`). With a pair's sides p_i (in the pivot) and q_i and s_ij = cos(p_i, q_j) /
temperature over the n pairs of the step, the term is InfoNCE both ways (van den Oord et al., arXiv 1807.03748; both
ways as in CLIP, arXiv 2103.00020), times `contrast.weight`:

    (1 / 2n) sum_i [ -log softmax_j(s_ij)[i] - log softmax_j(s_ji)[i] ]

Every pair is compared with every other of the step, whatever the micro-batches and processes. So the states of all are
computed first, without gradient; then the gradient of the term with respect to each state; and each micro-batch carries
its rows of that into the weights (Gao et al., arXiv 2101.06983). The sum is the gradient of the term exactly, at the
price of a second forward pass over the pairs. A step with a single pair has no term.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from lvlm.errors import InputError
from lvlm.languages import language
from lvlm.model.states import text_states
from lvlm.settings import ContrastSettings, StageConfig

if TYPE_CHECKING:
    from lvlm.data.pool import PlanEntry
    from lvlm.model.lvlm import Lvlm
    from lvlm.train.batches import MicroBatch, StepBatches
    from lvlm.train.compute import Compute

Pair = tuple[int, int]
"""The sides of a parallel sample by their numbers in the pool, that in the pivot first."""


@dataclass(frozen=True)
class StepContrast:
    """The term of one step: its `value`, and the gradient with respect to the mean state of each side, by number."""

    value: float
    gradients: dict[int, Tensor]

    def pull(self, batch: MicroBatch) -> MicroBatch:
        """The micro-batch with the gradients of its samples; the same where it has no side of a pair."""
        rows = [self.gradients.get(number) for number in batch.numbers]
        some = next((row for row in rows if row is not None), None)
        if some is None:
            return batch
        return replace(batch, pull=torch.stack([torch.zeros_like(some) if row is None else row for row in rows]))


def step_contrast(model: Lvlm, batches: StepBatches, step: int, config: StageConfig, compute: Compute) -> StepContrast:
    """The contrastive term of a step; every process calls this together and gets the same."""
    entries = batches.plan.step_entries(step)
    pairs = pairs_of(entries, language(config.mix.pivot).code)
    if len(pairs) < 2:
        return StepContrast(0.0, {})
    rows = {number: row for row, number in enumerate(number for pair in pairs for number in pair)}
    states = torch.zeros(len(rows), model.config.get_text_config().hidden_size, device=compute.device)
    layer = layer_of(model, config.contrast)
    times = Counter(entry.number for entry in entries)  # a step between two epochs may have a sample twice
    with torch.no_grad(), compute.autocast():
        for batch in batches(step):
            sides = [(place, number) for place, number in enumerate(batch.numbers) if number in rows]
            if sides:
                batch = batch.to(compute.device)
                found = mean_states(text_states(model.language_model, batch.inputs)[layer], batch)
                for place, number in sides:
                    states[rows[number]] += found[place] / times[number]
    if compute.accelerator.num_processes > 1:
        states = compute.accelerator.reduce(states, "sum")
    states.requires_grad_(True)
    with torch.enable_grad():
        term = config.contrast.weight * info_nce(states[0::2], states[1::2], config.contrast.temperature)
    (gradient,) = torch.autograd.grad(term, states)
    return StepContrast(float(term.detach()), {number: gradient[row] / times[number] for number, row in rows.items()})


def info_nce(one: Tensor, other: Tensor, temperature: float) -> Tensor:
    """The mean of both ways of telling which row of `other` (pairs, width) belongs to each row of `one`, and back."""
    similar = F.normalize(one, dim=1) @ F.normalize(other, dim=1).T / temperature
    right = torch.arange(len(similar), device=similar.device)
    return (F.cross_entropy(similar, right) + F.cross_entropy(similar.T, right)) / 2


def pairs_of(entries: Sequence[PlanEntry], pivot: str) -> list[Pair]:
    """The parallel samples of a step of which both sides are there, each once."""
    sides: dict[tuple[str, str, str], dict[int, str]] = {}
    for entry in entries:
        sides.setdefault((entry.corpus, entry.split, entry.id), {})[entry.number] = entry.language
    found = []
    for members in sides.values():
        if len(members) == 2:
            first, second = sorted(members, key=lambda number: members[number] != pivot)
            found.append((first, second))
    return found


def mean_states(states: Tensor, batch: MicroBatch) -> Tensor:
    """(samples, hidden) in float32: the mean over each sample's tokens of states that a micro-batch has by token."""
    if batch.position_ids is not None:  # end to end
        parts = torch.split(states[0, : sum(batch.lengths)].float(), list(batch.lengths))  # type: ignore[no-untyped-call]
        return torch.stack([part.mean(dim=0) for part in parts])
    lengths = torch.tensor(batch.lengths, device=states.device)
    real = torch.arange(states.shape[1], device=states.device) < lengths[:, None]
    return (states.float() * real.unsqueeze(-1)).sum(dim=1) / lengths[:, None]


def layer_of(model: Lvlm, settings: ContrastSettings) -> int:
    """Which of `Lvlm.all_states` is compared."""
    blocks: int = model.config.get_text_config().num_hidden_layers
    if settings.layer is None:
        return blocks // 2
    if settings.layer > blocks:
        raise InputError(
            f"contrast.layer is {settings.layer}, but the LLM has {blocks} blocks. Give 0 (the embeddings) to {blocks}."
        )
    return settings.layer
