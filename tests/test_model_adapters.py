"""Tiles and adapters against a loop written by hand, and images of every kind as pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from lvlm.errors import InputError
from lvlm.model.adapters import build_adapter, initialise_adapter
from lvlm.model.tiling import ImageTransform, open_image, pixels, views
from tests.tiny import tiny_image

TRANSFORM = ImageTransform(image_size=6, mean=(0.5, 0.4, 0.3), std=(0.5, 0.25, 0.2), interpolation="bicubic", tiles=2)


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
    adapter = build_adapter("multiscale-pool", vision_width=4, llm_width=5, grid=(3, 3), tiles=tiles)
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
    adapter = build_adapter("multiscale-pool", vision_width=1, llm_width=1, grid=(3, 3), tiles=2)
    assert torch.equal(adapter.stitch(crops[None])[0, 0], whole)


def test_one_tile_is_the_mlp():
    one = build_adapter("multiscale-pool", vision_width=4, llm_width=5, grid=(3, 3), tiles=1)
    mlp = build_adapter("mlp", vision_width=4, llm_width=5, grid=(3, 3), tiles=1)
    for adapter in (one, mlp):
        initialise_adapter(adapter, vision_width=4, seed=3)
    features = torch.randn(2, 1, 9, 4)
    assert list(one.state_dict()) == ["linear_1.weight", "linear_1.bias", "linear_2.weight", "linear_2.bias"]
    assert torch.equal(one(features), mlp(features))
    assert torch.equal(mlp(features), mlp.linear_2(functional.gelu(mlp.linear_1(features[:, 0]))))


def test_arms_with_and_without_tiles_share_their_draws():
    plain, tiled = (build_adapter("multiscale-pool", vision_width=4, llm_width=5, grid=(3, 3), tiles=n) for n in (1, 2))
    for adapter in (plain, tiled):
        initialise_adapter(adapter, vision_width=4, seed=3)
    assert torch.equal(plain.linear_2.weight, tiled.linear_2.weight)
    torch.testing.assert_close(plain.linear_1.weight / 2**0.5, tiled.linear_1.weight[:, :4])
    assert not torch.allclose(tiled.linear_1.weight[:, :4], tiled.linear_1.weight[:, 4:])
    again = build_adapter("multiscale-pool", vision_width=4, llm_width=5, grid=(3, 3), tiles=2)
    initialise_adapter(again, vision_width=4, seed=4)
    assert not torch.equal(again.linear_2.weight, tiled.linear_2.weight)


@pytest.mark.parametrize(("name", "tiles", "message"), [("window", 1, "Unknown adapter"), ("mlp", 2, "takes tiles=1")])
def test_wrong_adapters_are_refused(name, tiles, message):
    with pytest.raises(InputError, match=message):
        build_adapter(name, vision_width=4, llm_width=5, grid=(3, 3), tiles=tiles)


def test_views_are_global_then_crops_row_by_row():
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)]
    image = Image.new("RGB", (12, 12))
    for index, colour in enumerate(colours):
        image.paste(colour, (6 * (index % 2), 6 * (index // 2), 6 * (index % 2) + 6, 6 * (index // 2) + 6))
    parts = views(image, tiles=2, size=6, interpolation="nearest")
    assert len(parts) == 5 and all(part.size == (6, 6) for part in parts)
    assert [part.getpixel((3, 3)) for part in parts[1:]] == colours
    values = pixels(image, TRANSFORM)
    assert values.shape == (5, 3, 6, 6) and values.dtype == torch.float32
    expected = (1 - torch.tensor([0.5, 0.4, 0.3])) / torch.tensor([0.5, 0.25, 0.2])
    torch.testing.assert_close(values[4, :, 3, 3], expected)


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
