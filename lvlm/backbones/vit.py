"""The architecture of the tiny vision tower: a timm VisionTransformer behind a convolutional stem.
Called by `lvlm.model.tower` for towers whose config names `tiny_vit`, and by `lvlm.backbones.vision`, which trains it.
"""

from __future__ import annotations

from typing import Any

from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

IMAGE_SIZE = 48
PATCH_SIZE = 8  # 48 / 8 = 6, so 6 x 6 = 36 tokens
WIDTH = 128
BLOCKS = 4  # features come from the penultimate block, the third
STEM_CHANNELS = (32, 64, WIDTH)  # one convolution of stride 2 each: 2 ** 3 = 8 pixels a token


class Residual(nn.Module):
    """A 3 x 3 convolution beside the identity: (batch, channels, height, width) to the same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.GroupNorm(8, channels), nn.GELU()
        )

    def forward(self, features: Tensor) -> Tensor:
        changed: Tensor = self.layers(features)
        return features + changed


class ConvStem(nn.Module):
    """Strided convolutions in place of a linear patch embedding: (batch, 3, height, width) -> (batch, tokens, width).

    Strided kernels of 4 keep what a token sees centred on its patch (kernels of 3 would centre it on the patch's
    corner). Group norm, not batch norm: global views and tiles have different statistics and share this stem.
    """

    def __init__(self, *, img_size: int, patch_size: int, in_chans: int, embed_dim: int, **_: Any) -> None:
        super().__init__()
        self.grid_size = (img_size // patch_size, img_size // patch_size)
        self.num_patches = self.grid_size[0] * self.grid_size[1]
        layers: list[nn.Module] = []
        channels = in_chans
        for width in (*STEM_CHANNELS[:-1], embed_dim):
            layers += [
                nn.Conv2d(channels, width, 4, stride=2, padding=1, bias=False),
                nn.GroupNorm(8, width),
                nn.GELU(),
            ]
            layers += [Residual(width)] if width > STEM_CHANNELS[0] else []
            channels = width
        layers.append(nn.Conv2d(embed_dim, embed_dim, 1))
        self.layers = nn.Sequential(*layers)

    def forward(self, pixels: Tensor) -> Tensor:
        features: Tensor = self.layers(pixels)
        return features.flatten(2).transpose(1, 2)


def tiny_vit() -> VisionTransformer:
    """A tower of about 0.9 M parameters for 48 x 48 pixels: 36 tokens of width 128, no class token."""
    return VisionTransformer(
        img_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        embed_dim=WIDTH,
        depth=BLOCKS,
        num_heads=4,
        mlp_ratio=2.0,
        num_classes=0,
        global_pool="",
        class_token=False,
        embed_layer=ConvStem,  # type: ignore[arg-type]
        weight_init="",
    )
