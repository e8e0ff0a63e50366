"""The vision tower: a vision model of timm or transformers cut after the block whose output it gives. Used by
`lvlm.model.lvlm` and `lvlm.train.features`."""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import timm
import timm.data
import torch
import transformers
from PIL.Image import Resampling
from safetensors import SafetensorError
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from lvlm.config import one_line
from lvlm.errors import InputError
from lvlm.model.keys import compare, read_tensors, refuse
from lvlm.model.layouts import read_json

WEIGHTS_FILE = "model.safetensors"
DESCRIPTION_KEYS = ("image_size", "mean", "std", "interpolation")
TRANSFORMERS = "transformers"
"""The `architecture` of a description whose `args` are the config of a vision model of transformers."""
FINAL_NORMS, HEADS = ("post_layernorm", "layernorm", "norm", "rms_norm"), ("head", "pooler")
"""What vision models of transformers call the norm after their last block, and what they make of its output."""


class VisionTower(nn.Module):
    """A vision model up to the chosen block; later blocks, the final norm and the head are dropped, not merely
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
    """A vision model of timm: a transformer, whose blocks are counted, or one in stages, which are counted then."""

    def __init__(self, model: Any, *, feature_layer: int) -> None:
        super().__init__()
        layers = len(getattr(model, "feature_info", None) or ())
        if not layers or not hasattr(model, "prune_intermediate_layers"):
            raise InputError(
                f"The tower {type(model).__name__} has no blocks that timm reads features from. Use another one."
            )
        index = _index(feature_layer, layers)
        model.prune_intermediate_layers([index], prune_norm=True, prune_head=True)
        self.model = model
        self.index = index
        self.has_tokens = hasattr(model, "num_prefix_tokens")

    def forward(self, pixel_values: Tensor) -> Tensor:
        form = "NLC" if self.has_tokens else "NCHW"
        features: Tensor
        (features,) = self.model.forward_intermediates(
            pixel_values, indices=[self.index], norm=False, output_fmt=form, intermediates_only=True
        )
        return features if self.has_tokens else features.flatten(2).transpose(1, 2)

    def checkpoint(self, on: bool) -> None:
        try:
            self.model.set_grad_checkpointing(on)
        except AssertionError as error:
            raise InputError(
                f"The tower {type(self.model).__name__} of timm cannot compute its blocks again. Set "
                "compute.gradient_checkpointing=false, or freeze the tower."
            ) from error


class TransformersTower(VisionTower):
    """A vision model of transformers, such as the one of SigLIP, CLIP or DINOv2."""

    def __init__(self, model: Any, *, feature_layer: int, image_size: int) -> None:
        super().__init__()
        config = model.config
        blocks, patch = getattr(config, "num_hidden_layers", None), _side(config, "patch_size")
        stacks = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) == blocks]
        if len(stacks) != 1 or patch is None:
            raise _no_plain_transformer(model, f"it has {len(stacks)} stacks of {blocks} blocks, patches of {patch}")
        del stacks[0][_index(feature_layer, len(stacks[0])) + 1 :]
        self.last_block = (stacks[0][-1],)  # in a tuple, since it is a part of the model already
        inner = next(
            (module for module in model.modules() if any(hasattr(module, name) for name in FINAL_NORMS)), model
        )
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
        resized = image_size != _side(config, "image_size")
        self.options = {"interpolate_pos_encoding": True} if resized and "interpolate_pos_encoding" in accepts else {}

    def forward(self, pixel_values: Tensor) -> Tensor:
        hidden: Tensor = self.model(pixel_values=pixel_values, **self.options).last_hidden_state
        return hidden[:, hidden.shape[1] - self.tokens :]

    @torch.no_grad()
    def check(self, image_size: int) -> None:
        """Raise unless the model's output is that of the last block that is left, a sequence of tokens for each
        image."""
        found: list[Any] = []
        handle = self.last_block[0].register_forward_hook(lambda *call: found.append(call[-1]))
        try:
            hidden = self.model(
                pixel_values=torch.zeros(2, 3, image_size, image_size), **self.options
            ).last_hidden_state
        except (ValueError, TypeError, RuntimeError) as error:
            raise _no_plain_transformer(self.model, f"it does not read images ({one_line(error)})") from error
        finally:
            handle.remove()
        block = found[0][0] if isinstance(found[0], tuple) else found[0]
        if hidden.dim() != 3 or len(hidden) != 2 or hidden.shape[1] < self.tokens:
            raise _no_plain_transformer(self.model, f"two images become {tuple(hidden.shape)}")
        if not torch.equal(hidden, block):
            raise _no_plain_transformer(self.model, "it changes what its last block gives")

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


def _no_plain_transformer(model: nn.Module, reason: str) -> InputError:
    return InputError(
        f"The tower {type(model).__name__} is no plain vision transformer: {reason}. Use SigLIP, CLIP, DINOv2 or the "
        "like, or a tower of timm."
    )


def _side(config: Any, name: str) -> int | None:
    """Pixels of a square's side, which some families write twice; None where it is none."""
    value = getattr(config, name, None)
    if isinstance(value, list | tuple) and len(set(value)) == 1:
        value = value[0]
    return value if isinstance(value, int) else None


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
    try:
        model: nn.Module = timm.create_model(
            description["architecture"], pretrained=False, num_classes=0, **description["args"]
        )
    except RuntimeError as error:
        raise InputError(f"timm has no tower '{description['architecture']}' ({one_line(error)}).") from error
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
    tower = cut(model.float(), description, feature_layer=feature_layer).eval()  # batch norms learn from what they see
    if isinstance(tower, TransformersTower):
        tower.check(description["image_size"])
    return tower, measure(tower, description, source=source)


