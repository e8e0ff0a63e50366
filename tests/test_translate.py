"""Translating a corpus: what stays as it is, what is refused, and that it ends the same however often it is killed. A
scripted translator stands for the model; tests/test_translation_models.py has the models."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from lvlm.check import refusal_notes
from lvlm.config import RunConfig
from lvlm.data.corpus import open_corpus
from lvlm.data.plan import build_plan
from lvlm.errors import InputError
from lvlm.settings import StageConfig
from lvlm.translate import driver
from lvlm.translate.driver import Outcome, translate_corpus
from lvlm.translate.translator import Translation
from tests.corpora import make_corpus, test_row, train_row, write_rows

PLACEHOLDER = "<image_placeholder>"
SETTINGS = {"model": "scripted"}


class Scripted:
    """Writes the target's code before every text, or what `script` says; remembers what it was asked."""

    def __init__(self, script: Callable[[str, str], Translation | str] | None = None) -> None:
        self.script = script or (lambda text, target: f"{target}:{text}")
        self.asked: list[list[str]] = []

    def translate(self, texts: Sequence[str], source: str, target: str) -> list[Translation]:
        self.asked.append(list(texts))
        made = [self.script(text, target) for text in texts]
        return [answer if isinstance(answer, Translation) else Translation(answer) for answer in made]


def english(tmp_path: Path, rows: Sequence[dict[str, Any]] | None = None, **changes: Any) -> Path:
    """A corpus in English alone, whose training rows are `rows`."""
    folder = make_corpus(tmp_path, ("en",), rows=12, test_rows=3, **changes)
    if rows is not None:
        write_rows(folder / "instruct" / "en.jsonl", rows)
    return folder


def translated(folder: Path, *languages: str, by: Scripted | None = None, **options: Any) -> list[Outcome]:
    return list(translate_corpus(folder, languages, by or Scripted(), settings=SETTINGS, **options))


def turns(folder: Path, language: str, split: str = "instruct") -> list[tuple[tuple[str, str], ...]]:
    return [sample.turns for sample in open_corpus(folder).samples(split, language)]


def files(folder: Path) -> dict[str, bytes]:
    """Every file of a corpus by its path, but for locks."""
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def test_the_corpus_gains_the_languages_and_nothing_else_changes(tmp_path: Path) -> None:
    folder = english(tmp_path)
    before = files(folder)
    outcomes = translated(folder, "sw", "de")
    assert [(outcome.language, outcome.rows, outcome.written) for outcome in outcomes] == [
        ("de", 12, 12),
        ("sw", 12, 12),
    ]
    corpus = open_corpus(folder)
    assert corpus.languages_of("instruct") == ("en", "de", "sw") and corpus.languages_of("test") == ("en",)
    corpus.check("instruct")
    corpus.check("test")
    for original, row in zip(corpus.samples("instruct", "en"), corpus.samples("instruct", "sw"), strict=True):
        assert row.turns == tuple((f"sw:{user}", f"sw:{answer}") for user, answer in original.turns)
        assert (row.id, row.images, row.task, row.source) == (
            original.id,
            original.images,
            original.task,
            original.source,
        )
    after = files(folder)
    assert {name for name in after if before.get(name) != after[name]} == {
        "corpus.yaml", "instruct/de.jsonl", "instruct/sw.jsonl",
    }  # fmt: skip
    again = Scripted()
    assert [outcome.was_there for outcome in translated(folder, "de", "sw", by=again)] == [True, True]
    assert not again.asked and files(folder) == after


def test_items_are_translated_with_their_gold_answers_where_they_are_asked_for(tmp_path: Path) -> None:
    folder = english(tmp_path)
    rows = [test_row(0, "en", text_label=["a dog", "one dog"]), test_row(1, "en")]
    write_rows(folder / "test" / "en.jsonl", rows)
    translated(folder, "de", splits=["test"])
    first, second = open_corpus(folder).items("test", "de")
    assert (first.prompt, first.answers) == ("de:en question", ("de:a dog", "de:one dog"))
    assert second.answers == ("de:en gold",)


CONTEXT = f"{PLACEHOLDER}\nWhich one?\nA. The red car\nB. 12\nC) a bus\n\nAnswer with the letter."


