"""The command `python -m lvlm benchmark`: its options, and what it prints. `lvlm.cli` adds it."""

from __future__ import annotations

import argparse
from pathlib import Path

from lvlm.data.benchmarks import BENCHMARKS

TEXT = "Write a published benchmark as a corpus to evaluate on."
EXAMPLE = "benchmark xgqa downloads/xGQA runs/data/xgqa --images downloads/gqa/images"


def add_options(sub: argparse.ArgumentParser) -> None:
    """The options of the command."""
    sub.add_argument("name", metavar="NAME", help=", ".join(BENCHMARKS))
    sub.add_argument("source", type=Path, help="the folder of its files, in Centurio's form or its authors'")
    sub.add_argument("folder", type=Path, help="a new folder")
    sub.add_argument("--images", type=Path, help="where its images lie (default: with its files)")
    sub.add_argument("--languages", nargs="+", help="codes (default: all that it has)")
    sub.add_argument("--first", type=int, metavar="N", help="at most the first N items per task and language")


def run(options: argparse.Namespace) -> None:
    """Write the benchmark, and print how many items each task has in each language."""
    from lvlm.data.benchmarks.convert import write_benchmark

    written = write_benchmark(
        options.name,
        options.source,
        options.folder,
        images=options.images,
        languages=options.languages,
        first=options.first,
    )
    for (task, code), items in written.items.items():
        print(f"{task:16s} {code:6s} {items:7,}")
    print(f"written: {written.folder} (score a checkpoint on it with --corpus {written.folder}:test)")
