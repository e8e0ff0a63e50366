"""Stages that arms share: their key, their folder and its lock, and training one if it is not there yet. Called by
`lvlm.run`."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from lvlm.config import RunConfig, fingerprint
from lvlm.records import CURVE_FILE, PLAN_FILE, TRAINER_VERSION, write_json
from lvlm.settings import StageConfig
from lvlm.train.budgets import BUDGETS_FILE
from lvlm.train.locks import file_lock
from lvlm.train.resume import CHECKPOINT_FILE

MODEL_FOLDER = "model"
STAGE_FILE = "stage.json"  # written last: its presence says that the stage is trained


@dataclass(frozen=True)
class Stage:
    """One stage in the stage cache, trained or not."""

    name: str
    config: StageConfig
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

    def result(self) -> dict[str, Any] | None:
        """What training this stage spent and measured; None while it is not finished."""
        path = self.folder / STAGE_FILE
        if not path.exists():
            return None
        result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return result

    def train_once(
        self, train: Callable[[], Mapping[str, Any]], processes: Accelerator, *, on_wait: Callable[[str], None]
    ) -> dict[str, Any]:
        """The result of the stage, trained by `train` unless somebody has done it; who comes second waits and takes
        it.

        `train` leaves the model in `model_folder` through `publish_model`. A holder that is killed frees the lock and
        leaves a checkpoint.
        """
        lock = file_lock(self.folder / "lock", purpose=f"trains stage {self.name}", on_wait=on_wait)
        with lock if processes.is_main_process else nullcontext():
            # One looks for all: another worker may write the result, or another machine see it, at any moment.
            result: dict[str, Any] | None = broadcast_object_list([self.result()])[0]
            if result is None:
                result = {"identity": dict(self.identity), **train()}
                processes.wait_for_everyone()
                if processes.is_main_process:
                    write_json(self.folder / STAGE_FILE, result)
                    for name in (CHECKPOINT_FILE, BUDGETS_FILE):
                        (self.folder / name).unlink(missing_ok=True)
                processes.wait_for_everyone()
        return result

    def publish_model(self, save: Callable[[Path], None]) -> None:
        """Let `save` write the model to a temporary folder, then rename it into place."""
        temporary = self.folder / f".{MODEL_FOLDER}.{os.getpid()}.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(self.model_folder, ignore_errors=True)  # left by a process that died before it wrote the result
        save(temporary)
        os.replace(temporary, self.model_folder)

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
    stage = config.stages()[name]
    settings = stage.model_dump(mode="json", exclude={"mix", "epochs", "samples", "steps", "validate_every"})
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
    if stage.lora.dropout > 0:
        identity["masks"] = dict(masks)
    if stage.validate_every is not None:
        wanted = {"tasks", "languages", "tune_corpora", "tune_items", "max_new_tokens", "detector"}
        identity["validation"] = {
            "every": stage.validate_every,
            **config.evaluate.model_dump(mode="json", include=wanted),
        }
    return Stage(name=name, config=stage, identity=identity, folder=home / "stages" / fingerprint(identity))
