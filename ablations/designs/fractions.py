"""Fractions of a grid, by constructions of pyDOE3: two levels with a stated resolution, and mixed levels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import combinations
from string import ascii_lowercase
from typing import Literal

from ablations.designs.design import Design, Levels, check_known, chosen_levels
from ablations.factors import Factor, Level
from lvlm.errors import InputError

RESOLUTIONS = (3, 4, 5)
MOST_FACTORS = 11
"""More would take long to look through, and hundreds of arms at resolution 5."""


@dataclass(frozen=True, kw_only=True)
class FractionalFactorial(Design):
    """A regular fraction of the grid of two levels for each factor, the smallest of its resolution.

    Resolution 3: main effects are clear of each other, and confounded with interactions of two factors. 4: clear of
    those too, which are confounded with each other. 5: interactions of two factors are clear as well. Each effect is
    seen in all arms, half of which have each level, so that n arms tell as much of one factor as an experiment of n
    arms on that factor alone; no two arms need differ in one factor alone.

    `levels` names two levels, the baseline's among them, of factors that have more or a range.
    """

    resolution: Literal[3, 4, 5] = 4
    levels: Mapping[str, Sequence[Level]] = field(default_factory=dict)

    def _raw(self, factors: Sequence[Factor], baseline: Levels) -> Iterable[Levels]:
        from pyDOE3 import fracfact  # which imports scipy's statistics, a second that most studies do without

        check_known(self.levels, factors, "FractionalFactorial")
        if self.resolution not in RESOLUTIONS:
            raise InputError(f"FractionalFactorial: resolution is one of 3, 4 and 5, not {self.resolution!r}.")
        if len(factors) > MOST_FACTORS:
            raise InputError(f"FractionalFactorial takes at most {MOST_FACTORS} factors, not {len(factors)}.")
        pairs = [_baseline_first(factor, baseline, self.levels, "FractionalFactorial") for factor in factors]
        for factor, levels in zip(factors, pairs, strict=True):
            if len(levels) != 2:
                raise InputError(
                    f"FractionalFactorial takes factors of two levels, and '{factor.name}' has {len(levels)}. Name two "
                    f"of them (levels={{{factor.name!r}: ...}}), or use GeneralizedSubset."
                )
        # Signs are turned so that the first row, which is as good as any, is the baseline.
        signs = fracfact(" ".join(generators(len(factors), self.resolution)))
        for row in (signs * signs[0]).tolist():
            yield {f.name: levels[sign < 0] for f, levels, sign in zip(factors, pairs, row, strict=True)}


@dataclass(frozen=True, kw_only=True)
class GeneralizedSubset(Design):
    """About one in `reduction` of the arms of the grid, chosen so that the levels of each factor, however many, stay as
    balanced as can be (Surowiec et al. 2017, doi.org/10.1021/acs.analchem.7b00506).

    Main effects can be told apart; interactions are confounded or mixed with them and with each other, as
    `tells_apart` says. `levels` narrows what is tried, and names levels of a factor with a range.
    """

    reduction: int = 2
    levels: Mapping[str, Sequence[Level]] = field(default_factory=dict)

    def _raw(self, factors: Sequence[Factor], baseline: Levels) -> Iterable[Levels]:
        from pyDOE3 import gsd

        check_known(self.levels, factors, "GeneralizedSubset")
        if not isinstance(self.reduction, int) or self.reduction < 2:
            raise InputError(f"GeneralizedSubset: reduction is a whole number, at least 2, not {self.reduction!r}.")
        levels = [_baseline_first(factor, baseline, self.levels, "GeneralizedSubset") for factor in factors]
        most = sorted((len(own) for own in levels), reverse=True)[1] if len(factors) > 1 else 1
        if self.reduction > most:
            raise InputError(
                f"GeneralizedSubset: reduction={self.reduction} is too large for factors of "
                f"{', '.join(str(len(own)) for own in levels)} levels: no two of them would be seen together in all "
                f"their parts. {'Use at most ' + str(most) if most > 1 else 'Use FullGrid'}."
            )
        for row in gsd([len(own) for own in levels], self.reduction).tolist():
            yield {f.name: own[index] for f, own, index in zip(factors, levels, row, strict=True)}


@cache
def generators(factors: int, resolution: int) -> list[str]:
    """How each factor follows from the first ones, in letters (`a b c abc`), with as few of those as the resolution
    allows; the longest words come first, which confounds the fewest short ones."""
    for base in range(1, factors):
        words = [
            frozenset(word) for size in range(base, resolution - 2, -1) for word in combinations(range(base), size)
        ]
        if (found := _words(words, factors - base, resolution)) is not None:
            letters = [ascii_lowercase[index] for index in range(base)]
            return letters + ["".join(ascii_lowercase[index] for index in sorted(word)) for word in found]
    return list(ascii_lowercase[:factors])


def _words(words: Sequence[frozenset[int]], wanted: int, resolution: int) -> list[frozenset[int]] | None:
    """`wanted` of the words, such that every product of some of them with their own factors has at least `resolution`
    letters; None where there are none."""

    def search(start: int, chosen: list[frozenset[int]], sums: list[tuple[frozenset[int], int]]) -> bool:
        if len(chosen) == wanted:
            return True
        for index in range(start, len(words)):
            new = [(words[index] ^ word, size + 1) for word, size in sums]
            if all(len(word) + size >= resolution for word, size in new):
                chosen.append(words[index])
                if search(index + 1, chosen, sums + new):
                    return True
                chosen.pop()
        return False

    chosen: list[frozenset[int]] = []
    return chosen if search(0, chosen, [(frozenset(), 0)]) else None


def _baseline_first(
    factor: Factor, baseline: Levels, narrowed: Mapping[str, Sequence[Level]], design: str
) -> list[Level]:
    """The levels of a factor that a design uses, that of the baseline in front."""
    levels, own = chosen_levels(factor, narrowed, design), baseline[factor.name]
    if own not in levels:
        raise InputError(f"{design}: levels[{factor.name!r}] needs the baseline {own!r}.")
    return [own, *(level for level in levels if level != own)]
