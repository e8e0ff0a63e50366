"""Tiles and adapters against a loop written by hand, and images of every kind as pixels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from lvlm.errors import InputError
from lvlm.model.adapters import KINDS, Resampler, build_adapter, initialise_adapter
from lvlm.model.tiling import INTERPOLATIONS, ImageTransform, open_image, pixels, views
from tests.tiny import tiny_image

TRANSFORM = ImageTransform(image_size=6, mean=(0.5, 0.4, 0.3), std=(0.5, 0.25, 0.2), interpolation="bicubic", tiles=2)


def make(name="multiscale-pool", *, width=4, hidden=5, grid=(3, 3), tiles=1, **args):
    return build_adapter(name, {"width": width, "grid": grid}, llm_width=hidden, tiles=tiles, args=args)


def by_hand(features, *, grid, tiles):
    """The input of `linear_1`, token by token, from features (views, tokens, width) of one image."""
    height, breadth = grid
    rows = []
    for y in range(height):
        for x in range(breadth):
            pooled = torch.zeros(features.shape[-1])
            for dy in range(tiles):
                for dx in range(tiles):
                    big_y, big_x = y * tiles + dy, x * tiles + dx
                    tile = (big_y // height) * tiles + big_x // breadth
                    token = (big_y % height) * breadth + big_x % breadth
                    pooled += features[1 + tile, token] / tiles**2
            rows.append(torch.cat([features[0, y * breadth + x], pooled]))
    return torch.stack(rows)


@pytest.mark.parametrize("tiles", [2, 3])
def test_multiscale_pool_equals_the_loop(tiles):
    torch.manual_seed(0)
    adapter = make("multiscale-pool", tiles=tiles)
    features = torch.randn(2, 1 + tiles**2, 9, 4)
    expected = torch.stack(
        [
            adapter.linear_2(functional.gelu(adapter.linear_1(by_hand(image, grid=(3, 3), tiles=tiles))))
            for image in features
        ]
    )
    assert adapter.linear_1.in_features == 8
    torch.testing.assert_close(adapter(features), expected)


def test_stitching_puts_the_map_of_the_whole_image_together():
    whole = torch.arange(36.0).reshape(6, 6)
    crops = torch.stack(
        [whole[3 * row : 3 * row + 3, 3 * column : 3 * column + 3].reshape(9, 1) for row in (0, 1) for column in (0, 1)]
    )
    adapter = make(width=1, hidden=1, tiles=2)
    assert torch.equal(adapter.stitch(crops[None])[0, 0], whole)


def test_one_tile_is_the_mlp():
    one = make("multiscale-pool", tiles=1)
    mlp = make("mlp", tiles=1)
    for adapter in (one, mlp):
        initialise_adapter(adapter, vision_width=4, seed=3)
    features = torch.randn(2, 1, 9, 4)
    assert list(one.state_dict()) == ["linear_1.weight", "linear_1.bias", "linear_2.weight", "linear_2.bias"]
    assert torch.equal(one(features), mlp(features))
    assert torch.equal(mlp(features), mlp.linear_2(functional.gelu(mlp.linear_1(features[:, 0]))))


def test_arms_with_and_without_tiles_share_their_draws():
    plain, tiled = (make("multiscale-pool", tiles=n) for n in (1, 2))
    for adapter in (plain, tiled):
        initialise_adapter(adapter, vision_width=4, seed=3)
    assert torch.equal(plain.linear_2.weight, tiled.linear_2.weight)
    torch.testing.assert_close(plain.linear_1.weight / 2**0.5, tiled.linear_1.weight[:, :4])
    assert not torch.allclose(tiled.linear_1.weight[:, :4], tiled.linear_1.weight[:, 4:])
    again = make("multiscale-pool", tiles=2)
    initialise_adapter(again, vision_width=4, seed=4)
    assert not torch.equal(again.linear_2.weight, tiled.linear_2.weight)


@pytest.mark.parametrize(("name", "tiles", "message"), [("window", 1, "Unknown adapter"), ("mlp", 2, "takes tiles=1")])
def test_wrong_adapters_are_refused(name, tiles, message):
    with pytest.raises(InputError, match=message):
        make(name, tiles=tiles)


@pytest.mark.parametrize("tiles", [1, 2])
def test_window_pool_averages_each_view_by_itself(tiles):
    adapter = make("window-pool", grid=(4, 6), tiles=tiles, pool=2)
    features = torch.randn(2, adapter.views, 24, 4)
    tokens = adapter(features)
    assert tokens.shape == (2, adapter.tokens, 5) and adapter.tokens == adapter.views * 4
    last = adapter.linear_2(functional.gelu(adapter.linear_1(features[1, -1]))).reshape(4, 6, 5)
    expected = [last[2 * y : 2 * y + 2, 3 * x : 3 * x + 3].mean((0, 1)) for y in range(2) for x in range(2)]
    torch.testing.assert_close(tokens[1, -4:], torch.stack(expected))


@pytest.mark.parametrize("tiles", [1, 2])
def test_window_shuffle_joins_neighbours_on_channels(tiles):
    adapter = make("window-shuffle", grid=(4, 6), tiles=tiles, shuffle=2)
    features = torch.randn(2, adapter.views, 24, 4)
    tokens = adapter(features)
    assert tokens.shape == (2, adapter.tokens, 5) and adapter.tokens == adapter.views * 6
    view = features[1, -1].reshape(4, 6, 4)
    square = view[2:4, 4:6]  # the last: rows 2 and 3, columns 4 and 5
    joined = torch.stack([square[dy, dx, c] for c in range(4) for dy in range(2) for dx in range(2)])  # PixelUnshuffle
    torch.testing.assert_close(tokens[1, -1], adapter.project(joined))


def test_multiscale_shuffle_joins_what_lies_under_a_token():
    adapter = make("multiscale-shuffle", hidden=6, tiles=2)
    features = torch.randn(1, 5, 9, 4)
    assert adapter(features).shape == (1, 1, 6) and adapter.tokens == 1, "3 x 3 averaged by 2 x 2"
    big = adapter.stitch(features[:, 1:])[0]
    seen = []
    adapter.mlp.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    tokens = adapter(features)
    y, x = 2, 1
    under = torch.stack([big[c, 2 * y + dy, 2 * x + dx] for c in range(4) for dy in range(2) for dx in range(2)])
    torch.testing.assert_close(seen[0][0, 3 * y + x], torch.cat([features[0, 0, 3 * y + x], under]))
    pooled = adapter.mlp(seen[0])[0].reshape(3, 3, 6)[:2, :2].mean((0, 1))
    torch.testing.assert_close(tokens[0, 0], pooled + adapter.peg.weight[:, 0, 1, 1] * pooled + adapter.peg.bias)
    assert set(adapter.state_dict()) == {
        f"{layer}.{kind}" for layer in ("mlp.0", "mlp.2", "peg") for kind in ("weight", "bias")
    }


@pytest.mark.parametrize("tiles", [1, 2])
def test_a_resampler_gives_its_queries_and_knows_places(tiles):
    adapter = make("resampler", hidden=8, tiles=tiles, queries=7)
    initialise_adapter(adapter, vision_width=4, seed=0)
    features = torch.randn(2, adapter.views, 9, 4)
    tokens = adapter(features)
    assert tokens.shape == (2, 7, 8) and adapter.tokens == 7
    swapped = features.clone()
    swapped[:, :, [0, 8]] = swapped[:, :, [8, 0]]
    assert not torch.allclose(adapter(swapped), tokens, atol=1e-6), "the same tokens elsewhere are another image"
    assert all(parameter.grad is not None for parameter in _learned(adapter, features))


def _learned(adapter, features):
    adapter(features).square().sum().backward()
    return list(adapter.parameters())


def test_a_crop_s_keys_stand_where_it_shows():
    """The four tokens that crops have in the place of one global token lie around it."""
    adapter = make("resampler", hidden=8, tiles=2)
    assert isinstance(adapter, Resampler)
    plain = make("resampler", hidden=8, tiles=1)
    assert torch.equal(adapter.places[:9], plain.places)
    fine = make("resampler", hidden=8, grid=(6, 6), tiles=1)  # the same places as the stitched crops, in half units
    crop = adapter.places[9:].reshape(4, 3, 3, 8)
    angle = torch.asin(crop[3, 0, 0, 0]), torch.asin(crop[0, 0, 0, 0])
    assert angle[1] == pytest.approx(0.25, abs=1e-5) and fine.places.shape == (36, 8)
    assert torch.sin(torch.tensor(1.75)) == pytest.approx(float(crop[3, 0, 0, 0]), abs=1e-5)


SIGLIP = {"width": 1152, "grid": (27, 27)}


@pytest.mark.parametrize(
    ("name", "hidden", "tiles", "parameters", "tokens"),
    [
        ("mlp", 3072, 1, 12_982_272, 729),
        ("multiscale-pool", 3072, 2, 16_521_216, 729),
        ("multiscale-pool", 3584, 2, 21_109_760, 729),
        ("multiscale-pool", 4096, 2, 26_222_592, 729),
        ("window-pool", 3072, 2, 12_982_272, 320),
        ("multiscale-shuffle", 3072, 2, 27_168_768, 169),
        ("resampler", 4096, 1, None, 64),
        ("query-mlp", 4096, 1, None, 64),
    ],
)
def test_sizes_on_siglip_are_those_of_centurio(name, hidden, tiles, parameters, tokens):
    with torch.device("meta"):
        adapter = make(name, **SIGLIP, hidden=hidden, tiles=tiles)
    assert adapter.tokens == tokens
    if parameters:
        assert sum(parameter.numel() for parameter in adapter.parameters()) == parameters


def test_odd_grids_work_or_are_refused_with_the_reason():
    with pytest.raises(InputError, match="joins 2 x 2 tokens, and a view of 27 x 27 tokens cannot"):
        make("window-shuffle", **SIGLIP)
    assert make("window-shuffle", grid=(27, 27), shuffle=3).tokens == 81
    with pytest.raises(InputError, match="cannot average a view of 3 x 3 tokens to 8 x 8"):
        make("window-pool")
    with pytest.raises(InputError, match="averages 2 x 2 tokens, and a view has 1 x 1"):
        make("multiscale-shuffle", grid=(1, 1))


@pytest.mark.parametrize("name", KINDS)
def test_a_draw_depends_on_the_seed_alone(name):
    grid = (4, 4)
    args = {"window-pool": {"pool": 2}}.get(name, {})
    adapters = [make(name, hidden=8, grid=grid, **args) for _ in range(3)]
    for adapter, seed in zip(adapters, (1, 1, 2), strict=True):
        torch.manual_seed(seed * 7)
        initialise_adapter(adapter, vision_width=4, seed=seed)
    one, same, other = (torch.cat([p.detach().flatten() for p in adapter.parameters()]) for adapter in adapters)
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_views_are_global_then_crops_row_by_row():
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)]
    image = Image.new("RGB", (12, 12))
    for index, colour in enumerate(colours):
        image.paste(colour, (6 * (index % 2), 6 * (index // 2), 6 * (index % 2) + 6, 6 * (index // 2) + 6))
    parts = views(image, replace(TRANSFORM, interpolation="nearest"))
    assert parts.shape == (5, 3, 6, 6) and parts.dtype == torch.uint8
    assert [tuple(part[:, 3, 3].tolist()) for part in parts[1:]] == colours
    values = pixels(image, TRANSFORM)
    assert values.shape == (5, 3, 6, 6) and values.dtype == torch.float32
    expected = (1 - torch.tensor([0.5, 0.4, 0.3])) / torch.tensor([0.5, 0.25, 0.2])
    torch.testing.assert_close(values[4, :, 3, 3], expected)


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_pixels_are_those_of_pillow_to_one_step_in_255(interpolation):
    transform = replace(TRANSFORM, image_size=64, tiles=1, interpolation=interpolation)
    for seed, size in enumerate(((320, 241), (50, 47), (64, 64), (1, 400))):
        image = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
        expected = np.asarray(image.resize((64, 64), INTERPOLATIONS[interpolation])).astype(int)
        found = views(image, transform)[0].permute(1, 2, 0).numpy().astype(int)
        assert np.abs(found - expected).max() <= 1, size
        if size == (64, 64):
            assert (found == np.asarray(image)).all()


def test_every_kind_of_image_becomes_the_same_pixels(tmp_path):
    grey = Image.fromarray(np.arange(0, 240, 2, dtype=np.uint8).reshape(10, 12))
    expected = pixels(grey.convert("RGB"), TRANSFORM)
    deep = Image.fromarray((np.asarray(grey).astype(np.uint16) << 8) + 17)
    assert deep.mode == "I;16"
    for name, image in {"grey": grey, "rgba": grey.convert("RGBA"), "deep": deep, "palette": grey.convert("P")}.items():
        image.save(tmp_path / f"{name}.png")
        assert torch.equal(pixels(open_image(tmp_path / f"{name}.png"), TRANSFORM), expected), name


def test_a_rotated_photograph_is_turned_upright(tmp_path):
    upright = tiny_image(1, size=(20, 10))
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned by a quarter to the left
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    assert torch.equal(pixels(open_image(tmp_path / "turned.png"), TRANSFORM), pixels(upright, TRANSFORM))


def test_extreme_shapes_and_broken_files(tmp_path):
    assert pixels(Image.new("RGB", (1, 4000)), TRANSFORM).shape == (5, 3, 6, 6)
    tiny_image().save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:200])
    (tmp_path / "text.png").write_text("no image")
    for name in ("cut.png", "text.png", "absent.png"):
        with pytest.raises(InputError, match=name):
            open_image(tmp_path / name)
