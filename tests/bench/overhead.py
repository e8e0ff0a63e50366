"""Share of a trial's wall time that is not forward, backward or generation: data, tracking, start-up, saving.

    python tests/bench/overhead.py [--samples 2000]        about three minutes on a free core
    python tests/bench/overhead.py --finished drivers      seconds: reads a study that has been run

Launches a real study of two cells (English share 0.1 and 0.9 on the built-in recipe) through `python -m sweeps launch`
in a temporary home and reads its journal and run records; or reads those of a finished study in the work folder.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from loops.measure import load, table

from lvlm.data.worlds.writer import is_written, write_world
from lvlm.model.backbones import draws
from lvlm.records import RunRecord
from sweeps.plan import Place, Plan, find_place
from sweeps.queue import CellState, Queue

STUDY = '''"""Two cells of the built-in recipe, for measuring what a trial spends beside its model."""

from ablations.designs import FullGrid
from ablations.factors import Factor
from ablations.studies import Study

study = Study(
    name="overhead",
    question="What does a trial spend beside its model?",
    base="tiny",
    factors=(Factor(name="english_share", path="instruct.mix.english_share", levels=(0.1, 0.9)),),
    baseline={{"english_share": 0.1}},
    design=FullGrid(),
    seeds=(0,),
    fixed={fixed!r},
)
'''
EXPLANATION = """\
A trial lasts from its claim to its completion in the sweep's journal. Model time is what the run record times as the
steps of training (`train/...`), generation and scoring (`evaluate`) and features of the frozen tower (`features`); all
else is overhead: `start-up` imports and loads backbones, `data` reads, checks and tokenises, `save` writes models,
`shared stages` waits for or loads a stage of another cell, `around the steps` is the rest of the training phase (probe,
checkpoints), and `tracking` is what the trial has beside its record (MLflow, journal, files). Reading images and
features inside a step counts as model time, for the record does not part them. One worker with one thread runs the
cells one after the other: the first trains the pretrain stage that the second takes over, and imports the libraries for
both. Two thirds of the recipe's samples by default, which raises the share: much of the overhead is fixed. A worker's
own start is no part of a trial: {start:.1f} s until the first claim, {end:.1f} s after the last cell. Wall time, {load}
at the end; other work on the machine stretches all phases."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--samples", type=int, default=2000, help="instruction samples of the shapes; the recipe has 3200"
    )
    parser.add_argument("--items", type=int, default=40, help="evaluation items per task and language")
    parser.add_argument("--finished", metavar="STUDY", help="read this study in $LVLM_HOME or ./runs; runs nothing")
    options = parser.parse_args()
    if options.finished:
        return read_finished(options.finished)
    if not is_written("shapes", "runs/data/shapes"):
        write_world("shapes", "runs/data/shapes", seed=0)
    with tempfile.TemporaryDirectory(prefix="lvlm-bench-") as scratch:
        measure(Path(scratch), samples=options.samples, items=options.items)


def measure(scratch: Path, *, samples: int, items: int) -> None:
    """Launch the study in `scratch` and print where its trials' time went."""
    study, home = scratch / "overhead.py", scratch / "home"
    fixed = _settings(samples, items)
    if not draws("tiny-vit"):
        from loops.tower import write_tower

        fixed["model.tower"] = str(write_tower(scratch / "tower"))
    study.write_text(STUDY.format(fixed=fixed), encoding="utf-8")
    command = [sys.executable, "-m", "sweeps", "launch", str(study), "--workers", "1", "--home", str(home)]
    began = time.time()
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    ended = time.time()
    if finished.returncode:
        sys.exit(f"{' '.join(command)} ended with status {finished.returncode}:\n{finished.stdout}{finished.stderr}")
    states, columns = trials(find_place(study, home))
    columns["both"] = {key: sum(column.get(key, 0.0) for column in columns.values()) for key in _keys(columns)}
    rows = [[key, *(_cell(column, key) for column in columns.values())] for key in _keys(columns)]
    shares = [f"{100 * column['overhead'] / column['trial']:.1f} %" for column in columns.values()]
    print(table(["seconds (share of the trial)", *columns], [*rows, ["overhead, share of the trial", *shares]]))
    start = min(state.started for state in states.values()) - began
    end = ended - max(state.finished for state in states.values())
    print("\n" + EXPLANATION.format(start=start, end=end, load=load()))


def read_finished(study: str) -> None:
    """Print the sums over all trials of a study that finished at their first attempt, and the range of their shares."""
    _, columns = trials(find_place(study))
    if not columns:
        sys.exit(f"No cell of '{study}' is done yet.")
    total = {key: sum(column.get(key, 0.0) for column in columns.values()) for key in _keys(columns)}
    print(table(["seconds (share)", f"{len(columns)} trials"], [[key, _cell(total, key)] for key in total]))
    shares = sorted(100 * column["overhead"] / column["trial"] for column in columns.values())
    print("Model time is training steps, generation with scoring, and features; reading images inside a step is in it.")
    print(f"overhead of single trials: median {shares[len(shares) // 2]:.1f} %, {shares[0]:.1f} to {shares[-1]:.1f} %")


def trials(place: Place) -> tuple[dict[str, CellState], dict[str, dict[str, float]]]:
    """The journal's states, and the breakdown of every finished trial by `arm, seed`, in the order of their start."""
    plan = Plan.load(place)
    states = Queue(plan, place.storage).states()
    # A resumed trial's record counts the steps of every attempt and the phases of the last one.
    done = [cell for cell in plan.cells if states[cell.id].state == "done" and states[cell.id].attempt == 1]
    done.sort(key=lambda cell: states[cell.id].started or 0.0)
    columns = {}
    for cell in done:
        state = states[cell.id]
        assert state.started is not None and state.finished is not None
        columns[f"{cell.arm}, seed {cell.seed}"] = breakdown(
            RunRecord.load(place.cell(cell.id)), state.finished - state.started
        )
    return states, columns


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


def _settings(samples: int, items: int) -> dict[str, Any]:
    """Dotted fields that scale the recipe's corpora together; one thread, as where workers share the cores."""
    shapes = "runs/data/shapes"
    captions = {"path": shapes, "split": "captions", "samples": samples * 2 // 3}
    dialogues = {"path": shapes, "split": "instruct", "samples": samples}
    return {
        "pretrain.mix.corpora": [captions],
        "instruct.mix.corpora": [dialogues],
        "evaluate.items": items,
        "compute.threads": 1,
    }


def _keys(columns: dict[str, dict[str, float]]) -> list[str]:
    return list(dict.fromkeys(key for column in columns.values() for key in column))


def _cell(column: dict[str, float], key: str) -> str:
    return f"{column[key]:.2f} ({100 * column[key] / column['trial']:.1f} %)" if key in column else "-"


if __name__ == "__main__":
    main()
