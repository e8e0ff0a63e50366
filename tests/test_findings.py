"""Verdicts on published claims: planted results that support, contradict and hide each of them; bad input to the
command."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ablations import places
from ablations.claims import CLAIMS, Contrast, Optimum, Reached
from ablations.cli import main
from ablations.contrasts import effect
from ablations.findings import can_test, lines, one_each, sides, table, verdicts
from ablations.studies import list_studies, load_study
from ablations.table import load_results, tidy, write_results
from lvlm.languages import language

CLAIM = {claim.id: claim for claim in CLAIMS}
LANGUAGES = ("en", "de", "fr", "ar", "ru", "tr", "fi", "el", "he", "ka", "sw", "ht", "is", "eo", "jv", "no")
NOISE = 0.5
Level = object
Planted = Callable[[Mapping[str, Level], str, str], Mapping[str, float]]
"""Levels of an arm, task, tier -> metric -> points beside 60."""


def results_of(home, name: str, planted: Planted, *, noise: float = NOISE, seeds=None, runs=None):
    """Made-up results of a study: 60 points, what is planted, a draw that all arms of a seed share, and noise."""
    study = load_study(name)
    tasks = ("reading", "vqa") if name in ("tiling", "text_in_image") else ("vqa",)
    done = []
    for cell in [cell for cell in study.cells() if seeds is None or cell.seed in seeds][:runs]:
        common = np.random.default_rng([cell.seed, 1]).normal(0, 3, len(LANGUAGES))
        own = np.random.default_rng([cell.seed, *cell.arm.label.encode()])
        rows = []
        for number, code in enumerate(LANGUAGES):
            for task in tasks:
                moved = common[number] + own.normal(0, noise)
                told = {"score": 0.0, "fidelity": 0.0, "right_elsewhere": 0.0}
                told |= planted(cell.arm.levels, task, language(code).tier)
                for metric, value in (
                    ("score", told["score"]),
                    ("score_any_language", told["score"] + told["right_elsewhere"] + own.normal(0, noise / 5)),
                    ("fidelity", told["fidelity"]),
                    *((metric, told[metric]) for metric in told.keys() & {"retrieval"}),
                ):
                    rows.append({"task": task, "language": code, "metric": metric, "value": 60 + value + moved, "n": 9})
        done.append((cell, pd.DataFrame(rows)))
    write_results(home / "studies" / name, tidy(study, done), planned=study.cells())
    return load_results(name, home=home)


def verdict_on(home, claim: str, planted: Planted, **options):
    results = results_of(home, CLAIM[claim].study, planted, **options)
    (found,) = verdicts(results, claims=[CLAIM[claim]])
    return found


LOW = ("T2", "T1")
ORDER = ["en", "T5", "T5-T4", "T5-T3", "T5-T2", "all"]


def english(levels, points, *, metric="score"):
    return {metric: points if levels["languages"] == "en" else 0.0}


def peaked(levels, optimum):
    return {"score": -60.0 * (levels["english_share"] - optimum) ** 2}


WANTED = {"en": 0.85, "T5": 0.75, "T4": 0.6, "T3": 0.5, "T2": 0.3, "T1": 0.2}


def captions(levels, by_level):
    return {"score": by_level.get(levels["captions"], 0.0)}


def paired(levels, points):
    return {"fidelity": points if levels["pairs"] == 128 else 0.0}


def aligned(levels, transfer, retrieval):
    strong = levels["alignment"] == "contrast 1"
    return {"score": transfer * strong, "retrieval": retrieval * strong}


def noisy(levels, points):
    return {"score": points if levels["captions"] == "noise 50%" else 0.0}


def added(levels, tier, gain):
    """`gain` for a tier once it is among the training languages."""
    trained = {"T5": 1, "T4": 2, "T3": 3, "T2": 4, "T1": 5}.get(tier, 0)
    return {"score": gain if tier != "en" and ORDER.index(levels["languages"]) >= trained else 0.0}


SUPPORTS: dict[str, Planted] = {
    "C1a": lambda levels, task, tier: english(levels, -58.0, metric="fidelity"),
    "C1b": lambda levels, task, tier: english(levels, -20.0, metric="fidelity"),
    "C1c": lambda levels, task, tier: english(levels, -20.0, metric="fidelity"),
    "C2": lambda levels, task, tier: added(levels, tier, 8.0),
    "C3": lambda levels, task, tier: english(levels, 0.5),
    "C4": lambda levels, task, tier: peaked(levels, 0.5),
    "C5": lambda levels, task, tier: peaked(levels, WANTED[tier]),
    "C6a": lambda levels, task, tier: captions(levels, {"English only": -4.0}),
    "C6b": lambda levels, task, tier: captions(levels, {"English only": -8.0 if tier in LOW else 0.0}),
    "C6c": lambda levels, task, tier: captions(levels, {"none": -8.0 if tier == "en" else 0.0}),
    "C7a": lambda levels, task, tier: {"score": -9.0 * (levels["text"] == "none")},
    "C7b": lambda levels, task, tier: {"score": -9.0 * (levels["text"] == "English only")},
    "C7c": lambda levels, task, tier: {"score": 1.0 * (levels["text"] == "English only")},
    "C8": lambda levels, task, tier: {"score": -9.0 * (levels["tower"] == "frozen")},
    "C9": lambda levels, task, tier: {"score": 0.0},
    "L1": lambda levels, task, tier: {"score": -5.0 * (levels["start_lora"] == "merge")},
    "P1": lambda levels, task, tier: (
        english(levels, 15.0, metric="right_elsewhere") | english(levels, -20.0, metric="fidelity")
    ),
    "P2": lambda levels, task, tier: paired(levels, 45.0),
    "P3": lambda levels, task, tier: aligned(levels, 8.0, 20.0),
    "P4": lambda levels, task, tier: {"score": -40.0},
    "P5": lambda levels, task, tier: noisy(levels, 0.0),
    "P6": lambda levels, task, tier: captions(levels, {}),
    "T1": lambda levels, task, tier: {"score": 12.0 * (levels["tiles"] == 2)},
}
CONTRADICTS: dict[str, Planted] = {
    "C1a": lambda levels, task, tier: {},
    "C1b": lambda levels, task, tier: english(levels, 10.0, metric="fidelity"),
    "C1c": lambda levels, task, tier: {
        "fidelity": 10.0 * (levels["languages"] == "en") - 20.0 * (levels["languages"] == "en" and tier == "T2")
    },
    "C2": lambda levels, task, tier: added(levels, tier, -8.0 if tier == "T3" else 8.0),
    "C3": lambda levels, task, tier: english(levels, 9.0),
    "C4": lambda levels, task, tier: {"score": -9.0 * levels["english_share"]},
    "C5": lambda levels, task, tier: peaked(levels, 1 - WANTED[tier]),
    "C6a": lambda levels, task, tier: captions(levels, {"English only": 8.0 if tier == "T4" else -8.0}),
    "C6b": lambda levels, task, tier: captions(levels, {"English only": -8.0 if tier == "T5" else 0.0}),
    "C6c": lambda levels, task, tier: captions(levels, {"none": 8.0}),
    "C7a": lambda levels, task, tier: {"score": 9.0 * (levels["text"] == "none")},
    "C7b": lambda levels, task, tier: {"score": 9.0 * (levels["text"] == "English only")},
    "C7c": lambda levels, task, tier: {"score": 14.0 * (levels["text"] == "English only")},
    "C8": lambda levels, task, tier: {"score": 9.0 * (levels["tower"] == "frozen" and tier != "en")},
    "C9": lambda levels, task, tier: {"score": 9.0 * (levels["allocation"] == "inverse_tier" and tier == "T1")},
    "L1": lambda levels, task, tier: {"score": 5.0 * (levels["start_lora"] == "merge")},
    "P1": lambda levels, task, tier: english(levels, -9.0, metric="right_elsewhere") | english(levels, -20.0),
    "P2": lambda levels, task, tier: paired(levels, 45.0 if tier != "T2" else 15.0),
    "P3": lambda levels, task, tier: aligned(levels, -8.0, 20.0),
    "P4": lambda levels, task, tier: {"score": -70.0 if tier == "T1" else -40.0},
    "P5": lambda levels, task, tier: noisy(levels, 9.0),
    "P6": lambda levels, task, tier: captions(levels, {"English only": -9.0}),
    "T1": lambda levels, task, tier: {"score": -12.0 * (levels["tiles"] == 2)},
}
BORDER: dict[str, Planted] = {
    "C1a": lambda levels, task, tier: english(levels, -50.0, metric="fidelity"),
    "C3": lambda levels, task, tier: english(levels, 3.0),
    "C7c": lambda levels, task, tier: {"score": 5.0 * (levels["text"] == "English only")},
    "C9": lambda levels, task, tier: {"score": 2.0 * (levels["allocation"] != "uniform")},
    "P2": lambda levels, task, tier: paired(levels, 30.0),
    "P3": lambda levels, task, tier: aligned(levels, 0.0, 0.0),
    "P4": lambda levels, task, tier: {"score": 100 / 72 - 60},
    "P5": lambda levels, task, tier: noisy(levels, 2.0),
    "P6": lambda levels, task, tier: captions(levels, {"English only": -2.0}),
}
"""Where a margin stands for zero; the other claims are within noise where nothing is planted."""


@pytest.mark.parametrize("claim", SUPPORTS)
def test_a_planted_effect_supports_its_claim(tmp_path, claim):
    found = verdict_on(tmp_path, claim, SUPPORTS[claim])
    assert (found.verdict, found.claim.id) == ("supported", claim), found.parts
    assert found.effect.n_seeds == 5 and found.effect.low < found.effect.points < found.effect.high
    assert all(part.supports < 0.05 for part in found.parts)


@pytest.mark.parametrize("claim", CONTRADICTS)
def test_an_effect_on_the_other_side_contradicts_it(tmp_path, claim):
    found = verdict_on(tmp_path, claim, CONTRADICTS[claim])
    assert found.verdict == "contradicted", found.parts
    assert found.effect is min(found.parts, key=lambda part: part.contradicts)


@pytest.mark.parametrize("claim", SUPPORTS)
def test_what_lies_on_the_border_is_within_noise(tmp_path, claim):
    found = verdict_on(tmp_path, claim, BORDER.get(claim, lambda *_: {}), noise=3.0)
    assert found.verdict == "within noise", found.parts


def test_every_claim_with_parts_is_tested_by_its_study():
    for claim in CLAIMS:
        if claim.parts:
            assert claim.study in list_studies()
        assert claim.id in SUPPORTS or not claim.parts
        assert claim.margin is None or any(claim.margin in map(abs, part.region) for part in claim.parts)


def test_a_claim_of_several_parts_needs_all_of_them(tmp_path):
    found = verdict_on(tmp_path, "C2", lambda levels, task, tier: added(levels, tier, 8.0 * (tier != "T3")), noise=2.0)
    assert found.verdict == "within noise" and "T3" in found.effect.name
    assert sum(part.supports < 0.05 for part in found.parts) == 4


def test_an_optimum_outside_of_the_claimed_range_supports_nothing(tmp_path):
    found = verdict_on(tmp_path, "C4", lambda levels, task, tier: peaked(levels, 0.15), noise=0.2)
    assert found.verdict == "contradicted"
    optimum = found.parts[-1]
    assert optimum.points < 25 and optimum.supports > 0.5


def test_how_far_two_best_shares_lie_apart_is_in_points_with_a_sign(tmp_path):
    found = verdict_on(tmp_path, "C5", SUPPORTS["C5"], noise=0.1)
    assert "minus that of" in found.effect.name and re.match(r"-\d+\.\d points of English \[-", found.text())


def test_an_optimum_at_the_edge_says_so(tmp_path):
    found = verdict_on(tmp_path, "C4", lambda levels, task, tier: {"score": 30.0 * levels["english_share"]}, noise=0.1)
    optimum = found.parts[-1]
    assert optimum.points == 90 and optimum.supports == 1.0 and "at the edge" in optimum.reason
    assert found.verdict == "contradicted" and found.effect is not optimum


def test_an_optimum_is_that_of_the_baseline_of_other_factors(tmp_path):
    """Half of the words wrong moves the best share from 0.5 to 0.8; the claim is about data without mistakes."""
    results = results_of(
        tmp_path, "translation_quality",
        lambda levels, task, tier: peaked(levels, 0.8 if levels["mistakes"] == 0.5 else 0.5), noise=0.1,
    )  # fmt: skip
    (found,) = verdicts(results, claims=[CLAIM["C4"]])
    assert found.verdict == "supported" and abs(found.parts[-1].points - 50) < 4


def test_the_side_of_an_interval_inverts_it():
    rng = np.random.default_rng(0)
    for _ in range(200):
        points, reach, border = rng.normal(0, 3), rng.uniform(0.1, 4), rng.normal(0, 3)
        supports, contradicts = sides(points, points - reach, points + reach, 6.3, (border, float("inf")))
        assert (supports < 0.05) == (points - reach > border)
        assert (contradicts < 0.05) == (points + reach < border)
        supports, contradicts = sides(points, points - reach, points + reach, np.nan, (-2.0, 2.0))
        assert (supports < 0.05) == (points - reach > -2 and points + reach < 2)
        assert (contradicts < 0.05) == (points - reach > 2 or points + reach < -2)
    assert all(np.isnan(sides(1.0, np.nan, np.nan, 3, (0, 1))))


def test_a_tier_of_three_languages_may_be_judged_for_itself(tmp_path):
    """Where the languages of a tier differ, little can be said of languages like them, and much of these."""
    gain = {"fi": 14.0, "ru": 2.0, "tr": 3.0}

    def planted(levels, task, tier):
        return {}

    results = results_of(tmp_path, "number_of_languages", planted)
    rows = (results.table["arm"] == "all languages") & (results.table["metric"] == "fidelity")
    moved = results.table["value"] + rows * results.table["language"].map(gain).fillna(6.0)
    results = type(results)(table=results.table.assign(value=moved), folder=results.folder, study=results.study)
    claim = replace(CLAIM["C1b"], parts=(replace(CLAIM["C1b"].parts[0], group="T4"),))
    wide, own = (
        verdicts(results, claims=[claim], scope=scope)[0] for scope in ("languages like these", "these languages")
    )
    assert (wide.verdict, own.verdict) == ("within noise", "supported")
    assert wide.effect.low < 0 < own.effect.low and wide.effect.points == own.effect.points


def test_a_curve_takes_four_levels_with_runs(tmp_path):
    results = results_of(tmp_path, "english_share", lambda *_: {})
    few = results.table[results.table["english_share"].isin([0.01, 0.5, 0.9])]
    fewer = type(results)(table=few, folder=results.folder, study=results.study)
    assert can_test(results, CLAIM["C4"]) and not can_test(fewer, CLAIM["C4"])


def test_holm_runs_over_the_claims_of_one_call(tmp_path):
    def planted(levels, task, tier):
        return english(levels, -1.2 if tier != "en" else 0.0, metric="fidelity")

    results = results_of(tmp_path, "number_of_languages", planted, noise=2.0)
    alone = {one.claim.id: one for claim in ("C1a", "C1b", "P1") for one in verdicts(results, claims=[CLAIM[claim]])}
    together = {one.claim.id: one for one in verdicts(results)}
    assert {one.claim.study for one in together.values()} == {"number_of_languages"}
    for key, one in alone.items():
        assert one.p == one.p_adjusted == together[key].p
        assert together[key].p_adjusted >= one.p
    adjusted = sorted(one.p_adjusted for one in together.values())
    assert adjusted[0] == pytest.approx(min(1.0, len(together) * min(one.p for one in together.values())))


def test_an_unfinished_study_is_not_judged(tmp_path):
    results = results_of(tmp_path, "number_of_languages", SUPPORTS["C1b"], runs=1)
    assert {one.verdict for one in verdicts(results)} == {"not judged"}
    assert "no run of" in verdicts(results)[1].note


def test_one_seed_is_not_judged(tmp_path):
    found = verdict_on(tmp_path, "T1", SUPPORTS["T1"], seeds=(0,))
    assert found.verdict == "not judged" and found.note == "one seed"


def test_a_part_that_cannot_be_measured_leaves_a_claim_open(tmp_path):
    def planted(levels, task, tier):
        gain = added(levels, tier, 8.0)["score"]
        return {"score": np.nan if tier == "T3" else gain}

    found = verdict_on(tmp_path, "C2", planted)
    assert found.verdict == "within noise" and "T3" in found.note


def test_other_studies_with_the_same_levels_test_a_claim_too(tmp_path):
    def planted(levels, task, tier):
        return english(levels, -20.0, metric="fidelity")

    mix = results_of(tmp_path, "answer_mix", planted)
    assert can_test(mix, CLAIM["C1b"]) and not can_test(mix, CLAIM["C2"]) and not can_test(mix, CLAIM["T1"])
    coming = replace(CLAIM["P5"], id="X", study="a_study_to_come", parts=())
    found = {one.claim.id: one for one in one_each([mix], claims=[*CLAIMS, coming])}
    assert found["C1b"].verdict == "supported" and found["C1b"].study == "answer_mix"
    assert found["C2"].verdict == "no study run" and "sweeps launch number_of_languages" in found["C2"].note
    assert "is not there yet" in found["X"].note and len(found) == len(CLAIMS) + 1
    own = results_of(tmp_path, "number_of_languages", planted)
    assert {one.claim.id: one.study for one in one_each([mix, own])}["C1b"] == "number_of_languages"


def test_the_table_has_the_published_figure_beside_the_effect(tmp_path):
    results = results_of(tmp_path, "number_of_languages", SUPPORTS["C1b"])
    rows = results.findings().set_index("claim")
    assert rows.loc["C1b", "published"] > 60 and rows.loc["C1b", "points"] == pytest.approx(20, abs=1)
    assert list(table(verdicts(results))["claim"]) == list(rows.index)
    said = "\n".join(lines(verdicts(results)))
    assert "C1b  SUPPORTED: Training in all languages" in said and "; published +" in said


def test_every_part_names_fields_of_the_run_config():
    from lvlm.config import check_path

    for part in (part for claim in CLAIMS for part in claim.parts):
        wheres = [{part.path: 0}] if isinstance(part, Optimum) else [part.arm]
        wheres += [part.against] if isinstance(part, Contrast) else []
        assert isinstance(part, Contrast | Reached | Optimum)
        for where in wheres:
            for path in where:
                check_path(path)


@pytest.fixture
def no_examples(tmp_path, monkeypatch):
    """Verdicts on one's own results alone, whichever examples there are."""
    monkeypatch.setattr(places, "EXAMPLES", tmp_path / "examples")


