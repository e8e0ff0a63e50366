"""Rows of Centurio's trainer files -> `Sample` and `Item`, with every check a row needs. `lvlm.data.corpus` calls
it, file by file. A file is read once, validated as a whole, and then held as byte ranges: a row's text is parsed
again only where it is used.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from io import TextIOWrapper
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import numpy.typing as npt

from lvlm.data.checks import FIELDS, as_list, check_images, check_test, check_train, encodes
from lvlm.data.progress import shown
from lvlm.errors import InputError
from lvlm.languages import language as known_language

Kind = Literal["train", "test"]
Numbers = Sequence[int] | npt.NDArray[np.int64]
_FIELDS = frozenset(FIELDS)
_BLANK = re.compile(r"[ \t\r\n]*")
_READ_AHEAD = 1 << 20  # characters


@dataclass(frozen=True, slots=True)
class Sample:
    """One training conversation. `turns` are (user, assistant) pairs; `images` are relative to the corpus's image
    folder."""

    id: str
    corpus: str
    language: str
    task: str
    source: str
    turns: tuple[tuple[str, str], ...]
    images: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Item:
    """One question of an evaluation with every accepted answer."""

    id: str
    corpus: str
    language: str
    task: str
    source: str
    prompt: str
    answers: tuple[str, ...]
    images: tuple[str, ...]


@dataclass(frozen=True)
class Rows:
    """A validated file: what a plan needs of each row in arrays, and where the row's text lies in the file."""

    path: Path
    kind: Kind
    digest: str
    state: tuple[int, int]
    """Bytes of the file and time of its last change, in nanoseconds."""
    ids: tuple[str, ...]
    spans: npt.NDArray[np.int64]
    """(rows, 2): first byte and the byte after the last."""
    lines: npt.NDArray[np.int32] | None
    """(rows,): line numbers from 1 for JSON Lines, None for a JSON list."""
    languages: tuple[str, ...]
    language_codes: npt.NDArray[np.int16]
    """(rows,): index into `languages`."""
    sources: tuple[str, ...]
    source_codes: npt.NDArray[np.int32]
    images: tuple[str, ...]
    """Every image named in the file, once."""
    image_index: npt.NDArray[np.int32]
    image_starts: npt.NDArray[np.int64]
    """(rows + 1,): row r uses `image_index[image_starts[r]:image_starts[r + 1]]`."""
    _row_of: dict[str, int] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.ids)

    def row_of(self, sample_id: str) -> int:
        """The row with this id."""
        if not self._row_of:
            self._row_of.update({name: row for row, name in enumerate(self.ids)})
        return self._row_of[sample_id]

    def where(self, row: int) -> str:
        """File and row for a message; JSON Lines also give the line."""
        return place(self.path, row, None if self.lines is None else int(self.lines[row]))

    def image_rows(self, row: int | np.integer[Any]) -> npt.NDArray[np.int32]:
        """The images of a row as indices into `images`, in order."""
        return self.image_index[self.image_starts[row] : self.image_starts[row + 1]]

    def first_rows(self, rows: npt.NDArray[np.int64]) -> list[tuple[int, int]]:
        """Every image of these rows once, as an index into `images`, with the first of the rows that shows it; in the
        order of the rows."""
        starts, counts = self.image_starts[rows], self.image_starts[rows + 1] - self.image_starts[rows]
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        shown, owner = self.image_index[np.repeat(starts, counts) + within], np.repeat(rows, counts)
        images, first = np.unique(shown, return_index=True)
        order = np.argsort(first)
        return list(zip(images[order].tolist(), owner[first[order]].tolist(), strict=True))

    def parse(self, rows: Numbers) -> Iterator[dict[str, Any]]:
        """The JSON objects of these rows, read from the file. Raises `InputError` where that has changed since its rows
        were found."""
        decoder = json.JSONDecoder()
        with open(self.path, "rb") as file:
            now = os.stat(file.fileno())
            if (now.st_size, now.st_mtime_ns) != self.state:
                raise InputError(
                    f"The data file {self.path} has changed while it was in use. Put the old file back to go on, or "
                    "start again with the new one in another folder."
                )
            for start, end in self.spans[np.asarray(rows, dtype=np.int64)].tolist():
                file.seek(start)
                yield decoder.decode(file.read(end - start).decode("utf-8"))

    def samples(self, rows: Numbers, corpus: str) -> list[Sample]:
        """These rows as training samples."""
        return list(self.iter_samples(rows, corpus))

    def iter_samples(self, rows: Numbers, corpus: str) -> Iterator[Sample]:
        """`samples`, one at a time."""
        for data, shared in self._shared(rows, corpus, "instruct"):
            yield Sample(**shared, turns=tuple(zip(as_list(data["context"]), as_list(data["label"]), strict=True)))

    def items(self, rows: Numbers, corpus: str) -> list[Item]:
        """These rows as evaluation items."""
        return [
            Item(**shared, prompt=as_list(data["context"])[0], answers=tuple(as_list(data["text_label"])))
            for data, shared in self._shared(rows, corpus, "vqa")
        ]

    def _shared(self, rows: Numbers, corpus: str, task: str) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """The JSON object of each row, and what samples and items have in common."""
        numbers = np.asarray(rows, dtype=np.int64)
        columns = (
            numbers,
            self.language_codes[numbers],
            self.source_codes[numbers],
            self.image_starts[numbers],
            self.image_starts[numbers + 1],
        )
        lists = zip(*(column.tolist() for column in columns), strict=True)  # single numbers of an array cost more
        for data, (row, language, source, start, stop) in zip(self.parse(numbers), lists, strict=True):
            images = self.image_index[start:stop].tolist() if stop > start else ()
            yield (
                data,
                {
                    "id": self.ids[row],
                    "corpus": corpus,
                    "language": self.languages[language],
                    "task": data.get("task", task),
                    "source": self.sources[source],
                    "images": tuple([self.images[index] for index in images]),
                },
            )


