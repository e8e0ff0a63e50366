"""Vision towers as stock models of transformers: the vision half of SigLIP or CLIP, or ViT. Called by
`lvlm.model.llava`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from timm.layers import LayerScale, Mlp, PatchEmbed
from timm.models.vision_transformer import Attention, Block, VisionTransformer
from torch import Tensor, nn
from transformers import AutoConfig

from lvlm.errors import InputError
from lvlm.model.tower import TimmTower, TransformersTower, VisionTower

ACTIVATIONS = {"GELU": "gelu", "GELUTanh": "gelu_pytorch_tanh", "QuickGELU": "quick_gelu"}
"""What timm calls an activation -> what transformers does."""


@dataclass(frozen=True)
class StockTower:
    """A tower as a config of transformers and the tensors of that model, in float32 where they were multiplied or
    added.

    Stock LLaVA reads the penultimate block, and so do those who serve it; so the config has one block more than a
    tower is deep, whose tensors, like those of final norm and pooler, are not here and may be anything.
    """

    config: Any
    state: dict[str, Tensor]
    prefix: int
    """Tokens before those of the patches: 0, or 1 for a class token."""


@dataclass(frozen=True)
class Names:
    """What a family of transformers calls the tensors of a vision transformer."""

    model_type: str
    patch: str
    position: str
    token: str | None
    before: str | None
    block: str
    norms: tuple[str, str]
    attention: str
    output: str


_ENCODER = {
    "patch": "embeddings.patch_embedding",
    "position": "embeddings.position_embedding.weight",
    "block": "encoder.layers.{}.",
    "norms": ("layer_norm1", "layer_norm2"),
    "attention": "self_attn",
    "output": "out_proj",
}
SIGLIP = Names("siglip_vision_model", token=None, before=None, **_ENCODER)  # type: ignore[arg-type]
CLIP = Names("clip_vision_model", token="embeddings.class_embedding", before="pre_layrnorm", **_ENCODER)  # type: ignore[arg-type]
VIT = Names(
    "vit",
    patch="embeddings.patch_embeddings.projection",
    position="embeddings.position_embeddings",
    token="embeddings.cls_token",
    before=None,
    block="layers.{}.",
    norms=("layernorm_before", "layernorm_after"),
    attention="attention",
    output="o_proj",
)


def stock_tower(tower: VisionTower, *, image_size: int, depth: int) -> StockTower:
    """A tower of `depth` blocks in stock form; an `InputError` with the reason for one that has none."""
    if isinstance(tower, TransformersTower):
        return _of_transformers(tower, image_size=image_size, depth=depth)
    assert isinstance(tower, TimmTower)
    return _of_timm(tower.model, image_size=image_size)


def _refuse(reason: str) -> InputError:
    return InputError(
        f"The tower is no model that stock transformers has: {reason}. Export without `--as llava`, which keeps it as "
        "it is."
    )


@torch.no_grad()
def _of_transformers(tower: TransformersTower, *, image_size: int, depth: int) -> StockTower:
    model: Any = tower.model
    if tower.options:
        raise _refuse(
            f"its positions are interpolated from {model.config.image_size} to {image_size} pixels as it runs, which "
            "stock LLaVA does not do"
        )
    parameter = next(model.parameters())
    pixels = torch.zeros(1, 3, image_size, image_size, dtype=parameter.dtype, device=parameter.device)
    prefix = model(pixel_values=pixels).last_hidden_state.shape[1] - tower.tokens
    if prefix > 1:
        raise _refuse(f"it has {prefix} tokens before those of the patches, and stock LLaVA can leave out one")
    settings = model.config.to_dict() | {"num_hidden_layers": depth + 1}
    if hasattr(model.config, "vision_use_head"):
        settings["vision_use_head"] = False
    return StockTower(AutoConfig.for_model(**settings), dict(model.state_dict()), prefix)


def _of_timm(model: Any, *, image_size: int) -> StockTower:
    names = _names(model)
    blocks = list(model.blocks)
    first = blocks[0]
    patch = model.patch_embed.proj
    config = AutoConfig.for_model(
        names.model_type,
        hidden_size=model.embed_dim,
        intermediate_size=first.mlp.fc1.out_features,
        num_hidden_layers=len(blocks) + 1,
        num_attention_heads=first.attn.num_heads,
        image_size=image_size,
        patch_size=patch.kernel_size[0],
        hidden_act=_activation(first.mlp.act),
        layer_norm_eps=first.norm1.eps,
        **({"vision_use_head": False} if names is SIGLIP else {}),
    )
    state = {f"{names.patch}.weight": patch.weight}
    position = model.pos_embed[0]
    if names.token is not None:
        token = model.cls_token[0, 0]
        if model.no_embed_class:
            position = torch.cat([torch.zeros_like(token)[None], position])
        state[names.token] = token if names is CLIP else token[None, None]
    bias = torch.zeros_like(position[0]) if patch.bias is None else patch.bias
    if names is CLIP:  # its patches have no bias: a constant for each of them is as good as part of its position
        position = torch.cat([position[:1].float(), position[1:].float() + bias.float()])
    else:
        state[f"{names.patch}.bias"] = bias
    state[names.position] = position[None] if names is VIT else position
    if names.before is not None:
        state |= _named(names.before, model.norm_pre)
    for number, block in enumerate(blocks):
        state |= {names.block.format(number) + key: value for key, value in _block(block, names).items()}
    return StockTower(config, state, 0 if names.token is None else 1)


def _names(model: Any) -> Names:
    """The family that has a form for this timm model."""
    if type(model) is not VisionTransformer:
        raise _refuse(f"it is a {type(model).__name__} of timm, no plain vision transformer")
    if type(model.patch_embed) is not PatchEmbed or not isinstance(model.patch_embed.norm, nn.Identity):
        raise _refuse(
            f"its patches come from a {type(model.patch_embed).__name__}, and stock models have one convolution"
        )
    if model.num_prefix_tokens > 1 or (model.num_prefix_tokens == 1 and model.cls_token is None):
        raise _refuse(f"it has {model.num_prefix_tokens} tokens before those of the patches that are no class token")
    if model.pos_embed is None:
        raise _refuse("it has no learned positions")
    eps = {block.norm1.eps for block in model.blocks if isinstance(block.norm1, nn.LayerNorm)}
    before = isinstance(model.norm_pre, nn.LayerNorm)
    if len(eps) != 1 or (before and model.norm_pre.eps not in eps):
        raise _refuse(f"its norms are no layer norms with one epsilon ({sorted(eps)})")
    for number, block in enumerate(model.blocks):
        if fault := _fault(block):
            raise _refuse(f"its block {number} has {fault}")
    if model.cls_token is None:
        if before:
            raise _refuse("it has a norm before its blocks but no class token")
        return SIGLIP
    return CLIP if before else VIT


def _fault(block: Any) -> str | None:
    """What a block has that stock blocks lack."""
    for module, kind in ((block, Block), (getattr(block, "attn", None), Attention), (getattr(block, "mlp", None), Mlp)):
        if type(module) is not kind:
            return f"a {type(module).__name__} in the place of a {kind.__name__}"
    norms = {"attn.q_norm": block.attn.q_norm, "attn.norm": block.attn.norm, "mlp.norm": block.mlp.norm}
    for name, module in norms.items():
        if not isinstance(module, nn.Identity):
            return f"a norm at {name}"
    for name in ("norm1", "norm2"):
        norm = getattr(block, name)
        if not isinstance(norm, nn.LayerNorm) or norm.bias is None:
            return f"a {type(norm).__name__} at {name}"
    for name in ("ls1", "ls2"):
        if not isinstance(getattr(block, name), nn.Identity | LayerScale):
            return f"a {type(getattr(block, name)).__name__} at {name}"
    if block.attn.num_heads * block.attn.head_dim != block.attn.qkv.in_features:
        return "heads of another width than its own"
    return None


def _activation(module: Any) -> str:
    name = type(module).__name__
    if name == "GELU" and getattr(module, "approximate", "none") == "tanh":
        name = "GELUTanh"
    if name not in ACTIVATIONS:
        raise _refuse(f"its activation is {name}, and those known here are {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def _block(block: Any, names: Names) -> dict[str, Tensor]:
    """A block's tensors; queries, keys and values apart, and the scales of its branches in their last layers."""
    state = _named(names.norms[0], block.norm1) | _named(names.norms[1], block.norm2)
    qkv = _named("", block.attn.qkv)
    for suffix, value in qkv.items():
        for letter, third in zip("qkv", value.chunk(3), strict=True):
            state[f"{names.attention}.{letter}_proj{suffix}"] = third
    state |= _named(f"{names.attention}.{names.output}", block.attn.proj, block.ls1)
    state |= _named("mlp.fc1", block.mlp.fc1)
    return state | _named("mlp.fc2", block.mlp.fc2, block.ls2)


def _named(name: str, layer: Any, scale: Any = None) -> dict[str, Tensor]:
    weight, bias = layer.weight, layer.bias
    bias = torch.zeros_like(weight[:, 0]) if bias is None else bias
    if isinstance(scale, LayerScale):
        gamma = scale.gamma.float()
        weight, bias = gamma[:, None] * weight.float(), gamma * bias.float()
    return {f"{name}.weight": weight, f"{name}.bias": bias}
