"""The parts of the report on all arms at once: they show the numbers of the functions that notebooks call, each where
the design allows it, and say why not elsewhere."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import matplotlib
import pytest

matplotlib.use("Agg")

from ablations import load_results, plots
from ablations.report import overall
from ablations.report.frame import Section
from ablations.studies import load_study
from ablations.table import BUDGET_FILE, Results
from tests.synthetic_results import write_study


def made(tmp_path_factory: pytest.TempPathFactory, name: str, budget: str = "default") -> Results:
    home = tmp_path_factory.mktemp(name)
    write_study(home, name, budget=budget)
    return load_results(name, home=home)


@pytest.fixture(scope="module")
def drivers(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return made(tmp_path_factory, "drivers")


@pytest.fixture(scope="module")
def shares(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return made(tmp_path_factory, "english_share")


def rows(section: Section) -> dict[str, list[str]]:
    """First cell -> the other cells, of every row of every table."""
    found = re.findall(r"<tr><th scope='row'>(.*?)</th>(.*?)</tr>", section.body)
    return {name: re.findall(r"<td[^>]*>(.*?)</td>", cells) for name, cells in found}


def test_a_curve_stands_with_the_best_level_of_every_tier_and_its_interval(shares: Results) -> None:
    (section,) = overall.curves(shares)
    assert section.title == "Along the English share" and section.body.count("<picture>") == 1
    assert "How to read it" in section.body and "sortable" in section.body
    shown = rows(section)
    assert list(shown) == ["English", "T5", "T4", "T3", "T2", "T1", "multilingual"]
    for name, group in (("T1", "T1"), ("English", "en"), ("multilingual", "multilingual")):
        one = shares.response("english_share", group=group)
        best, bounds, where, apart, seeds = shown[name]
        assert (best, where, seeds) == (f"{one.optimum.estimate:.0%}", one.interior, "5")
        assert bounds == f"[{one.optimum.low:.0%}, {one.optimum.high:.0%}]"
        assert ("points [" in apart) == (name != "multilingual")


def test_a_factor_that_is_crossed_with_the_curve_s_has_a_curve_at_each_of_its_levels(tmp_path: Path) -> None:
    crossed = load_results("examples/translation_quality", home=tmp_path)
    (section,) = overall.curves(crossed)
    parts = section.body.split("<h3>")
    assert [part.partition("</h3>")[0] for part in parts[1:]] == ["With 0% wrong words", "With 50% wrong words"]
    best = [rows(Section("", part))["multilingual"][0] for part in parts]
    held = [crossed.response("english_share", at={"mistakes": rate}).optimum.estimate for rate in (0.0, 0.5)]
    assert best[1:] == [f"{one:.0%}" for one in held] and len(set(best)) == 3
    note = " ".join(plots.response(crossed, "english_share").texts[-1].get_text().split())
    assert "Of other factors: mean over the levels of mistakes." in note
    figure = plots.response(crossed, "english_share", at={"mistakes": 0.5})
    assert any("English share, 50% wrong words: 5 seeds" in text.get_text() for text in figure.texts)


def test_without_enough_levels_there_is_a_reason_and_for_levels_that_are_words_nothing(drivers: Results) -> None:
    (section,) = overall.curves(drivers)
    assert "<picture>" not in section.body and "A curve takes 4 levels" in section.body
    assert overall.curves(replace(drivers, study=load_study("number_of_languages"))) == []


def test_importance_is_that_of_the_notebooks_and_takes_two_factors(drivers: Results, shares: Results) -> None:
    (section,) = overall.importance(drivers)
    shown, found = rows(section), drivers.importance()
    assert len(shown) == len(found)
    for row in found.itertuples():
        share, bounds, _ = shown[{"english_share": "English share"}.get(row.factors, row.factors)]
        assert (float(share), bounds) == (round(100 * row.omega2, 1), f"[{100 * row.low:.0f}, {100 * row.high:.0f}]")
    assert overall.importance(shares) == []


def test_a_crossed_design_shows_its_pairs(tmp_path_factory: pytest.TempPathFactory) -> None:
    full = made(tmp_path_factory, "drivers", "full")
    (section,) = overall.importance(full)
    named = {name.replace("english_share", "English share") for name in full.importance()["factors"]}
    assert set(rows(section)) == named and "languages x English share" in named


def test_the_front_says_of_every_arm_where_it_is_and_names_the_cheapest(drivers: Results, tmp_path: Path) -> None:
    arms = list(drivers.arms().index)
    lines = [f"{number},{arm},0,{1000 + number}" for number, arm in enumerate(arms)]
    path = drivers.folder / BUDGET_FILE
    path.write_text("\n".join(["run,arm,seed,flops", *lines]) + "\n", encoding="utf-8")
    (section,) = overall.front(drivers)
    path.unlink()
    places, found = section.body.partition("<h3>")[::2]
    shown = rows(Section("", places))
    for row in drivers.pareto().itertuples():
        english, multilingual, place = shown[drivers.short_label(str(row.arm))]
        assert english == f"{row.x:.1f} [{row.x_low:.1f}, {row.x_high:.1f}]" and multilingual.startswith(f"{row.y:.1f}")
        assert (place == "on the front") == row.on_front and place.startswith("beaten") == bool(row.beaten_by)
    assert set(rows(Section("", found))) == set(shown) and "FLOPs" in found
    (bare,) = overall.front(drivers)
    assert "is not recorded beside" in bare.body.partition("<h3>")[2], "without a budget the front stands alone"


def test_the_smallest_visible_difference_is_that_of_the_power_of_these_runs(drivers: Results) -> None:
    (section,) = overall.noise(drivers)
    shown = rows(section)
    for name in ("T1", "multilingual"):
        found = drivers.power(1.0, group=name)
        own = found.curve.set_index("seeds").loc[found.n_seeds]
        seeds, here, like, *_ = shown[name]
        assert (seeds, here, like) == ("3", f"{own['these_languages']:.1f}", f"{own['languages_like_these']:.1f}")
    assert shown["English"][2] == shown["English"][4] == "–", "one language is no sample of languages"
    two = replace(drivers, table=drivers.table[drivers.table["seed"] < 2], wide={})
    assert rows(overall.noise(two)[0])["multilingual"][2] == "–", "nor are two seeds one of seeds"
    assert all(not cell.startswith("nan") for cells in rows(overall.noise(two)[0]).values() for cell in cells)
    pair = replace(drivers, table=drivers.table[drivers.table["language"].isin(["en", "de", "ru"])], wide={})
    *_, like = rows(overall.noise(pair)[0])["multilingual"]
    assert like == "–", "nor are two languages one of languages"


def test_a_group_whose_differences_agree_in_all_seeds_is_named_as_one_that_tells_no_noise(drivers: Results) -> None:
    whole = overall.noise(drivers)[0]
    assert "Not told of" not in whole.body
    table = drivers.table.copy()
    table.loc[table["tier"] == "T1", "value"] = 50.0
    (section,) = overall.noise(replace(drivers, table=table, wide={}))
    assert "T1" not in rows(section) and set(rows(section)) < set(rows(whole))
    assert "Not told of T1: every difference from the baseline is the same in all seeds there" in section.body


def test_where_no_seed_is_whole_or_one_arm_has_run_the_parts_say_so_or_are_left_out(drivers: Results) -> None:
    arms = list(drivers.arms().index)
    table = drivers.table
    apart = replace(drivers, table=table[table["seed"] == table["arm"].map(arms.index) % 3], wide={})
    assert "No seed of study" in overall.importance(apart)[0].body
    assert overall.front(apart)[0].body.count("class='note'") == 2
    one = replace(drivers, table=table[table["arm"] == drivers.baseline], wide={})
    assert overall.importance(one) == overall.front(one) == overall.noise(one) == []
