"""Rows of Centurio's trainer files -> `Sample` and `Item`, with every check a row needs. `lvlm.data.corpus` calls
it, file by file. A file is read once, validated as a whole, and then held as byte ranges: a row's text is parsed
again only where it is used.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from lvlm.data.checks import FIELDS, as_list, check_images, check_test, check_train, encodes
from lvlm.data.memory import SETTLED_SECONDS, Memory, code_digest, memory_name
from lvlm.data.objects import objects
from lvlm.data.progress import shown
from lvlm.errors import InputError
from lvlm.languages import language as known_language
from lvlm.languages import table

Kind = Literal["train", "test"]
Numbers = Sequence[int] | npt.NDArray[np.int64]
State = tuple[int, int, int]
"""Size, time of change (ns) and inode of a file."""
LARGE_BYTES = 1 << 18
"""Size of a data file from which on its rows are remembered; smaller ones are read in a moment."""
_FIELDS = frozenset(FIELDS)
_ARRAYS = ("spans", "language_codes", "source_codes", "image_index", "image_starts")
_PARSED_TOGETHER = 256
Conversation = tuple[tuple[tuple[str, str], ...], int]
"""(user, assistant) pairs, and how many images they show."""


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
        decoder, spans = json.JSONDecoder(), self.spans[np.asarray(rows, dtype=np.int64)].tolist()
        with open(self.path, "rb") as file:
            now = os.stat(file.fileno())
            if (now.st_size, now.st_mtime_ns) != self.state:
                raise InputError(
                    f"The data file {self.path} has changed while it was in use. Put the old file back to go on, or "
                    "start again with the new one in another folder."
                )
            for block in range(0, len(spans), _PARSED_TOGETHER):  # as one list, in half the time
                texts = []
                for start, end in spans[block : block + _PARSED_TOGETHER]:
                    file.seek(start)
                    texts.append(file.read(end - start))
                yield from decoder.decode(f"[{b','.join(texts).decode('utf-8')}]")

    def conversations(self, rows: Numbers) -> list[Conversation]:
        """These rows as what a tokenizer counts."""
        numbers = np.asarray(rows, dtype=np.int64)
        images = (self.image_starts[numbers + 1] - self.image_starts[numbers]).tolist()
        return [
            (tuple(zip(as_list(data["context"]), as_list(data["label"]), strict=True)), count)
            for data, count in zip(self.parse(numbers), images, strict=True)
        ]

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


def read_rows(path: Path, *, language: str | None, source: str, home: Path | None = None) -> Rows:
    """Read and validate a JSON list or a JSON Lines file. Parsed once per process as long as the file stays the same,
    and a large one once for all that have the same work folder `home`.

    `language` is that of a file of one language (a row that says otherwise is an error); None takes each row's own,
    English by default. Rows without `source` get `source`; rows without `id` get their index, from 0.
    """
    try:
        state = _state(path)
    except OSError as error:
        raise InputError(
            f"The data file {path} cannot be read: {error.strerror}. Check the path and its spelling."
        ) from error
    return _read_rows(path, language, source, home, state)


@lru_cache(maxsize=256)
def _read_rows(path: Path, language: str | None, source: str, home: Path | None, state: State) -> Rows:
    if home is None or state[0] < LARGE_BYTES:
        return _validate(path, language, source, state)
    memory = Memory.under(home)
    name = memory_name("rows", _rules(), os.path.abspath(path), state, language, source)
    rows = memory.recall(name, lambda arrays: _from_arrays(path, arrays))
    if rows is None:
        rows = _validate(path, language, source, state)
        if _state(path) == state and time.time() - state[1] / 1e9 > SETTLED_SECONDS:
            memory.keep(name, _as_arrays(rows))
    return rows


def _validate(path: Path, language: str | None, source: str, state: State) -> Rows:
    builder = _Builder(path, language, source)
    for _ in shown(builder.add_all(objects(path)), title=f"reading {path}", unit="rows"):
        pass
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16))  # type: ignore[arg-type]
    return builder.finish(digest.hexdigest(), state[:2])


def _state(path: Path) -> State:
    found = path.stat()
    return found.st_size, found.st_mtime_ns, found.st_ino


@cache
def _rules() -> str:
    """Identifies the code that validates rows: what other code has found sound is read again."""
    return code_digest("lvlm.data.readers", "lvlm.data.objects", "lvlm.data.checks", "lvlm.languages") + repr(table())


def _as_arrays(rows: Rows) -> dict[str, npt.NDArray[Any]]:
    texts = {"kind": rows.kind, "digest": rows.digest, "state": rows.state, "has_lines": rows.lines is not None}
    texts |= {name: getattr(rows, name) for name in ("ids", "languages", "sources", "images")}
    arrays = {name: getattr(rows, name) for name in _ARRAYS}
    if rows.lines is not None:
        arrays["lines"] = rows.lines
    return arrays | {"texts": np.frombuffer(json.dumps(texts).encode(), dtype=np.uint8)}


def _from_arrays(path: Path, arrays: Mapping[str, npt.NDArray[Any]]) -> Rows:
    texts = json.loads(arrays["texts"].tobytes())
    same: dict[str, Any] = {name: arrays[name] for name in _ARRAYS}
    return Rows(
        path=path,
        kind=texts["kind"],
        digest=texts["digest"],
        state=tuple(texts["state"]),
        ids=tuple(map(sys.intern, texts["ids"])),
        lines=arrays["lines"] if texts["has_lines"] else None,
        languages=tuple(texts["languages"]),
        sources=tuple(texts["sources"]),
        images=tuple(texts["images"]),
        **same,
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
        if not _FIELDS.issuperset(data):
            raise fail(min(data.keys() - _FIELDS), f"unknown field. Known fields: {', '.join(FIELDS)}.")
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
        if images:
            self.image_index.extend([self.images.setdefault(name, len(self.images)) for name in images])
        self.image_starts.append(len(self.image_index))

    def add_all(self, rows: Iterable[tuple[Any, tuple[int, int], int | None]]) -> Iterator[tuple[None, int]]:
        """`add` each row; yields now and then how many more there are."""
        told = 0
        for data, span, line in rows:
            self.add(data, span, line)
            if len(self.ids) - told == _PARSED_TOGETHER:
                yield None, len(self.ids) - told
                told = len(self.ids)
        yield None, len(self.ids) - told

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
