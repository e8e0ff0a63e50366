"""Writes the corpora that studies of a pivot language ask for: `sentences`, parallel text without images, and
`origins`, where what is said in another language is translated or native, with noise of a known rate. Called by
`python -m lvlm data` and by tests."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import cache
from pathlib import Path

import numpy as np

from lvlm.data.worlds.folder import (
    Permission,
    Row,
    check_numbers,
    corpus_entry,
    json_line,
    made,
    new_pool,
    note_of,
    open_rows,
    progress,
    save_png,
    stream,
    write_corpus_file,
    written_whole,
)
from lvlm.data.worlds.lexicon import Lexicon, lexicon_codes, load_lexicon
from lvlm.data.worlds.mistakes import Turns, with_mistakes
from lvlm.data.worlds.questions import questions_for
from lvlm.data.worlds.render import render
from lvlm.data.worlds.scenes import Scene, sample_scene
from lvlm.data.worlds.writer import DIALOGUE_TURNS
from lvlm.errors import InputError
from lvlm.languages import in_table_order

VERSIONS = {"sentences": 1, "origins": 2}
"""Of what is written; raised when the same seed and sizes give other files than before."""
TARGETS = ("en", "de", "ru", "el", "sw", "jv")
"""The languages of `origins` unless others are asked for: English, and one of each tier."""
ERRORS = (10, 25, 50)
"""Percent of the words of a translation that are wrong, split by split."""
MISMATCHED = (0, 25, 50, 75)
"""Percent of the native dialogues, and of the native captions, that speak of another picture, split by split."""
OWN_SIZES = {
    "sentences": {"train_scenes": 6000, "test_scenes": 200},
    "origins": {"train_images": 3200, "native_images": 1024, "own_images": 320},
}


def write_sentences(
    folder: Path | str,
    *,
    seed: int,
    train: int | None = None,
    test: int | None = None,
    tune: int | None = None,
    languages: Sequence[str] | None = None,
) -> Path:
    """Scenes told in words, without images; the same ids in every language.

    A training row tells a scene, asks three questions about it and answers them, all in one language. Two languages of
    one id are parallel text. A test row is a sentence: the scene told as the answer to the request for it.
    """
    if tune is not None:
        raise InputError("The corpus 'sentences' has no images and no split to tune on. Leave --tune out.")
    sizes = _sizes("sentences", train_scenes=train, test_scenes=test)
    check_numbers(seed, sizes)
    lexicons = _lexicons(languages or lexicon_codes())
    splits: dict[str, Permission] = {"train": "train", "test": "report"}
    with (
        written_whole(Path(folder), version=VERSIONS["sentences"]) as partial,
        progress("sentences", sum(sizes.values())) as advance,
        ExitStack() as files,
    ):
        for split in splits:
            rows = open_rows(files, partial / split, [lexicon.code for lexicon in lexicons])
            for index in range(sizes[f"{split}_scenes"]):
                scene = sample_scene(stream(seed, f"sentences/{split}", index))
                for lexicon in lexicons:
                    row: Row = {"id": f"sentences-{split}-{index:05d}", "image_id": "", "language": lexicon.code}
                    if split == "train":
                        turns = _turns(scene, lexicon, stream(seed, "sentences/questions", index))
                        turns[0] = (f"{lexicon.caption(scene)}\n{turns[0][0]}", turns[0][1])
                        row |= _as_row(turns) | {"task": "text", "source": "sentences"}
                    else:
                        row |= {"context": [lexicon.caption_request], "label": [""], "task": "caption"}
                        row |= {"text_label": lexicon.caption(scene), "source": "sentences"}
                    rows[lexicon.code].write(json_line(row))
                advance()
        _finish(partial, files, "sentences", lexicons, splits, seed, sizes, translatable=True)
    return Path(folder)


def write_origins(
    folder: Path | str,
    *,
    seed: int,
    train: int | None = None,
    tune: int | None = None,
    test: int | None = None,
    languages: Sequence[str] | None = None,
) -> Path:
    """Dialogues about pictures and captions, by where they come from; not translatable, so that a mix takes each split
    in the languages that it names, and with `samples_per_language` the same first ids of every split that has them.

    - `instruct`: of every picture in every language: the pivot, and translations without a fault.
    - `errors_10`, `errors_25`, `errors_50`: the same ids, where so many percent of the words, in questions and answers,
      are other words of the language. Words that are wrong at a lower rate are wrong at a higher one too.
    - `native`, `native_25`, `native_50`, `native_75`: pictures of their own, which no other split shows; so many
      percent of the dialogues speak of another of these pictures, and those at a lower rate at a higher one too.
    - `captions`: of every picture of `instruct`, in every language.
    - `found`, `found_25`, `found_50`, `found_75`: captions as a language has them by itself, of `own_images` pictures
      that no other language and no other split shows; so many percent of them tell of another of all these pictures.
    """
    if tune is not None or test is not None:
        raise InputError("The corpus 'origins' is for training alone: evaluate on shapes. Leave --tune and --test out.")
    sizes = _sizes("origins", train_images=train)
    check_numbers(seed, sizes)
    lexicons = _lexicons(languages or TARGETS)
    wrong = [split_of("errors", percent) for percent in ERRORS]
    noisy = [split_of(kind, percent) for kind in ("native", "found") for percent in MISMATCHED]
    splits: dict[str, Permission] = dict.fromkeys(("instruct", *wrong, "captions", *noisy), "train")
    pools = {
        "train": sizes["train_images"], "native": sizes["native_images"], "own": sizes["own_images"] * len(lexicons),
    }  # fmt: skip
    with (
        written_whole(Path(folder), version=VERSIONS["origins"]) as partial,
        progress("origins", sum(pools.values())) as advance,
        ExitStack() as files,
    ):
        rows = {split: open_rows(files, partial / split, [one.code for one in lexicons]) for split in splits}
        for pool, images in pools.items():
            place = new_pool(partial, pool)
            for index in range(images):
                picture = render(_scene(seed, pool, index), stream(seed, f"origins/{pool}/pixels", index))
                save_png(picture, place / f"{index:05d}.png")
                for lexicon in lexicons if pool != "own" else [lexicons[index % len(lexicons)]]:
                    for split, row in _rows(seed, pool, index, images, lexicon):
                        rows[split][lexicon.code].write(json_line(row))
                advance()
        _finish(partial, files, "origins", lexicons, splits, seed, sizes, translatable=False)
    return Path(folder)


def split_of(kind: str, percent: int) -> str:
    """The name of the split of `origins` with this rate of noise."""
    return f"{kind}_{percent}" if percent else "instruct" if kind == "errors" else kind


def is_written(name: str, folder: Path | str) -> bool:
    """Whether `folder` holds this corpus as this version of the toolkit writes it with seed 0 and its own size and
    languages."""
    languages = lexicon_codes() if name == "sentences" else TARGETS
    found = corpus_entry(Path(folder)).get("languages", [])
    return note_of(Path(folder)) == made(name, VERSIONS[name], 0, OWN_SIZES[name]) and len(found) == len(languages)


def _sizes(name: str, **asked: int | None) -> dict[str, int]:
    return OWN_SIZES[name] | {key: size for key, size in asked.items() if size is not None}


def _lexicons(languages: Sequence[str]) -> list[Lexicon]:
    return [load_lexicon(code) for code in in_table_order(load_lexicon(code).code for code in languages)]


def _finish(
    partial: Path,
    files: ExitStack,
    name: str,
    lexicons: Sequence[Lexicon],
    splits: dict[str, Permission],
    seed: int,
    sizes: dict[str, int],
    *,
    translatable: bool,
) -> None:
    files.close()
    codes = [lexicon.code for lexicon in lexicons]
    (partial / "images").mkdir(exist_ok=True)
    write_corpus_file(
        partial, name=name, languages=codes, translatable=translatable, splits=splits, seed=seed,
        note=made(name, VERSIONS[name], seed, sizes),
    )  # fmt: skip


@cache
def _scene(seed: int, pool: str, index: int) -> Scene:
    return sample_scene(stream(seed, f"origins/{pool}", index))


def _dialogue(seed: int, pool: str, index: int, lexicon: Lexicon) -> Turns:
    return _turns(_scene(seed, pool, index), lexicon, stream(seed, f"origins/{pool}/questions", index))


def _caption(seed: int, pool: str, index: int, lexicon: Lexicon) -> Turns:
    return [(lexicon.caption_request, lexicon.caption(_scene(seed, pool, index)))]


def _turns(scene: Scene, lexicon: Lexicon, rng: np.random.Generator) -> Turns:
    questions = questions_for(scene, rng, n=DIALOGUE_TURNS)
    return [(lexicon.question(question), lexicon.answer(question)) for question in questions]


def _spoken_of(seed: int, pool: str, index: int, images: int, rate: float) -> int:
    """The picture of the pool that what is said of this one is about: itself, or at this rate another."""
    rng = stream(seed, f"origins/{pool}/mismatch", index)
    if rng.random() >= rate or images == 1:
        return index
    return (index + 1 + int(rng.integers(images - 1))) % images


def _rows(seed: int, pool: str, index: int, images: int, lexicon: Lexicon) -> Iterator[tuple[str, Row]]:
    """(split, row) of all that a language says of one of the `images` pictures of a pool."""

    def row(split: str, turns: Turns, task: str) -> tuple[str, Row]:
        return split, {
            "id": f"origins-{pool}-{index:05d}", **_as_row(turns), "image_id": [f"{pool}/{index:05d}.png"],
            "language": lexicon.code, "task": task, "source": "translated" if split == "instruct" else split,
        }  # fmt: skip

    if pool == "train":
        turns = _dialogue(seed, pool, index, lexicon)
        yield row("instruct", turns, "vqa")
        yield row("captions", _caption(seed, pool, index, lexicon), "caption")
        for percent in ERRORS:
            rng = stream(seed, f"origins/errors/{lexicon.code}", index)
            yield row(split_of("errors", percent), with_mistakes(turns, percent / 100, rng, lexicon), "vqa")
        return
    for percent in MISMATCHED:
        told = _spoken_of(seed, pool, index, images, percent / 100)
        if pool == "native":
            yield row(split_of("native", percent), _dialogue(seed, pool, told, lexicon), "vqa")
        else:
            yield row(split_of("found", percent), _caption(seed, pool, told, lexicon), "caption")


def _as_row(turns: Turns) -> Row:
    return {"context": [question for question, _ in turns], "label": [answer for _, answer in turns]}
