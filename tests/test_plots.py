"""Figures draw our numbers, in a fixed order and colour of tiers, inside their frame."""

from __future__ import annotations

import itertools
from dataclasses import replace

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.text import Text

from ablations import plots
from ablations.contrasts import effect, level
from ablations.plots.expectations import MARGIN_COLOUR
from ablations.plots.style import VERDICT_MARKERS
from ablations.published import overlay
from ablations.table import load_results
from lvlm.errors import InputError
from tests.synthetic_results import write_answers, write_study

pytestmark = pytest.mark.filterwarnings("error::DeprecationWarning", "error::PendingDeprecationWarning")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    study = write_study(home, "drivers")
    write_answers(home / "studies" / "drivers", study, items=4)
    return load_results("drivers", home=home)


@pytest.fixture(scope="module")
def shares(tmp_path_factory):
    """A study of six shares, for curves."""
    home = tmp_path_factory.mktemp("shares")
    write_study(home, "english_share")
    return load_results("english_share", home=home)


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
    assert "points" in below.get_ylabel() and "%" in above.get_ylabel()
    said = "\n".join(text.get_text() for text in figure.texts)
    assert "English share: 3 seeds" in said and "n = 3 seeds x 16 languages" in said and "t intervals" in said


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
    points = {int(line.get_ydata()[0]): line for line in ax.lines if line.get_linestyle() == "None"}
    spans = {int(line.get_ydata()[0]): line for line in ax.lines if line.get_linewidth() == 2}
    assert len(set(plots.VERDICT_COLOURS.values())) == len(set(VERDICT_MARKERS.values())) == 4, "told in grey, too"
    for row, (_, found) in enumerate(every):
        colour = plots.VERDICT_COLOURS[found.verdict]
        assert points[row].get_marker() == VERDICT_MARKERS[found.verdict]
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
    assert to_hex(next(iter(bands.values())).get_facecolor()) == MARGIN_COLOUR


def test_a_factor_without_two_arms_is_an_error_and_no_figure_stays_open(results):
    one = replace(results, table=results.table[results.table["tiles"] == 1], wide={})
    with pytest.raises(InputError, match=r"Only 1 arm\(s\)"):
        plots.by_tier(one, "tiles")
    with pytest.raises(InputError, match="'tile' is not a factor"):
        plots.by_tier(results, "tile")
    for draw, options, said in (
        (plots.by_tier, {"factor": "languages", "metrics": ()}, "needs one of metrics at least"),
        (plots.response, {"factor": "english_share", "in_groups": ()}, "needs one of in_groups at least"),
        (plots.interaction_map, {"in_groups": ()}, "needs one of in_groups at least"),
        (plots.interaction_map, {"rows": "tiles", "columns": "tiles"}, "'tiles' was given twice"),
    ):
        with pytest.raises(InputError, match=said):
            draw(results, **options)
    plt.close("all")
    plots.expected(results)
    assert plt.get_fignums() == []


@pytest.fixture(scope="module")
def drawn(results, shares):
    """Width -> every figure once, by name."""

    def figures(width):
        for name in plots.FIGURES:
            options = {"by_tier": ("languages",), "response": ("english_share",)}.get(name, ())
            figure = getattr((shares if name == "response" else results).plot, name)(*options, width=width)
            figure.draw_without_rendering()
            yield name, figure

    return {width: dict(figures(width)) for width in (plots.PAGE_INCHES, plots.COLUMN_INCHES)}


@pytest.mark.parametrize("width", [plots.PAGE_INCHES, plots.COLUMN_INCHES])
def test_in_every_figure_words_stand_inside_and_over_nothing_else(drawn, width):
    for name, figure in drawn[width].items():
        whole = figure.bbox
        notes = [text.get_window_extent() for text in figure.texts if text.get_text()]
        legends = [legend.get_window_extent() for legend in figure.legends]
        panels = [ax.get_tightbbox() for ax in figure.axes if ax.get_visible()]
        for box in (*notes, *legends, *panels):
            assert box.x0 >= -2 and box.x1 <= whole.x1 + 2 and box.y0 >= -2 and box.y1 <= whole.y1 + 2, name
        for box in notes:
            assert not any(box.overlaps(other) for other in (*legends, *panels)), name
        assert not any(legend.overlaps(panel) for legend in legends for panel in panels), name
        assert figure.get_size_inches()[0] == width, name


def test_every_figure_says_in_words_what_it_shows_and_how_many_runs(drawn):
    for name, figure in drawn[plots.PAGE_INCHES].items():
        said = plots.alternative(figure)
        assert len(said) > 40 and any(letter.isdigit() for letter in said), name
        assert "n = " in "".join(text.get_text() for text in figure.texts), name
        _, metadata = figure._repr_mimebundle_()
        assert metadata["image/png"]["alt"] == said


def test_text_is_printed_in_a_size_that_can_be_read(drawn):
    for name, figure in drawn[plots.COLUMN_INCHES].items():
        texts = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]
        inside = [text for text in texts if text.axes is not None and text in text.axes.texts]
        assert min(text.get_fontsize() for text in texts if text not in inside) >= 6, name
        assert min([text.get_fontsize() for text in inside], default=6) >= 4.5, name


