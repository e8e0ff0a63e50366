"""The example records: small, real, found by their name, and never taken for somebody's own."""

from __future__ import annotations

import pandas as pd
import pytest

from ablations import load_results
from ablations.answers import counts, read_predictions, thumbnails
from ablations.example import write_example
from ablations.markup import results_html
from ablations.places import EXAMPLES, list_examples
from ablations.table import write_results
from lvlm.errors import InputError
from tests.synthetic_results import write_answers, write_study


def test_all_examples_together_stay_under_three_megabytes_and_can_be_read():
    assert "examples/drivers" in list_examples()
    assert sum(path.stat().st_size for path in EXAMPLES.rglob("*") if path.is_file()) < 3e6
    for name in list_examples():
        results = load_results(name)
        assert results.is_example and results.study is not None, results.unknown
        assert results.baseline in set(results.table["arm"]) and not results.missing
        assert results.origin is not None and results.origin.git_commits


@pytest.mark.parametrize("name", list_examples())
def test_thinned_answers_are_those_with_a_picture_and_their_counts_are_of_all(name):
    results = load_results(name)
    answers, pictures = read_predictions(results), thumbnails(results)
    pictured = {tuple(row) for row in answers[["task", "source", "item"]].itertuples(index=False)}
    assert pictured <= set(pictures) and all(image[8:12] == b"WEBP" for image in pictures.values())
    every = counts(results)
    asked = results.table[results.table["metric"] == "score"].groupby("arm")["n"].sum()
    assert every.groupby("arm")["n"].sum().equals(asked.rename("n")), "all items, and not the kept ones"


def test_an_example_says_that_it_is_one_and_own_results_say_that_they_are_not(tmp_path):
    example = load_results("examples/drivers", home=tmp_path)
    assert "Example records" in repr(example) and "not your own runs" in results_html(example)
    assert "sweeps launch drivers" in results_html(example)
    write_study(tmp_path, "drivers")
    own = load_results("drivers", home=tmp_path)
    assert "Your own records: studies/drivers" in repr(own) and "xample" not in results_html(own)
    assert results_html(own).startswith("<p role='note'")


def test_where_a_study_has_no_results_the_error_names_its_example_and_none_is_shown(tmp_path):
    with pytest.raises(InputError, match=r"There are no results at .*examples/drivers"):
        load_results("drivers", home=tmp_path)
    with pytest.raises(InputError, match=r"no example records 'examples/dryvers'.*examples/drivers"):
        load_results("examples/dryvers")
    with pytest.raises(InputError, match=r"the results of one launch: give it without seed=1"):
        load_results("examples/drivers", overrides=["seed=1"])


def test_a_folder_of_the_users_own_of_that_name_is_theirs(tmp_path, monkeypatch):
    write_study(tmp_path, "drivers")
    (tmp_path / "examples").mkdir()
    (tmp_path / "studies" / "drivers").rename(tmp_path / "examples" / "drivers")
    monkeypatch.chdir(tmp_path)
    assert not load_results("examples/drivers").is_example


def test_examples_are_made_from_a_study_s_folder(tmp_path):
    study = write_study(tmp_path, "tiling")
    folder = tmp_path / "studies" / "tiling"
    write_answers(folder, study, items=6)
    place = write_example(folder, into=tmp_path / "made", items=2)
    assert sorted(path.name for path in place.iterdir()) == [
        "answers.parquet", "planned.json", "predictions.parquet", "results.parquet", "thumbnails.parquet",
    ]  # fmt: skip
    made, own = load_results(place), load_results(folder)
    pd.testing.assert_frame_equal(made.table, own.table, atol=1e-4, rtol=0)
    assert made.arms().equals(own.arms())
    kept = read_predictions(made)
    assert kept.groupby(["task", "source"])["item"].nunique().eq(2).all()
    assert counts(made)["n"].sum() == len(read_predictions(own)) > len(kept)
    (folder / "thumbnails.parquet").unlink()
    before = sorted((tmp_path / "made").rglob("*"))
    with pytest.raises(InputError, match="sweeps export tiling"):
        write_example(folder, into=tmp_path / "made")
    assert sorted((tmp_path / "made").rglob("*")) == before, "what lay there is replaced whole or not at all"


def test_examples_are_made_without_a_run_of_the_baseline_and_of_a_study_that_is_not_known_here(tmp_path):
    write_study(tmp_path, "tiling")
    results = load_results("tiling", home=tmp_path)
    write_results(tmp_path / "unfinished", results.table[results.table["arm"] != results.baseline])
    write_results(tmp_path / "foreign", results.table.assign(study="of_a_colleague"))
    for name, arms in (("unfinished", 1), ("foreign", 2)):
        place = write_example(tmp_path / name, into=tmp_path / "made")
        assert len(load_results(place).arms()) == arms
