"""The corpus `plots`: the same in every language, balanced questions, disjoint splits, labels that can be read."""

from __future__ import annotations

import json
from collections import Counter
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lvlm import cli
from lvlm.config import make_config
from lvlm.data.corpus import open_corpus
from lvlm.data.worlds.at_hand import SMPQA_LANGUAGES, Written, written
from lvlm.data.worlds.chart import Chart, draw_plot, fits
from lvlm.data.worlds.folder import POOLS
from lvlm.data.worlds.plots import PLOT_COLOURS, Plot, ground_questions, read_questions, sample_plot
from lvlm.data.worlds.plots_corpus import asked_plots, draw_labels, write_plots
from lvlm.data.worlds.words import pool_of
from lvlm.errors import InputError
from tests.test_words import made_up, needs_cldr, needs_noto, write_list

LANGUAGES = ("en", "de", "ar")
SIZES = {"train_plots": 6, "tune_plots": 4, "test_plots": 8}


@pytest.fixture(scope="module")
def plots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_plots(tmp_path_factory.mktemp("world") / "plots", seed=0, languages=LANGUAGES, **SIZES)[0]


@pytest.fixture(scope="module")
def english() -> Written:
    return written("en", None, rarer=True)


def rows(folder: Path, split: str, code: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / split / f"{code}.jsonl").read_text(encoding="utf-8").splitlines()]


def drawn(language: Written, pool: Any = "test", *, count: int = 24) -> list[tuple[Plot, list[str], Chart]]:
    result = []
    for asked in asked_plots(0, {"train": 1, "tune": 1, "test": count})["test"]:
        labels = draw_labels(asked.plot, language, pool, asked.name, 0)
        result.append((asked.plot, labels, draw_plot(asked.plot, labels, language.face)))
    return result


def test_the_report_split_has_the_sizes_of_smpqa() -> None:
    plots = asked_plots(0, {"train": 4, "tune": 4, "test": 100})["test"]
    assert Counter(asked.plot.kind for asked in plots) == {"bar": 50, "pie": 50}
    assert sum(len(asked.ground) for asked in plots) == 800 and sum(len(asked.read) for asked in plots) == 500
    assert {len(asked.plot.values) for asked in plots} == {4, 5, 6, 7, 8}
    assert {asked.plot.horizontal for asked in plots if asked.plot.kind == "bar"} == {True, False}
    assert all(30 <= value <= 100 for asked in plots for value in asked.plot.values)
    assert len({asked.plot.configuration for asked in plots}) == 100
    assert len(SMPQA_LANGUAGES) == 11


def test_questions_are_balanced_and_their_answers_true() -> None:
    for index in range(60):
        rng = np.random.default_rng(index)
        plot = sample_plot("pie" if index % 2 else "bar", rng)
        labels = [f"w{part}" for part in range(len(plot.values))]
        ground, read = ground_questions(plot, rng), read_questions(plot, rng)
        assert Counter((question.topic, question.answer(labels)) for question in ground) == {
            ("biggest", "yes"): 1, ("biggest", "no"): 1, ("smallest", "yes"): 1, ("smallest", "no"): 1,
            ("colour", "yes"): 2, ("colour", "no"): 2,
        }  # fmt: skip
        for question in ground:
            truth = {
                "biggest": plot.values[question.part] == max(plot.values),
                "smallest": plot.values[question.part] == min(plot.values),
                "colour": plot.colours[question.part] == question.colour,
            }[question.topic]
            assert truth == question.truth and f"'{labels[question.part]}'" in question.text(plot, labels)
            assert question.topic != "colour" or question.colour in plot.colours, "seeing a colour is not enough"
        assert [question.topic for question in read] == ["biggest", "smallest", "colour", "colour", "colour"]
        assert len({question.part for question in read[2:]}) == 3
        for question in read[2:]:
            assert plot.colours[int(question.answer(labels)[1:])] == question.colour


