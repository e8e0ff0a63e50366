"""Answers do not depend on batches or processes; an evaluation asks every item once, on permitted splits only."""

import json
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from lvlm.data.corpus import Corpus, open_corpus
from lvlm.errors import InputError
from lvlm.evaluate import corpora_detector, evaluate, score_answers
from lvlm.evaluate.generate import Prompt, generate_answers
from lvlm.evaluate.items import asked_items
from lvlm.evaluate.tiers import left_out, summarise
from lvlm.records import METRICS, PREDICTION_COLUMNS, SCORE_COLUMNS
from lvlm.settings import ComputeConfig, CorpusUse, EvaluateConfig
from lvlm.train.compute import compute
from tests.corpora import make_corpus, test_row, write_rows
from tests.processes import together
from tests.tiny import tiny_image, tiny_world


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("images")
    paths = [folder / f"{number}.png" for number in range(4)]
    for number, path in enumerate(paths):
        tiny_image(number).save(path)
    return paths


@pytest.fixture(scope="module")
def assembled() -> Any:
    torch.set_num_threads(1)
    return tiny_world().assemble(seed=3)


def mixed_prompts(images: list[Path]) -> list[Prompt]:
    """Short and long prompts in several scripts about no, one and two images, some of them shared."""
    return [
        Prompt("What colour is it?", (images[0],)),
        Prompt("Welche Farbe hat der Kreis auf der linken Seite des großen blauen Quadrats?", (images[0],)),
        Prompt("Say a word."),
        Prompt("红色？", (images[1],)),
        Prompt("<image_placeholder> or <image_placeholder>?", (images[2], images[1])),
        Prompt("Какого цвета круг?", (images[0],)),
        Prompt("Look: <image_placeholder>", (images[3],)),
        Prompt("A long text without any image, to be answered none the less. " * 3),
        Prompt("One <image_placeholder> here, a text between them and <image_placeholder>", (images[1], images[2])),
        Prompt("ما لون الدائرة؟", (images[3],)),
    ]


def answers(assembled: Any, prompts: list[Prompt], batch_size: int = 5, **options: Any) -> list[str]:
    model, processor = assembled
    return generate_answers(model, processor, prompts, max_new_tokens=12, batch_size=batch_size, **options)


def reference(assembled: Any, prompt: Prompt, max_new_tokens: int = 12) -> list[int]:
    """The new tokens of transformers' own greedy search for one prompt, without padding, batching or shared images."""
    from lvlm.model.tiling import open_image, pixels

    model, processor = assembled
    model.eval()
    ids = torch.tensor([processor.encode_prompt(prompt.text, len(prompt.images))])
    views = [pixels(open_image(image), processor.image_transform) for image in prompt.images]
    inputs = {"pixel_values": torch.cat(views)} if views else {}
    mask = torch.ones_like(ids)
    out = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=max_new_tokens, do_sample=False, **inputs)
    tokens: list[int] = out[0, ids.shape[1] :].tolist()
    return tokens


def read(assembled: Any, tokens: list[int]) -> str:
    text: str = assembled[1].tokenizer.decode(tokens, skip_special_tokens=True)
    return text.strip()


def test_batches_and_shared_images_answer_as_transformers_does_one_by_one(assembled: Any, images: list[Path]) -> None:
    prompts = mixed_prompts(images)
    expected = [read(assembled, reference(assembled, prompt)) for prompt in prompts]
    assert len(set(expected)) > 4  # the prompts are told apart, so that the equality below says something
    for size in (1, 2, 5, 64):
        assert answers(assembled, prompts, size) == expected
    assert answers(assembled, prompts[::-1], 5) == expected[::-1]


