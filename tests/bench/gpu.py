"""Tokens per second, share of the GPU's peak (MFU) and memory at full size: SigLIP SO400M at 384 pixels (729 tokens an
image) and Qwen2.5-7B, random weights, bf16, LoRA of rank 256, on short answers and captions in equal parts; against
stock LLaVA under `transformers.Trainer` in the same run.

python tests/bench/gpu.py [--samples 256] [--rounds 2]        one GPU of 80 GB; 45 GB of disk and 60 GB of memory
python tests/bench/gpu.py --size tiny [--device cpu]          the same paths with tiny models, in about a minute

MFU is the work of `lvlm.model.work` (tower, adapter and LLM, and no gradient of a frozen weight) through the
wall time of the loop and what the GPU does in bf16 at best. Padding, logits where nothing is supervised and
recomputation are no work. Where features come from the cache, the tower's part is not counted either.

No figures stand here: it has not run at full size yet. Every path ran at `--size tiny` on a CPU, whose speeds say
nothing about a GPU.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from loops import stock
from loops.measure import load, table
from loops.ours import Arm, Measured
from safetensors.torch import save_file
from transformers import LlavaForConditionalGeneration, Qwen2Config, Qwen2ForCausalLM

from lvlm.data.worlds.writer import write_world
from lvlm.model.assembly import assemble, load_tokenizer
from lvlm.model.backbones import resolve
from lvlm.model.llava import to_llava
from lvlm.model.outline import outline
from lvlm.model.work import Work
from lvlm.startup import quiet_transformers

ARCHITECTURE = "vit_so400m_patch14_siglip_384"
PEAKS = {"H200": 989, "H100": 989, "A100": 312, "L40S": 362, "A10G": 70, "4090": 165}
"""Part of a GPU's name -> its dense bf16 TFLOP/s, by its maker."""
BOUND = 1e-2
"""Largest relative difference of the mean losses of two loops: beyond it they do not do the same work."""


@dataclass(frozen=True)
class Size:
    """Which models, and how much of them a step takes."""

    tower: dict[str, Any]
    image_size: int
    llm: dict[str, Any]
    rank: int
    micro_batch_tokens: int
    at_once: tuple[int, ...]


SIZES = {
    "full": Size(
        tower={},
        image_size=384,
        llm={
            "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
            "num_key_value_heads": 4, "vocab_size": 152064, "rope_theta": 1e6,
        },
        rank=256,
        micro_batch_tokens=16384,
        at_once=(16, 8, 4),
    ),
    "tiny": Size(
        tower={"img_size": 56, "embed_dim": 32, "depth": 3, "num_heads": 2},
        image_size=56,
        llm={
            "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "vocab_size": 4096,
        },
        rank=8,
        micro_batch_tokens=1024,
        at_once=(16, 4),
    ),
}  # fmt: skip
OURS: dict[str, dict[str, Any]] = {
    "ours": {},
    "ours, packed": {"packing": True},
    "ours, checkpointed": {"gradient_checkpointing": True},
    "ours, cached features": {"cached": True},
    "ours, packed, cached features": {"packing": True, "cached": True},
}


@dataclass(frozen=True)
class Row:
    """One training run, and the most memory it took of the GPU; NaN on a CPU."""

    run: Measured
    peak_gib: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("--device", choices=("cuda", "cpu"), help="default: cuda, and for `--size tiny` cpu")
    parser.add_argument("--samples", type=int, help="default: 256, and for `--size tiny` 32")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--peak", type=float, help="TFLOP/s of this GPU in bf16, dense, where it is not known here")
    parser.add_argument("--shapes", type=Path, help="the corpus `shapes` (default: written for this run)")
    options = parser.parse_args()
    tiny = options.size == "tiny"
    device = options.device or ("cpu" if tiny else "cuda")
    if device == "cuda" and not torch.cuda.is_available():
        sys.exit("gpu.py needs a GPU that torch sees. `--size tiny --device cpu` runs the same paths without one.")
    if device == "cpu" and not tiny:
        sys.exit("At full size gpu.py runs on a GPU alone; give `--size tiny` for a CPU.")
    with tempfile.TemporaryDirectory(prefix="lvlm-bench-") as scratch, quiet_transformers():
        shapes = options.shapes or write_world("shapes", Path(scratch) / "shapes", seed=0, train=64 if tiny else 600)
        compare(
            Path(scratch), SIZES[options.size], shapes, device=device, rounds=options.rounds,
            samples=options.samples or (32 if tiny else 256), peak=options.peak or known_peak(device),
        )  # fmt: skip


