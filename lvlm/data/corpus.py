"""A corpus: a folder of language files that share ids, with its images, splits and permissions; or one bare
Centurio file. Plans, evaluation and the stations after them open corpora here; `readers` validates the rows,
`images` the pictures.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from lvlm.config import fingerprint
from lvlm.data.checks import IMAGE_PLACEHOLDER
from lvlm.data.images import ImageFolder
from lvlm.data.readers import Item, Rows, Sample, read_rows
from lvlm.errors import InputError, nearest
from lvlm.languages import find, in_table_order
from lvlm.languages import language as known_language
from lvlm.settings import Codes

__all__ = ["CORPUS_FILE", "IMAGE_PLACEHOLDER", "Corpus", "Item", "Permission", "Sample", "open_corpus"]

CORPUS_FILE = "corpus.yaml"
REFUSED_FOLDER = "refused"
"""Beside the splits: per split and language, which ids its file leaves out, as their translation was refused."""
BUILT_IN = ("shapes", "reading", "plots", "pages", "emoji", "sentences", "origins", "paint")

Permission = Literal["train", "tune", "report"]
"""What a split may be used for: learning, choosing settings while training, or reported scores."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SplitEntry(_Strict):
    """One split in corpus.yaml. `languages` names those that have a file in it, where that is not all of the
    corpus's."""

    permission: Permission
    languages: Codes | None = None


class CorpusEntry(_Strict):
    """The keys of corpus.yaml. Languages stand there and in the names of files under any of their codes; a row that
    names its language writes it as its file does."""

    name: str
    languages: Codes
    translatable: bool
    splits: dict[str, SplitEntry]
    images: str = "images"
    attributes: str | None = None
    seed: int | None = None
    note: str = ""


