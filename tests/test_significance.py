"""Tests over seeds: agreement with scipy and statsmodels, floors, and what few seeds make impossible."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import ttost_paired

from ablations.contrasts import adjust, effect, effects, equivalence, verdict_table
from ablations.significance import (
    adjusted,
    equivalent,
    floor_note,
    least_p,
    seeds_needed,
    sign_flip,
    two_one_sided,
)
from ablations.table import load_results
from lvlm.errors import InputError
from tests.synthetic_results import write_study

ENGLISH_ONLY = {"languages": "en"}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    write_study(home, "drivers")
    return load_results("drivers", home=home)


@pytest.mark.parametrize("seeds", [2, 3, 5, 8])
def test_sign_flips_are_the_exact_test_of_scipy(seeds):
    for values in np.random.default_rng(seeds).normal(0.7, 1, (4, seeds)):
        known = stats.permutation_test((values,), np.mean, permutation_type="samples", n_resamples=np.inf)
        assert sign_flip(values) == pytest.approx(known.pvalue)
    assert sign_flip(np.ones(seeds)) == least_p(seeds) == 2 / 2**seeds
    assert np.isnan(sign_flip([*np.ones(seeds - 1), np.nan]))


def test_three_seeds_cannot_go_below_a_quarter():
    assert sign_flip([30.0, 31.0, 29.0]) == least_p(3) == 0.25
    assert [seeds_needed(number) for number in (1, 2, 17)] == [6, 7, 10]
    for number in (1, 2, 17):
        assert least_p(seeds_needed(number)) * number < 0.05 <= least_p(seeds_needed(number) - 1) * number
    assert "no sign-flip p can be below 0.05" in floor_note(3, 17) and "10 for the first of 17" in floor_note(3, 17)
    assert "after Holm's correction" in floor_note(7, 17) and floor_note(10, 17) == ""


def test_many_seeds_draw_their_signs():
    values = np.random.default_rng(0).normal(0.3, 1, (3, 18))
    assert np.allclose(sign_flip(values), stats.ttest_1samp(values, 0, axis=1).pvalue, atol=0.03)
    assert sign_flip(np.ones(18)) == least_p(18) == 1e-4


@pytest.mark.parametrize(("method", "known"), [("holm", "holm"), ("bh", "fdr_bh")])
def test_corrections_are_those_of_statsmodels(method, known):
    generator = np.random.default_rng(1)
    p = generator.random((2, 12)) ** 3
    for row, found in zip(p, adjusted(p, method), strict=True):
        assert found == pytest.approx(multipletests(row, method=known)[1])
    holed = np.insert(p[0], 4, np.nan)
    assert np.isnan(adjusted(holed, method)[4])
    assert np.delete(adjusted(holed, method), 4) == pytest.approx(adjusted(p[0], method))


def test_equivalence_is_the_one_of_statsmodels():
    for values in np.random.default_rng(2).normal(0.3, 0.6, (6, 5)):
        known = ttost_paired(values, np.zeros(5), -1.0, 1.0)[0]
        assert two_one_sided(values, 1.0) == pytest.approx(known)
        found = equivalent(values, 1.0)
        assert found.equivalent == (known < 0.05) == (found.low90 > -1 and found.high90 < 1)


def test_effects_carry_p_floor_and_the_interval_for_these_languages(results):
    found = effect(results, ENGLISH_ONLY, metric="score", group="multilingual")
    assert found.p == found.p_floor == 0.25 and found.seeds_low < found.points < found.seeds_high
    assert 0 < found.smallest < abs(found.points) and np.isnan(found.p_adjusted)
    null = effect(results, {"tiles": 2}, metric="score", group="multilingual")
    assert null.verdict == "within noise" and null.smallest > abs(null.points)
    many = effects(results)
    held = adjust(many, "bh")
    assert [one.p_adjusted for one in held] == pytest.approx(adjusted([one.p for one in many], "bh").tolist())
    assert results.effects()["p_adjusted"].notna().all()


def test_english_is_unhurt_where_nothing_is_planted(results):
    unhurt = equivalence(results, {"tiles": 2}, group="en", margin=8.0)
    assert unhurt.equivalent and unhurt.p < 0.05 and -8 < unhurt.low90 < unhurt.high90 < 8
    assert unhurt.text().endswith("3 seeds") and "equivalent" in unhurt.text()
    hurt = results.equivalence(ENGLISH_ONLY, group="T1", margin=3.0)
    assert not hurt.equivalent and hurt.p > 0.5 and "not shown to be equivalent" in hurt.text()
    with pytest.raises(InputError, match="positive margin"):
        equivalence(results, ENGLISH_ONLY, margin=0.0)


def test_the_verdict_table_shows_p_and_says_what_its_floor_forbids(results):
    table = results.verdict_table()
    assert {"smallest visible", "p", "p, Holm"} <= set(table.columns)
    assert (table["p, Holm"] == "1").all() and table["p"].str.contains("least").any()
    assert table.attrs["note"].startswith("With 3 seeds p is at least 0.25")
    assert verdict_table([]).attrs["note"] == ""


@pytest.mark.parametrize("by", ["script", "family"])
def test_effects_by_script_and_family_leave_english_apart(results, by):
    found = {one.group: one for one in effects(results, arms=[ENGLISH_ONLY], by=by)}
    name = {"script": "script:Latn", "family": "family:Indo-European"}[by]
    assert name in found and len(found) > 3
    rows = results.table.query("metric == 'score' and language != 'en'")
    from lvlm.languages import table

    own = rows[[getattr(table()[code], by) == name.partition(":")[2] for code in rows["language"]]]
    means = own.groupby("arm")["value"].mean()
    assert found[name].points == pytest.approx(means[results.label(ENGLISH_ONLY)] - means[results.baseline])
    assert sum(one.n_languages for one in found.values()) == 15
    within = effect(results, ENGLISH_ONLY, metric="score", group=f"vqa/{name}")
    assert np.isfinite(within.points)
    with pytest.raises(InputError, match="Unknown language group"):
        effect(results, ENGLISH_ONLY, metric="score", group=f"{by}:Nowhere")