def known_peak(device: str) -> float:
    """bf16 TFLOP/s of this GPU; NaN for one that is not in the list."""
    name = torch.cuda.get_device_name() if device == "cuda" else ""
    return next((float(peak) for part, peak in PEAKS.items() if part in name), float("nan"))


def compare(scratch: Path, size: Size, shapes: Path, *, device: str, rounds: int, samples: int, peak: float) -> None:
    """Run the loops in turn and print the table."""
    write_tower(scratch / "tower", size, device)
    write_llm(scratch / "llm", size, device)
    arm = Arm.make(
        shapes=shapes, tower=str(scratch / "tower"), llm=str(scratch / "llm"), samples=samples, rate=1e-4,
        lora={"r": size.rank, "alpha": 2.0 * size.rank}, device=device, precision="bf16",
        micro_batch_tokens=size.micro_batch_tokens,
    )  # fmt: skip
    fed = arm.samples()
    drawn, work, transform = prepare_stock(arm, scratch / "stock")
    theirs = {f"Trainer, {n}": {"at_once": n, "checkpointing": False} for n in size.at_once}
    theirs |= {f"Trainer, {size.at_once[0]}, checkpointed": {"at_once": size.at_once[0], "checkpointing": True}}
    rows: dict[str, list[Row]] = {name: [] for name in (*theirs, *OURS)}

    def run(name: str, folder: Path) -> Measured:
        if name in OURS:
            return arm.train(folder, home=scratch / "home", **{"cached": False} | OURS[name])
        stage = arm.config.instruct
        assert stage is not None
        model = LlavaForConditionalGeneration.from_pretrained(scratch / "stock", dtype=torch.bfloat16)
        model = stock.with_lora(model, drawn, stage)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
        again = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}}
        return stock.train(
            model, arm.encoder.processor.tokenizer, fed, loop="Trainer", at_once=theirs[name]["at_once"], stage=stage,
            transform=transform, pad_id=arm.encoder.pad_id, folder=folder, bf16=True, use_cpu=device == "cpu",
            **(again if theirs[name]["checkpointing"] else {}),
        )  # fmt: skip

    for number in range(rounds):
        for name, found in rows.items():
            try:
                row = measured(lambda name=name: run(name, scratch / f"{name}-{number}"), device)  # noqa: B023
            except torch.OutOfMemoryError:
                print(f"round {number + 1}  {name:<30} out of memory", flush=True)
                continue
            found.append(row)
            print(f"round {number + 1}  {name:<30} {row.run.training.wall:8.1f} s", flush=True)
    report(rows, theirs, work, tokens=sum(sample.length for sample in fed), peak=peak, device=device, rounds=rounds)


