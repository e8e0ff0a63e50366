"""The command `python -m lvlm data`: its options, and what each built-in corpus takes of them. `lvlm.cli` adds it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lvlm.errors import InputError

TEXT = "Write a built-in corpus as JSON and images."
EXAMPLE = "data shapes runs/data/shapes"
TAKES = {
    "shapes": ("mistakes",),
    "reading": ("english",),
    "plots": ("words",),
    "pages": ("words", "text", "photos"),
    "emoji": ("concepts", "names", "pictures"),
    "sentences": (),
    "origins": (),
    "paint": ("native", "mismatch"),
}
"""Built-in corpus -> options that not every one of them takes."""


def add_options(sub: argparse.ArgumentParser) -> None:
    """The options of the command."""
    sub.add_argument(
        "name",
        choices=TAKES,
        help="shapes: captions and dialogues about scenes; reading: words in scenes; plots: bar and pie plots (SMPQA); "
        "pages: text on backgrounds (after Synthdog); emoji: pictures and their names; sentences: parallel text "
        "without images; origins: dialogues and captions, pivot, translated and native, with and without noise; "
        "paint: small pictures to paint",
    )
    sub.add_argument("folder", type=Path)
    sub.add_argument("--seed", type=int, default=0)
    for split, what in (("train", "train on"), ("tune", "choose settings on"), ("test", "report on")):
        help_text = f"images to {what}, per language in reading, plots and pages; in sentences scenes"
        sub.add_argument(f"--{split}", type=int, metavar="N", help=help_text)
    sub.add_argument("--english", type=int, metavar="N", help="reading: images to train on in English")
    sub.add_argument(
        "--mistakes", type=float, metavar="SHARE",
        help="shapes: wrong words in what is to train on in other languages than English",
    )  # fmt: skip
    sub.add_argument(
        "--languages",
        nargs="+",
        help="codes (default: all that the world speaks); plots, pages and emoji also take groups (default: those of "
        "SMPQA, of --text; for emoji L100; its 'all' has names in 107)",
    )
    sub.add_argument("--words", type=Path, help="plots, pages: a word list CODE.txt or a folder of them")
    sub.add_argument("--text", type=Path, help="pages: a text CODE.txt or a folder of them, instead of word lists")
    sub.add_argument("--photos", type=Path, help="pages: a folder of photographs to write on")
    sub.add_argument(
        "--concepts", type=int, metavar="N", help="emoji: how many (default: 96, or all that every language names)"
    )
    sub.add_argument(
        "--names",
        metavar="DIR",
        help="emoji: folder 'common' of Unicode CLDR, or 'package' for the 14 languages of the Python package emoji "
        "(default: where Debian's unicode-cldr-core puts it)",
    )
    sub.add_argument(
        "--pictures",
        metavar="PATH",
        help="emoji: a colour font with bitmaps, or a folder of PNG files named by code points such as 1f436.png "
        "(default: where Debian's fonts-noto-color-emoji puts it)",
    )
    sub.add_argument("--native", action="store_true", default=None, help="paint: each language has pictures of its own")
    sub.add_argument(
        "--mismatch", type=float, metavar="SHARE", help="paint --native: captions that tell of another picture"
    )


def run(options: argparse.Namespace) -> None:
    """Write the corpus that was asked for; all but plots and pages, as they are by themselves, may be there already."""
    name, folder = options.name, options.folder
    special = {option for taken in TAKES.values() for option in taken}
    own = {option: value for option in sorted(special) if (value := getattr(options, option)) is not None}
    if idle := [f"--{option}" for option in own if option not in TAKES[name]]:
        raise InputError(f"The corpus '{name}' has no use for {' and '.join(idle)}. Leave it out.")
    sizes = {split: size for split in ("train", "tune", "test") if (size := getattr(options, split)) is not None}
    plain = not own and not sizes and (options.seed, options.languages) == (0, None)
    if plain and _is_there(name, folder):
        return print(f"already there: {folder}")
    for reason in _write(name, folder, sizes, {"seed": options.seed, "languages": options.languages, **own}).values():
        print(f"left out: {reason}", file=sys.stderr)
    print(f"written: {folder}")


def _is_there(name: str, folder: Path) -> bool:
    if name in ("shapes", "reading"):
        from lvlm.data.worlds.writer import is_written

        return is_written(name, folder)
    if name == "emoji":
        from lvlm.data.worlds import emoji_writer

        return emoji_writer.is_written(folder)
    if name in ("sentences", "origins"):
        from lvlm.data.worlds import origins_writer

        return origins_writer.is_written(name, folder)
    if name == "paint":
        from lvlm.data.worlds import paint_corpus

        return paint_corpus.is_written(folder)
    return False


def _write(name: str, folder: Path, sizes: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, str]:
    """Write the corpus; why languages of an asked group are not in it, by language."""
    if name in ("shapes", "reading"):
        from lvlm.data.worlds.writer import write_world

        write_world(name, folder, **settings, **sizes)
        return {}
    if name == "paint":
        from lvlm.data.worlds.paint_corpus import write_paint

        write_paint(folder, **settings, **{f"{split}_images": size for split, size in sizes.items()})
        return {}
    if name == "emoji":
        from lvlm.data.worlds.emoji_writer import write_emoji

        write_emoji(folder, **settings, **{f"{split}_images": size for split, size in sizes.items()})
        return {}
    if name in ("sentences", "origins"):
        from lvlm.data.worlds.origins_writer import write_origins, write_sentences

        (write_sentences if name == "sentences" else write_origins)(folder, **settings, **sizes)
        return {}
    from lvlm.data.worlds.pages_corpus import write_pages
    from lvlm.data.worlds.plots_corpus import write_plots

    write = write_plots if name == "plots" else write_pages
    _, missing = write(folder, **settings, **{f"{split}_{name}": size for split, size in sizes.items()})
    return dict(missing)
