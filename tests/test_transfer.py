"""What the pivot studies compute: curves over pairs, transfer from the pivot, its correlation with alignment, and the
notebook that reads them."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest

matplotlib.use("Agg")

from ablations.notebooks import read_notebook
from ablations.studies import Study, list_studies, load_study
from ablations.studies.pivot_choice import NOUN_FIRST
from ablations.table import Results, load_results, tidy, write_results
from ablations.transfer import (
    against_alignment,
    by_distance,
    correlation,
    curves,
    distances,
    pairs_needed,
    transfer,
)
from lvlm.data.worlds.lexicon import lexicon_codes, load_lexicon
from lvlm.errors import InputError
from lvlm.records import PREDICTIONS_FILE, SCORE_COLUMNS

BASE = {"de": 96.0, "ru": 90.0, "el": 60.0, "sw": 55.0, "jv": 40.0}
PIVOT_STUDIES = [name for name in list_studies() if name.startswith("pivot_")]


def planted(study: Study, home: Path, *, noise: float = 0.5) -> Results:
    """Results where fidelity grows with the logarithm of the pairs and transfer with alignment."""
    done = []
    codes = ("en", *BASE)
    for cell in study.cells():
        rng = np.random.default_rng([cell.seed, *cell.arm.label.encode()])
        levels, rows = cell.arm.levels, []
        strength = {"contrast 1": 60.0, "contrast 0.1": 30.0}.get(str(levels.get("alignment")), 0.0)
        for number, code in enumerate(codes):
            fidelity = BASE.get(code, 100.0)
            if levels.get("target") == code:
                fidelity = min(100.0, fidelity + 9 * np.log2(1 + float(levels["pairs"])))
            right = 80.0 if code == "en" else 40.0 + strength / 3
            values = {"fidelity": fidelity, "score": right * fidelity / 100, "score_any_language": right}
            rows += [("vqa", code, name, value + rng.normal(0, noise), 100) for name, value in values.items()]
            if "alignment" in levels and code != "en":
                rows.append(("alignment", code, "retrieval", 30 + strength - 2 * number + rng.normal(0, noise), 200))
                rows.append(("alignment", code, "cka", 50 + strength / 2 + rng.normal(0, noise), 200))
        done.append((cell, pd.DataFrame(rows, columns=list(SCORE_COLUMNS))))
    write_results(home / "studies" / study.name, tidy(study, done), planned=study.cells())
    return load_results(study.name, home=home)


def test_the_curve_of_a_target_begins_with_the_arm_without_pairs_and_says_how_many_are_needed(tmp_path: Path) -> None:
    found = curves(planted(load_study("pivot_pairs"), tmp_path))
    jv = found[(found["target"] == "jv") & (found["metric"] == "fidelity")].set_index("pairs")
    assert list(jv.index) == [0, 8, 32, 128, 512, 2048, 3200]
    assert jv.loc[0, "estimate"] == pytest.approx(40, abs=1) and jv.loc[32, "estimate"] == pytest.approx(85.4, abs=1)
    assert (jv["low"] <= jv["estimate"]).all() and (jv["seeds"] == 5).all()
    needed = pairs_needed(found).set_index("target")
    assert needed.loc["de", "by mean"] == 0 and needed.loc["jv", "by mean"] == 128
    assert pairs_needed(found, level=101.0)["by mean"].isna().all()


def test_a_dip_after_the_level_was_reached_does_not_count_as_enough() -> None:
    rows = [("jv", "T1", k, "fidelity", value, value - 1, value + 1, 5) for k, value in ((0, 95), (8, 80), (32, 96))]
    names = ["target", "tier", "pairs", "metric", "estimate", "low", "high", "seeds"]
    assert pairs_needed(pd.DataFrame(rows, columns=names))["by mean"].item() == 32


def test_seeds_that_all_reach_the_level_are_enough_and_one_seed_is_not() -> None:
    names = ["target", "tier", "pairs", "metric", "estimate", "low", "high", "seeds"]
    rows = [("jv", "T1", 8, "fidelity", 92.0, 85.0, 99.0, 5), ("jv", "T1", 32, "fidelity", 100.0, np.nan, np.nan, 5)]
    assert pairs_needed(pd.DataFrame(rows, columns=names))["by interval"].item() == 32
    alone = [(*row[:-1], 1) for row in rows[1:]]
    assert pairs_needed(pd.DataFrame(alone, columns=names))["by interval"].isna().all()


def test_transfer_is_a_ratio_to_the_pivot_of_the_same_run_and_follows_planted_alignment(tmp_path: Path) -> None:
    results = planted(load_study("pivot_alignment"), tmp_path)
    found = transfer(results).set_index(["arm", "language"])
    assert found.loc[("0% parallel", "jv"), "ratio"] == pytest.approx(0.5, abs=0.02)
    assert found.loc[("50% parallel, contrast 1", "jv"), "ratio"] == pytest.approx(0.75, abs=0.02)
    assert found["pivot score"].between(78, 82).all()
    tiers = transfer(planted(load_study("pivot_unseen"), tmp_path), by="tier").set_index(["arm", "tier"])
    languages = transfer(planted(load_study("pivot_unseen"), tmp_path)).set_index(["arm", "language"])
    assert "language" not in tiers and (tiers["seeds"] == 5).all()
    order = list(tiers.index.unique("tier"))
    assert order == sorted(order, reverse=True) and len(order) > 2, "high tiers first, as in every table"
    pd.testing.assert_series_equal(tiers.xs("T1", level="tier")["ratio"], languages.xs("jv", level="language")["ratio"])
    points = against_alignment(results)
    assert len(points) == 7 * 5
    r = correlation(points)
    assert r.estimate > 0.95 and r.low < r.estimate < r.high and r.n_seeds == 5
    assert np.isnan(correlation(points[points["arm"] == "no text"]).estimate)


def test_the_languages_of_one_model_are_correlated_apart_from_models(tmp_path: Path) -> None:
    results = planted(load_study("pivot_alignment"), tmp_path)
    points = against_alignment(results, by="language")
    assert len(points) == 7 * 5 * len(BASE) and set(points["language"]) == set(BASE)
    runs = against_alignment(results).set_index(["arm", "seed"])
    means = points.groupby(["arm", "seed"])[["alignment", "transfer"]].mean()
    pd.testing.assert_frame_equal(means, runs[["alignment", "transfer"]].sort_index())
    assert abs(correlation(points).estimate) < 0.4, "models transfer as they are aligned, their languages all alike"
    falling = points.assign(transfer=points["alignment"].max() - points["alignment"] % 30)
    assert correlation(falling).estimate < -0.99 and correlation(falling).n_seeds == 5
    assert correlation(points[points["language"] == "jv"]).reason == "fewer than 3 languages that differ"
    with pytest.raises(InputError, match="by run or by language, not by 'arm'"):
        against_alignment(results, by="arm")  # type: ignore[arg-type]


def test_what_pivot_and_target_have_in_common_is_told_apart_from_how_good_a_pivot_is(tmp_path: Path) -> None:
    results = planted(load_study("pivot_choice"), tmp_path)
    rows = [{"language": code, "answer": text} for code, text in (("en", "a red moon"), ("de", "a blue moon"))]
    pd.DataFrame(rows).to_parquet(results.folder / PREDICTIONS_FILE)
    ratios = pd.DataFrame({
        "pivot": ["en", "en", "de", "de"], "language": ["de", "ru", "en", "ru"], "ratio": [0.8, 0.6, 0.5, 0.3],
    })  # fmt: skip
    found = distances(ratios, results, noun_first=NOUN_FIRST)
    assert list(found["same script"]) == [True, False, True, False] and found["same order"].all()
    assert found["shared words"].round().tolist() == [50, 0, 50, 0]
    table = by_distance(found).set_index("in common")
    assert table.loc["same script", "difference within a pivot"] == pytest.approx(0.2)
    assert table.loc["same script", "mean with"] == pytest.approx(0.65)
    assert np.isnan(table.loc["same order", "difference within a pivot"])


def test_what_a_study_does_not_have_is_an_error(tmp_path: Path) -> None:
    results = planted(load_study("pivot_unseen"), tmp_path)
    with pytest.raises(InputError, match="no factor pairs and no factor target"):
        curves(results)
    with pytest.raises(InputError, match="has the metric retrieval"):
        against_alignment(results)
    with pytest.raises(InputError, match="by language or by tier, not by 'tiers'"):
        transfer(results, by="tiers")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", PIVOT_STUDIES)
def test_a_pivot_study_is_short_has_five_seeds_and_sees_as_many_samples_in_every_arm(name: str) -> None:
    study = load_study(name)
    file = Path(__file__).parent.parent / "ablations" / "studies" / f"{name}.py"
    assert len(file.read_text(encoding="utf-8").splitlines()) <= 150
    assert study.seeds == (0, 1, 2, 3, 4) and study.held_equal == "samples" and len(study.expectations) >= 5
    seen: dict[str, set[int]] = {}
    for cell in study.cells():
        for name, stage in cell.config.every_stage().items():
            uses = stage.mix.corpora
            number = sum(use.samples or (use.samples_per_language or 0) * len(use.languages or ()) for use in uses)
            assert number and stage.epochs in (None, 1)
            seen.setdefault(name, set()).add(number)
    assert {"pretrain", "instruct"} <= seen.keys() and all(len(numbers) == 1 for numbers in seen.values())


def test_the_order_of_noun_and_colour_is_that_of_the_lexicons() -> None:
    first = {code for code in lexicon_codes() if _noun_first(code)}
    assert first == set(NOUN_FIRST)


def _noun_first(code: str) -> bool:
    order = load_lexicon(code)._file.order
    return order.index("shape") < order.index("colour")


@pytest.mark.parametrize("study", PIVOT_STUDIES)
def test_the_notebook_reads_every_pivot_study(tmp_path: Path, study: str) -> None:
    planted(load_study(study), tmp_path)
    names: dict[str, object] = {}
    for cell in read_notebook("05_pivot").cells:
        if "parameters" in cell.metadata.get("tags", []):
            names.update(home=str(tmp_path), study=study)
        elif cell.cell_type == "code":
            exec(compile(cell.source, "05_pivot", "exec"), names)
    assert study in str(names["results"])
