"""Importance: the numbers of statsmodels, intervals that cover, planted shares found, an inert seed at the bottom."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations, product

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
import statsmodels.formula.api as smf
from scipy import stats
from sklearn.tree import DecisionTreeRegressor

from ablations.designs import GeneralizedSubset, OneAtATime, Search, SpaceFilling
from ablations.fanova import Axis, forest_shares, tree_shares
from ablations.importance import _columns, _products, _table, decompose, importance, noncentrality
from ablations.studies import Study
from lvlm.errors import InputError
from tests.planted import grid, noise, planted, shares

EFFECTS = {"mix": {"all": 1.5, "T5": 0.0, "T5-T3": 0.3}, "share": {0.5: 0.4, 0.1: 0.2, 0.25: 0.3, 0.9: -0.8}}


def additive(levels, seed, code):
    """Mix, then share; tiles do nothing; the seed moves everything; every run has noise of its own."""
    own = noise(seed, levels["mix"], levels["share"], levels["tiles"]).normal(0, 0.4)
    moved = noise(seed).normal(0, 0.5)
    return 50 + EFFECTS["mix"][levels["mix"]] + EFFECTS["share"][levels["share"]] + moved + own


def run_means(results):
    rows = results.table.query("language != 'en'")
    return rows.groupby(["arm", "seed", *results.factors], sort=False)["value"].mean().reset_index()


def omega(results, *, pairs=True):
    """By statsmodels: `anova_lm(typ=2)` on run means, then the formulas of omega-squared."""
    data = run_means(results)
    names = [f"C({name})" for name in results.factors]
    terms = names + ([":".join(pair) for pair in combinations(names, 2)] if pairs else [])
    table = sm.stats.anova_lm(smf.ols(f"value ~ {' + '.join(terms)} + C(seed)", data).fit(), typ=2)
    error = table.loc["Residual", "sum_sq"] / table.loc["Residual", "df"]
    explained = table["sum_sq"] - table["df"] * error
    total = ((data["value"] - data["value"].mean()) ** 2).sum()
    whole, partial = explained / (total + error), explained / (explained + len(data) * error)
    plain = [name.replace("C(", "").replace(")", "").replace(":", " x ") for name in table.index]
    return pd.DataFrame({"omega2": whole, "partial_omega2": partial}).set_axis(plain).drop("Residual")


@pytest.mark.parametrize("design", [None, GeneralizedSubset(reduction=2)], ids=["balanced", "a fraction"])
def test_omega_squared_is_that_of_statsmodels(design):
    results = planted(grid(design), additive)
    found = importance(results, pairs=design is None).set_index("factors")
    expected = omega(results, pairs=design is None)
    assert set(found.index) == set(expected.index)
    for column in expected:
        assert found.loc[expected.index, column].to_numpy() == pytest.approx(expected[column].to_numpy(), abs=1e-9)


def test_planted_shares_come_in_their_order_inside_their_intervals():
    found = importance(planted(grid(), additive, seeds=range(5)))
    assert found["factors"].iloc[0] == "mix" and len(found) == 3 + 3 + 1
    by = found.set_index("factors")
    true = {name: np.var(list(own.values())) for name, own in EFFECTS.items()}
    seeds = [noise(seed).normal(0, 0.5) for seed in range(5)]
    total = sum(true.values()) + np.var(seeds) + 0.4**2
    for name, own in (*true.items(), ("seed", np.var(seeds)), ("tiles", 0.0), ("mix x share", 0.0)):
        assert by.loc[name, "low"] <= own / total <= by.loc[name, "high"], name
    assert (by.loc["tiles", "low"], by.loc["mix x tiles", "low"]) == (0, 0) and by.loc["mix", "low"] > 0.3
    assert set(found["n_runs"]) == {24 * 5} and "block" in by.loc["seed", "note"]


def test_an_interaction_is_a_pair_and_an_inert_factor_has_none():
    def together(levels, seed, code):
        return 3.0 * (levels["mix"] == "T5") * (levels["tiles"] == 2) + additive(levels, seed, code)

    by = importance(planted(grid(), together)).set_index("factors")
    assert by.loc["mix x tiles", "low"] > 0.05 and by.loc["mix x share", "low"] == 0


# --- coverage ---------------------------------------------------------------------------------------------------------


LEVELS = (3, 5, 3)
PLANTED = ([-1, 0, 1], [-1.5, 0, 0.5, 0.7, 0.3], [-0.5, 0, 0.5])


def factorial():
    cells = np.array(list(product(*map(range, LEVELS))))
    single = {(name,): np.eye(n)[cells[:, j]][:, 1:] for j, (name, n) in enumerate(zip("abc", LEVELS, strict=True))}
    both = {(x, y): _products(single[x,], single[y,]) for x, y in combinations("abc", 2)}
    return cells, single | both


def simulated(seeds, studies, *, of_seed, of_factor, generator, sd=2.0):
    """Blocks (studies, seeds, cells): planted effects, seeds, factors that do more with some seeds, noise."""
    cells, _ = factorial()
    y = sum(np.asarray(effect)[cells[:, j]] for j, effect in enumerate(PLANTED)).astype(float)
    by_seed = generator.normal(0, of_seed, (studies, seeds, 1))
    y = y + by_seed + generator.normal(0, sd, (studies, seeds, len(cells)))
    for j, n in enumerate(LEVELS):
        y = y + generator.normal(0, of_factor, (studies, seeds, n))[:, :, cells[:, j]]
    return y, by_seed[..., 0]


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("of_factor", [0.0, 0.7], ids=["additive seeds", "factors x seeds"])
def test_intervals_of_omega_squared_cover_also_where_effects_differ_between_seeds(seeds, of_factor):
    _, columns = factorial()
    blocks, drawn = simulated(seeds, 150, of_seed=1.0, of_factor=of_factor, generator=np.random.default_rng(seeds))
    variances = {name: np.var(effect) for name, effect in zip("abc", PLANTED, strict=True)} | {"a x b": 0.0}
    covered = dict.fromkeys(variances, 0)
    for block, of_seeds in zip(blocks, drawn, strict=True):
        found = _table(decompose(block, columns), method="", n_runs=0, notes=[]).set_index("factors")
        total = sum(variances.values()) + of_seeds.var() + 4.0 + 3 * of_factor**2
        for name, own in variances.items():
            covered[name] += found.loc[name, "low"] <= own / total <= found.loc[name, "high"]
    rates = np.array(list(covered.values())) / len(blocks)
    assert rates.min() > 0.90 and rates[:3].mean() < 0.99, covered


def test_noncentrality_turns_the_distribution_around():
    low, high = noncentrality(6.0, 2, 20)
    assert stats.ncf.cdf(6.0, 2, 20, low) == pytest.approx(0.975)
    assert stats.ncf.cdf(6.0, 2, 20, high) == pytest.approx(0.025)
    assert noncentrality(0.5, 2, 20)[0] == 0.0 and noncentrality(0.001, 2, 20) == (0.0, 0.0)


def test_an_inert_seed_seldom_ranks_above_a_real_factor():
    _, columns = factorial()
    single = {name: own for name, own in columns.items() if len(name) == 1}
    blocks, _ = simulated(3, 300, of_seed=0.0, of_factor=0.0, generator=np.random.default_rng(1))
    above = top = 0
    for block in blocks:
        found = _table(decompose(block, single), method="", n_runs=0, notes=[]).set_index("factors")["omega2"]
        above += found["seed"] >= found[["a", "b", "c"]].min()
        top += found.idxmax() in ("a", "b")
    assert above / len(blocks) < 0.15 and top / len(blocks) > 0.98, (above, top)


def test_an_inert_seed_seldom_ranks_above_a_real_factor_in_fanova():
    cells, _ = factorial()
    blocks, _ = simulated(3, 12, of_seed=0.0, of_factor=0.0, generator=np.random.default_rng(2))
    x = np.column_stack([np.tile(cells, (3, 1)), np.repeat(np.arange(3), len(cells))]).astype(float)
    axes, above = [Axis(levels=n) for n in (*LEVELS, 3)], 0
    for block in blocks:
        found = forest_shares(x, block.ravel(), axes, [], seed=0, trees=16)
        above += found[3,] >= min(found[number,] for number in range(3))
    assert above <= 4, "18 % in the simulations it was chosen by; 5 of 12 would be more by chance in one of 50"


# --- fANOVA -----------------------------------------------------------------------------------------------------------


def test_shares_of_a_tree_are_those_of_a_full_grid():
    """A tree that has learnt every cell by heart: its shares are the analysis of variance of that grid."""
    generator = np.random.default_rng(0)
    cells = np.array(list(product(range(3), range(4), range(2))), dtype=float)
    y = generator.normal(0, 1, len(cells))
    found = tree_shares(
        DecisionTreeRegressor().fit(cells, y).tree_, [Axis(levels=n) for n in (3, 4, 2)], [(0, 1), (0, 2), (1, 2)]
    )
    whole = y.reshape(3, 4, 2)
    centred = whole - whole.mean()
    assert found[1,] == pytest.approx(np.var(centred.mean(axis=(0, 2))) / np.var(whole))
    pair = centred.mean(axis=2) - centred.mean(axis=(1, 2))[:, None] - centred.mean(axis=(0, 2))
    assert found[0, 1] == pytest.approx((pair**2).mean() / np.var(whole))
    rest = 1 - sum(found.values())
    assert 0 < rest < 1, "what is left belongs to all three together"


def test_shares_over_a_range_weigh_its_parts_by_their_length():
    x = np.array([[0.0], [0.2], [0.3], [1.0]])
    tree = DecisionTreeRegressor(max_leaf_nodes=2).fit(x, [0.0, 0.0, 4.0, 4.0]).tree_
    assert tree_shares(tree, [Axis(span=(0.0, 1.0))], [])[0,] == pytest.approx(1.0)
    two = np.column_stack([np.repeat([0.1, 0.9], 2), np.tile([0.1, 0.9], 2)])
    found = tree_shares(
        DecisionTreeRegressor().fit(two, [0, 0, 0, 4.0]).tree_, [Axis(span=(0, 1)), Axis(span=(-1.0, 1.0))], [(0, 1)]
    )
    # splits at 0.5: 1 over half and a quarter of the space
    a, b = 0.5, 0.25
    total = 16 * a * b - (4 * a * b) ** 2
    assert found[0,] == pytest.approx((16 * b**2 * a - (4 * a * b) ** 2) / total)
    assert found[1,] == pytest.approx((16 * a**2 * b - (4 * a * b) ** 2) / total)
    assert sum(found.values()) == pytest.approx(1.0)
    assert tree_shares(DecisionTreeRegressor().fit(two, np.ones(4)).tree_, [Axis(levels=2)] * 2, []) == {}


def test_a_search_has_shares_of_forests_with_their_spread():
    study = grid(Search(arms=20))
    arms = tuple(arm for arm in grid().arms("default"))
    results = planted(grid(), additive)
    searched = replace(results, study=study)
    assert searched.is_searched and len(arms) == 24
    found = importance(searched)
    assert set(found["method"]) == {"fANOVA, 8 forests"} and found["partial_omega2"].isna().all()
    assert ((found["low"] <= found["omega2"]) & (found["omega2"] <= found["high"])).all()
    assert found["factors"].iloc[0] == "mix" and (found["high"] > found["low"]).all()
    by = found.set_index("factors")["omega2"]
    assert by["mix"] > by["share"] > by["tiles"] and by["seed"] > by["tiles"]
    assert importance(searched).equals(found), "same forests, same shares"


# --- designs that are no full grid -----------------------------------------------------------------------------------


def test_one_factor_at_a_time_has_shares_along_its_margins():
    results = planted(grid(OneAtATime()), additive, seeds=range(5))
    found = importance(results)
    assert set(found["factors"]) == {"mix", "share", "tiles", "seed"} and set(found["method"]) == {
        "omega-squared, margins"
    }
    assert found["note"].str.contains("pairs are not seen").all()
    by = found.set_index("factors")
    whole = importance(planted(grid(), additive, seeds=range(5)), pairs=False).set_index("factors")
    for name in by.index:
        assert by.loc[name, "low"] <= max(0, whole.loc[name, "omega2"]) <= by.loc[name, "high"], name


def test_arms_to_which_a_factor_does_not_apply_are_left_out_and_said():
    from ablations.studies import load_study

    study = load_study("drivers")
    full = replace(study, design=study.full_design, full_design=None)
    results = planted(full, lambda levels, seed, code: 5.0 * (levels["tiles"] == 2) + noise(seed, levels).normal())
    found = importance(results)
    assert found["factors"].iloc[0] == "tiles"
    assert found["note"].str.contains("arms to which english_share does not apply").all()


def test_a_range_is_a_quadratic():
    found = importance(
        planted(
            shares(SpaceFilling(points=16)),
            lambda levels, seed, _: -30 * (levels["english_share"] - 0.5) ** 2 + noise(seed, levels).normal(),
        )
    )
    assert found["factors"].iloc[0] == "english_share" and found["low"].iloc[0] > 0.3


def test_what_cannot_be_decomposed_is_said():
    results = planted(grid(), additive)
    single = importance(replace(results, table=results.table.query("seed == 0"), wide={}))
    assert "seed" not in set(single["factors"]) and np.isfinite(single["omega2"]).all(), "three factors leave an error"
    two = results.table.query("seed == 0 and tiles == 1 and mix != 'T5-T3'")
    saturated = importance(replace(results, table=two, wide={}))
    assert saturated["omega2"].isna().all() and saturated["note"].str.contains("nothing tells noise").all()
    margins = planted(grid(OneAtATime()), additive, seeds=(0,))
    assert importance(margins)["omega2"].isna().all() and importance(margins)["note"].str.contains("one seed").all()
    one = replace(results, table=results.table.query("arm == @results.baseline"), wide={})
    with pytest.raises(InputError, match="two levels"):
        importance(one)
    with pytest.raises(InputError, match="has to be known"):
        importance(replace(results, study=None, unknown="The study is not known"))
    assert isinstance(results.study, Study) and _columns(results.study.factors[0], pd.Series(["all", "T5"])).shape == (
        2,
        1,
    )
