"""Makes the example records that come with the toolkit from a study's folder:

    python -m ablations.example runs/studies/drivers [runs/studies/tiling ...]

The tables are kept whole. Of the per-item table those items stay that have a picture beside it, a few of each task, so
that the answers of all arms to them can be read; how many answers of which kind and language there were is counted over
all of them beforehand.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from ablations.answers import COLUMNS, COUNTS_FILE, counts, read_predictions
from ablations.origin import ORIGIN_FILE
from ablations.places import EXAMPLES, PLANNED_FILE, RESULTS_FILE
from ablations.table import BUDGET_FILE, THUMBNAILS_FILE, Results, load_results
from lvlm.errors import InputError
from lvlm.records import PREDICTIONS_FILE

ITEMS = 8
"""Items kept of each task and source."""
MOST_ANSWERS = 20_000
"""Answers kept of a study: with many arms, fewer items."""
PACKED: Any = {"compression": "zstd", "compression_level": 19, "index": False}


def write_example(folder: str | Path, *, into: Path = EXAMPLES, items: int = ITEMS) -> Path:
    """Write the example records of one study's folder; returns where they lie. Whatever lay there is replaced."""
    results = load_results(folder)
    place = into / results.name
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    table = results.table.assign(value=results.table["value"].round(4))
    table.to_parquet(place / RESULTS_FILE, **PACKED)
    for name in (PLANNED_FILE, BUDGET_FILE, ORIGIN_FILE):
        if (results.folder / name).exists():
            shutil.copy(results.folder / name, place / name)
    if (results.folder / PREDICTIONS_FILE).exists():
        _write_answers(results, place, items)
    return place


def _write_answers(results: Results, place: Path, items: int) -> None:
    counts(results).to_parquet(place / COUNTS_FILE, **PACKED)
    path = results.folder / THUMBNAILS_FILE
    if not path.exists():
        raise InputError(
            f"{results.folder} holds no {THUMBNAILS_FILE}: write the pictures of its items, from where its corpora are "
            f"found, with python -m sweeps export {results.name}{results.home_option}."
        )
    pictures = pd.read_parquet(path)
    answers = read_predictions(results)
    key = ["task", "source", "item"]
    asked = answers.groupby(key, sort=False).size()
    while True:
        kept = pictures.groupby(["task", "source"], sort=False).head(items)
        if items == 1 or asked.reindex(pd.MultiIndex.from_frame(kept[key])).sum() <= MOST_ANSWERS:
            break
        items -= 1
    kept[[*key, "image"]].to_parquet(place / THUMBNAILS_FILE, **PACKED)
    chosen = answers.merge(kept[key], on=key)[list(COLUMNS)]
    chosen.to_parquet(place / PREDICTIONS_FILE, **PACKED)


def main(folders: Sequence[str]) -> int:
    """Write the example records of these folders and say how large they are."""
    for folder in folders:
        place = write_example(folder)
        print(f"{place}: {_size(place) / 1e3:,.0f} kB")
    print(f"all examples: {_size(EXAMPLES) / 1e6:.2f} MB")
    return 0


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
