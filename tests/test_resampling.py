"""Resampling of test items: the paired difference of the table, other test sets, and nothing of other seeds."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from ablations import resampling
from ablations.resampling import FEWEST_ITEMS, NOISE, expanded_tail, item_bootstrap, paired_items, read_scores
from lvlm.errors import InputError

LANGUAGES = ("en", "de", "sw", "fi")


def predictions(*, items=60, seeds=3, gain=10.0, graded=False):
    """Per-item scores of two arms: an item is hard in every language and seed; the arm gains in German."""
    generator = np.random.default_rng(7)
    hard = generator.normal(0, 15, items)
    rows = []
    for arm in ("base", "more"):
        for seed in range(seeds):
            for code in LANGUAGES:
                chance = 50 + hard + gain * (arm == "more") * (code == "de")
                score = (
                    chance + generator.normal(0, 9, items)
                    if graded
                    else 100.0 * (generator.random(items) * 100 < chance)
                )
                rows += [(arm, seed, "vqa", code, f"q{number}", score[number]) for number in range(items)]
    return pd.DataFrame(rows, columns=["arm", "seed", "task", "language", "item", "score"])


@pytest.fixture(scope="module")
def table():
    return predictions()


@pytest.mark.parametrize("graded", [False, True])
def test_points_are_the_mean_paired_difference_and_the_interval_that_of_scipy(graded):
    table = predictions(graded=graded)
    found = item_bootstrap(table, "more", "base", draws=10_000).set_index("group")
    assert list(found.index) == ["en", "de", "fi", "sw"] and set(found["noise"]) == {NOISE}
    for code in LANGUAGES:
        own = table[table["language"] == code].pivot_table(index="item", columns="arm", values="score")
        d = (own["more"] - own["base"]).to_numpy()
        assert found.loc[code, "points"] == pytest.approx(d.mean()) and found.loc[code, "n_items"] == 60
        level = 1 - 2 * expanded_tail(60)
        known = stats.bootstrap((d,), np.mean, confidence_level=level, method="percentile", n_resamples=10_000, rng=1)
        width = found.loc[code, "high"] - found.loc[code, "low"]
        assert found.loc[code, "low"] == pytest.approx(known.confidence_interval.low, abs=0.04 * width)
        assert found.loc[code, "high"] == pytest.approx(known.confidence_interval.high, abs=0.04 * width)


def test_an_item_is_drawn_in_all_its_languages_together(table):
    """The same questions in four languages are 60 items, not 240."""
    alike = table.assign(score=table.groupby(["arm", "seed", "item"])["score"].transform("first"))
    many = item_bootstrap(alike, "more", "base", by="tier").set_index("group").loc["multilingual"]
    one = item_bootstrap(alike, "more", "base").set_index("group").loc["de"]
    assert many["n_items"] == 60 and many["points"] == pytest.approx(one["points"])
    assert many["high"] - many["low"] == pytest.approx(one["high"] - one["low"], rel=0.05)


def test_the_same_seed_gives_the_same_interval_and_another_another(table):
    runs = [item_bootstrap(table, "more", "base", draws=500, seed=seed) for seed in (0, 0, 1)]
    pd.testing.assert_frame_equal(runs[0], runs[1])
    assert not runs[0]["low"].equals(runs[2]["low"])


def test_rows_in_any_order_and_holes_are_paired(table, tmp_path):
    path = tmp_path / "predictions.parquet"
    table.sample(frac=1, random_state=0).to_parquet(path)
    pd.testing.assert_frame_equal(item_bootstrap(path, "more", "base"), item_bootstrap(table, "more", "base"))
    holed = table[
        ~((table["arm"] == "base") & (table["seed"] == 1) & (table["item"] == "q3") & (table["language"] == "de"))
    ]
    found = item_bootstrap(holed, "more", "base").set_index("group")
    assert found["n_items"].to_dict() == {"en": 60, "de": 59, "fi": 60, "sw": 60}
    blank = table.assign(score=table["score"].where(table["item"] != "q5"))
    assert set(item_bootstrap(blank, "more", "base")["n_items"]) == {59}
    fewer = table[~((table["arm"] == "more") & (table["seed"] == 2))]
    assert paired_items(read_scores(fewer, ["more", "base"]), "more", "base").seeds == (0, 1)


def test_tasks_are_drawn_apart(table):
    other = table.assign(task="caption", score=table["score"] * 0.5)
    both = item_bootstrap(pd.concat([table, other]), "more", "base").set_index("group")
    alone = item_bootstrap(table, "more", "base").set_index("group")
    assert both.loc["de", "n_items"] == 120
    assert both.loc["de", "points"] == pytest.approx(0.75 * alone.loc["de", "points"])
    half = (both["high"] - both["low"]) / (alone["high"] - alone["low"])
    assert half.mean() == pytest.approx((1 + 0.25) ** 0.5 / 2, rel=0.05), "two independent samples"
    tasks = item_bootstrap(pd.concat([table, other]), "more", "base", by="task")
    assert list(tasks["group"]) == ["caption/en", "caption/multilingual", "vqa/en", "vqa/multilingual"]


def test_two_tasks_in_any_order_are_drawn_alike(table, tmp_path):
    other = table.assign(task="caption", score=table["score"] * 0.5)
    found = []
    for number, order in enumerate(([table, other], [other, table])):
        path = tmp_path / f"{number}.parquet"
        pd.concat(order).to_parquet(path)
        found.append(item_bootstrap(path, "more", "base", draws=500))
    pd.testing.assert_frame_equal(*found)


def test_arms_and_languages_are_moved_by_the_same_items(table):
    def drawn(arm):
        items = paired_items(rows, arm, "base")
        return [
            resampling._mean(items, np.isin(codes, list(own)))
            for codes in [items.pairs.get_level_values("language")]
            for own in (("de",), ("sw",), ("de", "sw"))
        ]

    rows = read_scores(pd.concat([table, table[table["arm"] == "more"].assign(arm="copy")]), ["more", "copy", "base"])
    means = [*drawn("more"), *drawn("copy")]
    moved = resampling.resampled(means, means[0].item, 200, np.random.default_rng(0))
    assert moved.shape == (6, 200) and moved.std(axis=1).min() > 1
    np.testing.assert_array_equal(moved[:3], moved[3:])
    np.testing.assert_allclose(moved[2], moved[:2].mean(axis=0), atol=1e-4)


def test_items_that_an_arm_lacks_leave_its_interval_as_wide(table):
    """The other arm answered the first half of the items alone: its interval is that of these by themselves."""
    first = table["item"].isin([f"q{number}" for number in range(30)])
    both = pd.concat([table, table[first & (table["arm"] == "more")].assign(arm="half")])
    found = item_bootstrap(both, ["more", "half"], "base").set_index(["arm", "group"])
    whole, half = (item_bootstrap(rows, "more", "base").set_index("group") for rows in (table, table[first]))
    assert set(found.loc["half", "n_items"]) == {30}
    pd.testing.assert_frame_equal(found.loc["more"], whole.drop(columns="arm"), atol=1e-4)
    for code in LANGUAGES:
        width = half.loc[code, "high"] - half.loc[code, "low"]
        for end in ("points", "low", "high"):
            assert found.loc[("half", code), end] == pytest.approx(half.loc[code, end], abs=0.05 * width)


@pytest.mark.parametrize("name", ["AT_ONCE", "CHUNK"])
def test_what_is_held_at_once_changes_no_interval(table, monkeypatch, name):
    whole = item_bootstrap(table, "more", "base", draws=500)
    monkeypatch.setattr(resampling, name, 1100)  # two means at once; 18 draws at once
    pd.testing.assert_frame_equal(item_bootstrap(table, "more", "base", draws=500), whole, atol=1e-4)


def test_too_few_items_and_no_variation_have_no_interval(table):
    few = item_bootstrap(table[table["item"].isin([f"q{n}" for n in range(FEWEST_ITEMS - 1)])], "more", "base")
    assert few["low"].isna().all() and set(few["reason"]) == {"too few items"} and few["points"].notna().all()
    same = item_bootstrap(table.assign(score=100.0), "more", "base")
    assert same["high"].isna().all() and set(same["reason"]) == {"no variation"}


def test_bad_predictions_are_an_input_error(table, tmp_path):
    with pytest.raises(InputError, match=r"No predictions of the arm 'mor'\. The nearest are: more"):
        item_bootstrap(table, "mor", "base")
    with pytest.raises(InputError, match="No item of the task 'caption' has a score of base and of another"):
        item_bootstrap(table, "more", "base", task="caption")
    with pytest.raises(InputError, match="No item of these predictions has a score"):
        item_bootstrap(table.assign(score=np.nan), "more", "base")
    with pytest.raises(InputError, match="There are no predictions at"):
        item_bootstrap(tmp_path / "none.parquet", "more", "base")
    with pytest.raises(InputError, match=r"lack the column\(s\) item"):
        item_bootstrap(table.drop(columns="item"), "more", "base")
