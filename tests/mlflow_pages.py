"""MLflow's pages of a work folder in headless Chromium: for the tests of them, and for the picture in the README
(`python -m tests.mlflow_pages HOME sweeps/pictures/mlflow_runs.png`)."""

from __future__ import annotations

import io
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from tests import browser

NO_ASSISTANT = "; ".join(  # its panel opens by itself on the first visit and takes a third of the page
    f"localStorage.setItem('mlflow.assistant.{key}', '{value}')"
    for key, value in (("fab.autoOpenedOnFirstLoad_v1", "true"), ("panelOpen_v1", "false"))
)


@contextmanager
def served(home: Path) -> Iterator[str]:
    """Run `python -m sweeps ui` on a free port; the address of the runs of the study that was launched last."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "sweeps", "ui", "--home", str(home), "--port", str(port), "--no-browser"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=home)
    try:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("MLflow is starting")
        yield next(link[1] for line in process.stdout if (link := re.match(r"  \w+: (http\S+)", line)))
    finally:
        process.terminate()  # as Ctrl-C
        process.wait(timeout=60)


def browser_page(*, width: int = 1500, height: int = 900) -> AbstractContextManager[Any]:
    """A page of a fresh browser, without MLflow's assistant."""
    return browser.browser_page(width=width, height=height, init_script=NO_ASSISTANT)


def open_runs(page: Any, address: str) -> Any:
    """The experiment page, once its table is there; the rows with names and check boxes."""
    page.goto(address)
    page.get_by_text(re.compile("matching run")).wait_for()
    rows = page.locator(".ag-pinned-left-cols-container .ag-row")
    rows.first.wait_for()
    return rows


def compare(page: Any, rows: Any, numbers: tuple[int, ...]) -> None:
    """Select rows and press Compare."""
    for number in numbers:
        rows.nth(number).locator(".ag-checkbox-input").check(force=True)
    page.get_by_role("button", name="Compare", exact=True).click()
    page.locator(".parcoords, .js-plotly-plot").first.wait_for()


def write_picture(home: Path, path: Path) -> None:
    """The experiment page of the study that was launched last, in few colours to keep the file small."""
    with served(home) as address, browser_page(width=1300, height=640) as page:
        open_runs(page, address)
        picture = page.screenshot()
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.open(io.BytesIO(picture)).convert("RGB").quantize(96).save(path, optimize=True)


if __name__ == "__main__":
    write_picture(Path(sys.argv[1]).resolve(), Path(sys.argv[2]))
