"""What a list of arms can tell apart: the columns of its main effects and interactions of two factors, and which of
them look alike. Called by `designs.design`; interactions of three and more factors are taken to be none.

A main effect has a column for each level but the first (that of the baseline): 1 where the arm has the level, less the
mean over the levels, so that its coefficient is the level against the baseline. A range has one column from -1 to 1.
Where a factor does not apply its columns are 0. An interaction has the products of such columns, made for the arms to
which both factors apply.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from ablations.factors import Factor, Level

Arms = Sequence[Mapping[str, Level]]
Columns = NDArray[np.float64]
"""(arms, columns)."""
ALIKE = 1e-6
"""Cosines this near to 1 (or to 0) are taken for it."""
SHOWN = 8
"""Confounded pairs that a line names; of more it says how many there are."""


@dataclass(frozen=True)
class Aliasing:
    """Effects by name: `share` is a main effect, `languages x share` an interaction.

    `confounded` are pairs that no analysis of these arms can separate, at least for some of their levels; `mixed` are
    pairs that a fit of both separates, though neither is estimated well without the other (but for a factor and an
    interaction of its own, which are so wherever levels are seen unequally often). `lost` main effects have no
    contrast of their own, as their levels change with those of other factors alone.
    """

    mains: tuple[str, ...]
    interactions: tuple[str, ...]
    lost: tuple[str, ...]
    confounded: tuple[tuple[str, str], ...]
    mixed: tuple[tuple[str, str], ...]

    @property
    def clear(self) -> tuple[str, ...]:
        """Main effects that no interaction of two factors can pass for."""
        taken = {name for pair in self.confounded for name in pair}
        return tuple(name for name in self.mains if name not in taken and name not in self.lost)

    def lines(self) -> list[str]:
        """What can be told apart, and what is confounded with what."""
        said = []
        if self.clear:
            of_two = ", clear of every interaction of two factors" if self.interactions else ""
            said.append(f"can tell apart: the main effects of {', '.join(self.clear)}{of_two}")
        taken = [name for name in self.mains if name not in (*self.clear, *self.lost)]
        if taken:
            said.append(
                f"can tell apart: the main effects of {', '.join(taken)}, if the interactions they are confounded with "
                "are none"
            )
        if self.lost:
            said.append(f"cannot tell apart: the main effects of {', '.join(self.lost)}: their levels change together")
        said += _pairs("confounded", self.confounded)
        said += _pairs("mixed in part", self.mixed)
        free = [name for name in self.interactions if not any(name in pair for pair in (*self.confounded, *self.mixed))]
        if free:
            said.append(f"interactions that are clear: {_some(free)}")
        return said


def find_aliasing(factors: Sequence[Factor], arms: Arms) -> Aliasing:
    """Look at every pair of effects with all (other) main effects taken out of both."""
    mains = {factor.name: main_columns(factor, arms) for factor in factors}
    mains = {name: columns for name, columns in mains.items() if columns.shape[1]}
    products = {
        f"{one.name} x {other.name}": columns
        for one, other in combinations(factors, 2)
        if (columns := interaction_columns(one, other, arms)).shape[1]
    }
    lost: list[str] = []
    confounded: list[tuple[str, str]] = []
    mixed: list[tuple[str, str]] = []
    for name, columns in mains.items():
        others = _with_mean([found for other, found in mains.items() if other != name], len(arms))
        own = _span(_without(columns, others))
        if own.shape[1] < columns.shape[1]:
            lost.append(name)
        for product, found in products.items():
            _note((name, product), own, _span(_without(found, others)), confounded, mixed)
    beside = _with_mean(mains.values(), len(arms))
    left = {name: _span(_without(columns, beside)) for name, columns in products.items()}
    for one, other in combinations(products, 2):
        _note((one, other), left[one], left[other], confounded, mixed)
    return Aliasing(tuple(mains), tuple(products), tuple(lost), tuple(confounded), tuple(mixed))


def main_columns(factor: Factor, arms: Arms) -> Columns:
    """The columns of a factor's main effect, 0 where it does not apply; none where it does not vary."""
    return _columns(factor, arms, [factor.applies(arm) for arm in arms])


def interaction_columns(one: Factor, other: Factor, arms: Arms) -> Columns:
    """The columns of the interaction of two factors, 0 where one of them does not apply."""
    both = [one.applies(arm) and other.applies(arm) for arm in arms]
    first, second = (_columns(factor, arms, both) for factor in (one, other))
    products = first[:, :, None] * second[:, None, :]
    return products.reshape(len(arms), first.shape[1] * second.shape[1])


def _columns(factor: Factor, arms: Arms, where: Sequence[bool]) -> Columns:
    places = [place for place, here in enumerate(where) if here]
    levels = [arms[place][factor.name] for place in places]
    seen = list(dict.fromkeys(levels))
    if len(seen) < 2:
        return np.zeros((len(arms), 0))
    if factor.is_continuous:
        own = np.array([[factor.scaled(level)] for level in levels])  # type: ignore[arg-type]  # a range has numbers
    else:
        own = np.array([[(level == one) - 1 / len(seen) for one in seen[1:]] for level in levels])
    columns = np.zeros((len(arms), own.shape[1]))
    columns[places] = own
    return columns


def _with_mean(columns: Iterable[Columns], arms: int) -> Columns:
    return np.hstack([np.ones((arms, 1)), *columns])


def _without(columns: Columns, others: Columns) -> Columns:
    """What of the columns `others` cannot give."""
    basis = _span(others)
    return columns - basis @ (basis.T @ columns)


def _span(columns: Columns) -> Columns:
    """An orthonormal basis of what the columns span."""
    if not columns.size:
        return np.zeros((len(columns), 0))
    left, sizes, _ = np.linalg.svd(columns, full_matrices=False)
    return np.asarray(left[:, sizes > ALIKE])


def _note(
    pair: tuple[str, str],
    one: Columns,
    other: Columns,
    confounded: list[tuple[str, str]],
    mixed: list[tuple[str, str]],
) -> None:
    """File a pair by the largest cosine between what its effects span."""
    if not one.size or not other.size:
        return
    cosine = float(np.linalg.svd(one.T @ other, compute_uv=False)[0])
    if cosine > 1 - ALIKE:
        confounded.append(pair)
    elif cosine > ALIKE and pair[0] not in pair[1].split(" x "):
        mixed.append(pair)


def _pairs(title: str, pairs: Sequence[tuple[str, str]]) -> list[str]:
    return [f"{title}: {_some([f'{one} with {other}' for one, other in pairs])}"] if pairs else []


def _some(names: Sequence[str]) -> str:
    more = f"; and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return "; ".join(names[:SHOWN]) + more
