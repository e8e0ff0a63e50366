"""What an unfinished run or checkpoint was started with, against what it is asked to continue with. No torch. Called
by `lvlm.run` and `lvlm.train.resume`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lvlm.config import FREE_COMPUTE, LABELS, MASKS_DEPEND_ON, RunConfig, load_config
from lvlm.errors import InputError
from lvlm.records import CONFIG_FILE, RECORD_FILE


def refuse_other_config(found: Mapping[str, Any], wanted: Mapping[str, Any], *, where: Path) -> None:
    """Raise, with a diff by dotted field, if the unfinished work at `where` was started with another configuration."""
    lines = config_diff(found, wanted)
    if lines:
        raise InputError(
            f"{where} was started with another configuration and cannot be resumed with this one. "
            f"There -> here: {'; '.join(lines)}. Use the old configuration, or another folder."
        )


def check_same_config(folder: Path, config: RunConfig) -> list[str]:
    """Raise, with a diff, if `folder` holds a run of another configuration, or an unfinished one whose dropout would
    go on with other masks; returns what differs among the settings that may."""
    path = folder / CONFIG_FILE
    if not path.exists():
        return []
    found, wanted = load_config(path).model_dump(mode="json"), config.model_dump(mode="json")
    for label in LABELS:
        found.pop(label), wanted.pop(label)
    allowed: dict[str, Any] = {}
    for name in FREE_COMPUTE:
        before, now = found["compute"].pop(name), wanted["compute"].pop(name)
        if before != now:
            allowed[name] = f"resumed with compute.{name}: {before!r} -> {now!r}"
    lines = config_diff(found, wanted)
    if lines:
        raise InputError(
            f"The run folder {folder} was started with another configuration and cannot be resumed with this one. "
            f"There -> here: {'; '.join(lines)}. "
            "Use the old configuration or another folder; only compute settings about memory and speed may change."
        )
    dropping = [name for name, stage in config.stages().items() if stage.lora.dropout > 0]
    moving = [allowed[name] for name in MASKS_DEPEND_ON if name in allowed]
    if moving and dropping and not (folder / RECORD_FILE).exists():
        raise InputError(
            f"The run folder {folder} cannot be {' and '.join(moving)}: lora.dropout is above 0 in "
            f"{' and '.join(dropping)}, and its masks are drawn for each micro-batch, so that more than the last bits "
            "would change. Use the old value or another folder."
        )
    return list(allowed.values())


def config_diff(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """`field: there -> here` for every dotted field that differs."""
    old, new = _flat(found), _flat(wanted)
    return [
        f"{key}: {old.get(key, 'absent')!r} -> {new.get(key, 'absent')!r}"
        for key in sorted({*old, *new})
        if old.get(key) != new.get(key)
    ]


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        flat |= _flat(inner, f"{prefix}.{key}" if prefix else str(key))
    return flat
