"""Every field of the stage paint does something: another value changes the plan, what is learned, or what is painted. A
field that nobody lists here fails, and so does one that nothing reads."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from lvlm.check import open_corpora
from lvlm.config import RunConfig, flat_fields
from lvlm.data.plan import build_plan
from lvlm.errors import InputError
from lvlm.model.tokenizer import load_counter
from lvlm.paint.captions import caption_measure
from lvlm.paint.denoisers import set_learning
from lvlm.paint.sample import Drawing, paint
from lvlm.paint.stage import Painting
from lvlm.provenance import Phases
from lvlm.run import run
from lvlm.train.compute import compute
from lvlm.train.progress import Reporter
from lvlm.train.stages import Stage
from tests.paint_world import make_denoiser, paint_config, paint_world

Changes = dict[str, Any]
PLAN, WEIGHTS, PICTURES, REFUSED, METRICS = "plan", "weights", "pictures", "refused", "metrics"
BY_SIZE: Changes = {"mix__allocation": "temperature", "mix__sizes": {"de": 8, "sw": 1}, "mix__temperature": 1}
BY_WEIGHT: Changes = {"mix__allocation": "weights", "mix__weights": {"de": 8, "sw": 1}}
BY_PAIRS: Changes = {"mix__allocation": "pairs", "mix__pairs": 2}
FIELDS: dict[str, tuple[str, Changes]] = {
    "mix.corpora": (PLAN, {"mix__corpora": "half"}),
    "mix.languages": (PLAN, {"mix__languages": ["en", "de"]}),
    "mix.english_share": (PLAN, {"mix__english_share": 0.25}),
    "mix.allocation": (PLAN, {"mix__allocation": "inverse_tier"}),
    "mix.share_of": (PLAN, {"mix__share_of": "tokens"}),
    "mix.temperature": (PLAN, BY_SIZE | {"mix__temperature": 5}),
    "mix.sizes": (PLAN, BY_SIZE | {"mix__sizes": {"de": 1, "sw": 8}}),
    "mix.weights": (PLAN, BY_WEIGHT | {"mix__weights": {"de": 1, "sw": 8}}),
    "mix.pairs": (PLAN, BY_PAIRS | {"mix__pairs": 3}),
    "mix.pivot": (PLAN, BY_PAIRS | {"mix__pivot": "de"}),
    "mix.parallel": (PLAN, {"mix__parallel": 0.5}),
    "batch_samples": (PLAN, {"batch_samples": 3}),
    "epochs": (PLAN, {"epochs": 0.5, "steps": None}),
    "samples": (PLAN, {"samples": 7, "steps": None}),
    "steps": (PLAN, {"steps": 1}),
    "max_text_tokens": (REFUSED, {"max_text_tokens": 8}),
    "denoiser": (WEIGHTS, {"denoiser": "another"}),
    "vae": (WEIGHTS, {"vae": "tiny"}),
    "train": (WEIGHTS, {"train": "kv"}),
    "layer": (WEIGHTS, {"layer": 1}),
    "bidirectional": (WEIGHTS, {"bidirectional": True}),
    "prompt": (WEIGHTS, {"prompt": "chat"}),
    "mask": (WEIGHTS, {"mask": False}),
    "schedule": (WEIGHTS, {"schedule": "linear"}),
    "prediction": (WEIGHTS, {"prediction": "epsilon"}),
    "timesteps": (WEIGHTS, {"timesteps": 100}),
    "state_noise": (WEIGHTS, {"state_noise": 0.5}),
    "caption_dropout": (WEIGHTS, {"caption_dropout": 0.9}),
    "image_size": (WEIGHTS, {"image_size": 16}),
    "later_image_size": (WEIGHTS, {"later_image_size": 20, "later_from": 1}),
    "later_from": (WEIGHTS, {"later_image_size": 16, "later_from": 2}),
    "optim.lr": (WEIGHTS, {"optim__lr": 5e-3}),
    "optim.adapter_lr": (WEIGHTS, {"optim__adapter_lr": 1e-5}),
    "optim.tower_lr": (REFUSED, {"optim__tower_lr": 1e-5}),
    "optim.betas": (WEIGHTS, {"optim__betas": [0.5, 0.9]}),
    "optim.weight_decay": (WEIGHTS, {"optim__weight_decay": 0.5}),
    "optim.adapter_weight_decay": (WEIGHTS, {"optim__adapter_weight_decay": 0.5}),
    "optim.tower_weight_decay": (REFUSED, {"optim__tower_weight_decay": 0.5}),
    "optim.warmup": (WEIGHTS, {"optim__warmup": 2}),
    "optim.schedule": (WEIGHTS, {"optim__schedule": "constant"}),
    "optim.clip": (WEIGHTS, {"optim__clip": 1e-4}),
    "validate_every": (WEIGHTS, {"validate_every": 1}),
    "guidance": (PICTURES, {"guidance": 1.0}),
    "sample_steps": (PICTURES, {"sample_steps": 1}),
    "safety_checker": (PICTURES, {"safety_checker": "tiny"}),
    "clip": (METRICS, {"clip": "somewhere"}),
    "features": (METRICS, {"features": "somewhere"}),
}
"""Field -> (what it changes, the changes)."""
NEEDS: dict[str, Changes] = {
    "mix.temperature": BY_SIZE,
    "mix.sizes": BY_SIZE,
    "mix.weights": BY_WEIGHT,
    "mix.pairs": BY_PAIRS,
    "mix.pivot": BY_PAIRS,
    "later_image_size": {"later_image_size": 16, "later_from": 1},
    "later_from": {"later_image_size": 16, "later_from": 1},
}
"""What a field is compared with, where that is not the base config because it takes another field."""


def config_of(changes: Changes, folder: Path) -> RunConfig:
    """The base config with fields of the stage changed, and with the folders that a table cannot hold."""
    made: Changes = {}
    for name, value in changes.items():
        if value == "half":
            value = [{"path": str(paint_world()[0]), "split": "captions", "samples": 12}]
        if value == "another":
            value = str(make_denoiser(folder / "denoiser", seed=1))
        if value == "tiny" and name == "vae":
            value, made["paint__denoiser"] = (
                make_vae(folder / "vae"),
                str(make_denoiser(folder / "latent", in_channels=4, out_channels=4, sample_size=6)),
            )
        if value == "tiny" and name == "safety_checker":
            value = make_checker(folder / "checker")
        made[f"paint__{name}"] = value
    return paint_config(paint__optim__lr=1e-3, **made) if "paint__optim__lr" not in made else paint_config(**made)


def make_vae(folder: Path) -> str:
    """A random AutoencoderKL that halves a picture's side."""
    from diffusers import AutoencoderKL

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        AutoencoderKL(
            block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=4,
        ).save_pretrained(folder)  # fmt: skip
    return str(folder)