class Corpus:
    """Samples of one origin in one or more languages. Language files are read when they are first asked for, and
    once."""

    def __init__(
        self, folder: Path, entry: CorpusEntry, images: Path, *, file: Path | None = None, home: Path | None = None
    ) -> None:
        self.folder = folder
        self.name = entry.name
        self.languages = in_table_order(entry.languages)
        self.translatable = entry.translatable
        self.splits: dict[str, Permission] = {name: split.permission for name, split in entry.splits.items()}
        self.images = ImageFolder(images)
        self._file, self._home = file, home
        self._entry = entry
        self._rows: dict[tuple[str, str], Rows] = {}
        self._items: dict[tuple[str, str], list[Item]] = {}
        self._attributes: dict[str, dict[str, str]] | None = None
        self._refused: dict[tuple[str, str], frozenset[str]] = {}

    def __repr__(self) -> str:
        about = f"{len(self.languages)} languages, translatable={self.translatable}, splits={self.splits}"
        return f"Corpus({self.name!r}, {about})"

    @property
    def closed(self) -> bool:
        """Whether all that can be said there is made of known words: a built-in world wrote it, or it names its
        attributes."""
        return self._entry.seed is not None or self._entry.attributes is not None

    def languages_of(self, split: str) -> tuple[str, ...]:
        """The languages that have a file in this split."""
        self._known_split(split)
        return in_table_order(self._entry.splits[split].languages or self.languages)

    def require(self, split: str, permission: Permission) -> None:
        """Raise unless the split may be used for this."""
        self._known_split(split)
        if self.splits[split] != permission:
            fitting = [name for name, given in self.splits.items() if given == permission]
            raise InputError(
                f"Corpus '{self.name}' ({self.folder}), field 'splits': the split '{split}' has permission "
                f"'{self.splits[split]}' and "
                f"cannot be used for '{permission}'. Splits with permission '{permission}': "
                f"{', '.join(fitting) or 'none'}."
            )

    def image_path(self, relative: str) -> Path:
        """Where an image of this corpus lies."""
        return self.images.path(relative)

    def samples(self, split: str, language: str) -> list[Sample]:
        """All training samples of a language, parsed anew at each call; a plan reads single ones through `rows`."""
        return self.train_rows(split, language).samples(self.row_numbers(split, language), self.name)

    def items(self, split: str, language: str) -> list[Item]:
        """All evaluation items of a language; kept in memory."""
        if (split, language) not in self._items:
            rows = self._of_kind(split, language, "test")
            self._items[split, language] = rows.items(self.row_numbers(split, language), self.name)
        return self._items[split, language]

    def ids(self, split: str, language: str | None = None) -> tuple[str, ...]:
        """The ids of a language. None: those of all languages, which a translatable corpus has once and another in a
        row."""
        if language is None and self.translatable:
            likely = (self._reference(split), *self.languages_of(split))
            language = next((code for code in likely if not self.refused(split, code)), None)
            if language is None:
                ids = dict.fromkeys(name for code in self.languages_of(split) for name in self.rows(split, code).ids)
                return tuple(ids)
        if language is None:
            return tuple(name for code in self.languages_of(split) for name in self.ids(split, code))
        rows = self.rows(split, language)
        return (
            rows.ids if len(rows.languages) == 1 else tuple(rows.ids[row] for row in self.row_numbers(split, language))
        )

    def rows(self, split: str, language: str) -> Rows:
        """The validated file that holds a language; ids are compared with those of the other languages where they are
        shared."""
        if language not in self.languages_of(split):
            raise InputError(
                f"Corpus '{self.name}' ({self.folder}), split '{split}' has no language '{language}'. "
                f"It has: {', '.join(self.languages_of(split))}."
            )
        if (split, language) not in self._rows:
            if self._file:
                rows = read_rows(self._file, language=None, source=self.name, home=self._home)
            else:
                file = self._language_file(split, language)
                rows = read_rows(file, language=file.stem, source=self.name, home=self._home)
            rows = _in_own_codes(rows)
            if self.translatable and language != (reference := self._reference(split)):
                _same_ids(
                    self.rows(split, reference), rows, self.refused(split, reference), self.refused(split, language)
                )
            self._rows[split, language] = rows
        return self._rows[split, language]

    def refused(self, split: str, language: str) -> frozenset[str]:
        """The ids of a translatable corpus whose translation into this language was refused, so that its file lacks
        them."""
        if (split, language) not in self._refused:
            path = self.folder / REFUSED_FOLDER / split / f"{language}.jsonl"
            ids = frozenset[str]()
            if self.translatable and path.exists():
                try:
                    with open(path, encoding="utf-8") as file:
                        ids = frozenset(str(json.loads(line)["id"]) for line in file)
                except (ValueError, KeyError, TypeError) as error:
                    raise InputError(
                        f"{path} must have one JSON object a line with the field 'id', as `python -m lvlm translate` "
                        "writes it. Put it back, or translate this language anew."
                    ) from error
            self._refused[split, language] = ids
        return self._refused[split, language]

    def attributes(self, language: str) -> dict[str, str]:
        """Surface form -> attribute id of a language (empty where the corpus has none)."""
        if self._attributes is None:
            self._attributes = self._load_attributes()
        return self._attributes.get(language, {})

    def check(
        self,
        split: str,
        languages: Sequence[str] | None = None,
        *,
        ids: Collection[str] | None = None,
        images: bool = False,
        home: Path | None = None,
    ) -> None:
        """Raise `InputError` with file, row and field for anything that would fail later.

        Reads the files of `languages` (None: all), looks for the images of all rows (or of `ids`), and with
        `images` decodes each once, remembering under `home` which were sound.
        """
        for language in self.languages_of(split) if languages is None else languages:
            rows = self.rows(split, language)
            chosen = self.row_numbers(split, language)
            if ids is not None:
                chosen = np.array([row for row in chosen if rows.ids[row] in ids], dtype=np.int64)
            self.check_images(rows, chosen, decode=images, home=home)

    def check_images(
        self, rows: Rows, chosen: npt.NDArray[np.int64], *, decode: bool, home: Path | None = None
    ) -> None:
        """The image part of `check`, for these rows of a file."""
        first_row = {rows.images[index]: row for index, row in rows.first_rows(chosen)}

        def blame(name: str) -> str:
            return rows.where(first_row[name])

        self.images.check_present(first_row, blame)
        if decode:
            self.images.check_decodes(list(first_row), blame, home)

    def digest(self, split: str, languages: Sequence[str]) -> str:
        """Identifies the content of the files read for these languages (not the pictures)."""
        return fingerprint([[code, self.rows(split, code).digest] for code in in_table_order(languages)])

    def stamp(self) -> str:
        """Tells one making of the corpus from another without reading it: by corpus.yaml, its files and their sizes."""
        if self._file:
            return fingerprint([self._file.name, self._file.stat().st_size])
        files = [self._language_file(split, code) for split in self.splits for code in self.languages_of(split)]
        entry = (self.folder / CORPUS_FILE).read_text(encoding="utf-8")
        return fingerprint([entry, *([path.name, path.stat().st_size] for path in files)])

    def train_rows(self, split: str, language: str) -> Rows:
        """`rows` of a split that holds training conversations."""
        return self._of_kind(split, language, "train")

    def row_numbers(self, split: str, language: str) -> npt.NDArray[np.int64]:
        """Which rows of its file are in this language: all, but in a bare file of several languages."""
        rows = self.rows(split, language)
        if len(rows.languages) == 1:
            return np.arange(len(rows))
        return np.flatnonzero(rows.language_codes == rows.languages.index(language))

    def _of_kind(self, split: str, language: str, kind: Literal["train", "test"]) -> Rows:
        rows = self.rows(split, language)
        if rows.kind != kind:
            wanted = "'label' holds the answers" if kind == "train" else "'text_label' holds the gold answers"
            raise InputError(
                f"{rows.where(0)}: the split '{split}' of corpus '{self.name}' holds {rows.kind} rows; here {wanted}."
            )
        return rows

    def _known_split(self, split: str) -> None:
        if split not in self.splits:
            raise InputError(
                f"Corpus '{self.name}' ({self.folder}) has no split '{split}'. It has: "
                f"{nearest(split, list(self.splits))}."
            )

    def _reference(self, split: str) -> str:
        languages = self.languages_of(split)
        return next((code for code in languages if (split, code) in self._rows), languages[0])

    def _language_file(self, split: str, language: str) -> Path:
        spelt = {
            known_language(code).code: code for code in self._entry.splits[split].languages or self._entry.languages
        }
        folder = self.folder / split
        found = [path for suffix in ("jsonl", "json") if (path := folder / f"{spelt[language]}.{suffix}").exists()]
        if not found:
            files = [path for path in sorted(folder.glob("*.json*")) if path.suffix in (".jsonl", ".json")]
            found = [path for path in files if (one := find(path.stem)) and one.language.code == language]
        if len(found) == 1:
            return found[0]
        if found:
            raise InputError(f"Both {found[0]} and {found[1]} exist. Keep one: a language has one file per split.")
        raise InputError(
            f"{self.folder / split / language}.jsonl does not exist, but {self.folder / CORPUS_FILE} lists "
            f"'{language}' in field 'languages'. "
            f"Add the file, or list the languages of this split under splits.{split}.languages."
        )

    def _load_attributes(self) -> dict[str, dict[str, str]]:
        if self._entry.attributes is None:
            return {}
        path = self.folder / self._entry.attributes
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise InputError(
                f"{path} does not exist, but {self.folder / CORPUS_FILE} names it in field 'attributes'."
            ) from error
        except UnicodeDecodeError as error:
            raise InputError(f"{path} is not UTF-8 text (byte {error.start}). Save it as UTF-8.") from error
        except json.JSONDecodeError as error:
            raise InputError(
                f"{path}, line {error.lineno}, column {error.colno}: broken JSON ({error.msg})."
            ) from error
        if not isinstance(data, dict) or not all(isinstance(entry, dict) for entry in data.values()):
            raise InputError(
                f"{path} must map a language to its surface forms, as in {{'en': {{'red': 'colour:red'}}}}."
            )
        result: dict[str, dict[str, str]] = {}
        for code, forms in data.items():
            result.setdefault(known_language(code).code, {}).update(forms)
        return result


