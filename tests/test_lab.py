"""JupyterLab itself: a notebook opened and run to its end in a real browser."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ablations.notebooks import FOLDER
from tests.browser import browser_page, needs_chromium

pytestmark = [
    pytest.mark.system,
    needs_chromium,
]
STEM = "01_number_of_languages"
SECONDS = 180


@contextmanager
def lab(folder: Path, settings: Path) -> Iterator[str]:
    """The address of a JupyterLab of its own on `folder`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", f"--port={port}", "--ServerApp.port_retries=0",
        "--ip=127.0.0.1", "--IdentityProvider.token=", "--ServerApp.password=", f"--ServerApp.root_dir={folder}",
        "--allow-root", "--LabApp.news_url=", "--ServerApp.terminals_enabled=False",
    ]  # fmt: skip
    places = {f"JUPYTER_{name}": str(settings / name.lower()) for name in ("CONFIG_DIR", "DATA_DIR", "RUNTIME_DIR")}
    environment = {**os.environ, **places, "PYTHONPATH": str(FOLDER.parent), "HOME": str(settings)}
    log = settings / "lab.log"
    with log.open("w") as sink:
        process = subprocess.Popen(command, stdout=sink, stderr=subprocess.STDOUT, env=environment, cwd=folder)
    try:
        for _ in range(SECONDS * 5):
            assert process.poll() is None, log.read_text()
            with socket.socket() as client:
                if client.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/lab"
    finally:
        process.terminate()
        process.wait(timeout=60)


def test_a_notebook_runs_to_its_end_in_jupyterlab(tmp_path: Path) -> None:
    folder, settings = tmp_path / "notebooks", tmp_path / "settings"
    folder.mkdir()
    settings.mkdir()
    shutil.copy(FOLDER / f"{STEM}.ipynb", folder)
    written = folder / f"{STEM}.ipynb"
    code = len(_code(written))
    with lab(folder, settings) as address, browser_page(width=1300, height=1000) as page:
        page.goto(f"{address}/tree/{STEM}.ipynb")
        page.locator(".jp-Notebook h1").first.wait_for(timeout=SECONDS * 1000)
        page.get_by_text("| Idle").wait_for(timeout=SECONDS * 1000)  # cells run before the kernel is there are dropped
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_role("menuitem", name=re.compile("^Run All Cells")).click()
        deadline = time.monotonic() + SECONDS
        while [cell["execution_count"] for cell in _code(written)] != list(range(1, code + 1)):
            assert time.monotonic() < deadline, "the notebook did not come to its end"
            page.wait_for_timeout(1000)
            page.keyboard.press("Control+s")
        page.locator(".jp-OutputArea img").first.wait_for()
        page.screenshot(path=str(tmp_path / "lab.png"))
    outputs = [output for cell in _code(written) for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] in ("error", "stream")]
    figures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(figures) == 4 and all(figure["metadata"]["image/png"]["alt"] for figure in figures)
    assert "Example records" in "".join(outputs[0]["data"]["text/html"])


def _code(path: Path) -> list[dict]:
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
