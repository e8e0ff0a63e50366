"""Where the trials of a sweep are kept, by one URL: a journal file by default, PostgreSQL or Optuna's gRPC proxy for
many machines. The only module that touches Optuna's internals. Used by `sweeps.queue`, `sweeps.plan` and the commands.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import secrets
import socket
import time
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from lvlm.errors import InputError
from lvlm.records import write_json
from lvlm.train.locks import lock_alone

STORAGE_FILE = "storage.json"
JOURNAL_FILE = "journal.log"
PROXY_FILE = "proxy.log"  # the journal of all studies of a work folder that are launched over its proxy
DRIVERS = {"postgresql": "postgresql+psycopg", "postgres": "postgresql+psycopg", "sqlite": "sqlite"}
"""Schemes of databases, and what SQLAlchemy calls them."""
CONNECT_SECONDS = 10
WORKER_LOCK = ".worker.lock"  # in the study's folder
NOT_SHARED = (
    "It is a SQLite file, where two workers can be given one cell: work with one (--workers 1), or keep the trials in "
    "the journal (no --storage), in PostgreSQL or behind Optuna's gRPC proxy."
)
FORMS = "postgresql://USER@HOST/DATABASE, grpc://HOST:PORT or sqlite:///FILE (one worker)"


class StorageDown(InputError):
    """The storage does not answer. A worker trains on and tells it later; a command says so and ends."""


@dataclass(frozen=True)
class Storage:
    """Where one study's trials are: `url` (empty for the journal in the study's folder), and their name there."""

    url: str
    study: str
    folder: Path

    @property
    def is_shared(self) -> bool:
        """Whether several processes may write at once; bare SQLite hands one cell to two of them."""
        return not self.url.startswith("sqlite")

    @contextlib.contextmanager
    def occupied(self) -> Iterator[None]:
        """Inside, a storage that is not shared is this worker's alone. Raises `InputError` where it is another's."""
        if self.is_shared:
            yield
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with lock_alone(self.folder / WORKER_LOCK) as free:
            if not free:
                raise InputError(f"A worker is at work on {self}. {NOT_SHARED}")
            yield

    @property
    def exists(self) -> bool:
        """Whether a launch has been here."""
        return bool(self.url) or (self.folder / JOURNAL_FILE).exists()

    def __str__(self) -> str:
        return self.url or str(self.folder / JOURNAL_FILE)

    def save(self) -> None:
        """Let workers and later commands find it; the default needs no file."""
        if self.url:
            write_json(self.folder / STORAGE_FILE, {"url": self.url, "study": self.study})


def find_storage(folder: Path, study: str) -> Storage:
    """The storage of the study whose results lie in `folder`."""
    path = folder / STORAGE_FILE
    if not path.exists():
        return Storage("", study, folder)
    kept = json.loads(path.read_text(encoding="utf-8"))
    return Storage(str(kept["url"]), str(kept["study"]), folder)


def choose_storage(folder: Path, study: str, url: str | None) -> Storage:
    """The storage that a launch is to use: the one given (`--storage`, else LVLM_STORAGE), else the one of the launch
    before. Raises `InputError` for a URL that cannot be used, and where the launch before used another one."""
    there = find_storage(folder, study)
    wanted = _checked(url or os.environ.get("LVLM_STORAGE") or there.url)
    if wanted == there.url:
        return there
    if there.exists:
        raise InputError(
            f"The trials of {folder} are kept in {there}, and this launch names {wanted}. Launch with the former, or, "
            f"when no worker is left on it, move {STORAGE_FILE if there.url else JOURNAL_FILE} there away: finished "
            "cells are known by their own records and are not repeated."
        )
    # Several work folders may share a database, and their studies a name.
    return Storage(wanted, f"{study}-{secrets.token_hex(4)}", folder)


def _checked(url: str) -> str:
    """The URL as every worker understands it, wherever it is started."""
    parts, file = urlsplit(url), _sqlite_file(url)
    is_wrong = parts.scheme not in (*DRIVERS, "grpc") or (parts.scheme == "grpc" and not _port(url))
    if url and (is_wrong or (parts.scheme == "sqlite" and file in ("", ":memory:"))):
        raise InputError(f"'{url}' is no storage that sweeps can use. The forms are {FORMS}.")
    if parts.password or "password=" in parts.query:
        raise InputError(
            "The storage's URL holds a password, which would lie in the study's folder for everybody to read. Leave it "
            "out, and give it as PGPASSWORD or in ~/.pgpass."
        )
    return f"sqlite:///{Path(file).absolute()}" if file else url


def _sqlite_file(url: str) -> str:
    """The file in the URL of a SQLite database; empty in any other."""
    return url.partition(":///")[2] if url.startswith("sqlite") else ""


def _port(url: str) -> int | None:
    try:
        parts = urlsplit(url)
        return parts.port if parts.hostname else None
    except ValueError:
        return None


class Trials:
    """The trials of one study: thin, typed access to what Optuna keeps behind underscores.

    Every method raises `StorageDown` where the storage does not answer, and can be called again.
    """

    def __init__(self, storage: Storage) -> None:
        self._where = storage
        self._optuna: Any = None
        self._study_id = -1
        self._is_away = False
        self.back_since = 0.0
        """When the storage answered again after it had not, on the monotonic clock."""

    def trials(self, states: Container[Any] | None = None) -> list[Any]:
        """All trials in the order in which they were planned. Read only."""
        with self._answering() as optuna:
            return list(optuna.get_all_trials(self._study_id, deepcopy=False, states=states))

    @staticmethod
    def handle(trial: Any) -> int:
        """What the other methods know a trial by."""
        return int(trial._trial_id)

    def add(self, template: Any) -> int:
        """Write a trial; its handle.

        A database keeps the choices that a factor had first. A trial with a level that came later is written without
        params there, and known by its arm.
        """
        with self._answering() as optuna:
            try:
                return int(optuna.create_new_trial(self._study_id, template))
            except ValueError as error:
                if "dynamic value space" not in str(error):
                    raise
                template = copy.copy(template)
                template.params, template.distributions = {}, {}
                return int(optuna.create_new_trial(self._study_id, template))

    def claim(self, handle: int) -> bool:
        """WAITING to RUNNING. True for exactly one caller, in whichever process."""
        from optuna.trial import TrialState

        return self._set_state(handle, TrialState.RUNNING, None)

    def finish(self, handle: int, state: Any, values: Sequence[float] | None = None) -> bool:
        """End a trial. False when somebody else has ended it before."""
        return self._set_state(handle, state, values)

    def note(self, handle: int, key: str, value: Any) -> bool:
        """Set a user attribute. False when the trial has ended: whoever still works on it has been replaced."""
        return self._unless_ended(lambda optuna: optuna.set_trial_user_attr(handle, key, value))

    def report(self, handle: int, step: int, value: float) -> bool:
        """Write down a score of a run that goes on. False when the trial has ended."""
        return self._unless_ended(lambda optuna: optuna.set_trial_intermediate_value(handle, step, value))

    def keep(self, handle: int, key: str, value: Any) -> bool:
        """Set what a pruner wants to find again at a trial. False when that has ended."""
        return self._unless_ended(lambda optuna: optuna.set_trial_system_attr(handle, key, value))

    def _unless_ended(self, write: Callable[[Any], None]) -> bool:
        from optuna.exceptions import UpdateFinishedTrialError

        with self._answering() as optuna:
            try:
                write(optuna)
            except UpdateFinishedTrialError:
                return False
            return True

    def _set_state(self, handle: int, state: Any, values: Sequence[float] | None) -> bool:
        from optuna.exceptions import UpdateFinishedTrialError

        with self._answering() as optuna:
            try:
                return bool(optuna.set_trial_state_values(handle, state, values))
            except UpdateFinishedTrialError:
                return False

    @contextlib.contextmanager
    def _answering(self) -> Iterator[Any]:
        try:
            if self._optuna is None:
                optuna = open_optuna(self._where)
                self._study_id = _study_id(optuna, self._where.study)
                self._optuna = optuna
            yield self._optuna
            if self._is_away:
                self._is_away, self.back_since = False, time.monotonic()
        except _outages(self._where.url) as error:
            self._is_away = True
            raise StorageDown(
                f"The storage of the sweep's trials, {self._where}, does not answer ({_first_line(error)}). Is it "
                "running, and can this machine and user reach it?"
            ) from error


def open_optuna(storage: Storage) -> Any:
    """Optuna's storage behind the URL; tables and files are made on first use."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if not storage.url:
        from sweeps.journal import open_journal

        return open_journal(storage.folder / JOURNAL_FILE)
    parts = urlsplit(storage.url)
    if parts.scheme == "grpc":
        import warnings

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return optuna.storages.GrpcStorageProxy(host=str(parts.hostname), port=int(parts.port or 0))
    is_file = parts.scheme == "sqlite"
    url = storage.url if is_file else urlunsplit(parts._replace(scheme=DRIVERS[parts.scheme]))
    timeout = {"timeout": CONNECT_SECONDS} if is_file else {"connect_timeout": CONNECT_SECONDS}
    settings = {"pool_pre_ping": True, "connect_args": timeout}  # a connection that a restart cut is opened anew
    return optuna.storages.get_storage(_database(url, settings))


