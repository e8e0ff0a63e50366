"""Items per second of short answers: our evaluation against one `generate` after the other, as lmms-eval's LLaVA class
asks.

python tests/bench/evaluation.py [--items 2000] [--checkpoint FOLDER]        about ten minutes on two free cores

Fails, with exit status 1, where any answer differs.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from loops.measure import Clock, Cost, load, table
from PIL import Image

from lvlm.data.corpus import Item, open_corpus
from lvlm.data.worlds.writer import write_world
from lvlm.evaluate.generate import Prompt, generate_answers
from lvlm.model.checkpoints import load as load_checkpoint
from lvlm.model.lvlm import Lvlm
from lvlm.model.tiling import open_image, pixels
from lvlm.settings import ModelConfig
from lvlm.startup import quiet_transformers

HELD_EQUAL = """\
Held equal: model, ids, pixels, greedy search, at most {limit} new tokens, fp32, {threads} thread(s), no cached
features. {items:,} items each: questions of the built-in world in all its languages about shared pictures, an image
asked in every language, as benchmarks are; and the same questions with a picture of its own for each. One at a time
means: open the picture, make pixels, encode the prompt, transformers' `generate` with its cache, decode. Ours runs
before and after it; the ratio takes the slower of the two, and stands for all seconds from files to texts. All
{items:,} answers are equal. {load} at the end."""
HEAD = ("items", "one at a time /s", "ours /s", "ratio, wall", "ratio, CPU", "new tokens an item")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=2000)
    parser.add_argument("--tokens", type=int, default=16, help="most new tokens of an answer (default: 16)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=64, help="ours (default: 64)")
    parser.add_argument(
        "--checkpoint", type=Path, help="a trained model (default: the tiny one, its adapter untrained)"
    )
    parser.add_argument("--shapes", type=Path, default=Path("runs/data/shapes"), help="written if it is missing")
    options = parser.parse_args()
    if not (options.shapes / "corpus.yaml").exists():
        write_world("shapes", options.shapes, seed=0)
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory(prefix="lvlm-bench-") as scratch, quiet_transformers():
        compare(Path(scratch), options)


def compare(scratch: Path, options: argparse.Namespace) -> None:
    """Answer both sets of items in both ways and print the table."""
    chosen = load_checkpoint(options.checkpoint) if options.checkpoint else Lvlm.assemble(ModelConfig(), seed=0)
    model, processor = chosen
    model.eval()
    shared = questions(options.shapes, options.items)
    own = [Prompt(prompt.text, (picture(scratch, number),)) for number, prompt in enumerate(shared)]
    rows = []
    for name, prompts in (("shared pictures", shared), ("own pictures", own)):
        clock, answers = Clock(), dict[str, list[str]]()
        ways: dict[str, Callable[[], list[str]]] = {
            "ours, before": lambda prompts=prompts: ours(model, processor, prompts, options),  # type: ignore[misc]
            "one at a time": lambda prompts=prompts: one_at_a_time(model, processor, prompts, options.tokens),  # type: ignore[misc]
            "ours, after": lambda prompts=prompts: ours(model, processor, prompts, options),  # type: ignore[misc]
        }
        for way, work in ways.items():
            with clock(way):
                answers[way] = work()
            print(f"{name}  {way:<14} {len(prompts) / clock.costs[way].wall:8.1f} items/s", flush=True)
        different = [number for number, found in enumerate(zip(*answers.values(), strict=True)) if len(set(found)) > 1]
        if different:
            first = prompts[different[0]]
            sys.exit(f"{len(different)} of {len(prompts)} answers differ, first to {first.text!r}, {first.images}")
        rows.append(_row(name, len(prompts), clock.costs, processor, answers["one at a time"]))
    print("\n" + table(HEAD, rows) + "\n")
    print(HELD_EQUAL.format(limit=options.tokens, threads=options.threads, items=options.items, load=load()))


def questions(folder: Path, items: int) -> list[Prompt]:
    """The first questions of the world's test split, picture by picture, each in all languages."""
    corpus = open_corpus(folder)
    by_picture: dict[str, list[Item]] = {}
    for code in corpus.languages_of("test"):
        for item in corpus.items("test", code):
            if item.task == "vqa":
                by_picture.setdefault(item.images[0], []).append(item)
    found = [item for some in by_picture.values() for item in some][:items]
    return [Prompt(item.prompt, tuple(corpus.image_path(image) for image in item.images)) for item in found]


def picture(folder: Path, number: int) -> Path:
    """A file of noise."""
    path = folder / f"{number}.png"
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    return path


def ours(model: Any, processor: Any, prompts: Sequence[Prompt], options: argparse.Namespace) -> list[str]:
    """As `python -m lvlm evaluate` asks."""
    return generate_answers(model, processor, prompts, max_new_tokens=options.tokens, batch_size=options.batch)


@torch.inference_mode()
def one_at_a_time(model: Any, processor: Any, prompts: Sequence[Prompt], tokens: int) -> list[str]:
    """As lmms-eval's LLaVA class asks: one picture, one prompt, one `generate`."""
    answers = []
    for prompt in prompts:
        views = [pixels(open_image(image), processor.image_transform) for image in prompt.images]
        ids = torch.tensor([processor.encode_prompt(prompt.text, len(prompt.images))])
        out = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=torch.cat(views), max_new_tokens=tokens,
            do_sample=False,
        )  # fmt: skip
        answers.append(processor.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True).strip())
    return answers


def _row(name: str, items: int, costs: dict[str, Cost], processor: Any, answers: Sequence[str]) -> list[str]:
    single = costs["one at a time"]
    wall = max(costs["ours, before"].wall, costs["ours, after"].wall)
    cpu = max(costs["ours, before"].cpu, costs["ours, after"].cpu)
    tokens = [len(processor.tokenizer(answer)["input_ids"]) for answer in answers]
    return [
        name,
        f"{items / single.wall:.1f}",
        f"{items / wall:.1f}",
        f"{single.wall / wall:.2f}",
        f"{single.cpu / cpu:.2f}",
        f"{sum(tokens) / len(tokens):.1f}",
    ]


if __name__ == "__main__":
    main()
