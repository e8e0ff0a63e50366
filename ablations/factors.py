"""A factor: one field of the run config and the levels it takes. Study files declare them.

`designs`, `table` and `sweeps` read them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lvlm.config import RunConfig, check_path, make_config, set_value
from lvlm.errors import InputError
from lvlm.languages import GROUP_FORMS, group_languages, is_group

Level = str | int | float | bool | None
"""One value of a factor.

Scalars only, so that a level is a cell of the tidy table and a category of the sweep's search space.
"""

RESERVED = frozenset({"study", "arm", "seed", "run", "task", "language", "tier", "metric", "value", "n"})
"""Columns of the tidy table, which no factor may be called."""


@dataclass(frozen=True, kw_only=True)
class Factor:
    """What varies: `path` is a dotted field of the run config, `name` its short name in tables and in MLflow.

    `labels` are short texts for figures. `requires` names the levels of other factors under which this one means
    anything (`{"languages": ("T5", "all")}`): in every other arm it is None and the arm appears once.
    """

    name: str
    path: str
    levels: tuple[Level, ...]
    labels: Mapping[Level, str] = field(default_factory=dict)
    requires: Mapping[str, tuple[Level, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9_]*", self.name) or self.name in RESERVED:
            raise InputError(
                f"'{self.name}' cannot name a factor: use lower-case letters, digits and _, "
                f"and none of {', '.join(sorted(RESERVED))}."
            )
        try:
            check_path(self.path)
        except InputError as error:
            raise InputError(f"factor '{self.name}': {error}") from error
        object.__setattr__(self, "levels", tuple(self.levels))
        if len(set(map(repr, self.levels))) != len(self.levels) or len(self.levels) < 2:
            raise InputError(f"factor '{self.name}' needs at least two different levels, given: {self.levels!r}.")
        for level in self.levels:
            if not isinstance(level, str | int | float | bool | None):
                raise InputError(
                    f"factor '{self.name}': a level is a text, a number, true, false or None, not {level!r}."
                )
        if unknown := [level for level in self.labels if level not in self.levels]:
            raise InputError(
                f"factor '{self.name}' has labels for {unknown!r}, which are not among its levels {self.levels!r}."
            )

    def label(self, level: Level) -> str:
        """The short text of a level."""
        return self.labels.get(level, f"{self.name} {level}" if isinstance(level, int | float) else str(level))

    def applies(self, levels: Mapping[str, Level]) -> bool:
        """Whether this factor means anything beside these levels of the other factors."""
        return all(levels.get(name) in allowed for name, allowed in self.requires.items())

    def check_level(self, level: Level, base: Mapping[str, Any]) -> None:
        """Raise unless the run config `base` takes `level` in this field as it stands, not converted."""
        config = make_config(with_values(base, {self.path: level}), where=f"factor '{self.name}', level {level!r}")
        read = value_at(config, self.path)
        if read != level or isinstance(read, bool) != isinstance(level, bool):
            raise InputError(
                f"factor '{self.name}': level {level!r} would be read as {read!r} in '{self.path}'; write it so."
            )
        if self.path.endswith(".languages") and isinstance(level, str):
            if not is_group(level):
                raise InputError(f"factor '{self.name}': {level!r} is not a language group; groups are: {GROUP_FORMS}.")
            group_languages(level, ())


def with_values(base: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of nested config data with dotted fields set."""
    data = _copied(base)
    for path, value in values.items():
        set_value(data, path, value)
    return data


def value_at(config: RunConfig, path: str) -> Any:
    """The value of a dotted field."""
    value: Any = config
    for part in path.split("."):
        value = getattr(value, part)
    return value


def _copied(data: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copied(value) if isinstance(value, Mapping) else value for key, value in data.items()}
