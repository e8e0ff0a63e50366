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
from torch import nn

from lvlm.errors import InputError
from lvlm.train.identity import refuse_other_config

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
    folder: Path,
    *,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    position: Mapping[str, float],
    identity: Mapping[str, Any],
) -> None:
    """Write what learns, the optimizer and the position (step, bytes of the curve, counts), whole or not at all."""
    state = {
        "identity": json.dumps(identity, sort_keys=True, ensure_ascii=False),
        "position": dict(position),
        "model": _changing_state(model),
        "optimizer": optimizer.state_dict(),
    }
    path = folder / CHECKPOINT_FILE
    temporary = folder / f".{CHECKPOINT_FILE}.{os.getpid()}.tmp"
    with open(temporary, "wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def load_checkpoint(
    folder: Path, *, model: nn.Module, optimizer: torch.optim.Optimizer, identity: Mapping[str, Any]
) -> dict[str, float] | None:
    """Put model and optimizer where the checkpoint left them and return its position; None without a checkpoint.

    A checkpoint of another configuration, or one whose parameters are not exactly those that learn here, is refused.
    """
    path = folder / CHECKPOINT_FILE
    if not path.exists():
        return None
    device = next(model.parameters()).device
    state = torch.load(path, map_location=device, weights_only=True)
    refuse_other_config(json.loads(state["identity"]), json.loads(json.dumps(identity)), where=path)
    own = _changing_state(model)
    if own.keys() != state["model"].keys():
        names = ", ".join(sorted(own.keys() ^ state["model"].keys())[:5])
        raise InputError(
            f"The checkpoint {path} does not hold exactly the parameters that learn here; they differ in: {names}. "
            "Remove it, and the stage begins anew."
        )
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(state["model"][name])
    optimizer.load_state_dict(state["optimizer"])
    position: dict[str, float] = state["position"]
    return position


def _changing_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """Trainable parameters and buffers by name: all that a step can change."""
    learning = {name: parameter.detach() for name, parameter in model.named_parameters() if parameter.requires_grad}
    return learning | dict(model.named_buffers())
