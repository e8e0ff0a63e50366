"""Stages that arms share: their key, their folder and its lock, and training one if it is not there yet. Called by
`lvlm.run`."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Collection, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from lvlm.config import RunConfig, fingerprint
from lvlm.paint_settings import PaintConfig
from lvlm.records import CURVE_FILE, PLAN_FILE, STAGE_FILE, TRAINER_VERSION, write_json
from lvlm.settings import StageConfig
from lvlm.train.budgets import BUDGETS_FILE
from lvlm.train.locks import file_lock
from lvlm.train.resume import CHECKPOINT_FILE
from lvlm.train.shelf import GIB, Shelf

MODEL_FOLDER = "model"
UNTRAINED = {"denoiser", "vae", "safety_checker", "guidance", "sample_steps", "clip", "features"}
"""Settings of the stage `paint` that no weight depends on, but for denoiser and VAE, which enter by their content."""


@dataclass(frozen=True)
class Stage:
    """One stage in the stage cache, trained or not."""

    name: str
    config: StageConfig | PaintConfig
    identity: Mapping[str, Any]
    folder: Path

    @property
    def key(self) -> str:
        return self.folder.name

    @property
    def model_folder(self) -> Path:
        return self.folder / MODEL_FOLDER

    @property
    def curve(self) -> Path:
        return self.folder / CURVE_FILE

    @property
    def of_language(self) -> StageConfig:
        """`config`, where the stage trains parts of the vision-language model."""
        assert isinstance(self.config, StageConfig)
        return self.config

    @cached_property
    def shelf(self) -> Shelf:
        """All stages of the work folder."""
        return Shelf(self.folder.parent)

    def result(self) -> dict[str, Any] | None:
        """What training this stage spent and measured; None while it is not finished."""
        path = self.folder / STAGE_FILE
        if not path.exists() or not self.model_folder.is_dir():
            return None
        result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return result

    def train_once(
        self, train: Callable[[], Mapping[str, Any]], processes: Accelerator, *, on_wait: Callable[[str], None]
    ) -> dict[str, Any]:
        """The result of the stage, trained by `train` unless somebody has done it; who comes second waits and takes
        it.

        `train` leaves the model in `model_folder` through `publish_model`. A holder that is killed frees the lock and
        leaves a checkpoint. From here on nobody removes the stage, until `release`.
        """
        self.shelf.hold(self.key)
        lock = file_lock(self.folder / "lock", purpose=f"trains stage {self.name}", on_wait=on_wait)
        with lock if processes.is_main_process else nullcontext():
            # One looks for all: another worker may write the result, or another machine see it, at any moment.
            result: dict[str, Any] | None = broadcast_object_list([self.result()])[0]
            if result is None:
                if processes.is_main_process:
                    self._clear()
                result = {"identity": dict(self.identity), **train()}
                processes.wait_for_everyone()
                if processes.is_main_process:
                    write_json(self.folder / STAGE_FILE, result)
                    for name in (CHECKPOINT_FILE, BUDGETS_FILE):
                        (self.folder / name).unlink(missing_ok=True)
                processes.wait_for_everyone()
        return result

    def release(self) -> None:
        """This process needs the stage no longer; it may give way to others."""
        self.shelf.release()

    def publish_model(self, save: Callable[[Path], None]) -> None:
        """Let `save` write the model to a temporary folder, then rename it into place, once it is on the disk."""
        temporary = self.folder / f".{MODEL_FOLDER}.{os.getpid()}.tmp"
        shutil.rmtree(self.model_folder, ignore_errors=True)  # left by a process that died before it wrote the result
        save(temporary)
        for path in temporary.rglob("*"):
            if path.is_file():
                with open(path, "rb") as file:
                    os.fsync(file.fileno())
        os.replace(temporary, self.model_folder)

    def make_room(self, limit_gib: float | None, needed: int, *, spare: Callable[[], Collection[str]]) -> str:
        """Remove other stages, those used longest ago first, until `needed` more bytes are within the limit; what
        became of it, for a reader. Stages that are in use stay, and so do the keys that `spare` names: then the limit
        is exceeded, for this one is needed now."""
        if limit_gib is None:
            return ""
        removed = self.shelf.shrink(limit_gib * GIB - needed, spare=spare)
        taken = sum(entry.bytes for entry in self.shelf.entries()) + needed
        said = []
        if removed:
            freed = sum(entry.bytes for entry in removed)
            said.append(f"{len(removed)} stages that were used longest ago are removed ({freed / GIB:.3g} GiB)")
        if taken > limit_gib * GIB:
            said.append(f"stages take {taken / GIB:.3g} GiB; what is left is in use, or waiting cells need it")
        return f"compute.stage_cache_gib={limit_gib:g}: {'; '.join(said)}" if said else ""

    def _clear(self) -> None:
        """Remove what processes that were killed had not finished writing."""
        for left in self.folder.glob(".*.tmp"):
            if left.is_dir():
                shutil.rmtree(left)
            else:
                left.unlink()

    def save_plan(self, summary: Mapping[str, Any]) -> None:
        """Write what the stage learns from."""
        write_json(self.folder / PLAN_FILE, summary)


def make_stage(
    home: Path,
    config: RunConfig,
    name: str,
    *,
    parent: str | None,
    backbones: Mapping[str, str],
    plan_hash: str,
    data: Mapping[str, str],
    compute: Mapping[str, Any],
    masks: Mapping[str, Any],
) -> Stage:
    """The stage of a run in the cache, keyed by everything that can change its result.

    Data enter by the plan's hash and the content digests in `data`, backbones by their weights: two configs that say
    the same in other words share the stage. Memory settings, loader workers and the feature cache do not change the
    objective and stay outside, but where LoRA has dropout: its masks are drawn for each micro-batch of each process,
    and `masks` says what decides which those are.
    """
    stage = config.every_stage()[name]
    settings = stage.model_dump(
        mode="json", exclude={"mix", "epochs", "samples", "steps", "validate_every", *UNTRAINED}
    )
    identity: dict[str, Any] = {
        "trainer": TRAINER_VERSION,
        "stage": name,
        "seed": config.seed,
        "model": config.model.model_dump(mode="json", exclude={"tower", "llm"}) | dict(backbones),
        "parent": parent,
        "settings": settings,
        "plan": plan_hash,
        "data": dict(data),
        "compute": dict(compute),
        "validation": None,
    }
    if isinstance(stage, StageConfig) and stage.lora.dropout > 0:
        identity["masks"] = dict(masks)
    if stage.validate_every is not None:
        wanted = {"tasks", "languages", "tune_corpora", "tune_items", "max_new_tokens", "detector"}
        identity["validation"] = {
            "every": stage.validate_every,
            **config.evaluate.model_dump(mode="json", include=wanted),
            **stage.model_dump(mode="json", include=UNTRAINED),
        }
    return Stage(name=name, config=stage, identity=identity, folder=home / "stages" / fingerprint(identity))
