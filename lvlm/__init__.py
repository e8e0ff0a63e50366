"""Train, evaluate and use multilingual large vision-language models.

`import lvlm` makes transformers' Auto classes know the model, whether transformers is imported first or later, and
imports neither torch nor transformers by itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lvlm.model.autohook import install

if TYPE_CHECKING:
    from lvlm.model.checkpoints import load
    from lvlm.model.lvlm import Lvlm
    from lvlm.model.processor import LvlmProcessor

__all__ = ["Lvlm", "LvlmProcessor", "load"]

_HOMES = {
    "Lvlm": "lvlm.model.lvlm",
    "LvlmProcessor": "lvlm.model.processor",
    "load": "lvlm.model.checkpoints",
}

install()


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module 'lvlm' has no attribute '{name}'; it has {', '.join(__all__)}")
    import importlib

    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
