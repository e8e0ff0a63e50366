"""From scores per task and language to the few numbers of a run: tiers, English apart, `multilingual`. Torch-free.
Called by `lvlm.run` for the run record; the same averaging recomputes Centurio's published tier scores in the tests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from lvlm.errors import InputError
from lvlm.languages import TIERS, language

if TYPE_CHECKING:
    import pandas as pd

SUMMARISED = ("score", "score_any_language", "fidelity")


def summarise(scores: pd.DataFrame, *, tiers: Mapping[str, str] | None = None) -> dict[str, float]:
    """`score/en`, `score/T5` .. `score/T1`, `score/multilingual`, the same for `score_any_language` and `fidelity`, and
    `<task>/en`, `<task>/multilingual` (scores of one task): percent.

    Every value is the unweighted mean over (task, language) pairs: of a tier's languages, or of all languages but
    English for `multilingual` (Centurio's rule, arXiv 2501.05122, recovered from its Tables 18 to 31). A pair without a
    value is left out of its mean and named by `left_out`; a mean without pairs is absent, never 0.

    scores: columns task, language, metric, value. tiers: language -> tier (`en` for English); None: the language table.
    """
    table = scores.assign(tier=[_tier(code, tiers) for code in scores["language"]])
    repeated = table.duplicated(["task", "language", "metric"])
    if repeated.any():
        row = table[repeated].iloc[0]
        raise InputError(f"The scores hold {row['metric']} of {row['task']} in '{row['language']}' twice. Keep one.")
    known = table[table["value"].notna()]
    summary: dict[str, float] = {}
    for metric in SUMMARISED:
        summary |= _means(known[known["metric"] == metric], metric, groups=("en", *TIERS))
    score = known[known["metric"] == "score"]
    for task in dict.fromkeys(score["task"]):
        summary |= _means(score[score["task"] == task], task, groups=("en",))
    return summary


def left_out(scores: pd.DataFrame) -> list[str]:
    """One line for every (task, language) pair whose summarised metric has no value."""
    missing = scores[scores["value"].isna() & scores["metric"].isin(SUMMARISED)]
    return [
        f"{row.metric} of {row.task} in {row.language} has no value and is left out of the means"
        for row in missing.itertuples(index=False)
    ]


def _tier(code: str, tiers: Mapping[str, str] | None) -> str:
    if tiers is None:
        return language(code).tier
    if code not in tiers:
        raise InputError(f"The language '{code}' of the scores has no tier in the mapping. Add it or drop its rows.")
    return tiers[code]


def _means(rows: pd.DataFrame, name: str, *, groups: tuple[str, ...]) -> dict[str, float]:
    parts = {group: rows[rows["tier"] == group] for group in groups} | {"multilingual": rows[rows["tier"] != "en"]}
    return {f"{name}/{group}": float(part["value"].mean()) for group, part in parts.items() if len(part)}
