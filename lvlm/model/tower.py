"""The vision tower: a timm model cut after the block whose output it gives. Used by `lvlm.model.lvlm` and
`lvlm.train.features`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import timm
import timm.data
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from lvlm.config import one_line
from lvlm.errors import InputError

WEIGHTS_FILE = "model.safetensors"
DESCRIPTION_KEYS = ("image_size", "mean", "std", "interpolation")


class VisionTower(nn.Module):
    """A timm transformer up to the chosen block; later blocks, the final norm and the head are dropped, not merely
    skipped."""

    def __init__(self, model: nn.Module, *, feature_layer: int) -> None:
        super().__init__()
        blocks = getattr(model, "blocks", None)
        if blocks is None or not hasattr(model, "forward_intermediates"):
            raise InputError(
                f"The tower {type(model).__name__} has no blocks to read features from. Use a timm vision transformer."
            )
        index = len(blocks) + feature_layer if feature_layer < 0 else feature_layer
        if not 0 <= index < len(blocks):
            raise InputError(
                f"feature_layer={feature_layer} does not exist in a tower of {len(blocks)} blocks. "
                f"Use -{len(blocks)} to -1."
            )
        model.prune_intermediate_layers([index], prune_norm=True, prune_head=True)  # type: ignore[operator]
        self.model = model
        self.index = index

    def forward(self, pixel_values: Tensor) -> Tensor:
        """(views, 3, height, width) -> (views, tokens, width): the block's output without final norm and prefix
        tokens."""
        outputs = self.model.forward_intermediates(  # type: ignore[operator]
            pixel_values, indices=[self.index], norm=False, output_fmt="NLC", intermediates_only=True
        )
        features: Tensor = outputs[0]
        return features


def create(description: dict[str, Any], *, pretrained: bool = False) -> nn.Module:
    """The timm model that a tower's description names, with its own random weights unless `pretrained`."""
    if description["architecture"] == "tiny_vit":
        from lvlm.backbones.vit import tiny_vit

        tiny: nn.Module = tiny_vit(**description["args"])
        return tiny
    model: nn.Module = timm.create_model(
        description["architecture"], pretrained=pretrained, num_classes=0, **description["args"]
    )
    return model


def build_tower(description: dict[str, Any], *, feature_layer: int) -> VisionTower:
    """A tower with random weights from the description in a model's config."""
    # Weights are loaded right afterwards; buffers that are not saved need real storage even when the rest is built on
    # `meta`.
    with torch.device("cpu"):
        return VisionTower(create(description), feature_layer=feature_layer)


def load_tower(source: str | Path, *, feature_layer: int) -> tuple[VisionTower, dict[str, Any]]:
    """A tower with its weights in float32, and its description, from a folder or a timm name."""
    folder = Path(source)
    if folder.is_dir():
        model, description = _from_folder(folder)
    else:
        model, description = _from_timm(str(source))
    tower = VisionTower(model.float(), feature_layer=feature_layer)
    size = description["image_size"]
    with torch.no_grad():
        features = tower(torch.zeros(1, 3, size, size))
    side = round(features.shape[1] ** 0.5)
    if side * side != features.shape[1]:
        raise InputError(
            f"The tower {source} gives {features.shape[1]} tokens for a square image, which is no square grid."
        )
    return tower, {**description, "width": features.shape[2], "grid": [side, side]}


def _from_folder(folder: Path) -> tuple[nn.Module, dict[str, Any]]:
    path = folder / "config.json"
    if not path.exists():
        raise InputError(f"The tower folder {folder} holds no config.json. It needs config.json and {WEIGHTS_FILE}.")
    config = json.loads(path.read_text(encoding="utf-8"))
    if "timm" not in config:  # a folder that timm itself wrote
        return _from_timm(f"local-dir:{folder}")
    lacking = [key for key in DESCRIPTION_KEYS if key not in config]
    if lacking:
        raise InputError(
            f"{path} lacks: {', '.join(lacking)}. Each tower states its image size, mean, std and interpolation."
        )
    description = {"architecture": config["timm"]["architecture"], "args": dict(config["timm"].get("args", {}))}
    description |= {key: config[key] for key in DESCRIPTION_KEYS}
    model = create(description)
    _load_strictly(model, folder / WEIGHTS_FILE)
    return model, description


def _load_strictly(model: nn.Module, path: Path) -> None:
    if not path.exists():
        raise InputError(f"The tower's weights {path} do not exist.")
    result = model.load_state_dict({key: value.float() for key, value in load_file(path).items()}, strict=False)
    if result.missing_keys or result.unexpected_keys:
        raise InputError(
            f"{path} does not fit the architecture in its config.json: missing keys {result.missing_keys}, "
            f"surplus keys {result.unexpected_keys}."
        )


def _from_timm(name: str) -> tuple[nn.Module, dict[str, Any]]:
    try:
        model = timm.create_model(name, pretrained=True, num_classes=0)
    except (RuntimeError, OSError, ValueError) as error:  # an unknown name, no network and no copy here, a bad hub name
        raise InputError(
            f"timm cannot build the tower '{name}': {one_line(error).rstrip('.')}. Give a folder, or a name from "
            "timm.list_pretrained() whose weights are in the cache or can be downloaded."
        ) from error
    data = timm.data.resolve_model_data_config(model)
    architecture = model.pretrained_cfg.get("architecture", name)
    return model, {
        "architecture": architecture,
        "args": dict(model.pretrained_cfg.get("model_args") or {}),
        "image_size": int(data["input_size"][1]),
        "mean": list(data["mean"]),
        "std": list(data["std"]),
        "interpolation": data["interpolation"],
    }
