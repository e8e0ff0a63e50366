"""Writes the emoji world as a corpus folder: scenes to name, then names, choices and pairs. Called by `python -m lvlm
data emoji DIR` and by tests.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from lvlm.data.checks import IMAGE_PLACEHOLDER
from lvlm.data.worlds.cldr import open_names
from lvlm.data.worlds.emoji import OWN_GROUP, OWN_NUMBER, Concepts, load_concepts
from lvlm.data.worlds.emoji_items import LETTERS, Item, Kind, answer, choice_item, hard_negatives, pair_item, prompt
from lvlm.data.worlds.emoji_pictures import AUGMENTATIONS, Augmentation, Pictures, open_pictures
from lvlm.data.worlds.emoji_pictures import scene as scene_picture
from lvlm.data.worlds.emoji_pictures import single as single_picture
from lvlm.data.worlds.folder import (
    POOLS,
    Pool,
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
from lvlm.errors import InputError
from lvlm.languages import group_languages

VERSION = 1
"""Of what the world writes; raised when the same seed, sizes and sources give other files than before."""
OWN_SIZES = {"train_images": 2400, "tune_images": 60, "test_images": 240}
KINDS: tuple[Kind, ...] = ("naming", "choice", "naming", "pair")
"""Of the training items, in turn."""
SCENE_PROBABILITY = {1: 0.4, 2: 0.3, 3: 0.15, 4: 0.15}
"""How many emoji a picture to describe shows."""
CAPTION_EVERY = 3  # one in so many tune and test images has a scene beside it
CONCEPTS_FILE = "concepts.json"
REFUSED_FILE = "refused.csv"
PICTURES_FOLDER = "pictures"


def write_emoji(
    folder: Path | str,
    *,
    seed: int,
    train_images: int | None = None,
    tune_images: int | None = None,
    test_images: int | None = None,
    languages: Sequence[str] | None = None,
    concepts: int | None = None,
    names: Path | str | None = None,
    pictures: Path | str | None = None,
) -> Path:
    """Emoji and their names; the same ids in the same order in every language, so that only concepts which all
    `languages` name take part, and of those `concepts` (see `load_concepts`). The others are in `refused.csv`, with the
    languages that lack them. A size that is None is the world's own.

    Splits: `captions` (scenes of one to four) and `instruct` (names, choices, pairs) for training; `tune` and `test`
    with all four tasks. Every second of their images shows a concept that training neither shows nor names (`source`
    is `unseen`, else `seen`), and two of four lie as none in training does (`seen:rotation`). `names` and `pictures`
    are as in `open_names` and `open_pictures`. `concepts.json` has the names and who is related, `pictures/` each
    emoji once.
    """
    given = {"train_images": train_images, "tune_images": tune_images, "test_images": test_images}
    sizes = {name: own if (wish := given[name]) is None else wish for name, own in OWN_SIZES.items()}
    check_numbers(seed, sizes)
    source, drawn = open_names(names), open_pictures(pictures)
    known = load_concepts(source, pictures=drawn, languages=languages, number=concepts)
    with written_whole(Path(folder), version=VERSION) as partial, progress("emoji", sum(sizes.values())) as advance:
        world = _World(partial, known, drawn, seed)
        for pool, images in zip(POOLS, sizes.values(), strict=True):
            new_pool(partial, pool)
            splits = ("captions", "instruct") if pool == "train" else (pool,)
            with ExitStack() as files:
                rows = {split: open_rows(files, partial / split, known.languages) for split in splits}
                for split, item_id, item, shown, origin in world.items(pool, images, advance):
                    for code in known.languages:
                        row = _row(item, item_id, shown, origin, known, code, gold=pool != "train")
                        rows[split][code].write(json_line(row))
        _write_concepts(partial, known, drawn)
        _write_corpus_file(partial, known, seed, sizes, f"{source.title} and {drawn.title}")
    return Path(folder)


def is_written(folder: Path | str) -> bool:
    """Whether `folder` holds the world as this version writes it with seed 0, its own size and the languages that
    Unicode CLDR has here; without CLDR any will do."""
    folder = Path(folder)
    if not note_of(folder).startswith(made("emoji", VERSION, 0, {**OWN_SIZES, "concepts": OWN_NUMBER})):
        return False
    try:
        languages = group_languages(OWN_GROUP, open_names().languages())
    except InputError:
        return True
    return tuple(corpus_entry(folder)["languages"]) == languages


Entry = tuple[str, str, Item, list[str], str]
"""Split, id, item, its images, source."""


class _World:
    """Draws items and saves their pictures. Every picture and item has a random stream of its own."""

    def __init__(self, folder: Path, concepts: Concepts, pictures: Pictures, seed: int) -> None:
        self.folder, self.concepts, self.pictures, self.seed = folder, concepts, pictures, seed

    def items(self, pool: Pool, images: int, advance: Any) -> Iterator[Entry]:
        make = self._train if pool == "train" else self._held_out
        places = {
            "choice": _places(self._rng(f"{pool}/letters", 0), len(LETTERS)),
            "pair": _places(self._rng(f"{pool}/pairs", 0), 2),
        }
        for index in range(images):
            yield from make(pool, index, places)
            advance()

    def _train(self, pool: Pool, index: int, places: dict[str, Iterator[int]]) -> Iterator[Entry]:
        rng = self._rng("train/items", index)
        trained = self.concepts.of("train")
        shown = self._scene(trained, rng)
        name = self._save_scene(pool, index, shown)
        yield "captions", f"emoji-captions-{index:05d}", Item("caption", shown), [name], "emoji"
        concept = self._in_turn(trained, "train", index)
        item = self._item(KINDS[index % len(KINDS)], concept, rng, set(trained), places) or Item("naming", (concept,))
        yield "instruct", f"emoji-instruct-{index:05d}", item, self._save(pool, index, item.shown, None), "emoji"

    def _held_out(self, pool: Pool, index: int, places: dict[str, Iterator[int]]) -> Iterator[Entry]:
        rng = self._rng(f"{pool}/items", index)
        unseen = index % 2 == 1
        concept = self._in_turn(self.concepts.of(pool if unseen else "train"), pool, index // 2)
        far = AUGMENTATIONS[index // 4 % len(AUGMENTATIONS)] if index // 2 % 2 else None
        seen = "unseen" if unseen else "seen"
        origin = f"{seen}:{far}" if far else seen
        among = set(self.concepts.of("train", pool))
        pair = self._item("pair", concept, rng, among, places)
        images = self._save(pool, index, pair.shown if pair else (concept,), far)
        own = images[pair.answer if pair else 0]
        yield pool, f"emoji-{pool}-{index:05d}-naming", Item("naming", (concept,)), [own], origin
        if choice := self._item("choice", concept, rng, among, places):
            yield pool, f"emoji-{pool}-{index:05d}-choice", choice, [own], origin
        if pair:
            yield pool, f"emoji-{pool}-{index:05d}-pair", pair, images, origin
        if index % CAPTION_EVERY == 0:
            shown = self._scene(self.concepts.of("train"), rng)
            if unseen:
                shown = tuple(rng.permutation([concept, *shown[1:]]).tolist())
            name = self._save_scene(pool, index, shown)
            yield pool, f"emoji-{pool}-{index:05d}-scene", Item("caption", shown), [name], seen

    def _item(
        self, kind: Kind, concept: str, rng: np.random.Generator, among: set[str], places: dict[str, Iterator[int]]
    ) -> Item | None:
        """An item of this kind, whose answer stands at the next place; None where the concept has too few relatives."""
        if kind not in ("choice", "pair"):
            return None
        count = len(LETTERS) - 1 if kind == "choice" else 1
        others = hard_negatives(concept, self.concepts, rng, among=among, count=count)
        if others is None:
            return None
        place = next(places[kind])
        return (
            choice_item(concept, others, place=place) if kind == "choice" else pair_item(concept, *others, place=place)
        )

    def _in_turn(self, concepts: Sequence[str], purpose: str, index: int) -> str:
        """Every concept once before any comes again, each round in an order of its own."""
        turn, place = divmod(index, len(concepts))
        return concepts[int(self._rng(f"{purpose}/order/{len(concepts)}", turn).permutation(len(concepts))[place])]

    def _scene(self, concepts: Sequence[str], rng: np.random.Generator) -> tuple[str, ...]:
        count = int(rng.choice(list(SCENE_PROBABILITY), p=list(SCENE_PROBABILITY.values())))
        return tuple(concepts[int(i)] for i in rng.choice(len(concepts), size=count, replace=False))

    def _save(self, pool: Pool, index: int, shown: Sequence[str], far: Augmentation | None) -> list[str]:
        """One picture for each concept, as image ids."""
        names = []
        for number, concept in enumerate(shown):
            name = f"{pool}/{index:05d}-{number + 1}.png"
            rng = self._rng(f"{pool}/pixels/{number}", index)
            image = single_picture(self.pictures.picture(concept), rng, far=far)
            save_png(image, self.folder / "images" / name)
            names.append(name)
        return names

    def _save_scene(self, pool: Pool, index: int, shown: Sequence[str]) -> str:
        name = f"{pool}/{index:05d}-scene.png"
        rng, pictures = self._rng(f"{pool}/scenes", index), [self.pictures.picture(concept) for concept in shown]
        image = single_picture(pictures[0], rng) if len(pictures) == 1 else scene_picture(pictures, rng)
        save_png(image, self.folder / "images" / name)
        return name

    def _rng(self, purpose: str, index: int) -> np.random.Generator:
        return stream(self.seed, f"emoji/{purpose}", index)


def _places(rng: np.random.Generator, places: int) -> Iterator[int]:
    """Places from 0, each once before any comes again, in random order."""
    while True:
        yield from rng.permutation(places).tolist()


def _row(
    item: Item, item_id: str, images: list[str], source: str, concepts: Concepts, code: str, *, gold: bool
) -> dict[str, Any]:
    said = answer(item, concepts, code)
    text = prompt(item, concepts, code)
    return {
        "id": item_id,
        "context": [IMAGE_PLACEHOLDER * len(images) + "\n" + text if len(images) > 1 else text],
        **({"label": [""], "text_label": said} if gold else {"label": [said]}),
        "image_id": images,
        "language": code,
        "task": item.kind,
        "source": source,
    }


def _write_concepts(folder: Path, concepts: Concepts, pictures: Pictures) -> None:
    data = {
        "names": {code: dict(names) for code, names in concepts.names.items()},
        "related": {concept: list(others) for concept, others in concepts.related.items()},
    }
    write_text(folder / CONCEPTS_FILE, json.dumps(data, ensure_ascii=False, indent=1) + "\n")
    attributes = {code: concepts.attributes(code) for code in concepts.languages}
    write_text(folder / "attributes.json", json.dumps(attributes, ensure_ascii=False, indent=1) + "\n")
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["concept", "english", "reason", "languages"])
    for entry in concepts.refused:
        writer.writerow([entry.concept, entry.english, entry.reason, " ".join(entry.languages)])
    write_text(folder / REFUSED_FILE, table.getvalue())
    (folder / PICTURES_FOLDER).mkdir()
    for concept in concepts.ids:
        pictures.picture(concept).save(folder / PICTURES_FOLDER / f"{concept}.png")


def read_concepts(folder: Path | str) -> Concepts:
    """The concepts of a written world, without what was refused."""
    path = Path(folder) / CONCEPTS_FILE
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(
            f"{folder} is no emoji corpus: {path.name} cannot be read ({error}). `python -m lvlm data emoji {folder}` "
            "writes one."
        ) from error
    related = {concept: tuple(others) for concept, others in data["related"].items()}
    return Concepts(tuple(related), data["names"], related, ())


def _write_corpus_file(folder: Path, concepts: Concepts, seed: int, sizes: dict[str, int], sources: str) -> None:
    lacking = sum(entry.reason == "no name" for entry in concepts.refused)
    others = len(concepts.refused) - lacking
    write_corpus_file(
        folder,
        name="emoji",
        languages=concepts.languages,
        translatable=True,
        splits={"captions": "train", "instruct": "train", "tune": "tune", "test": "report"},
        seed=seed,
        note=(
            f"{made('emoji', VERSION, seed, {**sizes, 'concepts': len(concepts.ids)})} From {sources}, in "
            f"{len(concepts.languages)} languages; {lacking} emoji lack a name in one or more, {others} are left out "
            f"for other reasons ({REFUSED_FILE})."
        ),
        attributes="attributes.json",
    )
