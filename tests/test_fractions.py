"""Fractions, subsets and points in ranges: what they say can be told apart can be, what they say is confounded is."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from ablations.designs import (
    FractionalFactorial,
    FullGrid,
    GeneralizedSubset,
    KeepInteraction,
    OneAtATime,
    SpaceFilling,
)
from ablations.designs.aliasing import interaction_columns, main_columns
from ablations.designs.fractions import generators
from ablations.factors import Factor
from ablations.studies import Study
from lvlm.errors import InputError

TWO = tuple(
    Factor(name=name, path=path, levels=levels)
    for name, path, levels in (
        ("tiles", "model.tiles", (1, 2)),
        ("languages", "instruct.mix.languages", ("en", "all")),
        ("layer", "model.feature_layer", (-2, -1)),
        ("rank", "instruct.lora.r", (4, 8)),
        ("batch", "instruct.batch_samples", (8, 16)),
    )
)
BASELINE = {"tiles": 1, "languages": "all", "layer": -2, "rank": 4, "batch": 16}
SHARE = Factor(
    name="share", path="instruct.mix.english_share", range=(0.01, 0.99), requires={"languages": ("T5", "all")}
)
MIXED = (
    Factor(name="languages", path="instruct.mix.languages", levels=("en", "T5", "all")),
    Factor(name="share", path="instruct.mix.english_share", levels=(0.1, 0.3, 0.5, 0.7, 0.9)),
    Factor(name="tiles", path="model.tiles", levels=(1, 2, 3)),
)
MIDDLE = {"languages": "all", "share": 0.5, "tiles": 1}


def recovered(factors, arms, response):
    """Least squares on the main effects: factor -> coefficients."""
    columns = [main_columns(factor, arms) for factor in factors]
    found, *_ = np.linalg.lstsq(np.hstack([np.ones((len(arms), 1)), *columns]), response, rcond=None)
    ends = np.cumsum([1, *(own.shape[1] for own in columns)])
    return {f.name: found[start:end] for f, start, end in zip(factors, ends, ends[1:], strict=False)}


@pytest.mark.parametrize(("number", "resolution", "size"), [(3, 3, 4), (4, 4, 8), (5, 3, 8), (5, 5, 16)])
def test_a_fraction_recovers_main_effects_and_really_confounds_what_it_says(number, resolution, size):
    factors, baseline = TWO[:number], {factor.name: BASELINE[factor.name] for factor in TWO[:number]}
    design = FractionalFactorial(resolution=resolution)
    arms = design.combinations(factors, baseline)
    assert len(arms) == size and arms[0] == baseline
    assert all([arm[f.name] for arm in arms].count(level) == size / 2 for f in factors for level in f.levels)
    planted = {factor.name: float(place + 1) for place, factor in enumerate(factors)}
    response = sum(main_columns(factor, arms)[:, 0] * planted[factor.name] for factor in factors)
    for name, found in recovered(factors, arms, response).items():
        assert found == pytest.approx([planted[name]]), "the level that is not the baseline's against that one"

    said = design.aliasing(factors, baseline)
    known = {factor.name: factor for factor in factors}
    alone = {name: main_columns(known[name], arms) for name in known}
    alone |= {f"{a} x {b}": interaction_columns(known[a], known[b], arms) for a, b in combinations(known, 2)}
    centred = {name: own - own.mean(axis=0) for name, own in alone.items()}
    alike = {
        pair for pair in combinations(alone, 2) if np.linalg.matrix_rank(np.hstack([centred[n] for n in pair])) < 2
    }
    taken = {product for main, product in said.confounded if main in known}  # that these are alike, too, follows
    alike = {pair for pair in alike if not set(pair) <= taken}
    assert {frozenset(pair) for pair in said.confounded} == {frozenset(pair) for pair in alike}
    assert not said.lost and not said.mixed
    if resolution == 3:
        main, product = next(pair for pair in said.confounded if pair[0] in known)
        assert recovered(factors, arms, alone[product][:, 0])[main][0] != pytest.approx(0), "it passes for the effect"
    else:
        assert said.clear == tuple(known)
        for product in (name for name in alone if " x " in name):
            for found in recovered(factors, arms, alone[product][:, 0]).values():
                assert found == pytest.approx([0]), "no interaction of two factors passes for a main effect"
    assert bool(said.confounded) == (resolution < 5)


def test_the_library_finds_the_same_aliases():
    from pyDOE3 import fracfact, fracfact_aliasing

    letters = dict(zip("abcd", ("tiles", "languages", "layer", "rank"), strict=True))
    chains, _ = fracfact_aliasing(fracfact(" ".join(generators(4, 4))))
    theirs = {frozenset(chain.split(" = ")) for chain in chains if all(len(word) == 2 for word in chain.split(" = "))}
    ours = FractionalFactorial().aliasing(TWO[:4], {name: BASELINE[name] for name in letters.values()}).confounded
    assert {frozenset(" x ".join(letters[a] for a in word) for word in chain) for chain in theirs} == set(
        map(frozenset, ours)
    )


@pytest.mark.parametrize(("reduction", "size"), [(2, 23), (3, 15)])
def test_a_subset_of_mixed_levels_recovers_main_effects(reduction, size):
    design = GeneralizedSubset(reduction=reduction)
    arms = design.combinations(MIXED, MIDDLE)
    assert len(arms) == size and arms[0] == MIDDLE
    assert not design.aliasing(MIXED, MIDDLE).lost
    planted = {factor.name: np.arange(1.0, len(factor.levels)) for factor in MIXED}
    response = sum(main_columns(factor, arms) @ planted[factor.name] for factor in MIXED)
    for name, found in recovered(MIXED, arms, response).items():
        assert found == pytest.approx(planted[name])
    main, product = next(pair for pair in design.aliasing(MIXED, MIDDLE).confounded if " x " not in pair[0])
    known = {factor.name: factor for factor in MIXED}
    one, other = (known[name] for name in product.split(" x "))
    found = [recovered(MIXED, arms, column)[main] for column in interaction_columns(one, other, arms).T]
    assert np.abs(found).max() > 0.01, "an interaction passes for the effect"


def test_a_condition_of_a_factor_holds_in_every_design_and_its_arm_comes_once():
    share = Factor(name="share", path=SHARE.path, levels=(0.5, 0.9), requires={"languages": ("all",)})
    factors, baseline = (TWO[1], share, TWO[0]), {"languages": "all", "share": 0.5, "tiles": 1}
    for design in (FractionalFactorial(resolution=3), GeneralizedSubset(), SpaceFilling(points=8)):
        arms = design.combinations(factors, baseline)
        keys = [tuple(arm.values()) for arm in arms]
        assert len(set(keys)) == len(keys) and arms[0] == baseline
        assert {arm["share"] for arm in arms if arm["languages"] == "en"} == {None}
        assert None not in {arm["share"] for arm in arms if arm["languages"] == "all"}
        assert design.tells_apart(factors, baseline)


def test_levels_that_change_together_are_said_to_be_lost():
    class Pairs(FullGrid):
        def _raw(self, factors, baseline):
            return [{**baseline, "tiles": 2, "layer": -1}]

    baseline = {name: BASELINE[name] for name in ("tiles", "languages", "layer")}
    said = Pairs().aliasing(TWO[:3], baseline)
    assert said.lost == ("tiles", "layer") and said.mains == ("tiles", "layer")
    assert "cannot tell apart: the main effects of tiles, layer" in said.lines()[0]


def test_what_a_design_tells_apart_is_in_the_names_of_the_study():
    names = ("tiles", "languages", "layer", "rank")
    baseline = {name: BASELINE[name] for name in names}
    assert FractionalFactorial().tells_apart(TWO[:4], baseline) == [
        "can tell apart: the main effects of tiles, languages, layer, rank, clear of every interaction of two factors",
        "confounded: tiles x languages with layer x rank; tiles x layer with languages x rank; "
        "tiles x rank with languages x layer",
    ]
    (line,) = OneAtATime().tells_apart(TWO[:4], baseline)
    assert "no arm differs in two factors" in line
    kept = KeepInteraction(keep=("tiles", "languages")).aliasing(TWO[:4], baseline)
    assert kept.clear == ("tiles", "languages")
    assert "interactions that are clear: tiles x languages" in kept.lines()
    assert ("layer", "layer x rank") in kept.confounded, "neither changes beside the other"


def test_points_fill_ranges_and_levels_and_more_of_them_keep_those_there_were():
    factors, baseline = (MIXED[0], SHARE, TWO[3]), {"languages": "all", "share": 0.5, "rank": 4}
    few = SpaceFilling(points=16).combinations(factors, baseline)
    more = SpaceFilling(points=32).combinations(factors, baseline)
    assert few[0] == baseline and [arm for arm in more if arm in few] == few
    assert SpaceFilling(points=16).combinations(factors, baseline) == few
    assert SpaceFilling(points=16, draw=1).combinations(factors, baseline) != few
    shares = sorted(arm["share"] for arm in more if arm["share"] is not None)
    assert 0.01 <= shares[0] < 0.15 and 0.85 < shares[-1] <= 0.99 and all(share == round(share, 4) for share in shares)
    everywhere = (TWO[0], Factor(name="share", path=SHARE.path, range=(0.01, 0.99)))
    for method in ("sobol", "latin_hypercube"):
        _, *points = SpaceFilling(points=16, method=method).combinations(everywhere, {"tiles": 1, "share": 0.5})
        assert [arm["tiles"] for arm in points].count(1) == 8
        sixteenths = sorted(int((arm["share"] - 0.01) / 0.98 * 16) for arm in points)
        assert sixteenths == list(range(16)), "one point in every part of the range"


def test_points_lie_as_the_range_says():
    lr = Factor(name="lr", path="instruct.optim.lr", range=(1e-5, 1e-1), log=True)
    assert [lr.at(share) for share in (0, 0.25, 0.5, 0.75)] == [1e-5, 1e-4, 1e-3, 1e-2]
    assert [lr.scaled(number) for number in (1e-5, 1e-3, 1e-1)] == pytest.approx([-1, 0, 1])
    rank = Factor(name="rank", path="instruct.lora.r", range=(1, 4))
    assert [rank.at(share) for share in (0, 0.3, 0.6, 0.99)] == [1, 2, 3, 4] and isinstance(rank.at(0.5), int)
    assert rank.has(3) and not rank.has(2.5) and not rank.has(5) and not rank.has(True)
    arms = SpaceFilling(points=32).combinations((lr, rank), {"lr": 1e-3, "rank": 2})
    (said, together) = SpaceFilling(points=32).tells_apart((lr, rank), arms[0])
    assert "enough for curvature (5 terms in all)" in said and "correlate by at most 0." in together


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"levels": (0.1, 0.5), "range": (0.1, 0.5)}, "levels or a range, not both"),
        ({"range": (0.5, 0.5)}, "a lower and a higher number"),
        ({"range": (0.5, "x")}, "a lower and a higher number"),
        ({"range": (0.0, 0.5), "log": True}, "begins above 0"),
        ({"levels": (0.1, 0.5), "log": True}, "it has none"),
        ({"path": "model.adapter", "range": (0, 1)}, "which 'model.adapter' is not"),
        ({"path": "instruct.optim.betas", "range": (0, 1)}, "is not"),
        ({"path": "instruct.lora.r", "range": (1, 2.5)}, "whole numbers"),
        ({"range": (0.1, 0.5), "labels": {0.7: "x"}}, "not among its levels"),
        ({}, "at least two different levels"),
    ],
)  # fmt: skip
def test_a_fault_in_a_range_is_one_clear_error(settings, message):
    with pytest.raises(InputError, match=message):
        Factor(**{"name": "share", "path": "instruct.mix.english_share", **settings})


def test_a_range_outside_its_field_is_an_error_of_the_study():
    mix = {"corpora": [{"path": "data/shapes", "split": "instruct"}]}
    share = Factor(name="share", path="instruct.mix.english_share", range=(0.5, 1.5))
    given = {"name": "mine", "question": "?", "base": {"instruct": {"mix": mix}}, "seeds": (0,)}
    with pytest.raises(InputError, match=r"level 1\.5.*less than or equal to 1"):
        Study(**given, factors=(share,), baseline={"share": 0.5}, design=SpaceFilling(points=4))
    share = Factor(name="share", path="instruct.mix.english_share", range=(0.1, 0.9))
    with pytest.raises(InputError, match=r"0\.95 is not a level of factor 'share'; .* numbers from 0\.1 to 0\.9"):
        Study(**given, factors=(share,), baseline={"share": 0.95}, design=SpaceFilling(points=4))
    with pytest.raises(InputError, match="FullGrid takes levels, and factor 'share' has the range"):
        Study(**given, factors=(share,), baseline={"share": 0.5}, design=FullGrid())
    study = Study(**given, factors=(share,), baseline={"share": 0.5}, design=OneAtATime(levels={"share": (0.5, 0.25)}))
    assert [arm.label for arm in study.arms()] == ["share 0.5", "share 0.25"]


@pytest.mark.parametrize(
    ("requires", "message"),
    [
        ({"tiles": (2,)}, "requires levels of tiles, which is no other factor here"),
        ({"share": (0.5,)}, "requires levels of share, which is no other factor here"),
        ({"languages": ("T9",)}, r"requires \('T9',\) of 'languages': give some of its levels.*\('en', 'T5', 'all'\)"),
        ({"languages": "all"}, "requires 'all' of 'languages': give some of its levels"),
        ({"languages": ()}, "give some of its levels"),
    ],
)  # fmt: skip
def test_a_condition_that_can_never_hold_is_an_error_of_the_study(requires, message):
    mix = {"corpora": [{"path": "data/shapes", "split": "instruct"}]}
    share = Factor(name="share", path=SHARE.path, levels=(0.5, 0.9), requires=requires)
    with pytest.raises(InputError, match=message):
        Study(
            name="mine", question="?", base={"instruct": {"mix": mix}}, seeds=(0,), factors=(MIXED[0], share),
            baseline={"languages": "all", "share": 0.5}, design=FullGrid(),
        )  # fmt: skip


@pytest.mark.parametrize(
    ("design", "message"),
    [
        (FractionalFactorial(resolution=6), "one of 3, 4 and 5"),
        (FractionalFactorial(), "'languages' has 3"),
        (FractionalFactorial(levels={"tiles": (2, 3)}), "needs the baseline 1|'languages' has 3"),
        (GeneralizedSubset(reduction=1), "at least 2"),
        (GeneralizedSubset(reduction=4), "too large for factors of 3, 5, 3 levels.*Use at most 3"),
        (SpaceFilling(points=12), "take 8 or 16 instead of 12"),
        (SpaceFilling(points=12, method="halton"), "sobol or latin_hypercube"),
        (SpaceFilling(points=1), "at least 2"),
    ],
)  # fmt: skip
def test_a_design_that_cannot_be_made_says_why(design, message):
    with pytest.raises(InputError, match=message):
        design.combinations(MIXED, MIDDLE)


def test_a_fraction_of_some_levels_of_a_larger_factor():
    design = FractionalFactorial(
        resolution=3, levels={"languages": ("all", "en"), "share": (0.5, 0.9), "tiles": (1, 3)}
    )
    assert [tuple(arm.values()) for arm in design.combinations(MIXED, MIDDLE)] == [
        ("all", 0.5, 1), ("all", 0.9, 3), ("en", 0.5, 3), ("en", 0.9, 1),
    ]  # fmt: skip
