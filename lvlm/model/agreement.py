"""Whether a run's model config and the checkpoint that it starts from say the same. Called by
`lvlm.model.checkpoints`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import AutoConfig

from lvlm.errors import InputError
from lvlm.model.adapters import DEFAULTS
from lvlm.model.backbones import resolve
from lvlm.model.layouts import read_json
from lvlm.settings import ModelConfig

if TYPE_CHECKING:
    from lvlm.model.config import LvlmConfig


def check_agreement(wanted: ModelConfig, saved: LvlmConfig, source: Path, *, seed: int) -> None:
    """Raise for every setting of `wanted` that a saved model with its own tower and LLM contradicts.

    Tower and LLM are compared as far as they can be told without a download: by the tower's architecture, and by the
    LLM's family and size.
    """
    assert saved.tower is not None
    here = {
        "adapter": _adapter(wanted.adapter, wanted.tiles),
        **_settings(wanted.adapter, wanted.adapter_args),
        **{name: getattr(wanted, name) for name in ("tiles", "fit", "feature_layer")},
        "image_size": wanted.image_size or saved.tower["image_size"],
        "tower": _tower(resolve(wanted.tower, seed=seed)) or saved.tower["architecture"],
        "llm": _llm(resolve(wanted.llm, seed=seed)) or _family(saved.text_config),
    }
    there = {
        "adapter": _adapter(saved.adapter, saved.tiles),
        **_settings(saved.adapter, saved.adapter_args or {}),
        **{name: getattr(saved, name) for name in ("tiles", "fit", "feature_layer")},
        "image_size": saved.tower["image_size"],
        "tower": saved.tower["architecture"],
        "llm": _family(saved.text_config),
    }
    names = [name for name in here | there if here.get(name) != there.get(name)]
    if names:
        lines = [f"model.{name} is {here.get(name)} in the config, {there.get(name)} there" for name in names]
        raise InputError(
            f"The checkpoint {source} was made with other settings than the run config: {'; '.join(lines)}. "
            "Set these fields to what the checkpoint has, or leave model.checkpoint out."
        )


def _adapter(name: str, tiles: int) -> str:
    return "mlp" if (name, tiles) == ("multiscale-pool", 1) else name


def _settings(adapter: str, given: dict[str, int]) -> dict[str, int]:
    return DEFAULTS.get(adapter, {}) | given


def _tower(source: str) -> str | None:
    """The architecture that a tower's name or folder stands for; None for a name whose config is not here."""
    path = Path(source) / "config.json"
    if path.exists():
        config = read_json(path)
        if "model_type" in config:
            return "transformers"
        architecture: str | None = config.get("timm", config).get("architecture")
        return architecture
    name = source.removeprefix("hf-hub:").removeprefix("timm/")
    return None if "/" in name else name.split(".")[0]


def _llm(source: str) -> str | None:
    try:
        return _family(AutoConfig.from_pretrained(source, local_files_only=True, trust_remote_code=False))
    except (OSError, ValueError):
        return None


def _family(config: Any) -> str:
    return f"{config.model_type} of {config.num_hidden_layers} blocks and width {config.hidden_size}"
