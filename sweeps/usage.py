"""CPU, memory and GPU while a cell runs: samples in its run folder, sent to the tracker afterwards. Used by `worker`,
`metrics`.

Names are those under which MLflow's page of a run shows its system metrics.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]

USAGE_FILE = "system.jsonl"
"""One JSON object per sample: `time` (seconds since 1970) and numbers. A cell that is resumed goes on writing it."""
FIRST_SECONDS, EVERY_SECONDS = 1.0, 10.0
MEGA = 1e6


class Usage:
    """Samples in a thread while the block runs, and once at its end, so that the shortest cell has one."""

    def __init__(self, folder: Path, *, every_seconds: float = EVERY_SECONDS) -> None:
        self._path = folder / USAGE_FILE
        self._every = every_seconds
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="usage", daemon=True)
        self._process = psutil.Process()
        self._gpus = _gpus()

    def __enter__(self) -> Usage:
        psutil.cpu_percent()  # counts from here on
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._sample()

    def _run(self) -> None:
        wait = min(FIRST_SECONDS, self._every)
        while not self._over.wait(wait):
            self._sample()
            wait = self._every

    def _sample(self) -> None:
        # Whatever cannot be measured or written costs a sample and no training.
        with contextlib.suppress(OSError, psutil.Error):
            line = json.dumps({"time": round(time.time(), 3), **self._numbers()})
            with open(self._path, "a", encoding="utf-8") as file:
                file.write(f"\n{line}")  # behind a line that a killed worker left torn, on one of its own

    def _numbers(self) -> dict[str, float]:
        memory = psutil.virtual_memory()
        own = sum(_resident(process) for process in (self._process, *self._process.children(recursive=True)))
        numbers = {
            "cpu_utilization_percentage": psutil.cpu_percent(),
            "system_memory_usage_megabytes": memory.used / MEGA,
            "system_memory_usage_percentage": 100 * memory.used / memory.total,
            "process_memory_usage_megabytes": own / MEGA,  # of this worker and its children: others share the machine
        }
        for index, read in enumerate(self._gpus):
            numbers |= {f"gpu_{index}_{name}": value for name, value in read().items()}
        return {name: round(value, 1) for name, value in numbers.items()}


def usage_rows(folder: Path) -> list[dict[str, float]]:
    """The samples of a run folder, oldest first; lines that a killed worker left torn are passed over."""
    path = folder / USAGE_FILE
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError, TypeError):
            row = json.loads(line)
            rows.append({str(name): float(value) for name, value in row.items()})
    return [row for row in rows if "time" in row]


def _resident(process: Any) -> float:
    with contextlib.suppress(psutil.Error):
        return float(process.memory_info().rss)
    return 0.0


def _gpus() -> list[Callable[[], dict[str, float]]]:
    """A reader for each NVIDIA GPU that this process may use, in its own numbering; none without a driver."""
    import pynvml

    try:
        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        by_name = {str(index): handle for index, handle in enumerate(handles)}
        by_name |= {_text(pynvml.nvmlDeviceGetUUID(handle)): handle for handle in handles}
    except pynvml.NVMLError:
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = [str(index) for index in range(len(handles))] if visible is None else visible.split(",")
    chosen = [by_name[name.strip()] for name in names if name.strip() in by_name]

    def reader(handle: Any) -> Callable[[], dict[str, float]]:
        def read() -> dict[str, float]:
            numbers: dict[str, float] = {}
            with contextlib.suppress(pynvml.NVMLError):
                memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
                numbers["memory_usage_megabytes"] = memory.used / MEGA
                numbers["memory_usage_percentage"] = 100 * memory.used / memory.total
            with contextlib.suppress(pynvml.NVMLError):
                numbers["utilization_percentage"] = float(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu)
            return numbers

        return read

    return [reader(handle) for handle in chosen]


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