def serve(home: Path, *, host: str, port: int) -> int:
    """Run Optuna's gRPC proxy over a journal in the work folder until Ctrl-C; 0. Raises `InputError` for a port in
    use."""
    from concurrent.futures import ThreadPoolExecutor

    from optuna.storages._grpc.server import make_server

    from sweeps.journal import open_journal

    journal = home / PROXY_FILE
    try:
        socket.create_server((host, port)).close()  # gRPC would share the port of another proxy
    except OSError as error:
        raise InputError(f"Port {port} on {host} cannot be used ({error}). Choose another with --port.") from error
    server = make_server(open_journal(journal), host, port, ThreadPoolExecutor(max_workers=10))
    server.start()
    print(f"Trials are kept in {journal} and served at grpc://{host}:{port} (Ctrl-C ends it)", flush=True)
    print(f"  python -m sweeps launch STUDY --storage grpc://{host}:{port}", flush=True)
    try:
        server.wait_for_termination()
    except KeyboardInterrupt:
        server.stop(grace=2).wait()
    return 0


def _database(url: str, settings: dict[str, Any]) -> Any:
    from optuna.storages import RDBStorage
    from sqlalchemy.exc import IntegrityError, OperationalError, ProgrammingError

    for wait in (0.1, 0.3, 1.0):
        try:
            return RDBStorage(url, engine_kwargs=settings)
        except (IntegrityError, OperationalError, ProgrammingError) as error:
            # Of several processes that make the tables of an empty database at once, all but one find them there.
            if not any(text in str(error) for text in ("already exists", "duplicate key")):
                raise
            time.sleep(wait)
    return RDBStorage(url, engine_kwargs=settings)


def _study_id(optuna: Any, name: str) -> int:
    from optuna.exceptions import DuplicatedStudyError
    from optuna.study import StudyDirection

    with contextlib.suppress(KeyError):
        return int(optuna.get_study_id_from_name(name))
    try:
        return int(optuna.create_new_study([StudyDirection.MAXIMIZE], name))
    except DuplicatedStudyError:  # another process was faster
        return int(optuna.get_study_id_from_name(name))


def _outages(url: str) -> tuple[type[Exception], ...]:
    """What the storage behind `url` raises when it does not answer."""
    if url.startswith("grpc"):
        import grpc

        return (grpc.RpcError,)
    if url:
        from optuna.exceptions import StorageInternalError
        from sqlalchemy.exc import SQLAlchemyError

        return (StorageInternalError, SQLAlchemyError)
    return (OSError,)


def _first_line(error: BaseException) -> str:
    cause = error.__cause__ or error
    return f"{type(cause).__name__}: {(str(cause).strip().splitlines() or [''])[0][:300]}"
