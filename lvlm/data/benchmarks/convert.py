"""Writes a benchmark as a corpus of ours, so that everything after it sees a corpus like any other. Behind
`python -m lvlm benchmark`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import yaml

from lvlm.data.benchmarks import BENCHMARKS
from lvlm.data.benchmarks.centurio import PATTERNS, has_centurio, read_centurio
from lvlm.data.benchmarks.exams import read_cvqa, read_m3exam, read_m3exam_cyclic, read_mmmu, read_xmmmu
from lvlm.data.benchmarks.forms import Source
from lvlm.data.benchmarks.question import Question
from lvlm.data.benchmarks.questions import read_maxm, read_mme, read_mtvqa, read_smpqa, read_xgqa, read_xm3600
from lvlm.data.benchmarks.statements import read_marvl, read_nlvr2, read_vgr, read_vlod, read_xvnli
from lvlm.data.checks import check_images, check_test
from lvlm.data.corpus import CORPUS_FILE
from lvlm.data.folders import new_folder
from lvlm.errors import InputError, nearest
from lvlm.languages import in_table_order

Read = Callable[[Source], Iterator[Question]]
AUTHORS: Mapping[str, Read] = {
    "cvqa": read_cvqa,
    "m3exam": read_m3exam,
    "m3exam_cyclic": read_m3exam_cyclic,
    "m5b_vgr": read_vgr,
    "m5b_vlod": read_vlod,
    "marvl": read_marvl,
    "maxm": read_maxm,
    "mme": read_mme,
    "mmmu": read_mmmu,
    "mtvqa": read_mtvqa,
    "nlvr2": read_nlvr2,
    "smpqa": read_smpqa,
    "xgqa": read_xgqa,
    "xm3600": read_xm3600,
    "xmmmu": read_xmmmu,
    "xvnli": read_xvnli,
}
"""Benchmark -> what reads it as its authors distribute it; BIN-MC exists in Centurio's form alone."""
PARALLEL = frozenset({"xgqa", "xm3600", "xmmmu", "xvnli"})
"""Benchmarks that ask the same of the same images in every language. Where text in the image is asked for (SMPQA) the
same questions have other answers."""
SPLIT = "test"


@dataclass(frozen=True, slots=True)
class Written:
    """What a benchmark became: items by task and language, and whether its languages share their ids."""

    folder: Path
    items: Mapping[tuple[str, str], int]
    shared_ids: bool


def write_benchmark(
    name: str,
    source: Path | str,
    folder: Path | str,
    *,
    images: Path | str | None = None,
    languages: Sequence[str] | None = None,
    first: int | None = None,
) -> Written:
    """Read benchmark `name` from the folder `source`, in Centurio's form if its files are there and else in that of its
    authors, and write it to the new corpus `folder`, whole or not at all.

    The corpus names images where they lie (`images`, else `source`); those that stand in tables are written into it.
    `languages` and `first` (rows per task and language, in the order of the files) leave the rest out. Raises
    `InputError` for whatever is wrong, with file and row.
    """
    source, folder = Path(source), Path(folder)
    if name not in BENCHMARKS:
        raise InputError(
            f"'{name}' is no benchmark that is read here; the nearest are: {nearest(name, [*BENCHMARKS])}."
        )
    for path in (source, Path(images or source)):
        if not path.is_dir():
            raise InputError(f"{path} is no folder. Name the folder that holds the files of {name}.")
    if first is not None and first < 1:
        raise InputError(f"--first {first}: give a number from 1.")
    wanted = None if languages is None else in_table_order(languages)
    place = Source(source, Path(images or source).resolve(), wanted)
    with new_folder(folder) as partial:
        corpus = _Corpus(partial, first)
        with corpus:
            for question in _questions(name, place):
                corpus.add(question)
        _check_found(name, place, corpus)
        shared = name in PARALLEL and corpus.shares_ids()
        entry = {
            "name": name,
            "languages": list(corpus.languages()),
            "translatable": shared,
            "images": "images" if corpus.pictures else str(place.images),
            "splits": {SPLIT: {"permission": "report"}},
            "note": f"Written from {source} by python -m lvlm benchmark {name}.",
        }
        text = yaml.safe_dump(entry, allow_unicode=True, sort_keys=False)
        (partial / CORPUS_FILE).write_text(text, encoding="utf-8")
    return Written(folder, corpus.counts, shared)