def make_checker(folder: Path) -> str:
    """A random classifier that takes every picture for unsafe."""
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    labels = {0: "safe", 1: "unsafe"}
    config = ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=12, patch_size=6,
        id2label=labels, label2id={name: number for number, name in labels.items()},
    )  # fmt: skip
    model = ViTForImageClassification(config)
    with torch.no_grad():
        model.classifier.weight.zero_()
        model.classifier.bias.copy_(torch.tensor([0.0, 1.0]))
    model.save_pretrained(folder)
    ViTImageProcessor(size={"height": 12, "width": 12}).save_pretrained(folder)
    return str(folder)


def planned(config: RunConfig) -> str:
    assert config.paint is not None
    counter = load_counter(config.model, seed=config.seed)
    measure = caption_measure(counter.chat, config.paint.prompt)
    return build_plan("paint", config.paint, seed=0, corpora=open_corpora(config), measure=measure).hash


@cache
def language_model() -> tuple[Any, Any]:
    from lvlm.model.assembly import assemble

    return assemble(paint_config().model, seed=0)


def outcome(config: RunConfig, folder: Path) -> dict[str, Any]:
    """What is learned, how often that is validated, and what is painted of it."""
    assert config.paint is not None
    model, processor = language_model()
    validations: list[int] = []
    with compute(config.compute) as machinery:
        painting = Painting(config, machinery, Reporter(silent=True), Phases())
        painting.prepare(model, processor, open_corpora(config), folder)
        painter = painting.painter
        set_learning(painter.denoiser, config.paint.train)
        stage = Stage(name="paint", config=config.paint, identity={}, folder=folder / "stage")
        validate = (lambda: validations.append(1) or {}) if config.paint.validate_every else None  # type: ignore[func-returns-value]
        painting._loop(stage, painting.batches, validate).run()
        drawing = Drawing(0, config.paint.sample_steps, config.paint.guidance)
        pictures = paint(painter, ["links: ein rotes Kreuz"], ["a"], drawing)
    weights = b"".join(weight.detach().numpy().tobytes() for weight in painter.parameters())
    return {WEIGHTS: (hashlib.sha256(weights).hexdigest(), len(validations)), PICTURES: pictures.tobytes()}


@pytest.fixture(scope="module")
def unchanged(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Any]]:
    """What a field is compared with -> its outcome, computed once."""
    torch.set_num_threads(1)
    known: dict[str, dict[str, Any]] = {}

    def found(field: str) -> dict[str, Any]:
        changes = NEEDS.get(field, {})
        if repr(changes) not in known:
            folder = tmp_path_factory.mktemp("unchanged")
            known[repr(changes)] = outcome(config_of(changes, folder), folder)
        return known[repr(changes)]

    return found


def test_every_field_is_listed() -> None:
    fields = {field.removeprefix("paint.") for field in flat_fields() if field.startswith("paint.")}
    assert set(FIELDS) == fields


@pytest.mark.parametrize("field", FIELDS)
def test_another_value_changes_something(
    field: str, unchanged: Callable[[str], dict[str, Any]], tmp_path: Path
) -> None:
    kind, changes = FIELDS[field]
    if kind == REFUSED:
        with pytest.raises(InputError, match=field.rpartition(".")[2]):
            planned(config_of(changes, tmp_path))
        return
    if kind == METRICS:  # what they compute is shown in test_paint_plugins.py
        with pytest.raises(InputError, match=r"There is no .* at somewhere"):
            run(config_of({**changes, "steps": 1}, tmp_path), tmp_path / "run", home=tmp_path)
        return
    config = config_of(changes, tmp_path)
    if kind == PLAN:
        assert planned(config) != planned(config_of(NEEDS.get(field, {}), tmp_path)), field
        return
    assert outcome(config, tmp_path)[kind] != unchanged(field)[kind], field


def test_the_same_config_gives_the_same_outcome(unchanged: Callable[[str], dict[str, Any]], tmp_path: Path) -> None:
    """Without this, every difference above could be chance."""
    assert outcome(config_of({}, tmp_path), tmp_path) == unchanged("train")


def test_a_safety_checker_blacks_out_what_it_takes_for_unsafe(tmp_path: Path) -> None:
    assert not any(outcome(config_of({"safety_checker": "tiny"}, tmp_path), tmp_path)[PICTURES])
