"""Intervals: the formula against a plain second writing of it, known values, and coverage by simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from ablations.intervals import over_seeds, two_way


def by_the_book(d):
    """Mean squares of a two-way layout by explicit sums; the interval as stated in the docstring."""
    s, n = d.shape
    mean = d.mean()
    ms_seed = n * sum((d[i].mean() - mean) ** 2 for i in range(s)) / (s - 1)
    ms_lang = s * sum((d[:, j].mean() - mean) ** 2 for j in range(n)) / (n - 1)
    residual = sum((d[i, j] - d[i].mean() - d[:, j].mean() + mean) ** 2 for i in range(s) for j in range(n))
    ms_res = residual / ((s - 1) * (n - 1))
    v = ms_seed + ms_lang - ms_res
    df = v**2 / (ms_seed**2 / (s - 1) + ms_lang**2 / (n - 1) + ms_res**2 / ((s - 1) * (n - 1))) if v > 0 else s - 1
    df = max(df, min(s - 1, n - 1))
    half = stats.t.ppf(0.975, df) * np.sqrt(max(v, ms_seed, ms_lang) / (s * n))
    return mean - half, mean + half, df, (ms_seed, ms_lang, ms_res)


def test_the_two_way_interval_is_the_stated_formula():
    generator = np.random.default_rng(0)
    floored = negative = 0
    for number in range(60):
        shape = (2 + number % 4, 2 + number % 9)
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


def coverage(*, seeds, languages, of_seed, of_language, of_item, studies=1000, effect=2.0):
    generator = np.random.default_rng([seeds, languages, int(10 * of_seed), int(10 * of_language)])
    inside, pooled, width = 0, 0, []
    for _ in range(studies):
        d = effect + generator.normal(0, of_seed, (seeds, 1)) + generator.normal(0, of_language, (1, languages))
        d = d + generator.normal(0, of_item, (seeds, languages))
        found = two_way(d)
        inside += found.low <= effect <= found.high
        low, high = stats.t.interval(0.95, d.size - 1, loc=d.mean(), scale=stats.sem(d.ravel()))
        pooled += low <= effect <= high
        width.append(found.high - found.low)
    return inside / studies, pooled / studies, np.array(width)


def test_the_two_way_interval_covers_and_pooled_rows_do_not():
    covered, pooled, _ = coverage(seeds=3, languages=15, of_seed=0.5, of_language=0.8, of_item=0.5)
    assert 0.92 <= covered <= 0.98
    assert pooled < 0.8, "the comparison is a real one: rows pooled as if independent fail"


@pytest.mark.parametrize("shape", [(3, 3, 0.5, 0.8), (5, 12, 0.5, 0.8), (3, 15, 0.5, 0.0)])
def test_the_interval_is_never_short_and_never_boundless(shape):
    seeds, languages, of_seed, of_language = shape
    covered, _, width = coverage(
        seeds=seeds, languages=languages, of_seed=of_seed, of_language=of_language, of_item=0.5
    )
    assert 0.92 <= covered <= 0.995
    assert width.max() < 12 * np.median(width), "just above V = 0 the bare formula gives df near 0 and any width"


def test_null_effects_are_flagged_at_about_the_nominal_rate():
    covered, _, _ = coverage(seeds=3, languages=15, of_seed=0.5, of_language=0.8, of_item=0.5, effect=0.0, studies=2000)
    assert 0.02 <= 1 - covered <= 0.08


def test_a_contrast_of_two_groups_of_languages_covers():
    generator = np.random.default_rng(5)
    inside, studies = 0, 1000
    for _ in range(studies):
        run = generator.normal(0, 0.5, (3, 1))
        groups = [
            mean
            + run
            + generator.normal(0, 0.4, (3, 1))
            + generator.normal(0, 0.8, (1, 3))
            + generator.normal(0, 0.5, (3, 3))
            for mean in (3.0, 1.0)
        ]
        found = two_way(groups[0], minus=groups[1])
        inside += found.low <= 2.0 <= found.high
    assert 0.93 <= inside / studies <= 0.995
