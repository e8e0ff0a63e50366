"""What a run leaves behind: file names, the run record and how files are written. Used by `lvlm.run`, `sweeps` and
`ablations`.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lvlm.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

CONFIG_FILE = "config.yaml"
PLAN_FILE = "plan.json"
SCORES_FILE = "scores.parquet"  # task, language, metric, value, n
PREDICTIONS_FILE = "predictions.parquet"  # one row per item
ALIGNMENT_FILE = "alignment.parquet"  # language, layer, retrieval, cka, tokens_per_word, n, where it was measured
CURVE_FILE = "curve.jsonl"  # one JSON object per logged step: stage, step, samples, and numbers
TRAINER_VERSION = 5
"""Raised when a change to the trainer changes its numbers, so that old stages and cells are not taken for new ones."""
STAGES_FILE = "stages.json"  # stage -> key of the trained stage that the run takes, as soon as it is known
STAGE_FILE = "stage.json"  # in the folder of a stage, written last: its presence says that the stage is trained
RENDERINGS_FILE = "renderings.json"  # in a corpus: its clean pictures, and the attributes that each shows
RECORD_FILE = "record.json"  # written last: its presence says that the run is finished

SCORE_COLUMNS = ("task", "language", "metric", "value", "n")
NAMED_METRICS = ("exact", "normalised", "relaxed", "cider")
"""What else an answer is compared by, beside `score`: rows of the scores and columns of the predictions, in percent.
Equal as Centurio's code has it; equal in nothing but words; right in a longer answer, a letter or another choice told
apart from the words around it; CIDEr x 100."""
PREDICTION_COLUMNS = (
    "task", "language", "item", "source", "prompt", "answer", "prediction",
    "score", "score_any_language", "answer_language", *NAMED_METRICS,
)  # fmt: skip
PAINT_METRICS = (
    "colour", "shape", "place", "ceiling", "empty", "gap", "transfer", "frechet", "agreement", "clip_score",
    "frechet_model",
)  # fmt: skip
"""Of the task `paint` alone, beside `score` and `random`; `lvlm.paint.scores` says what they are."""
ANSWER_METRICS = (
    "score", "score_any_language", "fidelity", "undetermined", "majority", "random", "together", *NAMED_METRICS,
)  # fmt: skip
"""`score`, `score_any_language`, `fidelity`, `undetermined` (share of answers whose language cannot be told),
`majority` (the score of the most frequent gold answer), `random` (the expected score of a choice at random, where
there are choices) and `together` (share of the pictures of MME whose questions are all right, its acc+, and of the
questions of M3Exam that are right in every rotation): percent, always apart. `score_any_language` is NaN for items that
are not translated. A task has those that say something of it.
"""
ALIGNMENT_METRICS = ("retrieval", "cka", "tokens_per_word")
"""Of the language model that vision begins with, under `alignment` in the place of a task: see
`lvlm.evaluate.alignment`. The first two are percent."""
METRICS = (*ANSWER_METRICS, *PAINT_METRICS, *ALIGNMENT_METRICS)
TASKS = (
    "caption", "vqa", "reading", "naming", "choice", "pair", "xm3600", "maxm", "xgqa", "xvnli", "marvl", "vgr", "vlod",
    "mtvqa", "smpqa_ground", "smpqa_read", "m3exam", "m3exam_cyclic", "xmmmu", "bin_mc", "cvqa", "mme", "mmmu", "paint",
)  # fmt: skip
"""What can be scored, in the order of every table: the tasks of the worlds, then those of the benchmarks."""


@dataclass
class RunRecord:
    """One finished run: identity, budget, summary scores and where its files lie.

    `scores` maps MLflow metric names (`score/en`, `score/T1`, `fidelity/multilingual`, `vqa/en`, ...) to percent; a
    score that could not be computed is absent and its reason stands in `notes`. `budget` states what was spent:
    samples, LLM tokens, images, seconds.
    """

    name: str
    seed: int
    folder: str
    stage_keys: dict[str, str]
    plan_hash: str
    scores: dict[str, float]
    budget: dict[str, float]
    provenance: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)

    def save(self, folder: Path) -> None:
        """Write the record as the last file of a finished run."""
        write_json(folder / RECORD_FILE, asdict(self))

    @classmethod
    def load(cls, folder: Path) -> RunRecord:
        """Read the record of a finished run; a folder without one is not finished."""
        path = Path(folder) / RECORD_FILE
        if not path.exists():
            raise InputError(
                f"{folder} holds no {RECORD_FILE}: the run there has not finished. Start it again to resume it."
            )
        return cls(**json.loads(path.read_text(encoding="utf-8")))


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all: temporary name in the same folder, fsync, rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write `table` as parquet, whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    table.to_parquet(temporary, index=False)
    os.replace(temporary, path)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented UTF-8 JSON, whole or not at all."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=1) + "\n")
