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
    """What a worker writes beside the cell that it took: machine, process number and when that process began (s since
    1970)."""
    process = psutil.Process(pid or os.getpid())
    return {"machine": machine(), "pid": process.pid, "born": round(process.create_time(), 2)}


def is_alive(who: Mapping[str, Any]) -> bool | None:
    """Whether the process of `who` lives; None where that cannot be seen from here (another machine)."""
    if who["machine"] != machine():
        return None
    try:
        process = psutil.Process(int(who["pid"]))
        # A killed worker whose parent has not yet taken note is a zombie: it still has its number but does nothing
        # more.
        return bool(process.status() != psutil.STATUS_ZOMBIE and abs(process.create_time() - float(who["born"])) < 1.0)
    except psutil.NoSuchProcess:
        return False
