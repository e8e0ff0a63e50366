"""Mixed models: planted effects and components found, the run component that keeps the error honest, agreement with the
paired estimate where nothing is missing, and what is said of a fit that failed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf

import ablations.mixed as mixed
from ablations.contrasts import effect
from ablations.mixed import mixed_effects
from lvlm.errors import InputError
from tests.planted import grid, noise, planted

SD = {"language": 4.0, "seed": 2.0, "run": 1.0, "language:seed": 0.5, "language:arm": 0.6, "residual": 0.5}
EFFECTS = {"T5": -3.0, "T5-T3": -1.0, "tiles 2": 0.0, "share 0.9": -2.0}


def made(draw=0, **sd):
    sd = SD | sd

    def outcome(levels, seed, code):
        parts = {
            "language": (code,), "seed": (seed,), "run": (seed, levels), "language:seed": (code, seed),
            "language:arm": (code, levels), "residual": (code, seed, levels),
        }  # fmt: skip
        noisy = sum(noise(draw, name, *names).normal(0, sd[name]) for name, names in parts.items())
        fixed = EFFECTS.get(levels["mix"], 0.0) + EFFECTS["share 0.9"] * (levels["share"] == 0.9)
        return 50 + fixed + noisy

    return outcome


@pytest.fixture(scope="module")
def study():
    return grid()


@pytest.fixture(scope="module")
def holed(study):
    """Twelve arms with four seeds; four of the 48 runs are missing."""
    labels = [arm.label for arm in study.arms("default") if arm.levels["share"] in (0.5, 0.9)]
    drop = [(labels[number * 5 % 12], number) for number in range(4)]
    every = planted(study, made(), seeds=range(4), drop=drop, languages=("en", "de", "fr", "ar", "ru", "sw"))
    return replace(every, table=every.table[every.table["arm"].isin(labels)])


@pytest.fixture(scope="module")
def fitted(holed):
    return mixed_effects(holed)


def test_planted_effects_and_components_are_recovered_with_runs_missing(fitted):
    by = fitted.fixed.set_index("term")
    assert fitted.converged and (fitted.n_runs, fitted.n_rows, fitted.df) == (44, 44 * 5, 3)
    for term, planted_effect in EFFECTS.items():
        assert by.loc[term, "low"] < planted_effect < by.loc[term, "high"], term
        assert by.loc[term, "clustered_low"] < planted_effect < by.loc[term, "clustered_high"], term
    assert by.loc["T5", "high"] < 0
    for name, low, high in (("run", 0.7, 1.4), ("residual", 0.42, 0.58), ("language:arm", 0.35, 0.85)):
        assert low < fitted.components[name] < high, name
    assert list(fitted.components) == list(SD)


def test_without_the_run_component_the_error_would_be_half(holed, fitted):
    """Languages of one run would count as so many runs."""
    rows = mixed._rows(holed, "score", "multilingual", None)
    x = np.column_stack([np.ones(len(rows.y)), mixed._factor_columns(holed, rows, None).loc[rows.labels["arm"]]])
    random = mixed._random(rows)
    honest = mixed._fit(rows, x).se
    original = mixed._random
    try:
        mixed._random = lambda rows: {name: z for name, z in random.items() if name != "run"}
        short = mixed._fit(rows, x).se
    finally:
        mixed._random = original
    assert (short[1:] / honest[1:]).max() < 0.62
    clustered = fitted.fixed["clustered_high"] - fitted.fixed["clustered_low"]
    assert clustered[1] / 2 / 2.0 == pytest.approx(honest[1], rel=0.35), "and errors clustered by run agree with it"


def test_the_error_is_that_of_statsmodels(holed):
    rows = mixed._rows(holed, "score", "T5", None)
    x = np.column_stack([np.ones(len(rows.y)), np.char.find(rows.labels["arm"], "0.9") >= 0]).astype(float)
    found = mixed._fit(rows, x)
    frame = pd.DataFrame({"y": rows.y, "x": x[:, 1], **rows.labels})
    formulas = {name: "0 + C(" + "):C(".join(name.split(":")) + ")" for name in found.components if name != "residual"}
    theirs = smf.mixedlm("y ~ x", frame, groups=np.ones(len(rows.y)), vc_formula=formulas).fit(
        method=["bfgs", "powell"]
    )
    assert found.estimate == pytest.approx(theirs.fe_params.to_numpy(), abs=0.02)
    if np.isfinite(theirs.bse_fe).all():
        assert found.se == pytest.approx(theirs.bse_fe.to_numpy(), rel=0.05)


def test_where_nothing_is_missing_it_is_the_paired_estimate(study):
    whole = planted(study, made(), languages=("en", "de", "fr", "sw"))
    arm = whole.label({"mix": "T5"})
    found = mixed_effects(whole, arms=[arm, whole.label({"share": 0.9})])
    paired = effect(whole, arm, metric="score", group="multilingual")
    (own,) = found.fixed.query("term == 'T5'").to_dict("records")
    assert own["estimate"] == pytest.approx(paired.points) and own["low"] < paired.points < own["high"]
    assert own["clustered_low"] < paired.points < own["clustered_high"]
    assert (found.n_runs, found.n_seeds, found.n_languages) == (9, 3, 3)
    assert any("9 runs are few" in note for note in found.warnings)


def test_errors_clustered_by_run_cover():
    """Arms x seeds of one value per language; the scale of statsmodels alone would be short here."""
    generator = np.random.default_rng(0)
    arms, seeds, languages = np.meshgrid(np.arange(6), np.arange(3), np.arange(5), indexing="ij")
    labels = {"arm": arms, "seed": seeds, "language": languages, "run": arms * 3 + seeds}
    labels = {name: one.ravel().astype(str) for name, one in labels.items()}
    x = np.column_stack([np.ones(90), *(arms.ravel() == number for number in range(1, 6))]).astype(float)
    covered = 0
    for _ in range(250):
        y = generator.normal(0, 1, 6 * 3)[(arms * 3 + seeds).ravel()] + generator.normal(0, 2, 3)[seeds.ravel()]
        bounds = mixed._clustered(mixed._Rows(y + generator.normal(0, 0.5, 90), labels), x)
        covered += bounds[1, 0] <= 0 <= bounds[1, 1]
    assert 0.91 < covered / 250 < 0.985


def test_terms_and_pairs(holed, fitted):
    named = mixed_effects(holed, terms=["mix", "tiles", ("mix", "tiles")], group="T5")
    assert list(named.fixed["term"]) == ["intercept", "T5", "T5-T3", "tiles 2", "T5 x tiles 2", "T5-T3 x tiles 2"]
    (pair,) = named.fixed.query("term == 'T5 x tiles 2'").to_dict("records")
    assert pair["clustered_low"] < 0 < pair["clustered_high"]
    with pytest.raises(InputError, match="not a factor"):
        mixed_effects(holed, terms=["size"])
    few = replace(
        holed, table=holed.table.query("(mix == 'all' and tiles == 1) or (mix == 'T5' and tiles == 2)"), wide={}
    )
    with pytest.raises(InputError, match="always go together"):
        mixed_effects(few, group="T5")
    assert "standard deviations in points" in fitted._repr_html_() and len(fitted.table()) == len(fitted.fixed)


def test_a_component_of_nothing_is_said_and_a_fit_that_failed_has_no_bounds(study, monkeypatch):
    flat = planted(study, made(**{"language:seed": 0.0, "seed": 0.0}), languages=("en", "de", "sw"))
    few = replace(flat, table=flat.table.query("share == 0.5 or share == 0.9"), wide={})
    found = mixed_effects(few)
    assert any("no variance is seen in" in note for note in found.warnings) and np.isfinite(found.fixed["low"]).all()
    original = mixed.MixedLM.fit

    def stopped(self, **options):
        result = original(self, **options)
        result._results.converged = False
        return result

    monkeypatch.setattr(mixed.MixedLM, "fit", stopped)
    failed = mixed_effects(few)
    assert not failed.converged and failed.reason == "the mixed model did not converge"
    assert failed.fixed["low"].isna().all() and np.isfinite(failed.fixed["clustered_low"]).all()


def test_one_seed_one_language_and_too_many_rows_are_said(holed, monkeypatch):
    single = mixed_effects(replace(holed, table=holed.table.query("seed == 1"), wide={}))
    assert single.reason == "one seed" and single.fixed["low"].isna().all()
    assert set(single.components) == {"language", "run", "residual"}
    english = mixed_effects(holed, group="en")
    assert set(english.components) == {"seed", "residual"} and english.n_rows == 44
    with pytest.raises(InputError, match="nothing to tell noise"):
        mixed_effects(replace(holed, table=holed.table.query("seed == 1"), wide={}), group="en")
    monkeypatch.setattr(mixed, "MOST_ROWS", 100)
    with pytest.raises(InputError, match="would take very long"):
        mixed_effects(holed)