def place(path: Path, row: int, line: int | None) -> str:
    """How a row is named in every message."""
    return f"{path}, row {row}" if line is None else f"{path}, row {row} (line {line})"


def read_rows(path: Path, *, language: str | None, source: str) -> Rows:
    """Read and validate a JSON list or a JSON Lines file. Parsed once per process as long as the file stays the same.

    `language` is that of a file of one language (a row that says otherwise is an error); None takes each row's own,
    English by default. Rows without `source` get `source`; rows without `id` get their index, from 0.
    """
    try:
        state = path.stat()
    except OSError as error:
        raise InputError(
            f"The data file {path} cannot be read: {error.strerror}. Check the path and its spelling."
        ) from error
    return _read_rows(path, language, source, state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=256)
def _read_rows(path: Path, language: str | None, source: str, size: int, changed: int) -> Rows:
    builder = _Builder(path, language, source)
    for data, span, line in shown(((row, 1) for row in _objects(path)), title=f"reading {path}", unit="rows"):
        builder.add(data, span, line)
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16))  # type: ignore[arg-type]
    return builder.finish(digest.hexdigest(), (size, changed))


def _objects(path: Path) -> Iterator[tuple[Any, tuple[int, int], int | None]]:
    """Every row's value, its bytes in the file, and its line in JSON Lines. Holds one row at a time."""
    with open(path, "rb") as file:
        skip = len(codecs.BOM_UTF8) if file.read(3) == codecs.BOM_UTF8 else 0
        file.seek(skip)
        first = next((text for block in iter(partial(file.read, 4096), b"") if (text := block.lstrip())), b"")
        file.seek(skip)
        yield from _list_objects(file, path, skip) if first.startswith(b"[") else _line_objects(file, path, skip)


