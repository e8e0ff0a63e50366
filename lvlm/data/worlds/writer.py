"""Writes the built-in corpora, shapes and reading, as folders that any corpus reader understands.

Called by `python -m lvlm data NAME DIR` and by tests. Every image and row has a random stream of its own, derived from
(seed, purpose, index): more images leave the earlier ones and the other splits as they were.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import yaml
from PIL import Image
from rich.console import Console
from rich.progress import Progress

from lvlm.data.worlds.lexicon import Lexicon, lexicon_codes, load_lexicon
from lvlm.data.worlds.questions import Question, questions_for
from lvlm.data.worlds.reading import letters_for, reading_image, words_for
from lvlm.data.worlds.render import render
from lvlm.data.worlds.scenes import Scene, sample_scene
from lvlm.errors import InputError, nearest
from lvlm.languages import in_table_order

WORLDS = ("shapes", "reading")
VERSION = 3
"""Of what the worlds write; raised when the same seed and sizes give other files than before."""
OWN_SIZES = {
    "shapes": {"train_images": 4000, "tune_images": 150, "test_images": 300},
    "reading": {
        "train_english": 6000,
        "train_per_language": 300,
        "tune_per_language": 40,
        "test_per_language": 100,
    },
}
"""How many images each world has unless told otherwise."""
DIALOGUE_TURNS = 3
CAPTION_TURN_SHARE = 0.15  # of the training dialogues one turn asks for a caption
CAPTION_EVERY = 3  # one in so many tune and test images also has a caption item
QUESTIONS_PER_IMAGE = 2  # of a tune or test image
PNG_COMPRESS_LEVEL = 1  # a third larger than the default and several times faster

Row = dict[str, Any]
Permission = Literal["train", "tune", "report"]
Pool = Literal["train", "tune", "test"]


def write_world(
    name: str,
    folder: Path | str,
    *,
    seed: int,
    train: int | None = None,
    tune: int | None = None,
    test: int | None = None,
    languages: Sequence[str] | None = None,
) -> Path:
    """Write the corpus `name` into a new `folder` and return it.

    `train`, `tune` and `test` count images, for `reading` images per language; None is the world's own size. An unknown
    name or language, an impossible number or a folder that holds something is an `InputError`.
    """
    given = {"train": train, "tune": tune, "test": test}
    if name in WORLDS:
        sizes = {
            key: own if (wish := given[key.partition("_")[0]]) is None else wish for key, own in OWN_SIZES[name].items()
        }
        return (write_shapes if name == "shapes" else write_reading)(folder, seed=seed, languages=languages, **sizes)
    raise InputError(f"There is no built-in corpus '{name}'. The built-in corpora are: {nearest(name, list(WORLDS))}.")


def write_shapes(
    folder: Path | str,
    *,
    seed: int,
    train_images: int = OWN_SIZES["shapes"]["train_images"],
    tune_images: int = OWN_SIZES["shapes"]["tune_images"],
    test_images: int = OWN_SIZES["shapes"]["test_images"],
    languages: Sequence[str] | None = None,
) -> Path:
    """Scenes with captions, dialogues and questions; the same ids in the same order in every language.

    Every second test image holds a colour and shape that never meet in training (`source` starts with `unseen`); tune
    images hold training pairs only. Questions that need binding carry `:binding` in `source`.
    """
    lexicons = _lexicons(languages)
    sizes = {"train_images": train_images, "tune_images": tune_images, "test_images": test_images}
    _check_numbers(seed, sizes)
    with written_whole(Path(folder)) as partial, progress_of("shapes", sum(sizes.values())) as advance:
        with ExitStack() as files:
            captions = _open_rows(files, partial / "captions", lexicons)
            instruct = _open_rows(files, partial / "instruct", lexicons)
            pool = _new_pool(partial, "train")
            for index in range(train_images):
                scene = _draw_scene(seed, "train", index, pool, unseen=False)
                for code, caption, dialogue in _train_rows(scene, index, seed, lexicons):
                    captions[code].write(_line(caption))
                    instruct[code].write(_line(dialogue))
                advance()
            for split, images in (("tune", tune_images), ("test", test_images)):
                rows = _open_rows(files, partial / split, lexicons)
                pool = _new_pool(partial, split)
                for index in range(images):
                    unseen = split == "test" and index % 2 == 1
                    scene = _draw_scene(seed, split, index, pool, unseen=unseen)
                    for row in _held_out_rows(scene, split, index, seed, lexicons, "unseen" if unseen else "seen"):
                        rows[row["language"]].write(_line(row))
                    advance()
        attributes = {lexicon.code: dict(lexicon.attributes) for lexicon in lexicons}
        _write(partial / "attributes.json", json.dumps(attributes, ensure_ascii=False, indent=1) + "\n")
        _write_corpus_file(
            partial,
            name="shapes",
            lexicons=lexicons,
            translatable=True,
            splits={"captions": "train", "instruct": "train", "tune": "tune", "test": "report"},
            seed=seed,
            sizes=sizes,
        )
    return Path(folder)


def write_reading(
    folder: Path | str,
    *,
    seed: int,
    train_english: int = OWN_SIZES["reading"]["train_english"],
    train_per_language: int = OWN_SIZES["reading"]["train_per_language"],
    tune_per_language: int = OWN_SIZES["reading"]["tune_per_language"],
    test_per_language: int = OWN_SIZES["reading"]["test_per_language"],
    languages: Sequence[str] | None = None,
) -> Path:
    """Words to be read, in the script of each language, whose items are its own: not translatable.

    English has training items of its own number, as reading in one language alone takes thousands. Every second
    training item shows letters in random order instead of a word (`source` is `letters`).
    Every second tune and test item shows a word that training never shows (`source` is `unseen`), the others a training
    word in a new image (`seen`).
    """
    lexicons = _lexicons(languages)
    sizes = {
        "train_english": train_english,
        "train_per_language": train_per_language,
        "tune_per_language": tune_per_language,
        "test_per_language": test_per_language,
    }
    _check_numbers(seed, sizes)
    splits: dict[str, Pool] = {"instruct": "train", "tune": "tune", "test": "test"}

    def images(pool: Pool, code: str) -> int:
        return train_english if pool == "train" and code == "en" else sizes[f"{pool}_per_language"]

    total = sum(images(pool, lexicon.code) for pool in splits.values() for lexicon in lexicons)
    with written_whole(Path(folder)) as partial, progress_of("reading", total) as advance:
        for split, pool_name in splits.items():
            pool = _new_pool(partial, pool_name)
            with ExitStack() as files:
                rows = _open_rows(files, partial / split, lexicons)
                for lexicon in lexicons:
                    for index in range(images(pool_name, lexicon.code)):
                        word, row = _reading_row(lexicon, pool_name, index, seed)
                        rng = _rng(seed, f"reading/{pool_name}/{lexicon.code}", index)
                        image = reading_image(word, rng, language=lexicon.code)
                        _save(image, pool / f"{lexicon.code}-{index:05d}.png")
                        rows[lexicon.code].write(_line(row))
                        advance()
        _write_corpus_file(
            partial,
            name="reading",
            lexicons=lexicons,
            translatable=False,
            splits={"instruct": "train", "tune": "tune", "test": "report"},
            seed=seed,
            sizes=sizes,
        )
    return Path(folder)


# --- rows


def _train_rows(scene: Scene, index: int, seed: int, lexicons: Sequence[Lexicon]) -> Iterator[tuple[str, Row, Row]]:
    """Per language: its code, the caption row and the dialogue row of one training image."""
    rng = _rng(seed, "shapes/train/questions", index)
    turns: list[Question | None] = list(questions_for(scene, rng, n=DIALOGUE_TURNS))
    if rng.random() < CAPTION_TURN_SHARE:
        turns[int(rng.integers(len(turns)))] = None  # None asks for the caption
    image_id = f"train/{index:05d}.png"
    for lexicon in lexicons:
        caption = lexicon.caption(scene)
        shared: Row = {"image_id": [image_id], "language": lexicon.code}
        yield (
            lexicon.code,
            {
                "id": f"shapes-captions-{index:05d}",
                "context": [lexicon.caption_request],
                "label": [caption],
                **shared,
                "task": "caption",
                "source": "shapes",
            },
            {
                "id": f"shapes-instruct-{index:05d}",
                "context": [lexicon.caption_request if turn is None else lexicon.question(turn) for turn in turns],
                "label": [caption if turn is None else lexicon.answer(turn) for turn in turns],
                **shared,
                "task": "vqa",
                "source": "shapes",
            },
        )


def _held_out_rows(
    scene: Scene, split: str, index: int, seed: int, lexicons: Sequence[Lexicon], source: str
) -> Iterator[Row]:
    """The items of one tune or test image: two questions, and for every third image its caption, in every language."""
    questions = questions_for(scene, _rng(seed, f"shapes/{split}/questions", index), n=QUESTIONS_PER_IMAGE)
    for lexicon in lexicons:
        items = [
            (f"q{number}", "vqa", lexicon.question(q), lexicon.answer(q), f"{source}:binding" if q.binding else source)
            for number, q in enumerate(questions, start=1)
        ]
        if index % CAPTION_EVERY == 0:
            items.insert(0, ("c", "caption", lexicon.caption_request, lexicon.caption(scene), source))
        for suffix, task, prompt, gold, item_source in items:
            yield {
                "id": f"shapes-{split}-{index:05d}-{suffix}",
                "context": [prompt],
                "label": [""],
                "text_label": gold,
                "image_id": f"{split}/{index:05d}.png",
                "language": lexicon.code,
                "task": task,
                "source": item_source,
            }


def _reading_row(lexicon: Lexicon, pool: Pool, index: int, seed: int) -> tuple[str, Row]:
    """The text of one reading item and its row; words take turns, so that each is shown equally often."""
    image_id = f"{pool}/{lexicon.code}-{index:05d}.png"
    if pool == "train":
        words, turn, source = words_for(lexicon, "train"), index // 2, "words"
    elif index % 2:
        words, turn, source = words_for(lexicon, pool), index // 2, "unseen"
    else:
        words, turn, source = words_for(lexicon, "train"), index // 2, "seen"
    word = words[turn % len(words)]
    if pool == "train" and index % 2:
        word, source = letters_for(lexicon, _rng(seed, f"reading/letters/{lexicon.code}", index)), "letters"
    gold: Row = {"label": [word]} if pool == "train" else {"label": [""], "text_label": word}
    return word, {
        "id": f"reading-{pool}-{lexicon.code}-{index:05d}",
        "context": [lexicon.read_request],
        **gold,
        "image_id": [image_id] if pool == "train" else image_id,
        "language": lexicon.code,
        "task": "reading",
        "source": source,
    }


# --- randomness and files


def _rng(seed: int, purpose: str, index: int) -> np.random.Generator:
    """The random stream of one thing, apart from every other purpose and index."""
    return np.random.default_rng(np.random.SeedSequence([seed, zlib.crc32(purpose.encode()), index]))


def _draw_scene(seed: int, split: str, index: int, pool: Path, *, unseen: bool) -> Scene:
    """Sample a scene, save its picture into `pool` and return the scene."""
    scene = sample_scene(_rng(seed, f"shapes/{split}", index), pairs="held_out" if unseen else "training")
    _save(render(scene, _rng(seed, f"shapes/{split}/pixels", index)), pool / f"{index:05d}.png")
    return scene


def _save(image: Image.Image, path: Path) -> None:
    image.save(path, compress_level=PNG_COMPRESS_LEVEL)


def _lexicons(languages: Sequence[str] | None) -> tuple[Lexicon, ...]:
    """The lexicons asked for (all when None), in the order of the language table."""
    if languages is not None and not languages:
        raise InputError("languages is empty. Name at least one language, or leave it out to write all of the world.")
    known = lexicon_codes()
    codes = known if languages is None else tuple(languages)
    return tuple(load_lexicon(code) for code in in_table_order(load_lexicon(code).code for code in codes))


def _check_numbers(seed: int, sizes: dict[str, int]) -> None:
    if seed < 0:
        raise InputError(f"seed is {seed}; it must be 0 or larger.")
    for name, size in sizes.items():
        if not 1 <= size <= 100_000:
            raise InputError(f"{name} is {size}; it must lie between 1 and 100000, as image numbers have five digits.")


def _new_pool(folder: Path, name: str) -> Path:
    pool = folder / "images" / name
    pool.mkdir(parents=True)
    return pool


def _open_rows(files: ExitStack, folder: Path, lexicons: Iterable[Lexicon]) -> dict[str, IO[str]]:
    """One JSON Lines file per language, closed with `files`."""
    folder.mkdir()
    return {
        lexicon.code: files.enter_context(open(folder / f"{lexicon.code}.jsonl", "w", encoding="utf-8", newline="\n"))
        for lexicon in lexicons
    }


def _line(row: Row) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")


def _write_corpus_file(
    folder: Path,
    *,
    name: str,
    lexicons: Sequence[Lexicon],
    translatable: bool,
    splits: dict[str, Permission],
    seed: int,
    sizes: dict[str, int],
) -> None:
    content: dict[str, Any] = {
        "name": name,
        "languages": [lexicon.code for lexicon in lexicons],
        "translatable": translatable,
        "images": "images",
    }
    if translatable:
        content["attributes"] = "attributes.json"
    content["splits"] = {split: {"permission": permission} for split, permission in splits.items()}
    content["seed"] = seed
    content["note"] = _made(name, seed, sizes)
    _write(folder / "corpus.yaml", yaml.safe_dump(content, allow_unicode=True, sort_keys=False))


def is_written(name: str, folder: Path | str) -> bool:
    """Whether `folder` holds the built-in corpus `name` as this version of the toolkit writes it with seed 0 and the
    world's own size and languages."""
    note = _note(Path(folder))
    return note == _made(name, 0, OWN_SIZES[name]) and len(_entry(Path(folder))["languages"]) == len(lexicon_codes())


