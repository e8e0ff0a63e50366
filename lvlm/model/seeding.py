"""Named random streams: every tensor that is initialised draws from its own.
Used by `lvlm.model.adapters` and `lvlm.model.lora`.
"""

from __future__ import annotations

import hashlib

import torch


def generator_for(seed: int, name: str) -> torch.Generator:
    """A generator for the tensor `name`: what it draws does not depend on which other tensors exist or on their
    order."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    # torch's CPU generator reads the lower 32 bits of a seed only.
    return torch.Generator().manual_seed(int.from_bytes(digest[:4], "big"))
