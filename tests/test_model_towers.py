"""Towers of timm and transformers give the output of the chosen block or stage, whole and alone, at their own size and
at others."""

from __future__ import annotations

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import (
    AutoModel,
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    ConvNextConfig,
    Dinov2Config,
    Dinov2Model,
    PixtralVisionConfig,
    Siglip2VisionConfig,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
    SiglipTextConfig,
    SiglipVisionConfig,
    SiglipVisionModel,
    YolosConfig,
)

from lvlm.errors import InputError
from lvlm.model.checkpoints import load
from lvlm.model.parts import prepare_training, set_train_mode
from lvlm.model.tiling import ImageTransform, pixels
from lvlm.model.tower import TimmTower, load_tower
from tests.checkpoint_models import write_own
from tests.foreign import make_timm_tower
from tests.test_model_training import stage
from tests.tiny import make_tower, tiny_image, tiny_world

SIZES = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2,
    "image_size": 24, "patch_size": 8,
}  # fmt: skip
HUB = {
    "siglip": (SiglipVisionModel, SiglipVisionConfig(**SIZES), SiglipImageProcessor, 0),
    "clip": (CLIPVisionModel, CLIPVisionConfig(**SIZES), CLIPImageProcessor, 1),
    "dinov2": (Dinov2Model, Dinov2Config(**SIZES), CLIPImageProcessor, 1),
}
"""Family -> its class, a tiny config, its image processor and how many prefix tokens it has."""


def write(folder, name):
    """A random model of a family with its image processor, as its hub folder holds them."""
    kind, config, processor, _ = HUB[name]
    torch.manual_seed(0)
    model = kind(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    processor(size={"height": 24, "width": 24}, image_mean=[0.4] * 3, image_std=[0.2] * 3).save_pretrained(folder)
    return model


@pytest.mark.parametrize("layer", [-1, -2, 0])
@pytest.mark.parametrize("name", HUB)
def test_a_tower_of_transformers_gives_the_block_s_output(tmp_path, name, layer):
    model, prefix = write(tmp_path, name), HUB[name][3]
    tower, description = load_tower(tmp_path, feature_layer=layer)
    images = torch.randn(2, 3, 24, 24)
    with torch.no_grad():
        expected = model(pixel_values=images, output_hidden_states=True).hidden_states[
            layer if layer < 0 else layer + 1
        ]
        torch.testing.assert_close(tower(images), expected[:, prefix:])
    assert (description["grid"], description["width"], description["mean"]) == ([3, 3], 16, [0.4] * 3)
    kept = {key for key, _ in tower.named_parameters()}
    blocks = 3 + layer + 1 if layer < 0 else layer + 1
    assert not any(
        f"layers.{number}." in key or f"layer.{number}." in key for key in kept for number in range(blocks, 3)
    )
    assert not any("post_layernorm" in key or "head" in key or key.endswith("layernorm.weight") for key in kept)


def test_the_vision_half_of_a_model_of_images_and_texts(tmp_path):
    texts = SiglipTextConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=9
    )
    torch.manual_seed(0)
    whole = SiglipModel(SiglipConfig(text_config=texts.to_dict(), vision_config=HUB["siglip"][1].to_dict())).eval()
    whole.save_pretrained(tmp_path)
    SiglipImageProcessor().save_pretrained(tmp_path)
    tower, _ = load_tower(tmp_path, feature_layer=-2)
    images = torch.randn(1, 3, 24, 24)
    with torch.no_grad():
        expected = whole.vision_model(pixel_values=images, output_hidden_states=True).hidden_states[-2]
        torch.testing.assert_close(tower(images), expected)


@pytest.mark.parametrize("name", HUB)
def test_another_image_size_interpolates_positions(tmp_path, name):
    write(tmp_path, name)
    tower, description = load_tower(tmp_path, feature_layer=-2, image_size=40)
    assert description["grid"] == [5, 5] and description["image_size"] == 40
    assert tower(torch.randn(1, 3, 40, 40)).shape == (1, 25, 16)


@pytest.mark.parametrize("class_token", [False, True])
def test_another_image_size_for_a_folder_of_a_timm_tower(tmp_path, class_token):
    folder = make_tower(tmp_path, class_token=class_token)
    small, _ = load_tower(folder, feature_layer=-2)
    large, description = load_tower(folder, feature_layer=-2, image_size=40)
    assert description["grid"] == [5, 5] and large(torch.randn(1, 3, 40, 40)).shape == (1, 25, 16)
    assert small(torch.randn(1, 3, 24, 24)).shape == (1, 9, 16)
    with pytest.raises(InputError, match="48 x 48 pixels and no others"):
        tiny_world().assemble(tower="tiny-vit/0", image_size=96)


@pytest.mark.parametrize("size", [24, 32])
@pytest.mark.parametrize("name", HUB)
def test_a_saved_model_brings_its_tower_of_transformers_back(tmp_path, name, size):
    write(tmp_path / "tower", name)
    model, processor = tiny_world().assemble(tower=str(tmp_path / "tower"), fit="letterbox", image_size=size)
    again, read = load(write_own(tmp_path / "model", model, processor))
    views = pixels(tiny_image(), read.image_transform)
    assert torch.equal(views, pixels(tiny_image(), processor.image_transform)) and views.shape == (1, 3, size, size)
    with torch.no_grad():
        assert torch.equal(again.image_features(views), model.image_features(views))