def test_placeholders_lines_list_markers_and_what_has_no_words_stay(tmp_path: Path) -> None:
    row = train_row(0, "en", context=[CONTEXT, "  And now? "], label=["A", "[0.12, 0.5]"])
    folder, by = english(tmp_path, [row]), Scripted()
    translated(folder, "fr", by=by)
    expected = f"{PLACEHOLDER}\nfr:Which one?\nA. fr:The red car\nB. 12\nC) fr:a bus\n\nfr:Answer with the letter."
    assert turns(folder, "fr") == [((expected, "A"), ("  fr:And now? ", "[0.12, 0.5]"))]
    assert by.asked == [["Answer with the letter.", "The red car", "Which one?", "And now?", "a bus"]]


def test_a_text_is_sent_once_and_the_longest_go_first(tmp_path: Path) -> None:
    rows = [
        train_row(number, "en", context=["Describe."], label=["x y" * (number % 3 + 1)], turns=1) for number in range(9)
    ]
    folder, by = english(tmp_path, rows), Scripted()
    translated(folder, "de", by=by, batch=3)
    assert by.asked == [["Describe.", "x yx yx y", "x yx y"], ["x y"]]


REFUSED: dict[str, tuple[dict[str, Any], Callable[[str, str], Translation | str], str]] = {
    "a number lost, and its stand-in too": (
        {"label": ["I see 3 dogs", "b c"]}, lambda text, _: text.replace("3", "drei").replace("X1", "X"), "numbers",
    ),
    "a number invented": ({"label": ["Two dogs", "b c"]}, lambda text, _: f"2{text}", "numbers"),
    "a number changed": ({"label": ["In 1984", "b c"]}, lambda text, _: f"X1 {text}".replace("84", "48"), "numbers"),
    "a number that looks like a stand-in": ({"label": ["X1 is 5", "b c"]}, lambda *_: "X1", "numbers"),
    "empty": ({"label": ["No way", "b c"]}, lambda text, _: "" if text == "No way" else text, "empty"),
    "unfinished": ({}, lambda text, _: Translation(text, "unfinished"), "unfinished"),
    "a placeholder invented": ({}, lambda text, _: f"{text} {PLACEHOLDER}", "placeholders"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_refused_row_is_left_out_and_listed_with_its_reason(tmp_path: Path, case: str) -> None:
    changes, script, reason = REFUSED[case]
    kept = train_row(7, "en", context=["kept one", "kept two"], label=["kept three", "kept four"])
    folder = english(tmp_path, [train_row(3, "en", **changes), kept])

    def only_the_first(text: str, target: str) -> Translation | str:
        return text if text.startswith("kept") else script(text, target)

    (outcome,) = translated(folder, "de", by=Scripted(only_the_first))
    assert outcome.refused == {reason: 1} and outcome.written == 1
    (entry,) = map(json.loads, (folder / "refused" / "instruct" / "de.jsonl").read_text().splitlines())
    assert (entry["id"], entry["language"], entry["reason"]) == ("t-00003", "de", reason)
    assert {"field", "text", "translation"} <= entry.keys()
    assert reason in outcome.line() and "refused/instruct/de.jsonl" in outcome.line()
    assert open_corpus(folder).ids("instruct", "de") == ("t-00007",)


def test_a_text_that_lost_a_number_is_asked_once_more_with_stand_ins(tmp_path: Path) -> None:
    """A model that writes numbers as words and turns the order of a text round, but carries names over."""

    def script(text: str, target: str) -> str:
        return " ".join(reversed(text.replace("3.5", "dreieinhalb").split()))

    labels = ["a 3.5 m wall of 1,250 bricks, 3.5 t", "from 10:30 on"]
    folder, by = english(tmp_path, [train_row(0, "en", context=["Well?", "When?"], label=labels)]), Scripted(script)
    (outcome,) = translated(folder, "de", by=by)
    assert not outcome.refused
    assert [answer for _, answer in turns(folder, "de")[0]] == ["t 3.5 bricks, 1,250 of wall m 3.5 a", "on 10:30 from"]
    assert by.asked[1:] == [["a X1 m wall of X2 bricks, X3 t"]], "only the text that lost one, and each number alone"


# --- killed and started again


def kill_after(calls: int, folder: Path) -> None:
    """A process that translates and is killed by the system in call number `calls`."""
    code = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from tests import test_translate as t\n"
        "class Mortal(t.Scripted):\n"
        "    def translate(self, *arguments):\n"
        f"        if len(self.asked) == {calls}: os.kill(os.getpid(), signal.SIGKILL)\n"
        "        return super().translate(*arguments)\n"
        f"t.translated(Path({str(folder)!r}), 'de', 'sw', by=Mortal(), batch=4)\n"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == -signal.SIGKILL


def test_a_killed_translation_goes_on_and_ends_with_the_same_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, killed = english(tmp_path / "a"), english(tmp_path / "b")
    once = Scripted()
    translated(whole, "de", "sw", by=once, batch=4)
    kill_after(3, killed)
    assert open_corpus(killed).languages_of("instruct") == ("en",)
    with open(killed / ".translating/instruct/de.jsonl", "ab") as journal:  # as a full disk or a crash leaves it
        journal.write(b'{"window": 0, "texts": ["hal')
    rest = Scripted()
    translated(killed, "de", "sw", by=rest, batch=4)
    assert rest.asked == once.asked[3:]
    assert files(killed) == files(whole)


@pytest.mark.parametrize("stop", range(6))
def test_killed_between_the_files_it_ends_with_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    """At each of the renames: ledger, language file, corpus.yaml, and those of the next language; and (0) before the
    journal of the first is removed."""

    def script(text: str, target: str) -> Translation | str:
        return f"{target} 5 {text}" if text in ("en question 0 of 3", "en question X1 of X2") else text

    whole, killed = english(tmp_path / "a"), english(tmp_path / "b")
    translated(whole, "de", "sw", by=Scripted(script))
    replace, count = os.replace, 0

    def stopped(*arguments: Any) -> None:
        nonlocal count
        count += 1
        if count == stop:
            raise SystemExit
        replace(*arguments)
        if stop == 0 and count == 3:
            raise SystemExit

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(driver.os, "replace", stopped)
        translated(killed, "de", "sw", by=Scripted(script))
    open_corpus(killed).check("instruct")
    rest = Scripted(script)
    translated(killed, "de", "sw", by=rest)
    assert len(rest.asked) == 2 * (stop < 4)
    assert files(killed) == files(whole)


def test_a_translation_of_several_windows_resumes_in_the_middle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "WINDOW_ROWS", 5)
    whole, killed = english(tmp_path / "a"), english(tmp_path / "b")
    once, rest = Scripted(), Scripted()
    translated(whole, "de", by=once, batch=4)

    def mortal(text: str, target: str) -> str:
        if text == "en question 1 of 7":
            raise SystemExit
        return f"{target}:{text}"

    with pytest.raises(SystemExit):
        translated(killed, "de", by=Scripted(mortal), batch=4)
    translated(killed, "de", by=rest, batch=4)
    assert 0 < len(rest.asked) < len(once.asked) and once.asked[-len(rest.asked) :] == rest.asked
    assert files(killed) == files(whole)


def test_other_settings_or_another_original_are_not_mixed_in(tmp_path: Path) -> None:
    folder = english(tmp_path)

    def mortal(text: str, target: str) -> str:
        raise SystemExit

    with pytest.raises(SystemExit):
        translated(folder, "de", by=Scripted(mortal))
    with pytest.raises(InputError, match=r"other settings \(model was scripted, is other\)"):
        list(translate_corpus(folder, ["de"], Scripted(), settings={"model": "other"}))
    write_rows(folder / "instruct" / "en.jsonl", [train_row(0, "en")])
    with pytest.raises(InputError, match=r"original was"):
        translated(folder, "de")


# --- what a mix makes of refused rows


def test_a_sample_whose_translation_was_refused_stays_in_english(tmp_path: Path) -> None:
    folder = english(tmp_path)
    translated(folder, "de", "fr")

    def script(text: str, target: str) -> str:
        lost = ("en question 0 of 2", "en question 0 of 5", "en question X1 of X2")
        return f"{text} 9" if text in lost else f"{target} {text}"

    translated(folder, "sw", by=Scripted(script))
    corpus = open_corpus(folder)
    corpus.check("instruct")
    assert corpus.refused("instruct", "sw") == {"t-00002", "t-00005"} and len(corpus.ids("instruct")) == 12

    def languages(*codes: str, share: float) -> dict[str, str]:
        mix = {"corpora": [{"path": "c", "split": "instruct"}], "languages": list(codes), "english_share": share}
        plan = build_plan(
            "instruct", StageConfig.model_validate({"mix": mix}), seed=0, corpora={"c": open_corpus(folder)}
        )
        return {entry.id: entry.language for entry in plan.order}

    given = languages("en", "sw", share=0.0)
    assert {name for name, code in given.items() if code == "en"} == {"t-00002", "t-00005"} and len(given) == 12
    given = languages("sw", "de", share=0.0)
    assert {given["t-00002"], given["t-00005"]} == {"de"} and len(given) == 12
    with pytest.raises(InputError, match=r"refused in every language of the mix \(sw\)"):
        languages("sw", share=0.0)
    config = RunConfig.model_validate(
        {"instruct": {"mix": {"corpora": [{"path": "c", "split": "instruct"}], "languages": ["en", "sw"]}}}
    )
    (note,) = refusal_notes(config, {"c": corpus})
    assert "sw 2" in note and "toy/instruct" in note


def test_an_id_that_is_missing_without_having_been_refused_is_still_an_error(tmp_path: Path) -> None:
    folder = english(tmp_path)
    translated(folder, "de", by=Scripted(lambda text, _: f"{text} 9" if text == "en question 0 of 2" else text))
    rows = (folder / "instruct" / "de.jsonl").read_text().splitlines()
    (folder / "instruct" / "de.jsonl").write_text("\n".join(rows[1:]) + "\n")
    with pytest.raises(InputError, match="the id 't-00000' is missing"):
        open_corpus(folder).check("instruct")


# --- bad input


@pytest.mark.parametrize(
    ("languages", "options", "part"),
    [
        (["xx"], {}, "Unknown language code 'xx'"),
        (["en"], {}, "--to names en"),
        ([], {}, "no language"),
        (["de", "zh-Hans"], {}, r"--to zh-Hans is in the script Hans; .* translated into Hant \(zho_Hant\)"),
        (["de"], {"splits": ["absent"]}, "has no split 'absent'"),
        (["de"], {"source": "fr"}, "has no 'fr' to translate from"),
        (["de"], {"batch": 0}, "--batch 0"),
    ],
)
def test_a_wrong_wish_is_an_error_before_anything_is_written(
    tmp_path: Path, languages: list[str], options: dict[str, Any], part: str
) -> None:
    folder = english(tmp_path)
    before = files(folder)
    with pytest.raises(InputError, match=part):
        translated(folder, *languages, **options)
    assert files(folder) == before


def test_corpora_that_cannot_gain_a_language_say_why(tmp_path: Path) -> None:
    stays = make_corpus(tmp_path, ("en",), name="stays", translatable=False)
    with pytest.raises(InputError, match="translatable: false"):
        translated(stays, "de")
    bare = write_rows(tmp_path / "bare.jsonl", [train_row(0, "en")])
    with pytest.raises(InputError, match="lvlm corpus centurio"):
        translated(bare, "de")
    folder = english(tmp_path)
    write_rows(folder / "instruct" / "de.jsonl", [train_row(0, "de")])
    with pytest.raises(InputError, match=r"de.jsonl exists, but corpus.yaml does not list 'de'"):
        translated(folder, "de")
    assert yaml.safe_load((folder / "corpus.yaml").read_text())["languages"] == ["en"]


def test_a_broken_list_of_refused_ids_is_an_error(tmp_path: Path) -> None:
    folder = make_corpus(tmp_path, ("en", "de"))
    (folder / "refused" / "instruct").mkdir(parents=True)
    (folder / "refused" / "instruct" / "de.jsonl").write_text("{'id'\n")
    with pytest.raises(InputError, match=r"refused/instruct/de\.jsonl must have one JSON object a line"):
        open_corpus(folder).check("instruct")


def test_a_language_of_which_nothing_could_be_kept_is_not_gained(tmp_path: Path) -> None:
    folder = english(tmp_path)

    def script(text: str, target: str) -> Translation | str:
        return Translation(text, "unfinished") if target == "de" else text

    with pytest.raises(InputError, match=r"No row of instruct/de: 12 rows, 0 written, 12 refused \(unfinished 12"):
        translated(folder, "de", "sw", by=Scripted(script))
    assert open_corpus(folder).languages == ("en", "sw")
    open_corpus(folder).check("instruct")
    assert len((folder / ".translating/instruct/de.refused.jsonl").read_text().splitlines()) == 12
