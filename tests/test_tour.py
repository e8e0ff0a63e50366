"""The tour runs as committed, with small numbers, and what it shows is what the run recorded."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import nbformat
import pandas as pd
import pytest
from nbclient import NotebookClient
from traitlets.config import Config

from lvlm.data.corpus import open_corpus
from lvlm.data.gallery import Gallery, gallery
from lvlm.records import RunRecord
from tests.tiny import tiny_image
from tests.train_world import write_corpus

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"


def read_tour() -> Any:
    return nbformat.read(NOTEBOOKS / "00_tour.ipynb", as_version=4)


def test_the_tour_is_kept_without_outputs_and_in_short_cells() -> None:
    code = [cell for cell in read_tour().cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
    assert all(len(cell.source.splitlines()) <= 15 for cell in code)
    assert not [line for cell in code for line in cell.source.splitlines() if len(line) > 120]
    assert sum("parameters" in cell.metadata.get("tags", []) for cell in code) == 1


@pytest.fixture(scope="module")
def toured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """The executed notebook and its work folder."""
    home = tmp_path_factory.mktemp("tour")
    notebook = read_tour()
    (parameters,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    parameters.source += f"\nhome, samples, items = {str(home)!r}, 24, 2"
    before = sorted(NOTEBOOKS.iterdir())
    options = {"timeout": 120, "startup_timeout": 120, "kernel_name": "python3"}
    with tempfile.TemporaryDirectory(prefix="kernel-") as sockets:
        settings = Config({"KernelManager": {"transport": "ipc", "ip": f"{sockets}/s"}} if os.name == "posix" else {})
        place = {"metadata": {"path": str(NOTEBOOKS)}}
        NotebookClient(notebook, resources=place, config=settings, **options).execute()
    assert sorted(NOTEBOOKS.iterdir()) == before, "the tour writes into its home only"
    return notebook, home


def outputs(notebook: Any, kind: str) -> list[str]:
    return [
        output.data[kind]
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if kind in output.get("data", {})
    ]


def test_the_tour_shows_images_a_curve_and_the_run_s_own_numbers(toured: tuple[Any, Path]) -> None:
    notebook, home = toured
    (path,) = (home / "tour").glob("*/record.json")
    record = RunRecord.load(path.parent)
    assert record.budget["samples"] == 2 * 24 and Path(record.provenance["model"]).is_dir()
    pages = outputs(notebook, "text/html")
    assert [page.count("<img") for page in pages if "<img" in page] == [2, 2, 5, 1]
    assert "Describe the image." in pages[0] and "Beschreibe das Bild." in pages[0] and 'dir="auto"' in pages[0]
    assert len(outputs(notebook, "image/png")) == 2, "the training curve, and a figure of the example records"
    scores = pd.read_parquet(path.parent / "scores.parquet").query("task == 'vqa'")
    (page,) = [page for page in pages if "score_any_language" in page]
    table = ElementTree.fromstring(page[page.index("<table") : page.index("</div>")])
    _, _, *rows = [[cell.text for cell in row] for row in table.iter("tr")]
    assert [row[0] for row in rows] == ["en", "de", "ar", "ka", "sw"]
    values = scores.set_index(["language", "metric"])["value"]
    metrics = ["score", "score_any_language", "fidelity", "undetermined", "majority"]
    shown = {(code, metric): float(cell) for code, *cells in rows for metric, cell in zip(metrics, cells, strict=True)}
    assert shown == pytest.approx({key: values[key] for key in shown}, abs=0.051, nan_ok=True)


def test_the_tour_shows_where_a_sweep_is_watched_and_that_its_records_are_examples(toured: tuple[Any, Path]) -> None:
    notebook, _ = toured
    assert any("python -m sweeps launch drivers" in text for text in outputs(notebook, "text/plain"))
    assert sum("not your own runs" in page for page in outputs(notebook, "text/html")) == 1


def test_the_tour_prints_two_plans_and_no_warning(toured: tuple[Any, Path]) -> None:
    notebook, _ = toured
    streams = [
        output for cell in notebook.cells for output in cell.get("outputs", []) if output.output_type == "stream"
    ]
    assert not [output.text for output in streams if output.name == "stderr"]
    plans = [output.text for output in streams if "translatable corpora" in output.text]
    english, half = plans[0], plans[1]
    assert " en                  24 100.00%" in english and "T1" not in english
    assert " en                  12  50.00%" in half and "T1" in half


def test_a_gallery_has_one_card_per_image_and_escapes_its_texts(tmp_path: Path) -> None:
    found = gallery(open_corpus(write_corpus(tmp_path / "noise")), "train", languages=["en", "de"], samples=6)
    assert [path.name for path in found.cards] == ["0.png", "1.png", "2.png", "3.png", "4.png"], (
        "the sixth has no image"
    )
    assert [code for code, _, _ in found.cards[tmp_path / "noise/images/1.png"]] == ["en", "en", "de", "de"]
    tiny_image().save(tmp_path / "one.png")
    page = Gallery({tmp_path / "one.png": [("ar", "<b>", "أحمر & x")]})._repr_html_()
    assert "<b>" not in page and "&lt;b&gt;" in page and "أحمر &amp; x" in page and "Arabic" in page