def measured(run: Any, device: str) -> Row:
    """A run from an empty GPU."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    result = run()
    return Row(result, torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else float("nan"))


def report(
    rows: dict[str, list[Row]], theirs: Any, work: Work, *, tokens: int, peak: float, device: str, rounds: int
) -> None:
    """The table; ends with an error where the losses of two loops differ by more than `BOUND`."""
    ran = {name: found for name, found in rows.items() if found}
    walls = {name: statistics.median(row.run.training.wall for row in found) for name, found in ran.items()}
    fastest = min((name for name in ran if name in theirs), key=walls.__getitem__, default=None)
    if fastest is None:
        sys.exit("Stock LLaVA ran out of memory at every batch size: there is nothing to compare with.")
    losses = {name: statistics.mean(found[0].run.losses) for name, found in ran.items()}
    lines = []
    for name in rows:
        if name not in ran:
            lines.append([name, *["out of memory"], *["-"] * 5])
            continue
        done = work.total - (float(work.tower.sum()) if "cached" in name else 0.0)
        lines.append([
            name, f"{tokens / walls[name]:,.0f}", f"{walls[fastest] / walls[name]:.2f}",
            _number(100 * done / walls[name] / (peak * 1e12), " %"), _number(max(r.peak_gib for r in ran[name])),
            _number(max(r.peak_gib for r in ran[name]) / max(r.peak_gib for r in ran[fastest])), f"{losses[name]:.4f}",
        ])  # fmt: skip
    print("\n" + table(("loop", "tokens/s", "of Trainer", "MFU", "peak GiB", "of Trainer", "loss"), lines))
    name = torch.cuda.get_device_name() if device == "cuda" else "a CPU, whose speeds say nothing about a GPU"
    shares = {"tower": work.tower, "adapter": work.adapter, "LLM": work.llm}
    print(
        f"\n{tokens:,} LLM tokens; work {work.total:.3g} operations: "
        f"{', '.join(f'{part} {own.sum() / work.total:.0%}' for part, own in shares.items())}. "
        f"On {name}, peak {_number(peak)} TFLOP/s, "
        f"torch {torch.__version__}; medians of {rounds} rounds, '-' is not measured; ratios are against {fastest}, "
        f"whose number is how many samples it takes at once; {load()} at the end."
    )
    for other, loss in losses.items():
        if not abs(loss - losses[fastest]) <= BOUND * losses[fastest]:  # NaN too
            sys.exit(f"The losses do not agree: {loss:.4f} of '{other}', {losses[fastest]:.4f} of '{fastest}'.")


def _number(value: float, unit: str = "") -> str:
    return "-" if value != value else f"{value:.2f}{unit}"


def prepare_stock(arm: Arm, folder: Path) -> tuple[Any, Work, Any]:
    """Write the stock model with the weights of ours; the LoRA that both begin with, the work of the samples, and how
    images become pixels."""
    model, processor = assemble(arm.config.model, seed=0, precision="bf16")
    model.multi_modal_projector.bfloat16().float()  # as bf16 reads it
    llava = to_llava(model, dtype=torch.bfloat16)
    llava.save_pretrained(folder)
    fed = arm.samples()
    assert arm.config.instruct is not None
    work = outline(model.config, home=folder).work(
        arm.config.instruct,
        text=[sample.length - processor.image_tokens * len(sample.images) for sample in fed],
        supervised=[sample.supervised for sample in fed],
        images=[len(sample.images) for sample in fed],
    )
    transform = model.config.image_transform
    del model, llava
    return stock.lora_of(arm.prepared_model()), work, transform


def write_tower(folder: Path, size: Size, device: str) -> None:
    """A random SigLIP tower as a folder in the format of the package, in bf16."""
    torch.manual_seed(0)
    with torch.device(device):
        tower = timm.create_model(ARCHITECTURE, pretrained=False, num_classes=0, **size.tower)
    folder.mkdir()
    state = {key: value.detach().bfloat16().contiguous().cpu() for key, value in tower.state_dict().items()}
    save_file(state, folder / "model.safetensors")
    description = {"timm": {"architecture": ARCHITECTURE, "args": size.tower}, "image_size": size.image_size}
    pixels = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic"}
    (folder / "config.json").write_text(json.dumps(description | pixels), encoding="utf-8")


def write_llm(folder: Path, size: Size, device: str) -> None:
    """A random Qwen 2 with the tokenizer of the shipped LLM, in bf16."""
    torch.manual_seed(0)
    tokenizer = load_tokenizer(resolve("tiny-lm/0", seed=0))
    tokens = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    config = Qwen2Config(
        tie_word_embeddings=False, max_position_embeddings=32768, dtype="bfloat16", **tokens, **size.llm
    )
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            llm = Qwen2ForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    llm.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    main()
