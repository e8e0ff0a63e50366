"""Reads a table of results from its file, and refuses what is none. `table` calls it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lvlm.config import one_line
from lvlm.errors import InputError, nearest
from lvlm.languages import find, table
from lvlm.records import METRICS

LEADING = ("study", "arm", "seed")
TRAILING = ("run", "task", "language", "tier", "metric", "value", "n")
"""Columns of the table before and behind the factors of the study."""


def read_table(path: Path, name: str) -> pd.DataFrame:
    """The table in a parquet or CSV file; `name` is what commands call its study.

    Raises `InputError` where columns are missing, rows repeat each other, or a metric, a language or a value is none.
    """
    try:
        rows = pd.read_csv(path) if path.suffix == ".csv" else pd.read_parquet(path)
    except (OSError, ValueError) as error:  # pyarrow's and pandas' own errors are ValueErrors
        raise InputError(
            f"{path} is no table of results ({one_line(error)}). Write it again: python -m sweeps export {name}."
        ) from error
    if missing := [column for column in (*LEADING, *TRAILING) if column not in rows.columns]:
        raise InputError(
            f"{path} lacks the column(s) {', '.join(missing)} of a results table; it has: {', '.join(rows.columns)}."
        )
    if rows.empty:
        raise InputError(f"{path} holds no finished run yet. See python -m sweeps status {name}.")
    if unknown := sorted(set(rows["metric"]) - set(METRICS)):
        raise InputError(f"{path} holds unknown metrics: {', '.join(unknown)}. Known: {', '.join(METRICS)}.")
    _check_languages(rows["language"], path)
    _check_values(rows["value"], path)
    key = ["arm", "seed", "task", "language", "metric"]
    if (repeated := rows.duplicated(key)).any():
        row = int(repeated.to_numpy().argmax())
        raise InputError(
            f"{path}, row {row}: a second value for {', '.join(map(str, rows.loc[row, key]))}. "
            "One run per arm and seed belongs in a table."
        )
    return rows


def _check_languages(codes: pd.Series[Any], path: Path) -> None:
    """Raise at a code that is no row of the language table: it would be in no group."""
    for code in codes.unique():
        if code not in table():
            row = int((codes.to_numpy() == code).argmax())
            known = find(str(code))
            said = f"write '{known.language.code}'" if known else f"the nearest are {nearest(str(code), list(table()))}"
            raise InputError(f"{path}, row {row}: '{code}' is no code of the language table; {said}.")


def _check_values(values: pd.Series[Any], path: Path) -> None:
    """Raise at a value that is neither a number nor empty."""
    numbers = pd.to_numeric(values, errors="coerce")
    wrong = (numbers.isna() & values.notna()).to_numpy() | np.isinf(numbers.to_numpy(dtype=float))
    if wrong.any():
        row = int(wrong.argmax())
        raise InputError(
            f"{path}, row {row}: the value '{values.iloc[row]}' is no number. Unknown ones are left empty."
        )
