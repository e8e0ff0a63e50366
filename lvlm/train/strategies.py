"""How processes share a stage: the gradient, the update and the state of one optimizer step, whole in every process or
divided by DeepSpeed. Used by `lvlm.train.loop`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from lvlm.errors import InputError
from lvlm.model.lora import LoraSums
from lvlm.model.states import text_states
from lvlm.model.weights import quantised_layers
from lvlm.paint_settings import PaintConfig
from lvlm.settings import ContrastSettings, StageConfig
from lvlm.train.batches import MicroBatch
from lvlm.train.contrast import layer_of, mean_states
from lvlm.train.loss import supervised_loss
from lvlm.train.optim import build_optimizer, set_lr

if TYPE_CHECKING:
    from lvlm.model.lvlm import Lvlm
    from lvlm.train.compute import Compute

BUCKET_ELEMENTS = 1 << 25
"""Gradient numbers that one reduction across processes carries: 128 MiB in fp32."""
Autocast = Callable[[], AbstractContextManager[Any]]


class Strategy(Protocol):
    """One optimizer step, by whoever holds the weights. Every process calls every method, in the same order."""

    model: Any
    lockstep: bool
    """Whether every process must run as many passes through the same modules as the others."""

    def backward(self, batch: MicroBatch, images: Mapping[str, Tensor]) -> Tensor:
        """Add a micro-batch's gradients to those of the step; its share of the step's loss, without gradient."""
        ...

    def step(self, factor: float) -> tuple[float, float]:
        """Update at `factor` times the base learning rates and begin anew: (highest rate, gradient norm)."""
        ...

    def probe(self, batch: MicroBatch, images: Mapping[str, Tensor]) -> None:
        """Forward and backward without a trace, to see whether memory suffices."""
        ...

    def state(self) -> dict[str, Any]:
        """What learns and its optimizer, whole: `model` by parameter name and `optimizer` as AdamW's own state dict.
        The same for every strategy and number of processes. Other processes than the first may hold empty tensors."""
        ...

    def restore(self, state: Mapping[str, Any]) -> None:
        """Put back what `state` returned, here or under another strategy."""
        ...

    def whole(self) -> AbstractContextManager[None]:
        """Inside, the model in memory is whole, for evaluation and saving."""
        ...

    def finish(self) -> None:
        """Let go of the model. A divided one is not usable after this."""
        ...


class StepLoss(nn.Module):
    """A micro-batch's share of the step's loss, as a module of the parts that take part in it, under their names."""

    def __init__(self, model: Lvlm, autocast: Autocast, contrast: ContrastSettings | None = None) -> None:
        super().__init__()
        for name, part in model.named_children():
            if part is not model.vision_tower or any(parameter.requires_grad for parameter in part.parameters()):
                self.add_module(name, part)  # a frozen tower works apart, ahead of the step
        self._of = (model,)  # in a tuple, so that it is no child
        self._autocast = autocast
        self._layer = layer_of(model, contrast) if contrast and contrast.weight else 0

    def forward(self, batch: MicroBatch, images: Mapping[str, Tensor]) -> Tensor:
        """Logits exist at supervised positions only, some at a time."""
        (model,) = self._of
        with self._autocast():
            if batch.pull is not None:
                states = text_states(model.language_model, batch.inputs)
                pulled = (mean_states(states[self._layer], batch) * batch.pull).sum()
                # Its gradient; the value of the term is that of the whole step.
                return self._supervised(states[-1], batch) + (pulled - pulled.detach())
            return self._supervised(model.hidden_states({**batch.inputs, **images}, read_at=batch.positions), batch)

    def _supervised(self, hidden: Tensor, batch: MicroBatch) -> Tensor:
        (model,) = self._of
        rows = hidden.flatten(0, 1).index_select(0, batch.positions)
        vocabulary = model.config.get_text_config().vocab_size
        return supervised_loss(model.logits, rows, batch.targets, batch.weights, vocabulary=vocabulary)


class WholeCopies:
    """Every process has the whole model, and gradients are added up before the update (DDP's arithmetic)."""

    lockstep = False

    def __init__(
        self,
        model: Any,
        config: StageConfig | PaintConfig,
        accelerator: Accelerator,
        autocast: Autocast,
        *,
        loss: nn.Module | None = None,
        optimizer: torch.optim.AdamW | None = None,
    ) -> None:
        self.model = model
        self.accelerator = accelerator
        self.clip = config.optim.clip or math.inf
        self.optimizer = optimizer or build_optimizer(model, config.optim)
        self.learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.loss = loss or StepLoss(model, autocast, config.contrast)  # type: ignore[union-attr]
        self._sums = LoraSums(model)

    def backward(self, batch: MicroBatch, images: Mapping[str, Tensor]) -> Tensor:
        self._sums.make()
        loss: Tensor = self.loss(batch, images)
        if loss.requires_grad:  # a batch of text alone reaches nothing where only the adapter learns
            self.accelerator.backward(loss)
        return loss.detach()

    def step(self, factor: float) -> tuple[float, float]:
        rate = set_lr(self.optimizer, factor)
        sum_over_processes(self.accelerator, self.learning)
        norm = nn.utils.clip_grad_norm_(self.learning, self.clip)
        self.optimizer.step()
        self.forget()
        self._sums.drop()  # the weights are others now
        return rate, float(norm)

    def probe(self, batch: MicroBatch, images: Mapping[str, Tensor]) -> None:
        self.backward(batch, images)
        self.forget()

    def forget(self) -> None:
        """Drop the gradients of an unfinished step."""
        for parameter in self.learning:  # not `zero_grad`, which walks through the whole model to find them
            parameter.grad = None

    def state(self) -> dict[str, Any]:
        return {"model": changing_state(self.model), "optimizer": self.optimizer.state_dict()}

    def restore(self, state: Mapping[str, Any]) -> None:
        with torch.no_grad():
            for name, tensor in changing_state(self.model).items():
                tensor.copy_(state["model"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self._sums.drop()  # the weights are others now

    @contextmanager
    def whole(self) -> Iterator[None]:
        yield

    def finish(self) -> None:
        self._sums.drop()


def share_work(model: Lvlm, config: StageConfig, compute: Compute) -> Strategy:
    """The strategy that this run was set up with."""
    if compute.zero_stage == 3 and quantised_layers(model.language_model):
        raise InputError(
            "ZeRO 3 divides the weights themselves, and weights of 4 or 8 bits cannot be divided. Set "
            "compute.strategy to zero2 or ddp, or leave model.load_4bit and load_8bit out."
        )
    if compute.zero_stage and config.contrast.weight:
        raise InputError(
            "The contrastive term compares states of a whole step before its gradient is taken, which is not done "
            "under ZeRO. Set compute.strategy to ddp, or contrast.weight to 0."
        )
    if compute.zero_stage:
        from lvlm.train.zero import Zero

        return Zero(model, config, compute.accelerator, compute.autocast, stage=compute.zero_stage)
    return WholeCopies(model, config, compute.accelerator, compute.autocast)


def changing_state(model: nn.Module) -> dict[str, Tensor]:
    """Trainable parameters and buffers by name: all that a step can change."""
    learning = {name: parameter.detach() for name, parameter in model.named_parameters() if parameter.requires_grad}
    return learning | dict(model.named_buffers())


def sum_over_processes(accelerator: Accelerator, parameters: list[nn.Parameter]) -> None:
    """Add the gradients of all processes. The loss already divides by the whole step, so this is a sum and not a mean.

    Every process takes part with every parameter, zeros where its samples gave no gradient, so a process with text
    only cannot hang one with images. One process alone has the same zeros: the optimizer then takes the same step.
    """
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    if accelerator.num_processes == 1:
        return
    bucket: list[nn.Parameter] = []
    for index, parameter in enumerate(parameters):
        bucket.append(parameter)
        if index + 1 < len(parameters) and sum(member.numel() for member in bucket) < BUCKET_ELEMENTS:
            continue
        grads = [member.grad for member in bucket if member.grad is not None]
        total: Tensor = accelerator.reduce(torch.cat([grad.flatten() for grad in grads]), "sum")
        for member, grad in zip(bucket, torch.split(total, [grad.numel() for grad in grads]), strict=True):
            member.grad = grad.view_as(member)
        bucket = []