def test_the_command_prints_the_verdicts_and_writes_a_table(tmp_path, capsys, no_examples):
    results_of(tmp_path, "tiling", SUPPORTS["T1"])
    assert main(["findings", "tiling", "--home", str(tmp_path), "--csv", str(tmp_path / "found.csv")]) == 0
    said = capsys.readouterr().out
    assert "T1   SUPPORTED" in said and "[tiling]" in said and "after Holm" in said
    assert list(pd.read_csv(tmp_path / "found.csv")["claim"]) == ["T1"]
    assert main(["findings", "--home", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "T1   SUPPORTED" in said and "P5   NO STUDY RUN" in said


def test_a_study_without_a_finished_run_does_not_stop_the_others_and_one_named_twice_counts_once(
    tmp_path, capsys, no_examples
):
    results_of(tmp_path, "tiling", SUPPORTS["T1"])
    write_results(tmp_path / "studies" / "allocation", tidy(load_study("allocation"), []))
    assert main(["findings", "--home", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "T1   SUPPORTED" in said and "no study run: python -m sweeps launch allocation" in said
    assert main(["findings", "tiling", str(tmp_path / "studies" / "tiling"), "--home", str(tmp_path)]) == 0
    assert capsys.readouterr().out.count("T1   SUPPORTED") == 1
    for name, claim in (("tiling", "T1"), ("number_of_languages", "C2")):
        results_of(tmp_path, name, SUPPORTS[claim]).table.to_csv(tmp_path / f"{name}.csv", index=False)
    assert main(["findings", str(tmp_path / "tiling.csv"), str(tmp_path / "number_of_languages.csv")]) == 0
    said = capsys.readouterr().out
    assert "T1   SUPPORTED" in said and "C2   SUPPORTED" in said, "two tables in one folder are two studies"


def test_every_difference_has_the_smallest_that_would_have_been_shown(tmp_path):
    results = results_of(tmp_path, "number_of_languages", SUPPORTS["C1b"])
    by_id = {one.claim.id: one for one in verdicts(results)}
    part = by_id["C1b"].parts[0].part
    own = effect(results, {"languages": "all"}, {"languages": "en"}, metric=part.metric, group=part.group)
    assert by_id["C1b"].effect.smallest == pytest.approx(own.smallest) and f"≥{own.smallest:.1f}" in by_id["C1b"].text()
    assert np.isnan(by_id["C1a"].effect.smallest) and "≥" not in by_id["C1a"].text(), "a mean is no difference"


def test_the_command_says_what_the_published_tables_support(tmp_path, capsys):
    results_of(tmp_path, "number_of_languages", SUPPORTS["C2"])
    assert main(["findings", "number_of_languages", "--published", "--home", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "over 6 languages" in said and "seed sd here" in said and "no seed noise in them" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["findings", "nothing"], "There is no study 'nothing'"),
        (["findings", "tiling"], "There are no results at"),
        (["findings", "examples/nothing"], "There are no example records"),
        (["findings", "tiling", "--csv"], "expected one argument"),
        (["findings", "tiling", "--csv", "nowhere/found.csv"], "its folder nowhere must be there"),
        (["findings", "--published", "--these-languages"], "choose one"),
    ],
)
def test_bad_input_is_one_clear_error(tmp_path, capsys, arguments, message):
    try:
        status = main([*arguments, *([] if arguments[-1] == "--csv" else ["--home", str(tmp_path)])])
    except SystemExit as end:
        status = end.code
    assert status == 2 and message in capsys.readouterr().err
    assert not Path("nowhere").exists()
