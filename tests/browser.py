"""A page in headless Chromium that reaches nothing outside this machine, for tests of what users see; `mlflow_pages`
drives MLflow's own pages."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (apt-get install chromium)")
"""Beside the marker `system`: `.ci/run` installs it, and counts a skip as a failure."""
WAIT_MS = 60_000


@contextmanager
def browser_page(*, width: int = 1500, height: int = 900, init_script: str = "") -> Iterator[Any]:
    """A page of a fresh browser."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": height})
        page.set_default_timeout(WAIT_MS)
        page.route(re.compile(r"^https?://(?!127\.0\.0\.1)"), lambda route: route.abort())
        if init_script:
            page.add_init_script(init_script)
        yield page
        browser.close()
