"""The work of training on samples, as it follows from a model's config, is what torch counts; the benchmark that
divides by it runs on a GPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from lvlm.model.outline import outline
from lvlm.model.parts import prepare_training
from lvlm.model.tiling import pixels
from lvlm.model.work import planned_outline
from lvlm.settings import LoraSettings, MixConfig, StageConfig, TrainedParts
from lvlm.train.loss import supervised_loss
from tests.tiny import tiny_image, tiny_world

ROOT = Path(__file__).parent.parent
CASES: dict[str, tuple[dict[str, Any], dict[str, str], float]] = {
    "LoRA on the LLM": ({"adapter": "mlp"}, {"llm": "lora"}, 0.0),
    "the adapter alone, on tiles": ({"tiles": 2}, {"llm": "frozen"}, 0.0),
    "everything": ({"adapter": "mlp"}, {"tower": "full", "llm": "full"}, 1e-3),
    "LoRA on the tower, on tiles": (
        {"adapter": "window-shuffle", "shuffle": 3, "tiles": 2},
        {"tower": "lora", "llm": "lora"},
        0.05,
    ),
    "a resampler": ({"adapter": "resampler", "queries": 4}, {"llm": "lora"}, 1e-3),
}
"""Name -> settings of the model, what learns, and how far the count may be off: it leaves out what fused attention
computes twice and the one time that queries are projected for several images, and has the gradient of the first block's
inputs, which LoRA there does not need."""


def stage_of(train: dict[str, str]) -> StageConfig:
    lora = LoraSettings(r=4) if "lora" in train.values() else LoraSettings()
    return StageConfig(mix=MixConfig(corpora=()), train=TrainedParts(**train), lora=lora)  # type: ignore[arg-type]


@pytest.mark.parametrize("case", CASES)
def test_the_work_of_a_step_is_what_torch_counts(case: str, tmp_path: Path) -> None:
    """Eager attention, which computes every pair of tokens; two samples side by side, without padding."""
    settings, train, off = CASES[case]
    model, processor = tiny_world().assemble(attn="eager", **settings)
    stage = stage_of(train)
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
    text = batch["input_ids"].shape[1] - processor.image_tokens
    work = outline(model.config, home=tmp_path).work(
        stage, text=[text] * 2, supervised=[len(rows) / 2] * 2, images=[1] * 2, pairs=1.0
    )
    assert work.total == pytest.approx(counter.get_total_flops(), rel=off or 1e-12)
    assert min(work.tower.sum(), work.adapter.sum(), work.llm.sum()) > 0.01 * work.total, "each part is looked at"


def test_the_outline_of_a_model_follows_from_its_config_and_is_remembered(tmp_path: Path) -> None:
    world = tiny_world()
    model, processor = world.assemble(tiles=2)
    vocabulary = len(processor.tokenizer)

    def planned() -> Any:
        return planned_outline(world.model_config(tiles=2), seed=0, vocabulary=vocabulary, home=tmp_path)

    made = planned()
    assert made == outline(model.config, home=tmp_path / "other")
    code = "import sys, json, dataclasses; from pathlib import Path; from lvlm.settings import ModelConfig\n"
    code += "from lvlm.model.work import planned_outline\n"
    code += f"found = planned_outline(ModelConfig(llm={world.llm!r}, tower={world.tower!r}, tiles=2), seed=0, "
    code += f"vocabulary={vocabulary}, home=Path({str(tmp_path)!r}))\n"
    code += "print(json.dumps([found.image_tokens, found.tower_full, 'torch' in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert json.loads(done.stdout) == [made.image_tokens, made.tower_full, False]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_benchmark_runs_on_a_gpu() -> None:
    command = [sys.executable, str(ROOT / "tests" / "bench" / "gpu.py"), "--size", "tiny", "--device", "cuda"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "of Trainer" in done.stdout
