"""Effects: paired by seed, groups as the papers average them, planted effects found again, verdicts by their words."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from ablations.contrasts import effect, effects, groups, judge, level, paired
from ablations.studies import Expectation
from ablations.table import load_results
from lvlm.errors import InputError
from tests.synthetic_results import write_study

ENGLISH_ONLY = {"languages": "en"}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    write_study(home, "drivers")
    return home


@pytest.fixture
def results(home):
    return load_results("drivers", home=home)


def rewrite(results, change):
    """The results with a changed table."""
    from dataclasses import replace

    return replace(results, table=change(results.table.copy()), wide={})


def test_a_tier_is_the_unweighted_mean_over_its_task_language_pairs(results):
    table = results.table.query("metric == 'score' and seed == 1")
    english, base = (table[table["arm"] == label] for label in (results.label(ENGLISH_ONLY), results.baseline))
    for group, rows in (
        ("T1", "tier == 'T1'"),
        ("multilingual", "language != 'en'"),
        ("reading/T2", "tier == 'T2' and task == 'reading'"),
    ):
        expected = english.query(rows)["value"].mean() - base.query(rows)["value"].mean()
        one = rewrite(results, lambda whole: whole[whole["seed"] == 1])
        assert effect(one, ENGLISH_ONLY, metric="score", group=group).points == pytest.approx(expected)


def test_english_is_never_inside_t5(results):
    wide = paired(results, results.label(ENGLISH_ONLY), results.baseline, metric="score")
    shifted = rewrite(
        results, lambda t: t.assign(value=t["value"] + 50 * ((t["language"] == "en") & (t["languages"] == "en")))
    )
    for group, moves in (("en", 50.0), ("T5", 0.0), ("multilingual", 0.0)):
        before = effect(results, ENGLISH_ONLY, metric="score", group=group).points
        assert effect(shifted, ENGLISH_ONLY, metric="score", group=group).points - before == pytest.approx(moves)
    assert wide.shape == (3, 48)


def test_unequal_tasks_keep_the_mean_over_pairs(results):
    # Without captions in one language its remaining pairs count as pairs, not as a language of equal weight.
    fewer = rewrite(results, lambda t: t[~((t["language"] == "eo") & (t["task"] == "caption"))])
    wide = paired(fewer, fewer.label(ENGLISH_ONLY), fewer.baseline, metric="score")
    codes = wide.columns.get_level_values("language")
    expected = wide.loc[:, [code in ("eo", "jv", "no") for code in codes]].to_numpy().mean()
    found = effect(fewer, ENGLISH_ONLY, metric="score", group="T1")
    assert found.points == pytest.approx(expected)
    assert found.low < found.points < found.high


def test_effects_are_paired_by_seed(results):
    """Seeds move all arms by many points; only pairing takes that out, whatever the order of the rows."""
    shaken = rewrite(results, lambda t: t.assign(value=t["value"] + 40 * t["seed"]).sample(frac=1, random_state=3))
    calm = effect(results, ENGLISH_ONLY, metric="score", group="multilingual")
    found = effect(shaken, ENGLISH_ONLY, metric="score", group="multilingual")
    assert (found.points, found.low, found.high) == pytest.approx((calm.points, calm.low, calm.high))
    rows = shaken.table.query("metric == 'score' and language != 'en'")
    arms = [
        rows[rows["arm"] == label].groupby("seed")["value"].mean()
        for label in (shaken.label(ENGLISH_ONLY), shaken.baseline)
    ]
    unpaired = stats.ttest_ind(*arms).confidence_interval()
    assert unpaired.high - unpaired.low > 10 * (found.high - found.low), "the unpaired interval is useless here"


def test_a_seed_without_both_arms_takes_no_part(results):
    label = results.label(ENGLISH_ONLY)
    holed = rewrite(results, lambda t: t[~((t["arm"] == label) & (t["seed"] == 0))])
    found = effect(holed, ENGLISH_ONLY, metric="score", group="T1")
    assert found.n_seeds == 2
    both = rewrite(results, lambda t: t[t["seed"] != 0])
    assert found.points == pytest.approx(effect(both, ENGLISH_ONLY, metric="score", group="T1").points)


def test_one_seed_and_no_run_are_said_so(results):
    single = rewrite(results, lambda t: t[t["seed"] == 0])
    found = effect(single, ENGLISH_ONLY, metric="score", group="T1")
    assert (
        np.isfinite(found.points)
        and np.isnan(found.low)
        and (found.reason, found.verdict) == ("one seed", "not judged")
    )
    label = results.label(ENGLISH_ONLY)
    absent = effect(rewrite(results, lambda t: t[t["arm"] != label]), ENGLISH_ONLY, metric="score", group="T1")
    assert np.isnan(absent.points) and absent.reason == f"no run of '{label}' yet" and absent.verdict == "not judged"


def test_an_unknown_value_leaves_its_pair_out_in_all_seeds(results):
    hole = rewrite(
        results,
        lambda t: t.assign(value=t["value"].mask((t["language"] == "jv") & (t["task"] == "vqa") & (t["seed"] == 1))),
    )
    wide = paired(hole, hole.label(ENGLISH_ONLY), hole.baseline, metric="score")
    assert ("vqa", "jv") not in wide.columns and wide.shape == (3, 47)
    assert np.isfinite(effect(hole, ENGLISH_ONLY, metric="score", group="T1").points)


def test_planted_effects_are_found_and_null_effects_are_not(results):
    verdicts = {expectation.claim: found for expectation, found in results.verdicts()}
    assert len(verdicts) == len(results.study.expectations)
    shown = [claim for claim, found in verdicts.items() if found.verdict == "shown"]
    assert any("lowers the score" in claim for claim in shown) and any(
        "Tiles help reading (English" in claim for claim in shown
    )
    assert any("another language" in claim for claim in shown) and any(
        "more in T1 than in T5" in claim for claim in shown
    )
    assert verdicts["Tiles help reading in the other languages"].verdict == "within noise"
    reading = verdicts["Tiles help reading (English, the only language whose text in images is trained)"]
    assert reading.low < 25 < reading.high and (reading.n_languages, reading.n_seeds, reading.method) == (
        1,
        3,
        "t over seeds",
    )


def test_right_elsewhere_is_the_gap_between_the_two_scores(results):
    gap, any_language, score = (
        effect(results, ENGLISH_ONLY, metric=metric, group="T2").points
        for metric in ("right_elsewhere", "score_any_language", "score")
    )
    assert gap == pytest.approx(any_language - score)


def test_verdicts_follow_the_interval_and_the_expected_direction(results):
    def verdict(direction, low, high, margin=None):
        from dataclasses import replace

        expected = Expectation(
            claim="c", metric="score", group="T1", arm=ENGLISH_ONLY, direction=direction, margin=margin
        )
        found = effect(results, ENGLISH_ONLY, metric="score", group="T1")
        return judge(replace(found, points=(low + high) / 2, low=low, high=high), expected).verdict

    assert verdict("lower", -3, -1) == "shown" and verdict("higher", -3, -1) == "contradicted"
    assert verdict("higher", 1, 3) == "shown" and verdict("lower", 1, 3) == "contradicted"
    assert verdict("higher", -1, 3) == verdict("lower", -1, 3) == verdict("lower", -3, 0) == "within noise"
    assert verdict("little", -1, 1.5, 2) == "shown" and verdict("little", 0.5, 2.5, 2) == "within noise"
    assert verdict("little", 2.5, 4, 2) == "contradicted"


def test_noise_units_are_points_over_the_sd_between_seeds(results):
    found = effect(results, ENGLISH_ONLY, metric="score", group="T1")
    wide = paired(results, results.label(ENGLISH_ONLY), results.baseline, metric="score")
    by_seed = wide.loc[:, [code in ("eo", "jv", "no") for code in wide.columns.get_level_values("language")]].mean(
        axis=1
    )
    assert found.noise_units == pytest.approx(by_seed.mean() / by_seed.std(ddof=1))


def test_groups_and_levels(results):
    assert groups(results) == ["en", "T5", "T4", "T3", "T2", "T1", "multilingual"]
    assert groups(results, by="task")[:2] == ["caption/en", "caption/multilingual"]
    assert len(groups(results, by="language")) == 16
    assert len(effects(results, by="task")) == 6 * 6
    mean = level(results, None, metric="score", group="T1")
    rows = results.table.query("arm == @results.baseline and metric == 'score' and tier == 'T1'")
    assert mean.estimate == pytest.approx(rows["value"].mean()) and mean.n_seeds == 3
    for wrong in ({"group": "T7"}, {"metric": "bleu"}):
        with pytest.raises(InputError):
            effect(results, ENGLISH_ONLY, **{"metric": "score", "group": "T1", **wrong})
    with pytest.raises(InputError, match="There is no arm 'English'"):
        effect(results, "English", metric="score", group="T1")


def test_tables_for_reading_hold_the_numbers(results):
    matrix = results.matrix(metric="score")
    assert isinstance(matrix, pd.DataFrame) and matrix.shape == (6, 7)
    found = effect(results, {"english_share": 0.9}, metric="score", group="T1")
    assert matrix.loc["90% English", "T1"].startswith(f"{found.points:+.1f} [{found.low:+.1f}, {found.high:+.1f}]")
    assert results.verdict_table(factor="tiles").shape == (2, 9)
