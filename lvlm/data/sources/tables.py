"""Any parquet table whose columns are named on the command line: image, question, answer, id, source. Also how every
form reads parquet.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lvlm.data.sources.record import Fields, Form, Record, Refused, optional_text, pictures, placed, text_id
from lvlm.errors import InputError

ROWS_TOGETHER = 16
READ_AHEAD = 1 << 20  # bytes of each column


def table_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """The rows of a parquet file, page by page."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path, buffer_size=READ_AHEAD, pre_buffer=False, page_checksum_verification=True) as file:
            for batch in file.iter_batches(batch_size=ROWS_TOGETHER, use_threads=False):
                for row in batch.to_pylist():
                    yield f"{path}, row {number}", row
                    number += 1
    except (pa.ArrowException, OSError) as error:
        raise InputError(
            f"{path}, after row {number}: not a sound parquet file ({str(error).splitlines()[0][:200]}). Get it anew."
        ) from error


def column(row: Mapping[str, Any], name: str) -> Any:
    """The value of a column that was named; a table without it is an error at its first row."""
    if name not in row:
        raise InputError(f"There is no column '{name}'. The columns are: {', '.join(map(str, row))}.")
    return row[name]


def record(row: Mapping[str, Any], fields: Fields) -> Record:
    """A row whose columns `fields` names; question and answer may be lists of the same length."""
    if fields.answer is None:
        raise InputError(
            f"Name the column with the answers or captions: --answer. The columns are: {', '.join(map(str, row))}."
        )
    turns = named_turns(row, fields)
    images = pictures(column(row, fields.image)) if fields.image else ()
    name, mended = text_id(column(row, fields.id)) if fields.id else (None, ())
    return Record(
        turns=placed(turns, len(images), in_front=True),
        pictures=images,
        id=name,
        source=optional_text(column(row, fields.source)) if fields.source else None,
        mended=mended,
    )


def named_turns(row: Mapping[str, Any], fields: Fields) -> list[tuple[str, str]]:
    """The turns in the fields that are named for question and answer: texts, or lists of the same length."""
    assert fields.answer is not None
    answers = _texts(column(row, fields.answer), "answer")
    if fields.question is None:
        questions = [fields.prompt or ""] * len(answers)
    else:
        questions = _texts(column(row, fields.question), "question")
    if fields.question is None and len(answers) != 1:
        raise Refused("several answers and no column of questions", f"{len(answers)} answers")
    if len(questions) != len(answers):
        raise Refused("questions and answers differ in number", f"{len(questions)} and {len(answers)}")
    return list(zip(questions, answers, strict=True))


def _texts(value: Any, what: str) -> list[str]:
    texts = value if isinstance(value, list) else [value]
    if not texts or not all(isinstance(text, str) for text in texts):
        raise Refused(f"a field of the {what} that holds no text", repr(value)[:60])
    return texts


FORM = Form(
    "a table whose columns are named",
    (".parquet",),
    table_rows,
    record,
    fields=("image", "question", "answer", "id", "source", "prompt"),
)
