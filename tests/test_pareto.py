"""Pareto fronts and the cheapest arm: means, paired intervals, and arms that are put aside only where that is shown."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from ablations.contrasts import effect
from ablations.pareto import cheapest_within_noise, on_front, pareto
from ablations.table import BUDGET_FILE
from lvlm.errors import InputError
from tests.planted import noise, planted, shares

ENGLISH = {0.01: 50, 0.10: 53, 0.25: 55, 0.50: 57, 0.75: 58, 0.90: 58.2}
OTHERS = {0.01: 40, 0.10: 44, 0.25: 44.3, 0.50: 43, 0.75: 41, 0.90: 30}


def outcome(levels, seed, code):
    share = levels["english_share"]
    mean = (ENGLISH if code == "en" else OTHERS)[share]
    run = noise(seed, share).normal(0, 0.3)
    return mean + 6 * noise(seed).normal() + run + noise(seed, share, code).normal(0, 0.3)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("planted")
    made = planted(shares(), outcome, seeds=range(5), folder=folder)
    rows = [
        {"run": f"{arm}{seed}", "arm": arm, "seed": seed, "flops": 1e12 * (1 - share / 2), "train_seconds": 40.0 + seed}
        for arm, share in made.arms()["english_share"].items()
        for seed in range(5)
    ]
    pd.DataFrame(rows).to_csv(folder / BUDGET_FILE, index=False)
    return made


def with_changed(results, share, code, by):
    """The results with scores of one share moved, in English or elsewhere."""
    rows = (results.table["english_share"] == share) & ((results.table["language"] == "en") == (code == "en"))
    return replace(results, table=results.table.assign(value=results.table["value"] + by * rows), wide={})


def test_the_front_is_what_no_other_point_is_above():
    points = np.array([[1, 5], [2, 4], [2, 3], [3, 1], [0, 5], [3, 1]], dtype=float)
    assert on_front(points).tolist() == [True, True, False, True, False, True], "equal points do not beat each other"


def test_arms_that_are_shown_to_be_beaten_are_put_aside_and_the_others_not(results):
    found = pareto(results).set_index("arm")
    share = results.arms()["english_share"]
    aside = set(share[found.index[~found["reaches_front"]]])
    assert aside == {0.01, 0.10} or aside == {0.01}, "1 % English is worst in English and beaten elsewhere too"
    assert set(share[found.index[found["on_front"]]]) >= {0.25, 0.5, 0.75, 0.9} - {0.9}
    assert (found["reaches_front"] | ~found["on_front"]).all(), "an arm on the front is beaten by none"
    assert ((found["beaten_by"] == "") == found["reaches_front"]).all()
    beaten = found.index[~found["reaches_front"]][0]
    for group in ("en", "multilingual"):
        assert effect(results, found.loc[beaten, "beaten_by"], beaten, metric="score", group=group).low > 0


def test_being_beaten_is_decided_by_paired_differences_and_not_by_overlapping_bars(results):
    found = pareto(results).set_index("arm")
    worst = results.label({"english_share": 0.01})
    best = found.loc[worst, "beaten_by"]
    for axis in "xy":
        assert found.loc[worst, f"{axis}_high"] > found.loc[best, f"{axis}_low"], "the seeds' own noise is in both bars"
    assert not found.loc[worst, "reaches_front"]


def test_an_arm_that_is_worse_within_noise_reaches_the_front(results):
    arm, better = (results.label({"english_share": share}) for share in (0.75, 0.5))
    before, close = pareto(results).set_index("arm"), results
    for axis, code in (("x", "en"), ("y", "other")):
        close = with_changed(close, 0.75, code, before.loc[better, axis] - before.loc[arm, axis] - 0.05)
    found = pareto(close).set_index("arm")
    assert not found.loc[arm, "on_front"] and found.loc[arm, "reaches_front"]


def test_a_true_front_is_seldom_put_aside():
    """Six arms of one front: a point further right is further down, by less than the noise."""
    aside = 0
    for number in range(10):
        equal = planted(
            shares(),
            lambda levels, seed, code, n=number: (
                (0.3 if code == "en" else -0.3) * levels["english_share"]
                + noise(seed, n, levels).normal(0, 0.5) + noise(seed, n, levels, code).normal(0, 0.5)
            ),
            languages=("en", "de", "sw"),
        )  # fmt: skip
        aside += (~pareto(equal)["reaches_front"]).sum()
    assert aside / (10 * 6) < 0.05


def test_other_outcomes_and_what_they_cost(results):
    found = pareto(results, x="score/T5", y="fr")
    wide = results.table.query("tier == 'T5'").groupby("arm")["value"].mean()
    assert found.set_index("arm")["x"].to_dict() == pytest.approx(wide.to_dict())
    assert (found["seconds"] == 42.0).all()
    bare = pareto(replace(results, folder=results.folder / "nowhere"))
    assert bare["seconds"].isna().all()
    with pytest.raises(InputError, match="not a group"):
        pareto(results, x="score/T9")


def test_the_cheapest_arm_within_noise_of_the_best(results):
    found = cheapest_within_noise(results, group="en")
    assert found.best == found.arm == results.label({"english_share": 0.90}), "best in English, and the cheapest"
    others = cheapest_within_noise(results)
    assert others.best == results.label({"english_share": 0.25})
    assert others.arm == others.best, "what costs less is shown to be worse"
    close = with_changed(results, 0.75, "other", 3.2)
    cheap = cheapest_within_noise(close)
    assert cheap.arm == results.label({"english_share": 0.75})
    own = effect(close, cheap.arm, cheap.best, metric="score", group="multilingual")
    assert (cheap.effect.low, cheap.effect.high) == (own.low, own.high) and own.high >= 0
    assert "less FLOPs" in cheap.text() and len(cheap.table()) == 6 and cheap.text() in cheap._repr_html_()
    strict = cheapest_within_noise(close, margin=0.05)
    assert strict.arm == strict.best, "within noise is not the same as shown to be close"


def test_without_a_budget_nothing_is_cheap(results):
    with pytest.raises(InputError, match="is not recorded"):
        cheapest_within_noise(replace(results, folder=results.folder / "nowhere"))
    with pytest.raises(InputError, match="cost is one of"):
        cheapest_within_noise(results, cost="money")
    with pytest.raises(InputError, match="LLM tokens is not recorded"):
        cheapest_within_noise(results, cost="llm_tokens")
