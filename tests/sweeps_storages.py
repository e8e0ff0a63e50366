"""Every storage that a sweep can use, for the tests: a file, PostgreSQL where it runs, Optuna's gRPC proxy."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sweeps.journal import open_journal
from sweeps.storage import Storage, choose_storage

POSTGRES = "LVLM_TEST_POSTGRES"


def file_storage(folder: Path) -> Storage:
    """The default: a journal in the folder."""
    return choose_storage(folder, "fake", None)


@contextlib.contextmanager
def grpc_url(journal: Path, port: int = 0) -> Iterator[str]:
    """The address of a proxy over a journal, while the block runs."""
    from optuna.storages._grpc.server import make_server

    server = make_server(open_journal(journal), "127.0.0.1", port, ThreadPoolExecutor(max_workers=10))
    port = port or server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"grpc://127.0.0.1:{port}"
    finally:
        server.stop(grace=None).wait()


@contextlib.contextmanager
def postgres_url() -> Iterator[str]:
    """An empty database, dropped afterwards."""
    import psycopg

    base = os.environ.get(POSTGRES)
    if base is None:
        pytest.skip(f"PostgreSQL does not run: no {POSTGRES} (start it with .ci/services)")
    name = f"test_{secrets.token_hex(6)}"
    with psycopg.connect(base, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')  # type: ignore[call-overload]  # a name of our own
        try:
            yield f"{base.rpartition('/')[0]}/{name}"
        finally:
            connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')  # type: ignore[call-overload]


@contextlib.contextmanager
def postgres_away(url: str) -> Iterator[None]:
    """Inside, the database of `url` drops every connection and takes none."""
    import psycopg

    name = url.rpartition("/")[2]

    def command(text: str) -> None:
        with psycopg.connect(os.environ[POSTGRES], autocommit=True) as connection:
            connection.execute(text)  # type: ignore[call-overload]  # a name of our own

    command(f'ALTER DATABASE "{name}" WITH ALLOW_CONNECTIONS false')
    command(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")
    try:
        yield
    finally:
        command(f'ALTER DATABASE "{name}" WITH ALLOW_CONNECTIONS true')


@contextlib.contextmanager
def storage_url(kind: str, folder: Path) -> Iterator[str | None]:
    """A URL of the kind; None for the file."""
    if kind == "postgresql":
        with postgres_url() as url:
            yield url
    elif kind == "grpc":
        with grpc_url(folder / "proxy.log") as url:
            yield url
    else:
        yield None


KINDS = ["file", "grpc", pytest.param("postgresql", marks=pytest.mark.system)]
