"""How long a study will take, from a few steps of two of its arms on this machine: the baseline and the one with most
work per sample. Called by the command `plan` with `--probe`.

Both run in a temporary folder as a worker would run them. Elsewhere a sample's time follows its floating-point
operations, which count tiles as well as tokens; an evaluation's follows its items, with answers as long as the longest
gold one. What cells share (stages, features of images) is counted once.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablations.factors import with_values
from lvlm.config import RunConfig, fingerprint, make_config
from lvlm.errors import InputError
from lvlm.records import CURVE_FILE
from sweeps.amounts import Meter
from sweeps.devices import cores
from sweeps.plan import DEFAULT_RUNNER, Plan, PlannedCell
from sweeps.progress import duration
from sweeps.stages import stage_keys
from sweeps.worker import shared_features

if TYPE_CHECKING:
    from lvlm.evaluate.items import Asked

STEPS = 16
WARM_UP = 4
"""Of the steps, the first ones, which are not timed."""
FIXED = ("start-up", "data", "save", "shared stages", "other")
"""Phases of a run that take about as long however much it trains."""
LIKE = 0.01
"""Arms whose samples differ in work by no more than this share take equally long."""


@dataclass(frozen=True)
class Timed:
    """What a probed arm took, in seconds: a sample of each stage, an image's features, an item of the evaluation, and a
    run beside those. `flops` are those of one sample of each stage."""

    arm: str
    sample: dict[str, float]
    flops: dict[str, float]
    image: float
    item: float
    fixed: float


@dataclass(frozen=True)
class Estimate:
    """Seconds of one worker for all cells that are left, by what they go into."""

    arms: tuple[str, ...]
    cells: int
    seconds: dict[str, float]

    def lines(self, *, workers: int, price: float | None) -> list[str]:
        """The time of all cells, and with the `price` of an hour of a worker what they cost."""
        whole = sum(self.seconds.values())
        parts = ", ".join(f"{name} {duration(seconds)}" for name, seconds in self.seconds.items())
        cost = "" if price is None else f"; at {price:g} for an hour of a worker {whole / 3600 * price:,.2f}"
        arms = " and ".join(f"'{arm}'" for arm in self.arms)
        return [
            f"probe: {STEPS} steps of each stage of {arms}, with the threads that one of {workers} worker(s) has",
            f"estimated: {duration(whole)} of one worker for {self.cells} cells ({parts}), so "
            f"{duration(whole / workers)} on {workers} worker(s){cost}",
        ]


def probe(plan: Plan, left: Sequence[PlannedCell], meter: Meter, *, workers: int) -> Estimate:
    """Time a few steps, and extrapolate to the cells that are `left`. Raises `InputError` where they cannot be run."""
    if plan.runner != DEFAULT_RUNNER:
        raise InputError(f"--probe times {DEFAULT_RUNNER}, and this study is to be run by {plan.runner}.")
    baseline = plan.cells[0]  # an arrangement begins with it
    heaviest = max([baseline, *left], key=lambda cell: sum(_flops(cell.run_config(), meter).values()))
    cells = {cell.arm: cell for cell in (baseline, heaviest)}
    with tempfile.TemporaryDirectory(prefix="lvlm-probe-") as folder:
        place = Path(folder)
        timed = [_time(cell, place / cell.id, place, meter, workers=workers) for cell in cells.values()]
    return _estimate(timed, left, meter)


def _estimate(timed: Sequence[Timed], left: Sequence[PlannedCell], meter: Meter) -> Estimate:
    train: dict[str, float] = {}
    features: dict[str, float] = {}
    evaluate = 0.0
    for cell in left:
        config = cell.run_config()
        keys, flops = stage_keys(cell), _flops(config, meter)
        for name, stage in config.every_stage().items():
            samples, pool = meter.samples(config, name), meter.pool(config, name)
            train[keys[name]] = samples * _seconds(timed, name, flops[name])
            if name not in config.stages():  # its pictures have no features
                continue
            images = min(samples, len(pool)) * pool.mean("images")
            views = [cell.seed, *(cell.config["model"][key] for key in ("tower", "tiles", "fit", "image_size"))]
            key = fingerprint([views, [use.model_dump(mode="json") for use in stage.mix.corpora]])
            features[key] = images * timed[-1 if config.model.tiles > 1 else 0].image
        evaluate += len(_asked(config, meter)) * timed[0].item
    return Estimate(
        arms=tuple(one.arm for one in timed),
        cells=len(left),
        seconds={
            "training": sum(train.values()),
            "image features": sum(features.values()),
            "evaluation": evaluate,
            "the rest": len(left) * min(one.fixed for one in timed),
        },
    )


def _seconds(timed: Sequence[Timed], stage: str, flops: float) -> float:
    """Of a sample with so much work: on the line through the probed arms, or their mean where their work is alike."""
    first, last = timed[0], timed[-1]
    reach = last.flops[stage] - first.flops[stage]
    if abs(reach) <= LIKE * first.flops[stage]:
        return (first.sample[stage] + last.sample[stage]) / 2
    slope = max(0.0, (last.sample[stage] - first.sample[stage]) / reach)
    return max(0.0, first.sample[stage] + slope * (flops - first.flops[stage]))


def _flops(config: RunConfig, meter: Meter) -> dict[str, float]:
    """Stage -> floating-point operations of one sample, on the mean."""
    return {name: meter.pool(config, name).mean("flops") for name in config.every_stage()}


def _asked(config: RunConfig, meter: Meter) -> list[Asked]:
    """The items that a run's evaluation asks."""
    from lvlm.evaluate.items import asked_items

    if not config.evaluate.corpora:
        return []
    return asked_items(config.evaluate, meter.corpora(config), permission="report")


