"""Folders under one root, one for each key, that processes share: who uses one, when it was used last, and how it goes.
No torch. Called by `lvlm.train.stages`, `lvlm.train.space` and `sweeps.cache`.

Every process that uses a key holds a shared lock on `KEY.use`, which lies beside the key's folder, is touched at each
use and never removed. A folder goes under another name first, so that a process which is killed meanwhile leaves it
whole or gone.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from lvlm.train.locks import SharedLock, file_lock, lock_alone

GONE = ".gone"
"""Ends the name of a folder that is being removed."""
GIB = 2**30


@dataclass(frozen=True)
class Entry:
    """One folder: its size, when it was used last (seconds since 1970), and whether nobody uses it."""

    key: str
    bytes: int
    used_at: float
    free: bool


class Shelf:
    """The folders of one root."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._held: dict[str, SharedLock] = {}

    @property
    def lock(self) -> Path:
        """The file whose lock guards a bound while room is looked for and taken."""
        return self.root / "space.lock"

    def hold(self, key: str) -> None:
        """Say that this process uses a key: nobody removes its folder until `release`, or as long as this object
        lives."""
        if key not in self._held:
            self._held[key] = SharedLock(self._use(key))
        os.utime(self._use(key))

    def release(self) -> None:
        """Use no key any longer."""
        for held in self._held.values():
            held.release()
        self._held.clear()

    def entries(self) -> list[Entry]:
        """What is there, from the folder used longest ago."""
        found = [Entry(key, self.bytes_of(key), self._used_at(key), self._is_free(key)) for key in self._keys()]
        return sorted(found, key=lambda entry: (entry.used_at, entry.key))

    def bytes_of(self, key: str) -> int:
        """What the files of a key take."""
        return folder_bytes(self.root / key)

    def remove(self, key: str) -> bool:
        """Remove the folder of a key unless somebody uses it; whether nobody did."""
        self._clear()
        gone = self.root / f".{key}.{os.getpid()}-{time.time_ns()}{GONE}"
        with lock_alone(self._use(key)) as free:
            if not free:
                return False
            with suppress(FileNotFoundError):
                os.replace(self.root / key, gone)
        shutil.rmtree(gone, ignore_errors=True)
        return True

    def shrink(self, most_bytes: float, *, spare: Callable[[], Collection[str]] = tuple) -> list[Entry]:
        """Remove the folders that were used longest ago until all together take at most `most_bytes`, or nothing is
        left that may go: what a process uses stays, and so do the keys that `spare` names, which is asked only where
        something has to go. Returns what was removed."""
        removed: list[Entry] = []
        if not self.root.is_dir():
            return removed
        with file_lock(self.lock, purpose="makes room"):
            self._clear()
            entries = self.entries()
            over = sum(entry.bytes for entry in entries) - most_bytes
            spared = spare() if over > 0 else ()
            for entry in entries:
                if over > 0 and entry.free and entry.key not in spared and self.remove(entry.key):
                    removed.append(entry)
                    over -= entry.bytes
        return removed

    def _clear(self) -> None:
        """Finish what processes that were killed had begun to remove."""
        for left in self.root.glob(f".*{GONE}"):
            shutil.rmtree(left, ignore_errors=True)

    def _keys(self) -> list[str]:
        if not self.root.is_dir():
            return []
        return sorted(entry.name for entry in os.scandir(self.root) if entry.is_dir() and entry.name[0] != ".")

    def _use(self, key: str) -> Path:
        return self.root / f"{key}.use"

    def _used_at(self, key: str) -> float:
        for path in (self._use(key), self.root / key):
            with suppress(FileNotFoundError):
                return path.stat().st_mtime
        return 0.0

    def _is_free(self, key: str) -> bool:
        if not self._use(key).exists():  # locking would make it, as if it had just been used
            return True
        with lock_alone(self._use(key)) as free:
            return free


def folder_bytes(folder: Path) -> int:
    """What all files of a folder take; 0 where there is none."""
    total = 0
    for place, _, files in os.walk(folder):
        for name in files:
            with suppress(FileNotFoundError):  # its owner has renamed or removed it
                total += os.stat(os.path.join(place, name)).st_size
    return total
