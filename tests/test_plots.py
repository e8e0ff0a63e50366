"""Figures draw our numbers, in a fixed order and colour of tiers, inside their frame."""

from __future__ import annotations

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest

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


def test_expected_marks_each_verdict(results):
    figure = plots.expected(results)
    assert len(figure.axes[0].get_yticklabels()) == len(results.study.expectations)


def test_a_factor_without_two_arms_is_an_error_and_no_figure_stays_open(results):
    from dataclasses import replace

    one = replace(results, table=results.table[results.table["tiles"] == 1], wide={})
    with pytest.raises(InputError, match=r"Only 1 arm\(s\)"):
        plots.by_tier(one, "tiles")
    with pytest.raises(InputError, match="'tile' is not a factor"):
        plots.by_tier(results, "tile")
    plt.close("all")
    plots.expected(results)
    assert plt.get_fignums() == []
