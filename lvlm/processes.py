"""Starts a command as several processes of one machine that work together, through torch's launcher. Called by
`python -m lvlm train --processes N` and `evaluate --processes N`."""

from __future__ import annotations

import logging
import os
import signal
import sys
import uuid
from collections.abc import Callable, Sequence

from lvlm.errors import InputError

AFTER_THE_FIRST = 20.0
"""Seconds by which a process other than the first holds back its error: most often all have the same, and the launcher
ends the others when one ends."""
STARTS_AGAIN = 75
"""The exit status of a process whose command goes on where it is started again (EX_TEMPFAIL of sysexits.h)."""


def process_index() -> int:
    """The number of this process among those that work together; 0 alone. Every launcher sets RANK."""
    return int(os.environ.get("RANK", "0"))


def process_count() -> int:
    """How many processes work together. Every launcher sets WORLD_SIZE."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def start(processes: int, arguments: Sequence[str]) -> int:
    """Run `python -m lvlm` with `arguments` in so many processes; the exit status of the one that failed first, or 0,
    or 128 and the number of the signal that ended this one.

    A process that ends with an error ends the others; where it is `STARTS_AGAIN`, all are started again. Raises
    `KeyboardInterrupt` after Ctrl-C.
    """
    import torch
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    if torch.cuda.is_available() and processes > torch.cuda.device_count():
        raise InputError(
            f"--processes {processes} needs as many GPUs, and torch sees {torch.cuda.device_count()} here. Give a "
            "smaller number, or hide the GPUs (CUDA_VISIBLE_DEVICES=) to compute on the CPU."
        )
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # the processes say what went wrong
    settings = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
    )

    def launch() -> None:
        elastic_launch(settings, sys.executable)("-m", "lvlm", *arguments)

    while (status := _ended(launch)) == STARTS_AGAIN:
        pass
    return status


def _ended(launch: Callable[[], None]) -> int:
    """The exit status of one launch of the processes."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    try:
        launch()
    except ChildFailedError as error:
        if any(failure.exitcode == STARTS_AGAIN for failure in error.failures.values()):
            return STARTS_AGAIN
        status: int = error.get_first_failure()[1].exitcode
        return status if status > 0 else 1
    except SignalException as stopped:  # the processes have been ended
        if stopped.sigval == signal.SIGINT:
            raise KeyboardInterrupt from None
        return 128 + int(stopped.sigval)
    return 0
