"""Designs of whole levels: the full grid, one factor at a time, and a fraction that keeps one interaction."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product

from ablations.designs.design import Design, Levels, check_known, chosen_levels
from ablations.factors import Factor, Level
from lvlm.errors import InputError


@dataclass(frozen=True)
class FullGrid(Design):
    """Every combination: all interactions are clear."""

    def _raw(self, factors: Sequence[Factor], baseline: Levels) -> Iterable[Levels]:
        return _crossed({factor.name: chosen_levels(factor, {}, "FullGrid") for factor in factors})


@dataclass(frozen=True, kw_only=True)
class OneAtATime(Design):
    """The baseline, and arms that differ from it in one factor. Cheap, and blind to interactions.

    `levels` narrows what is tried: factor name -> levels. A factor that is not named takes all of its levels; one with
    a range takes those that are named.
    """

    levels: Mapping[str, Sequence[Level]] = field(default_factory=dict)

    def _raw(self, factors: Sequence[Factor], baseline: Levels) -> Iterable[Levels]:
        check_known(self.levels, factors, "OneAtATime")
        for factor in factors:
            for level in chosen_levels(factor, self.levels, "OneAtATime"):
                yield {**baseline, factor.name: level}

    def tells_apart(self, factors: Sequence[Factor], baseline: Levels) -> list[str]:
        """One line: no arm differs in two factors, so that every interaction is in every effect."""
        names = ", ".join(factor.name for factor in factors)
        if len(factors) == 1:
            return super().tells_apart(factors, baseline)
        return [
            f"can tell apart: the effects of {names}, each at the baseline of the others; confounded with them are all "
            "interactions, since no arm differs in two factors"
        ]


@dataclass(frozen=True, kw_only=True)
class KeepInteraction(Design):
    """A fraction of the grid: main effects and the interaction of the two factors in `keep` are clear of each other.

    Every combination of the two kept factors is run at the baseline of the others. Each other level of each other
    factor is run beside the combinations of the levels in `beside` (kept factor -> some of its levels, the baseline
    among them; all where not named), so that every level compared is seen beside the same combinations: an effect is a
    mean of pairs of arms that differ in nothing else (`contrasts.main_effect`; the interaction that is kept:
    `contrasts.interaction`). Confounded are the interactions with the factors outside `keep`.
    """

    keep: tuple[str, str]
    beside: Mapping[str, Sequence[Level]] = field(default_factory=dict)

    def _raw(self, factors: Sequence[Factor], baseline: Levels) -> Iterable[Levels]:
        check_known(self.keep, factors, "KeepInteraction")
        if unknown := [name for name in self.beside if name not in self.keep]:
            raise InputError(
                f"KeepInteraction: beside names {', '.join(unknown)}, which is not among the kept factors."
            )
        kept = [factor for factor in factors if factor.name in self.keep]
        for factor in kept:
            if baseline[factor.name] not in chosen_levels(factor, self.beside, "KeepInteraction"):
                raise InputError(
                    f"KeepInteraction: beside[{factor.name!r}] needs the baseline {baseline[factor.name]!r}."
                )
        every = {factor.name: chosen_levels(factor, {}, "KeepInteraction") for factor in factors}
        yield from ({**baseline, **levels} for levels in _crossed({f.name: every[f.name] for f in kept}))
        fewer = list(_crossed({f.name: self.beside.get(f.name, f.levels) for f in kept}))
        for factor in (factor for factor in factors if factor.name not in self.keep):
            for level, combination in product(every[factor.name], fewer):
                yield {**baseline, **combination, factor.name: level}


def _crossed(levels: Mapping[str, Sequence[Level]]) -> Iterable[Levels]:
    return (dict(zip(levels, combination, strict=True)) for combination in product(*levels.values()))
