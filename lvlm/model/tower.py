"""The vision tower: a vision model of timm or transformers cut after the block whose output it gives. Used by
`lvlm.model.lvlm` and `lvlm.train.features`."""

from __future__ import annotations

import inspect
import json
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import timm.data
import torch
import transformers
from PIL.Image import Resampling
from safetensors.torch import load_file
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from lvlm.config import one_line
from lvlm.errors import InputError
from lvlm.model.keys import compare, refuse

WEIGHTS_FILE = "model.safetensors"
DESCRIPTION_KEYS = ("image_size", "mean", "std", "interpolation")
TRANSFORMERS = "transformers"
"""The `architecture` of a description whose `args` are the config of a vision model of transformers."""
FINAL_NORMS, HEADS = ("post_layernorm", "layernorm", "norm"), ("head", "pooler")
"""What vision models of transformers call the norm after their last block, and what they make of its output."""


class VisionTower(nn.Module):
    """A vision transformer up to the chosen block; later blocks, the final norm and the head are dropped, not merely
    skipped."""

    @abstractmethod
    def forward(self, pixel_values: Tensor) -> Tensor:
        """(views, 3, height, width) -> (views, tokens, width): the block's output without final norm and prefix
        tokens."""

    @abstractmethod
    def checkpoint(self, on: bool) -> None:
        """Whether blocks are computed again in the backward pass instead of keeping their activations."""

    def attend(self, attn: str) -> None:
        """Compute attention by `attn`, where a tower can be told; one of timm chooses for itself."""


class TimmTower(VisionTower):
    """A vision transformer of timm."""

    def __init__(self, model: nn.Module, *, feature_layer: int) -> None:
        super().__init__()
        blocks = getattr(model, "blocks", None)
        if blocks is None or not hasattr(model, "forward_intermediates"):
            raise InputError(
                f"The tower {type(model).__name__} has no blocks to read features from. Use a timm vision transformer."
            )
        index = _index(feature_layer, len(blocks))
        model.prune_intermediate_layers([index], prune_norm=True, prune_head=True)  # type: ignore[operator]
        self.model = model
        self.index = index

    def forward(self, pixel_values: Tensor) -> Tensor:
        outputs = self.model.forward_intermediates(  # type: ignore[operator]
            pixel_values, indices=[self.index], norm=False, output_fmt="NLC", intermediates_only=True
        )
        features: Tensor = outputs[0]
        return features

    def checkpoint(self, on: bool) -> None:
        self.model.set_grad_checkpointing(on)  # type: ignore[operator]