def _line_objects(file: BinaryIO, path: Path, start: int) -> Iterator[tuple[Any, tuple[int, int], int]]:
    decoder = json.JSONDecoder()
    for number, line in enumerate(file, start=1):
        try:
            row = line.rstrip(b"\n").decode("utf-8")
            if row and not row.isspace():
                yield decoder.decode(row), (start, start + len(line) - line.endswith(b"\n")), number
        except UnicodeDecodeError as error:
            raise _not_utf8(path) from error
        except json.JSONDecodeError as error:
            raise _broken(path, error, number, error.colno, row.strip()) from error
        start += len(line)


def _list_objects(file: BinaryIO, path: Path, start: int) -> Iterator[tuple[Any, tuple[int, int], None]]:
    text = _Text(TextIOWrapper(file, encoding="utf-8", newline=""), start)
    try:
        text.expect("[")
        if text.next() != "]":
            while True:
                yield (*text.value(), None)
                if text.next() == "]":
                    break
                text.expect(",")
        text.expect("]")
        if text.next():
            raise json.JSONDecodeError("Extra data after the list", text.ahead, text.at)
    except UnicodeDecodeError as error:
        raise _not_utf8(path) from error
    except json.JSONDecodeError as error:
        column = error.colno + (text.column if error.lineno == 1 else 0)
        raise _broken(path, error, text.line + error.lineno - 1, column, "") from error


class _Text:
    """JSON that is read some characters ahead, so that a file larger than the memory can be walked."""

    def __init__(self, file: TextIOWrapper, byte: int) -> None:
        self._file, self._decoder = file, json.JSONDecoder()
        self.ahead, self.at, self.byte = "", 0, byte
        self.line, self.column = 1, 0
        """Where `ahead` begins: line from 1, characters before it on that line."""

    def next(self) -> str:
        """The next character that is not blank; empty at the end of the file."""
        while True:
            end = _BLANK.match(self.ahead, self.at).end()  # type: ignore[union-attr]  # it also matches nothing
            self.byte += end - self.at  # blanks are ASCII
            self.at = end
            if end < len(self.ahead) or not self._read():
                return self.ahead[end : end + 1] if end < len(self.ahead) else ""

    def expect(self, character: str) -> None:
        """Go past `character`."""
        if self.next() != character:
            raise json.JSONDecodeError(f"Expecting '{character}' delimiter", self.ahead, self.at)
        self.at += 1
        self.byte += 1

    def value(self) -> tuple[Any, tuple[int, int]]:
        """The next value, and its bytes in the file."""
        self.next()
        while True:
            try:
                value, end = self._decoder.raw_decode(self.ahead, self.at)
                if end < len(self.ahead) or not self._read():
                    break
            except json.JSONDecodeError:  # perhaps for want of the characters that follow
                if not self._read():
                    raise
        start = self.byte
        self.byte += len(self.ahead[self.at : end].encode("utf-8"))
        self.at = end
        return value, (start, self.byte)

    def _read(self) -> bool:
        """Read on, and forget what lies behind; whether there was more."""
        behind, rest = self.ahead[: self.at], self.ahead[self.at :]
        more = self._file.read(max(_READ_AHEAD, len(rest)))
        if not more:
            return False
        lines = behind.count("\n")
        self.line += lines
        self.column = len(behind) - behind.rfind("\n") - 1 if lines else self.column + len(behind)
        self.ahead, self.at = rest + more, 0
        return True


def _not_utf8(path: Path) -> InputError:
    """The error for the first byte that is no UTF-8."""
    start = 0
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                return InputError(
                    f"{path}, line {number}: the file is not UTF-8 text (byte {start + error.start}). Save it as UTF-8."
                )
            start += len(line)
    return InputError(f"{path}: the file changed while it was read.")


def _broken(path: Path, error: json.JSONDecodeError, line: int, column: int, text: str) -> InputError:
    shown = f" The line reads: {text[:60]!r}." if text else ""
    return InputError(
        f"{path}, line {line}, column {column}: broken JSON ({error.msg}).{shown} A data file is a JSON list of "
        "objects, or one object a line."
    )


def _kind(value: Any) -> str:
    return {"NoneType": "null", "str": "text", "list": "a list", "dict": "an object"}.get(
        type(value).__name__, repr(value)
    )


