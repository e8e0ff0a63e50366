"""The corpora of a run as MLflow's datasets: which, and exactly which samples of them. Used by `tracking`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from lvlm.config import RunConfig
from lvlm.records import RunRecord

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput

CONTEXT_TAG = "mlflow.data.context"


def dataset_inputs(config: RunConfig, record: RunRecord) -> list[DatasetInput]:
    """One for each corpus and stage, its digest the hash of the stage's plan; those of the evaluation have the digest
    of the corpus itself.

    Corpora with one name, in one stage, under one plan are one.
    """
    from mlflow.entities import Dataset, DatasetInput, InputTag

    hashes = record.provenance.get("plan_hashes") or {}
    stamps = record.provenance.get("corpora") or {}
    found: dict[tuple[str, str, str], str] = {}
    for stage, settings in config.every_stage().items():
        for use in settings.mix.corpora:
            found.setdefault((Path(use.path).name, hashes.get(stage, record.plan_hash), stage), use.path)
    for use in config.evaluate.corpora:
        if digest := str(stamps.get(use.path) or ""):
            found.setdefault((Path(use.path).name, digest, "evaluate"), use.path)
    return [
        DatasetInput(
            # As MLflow's MetaDataset writes it: nothing but where it lies, its name and its digest.
            Dataset(name, digest[:36], source_type="local", source=json.dumps({"uri": path})),
            tags=[InputTag(CONTEXT_TAG, context)],
        )
        for (name, digest, context), path in found.items()
    ]
