"""Corpora: Centurio's files as they are, the corpus folder, and that both formats mean the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from lvlm.cli import read_run
from lvlm.data import objects
from lvlm.data.corpus import open_corpus
from lvlm.errors import InputError
from tests.corpora import LANGUAGES, change_row, make_corpus, write_rows


def test_centurio_training_file_as_it_is(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    two = "<image_placeholder> and <image_placeholder>: same?"
    rows = [
        {"context": ["What is it?", "And now?"], "label": ["A cat.", "A dog."], "image_id": ["a.jpg"]},
        {"context": [two], "label": ["No."], "image_id": ["a.jpg", "b.jpg"]},
        {"context": ["First <image_placeholder>", "then <image_placeholder>"], "label": ["1", "2"], "image_id":
        ["b.jpg", "a.jpg"]},
        {"context": "Hello", "label": "Hi", "image_id": ""},
        {"context": ["こんにちは"], "label": ["はい"], "image_id": [""]},
        {"context": ["<image_placeholder>\nlook"], "label": ["ok"], "image_id": "b.jpg", "language": "de", "source":
        "web"},
    ]  # fmt: skip
    corpus = open_corpus(write_rows(tmp_path / "mix.json", rows))
    assert corpus.name == "mix" and not corpus.translatable and corpus.splits == {"train": "train"}
    assert corpus.languages == ("en", "de")
    corpus.check("train", images=True)
    samples = corpus.samples("train", "en")
    assert [sample.id for sample in samples] == ["0", "1", "2", "3", "4"]
    assert samples[0].turns == (("What is it?", "A cat."), ("And now?", "A dog."))
    assert [sample.images for sample in samples] == [("a.jpg",), ("a.jpg", "b.jpg"), ("b.jpg", "a.jpg"), (), ()]
    assert samples[4].turns == (("こんにちは", "はい"),)
    (german,) = corpus.samples("train", "de")
    assert (german.id, german.source, german.language) == ("5", "web", "de")
    assert corpus.image_path("a.jpg").exists()


def test_centurio_test_file_as_it_is(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "0000.jpg")
    rows = [
        {"context": ["German"], "label": [""], "text_label": "de", "image_id": "0000.jpg"},
        {"context": "q", "label": [""], "text_label": ["two", "2"], "image_id": "0000.jpg"},
    ]
    corpus = open_corpus(write_rows(tmp_path / "maxm.json", rows))
    assert corpus.splits == {"test": "report"}
    items = corpus.items("test", "en")
    assert [item.answers for item in items] == [("de",), ("two", "2")]
    assert items[0].prompt == "German" and items[0].images == ("0000.jpg",)


@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_folder(tmp_path: Path, suffix: str) -> None:
    corpus = open_corpus(make_corpus(tmp_path, suffix=suffix))
    assert corpus.languages == LANGUAGES and corpus.translatable
    assert corpus.splits == {"instruct": "train", "tune": "tune", "test": "report"}
    for split in corpus.splits:
        corpus.check(split, images=True)
    assert corpus.ids("instruct") == corpus.ids("instruct", "sw") == tuple(f"t-{number:05d}" for number in range(24))
    sample = corpus.samples("instruct", "ru")[7]
    assert (sample.id, sample.corpus, sample.source, sample.task) == ("t-00007", "toy", "odd", "instruct")
    assert sample.turns[1] == ("ru question 1 of 7", "ru answer 1")
    assert corpus.items("test", "jv")[3].answers == ("jv gold",)
    assert corpus.items("test", "jv") is corpus.items("test", "jv")
    assert corpus.attributes("de") == {"de red": "colour:red"}


def test_json_and_json_lines_hold_the_same_rows(tmp_path: Path) -> None:
    rows = [{"context": f'Ünïcode ☃ {number} \\ "q"', "label": "Да\n[1]", "image_id": ""} for number in range(30)]
    compact = tmp_path / "compact.json"
    compact.write_text(
        "\ufeff [" + ",".join(json.dumps(row, ensure_ascii=False) for row in rows) + "]\n", encoding="utf-8"
    )
    files = [write_rows(tmp_path / "a.json", rows), write_rows(tmp_path / "a.jsonl", rows), compact]
    turns = [[sample.turns for sample in open_corpus(file).samples("train", "en")] for file in files]
    assert turns[0] == turns[1] == turns[2] == [((row["context"], row["label"]),) for row in rows]


def test_only_the_files_asked_for_are_read(tmp_path: Path) -> None:
    folder = make_corpus(tmp_path)
    (folder / "instruct" / "sw.jsonl").write_text("broken")
    corpus = open_corpus(folder)
    corpus.check("instruct", ["en", "de"])
    with pytest.raises(InputError, match=r"sw\.jsonl"):
        corpus.check("instruct")


def test_digest_follows_content_and_languages(tmp_path: Path) -> None:
    folder = make_corpus(tmp_path)
    before = open_corpus(folder)
    digest = before.digest("instruct", ["en", "de"])
    assert digest == open_corpus(folder).digest("instruct", ["de", "en"])
    assert digest != before.digest("instruct", ["en", "fr"])
    other = before.digest("instruct", ["en", "fr"])
    change_row(folder / "instruct" / "de.jsonl", 3, label=["anders", "ganz"])
    after = open_corpus(folder)
    assert after.digest("instruct", ["en", "de"]) != digest
    assert after.digest("instruct", ["en", "fr"]) == other


def test_files_of_one_corpus_may_be_ordered_differently(tmp_path: Path) -> None:
    folder = make_corpus(tmp_path)
    path = folder / "instruct" / "de.jsonl"
    path.write_text("\n".join(reversed(path.read_text().splitlines())))
    corpus = open_corpus(folder)
    corpus.check("instruct")
    assert corpus.samples("instruct", "de")[0].id == "t-00023"


def test_a_corpus_that_stays_in_its_languages(tmp_path: Path) -> None:
    corpus = open_corpus(make_corpus(tmp_path, ("en", "de"), translatable=False, rows=3))
    assert corpus.ids("instruct") == (
        "t-00000-en",
        "t-00001-en",
        "t-00002-en",
        "t-00000-de",
        "t-00001-de",
        "t-00002-de",
    )


def test_sound_images_are_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, home = make_corpus(tmp_path), tmp_path / "home"
    monkeypatch.setattr("lvlm.data.images.SETTLED_SECONDS", 0)
    open_corpus(folder).check("instruct", images=True, home=home)
    opened: list[str] = []
    real = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: opened.append(path.name) or real(path))
    open_corpus(folder).check("instruct", images=True, home=home)
    assert opened == []
    Image.new("L", (5, 5)).save(folder / "images/train/2.png")
    open_corpus(folder).check("instruct", images=True, home=home)
    assert opened == ["2.png"]


def test_norwegian_needs_no_quotes(tmp_path: Path) -> None:
    folder = make_corpus(tmp_path, ("en", "no"))
    bare = "languages: [en, no]"
    splits = f"splits: {{instruct: {{permission: train, {bare}}}, test: {{permission: report}}}}"
    (folder / "corpus.yaml").write_text(f"name: toy\ntranslatable: true\n{bare}\n{splits}\n")
    corpus = open_corpus(folder)
    assert corpus.languages == corpus.languages_of("instruct") == ("en", "no")
    config = read_run("tiny", ["instruct.mix.languages=[en,no]", "evaluate.languages=no"])
    assert config.instruct is not None and config.instruct.mix.languages == ("en", "no")
    assert config.evaluate.languages == "no"


def test_a_language_may_be_missing_in_a_split_that_says_so(tmp_path: Path) -> None:
    splits = {"instruct": {"permission": "train", "languages": ["en", "de"]}, "test": {"permission": "report"}}
    corpus = open_corpus(make_corpus(tmp_path, entry={"splits": splits}))
    assert corpus.languages_of("instruct") == ("en", "de") and corpus.languages_of("test") == LANGUAGES
    with pytest.raises(InputError, match="has no language 'fr'"):
        corpus.samples("instruct", "fr")


@pytest.mark.parametrize("ahead", [1, 7, 64])
@pytest.mark.parametrize("indent", [None, 1])
def test_a_list_is_read_piece_by_piece(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ahead: int, indent: int | None
) -> None:
    rows = [{"context": f"☃ {number}", "label": "Да\n[1]", "image_id": "", "id": number} for number in range(9)]
    path = tmp_path / "rows.json"
    path.write_text("\ufeff\n" + json.dumps(rows, ensure_ascii=False, indent=indent) + " \n", encoding="utf-8")
    monkeypatch.setattr(objects, "_READ_AHEAD", ahead)
    samples = open_corpus(path).samples("train", "en")
    assert [sample.turns for sample in samples] == [((row["context"], row["label"]),) for row in rows]
    text = path.read_text(encoding="utf-8")
    for broken, where in (
        (text[:-4], "line"),
        (text + ",", "after the list"),
        (text.replace(": 3", ": 3}", 1), "delimiter"),
    ):
        (tmp_path / "broken.json").write_text(broken, encoding="utf-8")
        messages = []
        for size in (ahead, 1 << 20):
            monkeypatch.setattr(objects, "_READ_AHEAD", size)
            with pytest.raises(InputError, match=where) as caught:
                open_corpus(tmp_path / "broken.json")
            messages.append(str(caught.value))
        assert messages[0] == messages[1], "line and column do not depend on how much is read at once"


def test_language_files_share_the_memory_of_their_ids(tmp_path: Path) -> None:
    corpus = open_corpus(make_corpus(tmp_path))
    english, german = (corpus.rows("instruct", code).ids for code in ("en", "de"))
    assert all(one is other for one, other in zip(english, german, strict=True))


def test_a_file_that_changes_while_it_is_in_use_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([{"context": ["What?"], "label": ["This."], "image_id": ""}]), encoding="utf-8")
    corpus = open_corpus(path)
    rows = corpus.train_rows("train", "en")
    assert rows.samples([0], "rows")[0].turns == (("What?", "This."),)
    path.write_text(path.read_text(encoding="utf-8").replace("This", "That."), encoding="utf-8")
    with pytest.raises(InputError, match=r"rows\.json has changed while it was in use"):
        rows.samples([0], "rows")
