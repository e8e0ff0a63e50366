"""Workers as jobs of a Slurm cluster, submitted through submitit: one array of pull workers, each of which goes back to
Slurm's queue when its time is over or its machine is taken away. Used by `sweeps.launcher`.

How the cells stand is read from the study, never from Slurm, whose records may be off. Slurm's queue is asked for one
thing: whether jobs of this study are still in it.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any

from submitit import SlurmExecutor
from submitit.core.utils import FailedJobError, FailedSubmissionError
from submitit.helpers import Checkpointable

from lvlm.errors import InputError
from sweeps.crew import QUICK_DEATHS, QUICK_SECONDS, command_of, python_path
from sweeps.devices import cores
from sweeps.exits import EXIT_FENCED, ORDERLY_EXITS
from sweeps.plan import Place, Plan
from sweeps.queue import CellState, count

DEFAULTS: dict[str, Any] = {"timeout_min": 240, "signal_delay_s": 120}
ALIASES = {"timeout_min": "time", "mem_gb": "mem"}
"""Names that say their unit -> those of submitit's Slurm executor."""
WHOLE_NUMBERS = ("timeout_min", "signal_delay_s", "array_parallelism", "cpus_per_task")
OURS = {"additional_parameters", "job_name", "ntasks_per_node", "nodes", "num_gpus", "srun_args", "stderr_to_stdout"}
OURS |= {"teardown", "time", "use_srun"}
"""Parameters of submitit that are not for a user here: a worker is one process."""
SBATCH = "sbatch."
PATIENCE_SHARE = 0.75
"""Of the time between Slurm's signal and the end, so much is for the step of training that is under way; then the
worker leaves at once, with the checkpoint that there is."""
EARLY_SECONDS = 60
"""Slurm may send its signal so much earlier than asked for."""
LOOK_SECONDS = 30.0
"""How often Slurm's queue is looked at."""


def slurm_options(texts: Sequence[str]) -> dict[str, Any]:
    """What `KEY=VALUE` texts ask of Slurm, over the defaults. Raises `InputError` for a key that neither submitit nor
    this module knows, and for several GPUs."""
    if missing := [program for program in ("sbatch", "srun", "squeue") if shutil.which(program) is None]:
        raise InputError(
            f"--cluster slurm needs Slurm's programs, and {', '.join(missing)} cannot be found here. Launch from a "
            "login node of the cluster, or leave --cluster away to work on this machine."
        )
    known = (SlurmExecutor._valid_parameters() | ALIASES.keys()) - OURS
    options: dict[str, Any] = dict(DEFAULTS)
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or (key not in known and not re.fullmatch(rf"{re.escape(SBATCH)}[a-z][a-z-]+", key)):
            raise InputError(
                f"The cluster option '{text}' is not understood. Options are KEY=VALUE with one of "
                f"{', '.join(sorted(known))}; every other option of sbatch is {SBATCH}NAME=VALUE, such as "
                f"{SBATCH}reservation=maintenance."
            )
        if key == "setup":
            options[key] = [*options.get(key, []), value]
        else:
            options[key] = _number(key, value) if key in (*WHOLE_NUMBERS, "mem_gb") else value == "true" or value
    _one_gpu(options)
    minutes, delay = options["timeout_min"], options["signal_delay_s"]
    if delay + EARLY_SECONDS >= 60 * minutes:
        raise InputError(
            f"With timeout_min={minutes} and signal_delay_s={delay} no time is left to work: "
            f"Slurm's signal comes so long before the end, and up to {EARLY_SECONDS} s earlier."
        )
    return options


def _number(key: str, value: str) -> int | float:
    kind = float if key == "mem_gb" else int
    try:
        number = kind(value)
    except ValueError:
        number = 0
    if number <= 0:
        raise InputError(f"The cluster option {key} is a number above 0, not '{value}'.")
    return number


def _one_gpu(options: Mapping[str, Any]) -> None:
    """A cell is run by one process, which computes on one GPU: more of them in a job would lie idle."""
    for key in ("gpus_per_node", "gpus_per_task", "gres", f"{SBATCH}gpus"):
        asked = str(options.get(key, ""))
        number = re.search(r"(?:gpu\b.*:|^|:)(\d+)$", asked)
        if number and int(number[1]) > 1 and (key != "gres" or "gpu" in asked):
            raise InputError(
                f"{key}={asked} gives a job several GPUs. A worker is one job and runs one cell at a time on one GPU, "
                f"so the others would lie idle: ask for one, and for more workers (--workers {number[1]})."
            )


