"""What Centurio's whole ablation design costs here, against the same arms one by one under stock LLaVA and
`transformers.Trainer`, with what each saving is worth.

    python tests/bench/cost.py [--share 0.3] [--rounds 3]      about eight minutes on two free cores
    python tests/bench/cost.py --all                           every stage at full length, both sides: hours

Fails, with exit status 1, where the two sides do not do the same work, or ours costs more than 0.45 of theirs.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from loops import stock
from loops.centurio import ListedArm, listed_arms
from loops.measure import Cost, load, table
from loops.ours import Arm, Measured
from loops.tower import write_tower

from lvlm.config import RunConfig, make_config
from lvlm.data.corpus import open_corpus
from lvlm.data.plan import Plan, build_plan
from lvlm.data.worlds.writer import write_world
from lvlm.model.tokenizer import load_counter
from lvlm.settings import StageConfig
from lvlm.startup import quiet_transformers

TARGET = 0.45
BOUND = 1e-3
"""Largest relative difference of two losses of a step: beyond it the sides do not do the same work."""
AT_ONCE = (16, 8, 4)
SIDES = ("stock", "ours, features computed", "ours")
EXPLANATION = """\
The arms are the rows of the paper's tables, {rows} for a seed, of which {runs} are different runs; {seeds} seeds. Stock
runs every row; a row that repeats the run of another table is what `each run once` saves (a lab that keeps its
checkpoints by hand saves that too: the last line leaves it out). Sharing is worth nothing here: no two different runs
of this design agree in a whole stage.
Held equal: samples and their order, token ids, supervised labels, pixels, the parameters that learn (counted on both
sides), 16 samples a step, the token mean as loss, fused AdamW at a constant rate, clipping at 1, fp32, {threads}
thread(s), no loader processes, the same weights at the start; losses agree step by step: largest relative difference
{difference:.1e}. Stock pads to the longest of a batch, {at_once} samples at once (the fastest of {sizes} in a trial at
the start). Every stage begins with a fresh adapter and LoRA on both sides, as weights do not change the time; LoRA has
no dropout, as masks would differ. Ours packs samples (compute.packing=true).
In the time: Trainer.train() there; here the stage's training with probe, curve and checkpoint, saving the model, and
looking for features. Saving costs stock nothing. Computing the features of {images} images of the stages with a frozen
tower once for each seed is in `features kept` ({fill:.1f} ms an image). Not in it, on either side: planning,
tokenising, loading, evaluation, backbones; here also the sweep itself (see growth.py and overhead.py).
Measured: {measured}
Multiplied: {multiplied}
Wall time, and CPU time of all threads, which other work on the machine moves less. Both sides ran in turn and the order
changed from round to round; ratios are of pairs in one round: median [lowest, highest]. {load} at the end, after
{minutes:.0f} minutes."""


@dataclass
class Kind:
    """Stages that cost alike for a token: one of them is measured for all."""

    name: str
    arm: Arm
    tokens: int
    """LLM tokens of what is measured."""
    results: dict[str, list[Measured]] = field(default_factory=lambda: {side: [] for side in SIDES})

    @property
    def is_frozen(self) -> bool:
        return self.arm.stage.train.tower == "frozen"

    def cost(self, side: str, number: int, *, times: float = 1.0) -> Cost:
        """Of `times` as much training as is measured, in one round, with what comes once to a stage. A tower that
        learns has no features to keep."""
        result = self.results[side if self.is_frozen or side == "stock" else SIDES[1]][number]
        training = Cost(times * result.training.wall, times * result.training.cpu)
        return sum(filter(None, [result.saving, result.features]), training)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--share", type=float, default=0.3, help="of a stage's samples that is measured; with fewer, the probe before "
        "step 0, which comes once, weighs more than in a whole stage (default: 0.3)"
    )  # fmt: skip
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2, help="one on a machine where others compute (default: 2)")
    parser.add_argument("--all", action="store_true", help="every stage of every run and seed, whole, once")
    parser.add_argument("--shapes", type=Path, default=Path("runs/data/shapes"), help="written if it is missing")
    parser.add_argument("--reading", type=Path, default=Path("runs/data/reading"), help="written if it is missing")
    options = parser.parse_args()
    for name in ("shapes", "reading"):
        if not (getattr(options, name) / "corpus.yaml").exists():
            write_world(name, getattr(options, name), seed=0)
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory(prefix="lvlm-bench-") as scratch, quiet_transformers():
        sys.exit(compare(Path(scratch), options))


def compare(scratch: Path, options: argparse.Namespace) -> int:
    """Measure, add up, print; the exit status."""
    began = time.monotonic()
    base = {
        "model": {"tower": str(write_tower(scratch / "tower")), "llm": "tiny-lm/0", "adapter": "mlp"},
        "compute": {"device": "cpu", "precision": "fp32", "threads": options.threads, "packing": True},
    }
    # A seed changes who sees what and not how much there is: the first one stands for all, but where all are measured.
    seeds = range(options.seeds if options.all else 1)
    arms = [arm for seed in seeds for arm in listed_arms(options.shapes, options.reading, seed=seed, **base)]
    kinds, jobs, images = survey(arms, share=1.0 if options.all else options.share, alone=options.all)
    print(f"{len(arms)} rows, {len(jobs)} different stages, {len(kinds)} to measure", flush=True)
    at_once = fastest_batch(next(iter(kinds.values())), scratch)
    fill = Cost()
    rounds = 1 if options.all else options.rounds
    for number in range(rounds):
        for kind in kinds.values():
            if kind.is_frozen and number == 0:
                fill += fill_features(kind, scratch)
            for side in SIDES if number % 2 == 0 else SIDES[::-1]:
                if side == "ours" and not kind.is_frozen:
                    continue
                result = train(kind, side, at_once, scratch / f"{len(kind.results[side])} {kind.name} {side}", scratch)
                kind.results[side].append(result)
        print(f"round {number + 1} of {rounds} after {(time.monotonic() - began) / 60:.1f} minutes", flush=True)
    difference = agreement(kinds.values())
    filled = sum(len(set(kind.arm.batches().images())) for kind in kinds.values() if kind.is_frozen)
    design = Design(arms, kinds, jobs, seeds_measured=len(seeds), seeds=options.seeds, fills=images / filled, fill=fill)
    falls = {clock: [design.waterfall(number, clock) for number in range(rounds)] for clock in ("wall", "cpu")}
    print("\n" + table(HEAD_KINDS, [_kind_row(kind, jobs) for kind in kinds.values()]))
    print("\n" + table(HEAD, _rows(falls)) + "\n")
    runs = len({arm.key() for arm in arms}) // len(seeds)
    tokens = f"{min(kind.tokens for kind in kinds.values()):,} to {max(kind.tokens for kind in kinds.values()):,}"
    print(
        EXPLANATION.format(
            rows=len(arms) // len(seeds), runs=runs, seeds=options.seeds, threads=options.threads, at_once=at_once,
            difference=difference, sizes=", ".join(map(str, AT_ONCE)), images=f"{images:,}",
            fill=1e3 * fill.wall / filled,
            measured="every stage of every run and seed, whole, once on each side; rows that repeat a run count its "
            "time again." if options.all else f"of each of {len(kinds)} kinds of stage the first {options.share:.0%} "
            f"of the samples of one arm ({tokens} LLM tokens with those of images), {rounds} times on each side.",
            multiplied="nothing." if options.all else "the training time of a kind (with the probe, which comes only "
            "once) by the LLM tokens of each stage of each row over those measured, counted from its plan, the same "
            "factor on both sides; saving and looking for features by the number of stages; then all by the seeds.",
            load=load(), minutes=(time.monotonic() - began) / 60,
        )
    )  # fmt: skip
    ratio = statistics.median(steps["ours"] / steps["stock"] for steps in falls["wall"])
    if ratio > TARGET:
        print(f"\n{ratio:.2f} is more than {TARGET}.")
    return int(ratio > TARGET)


@dataclass(frozen=True)
class Job:
    """A stage of a row: what it costs alike with, and its LLM tokens."""

    kind: str
    tokens: int


def survey(
    arms: Sequence[ListedArm], *, share: float, alone: bool
) -> tuple[dict[str, Kind], dict[tuple[str, str], Job], int]:
    """The kinds of stage, the job behind every (run, stage), and how many images stages with a frozen tower read for
    one seed. A kind is represented by the row whose token count is nearest to the middle; `alone` makes each stage a
    kind of its own."""
    first = arms[0].config
    image_tokens = Arm.of(first).encoder.processor.image_tokens
    counter = load_counter(first.model, seed=first.seed)
    corpora = {
        use.path: open_corpus(use.path) for arm in arms for stage in arm.config.stages().values()
        for use in stage.mix.corpora
    }  # fmt: skip
    images: set[Path] = set()
    jobs: dict[tuple[str, str], Job] = {}
    members: dict[str, list[tuple[int, RunConfig, str]]] = {}
    for arm in arms:
        for name, stage in arm.config.stages().items():
            if (arm.key(), name) in jobs:
                continue
            plan = build_plan(name, stage, seed=arm.config.seed, corpora=corpora, measure=counter.measure)
            if stage.train.tower == "frozen":
                images |= {image for entry in plan.order for image in plan.image_paths(entry)}
            job = Job(f"{name} {arm.key()}" if alone else _kind(name, stage), int(plan.lengths(image_tokens).sum()))
            jobs[arm.key(), name] = job
            members.setdefault(job.kind, []).append((job.tokens, _shortened(arm.config, name, plan, share), name))
    kinds = {}
    for kind, found in members.items():
        _, config, name = sorted(found, key=lambda one: one[0])[len(found) // 2]
        measured = Arm.of(config, name)
        kinds[kind] = Kind(kind, measured, int(measured.plan.lengths(image_tokens).sum()))
    return kinds, jobs, len(images)


def _kind(name: str, stage: StageConfig) -> str:
    text = " with text in images" if len({use.path for use in stage.mix.corpora}) > 1 else ""
    return f"{name}{text}, tower {stage.train.tower}"


def _shortened(config: RunConfig, name: str, plan: Plan, share: float) -> RunConfig:
    data = config.model_dump(mode="json")
    data[name]["samples"] = max(plan.batch_samples, round(share * len(plan.order)))
    return make_config(data)


def fastest_batch(kind: Kind, scratch: Path) -> int:
    """How many samples at once are fastest for stock."""
    seconds = {
        size: train(kind, "stock", size, scratch / f"trial {size}", scratch).training.wall for size in (4, *AT_ONCE)
    }  # 4 twice: the first one warms up
    return min(seconds, key=lambda size: seconds[size])


def fill_features(kind: Kind, scratch: Path) -> Cost:
    """The cost of the features of a kind's images, in a store of its own."""
    result = kind.arm.train(scratch / f"fill {kind.name}", home=_home(kind, scratch), cached=True)
    assert result.features is not None
    return result.features


