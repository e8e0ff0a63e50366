"""The command `python -m lvlm corpus`: its options, and what it prints. `lvlm.cli` adds it."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

TEXT = "Make a corpus out of a data set in one of the usual forms."
EXAMPLE = "corpus llava llava_v1_5_mix665k.json my_corpus --images-root images"


def add_options(sub: argparse.ArgumentParser) -> None:
    """The options of the command; the names of the forms are those of `lvlm.data.sources.forms`."""
    sub.add_argument(
        "form",
        choices=("llava", "cauldron", "parquet", "webdataset", "centurio"),
        help="llava: conversations of LLaVA, LLaVA-NeXT, ShareGPT4V (JSON, JSON Lines, parquet); cauldron: parquet "
        "with images and texts; parquet: columns that you name; webdataset: tar shards; centurio: context, label, "
        "image_id",
    )
    sub.add_argument(
        "source",
        nargs="+",
        metavar="SOURCE",
        help="files, folders, patterns such as '{0000..0009}.tar'; - is stdin",
    )
    sub.add_argument("folder", type=Path, metavar="DIR", help="a new folder")
    sub.add_argument("--language", default="en", help="that of all its texts (default: en)")
    sub.add_argument("--name", help="of the corpus (default: that of DIR)")
    sub.add_argument("--split", default="train", help="the split to write, with permission train (default: train)")
    sub.add_argument("--task", help="the task of its rows, such as caption or vqa")
    sub.add_argument("--untranslatable", action="store_true", help="its samples stay in their language: text in images")
    sub.add_argument("--limit", type=int, metavar="N", help="write at most N rows")
    sub.add_argument(
        "--images-root",
        nargs="+",
        type=Path,
        default=[],
        metavar="FOLDER",
        help="where image files are looked for, in this order (default: beside the source)",
    )
    sub.add_argument(
        "--images",
        choices=("link", "copy"),
        default="link",
        help="image files: link to their folder, or copy them; images inside the source become files in any case",
    )
    sub.add_argument(
        "--preview",
        nargs="?",
        type=int,
        const=1000,
        metavar="N",
        help="say what would become of the first N rows (1000), write nothing",
    )
    named = sub.add_argument_group("columns of parquet, or fields of the .json in webdataset")
    for name in ("image", "question", "answer", "id", "source"):
        note = " (questions and answers may be lists)" if name == "question" else ""
        named.add_argument(f"--{name}", dest=f"{name}_field", metavar="COLUMN", help=f"holds the {name}{note}")
    named.add_argument("--prompt", metavar="TEXT", help="what the user says where there is no question, as in captions")


def run(options: argparse.Namespace) -> None:
    """Write the corpus, or preview it."""
    from lvlm.data.sources.record import Fields
    from lvlm.data.sources.writer import LEDGER, Source, preview_source, write_source

    source = Source(
        form=options.form,
        files=tuple(options.source),
        language=options.language,
        name=options.name,
        split=options.split,
        task=options.task,
        translatable=not options.untranslatable,
        limit=options.limit,
        images_root=tuple(options.images_root),
        copy_images=options.images == "copy",
        fields=Fields(
            image=options.image_field,
            question=options.question_field,
            answer=options.answer_field,
            id=options.id_field,
            source=options.source_field,
            prompt=options.prompt,
        ),
    )
    if options.preview is not None:
        report = preview_source(source, options.preview)
        for row in report.examples:
            print(json.dumps(row, ensure_ascii=False))
        print("\n".join(report.lines()))
        return
    report = write_source(source, options.folder)
    print("\n".join(report.lines()))
    print(f"written: {options.folder}" + (f" (refused rows: {options.folder / LEDGER})" if report.refused else ""))
