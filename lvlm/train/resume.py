"""Checkpoints of an unfinished stage: everything that the next step depends on, in one file. Called by
`lvlm.train.loop`."""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import torch

from lvlm.errors import InputError
from lvlm.train.identity import refuse_other_config
from lvlm.train.strategies import Strategy, changing_state

CHECKPOINT_FILE = "checkpoint.pt"
USUAL_SECONDS = 60.0
SHARE_OF_TIME = 0.03
"""What checkpoints may take of the time where their interval is not set: one of 100 s comes after 55 minutes."""


class CheckpointTimer:
    """Says when a checkpoint is due: `seconds` after the last one; None is a minute, or longer where saving the last
    one took more than its share of the time."""

    def __init__(self, seconds: float | None) -> None:
        self.seconds = seconds
        self._cost = 0.0
        self._last = time.monotonic()

    def due(self, *, sooner: bool = False) -> bool:
        """Whether it is time; with `sooner` as soon as it costs no more than its share."""
        affordable, usual = self._cost / SHARE_OF_TIME, USUAL_SECONDS
        if self.seconds is not None:
            affordable, usual = 0.0, self.seconds
        return time.monotonic() - self._last >= (affordable if sooner else max(affordable, usual))

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Around the saving of one, whose time it takes."""
        started = time.monotonic()
        yield
        self._last = time.monotonic()
        self._cost = self._last - started


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