def _questions(name: str, source: Source) -> Iterator[Question]:
    if has_centurio(name, source.folder):
        return read_centurio(name, source)
    return AUTHORS[name](source) if name in AUTHORS else iter(())


def _check_found(name: str, source: Source, corpus: _Corpus) -> None:
    there = corpus.languages()
    if missing := [code for code in source.languages or there if code not in there]:
        raise InputError(f"{source.folder} has no items of {name} in {', '.join(missing)}. Leave that out.")
    if there:
        return
    theirs = " ".join((AUTHORS[name].__doc__ or "").split()) if name in AUTHORS else "it has no other."
    raise InputError(
        f"{source.folder} holds nothing of {name}. Its form by Centurio: "
        f"{', '.join(pattern.replace('{language}', 'LANGUAGE') for pattern, _ in PATTERNS[name])}. Its authors' form: "
        f"{theirs}"
    )


class _Corpus:
    """The language files and pictures of a corpus that is being written; open while items are added."""

    def __init__(self, folder: Path, first: int | None) -> None:
        self.folder = folder
        self.first = first
        self.counts: dict[tuple[str, str], int] = {}
        """Items by task and language."""
        self.pictures: dict[bytes, str] = {}
        """Digest of a picture out of a table -> its name under `images`."""
        self._ids: dict[str, set[str]] = {}
        self._files = ExitStack()
        self._rows: dict[str, IO[str]] = {}

    def __enter__(self) -> None:
        (self.folder / SPLIT).mkdir()

    def __exit__(self, *_: object) -> None:
        self._files.close()

    def add(self, question: Question) -> None:
        """Write one item, unless its task and language have enough."""
        key = question.task, question.language
        if self.counts.get(key, 0) == self.first:
            return
        row = {
            "id": f"{question.task}-{question.id}",
            "context": [question.prompt],
            "label": [""],
            "text_label": list(question.answers),
            "image_id": [self._placed(picture) for picture in question.images],
            "language": question.language,
            "task": question.task,
            "source": question.source,
        }
        self._check(question, row)
        if question.language not in self._rows:
            path = self.folder / SPLIT / f"{question.language}.jsonl"
            file = self._files.enter_context(path.open("w", encoding="utf-8", newline="\n"))
            self._rows[question.language] = file
        self._rows[question.language].write(json.dumps(row, ensure_ascii=False) + "\n")
        self.counts[key] = self.counts.get(key, 0) + 1

    def languages(self) -> tuple[str, ...]:
        return in_table_order(self._rows)

    def shares_ids(self) -> bool:
        """Whether every language has items of the same ids."""
        ids = list(self._ids.values())
        return all(one == ids[0] for one in ids)

    def _check(self, question: Question, row: dict[str, Any]) -> None:
        def fail(field: str, fault: str) -> InputError:
            return InputError(f"{question.where}, as a row of a corpus, field '{field}': {fault}")

        known = self._ids.setdefault(question.language, set())
        if row["id"] in known:
            raise fail("id", f"'{row['id']}' stands for two items in '{question.language}'.")
        known.add(row["id"])
        check_test(row, check_images(row, fail, ()), fail)

    def _placed(self, picture: str | bytes) -> str:
        """The path of a picture under the corpus's images; one out of a table is written there, once."""
        if isinstance(picture, str):
            return picture
        digest = hashlib.blake2b(picture, digest_size=16).digest()
        if digest not in self.pictures:
            suffix = {b"\x89P": "png", b"\xff\xd8": "jpg", b"GI": "gif", b"RI": "webp"}.get(picture[:2], "img")
            self.pictures[digest] = f"{len(self.pictures):06d}.{suffix}"
            (self.folder / "images").mkdir(exist_ok=True)
            (self.folder / "images" / self.pictures[digest]).write_bytes(picture)
        return self.pictures[digest]
