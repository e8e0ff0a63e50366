"""What a launched study cost against running each of its cells from scratch, with stage sharing and the feature cache
apart.

    python tests/bench/sharing.py [STUDY FOLDER] [--home HOME]        reads records only; default: runs/studies/drivers
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from loops.measure import table

from lvlm.config import fingerprint, load_config
from lvlm.errors import InputError
from lvlm.records import CONFIG_FILE, RunRecord
from sweeps.plan import Place, Plan

EXPLANATION = """\
Compute is seconds inside the training loops plus seconds for the features of the frozen tower; the last column adds
evaluation, which nothing shares. From scratch, every cell trains each of its stages (the seconds that the stage took
when it was trained) and computes the features of its images once for itself: as long as the slowest `features` phase
among the cells with the same tower, pixels and layer, which is the one that filled the store. As run, every distinct
stage counts once and every `features` phase as recorded, waiting for another worker included, so that sharing is not
flattered. Data, start-up and tracking are left out on both sides. Seconds are wall seconds of workers on one machine:
other work on it adds noise to both sides. {missing}"""


@dataclass(frozen=True)
class Compute:
    """Seconds of a study: stages trained for every cell and once each, features likewise, evaluation."""

    stages_each: dict[str, float]
    stages_once: dict[str, float]
    features_each: float
    features_once: float
    evaluation: float
    cells: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, nargs="?", default=Path("runs/studies/drivers"))
    parser.add_argument("--home", type=Path, default=None, help="work folder of the study (default: two above it)")
    options = parser.parse_args()
    study = options.study.resolve()
    place = Place(study.parent.parent, study.name)
    try:
        folders, planned = finished(place)
    except InputError as error:
        sys.exit(str(error))
    if not folders:
        sys.exit(f"{study} holds no finished cell yet, of {planned} planned.")
    report(compute_of(folders, home=options.home or place.home), unfinished=planned - len(folders))


def finished(place: Place) -> tuple[list[Path], int]:
    """Run folders of the finished cells of the latest launch, and how many cells it planned; folders of cells that an
    earlier plan had are left out."""
    plan = Plan.load(place)
    return [place.cell(cell.id) for cell in plan.cells if place.is_recorded(cell.id)], len(plan.cells)


def compute_of(folders: Sequence[Path], *, home: Path) -> Compute:
    """Add up the records in run folders."""
    each: dict[str, float] = defaultdict(float)
    once: dict[str, dict[str, float]] = defaultdict(dict)
    features: dict[str, list[float]] = defaultdict(list)
    evaluation = 0.0
    for folder in folders:
        record, config = RunRecord.load(folder), load_config(folder / CONFIG_FILE)
        for name, key in record.stage_keys.items():
            seconds = _stage_seconds(home, key)
            each[name] += seconds
            once[name][key] = seconds
        phases = record.provenance["seconds"]
        pixels = [getattr(config.model, name) for name in ("tiles", "fit", "image_size", "feature_layer")]
        store = fingerprint([record.provenance["backbones"].get("tower"), *pixels])
        features[store].append(phases.get("features", 0.0))
        evaluation += phases.get("evaluate", 0.0)
    return Compute(
        stages_each=dict(each),
        stages_once={name: sum(stages.values()) for name, stages in once.items()},
        features_each=sum(len(seconds) * max(seconds) for seconds in features.values()),
        features_once=sum(sum(seconds) for seconds in features.values()),
        evaluation=evaluation,
        cells=len(folders),
    )


def _stage_seconds(home: Path, key: str) -> float:
    """Seconds inside the training loop of a stage in the cache, whoever trained it."""
    result = json.loads((home / "stages" / key / "stage.json").read_text(encoding="utf-8"))
    return float(result["spent"]["seconds"])


def report(compute: Compute, *, unfinished: int) -> None:
    """Print the seconds by part and the ratios."""
    parts = [
        [
            f"stage {name}",
            f"{seconds:.1f}",
            f"{compute.stages_once[name]:.1f}",
            f"{compute.stages_once[name] / seconds:.2f}",
        ]
        for name, seconds in compute.stages_each.items()
    ]
    parts.append(
        [
            "features",
            f"{compute.features_each:.1f}",
            f"{compute.features_once:.1f}",
            _ratio(compute.features_once, compute.features_each),
        ]
    )
    parts.append(["evaluation", f"{compute.evaluation:.1f}", f"{compute.evaluation:.1f}", "1.00"])
    print(f"{compute.cells} cells\n")
    print(table(["seconds", "from scratch", "as run", "ratio"], parts))
    stages_each, stages_once = sum(compute.stages_each.values()), sum(compute.stages_once.values())
    spent = {
        "from scratch": stages_each + compute.features_each,
        "only stages shared": stages_once + compute.features_each,
        "only features shared": stages_each + compute.features_once,
        "both shared": stages_once + compute.features_once,
    }
    whole = spent["from scratch"]
    rows = [
        [
            name,
            f"{seconds:.1f}",
            _ratio(seconds, whole),
            _ratio(seconds + compute.evaluation, whole + compute.evaluation),
        ]
        for name, seconds in spent.items()
    ]
    print("\n" + table(["training and features", "seconds", "ratio", "ratio with evaluation"], rows))
    missing = f"{unfinished} cells of the study have not finished and are left out." if unfinished else ""
    print("\n" + EXPLANATION.format(missing=missing).rstrip())


def _ratio(part: float, whole: float) -> str:
    return f"{part / whole:.2f}" if whole else "-"


if __name__ == "__main__":
    main()
