"""Optuna's journal file, opened so that a crash cannot spoil it; the only module that touches Optuna's internals. Used
by `sweeps.queue`."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Container, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import DuplicatedStudyError, UpdateFinishedTrialError
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from lvlm.errors import InputError

STALE_LOCK_SECONDS = 15
"""An append takes milliseconds, so a lock this old belonged to a process that was killed while holding it."""

optuna.logging.set_verbosity(optuna.logging.ERROR)


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


class Journal:
    """The trials of one study in one journal file: thin, typed access to what Optuna keeps behind underscores."""

    def __init__(self, path: Path, study: str) -> None:
        """Open or create `path`. Raises `InputError` when a line in the middle of the file cannot be read."""
        file = str(Path(path).resolve())  # the lock of a relative path hangs after a change of folder
        os.makedirs(os.path.dirname(file), exist_ok=True)
        backend = SafeJournal(file, lock_obj=JournalFileOpenLock(file, grace_period=STALE_LOCK_SECONDS))
        backend.repair()
        try:
            self._storage = JournalStorage(backend)
        except (json.JSONDecodeError, UnicodeDecodeError, ValueError) as error:
            raise InputError(
                f"The sweep's journal {file} is damaged: {error}. Move it away and launch again: "
                "finished cells are known by their own records and are not repeated."
            ) from error
        try:
            self._study_id = self._storage.get_study_id_from_name(study)
        except KeyError:
            try:
                self._study_id = self._storage.create_new_study([StudyDirection.MAXIMIZE], study)
            except DuplicatedStudyError:  # another process was faster
                self._study_id = self._storage.get_study_id_from_name(study)

    @property
    def storage(self) -> JournalStorage:
        """What Optuna's dashboard reads."""
        return self._storage

    def trials(self, states: Container[TrialState] | None = None) -> list[FrozenTrial]:
        """All trials in the order in which they were planned. Read only."""
        return list(self._storage.get_all_trials(self._study_id, deepcopy=False, states=states))

    @staticmethod
    def handle(trial: FrozenTrial) -> int:
        """What the other methods know a trial by."""
        return int(trial._trial_id)

    def add(self, template: FrozenTrial) -> int:
        """Write a trial; its handle."""
        return int(self._storage.create_new_trial(self._study_id, template))

    def claim(self, handle: int) -> bool:
        """WAITING to RUNNING. True for exactly one caller, in whichever process."""
        try:
            return bool(self._storage.set_trial_state_values(handle, TrialState.RUNNING))
        except UpdateFinishedTrialError:
            return False

    def finish(self, handle: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """End a trial. False when somebody else has ended it before."""
        try:
            return bool(self._storage.set_trial_state_values(handle, state, values))
        except UpdateFinishedTrialError:
            return False

    def note(self, handle: int, key: str, value: Any) -> bool:
        """Set a user attribute. False when the trial has ended: whoever still works on it has been replaced."""
        try:
            self._storage.set_trial_user_attr(handle, key, value)
        except UpdateFinishedTrialError:
            return False
        return True