def _in_own_codes(rows: Rows) -> Rows:
    """Rows whose languages stand under the table's codes, whatever the file calls them."""
    codes = [known_language(code).code for code in rows.languages]
    own = tuple(dict.fromkeys(codes))
    if own == rows.languages:
        return rows
    numbers = np.array([own.index(code) for code in codes], dtype=rows.language_codes.dtype)
    return replace(rows, languages=own, language_codes=numbers[rows.language_codes])


def _same_ids(reference: Rows, rows: Rows, refused_there: frozenset[str], refused: frozenset[str]) -> None:
    """Raise unless both files hold the same ids, but for those whose translation was refused there or here."""
    if reference.ids == rows.ids:
        return
    expected = set(reference.ids) | refused_there
    for row, name in enumerate(rows.ids):
        if name not in expected:
            raise InputError(
                f"{rows.where(row)}, field 'id': '{name}' does not occur in {reference.path}. The language files of a "
                "translatable corpus share "
                "their ids; mend the id, or set translatable: false in corpus.yaml."
            )
    own = set(rows.ids) | refused
    row = next((row for row, name in enumerate(reference.ids) if name not in own), -1)
    if row >= 0:
        raise InputError(
            f"{rows.path}, field 'id': the id '{reference.ids[row]}' is missing, which is in {reference.where(row)}. "
            "The language files of a translatable corpus share their ids; add the row, or set translatable: false in "
            "corpus.yaml."
        )


