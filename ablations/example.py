"""Makes the example records that come with the toolkit from a study's folder:

    python -m ablations.example runs/studies/drivers [runs/studies/tiling ...]

The tables are kept whole. Of the per-item table those items stay that have a picture beside it, a few of each task, so
that the answers of all arms to them can be read; how many answers of which kind and language there were is counted over
all of them beforehand. Of a study that paints some pictures of one run stay.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
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

ITEMS = 5
"""Items kept of each task and source."""
MOST_ANSWERS = 15_000
"""Answers kept of a study: with many arms, fewer items."""
PAINTED = 6
"""Prompts of which pictures are kept."""
PACKED: Any = {"compression": "zstd", "compression_level": 19, "index": False}


def write_example(folder: str | Path, *, into: Path = EXAMPLES, items: int = ITEMS) -> Path:
    """Write the example records of one study's folder, whole or not at all; returns where they lie. Whatever lay there
    is replaced."""
    results = load_results(folder)
    place = into / results.name
    into.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=into, prefix=".") as beside:
        made = Path(beside) / results.name
        made.mkdir()
        table = results.table.assign(value=results.table["value"].round(4))
        table.to_parquet(made / RESULTS_FILE, **PACKED)
        for name in (PLANNED_FILE, BUDGET_FILE, ORIGIN_FILE):
            if (results.folder / name).exists():
                shutil.copy(results.folder / name, made / name)
        if (results.folder / PREDICTIONS_FILE).exists():
            _write_answers(results, made, items)
        _keep_painted(results, made)
        shutil.rmtree(place, ignore_errors=True)
        made.rename(place)
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


def _keep_painted(results: Results, place: Path) -> None:
    """Keep some pictures of one run of the baseline, in every language, where it has painted any."""
    rows = results.table[results.table["task"] == "paint"]
    if rows.empty or results.baseline not in set(rows["arm"]):
        return
    cell = Path("cells") / rows[rows["arm"] == results.baseline].sort_values("seed")["run"].iloc[0]
    if not (results.folder / cell / PREDICTIONS_FILE).exists():
        return
    answers = pd.read_parquet(results.folder / cell / PREDICTIONS_FILE)
    painted = answers[answers["task"] == "paint"]
    items = painted["item"].unique()
    kept = painted[painted["item"].isin(items[:: max(1, len(items) // PAINTED)][:PAINTED])]
    for name in kept["image"]:
        (place / cell / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(results.folder / cell / name, place / cell / name)
    kept.to_parquet(place / cell / PREDICTIONS_FILE, **PACKED)


def main(folders: Sequence[str]) -> int:
    """Write the example records of these folders and say how large they are; returns the exit status."""
    for folder in folders:
        try:
            place = write_example(folder)
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        print(f"{place}: {_size(place) / 1e3:,.0f} kB")
    print(f"all examples: {_size(EXAMPLES) / 1e6:.2f} MB")
    return 0


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
