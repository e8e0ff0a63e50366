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
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from torch import nn

from lvlm.errors import InputError
from lvlm.model.attention import check_attention, check_family
from lvlm.model.config import LvlmConfig
from lvlm.model.lora import load_lora, lora_config, split_state
from lvlm.model.weights import check_quantisation, matrices, quantise

if TYPE_CHECKING:
    from lvlm.model.lvlm import Lvlm
    from lvlm.model.processor import LvlmProcessor

LORA_FOLDER = "lora"
LORA_WEIGHTS = "adapter_model.safetensors"
LORA_CONFIG = "adapter_config.json"


def parts(model: Lvlm) -> dict[str, nn.Module]:
    """The three parts of a model under the names that stage configs use."""
    return {"tower": model.vision_tower, "adapter": model.multi_modal_projector, "llm": model.language_model}


PREFIXES = {"tower": "vision_tower.", "adapter": "multi_modal_projector.", "llm": "language_model."}


def load(
    path: str | Path, *, attn: str | None = None, bits: int | None = None, precision: str = "fp32"
) -> tuple[Lvlm, LvlmProcessor]:
    """(model, processor) of a saved model, ready to generate.

    `attn` and `bits` are those of `ModelConfig`, which no model folder keeps; None leaves attention to transformers
    and the LLM whole. The model is in float32; with `precision` `bf16` what lies in the files in bfloat16 stays so, to
    be used under autocast.
    """
    from lvlm.model.lvlm import Lvlm
    from lvlm.model.processor import LvlmProcessor

    folder = Path(path)
    if not (folder / "config.json").exists():
        raise InputError(f"{folder} holds no config.json. Give the folder of a saved model.")
    if (found := _model_type(folder / "config.json")) != "lvlm":
        raise InputError(
            f"{folder / 'config.json'}, field 'model_type', is {found!r} and not 'lvlm': this is no model of this "
            "package. Give the folder of a finished run, or one that `python -m lvlm export` wrote."
        )
    check_attention(attn, precision=precision)
    check_quantisation(bits)
    check_family(attn, LvlmConfig.from_pretrained(folder).text_config)
    settings: dict[str, Any] = {"bits": bits, "keep_halved": precision == "bf16"}
    model: Lvlm = Lvlm.from_pretrained(folder, **settings | ({} if attn is None else {"attn_implementation": attn}))
    return model.eval(), LvlmProcessor.from_pretrained(folder)


def _model_type(path: Path) -> Any:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON: {error}. Copy the whole model folder.") from error
    return config.get("model_type") if isinstance(config, dict) else None


def merge_and_save(model: Lvlm, processor: LvlmProcessor, folder: str | Path) -> None:
    """Write the model with its LoRA added to the weights, and its processor; the model itself keeps its LoRA. A
    quantised LLM is written in 16 or 32 bits, as its layers compute."""
    model.save_pretrained(folder, merge_lora=True)
    processor.save_pretrained(folder)


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
        with _without_deepspeed():
            save(folder, state_dict=state, **kwargs)
    finally:
        model.config.lora = kept


@contextmanager
def _without_deepspeed() -> Iterator[None]:
    """Transformers lets accelerate unwrap every model that it saves, and that would import DeepSpeed, which takes
    seconds, to see that it is no engine."""
    known = accelerate_other.is_deepspeed_available
    accelerate_other.is_deepspeed_available = lambda: False
    try:
        yield
    finally:
        accelerate_other.is_deepspeed_available = known


def _config_text(config: LoraConfig) -> str:
    data = config.to_dict()
    data["target_modules"] = sorted(data["target_modules"])  # a set has no order, and a file should have one content
    return json.dumps(data, indent=1, sort_keys=True, default=str) + "\n"


def load_model(cls: Any, load_base: Callable[..., Any], path: Any, *args: Any, **kwargs: Any) -> Any:
    """See `Lvlm.from_pretrained`. `load_base` is the method of transformers."""
    wants_info, bits, keep_halved = (kwargs.pop(name, None) for name in ("output_loading_info", "bits", "keep_halved"))
    kwargs.setdefault("use_safetensors", True)
    kwargs["ignore_mismatched_sizes"] = True  # so that all faults come back together and are refused below
    model, info = load_base(path, *args, output_loading_info=True, **kwargs)
    _refuse(path, missing=info["missing_keys"], surplus=info["unexpected_keys"], shapes=info["mismatched_keys"])
    if not keep_halved:
        for name in model.config.halved or []:
            for weight in matrices(parts(model)[name]):
                weight.data = weight.data.to(model.dtype)
        model.config.halved = None
    if bits:
        quantise(model.language_model, bits)
    for name in model.config.lora or []:
        _restore_lora(parts(model)[name], Path(path) / LORA_FOLDER / name, device=model.device)
    return (model, info) if wants_info else model


def _restore_lora(part: nn.Module, folder: Path, *, device: torch.device) -> None:
    for file in (LORA_CONFIG, LORA_WEIGHTS):
        if not (folder / file).exists():
            raise InputError(
                f"The model's config names a LoRA, but {folder / file} does not exist. Copy the whole model folder."
            )
    config = LoraConfig(**json.loads((folder / LORA_CONFIG).read_text(encoding="utf-8")))
    for parameter in part.parameters():
        parameter.requires_grad_(False)
    missing, surplus, shapes = load_lora(part, config, load_file(folder / LORA_WEIGHTS, device=str(device)))
    _refuse(folder, missing=missing, surplus=surplus, shapes=shapes)


def _refuse(path: Any, *, missing: Any, surplus: Any, shapes: Any) -> None:
    faults = {
        "missing keys": sorted(missing),
        "surplus keys": sorted(surplus),
        "other shapes": sorted(map(str, shapes)),
    }
    found = "; ".join(f"{kind}: {', '.join(keys)}" for kind, keys in faults.items() if keys)
    if found:
        raise InputError(f"The weights in {path} do not fit the model that its config.json describes: {found}.")
