"""A factor: one field of the run config and the levels or the range it takes. Study files declare them.

`designs`, `table` and `sweeps` read them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lvlm.config import RunConfig, check_path, make_config, numeric_type, set_value
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

    It takes `levels`, or any number from the first to the last of a `range`, in which a design places points: evenly,
    or with `log` evenly in the logarithm. The range of a field of whole numbers has whole ends.

    Where a level is no value of one field, `settings` says what each stands for: level -> dotted fields, such as
    `{"frozen": {"instruct.train.tower": "frozen"}, "trained": {...}}`; `path` is then the field that it is about.

    `labels` are short texts for figures. `requires` names the levels of other factors under which this one means
    anything (`{"languages": ("T5", "all")}`): in every other arm it is None and the arm appears once. `nuisance` says
    that its effect is no question of the study, as of a learning rate that is to be good: a search over such factors
    alone may prune.
    """

    name: str
    path: str
    levels: tuple[Level, ...] = ()
    range: tuple[float, float] | None = None
    log: bool = False
    labels: Mapping[Level, str] = field(default_factory=dict)
    requires: Mapping[str, tuple[Level, ...]] = field(default_factory=dict)
    nuisance: bool = False
    settings: Mapping[Level, Mapping[str, Any]] = field(default_factory=dict)

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
        if self.range is not None:
            self._check_range()
        elif self.log:
            raise InputError(f"factor '{self.name}': log says how points lie in a range, and it has none.")
        elif len(set(map(repr, self.levels))) != len(self.levels) or len(self.levels) < 2:
            raise InputError(f"factor '{self.name}' needs at least two different levels, given: {self.levels!r}.")
        for level in self.levels:
            if not isinstance(level, str | int | float | bool | None):
                raise InputError(
                    f"factor '{self.name}': a level is a text, a number, true, false or None, not {level!r}."
                )
        if unknown := [level for level in self.labels if not self.has(level)]:
            raise InputError(
                f"factor '{self.name}' has labels for {unknown!r}, which are not among its levels ({self.said()})."
            )
        self._check_settings()

    @property
    def paths(self) -> tuple[str, ...]:
        """Every dotted field that a level sets."""
        return tuple(dict.fromkeys(path for fields in self.settings.values() for path in fields)) or (self.path,)

    def fields(self, level: Level) -> dict[str, Any]:
        """What a level sets: dotted field -> value."""
        return dict(self.settings[level]) if self.settings else {self.path: level}

    @property
    def is_continuous(self) -> bool:
        """Whether it has a range instead of levels."""
        return self.range is not None

    def has(self, level: Level) -> bool:
        """Whether this is one of its levels, or lies in its range."""
        if self.range is None:
            return level in self.levels
        if isinstance(level, bool) or not isinstance(level, int | float) or not math.isfinite(level):
            return False
        return self.range[0] <= level <= self.range[1] and (not self._is_whole or level == int(level))

    def said(self) -> str:
        """Its levels or its range, for a message."""
        return repr(self.levels) if self.range is None else f"numbers from {self.range[0]} to {self.range[1]}"

    def at(self, share: float) -> Level:
        """What lies `share` (from 0 up to 1, 1 itself not) of the way through the levels or the range: levels in equal
        parts, numbers to about a thousandth of the range."""
        if self.range is None:
            return self.levels[int(share * len(self.levels))]
        low, high = self.range
        end = high + 1 if self._is_whole else high
        x = math.exp(math.log(low) + share * math.log(end / low)) if self.log else low + share * (end - low)
        return min(int(x), int(high)) if self._is_whole else self.rounded(x)

    def rounded(self, number: float) -> float:
        """A number of the range to about a thousandth of it."""
        assert self.range is not None
        if self._is_whole:
            return int(number)
        low, high = self.range
        rounded = float(f"{number:.3g}") if self.log else round(number, 3 - math.floor(math.log10(high - low)))
        return min(max(rounded, low), high)

    def scaled(self, number: float) -> float:
        """Where a number lies in the range, from -1 to 1; in the logarithm with `log`."""
        assert self.range is not None
        low, high, x = (math.log(one) if self.log else one for one in (*self.range, number))
        return (2 * x - low - high) / (high - low)

    @property
    def _is_whole(self) -> bool:
        return numeric_type(self.path) is int

    def _check_range(self) -> None:
        assert self.range is not None
        if self.levels:
            raise InputError(f"factor '{self.name}': give levels or a range, not both.")
        kind = numeric_type(self.path)
        if kind is None:
            raise InputError(
                f"factor '{self.name}': a range needs a field that is a number, which '{self.path}' is not."
            )
        ends = tuple(self.range)
        numbers = [end for end in ends if isinstance(end, int | float) and not isinstance(end, bool)]
        if len(numbers) != 2 or len(ends) != 2 or not -math.inf < numbers[0] < numbers[1] < math.inf:
            raise InputError(
                f"factor '{self.name}': a range is a lower and a higher number, as in (0.01, 0.99), not {self.range!r}."
            )
        if kind is int and any(number != int(number) for number in numbers):
            raise InputError(f"factor '{self.name}': '{self.path}' holds whole numbers; so do the ends of its range.")
        if self.log and numbers[0] <= 0:
            raise InputError(f"factor '{self.name}': a range with log begins above 0, not at {numbers[0]}.")
        object.__setattr__(self, "range", (kind(numbers[0]), kind(numbers[1])))

    def _check_settings(self) -> None:
        if self.settings and (self.range is not None or set(self.settings) != set(self.levels)):
            raise InputError(
                f"factor '{self.name}': settings say what each of its levels stands for ({self.said()}), and no other; "
                f"given: {tuple(self.settings)!r}."
            )
        for level, fields in self.settings.items():
            try:
                for path in fields:
                    check_path(path)
            except InputError as error:
                raise InputError(f"factor '{self.name}', level {level!r}: {error}") from error

    def label(self, level: Level) -> str:
        """The short text of a level."""
        return self.labels.get(level, f"{self.name} {level}" if isinstance(level, int | float) else str(level))

    def applies(self, levels: Mapping[str, Level]) -> bool:
        """Whether this factor means anything beside these levels of the other factors."""
        return all(levels.get(name) in allowed for name, allowed in self.requires.items())

    def check_level(self, level: Level, base: Mapping[str, Any]) -> None:
        """Raise unless the run config `base` takes `level` in this field as it stands, not converted."""
        config = make_config(with_values(base, self.fields(level)), where=f"factor '{self.name}', level {level!r}")
        if self.settings:
            return
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
