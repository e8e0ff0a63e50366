"""What a sweep adds to a trial, from 10 trials to 1,000 and with 1, 4 and 8 workers: claim, lease, record and tracker
around a trial that takes no time.

    python tests/bench/growth.py [--trials 10 100 1000] [--workers 1 4 8]    about twelve minutes on two free cores
    python tests/bench/growth.py --profile 1000                             where the time of one worker goes
"""

from __future__ import annotations

import argparse
import cProfile
import os
import pstats
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from itertools import pairwise
from pathlib import Path

from loops.measure import load, table

from ablations.designs import FullGrid
from ablations.factors import Factor
from ablations.studies import Study
from lvlm.records import RunRecord
from sweeps.plan import Place, Plan, find_place
from sweeps.planner import make_plan
from sweeps.queue import Queue
from sweeps.tracking import Tracker, connect

RUNNER = "loops.dummy:run"
EXPLANATION = """\
A trial of a worker lasts from the end of its trial before to its own end; overhead is that less what the dummy took to
write its record ({dummy:.0f} ms, the median). A worker's first trial is left out: it imports MLflow. Of each sweep only
the last {measured} trials are run; those before are put there as if they had been run: done in the journal, with their
records, and in MLflow with their tags but without params and metrics.
One machine with {cores} cores: with more workers than cores they wait for each other, in any sweep; what counts is that
a column does not grow from top to bottom. Milliseconds, median [10 %, 90 %] of the trials. {load} at the end."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--measured", type=int, default=80, help="trials that are run at the end of a large sweep")
    parser.add_argument("--profile", type=int, metavar="TRIALS", help="profile one worker at the end of such a sweep")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lvlm-bench-") as scratch:
        if options.profile:
            return profile(Path(scratch), options.profile, options.measured)
        rows, dummies = [], []
        for trials in options.trials:
            row = [f"{trials:,} trials"]
            start = Path(scratch) / str(trials)
            planned(start, trials, measured=options.measured)
            for workers in options.workers:
                home = Path(scratch) / f"{trials}-{workers}"
                shutil.copytree(start, home)
                overheads, dummy = measure(home, workers)
                dummies += dummy
                row.append(_spread(overheads))
                print(f"{trials} trials, {workers} workers: {row[-1]} ms ({len(overheads)} trials)", flush=True)
            rows.append(row)
    print("\n" + table(["overhead of a trial, ms", *(f"{n} worker{'s' * (n > 1)}" for n in options.workers)], rows))
    dummy = 1000 * statistics.median(dummies)
    print("\n" + EXPLANATION.format(dummy=dummy, measured=options.measured, cores=os.cpu_count(), load=load()))


def planned(home: Path, trials: int, *, measured: int) -> tuple[Plan, Place]:
    """A launched sweep of which all trials but the last `measured` are done."""
    seeds = 2 if trials < 1000 else 10
    study = Study(
        name="growth",
        question="Does the overhead of a trial grow with the sweep?",
        base={"instruct": {"mix": {"corpora": [{"path": "shapes", "split": "train"}]}}},
        factors=(
            Factor(
                name="english_share",
                path="instruct.mix.english_share",
                levels=tuple(round((number + 1) / (trials // seeds + 2), 6) for number in range(trials // seeds)),
            ),
        ),
        baseline={"english_share": round(1 / (trials // seeds + 2), 6)},
        design=FullGrid(),
        seeds=tuple(range(seeds)),
    )
    plan = make_plan(study, runner=RUNNER)
    place = plan.place(home)
    plan.save(place)
    queue, tracker = Queue(plan, place.storage), Tracker(place, plan)
    queue.add_missing()
    tracker.mark("RUNNING", queue.states())
    client = connect(home)
    experiment = client.get_experiment_by_name(plan.study).experiment_id
    (parent,) = client.search_runs([experiment])
    from loops.dummy import run

    for cell in plan.cells[: max(0, trials - measured)]:
        claim = queue.claim()
        assert claim is not None and claim.cell.id == cell.id
        place.cell(cell.id).mkdir(parents=True)
        run(cell.run_config(), place.cell(cell.id), home=home, on_progress=lambda _: None)
        tags = {"study": plan.study, "arm": cell.arm, "cell_id": cell.id, "mlflow.parentRunId": parent.info.run_id}
        client.create_run(experiment, tags=tags)
        queue.complete(claim, 50.0)
    return plan, place


def measure(home: Path, workers: int) -> tuple[list[float], list[float]]:
    """Seconds of overhead of each trial that is run, and what its dummy took."""
    place = find_place("growth", home)
    plan = Plan.load(place)
    left = [cell.id for cell in plan.cells if not place.is_recorded(cell.id)]
    root = Path(__file__).resolve().parents[2]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(root), str(root / "tests/bench")]),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "sweeps", "worker", plan.study, "--home", str(home)]
    place.logs.mkdir(parents=True, exist_ok=True)
    crew = []
    for number in range(workers):
        with open(place.logs / f"worker-{number}.log", "ab") as log:
            crew.append(subprocess.Popen(command, stdout=log, stderr=log, env=environment))
    if any(process.wait() for process in crew):
        sys.exit((place.logs / "worker-0.log").read_text(encoding="utf-8")[-2000:])
    ends: dict[int, list[tuple[float, str]]] = defaultdict(list)
    for cell_id, state in Queue(plan, place.storage).states().items():
        if cell_id in left:
            assert state.owner is not None and state.finished is not None
            ends[state.owner["pid"]].append((state.finished, cell_id))
    overheads, dummies = [], []
    for trail in ends.values():
        trail.sort()
        for (before, _), (end, cell_id) in pairwise(trail):
            dummies.append(RunRecord.load(place.cell(cell_id)).budget["seconds"])
            overheads.append(end - before - dummies[-1])
    return overheads, dummies


def profile(home: Path, trials: int, measured: int) -> None:
    """Print where one worker's time goes over the last trials of a sweep, by function with what it calls."""
    from sweeps.worker import Worker

    plan, place = planned(home, trials, measured=measured)
    profiler = cProfile.Profile()
    profiler.enable()
    Worker(plan, place).work()
    profiler.disable()
    stats = pstats.Stats(profiler)
    stats.sort_stats("cumulative").print_stats(r"sweeps/|lvlm/|optuna/storages|fsync|mlflow/tracking/client", 45)
    print(f"{min(trials, measured)} trials, the first with its imports. {load()}")


def _spread(seconds: list[float]) -> str:
    if len(seconds) < 2:
        return "-"
    cuts = statistics.quantiles([1000 * value for value in seconds], n=10)
    return f"{1000 * statistics.median(seconds):.0f} [{cuts[0]:.0f}, {cuts[-1]:.0f}]"


if __name__ == "__main__":
    main()
