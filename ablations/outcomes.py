"""Names of what is measured: metrics, and groups of tasks and languages. `studies` checks declarations with them,
`contrasts` computes them."""

from __future__ import annotations

from lvlm.errors import InputError, nearest
from lvlm.languages import TIERS, table
from lvlm.records import METRICS, TASKS

GROUP_ORDER = ("en", *TIERS, "multilingual")
LETTERS = ("Latin", "other")
"""Languages other than English in Latin letters, and in others: the groups of published tables on text in images."""
DERIVED = {"right_elsewhere": ("score_any_language", "score")}
"""`right_elsewhere`: points of answers that are right, but only in another language than the asked one."""
SUMMARISED = ("score", "score_any_language", "fidelity")
"""The metrics that a run record sums up by tier; of single tasks it has the score in English and elsewhere."""


def check_metric(metric: str) -> None:
    """Raise unless `metric` is measured in every run, or derived from what is."""
    known = (*METRICS, *DERIVED)
    if metric not in known:
        raise InputError(f"'{metric}' is not a metric; metrics are: {', '.join(known)}.")


def check_group(group: str) -> None:
    """Raise unless `group` is `en`, a tier, `multilingual`, `Latin`, `other`, a language code, or one of these after `TASK/`."""
    task, slash, name = group.rpartition("/")
    if slash and task not in TASKS:
        raise InputError(f"'{group}' is not a group: '{task}' is no task; tasks are: {', '.join(TASKS)}.")
    if name not in (*GROUP_ORDER, *LETTERS) and name not in table():
        raise InputError(
            f"'{group}' is not a group: use {', '.join((*GROUP_ORDER, *LETTERS))} or a language code, after 'TASK/' for one task "
            f"({', '.join(TASKS)})."
        )


def check_primary(name: str) -> None:
    """Raise unless every run record has a score of this name, such as `score/multilingual` or `reading/en`."""
    known = [f"{metric}/{group}" for metric in SUMMARISED for group in GROUP_ORDER]
    known += [f"{task}/{group}" for task in TASKS for group in ("en", "multilingual")]
    if name not in known:
        raise InputError(
            f"the primary outcome '{name}' is not a score of a run record; the nearest are: {nearest(name, known)}."
        )