def test_colours_are_told_apart() -> None:
    points = np.array(list(PLOT_COLOURS.values()), dtype=float)
    assert min(np.abs(a - b).sum() for a, b in combinations(points, 2)) > 90


def test_a_plot_has_one_biggest_and_one_smallest_part() -> None:
    for index in range(200):
        ordered = sorted(sample_plot("bar", np.random.default_rng(index)).values)
        assert ordered[-1] - ordered[-2] >= 5 <= ordered[1] - ordered[0]


def test_plots_and_questions_are_the_same_in_every_language(plots: Path) -> None:
    for split in ("instruct", "tune", "test"):
        files = {code: rows(plots, split, code) for code in LANGUAGES}
        for parallel in zip(*files.values(), strict=True):
            assert len({row["id"] for row in parallel}) == len({row["source"] for row in parallel}) == 1
            assert len({row["image_id"][0] if split == "instruct" else row["image_id"] for row in parallel}) == 3
        assert len({json.dumps(file, sort_keys=True) for file in files.values()}) == 3
    answers = [[row["text_label"] for row in rows(plots, "test", code) if "ground" in row["id"]] for code in LANGUAGES]
    assert answers[0] == answers[1] == answers[2] and Counter(answers[0]) == {"yes": 32, "no": 32}


def test_pictures_of_two_languages_differ_in_their_labels_alone(english: Written) -> None:
    arabic = written("ar", None, rarer=True)
    for (plot, _, one), (_, _, other) in zip(drawn(english), drawn(arabic), strict=True):
        words = np.zeros(plot.size[::-1], dtype=bool)
        for chart in (one, other):
            for label in chart.labels:
                left, top, right, bottom = label.box
                words[top:bottom, left:right] = True
        difference = (np.asarray(one.image) != np.asarray(other.image)).any(-1)
        assert difference.any() and not (difference & ~words).any()


CODES = ["en", "ar"] + [
    pytest.param(code, marks=[pytest.mark.system, needs_noto, needs_cldr]) for code in ("th", "hi", "my", "zh", "ta")
]


@pytest.mark.parametrize("code", CODES)
def test_labels_lie_inside_the_picture_apart_from_each_other_and_from_the_parts(code: str) -> None:
    for plot, _, chart in drawn(written(code, None, rarer=True), count=40):
        width, height = plot.size
        ink = np.zeros((height, width), dtype=int)
        for label in chart.labels:
            left, top, right, bottom = label.box
            assert 0 <= left < right <= width and 0 <= top < bottom <= height
            ink[top:bottom, left:right] += np.asarray(label.ink) > 64
        assert len(chart.labels) == len(plot.values) and ink.max() == 1, "two labels overlap"
        pixels = np.asarray(chart.image).astype(int)
        written_over = pixels[ink > 0]
        assert (np.abs(written_over - written_over.mean(-1, keepdims=True)) < 12).all(), (
            "a label lies on a coloured part"
        )


def test_a_label_that_is_too_wide_or_has_no_glyphs_is_refused(english: Written) -> None:
    plot = sample_plot("bar", np.random.default_rng(0))
    short = ["ab", "cd", "ef", "gh", "ij", "kl", "mn", "op"][: len(plot.values) - 1]
    assert fits("reward", english.face) and not fits("mmmmmmmmmmmm", english.face)
    with pytest.raises(InputError, match="larger than 160 x 44 pixels"):
        draw_plot(plot, [*short, "mmmmmmmmmmmm"], english.face)
    with pytest.raises(InputError, match="cannot draw"):
        draw_plot(plot, [*short, "ไทย"], english.face)


