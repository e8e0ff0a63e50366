"""What plans remember of large corpora: the same plan in less time, never one of other files, rules or tokenizers."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lvlm.data import counts, readers
from lvlm.data.corpus import open_corpus
from lvlm.data.fertility import FILLERS
from lvlm.data.memory import Memory
from lvlm.data.plan import Plan, build_plan
from lvlm.data.readers import Conversation, Rows, read_rows
from lvlm.errors import InputError
from lvlm.settings import StageConfig
from tests.corpora import make_corpus, train_row, write_rows

LONG_AGO = time.time() - 1000
LANGUAGES = ("en", "de", "sw")


@pytest.fixture(autouse=True)
def small_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is worth remembering, and files are settled as soon as they are written."""
    monkeypatch.setattr(readers, "LARGE_BYTES", 1)
    monkeypatch.setattr(readers, "SETTLED_SECONDS", -1e6)
    monkeypatch.setattr(counts, "MANY_SAMPLES", 1)


@pytest.fixture
def validated(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files whose rows are validated, each time."""
    names: list[str] = []
    real = readers._validate
    monkeypatch.setattr(readers, "_validate", lambda path, *more: names.append(path.name) or real(path, *more))
    return names


def read(path: Path, home: Path, **changes: Any) -> Rows:
    """As another process reads the file."""
    readers._read_rows.cache_clear()
    return read_rows(path, home=home, **{"language": "en", "source": "toy", **changes})


@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_remembered_rows_are_those_that_were_read(tmp_path: Path, validated: list[str], suffix: str) -> None:
    rows = [
        train_row(number, "en", image_id=["a.png"] * (number % 3), context="Où?", label="Là") for number in range(9)
    ]
    rows = [{**row, "context": "<image_placeholder>" * len(row["image_id"]) + "Où?"} for row in rows]
    path = write_rows(tmp_path / f"en.{suffix}", rows)
    one, two = read(path, tmp_path / "home"), read(path, tmp_path / "home")
    assert validated == [path.name]
    for field in fields(Rows):
        before, after = getattr(one, field.name), getattr(two, field.name)
        assert type(before) is type(after) and np.array_equal(before, after), field.name
        assert not isinstance(before, np.ndarray) or before.dtype == after.dtype
    assert two.samples(range(9), "toy") == one.samples(range(9), "toy") and two.row_of("t-00004") == 4


def test_a_file_that_may_be_another_is_read_again(
    tmp_path: Path, validated: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, home = write_rows(tmp_path / "en.jsonl", [train_row(0, "en")]), tmp_path / "home"
    read(path, home), read(path, home)
    assert len(validated) == 1
    os.utime(path, (LONG_AGO, LONG_AGO))
    read(path, home)
    assert len(validated) == 2, "another time of change"
    os.replace(write_rows(tmp_path / "new.jsonl", [train_row(2, "en")]), path)
    os.utime(path, (LONG_AGO, LONG_AGO))
    assert read(path, home).ids == ("t-00002",) and len(validated) == 3, "another inode"
    read(path, home, language=None), read(path, home, source="other")
    assert len(validated) == 5, "asked in another way"
    monkeypatch.setattr(readers, "_rules", lambda: "stricter")
    read(path, home)
    assert len(validated) == 6, "other rules"
    monkeypatch.setattr(readers, "SETTLED_SECONDS", 2.0)
    os.utime(path)
    read(path, home), read(path, home)
    assert len(validated) == 8, "written a moment ago"
    path.write_text(json.dumps({**train_row(1, "en"), "label": 3}))
    for _ in range(2):
        with pytest.raises(InputError, match=r"row 0 \(line 1\), field 'label'"):
            read(path, home)


@pytest.mark.parametrize("harm", ["cut", "flip", "empty", "words", "other"])
def test_a_broken_memory_does_no_harm(tmp_path: Path, validated: list[str], harm: str) -> None:
    path, home = write_rows(tmp_path / "en.jsonl", [train_row(number, "en") for number in range(99)]), tmp_path / "home"
    expected = read(path, home).ids
    (kept,) = (home / "data" / "remembered").iterdir()
    content = bytearray(kept.read_bytes())
    if harm == "flip":
        place = content.index(b"t-00050")
        content[place + 6] ^= 1
    if harm == "other":
        np.savez(kept, texts=np.arange(3))
    else:
        kept.write_bytes({"cut": content[:-100], "flip": content, "empty": b"", "words": b"no archive"}[harm])
    assert read(path, home).ids == expected and len(validated) == 2
    assert read(path, home).ids == expected and len(validated) == 2, "it was mended"


def test_where_nothing_can_be_kept_files_are_read(tmp_path: Path, validated: list[str]) -> None:
    (tmp_path / "home").write_text("a file")
    path = write_rows(tmp_path / "en.jsonl", [train_row(0, "en")])
    assert read(path, tmp_path / "home").ids == read(path, tmp_path / "home").ids and len(validated) == 2


def test_memory_is_bounded_and_what_was_used_longest_ago_goes(tmp_path: Path) -> None:
    memory = Memory(tmp_path, limit_bytes=6500)
    for number, name in enumerate("abc"):
        memory.keep(name, {"values": np.zeros(200)})
        os.utime(tmp_path / f"{name}.npz", (number, number))
    assert memory.recall("a", len) == 1, "which makes it the one used last"
    (tmp_path / ".left.1.tmp").write_bytes(b"0" * 100)  # of a process that was killed
    os.utime(tmp_path / ".left.1.tmp", (0, 0))
    memory.keep("d", {"values": np.zeros(200)})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npz", "c.npz", "d.npz"]


def _keep_often(folder: Path, value: int) -> None:
    for _ in range(100):
        Memory(folder).keep("shared", {"values": np.full(1000, value)})


def test_several_processes_never_see_half_a_file(tmp_path: Path) -> None:
    memory = Memory(tmp_path)
    memory.keep("shared", {"values": np.full(1000, 0)})
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_keep_often, args=(tmp_path, value)) for value in (1, 2)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        values = memory.recall("shared", lambda arrays: set(arrays["values"].tolist()))
        assert values is not None and len(values) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["shared.npz"]


class Words:
    """A measure that splits at blanks, and notes which of a corpus's conversations it was given."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def __call__(self, conversations: Sequence[Conversation]) -> list[tuple[int, int]]:
        self.seen += [turns[0][0] for turns, _ in conversations if turns[0][0] not in FILLERS]
        return [
            (len(" ".join(text for turn in turns for text in turn).split()), sum(len(a.split()) for _, a in turns))
            for turns, _ in conversations
        ]


def plan(
    folder: Path, measure: Words, *, key: str | None = "words", limit: int = 8, home: bool = True, epochs: float = 1.5
) -> Plan:
    """As another process plans; German and Swahili are cut to one turn of two."""
    readers._read_rows.cache_clear()
    place = folder.parent / "home" if home else None
    config = StageConfig.model_validate(
        {"mix": {"corpora": [{"path": str(folder), "split": "instruct"}]}, "max_text_tokens": limit, "epochs": epochs}
    )
    corpora = {str(folder): open_corpus(folder, home=place)}
    return build_plan("instruct", config, seed=0, corpora=corpora, measure=measure, tokenizer=lambda: key, home=place)


def same(one: Plan, two: Plan) -> bool:
    return one.summary() == two.summary() and all(
        one.tokens(entry) == two.tokens(entry) and one.sample(entry) == two.sample(entry) for entry in one.order
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = make_corpus(tmp_path, LANGUAGES, rows=40, translatable=False)
    short = [{**train_row(n, "en", turns=1), "id": f"e{n}"} for n in range(40)]
    write_rows(folder / "instruct" / "en.jsonl", short)
    return folder


def test_a_second_plan_counts_nothing_and_is_the_same(folder: Path) -> None:
    alone, first, second = Words(), Words(), Words()
    expected = plan(folder, alone, home=False)
    assert same(plan(folder, first), expected) and same(plan(folder, second), expected)
    assert len(first.seen) == 120 + 80 and first.seen == alone.seen and not second.seen
    assert sum(row["samples"] for row in expected.ledger.rows()) == 80


def test_only_what_is_not_known_is_counted(folder: Path) -> None:
    plan(folder, Words())
    other, limit, nothing, changed = Words(), Words(), Words(), Words()
    plan(folder, other, key="other words")
    assert len(other.seen) == 200
    plan(folder, limit, limit=9)
    assert len(limit.seen) == 80, "cut anew, but not counted anew"
    plan(folder, nothing, key=None)
    assert len(nothing.seen) == 200, "a tokenizer that nobody can tell from others"
    path = folder / "instruct" / "de.jsonl"
    path.write_text(path.read_text().replace("question", "ask"))
    assert same(plan(folder, changed), plan(folder, Words(), home=False))
    assert len(changed.seen) == 80 and all(text.startswith("de ask") for text in changed.seen)


def test_a_longer_plan_counts_what_a_shorter_one_left_out(folder: Path) -> None:
    half, rest = Words(), Words()
    plan(folder, half, epochs=0.5)
    assert same(plan(folder, rest), plan(folder, Words(), home=False))
    assert len(half.seen) < 120 and len(half.seen) + len(rest.seen) == 200


def test_each_process_begins_elsewhere_and_finds_what_others_counted(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(Words):
        def __call__(self, conversations: Sequence[Conversation]) -> list[tuple[int, int]]:
            if self.seen:
                raise KeyboardInterrupt
            return super().__call__(conversations)

    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("RANK", "1")
    one, zero = Killed(), Words()
    with pytest.raises(KeyboardInterrupt):
        plan(folder, one)
    assert len(one.seen) == 40 and all(text.startswith("de") for text in one.seen)
    monkeypatch.setenv("RANK", "0")
    assert same(plan(folder, zero), plan(folder, Words(), home=False))
    assert not any(text.startswith("de question 0") for text in zero.seen[:80]) and len(zero.seen) == 160


def test_the_first_row_that_cannot_be_cut_is_named(folder: Path) -> None:
    rows = [{**train_row(n, "en"), "id": f"e{n}"} for n in range(3)]
    rows[1]["context"] = ["word " * 9, "b"]
    rows[2] = {**rows[2], "context": ["word " * 20], "label": ["b"]}
    write_rows(folder / "instruct" / "en.jsonl", rows)
    with pytest.raises(InputError, match=r"en\.jsonl, row 1 \(line 2\), field 'context': .* 12 text tokens"):
        plan(folder, Words())


def test_a_plan_imports_no_model_and_leaves_transformers_knowing_it(folder: Path) -> None:
    stage = {"mix": {"corpora": [{"path": str(folder), "split": "instruct"}]}}
    config = folder / "run.yaml"
    config.write_text(json.dumps({"instruct": stage}))
    code = (
        "import sys\n"
        "from lvlm.cli import main\n"
        f"assert main(['plan', {str(config)!r}, '--home', {str(folder / 'home')!r}]) == 0\n"
        "print('HEAVY', sorted({'timm', 'peft', 'accelerate', 'lvlm.model.lvlm'} & set(sys.modules)))\n"
        "from transformers import AutoModelForCausalLM\n"
        "from lvlm.model.config import LvlmConfig\n"
        "print('MODEL', AutoModelForCausalLM._model_mapping[type(LvlmConfig())].__name__)\n"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
    assert "HEAVY []" in shown.stdout and "MODEL Lvlm" in shown.stdout
