"""One thread for every test, set before torch is imported: tests fork processes, and a fork of a process whose OpenMP
threads have started can hang. Threads change no result that the tests look at.
"""

import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[name] = "1"
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that runs tests in its background has it ignored


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[Any]:
    """In CI a system package that is missing is a failure: there, every test of one is to run."""
    report = yield
    if os.environ.get("CI") and report.skipped and item.get_closest_marker("system"):
        report.outcome = "failed"
        report.longrepr = f"skipped in CI: {report.longrepr}"
    return report
