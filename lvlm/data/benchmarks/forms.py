"""The files that benchmarks come in (JSON, JSON Lines, parquet, tar shards), and where their languages and images are.
Each fault names file, row and field. Called by the readers of this package."""

from __future__ import annotations

import ast
import json
import re
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from lvlm.data.sources.shards import shard_rows
from lvlm.errors import InputError
from lvlm.languages import language, table

NAMES = {
    "bengali": "bn", "farsi": "fa", "filipino": "tl", "maori": "mi", "portugese": "pt", "quechua": "qu",
    "ukranian": "uk",
}  # fmt: skip
"""Names of languages in these files that are not those of the language table."""
SUFFIXES = ("", ".jpg", ".png", ".jpeg", ".JPEG", ".JPG")
FORMS: tuple[Literal["NFC", "NFKD", "NFD"], ...] = ("NFC", "NFKD", "NFD")
"""Unicode forms of file names; those of MaRVL are NFKD."""


@dataclass(frozen=True, slots=True)
class Record:
    """One row of a file. `where` names file and row in a message."""

    where: str
    data: Mapping[str, Any]

    def fail(self, field: str, fault: str) -> InputError:
        """The error for a field of this row."""
        return InputError(f"{self.where}, field '{field}': {fault}")

    def text(self, field: str) -> str:
        """A field that holds text or a number, as text."""
        value = self.value(field)
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise self.fail(field, f"must be text, not {str(value)[:60]!r}.")
        return str(value)

    def texts(self, field: str) -> tuple[str, ...]:
        """A field that holds a text or a list of texts; None among them is left out."""
        value = self.value(field)
        values = list(value) if isinstance(value, Iterable) and not isinstance(value, str | Mapping) else [value]
        if not all(isinstance(one, str | int | float | None) for one in values):
            raise self.fail(field, f"must be text or a list of texts, not {str(value)[:60]!r}.")
        return tuple(str(one) for one in values if one is not None)

    def objects(self, field: str) -> Iterator[Record]:
        """The objects that a field lists, also where the list is written as Python text."""
        value: Any = self.value(field)
        if isinstance(value, str):
            try:
                value = ast.literal_eval(value)
            except (ValueError, SyntaxError) as error:
                raise self.fail(field, f"is no list that can be read: {value[:60]!r}.") from error
        if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
            raise self.fail(field, f"must be a list of objects, not {str(value)[:60]!r}.")
        for number, entry in enumerate(value):
            yield Record(f"{self.where}, {field}[{number}]", entry)

    def value(self, field: str) -> Any:
        """A field that must be there."""
        if field not in self.data:
            raise self.fail(field, f"the field is missing. The row has: {', '.join(map(str, self.data)) or 'none'}.")
        return self.data[field]


@cache
def _by_name() -> dict[str, str]:
    """English name in small letters -> code."""
    return {entry.name.lower(): entry.code for entry in table().values()} | NAMES


def json_records(path: Path) -> Iterator[Record]:
    """The objects of a JSON file that is a list, an object of objects (its keys become the field `key`), or JSON
    Lines."""
    content = text_of(path)
    if path.suffix == ".jsonl" or re.match(r"\s*\{.*\}\s*\n\s*\{", content):
        for number, line in enumerate(content.split("\n"), start=1):
            if line.strip():
                yield _record(_parsed(path, line, number), f"{path}, line {number}")
        return
    value = _parsed(path, content, 1)
    if isinstance(value, dict):
        value = [entry | {"key": key} if isinstance(entry, dict) else entry for key, entry in value.items()]
    if not isinstance(value, list):
        raise InputError(f"{path} must be a list of objects or an object of objects.")
    for row, entry in enumerate(value):
        yield _record(entry, f"{path}, row {row}")


def json_object(path: Path) -> Record:
    """A JSON file that is one object."""
    return _record(_parsed(path, text_of(path), 1), str(path))


def parquet_records(path: Path) -> Iterator[Record]:
    """The rows of a parquet file, a batch at a time."""
    import pyarrow
    import pyarrow.parquet

    try:
        row = 0
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches(batch_size=64):
            for data in batch.to_pylist():
                yield Record(f"{path}, row {row}", data)
                row += 1
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise InputError(f"{path} is no parquet file that can be read ({' '.join(str(error).split())}).") from error


