"""A tiny denoiser, the world `paint` in three languages and a run config on the tiny fakes: for the tests of
painting."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path
from typing import Any

from lvlm.config import RunConfig, make_config, set_value
from lvlm.data.worlds.paint_corpus import write_paint
from tests.tiny import tiny_world

LANGUAGES = ("en", "de", "sw")
SHAPE: dict[str, Any] = {
    "sample_size": 12, "in_channels": 3, "out_channels": 3, "layers_per_block": 1, "block_out_channels": [8, 16],
    "cross_attention_dim": 8, "norm_num_groups": 4, "attention_head_dim": 2,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"], "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
}  # fmt: skip


def make_denoiser(folder: Path, *, seed: int = 0, **changes: Any) -> Path:
    """A random UNet as diffusers writes it."""
    import torch
    from diffusers import UNet2DConditionModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        UNet2DConditionModel(**{**SHAPE, **changes}).save_pretrained(folder)
    return folder


@cache
def paint_world() -> tuple[Path, Path]:
    """(corpus, denoiser) of this session."""
    folder = tiny_world().folder / "paint"
    corpus = write_paint(folder / "corpus", seed=0, train_images=24, tune_images=4, test_images=6, languages=LANGUAGES)
    return corpus, make_denoiser(folder / "denoiser")


def paint_config(**changes: Any) -> RunConfig:
    """A short stage `paint` on the fakes; `changes` set dotted fields, with `__` for the dot."""
    corpus, denoiser = paint_world()
    data: dict[str, Any] = {
        "name": "paint",
        "model": {"tower": tiny_world().tower, "llm": tiny_world().llm},
        "paint": {
            "mix": {"corpora": [{"path": str(corpus), "split": "captions"}], "languages": list(LANGUAGES)},
            "denoiser": str(denoiser),
            "batch_samples": 6,
            "steps": 3,
            "sample_steps": 2,
        },
        "evaluate": {
            "corpora": [{"path": str(corpus), "split": "test"}],
            "tune_corpora": [{"path": str(corpus), "split": "tune"}],
            "tune_items": 2,
        },
        "compute": {"device": "cpu", "threads": 1},
    }
    data = copy.deepcopy(data)
    for name, value in changes.items():
        set_value(data, name.replace("__", "."), value)
    return make_config(data)
