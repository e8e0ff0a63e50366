"""The report as PDF, printed by a browser without a window."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from lvlm.errors import InputError

BROWSERS = (
    "chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "microsoft-edge",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
)  # fmt: skip
SECONDS = 180


def write_pdf(report: Path) -> Path:
    """Print a report's page beside it, whole or not at all; raises `InputError` where no browser is found that can."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    target = report.with_suffix(".pdf")
    if browser is None:
        raise InputError(
            f"Printing {report.name} needs Chromium or Chrome, and neither is on the PATH: install one "
            f"(apt-get install chromium), or open {report} in any browser and print it to a file."
        )
    with tempfile.TemporaryDirectory(prefix="print-") as profile:
        written = Path(profile) / target.name
        command = [
            browser, "--headless", "--disable-gpu", "--no-first-run", f"--user-data-dir={profile}/profile",
            "--no-pdf-header-footer", f"--print-to-pdf={written}", report.resolve().as_uri(),
        ]  # fmt: skip
        if hasattr(os, "geteuid") and os.geteuid() == 0:
            command.insert(1, "--no-sandbox")  # which Chromium's sandbox refuses to start without
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
            said = done.stderr
        except subprocess.TimeoutExpired:
            said = f"no answer after {SECONDS} seconds"
        if not written.exists() or written.stat().st_size == 0:
            last = (said.strip().splitlines() or ["no message"])[-1]
            raise InputError(f"{browser} did not print {report}: {last}. Open it in a browser and print it to a file.")
        beside = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        shutil.copy(written, beside)
    beside.replace(target)
    return target
