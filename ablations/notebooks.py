"""Running the notebooks on a study's results and turning them into HTML.

Called by `report` and by the notebooks' tests.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nbformat
from jinja2 import DictLoader
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbconvert import HTMLExporter
from traitlets.config import Config

from lvlm.errors import InputError

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
NOTEBOOKS = {
    "languages": "01_number_of_languages",
    "english_share": "02_english_share",
    "captions": "02_english_share",
    "text": "03_text_in_image",
    "tower": "03_text_in_image",
    "tiles": "04_tiling",
    "learns": "07_paint",
    "pairs": "05_pivot",
    "alignment": "05_pivot",
}
"""Factor -> the notebook that reads its margin."""
ALL_NOTEBOOKS = (
    "01_number_of_languages",
    "02_english_share",
    "03_text_in_image",
    "04_tiling",
    "05_pivot",
    "06_drivers",
    "07_paint",
    "08_errors",
)
"""Every notebook that reads results."""

BESIDE = "pretraining"
"""A parameter that names a second study: set to None, so that nobody sees example records beside their own."""

FOLDED = """{%- extends 'basic/index.html.j2' -%}
{%- block input_group -%}<details><summary>code</summary>{{ super() }}</details>{%- endblock input_group -%}
"""
"""nbconvert's plain template with every code cell behind a fold."""


def read_notebook(stem: str) -> Any:
    """One of the notebooks, as committed."""
    path = FOLDER / f"{stem}.ipynb"
    if not path.exists():
        raise InputError(
            f"The notebook {path} does not exist; the notebooks lie beside the packages in a checkout of the toolkit."
        )
    return nbformat.read(path, as_version=4)


def run_notebooks(
    stems: Sequence[str],
    *,
    study: str | Path,
    home: str | Path | None = None,
    timeout_seconds: int = 180,
    allow_errors: bool = False,
) -> list[Any]:
    """Execute notebooks with their `parameters` cells set to this study (a name, or the folder of its results).

    They run one after the other in one fresh kernel, as its start and imports take longer than the cells. A cell that
    fails raises RuntimeError; with `allow_errors` the rest goes on and `first_error` tells.
    """
    notebooks = [read_notebook(stem) for stem in stems]
    place = Path(study).resolve() if Path(study).is_dir() else study
    for stem, notebook in zip(stems, notebooks, strict=True):
        tagged = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
        if len(tagged) != 1:
            raise InputError(
                f"The notebook {stem}.ipynb needs exactly one cell tagged 'parameters'; it has {len(tagged)}."
            )
        values = {"home": str(Path(home).resolve()) if home else None, "study": str(place), BESIDE: None}
        tagged[0].source += "".join(f"\n{name} = {value!r}" for name, value in values.items())
    together = nbformat.v4.new_notebook(metadata=notebooks[0].metadata)
    together.cells = [cell for notebook in notebooks for cell in notebook.cells]
    search = os.pathsep.join(filter(None, [str(FOLDER.parent), os.environ.get("PYTHONPATH")]))
    options: dict[str, Any] = {
        "timeout": timeout_seconds,
        "startup_timeout": timeout_seconds,
        "kernel_name": "python3",
        "allow_errors": allow_errors,
    }
    with tempfile.TemporaryDirectory(prefix="kernel-") as sockets:
        # Sockets in a private folder: nobody else on the machine can read what passes. Windows has TCP only.
        settings = {"KernelManager": {"transport": "ipc", "ip": f"{sockets}/s"}} if os.name == "posix" else {}
        client = NotebookClient(
            together, resources={"metadata": {"path": str(FOLDER)}}, config=Config(settings), **options
        )
        try:
            client.execute(env={**os.environ, "PYTHONPATH": search})
        except CellExecutionError as error:
            raise RuntimeError(f"A cell of {', '.join(stems)} failed on the results of '{study}': {error}") from error
    return notebooks


def first_error(notebook: Any) -> str | None:
    """The first error of an executed notebook, in one line."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if output.output_type == "error":
                return f"{output.ename}: {(output.evalue.strip().splitlines() or [''])[0]}"
    return None


def to_html(notebook: Any) -> str:
    """An executed notebook as an HTML fragment, figures inside, code folded, without its parameters cell."""
    shown = nbformat.from_dict(notebook)
    shown.cells = [cell for cell in shown.cells if "parameters" not in cell.metadata.get("tags", [])]
    exporter = HTMLExporter(extra_loaders=[DictLoader({"folded.html.j2": FOLDED})], template_file="folded.html.j2")
    fragment, _ = exporter.from_notebook_node(shown)
    return str(fragment)
