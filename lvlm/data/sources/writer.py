"""From a source to a corpus: a folder with corpus.yaml, one language file, images, and a ledger of what was refused.
Called by `python -m lvlm corpus`. Holds some rows at a time, whatever the size of the source.
"""

from __future__ import annotations

import json
import re
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any

import yaml

from lvlm.data.checks import check_images, check_train, encodes
from lvlm.data.corpus import CORPUS_FILE, REFUSED_FOLDER, CorpusEntry, SplitEntry
from lvlm.data.folders import new_folder
from lvlm.data.progress import shown
from lvlm.data.sources.forms import FORMS
from lvlm.data.sources.patterns import source_files
from lvlm.data.sources.pictures import ImageRoots, Placed
from lvlm.data.sources.record import Fields, Form, Record, Refused
from lvlm.errors import InputError, nearest
from lvlm.languages import language as known_language

LEDGER = "refused.jsonl"
ROWS_TOGETHER = 16
PATIENCE = 1000
"""So many refused rows without a single sound one are a mistake in the command."""
EXAMPLES = 3
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Source:
    """A data set as others distribute it, and the corpus that it is to become."""

    form: str
    files: tuple[str, ...]
    """Paths, folders and patterns."""
    language: str = "en"
    name: str | None = None
    """Of the corpus; None is that of its folder."""
    split: str = "train"
    task: str | None = None
    translatable: bool = True
    limit: int | None = None
    """Write at most so many rows."""
    images_root: tuple[Path, ...] = ()
    """Where image files are looked for, in this order; none: beside the first file."""
    copy_images: bool = False
    fields: Fields = field(default_factory=Fields)


@dataclass(slots=True)
class Report:
    """What became of the rows of a source. `mended` counts rows by what was changed or left out of them."""

    read: int = 0
    written: int = 0
    turns: int = 0
    images: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    mended: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)
    """The first row of every reason."""
    examples: list[Row] = field(default_factory=list)

    def add(self, row: Row, mended: Sequence[str], place: str) -> None:
        """Count a row that was written."""
        self.written += 1
        self.turns += len(row["context"])
        self.images += len(row["image_id"])
        for change in mended:
            self.first.setdefault(change, place)
            self.mended[change] += 1
        if len(self.examples) < EXAMPLES:
            self.examples.append(row)

    def lines(self) -> list[str]:
        """For the terminal."""
        head = (
            f"{self.read:,} rows read: {self.written:,} written ({self.turns:,} turns, {self.images:,} images), "
            f"{self.refused.total():,} refused"
        )
        told = [head]
        for title, counts in (("refused", self.refused), ("mended", self.mended)):
            told += [
                f"  {title} {count:,}: {reason}; first in {self.first[reason]}"
                for reason, count in counts.most_common()
            ]
        return told


def write_source(source: Source, folder: Path | str) -> Report:
    """Write the corpus into a new `folder`. Raises `InputError`, and leaves nothing behind, for a source that is broken
    or gives no row at all."""
    with new_folder(Path(folder)) as partial:
        named = replace(source, name=source.name or Path(folder).absolute().name)
        return _write(named, partial, last=None)


def preview_source(source: Source, rows: int) -> Report:
    """What `write_source` would make of the first `rows` rows; leaves nothing behind."""
    if rows < 1:
        raise InputError(f"--preview {rows}: give a number of rows from 1.")
    with TemporaryDirectory(prefix="lvlm-preview-") as scratch:
        return _write(replace(source, name=source.name or "preview"), Path(scratch), last=rows)


def _write(source: Source, folder: Path, *, last: int | None) -> Report:
    form, code = _checked(source)
    files = source_files(source.files, form)
    beside = [Path.cwd() if str(files[0]) == "-" else files[0].parent]
    roots = ImageRoots(source.images_root or beside, copy=source.copy_images)
    report, images = Report(), folder / "images"
    (folder / source.split).mkdir()
    rows = islice(enumerate(_rows(files, form, source.fields)), last)
    with (
        closing(_Names(folder / "names.sqlite")) as names,
        open(folder / source.split / f"{code}.jsonl", "w", encoding="utf-8", newline="\n") as out,
        open(folder / LEDGER, "w", encoding="utf-8", newline="\n") as ledger,
    ):
        for number, place, record, placed in shown(_placed(rows, roots), title=f"reading {source.form}", unit="rows"):
            report.read += 1
            try:
                row, mended = _row(record, placed, number, source, code, names)
            except Refused as refused:
                _refuse(refused, report, place, record, ledger)
                continue
            for picture in placed if isinstance(placed, list) else ():
                roots.put(picture, images)
            out.write(json.dumps(row, ensure_ascii=False) + "\n")
            report.add(row, mended, place)
            if report.written == source.limit:
                break
    names.path.unlink()
    if not report.written:
        raise _nothing(report)
    roots.finish(images)
    if not report.refused:
        (folder / LEDGER).unlink()
    _write_entry(folder, source, code, report)
    return report


def _checked(source: Source) -> tuple[Form, str]:
    """The form of a source and the code of its language."""
    if source.form not in FORMS:
        raise InputError(f"There is no form '{source.form}'. The forms are: {nearest(source.form, list(FORMS))}.")
    form, fields = FORMS[source.form], source.fields
    given = [name for name, value in asdict(fields).items() if value is not None]
    if unused := [f"--{name}" for name in given if name not in form.fields]:
        raise InputError(f"{', '.join(unused)}: the form '{source.form}' itself says where that is. Leave it out.")
    if fields.question is not None and (fields.answer is None or fields.prompt is not None):
        raise InputError("--question needs --answer beside it, and takes the place of --prompt.")
    if source.limit is not None and source.limit < 1:
        raise InputError(f"--limit {source.limit}: give a number of rows from 1.")
    if not re.fullmatch(r"\w[\w-]*", source.split) or source.split in ("images", REFUSED_FOLDER):
        raise InputError(f"--split '{source.split}' is not the plain name of a folder, such as train.")
    return form, known_language(source.language).code


