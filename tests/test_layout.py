"""Tables for a paper: its rows and columns, intervals, and bold only where the best is told apart."""

from __future__ import annotations

import re

import pytest

from ablations import load_results
from ablations.contrasts import effect, level
from ablations.layout import Cell, Layout
from lvlm.errors import InputError
from tests.synthetic_results import write_study


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    write_study(home, "drivers")
    return load_results("drivers", home=home)


def test_rows_are_arms_and_columns_the_average_english_and_tiers(results):
    found = results.layout(factor="languages")
    assert found.columns == ("multil.", "en", "T5", "T4", "T3", "T2", "T1")
    assert [name for name in found.rows if "baseline" not in name] == ["English only", "T5", "T5-T3"]
    one = found.rows["English only"][-1]
    mean = level(results, {"languages": "en"}, metric="score", group="T1")
    assert (one.value, one.low, one.high) == (mean.estimate, mean.low, mean.high)
    assert "t intervals over seeds" in found.caption and "seeds" in found.caption


def test_the_best_is_bold_only_where_it_is_told_apart_from_every_other_arm(results):
    for factor in ("languages", "english_share", "tiles"):
        arms = results.margin(factor)
        rows = list(results.layout(factor=factor).rows.values())
        for column, group in enumerate(("multilingual", "en", "T5", "T4", "T3", "T2", "T1")):
            bold = [row for row in range(len(arms)) if rows[row][column].is_best]
            best = max(range(len(arms)), key=lambda row: rows[row][column].value)
            beaten = [
                effect(results, arms[best], arm, metric="score", group=group) for arm in arms if arm != arms[best]
            ]
            assert bold == ([best] if all(one.low > 0 for one in beaten) else [])
    every = [cell for row in results.layout().rows.values() for cell in row]
    assert sum(cell.is_best for cell in every) < 7, "two shares or tiles are within noise somewhere"


def test_two_arms_of_the_same_scores_have_no_best():
    cells = (Cell(50.0, 49.0, 51.0), Cell(50.0, 49.0, 51.0))
    assert "**" not in Layout(("T5", "T1"), {"a": cells}, "", "x").to_markdown()


def test_differences_leave_out_the_baseline_and_star_what_excludes_zero(results):
    found = results.layout(show="differences", metric="fidelity")
    assert len(found.rows) == len(results.arms()) - 1
    one = effect(results, {"languages": "en"}, metric="fidelity", group="multilingual")
    cell = found.rows["English only"][0]
    assert cell.value == one.points and cell.excludes_zero == (one.verdict == "shown")
    text = found.to_markdown()
    assert f"{one.points:+.1f} [{one.low:+.1f}, {one.high:+.1f}] *".replace("-", "−") in text


def test_latex_is_whole_and_escaped(results):
    text = results.to_latex(factor="english_share")
    body = text[text.index(r"\midrule") : text.index(r"\bottomrule")]
    lines = [line for line in body.splitlines() if line.endswith(r"\\")]
    assert len(lines) == len(results.margin("english_share")) and all(line.count("&") == 7 for line in lines)
    assert text.count("{") == text.count("}") and text.count("$") % 2 == 0
    assert r"1\% English" in text and not re.search(r"(?<!\\)%", text) and not re.search(r"(?<!\\)_", text)
    assert text.isascii(), "any engine reads it"
    for word in (r"\begin{table}", r"\toprule", r"\caption{", r"\label{tab:drivers-score-levels}", r"\end{table}"):
        assert text.count(word) == 1
    assert results.to_latex(factor="tiles", intervals=False).count(r"\scriptsize") == 0


def test_markdown_has_as_many_cells_in_every_line(results):
    lines = [line for line in results.to_markdown(task="vqa").splitlines() if line.startswith("|")]
    assert {line.count("|") for line in lines} == {9} and len(lines) == 2 + len(results.arms())


def test_jupyter_shows_headers_as_such(results):
    page = results.layout(factor="tiles")._repr_html_()
    assert page.count("scope='col'") == 7 and page.count("scope='row'") == 2 and "<caption" in page


def test_bad_options_are_sentences(results):
    with pytest.raises(InputError, match="'levels' or 'differences', not 'ranks'"):
        results.layout(show="ranks")
    with pytest.raises(InputError, match="not both"):
        results.layout(arms=[results.baseline], factor="tiles")
