"""What maps vision features to LLM tokens (Centurio, arXiv 2501.05122, and its code; VisCPM, arXiv 2308.12038). Used by
`lvlm.model.lvlm`."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lvlm.errors import InputError
from lvlm.model.seeding import generator_for
from lvlm.model.tiling import view_count


class Adapter(nn.Module):
    """(images, views, tokens, width) of the tower -> (images, `tokens`, hidden) of the LLM.

    The first view is the global one; with n tiles, n x n crops follow in row order. `tokens` is what one image costs.
    """

    tokens: int

    def __init__(self, *, grid: Sequence[int], tiles: int) -> None:
        super().__init__()
        self.grid = (grid[0], grid[1])
        self.tiles = tiles
        self.views = view_count(tiles)

    @abstractmethod
    def forward(self, features: Tensor) -> Tensor: ...

    def maps(self, views: Tensor) -> Tensor:
        """Tokens in row order as maps: (..., tokens, width) -> (..., width, h, w)."""
        return views.transpose(-1, -2).reshape(*views.shape[:-2], views.shape[-1], *self.grid)

    def stitch(self, crops: Tensor) -> Tensor:
        """The map of the whole image from its crops in row order: (images, n * n, tokens, width) -> (images, width, n
        * h, n * w)."""
        images, _, _, width = crops.shape
        (height, breadth), n = self.grid, self.tiles
        tiled = crops.reshape(images, n, n, height, breadth, width)
        return tiled.permute(0, 5, 1, 3, 2, 4).reshape(images, width, n * height, n * breadth)


class Mlp(Adapter):
    """Two linear layers with an exact GELU between them, on the single view of an image."""

    def __init__(self, *, width: int, hidden: int, grid: Sequence[int], tiles: int = 1) -> None:
        super().__init__(grid=grid, tiles=tiles)
        self.tokens = grid[0] * grid[1]
        self.linear_1 = nn.Linear(width, hidden)
        self.linear_2 = nn.Linear(hidden, hidden)

    def forward(self, features: Tensor) -> Tensor:
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
        super().__init__(width=width if tiles == 1 else 2 * width, hidden=hidden, grid=grid, tiles=tiles)

    def forward(self, features: Tensor) -> Tensor:
        if self.tiles == 1:
            return super().forward(features)
        high = functional.avg_pool2d(self.stitch(features[:, 1:]), self.tiles)
        return self.project(torch.cat([features[:, 0], _rows(high)], dim=-1))


class WindowPool(Mlp):
    """The MLP on every token of every view, then each view averaged to pool x pool tokens, the views one after the
    other. Source: Centurio's `window-pool`."""

    def __init__(self, *, width: int, hidden: int, grid: Sequence[int], tiles: int, pool: int) -> None:
        super().__init__(width=width, hidden=hidden, grid=grid, tiles=tiles)
        if pool > min(grid):
            raise InputError(f"window-pool cannot average a view of {grid[0]} x {grid[1]} tokens to {pool} x {pool}.")
        self.pool = pool
        self.tokens = self.views * pool**2

    def forward(self, features: Tensor) -> Tensor:
        maps = self.maps(self.project(features)).flatten(0, 1)
        pooled = functional.adaptive_avg_pool2d(maps, self.pool)
        return _rows(pooled).reshape(len(features), self.tokens, -1)


