"""MLflow's pages over a work folder, and Optuna's dashboard over a study, in the foreground. Used by `ui`."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import webbrowser
from collections.abc import Callable
from pathlib import Path
from socketserver import ThreadingMixIn
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from lvlm.errors import InputError
from sweeps.plan import Place, Plan
from sweeps.tracking_store import is_server, is_there, keep_uri, shown
from sweeps.views import TAG, page

START_SECONDS = 180.0
"""So long the pages may take to answer on a loaded machine."""


def serve(
    home: Path, *, study: Place | None = None, host: str = "127.0.0.1", port: int = 5000, browser: bool = True
) -> int:
    """Show the recorded runs, `study` (else the one launched last) first, until Ctrl-C; the exit status.

    Where MLflow already runs as a server, that one is shown and nothing is started. Raises `InputError` where nothing
    has been recorded, or nothing of `study` launched.
    """
    uri = keep_uri(home)
    if is_server(uri):
        print(f"The runs of this work folder are on the MLflow server {shown(uri)}", flush=True)
        _show(home, uri.rstrip("/"), study, browser=browser)
        return 0
    if not is_there(home):
        raise InputError(
            f"There are no recorded runs in {home} (nothing is at {shown(uri)}). "
            "Launch a study first: python -m sweeps launch drivers"
        )
    if study is not None:
        Plan.load(study)
    address = _free_address(host, port)
    print(f"MLflow is starting over {shown(uri)} ...", flush=True)
    process = _start(uri, home, host=host, port=port)

    def answers() -> None:
        if _wait(f"{address}/health", is_alive=lambda: process.poll() is None):
            print(f"MLflow: {address} (Ctrl-C ends it)", flush=True)
            _show(home, address, study, browser=browser)

    threading.Thread(target=answers, name="browser", daemon=True).start()
    try:
        return process.wait()
    except KeyboardInterrupt:
        return 0
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait()


def _start(uri: str, home: Path, *, host: str, port: int) -> subprocess.Popen[bytes]:
    # One server process and no job runner: a quarter of the start-up time and half of the memory of the defaults.
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    # The URL stands in the environment, not on the command line that everybody on this machine can read.
    environment["MLFLOW_BACKEND_STORE_URI"] = uri
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--host", host, "--port", str(port)]
    command += ["--default-artifact-root", (home / "mlartifacts").as_uri(), "--uvicorn-opts", "--log-level warning"]
    # In a session of its own, Ctrl-C reaches this process alone, which ends the other one in an orderly way.
    return subprocess.Popen(command, env=environment, start_new_session=True)


def serve_optuna(place: Place, *, host: str = "127.0.0.1", port: int = 8080, browser: bool = True) -> int:
    """Show a study's trials in Optuna's dashboard until Ctrl-C; the exit status. Raises `InputError` where that is not
    installed, nothing has been launched, or the storage does not answer."""
    try:
        from optuna_dashboard import wsgi
    except ImportError as error:
        raise InputError(
            "Optuna's dashboard is not installed. Install it: pip install optuna-dashboard (or this package with its "
            "extra: pip install '.[dashboard]'); the same runs are in MLflow: python -m sweeps ui"
        ) from error
    from sweeps.storage import Trials, open_optuna

    Plan.load(place)
    storage = place.storage
    Trials(storage).trials(())  # raises where it does not answer
    address = _free_address(host, port)
    trials = open_optuna(storage)
    print(f"Optuna's dashboard is starting over {storage} ...", flush=True)

    def answers() -> None:
        if _wait(f"{address}/dashboard", is_alive=lambda: True):
            print(f"Optuna: {address}/dashboard (Ctrl-C ends it)", flush=True)
            _open(f"{address}/dashboard", browser=browser)

    threading.Thread(target=answers, name="browser", daemon=True).start()
    app = wsgi(trials)
    with (
        contextlib.suppress(KeyboardInterrupt),
        make_server(host, port, app, server_class=_Threads, handler_class=_Quiet) as server,
    ):
        server.serve_forever()
    return 0


class _Threads(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    def log_message(self, *_: object) -> None:
        """No line for each request."""


def study_pages(home: Path, address: str) -> dict[str, str]:
    """Study -> address of its runs, with the columns of its last launch; asked of the server at `address`."""
    from mlflow import MlflowClient

    last = {plan.study: plan.version for plan in map(Plan.load, reversed(launched(home)))}
    pages = {}
    for experiment in MlflowClient(tracking_uri=address).search_experiments(order_by=["name ASC"]):
        view = last.get(experiment.name)
        if experiment.name != "Default":
            has_view = view is not None and TAG + view in experiment.tags
            pages[experiment.name] = page(address, experiment.experiment_id, view if has_view else None)
    return pages


def launched(home: Path) -> list[Place]:
    """The studies of a work folder, the one launched last first."""
    plans = sorted((home / "studies").glob("*/plan.json"), key=lambda path: path.stat().st_mtime, reverse=True)
    return [Place(home, path.parent.name) for path in plans]


def _show(home: Path, address: str, study: Place | None, *, browser: bool) -> None:
    try:
        pages = study_pages(home, address)
    except Exception as error:  # the server is up, or somebody else's: its own first page will do
        print(f"  its experiments cannot be listed ({type(error).__name__}: {error})", flush=True)
        pages = {}
    for name, link in pages.items():
        print(f"  {name}: {link}", flush=True)
    wanted = [place.study for place in ([study] if study else launched(home))]
    _open(next((pages[name] for name in wanted if name in pages), address), browser=browser)


def _open(link: str, *, browser: bool) -> None:
    has_display = sys.platform in ("darwin", "win32") or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if browser and has_display and not webbrowser.open(link):
        print("  (no browser could be opened)", flush=True)


def _free_address(host: str, port: int) -> str:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise InputError(f"Port {port} on {host} cannot be used ({error}). Choose another with --port.") from error
    return f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{port}"


def _wait(link: str, *, is_alive: Callable[[], bool]) -> bool:
    """Whether a server answers in good time."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and is_alive():
        try:
            with urllib.request.urlopen(link, timeout=5):
                return True
        except (urllib.error.URLError, OSError):
            time.sleep(0.3)
    return False
