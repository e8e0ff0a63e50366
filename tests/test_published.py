"""The published tables: figures by key, values by language behind them, curves to lay over own results."""

from __future__ import annotations

import numpy as np
import pytest

from ablations.claims import CLAIMS, Optimum, figure
from ablations.evidence import evidence, over_languages
from ablations.published import Cells, agreement, best, curve, overlay, pairs
from ablations.published.tables import cell, tables
from ablations.studies import load_study
from ablations.table import load_results
from lvlm.errors import InputError
from tests.synthetic_results import write_study


def test_the_values_by_language_give_the_published_tiers():
    near, off = 0, []
    rows = tables().query("source == 'centurio2025' and table in ['rq1a_all_tasks', 'rq2', 'rq3']")
    for row in rows.itertuples():
        known = pairs(row.table, row.arm)
        found = known.loc[known["group"] == row.group, "value"].mean()
        near += abs(found - row.value) <= 0.1
        if abs(found - row.value) > 0.1:
            off.append((row.table, row.arm, row.group))
    assert len(rows) == 96 and near >= 88, off
    counts = pairs("rq2", "50")["group"].value_counts()
    assert dict(counts) == {"T4": 49, "T3": 32, "T5": 32, "T2": 15, "en": 12, "T1": 7}


def test_text_in_images_is_grouped_by_letters():
    known = pairs("rq4_smpqa_read", "50% Eng.")
    for group in ("en", "Latin", "other"):
        found = known.loc[known["group"] == group, "value"].mean()
        assert found == pytest.approx(cell("rq4_smpqa_read", "50% Eng.", "accuracy", group), abs=0.1)


def test_an_unknown_figure_is_an_error_with_the_nearest():
    with pytest.raises(InputError, match=r"No published table has rq2 / 55 / score / T1.*rq2 / 5"):
        cell("rq2", "55", "score", "T1")


def test_a_table_without_values_by_language_has_none():
    assert pairs("t16", "uniform").empty
    assert over_languages(Cells("t16", "stratified 1/tier", ("T1",), "uniform"))[2] == 0


def test_the_figures_of_the_claims_are_those_of_the_tables():
    """By key, so that a wrong group, arm or sign shows: the figures as they stand in the paper's tables."""
    found = {claim.id: [figure(part) for part in claim.parts] for claim in CLAIMS}
    assert found["C3"] == [pytest.approx(52.6 - 53.6)]
    assert found["C2"] == pytest.approx([34.0 - 28.5, 29.6 - 26.7, 32.1 - 27.9, 34.5 - 31.4, 19.3 - 17.0])
    assert found["C1c"] == pytest.approx([84.4 - 0.2, 72.9 - 0.2])
    assert found["C6b"] == pytest.approx([6.2 - 1.2, 3.5 - 1.2])
    assert found["C7a"] == pytest.approx([55.8 - 41.8, 39.9 - 23.1])
    assert found["C8"] == pytest.approx([53.8 - 47.2, (41.8 + 7.1 - 34.1 - 3.5) / 2])
    assert found["P6"] == [pytest.approx(88.2 - 86.3)]
    assert found["T1"] == [None] and found["L1"] == [None]


def test_the_published_optimum_is_read_from_the_table():
    assert best("rq2", ["T1"]) == 25 and best("rq2", ["T5"]) == 75 and best("rq2", ["en"]) == 90
    (claim,) = (claim for claim in CLAIMS if claim.id == "C5")
    assert [figure(part) for part in claim.parts if isinstance(part, Optimum)] == [-50, -65]


def test_an_interval_over_languages_has_a_language_as_its_unit():
    cells = Cells("rq1a_all_tasks", "L100", ("T2",), "English")
    low, high, languages = over_languages(cells)
    known = pairs("rq1a_all_tasks", "L100")
    assert languages == known.loc[known["group"] == "T2", "language"].nunique() > 2
    assert low < cells.points + 1 and high > cells.points - 1 and low < high


