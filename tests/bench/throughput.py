"""Samples per second on short answers and captions in equal parts: our trainer against stock Llava under
`transformers.Trainer` and, where trl is installed, under its `SFTTrainer`, each with its best batches.

python tests/bench/throughput.py [--samples 320] [--rounds 3]        about eight minutes on two free cores
python tests/bench/throughput.py --vocabulary 151936                 the same with a head as large as that of Qwen 2.5

Fails, with exit status 1, where the losses of a step differ by more than 1e-3 of those of the fastest stock loop.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from loops import stock
from loops.llm import write_llm
from loops.measure import load, table
from loops.ours import Arm, Measured
from loops.tower import write_tower

from lvlm.data.worlds.writer import write_world
from lvlm.startup import quiet_transformers

HELD_EQUAL = """\
Held equal: the samples and their order, token ids, supervised labels and pixels (ours, handed to both), 16 samples a
step, the token mean of the step as loss, fused AdamW with constant rate {rate:g} and clipping at 1, fp32, {threads}
thread(s), no loader processes; one CLIP tower with the same random weights in both (timm here, transformers there), the
same tiny LM, and the same draws of projector and LoRA (r=16 on every linear layer of the LLM). The losses agree step by
step: largest relative difference {difference:.1e}. The stock loops pad a batch to its longest sample and run the tower
to its last block; a number behind their name is how many samples they take at once, of 16 a step, behind ours how many
tokens.
Ratios are against the fastest of them, {fastest}. Time is that of the loop: Trainer.train() there; here the stage's
training with its probe, curve file and checkpoint. Not in it: planning and tokenising (for neither), saving the model,
and computing the features once, which all arms and seeds with one tower share ({features:.1f} s wall for {images}
images here). The loops run in turn; ratios are of pairs in one round: median [lowest, highest]. Wall time suffers from
other work on the machine, and CPU time counts waiting threads: {load} at the end."""
AT_ONCE = (16, 8, 4)
TOKENS = (4096, 1024)
BOUND = 1e-3
"""Largest difference of two losses of a step, relative to that of the fastest stock loop: beyond it the loops do not do
the same work, and their speeds cannot be compared."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=320)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2, help="one on a machine where others compute (default: 2)")
    parser.add_argument("--vocabulary", type=int, help="rows of the LM's head (default: its own, 1,500)")
    parser.add_argument("--shapes", type=Path, default=Path("runs/data/shapes"), help="written if it is missing")
    options = parser.parse_args()
    if not (options.shapes / "corpus.yaml").exists():
        write_world("shapes", options.shapes, seed=0)
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory(prefix="lvlm-bench-") as scratch, quiet_transformers():
        compare(Path(scratch), options)


def compare(scratch: Path, options: argparse.Namespace) -> None:
    """Run the loops in turn and print the table."""
    samples, rounds, threads = options.samples, options.rounds, options.threads
    arm = Arm.make(
        shapes=options.shapes, tower=str(write_tower(scratch / "tower")), samples=samples, threads=threads,
        llm=str(write_llm(scratch / "llm", options.vocabulary)) if options.vocabulary else "tiny-lm/0",
    )  # fmt: skip
    stage = arm.config.instruct
    assert stage is not None
    fed = arm.samples()
    prepared = arm.prepared_model()
    loops = ("Trainer", "SFTTrainer") if stock.has_trl() else ("Trainer",)
    theirs = {f"{loop}, {at_once}": (loop, at_once) for loop in loops for at_once in AT_ONCE}
    ours: dict[str, dict[str, Any]] = {f"ours, {tokens}": {"micro_batch_tokens": tokens} for tokens in TOKENS}
    ours |= {
        f"ours, {TOKENS[0]}, packed": {"packing": True},
        f"ours, {TOKENS[0]}, cached features": {"cached": True},
        f"ours, {TOKENS[0]}, packed, cached features": {"packing": True, "cached": True},
    }
    measured: dict[str, list[Measured]] = {name: [] for name in (*theirs, *ours)}

    def run(name: str, folder: Path) -> Measured:
        if name in theirs:
            loop, at_once = theirs[name]
            model = stock.build(prepared, stage)
            return stock.train(
                model, arm.encoder.processor.tokenizer, fed, loop=loop, at_once=at_once, stage=stage,
                transform=prepared.config.image_transform, pad_id=arm.encoder.pad_id, folder=folder,
            )  # fmt: skip
        return arm.train(folder, home=scratch / "home", **{"cached": False} | ours[name])

    features = None
    for number in range(rounds):
        for name in measured:
            result = run(name, scratch / f"{name}-{number}")
            measured[name].append(result)
            features = features or (result.features if name.endswith("cached features") else None)
            speed = samples / result.training.wall
            print(f"round {number + 1}  {name:<35} {speed:6.1f} samples/s  loss {_mean(result.losses):.4f}", flush=True)
    assert features is not None
    fastest = min(theirs, key=lambda name: statistics.median(result.training.wall for result in measured[name]))
    difference = largest_difference(measured, fastest)
    print("\n" + table(HEAD, [_row(name, results, measured[fastest], samples) for name, results in measured.items()]))
    tokens = sum(sample.length for sample in fed) / len(fed)
    supervised = sum(sample.supervised for sample in fed) / len(fed)
    text = sum(sample.text.text_tokens for sample in fed) / len(fed)
    print(
        f"\n{samples} samples in {arm.plan.steps} steps, {rounds} rounds; on average {tokens:.0f} LLM tokens a sample, "
        f"of which {text:.0f} text and {supervised:.0f} supervised.\n"
        + HELD_EQUAL.format(
            rate=stage.optim.lr,
            threads=threads,
            difference=difference,
            fastest=fastest,
            features=features.wall,
            images=len({image for sample in fed for image in sample.images}),
            load=load(),
        )
    )


def largest_difference(measured: dict[str, list[Measured]], fastest: str) -> float:
    """Of two losses of a step, relative to that of the `fastest` stock loop; ends with an error beyond `BOUND`."""
    largest = 0.0
    for name, results in measured.items():
        for result, other in zip(results, measured[fastest], strict=True):
            for step, (a, b) in enumerate(zip(result.losses, other.losses, strict=True), start=1):
                difference = abs(a - b) / abs(b)
                if not difference <= BOUND:  # NaN too
                    sys.exit(
                        f"The losses do not agree: at step {step} '{name}' is {difference:.1e} off '{fastest}' "
                        "(relative)."
                    )
                largest = max(largest, difference)
    return largest


HEAD = (
    "loop", "samples/s", "wall ratio", "CPU ms/sample", "CPU ratio", "loss, all", "loss, last 10", "parameters learn",
)  # fmt: skip


def _row(name: str, results: list[Measured], against: list[Measured], samples: int) -> list[str]:
    pairs = list(zip(results, against, strict=True))
    last = results[-1]
    return [
        name,
        f"{samples / statistics.median(result.training.wall for result in results):.1f}",
        _spread([other.training.wall / result.training.wall for result, other in pairs]),
        f"{1e3 * statistics.median(result.training.cpu for result in results) / samples:.1f}",
        _spread([other.training.cpu / result.training.cpu for result, other in pairs]),
        f"{_mean(last.losses):.4f}",
        f"{_mean(last.losses[-10:]):.4f}",
        f"{last.trainable_parameters:,}",
    ]


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} [{min(values):.2f}, {max(values):.2f}]"


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


if __name__ == "__main__":
    main()
