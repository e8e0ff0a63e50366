"""Where and how a run computes: device, precision, threads and processes as they really are. Called by `lvlm.run`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DeepSpeedPlugin, DistributedType, GradientAccumulationPlugin, InitProcessGroupKwargs

from lvlm.errors import InputError
from lvlm.processes import process_count
from lvlm.settings import ComputeConfig

ZERO_STAGES = {"zero2": 2, "zero3": 3}
ASKED_OF_DEEPSPEED = {
    "CONFIG_FILE": "a DeepSpeed config file",
    "OFFLOAD_OPTIMIZER_DEVICE": "an optimizer offloaded by DeepSpeed",
    "OFFLOAD_PARAM_DEVICE": "weights offloaded by DeepSpeed",
}
"""What `accelerate launch` can ask of DeepSpeed beyond the stage, by the variables in which it does so."""
LAUNCHED = "ACCELERATE_USE_DEEPSPEED"
"""What `accelerate launch` says of DeepSpeed, in the environment."""


@dataclass(frozen=True)
class Compute:
    """The settings `auto` resolved, and the accelerator that carries them out."""

    accelerator: Accelerator
    precision: str
    threads: int
    threads_asked: int | None
    """`compute.threads`; None left the number to the machine."""
    zero_stage: int = 0
    """2 or 3 where DeepSpeed divides the work; 0 where every process has a whole copy."""

    @property
    def device(self) -> torch.device:
        device: torch.device = self.accelerator.device
        return device

    def autocast(self) -> AbstractContextManager[Any]:
        """Inside, matrix products are computed in the run's precision."""
        return torch.autocast(self.device.type, torch.bfloat16) if self.precision == "bf16" else nullcontext()

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
            "strategy": self.strategy,
        }

    def line(self) -> str:
        """What really runs, for a reader."""
        now = self.describe()
        together = f"{now['processes']} processes, " if now["processes"] > 1 else ""
        return f"on {now['device']} in {now['precision']}, threads: {now['threads']}, {together}{now['strategy']}"

    @property
    def strategy(self) -> str:
        """What really runs: `zero2`, `zero3`, `ddp`, or `one process`."""
        if self.accelerator.distributed_type == DistributedType.DEEPSPEED:
            return f"zero{self.accelerator.deepspeed_plugin.zero_stage}"
        return "ddp" if self.accelerator.num_processes > 1 else "one process"


@contextmanager
def compute(config: ComputeConfig) -> Iterator[Compute]:
    """Set up device, precision and threads; the number of threads and what accelerate was launched with are put back
    afterwards, for the next run of this process."""
    threads_before, launched = torch.get_num_threads(), os.environ.pop(LAUNCHED, None)
    try:
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        use_cuda = torch.cuda.is_available() if config.device == "auto" else config.device == "cuda"
        if use_cuda and not torch.cuda.is_available():
            raise InputError("compute.device is cuda, but torch sees no GPU here. Set compute.device=auto or cpu.")
        precision = ("bf16" if use_cuda else "fp32") if config.precision == "auto" else config.precision
        if not use_cuda:
            os.environ["DS_ACCELERATOR"] = "cpu"  # else DeepSpeed warns of what it finds, whoever imports it
        stage = _zero_stage(config.strategy, by_accelerate=launched is not None and launched.lower() == "true")
        _forget_settings(cpu=not use_cuda, zero=stage > 0)
        accelerator = Accelerator(
            # Told to use the CPU, accelerate would leave DeepSpeed out without a word.
            cpu=None if stage else not use_cuda,
            mixed_precision="bf16" if precision == "bf16" else "no",
            deepspeed_plugin=_deepspeed(stage, bf16=precision == "bf16", cpu=not use_cuda) if stage else None,
            # Else the environment (ACCELERATE_GRADIENT_ACCUMULATION_STEPS) could divide every loss once more.
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
            # One may wait for another worker's stage for as long as it trains.
            kwargs_handlers=[
                InitProcessGroupKwargs(
                    timeout=timedelta(days=7), **({"backend": "gloo"} if stage and not use_cuda else {})
                )
            ],
        )
        if stage:  # else transformers would divide every model that it loads, before its weights are drawn or read
            from transformers.integrations import unset_hf_deepspeed_config

            unset_hf_deepspeed_config()
        found = Compute(accelerator, precision, torch.get_num_threads(), config.threads, zero_stage=stage)
        _check_strategy(found, use_cuda=use_cuda)
        yield found
    finally:
        torch.set_num_threads(threads_before)
        os.environ.pop(LAUNCHED, None)  # accelerate says so too, where it is told to use DeepSpeed
        if launched is not None:
            os.environ[LAUNCHED] = launched


