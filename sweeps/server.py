"""The MLflow pages over a work folder, as a server in the foreground. Used by the command `ui`."""

from __future__ import annotations

import contextlib
import os
import socket
import sqlite3
import subprocess
import sys
from pathlib import Path

from lvlm.errors import InputError
from sweeps.tracking import database, tracking_uri


def study_links(home: Path, address: str) -> list[str]:
    """A line for each study with the address of its runs; MLflow's own first page shows traces of chat models."""
    with contextlib.closing(sqlite3.connect(f"{database(home).as_uri()}?mode=ro", uri=True)) as connection:
        found = connection.execute(
            "SELECT name, experiment_id FROM experiments "
            "WHERE lifecycle_stage = 'active' AND name != 'Default' ORDER BY name"
        ).fetchall()
    return [f"  {name}: {address}/#/experiments/{number}/runs?workflowType=machine_learning" for name, number in found]


def serve(home: Path, *, host: str = "127.0.0.1", port: int = 5000) -> int:
    """Run `mlflow server` until Ctrl-C; its exit status."""
    if not database(home).is_file():
        raise InputError(
            f"There are no recorded runs in {home} (no {database(home).name}). "
            "Launch a study first: python -m sweeps launch drivers"
        )
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise InputError(
                f"Port {port} on {host} cannot be used ({error}). Choose another: python -m sweeps ui --port {port + 1}"
            ) from error
    print(f"MLflow on http://{host}:{port} (starts within half a minute; Ctrl-C ends it)", flush=True)
    for line in study_links(home, f"http://{host}:{port}"):
        print(line, flush=True)
    # One server process and no job runner: a quarter of the start-up time and half of the memory of the defaults.
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", tracking_uri(home), "--workers", "1"]
    command += ["--default-artifact-root", (home / "mlartifacts").as_uri(), "--host", host, "--port", str(port)]
    process = subprocess.Popen(command, env=environment)
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.terminate()
        process.wait()
        return 0