class _Builder:
    """Validates the rows of one file and collects what `Rows` keeps."""

    def __init__(self, path: Path, language: str | None, source: str) -> None:
        self.path, self.language, self.source = path, language, source
        self.kind: Kind | None = None
        self.ids: list[str] = []
        self.seen: dict[str, int] = {}
        self.spans: list[tuple[int, int]] = []
        self.lines: list[int] = []
        self.languages: dict[str, int] = {}
        self.language_codes: list[int] = []
        self.sources: dict[str, int] = {}
        self.source_codes: list[int] = []
        self.images: dict[str, int] = {}
        self.image_index: list[int] = []
        self.image_starts = [0]

    def add(self, data: Any, span: tuple[int, int], line: int | None) -> None:
        row = len(self.ids)

        def fail(name: str, fault: str) -> InputError:
            return InputError(f"{place(self.path, row, line)}, field '{name}': {fault}")

        if not isinstance(data, dict):
            raise InputError(
                f"{place(self.path, row, line)}: a row must be an object with fields {', '.join(FIELDS)}, not "
                f"{_kind(data)}."
            )
        if unknown := data.keys() - _FIELDS:
            raise fail(min(unknown), f"unknown field. Known fields: {', '.join(FIELDS)}.")
        kind: Kind = "test" if "text_label" in data else "train"
        if self.kind is None:
            self.kind = kind
        elif kind != self.kind:
            raise fail(
                "text_label",
                f"this row is a {kind} row but the rows before it are {self.kind} rows. Keep them in separate files.",
            )
        check = check_test if kind == "test" else check_train
        images = check_images(data, fail, self.images)
        check(data, images, fail)

        sample_id = data.get("id", row)
        if type(sample_id) is int:
            sample_id = str(sample_id)
        if type(sample_id) is not str or not sample_id or not encodes(sample_id):
            raise fail("id", f"must be text or a whole number, not {sample_id!r}.")
        if sample_id in self.seen:
            raise fail(
                "id", f"'{sample_id}' is already the id of row {self.seen[sample_id]}. Every id stands once in a file."
            )
        sample_id = sys.intern(sample_id)  # language files share their ids
        self.seen[sample_id] = row
        for name in ("task", "source", "language"):
            if name in data and not (isinstance(data[name], str) and data[name]):
                raise fail(name, f"must be text, not {data[name]!r}.")
        code = data.get("language", self.language or "en")
        if code not in self.languages:
            try:
                known_language(code)
            except InputError as error:
                raise fail("language", str(error)) from error
            if self.language is not None and code != self.language:
                raise fail(
                    "language",
                    f"the row says '{code}' but this is the file of '{self.language}'. Move the row or mend the field.",
                )

        self.ids.append(sample_id)
        self.spans.append(span)
        if line is not None:
            self.lines.append(line)
        self.language_codes.append(self.languages.setdefault(code, len(self.languages)))
        self.source_codes.append(self.sources.setdefault(data.get("source", self.source), len(self.sources)))
        self.image_index.extend([self.images.setdefault(name, len(self.images)) for name in images])
        self.image_starts.append(len(self.image_index))

    def finish(self, digest: str, state: tuple[int, int]) -> Rows:
        if self.kind is None:
            raise InputError(f"{self.path} holds no rows. A data file is a JSON list of objects, or one object a line.")
        return Rows(
            path=self.path,
            kind=self.kind,
            digest=digest,
            state=state,
            ids=tuple(self.ids),
            spans=np.array(self.spans, dtype=np.int64),
            lines=np.array(self.lines, dtype=np.int32) if self.lines else None,
            languages=tuple(self.languages),
            language_codes=np.array(self.language_codes, dtype=np.int16),
            sources=tuple(self.sources),
            source_codes=np.array(self.source_codes, dtype=np.int32),
            images=tuple(self.images),
            image_index=np.array(self.image_index, dtype=np.int32),
            image_starts=np.array(self.image_starts, dtype=np.int64),
        )
