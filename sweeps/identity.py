"""Who holds a cell: machine and process, and whether that process still lives. Used by `sweeps.queue` to tell dead
workers at once."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]


@cache
def machine() -> str:
    """This machine, as far as process numbers mean the same: containers and reboots give another text."""
    parts = [platform.node()]
    boot = Path("/proc/sys/kernel/random/boot_id")
    namespace = Path("/proc/self/ns/pid")
    if boot.exists():
        parts.append(boot.read_text().strip()[:8])
    if namespace.exists():
        parts.append(str(namespace.stat().st_ino))
    return "/".join(parts)


def owner(pid: int | None = None) -> dict[str, Any]:
    """What a worker writes beside the cell that it took: machine, process number and when that process began, `born`
    in seconds since 1970 and on Linux `ticks` since the boot."""
    process = psutil.Process(pid or os.getpid())
    who = {"machine": machine(), "pid": process.pid, "born": round(process.create_time(), 2)}
    ticks = _start_ticks(process.pid)
    return who if ticks is None else {**who, "ticks": ticks}


def is_alive(who: Mapping[str, Any]) -> bool | None:
    """Whether the process of `who` lives; None where that cannot be seen from here (another machine)."""
    if who["machine"] != machine():
        return None
    try:
        process = psutil.Process(int(who["pid"]))
        # A killed worker whose parent has not yet taken note is a zombie: it still has its number but does nothing
        # more.
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        ticks = _start_ticks(process.pid)
        if "ticks" in who and ticks is not None:
            return bool(ticks == who["ticks"])
        return bool(abs(process.create_time() - float(who["born"])) < 1.0)
    except psutil.NoSuchProcess:
        return False


def _start_ticks(pid: int) -> int | None:
    """When a process began, in clock ticks since the boot: unlike a time of day this stays the same when the clock is
    set. None where there is no /proc, or no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # The second field, the command in brackets, may hold spaces and brackets; what follows begins with field 3.
    return int(text.rpartition(")")[2].split()[22 - 3])