def outline_tower(
    source: str | Path, *, feature_layer: int, image_size: int | None = None
) -> tuple[VisionTower, dict[str, Any]]:
    """What `load_tower` gives, without reading weights: a tower without storage (on `meta`), and its description, in
    which the colours of pixels may be missing."""
    folder, path = Path(source), Path(source) / "config.json"
    config = read_json(path) if path.exists() else {}
    with torch.device("meta"):
        if "timm" in config:
            args, size = config["timm"].get("args", {}), image_size or config["image_size"]
            description = {"architecture": config["timm"]["architecture"], "args": args, "image_size": size}
            model, _ = _sized(
                lambda **sized: create({**description, "args": args | sized}),
                None if size == config["image_size"] else size,
            )
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
    try:
        features = tower(torch.zeros(1, 3, size, size))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise InputError(
            f"The tower {source} cannot read images of {size} x {size} pixels ({one_line(error)}). Set another "
            "model.image_size, or leave it out."
        ) from error
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
    config = read_json(path)
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
        args, description["image_size"] = description["args"], image_size
        model, sized = _sized(lambda **size: create({**description, "args": args | size}), image_size)
        description["args"] = args | sized
    else:
        model = create(description)
    _load_strictly(model, folder / WEIGHTS_FILE)
    return model, description


def _load_strictly(model: Any, path: Path) -> None:
    state = {key: value.float() for key, value in read_tensors(path).items()}
    wanted, found = getattr(model, "pos_embed", None), state.get("pos_embed")
    if hasattr(model, "num_prefix_tokens") and wanted is not None and found is not None and wanted.shape != found.shape:
        prefix, grid = (
            0 if getattr(model, "no_embed_class", False) else model.num_prefix_tokens,
            model.patch_embed.grid_size,
        )
        if all(grid):  # else the shapes are refused below
            state["pos_embed"] = resample_abs_pos_embed(found, new_size=list(grid), num_prefix_tokens=prefix)
    compare(state, model.state_dict(), path, model="its config.json describes")
    model.load_state_dict(state)


def _from_timm(name: str, image_size: int | None, *, weights: bool = True) -> tuple[nn.Module, dict[str, Any]]:
    try:
        model, sized = _sized(partial(timm.create_model, name, pretrained=weights, num_classes=0), image_size)
    except (RuntimeError, OSError, ValueError) as error:  # an unknown name, no network and no copy here, a bad hub name
        raise InputError(
            f"timm cannot build the tower '{name}': {one_line(error).rstrip('.')}. Give a folder, or a name from "
            "timm.list_pretrained() whose weights are in the cache or can be downloaded."
        ) from error
    description = describe_timm(model, name)
    description["args"] |= sized
    return model, description | ({} if image_size is None else {"image_size": image_size})


def _sized(build: Callable[..., nn.Module], image_size: int | None) -> tuple[Any, dict[str, int]]:
    """What `build` makes for pictures of this size (None: of its own), and the argument that said so; an architecture
    of timm without positions has no such argument, and takes pictures of any size."""
    if image_size is None:
        return build(), {}
    try:
        return build(img_size=image_size), {"img_size": image_size}
    except TypeError:
        return build(), {}


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
        config = transformers.AutoConfig.from_pretrained(source, trust_remote_code=False)
        config = getattr(config, "vision_config", config)  # the vision half of a model of images and texts
        model, found = transformers.AutoModel.from_pretrained(
            source,
            config=config,
            dtype=torch.float32,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # refused below, by name
            output_loading_info=True,
            trust_remote_code=False,
        )
        pixels = transformers.AutoImageProcessor.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise InputError(
            f"transformers cannot load the tower '{source}': {one_line(error).rstrip('.')}. Give a folder with "
            f"config.json, {WEIGHTS_FILE} and preprocessor_config.json, or a hub name that can be reached."
        ) from error
    size = image_size or _side(config, "image_size")
    if size is None:
        raise _no_plain_transformer(model, "its config names no image size")
    # What is surplus may be the text half of the same model.
    refuse(source, missing=found["missing_keys"], surplus=(), shapes=found["mismatched_keys"])
    return model, {
        "architecture": TRANSFORMERS,
        "args": config.to_dict(),
        "image_size": size,
        "mean": list(pixels.image_mean),
        "std": list(pixels.image_std),
        "interpolation": Resampling(pixels.resample).name.lower(),
    }
