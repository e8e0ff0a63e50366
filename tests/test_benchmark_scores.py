"""Benchmarks are scored by the metric that was published for each, with the others, a random choice and the most
frequent answer beside it; a constant answer is named."""

import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from ablations.outcomes import check_group, check_metric
from lvlm.data.benchmarks.convert import write_benchmark
from lvlm.data.corpus import Corpus, Item, open_corpus
from lvlm.evaluate import corpora_detector, score_answers
from lvlm.evaluate.cider import Cider
from lvlm.evaluate.items import asked_items
from lvlm.evaluate.tasks import MEASURES, _relaxed, scorer_of
from lvlm.evaluate.tiers import left_out, summarise
from lvlm.records import METRICS, NAMED_METRICS, TASKS
from lvlm.settings import CorpusUse, EvaluateConfig
from tests.corpora import make_corpus, test_row, write_rows
from tests.examples.benchmarks import AUTHORS, CENTURIO

SHORT = ["exact", "normalised", "relaxed"]


def benchmark(name: str, tmp_path: Path, form: Any = AUTHORS) -> Corpus:
    source = tmp_path / f"{name}-source"
    source.mkdir()
    form[name](source)
    write_benchmark(name, source, tmp_path / name)
    return open_corpus(tmp_path / name)


def scored(corpus: Corpus, answer: Any, **changes: Any) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Scores and predictions where `answer` maps an item to what the model says."""
    config = EvaluateConfig(corpora=(CorpusUse(path="it", split="test"),), **changes)
    asked = asked_items(config, {"it": corpus}, permission="report")
    return score_answers(asked, [answer(entry.item) for entry in asked], corpora_detector(corpus))


def metrics(scores: pd.DataFrame, task: str, language: str) -> dict[str, float]:
    rows = scores[(scores["task"] == task) & (scores["language"] == language)]
    return dict(zip(rows["metric"], rows["value"], strict=True))


def first(item: Item) -> str:
    return item.answers[0]


def test_every_task_has_a_measure_and_a_place_in_tables_and_studies() -> None:
    assert set(MEASURES) == set(TASKS)
    for task in TASKS:
        check_group(f"{task}/multilingual")
    for metric in METRICS:
        check_metric(metric)
    assert {measure.score for measure in MEASURES.values()} - {"attributes", "equal"} <= set(NAMED_METRICS)


@pytest.mark.parametrize("name", AUTHORS)
def test_gold_answers_have_the_full_score_and_their_task_s_metrics(name: str, tmp_path: Path) -> None:
    if name == "xm3600":
        return
    scores, predictions = scored(benchmark(name, tmp_path), first)
    assert (predictions["score"] == 100).all() and (predictions[SHORT] == 100).all(axis=None)
    assert predictions["cider"].isna().all()
    for (task, language), rows in scores.groupby(["task", "language"]):
        english = not MEASURES[str(task)].in_language
        found = metrics(scores, str(task), str(language))
        assert list(found) == [metric for metric in METRICS if metric in found], "in the order of METRICS"
        assert ("fidelity" in found) != english and ("score_any_language" in found) != english
        assert rows["n"].max() == len(predictions.query("task == @task and language == @language"))


def test_letters_are_scored_as_the_letter_that_an_answer_chooses(tmp_path: Path) -> None:
    corpus = benchmark("bin_mc", tmp_path, CENTURIO)
    found = metrics(scored(corpus, lambda item: f"The answer is ({item.answers[0]})")[0], "bin_mc", "sw")
    assert found["score"] == found["relaxed"] == 100.0 and found["exact"] == found["normalised"] == 0.0
    assert found["random"] == 50.0 and found["majority"] == pytest.approx(60.0)
    assert (
        metrics(scored(corpus, lambda item: {"A": "one", "B": "two"}[item.answers[0]])[0], "bin_mc", "sw")["score"]
        == 100.0
    )
    assert metrics(scored(corpus, lambda _: "banana")[0], "bin_mc", "sw")["score"] == 0.0


@pytest.mark.parametrize(
    ("name", "task", "code", "random"),
    [
        ("xvnli", "xvnli", "fr", 100 / 3), ("marvl", "marvl", "sw", 50.0), ("m5b_vgr", "vgr", "ha", 50.0),
        ("m5b_vlod", "vlod", "zu", 20.0), ("mme", "mme", "en", 50.0), ("smpqa", "smpqa_ground", "de", 50.0),
        ("cvqa", "cvqa", "es", 25.0), ("m3exam", "m3exam", "th", (3 * 100 / 3 + 2 * 50) / 5),
        ("mmmu", "mmmu", "en", (50 + 100 / 3 + 20) / 3),
    ],
)  # fmt: skip
def test_a_choice_at_random_is_worth_one_in_as_many(
    name: str, task: str, code: str, random: float, tmp_path: Path
) -> None:
    assert metrics(scored(benchmark(name, tmp_path), first)[0], task, code)["random"] == pytest.approx(random)


def test_both_questions_of_a_picture_and_all_rotations_of_a_question_count_together(tmp_path: Path) -> None:
    mme = benchmark("mme", tmp_path)
    scores, _ = scored(mme, lambda _: "Yes")
    assert metrics(scores, "mme", "en")["score"] == 40.0
    assert metrics(scores, "mme", "en")["together"] == pytest.approx(100 / 3), "of three pictures one is right"
    exam = benchmark("m3exam_cyclic", tmp_path)
    scores, _ = scored(exam, lambda _: "A")
    found = scores.set_index("metric").loc["together"]
    assert metrics(scores, "m3exam_cyclic", "th")["score"] == 40.0 and (found["value"], found["n"]) == (0.0, 2)
    assert metrics(scored(exam, first)[0], "m3exam_cyclic", "th")["together"] == 100.0
    assert "together" not in metrics(scored(benchmark("m3exam", tmp_path), first)[0], "m3exam", "th")


def test_what_is_asked_in_part_does_not_count_as_a_whole(tmp_path: Path) -> None:
    exam = benchmark("m3exam_cyclic", tmp_path)
    four = scored(exam, first, items=4)[0].set_index("metric").loc["together"]
    assert (four["value"], four["n"]) == (100.0, 1)
    one = scored(exam, first, items=1)[0].set_index("metric").loc["together"]
    assert math.isnan(one["value"]) and one["n"] == 0


@pytest.mark.parametrize(
    ("task", "choice"), [(task, choice) for task, measure in MEASURES.items() for choice in measure.choices]
)
def test_every_choice_of_a_task_is_found_in_an_answer(task: str, choice: str) -> None:
    item = Item("1", "toy", "de", task, "toy", "Which?", (choice,), ())
    others = [other for other in MEASURES[task].choices if other != choice]
    for answer in (choice, f"{choice}.", f"({choice})"):
        assert _relaxed(item, "de", answer, [choice]) == 100.0 and _relaxed(item, "de", answer, others[:1]) == 0.0


def test_open_questions_have_no_random_row_and_any_listed_answer_counts(tmp_path: Path) -> None:
    found = metrics(scored(benchmark("maxm", tmp_path), lambda _: "Forêt")[0], "maxm", "fr")
    assert found["score"] == 100.0 and "random" not in found
    found = metrics(scored(benchmark("mtvqa", tmp_path), lambda item: f"«{first(item)}».")[0], "mtvqa", "vi")
    assert (found["score"], found["exact"], found["normalised"]) == (0.0, 0.0, 100.0)


def test_the_language_of_letters_and_english_answers_is_not_measured(tmp_path: Path) -> None:
    scores, _ = scored(benchmark("xgqa", tmp_path), first)
    assert not [name for name in summarise(scores) if name.startswith(("fidelity", "score_any_language"))]
    assert left_out(scores) == [] and scores.attrs["notes"] == []


def test_cider_is_that_of_the_whole_set_whichever_items_are_asked(tmp_path: Path) -> None:
    corpus = benchmark("xm3600", tmp_path)
    said = "Ein Boot Nummer 3"
    scores, predictions = scored(corpus, lambda _: said)
    golds = {item.id: item.answers for item in corpus.items("test", "de")}
    german = predictions[predictions["language"] == "de"].set_index("item")
    for item, value in german["cider"].items():
        assert value == german["score"][item] == Cider(golds, "de").score(str(item), said)
    assert metrics(scores, "xm3600", "de")["score"] == pytest.approx(german["score"].mean())
    two = scored(corpus, lambda _: said, items=2)[1]
    kept = two[two["language"] == "de"].set_index("item")["cider"]
    assert len(kept) == 2 and kept.equals(german["cider"].loc[kept.index])
    assert any("cider in Thai: words are found" in note for note in scores.attrs["notes"])
    assert german["score"].max() > 100
    # A caption in German for a question in Thai is right in another language.
    thai = predictions[predictions["language"] == "th"]
    assert (thai["score"] == 0).all() and (thai["score_any_language"] == german["score"].to_numpy()).all()


def test_a_constant_answer_is_named_and_a_constant_gold_is_not(tmp_path: Path) -> None:
    folder = make_corpus(tmp_path, ("en", "de"), test_rows=1)
    for code in ("en", "de"):
        rows = [test_row(number, code, text_label=("yes", "no")[number % 2 * (code == "de")]) for number in range(20)]
        write_rows(folder / "test" / f"{code}.jsonl", rows)
    corpus = open_corpus(folder)
    scores, _ = scored(corpus, lambda item: "Yes." if item.id != "q-00001" else "no")
    (note,) = scores.attrs["notes"]
    assert note.startswith("vqa in de: 19 of 20 answers are 'Yes.'")
    assert scored(corpus, lambda item: "Yes" if int(item.id[-1]) > 1 else "no")[0].attrs["notes"] == []
    nine = scored(corpus, lambda _: "yes", items=9)[0]
    assert nine.attrs["notes"] == [], "nine equal answers say little"


def test_captions_without_attributes_have_cider_beside_their_score(tmp_path: Path) -> None:
    folder = make_corpus(tmp_path, ("en",), test_rows=1, entry={"attributes": None})
    texts = ["a red boat", "two green trees", "the old cat sleeps"]
    rows = [test_row(number, "en", task="caption", text_label=text) for number, text in enumerate(texts)]
    write_rows(folder / "test" / "en.jsonl", rows)
    corpus = open_corpus(folder)
    scores, predictions = scored(corpus, first)
    assert metrics(scores, "caption", "en")["score"] == 100.0
    assert predictions["cider"].tolist() == [pytest.approx(750), pytest.approx(750), pytest.approx(1000)]
    assert predictions["exact"].isna().all() and not math.isnan(predictions["cider"].sum())
    assert scorer_of(corpus, "test").named("caption") == ("cider",)
