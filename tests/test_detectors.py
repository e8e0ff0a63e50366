"""Detectors of any language: what they tell of labelled strings, which one an evaluation takes, and how they are
checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from lvlm import cli
from lvlm.data.corpus import Corpus, open_corpus
from lvlm.errors import InputError
from lvlm.evaluate import detectors, evaluate_with
from lvlm.evaluate.detectors import Detector, FastText, Packaged, open_detector
from lvlm.evaluate.fidelity import LanguageDetector
from lvlm.evaluate.labelled import Confusion, confusions, locale_texts, read_table
from lvlm.languages import table
from lvlm.settings import CorpusUse, EvaluateConfig
from tests.corpora import make_corpus
from tests.fasttext_file import write_fasttext

SENTENCES = [
    ("There is a cat on the kitchen table.", "en"),
    ("Auf dem Küchentisch sitzt eine Katze.", "de"),
    ("Deux enfants jouent dans le parc.", "fr"),
    ("На кухонном столе сидит кошка.", "ru"),
    ("台所のテーブルの上に猫がいます。", "ja"),
    ("厨房的桌子上有一只猫。", "zh"),
    ("يوجد قطة على طاولة المطبخ.", "ar"),
    ("Kuna paka juu ya meza ya jikoni.", "sw"),
    ("รูปนี้มีแมวอยู่บนโต๊ะ", "th"),
    ("ეს სურათი აჩვენებს კატას.", "ka"),
    ("7", None),
    ("3.5 %", None),
    ("", None),
    ("?!…", None),
    ("rot", None),  # a guess would be Bislama
    ("Il y a un chat sur la table de la cuisine.", None),  # CLD2 is sure that it is English
    ("\ud800\x00\x07 x", None),
]


@pytest.mark.parametrize(("text", "expected"), SENTENCES)
def test_the_packaged_detector_tells_sentences_and_leaves_words(text: str, expected: str | None) -> None:
    assert Packaged().detect(text) == expected


@pytest.fixture
def fasttext_file(tmp_path: Path) -> Path:
    """GlotLID's form of labels: Chinese in two scripts, Croatian and Bosnian that nothing tells apart, a language that
    the table lacks."""
    sibling = {"hrv_Latn": 9.0, "bos_Latn": 9.0}
    words: dict[str, dict[str, float]] = {
        "gato": {"spa_Latn": 20.0}, "crveni": sibling, "krug": sibling, "qanik": {"xyz_Latn": 20.0},
        "貓": {"zho_Hant": 12.0, "zho_Hans": 12.0, "jpn_Jpan": 11.0},
    }  # fmt: skip
    labels = ("spa_Latn", "hrv_Latn", "bos_Latn", "zho_Hant", "zho_Hans", "jpn_Jpan", "xyz_Latn")
    return write_fasttext(tmp_path / "model.bin", words, labels)


def test_a_fasttext_file_is_read_by_any_code_of_the_table(fasttext_file: Path) -> None:
    detector = FastText(fasttext_file)
    assert detector.detect("gato\ngato") == "es"
    assert detector.detect("貓") == "zh", "two scripts of one language count together"
    assert detector.detect("crveni krug") is None, "siblings share the probability"
    assert detector.detect("qanik") == "xyz_Latn", "a language that the table lacks is none of those asked"
    assert detector.detect("unheard of") is None and detector.detect("7") is None and detector.detect("") is None
    assert "model.bin" in detector.note and "sha256" in detector.note


def test_lid176_means_swiss_german_by_a_code_that_is_albanian_elsewhere(tmp_path: Path) -> None:
    words = {"grüezi": {"als": 20.0}}
    assert FastText(write_fasttext(tmp_path / "lid.bin", words, ("als", "de"))).detect("grüezi") == "gsw"
    assert FastText(write_fasttext(tmp_path / "glot.bin", words, ("als", "deu"))).detect("grüezi") == "sq"


def test_what_is_no_detector_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.bin").write_text("no model")
    with pytest.raises(InputError, match="no fastText model"):
        open_detector(str(tmp_path / "text.bin"))
    with pytest.raises(InputError, match=r"does not exist\..*GlotLID"):
        open_detector("glotlid")


def corpora(tmp_path: Path) -> dict[str, Corpus]:
    """One of a closed vocabulary by its attributes, one that a world wrote, one of free text."""
    opened = {}
    for name, entry in (("named", {}), ("written", {"seed": 0}), ("free", {})):
        folder = make_corpus(
            tmp_path, ("en", "de"), name=name, entry={} if name == "named" else {"attributes": None} | entry
        )
        opened[name] = open_corpus(folder)
    return opened


def config(*paths: str, **changes: Any) -> EvaluateConfig:
    return EvaluateConfig(corpora=tuple(CorpusUse(path=path, split="test") for path in paths), **changes)


def test_the_default_follows_the_corpus_and_a_name_holds_for_all(tmp_path: Path, fasttext_file: Path) -> None:
    opened = corpora(tmp_path)

    def kinds(**changes: Any) -> list[type[Detector]]:
        told = detectors(config(*opened, **changes), opened)
        return [type(told[opened[name]]) for name in opened]

    assert kinds() == [LanguageDetector, LanguageDetector, Packaged]
    assert kinds(detector="corpus") == [LanguageDetector] * 3
    assert kinds(detector="packaged") == [Packaged] * 3
    assert kinds(detector=str(fasttext_file)) == [FastText] * 3
    alone = detectors(config("named"), opened)[opened["named"]]
    beside_free_text = detectors(config("named", "free"), opened)[opened["named"]]
    assert alone is beside_free_text, "free text teaches a closed vocabulary nothing"
    assert "detector" not in config("named").model_dump(), "the fingerprints of before stay"
    assert config("named", detector="packaged").model_dump()["detector"] == "packaged"


def test_the_notes_say_what_told_the_languages_and_count_siblings(tmp_path: Path) -> None:
    folder = make_corpus(tmp_path, ("en", "no"), entry={"attributes": None})
    opened = {"toy": open_corpus(folder)}

    def danish(prompts: Any, **_: Any) -> list[str]:
        return ["Der er en kat på køkkenbordet, og den sover ikke længere."] * len(prompts)

    scores, predictions = evaluate_with(danish, config("toy"), opened)
    assert set(predictions["answer_language"]) == {"da"}
    assert scores.attrs["notes"][0].startswith("language of the answers to toy: CLD2 (pycld2 ")
    assert scores.attrs["notes"][1].endswith("no told as da 6 of 6")
    notes = evaluate_with(danish, config("toy", detector="corpus"), opened)[0].attrs["notes"]
    assert notes == ["language of the answers to toy: the words of the corpora and the scripts of en, no"]


def test_the_labelled_texts_are_many_short_and_in_the_right_script() -> None:
    texts = locale_texts()
    assert len(texts) > 120 and sum(table()[code].in_l100 for code in texts) > 75
    assert "Spanisch, Koreanisch und Italienisch" in texts["de"] and "in 5 days" in texts["en"]
    assert all(len(set(some)) == len(some) >= 12 for some in texts.values())
    assert not set(texts["en"]) & {text for code, some in texts.items() if code != "en" for text in some}


def test_a_confusion_counts_right_undetermined_siblings_and_others() -> None:
    class Scripted:
        note = "scripted"

        def detect(self, text: str) -> str | None:
            return {"a": "hr", "b": "bs", "c": None, "d": "en", "e": "bs"}[text]

    (row,) = confusions(Scripted(), {"hr": "abcde"})
    assert row == Confusion("hr", 5, {"hr": 1, "bs": 2, None: 1, "en": 1})
    assert (row.right, row.undetermined, row.sibling) == (20.0, 20.0, 40.0)
    assert row.others == [("bs", 2), ("en", 1)]


def test_the_command_checks_a_detector_on_labelled_texts(tmp_path: Path, fasttext_file: Path, capsys: Any) -> None:
    assert cli.main(["fidelity", "--check", "--languages", "de", "el"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].startswith("detector: CLD2 (pycld2 ") and "Babel" in shown[1]
    greek = next(line for line in shown if line.startswith("el Greek"))
    assert greek.split()[3] == "100.0"
    own = tmp_path / "own.tsv"
    own.write_text('language\ttext\nspa\tgato\nhr\tcrveni "krug"\nes\tqanik\n', encoding="utf-8")
    assert cli.main(["fidelity", "--check", "--table", str(own), "--detector", str(fasttext_file)]) == 0
    shown = capsys.readouterr().out.splitlines()
    spanish = next(line for line in shown if line.startswith("es Spanish"))
    assert spanish.split() == ["es", "Spanish", "2", "50.0", "0.0", "xyz_Latn", "1"]
    assert any(line.startswith("hr Croatian") and "100.0" in line for line in shown), "undetermined"
    assert read_table(own)["es"] == ("gato", "qanik")


def test_the_command_tells_finished_predictions_again(tmp_path: Path, fasttext_file: Path, capsys: Any) -> None:
    rows = {"task": "vqa", "language": ["es", "es"], "prediction": ["gato", "crveni"], "answer_language": ["en", None]}
    pd.DataFrame(rows).to_parquet(tmp_path / "predictions.parquet")
    words = ["fidelity", str(tmp_path / "predictions.parquet"), "--detector", str(fasttext_file)]
    assert cli.main(words) == 0
    assert capsys.readouterr().out.splitlines()[-1].split() == ["vqa", "es", "2", "100.0", "50.0", "0.0", "50.0"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["fidelity"], "needs either --check or"),
        (["fidelity", "x.parquet", "--check"], "needs either --check or"),
        (["fidelity", "x.parquet"], "There are no predictions x.parquet"),
        (["fidelity", "--check", "--table", "x.csv"], "--table x.csv does not exist"),
        (["fidelity", "--check", "--languages", "arz"], "names arz, of which there are no texts"),
        (["fidelity", "--check", "--languages", "qqq"], "Unknown language code 'qqq'"),
        (["fidelity", "--check", "--detector", "auto"], "--detector auto learns from the corpora"),
        (["fidelity", "x.parquet", "--table", "x.csv"], "--table x.csv is for --check"),
    ],
)
def test_what_cannot_be_checked_is_refused(words: list[str], message: str, capsys: Any) -> None:
    assert cli.main(words) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("language,text\nde,\n", "line 2: language or text is empty"),
        ("lang,text\nde,ja\n", "lacks the column language"),
        ("language,text\n", "has no row"),
        ("language,text\nde,ja\nqqq,ja\n", r"own\.csv, line 3: Unknown language code 'qqq'"),
    ],
)
def test_a_table_with_a_fault_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "own.csv").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        read_table(tmp_path / "own.csv")


def test_a_table_may_begin_with_a_byte_order_mark_and_must_be_utf8(tmp_path: Path) -> None:
    (tmp_path / "own.csv").write_bytes(b"\xef\xbb\xbflanguage,text\nde,rot\n")
    assert read_table(tmp_path / "own.csv") == {"de": ("rot",)}
    (tmp_path / "own.csv").write_bytes("language,text\nde,grün\n".encode("latin-1"))
    with pytest.raises(InputError, match="is not UTF-8"):
        read_table(tmp_path / "own.csv")


def test_files_that_are_no_predictions_are_refused(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "text.parquet").write_text("no table")
    pd.DataFrame({"task": ["vqa"]}).to_parquet(tmp_path / "short.parquet")
    rows = {"task": ["ocr"], "language": ["es"], "prediction": ["gato"], "answer_language": ["es"]}
    pd.DataFrame(rows).to_parquet(tmp_path / "other.parquet")
    for name, message in (
        ("text", "is no parquet file"),
        ("short", "lacks the columns language, prediction, answer_language"),
        ("other", "has the tasks ocr"),
    ):
        assert cli.main(["fidelity", str(tmp_path / f"{name}.parquet")]) == 2
        assert message in capsys.readouterr().err


def test_letters_have_no_language_to_tell_again(tmp_path: Path, fasttext_file: Path, capsys: Any) -> None:
    rows = {"task": ["cvqa", "vqa"], "language": "es", "prediction": ["A", "gato"], "answer_language": ["en", "es"]}
    pd.DataFrame(rows).to_parquet(tmp_path / "predictions.parquet")
    assert cli.main(["fidelity", str(tmp_path / "predictions.parquet"), "--detector", str(fasttext_file)]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[2:]] == ["vqa"]


def test_the_built_in_worlds_are_closed(tmp_path: Path) -> None:
    from lvlm.data.worlds.writer import write_world

    for name in ("shapes", "reading"):
        folder = write_world(name, tmp_path / name, seed=0, train=2, languages=["en", "de"])
        assert open_corpus(folder).closed, yaml.safe_load((folder / "corpus.yaml").read_text())
