"""Files in the form of Centurio's trainer (`context`, `label`, `image_id`), which become a corpus folder so that other
languages can join.
"""

from __future__ import annotations

from typing import Any

from lvlm.data.checks import as_list
from lvlm.data.sources.conversations import json_rows
from lvlm.data.sources.record import Fields, Form, Record, Refused, optional_text, pictures, text_id


def record(row: Any, fields: Fields) -> Record:
    """A row of Centurio's trainer; its placeholders are ours."""
    if not isinstance(row, dict):
        raise Refused("a row that is no object", repr(row)[:60])
    if "text_label" in row:
        raise Refused("a test row")
    users, answers = as_list(row.get("context")), as_list(row.get("label"))
    for texts in (users, answers):
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise Refused("a context or label that holds no text", repr(texts)[:60])
    if len(users) != len(answers):
        raise Refused("context and label differ in number", f"{len(users)} and {len(answers)}")
    name, mended = text_id(row.get("id"))
    return Record(
        turns=tuple(zip(users, answers, strict=True)),
        pictures=pictures(row.get("image_id")),
        id=name,
        source=optional_text(row.get("source")),
        mended=mended,
    )


FORM = Form("Centurio's trainer: context, label, image_id", (".json", ".jsonl"), json_rows, record)
