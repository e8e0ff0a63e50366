"""Which way of computing attention is possible here and for an LLM. Used by `lvlm.model.assembly`,
`lvlm.model.checkpoints` and `lvlm.model.lvlm`."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch

from lvlm.errors import InputError

FLASH = "flash_attention_2"


def check_attention(attn: str | None, *, precision: str) -> None:
    """Raise where `attn` cannot be computed on this machine in this precision."""
    if attn != FLASH:
        return
    reasons = {
        "the package flash-attn is not installed": find_spec("flash_attn") is None,
        "torch sees no GPU": not torch.cuda.is_available(),
        "it computes in bf16 alone, and compute.precision is fp32": precision != "bf16",
    }
    if any(reasons.values()):
        found = "; ".join(reason for reason, holds in reasons.items() if holds)
        raise InputError(f"model.attn={FLASH} is not possible here: {found}. Set model.attn=sdpa.")


def check_family(attn: str | None, llm_config: Any) -> None:
    """Raise where an LLM's family does not compute attention so; transformers itself refuses flash attention."""
    if attn == "sdpa" and suited(attn, llm_config) != attn:
        raise InputError(
            f"transformers has no sdpa attention for an LLM of type '{llm_config.model_type}' (Gemma 2 caps its "
            f"scores, which sdpa cannot). Set model.attn=eager, or {FLASH} on a GPU."
        )


def suited(attn: str, llm_config: Any) -> str:
    """`attn`, or `eager` in the place of an sdpa that the LLM's family does not have."""
    # At the top it would bring in the model, which imports this module.
    from transformers import AutoModelForCausalLM

    family = AutoModelForCausalLM._model_mapping.get(type(llm_config), None)
    return "eager" if attn == "sdpa" and not getattr(family, "_supports_sdpa", True) else attn
