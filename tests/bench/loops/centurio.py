"""The ablations of Centurio (arXiv 2501.05122, RQ1 to RQ4 and appendix D.2) in the built-in world, arm by arm as its
tables list them. Used by `cost.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lvlm.config import RunConfig, fingerprint, make_config
from lvlm.languages import language

INSTRUCT = 1600
"""Samples of instruction tuning; the paper has 0.77 M. What follows has its proportions."""
PRETRAIN = round(INSTRUCT * 1.3 / 0.77)
READING = {"pretrain": round(INSTRUCT * 0.5 / 0.77), "instruct": round(INSTRUCT * 0.05 / 0.77)}
"""Pictures of text that join a stage in RQ4."""
LATIN_DOWN = 4
"""How many times as many pictures a language in another script has as one in Latin letters."""


@dataclass(frozen=True)
class ListedArm:
    """One row of a table: which, and the run that it stands for. Rows of two tables may be one run."""

    table: str
    label: str
    config: RunConfig

    def key(self, *, upto: str = "instruct") -> str:
        """Equal for arms that are one run, up to and including a stage."""
        stages = ["pretrain"] if upto == "pretrain" else ["pretrain", "instruct"]
        data = self.config.model_dump(mode="json", include={"model", "seed", *stages})
        return fingerprint(data)


def listed_arms(shapes: Path, reading: Path, *, seed: int, **base: Any) -> list[ListedArm]:
    """Every row of the tables, seed by seed. `base` are further settings of a run, such as its model."""
    instruct = {"path": str(shapes), "split": "instruct", "samples": INSTRUCT}
    captions = {"path": str(shapes), "split": "captions", "samples": PRETRAIN}

    def stage(corpora: list[dict[str, Any]], *, tower: str = "frozen", **mix: Any) -> dict[str, Any]:
        return {
            "mix": {"corpora": corpora, **{"languages": "all", "english_share": 0.5, **mix}},
            "train": {"tower": tower, "adapter": "full", "llm": "lora"},
            # Rank 256 of 3072 in the paper; constant and one rate for all, so that both loops state the same optimizer.
            "lora": {"r": 16, "alpha": 32.0},
            "optim": {"lr": 5e-4, "schedule": "constant", "warmup": 0.0},
            "batch_samples": 16,
        }

    def arm(table: str, label: str, instruct: Mapping[str, Any], pretrain: Mapping[str, Any] | None) -> ListedArm:
        data = {"seed": seed, "pretrain": pretrain, "instruct": instruct, **base}
        return ListedArm(table, label, make_config(data, where=f"{table} {label}"))

    def tuned(**mix: Any) -> dict[str, Any]:
        return stage([instruct], **mix)

    def pretrained(share: float) -> dict[str, Any]:
        english = {"languages": "en", "english_share": None} if share == 1 else {"english_share": share}
        return stage([captions], **english)

    def with_text(kind: str, tower: str = "full") -> tuple[dict[str, Any], dict[str, Any]]:
        return (
            stage([instruct, *_reading(reading, kind, READING["instruct"])], tower=tower),
            stage([captions, *_reading(reading, kind, READING["pretrain"])], tower=tower),
        )

    groups = {"English": "en", "T5": "T5", "T5-T4": "T5-T4", "T5-T3": "T5-T3", "T5-T2": "T5-T2", "L100": "all"}
    allocations = {"uniform": "uniform", "1/tier": "inverse_tier", "1/exp(tier)": "inverse_exp_tier"}
    kinds = {"100% Eng.": "english", "50% Eng.": "half", "1% Eng.": "equal", "Latin down": "latin_down"}
    return [
        *(
            arm("RQ1", label, tuned(languages=group, **({"english_share": None} if group == "en" else {})), None)
            for label, group in groups.items()
        ),
        *(arm("RQ2", f"{share:.0%}", tuned(english_share=share), None) for share in (0.01, 0.1, 0.25, 0.5, 0.75, 0.9)),
        arm("RQ3", "no pre-training", tuned(), None),
        *(arm("RQ3", f"{share:.0%}", tuned(), pretrained(share)) for share in (1, 0.5, 0.01)),
        arm("RQ4", "no pre-training", tuned(), None),
        arm("RQ4", "no OCR", tuned(), pretrained(0.5)),
        *(arm("RQ4", label, *with_text(kind)) for label, kind in kinds.items()),
        arm("RQ4", "50% (frozen)", *with_text("half", tower="frozen")),
        *(arm("allocation", label, tuned(allocation=kind), None) for label, kind in allocations.items()),
    ]


def _reading(folder: Path, kind: str, pictures: int) -> list[dict[str, Any]]:
    """Entries of a mix for pictures of words: all English, half English, as many in every language, or fewer of each
    language in Latin letters."""
    import yaml

    codes = yaml.safe_load((folder / "corpus.yaml").read_text(encoding="utf-8"))["languages"]
    use = {"path": str(folder), "split": "instruct"}
    others = [code for code in codes if code != "en"]
    if kind == "english":
        return [{**use, "languages": ["en"], "samples": pictures}]
    if kind == "half":
        half = [{**use, "languages": ["en"], "samples": pictures // 2}]
        return [*half, {**use, "languages": others, "samples_per_language": max(1, pictures // 2 // len(others))}]
    if kind == "equal":
        return [{**use, "samples_per_language": max(1, pictures // len(codes))}]
    latin = [code for code in codes if language(code).script == "Latn"]
    scripts = [code for code in codes if code not in latin]
    each = max(1, pictures // (len(latin) + LATIN_DOWN * len(scripts)))
    return [
        {**use, "languages": latin, "samples_per_language": each},
        {**use, "languages": scripts, "samples_per_language": LATIN_DOWN * each},
    ]
