"""Saving and loading, exact and strict; LoRA kept beside the weights or merged into them. Called by `Lvlm`, `lvlm.run`
and `lvlm.load`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import other as accelerate_other
from safetensors.torch import save_file
from torch import nn

from lvlm.config import one_line
from lvlm.errors import InputError
from lvlm.model.attention import check_attention
from lvlm.model.keys import read_tensors, readable, refuse
from lvlm.model.layouts import LORA_CONFIG, LORA_WEIGHTS, Located, how_to_load, locate, read_json
from lvlm.model.lora import load_lora, lora_config, split_state
from lvlm.model.weights import check_quantisation, matrices, quantise

if TYPE_CHECKING:
    from peft import LoraConfig

    from lvlm.model.config import LvlmConfig
    from lvlm.model.lvlm import Lvlm
    from lvlm.model.processor import LvlmProcessor
    from lvlm.settings import ModelConfig

LORA_FOLDER = "lora"


def parts(model: Lvlm) -> dict[str, nn.Module]:
    """The three parts of a model under the names that stage configs use."""
    return {"tower": model.vision_tower, "adapter": model.multi_modal_projector, "llm": model.language_model}


PREFIXES = {"tower": "vision_tower.", "adapter": "multi_modal_projector.", "llm": "language_model."}


def load(
    path: str | Path,
    *,
    attn: str | None = None,
    model: ModelConfig | None = None,
    seed: int = 0,
    bits: int | None = None,
    precision: str = "fp32",
) -> tuple[Lvlm, LvlmProcessor]:
    """(model, processor) of a saved model, ready to generate: a model folder or finished run of this package,
    Centurio's folder on the hub, or a snapshot of Centurio's trainer (DeepSpeed or Lightning).

    A snapshot holds only what was trained, so that `model` has to name its tower, LLM and adapter (`seed` chooses a
    shipped draw); for the others `model` may be given, and is checked against what was saved. `attn` and `bits` are
    those of `ModelConfig`, which no checkpoint keeps; None leaves them to `model`, else attention to transformers
    (`eager` for Gemma 2, which has no sdpa) and the LLM whole. Whatever the files have, the model comes in float32;
    with `precision` `bf16` a tower or LLM in 16 bits keeps its matrices in bfloat16, to be used under autocast (see
    `lvlm.model.assembly.hold`). A missing, surplus or misshapen tensor is an `InputError` that lists it.
    """
    from lvlm.model.agreement import check_agreement
    from lvlm.model.assembly import hold, set_generation, write_as
    from lvlm.model.lvlm import Lvlm
    from lvlm.model.release import release_state, release_stops, stored_types
    from lvlm.model.snapshots import load_snapshot

    found = locate(path)
    if model is not None:
        model = model if attn is None else model.model_copy(update={"attn": attn})
        attn, bits = model.attn, bits or model.bits
    check_attention(attn, precision=precision)
    check_quantisation(bits)
    if found.layout == "snapshot":
        if model is None:
            raise InputError(f"{found.path} says neither its tower nor its LLM. {how_to_load(found.path)}")
        held = {"load_4bit": bits == 4, "load_8bit": bits == 8}
        loaded, processor = load_snapshot(found, model.model_copy(update=held), seed=seed, precision=precision)
        hold(loaded, precision=precision)
        return loaded, processor
    config, processor = saved_processor(found)
    if model is not None:
        check_agreement(model, config, found.path, seed=seed)
    options: dict[str, Any] = {"bits": bits, "keep_halved": precision == "bf16"}
    options |= {} if attn is None else {"attn_implementation": attn}
    if found.layout == "own":
        loaded = Lvlm.from_pretrained(found.path, **options)
    else:
        state = release_state(found.path, config)
        options["dtype"], config.halved = stored_types(state)
        loaded = Lvlm.from_pretrained(None, config=config, state_dict=state, source=found.path, **options)
        loaded.language_model.generation_config.eos_token_id = release_stops(found.path)
        set_generation(loaded, processor)
    if model is not None:
        processor = write_as(model, config, processor, model=loaded)
    hold(loaded, precision=precision)
    return loaded.eval(), processor


def saved_processor(found: Located) -> tuple[LvlmConfig, LvlmProcessor]:
    """Config and processor of a model that stands alone; no weights are read."""
    from lvlm.model.config import LvlmConfig
    from lvlm.model.processor import LvlmProcessor
    from lvlm.model.release import release_config, release_processor

    if found.layout == "own":
        try:
            return LvlmConfig.from_pretrained(found.path), LvlmProcessor.from_pretrained(found.path)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise InputError(
                f"The model {found.path} cannot be read: {one_line(error).rstrip('.')}. Copy its whole folder."
            ) from error
    config = release_config(found.path)
    return config, release_processor(found.path, config)


def save_model(model: Lvlm, save: Callable[..., Any], folder: Any, *, merge_lora: bool = False, **kwargs: Any) -> None:
    """See `Lvlm.save_pretrained`. `save` is the method of transformers, which handles tied weights, shards and the
    config."""
    folder = Path(folder)
    if kwargs.pop("state_dict", None) is not None:
        raise InputError("save_pretrained writes the model's own tensors; it takes no state_dict.")
    state: dict[str, torch.Tensor] = {}
    with_lora: list[str] = []
    for name, part in parts(model).items():
        plain, lora = split_state(part, merged=merge_lora, halved=name in (model.config.halved or []))
        state |= {PREFIXES[name] + key: value for key, value in plain.items()}
        if lora:
            with_lora.append(name)
            target = folder / LORA_FOLDER / name
            target.mkdir(parents=True, exist_ok=True)
            save_file(
                {key: value.contiguous() for key, value in lora.items()},
                target / LORA_WEIGHTS,
                metadata={"format": "pt"},
            )
            (target / LORA_CONFIG).write_text(_config_text(lora_config(part)), encoding="utf-8")
    kept, model.config.lora = model.config.lora, with_lora or None
    try:
        with without_deepspeed():
            save(folder, state_dict=state, **kwargs)
    finally:
        model.config.lora = kept


@contextmanager
def without_deepspeed() -> Iterator[None]:
    """Transformers lets accelerate unwrap every model that it saves, and that would import DeepSpeed, which takes
    seconds, to see that it is no engine."""
    known = accelerate_other.is_deepspeed_available
    accelerate_other.is_deepspeed_available = lambda: False
    try:
        yield
    finally:
        accelerate_other.is_deepspeed_available = known


def _config_text(config: LoraConfig) -> str:
    # Names of layers are a set, which has no order, and a file should have one content.
    return json.dumps(config.to_dict(), indent=1, sort_keys=True, default=sorted) + "\n"


def load_model(cls: Any, load_base: Callable[..., Any], path: Any, *args: Any, **kwargs: Any) -> Any:
    """See `Lvlm.from_pretrained`. `load_base` is the method of transformers; `source` is what errors name where `path`
    is None because the weights are given."""
    wants_info, bits, keep_halved = (kwargs.pop(name, None) for name in ("output_loading_info", "bits", "keep_halved"))
    source = kwargs.pop("source", path)
    kwargs.setdefault("use_safetensors", True)
    kwargs["ignore_mismatched_sizes"] = True  # so that all faults come back together and are refused below
    with readable(source):
        model, info = load_base(path, *args, output_loading_info=True, **kwargs)
    refuse(source, missing=info["missing_keys"], surplus=info["unexpected_keys"], shapes=info["mismatched_keys"])
    if not keep_halved:
        for name in model.config.halved or []:
            for weight in matrices(parts(model)[name]):
                weight.data = weight.data.to(model.dtype)
        model.config.halved = None
    if bits:
        quantise(model.language_model, bits)
    if model.config.lora:
        from peft import LoraConfig
    for name in model.config.lora or []:
        folder = Path(path) / LORA_FOLDER / name
        if not (folder / LORA_CONFIG).exists():
            raise InputError(
                f"The model's config names a LoRA, but {folder / LORA_CONFIG} does not exist. Copy the whole folder."
            )
        config = LoraConfig(**read_json(folder / LORA_CONFIG))
        state = read_tensors(folder / LORA_WEIGHTS, device=str(model.device))
        restore_lora(parts(model)[name], config, state, folder)
    return (model, info) if wants_info else model


def restore_lora(part: nn.Module, config: LoraConfig, state: dict[str, torch.Tensor], source: Path) -> None:
    """Put saved LoRA on a part, which is frozen; keys that do not fit are an error that names `source`."""
    for parameter in part.parameters():
        parameter.requires_grad_(False)
    missing, surplus, shapes = load_lora(part, config, state)
    refuse(source, missing=missing, surplus=surplus, shapes=shapes)
