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
GROUPINGS = ("task", "tier", "script", "family")
"""What scores are averaged over beside the tiers of `summarise`."""


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


def grouped(scores: pd.DataFrame, by: str, *, metric: str = "score") -> pd.DataFrame:
    """Means of a metric by what the language table says of a language (`tier`, `script`, ...) or by `task`.

    Columns group, value (percent), pairs, in the order in which groups first appear. The rule is that of `summarise`:
    the unweighted mean over the (task, language) pairs that have a value, English apart as the group `en`.
    """
    check_grouping(by)
    if scores.duplicated(["task", "language", "metric"]).any():
        raise InputError("The scores hold a metric of a task in a language twice. Keep one.")
    known = scores[(scores["metric"] == metric) & scores["value"].notna()]
    names = [_group(task, code, by) for task, code in zip(known["task"], known["language"], strict=True)]
    means = known.assign(group=names).groupby("group", sort=False)["value"].agg(["mean", "size"]).reset_index()
    means.columns = ["group", "value", "pairs"]
    return means


def check_grouping(by: str) -> None:
    """Raise unless scores can be grouped by this."""
    if by not in GROUPINGS:
        raise InputError(f"Scores are grouped by {', '.join(GROUPINGS)}, not by '{by}'.")


def _group(task: str, code: str, by: str) -> str:
    if code == "en":
        return "en" if by != "task" else f"{task} in en"
    return task if by == "task" else str(getattr(language(code), by))


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
