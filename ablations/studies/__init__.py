"""The studies: one Python file each, and how to find them.

`sweeps` and the commands load a study by its name or the path of its file.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from ablations.studies._study import Amount, Arm, Budget, Cell, Direction, Expectation, Study, cell_id, results_name
from lvlm.errors import InputError, nearest

__all__ = [
    "Amount",
    "Arm",
    "Budget",
    "Cell",
    "Direction",
    "Expectation",
    "Study",
    "cell_id",
    "list_studies",
    "load_study",
    "results_name",
]

FOLDER = Path(__file__).parent


def list_studies() -> tuple[str, ...]:
    """Names of the studies that come with the toolkit."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.py") if not path.stem.startswith("_")))


def load_study(study: str | Path) -> Study:
    """The study with this name, or in this Python file, which holds `study = Study(...)`; any fault names the file."""
    path = FOLDER / f"{study}.py" if str(study) in list_studies() else Path(study)
    if path.suffix != ".py" or not path.exists():
        raise InputError(
            f"There is no study '{study}'. Known names: {nearest(str(study), list(list_studies()))}; "
            "or give the path of a study file (a .py file with `study = Study(...)`)."
        )
    module_name = f"ablations_study_{path.stem}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise InputError(f"The study file {path} cannot be read as Python.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    except InputError as error:
        raise InputError(f"The study file {path}: {error}") from error
    except Exception as error:  # a study file is the user's Python: any fault in it is theirs to mend, with its place
        raise InputError(
            f"The study file {path}{_line(error, path.resolve())}: {type(error).__name__}: {error}"
        ) from error
    found = getattr(module, "study", None)
    if not isinstance(found, Study):
        raise InputError(f"The study file {path} holds no `study = Study(...)` at its top level.")
    if found.name != path.stem:
        raise InputError(
            f"The study file {path} declares the name '{found.name}'; name it '{path.stem}', as its results folder."
        )
    return found


def _line(error: BaseException, path: Path) -> str:
    if isinstance(error, SyntaxError):
        return f", line {error.lineno}"
    trace, line = error.__traceback__, None
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(path):
            line = trace.tb_lineno
        trace = trace.tb_next
    return f", line {line}" if line else ""
