"""The forms of source that are read, by name."""

from __future__ import annotations

from lvlm.data.sources import conversations, images_texts, shards, tables, trainer_files
from lvlm.data.sources.record import Form

FORMS: dict[str, Form] = {
    "llava": conversations.FORM,
    "cauldron": images_texts.FORM,
    "parquet": tables.FORM,
    "webdataset": shards.FORM,
    "centurio": trainer_files.FORM,
}
"""The names are those of the command."""
