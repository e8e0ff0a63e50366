"""A denoiser from its folder, with a projection for the language model at hand, and which of it learns. Used by
`lvlm.paint.painter`; diffusers is imported here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file
from torch import Tensor, nn

from lvlm.errors import InputError
from lvlm.model.keys import compare, readable
from lvlm.model.layouts import read_json
from lvlm.model.parts import PartCount
from lvlm.model.seeding import generator_for
from lvlm.paint_settings import Learning

PROJECTION = "encoder_hid_proj."
CROSS_ATTENTION = ".attn2."
KEYS_AND_VALUES = (".attn2.to_k.", ".attn2.to_v.")
WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors")


def read_shape(folder: Path, name: str) -> dict[str, Any]:
    """The `config.json` of a model of diffusers, of the class `name`."""
    if not (folder / "config.json").exists():
        raise InputError(
            f"There is no {name} at {folder} (looked for {folder / 'config.json'} from {Path.cwd()}). Give the folder "
            "that diffusers' save_pretrained wrote, such as `unet` or `vae` of a pipeline; download a hub model first."
        )
    shape = read_json(folder / "config.json")
    if shape.get("_class_name", name) != name:
        raise InputError(f"{folder / 'config.json'} is of a {shape['_class_name']}, and a {name} is needed here.")
    return {key: value for key, value in shape.items() if not key.startswith("_")}


def build(shape: dict[str, Any], *, width: int) -> Any:
    """A UNet of this shape whose projection reads states of `width` numbers."""
    return UNet2DConditionModel(**{**shape, "encoder_hid_dim": width, "encoder_hid_dim_type": "text_proj"})


def load_denoiser(folder: Path, *, width: int, seed: int) -> Any:
    """The UNet in a folder, in float32. Its projection is drawn from `seed`, but for one that is there in this width;
    so is all of it where the folder has no weights. Tensors that do not fit are an `InputError` that lists them."""
    shape = read_shape(folder, "UNet2DConditionModel")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build(shape, width=width)
    _draw_projection(model.encoder_hid_proj, seed=seed)
    weights = _weights(folder)
    if weights is None:
        return model.eval()
    state = _floats(weights)
    wanted = model.state_dict()
    drawn = {key for key in wanted if key.startswith(PROJECTION)}
    if any(key not in state or state[key].shape != wanted[key].shape for key in drawn):
        state = {key: value for key, value in state.items() if not key.startswith(PROJECTION)}
        wanted = {key: value for key, value in wanted.items() if key not in drawn}
    compare(state, wanted, weights, model="its config.json describes")
    model.load_state_dict(state, strict=False)  # compared above
    return model.eval()


def load_vae(folder: Path) -> Any:
    """The AutoencoderKL in a folder, in float32, frozen."""
    vae = AutoencoderKL(**read_shape(folder, "AutoencoderKL"))
    weights = _weights(folder)
    if weights is None:
        raise InputError(f"The VAE {folder} holds no weights ({' or '.join(WEIGHTS)}). Copy its whole folder.")
    state = _floats(weights)
    compare(state, vae.state_dict(), weights, model="its config.json describes")
    vae.load_state_dict(state)
    return vae.requires_grad_(False).eval()


def learns(name: str, train: Learning) -> bool:
    """Whether the tensor `name` of a denoiser learns."""
    if train == "all" or name.startswith(PROJECTION):
        return True
    if train == "cross_attention":
        return CROSS_ATTENTION in name
    return train == "kv" and any(part in name for part in KEYS_AND_VALUES)


def set_learning(denoiser: nn.Module, train: Learning) -> list[PartCount]:
    """Gradients on for exactly what learns; counts of the projection, of cross-attention and of the rest."""
    counts: dict[str, list[int]] = {"projection": [0, 0], "cross-attention": [0, 0], "rest": [0, 0]}
    for name, parameter in denoiser.named_parameters():
        parameter.requires_grad_(learns(name, train))
        part = "projection" if name.startswith(PROJECTION) else "cross-attention" if CROSS_ATTENTION in name else "rest"
        counts[part][0] += parameter.numel()
        counts[part][1] += parameter.numel() * parameter.requires_grad
    modes = {True: "full", False: "frozen"}
    return [PartCount(part, modes[learning > 0], total, learning) for part, (total, learning) in counts.items()]


def _draw_projection(layer: nn.Module, *, seed: int) -> None:
    """Numbers as large as the states that it reads, whatever their width."""
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            if parameter.ndim == 1:
                parameter.zero_()
            else:
                parameter.normal_(0.0, parameter.shape[1] ** -0.5, generator=generator_for(seed, PROJECTION + name))


def _weights(folder: Path) -> Path | None:
    if (folder / f"{WEIGHTS[0]}.index.json").exists():
        raise InputError(f"{folder} holds weights in several files. Save them in one (max_shard_size='20GB').")
    return next((folder / name for name in WEIGHTS if (folder / name).exists()), None)


def _floats(weights: Path) -> dict[str, Tensor]:
    with readable(weights):
        return {key: value.float() for key, value in load_file(weights).items()}