def test_curves_stand_on_our_levels():
    found = curve("english_share", "score", "T1")
    assert list(found["level"]) == [0.01, 0.10, 0.25, 0.50, 0.75, 0.90]
    assert list(found["value"]) == [19.1, 18.1, 19.7, 19.3, 18.5, 15.9]
    assert list(curve("number_of_languages")["level"]) == ["en", "T5", "T5-T4", "T5-T3", "T5-T2", "all"]
    assert curve("number_of_languages", "fidelity", "T1")["value"].iloc[0] == 0.2
    captions = curve("pretrain_share", "score", "en")
    assert list(captions["level"]) == ["none", "English only", "half English", "1% English"]
    assert len(curve("text_in_image", "score", "reading/other", factor="text")) == 4
    assert list(curve("text_in_image", "score", "reading/en", factor="tower")["value"]) == [47.2, 53.8]
    assert curve("tiling").empty and curve("english_share", "fidelity").empty
    assert curve("english_share", "score", "sw").empty, "no figure of a single language"
    mean = curve("english_share")
    assert mean["value"].iloc[0] == pytest.approx(np.mean([19.1, 30.3, 28.8, 27.1, 31.7]))


def test_a_curve_of_a_study_with_several_factors_needs_its_name():
    with pytest.raises(InputError, match="has the factors text, tower: name one"):
        curve("text_in_image")
    factor = load_study("text_in_image").factors[1]
    assert len(curve(factor, "score", "reading/en")) == 2


@pytest.fixture(scope="module")
def shares(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    write_study(home, "english_share")
    return load_results("english_share", home=home)


def test_a_rescaled_curve_has_our_mean_and_spread(shares):
    theirs = curve("english_share", "score", "T1")
    laid = overlay(shares, "english_share", group="T1")
    own = [
        shares.table.query("arm == @arm and metric == 'score' and tier == 'T1'")["value"].mean()
        for arm in (shares.label({"english_share": level}) for level in laid["level"])
    ]
    assert laid["value"].mean() == pytest.approx(np.mean(own))
    assert laid["value"].std() == pytest.approx(np.std(own, ddof=1))
    assert list(laid["value"].rank()) == list(theirs["value"].rank())
    assert list(overlay(shares, "english_share", group="T1", scale="ranks")["value"]) == [4, 2, 6, 5, 3, 1]
    assert list(overlay(shares, "english_share", group="T1", scale="published")["value"]) == list(theirs["value"])
    with pytest.raises(InputError, match="as published, rescaled or ranks, not as 'log'"):
        overlay(shares, "english_share", group="T1", scale="log")


def test_the_agreement_of_ranks_has_an_interval_over_seeds(shares):
    found = agreement(shares, "english_share", group="T1")
    assert found.n_levels == 6 and found.n_seeds == 5
    assert -1 <= found.low <= found.rho <= found.high <= 1
    assert found.text().startswith("rank correlation ")
    none = agreement(shares, "english_share", group="sw")
    assert np.isnan(none.rho) and "0 of the levels are published" in none.text()


def test_the_published_order_itself_agrees_fully(shares):
    theirs = curve("english_share", "score", "T1").set_index("level")["value"]
    arms = {shares.label({"english_share": level}): value for level, value in theirs.items()}
    table = shares.table.assign(value=shares.table["arm"].map(arms) + shares.table["seed"])
    exact = type(shares)(table=table, folder=shares.folder, study=shares.study)
    found = agreement(exact, "english_share", group="T1")
    assert found.rho == found.of_means == 1.0


def test_evidence_weighs_a_figure_against_languages_and_seed_noise(shares):
    by_part = {(one.claim.id, one.part): one for one in evidence([shares])}
    assert len(by_part) == sum(max(1, len(claim.parts)) for claim in CLAIMS)
    upper = by_part["C4", "score of multilingual: 0.5 against 0.9"]
    assert upper.noise is not None and upper.noise.study == "english_share" and upper.noise.n_seeds == 5
    assert upper.points == pytest.approx((19.3 + 32.6 + 30.7 + 28.9 + 34.4 - 15.9 - 31.2 - 27.6 - 26.9 - 34.1) / 5)
    assert upper.bearable == pytest.approx(upper.points / 1.96, abs=0.01)
    assert upper.judgement in ("can support", "within seed noise", "languages disagree")
    assert by_part["T1", "score of reading/en: 2 against 1"].judgement == "no figure"
    assert by_part["P5", "score of multilingual: pivot against noise 50%"].judgement == "no figure"
    without = {(one.claim.id, one.part): one for one in evidence()}
    assert without["C4", "score of multilingual: 0.5 against 0.9"].noise is None
