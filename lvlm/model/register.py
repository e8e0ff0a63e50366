"""Makes transformers' Auto classes know the model. Called by the import hook in `lvlm`, and at the end of an import of
the model."""

from __future__ import annotations

import sys


def _half_imported(module: str, name: str) -> bool:
    """Whether `module` is being imported right now, and was what imported transformers: it registers at its own end."""
    return module in sys.modules and not hasattr(sys.modules[module], name)


def register_config() -> None:
    """`AutoConfig` knows `model_type: lvlm`."""
    from transformers import AutoConfig

    from lvlm.model.config import LvlmConfig

    AutoConfig.register("lvlm", LvlmConfig, exist_ok=True)


def register_model() -> None:
    """`AutoModelForCausalLM` (as Centurio's model) and `AutoModelForImageTextToText` build an `Lvlm`."""
    if _half_imported("lvlm.model.lvlm", "Lvlm"):
        return
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    from lvlm.model.config import LvlmConfig
    from lvlm.model.lvlm import Lvlm

    for auto in (AutoModelForCausalLM, AutoModelForImageTextToText):
        auto.register(LvlmConfig, Lvlm, exist_ok=True)


def register_processor() -> None:
    """`AutoProcessor` builds an `LvlmProcessor`."""
    if _half_imported("lvlm.model.processor", "LvlmProcessor"):
        return
    from transformers import AutoProcessor

    from lvlm.model.config import LvlmConfig
    from lvlm.model.processor import LvlmProcessor

    AutoProcessor.register(LvlmConfig, LvlmProcessor, exist_ok=True)
