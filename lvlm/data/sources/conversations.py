"""LLaVA's `conversations`, as JSON, JSON Lines or parquet: LLaVA, LLaVA-NeXT, ShareGPT4V, ALLaVA and others of that
family. Ids are text or numbers and may repeat, images are a path, a list or bytes, samples without one are text only.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lvlm.data.readers import _objects, place
from lvlm.data.sources.record import Fields, Form, Record, Refused, optional_text, pictures, placed, text_id
from lvlm.data.sources.tables import table_rows

ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}


def json_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """The rows of a JSON list or a JSON Lines file, one at a time."""
    for number, (row, _, line) in enumerate(_objects(path)):
        yield place(path, number, line), row


def _rows(path: Path) -> Iterator[tuple[str, Any]]:
    return table_rows(path) if path.suffix == ".parquet" else json_rows(path)


def conversation(value: Any) -> tuple[list[tuple[str, str]], tuple[str, ...]]:
    """(turns, what was mended) of a list of {from, value} or {role, content}."""
    if not isinstance(value, list) or not value:
        raise Refused("no conversation", repr(value)[:60])
    said = [_said(entry) for entry in value]
    mended = []
    if said[0][0] == "assistant":
        del said[0]
        mended.append("an answer before the first question was left out")
    if said and said[-1][0] == "user":
        del said[-1]
        mended.append("a last question without an answer was left out")
    if not said:
        raise Refused("no question with an answer")
    if [role for role, _ in said] != ["user", "assistant"] * (len(said) // 2):
        raise Refused("questions and answers do not take turns", " ".join(role for role, _ in said)[:60])
    texts = [text for _, text in said]
    return list(zip(texts[::2], texts[1::2], strict=True)), tuple(mended)


def _said(entry: Any) -> tuple[str, str]:
    if not isinstance(entry, dict):
        raise Refused("a turn that is no object", repr(entry)[:60])
    role = entry.get("from", entry.get("role"))
    text = entry.get("value", entry.get("content"))
    if role not in ROLES:
        raise Refused("a turn of neither user nor assistant", repr(role)[:60])
    if not isinstance(text, str):
        raise Refused("a turn that is no text", repr(text)[:60])
    return ROLES[role], text


def record(row: Any, fields: Fields) -> Record:
    """A row of LLaVA's form; fields beside those of the form are not looked at."""
    if not isinstance(row, dict):
        raise Refused("a row that is no object", repr(row)[:60])
    if row.get("video"):
        raise Refused("a video")
    turns, mended = conversation(row.get("conversations", row.get("messages")))
    images = pictures(row.get("image", row.get("images")))
    name, replaced = text_id(row.get("id"))
    return Record(
        turns=placed(turns, len(images)),
        pictures=images,
        id=name,
        source=optional_text(row.get("data_source")),
        mended=(*mended, *replaced),
    )


FORM = Form("LLaVA, LLaVA-NeXT, ShareGPT4V: conversations", (".json", ".jsonl", ".parquet"), _rows, record)
