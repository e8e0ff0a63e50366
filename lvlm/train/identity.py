"""What an unfinished run or checkpoint was started with, against what it is asked to continue with. No torch. Called
by `lvlm.run` and `lvlm.train.resume`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lvlm.errors import InputError


def refuse_other_config(found: Mapping[str, Any], wanted: Mapping[str, Any], *, where: Path) -> None:
    """Raise, with a diff by dotted field, if the unfinished work at `where` was started with another configuration."""
    lines = config_diff(found, wanted)
    if lines:
        raise InputError(
            f"{where} was started with another configuration and cannot be resumed with this one. "
            f"There -> here: {'; '.join(lines)}. Use the old configuration, or another folder."
        )


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
