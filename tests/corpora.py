"""Small corpora written by the tests that need one: a translatable folder, a folder that stays in its languages, bare
files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

LANGUAGES = ("en", "de", "fr", "ru", "sw", "jv")
Row = dict[str, Any]


def write_rows(path: Path, rows: Sequence[Any]) -> Path:
    """JSON Lines or a JSON list, by the suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    else:
        path.write_text(json.dumps(rows, ensure_ascii=False, indent=1), encoding="utf-8")
    return path


def train_row(number: int, language: str, *, turns: int = 2, **changes: Any) -> Row:
    """A dialogue about one image, in words that name language and number."""
    return {
        "id": f"t-{number:05d}",
        "context": [f"{language} question {turn} of {number}" for turn in range(turns)],
        "label": [f"{language} answer {turn}" for turn in range(turns)],
        "image_id": [f"train/{number % 4}.png"],
        "language": language,
        "task": "instruct",
        "source": "even" if number % 2 == 0 else "odd",
        **changes,
    }


def test_row(number: int, language: str, **changes: Any) -> Row:
    """A question about one image."""
    row = {
        "id": f"q-{number:05d}",
        "context": [f"{language} question"],
        "label": [""],
        "text_label": f"{language} gold",
    }
    return {
        **row,
        "image_id": f"test/{number % 4}.png",
        "language": language,
        "task": "vqa",
        "source": "seen",
        **changes,
    }


test_row.__test__ = False  # type: ignore[attr-defined]  # its name is that of a row, not of a test


def make_corpus(
    tmp_path: Path,
    languages: Sequence[str] = LANGUAGES,
    *,
    name: str = "toy",
    rows: int = 24,
    test_rows: int = 6,
    translatable: bool = True,
    suffix: str = "jsonl",
    turns: int = 2,
    entry: Mapping[str, Any] | None = None,
) -> Path:
    """A corpus folder with splits instruct (train), tune (tune) and test (report). `entry` replaces keys of
    corpus.yaml.

    Without `translatable` the ids carry the language, so that no two languages share any.
    """
    folder = tmp_path / name
    for part in ("train", "test"):
        (folder / "images" / part).mkdir(parents=True, exist_ok=True)
        for number in range(4):
            Image.new("RGB", (12, 10), (60 * number, 90, 120)).save(folder / "images" / part / f"{number}.png")
    for code in languages:

        def own(row: Row, code: str = code) -> Row:
            return row if translatable else {**row, "id": f"{row['id']}-{code}"}

        write_rows(
            folder / "instruct" / f"{code}.{suffix}",
            [own(train_row(number, code, turns=turns)) for number in range(rows)],
        )
        for split in ("tune", "test"):
            write_rows(
                folder / split / f"{code}.{suffix}", [own(test_row(number, code)) for number in range(test_rows)]
            )
    data = {
        "name": name,
        "languages": list(languages),
        "translatable": translatable,
        "images": "images",
        "attributes": "attributes.json",
        "splits": {
            "instruct": {"permission": "train"},
            "tune": {"permission": "tune"},
            "test": {"permission": "report"},
        },
        **(entry or {}),
    }
    (folder / "attributes.json").write_text(json.dumps({code: {f"{code} red": "colour:red"} for code in languages}))
    (folder / "corpus.yaml").write_text(yaml.safe_dump(data), encoding="utf-8")
    return folder


def change_row(path: Path, number: int, **changes: Any) -> None:
    """Replace fields of one row of a JSON Lines file; a value of None removes the field."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    rows[number].update(changes)
    rows[number] = {key: value for key, value in rows[number].items() if value is not None}
    write_rows(path, rows)
