"""Where and how a run computes: device, precision, threads and processes as they really are. Called by `lvlm.run`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType, GradientAccumulationPlugin, InitProcessGroupKwargs

from lvlm.config import ComputeConfig
from lvlm.errors import InputError

STRATEGIES = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)
"""What accelerate may be launched with: whole copies of the model, whose gradients the loop adds up itself."""


@dataclass(frozen=True)
class Compute:
    """The settings `auto` resolved, and the accelerator that carries them out."""

    accelerator: Accelerator
    precision: str
    threads: int
    threads_asked: int | None
    """`compute.threads`; None left the number to the machine."""

    @property
    def device(self) -> torch.device:
        device: torch.device = self.accelerator.device
        return device

    def identity(self) -> dict[str, Any]:
        """What tells one result from another: stages that differ here are not shared.

        A number of threads that nobody asked for is left out: it can move last bits, and differs between a sweep of
        one worker and of two, which are to share their stages.
        """
        return {"device": self.device.type, "precision": self.precision, "threads": self.threads_asked}

    def describe(self) -> dict[str, Any]:
        """What really runs, for the record."""
        accelerator = self.accelerator
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type
        return {
            "device": name,
            "precision": self.precision,
            "threads": self.threads,
            "processes": accelerator.num_processes,
            "strategy": accelerator.distributed_type.value,
        }


@contextmanager
def compute(config: ComputeConfig) -> Iterator[Compute]:
    """Set up device, precision and threads; the number of threads is put back afterwards."""
    threads_before = torch.get_num_threads()
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    use_cuda = torch.cuda.is_available() if config.device == "auto" else config.device == "cuda"
    if use_cuda and not torch.cuda.is_available():
        raise InputError("compute.device is cuda, but torch sees no GPU here. Set compute.device=auto or cpu.")
    precision = ("bf16" if use_cuda else "fp32") if config.precision == "auto" else config.precision
    _forget_settings(cpu=not use_cuda)
    try:
        accelerator = Accelerator(
            cpu=not use_cuda,
            mixed_precision="bf16" if precision == "bf16" else "no",
            # Else the environment (ACCELERATE_GRADIENT_ACCUMULATION_STEPS) could divide every loss once more.
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
            # One may wait for another worker's stage for as long as it trains.
            kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(days=7))],
        )
        _check_strategy(accelerator)
        yield Compute(accelerator, precision, threads=torch.get_num_threads(), threads_asked=config.threads)
    finally:
        torch.set_num_threads(threads_before)


def _check_strategy(accelerator: Accelerator) -> None:
    if accelerator.distributed_type not in STRATEGIES:
        raise InputError(
            f"Accelerate was launched with the strategy {accelerator.distributed_type.value}, which this trainer does "
            f"not know; it knows {', '.join(strategy.value for strategy in STRATEGIES)}. Launch it with torchrun or "
            "`accelerate launch --multi_gpu`, without FSDP or DeepSpeed in accelerate's settings (`accelerate env`)."
        )


def _forget_settings(*, cpu: bool) -> None:
    """Accelerate keeps precision and device for the life of the process; the next run of this process may want
    others."""
    AcceleratorState._reset_state()
    known = PartialState._shared_state
    if known and PartialState().num_processes == 1 and (PartialState().device.type == "cpu") != cpu:
        PartialState._reset_state()
