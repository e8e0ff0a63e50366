"""Seconds and memory of effects and of resampling, each against a plain pandas loop in the same process.

python tests/bench/resampling.py [--runs 1000] [--metrics 500] [--rows 2000000] [--draws 10000]       about two minutes

Runs: effects of every arm on every language, resampled over seeds. Rows: predictions in a file, from which every arm's
effect on every language is resampled over items.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from loops.measure import load, table

from ablations.contrasts import effects
from ablations.resampling import item_bootstrap
from ablations.table import Results
from lvlm.languages import table as languages

TASKS = ("caption", "vqa", "reading", "choice", "pair")
EXPLANATION = """\
The loop is groupby().apply with {draws:,} resamples by numpy's choice in each group; it is run on {part} of the groups
and its seconds are multiplied. Each row is a process of its own; its memory is the most that it held, {base} MiB of it
before there were data. Time of the loop does not count reading; ours does. One thread; {load} at the end."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--metrics", type=int, default=500)
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--draws", type=int, default=10_000)
    parser.add_argument("--seeds", type=int, default=20, help="of each arm; resampling takes 10")
    parser.add_argument("--groups", type=int, default=8, help="that the loop is timed on")
    parser.add_argument("--one", choices=("runs", "rows"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps({"runs": of_runs, "rows": of_rows}[options.one](options)))
        return
    rows, base = [], 0
    for one in ("runs", "rows"):
        given = [
            f"--{name}={getattr(options, name)}" for name in ("runs", "metrics", "rows", "draws", "seeds", "groups")
        ]
        done = subprocess.run(
            [sys.executable, __file__, *given, "--one", one], capture_output=True, text=True, check=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        found = json.loads(done.stdout.splitlines()[-1])
        base = max(base, found["base"])
        rows.append([
            found["what"], f"{found['effects']:,}", f"{found['seconds']:.1f}", f"{found['cpu']:.1f}",
            f"{found['loop']:,.0f}", f"{found['loop'] / found['seconds']:.0f}", f"{found['peak']:,}",
        ])  # fmt: skip
    print(table(("", "effects", "seconds", "CPU s", "loop s", "times", "peak MiB"), rows))
    print("\n" + EXPLANATION.format(draws=options.draws, part=options.groups, base=base, load=load()))


def of_runs(options: argparse.Namespace) -> dict[str, object]:
    """Effects of every arm on each language and task from a table of runs x metrics."""
    generator, base = np.random.default_rng(0), _peak()
    codes, n_arms = list(languages())[: options.metrics // len(TASKS)], options.runs // options.seeds
    index = pd.MultiIndex.from_product(
        [[f"arm {number}" for number in range(n_arms)], range(options.seeds), TASKS, codes],
        names=["arm", "seed", "task", "language"],
    )
    frame = index.to_frame(index=False).assign(metric="score", value=generator.normal(50, 5, len(index)))
    frame["tier"] = frame["language"].map(lambda code: languages()[code].tier)
    results = Results(table=frame, folder=Path(), study=None)
    began, cpu = time.perf_counter(), time.process_time()
    count = sum(
        len(effects(results, baseline="arm 0", by="language", task=task, draws=options.draws)) for task in TASKS
    )
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    wide = frame.set_index(["arm", "seed", "task", "language"])["value"]
    paired = (wide - wide.xs("arm 0").reindex(wide.index.droplevel("arm")).to_numpy()).reset_index()
    return {
        "what": f"{options.runs:,} runs x {options.metrics} metrics", "effects": count, "seconds": seconds, "cpu": cpu,
        "loop": _loop(paired, ["arm", "task", "language"], "value", options, generator), "peak": _peak(), "base": base,
    }  # fmt: skip


def of_rows(options: argparse.Namespace) -> dict[str, object]:
    """Effects of every arm on each language from a file of predictions: 10 arms, 5 seeds, 40 languages."""
    generator = np.random.default_rng(0)
    codes, items = list(languages())[:40], options.rows // (10 * 5 * 40)
    shape = (10, 5, 40, items)
    places = [one.ravel() for one in np.indices(shape, dtype=np.int16)]
    names = ([f"arm {n}" for n in range(10)], codes, [f"question-{n:06d}" for n in range(items)])
    chance = 0.5 + generator.normal(0, 0.15, (1, 1, 1, items)) + 0.01 * np.arange(10)[:, None, None, None]
    frame = pd.DataFrame({
        "arm": pd.Categorical.from_codes(places[0], names[0]), "seed": places[1].astype(np.int64), "task": "vqa",
        "language": pd.Categorical.from_codes(places[2], names[1]),
        "item": pd.Categorical.from_codes(places[3], names[2]),
        "score": 100.0 * (generator.random(shape) < chance).ravel(),
    }).astype({"arm": str, "language": str, "item": str})  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "predictions.parquet"
        frame.to_parquet(path)
        mean = frame.groupby(["arm", "language", "item"], sort=False)["score"].mean()
        del frame, places
        before, began, cpu = _peak(), time.perf_counter(), time.process_time()
        found = item_bootstrap(path, names[0][1:], "arm 0", draws=options.draws)
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
        peak = _peak()
    paired = (mean - mean.xs("arm 0").reindex(mean.index.droplevel("arm")).to_numpy()).reset_index()
    return {
        "what": f"{options.rows:,} rows of predictions", "effects": len(found), "seconds": seconds, "cpu": cpu,
        "loop": _loop(paired, ["arm", "language"], "score", options, generator), "peak": peak, "base": before,
    }  # fmt: skip


def _loop(
    paired: pd.DataFrame, keys: list[str], value: str, options: argparse.Namespace, generator: np.random.Generator
) -> float:
    """Seconds that the plain loop would take over all groups but those of the baseline."""
    rest = paired[paired["arm"] != "arm 0"]
    groups = rest[keys].drop_duplicates()
    some = rest.merge(groups.head(options.groups), on=keys)

    def interval(part: pd.DataFrame) -> pd.Series:
        own = part[value].to_numpy()
        means = [generator.choice(own, len(own)).mean() for _ in range(options.draws)]
        low, high = np.percentile(means, [2.5, 97.5])
        return pd.Series({"points": own.mean(), "low": low, "high": high})

    began = time.perf_counter()
    some.groupby(keys, sort=False)[[value]].apply(interval)
    return (time.perf_counter() - began) / options.groups * len(groups)


def _peak() -> int:
    """MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


if __name__ == "__main__":
    main()
