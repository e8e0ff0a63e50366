"""What a user sees in MLflow's pages, in a real browser: the arms with their factors, a comparison, plots and tables of
a run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sweeps.plan import Place, Plan
from sweeps.queue import Queue
from sweeps.tracking import Tracker
from sweeps.tracking_store import connect
from sweeps.worker import Worker
from tests.browser import needs_chromium
from tests.mlflow_pages import browser_page, compare, open_runs, served
from tests.sweeps_fakes import fake_study
from tests.sweeps_home import enqueued, lay_database

pytestmark = [
    pytest.mark.system,
    needs_chromium,
]

PICTURE = bytes.fromhex(  # one pixel
    "89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c4890000000d49444154789c6360606060000000050001a5f645"
    "400000000049454e44ae426082"
)


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, str, Path]]:
    """A page, the address of the study's runs, and the work folder: a finished sweep of 8 cells with its report."""
    home = tmp_path_factory.mktemp("pages") / "home"
    home.mkdir()
    lay_database(home)
    plan, place, queue = enqueued(home, fake_study(seeds=(0, 1)))
    Worker(plan, place).work()
    _report(place, plan, queue)
    with served(home) as address, browser_page() as page:
        yield page, address, home


def _report(place: Place, plan: Plan, queue: Queue) -> None:
    (place.folder / "effects.csv").write_text("metric,arm,points,low,high\nscore,en · tiles 2,9.75,8.5,11.0\n")
    (place.folder / "by_tiles.png").write_bytes(PICTURE)
    tracker = Tracker(place, plan)
    assert tracker.mark("FINISHED", queue.states()) and tracker.mark("RUNNING", queue.states())
    tracker.attach([place.folder / "effects.csv", place.folder / "by_tiles.png"])


def test_the_experiment_page_opens_on_the_arms_with_factors_and_main_scores_as_columns(
    shown: tuple[Any, str, Path],
) -> None:
    page, address, _ = shown
    rows = open_runs(page, address)
    assert rows.count() == 8, "the cells, without the parent run"
    names = [rows.nth(number).inner_text().strip() for number in range(8)]
    assert any("all · tiles 2 · seed 1" in name for name in names) and "tiles 2" in names[0], "best first"
    heads = {head.strip() for head in page.locator(".ag-header-cell").all_inner_texts()}
    wanted = {"languages", "tiles", "seed", "score/en", "score/multilingual", "fidelity/multilingual"}
    assert heads >= wanted and not heads & {"model.tiles", "vqa/en"}


def test_four_selected_runs_compare_as_parallel_coordinates_and_by_what_differs(shown: tuple[Any, str, Path]) -> None:
    page, address, _ = shown
    compare(page, open_runs(page, address), (0, 2, 4, 6))
    page.get_by_text("Comparing 4 Runs").wait_for()
    assert page.get_by_role("tab", name="Parallel Coordinates Plot").get_attribute("aria-selected") == "true"
    params = page.get_by_role("table").filter(has_text="instruct.optim.clip")
    params.wait_for()
    page.get_by_role("switch", name="Parameters - Show diff only").click()
    params.wait_for(state="detached")
    table = page.get_by_role("table").filter(has_text="model.tiles")
    keys = {row.split("\t")[0].strip() for row in table.inner_text().splitlines() if "\t" in row}
    assert {"tiles", "model.tiles", "seed"} <= keys and "instruct.lora.r" not in keys


def test_a_run_page_shows_its_plots_and_tables(shown: tuple[Any, str, Path]) -> None:
    page, address, home = shown
    base = address.partition("/#/")[0]
    runs = connect(home).search_runs(["1"])
    child = next(run for run in runs if "cell_id" in run.data.tags).info
    parent = next(run for run in runs if "cell_id" not in run.data.tags).info
    link = f"{base}/#/experiments/{child.experiment_id}/runs"

    page.goto(f"{link}/{child.run_id}")
    for text in ("score/multilingual", "shapes", "Datasets"):
        page.get_by_text(text).first.wait_for()
    page.goto(f"{link}/{child.run_id}/system-metrics")
    page.get_by_text("cpu_utilization_percentage").first.wait_for()
    page.goto(f"{link}/{child.run_id}/model-metrics")
    page.locator(".js-plotly-plot").first.wait_for()
    page.get_by_text("multilingual", exact=True).first.wait_for()
    page.goto(f"{link}/{child.run_id}/artifacts/scores.json")
    page.get_by_text("View as table").wait_for()
    page.get_by_role("columnheader", name="fidelity").or_(page.get_by_text("fidelity", exact=True)).first.wait_for()

    page.goto(f"{link}/{parent.run_id}")
    page.get_by_text("Does a study that trains nothing find anything?").first.wait_for()
    page.get_by_text("cells_done").first.wait_for()
    page.goto(f"{link}/{parent.run_id}/artifacts/effects.json")
    page.get_by_text("9.75").first.wait_for()
    page.goto("about:blank")
    page.goto(f"{link}/{parent.run_id}/artifacts/plots/by_tiles.png")
    page.locator("img[src*='by_tiles'], img[src^='blob:'], .js-plotly-plot").first.wait_for()
