"""Checkpoints under lmms-eval: its tasks and metrics, our prompts, pixels and batches. Called by `python -m lvlm
lmms-eval`; lmms-eval finds the model `lvlm` through this package's entry point too (`--model lvlm`)."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lvlm.errors import InputError
from lvlm.ready import recorded_config

if TYPE_CHECKING:
    from lmms_eval.models.registry_v2 import ModelManifest

MODEL = "lvlm"
"""What `--model` of lmms-eval calls it."""


def manifest() -> ModelManifest:
    """What lmms-eval registers."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id=MODEL, simple_class_path="lvlm.lmms_model.LvlmModel")


def run(checkpoint: Path, options: Sequence[str]) -> int | None:
    """`lmms-eval --model lvlm` on a checkpoint with further options of its own; its exit status."""
    recorded_config(checkpoint)  # a fault in it shows before lmms-eval is loaded
    try:
        from lmms_eval.cli.dispatch import main
        from lmms_eval.models import MODEL_REGISTRY_V2
    except ImportError as error:
        raise InputError(
            f"lmms-eval cannot be imported here ({error}). Install it (`pip install lmms-eval`, best in an environment "
            "of its own with this package)."
        ) from error
    MODEL_REGISTRY_V2.register_manifest(manifest(), overwrite=True)
    before = sys.argv
    sys.argv = ["lmms-eval", "--model", MODEL, "--model_args", f"pretrained={checkpoint}", *options]
    try:
        status: int | None = main()
        return status
    except SystemExit as stopped:
        return stopped.code if isinstance(stopped.code, int) else int(stopped.code is not None)
    finally:
        sys.argv = before
