"""Exports a checkpoint: for transformers with this package, or as stock LLaVA without it. What was written is read back
and has to give the same logits. Called by `lvlm.cli`."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoProcessor, LlavaForConditionalGeneration

from lvlm.errors import InputError
from lvlm.model.chat import IMAGE_PLACEHOLDER
from lvlm.model.checkpoints import load, parts, without_deepspeed
from lvlm.model.llava import llava_processor, to_llava
from lvlm.model.lora import lora_layers
from lvlm.settings import ModelConfig

if TYPE_CHECKING:
    from lvlm.model.lvlm import Lvlm
    from lvlm.model.processor import LvlmProcessor

Form = Literal["merged", "adapters", "llava"]
LIMIT = 1e-4
"""Largest difference of any logit, in float32, between a model and what was exported of it."""
QUESTIONS = (
    f"{IMAGE_PLACEHOLDER}\nWas ist das?",
    f"{IMAGE_PLACEHOLDER}{IMAGE_PLACEHOLDER}\nIs it true that 两张图片 show a red circle? Answer yes or no.",
    "Hello.",
)
SIZES = ((61, 47), (300, 500))


@dataclass(frozen=True)
class Exported:
    """What was written, and the largest difference of a logit that it showed when read back (float32)."""

    folder: Path
    difference: float
    pillow: float | None = None
    """The same with Pillow's resize in the place of torchvision's, which is transformers' default; for `llava`."""


@dataclass(frozen=True)
class Answered:
    """One question, as ids, and what a model makes of it: (tokens, vocabulary)."""

    ids: list[int]
    logits: Tensor


def export(
    checkpoint: str | Path,
    folder: str | Path,
    *,
    form: Form = "merged",
    model: ModelConfig | None = None,
    seed: int = 0,
) -> Exported:
    """Write a checkpoint to a new folder: `merged` with LoRA added to the weights, `adapters` with LoRA beside them in
    peft's format, `llava` as stock LLaVA. `model` and `seed` are those of `load`.

    Nothing is written if the files, read back as their users would, differ from the checkpoint by more than `LIMIT` in
    any logit of a few questions with images.
    """
    folder = Path(folder).resolve()
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise InputError(f"{folder} exists and is no empty folder; name a new one.")
    loaded, processor = load(checkpoint, model=model, seed=seed)
    merges = form != "adapters" and any(lora_layers(part) for part in parts(loaded).values())
    stored = loaded.config.dtype or torch.float32
    dtype = torch.float32 if merges else stored  # a sum in 16 bits would be another model
    attn = loaded.language_model.config._attn_implementation
    expected = answers(loaded, processor)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # left by an export that was killed
    try:
        _write(loaded, processor, partial, form, dtype=dtype)
        del loaded
        exported = Exported(folder, *_differences(partial, form, expected, attn=attn))
        if not exported.difference <= LIMIT:
            raise InputError(
                f"The export would not be the same model: read back from its files, a logit differs by "
                f"{exported.difference:.1e}, and {LIMIT:.0e} is the limit. Nothing was written to {folder}."
            )
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return exported


def _write(model: Lvlm, processor: LvlmProcessor, folder: Path, form: Form, *, dtype: torch.dtype) -> None:
    if form == "llava":
        stock = llava_processor(model, processor)
        with without_deepspeed():
            to_llava(model, dtype=dtype).save_pretrained(folder)
        stock.save_pretrained(folder)
        stock.image_processor.save_pretrained(folder)  # where transformers 4 looks for it
    else:
        model.to(dtype).save_pretrained(folder, merge_lora=form == "merged")
        processor.save_pretrained(folder)


def _differences(folder: Path, form: Form, expected: list[Answered], *, attn: str) -> tuple[float, float | None]:
    """Largest difference of a logit from those that are expected; and, for `llava`, the same with Pillow."""
    kind: Any = LlavaForConditionalGeneration if form == "llava" else AutoModelForCausalLM
    model = kind.from_pretrained(folder, dtype=torch.float32, use_safetensors=True, attn_implementation=attn).eval()
    if form != "llava":
        return difference(answers(model, AutoProcessor.from_pretrained(folder)), expected), None
    exact, pillow = (AutoProcessor.from_pretrained(folder, backend=name) for name in ("torchvision", "pil"))
    return difference(answers(model, exact), expected), difference(answers(model, pillow), expected)


@torch.no_grad()
def answers(model: Any, processor: Any) -> list[Answered]:
    """What a model makes of a few questions with one image, two, and none, through its own processor."""
    found = []
    for question in QUESTIONS:
        turns = [{"role": "user", "content": question}]
        text = processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        images = [_noise(size) for size in SIZES[: question.count(IMAGE_PLACEHOLDER)]]
        inputs = processor(text=[text], images=images or None, return_tensors="pt").to(model.device)
        found.append(Answered(inputs["input_ids"][0].tolist(), model(**inputs).logits[0].float().cpu()))
    return found


def difference(found: list[Answered], expected: list[Answered]) -> float:
    """Largest difference of a logit; infinite where the ids differ already."""
    if [answered.ids for answered in found] != [answered.ids for answered in expected]:
        return float("inf")
    return max(float((a.logits - b.logits).abs().max()) for a, b in zip(found, expected, strict=True))


def _noise(size: tuple[int, int]) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(values)
