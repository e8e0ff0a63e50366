"""`make study` writes the corpora that a study reads before it launches it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from ablations.studies import list_studies, load_study

ROOT = Path(__file__).parent.parent
PYTHON = '#!/bin/sh\necho "$@" >> calls\n'
"""In the place of Python: notes what it was called with."""


def corpora_of(value: Any) -> set[str]:
    """Every path under `runs/data` in the fields of a config."""
    if isinstance(value, dict):
        return set[str]().union(*map(corpora_of, value.values()))
    if isinstance(value, list | tuple):
        return set[str]().union(*map(corpora_of, value))
    return {value} if isinstance(value, str) and value.startswith("runs/data/") else set()


@pytest.mark.parametrize("name", list_studies())
def test_make_study_writes_every_corpus_that_the_study_reads(name: str, tmp_path: Path) -> None:
    stub = tmp_path / "bin" / "python"
    stub.parent.mkdir()
    stub.write_text(PYTHON, encoding="utf-8")
    stub.chmod(0o755)
    for prerequisite in ("pyproject.toml", "constraints.txt", ".ready"):
        (tmp_path / prerequisite).touch()
    apart = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    subprocess.run(
        ["make", "-f", ROOT / "Makefile", "study", f"STUDY={name}", f"BIN={stub.parent}", "VENV=."],
        cwd=tmp_path, check=True, capture_output=True, env={**apart, "LVLM_HOME": str(tmp_path / "runs")},
    )  # fmt: skip
    calls = [line.split() for line in (tmp_path / "calls").read_text(encoding="utf-8").splitlines()]
    written = {call[4] for call in calls if call[:3] == ["-m", "lvlm", "data"]}
    read = set[str]().union(*(corpora_of(cell.config.model_dump(mode="json")) for cell in load_study(name).cells()))
    assert read and read <= written
    assert any(call[:4] == ["-m", "sweeps", "launch", name] for call in calls)
