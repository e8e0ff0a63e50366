"""A file lock that names its owner and ends with the owner's process. Used by the stage cache, the feature store and
`lvlm.run`."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO
from weakref import WeakSet

POLL_SECONDS = 0.2
_held: set[IO[str]] = set()
_shared: WeakSet[SharedLock] = WeakSet()


@contextmanager
def file_lock(path: Path, *, purpose: str, on_wait: Callable[[str], None] | None = None) -> Iterator[None]:
    """Hold `path` exclusively. The kernel releases it when the holder ends in any way, so a killed process leaves
    nothing to clean up.

    `on_wait` is told once who holds the lock (host, process, purpose), if one has to wait.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+", encoding="utf-8") as file:
        waited = False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not waited and on_wait:
                    on_wait(lock_owner(path))
                waited = True
                time.sleep(POLL_SECONDS)
        owner = {"host": socket.gethostname(), "process": os.getpid(), "purpose": purpose, "since": time.time()}
        file.truncate(0)
        file.write(json.dumps(owner))
        file.flush()
        _held.add(file)
        try:
            yield
        finally:
            _held.discard(file)
            file.truncate(0)


class SharedLock:
    """Holds `path` together with whoever else does so, as long as this object lives; waits for one that holds it
    alone."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(path, "a+", encoding="utf-8")  # noqa: SIM115  open as long as it is held
        fcntl.flock(self._file, fcntl.LOCK_SH)
        _shared.add(self)

    def release(self) -> None:
        self._file.close()

    def __del__(self) -> None:
        self.release()


@contextmanager
def lock_alone(path: Path) -> Iterator[bool]:
    """Hold `path` exclusively if nobody holds it; yields whether that is so, without waiting."""
    with open(path, "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def release_in_child(_: int = 0) -> None:
    """Close the locks that a forked child inherited, so that it does not hold them for a moment longer than its killed
    parent."""
    for file in _held:
        os.close(file.fileno())
    _held.clear()
    for lock in _shared:
        lock.release()


def lock_owner(path: Path) -> str:
    """Who holds the lock, as text for a message."""
    try:
        owner = json.loads(path.read_text(encoding="utf-8"))
        return f"process {owner['process']} on {owner['host']} ({owner['purpose']})"
    except (OSError, ValueError, KeyError):
        return "another process"