def _zero_stage(strategy: str, *, by_accelerate: bool) -> int:
    """The stage of ZeRO that the setting or the launcher asks for; 0 for whole copies."""
    launched = 0
    if by_accelerate:
        launched = int(os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2"))
        asked = [
            name for name in ASKED_OF_DEEPSPEED if os.environ.get(f"ACCELERATE_DEEPSPEED_{name}", "none") != "none"
        ]
        if asked:
            what = " and ".join(ASKED_OF_DEEPSPEED[name] for name in asked)
            raise InputError(
                f"Accelerate was launched with {what}, which this trainer would have to leave aside. Launch without it "
                "(`torchrun`, `deepspeed`, or `accelerate launch` without DeepSpeed) and set compute.strategy to zero2 "
                "or zero3."
            )
    wanted = launched if strategy == "auto" else ZERO_STAGES.get(strategy, 0)
    if launched and wanted != launched:
        raise InputError(
            f"compute.strategy is {strategy} but accelerate was launched with ZeRO stage {launched}. "
            "Set compute.strategy=auto, or launch without DeepSpeed."
        )
    if wanted not in (0, *ZERO_STAGES.values()):
        raise InputError(f"Accelerate was launched with ZeRO stage {wanted}; this trainer knows stages 2 and 3.")
    return wanted if process_count() > 1 else 0  # one process has nobody to divide with


def _deepspeed(stage: int, *, bf16: bool, cpu: bool) -> DeepSpeedPlugin:
    """Settings that leave the objective alone: the loss divides and the loop accumulates, not DeepSpeed."""
    if cpu:
        import deepspeed

        # A C++ extension for sums in shared memory: it compiles for a minute, and a process that is killed meanwhile
        # leaves a lock on which all later ones wait for ever. Without it gloo adds up.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    settings = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 0.0,
        "zero_optimization": {"stage": stage, "overlap_comm": not cpu},
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": bf16},
        "data_types": {"grad_accum_dtype": "fp32"},
    }
    return DeepSpeedPlugin(hf_ds_config=settings, zero3_init_flag=False)


def _check_strategy(compute: Compute, *, use_cuda: bool) -> None:
    found, accelerator = compute.strategy, compute.accelerator
    wanted = {0: "ddp", 2: "zero2", 3: "zero3"}[compute.zero_stage]
    copies = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU, DistributedType.DEEPSPEED)
    if accelerator.distributed_type not in copies or (accelerator.num_processes > 1 and found != wanted):
        raise InputError(
            f"compute.strategy asks for {wanted}, but accelerate runs {accelerator.distributed_type.value}. "
            "Launch with torchrun or `python -m lvlm train ... --processes N`, without FSDP in accelerate's settings "
            "(`accelerate env`)."
        )
    if (accelerator.device.type == "cuda") != use_cuda:
        raise InputError(
            f"The run computes on {accelerator.device.type}, not where compute.device says. Under ZeRO, hide the GPUs "
            "(CUDA_VISIBLE_DEVICES=) to compute on the CPU."
        )


def _forget_settings(*, cpu: bool, zero: bool) -> None:
    """Accelerate keeps precision, device and DeepSpeed for the life of the process; the next run of this process may
    want others."""
    AcceleratorState._reset_state()
    if not PartialState._shared_state:
        return
    known = PartialState()
    other_device = known.num_processes == 1 and (known.device.type == "cpu") != cpu
    if other_device or (known.distributed_type == DistributedType.DEEPSPEED) != zero:
        PartialState._reset_state()