class TransformersTower(VisionTower):
    """A vision model of transformers, such as the one of SigLIP, CLIP or DINOv2."""

    def __init__(self, model: Any, *, feature_layer: int, image_size: int) -> None:
        super().__init__()
        config = model.config
        stacks = [
            module
            for module in model.modules()
            if isinstance(module, nn.ModuleList) and len(module) == config.num_hidden_layers
        ]
        patch = getattr(config, "patch_size", None)
        if len(stacks) != 1 or not isinstance(patch, int):
            raise InputError(
                f"The tower {type(model).__name__} is no plain vision transformer: it has {len(stacks)} stacks of "
                f"{config.num_hidden_layers} blocks and patches of {patch}. Use SigLIP, CLIP, DINOv2 or the like."
            )
        del stacks[0][_index(feature_layer, len(stacks[0])) + 1 :]
        inner = next(module for module in model.modules() if any(hasattr(module, name) for name in FINAL_NORMS))
        for module in (model, inner):
            for name in FINAL_NORMS:
                if isinstance(getattr(module, name, None), nn.Module):
                    setattr(module, name, nn.Identity())
            for name in HEADS:
                if isinstance(getattr(module, name, None), nn.Module):
                    setattr(module, name, None)
            if hasattr(module, "use_head"):
                module.use_head = False
        self.model = model
        self.tokens = (image_size // patch) ** 2
        accepts = inspect.signature(model.forward).parameters
        resized = image_size != config.image_size
        self.options = {"interpolate_pos_encoding": True} if resized and "interpolate_pos_encoding" in accepts else {}

    def forward(self, pixel_values: Tensor) -> Tensor:
        hidden: Tensor = self.model(pixel_values=pixel_values, **self.options).last_hidden_state
        return hidden[:, hidden.shape[1] - self.tokens :]

    def checkpoint(self, on: bool) -> None:
        if on:
            self.model.activation_checkpointing_enable({"use_reentrant": False})
        else:
            self.model.activation_checkpointing_disable()

    def attend(self, attn: str) -> None:
        if attn == "sdpa" and not self.model._supports_sdpa:
            return
        try:
            self.model.set_attn_implementation(attn)
        except (ValueError, ImportError) as error:
            raise InputError(
                f"The tower {type(self.model).__name__} cannot compute attention by {attn}: {one_line(error)}. Set "
                "model.attn=sdpa or eager."
            ) from error


def _index(feature_layer: int, blocks: int) -> int:
    index = blocks + feature_layer if feature_layer < 0 else feature_layer
    if not 0 <= index < blocks:
        raise InputError(
            f"feature_layer={feature_layer} does not exist in a tower of {blocks} blocks. Use -{blocks} to -1."
        )
    return index


def create(description: Mapping[str, Any]) -> nn.Module:
    """The model that a tower's description names, with its own random weights."""
    if description["architecture"] == "tiny_vit":
        from lvlm.backbones.vit import tiny_vit

        tiny: nn.Module = tiny_vit(**description["args"])
        return tiny
    if description["architecture"] == TRANSFORMERS:
        return transformers.AutoModel.from_config(transformers.AutoConfig.for_model(**description["args"]))  # type: ignore[no-any-return]
    model: nn.Module = timm.create_model(
        description["architecture"], pretrained=False, num_classes=0, **description["args"]
    )
    return model


def build_tower(description: Mapping[str, Any], *, feature_layer: int) -> VisionTower:
    """A tower with random weights from the description in a model's config."""
    # Weights are loaded right afterwards; buffers that are not saved need real storage even when the rest is built on
    # `meta`.
    with torch.device("cpu"):
        return cut(create(description), description, feature_layer=feature_layer)


def load_tower(
    source: str | Path, *, feature_layer: int, image_size: int | None = None
) -> tuple[VisionTower, dict[str, Any]]:
    """A tower with its weights in float32, and its description, from a folder or a name that timm or transformers
    knows; with `image_size` for pictures of another size than its own, positions interpolated."""
    folder = Path(source)
    if folder.is_dir():
        model, description = _from_folder(folder, image_size)
    elif "/" in str(source) and ":" not in str(source):  # timm's names of hub models begin with `hf-hub:`
        model, description = _from_transformers(str(source), image_size)
    else:
        model, description = _from_timm(str(source), image_size)
    tower = cut(model.float(), description, feature_layer=feature_layer)
    return tower, measure(tower, description, source=source)


def outline_tower(
    source: str | Path, *, feature_layer: int, image_size: int | None = None
) -> tuple[VisionTower, dict[str, Any]]:
    """What `load_tower` gives, without reading weights: a tower without storage (on `meta`), and its description, in
    which the colours of pixels may be missing."""
    folder, path = Path(source), Path(source) / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    with torch.device("meta"):
        if "timm" in config:
            size = image_size or config["image_size"]
            args = config["timm"].get("args", {}) | ({} if size == config["image_size"] else {"img_size": size})
            description = {"architecture": config["timm"]["architecture"], "args": args, "image_size": size}
            model = create(description)
        elif "model_type" in config or ("/" in str(source) and ":" not in str(source) and not folder.is_dir()):
            try:
                found = transformers.AutoConfig.from_pretrained(str(source))
            except (OSError, ValueError) as error:
                raise InputError(f"transformers cannot find the tower '{source}': {one_line(error)}") from error
            found = getattr(found, "vision_config", found)
            size = image_size or int(found.image_size)
            description = {"architecture": TRANSFORMERS, "args": found.to_dict(), "image_size": size}
            model = create(description)
        else:
            name = f"local-dir:{folder}" if folder.is_dir() else str(source)
            model, description = _from_timm(name, image_size, weights=False)
        tower = cut(model, description, feature_layer=feature_layer)
        return tower, measure(tower, description, source=source)


@torch.no_grad()
def measure(tower: VisionTower, description: Mapping[str, Any], *, source: str | Path) -> dict[str, Any]:
    """The description of a tower with its output: `width` and `grid`."""
    size = description["image_size"]
    features = tower(torch.zeros(1, 3, size, size))
    side = round(features.shape[1] ** 0.5)
    if side * side != features.shape[1]:
        raise InputError(
            f"The tower {source} gives {features.shape[1]} tokens for a square image, which is no square grid."
        )
    return {**description, "width": features.shape[2], "grid": [side, side]}


def cut(model: nn.Module, description: Mapping[str, Any], *, feature_layer: int) -> VisionTower:
    """The tower that reads its features at a block of a model."""
    if description["architecture"] == TRANSFORMERS:
        return TransformersTower(model, feature_layer=feature_layer, image_size=description["image_size"])
    return TimmTower(model, feature_layer=feature_layer)


def _from_folder(folder: Path, image_size: int | None) -> tuple[nn.Module, dict[str, Any]]:
    path = folder / "config.json"
    if not path.exists():
        raise InputError(f"The tower folder {folder} holds no config.json. It needs config.json and {WEIGHTS_FILE}.")
    config = json.loads(path.read_text(encoding="utf-8"))
    if "model_type" in config:
        return _from_transformers(str(folder), image_size)
    if "timm" not in config:  # a folder that timm itself wrote
        return _from_timm(f"local-dir:{folder}", image_size)
    lacking = [key for key in DESCRIPTION_KEYS if key not in config]
    if lacking:
        raise InputError(
            f"{path} lacks: {', '.join(lacking)}. Each tower states its image size, mean, std and interpolation."
        )
    description = {"architecture": config["timm"]["architecture"], "args": dict(config["timm"].get("args", {}))}
    description |= {key: config[key] for key in DESCRIPTION_KEYS}
    if image_size not in (None, config["image_size"]):
        if description["architecture"] == "tiny_vit":
            raise InputError(
                f"The shipped towers see {config['image_size']} x {config['image_size']} pixels and no others: leave "
                "image_size out, or use a tower of timm or transformers."
            )
        description |= {"args": description["args"] | {"img_size": image_size}, "image_size": image_size}
    model = create(description)
    _load_strictly(model, folder / WEIGHTS_FILE)
    return model, description


def _load_strictly(model: Any, path: Path) -> None:
    if not path.exists():
        raise InputError(f"The tower's weights {path} do not exist.")
    state = {key: value.float() for key, value in load_file(path).items()}
    wanted, found = getattr(model, "pos_embed", None), state.get("pos_embed")
    if wanted is not None and found is not None and wanted.shape != found.shape:
        prefix = 0 if model.no_embed_class else model.num_prefix_tokens
        state["pos_embed"] = resample_abs_pos_embed(
            found, new_size=list(model.patch_embed.grid_size), num_prefix_tokens=prefix
        )
    compare(state, model.state_dict(), path, model="its config.json describes")
    model.load_state_dict(state)


def _from_timm(name: str, image_size: int | None, *, weights: bool = True) -> tuple[nn.Module, dict[str, Any]]:
    resized = {} if image_size is None else {"img_size": image_size}
    try:
        model = timm.create_model(name, pretrained=weights, num_classes=0, **resized)
    except (RuntimeError, OSError, ValueError) as error:  # an unknown name, no network and no copy here, a bad hub name
        raise InputError(
            f"timm cannot build the tower '{name}': {one_line(error).rstrip('.')}. Give a folder, or a name from "
            "timm.list_pretrained() whose weights are in the cache or can be downloaded."
        ) from error
    description = describe_timm(model, name)
    description["args"] |= resized
    return model, description | ({} if image_size is None else {"image_size": image_size})


def describe_timm(model: Any, name: str) -> dict[str, Any]:
    """The description of a model of timm at its own image size."""
    data = timm.data.resolve_model_data_config(model)
    return {
        "architecture": model.pretrained_cfg.get("architecture", name),
        "args": dict(model.pretrained_cfg.get("model_args") or {}),
        "image_size": int(data["input_size"][1]),
        "mean": list(data["mean"]),
        "std": list(data["std"]),
        "interpolation": data["interpolation"],
    }


def _from_transformers(source: str, image_size: int | None) -> tuple[nn.Module, dict[str, Any]]:
    try:
        config = transformers.AutoConfig.from_pretrained(source)
        config = getattr(config, "vision_config", config)  # the vision half of a model of images and texts
        model, found = transformers.AutoModel.from_pretrained(
            source,
            config=config,
            dtype=torch.float32,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # refused below, by name
            output_loading_info=True,
        )
        pixels = transformers.AutoImageProcessor.from_pretrained(source)
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(
            f"transformers cannot load the tower '{source}': {one_line(error).rstrip('.')}. Give a folder with "
            f"config.json, {WEIGHTS_FILE} and preprocessor_config.json, or a hub name that can be reached."
        ) from error
    # What is surplus may be the text half of the same model.
    refuse(source, missing=found["missing_keys"], surplus=(), shapes=found["mismatched_keys"])
    return model, {
        "architecture": TRANSFORMERS,
        "args": config.to_dict(),
        "image_size": image_size or int(config.image_size),
        "mean": list(pixels.image_mean),
        "std": list(pixels.image_std),
        "interpolation": Resampling(pixels.resample).name.lower(),
    }
