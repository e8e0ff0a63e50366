"""Power: a pilot's planted noise is found again, its answers are those of closed forms, and bad input is a sentence."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from statsmodels.stats.power import TTestPower

from ablations import cli
from ablations.power import Components, plan, smallest_difference
from ablations.table import load_results
from lvlm.errors import InputError
from lvlm.records import PREDICTIONS_FILE
from tests.synthetic_results import write_study


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    write_study(home, "drivers", budget="full")
    return home


@pytest.fixture
def results(home):
    return load_results("drivers", home=home)


def test_planted_noise_is_found_again(results):
    """Each run has 0.6 points of its own, each of two tasks 1 point: a difference has twice these variances."""
    same = [arm for arm in results.arms().index if arm.startswith("all languages") and "50%" in arm]
    found = plan(results, difference=1.0, arms=same)
    many = plan(results, difference=1.0, arms=[{"english_share": share} for share in (0.01, 0.10, 0.25, 0.75)])
    assert found.n_arms == 1 and many.n_arms == 4 and (many.n_seeds, many.n_languages) == (5, 15)
    assert 0.6 < many.components.residual < 1.6, "2 x 1 / 2 tasks; the baseline's draws are in all comparisons"
    assert 0.2 * 0.72 < many.components.seed < 2.5 * 0.72
    assert many.paired < 0.5 and many.correlation > 0.75, "all arms of a seed share its draw"
    assert 1 / many.paired**2 == pytest.approx(1 / (1 - many.correlation))


def test_for_these_languages_it_is_the_power_of_a_t_test(results):
    found = plan(results, difference=1.0, arms=[{"tiles": 2}])
    noise = (found.components.seed + found.components.residual / 15) ** 0.5
    power = [TTestPower().power(1.0 / noise, found.seeds_here - less, 0.05) for less in (0, 1)]
    assert power[0] >= 0.8 > power[1]
    row = found.curve.set_index("seeds").loc[7]
    assert row["these_languages"] == pytest.approx(
        noise * TTestPower().solve_power(nobs=7, alpha=0.05, power=0.8), rel=1e-3
    )
    assert (found.curve["these_languages"].diff().dropna() < 0).all()


def test_uneven_languages_cannot_be_outvoted_by_seeds():
    uneven = Components(seed=0.01, language=9.0, residual=0.01)
    by_seeds = smallest_difference(uneven, np.arange(3, 200), 12)
    assert by_seeds.min() > 2.0, (
        "12 languages that differ by 3 points leave 0.87 points of noise for any number of seeds"
    )
    assert smallest_difference(uneven, 5, 150) < 1.0
    assert smallest_difference(uneven, 5, 12, here=True) < 0.2


def with_predictions(results, items):
    """Answers beside the results: graded scores whose noise is that of items alone."""
    generator, rows = np.random.default_rng(3), []
    codes = ["en", "de", "fr", "sw", "fi"]
    for arm in results.arms().index[:2]:
        for seed in range(5):
            for code in codes:
                score = 50 + generator.normal(0, 20, items)
                rows += [(arm, seed, "vqa", code, f"q{number}", score[number]) for number in range(items)]
    frame = pd.DataFrame(rows, columns=["arm", "seed", "task", "language", "item", "score"])
    frame.to_parquet(results.folder / PREDICTIONS_FILE)
    means = frame.groupby(["arm", "seed", "task", "language"], as_index=False)["score"].mean()
    table = results.table.query("metric == 'score' and task == 'vqa' and language in @codes")
    table = table.merge(means, on=["arm", "seed", "task", "language"]).assign(value=lambda t: t["score"])
    return type(results)(table=table.drop(columns="score"), folder=results.folder, study=results.study)


def test_items_are_told_from_seeds_and_their_number_follows(results, tmp_path):
    write_study(tmp_path, "drivers", budget="full")
    noisy = with_predictions(load_results("drivers", home=tmp_path), 100)
    first, second = noisy.arms().index[:2]
    found = plan(noisy, difference=2.0, arms=[first], baseline=second)
    assert found.components.items == 100
    assert found.components.item_residual == pytest.approx(2 * 20**2 / 100, rel=0.25)
    assert found.components.residual - found.components.item_residual < 0.4 * found.components.residual
    fewer = found.components.with_items(25)
    assert fewer.item_residual == pytest.approx(4 * found.components.item_residual)
    assert fewer.residual - fewer.item_residual == pytest.approx(
        found.components.residual - found.components.item_residual
    )
    assert found.items is not None
    edge = [float(smallest_difference(found.components.with_items(n), 5, 4)) for n in (found.items, found.items - 1)]
    assert edge[0] <= 2.0 < edge[1]
    english = plan(noisy, difference=2.0, arms=[first], baseline=second, group="en")
    assert english.languages is None and english.components.item_residual > 0 and "languages like" not in english.text()


def test_a_part_of_the_answers_tells_the_noise_of_all_items(tmp_path):
    """As in example records, which keep a few items of each task beside the scores over all of them."""
    write_study(tmp_path, "drivers", budget="full")
    noisy = with_predictions(load_results("drivers", home=tmp_path), 100)
    first, second = noisy.arms().index[:2]
    whole = plan(noisy, difference=2.0, arms=[first], baseline=second).components
    path = noisy.folder / PREDICTIONS_FILE
    rows = pd.read_parquet(path)
    rows[rows["item"].isin([f"q{number}" for number in range(40)])].to_parquet(path)
    part = plan(noisy, difference=2.0, arms=[first], baseline=second).components
    assert part.items == whole.items == 100
    assert part.item_residual == pytest.approx(whole.item_residual, rel=0.25), "2.5 times that if 40 were all"


def test_fewer_than_three_seeds_or_languages_speak_of_no_others(results):
    found = results.power(60.0, group="T1")
    assert (found.seeds, found.seeds_here, found.languages) == (3, 2, 3), "two of them are a t interval over seeds"
    curve = found.curve.set_index("seeds")["languages_like_these"]
    assert np.isnan(curve[2]) and np.isfinite(curve[3]) and "–" in found.text()
    one = results.power(60.0, group="sw")
    assert one.seeds is None and one.seeds_here == 2 and "languages like" not in one.text()


def test_the_command_answers_in_words(home, capsys):
    assert cli.main(["power", "drivers", "--difference", "1.0", "--home", str(home)]) == 0
    printed = capsys.readouterr().out
    for words in (
        "between seeds",
        "common random numbers are worth",
        "To see 1 point with 80% power",
        "languages like",
    ):
        assert words in printed
    assert cli.main(["power", "drivers", "--difference", "1", "--group", "reading/en", "--home", str(home)]) == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--difference", "0"], "positive number of points, not 0"),
        (["--difference", "nan"], "positive number of points"),
        (["--difference", "1", "--metric", "bleu"], "There is no metric 'bleu'"),
        (["--difference", "1", "--group", "T9"], "'T9' is not a group"),
        (["--difference", "1", "--power", "80"], "Power is a share"),
    ],
)
def test_bad_input_is_one_paragraph_and_status_2(home, capsys, words, said):
    assert cli.main(["power", "drivers", *words, "--home", str(home)]) == 2
    error = capsys.readouterr().err
    assert said in error and len(error.strip().splitlines()) == 1


def test_one_seed_tells_no_noise(tmp_path):
    write_study(tmp_path, "drivers", runs=7)
    with pytest.raises(InputError, match="Run two seeds of two arms first"):
        load_results("drivers", home=tmp_path).power(1.0)
