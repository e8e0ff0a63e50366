"""Checkpoints of an unfinished stage: everything that the next step depends on, in one file. Called by
`lvlm.train.loop`."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import torch

from lvlm.errors import InputError
from lvlm.train.identity import refuse_other_config
from lvlm.train.strategies import Strategy, changing_state

CHECKPOINT_FILE = "checkpoint.pt"


def seed_step(seed: int, stage: str, step: int, rank: int) -> None:
    """Set the random state of python, numpy and torch from (seed, stage, step, process), as every optimizer step
    begins.

    Dropout is then a pure function of the step: a resumed run has no random state to lose, and neither the probe nor a
    validation in between can move it.
    """
    state = int(np.random.SeedSequence([seed, crc32(stage.encode()), step, rank]).generate_state(1)[0])
    random.seed(state)
    np.random.seed(state)
    torch.manual_seed(state)


def save_checkpoint(
    folder: Path, state: Mapping[str, Any], *, position: Mapping[str, float], identity: Mapping[str, Any]
) -> None:
    """Write what a strategy holds (`Strategy.state`) and the position (step, bytes of the curve, counts), whole or not
    at all."""
    content = {
        "identity": json.dumps(identity, sort_keys=True, ensure_ascii=False),
        "position": dict(position),
        **state,
    }
    path = folder / CHECKPOINT_FILE
    temporary = folder / f".{CHECKPOINT_FILE}.{os.getpid()}.tmp"
    with open(temporary, "wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def load_checkpoint(folder: Path, strategy: Strategy, *, identity: Mapping[str, Any]) -> dict[str, float] | None:
    """Put a strategy where the checkpoint left it and return its position; None without a checkpoint.

    A checkpoint of another configuration, or one whose parameters are not exactly those that learn here, is refused.
    """
    path = folder / CHECKPOINT_FILE
    if not path.exists():
        return None
    state = torch.load(path, map_location="cpu", weights_only=True)  # whole: a device may hold no more than its share
    refuse_other_config(json.loads(state["identity"]), json.loads(json.dumps(identity)), where=path)
    own = changing_state(strategy.model)
    if own.keys() != state["model"].keys():
        names = ", ".join(sorted(own.keys() ^ state["model"].keys())[:5])
        raise InputError(
            f"The checkpoint {path} does not hold exactly the parameters that learn here; they differ in: {names}. "
            "Remove it, and the stage begins anew."
        )
    strategy.restore(state)
    position: dict[str, float] = state["position"]
    return position