class PullWorker(Checkpointable):
    """What a job runs: a worker as a process of its own, and another one where it dies.

    It keeps nothing, as all that is to be done stands in the study. Slurm's signal before the time limit or before it
    takes the machine away (SIGUSR2) is passed on: the worker finishes its step of training, saves the checkpoint and
    gives its cell back. Then submitit puts the job back into the queue.
    """

    def __init__(self, command: Sequence[str], *, patience_seconds: float) -> None:
        self.command = list(command)
        self.patience_seconds = patience_seconds

    def __call__(self, number: int) -> int:
        """Work until nothing is left to do; the exit status of the worker."""
        requeue: Any = signal.getsignal(signal.SIGUSR2)  # submitit's, which ends this process too
        self._told: set[int] = set()
        self._process: subprocess.Popen[bytes] | None = None
        for told in (signal.SIGUSR2, signal.SIGTERM):
            signal.signal(told, self._pass_on)
        threads = os.environ.get("SLURM_CPUS_PER_TASK") or str(cores())
        quick_deaths = 0
        while not self._told:
            started = time.monotonic()
            self._process = subprocess.Popen(self.command, env={**os.environ, "OMP_NUM_THREADS": threads})
            if self._told:  # just before it was there to be told
                self._process.terminate()
            status = self._wait(self._process)
            if self._told:
                break
            if status in ORDERLY_EXITS:
                return status
            is_quick = status > 0 and status != EXIT_FENCED and time.monotonic() - started < QUICK_SECONDS
            quick_deaths = quick_deaths + 1 if is_quick else 0
            if quick_deaths == QUICK_DEATHS:
                raise RuntimeError(f"Workers end at once (status {status}); what they say stands above.")
            print(f"the worker ended with status {status}; another one takes over its cell", flush=True)
        if signal.SIGUSR2 in self._told:
            requeue(signal.SIGUSR2, None)
        # Slurm ends this job, and it is for Slurm to say whether it comes back: a job that ends by itself would not.
        time.sleep(self.patience_seconds)
        return 0

    def __getstate__(self) -> dict[str, Any]:
        return {"command": self.command, "patience_seconds": self.patience_seconds}

    def _pass_on(self, number: int, _frame: FrameType | None) -> None:
        self._told.add(number)
        if self._process is not None:
            self._process.send_signal(number)

    def _wait(self, process: subprocess.Popen[bytes]) -> int:
        deadline: float | None = None
        while True:
            try:
                return process.wait(timeout=0.5)
            except subprocess.TimeoutExpired:
                if self._told and deadline is None:
                    deadline = time.monotonic() + self.patience_seconds
                if deadline is not None and time.monotonic() > deadline:
                    process.terminate()
                    deadline = time.monotonic() + self.patience_seconds


@dataclass(frozen=True)
class _Job:
    """A worker in Slurm's queue: the id of its array, how it stands there and why it waits."""

    array: str
    state: str
    reason: str


