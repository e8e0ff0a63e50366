"""One vision tower in two libraries: a stock CLIP tower, and the same weights as a timm folder that our trainer reads.
Used by the benches beside this folder.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModel

ARCHITECTURE = "vit_base_patch32_clip_quickgelu_224"
WIDTH, BLOCKS, HEADS, IMAGE_SIZE, PATCH_SIZE = 128, 4, 4, 48, 8  # 48 / 8 = 6: 36 patches and a class token


def stock_tower() -> CLIPVisionModel:
    """A random CLIP tower, the same at every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = CLIPVisionConfig(
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            num_hidden_layers=BLOCKS,
            num_attention_heads=HEADS,
            image_size=IMAGE_SIZE,
            patch_size=PATCH_SIZE,
            hidden_act="quick_gelu",
        )
        model = CLIPVisionModel(config)
        for name, parameter in model.named_parameters():  # large enough that features of two images differ clearly
            if "norm" not in name:
                torch.nn.init.normal_(parameter, std=0.08)
    return model.eval()


def write_tower(folder: Path) -> Path:
    """The tower of `stock_tower` as a folder in the format of the package."""
    folder.mkdir(parents=True, exist_ok=True)
    args = {
        "img_size": IMAGE_SIZE,
        "patch_size": PATCH_SIZE,
        "embed_dim": WIDTH,
        "depth": BLOCKS,
        "num_heads": HEADS,
        "mlp_ratio": 4.0,
    }
    description = {
        "timm": {"architecture": ARCHITECTURE, "args": args},
        "image_size": IMAGE_SIZE,
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
        "interpolation": "bicubic",
    }
    (folder / "config.json").write_text(json.dumps(description), encoding="utf-8")
    save_file(_as_timm(stock_tower()), folder / "model.safetensors")
    return folder


def _as_timm(model: CLIPVisionModel) -> dict[str, Tensor]:
    """The weights under timm's names."""
    state = {key.removeprefix("vision_model."): value.detach().clone() for key, value in model.state_dict().items()}
    result = {
        "cls_token": state["embeddings.class_embedding"].view(1, 1, -1),
        "pos_embed": state["embeddings.position_embedding.weight"].unsqueeze(0),
        "patch_embed.proj.weight": state["embeddings.patch_embedding.weight"],
    }
    for ending in ("weight", "bias"):
        result[f"norm_pre.{ending}"] = state[f"pre_layrnorm.{ending}"]
        result[f"norm.{ending}"] = state[f"post_layernorm.{ending}"]
        for block in range(BLOCKS):
            source, target = f"encoder.layers.{block}", f"blocks.{block}"
            parts = [state[f"{source}.self_attn.{part}_proj.{ending}"] for part in "qkv"]
            result[f"{target}.attn.qkv.{ending}"] = torch.cat(parts)
            for theirs, ours in (
                ("layer_norm1", "norm1"),
                ("layer_norm2", "norm2"),
                ("self_attn.out_proj", "attn.proj"),
                ("mlp.fc1", "mlp.fc1"),
                ("mlp.fc2", "mlp.fc2"),
            ):
                result[f"{target}.{ours}.{ending}"] = state[f"{source}.{theirs}.{ending}"]
    return {key: value.contiguous() for key, value in result.items()}
