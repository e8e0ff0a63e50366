"""The notebook of painting runs on results of its study and shows the pictures that runs keep."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from ablations.example import write_example
from ablations.notebooks import read_notebook, run_notebooks
from ablations.studies import Arm, load_study
from ablations.table import tidy, write_results
from lvlm.data.worlds.lexicon import lexicon_codes
from lvlm.errors import InputError
from lvlm.paint.sheet import side_by_side
from lvlm.records import PAINT_METRICS, write_table

STEM = "07_paint"
FLAT = {"random": 1.4, "ceiling": 100.0, "empty": 1.4, "frechet": 0.1, "gap": 20.0, "agreement": 50.0}


def made_up(arm: Arm, seed: int) -> pd.DataFrame:
    """Scores of one run: English above the others, which translated captions lift."""
    rng = np.random.default_rng(seed)
    rows = []
    for code in lexicon_codes():
        score = 80 if code == "en" else 60 if arm.levels["data"] == "translated" else 30
        for metric in ("score", "random", *PAINT_METRICS):
            value = FLAT.get(metric, score + rng.normal(0, 3))
            rows.append({"task": "paint", "language": code, "metric": metric, "value": value, "n": 72})
        retrieval = 80.0 if arm.levels["llm"] == "aligned" else 55.0
        rows.append({"task": "alignment", "language": code, "metric": "retrieval", "value": retrieval, "n": 200})
    return pd.DataFrame(rows)


def write_run(folder: Path) -> None:
    """Predictions with their pictures, as a run keeps them."""
    rows = []
    for code in ("en", "de", "ar"):
        for number in range(8):
            name = f"pictures/{code}/{number}.png"
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (12, 12), (20 * number, 0, 0)).save(folder / name)
            row = {"task": "paint", "language": code, "item": str(number), "image": name, "score": 100.0 * (number % 2)}
            rows.append(row | {"answer": "colour:red shape:cross place:left"})
    write_table(folder / "predictions.parquet", pd.DataFrame(rows))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A work folder with the results of the study, made up, and the pictures of one run."""
    home = tmp_path_factory.mktemp("home")
    study = load_study("paint_transfer")
    cells = study.cells()
    folder = home / "studies/paint_transfer"
    write_results(folder, tidy(study, [(cell, made_up(cell.arm, cell.seed)) for cell in cells]), planned=cells)
    write_run(folder / "cells" / cells[0].id)
    return home


def test_the_notebook_is_kept_without_outputs_and_in_short_cells() -> None:
    notebook = read_notebook(STEM)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
    assert all(len(cell.source.splitlines()) <= 12 for cell in code)
    assert not [line for cell in code for line in cell.source.splitlines() if len(line) > 120]
    assert "**Question.**" in notebook.cells[0].source


def test_the_notebook_runs_and_shows_pictures_and_tables(home: Path) -> None:
    (done,) = run_notebooks([STEM], study="paint_transfer", home=home)
    outputs = [output for cell in done.cells if cell.cell_type == "code" for output in cell.outputs]
    kinds = [set(output.get("data", {})) for output in outputs]
    assert sum("image/png" in kind for kind in kinds) == 2, "the sheet and the figure"
    text = "".join(output["data"].get("text/plain", "") for output in outputs if "data" in output)
    assert "T1" in text and "1.4" in text
    (aligned,) = [line for line in text.splitlines() if line.startswith("retrieval, multilingual")]
    assert float(aligned.split()[2]) == 25


def test_a_sheet_has_a_row_for_every_language_and_frames_what_is_right(home: Path) -> None:
    cell = load_study("paint_transfer").cells()[0].id
    sheet = side_by_side(home / "studies/paint_transfer/cells" / cell, items=4, side=24)
    assert sheet.height > 3 * 24 and sheet.width > 4 * 24
    colours = {colour for _, colour in sheet.getcolors(1 << 20)}
    assert (40, 150, 70) in colours or (190, 190, 190) in colours
    _, kept = sheet._repr_mimebundle_()
    assert re.fullmatch(r"What 4 prompts .* Right in every attribute: en \d, ar \d, de \d\.", kept["image/png"]["alt"])
    with pytest.raises(InputError, match=r"predictions\.parquet"):
        side_by_side(home)


def test_example_records_keep_what_the_sheet_shows(home: Path, tmp_path: Path) -> None:
    place = write_example(home / "studies/paint_transfer", into=tmp_path)
    cell = load_study("paint_transfer").cells()[0].id
    own, kept = (side_by_side(folder / "cells" / cell) for folder in (home / "studies/paint_transfer", place))
    assert own.tobytes() == kept.tobytes()
    assert len(list((place / "cells" / cell).rglob("*.png"))) == 3 * 6
