"""Intervals cover what they promise and tests err as often as they say: 4,000 simulated studies of each shape."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from ablations.intervals import crossed
from ablations.power import Components, smallest_difference
from ablations.resampling import PairedItems, _mean, expanded_tail, resampled, seed_bootstrap
from ablations.significance import adjusted, least_p, sign_flip, two_one_sided

STUDIES = 4000
EFFECT = 2.0
RATIOS = (
    (0.0, 0.0), (0.08, 0.0), (0.15, 0.0), (0.5, 0.0), (1.0, 0.0), (0.0, 0.3), (0.0, 0.8), (0.15, 0.15), (0.15, 0.3),
    (0.15, 0.8), (0.5, 0.3), (0.5, 0.8), (1.0, 0.8),
)  # fmt: skip
"""Standard deviations (seed, language) beside 0.5 of the rest: those of real studies, and either of them without noise
of its own."""


def differences(seeds, languages, of_seed, of_language, *, rest=0.5, effect=EFFECT, studies=STUDIES):
    """Paired differences (studies, seeds, languages)."""
    generator = np.random.default_rng([seeds, languages, int(100 * of_seed), int(100 * of_language)])
    d = (
        effect
        + generator.normal(0, of_seed, (studies, seeds, 1))
        + generator.normal(0, of_language, (studies, 1, languages))
    )
    return d + generator.normal(0, rest, (studies, seeds, languages))


def covered(low, high, truth=EFFECT):
    return float(np.mean((low <= truth) & (truth <= high)))


@pytest.mark.parametrize("seeds", [3, 4, 5, 8])
@pytest.mark.parametrize("languages", [3, 5, 12, 40])
def test_the_headline_interval_covers_whatever_is_noisy(seeds, languages):
    found = {ratio: covered(*crossed(differences(seeds, languages, *ratio)).bounds()) for ratio in RATIOS}
    assert min(found.values()) >= 0.92 and max(found.values()) <= 0.98, found


@pytest.mark.parametrize("shape", [(3, 3, 3), (5, 3, 3), (3, 12, 3), (5, 6, 6), (3, 3, 1)])
def test_a_contrast_of_two_groups_of_languages_covers(shape):
    seeds, first, second = shape
    generator = np.random.default_rng(shape)
    found = {}
    for of_seed, of_language in RATIOS:
        run = generator.normal(0, of_seed, (STUDIES, seeds, 1))
        groups = [
            mean + run + generator.normal(0, of_seed, (STUDIES, seeds, 1)) / 2
            + generator.normal(0, of_language * (count > 2), (STUDIES, 1, count))
            + generator.normal(0, 0.5, (STUDIES, seeds, count))
            for mean, count in ((3.0, first), (1.0, second))
        ]  # fmt: skip
        found[of_seed, of_language] = covered(*crossed(*groups).bounds())
    assert min(found.values()) >= 0.92 and max(found.values()) <= 0.98, found


@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize("languages", [1, 2, 12])
def test_the_interval_over_seeds_covers_for_these_languages(seeds, languages):
    d = differences(seeds, languages, 0.5, 0.8)
    own = np.random.default_rng(1).normal(0, 0.8, (STUDIES, 1, languages))  # unequal, and the same in every seed
    here = crossed((d + own).mean(axis=2)[..., None])
    generator = np.random.default_rng([seeds, languages, 50, 80])
    generator.normal(0, 0.5, (STUDIES, seeds, 1))
    truth = EFFECT + (generator.normal(0, 0.8, (STUDIES, 1, languages)) + own).mean(axis=(1, 2))
    assert 0.94 <= covered(*here.bounds(), truth) <= 0.96
    if languages < 3:
        assert np.array_equal(crossed(d).standard_error, crossed(d.mean(axis=2)[..., None]).standard_error)


@pytest.mark.parametrize("shape", [(3, 12, 20), (4, 16, 15), (5, 12, 12), (3, 40, 6)])
def test_the_headline_interval_covers_with_answers_to_clustered_items(shape):
    """Right and wrong answers to pictures with 4 questions each, the same in every language and seed: a run is wrong on
    a picture in all languages together."""
    seeds, languages, pictures = shape
    generator, inside, studies = np.random.default_rng(shape), 0, 0
    for _ in range(8):
        size = (STUDIES // 8, seeds, languages, pictures, 4)
        of_item = generator.normal(0, 0.05, (size[0], 1, 1, pictures, 4))
        gain = (
            0.06 + generator.normal(0, 0.02, (*size[:2], 1, 1, 1))
            + generator.normal(0, 0.03, (size[0], 1, languages, 1, 1))
            + generator.normal(0, 0.08, (*size[:2], 1, pictures, 1)) + of_item
        )  # fmt: skip
        right = [generator.random(size, dtype=np.float32) < 0.5 + one for one in (gain.astype(np.float32), 0.0)]
        d = 100 * (right[0].mean(axis=(3, 4)) - right[1].mean(axis=(3, 4)))
        low, high = crossed(d).bounds()
        truth = 100 * (0.06 + of_item.mean(axis=(1, 2, 3, 4)))  # for these items
        inside, studies = inside + np.sum((low <= truth) & (truth <= high)), studies + len(d)
    assert studies == STUDIES and 0.92 <= inside / studies <= 0.98


def items_of(difference):
    """Paired items of one task in one language or several, from (seeds, languages, items)."""
    seeds, languages, items = difference.shape
    pairs = pd.MultiIndex.from_product(
        [["vqa"], [f"l{number}" for number in range(languages)]], names=["task", "language"]
    )
    pair, item = (one.ravel() for one in np.indices((languages, items)))
    return PairedItems(pairs, pair, item, difference.reshape(seeds, -1).T, tuple(range(seeds)))


@pytest.mark.parametrize("shape", [(1, 20), (1, 200), (12, 60)])
def test_resampled_items_cover_other_test_sets(shape):
    languages, items = shape
    generator, inside = np.random.default_rng(shape), 0
    studies = STUDIES // 2 if items == 20 else STUDIES // 4
    for _ in range(studies):
        easy = generator.normal(0, 0.15, (1, 1, items))  # an item is hard in all languages and seeds
        better = np.clip(0.5 + 0.06 + easy + generator.normal(0, 0.12, easy.shape), 0, 1)
        d = 100.0 * (generator.random((3, languages, items)) < better) - 100.0 * (
            generator.random((3, languages, items)) < 0.5 + easy
        )
        mean = _mean(items_of(d), np.ones(languages, dtype=bool))
        tail = expanded_tail(len(mean.item))
        low, high = mean.points + np.quantile(resampled([mean], mean.item, 300, generator)[0], [tail, 1 - tail])
        inside += low <= 6.0 <= high
        assert len(mean.item) == items
    assert 0.92 <= inside / studies <= 0.98


@pytest.mark.parametrize("seeds", [10, 20])
def test_resampled_seeds_cover_from_ten_seeds_on(seeds):
    generator = np.random.default_rng(seeds)
    for noise in (generator.normal(size=(STUDIES, seeds)), generator.standard_t(4, size=(STUDIES, seeds))):
        assert 0.92 <= covered(*seed_bootstrap(EFFECT + noise, draws=1000)) <= 0.98
    assert np.isnan(seed_bootstrap(np.ones((3, 9)))).all()


# --- tests over seeds -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seeds", [3, 5, 6, 8])
def test_sign_flips_reject_a_null_as_often_as_they_say(seeds):
    generator = np.random.default_rng(seeds)
    for noise in (generator.normal(size=(STUDIES, seeds)), generator.laplace(size=(STUDIES, seeds))):
        p = sign_flip(noise)
        assert p.min() == pytest.approx(least_p(seeds))
        for level in {least_p(seeds), 4 * least_p(seeds), 0.5} - {2.0}:
            if level <= 1:
                assert np.mean(p <= level + 1e-12) == pytest.approx(
                    level, abs=4 * (level * (1 - level) / STUDIES) ** 0.5
                )


def test_intervals_flag_null_effects_at_the_nominal_rate():
    for seeds, languages in ((3, 15), (5, 12), (5, 40)):
        low, high = crossed(differences(seeds, languages, 0.5, 0.8, effect=0.0)).bounds()
        assert 0.02 <= 1 - covered(low, high, 0.0) <= 0.08


def test_holm_holds_the_chance_of_any_false_finding():
    generator = np.random.default_rng(3)
    shift = np.where(np.arange(8) < 3, 2.5, 0.0)  # 3 real effects among 8 claims
    raw = sign_flip(shift[:, None] + generator.normal(size=(STUDIES, 8, 10)))
    p = adjusted(raw, "holm")
    false, found = (p[:, 3:] < 0.05).any(axis=1).mean(), (p[:, :3] < 0.05).mean()
    assert 0.01 <= false <= 0.055 and found > 0.9
    assert (raw[:, 3:] < 0.05).any(axis=1).mean() > 0.15, "without a correction"


def test_benjamini_hochberg_holds_the_share_of_false_findings():
    generator = np.random.default_rng(4)
    shift = np.where(np.arange(40) < 10, 1.5, 0.0)
    found = adjusted(sign_flip(shift[:, None] + generator.normal(size=(STUDIES, 40, 10))), "bh") < 0.05
    shares = found[:, 10:].sum(axis=1) / np.maximum(1, found.sum(axis=1))
    assert 0.02 <= shares.mean() <= 0.05 and found[:, :10].mean() > 0.5


def test_equivalence_is_found_wrongly_at_the_nominal_rate():
    noise = np.random.default_rng(6).normal(0, 0.5, (STUDIES, 5))
    assert 0.04 <= np.mean(two_one_sided(2.0 + noise, 2.0) < 0.05) <= 0.06, "at the margin"
    assert np.mean(two_one_sided(3.0 + noise, 2.0) < 0.05) < 0.01 and np.mean(two_one_sided(noise, 2.0) < 0.05) > 0.95
    low, high = crossed((1.0 + noise)[..., None]).bounds(0.9)
    assert 0.885 <= covered(low, high, 1.0) <= 0.915
    assert np.array_equal((low > -2) & (high < 2), two_one_sided(1.0 + noise, 2.0) < 0.05), "two ways to say the same"


# --- power --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ratio", [(0.5, 0.8), (1.0, 0.8), (0.5, 0.0), (0.15, 0.8), (1.0, 0.3)])
@pytest.mark.parametrize("shape", [(3, 12), (5, 15), (5, 40), (4, 1), (5, 2)])
def test_predicted_power_is_simulated_power(shape, ratio):
    seeds, languages = shape
    ratio = ratio if languages > 2 else (ratio[0], 0.0)
    parts = Components(seed=ratio[0] ** 2, language=ratio[1] ** 2, residual=0.25)
    smallest = float(smallest_difference(parts, seeds, languages))
    low, _ = crossed(differences(seeds, languages, *ratio, effect=smallest)).bounds()
    assert np.mean(low > 0) == pytest.approx(0.8, abs=0.05)


def test_smallest_visible_differences_of_studies_are_those_of_their_noise():
    found = crossed(differences(5, 15, 0.5, 0.8)).smallest()
    assert np.median(found) == pytest.approx(float(smallest_difference(Components(0.25, 0.64, 0.25), 5, 15)), rel=0.1)


def test_the_t_interval_is_the_one_of_scipy():
    block = differences(5, 1, 0.5, 0.0, studies=50)
    low, high = crossed(block).bounds()
    by_seed = block[..., 0]
    known = stats.t.interval(0.95, 4, loc=by_seed.mean(axis=1), scale=stats.sem(by_seed, axis=1))
    assert np.allclose([low, high], known)
