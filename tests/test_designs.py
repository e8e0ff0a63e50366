"""Designs: which arms are run, once each, and what a fraction keeps estimable."""

from __future__ import annotations

import numpy as np
import pytest

from ablations.designs import FullGrid, KeepInteraction, OneAtATime
from ablations.factors import Factor
from ablations.studies import load_study
from lvlm.errors import InputError

LANGUAGES = Factor(name="languages", path="instruct.mix.languages", levels=("en", "T5", "all"))
SHARE = Factor(
    name="share", path="instruct.mix.english_share", levels=(0.1, 0.5, 0.9), requires={"languages": ("T5", "all")}
)
TILES = Factor(name="tiles", path="model.tiles", levels=(1, 2))
FACTORS = (LANGUAGES, SHARE, TILES)
BASELINE = {"languages": "all", "share": 0.5, "tiles": 1}


def keys(combinations):
    return [tuple(levels.values()) for levels in combinations]


def test_full_grid_has_a_conditional_factor_once_where_it_does_not_apply():
    found = keys(FullGrid().combinations(FACTORS, BASELINE))
    assert len(found) == len(set(found)) == (1 + 2 * 3) * 2
    assert [one for one in found if one[0] == "en"] == [("en", None, 1), ("en", None, 2)]


def test_a_factor_that_does_not_apply_takes_others_with_it_in_whatever_order_they_are_declared():
    rank = Factor(name="rank", path="instruct.lora.r", levels=(4, 8), requires={"share": (0.1, 0.5, 0.9)})
    baseline = {"rank": 4, "share": 0.5, "languages": "all"}
    for factors in ((rank, SHARE, LANGUAGES), (LANGUAGES, SHARE, rank)):
        arms = FullGrid().combinations(factors, baseline)
        assert len(arms) == 1 + 2 * 3 * 2
        assert [arm["rank"] for arm in arms if arm["languages"] == "en"] == [None]


def test_every_design_starts_with_the_baseline():
    for design in (FullGrid(), OneAtATime(), KeepInteraction(keep=("languages", "share"))):
        assert design.combinations(FACTORS, BASELINE)[0] == BASELINE


def test_one_at_a_time_differs_from_the_baseline_in_one_factor():
    found = OneAtATime(levels={"share": (0.1,)}).combinations(FACTORS, BASELINE)
    assert keys(found) == [("all", 0.5, 1), ("en", None, 1), ("T5", 0.5, 1), ("all", 0.1, 1), ("all", 0.5, 2)]


def test_one_at_a_time_refuses_what_the_factor_does_not_have():
    with pytest.raises(InputError, match=r"0\.3 is not a level of factor 'share'"):
        OneAtATime(levels={"share": (0.3,)}).combinations(FACTORS, BASELINE)
    with pytest.raises(InputError, match=r"names the factor\(s\) shares"):
        OneAtATime(levels={"shares": (0.1,)}).combinations(FACTORS, BASELINE)


def test_the_fraction_keeps_main_effects_and_the_interaction_estimable():
    study = load_study("drivers")
    arms = [arm.levels for arm in study.arms("full")]
    pairs = sorted({(str(one["languages"]), str(one["english_share"])) for one in arms})
    assert len(pairs) == 1 + 3 * 6, "every combination of the kept factors is run"
    assert len(arms) < 2 * len(pairs), "it is a fraction"
    cell = np.array(
        [[(str(one["languages"]), str(one["english_share"])) == pair for pair in pairs] for one in arms], dtype=float
    )
    tiles = np.array([[one["tiles"] == 2] for one in arms], dtype=float)
    full = np.hstack([cell, tiles])
    assert np.linalg.matrix_rank(full) == len(pairs) + 1, (
        "tiles and all cells of languages x share are estimable together"
    )
    two = [(one["languages"], one["english_share"]) for one in arms if one["tiles"] == 2]
    shares = {share for _, share in two if share is not None}
    assert {0.5} < shares < {one["english_share"] for one in arms}
    trained = {language for language, share in two if share is not None}
    assert trained == {one["languages"] for one in arms} - {"en"} and ("en", None) in two
    assert len(two) == 1 + len(trained) * len(shares), "every language group beside the same shares"


def test_a_fraction_beside_everything_is_the_grid():
    grid = set(keys(FullGrid().combinations(FACTORS, BASELINE)))
    assert set(keys(KeepInteraction(keep=("languages", "share")).combinations(FACTORS, BASELINE))) == grid


def test_a_fraction_refuses_levels_that_cannot_be_compared():
    for beside, message in (
        ({"tiles": (1,)}, "not among the kept"),
        ({"share": (0.1, 0.2)}, r"0\.2 is not a level"),
        ({"share": (0.1,)}, "needs the baseline 0.5"),
    ):
        with pytest.raises(InputError, match=message):
            KeepInteraction(keep=("languages", "share"), beside=beside).combinations(FACTORS, BASELINE)