def shard_records(path: Path, texts: Collection[str]) -> Iterator[Record]:
    """The samples of a WebDataset shard. The fields of one are its files, by what follows the first dot of their names:
    pictures as bytes, those named in `texts` as text; other files are left out."""
    for where, sample in shard_rows(path, texts):
        row: dict[str, Any] = {**sample.pictures}
        for name, content in sample.texts.items():
            try:
                row[name] = content.decode("utf-8")
            except UnicodeDecodeError as error:
                raise Record(where, row).fail(name, f"is not UTF-8 text (byte {error.start}).") from error
        yield Record(where, row)


def _record(value: Any, where: str) -> Record:
    if not isinstance(value, dict):
        raise InputError(f"{where}: a row must be an object, not {str(value)[:60]!r}.")
    return Record(where, value)


def text_of(path: Path) -> str:
    """A file of UTF-8 text."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text (byte {error.start}). Save it as UTF-8.") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from error


def _parsed(path: Path, text: str, line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{path}, line {line + error.lineno - 1}: broken JSON ({error.msg}).") from error


def found(folder: Path, patterns: Sequence[str]) -> list[tuple[Path, str]]:
    """(file, what stands for `{language}` in its name) for the files of the first pattern that any file fits, by name.

    A pattern is a path under `folder` with `{language}` and `*`. None at all is an empty list.
    """
    for pattern in patterns:
        said = re.escape(pattern).replace(r"\*", "[^/]*").split(r"\{language\}")
        text = said[0] if len(said) == 1 else said[0] + "(?P<language>[^/]+?)" + "(?P=language)".join(said[1:])
        expression = re.compile(text)
        matches = []
        for path in sorted(folder.glob(pattern.replace("{language}", "*"))):
            if match := expression.fullmatch(path.relative_to(folder).as_posix()):
                matches.append((path, match.groupdict().get("language", "")))
        if matches:
            return matches
    return []


class Source:
    """The folder of a benchmark's files with its image folder, and which languages are read."""

    def __init__(self, folder: Path, images: Path, languages: Sequence[str] | None = None) -> None:
        self.folder = folder
        self.images = images
        self.languages = languages

    def files(self, *patterns: str) -> Iterator[tuple[Path, str, str]]:
        """(file, the language as its name says it, its code) for the files that `found` finds, English where the
        pattern has no language; those of languages that are left out are not among them."""
        for path, said in found(self.folder, patterns):
            if code := self.code(said or "en", str(path)):
                yield path, said, code

    def code(self, said: str, where: str) -> str | None:
        """The code of a language that a file names by code, in capitals or not, or by its English name; None for one
        that is left out."""
        name = said.strip().replace("_", " ").lower()
        try:
            code = language(_by_name().get(name, said.strip() if "-" in said else name)).code
        except InputError as error:
            if self.languages is not None:
                return None
            raise InputError(f"{where}: {error} Or say which languages to read, with --languages.") from error
        return code if self.languages is None or code in self.languages else None

    def image(self, where: str, *names: str) -> str:
        """The first of these names that is a file under the image folder or its folder `images`, with a suffix or
        without, in any Unicode form."""
        for name in names:
            for folder in ("", "images/"):
                for suffix in SUFFIXES:
                    for form in FORMS:
                        candidate = unicodedata.normalize(form, folder + name + suffix)
                        if (self.images / candidate).is_file():
                            return candidate
        raise InputError(
            f"{where}: the image {names[0]} is not under {self.images}. Put it there, or say where the images lie with "
            "--images FOLDER."
        )


def embedded(record: Record, value: Any, field: str) -> bytes:
    """The image file in a field of a parquet table or a shard: bytes, or the `{bytes, path}` of Hugging Face
    datasets."""
    content = value.get("bytes") if isinstance(value, Mapping) else value
    if not isinstance(content, bytes) or not content:
        raise record.fail(field, "holds no image. It must hold the bytes of an image file.")
    return content
