"""Made-up results of a declared study with planted effects and noise. The tests of the analysis read them.

Nothing is trained.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from ablations.studies import Arm, Study, load_study
from ablations.table import tidy, write_results
from lvlm.languages import language

LANGUAGES = ("en", "de", "fr", "ar", "ru", "tr", "fi", "el", "he", "ka", "sw", "ht", "is", "eo", "jv", "no")
TASKS = {"shapes": ("caption", "vqa"), "reading": ("reading",), "text_in_image": ("reading",)}
"""Built-in corpus -> its tasks."""
LEVEL = {"en": 95.0, "T5": 90.0, "T4": 85.0, "T3": 78.0, "T2": 66.0, "T1": 50.0}
TRAINED = {
    "en": (),
    "T5": ("T5",),
    "T5-T4": ("T5", "T4"),
    "T5-T3": ("T5", "T4", "T3"),
    "T5-T2": ("T5", "T4", "T3", "T2"),
}
LOW = {"en": 0.0, "T5": 0.2, "T4": 0.4, "T3": 0.5, "T2": 0.8, "T1": 1.0}


def planted(arm: Arm, task: str, code: str) -> tuple[float, float, float]:
    """Score, score in any language and fidelity without noise, in percent, of plausible size."""
    tier = language(code).tier
    levels = arm.levels
    score, fidelity = LEVEL[tier], 99.0
    any_language = score
    groups = TRAINED.get(str(levels.get("languages", "all")))
    if groups is not None and tier != "en" and tier not in groups:
        score, any_language = score - 10 - 32 * LOW[tier], score - 6 - 12 * LOW[tier]
        fidelity -= 4 + 50 * LOW[tier]
    share = levels.get("english_share")
    if share is not None:
        cost = 30 * max(0.0, float(share) - 0.5) * LOW[tier]
        score, any_language = score - cost, any_language - cost
        score -= 4.0 * (tier == "en") * (float(share) < 0.05)
    if task == "reading":
        score = (40.0 if code == "en" else 8.0) + (25.0 if levels.get("tiles") == 2 and code == "en" else 0.0)
        any_language = score
    return score, max(any_language, score), fidelity


def tasks_of(study: Study) -> tuple[str, ...]:
    """The tasks that the study's own evaluation asks, in all languages."""
    corpora = study.base_data["evaluate"]["corpora"]
    assert not any(use.get("languages") for use in corpora), "the made-up scores are in all languages"
    return tuple(sorted(task for use in corpora for task in TASKS[Path(use["path"]).name]))


def scores(arm: Arm, seed: int, *, tasks: Sequence[str] = TASKS["shapes"], noise: float = 1.0) -> pd.DataFrame:
    """The `scores.parquet` of one run.

    The planted values, a seed draw that all arms share, and noise of the run and the language.
    """
    common = np.random.default_rng([seed, 1])
    shared = common.normal(0, 5 * noise) + common.normal(0, 2 * noise, len(LANGUAGES))
    own = np.random.default_rng([seed, *arm.label.encode()])
    of_run = own.normal(0, 0.6 * noise)
    rows = []
    for number, code in enumerate(LANGUAGES):
        for task in tasks:
            score, any_language, fidelity = planted(arm, task, code)
            moved = shared[number] + of_run + own.normal(0, noise)
            for metric, value in (
                ("score", score + moved),
                ("score_any_language", any_language + moved),
                ("fidelity", np.nan if task == "caption" else min(100.0, fidelity + own.normal(0, noise))),
                ("undetermined", 2.0),
                ("majority", 15.0),
            ):
                rows.append({"task": task, "language": code, "metric": metric, "value": value, "n": 100})
    return pd.DataFrame(rows)


def write_study(
    home: Path, name: str, *, budget: str = "default", runs: int | None = None, noise: float = 1.0
) -> Study:
    """Write the results of the first `runs` cells of a study under `home`, as a sweep would."""
    study = load_study(name)
    cells = study.cells(budget)  # type: ignore[arg-type]
    tasks = tasks_of(study)
    done = [(cell, scores(cell.arm, cell.seed, tasks=tasks, noise=noise)) for cell in cells[:runs]]
    write_results(home / "studies" / name, tidy(study, done), planned=cells)
    return study


def write_answers(folder: Path, study: Study, *, items: int = 6, seed: int = 0) -> None:
    """The per-item table and pictures beside a study's results: answers right, wrong, and in English, at rates that
    follow the planted scores."""
    generator = np.random.default_rng(seed)
    rows = []
    tasks = tasks_of(study)
    for cell in study.cells():
        for task in tasks:
            for code in LANGUAGES:
                score, _, fidelity = planted(cell.arm, task, code)
                right = generator.random(items) * 100 < score
                same = generator.random(items) * 100 < fidelity
                for number in range(items):
                    told = code if same[number] else "en"
                    rows.append(
                        {
                            "run": cell.id, "arm": cell.arm.label, "seed": cell.seed, "task": task, "language": code,
                            "item": f"{task}-{number}", "source": "shapes", "prompt": f"{code}: what & where?",
                            "answer": "circle", "prediction": "circle" if right[number] else "<script>1</script>",
                            "score": 100.0 * (right[number] and told == code),
                            "score_any_language": 100.0 * right[number],
                            "answer_language": None if generator.random() < 0.05 else told,
                        }
                    )  # fmt: skip
    pd.DataFrame(rows).to_parquet(folder / "predictions.parquet", index=False)
    image = io.BytesIO()
    Image.new("RGB", (24, 24), "teal").save(image, "WEBP")
    names = [(task, "shapes", f"{task}-{number}", image.getvalue()) for task in tasks for number in range(items)]
    pd.DataFrame(names, columns=["task", "source", "item", "image"]).to_parquet(
        folder / "thumbnails.parquet", index=False
    )
