"""Names of what is measured: metrics, and groups of tasks and languages. `studies` checks declarations with them,
`contrasts` computes them."""

from __future__ import annotations

from collections.abc import Collection
from functools import cache
from typing import Literal

from lvlm.errors import InputError, nearest
from lvlm.languages import TIERS, group_languages, table
from lvlm.records import METRICS, TASKS

GROUP_ORDER = ("en", *TIERS, "multilingual")
LETTERS = ("Latin", "other")
"""Languages other than English in Latin letters, and in others: the groups of published tables on text in images."""
GROUP_FORMS = f"{', '.join((*GROUP_ORDER, *LETTERS))}, script:NAME, family:NAME or a language code"
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
    """Raise unless `group` is one that `members` knows, alone or after `TASK/`."""
    task, slash, name = group.rpartition("/")
    if slash and task not in TASKS:
        raise InputError(f"'{group}' is not a group: '{task}' is no task; tasks are: {', '.join(TASKS)}.")
    members(name)


@cache
def members(name: str) -> frozenset[str]:
    """The languages of `en`, a tier, `multilingual`, `Latin` or `other` letters, `script:Arab`, `family:Turkic`
    or a language code.

    English is reported apart: it is in no tier, script or family.
    """
    known = table()
    if name == "multilingual":
        return frozenset(known) - {"en"}
    if name in GROUP_ORDER:
        return frozenset(code for code, row in known.items() if row.tier == name)
    if name in LETTERS:
        latin = members("script:Latn")
        return latin if name == "Latin" else members("multilingual") - latin
    if name.startswith(("script:", "family:")):
        return frozenset(group_languages(name, tuple(known))) - {"en"}
    if name not in known:
        raise InputError(
            f"'{name}' is not a group: use {GROUP_FORMS}, after 'TASK/' for one task ({', '.join(TASKS)})."
        )
    return frozenset({name})


def group_names(codes: Collection[str], by: Literal["tier", "language", "script", "family"]) -> list[str]:
    """The groups of one kind that these languages make up, in the order of the language table."""
    own = [(code, row) for code, row in table().items() if code in codes]
    if by == "tier":
        return [name for name in GROUP_ORDER if not members(name).isdisjoint(codes)]
    if by == "language":
        return [code for code, _ in own]
    if by in ("script", "family"):
        return list(dict.fromkeys(f"{by}:{getattr(row, by)}" for code, row in own if code != "en"))
    raise InputError(f"Effects are grouped by tier, task, language, script or family, not by '{by}'.")


def check_primary(name: str) -> None:
    """Raise unless every run record has a score of this name, such as `score/multilingual` or `reading/en`."""
    known = [f"{metric}/{group}" for metric in SUMMARISED for group in GROUP_ORDER]
    known += [f"{task}/{group}" for task in TASKS for group in ("en", "multilingual")]
    if name not in known:
        raise InputError(
            f"the primary outcome '{name}' is not a score of a run record; the nearest are: {nearest(name, known)}."
        )
