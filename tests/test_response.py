"""Curves: bands and optima cover what was planted, a flat curve has no confident optimum, tiers are told apart."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from ablations.designs import OneAtATime, SpaceFilling
from ablations.response import highest, minus, optima_differ, response, smoother
from lvlm.errors import InputError
from tests.planted import grid, noise, planted, shares

LEVELS = np.array([0.01, 0.10, 0.25, 0.50, 0.75, 0.90])
GRID = np.linspace(0.01, 0.90, 101)
SHAPES = {
    "parabola": lambda x: -12 * (x - 0.5) ** 2,
    "low parabola": lambda x: -12 * (x - 0.3) ** 2,
    "power laws": lambda x: -1.2 * (x + 0.02) ** -0.35 - 1.5 * (1.02 - x) ** -0.35,
    "mostly English": lambda x: -1.6 * (x + 0.02) ** -0.4 - 0.15 * (1.02 - x) ** -0.5,
    "rise": lambda x: 3 * x,
    "fall": lambda x: -6 * x**3,
}


def peaked_at(top, levels):
    return -12 * (levels["share"] - top) ** 2


def by_seed(shape, *, studies, seeds, of_run=0.4, of_slope=0.2, generator=None):
    """Made-up studies, shape (studies, seeds, levels): a level of the seed, its own slope, and noise of every run."""
    generator = generator or np.random.default_rng(seeds)
    slope = generator.normal(0, of_slope, (studies, seeds, 1)) * (LEVELS - LEVELS.mean())
    own = generator.normal(0, of_run, (studies, seeds, len(LEVELS)))
    return shape(LEVELS) + generator.normal(0, 3, (studies, seeds, 1)) + slope + own


@pytest.mark.parametrize("seeds", [3, 5])
def test_band_and_optimum_cover_and_a_parabola_alone_would_not(seeds):
    curve = smoother(LEVELS, GRID)
    parabola = np.vander(GRID, 3) @ np.linalg.pinv(np.vander(LEVELS, 3))
    at_levels = np.searchsorted(GRID, LEVELS - 1e-9).clip(0, 100)
    covered, parabolas = {}, {}
    for name, shape in SHAPES.items():
        data = by_seed(shape, studies=400, seeds=seeds)
        top = GRID[shape(GRID).argmax()]
        for kept, matrix in ((covered, curve), (parabolas, parabola)):
            found = [highest(GRID, one, levels=LEVELS)[0] for one in data @ matrix.T]
            kept[name] = np.mean([one.low - 1e-9 <= top <= one.high + 1e-9 for one in found])
        curves = data @ curve.T
        half = stats.t.ppf(0.975, seeds - 1) * curves.std(axis=1, ddof=1) / seeds**0.5
        inside = (np.abs(curves.mean(axis=1) - shape(GRID)) <= half).mean(axis=0)[at_levels]
        assert inside.min() > 0.90 and inside.mean() < 0.98, f"{name}: the band at the levels"
    interior = [covered[name] for name in SHAPES if name != "rise"]
    assert min(interior) > 0.92 and np.mean(interior) < 0.99, covered
    assert covered["rise"] > 0.95, "an optimum at the end of the range can be missed on one side only"
    assert min(parabolas.values()) < 0.75, "the comparison is a real one"


@pytest.mark.parametrize("seeds", [3, 5])
def test_a_flat_curve_gets_no_confident_optimum(seeds):
    curves = by_seed(lambda x: 0 * x, studies=1000, seeds=seeds) @ smoother(LEVELS, GRID).T
    found = [highest(GRID, one, levels=LEVELS) for one in curves]
    assert np.mean([place == "interior" for _, place in found]) < 0.05
    assert np.mean([place == "at the edge" for _, place in found]) < 0.03
    assert np.mean([one.high - one.low < 0.45 for one, _ in found]) < 0.05
    assert np.median([one.high - one.low for one, _ in found]) == pytest.approx(0.89)


def test_the_interval_of_a_parabola_is_that_of_fieller():
    """The points where the t interval of the slope over seeds holds 0, by the formula for a ratio of means."""
    data = by_seed(SHAPES["parabola"], studies=1, seeds=5, of_slope=1.0)[0]
    fits = np.linalg.lstsq(np.vander(LEVELS, 3), data.T, rcond=None)[0].T
    fine = np.linspace(0.01, 0.90, 4001)
    found, place = highest(fine, fits @ np.vander(fine, 3).T)
    a, b = fits[:, 1], -2 * fits[:, 0]  # slope 0 at a / b
    t2 = stats.t.ppf(0.975, 4) ** 2 / 5
    v = np.cov(a, b)
    quadratic = [b.mean() ** 2 - t2 * v[1, 1], -2 * (a.mean() * b.mean() - t2 * v[0, 1]), a.mean() ** 2 - t2 * v[0, 0]]
    assert place == "interior"
    assert [found.low, found.high] == pytest.approx(sorted(np.roots(quadratic)), abs=1e-3)


def test_the_difference_of_two_optima_covers():
    generator = np.random.default_rng(3)
    matrix = smoother(LEVELS, GRID).T
    for first, second in (("parabola", "low parabola"), ("fall", "parabola"), ("power laws", "power laws")):
        sides = [by_seed(SHAPES[name], studies=300, seeds=5, generator=generator) @ matrix for name in (first, second)]
        tops = [GRID[SHAPES[name](GRID).argmax()] for name in (first, second)]
        pairs = zip(*sides, strict=True)
        found = [minus(*(highest(GRID, one, levels=LEVELS)[0] for one in pair), span=(0.01, 0.90)) for pair in pairs]
        true = tops[0] - tops[1]
        assert np.mean([one.low - 1e-9 <= true <= one.high + 1e-9 for one in found]) > 0.92, (first, second)


# --- on results -------------------------------------------------------------------------------------------------------


def peaked(levels, seed, code):
    """English does best with 75 % of it, the others with 30 %."""
    top = 0.75 if code == "en" else 0.30
    run = noise(seed, levels["english_share"]).normal(0, 0.3)
    shared = 5 * noise(seed).normal() + noise(seed, code).normal(0, 2)
    own = noise(seed, levels["english_share"], code).normal(0, 0.3)
    return 60 - 20 * (levels["english_share"] - top) ** 2 + shared + run + own


@pytest.fixture(scope="module")
def results():
    return planted(shares(), peaked, seeds=range(5))


def test_planted_optima_are_found_and_two_groups_are_told_apart(results):
    others, english = (response(results, "english_share", group=group) for group in ("multilingual", "en"))
    assert (others.interior, others.n_seeds, others.optimum.n_languages) == ("interior", 5, 11)
    assert others.optimum.low < 0.30 < others.optimum.high < 0.6
    assert english.optimum.low < 0.75 < english.optimum.high
    between = optima_differ(results, "english_share", "en", "multilingual")
    assert 0 < between.low < 0.45 < between.high and between.n_seeds == 5
    assert between.estimate == pytest.approx(english.optimum.estimate - others.optimum.estimate)


def test_levels_have_t_intervals_and_the_band_of_the_shape_leaves_the_seeds_out(results):
    found = response(results, "english_share", group="multilingual")
    rows = results.table.query("language != 'en' and english_share == 0.25").groupby("seed")["value"].mean()
    low, high = stats.t.interval(0.95, 4, loc=rows.mean(), scale=stats.sem(rows))
    (own,) = found.points.query("level == 0.25").to_dict("records")
    assert (own["mean"], own["low"], own["high"]) == pytest.approx((rows.mean(), low, high))
    assert found.estimate[np.abs(found.grid - 0.25).argmin()] == pytest.approx(own["mean"], abs=0.5)
    assert (found.shape_high - found.shape_low).max() < 0.3 * (found.high - found.low).min()


def test_pairing_leaves_out_a_seed_that_lacks_an_arm(results):
    label = results.label({"english_share": 0.75})
    holed = replace(
        results, table=results.table[(results.table["arm"] != label) | (results.table["seed"] != 4)], wide={}
    )
    assert response(holed, "english_share").n_seeds == 4
    four = replace(results, table=results.table.query("seed != 4"), wide={})
    one, other = (response(data, "english_share") for data in (holed, four))
    assert (one.optimum, one.interior) == (other.optimum, other.interior)


def test_one_seed_has_a_curve_and_no_bounds(results):
    single = response(replace(results, table=results.table.query("seed == 0"), wide={}), "english_share")
    assert np.isfinite(single.estimate).all() and np.isnan(single.low).all() and np.isnan(single.optimum.low)
    assert (single.interior, single.reason) == ("not told apart", "one seed")
    assert "no interval: one seed" in single.text() and "one seed" in single._repr_html_()


def test_a_curve_beside_other_factors_is_the_mean_over_matched_combinations():
    study = grid()
    crossed = planted(study, lambda levels, seed, _: levels["share"] * (2 if levels["tiles"] == 2 else 1) + seed)
    found = response(crossed, "share")
    assert found.points["mean"].to_numpy() == pytest.approx(1 + 1.5 * found.points["level"].to_numpy())
    assert len(found.points) == 4
    gone = crossed.label({"share": 0.9, "tiles": 2, "mix": "T5"})
    fewer = response(replace(crossed, table=crossed.table[crossed.table["arm"] != gone], wide={}), "share")
    assert fewer.points["mean"].to_numpy() == pytest.approx(1 + 1.4 * fewer.points["level"].to_numpy()), "five of six"
    apart = response(planted(grid(OneAtATime()), lambda levels, seed, _: levels["share"] + seed), "share")
    assert apart.beside == "all and tiles 1 alone", "nothing is averaged where one combination has every level"


def test_a_curve_can_hold_other_factors_at_a_level():
    crossed = planted(grid(), lambda levels, seed, _: levels["share"] * (2 if levels["tiles"] == 2 else 1) + seed)
    for tiles, slope in ((1, 1), (2, 2)):
        found = response(crossed, "share", at={"tiles": tiles})
        assert found.points["mean"].to_numpy() == pytest.approx(1 + slope * found.points["level"].to_numpy())
        assert found.beside == "mean over the levels of mix"
    assert response(crossed, "share", at={"tiles": 1, "mix": "all"}).beside == ""
    moved = planted(
        grid(), lambda levels, seed, code: peaked_at(0.9 if levels["tiles"] == 2 and code == "en" else 0.1, levels)
    )
    apart = {tiles: optima_differ(moved, "share", "en", "multilingual", at={"tiles": tiles}) for tiles in (1, 2)}
    assert abs(apart[1].estimate) < 0.05 and apart[2].estimate > 0.5
    for wrong in ({"tiles": 3}, {"share": 0.1}, {"size": 1}):
        with pytest.raises(InputError, match="is not another factor of study"):
            response(crossed, "share", at=wrong)


def test_a_range_has_a_curve_through_the_arms_that_were_placed_in_it():
    ranged = planted(shares(SpaceFilling(points=16)), peaked, seeds=range(3))
    found = response(ranged, "english_share", group="multilingual")
    assert found.optimum.low < 0.30 < found.optimum.high and len(found.points) > 14


def test_the_interval_reaches_on_between_levels_and_further_with_four():
    levels = np.array([0.01, 0.1, 0.5, 0.9])
    curves = (-12 * (levels - 0.4) ** 2 + noise(0).normal(0, 0.1, (5, 4))) @ smoother(levels, GRID).T
    bare, four = highest(GRID, curves)[0], highest(GRID, curves, levels=levels)[0]
    assert (four.low, four.high) == pytest.approx(
        (bare.low - 0.2, bare.high + 0.2)
    ) and 0.1 < bare.low < bare.high < 0.5
    six = highest(GRID, curves, levels=LEVELS)[0]
    assert (six.low, six.high) == pytest.approx((bare.low - 0.25 / 8, bare.high + 0.25 / 8))


def test_what_has_no_curve_is_said():
    crossed = planted(grid(), lambda *_: 1.0)
    for factor, words in (("mix", "no numbers"), ("tiles", "takes 4 levels"), ("size", "not a factor")):
        with pytest.raises(InputError, match=words):
            response(crossed, factor)
    flat = response(crossed, "share")
    assert (flat.interior, flat.reason) == ("not told apart", "no variation") and np.isnan(flat.optimum.low)
    assert np.isnan(flat.optimum.estimate) and flat.text() == "highest nowhere (no variation)"
