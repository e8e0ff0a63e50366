"""Centurio as its authors released it on the Hugging Face hub, without their code (arXiv 2501.05122; the layout of
`WueNLP/centurio_qwen`). Called by `lvlm.model.checkpoints`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor
from transformers import AutoConfig

from lvlm.config import one_line
from lvlm.errors import InputError
from lvlm.model.adapters import DEFAULTS, build_adapter
from lvlm.model.assembly import make_processor
from lvlm.model.chat import IMAGE_PLACEHOLDER
from lvlm.model.checkpoints import PREFIXES
from lvlm.model.config import LvlmConfig
from lvlm.model.keys import compare, read_tensors
from lvlm.model.layouts import read_json
from lvlm.model.processor import LvlmProcessor
from lvlm.model.templates import CENTURIO
from lvlm.model.tokenizer import load_tokenizer
from lvlm.model.tower import TimmTower, create, describe_timm, measure
from lvlm.trident.keys import ADAPTERS

TOWER = "vit_so400m_patch14_siglip_384"
"""The tower of a config that names none: transformers leaves out what is the default of Centurio's config class."""
FEATURE_LAYER = -2
"""Centurio reads the penultimate block of every tower."""


def release_config(folder: Path) -> LvlmConfig:
    """The config of a released model in our terms."""
    path = folder / "config.json"
    config = read_json(path)
    for name in ("text_config", "adapter_type", "image_token_index"):
        if name not in config:
            raise InputError(f"{path} lacks the field '{name}'. Copy the whole model folder.")
    tower = _tower(config.get("timm_model", TOWER), path)
    width = config.get("image_hidden_size", tower["width"])
    layer = config.get("vision_feature_layer", FEATURE_LAYER)
    if width != tower["width"] or layer != FEATURE_LAYER:
        raise InputError(
            f"{path} has image_hidden_size {width} and vision_feature_layer {layer}, but Centurio's code reads block "
            f"{FEATURE_LAYER} of its timm_model {tower['architecture']}, which is {tower['width']} wide."
        )
    text_config, adapter = _text_config(config["text_config"], path), _adapter(config, path)
    with torch.device("meta"):
        name, tiles, args = adapter["adapter"], adapter["tiles"], adapter["adapter_args"]
        built = build_adapter(name, tower, llm_width=text_config.hidden_size, tiles=tiles, args=args)
    return LvlmConfig(
        text_config=text_config,
        tower=tower,
        **adapter,
        feature_layer=FEATURE_LAYER,
        image_token_id=config["image_token_index"],
        image_tokens=built.tokens,
    )


def release_processor(folder: Path, config: LvlmConfig) -> LvlmProcessor:
    """Tokenizer, chat template and image transform of a released model; the placeholder's id is that of its config."""
    tokenizer = load_tokenizer(str(folder), llm_config=config.text_config)
    found = tokenizer.convert_tokens_to_ids(IMAGE_PLACEHOLDER)
    if found != config.image_token_id:
        raise InputError(
            f"{folder / 'config.json'} has image_token_index {config.image_token_id}, but {IMAGE_PLACEHOLDER} is token "
            f"{found} of the tokenizer beside it. Copy config and tokenizer from the same model."
        )
    path = folder / "chat_template.json"
    if path.exists():  # what the processor of a release uses, where the tokenizer may have its LLM's own
        tokenizer.chat_template = read_json(path).get("chat_template")
    processor = make_processor(config, tokenizer)
    family: Any = config.text_config
    if family.model_type in CENTURIO:
        processor.image_separator = CENTURIO[family.model_type].separator
    return processor


def release_state(folder: Path, config: LvlmConfig) -> dict[str, Tensor]:
    """The tensors of a released model under our names. What it has of the tower beyond the block that is read is
    checked and left out."""
    state = _tensors(folder)
    prefix = PREFIXES["tower"]
    tower = {key.removeprefix(prefix): state.pop(key) for key in list(state) if key.startswith(prefix)}
    assert config.tower is not None
    with torch.device("meta"):
        model = create(config.tower)
        whole = model.state_dict()
        kept = TimmTower(model, feature_layer=config.feature_layer).state_dict()
    compare(tower, whole, folder, model=f"has the tower {config.tower['architecture']}", prefix=prefix)
    return state | {prefix + key: tower[key.removeprefix("model.")] for key in kept}


def stored_types(state: Mapping[str, Tensor]) -> tuple[torch.dtype, list[str] | None]:
    """The widest type among the tensors, and those of LLM and tower that are in bfloat16 where that is not it.

    Left alone, transformers gives all tensors the type of the first; by the size of its files, Centurio's release has
    its tower in float32 beside an LLM in bfloat16.
    """
    kinds = {
        name: {value.dtype for key, value in state.items() if key.startswith(prefix) and value.is_floating_point()}
        for name, prefix in PREFIXES.items()
    }
    widest = max(set().union(*kinds.values()), key=lambda dtype: dtype.itemsize)
    halved = [name for name in ("llm", "tower") if kinds[name] == {torch.bfloat16} != {widest}]
    return widest, halved or None


def release_stops(folder: Path) -> Any:
    """The ids at which a released model stops by its `generation_config.json`; None where it has none."""
    path = folder / "generation_config.json"
    return read_json(path).get("eos_token_id") if path.exists() else None


def _tensors(folder: Path) -> dict[str, Tensor]:
    index = folder / "model.safetensors.index.json"
    names = sorted(set(read_json(index)["weight_map"].values())) if index.exists() else ["model.safetensors"]
    if lacking := [name for name in names if not (folder / name).exists()]:
        raise InputError(f"{folder} lacks {', '.join(lacking)}: weights are read from safetensors alone. Copy them.")
    state: dict[str, Tensor] = {}
    for name in names:
        state |= read_tensors(folder / name)
    return state


def _tower(name: str, path: Path) -> dict[str, Any]:
    with torch.device("meta"):
        try:
            model = timm.create_model(name, pretrained=False, num_classes=0)
        except (RuntimeError, ValueError) as error:
            raise InputError(f"{path}, field 'timm_model': timm has no '{name}' ({one_line(error)}).") from error
        description = describe_timm(model, name)
        return measure(TimmTower(model, feature_layer=FEATURE_LAYER), description, source=name)


def _adapter(config: dict[str, Any], path: Path) -> dict[str, Any]:
    """`adapter`, `tiles` and `adapter_args` of our config."""
    kind, given = config["adapter_type"], dict(config.get("adapter_config") or {})
    if kind not in ADAPTERS:
        raise InputError(f"{path}, field 'adapter_type', is '{kind}'. Known here are {', '.join(ADAPTERS)}.")
    adapter = ADAPTERS[kind]
    tiles = 1 if adapter == "mlp" else given.pop("adapter_multi_scale", 2)
    given.pop("adapter_multi_scale", None)  # Centurio's mlp does not read it
    pool = given.pop("adapter_pool", None)
    args = {name: default if pool is None else pool for name, default in DEFAULTS.get(adapter, {}).items()}
    if given:
        raise InputError(f"{path}, field 'adapter_config', has settings that are not known here: {', '.join(given)}.")
    return {"adapter": adapter, "tiles": tiles, "adapter_args": args or None}


def _text_config(given: dict[str, Any], path: Path) -> Any:
    try:
        return AutoConfig.for_model(**given)
    except (ValueError, TypeError) as error:
        raise InputError(f"{path}, field 'text_config': {one_line(error)}.") from error
