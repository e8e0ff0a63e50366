"""Tables for a paper: its rows and columns, intervals, and bold only where the best is told apart."""

from __future__ import annotations

import re
from dataclasses import replace

import matplotlib
import pytest

matplotlib.use("Agg")

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
    assert list(found.rows) == ["English only", "T5", "T5-T3", "all languages (baseline)"]
    assert "baseline" in results.layout().rows and f"Baseline: {results.baseline}." in found.caption
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


def checked_lines(latex: str) -> list[str]:
    """The lines between the rules of a table, its groups, cells and escapes looked at as LaTeX would."""
    assert latex.isascii(), "any engine reads it"
    depth = 0
    for sign in re.sub(r"\\[\\{}]", "", latex):
        depth += {"{": 1, "}": -1}.get(sign, 0)
        assert depth >= 0
    assert depth == 0 and latex.replace(r"\$", "").count("$") % 2 == 0
    assert latex.count(r"\begin{") == latex.count(r"\end{") == 2
    assert not re.search(r"(?<!\\)[%#_~^]", latex.replace("$^{*}$", ""))
    assert not re.search(r"\\\\\s*[\[*](?!2pt\])", latex), "no option of a line break"
    columns = re.search(r"\\begin\{tabular\}\{(lr*)\}", latex)[1]
    lines = latex[latex.index(r"\toprule") : latex.index(r"\bottomrule")].splitlines()
    rows = [line for line in lines if not line.endswith("rule")]
    assert all(re.search(r"\\\\(\[2pt\])?$", line) for line in rows)
    assert {len(re.findall(r"(?<!\\)&", line)) + 1 for line in rows} == {len(columns)}
    return rows


def test_latex_is_whole_and_escaped(results):
    text = results.to_latex(factor="english_share")
    rows, arms = checked_lines(text), results.margin("english_share")
    assert len(rows) == 1 + 2 * len(arms) + 1, "heads, a number and an interval for each arm, the smallest visible"
    assert r"1\% English" in text and r"50\% English" in text
    for word in (r"\begin{table*}", r"\toprule", r"\caption{", r"\label{tab:drivers-score-levels}", r"\end{table*}"):
        assert text.count(word) == 1
    bare = results.to_latex(factor="tiles", intervals=False)
    assert bare.count(r"\scriptsize") == 0 and len(checked_lines(bare)) == 4
    assert r"\rlap{$^{*}$}" in results.to_latex(show="differences")
    assert len(checked_lines(results.to_latex(show="differences", metric="fidelity", task="vqa"))) > 2


def test_latex_of_any_names_is_read_as_names():
    nasty = r"[a]_b & 50% #1 {x}~^ \ * $ <·×−±–>"
    cells = (Cell(-1.25, -2.0, -0.5, is_best=True, excludes_zero=True, signed=True), Cell(*[float("nan")] * 3))
    rows = {nasty: cells, "*": cells, "[2pt] of a name that is long enough for two lines": cells}
    text = Layout(("T5", "a_b"), rows, nasty, "x", ("1.0–2.0", "–")).to_latex()
    assert len(checked_lines(text)) == 1 + 2 * 3 + 1
    assert r"{[}a]\_b \& 50\% \#1" in text and r"\textbackslash{}" in text and "1.0--2.0" in text


def test_the_last_row_has_the_smallest_visible_difference_of_the_arms(results):
    for options in ({}, {"show": "differences"}, {"factor": "tiles", "metric": "fidelity"}):
        found, metric = results.layout(**options), options.get("metric", "score")
        arms = results.margin("tiles") if "factor" in options else list(results.arms().index)
        for column, group in ((0, "multilingual"), (-1, "T1")):
            own = [effect(results, arm, metric=metric, group=group).smallest for arm in arms if arm != results.baseline]
            ends = dict.fromkeys(f"{one:.1f}" for one in (min(own), max(own)))
            assert found.smallest[column] == "–".join(ends)
        for text in (found.to_markdown(), found._repr_html_(), found.to_latex()):
            assert "smallest visible" in text and "80 % power" in text.replace(r"\%", "%")
    alone = replace(results, table=results.table[results.table["seed"] == 0], wide={})
    assert alone.layout().smallest == () and "Last row" not in alone.layout().caption


def test_markdown_has_as_many_cells_in_every_line(results):
    lines = [line for line in results.to_markdown(task="vqa").splitlines() if line.startswith("|")]
    assert {line.count("|") for line in lines} == {9} and len(lines) == 2 + len(results.arms()) + 1


def test_jupyter_shows_headers_as_such(results):
    page = results.layout(factor="tiles")._repr_html_()
    assert page.count("scope='col'") == 7 and page.count("scope='row'") == 3 and "<caption" in page


def test_bad_options_are_sentences(results):
    with pytest.raises(InputError, match="'levels' or 'differences', not 'ranks'"):
        results.layout(show="ranks")
    with pytest.raises(InputError, match="not both"):
        results.layout(arms=[results.baseline], factor="tiles")
    for options in ({"arms": []}, {"arms": [None], "show": "differences"}):
        with pytest.raises(InputError, match="No arm is left for the table"):
            results.layout(**options)
