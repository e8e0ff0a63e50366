"""Where the results of a study lie: its folder in a work folder, a path, or the example records of the toolkit. `table`
reads them from there."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from ablations.studies import Study, list_studies, load_study, results_name
from lvlm.errors import InputError

RESULTS_FILE = "results.parquet"
PLANNED_FILE = "planned.json"  # the cells of the sweep, finished or not: run, arm, seed, and why it failed if it did
EXAMPLES = Path(__file__).parent / "examples"
"""Real records that come with the toolkit, a folder per study: `examples/NAME` names them wherever a study is asked
for. `ablations.example` makes them."""
EXAMPLE_PREFIX = "examples/"


def study_folder(study: str, home: str | Path | None = None, overrides: Sequence[str] = ()) -> Path:
    """Where a study's results lie.

    HOME/studies/NAME (NAME@HASH with overrides), with HOME from the argument, the environment variable LVLM_HOME, or
    ./runs.
    """
    return home_folder(home) / "studies" / results_name(study, overrides)


def home_folder(home: str | Path | None) -> Path:
    """The work folder: as given, else LVLM_HOME, else ./runs."""
    return Path(home or os.environ.get("LVLM_HOME") or "runs").expanduser()


def list_examples() -> tuple[str, ...]:
    """Studies of which there are example records, as `load_results` takes them: `examples/drivers`."""
    return tuple(EXAMPLE_PREFIX + path.parent.name for path in sorted(EXAMPLES.glob(f"*/{RESULTS_FILE}")))


def list_results(home: str | Path | None = None) -> tuple[str, ...]:
    """The folders of studies in a work folder that hold a finished run and were launched without overrides."""
    found = sorted((home_folder(home) / "studies").glob(f"*/{RESULTS_FILE}"))
    return tuple(str(path.parent) for path in found if "@" not in path.parent.name and not _is_empty(path))


def _is_empty(path: Path) -> bool:
    """Whether this is a table without rows, as that of a sweep whose first run goes on. What cannot be read is not:
    `load_results` says why."""
    from pyarrow import ArrowException, parquet

    try:
        return int(parquet.read_metadata(path).num_rows) == 0
    except (OSError, ArrowException):
        return False


def locate(study: str | Path | Study, home: str | Path | None, overrides: Sequence[str]) -> tuple[Study | None, Path]:
    """The study where it was given as one, and the file of its table, which need not exist."""
    if isinstance(study, Study):
        return study, study_folder(study.name, home, overrides) / RESULTS_FILE
    path = Path(study)
    in_place = path.suffix in (".parquet", ".csv") or (path / RESULTS_FILE).exists()
    is_example = str(study).startswith(EXAMPLE_PREFIX) and not in_place
    if overrides and (in_place or is_example):
        raise InputError(f"{path} holds the results of one launch: give it without {' '.join(overrides)}.")
    if path.suffix in (".parquet", ".csv"):
        return None, path
    if is_example:
        return None, _example(str(study))
    if path.suffix != ".py" and str(study) not in list_studies():
        # A study of the user's own, by the name of its results folder.
        named = study_folder(str(study), home, overrides) / RESULTS_FILE
        if named.exists() or path.is_dir():
            return None, named if named.exists() else path / RESULTS_FILE
    found = load_study(study)
    return found, study_folder(found.name, home, overrides) / RESULTS_FILE


def _example(name: str) -> Path:
    path = EXAMPLES / name.removeprefix(EXAMPLE_PREFIX) / RESULTS_FILE
    if not path.exists():
        raise InputError(f"There are no example records '{name}'. There are: {', '.join(list_examples()) or 'none'}.")
    return path


def others(folder: Path) -> str:
    """Where results of the same study with other overrides lie, and its example records, in sentences."""
    name = folder.name.partition("@")[0]
    found = [path.parent for path in sorted(folder.parent.glob(f"{name}*/{RESULTS_FILE}"))]
    beside = [path.name for path in found if path.name.partition("@")[0] == name]
    said = f" Results of this study with other overrides are there: {', '.join(beside)}." if beside else ""
    if (example := EXAMPLE_PREFIX + name) in list_examples():
        said += f" Records of another day come with the toolkit: {example}."
    return said


def planned(
    folder: Path,
) -> tuple[tuple[tuple[str, int], ...], dict[tuple[str, int], str], tuple[tuple[str, int], ...]]:
    """The planned cells by arm and seed, why some of them failed, and those that were pruned."""
    path = folder / PLANNED_FILE
    if not path.exists():
        return (), {}, ()
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))
        every = tuple((cell["arm"], int(cell["seed"])) for cell in cells)
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} cannot be read ({type(error).__name__}: {error}). Write it again: python -m sweeps export STUDY."
        ) from error
    beside = list(zip(every, cells, strict=True))
    errors = {one: cell["error"] for one, cell in beside if cell.get("error")}
    return every, errors, tuple(one for one, cell in beside if cell.get("pruned"))
