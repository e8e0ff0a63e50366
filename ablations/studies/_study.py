"""What a study is: factors, design, seeds, outcome and expectations, checked when declared. Study files build one.

`sweeps` runs its cells.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, get_args

from ablations.designs import Design, Levels, Search, resolve
from ablations.factors import Factor, Level, with_values
from ablations.outcomes import check_group, check_metric, check_primary
from lvlm.config import FREE_COMPUTE, LABELS, STAGES, RunConfig, fingerprint, load_config, make_config, override
from lvlm.errors import InputError

Budget = Literal["default", "full"]
Direction = Literal["higher", "lower", "little"]
Amount = Literal["samples", "llm_tokens", "images", "flops"]
"""What a stage sees or costs."""
LENGTHS = tuple(f"{stage}.{name}" for stage in STAGES for name in ("epochs", "samples", "steps"))
"""Fields that say how long a stage is."""


@dataclass(frozen=True)
class Arm:
    """One combination of levels. `levels` is None where a factor does not apply."""

    levels: Levels
    label: str


@dataclass(frozen=True)
class Cell:
    """An arm with a seed: one run. `id` is a hash of everything in `config` that can change its result."""

    arm: Arm
    seed: int
    config: RunConfig
    id: str


@dataclass(frozen=True, kw_only=True)
class Expectation:
    """A direction declared before the study is run; the report gives its verdict.

    `arm` and `against` name levels (the rest as in the study's baseline). `group` is `multilingual`, `en`, a tier, a
    language code, or one of these within a task (`reading/en`). `than_group` asks whether the effect is lower (higher)
    in `group` than in `than_group`. `little` expects an effect within `margin` points on both sides.
    """

    claim: str
    metric: str
    group: str
    arm: Mapping[str, Level]
    direction: Direction
    against: Mapping[str, Level] = field(default_factory=dict)
    than_group: str | None = None
    margin: float | None = None

    def __post_init__(self) -> None:
        if self.direction not in get_args(Direction):
            raise InputError(
                f"expectation '{self.claim}': direction is one of "
                f"{', '.join(get_args(Direction))}, not '{self.direction}'."
            )
        if (self.direction == "little") != (self.margin is not None and self.margin > 0):
            raise InputError(
                f"expectation '{self.claim}': give a positive margin (points) with direction 'little', and only there."
            )


@dataclass(frozen=True, kw_only=True)
class Study:
    """A question, what varies and what is expected.

    `base` is the name of a preset (`tiny`), a YAML file or a mapping; `fixed` are dotted fields set on it for all arms.
    The default budget runs `design` with `seeds`, the full one `full_design` with `full_seeds` (each as in the default
    where not given). `primary` is the outcome that the study is about. The first three `expectations` are its
    headlines. With a `Search` in the place of a design arms are chosen by their scores: then nothing is expected, and
    no claim is drawn from effects.

    `held_equal` is what every arm sees as much of as the baseline, stage by stage and seed by seed: the stages of the
    other arms are made shorter or longer to fit (`sweeps.amounts`). With `samples` they are as long as their configs
    say, since these count in samples.
    """

    name: str
    question: str
    base: str | Path | Mapping[str, Any]
    factors: tuple[Factor, ...]
    baseline: Mapping[str, Level]
    design: Design
    seeds: tuple[int, ...] = ()
    primary: str = "score/multilingual"
    held_equal: Amount = "samples"
    fixed: Mapping[str, Any] = field(default_factory=dict)
    full_design: Design | None = None
    full_seeds: tuple[int, ...] | None = None
    expectations: tuple[Expectation, ...] = ()

    def __post_init__(self) -> None:
        try:
            self._check()
        except InputError as error:
            raise InputError(f"study '{self.name}': {error}") from error

    @cached_property
    def base_data(self) -> dict[str, Any]:
        """The base run config with `fixed` applied, as nested data."""
        if isinstance(self.base, Mapping):
            config = make_config(self.base, where="base")
        else:
            named = files("lvlm").joinpath(f"presets/{self.base}.yaml")
            config = load_config(Path(str(named)) if named.is_file() else Path(self.base))
        return with_values(config.model_dump(mode="json"), self.fixed)

    def arm(self, levels: Mapping[str, Level]) -> Arm:
        """The arm with these levels; factors that are not named are as in the baseline."""
        for name, level in levels.items():
            factor = next((factor for factor in self.factors if factor.name == name), None)
            if factor is None:
                raise InputError(
                    f"'{name}' is not a factor of this study; "
                    f"its factors are: {', '.join(f.name for f in self.factors)}."
                )
            if level is not None and not factor.has(level):
                raise InputError(f"{level!r} is not a level of factor '{name}'; its levels are: {factor.said()}.")
        resolved = resolve(self.factors, {**self.baseline, **levels})
        parts = [factor.label(resolved[factor.name]) for factor in self.factors if resolved[factor.name] is not None]
        return Arm(levels=resolved, label=" · ".join(parts))

    @property
    def baseline_arm(self) -> Arm:
        """The arm that the others are compared with."""
        return self.arm({})

    def arms(self, budget: Budget | None = None) -> list[Arm]:
        """The arms of a budget, the baseline first.

        Without one, the environment variable BUDGET decides, else `default`.
        """
        found = self.design_of(budget).combinations(self.factors, dict(self.baseline))
        return [self.arm(levels) for levels in found]

    def design_of(self, budget: Budget | None = None) -> Design:
        """The design of a budget."""
        return (self.full_design or self.design) if _budget(budget) == "full" else self.design

    @property
    def is_searched(self) -> bool:
        """Whether its arms are chosen by their scores."""
        return isinstance(self.design, Search)

    def tells_apart(self, budget: Budget | None = None) -> list[str]:
        """What the arms of a budget can tell apart and what is confounded with what, in lines."""
        return self.design_of(budget).tells_apart(self.factors, dict(self.baseline))

    def cells(self, budget: Budget | None = None, *, overrides: Sequence[str] = ()) -> list[Cell]:
        """All runs, seed by seed: a sweep stopped after any block of a seed is a complete smaller design.

        `overrides` are `key=value` texts on the base config; one that names a factor's field is an error, since it
        would be ignored.
        """
        taken = {"seed": "seed", "name": "name"} | {path: f.name for f in self.factors for path in f.paths}
        for text in overrides:
            if (key := text.partition("=")[0].strip()) in taken:
                raise InputError(
                    f"The override '{text}' sets '{key}', which study '{self.name}' varies itself ({taken[key]})."
                )
        base = override(self.base_data, overrides)
        arms = self.arms(budget)
        return [self._cell(base, arm, seed) for seed in self.seeds_of(budget) for arm in arms]

    def cells_of(self, levels: Mapping[str, Level]) -> list[Cell]:
        """The baseline and the arm with these levels, each with all seeds."""
        arms = (self.baseline_arm, self.arm(levels))
        return [self._cell(self.base_data, arm, seed) for arm in arms for seed in self.seeds]

    def seeds_of(self, budget: Budget | None = None) -> tuple[int, ...]:
        """The seeds of a budget."""
        return (self.full_seeds or self.seeds) if _budget(budget) == "full" else self.seeds

    def _cell(self, base: Mapping[str, Any], arm: Arm, seed: int) -> Cell:
        levels: dict[str, Any] = {}
        for factor in self.factors:
            levels |= factor.fields(arm.levels[factor.name]) if self._is_set(factor, arm) else {}
        name = f"{self.name}: {arm.label}, seed {seed}"
        config = make_config(with_values(base, {**levels, "seed": seed, "name": name}), where=f"arm '{arm.label}'")
        return Cell(arm=arm, seed=seed, config=config, id=cell_id(config))

    @staticmethod
    def _is_set(factor: Factor, arm: Arm) -> bool:
        if arm.levels[factor.name] is not None or None in factor.levels:
            return True
        return bool(factor.requires) and not factor.settings

    def _check(self) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9_]*", self.name):
            raise InputError("a study is named with lower-case letters, digits and _, starting with a letter.")
        names = [factor.name for factor in self.factors]
        paths = [path for factor in self.factors for path in factor.paths]
        if not names or len(set(names)) != len(names) or len(set(paths)) != len(paths):
            raise InputError(
                f"factors need different names and paths, at least one; given: {', '.join(names) or 'none'}."
            )
        if both := sorted(set(paths) & set(self.fixed)):
            raise InputError(f"{', '.join(both)} is both fixed and varied.")
        self._check_requirements()
        if set(self.baseline) != set(names):
            raise InputError(
                f"the baseline names one level for each factor ({', '.join(names)}); given: {dict(self.baseline)!r}."
            )
        check_primary(self.primary)
        if self.held_equal not in get_args(Amount):
            raise InputError(f"held_equal is one of {', '.join(get_args(Amount))}, not '{self.held_equal}'.")
        if self.held_equal != "samples" and (own := sorted(set(paths) & set(LENGTHS))):
            raise InputError(
                f"{', '.join(own)} is varied, and held_equal='{self.held_equal}' sets the length of every stage: leave "
                "out one of the two."
            )
        for seeds in (self.seeds, self.full_seeds or self.seeds):
            if not seeds or len(set(seeds)) != len(seeds) or min(seeds) < 0:
                raise InputError(
                    "seeds are different whole numbers from 0 on, at least one, as in seeds=(0, 1, 2); "
                    f"given: {seeds!r}."
                )
        for factor in self.factors:
            for level in (*factor.levels, *(factor.range or ())):
                factor.check_level(level, self._beside(factor))
        self._check_labels()
        self._check_searches()
        for arm in {arm.label: arm for budget in get_args(Budget) for arm in self.arms(budget)}.values():
            self._cell(self.base_data, arm, self.seeds[0])
        for expectation in self.expectations:
            try:
                check_metric(expectation.metric)
                for group in filter(None, (expectation.group, expectation.than_group)):
                    check_group(group)
            except InputError as error:
                raise InputError(f"expectation '{expectation.claim}': {error}") from error
            arm, against = self.arm(expectation.arm), self.arm(expectation.against)
            if arm.levels == against.levels:
                raise InputError(f"expectation '{expectation.claim}' compares '{arm.label}' with itself.")

    def _check_requirements(self) -> None:
        """What a factor requires are levels of other factors: else it would never apply."""
        by_name = {factor.name: factor for factor in self.factors}
        for factor in self.factors:
            for name, levels in factor.requires.items():
                other = by_name.get(name)
                if other is None or other is factor:
                    raise InputError(
                        f"factor '{factor.name}' requires levels of {name}, which is no other factor here."
                    )
                if not isinstance(levels, tuple | list) or not levels or not all(map(other.has, levels)):
                    raise InputError(
                        f"factor '{factor.name}' requires {levels!r} of '{name}': give some of its levels, as in "
                        f"requires={{'{name}': (...)}}; they are: {other.said()}."
                    )

    def _check_searches(self) -> None:
        designs = [self.design, self.full_design or self.design]
        searches = [design for design in designs if isinstance(design, Search)]
        if not searches:
            return
        if len(searches) < len(designs):
            raise InputError("design and full_design are both searches or both none: their results share a table.")
        if self.expectations:
            raise InputError(
                "a search draws no conclusions, since its arms are chosen by their scores: declare what is expected in "
                "a study with a design."
            )
        for search in searches:
            for name in search.objectives:
                check_primary(name)
            if search.objectives and self.primary not in search.objectives:
                raise InputError(f"primary, '{self.primary}', is one of the search's objectives: {search.objectives}.")
            if search.prune:
                self._check_validates(search.prune)

    def _check_validates(self, prune: str) -> None:
        config = make_config(self.base_data, where="base")
        name, stage = next(reversed(config.every_stage().items()), (None, None))
        if stage is None or stage.validate_every is None or not config.evaluate.tune_corpora:
            raise InputError(
                f"prune='{prune}' compares scores that are taken while training: set {name or 'a stage'}.validate_every"
                " (0.1: ten times in the stage) and evaluate.tune_corpora in base or fixed."
            )

    def _check_labels(self) -> None:
        """Arms are told apart by their labels: in a factor no two levels share one, and no two arms in the study."""
        for factor in self.factors:
            labels = [factor.label(level) for level in factor.levels]
            if same := sorted({label for label in labels if labels.count(label) > 1}):
                raise InputError(f"factor '{factor.name}': two levels have the label '{same[0]}'; give each its own.")
        arms = [arm for budget in get_args(Budget) for arm in self.arms(budget)]
        known: dict[str, Levels] = {}
        for arm in arms:
            if known.setdefault(arm.label, arm.levels) != arm.levels:
                raise InputError(
                    f"two arms have the label '{arm.label}': {known[arm.label]!r} and {arm.levels!r}. "
                    "Give the levels of the factors labels that differ (Factor(labels=...))."
                )

    def _beside(self, factor: Factor) -> dict[str, Any]:
        """The base with the other factors at their baseline: what a single level is checked in."""
        others: dict[str, Any] = {}
        for other in self.factors:
            if other is not factor and (not other.settings or self.baseline[other.name] in other.settings):
                others |= other.fields(self.baseline[other.name])
        return with_values(self.base_data, others)


def cell_id(config: RunConfig) -> str:
    """Identifies everything in a run config that can change a result, the seed included."""
    data = config.model_dump(mode="json", exclude={**dict.fromkeys(LABELS, True), "compute": set(FREE_COMPUTE)})
    return fingerprint(data)


def results_name(study: str, overrides: Sequence[str] = ()) -> str:
    """The folder of a study's results: its name, and with overrides (`key=value`) `NAME@` and a short hash of them.

    Settings that cannot change a result make no other folder.
    """
    changed = override({}, overrides)
    if isinstance(compute := changed.get("compute"), dict):
        changed["compute"] = {key: value for key, value in compute.items() if key not in FREE_COMPUTE}
    changed = {key: value for key, value in changed.items() if value != {} and key not in LABELS}
    return f"{study}@{fingerprint(changed)[:8]}" if changed else study


def _budget(budget: str | None) -> Budget:
    chosen = budget or os.environ.get("BUDGET") or "default"
    if chosen not in get_args(Budget):
        raise InputError(
            f"The budget (argument or environment variable BUDGET) is 'default' or 'full', not '{chosen}'."
        )
    return "full" if chosen == "full" else "default"