def _time(cell: PlannedCell, folder: Path, home: Path, meter: Meter, *, workers: int) -> Timed:
    from lvlm.run import run

    full = cell.run_config()
    config = _shortened(full, meter, workers=workers)
    with contextlib.redirect_stderr(io.StringIO()):
        record = run(config, folder, home=home, on_progress=lambda _: None)
    seconds: Mapping[str, float] = record.provenance["seconds"]
    items = len(_asked(config, meter))
    return Timed(
        arm=cell.arm,
        sample=_step_seconds(folder),
        flops=_flops(full, meter),
        image=seconds.get("features", 0.0) / max(1.0, record.budget.get("images", 0.0)),
        item=seconds.get("evaluate", 0.0) / max(1, items),
        fixed=sum(seconds.get(name, 0.0) for name in FIXED),
    )


def _shortened(config: RunConfig, meter: Meter, *, workers: int) -> RunConfig:
    """A few steps, and an evaluation of about one batch whose answers stop where the longest gold one does."""
    changes: dict[str, Any] = {"compute.threads": config.compute.threads or max(1, cores() // workers)}
    for name in config.every_stage():
        changes |= {f"{name}.epochs": None, f"{name}.samples": None, f"{name}.steps": STEPS}
        changes[f"{name}.validate_every"] = None
    if asked := _asked(config, meter):
        rows = len({one.row for one in asked})
        fitting = max(1, math.ceil(config.compute.evaluate_batch / rows))
        tokenizer = meter.counter(config).chat.tokenizer
        longest = max(len(tokenizer(answer)["input_ids"]) for one in asked for answer in one.item.answers)
        changes["evaluate.items"] = min(fitting, config.evaluate.items or fitting)
        changes["evaluate.max_new_tokens"] = min(config.evaluate.max_new_tokens, longest + 1)
    data = with_values(config.model_dump(mode="json"), changes)
    return shared_features(make_config(data, where="probe"))


def _step_seconds(folder: Path) -> dict[str, float]:
    """Stage -> seconds of a sample, from the curve of a run."""
    rows = [json.loads(line) for line in (folder / CURVE_FILE).read_text(encoding="utf-8").splitlines()]
    found = {}
    for stage in dict.fromkeys(row["stage"] for row in rows):
        own = [row for row in rows if row["stage"] == stage]
        first, last = own[WARM_UP - 1], own[-1]
        found[stage] = (last["seconds"] - first["seconds"]) / (last["samples"] - first["samples"])
    return found
