"""Whether saved tensors are those that a model has, by key and shape. Used wherever weights are read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from lvlm.errors import InputError


def refuse(source: Any, *, missing: Any, surplus: Any, shapes: Any, model: str = "its config.json describes") -> None:
    """Raise, with every key, if some are missing, surplus or of another shape."""
    faults = {
        "missing keys": sorted(missing),
        "surplus keys": sorted(surplus),
        "other shapes": sorted(map(str, shapes)),
    }
    found = "; ".join(f"{kind}: {', '.join(keys)}" for kind, keys in faults.items() if keys)
    if found:
        raise InputError(f"The weights in {source} do not fit the model that {model}: {found}.")


def compare(
    found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], source: Any, *, model: str, prefix: str = ""
) -> None:
    """`refuse` for two sets of tensors, whose keys are shown after `prefix`."""
    shapes = [
        f"{prefix}{key} ({tuple(found[key].shape)} there, {tuple(wanted[key].shape)} in the model)"
        for key in found.keys() & wanted.keys()
        if found[key].shape != wanted[key].shape
    ]
    missing, surplus = wanted.keys() - found.keys(), found.keys() - wanted.keys()
    names = {"missing": missing, "surplus": surplus}
    refuse(source, shapes=shapes, model=model, **{kind: [prefix + key for key in keys] for kind, keys in names.items()})
