"""Rows of Centurio's trainer files -> `Sample` and `Item`, with every check a row needs. `lvlm.data.corpus` calls
it, file by file. A file is read once, validated as a whole, and then held as byte ranges: a row's text is parsed
again only where it is used.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from lvlm.data.checks import FIELDS, as_list, check_images, check_test, check_train, encodes
from lvlm.errors import InputError
from lvlm.languages import language as known_language

Kind = Literal["train", "test"]
Numbers = Sequence[int] | npt.NDArray[np.int64]
_FIELDS = frozenset(FIELDS)
_BLANK = re.compile(r"[ \t\r\n]*")


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

    def parse(self, rows: Numbers) -> Iterator[dict[str, Any]]:
        """The JSON objects of these rows, read from the file."""
        with open(self.path, "rb") as file:
            for row in rows:
                start, end = self.spans[row]
                file.seek(start)
                yield json.loads(file.read(end - start))

    def samples(self, rows: Numbers, corpus: str) -> list[Sample]:
        """These rows as training samples."""
        return list(self.iter_samples(rows, corpus))

    def iter_samples(self, rows: Numbers, corpus: str) -> Iterator[Sample]:
        """`samples`, one at a time."""
        for row, data in zip(rows, self.parse(rows), strict=True):
            turns = tuple(zip(as_list(data["context"]), as_list(data["label"]), strict=True))
            yield Sample(**self._shared(row, data, corpus, "instruct"), turns=turns)

    def items(self, rows: Numbers, corpus: str) -> list[Item]:
        """These rows as evaluation items."""
        return [
            Item(
                **self._shared(row, data, corpus, "vqa"),
                prompt=as_list(data["context"])[0],
                answers=tuple(as_list(data["text_label"])),
            )
            for row, data in zip(rows, self.parse(rows), strict=True)
        ]

    def _shared(self, row: int | np.integer[Any], data: Mapping[str, Any], corpus: str, task: str) -> dict[str, Any]:
        return {
            "id": self.ids[row],
            "corpus": corpus,
            "language": self.languages[self.language_codes[row]],
            "task": data.get("task", task),
            "source": self.sources[self.source_codes[row]],
            "images": tuple(self.images[index] for index in self.image_rows(row)),
        }


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
    content = path.read_bytes()
    builder = _Builder(path, language, source)
    for data, span, line in _objects(path, content):
        builder.add(data, span, line)
    return builder.finish(hashlib.blake2b(content, digest_size=16).hexdigest())


def _objects(path: Path, content: bytes) -> Iterator[tuple[Any, tuple[int, int], int | None]]:
    """Every row's value, its bytes in the file, and its line in JSON Lines."""
    skip = 3 if content.startswith(b"\xef\xbb\xbf") else 0
    try:
        text = content[skip:].decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{path}, line {line}: the file is not UTF-8 text (byte {error.start}). Save it as UTF-8."
        ) from error
    if text.lstrip().startswith("["):
        yield from _list_objects(path, text, skip)
        return
    start, decoder, ascii_only = skip, json.JSONDecoder(), text.isascii()
    for number, row in enumerate(text.split("\n"), start=1):
        size = len(row) if ascii_only else len(row.encode("utf-8"))
        if row and not row.isspace():
            try:
                yield decoder.decode(row), (start, start + size), number
            except json.JSONDecodeError as error:
                raise _broken(path, error, number, error.colno, row.strip()) from error
        start += size + 1


def _list_objects(path: Path, text: str, skip: int) -> Iterator[tuple[Any, tuple[int, int], None]]:
    decoder = json.JSONDecoder()

    def blank(at: int) -> int:
        return _BLANK.match(text, at).end()  # type: ignore[union-attr]  # the pattern also matches nothing

    at = blank(text.index("[") + 1)
    done, done_bytes = 0, skip  # characters and bytes up to the end of the last row
    try:
        while text[at : at + 1] != "]" or done:  # a bracket ends the list at once or after a row, never after a comma
            value, end = decoder.raw_decode(text, at)
            start_bytes = done_bytes + len(text[done:at].encode("utf-8"))
            done, done_bytes = end, start_bytes + len(text[at:end].encode("utf-8"))
            yield value, (start_bytes, done_bytes), None
            at = blank(end)
            if text[at : at + 1] == "]":
                break
            if text[at : at + 1] != ",":
                raise json.JSONDecodeError("Expecting ',' delimiter", text, at)
            at = blank(at + 1)
        if (at := blank(at + 1)) != len(text):
            raise json.JSONDecodeError("Extra data after the list", text, at)
    except json.JSONDecodeError as error:
        raise _broken(path, error, error.lineno, error.colno, "") from error


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

    def finish(self, digest: str) -> Rows:
        if self.kind is None:
            raise InputError(f"{self.path} holds no rows. A data file is a JSON list of objects, or one object a line.")
        return Rows(
            path=self.path,
            kind=self.kind,
            digest=digest,
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
