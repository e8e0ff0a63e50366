"""The outline of a model from its config, without its weights: torch counts tower and adapter on tensors without
storage (`meta`). Called by `lvlm.train.train`, and by `sweeps.amounts` for models that are not there yet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM

from lvlm.model.adapters import Adapter, build_adapter
from lvlm.model.assembly import saved_config
from lvlm.model.backbones import resolve
from lvlm.model.checkpoints import saved_processor
from lvlm.model.config import LvlmConfig
from lvlm.model.layouts import locate
from lvlm.model.lora import linear_names
from lvlm.model.tokenizer import llm_named
from lvlm.model.tower import VisionTower, create, cut, outline_tower
from lvlm.model.work import Outline, remembered
from lvlm.settings import ModelConfig


def outline(config: LvlmConfig, *, home: Path) -> Outline:
    """The outline of a model with this config, remembered under `home`."""
    return remembered(home, config.to_json_string(), lambda: _of(config))


def _of(config: LvlmConfig) -> Outline:
    assert config.tower is not None
    with torch.device("meta"):
        tower = cut(create(config.tower), config.tower, feature_layer=config.feature_layer)
        return _outline(config, tower)


def planned(model_config: ModelConfig, *, seed: int, vocabulary: int) -> Outline:
    """The outline behind `lvlm.model.work.planned_outline`."""
    if model_config.checkpoint is not None and (found := locate(model_config.checkpoint)).stands_alone:
        return _of(saved_processor(found)[0])
    source = resolve(model_config.llm, seed=seed)
    with llm_named(source):
        llm_config = AutoConfig.from_pretrained(source)
    llm_config.vocab_size = max(llm_config.vocab_size, vocabulary)
    tower, description = outline_tower(
        resolve(model_config.tower, seed=seed),
        feature_layer=model_config.feature_layer,
        image_size=model_config.image_size,
    )
    with torch.device("meta"):
        return _outline(saved_config(model_config, llm_config=llm_config, tower=description), tower)


def _outline(config: LvlmConfig, tower: VisionTower) -> Outline:
    text: Any = config.text_config
    assert config.tower is not None
    adapter = build_adapter(
        config.adapter, config.tower, llm_width=text.hidden_size, tiles=config.tiles, args=config.adapter_args
    )
    llm = AutoModelForCausalLM.from_config(text)
    matrices = {name: _sides(llm.get_submodule(name)) for name in linear_names(llm)}
    heads = text.num_attention_heads
    return Outline(
        image_tokens=adapter.tokens,
        **_tower_work(tower, config),
        adapter_work=(_adapter_work(adapter, config, learns=False), _adapter_work(adapter, config, learns=True)),
        llm_weights=sum(inputs * outputs for inputs, outputs in matrices.values()),
        llm_lora=sum(inputs + outputs for inputs, outputs in matrices.values()),
        llm_attention=text.num_hidden_layers * heads * (getattr(text, "head_dim", None) or text.hidden_size // heads),
        head=text.hidden_size * text.vocab_size,
    )


def _tower_work(tower: VisionTower, config: LvlmConfig) -> dict[str, Any]:
    """What `Outline` says of the tower, for all views of one image."""
    assert config.tower is not None
    sides: list[float] = []

    def note(module: Any, inputs: tuple[Any, ...], _output: Any) -> None:
        sides.append(inputs[0].numel() / module.in_features * (module.in_features + module.out_features))

    hooks = [module.register_forward_hook(note) for module in tower.modules() if isinstance(module, nn.Linear)]
    size = config.tower["image_size"]
    tower.train().requires_grad_(True)
    with FlopCounterMode(display=False) as forward:
        features = tower(torch.zeros(1, 3, size, size))
    with FlopCounterMode(display=False) as backward:
        features.sum().backward()
    for hook in hooks:
        hook.remove()
    by_kind = forward.get_flop_counts()["Global"]
    weights = sum(count for kind, count in by_kind.items() if "bmm" not in str(kind) and "attention" not in str(kind))
    views = config.views
    return {
        "tower_forward": views * forward.get_total_flops(),
        "tower_weights": views * weights,
        "tower_full": views * (forward.get_total_flops() + backward.get_total_flops()),
        "tower_lora": views * sum(sides),
    }


def _adapter_work(adapter: Adapter, config: LvlmConfig, *, learns: bool) -> tuple[float, float]:
    """Forward and backward of an adapter on one image: with the gradients of its weights where it learns; without and
    with that of its inputs, which a tower that learns asks for."""
    assert config.tower is not None
    (rows, columns), width = config.tower["grid"], config.tower["width"]
    adapter.requires_grad_(learns)
    found = []
    for tower_learns in (False, True):
        features = torch.zeros(1, config.views, rows * columns, width, requires_grad=tower_learns)
        with FlopCounterMode(display=False) as counter:
            tokens = adapter(features)
            if tokens.requires_grad:
                tokens.sum().backward()
        found.append(float(counter.get_total_flops()))
    return found[0], found[1]


def _sides(layer: Any) -> tuple[int, int]:
    """(inputs, outputs) of a linear layer of torch, or of transformers' Conv1D."""
    return (layer.in_features, layer.out_features) if isinstance(layer, nn.Linear) else (layer.nx, layer.nf)
