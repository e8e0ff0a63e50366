"""Writes the built-in corpora, shapes and reading, as folders that any corpus reader understands.

Called by `python -m lvlm data NAME DIR` and by tests. Every image and row has a random stream of its own, derived from
(seed, purpose, index): more images leave the earlier ones and the other splits as they were.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from lvlm.data.worlds.folder import (
    PERMISSIONS,
    POOLS,
    SPLITS,
    Pool,
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
    write_text,
    written_whole,
)
from lvlm.data.worlds.lexicon import Lexicon, lexicon_codes, load_lexicon
from lvlm.data.worlds.mistakes import with_mistakes
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


def write_world(
    name: str,
    folder: Path | str,
    *,
    seed: int,
    train: int | None = None,
    tune: int | None = None,
    test: int | None = None,
    english: int | None = None,
    mistakes: float | None = None,
    languages: Sequence[str] | None = None,
) -> Path:
    """Write the corpus `name` into a new `folder` and return it.

    `train`, `tune` and `test` count images, for `reading` images per language, with `english` in the place of `train`
    for English; None is the world's own size. `mistakes` is for `shapes` (`write_shapes`). An unknown name or
    language, an impossible number or a folder that holds something is an `InputError`.
    """
    given = {"train": train, "tune": tune, "test": test}
    if name in WORLDS:
        sizes = {
            key: own if (wish := given[key.partition("_")[0]]) is None else wish for key, own in OWN_SIZES[name].items()
        }
        if name == "shapes":
            return write_shapes(folder, seed=seed, languages=languages, mistakes=mistakes or 0.0, **sizes)
        if english is not None:
            sizes["train_english"] = english
        return write_reading(folder, seed=seed, languages=languages, **sizes)
    raise InputError(f"There is no built-in corpus '{name}'. The built-in corpora are: {nearest(name, list(WORLDS))}.")


def write_shapes(
    folder: Path | str,
    *,
    seed: int,
    train_images: int = OWN_SIZES["shapes"]["train_images"],
    tune_images: int = OWN_SIZES["shapes"]["tune_images"],
    test_images: int = OWN_SIZES["shapes"]["test_images"],
    languages: Sequence[str] | None = None,
    mistakes: float = 0.0,
) -> Path:
    """Scenes with captions, dialogues and questions; the same ids in the same order in every language.

    With `mistakes` all that is to train on in other languages than English is a poor translation: this share of its
    words are other words of the language (`lvlm.data.worlds.mistakes`). What is evaluated has none.

    Every second test image holds a colour and shape that never meet in training (`source` starts with `unseen`); tune
    images hold training pairs only. Questions that need binding carry `:binding` in `source`.
    """
    lexicons = chosen_lexicons(languages)
    codes = [lexicon.code for lexicon in lexicons]
    sizes = {"train_images": train_images, "tune_images": tune_images, "test_images": test_images}
    noted = sizes | ({"mistakes in percent": f"{100 * mistakes:g}"} if mistakes else {})
    check_numbers(seed, sizes)
    if not 0 <= mistakes <= 1:
        raise InputError(f"--mistakes is {mistakes:g}; it is a share of the words, from 0 to 1.")
    with written_whole(Path(folder), version=VERSION) as partial, progress("shapes", sum(sizes.values())) as advance:
        with ExitStack() as files:
            captions = open_rows(files, partial / "captions", codes)
            instruct = open_rows(files, partial / "instruct", codes)
            pool = new_pool(partial, "train")
            for index in range(train_images):
                scene = _draw_scene(seed, "train", index, pool, unseen=False)
                for code, caption, dialogue in _train_rows(scene, index, seed, lexicons, mistakes):
                    captions[code].write(json_line(caption))
                    instruct[code].write(json_line(dialogue))
                advance()
            for split, images in (("tune", tune_images), ("test", test_images)):
                rows = open_rows(files, partial / split, codes)
                pool = new_pool(partial, split)
                for index in range(images):
                    unseen = split == "test" and index % 2 == 1
                    scene = _draw_scene(seed, split, index, pool, unseen=unseen)
                    for row in _held_out_rows(scene, split, index, seed, lexicons, "unseen" if unseen else "seen"):
                        rows[row["language"]].write(json_line(row))
                    advance()
        attributes = {lexicon.code: dict(lexicon.attributes) for lexicon in lexicons}
        write_text(partial / "attributes.json", json.dumps(attributes, ensure_ascii=False, indent=1) + "\n")
        write_corpus_file(
            partial,
            name="shapes",
            languages=codes,
            translatable=True,
            attributes="attributes.json",
            splits={"captions": "train", "instruct": "train", "tune": "tune", "test": "report"},
            seed=seed,
            note=made("shapes", VERSION, seed, noted),
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
    lexicons = chosen_lexicons(languages)
    codes = [lexicon.code for lexicon in lexicons]
    sizes = {
        "train_english": train_english,
        "train_per_language": train_per_language,
        "tune_per_language": tune_per_language,
        "test_per_language": test_per_language,
    }
    check_numbers(seed, sizes)

    def images(pool: Pool, code: str) -> int:
        return train_english if pool == "train" and code == "en" else sizes[f"{pool}_per_language"]

    total = sum(images(pool, lexicon.code) for pool in POOLS for lexicon in lexicons)
    with written_whole(Path(folder), version=VERSION) as partial, progress("reading", total) as advance:
        for pool_name in POOLS:
            pool = new_pool(partial, pool_name)
            with ExitStack() as files:
                rows = open_rows(files, partial / SPLITS[pool_name], codes)
                for lexicon in lexicons:
                    for index in range(images(pool_name, lexicon.code)):
                        word, row = _reading_row(lexicon, pool_name, index, seed)
                        rng = stream(seed, f"reading/{pool_name}/{lexicon.code}", index)
                        image = reading_image(word, rng, language=lexicon.code)
                        save_png(image, pool / f"{lexicon.code}-{index:05d}.png")
                        rows[lexicon.code].write(json_line(row))
                        advance()
        write_corpus_file(
            partial,
            name="reading",
            languages=codes,
            translatable=False,
            splits=PERMISSIONS,
            seed=seed,
            note=made("reading", VERSION, seed, sizes),
        )
    return Path(folder)


# --- rows


def _train_rows(
    scene: Scene, index: int, seed: int, lexicons: Sequence[Lexicon], mistakes: float
) -> Iterator[tuple[str, Row, Row]]:
    """Per language: its code, the caption row and the dialogue row of one training image."""
    rng = stream(seed, "shapes/train/questions", index)
    turns: list[Question | None] = list(questions_for(scene, rng, n=DIALOGUE_TURNS))
    if rng.random() < CAPTION_TURN_SHARE:
        turns[int(rng.integers(len(turns)))] = None  # None asks for the caption
    image_id = f"train/{index:05d}.png"
    for lexicon in lexicons:
        told = [(lexicon.caption_request, lexicon.caption(scene))]
        told += [told[0] if turn is None else (lexicon.question(turn), lexicon.answer(turn)) for turn in turns]
        if mistakes and lexicon.code != "en":
            told = with_mistakes(told, mistakes, stream(seed, f"shapes/mistakes/{lexicon.code}", index), lexicon)
        (asked, caption), *dialogue = told
        shared: Row = {"image_id": [image_id], "language": lexicon.code}
        yield (
            lexicon.code,
            {
                "id": f"shapes-captions-{index:05d}",
                "context": [asked],
                "label": [caption],
                **shared,
                "task": "caption",
                "source": "shapes",
            },
            {
                "id": f"shapes-instruct-{index:05d}",
                "context": [question for question, _ in dialogue],
                "label": [answer for _, answer in dialogue],
                **shared,
                "task": "vqa",
                "source": "shapes",
            },
        )


def _held_out_rows(
    scene: Scene, split: str, index: int, seed: int, lexicons: Sequence[Lexicon], source: str
) -> Iterator[Row]:
    """The items of one tune or test image: two questions, and for every third image its caption, in every language."""
    questions = questions_for(scene, stream(seed, f"shapes/{split}/questions", index), n=QUESTIONS_PER_IMAGE)
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
        word, source = letters_for(lexicon, stream(seed, f"reading/letters/{lexicon.code}", index)), "letters"
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


# --- scenes and lexicons


def _draw_scene(seed: int, split: str, index: int, pool: Path, *, unseen: bool) -> Scene:
    """Sample a scene, save its picture into `pool` and return the scene."""
    scene = sample_scene(stream(seed, f"shapes/{split}", index), pairs="held_out" if unseen else "training")
    save_png(render(scene, stream(seed, f"shapes/{split}/pixels", index)), pool / f"{index:05d}.png")
    return scene


def chosen_lexicons(languages: Sequence[str] | None) -> tuple[Lexicon, ...]:
    """The lexicons asked for (all when None), in the order of the language table."""
    if languages is not None and not languages:
        raise InputError("languages is empty. Name at least one language, or leave it out to write all of the world.")
    known = lexicon_codes()
    codes = known if languages is None else tuple(languages)
    return tuple(load_lexicon(code) for code in in_table_order(load_lexicon(code).code for code in codes))


def is_written(name: str, folder: Path | str) -> bool:
    """Whether `folder` holds the built-in corpus `name` as this version of the toolkit writes it with seed 0 and the
    world's own size and languages."""
    note = note_of(Path(folder))
    return note == made(name, VERSION, 0, OWN_SIZES[name]) and len(corpus_entry(Path(folder))["languages"]) == len(
        lexicon_codes()
    )
