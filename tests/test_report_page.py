"""The report in a real browser: tables sort by keyboard, answers are filtered and turned over, everything has a name
that can be read out, and it prints."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib
import pytest

matplotlib.use("Agg")

from ablations import load_results
from ablations.report import write_report
from ablations.report.printing import write_pdf
from lvlm.errors import InputError
from tests.browser import browser_page, needs_chromium
from tests.synthetic_results import write_answers, write_study


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    study = write_study(home, "drivers")
    write_answers(home / "studies" / "drivers", study, items=4)
    return write_report(load_results("drivers", home=home), notebooks=False)


@pytest.fixture(scope="module")
def page(report: Path) -> Iterator[Any]:
    with browser_page(width=1200) as page:
        faults: list[str] = []
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.goto(report.as_uri())
        yield page
        assert not faults


def column(table: Any, number: int) -> list[str]:
    return [row.locator("th, td").nth(number).inner_text() for row in table.locator("tbody tr").all()]


@pytest.mark.system
@needs_chromium
def test_a_table_is_sorted_with_the_keyboard_and_says_so(page: Any) -> None:
    table = page.locator("table.sortable").filter(has_text="Score by tier")
    head = table.locator("thead th").nth(5)
    first = column(table, 5)
    button = head.get_by_role("button")
    button.focus()
    page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "ascending"
    numbers = [float(text.split()[0]) for text in column(table, 5)]
    assert numbers == sorted(numbers) and sorted(column(table, 5)) == sorted(first)
    page.keyboard.press("Space")
    assert head.get_attribute("aria-sort") == "descending"
    assert [float(text.split()[0]) for text in column(table, 5)] == sorted(numbers, reverse=True)
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Enter")
    assert table.locator("th[aria-sort]").count() == 1, "one column at a time"


@pytest.mark.system
@needs_chromium
def test_columns_of_small_numbers_bounds_and_intervals_are_sorted_by_number(page: Any) -> None:
    cells = ["0.25", "9.8e-05", "> 200", "14", "[-3.1, 2.0]", "\u2013", "1,000"]
    rows = "".join(f"<tr><td>{text}</td></tr>" for text in cells)
    page.evaluate(
        """(rows) => {
          const made = document.createElement("table");
          made.id = "made";
          const head = '<caption>made</caption><thead><tr><th scope="col">x</th></tr></thead>';
          made.innerHTML = `${head}<tbody>${rows}</tbody>`;
          document.body.append(made);
          sortable(made);
        }""",
        rows,
    )
    page.locator("#made button").click()
    ordered = ["[-3.1, 2.0]", "9.8e-05", "0.25", "14", "> 200", "1,000", "\u2013"]
    assert column(page.locator("#made"), 0) == ordered
    page.evaluate("document.getElementById('made').remove()")


@pytest.mark.system
@needs_chromium
def test_a_narrow_page_shows_figures_of_a_column_and_whole_words(page: Any) -> None:
    shown = "[...document.querySelectorAll('.picture img')].map((one) => one.naturalWidth)"
    wide = page.evaluate(shown)
    page.set_viewport_size({"width": 420, "height": 800})
    page.wait_for_function(f"{shown}.every((width) => width < 600)")
    assert len(wide) >= 5 and min(wide) > 1100
    narrow = "[...document.querySelectorAll('.cards tbody th')].filter((one) => one.scrollWidth > one.clientWidth + 1)"
    assert not page.evaluate(f"{narrow}.length")
    page.set_viewport_size({"width": 1200, "height": 900})


@pytest.mark.system
@needs_chromium
def test_answers_are_chosen_by_arm_task_language_and_what_became_of_them(page: Any) -> None:
    place = page.locator("#answers-browser")
    status = place.get_by_role("status")
    assert status.inner_text() == f"{7 * 16 * 4 * 2} answers to {16 * 4 * 2} questions; questions 1 to 10 are shown."
    assert place.locator("article img").count() == 10 and "pixel" not in status.inner_text()
    page.get_by_label("arm", exact=True).select_option(label="English only")
    page.get_by_label("language", exact=True).select_option(label="Georgian")
    page.get_by_label("task", exact=True).select_option(label="vqa")
    assert status.inner_text().startswith("4 answers to 4 questions")
    assert set(place.locator("article tbody th").all_inner_texts()) == {"English only"}
    page.get_by_label("what became of it").select_option(label="right")
    rows = place.locator("article tbody tr").count()
    for kind in ("right, in another language", "wrong", "wrong, in another language", "wrong, language undetermined"):
        page.get_by_label("what became of it").select_option(label=kind)
        rows += place.locator("article tbody tr").count()
    assert rows == 4, "every answer is of one kind"
    for name in ("arm", "language", "task", "what became of it"):
        page.get_by_label(name, exact=True).select_option(label="all")
    onward, back = (place.get_by_role("button", name=name) for name in ("Next questions", "Back"))
    assert back.is_disabled()
    onward.focus()
    page.keyboard.press("Enter")
    assert "questions 11 to 20" in status.inner_text() and back.is_enabled()
    assert place.locator("script").count() == 0 and "<script>1" in place.inner_text(), "answers are text"


@pytest.mark.system
@needs_chromium
def test_the_page_has_names_for_whoever_does_not_see_it(page: Any) -> None:
    for role in ("main", "banner"):
        assert page.get_by_role(role).count() == 1
    assert page.get_by_role("navigation", name="Contents").get_by_role("link").count() >= 8
    assert page.locator("h1").count() == 1
    assert not page.evaluate("[...document.images].filter((image) => image.alt.trim().length < 20).length")
    assert not page.evaluate("[...document.querySelectorAll('table')].filter((table) => !table.caption).length")
    assert not page.evaluate("[...document.querySelectorAll('th')].filter((head) => !head.scope).length")
    assert not page.evaluate("[...document.querySelectorAll('select')].filter((one) => !one.labels.length).length")
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map((one) => one.id)")
    assert len(ids) == len(set(ids))
    links = page.evaluate("[...document.querySelectorAll('nav a')].map((one) => one.getAttribute('href').slice(1))")
    assert set(links) <= set(ids)
    levels = page.evaluate("[...document.querySelectorAll('h1,h2,h3,h4')].map((one) => Number(one.tagName[1]))")
    assert all(after - before <= 1 for before, after in pairwise(levels))
    page.goto(page.url.partition("#")[0])
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    page.keyboard.press("Enter")
    assert page.url.endswith("#content")


@pytest.mark.system
@needs_chromium
def test_on_a_narrow_screen_nothing_but_tables_scrolls_sideways(page: Any) -> None:
    page.set_viewport_size({"width": 420, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 430
    page.set_viewport_size({"width": 1200, "height": 900})


@pytest.mark.system
@needs_chromium
def test_the_report_prints_as_pdf(report: Path) -> None:
    path = write_pdf(report)
    data = path.read_bytes()
    assert path == report.with_suffix(".pdf") and data.startswith(b"%PDF") and len(data) > 50_000
    assert [one.name for one in report.parent.glob(".*.tmp")] == []


def test_without_a_browser_the_error_says_what_to_install(report: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(InputError, match=r"needs Chromium or Chrome.*apt-get install chromium.*report\.html"):
        write_pdf(report)


def test_a_browser_that_prints_nothing_leaves_nothing(
    report: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "chromium"
    broken.write_text("#!/bin/sh\necho no display >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr(shutil, "which", lambda name: str(broken))
    before = sorted(report.parent.iterdir())
    with pytest.raises(InputError, match=r"did not print .*: no display"):
        write_pdf(report)
    assert sorted(report.parent.iterdir()) == before
