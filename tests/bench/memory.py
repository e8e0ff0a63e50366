"""Peak memory of one step at a vocabulary of 152,000 and 4 samples of 1,500 tokens: ours against stock transformers.

python tests/bench/memory.py [--tokens 1500] [--samples 4]        about two minutes, 12 GB of memory

Both have the same small Qwen 2 with LoRA and the same random ids, of which the last `--supervised` share is supervised;
the stock model gets them as `labels`. Each row is a process of its own; what it held before the step is taken off.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time

from loops.measure import load, table

VOCABULARY = 152_000
LOOPS = ("stock", "ours, logits at once", "ours")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=1500)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--supervised", type=float, nargs="+", default=[0.1, 0.5, 1.0])
    parser.add_argument("--one", choices=LOOPS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(step(options.one, options.samples, options.tokens, options.supervised[0])))
        return
    rows = []
    for share in options.supervised:
        found = {loop: measured(loop, options, share) for loop in LOOPS}
        stock = found["stock"]
        for loop, row in found.items():
            rows.append([
                f"{share:.0%} supervised, {loop}", f"{row['peak'] / 2**20:,.0f}", f"{row['peak'] / stock['peak']:.2f}",
                f"{row['seconds']:.1f}", f"{row['loss']:.4f}",
            ])  # fmt: skip
            assert abs(row["loss"] - stock["loss"]) < 1e-3, "the same loss"
    print(table(("loop", "peak MiB", "of stock", "seconds", "loss"), rows))
    print(f"\n{options.samples} x {options.tokens} tokens, vocabulary {VOCABULARY:,}, fp32, {load()} at the end.")


def measured(loop: str, options: argparse.Namespace, share: float) -> dict[str, float]:
    """The figures of one loop, from a process of its own."""
    sizes = ["--samples", str(options.samples), "--tokens", str(options.tokens), "--supervised", str(share)]
    done = subprocess.run([sys.executable, __file__, "--one", loop, *sizes], capture_output=True, text=True, check=True)
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def step(loop: str, samples: int, tokens: int, share: float) -> dict[str, float]:
    """Forward and backward of one step; its peak memory in bytes above what was there before."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from lvlm.model.lora import add_lora
    from lvlm.train import loss as objective

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=VOCABULARY, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, tie_word_embeddings=True,
    )  # fmt: skip
    llm = Qwen2ForCausalLM(config)
    for parameter in llm.parameters():
        parameter.requires_grad_(False)
    add_lora(llm, r=8, alpha=16, dropout=0.0, seed=0)
    ids = torch.randint(0, VOCABULARY, (samples, tokens))
    labels = torch.full_like(ids, -100)
    first = max(1, round(tokens * (1 - share)))
    labels[:, first:] = ids[:, first:]
    llm.model(input_ids=ids[:1, :8])  # code that the first pass loads
    before, started = _peak(), time.perf_counter()
    if loop == "stock":
        value = llm(input_ids=ids, labels=labels).loss
    else:
        if loop == "ours, logits at once":
            objective.LOGITS_AT_ONCE = samples * tokens * VOCABULARY
        hidden = llm.model(input_ids=ids)[0].flatten(0, 1)
        positions = (labels[:, 1:] != -100).nonzero()
        rows = positions[:, 0] * tokens + positions[:, 1]
        targets = labels.flatten()[rows + 1]
        weights = torch.full((len(rows),), 1 / len(rows))
        value = objective.supervised_loss(llm.lm_head, hidden[rows], targets, weights, vocabulary=VOCABULARY)
    value.backward()
    return {"peak": _peak() - before, "seconds": time.perf_counter() - started, "loss": value.item()}


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