def _made(name: str, seed: int, sizes: dict[str, int]) -> str:
    counts = ", ".join(f"{key} {value}" for key, value in sizes.items())
    return f"Written by the built-in {name} world, version {VERSION}, with seed {seed}: {counts}."


def _entry(folder: Path) -> dict[str, Any]:
    """The corpus.yaml of a folder; empty if it has none that can be read."""
    try:
        content = yaml.safe_load((folder / "corpus.yaml").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}


def _note(folder: Path) -> str:
    return str(_entry(folder).get("note", ""))


@contextmanager
def written_whole(target: Path) -> Iterator[Path]:
    """A folder beside `target` that becomes `target` when the block ends, and vanishes when it fails."""
    target = target.absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        note = _note(target)
        old = note.startswith("Written by the built-in") and f"version {VERSION}," not in note
        what = "holds a world that another version of the toolkit wrote" if old else "exists and is not an empty folder"
        raise InputError(f"{target} {what}. Choose another folder, or remove it first.")
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # left by an earlier process of the same number
    partial.mkdir(parents=True)
    try:
        yield partial
        if target.exists():
            target.rmdir()
        partial.rename(target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


@contextmanager
def progress_of(name: str, images: int) -> Iterator[Any]:
    """A function that counts one image; a bar on standard error when that is a terminal."""
    with Progress(console=Console(file=sys.stderr), disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task(f"writing {name}: images", total=images)
        yield lambda: progress.advance(task)
