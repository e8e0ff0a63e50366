"""Scores by models that a user has: a random CLIP and a random image model, tiny, in local folders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    CLIPTextConfig,
    CLIPVisionConfig,
    ViTConfig,
    ViTImageProcessor,
    ViTModel,
)

from lvlm.cli import main
from lvlm.errors import InputError
from lvlm.paint.plugins import ClipScore, ModelFeatures
from lvlm.run import run
from tests.paint_world import paint_config
from tests.tiny import make_tokenizer

SIDE = {"height": 12, "width": 12}
SMALL = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    tokenizer = make_tokenizer(tmp_path_factory.mktemp("tokenizer"))
    end = tokenizer.eos_token_id
    text = CLIPTextConfig(**SMALL, vocab_size=len(tokenizer), max_position_embeddings=77, eos_token_id=end)
    vision = CLIPVisionConfig(**SMALL, image_size=12, patch_size=6)
    torch.manual_seed(0)
    config = CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=8)
    CLIPModel(config).save_pretrained(folder)
    pictures = CLIPImageProcessor(size={"shortest_edge": 12}, crop_size=SIDE)
    CLIPProcessor(pictures, tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def image_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("features")
    torch.manual_seed(0)
    ViTModel(ViTConfig(**SMALL, image_size=12, patch_size=6)).save_pretrained(folder)
    ViTImageProcessor(size=SIDE).save_pretrained(folder)
    return folder


def pictures(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 12, 12, 3), dtype=np.uint8)


def test_clip_compares_each_picture_with_its_own_text(clip: Path) -> None:
    score = ClipScore(clip)
    both = score(pictures(2), ["a red cross", "a blue star on the left"])
    assert both == pytest.approx(score(pictures(2)[:1], ["a red cross"]) + both[1:], abs=1e-3)
    assert all(0 <= value <= 100 for value in both)


def test_features_of_a_model_are_one_row_a_picture(image_model: Path) -> None:
    found = ModelFeatures(image_model)(pictures(3))
    assert found.shape == (3, 8) and np.ptp(found, axis=0).max() > 0


def test_a_run_that_names_them_has_their_rows(clip: Path, image_model: Path, tmp_path: Path) -> None:
    config = paint_config(paint__clip=str(clip), paint__features=str(image_model), paint__steps=1)
    run(config, tmp_path / "run", home=tmp_path)
    scores = pd.read_parquet(tmp_path / "run/scores.parquet").set_index(["language", "metric"])["value"]
    assert scores["de", "clip_score"] == scores["de", "clip_score"] and scores["de", "frechet_model"] > 0


def test_a_run_is_scored_anew_by_the_models_that_it_names_though_another_trained_its_denoiser(
    clip: Path, tmp_path: Path
) -> None:
    run(paint_config(paint__steps=1, evaluate__items=1), tmp_path / "first", home=tmp_path)
    named = paint_config(paint__steps=1, evaluate__items=1, paint__clip=str(clip))
    assert run(named, tmp_path / "second", home=tmp_path).provenance["stages_trained_here"] == []
    assert main(["evaluate", str(tmp_path / "second"), "--out", str(tmp_path / "again")]) == 0
    found = [pd.read_parquet(tmp_path / name / "scores.parquet") for name in ("second", "again")]
    assert all("clip_score" in set(scores["metric"]) for scores in found)


def test_a_folder_without_a_model_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no config\.json"):
        ClipScore(tmp_path)
