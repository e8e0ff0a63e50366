"""Intervals: the formula against a plain second writing of it, known values, and coverage by simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from ablations.intervals import crossed, over_seeds, two_way, visible


def by_the_book(d):
    """Mean squares of a two-way layout by explicit sums; the interval as stated in the docstring."""
    s, n = d.shape
    mean = d.mean()
    ms_seed = n * sum((d[i].mean() - mean) ** 2 for i in range(s)) / (s - 1)
    ms_lang = s * sum((d[:, j].mean() - mean) ** 2 for j in range(n)) / (n - 1)
    residual = sum((d[i, j] - d[i].mean() - d[:, j].mean() + mean) ** 2 for i in range(s) for j in range(n))
    ms_res = residual / ((s - 1) * (n - 1))
    variance = max(ms_seed + ms_lang - ms_res, ms_seed, ms_lang)
    own_seed, own_lang = (one * min(1, one / ms_res) ** 2 for one in (ms_seed, ms_lang))
    df = variance**2 / (own_seed**2 / (s - 1) + own_lang**2 / (n - 1))
    df = min(max(df, min(s - 1, n - 1)), s * n - 1)
    half = stats.t.ppf(0.975, df) * np.sqrt(variance / (s * n))
    return mean - half, mean + half, df, (ms_seed, ms_lang, ms_res)


def test_the_two_way_interval_is_the_stated_formula():
    generator = np.random.default_rng(0)
    floored = negative = 0
    for number in range(60):
        shape = (3 + number % 3, 3 + number % 8)
        d = (
            generator.normal(1, 1, shape)
            + generator.normal(0, number % 3, (shape[0], 1))
            + generator.normal(0, number % 2, (1, shape[1]))
        )
        low, high, df, (ms_seed, ms_lang, ms_res) = by_the_book(d)
        found = two_way(d)
        assert (found.low, found.high, found.df) == pytest.approx((low, high, df))
        floored += min(ms_seed, ms_lang) < ms_res
        negative += ms_seed + ms_lang <= ms_res
    assert floored > 5 and negative > 0, "the floor and V <= 0 took part"


def test_the_floor_keeps_the_seed_noise():
    # Languages agree to the last bit about each seed, and residuals cannot be subtracted from what seeds show.
    seeds = np.array([[1.0], [2.0], [4.5]])
    found = two_way(np.repeat(seeds, 12, axis=1))
    alone = over_seeds(seeds[:, 0])
    assert found.high - found.low == pytest.approx(alone.high - alone.low)
    assert found.df == pytest.approx(2)


def test_one_language_is_the_t_interval_of_scipy():
    values = np.array([0.3, 1.9, 1.1, 0.4])
    low, high = stats.t.interval(0.95, 3, loc=values.mean(), scale=stats.sem(values))
    for found in (over_seeds(values), two_way(values[:, None])):
        assert (found.low, found.high, found.df) == pytest.approx((low, high, 3))


def test_one_seed_has_no_interval_and_says_why():
    found = two_way([[1.0, 2.0, 3.0]])
    assert found.estimate == 2 and np.isnan(found.low) and np.isnan(found.high) and found.reason == "one seed"


def test_without_noise_there_is_no_interval_and_incomplete_data_are_an_error():
    found = two_way(np.full((3, 4), 1.5))
    assert found.estimate == 1.5 and np.isnan([found.low, found.high]).all(), "an interval of width 0 would claim much"
    assert found.reason == "no variation"
    with pytest.raises(ValueError, match="complete"):
        two_way([[1.0, np.nan], [1.0, 2.0]])
    with pytest.raises(ValueError, match="same seeds"):
        two_way(np.zeros((3, 2)), minus=np.zeros((2, 2)))


def simulated(seeds, languages, *, of_seed, of_language, studies=4000):
    generator = np.random.default_rng([seeds, languages])
    d = generator.normal(0, of_seed, (studies, seeds, 1)) + generator.normal(0, of_language, (studies, 1, languages))
    return d + generator.normal(2.0, 0.5, (studies, seeds, languages))


def test_many_effects_at_once_are_those_of_one_by_one():
    stack = simulated(4, 6, of_seed=0.3, of_language=0.5, studies=20)
    for minus in (None, stack[..., :3] + 1.0):
        low, high = crossed(stack, minus).bounds()
        alone = [two_way(block, minus=None if minus is None else minus[row]) for row, block in enumerate(stack)]
        assert np.allclose(low, [one.low for one in alone]) and np.allclose(high, [one.high for one in alone])


def test_rows_pooled_as_if_independent_do_not_cover():
    d = simulated(3, 15, of_seed=0.5, of_language=0.8)
    rows = d.reshape(len(d), -1)
    low, high = stats.t.interval(0.95, rows.shape[1] - 1, loc=rows.mean(axis=1), scale=stats.sem(rows, axis=1))
    pooled, (low_both, high_both) = np.mean((low <= 2) & (high >= 2)), crossed(d).bounds()
    assert pooled < 0.8 and 0.92 <= np.mean((low_both <= 2) & (high_both >= 2)) <= 0.98


@pytest.mark.parametrize("shape", [(3, 3, 0.5, 0.8), (5, 12, 0.5, 0.8), (3, 15, 0.5, 0.0), (3, 12, 0.0, 0.0)])
def test_no_interval_is_boundless(shape):
    seeds, languages, of_seed, of_language = shape
    low, high = crossed(simulated(seeds, languages, of_seed=of_seed, of_language=of_language)).bounds()
    assert (high - low).max() < 12 * np.median(high - low), "a df near 0 would give any width"


def test_two_seeds_or_two_languages_speak_of_themselves_alone():
    for shape in ((2, 12), (5, 2), (5, 1)):
        block = simulated(*shape, of_seed=0.5, of_language=0.8, studies=1)[0]
        found, alone = two_way(block), over_seeds(block.mean(axis=1))
        assert found.method == "t over seeds" and (found.low, found.high) == pytest.approx((alone.low, alone.high))
    assert two_way(simulated(3, 3, of_seed=0.5, of_language=0.8, studies=1)[0]).method.startswith("two-way")


def test_the_smallest_visible_difference_is_the_one_of_statsmodels():
    from statsmodels.stats.power import TTestPower

    for seeds in (2, 3, 5, 20):
        known = TTestPower().solve_power(nobs=seeds, alpha=0.05, power=0.8)
        assert visible(seeds**-0.5, seeds - 1) == pytest.approx(known, rel=1e-3)
    assert np.all(np.diff(visible(1.0, np.arange(1, 50))) < 0)
