"""Figures draw our numbers, in a fixed order and colour of tiers, inside their frame."""

from __future__ import annotations

from dataclasses import replace

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_hex

from ablations import plots
from ablations.contrasts import effect, level
from ablations.table import load_results
from lvlm.errors import InputError
from tests.synthetic_results import write_study


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    write_study(home, "drivers")
    return load_results("drivers", home=home)


def bars(ax):
    """Low and high end of every vertical error bar."""
    return [segment[:, 1] for container in ax.containers for segment in container[2][0].get_segments()]


def test_by_tier_draws_our_means_and_intervals(results):
    figure = plots.by_tier(results, "english_share", metrics=("score",))
    above, below = figure.axes
    arms = results.margin("english_share")
    drawn = {container.lines[0].get_color(): container.lines[0].get_ydata() for container in above.containers}
    for group in ("en", "T1", "multilingual"):
        means = [level(results, arm, metric="score", group=group).estimate for arm in arms]
        assert drawn[plots.COLOURS[group]] == pytest.approx(means)
    found = effect(results, arms[-1], metric="score", group="T1")
    assert any(np.allclose(sorted(ends), [found.low, found.high]) for ends in bars(below)), (
        "the two-way interval is drawn"
    )
    assert "points" in below.get_ylabel() and "%" in above.get_ylabel() and "3 seeds" in figure.get_suptitle()


def test_the_legend_stands_outside_the_data_in_the_order_of_the_tiers(results):
    figure = plots.by_tier(results, "languages")
    figure.draw_without_rendering()
    legend = figure.legends[0]
    assert [text.get_text() for text in legend.get_texts()] == ["English", "T5", "T4", "T3", "T2", "T1", "multilingual"]
    box = legend.get_window_extent()
    assert not any(box.overlaps(ax.get_window_extent()) for ax in figure.axes)
    assert len(set(plots.COLOURS.values())) == len(set(plots.MARKERS.values())) == 7


def test_english_against_multilingual_has_a_marker_per_arm_with_both_intervals(results):
    figure = plots.english_against_multilingual(results)
    figure.draw_without_rendering()
    (ax,) = figure.axes
    arms = plots.one_factor_arms(results)
    assert len(figure.legends[0].get_texts()) == len(arms) == 7
    assert sum(len(container[2]) for container in ax.containers) == 2 * (len(arms) - 1)
    assert not figure.legends[0].get_window_extent().overlaps(ax.get_window_extent())


def test_the_interaction_map_leaves_blank_what_was_not_run(results):
    figure = plots.interaction_map(results, in_groups=("T1",))
    texts = [text.get_text() for text in figure.axes[0].texts if text.get_text()]
    assert len(texts) == len([arm for arm in results.arms().index if "2 x 2" not in arm])
    assert sum("baseline" in text for text in texts) == 1


def test_expected_draws_each_interval_in_the_colour_of_its_verdict(results, monkeypatch):
    judged = results.verdicts()
    words = ["shown", "within noise", "contradicted", "not judged"]
    every = [
        (expectation, replace(found, verdict=words[row % 4], low=np.nan if row % 4 == 3 else found.low))
        for row, (expectation, found) in enumerate(judged)
    ]
    monkeypatch.setattr(type(results), "verdicts", lambda self: every)
    figure = plots.expected(results)
    (ax,) = figure.axes
    assert [text.get_text().replace("\n", " ") for text in ax.get_yticklabels()] == [one.claim for one, _ in every]
    points = {int(line.get_ydata()[0]): line for line in ax.lines if line.get_marker() == "o"}
    spans = {int(line.get_ydata()[0]): line for line in ax.lines if line.get_linewidth() == 2}
    assert len(set(plots.VERDICT_COLOURS.values())) == 4
    for row, (_, found) in enumerate(every):
        colour = plots.VERDICT_COLOURS[found.verdict]
        assert points[row].get_color() == colour and points[row].get_xdata()[0] == found.points
        if np.isfinite(found.low):
            assert spans[row].get_color() == colour and list(spans[row].get_xdata()) == [found.low, found.high]
        else:
            assert row not in spans
    handles = {handle.get_label(): handle for handle in figure.legends[0].legend_handles}
    assert {word: handles[word].get_color() for word in words} == plots.VERDICT_COLOURS


def test_expected_draws_the_margin_behind_what_should_change_little(results):
    (ax,) = plots.expected(results).axes
    bands = {round(patch.get_y() + patch.get_height() / 2): patch for patch in ax.patches}
    margins = {row: one.margin for row, one in enumerate(results.study.expectations) if one.margin is not None}
    assert margins and {row: (band.get_x(), band.get_width()) for row, band in bands.items()} == {
        row: (-margin, 2 * margin) for row, margin in margins.items()
    }
    assert all(band.get_zorder() < min(line.get_zorder() for line in ax.lines) for band in bands.values())
    assert to_hex(next(iter(bands.values())).get_facecolor()) == plots.MARGIN_COLOUR


def test_a_factor_without_two_arms_is_an_error_and_no_figure_stays_open(results):
    one = replace(results, table=results.table[results.table["tiles"] == 1], wide={})
    with pytest.raises(InputError, match=r"Only 1 arm\(s\)"):
        plots.by_tier(one, "tiles")
    with pytest.raises(InputError, match="'tile' is not a factor"):
        plots.by_tier(results, "tile")
    plt.close("all")
    plots.expected(results)
    assert plt.get_fignums() == []
