"""The benchmark on a GPU counts the operations that torch counts, and runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from lvlm.model.parts import prepare_training
from lvlm.model.stock import stock_tower
from lvlm.model.tiling import pixels
from lvlm.settings import LoraSettings, MixConfig, StageConfig, TrainedParts
from lvlm.train.loss import supervised_loss
from tests.bench.loops.flops import needed_work
from tests.tiny import IMAGE_SIZE, tiny_image, tiny_world

ROOT = Path(__file__).parent.parent


def test_the_work_of_a_step_is_what_torch_counts() -> None:
    """Eager attention, which computes every pair of tokens; two samples side by side, without padding."""
    model, processor = tiny_world().assemble(adapter="mlp", attn="eager")
    stage = StageConfig(mix=MixConfig(corpora=()), train=TrainedParts(llm="lora"), lora=LoraSettings(r=4))
    prepare_training(model, stage, seed=0)
    batch = processor.collate([processor.encode_sample([("What is it?", "A star.")], 1)] * 2)
    views = torch.cat([pixels(tiny_image(number), processor.image_transform) for number in (1, 2)])
    positions = (batch["labels"][:, 1:] != -100).nonzero()
    rows = positions[:, 0] * batch["labels"].shape[1] + positions[:, 1]
    targets = batch["labels"].flatten()[rows + 1]
    in_place = {torch.ops.aten.addmm_: lambda _, a, b, **rest: 2 * a[0] * a[1] * b[1]}  # which torch does not count
    counter = FlopCounterMode(display=False, custom_mapping=in_place)
    with counter:
        hidden = model.hidden_states({"input_ids": batch["input_ids"], "pixel_values": views})
        weights = torch.full((len(rows),), 1 / len(rows))
        vocabulary = model.config.text_config.vocab_size
        supervised_loss(model.logits, hidden.flatten(0, 1)[rows], targets, weights, vocabulary=vocabulary).backward()
    work = needed_work(
        model.config.text_config,
        stock_tower(model.vision_tower, image_size=IMAGE_SIZE, depth=0).config,
        rank=4,
        lengths=[batch["input_ids"].shape[1]] * 2,
        supervised=len(rows),
        images=2,
        image_tokens=processor.image_tokens,
        pairs=1.0,
    )
    assert work.total == counter.get_total_flops()
    assert min(work.tower, work.adapter, work.llm) > 0.01 * work.total, "each part is looked at"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_benchmark_runs_on_a_gpu() -> None:
    command = [sys.executable, str(ROOT / "tests" / "bench" / "gpu.py"), "--size", "tiny", "--device", "cuda"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "of Trainer" in done.stdout