def open_corpus(folder: str | Path, *, images: str | Path | None = None, home: Path | None = None) -> Corpus:
    """Open a corpus folder, or a bare JSON or JSON Lines file of Centurio's form.

    A bare file is a corpus of one split: `train` for training rows, `test` (permission `report`) for rows with
    `text_label`. Its rows stay in the language that they name, English by default. Images lie under `images`, else
    in a folder `images` beside the file, else beside it. Rows of large files that were found sound are remembered
    under the work folder `home`.
    """
    folder = Path(folder)
    if folder.is_file():
        return _open_file(folder, Path(images) if images else None, home)
    path = folder / CORPUS_FILE
    if not path.exists():
        what = f"holds no {CORPUS_FILE}" if folder.exists() else "does not exist"
        raise InputError(
            f"The corpus {folder} {what} (looked for from {Path.cwd()}). A corpus is a folder with a {CORPUS_FILE}, or "
            f"a JSON file; `python -m lvlm data {folder.name if folder.name in BUILT_IN else 'shapes'} {folder}` "
            "writes a built-in one."
        )
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(data, dict):
        raise InputError(f"{path} must be a mapping with the keys {', '.join(CorpusEntry.model_fields)}.")
    try:
        entry = CorpusEntry.model_validate(data)
        _check_languages(entry.languages, "languages")
        for name, split in entry.splits.items():
            _check_languages(split.languages or (), f"splits.{name}.languages")
            if extra := set(in_table_order(split.languages or ())) - set(in_table_order(entry.languages)):
                raise InputError(
                    f"field 'splits.{name}.languages': {', '.join(sorted(extra))} not in field 'languages'."
                )
    except ValidationError as error:
        raise InputError(f"{path}: {'; '.join(map(_fault, error.errors()))}.") from error
    except InputError as error:
        raise InputError(f"{path}, {error}") from error
    if not entry.languages or not entry.splits:
        raise InputError(f"{path}: 'languages' and 'splits' must each name at least one.")
    for name in entry.splits:
        if Path(name).name != name or name in ("", ".."):
            raise InputError(f"{path}, field 'splits': '{name}' is not the plain name of a folder.")
    return Corpus(folder, entry, Path(images) if images else folder / entry.images, home=home)


def _open_file(file: Path, images: Path | None, home: Path | None) -> Corpus:
    rows = read_rows(file, language=None, source=file.stem, home=home)
    split = SplitEntry(permission="train" if rows.kind == "train" else "report")
    entry = CorpusEntry(name=file.stem, languages=rows.languages, translatable=False, splits={rows.kind: split})
    beside = file.parent / "images"
    folder = beside if beside.is_dir() else file.parent
    return Corpus(file.parent, entry, images or folder, file=file, home=home)


def _check_languages(codes: Sequence[str], name: str) -> None:
    first: dict[str, str] = {}
    for code in codes:
        try:
            own = known_language(code).code
        except InputError as error:
            raise InputError(f"field '{name}': {error}") from error
        if own in first:
            what = f"'{first[own]}' and '{code}' are one language, {own}" if first[own] != code else f"'{code}'"
            raise InputError(f"field '{name}': a language is listed twice: {what}.")
        first[own] = code


def _fault(item: Any) -> str:
    name = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        known = SplitEntry.model_fields if len(item["loc"]) > 1 else CorpusEntry.model_fields
        return f"unknown key '{name}'; known here: {', '.join(known)}"
    if item["type"] == "missing":
        return f"the key '{name}' is missing"
    return f"'{name}': {item['msg']} (given: {item['input']!r})"
