"""The figures of the published tables, by key, and those by language behind them. `claims` and `curves` read them.

`centurio2025.csv` has the tables of arXiv 2501.05122 by tier, `centurio2025_per_language.csv` its Tables 18 to 46, and
`viscpm2023.csv` those of arXiv 2308.12038 and of an independent test. Each is one run per arm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import numpy as np
import pandas as pd

from lvlm.errors import InputError, nearest
from lvlm.languages import TIERS

TABLES = ("centurio2025.csv", "viscpm2023.csv")
BY_LANGUAGE = "centurio2025_per_language.csv"

_LANGUAGES = {"L100": "L100 50"} | {f"T5{rest}": f"T5{rest.replace('T', '')} 50" for rest in ("", "-T4", "-T3", "-T2")}
_ROWS: dict[str, dict[str, str]] = {
    "rq1": {"English": "English", **_LANGUAGES},
    "rq2": {"25": "L100 24"} | {share: f"L100 {share}" for share in ("1", "10", "50", "75", "90")},
    "rq3": {"no pre-training": "L100 50"} | {share: f"PT {share}" for share in ("100", "50", "1")},
    "rq4": {
        "no pre-training": "L100 50", "no OCR": "PT 50", "100% Eng.": "OCR English", "50% Eng.": "OCR 50",
        "50% (frozen)": "OCR 50 (frozen)", "1% Eng.": "OCR 1", "Latin down": "OCR Latin-down",
    },
}  # fmt: skip
"""Table (its first three letters) -> arm there -> the same arm in the tables by language, behind `Phi 3.5 - `."""
_LEFT_OUT = {"he", "ber"}
_TIERS = {"fil": "T3", "quz": "T1"}
_OTHER_CODES = {"iw": "he"}
_TASKS_OF = {
    "rq1b_xm3600_fidelity": ("xm3600_fidelity",), "rq4_smpqa_read": ("smpqa_read",),
    "rq4_smpqa_ground": ("smpqa_ground",),
}  # fmt: skip


@dataclass(frozen=True)
class Cells:
    """A published figure: a cell of a table, or with `against` the difference of two arms; of several groups the mean.

    With `than_groups` how much larger the difference is in `groups` than there. `points` reads it from the tables.
    """

    table: str
    arm: str
    groups: tuple[str, ...]
    against: str | None = None
    metric: str = "score"
    than_groups: tuple[str, ...] = ()

    @property
    def points(self) -> float:
        """The figure in percentage points, to the tables' own decimals."""
        found = self._of(self.groups) - (self._of(self.than_groups) if self.than_groups else 0.0)
        return round(found, 4)

    def _of(self, groups: Sequence[str]) -> float:
        one = float(np.mean([cell(self.table, self.arm, self.metric, group) for group in groups]))
        if self.against is None:
            return one
        return one - float(np.mean([cell(self.table, self.against, self.metric, group) for group in groups]))


@cache
def tables() -> pd.DataFrame:
    """All published tables: source, study, table, arm, metric, group, value."""
    found = [pd.read_csv(_file(name), dtype={"arm": str, "value": float}) for name in TABLES]
    return pd.concat(found, ignore_index=True)


@cache
def by_language() -> pd.DataFrame:
    """Values by language: source, table, arm, task, language, value."""
    return pd.read_csv(_file(BY_LANGUAGE), dtype={"value": float}, keep_default_na=False)


def cell(table: str, arm: str, metric: str, group: str) -> float:
    """One published figure in percent; an unknown key is an error that names the nearest."""
    rows = tables().set_index(["table", "arm", "metric", "group"])["value"]
    key = (table, arm, metric, group)
    if key not in rows.index:
        known = [" / ".join(map(str, one)) for one in rows.index]
        raise InputError(
            f"No published table has {' / '.join(key)}. The nearest are: {nearest(' / '.join(key), known)}."
        )
    return float(rows.loc[key])


def best(table: str, groups: Sequence[str], *, metric: str = "score") -> float:
    """The level of a table with numeric arms at which the mean of these groups is highest."""
    arms = tables().query("table == @table and metric == @metric")
    means = arms[arms["group"].isin(groups)].groupby("arm")["value"].mean()
    return float(str(means.idxmax()))


def pairs(table: str, arm: str) -> pd.DataFrame:
    """The values by language behind an arm of a table: task, language, group, value; empty where none are published.

    `group` is the tier, `en`, or in tables on text in images `Latin` and `other`. A tier's published score is the
    unweighted mean of these pairs: not stated in the paper, recovered from its tables (140 of 144 cells within 0.1).
    Fidelity is no task there, Hebrew and Berber are left out, Filipino counts as T3 and Cusco Quechua as T1.
    """
    rows = _ROWS.get(table[:3], {})
    known = by_language()
    if arm not in rows or table.endswith("unaffected_by_fidelity"):  # which tasks those are is not published
        return known.iloc[:0].assign(group=[]).loc[:, ["task", "language", "group", "value"]]
    own = known[known["arm"] == f"Phi 3.5 - {rows[arm]}"]
    wanted = _TASKS_OF.get(table)
    own = own[own["task"].isin(wanted)] if wanted else own[own["task"] != "xm3600_fidelity"]
    groups = [_letters(code) if table.startswith("rq4") else _tier(code) for code in own["language"]]
    own = own.assign(group=groups)
    return own[own["group"] != ""].loc[:, ["task", "language", "group", "value"]].reset_index(drop=True)


def _tier(code: str) -> str:
    code = _OTHER_CODES.get(code, code)
    if code == "en":
        return "en"
    tier = _TIERS.get(code) or _table().get(code, ("", ""))[0]
    return "" if code in _LEFT_OUT or tier not in TIERS else tier


def _letters(code: str) -> str:
    script = _table().get(code, ("", ""))[1]
    return "en" if code == "en" else "" if not script else "Latin" if script == "Latn" else "other"


@cache
def _table() -> dict[str, tuple[str, str]]:
    """Code -> tier and script, of the 100 training languages."""
    rows = pd.read_csv(_file("languages.csv"), keep_default_na=False, dtype=str)
    return {str(row["code"]): (f"T{row['tier']}", str(row["script"])) for row in rows.to_dict("records")}


def _file(name: str) -> str:
    return str(files("ablations").joinpath("published", name))
