"""Saved tensors: read from their file, and compared with those that a model has by key and shape. Used wherever weights
are read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from lvlm.config import one_line
from lvlm.errors import InputError


@contextmanager
def readable(source: Any) -> Iterator[None]:
    """Inside, a safetensors file that is cut short or is none is an `InputError` that names `source`."""
    try:
        yield
    except SafetensorError as error:
        raise InputError(f"The weights in {source} cannot be read: {one_line(error)}. Copy them again.") from error


def read_tensors(file: Path, *, device: str = "cpu") -> dict[str, Tensor]:
    """The tensors of a safetensors file; one that is missing or broken is an `InputError`."""
    if not file.exists():
        raise InputError(f"The weights {file} do not exist. Copy the whole folder.")
    with readable(file):
        tensors: dict[str, Tensor] = load_file(file, device=device)
    return tensors


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