def train(kind: Kind, side: str, at_once: int, folder: Path, scratch: Path) -> Measured:
    """What is measured of a kind, once."""
    arm = kind.arm
    if side != "stock":
        return arm.train(folder, home=_home(kind, scratch), cached=side == "ours")
    prepared = arm.prepared_model()
    return stock.train(
        stock.build(prepared, arm.stage), arm.encoder.processor.tokenizer, arm.samples(), loop="Trainer",
        at_once=at_once, stage=arm.stage, transform=prepared.config.image_transform, pad_id=arm.encoder.pad_id,
        folder=folder,
    )  # fmt: skip


def _home(kind: Kind, scratch: Path) -> Path:
    return scratch / f"home {kind.name}"


def agreement(kinds: Iterable[Kind]) -> float:
    """The largest relative difference of two losses of a step; ends the program where the sides do not do the same
    work."""
    worst = 0.0
    for kind in kinds:
        for side in SIDES[1:]:
            for result, other in zip(kind.results[side], kind.results["stock"], strict=False):
                if result.trainable_parameters != other.trainable_parameters:
                    sys.exit(
                        f"{kind.name}: {result.trainable_parameters:,} parameters learn here and "
                        f"{other.trainable_parameters:,} under stock."
                    )
                for step, (a, b) in enumerate(zip(result.losses, other.losses, strict=True), start=1):
                    worst = max(worst, difference := abs(a - b) / abs(b))
                    if not difference <= BOUND:  # NaN too
                        sys.exit(f"{kind.name}: at step {step} the losses are {a:.6f} ({side}) and {b:.6f} (stock).")
    return worst


