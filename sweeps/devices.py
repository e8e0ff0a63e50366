"""The cores and GPUs of this machine, divided among local workers. Used by `sweeps.crew`, `launcher` and `planner`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from lvlm.errors import InputError
from sweeps.plan import PlannedCell

MAX_WORKERS = 8
DRIVERS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
"""Where none of these is (NVIDIA, AMD, Windows' Linux) there is no GPU, and torch, slow to load, need not be asked."""


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def visible_gpus() -> tuple[str, ...]:
    """The GPUs that torch sees here, each as CUDA_VISIBLE_DEVICES names it."""
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if allowed == "" or not any(Path(file).exists() for file in DRIVERS):
        return ()
    import torch

    number = torch.cuda.device_count()
    names = [str(index) for index in range(number)] if allowed is None else allowed.split(",")
    return tuple(name.strip() for name in names[:number])


def usable_gpus(cells: Sequence[PlannedCell]) -> tuple[str, ...]:
    """The GPUs for the workers on `cells`; none where all of these compute on the CPU. Raises `InputError` where a cell
    asks for a GPU and there is none."""
    devices = [cell.config["compute"]["device"] for cell in cells]
    gpus = visible_gpus() if set(devices) - {"cpu"} else ()
    if "cuda" in devices and not gpus:
        hidden = ", as CUDA_VISIBLE_DEVICES hides them" if os.environ.get("CUDA_VISIBLE_DEVICES") == "" else ""
        raise InputError(
            f"{devices.count('cuda')} of {len(cells)} cells to run ask for a GPU (compute.device=cuda), and torch sees "
            f"none here{hidden}. Launch where there is one, on a cluster with --cluster slurm, or with "
            "compute.device=auto, which takes the CPU where there is no GPU."
        )
    return gpus


def default_workers(cells: int, gpus: int = 0, *, on_cluster: bool = False) -> int:
    """One worker per GPU; without GPUs one per core, but at most eight, and on a cluster eight. No more than there are
    cells to run."""
    here = MAX_WORKERS if on_cluster else gpus or min(cores(), MAX_WORKERS)
    return max(1, min(here, cells))


def environments(gpus: Sequence[str], workers: int, *, cores: int) -> list[dict[str, str]]:
    """The environment variables of each worker. The threads of all together are the cores, as more would only fight
    for them. GPUs are divided: each worker sees its own, or one that it shares where there are more workers than
    GPUs."""
    found = []
    for index in range(workers):
        variables = {"OMP_NUM_THREADS": str(max(1, cores // workers))}
        if gpus:
            first, last = index * len(gpus) // workers, (index + 1) * len(gpus) // workers
            variables["CUDA_VISIBLE_DEVICES"] = ",".join(gpus[first : max(last, first + 1)])
        found.append(variables)
    return found


def gpu_line(gpus: int, workers: int) -> str:
    """How the GPUs are divided, for a reader; empty without GPUs."""
    if not gpus:
        return ""
    if workers > gpus:
        return f"{gpus} GPU(s) for {workers} workers: up to {-(-workers // gpus)} share one."
    if workers < gpus:
        return f"{gpus} GPUs for {workers} worker(s): a cell computes on one, so --workers {gpus} would use all."
    return f"{gpus} GPU(s), one for each worker."
