"""Where MLflow keeps the runs of a work folder: one URL, the same for launches, workers and pages. Used by `tracking`,
`stored_runs`, `server`.

MLFLOW_TRACKING_URI where it is set; else what a launch wrote down here; else a SQLite file of the work folder.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import sqlite3
import uuid
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from lvlm.errors import InputError
from lvlm.records import write_json, write_text
from lvlm.train.locks import file_lock

if TYPE_CHECKING:
    from mlflow import MlflowClient

URI_VARIABLE = "MLFLOW_TRACKING_URI"
STORE_FILE = "mlflow.json"  # in the work folder: the URL that the latest launch with `URI_VARIABLE` used
OWNER_FILE = ".mlflow-owner"
SCHEMES = ("http", "https", "sqlite", "postgresql")
CONNECT_SECONDS = 5
"""A server that does not take a connection within this time is down."""
REQUEST_TIMES = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}
"""MLflow itself would wait for a server for minutes (and for a database for an hour) while a worker stands still; what
is not sent now is sent later. The user's own values of these variables win."""


def database(home: Path) -> Path:
    """The SQLite file of MLflow, where no other store is named."""
    return home / "mlflow.db"


def tracking_uri(home: Path) -> str:
    """Where MLflow keeps the runs of a work folder. Raises `InputError` for a URL that is none of `SCHEMES`."""
    if given := os.environ.get(URI_VARIABLE, "").strip():
        return _checked(given, where=URI_VARIABLE)
    if (recorded := _recorded(home)) is not None:
        return _checked(recorded, where=str(home / STORE_FILE))
    return f"sqlite:///{database(home)}"


def keep_uri(home: Path) -> str:
    """Write down the store that the environment names, for workers and pages that do not have it there; the store."""
    uri = tracking_uri(home)
    if os.environ.get(URI_VARIABLE, "").strip() and _recorded(home) != uri:
        write_json(home / STORE_FILE, {"uri": uri})
        (home / STORE_FILE).chmod(0o600)  # it may hold a password
    return uri


def is_server(uri: str) -> bool:
    """Whether the store is an MLflow server, which is asked over HTTP, and no database."""
    return uri.startswith("http")


def sqlite_file(uri: str) -> Path | None:
    """The file of a SQLite store; None for other stores."""
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None


def is_there(home: Path) -> bool:
    """Whether there is a store to ask for runs; a SQLite file would be made by asking."""
    file = sqlite_file(tracking_uri(home))
    return file is None or file.is_file()


def shown(uri: str) -> str:
    """The URL without its password."""
    return re.sub(r"(://[^:/@]+):[^@/]*@", r"\1:***@", uri)


def connect(home: Path) -> MlflowClient:
    """A client on the work folder's store. Raises whatever says that it cannot be reached, within seconds.

    A database is made ready on first use by one process; a SQLite file is put into WAL mode, so that workers can write
    at once.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    for name, value in REQUEST_TIMES.items():
        os.environ.setdefault(name, value)
    for noisy in ("alembic", "mlflow"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    from mlflow import MlflowClient

    uri = tracking_uri(home)
    if is_server(uri):
        return MlflowClient(tracking_uri=uri)
    home.mkdir(parents=True, exist_ok=True)
    file = sqlite_file(uri)
    with file_lock(home / ".mlflow.lock", purpose="opens the MLflow database"):
        # MLflow tries a database that cannot be opened again for more than an hour: look first.
        _look(uri, file)
        client = MlflowClient(tracking_uri=uri)
        client.search_experiments(max_results=1)  # creates the tables
        if file:
            with contextlib.closing(sqlite3.connect(file, timeout=20)) as connection:
                connection.execute("PRAGMA journal_mode=WAL")
    return client


def owner_of(home: Path) -> str | None:
    """What tells this work folder's runs from those of others in the same store; None in a file of its own."""
    if sqlite_file(tracking_uri(home)) == database(home):
        return None
    path = home / OWNER_FILE
    with file_lock(home / ".mlflow.lock", purpose="names the work folder"):
        if not path.exists():
            write_text(path, uuid.uuid4().hex[:12])
        return path.read_text(encoding="utf-8").strip()


def artifacts_of(home: Path, study: str) -> str | None:
    """Where a study's artifacts lie; None leaves it to the server, which alone knows what others can reach."""
    return None if is_server(tracking_uri(home)) else (home / "mlartifacts" / study).as_uri()


def _look(uri: str, file: Path | None) -> None:
    if file:
        file.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.closing(sqlite3.connect(file, timeout=20)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.rollback()
        return
    import sqlalchemy

    engine = sqlalchemy.create_engine(uri, connect_args={"connect_timeout": CONNECT_SECONDS})
    try:
        engine.connect().close()
    finally:
        engine.dispose()


def _recorded(home: Path) -> str | None:
    path = home / STORE_FILE
    if not path.exists():
        return None
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["uri"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} cannot be read ({type(error).__name__}: {error}). It says where MLflow keeps the runs: remove it, "
            f"and set {URI_VARIABLE} for the next launch where that is no file of this folder."
        ) from error


def _checked(uri: str, *, where: str) -> str:
    scheme = urlsplit(uri).scheme.partition("+")[0]
    if scheme not in SCHEMES:
        raise InputError(
            f"{where} names the MLflow store '{shown(uri)}', which is none that runs can be kept in. Give the address "
            "of a server (http://HOST:PORT), a database (postgresql://USER@HOST/NAME), or a file (sqlite:////DIR/FILE)."
        )
    file = sqlite_file(uri)
    return uri if file is None or file.is_absolute() else f"sqlite:///{file.resolve()}"
