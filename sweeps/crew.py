"""Local workers as processes of their own: started, watched, replaced when killed, stopped. Used by `launcher`."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lvlm.errors import InputError
from sweeps.devices import cores, environments, gpu_line
from sweeps.exits import EXIT_DISK_FULL, EXIT_FENCED, ORDERLY_EXITS
from sweeps.identity import is_alive
from sweeps.plan import Place, Plan
from sweeps.queue import CellState

QUICK_SECONDS = 15.0
QUICK_DEATHS = 3
"""Workers that end by themselves so soon, and so often with none in between that lives longer, cannot start at all."""
PATIENCE_SECONDS = 15.0


def python_path() -> str:
    """PYTHONPATH for a worker: this package first."""
    package_root = str(Path(__file__).resolve().parents[1])
    return os.pathsep.join([package_root, *filter(None, [os.environ.get("PYTHONPATH")])])


@dataclass
class _Member:
    process: subprocess.Popen[bytes]
    started: float
    log: Path
    settled: bool = False
    """Whether it has outlived `QUICK_SECONDS`."""


class Crew:
    """N workers on one plan, as processes of this machine that divide its cores and `gpus`."""

    keeps_on = False

    def __init__(self, place: Place, plan: Plan, *, workers: int, since: float, gpus: Sequence[str] = ()) -> None:
        self.place = place
        self.plan = plan
        self.workers = workers
        self.since = since
        self.gpus = tuple(gpus)
        self._environments = environments(gpus, workers, cores=cores())
        self._members: dict[int, _Member] = {}
        self._quick_deaths = 0

    def earlier(self, states: Mapping[str, CellState]) -> int:
        """How many workers of earlier launches are at work on this machine."""
        owners = [state.owner for state in states.values() if state.state == "running" and state.owner]
        return len({owner["pid"] for owner in owners if is_alive(owner)})

    def start(self, number: int | None = None) -> None:
        """Start all workers, or fewer, but one at least."""
        for index in range(self.workers if number is None else max(1, number)):
            self._members[index] = self._start(index)

    def about(self) -> list[str]:
        """What was started, for a reader."""
        threads = self._environments[0]["OMP_NUM_THREADS"]
        started = f"{self.workers} worker(s) with {threads} thread(s) each; their logs: {self.place.logs}"
        return [started, *filter(None, [gpu_line(len(self.gpus), self.workers)])]

    def tend(self) -> list[str]:
        """Replace workers that died; what happened, in lines. Raises `InputError` when workers cannot start at all."""
        said = []
        for index, member in list(self._members.items()):
            code = member.process.poll()
            if code is None:
                if not member.settled and time.monotonic() - member.started >= QUICK_SECONDS:
                    member.settled, self._quick_deaths = True, 0
                continue
            del self._members[index]
            if code == EXIT_DISK_FULL:
                said.append(f"worker {index} stopped: there is no room left on the disk ({member.log})")
            if code in ORDERLY_EXITS:
                continue
            if code > 0 and code != EXIT_FENCED and time.monotonic() - member.started < QUICK_SECONDS:
                self._quick_deaths += 1
                if self._quick_deaths >= QUICK_DEATHS:
                    raise InputError(
                        f"Workers end at once (status {code}). The end of {member.log}:\n{_tail(member.log)}"
                    )
            how = f"was killed (signal {-code})" if code < 0 else f"ended with status {code}"
            said.append(f"worker {index} {how}; another one takes over its cell ({member.log})")
            self._members[index] = self._start(index)
        return said

    def is_working(self, _states: Mapping[str, CellState]) -> bool:
        """Whether any worker is left."""
        return bool(self._members)

    def ended(self, _states: Mapping[str, CellState]) -> list[str]:
        """Nothing but what the summary says."""
        return []

    def parting(self) -> list[str]:
        """Nothing goes on without the launcher."""
        return []

    def stop(self) -> None:
        """Ask every worker to give its cell back and leave; those that do not are killed, and all are at a second
        Ctrl-C."""
        running = [member.process for member in self._members.values() if member.process.poll() is None]
        for process in running:
            _signal(process, signal.SIGTERM)
        deadline = time.monotonic() + PATIENCE_SECONDS
        for process in running:
            try:
                process.wait(timeout=max(0.1, deadline - time.monotonic()))
            except (subprocess.TimeoutExpired, KeyboardInterrupt) as reason:
                deadline = time.monotonic() if isinstance(reason, KeyboardInterrupt) else deadline
                _signal(process, signal.SIGKILL)
                process.wait()
        self._members.clear()

    def _start(self, index: int) -> _Member:
        log = self.place.logs / f"worker-{index}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        environment = {
            **os.environ,
            **self._environments[index],
            "PYTHONPATH": python_path(),
            "LVLM_HOME": str(self.place.home),
        }
        with open(log, "ab") as output:
            process = subprocess.Popen(
                command_of(self.plan, self.since),
                stdout=output,
                stderr=output,
                stdin=subprocess.DEVNULL,
                env=environment,
                start_new_session=True,
            )
        return _Member(process, time.monotonic(), log)


def command_of(plan: Plan, since: float) -> list[str]:
    """What starts a worker on this plan; `since` as in `sweeps.worker.Worker`."""
    return [
        *(sys.executable, "-m", "sweeps", "worker", plan.study, *plan.overrides),
        *("--version", plan.version, "--since", str(since)),
    ]


def _signal(process: subprocess.Popen[bytes], number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _tail(path: Path, lines: int = 12) -> str:
    return "\n".join(path.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])