class SlurmCrew:
    """N workers on one plan, as jobs. They outlive the launcher."""

    keeps_on = True

    def __init__(self, place: Place, plan: Plan, *, workers: int, since: float, options: Mapping[str, Any]) -> None:
        self.place = place
        self.plan = plan
        self.workers = workers
        self.since = since
        self.options = dict(options)
        self.folder = place.logs / "slurm" / plan.version
        """Logs, scripts and pickles of the jobs; `ID_submission.sh` says which there are."""
        self._looked = time.monotonic()
        self._seen: list[_Job] | None = None
        """The workers in Slurm's queue when it was last looked at; None where it did not answer."""
        self._said = ""

    @property
    def jobs(self) -> list[str]:
        """Ids of all jobs that were ever submitted for this plan."""
        ids = (path.name.partition("_")[0] for path in self.folder.glob("*_submission.sh"))
        return sorted({text for text in ids if text.isdecimal()}, key=int)

    def earlier(self, _states: Mapping[str, CellState]) -> int:
        """How many workers of earlier launches run or wait in Slurm's queue."""
        return len(self._look() or ())

    def start(self, number: int) -> None:
        """Submit so many workers as one array. Raises `InputError` where Slurm refuses it."""
        if number <= 0:
            return
        executor = SlurmExecutor(self.folder, max_num_timeout=1_000_000)  # a job may come back as often as it likes
        executor.update_parameters(**self._parameters())
        command = [*command_of(self.plan, self.since), "--home", str(self.place.home)]
        job = PullWorker(command, patience_seconds=PATIENCE_SHARE * self.options["signal_delay_s"])
        try:
            executor.map_array(job, range(number))
        except (FailedJobError, FailedSubmissionError) as error:
            raise InputError(f"Slurm does not take the workers: {_refusal(error)}") from error
        self._look()

    def about(self) -> list[str]:
        """What was started, for a reader."""
        jobs, time_limit = ", ".join(self._current()) or "-", self.options["timeout_min"]
        lines = [
            f"{self.workers} worker(s) in Slurm, {time_limit} minutes at a time: job {jobs}",
            f"their logs: {self.folder}/*_log.out",
        ]
        wants_gpu = any(cell.config["compute"]["device"] == "cuda" for cell in self.plan.cells)
        if wants_gpu and not any("gpu" in f"{key}={value}" for key, value in self.options.items()):
            lines.append("cells ask for a GPU (compute.device=cuda), and their jobs do not (gpus_per_node=1)")
        return lines

    def tend(self) -> list[str]:
        """Why the jobs wait, where none runs: a line, when it is new. Their workers they replace themselves."""
        if time.monotonic() - self._looked < LOOK_SECONDS:
            return []
        jobs = self._look() or []
        reasons = "" if any(job.state == "RUNNING" for job in jobs) else ", ".join(sorted({job.reason for job in jobs}))
        is_new, self._said = reasons != self._said, reasons
        return [f"{len(jobs)} job(s) wait in Slurm's queue: {reasons}"] if reasons and is_new else []

    def is_working(self, states: Mapping[str, CellState]) -> bool:
        """Whether cells are left and anybody works on them, or waits in Slurm's queue to do so."""
        numbers = count(states.values())
        return bool(numbers["running"] or (self._left(states) and self._seen != []))

    def ended(self, states: Mapping[str, CellState]) -> list[str]:
        """What a reader is to know when `is_working` has become false."""
        if not (left := self._left(states)):
            return []
        return [f"No job is left in Slurm's queue, and {left} cell(s) are not done. Logs: {self.folder}"]

    def _left(self, states: Mapping[str, CellState]) -> int:
        """Cells that wait, and those of arms that a search has still to propose."""
        return count(states.values())["waiting"] + self.plan.size - len(self.plan.cells)

    def parting(self) -> list[str]:
        """How to go on without the launcher."""
        study = self.plan.command + self.place.home_option
        return [
            f"The jobs run on. Watch them with:\n  python -m sweeps status {study} --watch",
            f"At the end, launch again for the results. Cancel the jobs with:\n  scancel {' '.join(self._current())}",
        ]

    def stop(self) -> None:
        """The jobs run on."""

    def _parameters(self) -> dict[str, Any]:
        given = {ALIASES.get(key, key): value for key, value in self.options.items() if not key.startswith(SBATCH)}
        if "mem_gb" in self.options:
            given["mem"] = f"{round(self.options['mem_gb'] * 1024)}MB"
        if "cpus_per_task" in given:  # what sbatch is told, srun does not hear
            given["srun_args"] = [f"--cpus-per-task={given['cpus_per_task']}"]
        more = {key.removeprefix(SBATCH): value for key, value in self.options.items() if key.startswith(SBATCH)}
        return given | {
            "job_name": self._name,
            "setup": [f"export PYTHONPATH={shlex.quote(python_path())}", *given.get("setup", [])],
            "stderr_to_stdout": True,
            "additional_parameters": {"requeue": True, **more},
        }

    @property
    def _name(self) -> str:
        return f"sweep-{self.plan.study}"

    def _current(self) -> list[str]:
        """Ids of the jobs that are in Slurm's queue; all where it does not answer."""
        return self.jobs if self._seen is None else sorted({job.array for job in self._seen}, key=int)

    def _look(self) -> list[_Job] | None:
        """This plan's workers in Slurm's queue; None where it does not answer."""
        command = ["squeue", "--me", "--array", "--noheader", f"--name={self._name}", "--format=%F %T %r"]
        self._looked, self._seen, ours = time.monotonic(), None, set(self.jobs)
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            asked = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
            jobs = [_Job(*line.split(maxsplit=2)) for line in asked.stdout.splitlines()]
            self._seen = [job for job in jobs if job.array in ours]
        return self._seen


def _refusal(error: Exception) -> str:
    """What sbatch said, out of what submitit makes of it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if "sbatch: error" in line), lines[-1] if lines else "it does not say why")
