"""The training loop of a stage: what one optimizer step is, on one page. Called by `lvlm.train.train`."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from lvlm.errors import Diverged, InputError, StartAgain
from lvlm.model.parts import set_train_mode
from lvlm.paint_settings import PaintConfig
from lvlm.records import CURVE_FILE
from lvlm.settings import StageConfig
from lvlm.train.batches import BatchStream, StepBatches
from lvlm.train.budgets import TokenBudgets
from lvlm.train.contrast import StepContrast, step_contrast
from lvlm.train.optim import lr_factor
from lvlm.train.progress import Reporter
from lvlm.train.resume import CheckpointTimer, load_checkpoint, save_checkpoint, seed_step
from lvlm.train.strategies import Strategy, share_work

if TYPE_CHECKING:
    from lvlm.model.lvlm import Lvlm
    from lvlm.train.compute import Compute


@dataclass
class Spent:
    """What a stage has consumed so far, over all processes. `seconds` are wall time inside the loop, validation
    apart."""

    step: int = 0
    samples: int = 0
    llm_tokens: int = 0
    supervised_tokens: int = 0
    images: int = 0
    seconds: float = 0.0
    validation_seconds: float = 0.0


@dataclass
class StageLoop:
    """Trains `model` on the steps of the plan of `batches`, from wherever the checkpoint in `folder` stands.

    `fetch` is called before every step and makes its image features ready, outside the time that training takes.
    `validate` returns numbers for the curve; it is called every `validate_steps` steps and after the last one.
    `share` and `train_mode` say how the work is shared and put the model into training, where the model is not one of
    vision and language. `identity` is what a checkpoint must agree with to be resumed, `memory` the settings, beside
    those of the strategy, that decide what memory holds.
    """

    model: nn.Module
    batches: StepBatches
    stream_from: Callable[[int], BatchStream]
    config: StageConfig | PaintConfig
    stage: str
    seed: int
    folder: Path
    identity: Mapping[str, Any]
    compute: Compute
    reporter: Reporter
    memory: Mapping[str, Any] = field(default_factory=dict)
    checkpoint_seconds: float | None = None
    fetch: Callable[[int], None] | None = None
    validate: Callable[[], Mapping[str, float]] | None = None
    share: Callable[[], Strategy] | None = None
    train_mode: Callable[[], Any] | None = None
    spent: Spent = field(default_factory=Spent)
    strategy: Strategy = field(init=False)
    contrast: dict[str, float] = field(default_factory=dict)
    """For the curve: the contrastive term of the last step, where there is one; `loss` has it in its sum."""
    budgets: TokenBudgets = field(init=False)

    def __post_init__(self) -> None:
        self.accelerator = self.compute.accelerator

    def run(self) -> Spent:
        """Train to the end of the plan."""
        stream, curve = self._begin()
        spent, steps, timer = self.spent, self.batches.plan.steps, CheckpointTimer(self.checkpoint_seconds)
        with closing(curve), self.reporter.bar(self.stage, steps, spent.step):
            for step in range(spent.step, steps):
                if self.fetch:
                    self.fetch(step)
                started = time.monotonic()
                loss, stream = self._gradient(stream, step)
                lr, norm = self._update(step)
                loss_value = float(self.accelerator.reduce(loss, "sum"))
                self._check_finite(step, loss_value, norm)
                self._count(step, started)
                stop = self._tell(curve, {"loss": loss_value, "lr": lr, "grad_norm": norm, **self.contrast})
                if validates := self._validates_after(step, steps):
                    curve.append(self._validation())
                # The clock of one decides for all: under ZeRO a state is gathered from every process.
                due = self.accelerator.is_main_process and timer.due(sooner=validates)  # a validation is worth keeping
                if self._anywhere(due or stop is not None) or spent.step == steps:
                    with timer.saving():
                        self._save(curve)
                if stop is not None:
                    raise stop
        return spent

    def _begin(self) -> tuple[BatchStream, _Curve]:
        """Go to where the checkpoint stands, or to the start, where it is tried whether memory suffices."""
        accelerator = self.accelerator
        self.strategy = self.share() if self.share else self._share_work()
        self.folder.mkdir(parents=True, exist_ok=True)
        position: dict[str, Any] = load_checkpoint(self.folder, self.strategy, identity=self.identity) or {}
        curve = _Curve(self.folder / CURVE_FILE, position.pop("curve_bytes", 0), writes=accelerator.is_main_process)
        self.spent = Spent(**position)
        settings = {**self.memory, "processes": accelerator.num_processes, "strategy": self.compute.strategy}
        self.budgets = TokenBudgets(self.folder, self.batches.token_budget, settings)
        stream = self._stream(self.spent.step)
        self._train_mode()
        return (stream if self.spent.step else self._probe(stream)), curve

    def _share_work(self) -> Strategy:
        model, config = self._of_language()
        return share_work(model, config, self.compute)

    def _train_mode(self) -> None:
        if self.train_mode:
            self.train_mode()
        else:
            model, config = self._of_language()
            set_train_mode(model, config.train)

    def _of_language(self) -> tuple[Lvlm, StageConfig]:
        assert isinstance(self.config, StageConfig)
        return cast("Lvlm", self.model), self.config

    def _update(self, step: int) -> tuple[float, float]:
        """Let what learns take its step: (highest learning rate, gradient norm)."""
        try:
            return self.strategy.step(lr_factor(step, steps=self.batches.plan.steps, config=self.config.optim))
        except torch.OutOfMemoryError as error:  # smaller micro-batches would not help
            raise InputError(
                f"Stage {self.stage} has no memory for the optimizer at step {step}. Let fewer parameters learn "
                f"({self.stage}.lora.r), or divide it among several processes with compute.strategy=zero2. ({error})"
            ) from error

    def _check_finite(self, step: int, loss: float, norm: float) -> None:
        if math.isfinite(loss) and math.isfinite(norm):
            return
        ids = ", ".join(entry.id for entry in self.batches.plan.step_entries(step))
        raise Diverged(
            f"The loss ({loss}) or gradient norm ({norm}) of stage {self.stage} is not finite at step {step}, on the "
            f"samples {ids}. Lower {self.stage}.optim.lr, or set {self.stage}.optim.clip. The last checkpoint is kept."
        )

    def _count(self, step: int, started: float) -> None:
        """Add a step that began at `started` to what is spent."""
        samples, spent = self.batches.samples(step), self.spent
        spent.step = step + 1
        spent.samples += len(samples)
        spent.llm_tokens += sum(sample.length for sample in samples)
        spent.supervised_tokens += sum(sample.supervised for sample in samples)
        spent.images += sum(len(sample.images) for sample in samples)
        spent.seconds += time.monotonic() - started

    def _save(self, curve: _Curve) -> None:
        """Write a checkpoint; every process calls this together."""
        state = self.strategy.state()
        if self.accelerator.is_main_process:
            where = {**vars(self.spent), "curve_bytes": curve.flush()}
            save_checkpoint(self.folder, state, position=where, identity=self.identity)

    def _stream(self, step: int) -> BatchStream:
        """A stream from `step` on with the micro-batches that memory has room for."""
        self.batches.token_budget = self.budgets.at(step)
        return self.stream_from(step)

    def _gradient(self, stream: BatchStream, step: int) -> tuple[Tensor, BatchStream]:
        """The gradients of one step, added up over its micro-batches, and this process's share of the loss.

        Where memory does not suffice on any process, all begin the step again with smaller micro-batches, which
        change nothing about it, and keep those: the stream that comes back has them.
        """
        if self.batches.token_budget != self.budgets.at(step):  # lowered here before the checkpoint was gone back to
            stream = self._stream(step)
        while True:
            seed_step(self.seed, self.stage, step, self.accelerator.process_index)
            loss, trouble = torch.zeros((), device=self.accelerator.device), ""
            try:
                contrast = self._contrast(step)
                for batch, images in stream.step(step):
                    loss += self.strategy.backward(contrast.pull(batch) if contrast else batch, images)
                if contrast and self.accelerator.is_main_process:
                    loss += contrast.value
            except torch.OutOfMemoryError as error:
                trouble = str(error)
                self._leave_lockstep(step, trouble)
            if not self._anywhere(bool(trouble)):
                return loss, stream
            stream = self._smaller(step, trouble)

    def _contrast(self, step: int) -> StepContrast | None:
        """The contrastive term of a step; None where there is none."""
        if not isinstance(self.config, StageConfig) or not self.config.contrast.weight:
            return None
        model, config = self._of_language()
        found = step_contrast(model, self.batches, step, config, self.compute)
        self.contrast = {"contrast": found.value}
        return found

    def _probe(self, stream: BatchStream) -> BatchStream:
        """Forward and backward of the longest micro-batch without an update: a lack of memory shows now, not in the
        last hour; the stream with micro-batches that fit.

        Random state needs no care here: every step sets its own.
        """
        while True:
            longest, trouble = self.batches.longest(), ""
            try:
                if longest is not None:
                    self.strategy.probe(*stream.outside(longest))
            except torch.OutOfMemoryError as error:
                trouble = str(error)
                self._leave_lockstep(0, trouble)
            if not self._anywhere(bool(trouble)):
                break
            stream = self._smaller(0, trouble)
        if longest is not None:
            self.reporter.say(f"{self.stage}: longest micro-batch fits: {longest.told}")
        return stream

    def _anywhere(self, here: bool) -> bool:
        """Whether something is so on any process."""
        if self.accelerator.num_processes == 1:
            return here
        flag = torch.tensor(float(here), device=self.accelerator.device)
        return bool(self.accelerator.reduce(flag, "sum") > 0)

    def _smaller(self, step: int, trouble: str) -> BatchStream:
        """A stream from `step` on whose micro-batches are half as large; every process calls this together."""
        self.model.zero_grad(set_to_none=True)
        if self.accelerator.device.type == "cuda":
            torch.cuda.empty_cache()
        budget = self._lower(
            step, trouble or "Another process ran out of memory.", writes=self.accelerator.is_main_process
        )
        self.reporter.say(
            f"{self.stage}, step {step}: out of memory; micro-batches have at most {budget:,} tokens from here on, "
            "and more of them make up a step. The objective stays."
        )
        return self._stream(step)

    def _leave_lockstep(self, step: int, trouble: str) -> None:
        """Under ZeRO the others are in the middle of an exchange and cannot be asked: all end, and begin again with
        smaller micro-batches."""
        if self.strategy.lockstep:
            budget = self._lower(step, trouble, writes=True)  # each that has no room, and all the same
            raise StartAgain(
                f"Stage {self.stage} ran out of memory under ZeRO at step {step}. From there on micro-batches now have "
                f"at most {budget:,} tokens, and the objective stays. Start the same command again, and it goes on "
                f"from its last checkpoint; `--processes` does so by itself. ({trouble})"
            )

    def _lower(self, step: int, trouble: str, *, writes: bool) -> int:
        """Halve the token budget from `step` on; the new one."""
        budget = self.batches.halved(step)
        if budget is None:
            raise InputError(
                f"Stage {self.stage} does not fit into memory, though every micro-batch is a single sample. "
                f"Lower {self.stage}.max_text_tokens, or take a smaller model or more memory. ({trouble})"
            )
        self.budgets.lower(step, budget, writes=writes)
        return budget

    def _validates_after(self, step: int, steps: int) -> bool:
        every = validation_interval(self.config, steps)
        return self.validate is not None and every is not None and ((step + 1) % every == 0 or step + 1 == steps)

    def _validation(self) -> dict[str, Any]:
        assert self.validate is not None
        started = time.monotonic()
        with self.strategy.whole():
            numbers = self.validate()
        self._train_mode()
        self.spent.validation_seconds += time.monotonic() - started
        row = {"stage": self.stage, "step": self.spent.step, "samples": self.spent.samples, **numbers}
        self.reporter.tell("validation", **row)
        return row

    def _tell(self, curve: _Curve, numbers: Mapping[str, float]) -> BaseException | None:
        """The numbers of a step, for the curve and for whoever watches; what the latter raised to stop the run, which
        is to wait until the step is saved."""
        spent, steps = self.spent, self.batches.plan.steps
        speed = spent.llm_tokens / max(spent.seconds, 1e-9)
        row = {"stage": self.stage, "step": spent.step, "samples": spent.samples, **numbers}
        curve.append(row | {"tokens_per_second": round(speed, 1), "seconds": round(spent.seconds, 3)})
        self.reporter.advance(spent.step, f"loss {numbers['loss']:.3f}  {spent.samples} samples  {speed:,.0f} tokens/s")
        seconds_left = spent.seconds / spent.step * (steps - spent.step)
        try:
            self.reporter.tell("step", **row, steps=steps, tokens_per_second=speed, seconds_left=seconds_left)
        except BaseException as stop:
            return stop
        return None


def validation_interval(config: StageConfig | PaintConfig, steps: int) -> int | None:
    """`validate_every` in steps: below 1 a fraction of the stage, from 1 on a number of steps, None is off."""
    if config.validate_every is None:
        return None
    return max(1, round(config.validate_every * steps) if config.validate_every < 1 else int(config.validate_every))


class _Curve:
    """`curve.jsonl`, one row per step and per validation. On resume it is cut to the rows that the checkpoint knows."""

    def __init__(self, path: Path, keep_bytes: int, *, writes: bool) -> None:
        self._file = open(path if writes else os.devnull, "ab")  # noqa: SIM115  closed by close()
        if writes:
            self._file.truncate(keep_bytes)
            self._file.seek(0, os.SEEK_END)

    def append(self, row: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
        self._file.flush()

    def flush(self) -> int:
        """Bytes that are safely on disk."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._file.tell()

    def close(self) -> None:
        self._file.close()
