"""The values in a JSON list or a JSON Lines file, one at a time, each with the bytes where it lies. `lvlm.data.readers`
walks them."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from functools import partial
from io import TextIOWrapper
from pathlib import Path
from typing import Any, BinaryIO

from lvlm.errors import InputError

_BLANK = re.compile(r"[ \t\r\n]*")
_READ_AHEAD = 1 << 20  # characters


def objects(path: Path) -> Iterator[tuple[Any, tuple[int, int], int | None]]:
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