def test_a_map_of_many_arms_keeps_its_rows_apart_in_a_column():
    """Seven arms with long names: numbers would be of 4 points and the names took the height of the rows."""
    results = load_results("examples/translation_quality")
    figure = results.plot.language_map(arms=list(results.arms().index), width=plots.COLUMN_INCHES)
    figure.draw_without_rendering()
    ax = figure.axes[0]
    rows = [label.get_window_extent() for label in ax.get_yticklabels()]
    assert len(rows) == 16 and not any(upper.overlaps(lower) for upper, lower in itertools.pairwise(rows))
    assert {text.get_text() for text in ax.texts} == {"", "*"}


def test_save_writes_each_format_whole_and_the_same_twice(results, tmp_path):
    figure = results.plot.by_tier("tiles", width=plots.COLUMN_INCHES)
    paths = plots.save(figure, tmp_path / "figures" / "tiles")
    assert [path.name for path in paths] == ["tiles.pdf", "tiles.svg", "tiles.png"]
    first = [path.read_bytes() for path in paths]
    assert first[0].startswith(b"%PDF") and b"<svg" in first[1] and first[2].startswith(b"\x89PNG")
    assert b"/Type3" not in first[0], "letters are embedded as TrueType"
    assert plots.alternative(figure)[:20].encode() in first[1]
    assert [path.read_bytes() for path in plots.save(figure, tmp_path / "figures" / "tiles")] == first
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {path.name for path in paths}
    with pytest.raises(InputError, match="saved as pdf, svg, png, not as 'gif'"):
        plots.save(figure, tmp_path / "tiles", ("gif",))


def test_plot_completes_with_tab_and_has_the_functions_own_help(results):
    assert set(plots.FIGURES) <= set(dir(results.plot)) and "save" in dir(results.plot)
    assert results.plot.by_tier.__doc__ == plots.by_tier.__doc__
    assert all(name in repr(results.plot) for name in plots.FIGURES)
    with pytest.raises(AttributeError, match="no figure 'by_tiers'; figures are: by_tier"):
        results.plot.by_tiers("languages")


def test_a_published_curve_lies_over_the_own_means_and_says_how_its_order_agrees(shares):
    figure = shares.plot.by_tier("english_share", metrics=("score",), published=True)
    (drawn,) = [line for line in figure.axes[0].lines if line.get_marker() == "x"]
    theirs = overlay(shares, "english_share")
    assert drawn.get_ydata().tolist() == pytest.approx(theirs["value"].tolist())
    note = "".join(text.get_text().replace("\n", " ") for text in figure.texts)
    assert "2501.05122" in note and "Rank correlation over the 6 shared levels" in note
    plain = shares.plot.by_tier("english_share", metrics=("score",))
    assert not [line for line in plain.axes[0].lines if line.get_marker() == "x"]


def test_the_response_draws_the_curve_its_band_and_the_interval_of_its_optimum(shares):
    one = shares.response("english_share", group="T1")
    (ax,) = shares.plot.response("english_share", in_groups=("T1",)).axes
    curves = {len(line.get_xdata()): line for line in ax.lines}
    assert np.allclose(curves[len(one.grid)].get_ydata(), one.estimate)
    spans = [line for line in ax.lines if line.get_linewidth() == 2.2]
    if np.isfinite(one.optimum.low):
        assert list(spans[0].get_xdata()) == [one.optimum.low, one.optimum.high]
    (verdict,) = [text for text in ax.texts if text.get_text() == one.interior]
    figure = ax.figure
    figure.draw_without_rendering()
    foot = verdict.get_window_extent().y1
    lowest = min(ends.min() for ends in [*bars(ax), one.low])
    assert ax.transData.transform((0, lowest))[1] > foot, "the verdict stands below all that is drawn"


def test_the_power_figure_says_what_the_seeds_of_the_study_see(results):
    found, figure = results.power(1.0, group="T1"), results.plot.power(group="T1")
    own = found.curve.set_index("seeds").loc[found.n_seeds, "these_languages"]
    assert f"The 3 seeds of this study see {own:.1f} points" in plots.alternative(figure)
    assert f"1 point takes {found.seeds_here or 'more than 200'} seeds" in plots.alternative(figure)
    note = "".join(text.get_text() for text in figure.texts)
    assert "Dashed: 1 point;" in note


def test_in_the_pareto_figure_markers_are_filled_on_the_front_alone(results):
    frame = results.pareto()
    (ax,) = results.plot.pareto().axes
    markers = [line for line in ax.lines if line.get_linestyle() == "None" and line.get_markersize() > 5]
    filled = sorted(line.get_xdata()[0] for line in markers if line.get_markerfacecolor() != "white")
    assert filled == pytest.approx(sorted(frame.loc[frame["on_front"], "x"]))
    hollow = sorted(line.get_xdata()[0] for line in markers if line.get_markerfacecolor() == "white")
    assert hollow == pytest.approx(sorted(frame.loc[~frame["on_front"] & frame["reaches_front"], "x"]))


def test_tiers_are_told_apart_in_grey_by_their_markers_and_kinds_of_answers_by_hatches(results):
    assert len(set(plots.MARKERS.values())) == len(plots.MARKERS)
    figure = results.plot.wrong_language()
    looks = {(to_hex(patch.get_facecolor()), patch.get_hatch()) for patch in figure.legends[0].get_patches()}
    greys = [np.dot([int(colour[i : i + 2], 16) for i in (1, 3, 5)], (0.299, 0.587, 0.114)) for colour, _ in looks]
    plain = sorted(grey for grey, (_, hatch) in zip(greys, looks, strict=True) if not hatch)
    assert len(looks) == 5 and min(np.diff(plain)) > 30
