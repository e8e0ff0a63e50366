"""Seconds from the command to the first optimizer step on the tiny model.

python tests/bench/startup.py [--rounds 3]        about a minute

Each round starts the run that `python -m lvlm train tiny` is, in a process and a work folder of its own, with the
corpus written beforehand, and stops it after its first step. CPU seconds, of all its processes, tell more than wall
seconds where others use the machine.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from loops.measure import load

from lvlm.data.worlds.writer import write_world

CHILD = """
import os, sys, time
from lvlm.cli import read_run
from lvlm.run import run
def note(event):
    if "loss" in event:
        print("FIRST", time.time(), sum(os.times()[:4]), flush=True)
        raise KeyboardInterrupt
config = read_run("tiny", sys.argv[2:])
run(config, sys.argv[1] + "/run", home=sys.argv[1] + "/home", on_progress=note)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--shapes", type=Path, default=Path("runs/data/shapes"), help="written if it is missing")
    options = parser.parse_args()
    if not (options.shapes / "corpus.yaml").exists():
        write_world("shapes", options.shapes, seed=0)
    wall, cpu = [], []
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory(prefix="lvlm-bench-") as scratch:
            seconds = first_step(Path(scratch), options.shapes.resolve())
            wall.append(seconds[0])
            cpu.append(seconds[1])
    for name, values in (("first step after", wall), ("CPU until then", cpu)):
        print(f"{name} {statistics.median(values):.1f} s {[round(value, 1) for value in values]}")
    print(load())


def first_step(scratch: Path, shapes: Path) -> tuple[float, float]:
    """(wall seconds, CPU seconds of its processes) until the run's first step is done."""
    corpora = [
        f"{stage}.mix.corpora=[{{path: {shapes}, split: {split}, samples: {samples}}}]"
        for stage, split, samples in (("pretrain", "captions", 2000), ("instruct", "instruct", 3200))
    ]
    test = f"evaluate.corpora=[{{path: {shapes}, split: test}}]"
    started = time.time()
    child = subprocess.run(
        [sys.executable, "-c", CHILD, str(scratch), *corpora, test], capture_output=True, text=True, check=False
    )
    ends = [line.split()[1:] for line in child.stdout.splitlines() if line.startswith("FIRST")]
    if not ends:
        sys.exit(f"the run took no step:\n{child.stderr[-2000:]}")
    at, cpu = map(float, ends[0])
    return at - started, cpu


if __name__ == "__main__":
    main()
