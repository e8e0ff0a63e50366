"""Optuna's journal file, opened so that a crash cannot spoil it. Used by `sweeps.storage`."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

from lvlm.errors import InputError

STALE_LOCK_SECONDS = 15
"""An append takes milliseconds, so a lock this old belonged to a process that was killed while holding it."""


class SafeJournal(JournalFileBackend):  # type: ignore[misc]  # Optuna is not followed by the type checker
    """A journal whose torn last line is cut off before anything is appended to it.

    A process that dies in the middle of a write leaves half a line; one more append on top of that makes the whole
    study unreadable.
    """

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append whole lines under the lock, after the repair."""
        text = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs).encode("utf-8")
        self._lock.acquire()
        try:
            self._cut_torn_tail()
            with open(self._file_path, "ab") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
        finally:
            self._lock.release()

    def repair(self) -> None:
        """Cut a torn tail off, under the lock."""
        self._lock.acquire()
        try:
            self._cut_torn_tail()
        finally:
            self._lock.release()

    def _cut_torn_tail(self) -> None:
        with open(self._file_path, "rb+") as file:
            size = file.seek(0, os.SEEK_END)
            if size == 0:
                return
            file.seek(size - 1)
            if file.read(1) == b"\n":
                return
            shutil.copyfile(self._file_path, f"{self._file_path}.torn-{time.time_ns()}")
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)
            os.fsync(file.fileno())


def open_journal(path: Path) -> JournalStorage:
    """Optuna's storage over the journal at `path`, which is created where it is not there. Raises `InputError` when a
    line in the middle of the file cannot be read."""
    file = str(path.resolve())  # the lock of a relative path hangs after a change of folder
    os.makedirs(os.path.dirname(file), exist_ok=True)
    backend = SafeJournal(file, lock_obj=JournalFileOpenLock(file, grace_period=STALE_LOCK_SECONDS))
    backend.repair()
    try:
        return JournalStorage(backend)
    except ValueError as error:  # of JSON or of its encoding
        raise InputError(
            f"The sweep's journal {file} is damaged: {error}. Move it away and launch again: "
            "finished cells are known by their own records and are not repeated."
        ) from error