def test_splits_share_no_label_and_no_configuration(plots: Path) -> None:
    counts = dict(zip(POOLS, (300, 20, 100), strict=True))
    asked = asked_plots(0, counts)
    shown = {pool: {each.plot.configuration for each in asked[pool]} for pool in POOLS}
    assert [len(shown[pool]) for pool in POOLS] == [300, 20, 100]
    assert not any(shown[a] & shown[b] for a, b in combinations(POOLS, 2))
    for code in LANGUAGES:
        for pool, split in zip(POOLS, ("instruct", "tune", "test"), strict=True):
            text = " ".join(turn for row in rows(plots, split, code) for turn in row["context"])
            labels = {part for number, part in enumerate(text.split("'")) if number % 2}
            assert labels and {pool_of(label) for label in labels} == {pool}


def test_more_plots_to_train_on_leave_those_to_report_on_as_they_are() -> None:
    few, many = (asked_plots(3, {"train": count, "tune": 4, "test": 10}) for count in (4, 50))
    assert few["test"] == many["test"] and few["tune"] == many["tune"] and few["train"] == many["train"][:4]
    assert asked_plots(4, {"train": 4, "tune": 4, "test": 10})["test"] != few["test"]


def test_training_dialogues_say_yes_as_often_as_no(plots: Path) -> None:
    for row in rows(plots, "instruct", "de"):
        assert len(row["context"]) == len(row["label"]) == 6
        assert Counter(row["label"])["yes"] == Counter(row["label"])["no"] == 2


def test_the_same_seed_gives_the_same_bytes_and_another_others(plots: Path, tmp_path: Path) -> None:
    again, _ = write_plots(tmp_path / "again", seed=0, languages=["ar", "de", "en"], **SIZES)
    other, _ = write_plots(tmp_path / "other", seed=1, languages=["en"], **SIZES)
    for path in sorted(plots.rglob("*")):
        if path.is_file():
            assert (again / path.relative_to(plots)).read_bytes() == path.read_bytes(), path
    picture = "images/test/en-bar-00000.png"
    assert (other / picture).read_bytes() != (plots / picture).read_bytes()


def test_the_folder_is_a_corpus_that_stays_in_its_languages(plots: Path, tmp_path: Path) -> None:
    corpus = open_corpus(plots)
    assert not corpus.translatable and set(corpus.languages) == set(LANGUAGES)
    assert corpus.splits == {"instruct": "train", "tune": "tune", "test": "report"}
    for split in corpus.splits:
        corpus.check(split, images=True)
    assert {item.task for item in corpus.items("test", "de")} == {"smpqa_ground", "smpqa_read"}
    sources = json.loads((plots / "sources.json").read_text(encoding="utf-8"))
    assert set(sources) == set(LANGUAGES) and sources["de"]["font"].startswith("DejaVuSans")
    use = {"path": str(plots), "split": "instruct", "samples_per_language": 4}
    make_config({"instruct": {"mix": {"corpora": [use]}}})


def test_the_command_takes_a_word_list_and_refuses_what_it_would_ignore(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lists = write_list(tmp_path / "lists", "la", made_up(900)).parent
    small = ["--train", "1", "--tune", "1", "--test", "2"]
    out = tmp_path / "out"
    assert cli.main(["data", "plots", str(out), "--languages", "la", "en", "--words", str(lists), *small]) == 0
    latin = rows(out, "test", "la")
    assert len(latin) == 26 and latin[-1]["text_label"] in made_up(900)
    assert len(Image.open(out / "images" / latin[0]["image_id"]).getcolors(1 << 20)) > 4  # type: ignore[arg-type]
    for words, said in (
        (["plots", str(out), "--languages", "en", *small], "exists and is not an empty folder"),
        (["plots", str(tmp_path / "no"), "--languages", "tpi", *small], "no words at hand in 'tpi'"),
        (["plots", str(tmp_path / "no"), "--photos", str(tmp_path)], "'plots' has no use for --photos"),
        (["shapes", str(tmp_path / "no"), "--words", str(lists)], "'shapes' has no use for --words"),
        (["plots", str(tmp_path / "no"), "--languages", "en", "--train", "0"], "between 1 and 100000"),
    ):
        assert cli.main(["data", *words]) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "no").exists() and not list(tmp_path.glob(".*"))