def test_little_is_padded_and_images_are_passed_over_once(
    assembled: Any, images: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, processor = assembled
    widths: list[int] = []
    forward = model.forward

    def seen(**inputs: Any) -> Any:
        widths.append(inputs["input_ids"].shape[1])
        return forward(**inputs)

    monkeypatch.setattr(model, "forward", seen)
    short, long = "Colour?", "Which colour does the circle on the left have, and which one the circle on the right?"
    prompts = [Prompt(text, (image,)) for image, text in zip(images, (long, short, long, short), strict=True)]
    generate_answers(model, processor, prompts, max_new_tokens=1, batch_size=2)
    ids = [len(processor.encode_prompt(text, 1)) for text in (short, long)]
    heads = widths[::2]
    assert len(widths) == 4 and heads[0] == heads[1], "two batches, each with heads and what comes after them"
    assert [head + tail for head, tail in zip(heads, widths[1::2], strict=True)] == ids, "questions as long together"


def test_an_answer_ends_at_its_end_of_turn_and_other_rows_go_on(assembled: Any, images: list[Path]) -> None:
    model, _ = assembled
    prompts = mixed_prompts(images)
    full = [reference(assembled, prompt) for prompt in prompts]
    end = full[0][3]
    cut = [tokens[: tokens.index(end)] if end in tokens else tokens for tokens in full]
    assert {len(tokens) == 12 for tokens in cut} == {True, False}
    declared = model.generation_config.eos_token_id
    try:
        model.generation_config.eos_token_id = [*declared, end] if isinstance(declared, list) else [declared, end]
        assert answers(assembled, prompts, 4) == [read(assembled, tokens) for tokens in cut]
        assert [reference(assembled, prompt)[:-1] for prompt in prompts[:1]] == cut[:1]
    finally:
        model.generation_config.eos_token_id = declared


def test_suppressed_tokens_are_never_written(assembled: Any, images: list[Path]) -> None:
    model, _ = assembled
    prompts = mixed_prompts(images)
    frequent = reference(assembled, prompts[0])[1]
    declared = model.generation_config.suppress_tokens
    try:
        model.generation_config.suppress_tokens = [*(declared or []), frequent]
        expected = [reference(assembled, prompt) for prompt in prompts]
        assert not any(frequent in tokens for tokens in expected)
        assert answers(assembled, prompts) == [read(assembled, tokens) for tokens in expected]
    finally:
        model.generation_config.suppress_tokens = declared


def test_features_and_pixels_give_the_same_answers(assembled: Any, images: list[Path]) -> None:
    model, processor = assembled
    asked: list[Path] = []

    def features(files: Any) -> torch.Tensor:
        asked.extend(files)
        from lvlm.model.tiling import open_image, pixels

        views = torch.cat([pixels(open_image(file), processor.image_transform) for file in files])
        with torch.no_grad():
            result: torch.Tensor = model.image_features(views)
        return result

    assert answers(assembled, mixed_prompts(images), features=features) == answers(assembled, mixed_prompts(images))
    assert set(asked) == set(images)


def test_the_model_comes_back_as_it_was_and_progress_ends_at_the_total(assembled: Any, images: list[Path]) -> None:
    model, _ = assembled
    told: list[tuple[int, int]] = []
    for training in (True, False):
        model.train(training)
        answers(assembled, mixed_prompts(images), on_progress=lambda done, total: told.append((done, total)))
        assert model.training is training
    assert told[-1] == (10, 10)
    assert answers(assembled, []) == []


# A corpus small enough to score by hand: two questions and a caption in three languages.

WORDS = {
    "en": {
        "red": "red",
        "two": "two",
        "caption": "a red circle",
        "request": "Describe it.",
        "ask": "What colour is it?",
    },
    "de": {
        "red": "rot",
        "two": "zwei",
        "caption": "ein roter Kreis",
        "request": "Beschreibe es.",
        "ask": "Welche Farbe?",
    },
    "sw": {
        "red": "nyekundu",
        "two": "mbili",
        "caption": "duara nyekundu",
        "request": "Eleza.",
        "ask": "Ni rangi gani?",
    },
}
ATTRIBUTES = {
    "en": {"red": "colour:red", "circle": "shape:circle"},
    "de": {"rot": "colour:red", "roter": "colour:red", "Kreis": "shape:circle"},
    "sw": {"nyekundu": "colour:red", "duara": "shape:circle"},
}


def by_hand(tmp_path: Path, *, attributes: bool = True) -> Corpus:
    folder = make_corpus(tmp_path, tuple(WORDS), test_rows=1, entry={} if attributes else {"attributes": None})
    for code, said in WORDS.items():
        rows = [
            test_row(0, code, context=[said["ask"]], text_label=said["red"]),
            test_row(1, code, context=[said["ask"]], text_label=said["red"]),
            test_row(2, code, context=[said["ask"]], text_label=said["two"]),
            test_row(3, code, context=[said["request"]], text_label=said["caption"], task="caption"),
        ]
        write_rows(folder / "test" / f"{code}.jsonl", rows)
    (folder / "attributes.json").write_text(json.dumps(ATTRIBUTES))
    return open_corpus(folder)


def config(corpus: Corpus, **changes: Any) -> EvaluateConfig:
    return EvaluateConfig(corpora=(CorpusUse(path="toy", split="test"),), **{"max_new_tokens": 4, **changes})


def scored(corpus: Corpus, given: dict[tuple[str, str, int], str], **changes: Any) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Scores of answers given by (task, language, number of the row); all others are empty."""
    asked = asked_items(config(corpus, **changes), {"toy": corpus}, permission="report")
    keys = [(entry.item.task, entry.item.language, int(entry.item.id[-1])) for entry in asked]
    return score_answers(asked, [given.get(key, "") for key in keys], corpora_detector(corpus))


def cell(scores: pd.DataFrame, task: str, language: str, metric: str) -> tuple[float, int]:
    row = scores[(scores["task"] == task) & (scores["language"] == language) & (scores["metric"] == metric)]
    assert len(row) == 1
    return float(row["value"].iloc[0]), int(row["n"].iloc[0])


def test_scores_by_hand(tmp_path: Path) -> None:
    corpus = by_hand(tmp_path)
    given = {
        ("vqa", "de", 0): "Rot.",
        ("vqa", "de", 1): "red",  # right, in English
        ("vqa", "de", 2): "7",
        ("vqa", "sw", 0): "mbili",  # wrong, in Swahili
        ("caption", "de", 3): "a red circle",  # right, in English
        ("caption", "sw", 3): "duara",
        ("caption", "en", 3): "a red circle and a red circle",
    }
    scores, predictions = scored(corpus, given)
    assert tuple(scores.columns) == SCORE_COLUMNS and tuple(predictions.columns) == PREDICTION_COLUMNS
    assert cell(scores, "vqa", "de", "score") == (pytest.approx(100 / 3), 3)
    assert cell(scores, "vqa", "de", "score_any_language") == (pytest.approx(200 / 3), 3)
    assert cell(scores, "vqa", "de", "fidelity") == (50.0, 2)
    assert cell(scores, "vqa", "de", "undetermined") == (pytest.approx(100 / 3), 3)
    assert cell(scores, "vqa", "sw", "score_any_language") == (0.0, 3)
    assert cell(scores, "vqa", "sw", "fidelity") == (100.0, 1)
    assert cell(scores, "caption", "de", "score") == (0.0, 1)
    assert cell(scores, "caption", "de", "score_any_language") == (100.0, 1)
    assert cell(scores, "caption", "sw", "score") == (pytest.approx(200 / 3), 1)
    assert cell(scores, "caption", "en", "score") == (pytest.approx(200 * 2 / (4 + 2)), 1)
    assert math.isnan(cell(scores, "vqa", "en", "fidelity")[0]) and cell(scores, "vqa", "en", "fidelity")[1] == 0
    for code in WORDS:  # `red` is the gold of two questions of three
        assert cell(scores, "vqa", code, "majority") == (pytest.approx(200 / 3), 3)
    assert len(predictions) == 12 and not predictions.duplicated(["task", "language", "item"]).any()
    assert not scores.duplicated(["task", "language", "metric"]).any()
    five = METRICS[:5]
    for task, metrics in {"caption": five, "vqa": (*five, "exact", "normalised", "relaxed")}.items():
        assert all(tuple(rows["metric"]) == metrics for _, rows in scores[scores["task"] == task].groupby("language"))
    known = predictions.set_index(["task", "language", "item"])["answer_language"]
    assert known["vqa", "de", "q-00001"] == "en" and known["vqa", "de", "q-00000"] == "de"
    assert (predictions["score_any_language"] >= predictions["score"]).all()
    assert scores.attrs["notes"] == []


def test_tables_survive_parquet(tmp_path: Path) -> None:
    for number, frame in enumerate(scored(by_hand(tmp_path), {("vqa", "de", 0): "rot"})):
        frame.to_parquet(tmp_path / f"{number}.parquet", index=False)
        pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / f"{number}.parquet"), frame)


def test_captions_without_attributes_are_scored_by_words_and_say_so(tmp_path: Path) -> None:
    scores, _ = scored(by_hand(tmp_path, attributes=False), {("caption", "de", 3): "ein Kreis"})
    assert cell(scores, "caption", "de", "score") == (pytest.approx(80.0), 1)
    assert len(scores.attrs["notes"]) == 1 and "word F1" in scores.attrs["notes"][0]


def test_an_untranslatable_corpus_has_no_other_language_to_be_right_in(tmp_path: Path) -> None:
    corpus = open_corpus(make_corpus(tmp_path, ("en", "de"), translatable=False))
    asked = asked_items(config(corpus), {"toy": corpus}, permission="report")
    scores, predictions = score_answers(asked, ["en gold" for _ in asked], corpora_detector(corpus))
    assert (predictions[predictions["language"] == "de"]["score"] == 0).all()
    assert predictions["score_any_language"].isna().all(), "a copy of the score would pass for a measurement"
    value, n = cell(scores, "vqa", "de", "score_any_language")
    assert math.isnan(value) and n == 0
    assert not any(name.startswith("score_any_language") for name in summarise(scores))
    assert "score_any_language of vqa in de has no value and is left out of the means" in left_out(scores)
    assert ["toy" in note and "not translated" in note for note in scores.attrs["notes"]] == [True]


def test_a_language_that_lacks_an_id_leaves_its_gold_answers_to_the_others(tmp_path: Path) -> None:
    folder = make_corpus(tmp_path, ("en", "de", "sw"), test_rows=3)
    path = folder / "test" / "de.jsonl"
    *rows, last = path.read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text("".join(rows), encoding="utf-8")
    (folder / "refused" / "test").mkdir(parents=True)
    (folder / "refused" / "test" / "de.jsonl").write_text(last, encoding="utf-8")
    corpus = open_corpus(folder)
    golds = {item.id: item.answers[0] for item in corpus.items("test", "sw")}
    asked = asked_items(config(corpus), {"toy": corpus}, permission="report")
    _, predictions = score_answers(asked, [golds[entry.item.id] for entry in asked], corpora_detector(corpus))
    assert (predictions["score_any_language"] == 100).all() and len(predictions) == 8


def test_the_limit_takes_the_same_ids_in_every_language_and_is_nested(tmp_path: Path) -> None:
    corpus = open_corpus(make_corpus(tmp_path, ("en", "de", "sw"), test_rows=40))

    def ids(items: int | None) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for entry in asked_items(config(corpus, items=items), {"toy": corpus}, permission="report"):
            found.setdefault(entry.item.language, []).append(entry.item.id)
        return found

    seven, twenty, everything = ids(7), ids(20), ids(None)
    assert seven["en"] == seven["de"] == seven["sw"] and len(set(seven["en"])) == 7
    assert seven["en"] == twenty["en"][:7] == everything["en"][:7]
    assert seven["en"] != sorted(everything["en"])[:7]
    assert sorted(everything["sw"]) == sorted(corpus.ids("test", "sw"))


def test_languages_and_tasks_choose(tmp_path: Path) -> None:
    corpus = by_hand(tmp_path)

    def rows(**changes: Any) -> list[tuple[str, str]]:
        asked = asked_items(config(corpus, **changes), {"toy": corpus}, permission="report")
        return list(dict.fromkeys(entry.row for entry in asked))

    assert rows() == [(task, code) for task in ("caption", "vqa") for code in ("en", "de", "sw")]
    assert rows(languages="T5", tasks=("vqa",)) == [("vqa", "en"), ("vqa", "de")]
    assert rows(languages=("sw",)) == [("caption", "sw"), ("vqa", "sw")]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": ("ocr",)}, "ocr.*cannot be scored.*caption, vqa, reading"),
        ({"tasks": ("vqa", "reading")}, "reading.*no corpus"),
        ({"languages": ("fr",)}, "names fr.*They have: en, de, sw"),
        (
            {"languages": ("en", "sw"), "corpora": (CorpusUse(path="toy", split="test", languages=("en", "de")),)},
            r"evaluate\.languages names sw, .*toy:test; tasks: all",
        ),
        ({"languages": ("xx",)}, "Unknown language code 'xx'"),
        ({"corpora": (CorpusUse(path="toy", split="tune"),)}, "permission 'tune'.*cannot be used for 'report'"),
        ({"corpora": (CorpusUse(path="toy", split="instruct"),)}, "permission 'train'"),
        ({"corpora": (CorpusUse(path="toy", split="test"),) * 2}, "twice"),
        ({"corpora": (CorpusUse(path="toy", split="test", languages=("fr",)),)}, "asks for fr"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    corpus = by_hand(tmp_path)
    chosen = config(corpus).model_copy(update=changes)
    with pytest.raises(InputError, match=message):
        asked_items(chosen, {"toy": corpus}, permission="report")


def test_an_unknown_task_in_a_row_is_refused_by_id(tmp_path: Path) -> None:
    folder = make_corpus(tmp_path, ("en", "de"))
    write_rows(folder / "test" / "de.jsonl", [test_row(number, "de", task="ocr") for number in range(6)])
    corpus = open_corpus(folder)
    with pytest.raises(InputError, match=r"'de'.*id 'q-0000.*'ocr'"):
        asked_items(config(corpus), {"toy": corpus}, permission="report")


def test_a_report_split_is_refused_while_tuning(tmp_path: Path) -> None:
    corpus = by_hand(tmp_path)
    with pytest.raises(InputError, match="cannot be used for 'tune'"):
        asked_items(config(corpus), {"toy": corpus}, permission="tune")


def test_seven_items_on_one_two_and_three_processes(assembled: Any, images: list[Path], tmp_path: Path) -> None:
    corpus = open_corpus(make_corpus(tmp_path, ("en", "de"), test_rows=5))
    model, processor = assembled
    chosen = config(corpus, max_new_tokens=5)
    ten = evaluate(model, processor, chosen, {"toy": corpus}, batch_size=1)
    assert len(ten[1]) == 10
    prompts = mixed_prompts(images)[:7]
    alone = generate_answers(model, processor, prompts, max_new_tokens=5)
    assert len(set(alone)) > 2

    def work() -> None:
        with compute(ComputeConfig(device="cpu")):
            assert generate_answers(model, processor, prompts, max_new_tokens=5) == alone
            tables = evaluate(model, processor, chosen, {"toy": corpus}, batch_size=4)
            for frame, expected in zip(tables, ten, strict=True):
                pd.testing.assert_frame_equal(frame, expected)

    for world in (2, 3):
        assert together(work, world) == [0] * world


def test_nothing_to_evaluate_gives_empty_tables(assembled: Any) -> None:
    model, processor = assembled
    scores, predictions = evaluate(model, processor, EvaluateConfig(), {})
    assert tuple(scores.columns) == SCORE_COLUMNS and not len(scores)
    assert tuple(predictions.columns) == PREDICTION_COLUMNS and not len(predictions)
