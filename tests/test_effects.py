"""Effects: paired by seed, groups as the papers average them, planted effects found again, verdicts by their words."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from ablations.contrasts import effect, effects, groups, interaction, judge, level, main_effect, paired
from ablations.designs import FullGrid, OneAtATime
from ablations.factors import Factor
from ablations.report.sections import combined
from ablations.studies import Expectation, Study
from ablations.table import load_results
from lvlm.errors import InputError
from tests.planted import noise, planted
from tests.synthetic_results import write_study

ENGLISH_ONLY = {"languages": "en"}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    write_study(home, "drivers")
    write_study(home, "tiling")
    return home


@pytest.fixture
def results(home):
    return load_results("drivers", home=home)


@pytest.fixture
def tiling(home):
    return load_results("tiling", home=home)


@pytest.fixture(scope="module")
def crossed(tmp_path_factory):
    """The full budget of the drivers: languages x shares, and tiles beside half of the combinations; 5 seeds."""
    home = tmp_path_factory.mktemp("full")
    write_study(home, "drivers", budget="full")
    return load_results("drivers", home=home)


def rewrite(results, change):
    """The results with a changed table."""
    return replace(results, table=change(results.table.copy()), wide={})


def test_a_tier_is_the_unweighted_mean_over_its_task_language_pairs(results):
    table = results.table.query("metric == 'score' and seed == 1")
    english, base = (table[table["arm"] == label] for label in (results.label(ENGLISH_ONLY), results.baseline))
    for group, rows in (
        ("T1", "tier == 'T1'"),
        ("multilingual", "language != 'en'"),
        ("caption/T2", "tier == 'T2' and task == 'caption'"),
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
    assert wide.shape == (3, 32)


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
    assert ("vqa", "jv") not in wide.columns and wide.shape == (3, 31)
    assert np.isfinite(effect(hole, ENGLISH_ONLY, metric="score", group="T1").points)


def test_planted_effects_are_found_and_null_effects_are_not(results):
    verdicts = {expectation.claim: found for expectation, found in results.verdicts()}
    assert len(verdicts) == len(results.study.expectations)
    shown = [claim for claim, found in verdicts.items() if found.verdict == "shown"]
    for words in ("lowers the score", "another language", "more in T1 than in T5", "A share of 90 % English costs the"):
        assert any(words in claim for claim in shown), words
    assert effect(results, {"tiles": 2}, metric="score", group="vqa/multilingual").verdict == "within noise"


def test_the_tiling_study_finds_its_planted_gain_in_english_reading_alone(tiling):
    english, others, shapes = (found for _, found in tiling.verdicts())
    assert (english.group, others.group) == ("reading/en", "reading/multilingual")
    assert english.verdict == "shown" and english.low < 25 < english.high
    assert (english.n_languages, english.n_seeds, english.method) == (1, 5, "t over seeds")
    assert others.verdict == "within noise" and others.low < 0 < others.high
    assert shapes.low < 0 < shapes.high, "nothing is planted there"
    assert shapes.verdict == "shown", "five seeds are enough for five points"
    three = replace(tiling, table=tiling.table[tiling.table["seed"] < 3], wide={}).verdicts()[-1][1]
    assert three.verdict == "within noise" and "the margin of ±5 points" in three.reason, "three seeds are too few"


def test_reading_is_asked_by_the_tiling_study_alone(results, tiling):
    assert set(results.table["task"]) == {"caption", "vqa"}
    assert set(tiling.table["task"]) == {"caption", "vqa", "reading"}
    with pytest.raises(InputError, match="There is no task 'reading'"):
        groups(results, task="reading")


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


def test_little_change_within_noise_says_that_the_interval_crosses_the_margin(results):
    from dataclasses import replace

    found = replace(effect(results, ENGLISH_ONLY, metric="score", group="T1"), points=1.5, low=0.5, high=2.5)
    given = {"claim": "c", "metric": "score", "group": "T1", "arm": ENGLISH_ONLY, "direction": "little"}
    crosses, inside = (judge(found, Expectation(**given, margin=margin)) for margin in (2.0, 3.0))
    assert crosses.reason == "the interval crosses the margin of ±2 points"
    assert crosses.text().endswith("within noise (the interval crosses the margin of ±2 points)")
    assert inside.reason == "" and inside.text().endswith("3 seeds: shown")
    higher = judge(replace(found, low=-1.0), Expectation(**{**given, "direction": "higher"}))
    assert higher.verdict == "within noise" and higher.reason == ""


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
    assert len(effects(results, by="task")) == 6 * 4
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
    assert results.verdict_table(factor="tiles").shape == (1, 13)


def test_arms_that_differ_in_levels_of_one_name_keep_a_row_each():
    factors = (
        Factor(name="tower", path="instruct.train.tower", levels=("full", "frozen")),
        Factor(name="llm", path="instruct.train.llm", levels=("lora", "frozen")),
    )
    baseline = {"tower": "full", "llm": "lora"}
    study = Study(
        name="two", question="?", base="tiny", factors=factors, baseline=baseline, design=OneAtATime(), seeds=(0, 1, 2)
    )
    made = planted(study, lambda levels, seed, code: 5.0 * (levels["llm"] == "frozen") + noise(seed, levels).normal())
    assert list(made.matrix().index) == ["frozen · lora", "full · frozen"], "both would be `frozen`"
    assert made.short_label(made.baseline) == "baseline"


# --- arms that cross factors ------------------------------------------------------------------------------------------


def with_gain(results, where):
    """The results with scores 8 points higher in the rows of the table that `where` finds."""
    return rewrite(results, lambda t: t.assign(value=t["value"] + 8.0 * (where(t) & (t["metric"] == "score"))))


def test_a_main_effect_is_the_mean_over_pairs_that_differ_in_nothing_else(crossed):
    found = main_effect(crossed, "tiles", 2, 1, metric="score", group="T1")
    rows = crossed.table.query("metric == 'score' and tier == 'T1'").fillna({"english_share": 0.0})
    by_arm = rows.groupby(["languages", "english_share", "tiles"])["value"].mean().unstack("tiles").dropna()
    assert found.n_combinations == len(by_arm) == len([arm for arm in crossed.arms().index if "2 x 2" in arm])
    assert found.points == pytest.approx((by_arm[2] - by_arm[1]).mean())
    assert (found.arm, found.baseline, found.n_seeds, found.n_languages) == ("2 x 2 tiles", "no tiles", 5, 3)


def test_main_effects_find_what_is_planted_and_nothing_where_nothing_is(crossed):
    share = main_effect(crossed, "english_share", 0.9, 0.5, metric="score", group="T1")
    assert share.verdict == "shown" and share.low < -12 < share.high, "12 points, beside all languages"
    alone = effect(crossed, {"english_share": 0.9}, metric="score", group="T1")
    assert share.high - share.low < alone.high - alone.low, "the mean of several pairs is known better than one"
    for group in ("en", "T1", "multilingual"):
        assert main_effect(crossed, "tiles", 2, 1, metric="score", group=group).verdict == "within noise"
    gains = with_gain(crossed, lambda t: t["tiles"] == 2)
    tiles = main_effect(gains, "tiles", 2, 1, metric="score", group="multilingual")
    assert tiles.verdict == "shown" and tiles.low < 8 < tiles.high


def test_all_levels_of_a_factor_are_compared_beside_the_same_combinations(crossed):
    """A gain of tiles in one language group must not look like an effect of the shares that were run with tiles."""
    gains = with_gain(crossed, lambda t: (t["tiles"] == 2) & (t["languages"] == "T5"))
    for factor, levels, against, combinations in (
        ("english_share", (0.01, 0.10, 0.25, 0.75, 0.90), 0.50, 3),
        ("languages", ("en", "T5", "T5-T3"), "all", 6 + 3),
    ):
        for one in levels:
            found = main_effect(gains, factor, one, against, metric="score", group="T1")
            assert found.n_combinations == combinations
            if factor == "english_share":
                plain = main_effect(crossed, factor, one, against, metric="score", group="T1")
                assert found.points == pytest.approx(plain.points)


def test_a_baseline_to_which_a_factor_does_not_apply(crossed):
    """English only has no share of English: its margin is one arm, and the report has no interaction to print."""
    baseline = {**crossed.study.baseline, "languages": "en"}
    study = replace(crossed.study, baseline=baseline, design=FullGrid(), full_design=None, expectations=())
    english = replace(crossed, study=study, wide={})
    assert english.margin("english_share") == [english.baseline]
    assert [section.title for section in combined(english)] == ["Main effects and interactions"]


def test_an_arm_to_which_a_factor_does_not_apply_stands_beside_all_its_levels(crossed):
    found = main_effect(crossed, "languages", "en", "all", metric="score", group="T5")
    table = crossed.table.query("metric == 'score' and tier == 'T5'")
    mean = table.groupby("arm")["value"].mean()
    pairs = [
        (f"English only · {tiles}", arm)
        for arm in crossed.arms().index
        for tiles in ("no tiles", "2 x 2 tiles")
        if arm.startswith("all languages") and arm.endswith(tiles)
    ]
    assert found.n_combinations == len(pairs) > 6
    assert found.points == pytest.approx(np.mean([mean[one] - mean[other] for one, other in pairs]))


def test_an_interaction_is_the_difference_of_differences(crossed):
    first, second = ("languages", "T5", "all"), ("english_share", 0.9, 0.5)
    none = interaction(crossed, first, second, metric="score", group="T1")
    assert none.verdict == "within noise" and none.low < 0 < none.high, "share and languages add up"
    assert (none.arm, none.baseline) == ("T5 · 90% English", "all languages · 50% English")
    both = with_gain(crossed, lambda t: (t["languages"] == "T5") & (t["english_share"] == 0.9))
    found = interaction(both, first, second, metric="score", group="T1")
    assert found.verdict == "shown" and found.low < 8 < found.high
    assert found.points == pytest.approx(none.points + 8)
    swapped = interaction(both, second, first, metric="score", group="T1")
    assert (swapped.points, swapped.low) == pytest.approx((found.points, found.low))
    rows = both.table.query("metric == 'score' and tier == 'T1' and tiles == 1")
    mean = rows.groupby(["languages", "english_share"])["value"].mean()
    by_hand = mean["T5", 0.9] - mean["all", 0.9] - mean["T5", 0.5] + mean["all", 0.5]
    one_tile = rewrite(both, lambda t: t[t["tiles"] == 1])
    assert interaction(one_tile, first, second, metric="score", group="T1").points == pytest.approx(by_hand)


def test_main_effects_and_interactions_say_what_they_lack(results, crossed):
    of = {"metric": "score", "group": "T1"}
    first, second = ("languages", "T5", "all"), ("english_share", 0.9, 0.5)
    found = interaction(results, first, second, **of)
    assert np.isnan(found.points) and (found.n_combinations, found.verdict) == (0, "not judged")
    assert found.reason == "no combination of the other factors has runs of all arms yet"
    single = main_effect(rewrite(crossed, lambda t: t[t["seed"] == 0]), *second, **of)
    assert np.isfinite(single.points) and single.reason == "one seed"
    uneven = rewrite(crossed, lambda t: t[(t["seed"] == 1) == (t["tiles"] == 2)])
    assert main_effect(uneven, "tiles", 2, 1, **of).reason == "no seed with all arms yet"
    for call, message in (
        (lambda: interaction(crossed, ("languages", "en", "all"), second, **of), "does not apply"),
        (lambda: interaction(crossed, second, second, **of), "two different factors"),
        (lambda: main_effect(crossed, "tiles", 2, 2, **of), "two different levels"),
        (lambda: main_effect(crossed, "tile", 2, 1, **of), "'tile' is not a factor"),
        (lambda: main_effect(crossed, "tiles", 3, 1, **of), "3 is not a level"),
    ):
        with pytest.raises(InputError, match=message):
            call()
