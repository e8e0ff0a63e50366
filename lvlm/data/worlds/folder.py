"""The folder of a built-in corpus: random streams, pictures, rows and corpus.yaml, and nothing half-written.
Called by the modules that write a world.
"""

from __future__ import annotations

import json
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import yaml
from PIL import Image
from rich.console import Console
from rich.progress import Progress

from lvlm.data.folders import new_folder
from lvlm.errors import InputError

PNG_COMPRESS_LEVEL = 1  # a third larger than the default and several times faster

SOURCES_FILE = "sources.json"

Row = dict[str, Any]
Picture = tuple[str, Image.Image, Iterable[Row]]
"""(file name, picture, what is said or asked about it)."""
Permission = Literal["train", "tune", "report"]
Pool = Literal["train", "tune", "test"]
POOLS: tuple[Pool, ...] = ("train", "tune", "test")
"""What is learned from, chosen by and reported: words, concepts and pictures belong to one of them each."""
SPLITS: dict[Pool, str] = {"train": "instruct", "tune": "tune", "test": "test"}
PERMISSIONS: dict[str, Permission] = {"instruct": "train", "tune": "tune", "test": "report"}
"""Splits of the worlds whose rows are all of one kind."""


def stream(seed: int, purpose: str, index: int) -> np.random.Generator:
    """The random stream of one thing, apart from every other purpose and index."""
    return np.random.default_rng(np.random.SeedSequence([seed, zlib.crc32(purpose.encode()), index]))


def save_png(image: Image.Image, path: Path) -> None:
    image.save(path, compress_level=PNG_COMPRESS_LEVEL)


def check_numbers(seed: int, sizes: dict[str, int]) -> None:
    if seed < 0:
        raise InputError(f"seed is {seed}; it must be 0 or larger.")
    for name, size in sizes.items():
        if not 1 <= size <= 100_000:
            raise InputError(f"{name} is {size}; it must lie between 1 and 100000, as image numbers have five digits.")


def new_pool(folder: Path, name: str) -> Path:
    pool = folder / "images" / name
    pool.mkdir(parents=True)
    return pool


def open_rows(files: ExitStack, folder: Path, languages: Iterable[str]) -> dict[str, IO[str]]:
    """One JSON Lines file per language, closed with `files`."""
    folder.mkdir()
    return {
        code: files.enter_context(open(folder / f"{code}.jsonl", "w", encoding="utf-8", newline="\n"))
        for code in languages
    }


def json_line(row: Row) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"


def write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")


def corpus_entry(folder: Path) -> dict[str, Any]:
    """The corpus.yaml of a folder; empty if it has none that can be read."""
    try:
        content = yaml.safe_load((folder / "corpus.yaml").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}


def note_of(folder: Path) -> str:
    return str(corpus_entry(folder).get("note", ""))


def write_corpus_file(
    folder: Path,
    *,
    name: str,
    languages: Iterable[str],
    translatable: bool,
    splits: dict[str, Permission],
    seed: int,
    note: str,
    attributes: str | None = None,
) -> None:
    """The corpus.yaml of a world."""
    content: dict[str, Any] = {
        "name": name,
        "languages": list(languages),
        "translatable": translatable,
        "images": "images",
    }
    if attributes is not None:
        content["attributes"] = attributes
    content["splits"] = {split: {"permission": permission} for split, permission in splits.items()}
    content["seed"] = seed
    content["note"] = note
    write_text(folder / "corpus.yaml", yaml.safe_dump(content, allow_unicode=True, sort_keys=False))


def made(name: str, version: int, seed: int, sizes: Mapping[str, int | str]) -> str:
    """The note of a world: everything that decides its content, beside its languages."""
    counts = ", ".join(f"{key} {value}" for key, value in sizes.items())
    return f"Written by the built-in {name} world, version {version}, with seed {seed}: {counts}."


@contextmanager
def written_whole(target: Path, *, version: int) -> Iterator[Path]:
    """A folder beside `target` that becomes `target` when the block ends, and vanishes when it fails."""
    note = note_of(target)
    if note.startswith("Written by the built-in") and f"version {version}," not in note:
        raise InputError(
            f"{target.absolute()} holds a world that another version of the toolkit wrote. Choose another folder, or "
            "remove it first."
        )
    with new_folder(target) as partial:
        yield partial


def write_untranslated(
    folder: Path,
    *,
    name: str,
    version: int,
    seed: int,
    sizes: dict[str, int],
    sources: Mapping[str, Any],
    pictures: Callable[[str, Pool], Iterable[Picture]],
) -> None:
    """Write a corpus whose samples stay in their languages, with pictures of each language and pool; `sources`, by
    language, says where its words and fonts are from."""
    with written_whole(folder, version=version) as partial, progress(name, sum(sizes.values()) * len(sources)) as step:
        for pool in POOLS:
            place = new_pool(partial, pool)
            with ExitStack() as files:
                rows = open_rows(files, partial / SPLITS[pool], sources)
                for code, out in rows.items():
                    for file, image, own in pictures(code, pool):
                        save_png(image, place / file)
                        out.writelines(map(json_line, own))
                        step()
        write_text(partial / SOURCES_FILE, json.dumps(sources, ensure_ascii=False, indent=1) + "\n")
        write_corpus_file(
            partial,
            name=name,
            languages=sources,
            translatable=False,
            splits=PERMISSIONS,
            seed=seed,
            note=made(name, version, seed, sizes),
        )


@contextmanager
def progress(name: str, images: int) -> Iterator[Any]:
    """A function that counts one image; a bar on standard error when that is a terminal."""
    with Progress(console=Console(file=sys.stderr), disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task(f"writing {name}: images", total=images)
        yield lambda: bar.advance(task)