STEPS = ("stock", "each run once", "stages shared", "faster loop", "ours")
NAMES = {"stock": "stock, every row", "ours": "features kept = ours"}


@dataclass(frozen=True)
class Design:
    """All rows, and what was measured for them. `fills` times as many images as were filled are read by stages with a
    frozen tower, for each seed."""

    arms: Sequence[ListedArm]
    kinds: Mapping[str, Kind]
    jobs: Mapping[tuple[str, str], Job]
    seeds_measured: int
    seeds: int
    fills: float
    fill: Cost

    def waterfall(self, number: int, clock: str) -> dict[str, float]:
        """Seconds of the whole in one round, by `wall` or `cpu`, with one saving after the other."""
        stages = [(arm, name) for arm in self.arms for name in arm.config.stages()]
        rows = [(arm.key(), name) for arm, name in stages]
        shared = list({arm.key(upto=name): (arm.key(), name) for arm, name in stages}.values())
        fill = self.seeds * self.fills * getattr(self.fill, clock)
        return {
            "stock": self._seconds(rows, SIDES[0], number, clock),
            "each run once": self._seconds(list(dict.fromkeys(rows)), SIDES[0], number, clock),
            "stages shared": self._seconds(shared, SIDES[0], number, clock),
            "faster loop": self._seconds(shared, SIDES[1], number, clock),
            "ours": self._seconds(shared, SIDES[2], number, clock) + fill,
        }

    def _seconds(self, stages: Sequence[tuple[str, str]], side: str, number: int, clock: str) -> float:
        total = 0.0
        for stage in stages:
            job, kind = self.jobs[stage], self.kinds[self.jobs[stage].kind]
            total += getattr(kind.cost(side, number, times=job.tokens / kind.tokens), clock)
        return total * self.seeds / self.seeds_measured


