"""Share of a trial's wall time that is not forward, backward or generation: data, tracking, start-up, saving.

    python tests/bench/overhead.py [--samples 6000]        about two minutes on two free cores

Launches a real study of two cells (English share 0.1 and 0.9 on the built-in recipe) through `python -m sweeps launch`
in a temporary home and reads its journal and run records.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from loops.measure import load, table

from lvlm.data.worlds.writer import write_world
from lvlm.model.backbones import draws
from lvlm.records import RunRecord
from sweeps.plan import Plan, find_place
from sweeps.queue import Queue

STUDY = '''"""Two cells of the built-in recipe, for measuring what a trial spends beside its model."""

from ablations.designs import FullGrid
from ablations.factors import Factor
from ablations.studies import Study

study = Study(
    name="overhead",
    question="What does a trial spend beside its model?",
    base="tiny",
    factors=(Factor(name="english_share", path="instruct.mix.english_share", levels=(0.1, 0.9)),),
    baseline={"english_share": 0.1},
    design=FullGrid(),
    seeds=(0,),
)
'''
EXPLANATION = """\
A trial lasts from its claim to its completion in the journal of the sweep. Model time is what the run record times as
training (`train/...`), generation and scoring (`evaluate`) and features of the frozen tower (`features`); all else is
overhead: `data` reads, checks and tokenises, `start-up` imports and loads backbones, `save` writes models, `shared
stages` waits for or loads a stage of another cell, and `tracking` is what the trial's wall time has beside the record
(MLflow, journal, files). Inside `train/...`, what is not optimizer steps (probe, checkpoints, opening) is counted as
overhead too. The first cell trains the pretrain stage that the second takes over, and imports the libraries for both;
one worker runs them one after the other. The recipe's sizes are those of the studies unless --samples says less, which
makes the share look worse. The worker's own start, once for all its cells, is not part of a trial: {start:.1f} s before the
first claim, {end:.1f} s after the last cell. Wall time: {load} while this ran, and other work on the machine stretches all
phases alike."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=6000, help="instruction samples of the shapes (default: 6000)")
    parser.add_argument("--items", type=int, default=None, help="items per task and language (default: all)")
    options = parser.parse_args()
    for world in ("shapes", "reading"):
        if not Path("runs/data", world, "corpus.yaml").exists():
            write_world(world, Path("runs/data", world), seed=0)
    with tempfile.TemporaryDirectory(prefix="lvlm-bench-") as scratch:
        measure(Path(scratch), samples=options.samples, items=options.items)


def measure(scratch: Path, *, samples: int, items: int | None) -> None:
    """Launch the study in `scratch` and print where its trials' time went."""
    study, home = scratch / "overhead.py", scratch / "home"
    study.write_text(STUDY, encoding="utf-8")
    command = [sys.executable, "-m", "sweeps", "launch", str(study), "--workers", "1", "--home", str(home)]
    command.append("compute.threads=1")  # as in a study, where workers share the cores
    command += _sizes(samples, items)
    if not draws("tiny-vit"):
        from loops.tower import write_tower

        command.append(f"model.tower={write_tower(scratch / 'tower')}")
    began = time.time()
    finished = subprocess.run(command, capture_output=True, text=True, env={**os.environ}, check=False)
    ended = time.time()
    if finished.returncode:
        sys.exit(f"{' '.join(command)} ended with status {finished.returncode}:\n{finished.stdout}{finished.stderr}")
    place = find_place(study, home)
    plan = Plan.load(place)
    states = Queue(plan, place.journal).states()
    trials = {
        cell.arm: (RunRecord.load(place.cell(cell.id)), states[cell.id].finished - states[cell.id].started)
        for cell in sorted(plan.cells, key=lambda cell: states[cell.id].started or 0.0)
    }
    columns = {arm: breakdown(record, trial) for arm, (record, trial) in trials.items()}
    columns["both"] = {key: sum(column.get(key, 0.0) for column in columns.values()) for key in _keys(columns)}
    rows = [[key, *(_cell(column, key) for column in columns.values())] for key in _keys(columns)]
    shares = [f"{100 * column['overhead'] / column['trial']:.1f} %" for column in columns.values()]
    print(table(["seconds (share of the trial)", *columns], [*rows, ["overhead, share of the trial", *shares]]))
    start = min(state.started for state in states.values()) - began
    end = ended - max(state.finished for state in states.values())
    print("\n" + EXPLANATION.format(start=start, end=end, load=load()))


def breakdown(record: RunRecord, trial: float) -> dict[str, float]:
    """Seconds of a trial by what they were spent on; `model`, `overhead` and `trial` are sums."""
    phases = dict(record.provenance["seconds"])
    total = phases.pop("total")
    steps = {
        f"train/{name}": record.budget[f"{name}/train_seconds"] for name in record.provenance["stages_trained_here"]
    }
    model = {**steps, "features": phases.pop("features", 0.0), "evaluate": phases.pop("evaluate", 0.0)}
    around = sum(phases.pop(name) - seconds for name, seconds in steps.items())
    beside = {**phases, "around the steps": around, "tracking": trial - total}
    return {
        **model,
        "model": sum(model.values()),
        **beside,
        "overhead": sum(beside.values()),
        "trial": trial,
    }


def _sizes(samples: int, items: int | None) -> list[str]:
    """Overrides that scale the recipe's corpora together."""
    if samples == 6000 and items is None:
        return []
    shapes, reading = "{path: runs/data/shapes, split: %s, samples: %d}", "{path: runs/data/reading, split: %s"
    instruct = f"[{shapes % ('instruct', samples)}, {reading % 'instruct'}, languages: [en], samples: {samples // 4}}}]"
    sizes = [
        f"pretrain.mix.corpora=[{shapes % ('captions', samples * 2 // 3)}]",
        f"instruct.mix.corpora={instruct}",
    ]
    return sizes + ([f"evaluate.items={items}"] if items is not None else [])


def _keys(columns: dict[str, dict[str, float]]) -> list[str]:
    return list(dict.fromkeys(key for column in columns.values() for key in column))


def _cell(column: dict[str, float], key: str) -> str:
    return f"{column[key]:.2f} ({100 * column[key] / column['trial']:.1f} %)" if key in column else "-"


if __name__ == "__main__":
    main()
