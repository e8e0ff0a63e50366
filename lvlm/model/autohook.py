"""Registers the model with transformers when transformers is imported, first or later. Called once, by `lvlm`; imports
nothing heavy."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType

AUTO = "transformers.models.auto."
HOOKS = {
    f"{AUTO}configuration_auto": "register_config",
    f"{AUTO}modeling_auto": "register_model",
    f"{AUTO}processing_auto": "register_processor",
}


_put_off: list[str] = []
_puts_off = False


@contextmanager
def models_later() -> Iterator[None]:
    """What is imported in here makes the Auto classes know the model no sooner than its config is made: who counts
    tokens needs no model, and its imports take seconds."""
    global _puts_off
    _puts_off = True
    try:
        yield
    finally:
        _puts_off = False


def register_now() -> None:
    """Register what was put off. Called by whatever makes a config of the model."""
    while _put_off:
        register(_put_off.pop())


def register(module: str) -> None:
    """Register with the Auto classes of one of transformers' modules, which has been imported."""
    if _puts_off and HOOKS[module] == "register_model":
        return _put_off.append(module)
    from lvlm.model import register as functions

    getattr(functions, HOOKS[module])()


class _Loader(importlib.abc.Loader):
    def __init__(self, inner: importlib.abc.Loader) -> None:
        self.inner = inner

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self.inner.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.inner.exec_module(module)
        register(module.__name__)


class _Finder(importlib.abc.MetaPathFinder):
    """Wraps the loader of the three modules that hold the Auto classes; every other import passes by."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in HOOKS:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


def install() -> None:
    """Register with what is imported already and watch for the rest. Harmless when called twice."""
    for module in HOOKS:
        if module in sys.modules:
            register(module)
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