class WindowShuffle(Mlp):
    """s x s neighbouring tokens of each view joined on channels, then the MLP, the views one after the other.

    Source: Centurio's `window-shuffel` (its spelling).
    """

    def __init__(self, *, width: int, hidden: int, grid: Sequence[int], tiles: int, shuffle: int) -> None:
        super().__init__(width=width * shuffle**2, hidden=hidden, grid=grid, tiles=tiles)
        if any(side % shuffle for side in grid):
            raise InputError(
                f"window-shuffle joins {shuffle} x {shuffle} tokens, and a view of {grid[0]} x {grid[1]} tokens cannot "
                f"be divided so. Use a shuffle that divides {grid[0]}, another image_size, or 'window-pool'."
            )
        self.shuffle = shuffle
        self.tokens = self.views * (grid[0] // shuffle) * (grid[1] // shuffle)

    def forward(self, features: Tensor) -> Tensor:
        joined = _rows(functional.pixel_unshuffle(self.maps(features), self.shuffle))
        return self.project(joined).flatten(1, 2)


class MultiscaleShuffle(Adapter):
    """As `MultiscalePool`, but the n x n tokens of the stitched tiles that belong to one of the global view are joined
    on channels; after the MLP 2 x 2 tokens are averaged, and a depthwise 3 x 3 convolution tells where each stands.

    Source: Centurio's `multiscale-shuffel` (its spelling); an odd grid loses its last row and column to the averaging.
    """

    def __init__(self, *, width: int, hidden: int, grid: Sequence[int], tiles: int) -> None:
        super().__init__(grid=grid, tiles=tiles)
        if min(grid) < 2:
            raise InputError(f"multiscale-shuffle averages 2 x 2 tokens, and a view has {grid[0]} x {grid[1]}.")
        self.tokens = (grid[0] // 2) * (grid[1] // 2)
        self.mlp = nn.Sequential(nn.Linear(width * self.views, hidden), nn.GELU(), nn.Linear(hidden, hidden))
        self.peg = nn.Conv2d(hidden, hidden, kernel_size=3, padding=1, groups=hidden)

    def forward(self, features: Tensor) -> Tensor:
        tokens = features[:, 0]
        if self.tiles > 1:
            high = functional.pixel_unshuffle(self.stitch(features[:, 1:]), self.tiles)
            tokens = torch.cat([tokens, _rows(high)], dim=-1)
        pooled = functional.avg_pool2d(self.maps(self.mlp(tokens)), 2)
        return _rows(self.peg(pooled) + pooled)


class Resampler(Adapter):
    """Learned queries that attend to the tokens of all views: always `queries` tokens.

    Keys carry the place of their token in the whole image (sine and cosine of its row and column), so that a crop's
    tokens stand where they show. Stands in for VisCPM's 64 queries inside BEiT-3; the form is that of Qwen-VL's.
    """

    def __init__(self, *, width: int, hidden: int, grid: Sequence[int], tiles: int, queries: int) -> None:
        super().__init__(grid=grid, tiles=tiles)
        if hidden % 4:
            raise InputError(f"The resampler needs a width that is a multiple of 4, not {hidden}.")
        self.tokens = queries
        self.queries = nn.Parameter(torch.zeros(queries, hidden))
        self.width = nn.Linear(width, hidden, bias=False)
        self.norm_queries = nn.LayerNorm(hidden)
        self.norm_keys = nn.LayerNorm(hidden)
        self.attention = nn.MultiheadAttention(hidden, _heads(hidden), batch_first=True)
        self.norm = nn.LayerNorm(hidden)
        self.linear = nn.Linear(hidden, hidden)
        self.register_buffer("places", _places(self.grid, tiles, hidden), persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        values = self.norm_keys(self.width(features.flatten(1, 2)))
        keys = values + self.places.to(values.dtype)
        queries = self.norm_queries(self.queries).expand(len(values), -1, -1)
        attended, _ = self.attention(queries, keys, values, need_weights=False)
        tokens: Tensor = self.linear(self.norm(attended))
        return tokens


class QueryMlp(Resampler):
    """A resampler as wide as the tower, then an MLP into the LLM: the shape of VisCPM-Chat (arXiv 2308.12038, and its
    code), whose 64 queries of 1024 pass an MLP of two layers. There the queries run through the tower itself; here they
    read its features by one cross-attention."""

    def __init__(self, *, width: int, hidden: int, grid: Sequence[int], tiles: int, queries: int) -> None:
        super().__init__(width=width, hidden=width, grid=grid, tiles=tiles, queries=queries)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, hidden))

    def forward(self, features: Tensor) -> Tensor:
        tokens: Tensor = self.mlp(super().forward(features))
        return tokens


def _rows(maps: Tensor) -> Tensor:
    """Maps as tokens in row order: (..., width, h, w) -> (..., h * w, width)."""
    return maps.flatten(-2).transpose(-1, -2)


def _heads(hidden: int) -> int:
    """Heads of width 128, or the widest that divides."""
    return hidden // max(size for size in range(1, min(hidden, 128) + 1) if hidden % size == 0)


def _places(grid: Sequence[int], tiles: int, hidden: int) -> Tensor:
    """Sine and cosine of row and column, in units of the global view's tokens: (tokens of all views, hidden)."""

    def centres(side: int, parts: int, part: int) -> Tensor:
        return (torch.arange(side) + 0.5) / parts + side * part / parts

    crops = [(1, 0, 0)] + [(tiles, row, column) for row in range(tiles) for column in range(tiles) if tiles > 1]
    rates = torch.exp(-math.log(10_000) * torch.arange(hidden // 4) / (hidden // 4))
    parts = []
    for scale, row, column in crops:
        places = torch.cartesian_prod(centres(grid[0], scale, row), centres(grid[1], scale, column))
        angles = (places[:, :, None] * rates).flatten(1)
        parts.append(torch.cat([angles.sin(), angles.cos()], dim=1))
    return torch.cat(parts)


class Projector(nn.Module):
    """Holds the adapter under the name that Centurio's checkpoints use: `multi_modal_projector.adapter.*`."""

    def __init__(self, adapter: Adapter) -> None:
        super().__init__()
        self.adapter = adapter

    def forward(self, features: Tensor) -> Tensor:
        """(images, views, tokens, width) -> (images, tokens, hidden)."""
        tokens: Tensor = self.adapter(features)
        return tokens


DEFAULTS = {
    "window-pool": {"pool": 8},
    "window-shuffle": {"shuffle": 2},
    "resampler": {"queries": 64},
    "query-mlp": {"queries": 64},
}
"""The setting of its own that an adapter has, and its default: Centurio's for the first two, VisCPM's for the third."""
KINDS: dict[str, type[Adapter]] = {
    "mlp": Mlp,
    "multiscale-pool": MultiscalePool,
    "window-pool": WindowPool,
    "window-shuffle": WindowShuffle,
    "multiscale-shuffle": MultiscaleShuffle,
    "resampler": Resampler,
    "query-mlp": QueryMlp,
}

READS_VISION = ("linear_1", "mlp.0", "width")
"""Layers whose columns are the channels of a view, or of several views one after the other."""


def build_adapter(
    name: str, tower: Mapping[str, Any], *, llm_width: int, tiles: int, args: Mapping[str, int] | None
) -> Adapter:
    """The adapter of this name behind a tower (its `width` and `grid`), with `args` as its own settings; an unknown
    name, or `mlp` with tiles, is an error."""
    if name not in KINDS:
        raise InputError(f"Unknown adapter '{name}'. Known adapters: {', '.join(KINDS)}.")
    if name == "mlp" and tiles != 1:
        raise InputError(f"The adapter 'mlp' takes tiles=1, not {tiles}. Use 'multiscale-pool' for tiles.")
    kind: Any = KINDS[name]
    adapter: Adapter = kind(
        width=tower["width"],
        hidden=llm_width,
        grid=tower["grid"],
        tiles=tiles,
        **(DEFAULTS.get(name, {}) | dict(args or {})),
    )
    return adapter


@torch.no_grad()
def initialise_adapter(adapter: Adapter, *, vision_width: int, seed: int) -> None:
    """torch's defaults for each layer, drawn from named streams of `seed`: linear layers and convolutions uniform in
    +-1/sqrt(fan_in), norms at one; a resampler's queries normal with deviation 0.02.

    Arms with and without tiles share their random numbers: the columns of the first linear layer that read the global
    view, and all later layers, are the same draws (scaled by each layer's own fan-in) whatever the number of tiles.
    """
    for name, module in adapter.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            weight = module.weight
            inputs = weight[0].numel()
            bound = 1 / math.sqrt(inputs)
            step = vision_width if name in READS_VISION else inputs
            for start in range(0, inputs, step):
                stream = generator_for(seed, f"adapter.{name}.weight.{start // step}")
                weight.flatten(1)[:, start : start + step].uniform_(-1, 1, generator=stream).mul_(bound)
            if module.bias is not None:
                module.bias.uniform_(-1, 1, generator=generator_for(seed, f"adapter.{name}.bias")).mul_(bound)
        elif isinstance(module, nn.LayerNorm):
            module.reset_parameters()
        elif isinstance(module, nn.MultiheadAttention):
            bound = 1 / math.sqrt(module.embed_dim)
            stream = generator_for(seed, f"adapter.{name}.in_proj_weight")
            module.in_proj_weight.uniform_(-1, 1, generator=stream).mul_(bound)
            module.in_proj_bias.zero_()
    if isinstance(adapter, Resampler):
        adapter.queries.normal_(std=0.02, generator=generator_for(seed, "adapter.queries"))
