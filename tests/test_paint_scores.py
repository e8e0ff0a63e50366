"""What pictures are worth: the reader's ceiling and chance, distances against closed forms, counts at full size."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from lvlm.cli import PRESETS
from lvlm.config import fingerprint, load_config, make_config
from lvlm.data.corpus import open_corpus
from lvlm.data.worlds.canvas import SCENES, TRAINING_SCENES, attributes, draw, draw_all
from lvlm.data.worlds.paint_corpus import write_paint
from lvlm.errors import InputError
from lvlm.evaluate.items import asked_items
from lvlm.model.backbones import assets
from lvlm.paint.denoisers import build, read_shape, set_learning
from lvlm.paint.diffusion import Diffusion, saved_diffusion
from lvlm.paint.frechet import frechet_distance, local_features
from lvlm.paint.reader import AttributeReader
from lvlm.paint.scores import gold_attributes, reader_of, wrong_captions
from lvlm.paint.work import sample_flops
from lvlm.settings import EvaluateConfig
from tests.paint_world import LANGUAGES, SHAPE, paint_world


@pytest.fixture(scope="module")
def reader() -> AttributeReader:
    return AttributeReader.of_scenes([(np.asarray(draw(scene)), attributes(scene)) for scene in SCENES])


def test_the_reader_reads_every_real_picture_right(reader: AttributeReader) -> None:
    rng = np.random.default_rng(0)
    scenes = [scene for scene in SCENES for _ in range(10)]
    assert reader.read(draw_all(scenes, rng)) == [attributes(scene) for scene in scenes]


def test_the_reader_reads_through_noise_and_at_another_size(reader: AttributeReader) -> None:
    rng = np.random.default_rng(1)
    noisy = draw_all(SCENES, rng) + rng.normal(0, 30, (len(SCENES), 12, 12, 3))
    large = np.repeat(np.repeat(noisy.clip(0, 255).astype(np.uint8), 4, axis=1), 4, axis=2)
    right = [read == attributes(scene) for read, scene in zip(reader.read(large), SCENES, strict=True)]
    assert np.mean(right) > 0.95


def test_noise_alone_scores_at_chance(reader: AttributeReader) -> None:
    rng = np.random.default_rng(2)
    read = reader.read(rng.integers(0, 256, (2000, 12, 12, 3), dtype=np.uint8))
    wanted = [attributes(SCENES[place]) for place in rng.integers(len(SCENES), size=2000)]
    score = 100 * np.mean([one == other for one, other in zip(read, wanted, strict=True)])
    assert reader.chance() == pytest.approx(100 / 72) and abs(score - reader.chance()) < 1.0


def test_the_reader_of_a_corpus_is_that_of_its_renderings(reader: AttributeReader) -> None:
    corpus = open_corpus(paint_world()[0])
    found = AttributeReader.of_corpus(corpus)
    assert found is not None and found.kinds == ("colour", "shape", "place")
    assert np.array_equal(found.renderings, reader.renderings)


def test_the_renderings_of_a_corpus_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    corpus, opened = open_corpus(paint_world()[0]), []
    monkeypatch.setattr(AttributeReader, "of_corpus", lambda corpus: opened.append(corpus))
    assert [reader_of(corpus) for _ in range(3)] == [None] * 3 and opened == [corpus]


def test_renderings_that_are_none_are_an_error(tmp_path: Path) -> None:
    folder = write_paint(tmp_path / "c", seed=0, train_images=1, tune_images=1, test_images=1, languages=["en"])
    (folder / "renderings.json").write_text("[1]", encoding="utf-8")
    with pytest.raises(InputError, match="must map pictures to attributes"):
        AttributeReader.of_corpus(open_corpus(folder))


def test_the_distance_of_two_normals_is_that_of_the_formula() -> None:
    rng = np.random.default_rng(0)
    one = rng.normal(0, 1, (200_000, 2))
    other = rng.normal(0, 1, (200_000, 2)) * (2, 3) + (1, 0)
    # ||m||^2 + sum (s1 - s2)^2 for diagonal covariances
    assert frechet_distance(one, other) == pytest.approx(1 + 1 + 4, rel=0.02)
    assert frechet_distance(one, one) == pytest.approx(0, abs=1e-9)


def test_the_distance_grows_with_what_is_wrong() -> None:
    rng = np.random.default_rng(0)
    real, again = (local_features(draw_all(SCENES * 4, rng)) for _ in range(2))
    red = local_features(draw_all([scene for scene in SCENES if attributes(scene)["colour"] == "red"] * 24, rng))
    assert frechet_distance(real, again) < 0.01 < frechet_distance(real, red)


def test_wrong_captions_are_of_the_same_language_and_say_something_else() -> None:
    corpus = open_corpus(paint_world()[0])
    config = EvaluateConfig(corpora=({"path": "c", "split": "test"},))  # type: ignore[arg-type]
    asked = asked_items(config, {"c": corpus}, permission="report")
    by_prompt = {(entry.item.language, entry.item.prompt): gold_attributes(entry) for entry in asked}
    for entry, wrong in zip(asked, wrong_captions(asked), strict=True):
        assert by_prompt[entry.item.language, str(wrong)] != gold_attributes(entry)


# --- the world


def test_the_world_is_translated_and_holds_pairs_out(tmp_path: Path) -> None:
    corpus = open_corpus(paint_world()[0])
    rows = {code: corpus.samples("captions", code) for code in LANGUAGES}
    assert [row.images for row in rows["en"]] == [row.images for row in rows["sw"]]
    assert {item.source for item in corpus.items("test", "en")} == {"seen"}  # six prompts, all of red squares
    assert len(SCENES) == 72 and len(TRAINING_SCENES) == 64
    again = write_paint(tmp_path / "again", seed=0, train_images=24, tune_images=4, test_images=6, languages=LANGUAGES)
    assert corpus.digest("captions", LANGUAGES) == open_corpus(again).digest("captions", LANGUAGES)


def test_native_captions_have_pictures_of_their_own_and_may_tell_of_others(tmp_path: Path) -> None:
    sizes = {"train_images": 40, "tune_images": 1, "test_images": 1}
    folder = write_paint(tmp_path / "n", seed=0, languages=["en", "de"], native=True, mismatch=0.5, **sizes)
    corpus = open_corpus(folder)
    assert not corpus.translatable and not set(corpus.ids("captions", "en")) & set(corpus.ids("captions", "de"))
    reader = AttributeReader.of_corpus(corpus)
    assert reader is not None
    from PIL import Image

    from lvlm.data.worlds.lexicon import load_lexicon

    told = {load_lexicon("de").caption(scene): attributes(scene) for scene in SCENES}
    samples = corpus.samples("captions", "de")
    shown = reader.read(np.stack([np.asarray(Image.open(corpus.image_path(row.images[0]))) for row in samples]))
    wrong = np.mean([told[row.turns[0][1]] != own for row, own in zip(samples, shown, strict=True)])
    assert 0.3 < wrong < 0.7
    with pytest.raises(InputError, match="--native"):
        write_paint(tmp_path / "x", seed=0, mismatch=0.5)


# --- at full size, and as files say it


@pytest.fixture
def on_meta() -> Iterator[None]:
    with torch.device("meta"):
        yield


def test_the_counts_of_stable_diffusion_21_are_those_of_the_paper(on_meta: None) -> None:
    model = build(read_shape(assets() / "sd21-base", "UNet2DConditionModel"), width=4096)
    counts = {part.part: part for part in set_learning(model, "cross_attention")}
    everything = sum(part.parameters for part in counts.values())
    assert round(counts["cross-attention"].parameters / 1e6, 2) == 50.35
    assert round(counts["projection"].parameters / 1e6, 2) == 4.20
    assert round((everything - counts["projection"].parameters) / 1e6, 1) == 865.9
    assert sum(part.trainable for part in counts.values()) == sum(
        counts[name].parameters for name in ("cross-attention", "projection")
    )
    keys_and_values = sum(part.trainable for part in set_learning(model, "kv")) - counts["projection"].parameters
    assert round(keys_and_values / 1e6, 2) == 25.56


def test_work_falls_with_what_learns() -> None:
    flops = [sample_flops(SHAPE, (3, 12, 12), 9, 32, train) for train in ("projection", "kv", "cross_attention", "all")]
    assert flops == sorted(flops) and flops[0] < flops[-1]


def test_the_preset_is_that_of_the_paper() -> None:
    config = load_config(PRESETS / "viscpm_paint.yaml").paint
    assert config is not None
    assert (config.image_size, config.later_image_size, config.later_from, config.steps) == (384, 512, 200_000, 300_000)
    assert (config.batch_samples, config.optim.lr, config.train) == (4096, 1e-4, "cross_attention")
    assert 200_000 * 4096 == 819_200_000 and 100_000 * 4096 == 409_600_000  # samples seen


def test_a_config_without_the_stage_keeps_its_fingerprint() -> None:
    data = load_config(PRESETS / "tiny.yaml").model_dump(mode="json")
    assert "paint" not in data
    assert fingerprint(data) == fingerprint(make_config({**data, "paint": None}).model_dump(mode="json"))


def test_what_diffusers_says_of_its_noise_is_read(tmp_path: Path) -> None:
    unet, scheduler = tmp_path / "unet", tmp_path / "scheduler"
    unet.mkdir(), scheduler.mkdir()
    written = {"beta_schedule": "scaled_linear", "prediction_type": "v_prediction", "num_train_timesteps": 500}
    (scheduler / "scheduler_config.json").write_text(json.dumps(written), encoding="utf-8")
    assert saved_diffusion(unet) == {"schedule": "scaled_linear", "prediction": "v_prediction", "timesteps": 500}
    (scheduler / "scheduler_config.json").write_text(json.dumps({"beta_schedule": "odd"}), encoding="utf-8")
    with pytest.raises(InputError, match="beta_schedule"):
        saved_diffusion(unet)
    for name, value in (("beta_end", 0.02), ("rescale_betas_zero_snr", True)):
        (scheduler / "scheduler_config.json").write_text(json.dumps({**written, name: value}), encoding="utf-8")
        with pytest.raises(InputError, match=f"field '{name}', is {value!r}"):
            saved_diffusion(unet)
    (scheduler / "scheduler_config.json").unlink()
    assert saved_diffusion(tmp_path) == {}


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_a_perfect_denoiser_gives_the_picture_back(prediction: str) -> None:
    from lvlm.paint.diffusion import target

    diffusion = Diffusion(prediction=prediction)  # type: ignore[arg-type]
    scheduler, sampler = diffusion.scheduler(), diffusion.sampler(10, clip=True)
    clean, signal = torch.rand(1, 3, 4, 4) * 2 - 1, torch.randn(1, 3, 4, 4)
    for when in sampler.timesteps:
        spread = scheduler.alphas_cumprod[when]
        noise = (signal - spread.sqrt() * clean) / (1 - spread).sqrt()
        said = target(scheduler, prediction, clean, noise, when[None])
        signal = sampler.step(said, when, signal).prev_sample
    assert torch.allclose(signal, clean, atol=1e-3)


def test_the_shipped_denoiser_paints_what_english_captions_say() -> None:
    from safetensors.torch import load_file

    from lvlm.data.worlds.lexicon import load_lexicon
    from lvlm.paint.denoisers import load_denoiser
    from lvlm.paint.tiny import WORDS_FILE, DenoiserRecipe, WordTable, measure_tiny

    folder, lexicon = assets() / "tiny-unet-0", load_lexicon("en")
    assert sum(path.stat().st_size for path in assets().glob("tiny-unet-*/*")) < 3e6
    table = WordTable([lexicon.caption(scene) for scene in SCENES], DenoiserRecipe().width)
    table.table.weight.data = load_file(folder / WORDS_FILE)["table"].float()
    model = load_denoiser(folder, width=48, seed=0)
    model.encoder_hid_proj.weight.data, model.encoder_hid_proj.bias.data = torch.eye(48), torch.zeros(48)
    found = measure_tiny(model, table, steps=8)
    assert min(found.values()) > 90
