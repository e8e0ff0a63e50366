"""The Cauldron's form, which other Hugging Face data sets share: parquet with the pictures of a row in `images` and all
that is asked about them in `texts`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lvlm.data.sources.record import Fields, Form, Record, Refused, optional_text, pictures, placed, text_id
from lvlm.data.sources.tables import table_rows


def exchanges(value: Any) -> tuple[list[tuple[str, str]], str | None]:
    """(turns, the source that the first of them names) of a list of {user, assistant, source}."""
    if not isinstance(value, list) or not value:
        raise Refused("no texts", repr(value)[:60])
    turns = []
    for entry in value:
        user = entry.get("user") if isinstance(entry, dict) else None
        answer = entry.get("assistant") if isinstance(entry, dict) else None
        if not isinstance(user, str) or not isinstance(answer, str):
            raise Refused("an entry of texts without user and assistant", repr(entry)[:60])
        turns.append((user, answer))
    return turns, optional_text(value[0].get("source"))


def record(row: Mapping[str, Any], fields: Fields) -> Record:
    """A row of images and texts: one sample of all its turns."""
    if absent := [name for name in ("images", "texts") if name not in row]:
        raise Refused(f"no column {' and '.join(absent)}", f"columns: {', '.join(map(str, row))}"[:120])
    images = pictures(row["images"])
    turns, source = exchanges(row["texts"])
    name, mended = text_id(row.get("id"))
    return Record(placed(turns, len(images), in_front=True), images, name, source, mended)


FORM = Form("The Cauldron: images and texts", (".parquet",), table_rows, record)