HEAD = ("", "minutes", "of stock", "of the line before", "CPU: of stock", "of the line before")
HEAD_KINDS = (
    "kind of stage",
    "runs' stages",
    "tokens measured",
    "stock s",
    "ours s",
    "features kept s",
    "ratio",
    "CPU",
)
Falls = Mapping[str, Sequence[Mapping[str, float]]]
"""By clock: seconds after each saving, in each round."""


def _rows(falls: Falls) -> list[list[str]]:
    def ratios(step: str, against: str | None) -> list[str]:
        values = [[steps[step] / steps[against] for steps in falls[clock]] for clock in falls] if against else []
        return [f"{statistics.median(own):.2f} [{min(own):.2f}, {max(own):.2f}]" for own in values] or ["", ""]

    rows = []
    for before, step in zip((None, *STEPS), STEPS, strict=False):
        minutes = statistics.median(steps[step] for steps in falls["wall"]) / 60
        (wall, cpu), (wall_before, cpu_before) = ratios(step, "stock"), ratios(step, before)
        rows.append([NAMES.get(step, step), f"{minutes:.1f}", wall, wall_before, cpu, cpu_before])
    wall, cpu = ratios("ours", "each run once")
    return [*rows, ["ours, of stock with each run once", "", wall, "", cpu, ""]]


def _kind_row(kind: Kind, jobs: Mapping[tuple[str, str], Job]) -> list[str]:
    costs = {side: [kind.cost(side, number) for number in range(len(kind.results["stock"]))] for side in SIDES}
    pairs = list(zip(costs["ours"], costs["stock"], strict=True))
    shown = [f"{statistics.median(cost.wall for cost in costs[side]):.1f}" for side in SIDES]
    if not kind.is_frozen:
        shown[2] = "-"
    ratios = [statistics.median(getattr(a, clock) / getattr(b, clock) for a, b in pairs) for clock in ("wall", "cpu")]
    number = sum(job.kind == kind.name for job in jobs.values())
    return [kind.name, str(number), f"{kind.tokens:,}", *shown, *(f"{ratio:.2f}" for ratio in ratios)]


if __name__ == "__main__":
    main()