def _rows(files: Sequence[Path], form: Form, fields: Fields) -> Iterator[tuple[str, Record | Refused]]:
    for file in files:
        for place, row in form.rows(file):
            try:
                yield place, form.record(row, fields)
            except Refused as refused:
                yield place, refused
            except InputError as error:
                raise InputError(f"{place}: {error}") from error


def _placed(
    rows: Iterable[tuple[int, tuple[str, Record | Refused]]], roots: ImageRoots
) -> Iterator[tuple[tuple[int, str, Record | Refused, list[Placed] | Refused], int]]:
    """Every row with its pictures, decoded by several threads, and how many rows that is."""

    def look(row: tuple[int, tuple[str, Record | Refused]]) -> list[Placed] | Refused:
        number, (_, record) = row
        if isinstance(record, Refused):
            return record
        try:
            return roots.place(record.pictures, number)
        except Refused as refused:
            return refused

    with ThreadPoolExecutor(max_workers=8) as pool:
        iterator = iter(rows)
        while some := list(islice(iterator, ROWS_TOGETHER)):
            for (number, (place, record)), placed in zip(some, pool.map(look, some), strict=True):
                yield (number, place, record, placed), 1
            del some, number, place, record, placed  # the next rows need their place


def _row(
    record: Record | Refused,
    placed: list[Placed] | Refused,
    number: int,
    source: Source,
    code: str,
    names: _Names,
) -> tuple[Row, tuple[str, ...]]:
    """The row of the corpus, and what was mended in it."""
    if isinstance(record, Refused):
        raise record
    if isinstance(placed, Refused):
        raise placed
    if any(not answer.strip() for _, answer in record.turns):
        raise Refused("an empty answer")
    row: Row = {
        "id": "",
        "context": [user for user, _ in record.turns],
        "label": [answer for _, answer in record.turns],
        "image_id": [picture.name for picture in placed],
        "language": code,
    }
    if source.task:
        row["task"] = source.task
    if record.source and encodes(record.source):
        row["source"] = record.source

    def broken(name: str, fault: str) -> InputError:
        raise Refused(f"a {name} that no corpus may hold", fault)

    check_train(row, check_images(row, broken, ()), broken)
    mended = list(record.mended)
    wanted = record.id if record.id and encodes(record.id) else f"{source.name}-{number:08d}"
    row["id"] = names.unique(wanted)
    if row["id"] != wanted:
        mended.append("an id that was taken was given a number")
    return row, tuple(mended)


class _Names:
    """The ids given so far, on disk, as a source may have more than fit into memory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._table = sqlite3.connect(path, isolation_level=None)
        self._table.execute("PRAGMA journal_mode = OFF")
        self._table.execute("PRAGMA synchronous = OFF")
        self._table.execute("CREATE TABLE names (name TEXT PRIMARY KEY, used INTEGER) WITHOUT ROWID")
        self._table.execute("BEGIN")

    def unique(self, name: str) -> str:
        """`name`, or where it is taken `name-2`, `name-3` and so on."""
        if self._take(name):
            return name
        (number,) = self._table.execute("SELECT used FROM names WHERE name = ?", (name,)).fetchone()
        while not self._take(f"{name}-{(number := number + 1)}"):
            pass
        self._table.execute("UPDATE names SET used = ? WHERE name = ?", (number, name))
        return f"{name}-{number}"

    def _take(self, name: str) -> bool:
        return self._table.execute("INSERT OR IGNORE INTO names VALUES (?, 1)", (name,)).rowcount == 1

    def close(self) -> None:
        self._table.close()


def _refuse(refused: Refused, report: Report, place: str, record: Record | Refused, ledger: IO[str]) -> None:
    report.refused[refused.reason] += 1
    report.first.setdefault(refused.reason, place + (f" ({refused.detail})" if refused.detail else ""))
    name = record.id if isinstance(record, Record) else None
    entry = {"place": place, "id": name, "reason": refused.reason, "detail": refused.detail}
    ledger.write(json.dumps(entry) + "\n")
    if not report.written and report.read == PATIENCE:
        raise _nothing(report)


def _nothing(report: Report) -> InputError:
    """The error for a source of which no row was sound so far."""
    if not report.read:
        return InputError("The source holds no rows.")
    reasons = "; ".join(
        f"{count} for {reason}, first in {report.first[reason]}" for reason, count in report.refused.most_common(3)
    )
    return InputError(f"None of the first {report.read} rows can become a sample: {reasons}. Is it the right form?")


def _write_entry(folder: Path, source: Source, code: str, report: Report) -> None:
    entry = CorpusEntry(
        name=source.name or "",
        languages=(code,),
        translatable=source.translatable,
        splits={source.split: SplitEntry(permission="train")},
        note=f"Made of a source in the form {source.form}: {report.read} rows read, {report.refused.total()} refused, "
        f"{report.mended.total()} mended.",
    )
    content = entry.model_dump(mode="json", exclude_none=True)
    (folder / CORPUS_FILE).write_text(
        yaml.safe_dump(content, allow_unicode=True, sort_keys=False), encoding="utf-8", newline="\n"
    )