NO_PLAIN = {
    "convnext": (ConvNextConfig(hidden_sizes=[4] * 4, depths=[1] * 4, image_size=64), "two images become"),
    "siglip2": (Siglip2VisionConfig(**{k: v for k, v in SIZES.items() if k != "image_size"}), "names no image size"),
    "pixtral": (PixtralVisionConfig(**SIZES), r"two images become \(1, 18, 16\)"),
    "yolos": (YolosConfig(**SIZES | {"image_size": [24, 24]}), "changes what its last block gives"),
}
"""Vision models of transformers that are no plain transformers, and what is said of them."""


@pytest.mark.parametrize("name", NO_PLAIN)
def test_a_model_of_transformers_whose_output_is_not_a_block_s_tokens_is_refused(tmp_path, name):
    config, expected = NO_PLAIN[name]
    model = AutoModel.from_config(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(tmp_path)
    CLIPImageProcessor().save_pretrained(tmp_path)
    with pytest.raises(InputError, match=rf"no plain vision transformer: .*{expected}.*tower of timm"):
        load_tower(tmp_path, feature_layer=-2)


STAGES = {
    "convnext_atto": {"dims": (4, 8, 12, 16), "depths": (1, 1, 1, 1)},
    "resnet10t": {"channels": (8, 8, 16, 16)},
    "swin_tiny_patch4_window7_224": {"img_size": 64, "embed_dim": 8, "depths": (1, 1), "num_heads": (1, 2)},
}
"""Architecture of timm in stages -> what makes it small."""


@pytest.mark.parametrize("architecture", STAGES)
def test_a_tower_in_stages_gives_a_stage_s_map_as_tokens(tmp_path, architecture):
    args = STAGES[architecture]
    folder = make_timm_tower(tmp_path / "tower", architecture, image_size=64, **args)
    whole = timm.create_model(architecture, num_classes=0, **args).eval()
    whole.load_state_dict(load_file(folder / "model.safetensors"))
    views = torch.randn(2, 3, 64, 64)
    for layer in (-1, -2):
        tower, description = load_tower(folder, feature_layer=layer)
        with torch.no_grad():
            expected = whole.forward_intermediates(views, norm=False, intermediates_only=True)[layer]
            assert torch.equal(tower.eval()(views), expected.flatten(2).transpose(1, 2))
        assert description["grid"] == list(expected.shape[2:]) and description["width"] == expected.shape[1]
    _, description = load_tower(folder, feature_layer=-2, image_size=128)
    assert description["grid"] == [2 * side for side in expected.shape[2:]]
    model, processor = tiny_world().assemble(tower=str(folder))
    again, _ = load(write_own(tmp_path / "model", model, processor))
    with torch.no_grad():
        assert torch.equal(again.image_features(views), model.image_features(views))


def test_a_batch_norm_that_learns_keeps_its_statistics(tmp_path):
    """Else the gradient would depend on what else is in the micro-batch."""
    folder = make_timm_tower(tmp_path, "resnet10t", image_size=64, **STAGES["resnet10t"])
    model, _ = tiny_world().assemble(tower=str(folder))
    settings = stage(tower="full")
    prepare_training(model, settings, seed=0)
    set_train_mode(model, settings.train)
    views = torch.randn(2, 3, 64, 64)
    together, alone = model.image_features(views), model.image_features(views[:1])
    torch.testing.assert_close(together[:1], alone)
    assert together.requires_grad and model.vision_tower.model.bn1.weight.requires_grad


def test_a_size_that_a_tower_cannot_read_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"other shapes: pos_embed"):
        load_tower(make_tower(tmp_path / "transformer"), feature_layer=-2, image_size=4)
    folder = make_timm_tower(tmp_path / "stages", "convnext_atto", image_size=64, **STAGES["convnext_atto"])
    with pytest.raises(InputError, match=r"cannot read images of 8 x 8 pixels.*model\.image_size"):
        load_tower(folder, feature_layer=-1, image_size=8)


def test_siglip_so400m_has_729_tokens_of_1152():
    with torch.device("meta"):
        model = timm.create_model("vit_so400m_patch14_siglip_384", pretrained=False, num_classes=0)
        tower = TimmTower(model, feature_layer=-2)
        features = tower(torch.zeros(2, 3, 384, 384))
    assert features.shape == (2, 729, 1152)
    assert len(tower.model.blocks) == 26, "the last block is dropped"


def test_how_an_image_becomes_square():
    """A red image with a blue band on its left, three times as wide as high."""
    image = Image.new("RGB", (90, 30), (255, 0, 0))
    image.paste((0, 0, 255), (0, 0, 30, 30))

    def square(fit):
        transform = ImageTransform(30, mean=(0.0, 1.0, 0.0), std=(1.0,) * 3, interpolation="nearest", tiles=1, fit=fit)
        return pixels(image, transform)[0] + torch.tensor([0.0, 1.0, 0.0]).view(3, 1, 1)

    squash, letterbox, crop = square("squash"), square("letterbox"), square("crop")
    red, blue, mean = torch.tensor([1.0, 0, 0]), torch.tensor([0, 0, 1.0]), torch.tensor([0, 1.0, 0])
    assert torch.equal(squash[:, 15, 5], blue) and torch.equal(squash[:, 2, 20], red)
    assert torch.equal(letterbox[:, 15, 5], blue) and torch.equal(letterbox[:, 15, 20], red)
    assert torch.equal(letterbox[:, 2, 20], mean) and torch.equal(letterbox[:, 27, 5], mean)
    assert torch.equal(crop[:, 15, 5], red) and torch.equal(crop[:, 2, 20], red)


def test_a_needle_can_be_padded():
    transform = ImageTransform(8, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bicubic", tiles=2, fit="letterbox")
    assert pixels(Image.new("RGB", (1, 4000)), transform).shape == (5, 3, 8, 8)
