"""Writes the corpus `paint`: small pictures of one shape with their captions, to learn to paint from, and prompts.
Called by `python -m lvlm data paint DIR`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from lvlm.data.worlds.canvas import SCENES, TRAINING_SCENES, attributes, draw
from lvlm.data.worlds.folder import (
    POOLS,
    Permission,
    Pool,
    Row,
    check_numbers,
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
from lvlm.data.worlds.lexicon import Lexicon
from lvlm.data.worlds.scenes import HELD_OUT, Scene
from lvlm.data.worlds.writer import chosen_lexicons
from lvlm.errors import InputError
from lvlm.records import RENDERINGS_FILE

VERSION = 1
"""Of what is written; raised when the same seed and sizes give other files than before."""
OWN_SIZES = {"train_images": 1600, "tune_images": 24, "test_images": len(SCENES)}
SPLITS: dict[Pool, str] = {"train": "captions", "tune": "tune", "test": "test"}
PERMISSIONS: dict[str, Permission] = {"captions": "train", "tune": "tune", "test": "report"}
NAMES = {True: "paint_native", False: "paint"}


def write_paint(
    folder: Path | str,
    *,
    seed: int,
    train_images: int = OWN_SIZES["train_images"],
    tune_images: int = OWN_SIZES["tune_images"],
    test_images: int = OWN_SIZES["test_images"],
    languages: Sequence[str] | None = None,
    native: bool = False,
    mismatch: float | None = None,
) -> Path:
    """Write the corpus into a new `folder` and return it.

    Rows to train on have a picture and its caption; prompts to tune and report on are captions, whose gold answer
    names the attributes and whose picture is what could have been painted. Training shows no held-out pair of colour
    and shape; of the prompts to report on, those with one have the `source` `unseen`. The clean rendering of every
    scene stands in `renderings.json`.

    With `native` every language has pictures of its own and the corpus is not translatable; the share `mismatch` of
    its training captions tells of another picture, as captions found on the web often do.
    """
    sizes = {"train_images": train_images, "tune_images": tune_images, "test_images": test_images}
    check_numbers(seed, sizes)
    if mismatch is not None and not native:
        raise InputError("--mismatch is about captions found beside pictures: give --native with it.")
    if mismatch is not None and not 0 <= mismatch <= 1:
        raise InputError(f"--mismatch is {mismatch:g}; it is a share from 0 to 1.")
    lexicons, name = chosen_lexicons(languages), NAMES[native]
    codes = [lexicon.code for lexicon in lexicons]
    total = sum(sizes.values()) * (len(codes) if native else 1)
    with written_whole(Path(folder), version=VERSION) as partial, progress(name, total) as advance:
        for pool in POOLS:
            place = new_pool(partial, pool)
            with ExitStack() as files:
                rows = open_rows(files, partial / SPLITS[pool], codes)
                for own in [[lexicon] for lexicon in lexicons] if native else [lexicons]:
                    mark = f"{own[0].code}-" if native else ""
                    for index in range(sizes[f"{pool}_images"]):
                        scene = _scene(seed, f"{name}/{pool}/{mark}", pool, index)
                        picture = draw(scene, stream(seed, f"{name}/{pool}/{mark}pixels", index))
                        save_png(picture, place / f"{mark}{index:05d}.png")
                        told = scene
                        if mismatch and pool == "train":
                            told = _told(scene, seed, f"{name}/{pool}/{mark}told", index, mismatch)
                        for lexicon in own:
                            row = _row(lexicon, told, pool, f"{mark}{index:05d}", name)
                            rows[lexicon.code].write(json_line(row))
                        advance()
        _write_renderings(partial)
        settings = sizes if mismatch is None else sizes | {"mismatch in percent": round(100 * mismatch)}
        write_corpus_file(
            partial,
            name=name,
            languages=codes,
            translatable=not native,
            splits=PERMISSIONS,
            seed=seed,
            note=made(name, VERSION, seed, settings),
        )
    return Path(folder)


def is_written(folder: Path | str) -> bool:
    """Whether `folder` holds the corpus as this version of the toolkit writes it by itself."""
    return note_of(Path(folder)) == made("paint", VERSION, 0, OWN_SIZES)


def _scene(seed: int, purpose: str, pool: Pool, index: int) -> Scene:
    """Prompts to report on take turns through everything that can be shown, the others are drawn."""
    if pool == "test":
        return SCENES[index % len(SCENES)]
    return TRAINING_SCENES[int(stream(seed, purpose, index).integers(len(TRAINING_SCENES)))]


def _told(scene: Scene, seed: int, purpose: str, index: int, mismatch: float) -> Scene:
    """What the caption of a picture tells of: the picture, or by chance another one."""
    rng = stream(seed, purpose, index)
    if rng.random() >= mismatch:
        return scene
    others = [other for other in TRAINING_SCENES if other != scene]
    return others[int(rng.integers(len(others)))]


def _row(lexicon: Lexicon, scene: Scene, pool: Pool, number: str, name: str) -> Row:
    caption, image = lexicon.caption(scene), f"{pool}/{number}.png"
    shared: Row = {"id": f"{name}-{pool}-{number}", "language": lexicon.code}
    if pool == "train":
        asked = {"context": [lexicon.caption_request], "label": [caption], "image_id": [image]}
        return shared | asked | {"task": "caption", "source": name}
    gold = " ".join(f"{kind}:{value}" for kind, value in attributes(scene).items())
    source = "unseen" if scene.pairs & HELD_OUT else "seen"
    prompt = {"context": [caption], "label": [""], "text_label": gold, "image_id": image}
    return shared | prompt | {"task": "paint", "source": source}


def _write_renderings(folder: Path) -> None:
    """The clean renderings, and what each shows."""
    place = new_pool(folder, "clean")
    shown = {}
    for index, scene in enumerate(SCENES):
        file = f"clean/{index:02d}.png"
        save_png(draw(scene), place / f"{index:02d}.png")
        shown[file] = attributes(scene)
    write_text(folder / RENDERINGS_FILE, json.dumps(shown, indent=1) + "\n")
