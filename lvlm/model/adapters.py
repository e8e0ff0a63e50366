"""What maps vision features to LLM tokens (Centurio, arXiv 2501.05122, and its code). Used by `lvlm.model.lvlm`."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from lvlm.errors import InputError
from lvlm.model.seeding import generator_for

ADAPTERS = ("mlp", "multiscale-pool")


class Mlp(nn.Module):
    """Two linear layers with an exact GELU between them, on the single view of an image."""

    def __init__(self, *, width: int, hidden: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(width, hidden)
        self.linear_2 = nn.Linear(hidden, hidden)

    def forward(self, features: Tensor) -> Tensor:
        """(images, 1, tokens, width) -> (images, tokens, hidden)."""
        return self.project(features[:, 0])

    def project(self, tokens: Tensor) -> Tensor:
        projected: Tensor = self.linear_2(functional.gelu(self.linear_1(tokens)))
        return projected


class MultiscalePool(Mlp):
    """Global view and tiles at one token count: the tiles are stitched to one map, pooled to the grid, concatenated on
    channels.

    Source: Centurio's `multiscale-pool`, after S2 (Shi et al. 2024). With one tile it is `Mlp`.
    """

    def __init__(self, *, width: int, hidden: int, grid: Sequence[int], tiles: int) -> None:
        super().__init__(width=width if tiles == 1 else 2 * width, hidden=hidden)
        self.grid = (grid[0], grid[1])
        self.tiles = tiles

    def forward(self, features: Tensor) -> Tensor:
        """(images, 1 + n * n, tokens, width) -> (images, tokens, hidden); the same token count for every n."""
        if self.tiles == 1:
            return super().forward(features)
        low, high = features[:, 0], self.pool(self.stitch(features[:, 1:]))
        return self.project(torch.cat([low, high.flatten(2).transpose(1, 2)], dim=-1))

    def stitch(self, crops: Tensor) -> Tensor:
        """The map of the whole image from its crops in row order: (images, n * n, tokens, width) -> (images, width, n
        * h, n * w)."""
        images, _, _, width = crops.shape
        (height, breadth), n = self.grid, self.tiles
        tiled = crops.reshape(images, n, n, height, breadth, width)
        return tiled.permute(0, 5, 1, 3, 2, 4).reshape(images, width, n * height, n * breadth)

    def pool(self, stitched: Tensor) -> Tensor:
        """Average over n x n cells: (images, width, n * h, n * w) -> (images, width, h, w)."""
        return functional.avg_pool2d(stitched, self.tiles)


class Projector(nn.Module):
    """Holds the adapter under the name that Centurio's checkpoints use: `multi_modal_projector.adapter.*`."""

    def __init__(self, adapter: Mlp) -> None:
        super().__init__()
        self.adapter = adapter

    def forward(self, features: Tensor) -> Tensor:
        """(images, views, tokens, width) -> (images, tokens, hidden)."""
        tokens: Tensor = self.adapter(features)
        return tokens


def build_adapter(name: str, *, vision_width: int, llm_width: int, grid: Sequence[int], tiles: int) -> Mlp:
    """The adapter of this name; an unknown one, or `mlp` with tiles, is an error."""
    if name not in ADAPTERS:
        raise InputError(f"Unknown adapter '{name}'. Known adapters: {', '.join(ADAPTERS)}.")
    if name == "multiscale-pool":
        return MultiscalePool(width=vision_width, hidden=llm_width, grid=grid, tiles=tiles)
    if tiles != 1:
        raise InputError(f"The adapter 'mlp' takes tiles=1, not {tiles}. Use 'multiscale-pool' for tiles.")
    return Mlp(width=vision_width, hidden=llm_width)


@torch.no_grad()
def initialise_adapter(adapter: Mlp, *, vision_width: int, seed: int) -> None:
    """Uniform in +-1/sqrt(fan_in), torch's default for linear layers, drawn from named streams of `seed`.

    Arms with and without tiles share their random numbers: the columns of `linear_1` that read the global view, and
    `linear_2`, are the same draws (scaled by each layer's own fan-in) whatever the number of tiles.
    """
    for name, layer in (("linear_1", adapter.linear_1), ("linear_2", adapter.linear_2)):
        bound = 1 / math.sqrt(layer.in_features)
        step = vision_width if name == "linear_1" else layer.in_features
        for start in range(0, layer.in_features, step):
            stream = generator_for(seed, f"adapter.{name}.weight.{start // step}")
            layer.weight[:, start : start + step].uniform_(-1, 1, generator=stream).mul_(bound)
        layer.bias.uniform_(-1, 1, generator=generator_for(seed, f"adapter.{name}.bias")).mul_(bound)
