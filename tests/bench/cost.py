"""What Centurio's whole ablation design costs here, against the same arms one by one under stock LLaVA and
`transformers.Trainer`, with what each saving is worth.

    python tests/bench/cost.py [--share 0.1] [--rounds 3]      about ten minutes on two free cores
    python tests/bench/cost.py --all                           every stage at full length, both sides: hours

Fails, with exit status 1, where the two sides do not do the same work, or ours costs more than 0.45 of theirs.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from loops import stock
from loops.centurio import ListedArm, listed_arms
from loops.measure import load, table
from loops.ours import Arm, Measured
from loops.tower import write_tower

from lvlm.config import RunConfig, make_config
from lvlm.data.worlds.writer import write_world
from lvlm.run import quiet_transformers

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
no dropout, as masks would differ.
In the time: Trainer.train() there; here the stage's training with probe, curve and checkpoint, saving the model, and
looking for features. Saving costs stock nothing. Computing the features of {images} images of the stages with a frozen
tower once for each seed is in `features kept` ({fill:.1f} ms an image). Not in it, on either side: planning,
tokenising, loading, evaluation, backbones; here also the sweep itself (see growth.py and overhead.py).
Measured: {measured}
Multiplied: {multiplied}
Wall time; both sides ran in turn and the order changed from round to round; ratios are of pairs in one round: median
[lowest, highest]. {load} at the end, {minutes:.0f} minutes."""


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

    def seconds(self, side: str, number: int) -> float:
        """Of what is measured, in one round. A tower that learns has no features to keep."""
        result = self.results[side if self.is_frozen or side == "stock" else SIDES[1]][number]
        parts = [result.training, *filter(None, [result.saving, result.features])]
        return sum(part.wall for part in parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=float, default=0.1, help="of a stage's samples that is measured (default: 0.1)")
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
        "compute": {"device": "cpu", "precision": "fp32", "threads": options.threads},
    }
    # A seed changes who sees what and not how much there is: the first one stands for all, but where all are measured.
    seeds = range(options.seeds if options.all else 1)
    arms = [arm for seed in seeds for arm in listed_arms(options.shapes, options.reading, seed=seed, **base)]
    kinds, jobs, images = survey(arms, share=1.0 if options.all else options.share, alone=options.all)
    at_once = fastest_batch(next(iter(kinds.values())), scratch)
    fill = 0.0
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
    each_fill = fill / sum(len(set(kind.arm.batches().images())) for kind in kinds.values() if kind.is_frozen)
    repeats = options.seeds if not options.all else 1
    waterfalls = [
        waterfall(arms, kinds, jobs, number, repeats=repeats, fill=each_fill * images * options.seeds)
        for number in range(rounds)
    ]
    print("\n" + table(HEAD_KINDS, [_kind_row(kind, jobs) for kind in kinds.values()]))
    print("\n" + table(HEAD, _rows(waterfalls)) + "\n")
    runs = len({arm.key() for arm in arms}) // len(seeds)
    tokens = f"{min(kind.tokens for kind in kinds.values()):,} to {max(kind.tokens for kind in kinds.values()):,}"
    print(
        EXPLANATION.format(
            rows=len(arms) // len(seeds), runs=runs, seeds=options.seeds, threads=options.threads, at_once=at_once,
            difference=difference, sizes=", ".join(map(str, AT_ONCE)), images=f"{images:,}", fill=1e3 * each_fill,
            measured="every stage of every run and seed, whole, once on each side; rows that repeat a run count its "
            "time again." if options.all else f"of each of {len(kinds)} kinds of stage the first {options.share:.0%} "
            f"of the samples of one arm ({tokens} LLM tokens with those of images), {rounds} times on each side.",
            multiplied="nothing." if options.all else "the time of a kind by the LLM tokens of each stage of each row "
            "over those measured, counted from its plan, the same factor on both sides; then by the seeds.",
            load=load(), minutes=(time.monotonic() - began) / 60,
        )
    )  # fmt: skip
    ratio = statistics.median(steps["ours"] / steps["stock"] for steps in waterfalls)
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
    planned: dict[tuple[str, str], Arm] = {}
    images: set[Path] = set()
    for listed in arms:
        for name in listed.config.stages():
            if (listed.key(), name) not in planned:
                arm = planned[listed.key(), name] = Arm.of(listed.config, name)
                if arm.stage.train.tower == "frozen":
                    images |= set(arm.batches().images())
    jobs, members = {}, dict[str, list[tuple[int, Arm]]]()
    for (run, name), arm in planned.items():
        tokens = _tokens(arm)
        kind = f"{name} {run}" if alone else _kind(arm)
        jobs[run, name] = Job(kind, tokens)
        members.setdefault(kind, []).append((tokens, arm))
    kinds = {}
    for name, found in members.items():
        _, arm = sorted(found, key=lambda one: one[0])[len(found) // 2]
        measured = arm if share == 1 else Arm.of(_shortened(arm, share), arm.name)
        kinds[name] = Kind(name, measured, _tokens(measured))
    return kinds, jobs, len(images)


def _kind(arm: Arm) -> str:
    text = " with text in images" if len({use.path for use in arm.stage.mix.corpora}) > 1 else ""
    return f"{arm.name}{text}, tower {arm.stage.train.tower}"


def _tokens(arm: Arm) -> int:
    return int(arm.plan.lengths(arm.encoder.processor.image_tokens).sum())


def _shortened(arm: Arm, share: float) -> RunConfig:
    data = arm.config.model_dump(mode="json")
    data[arm.name]["samples"] = max(arm.stage.batch_samples, round(share * len(arm.plan.order)))
    return make_config(data)


def fastest_batch(kind: Kind, scratch: Path) -> int:
    """How many samples at once are fastest for stock."""
    seconds = {
        size: train(kind, "stock", size, scratch / f"trial {size}", scratch).training.wall for size in (4, *AT_ONCE)
    }  # 4 twice: the first one warms up
    return min(seconds, key=lambda size: seconds[size])


def fill_features(kind: Kind, scratch: Path) -> float:
    """Seconds for the features of a kind's images, in a store of its own."""
    result = kind.arm.train(scratch / f"fill {kind.name}", home=_home(kind, scratch), cached=True)
    assert result.features is not None
    return result.features.wall


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


def waterfall(
    arms: Sequence[ListedArm],
    kinds: Mapping[str, Kind],
    jobs: Mapping[tuple[str, str], Job],
    number: int,
    *,
    repeats: int,
    fill: float,
) -> dict[str, float]:
    """Seconds of the whole design in one round, with one saving after the other."""

    def cost(wanted: Sequence[tuple[str, str]], side: str) -> float:
        total = 0.0
        for run, stage in wanted:
            job, kind = jobs[run, stage], kinds[jobs[run, stage].kind]
            total += kind.seconds(side, number) * job.tokens / kind.tokens
        return repeats * total

    rows = [(arm.key(), stage) for arm in arms for stage in arm.config.stages()]
    once = list(dict.fromkeys(rows))
    shared = list({arm.key(upto=stage): (arm.key(), stage) for arm in arms for stage in arm.config.stages()}.values())
    return {
        "stock": cost(rows, "stock"),
        "each run once": cost(once, "stock"),
        "stages shared": cost(shared, "stock"),
        "faster loop": cost(shared, SIDES[1]),
        "ours": cost(shared, "ours") + fill,
    }


HEAD = ("", "minutes", "of stock", "of the line before")
HEAD_KINDS = ("kind of stage", "rows' stages", "tokens measured", "stock s", "ours s", "features kept s", "ratio")


def _rows(waterfalls: Sequence[Mapping[str, float]]) -> list[list[str]]:
    def ratios(of: Callable[[Mapping[str, float]], float]) -> str:
        values = [of(steps) for steps in waterfalls]
        return f"{statistics.median(values):.2f} [{min(values):.2f}, {max(values):.2f}]"

    rows = []
    for before, step in zip((None, *STEPS), STEPS, strict=False):
        minutes = statistics.median(steps[step] for steps in waterfalls) / 60
        rows.append(
            [
                NAMES.get(step, step),
                f"{minutes:.1f}",
                ratios(lambda steps, step=step: steps[step] / steps["stock"]),
                "" if before is None else ratios(lambda steps, a=step, b=before: steps[a] / steps[b]),
            ]
        )
    rows.append(
        ["ours, of stock with each run once", "", ratios(lambda steps: steps["ours"] / steps["each run once"]), ""]
    )
    return rows


def _kind_row(kind: Kind, jobs: Mapping[tuple[str, str], Job]) -> list[str]:
    rounds = range(len(kind.results["stock"]))
    medians = [statistics.median(kind.seconds(side, number) for number in rounds) for side in SIDES]
    ratio = statistics.median(kind.seconds("ours", number) / kind.seconds("stock", number) for number in rounds)
    number = sum(job.kind == kind.name for job in jobs.values())
    shown = [f"{seconds:.1f}" for seconds in medians]
    if not kind.is_frozen:
        shown[2] = "-"
    return [kind.name, str(number), f"{kind.tokens:,}", *shown, f"{ratio:.2f}"]


if __name__ == "__main__":
    main()
