"""The notebooks: kept without outputs, short, and they run on a study's results."""

from __future__ import annotations

import matplotlib
import pytest

matplotlib.use("Agg")

from ablations import plots
from ablations.notebooks import NOTEBOOKS, read_notebook, run_notebooks, to_html
from tests.synthetic_results import write_study

ONE_FACTOR = {"languages": "number_of_languages", "english_share": "english_share", "tiles": "tiling"}


@pytest.mark.parametrize("stem", NOTEBOOKS.values())
def test_a_notebook_holds_no_outputs_and_only_short_cells(stem):
    notebook = read_notebook(stem)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
    assert all(len(cell.source.splitlines()) <= 12 for cell in code)
    assert sum("parameters" in cell.metadata.get("tags", []) for cell in code) == 1
    assert notebook.cells[0].cell_type == "markdown" and "**Question.**" in notebook.cells[0].source


def test_all_notebooks_run_on_the_drivers_and_become_html(tmp_path):
    write_study(tmp_path, "drivers")
    done = run_notebooks(list(NOTEBOOKS.values()), study="drivers", home=tmp_path)
    code = [cell for notebook in done for cell in notebook.cells if cell.cell_type == "code"]
    figures = [output for cell in code for output in cell.outputs if "image/png" in output.get("data", {})]
    assert len(figures) == 3 + 2 + 1, "each figure once"
    said = [output["data"]["text/plain"] for cell in code for output in cell.outputs if "data" in output]
    assert "'Reading is asked by the study `tiling`, not by this one.'" in said
    page = to_html(done[0])
    assert page.count("data:image/png;base64,") == 3 and "<summary>code</summary>" in page
    assert "3 seeds" in page and str(tmp_path) not in page


@pytest.mark.parametrize(("factor", "study"), ONE_FACTOR.items())
def test_a_notebook_reads_its_one_factor_study_too(tmp_path, monkeypatch, factor, study):
    write_study(tmp_path, study)
    names: dict[str, object] = {}
    drawn, by_tier = [], plots.by_tier

    def noted(*arguments, task=None, **options):
        drawn.append(task)
        return by_tier(*arguments, task=task, **options)

    monkeypatch.setattr(plots, "by_tier", noted)
    for cell in read_notebook(NOTEBOOKS[factor]).cells:
        if "parameters" in cell.metadata.get("tags", []):
            names.update(home=None, study=str(tmp_path / "studies" / study))
        elif cell.cell_type == "code":
            exec(compile(cell.source, NOTEBOOKS[factor], "exec"), names)
    assert study in str(names["results"])
    assert ("reading" in drawn) == (study == "tiling")
