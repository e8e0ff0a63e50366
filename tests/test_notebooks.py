"""The notebooks: kept without outputs, short, and they run on example records and on anybody's own."""

from __future__ import annotations

import matplotlib
import pytest

matplotlib.use("Agg")

from ablations import plots
from ablations.notebooks import ALL_NOTEBOOKS, NOTEBOOKS, first_error, read_notebook, run_notebooks, to_html
from ablations.places import list_examples
from tests.synthetic_results import write_answers, write_study

STUDIES = {"languages": "number_of_languages", "english_share": "english_share", "tiles": "tiling"}


def parameters(stem):
    """The values of a notebook's parameter cell."""
    (cell,) = [cell for cell in read_notebook(stem).cells if "parameters" in cell.metadata.get("tags", [])]
    names: dict[str, object] = {}
    exec(cell.source, names)
    return {name: value for name, value in names.items() if not name.startswith("__")}


@pytest.mark.parametrize("stem", ALL_NOTEBOOKS)
def test_a_notebook_holds_no_outputs_and_only_short_cells(stem):
    notebook = read_notebook(stem)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
    assert all(len(cell.source.splitlines()) <= 12 for cell in code)
    assert all(len(line) <= 120 for cell in code for line in cell.source.splitlines())
    assert notebook.cells[0].cell_type == "markdown" and "**Question.**" in notebook.cells[0].source
    assert {"home", "study"} <= set(parameters(stem)), "what to change stands on top"
    assert code[0].metadata.get("tags") == ["parameters"] and code[1].source.endswith("results"), "then whose they are"
    assert set(NOTEBOOKS.values()) <= set(ALL_NOTEBOOKS)


def test_every_notebook_runs_on_the_example_records_it_opens_on(tmp_path):
    own = {stem: parameters(stem)["study"] for stem in ALL_NOTEBOOKS}
    for study in sorted(set(own.values()) & set(list_examples())):
        stems = [stem for stem in own if own[stem] == study]
        done = run_notebooks(stems, study=study, home=tmp_path, timeout_seconds=240)
        for notebook in done:
            page = to_html(notebook)
            assert first_error(notebook) is None and "not your own runs" in page
            assert "data:image/png;base64," in page and 'alt=""' not in page and "No description" not in page


def test_notebooks_on_a_study_of_ones_own_show_no_example(tmp_path):
    study = write_study(tmp_path, "drivers")
    write_answers(tmp_path / "studies" / "drivers", study, items=4)
    stems = ["01_number_of_languages", "02_english_share", "04_tiling", "08_errors"]
    done = run_notebooks(stems, study="drivers", home=tmp_path)
    for notebook in done:
        page = to_html(notebook)
        assert "Your own records: studies/drivers" in page.replace("</b>", "").replace("<b>", "")
        assert "xample records" not in page.partition("Trains nothing")[2] and str(tmp_path) not in page
    code = [cell for notebook in done for cell in notebook.cells if cell.cell_type == "code"]
    said = [output["data"]["text/plain"] for cell in code for output in cell.outputs if "data" in output]
    assert "'Reading is asked by the study `tiling`, not by this one.'" in said
    assert "'No study on pre-training is read here: name one in `pretraining`.'" in said
    page = to_html(done[0])
    assert page.count("data:image/png;base64,") == 4 and "<summary>code</summary>" in page


@pytest.mark.parametrize(
    ("stem", "study"),
    [("01_number_of_languages", "number_of_languages"), ("02_english_share", "english_share"),
     ("02_english_share", "pretrain_share"), ("03_text_in_image", "text_in_image"), ("04_tiling", "tiling"),
     ("06_drivers", "english_share"), ("06_drivers", "tiling"), ("08_errors", "tiling")],
)  # fmt: skip
def test_a_notebook_reads_its_own_study_too(tmp_path, monkeypatch, stem, study):
    declared = write_study(tmp_path, study)
    write_answers(tmp_path / "studies" / study, declared, items=2)
    drawn, by_tier = [], plots.by_tier

    def noted(*arguments, task=None, **options):
        drawn.append(task)
        return by_tier(*arguments, task=task, **options)

    monkeypatch.setattr(plots, "by_tier", noted)
    names: dict[str, object] = {}
    for cell in read_notebook(stem).cells:
        if "parameters" in cell.metadata.get("tags", []):
            names.update(home=None, study=str(tmp_path / "studies" / study), pretraining=None)
        elif cell.cell_type == "code":
            exec(compile(cell.source, stem, "exec"), names)
    assert study in str(names["results"])
    if stem == "04_tiling":
        assert "reading" in drawn
