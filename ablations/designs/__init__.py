"""Designs: which combinations of levels are run, as a fixed list with the baseline first, and what it can tell apart.

A study names one for the default budget and one for the full budget. A `Search` stands in the place of one: of its arms
the baseline alone is fixed, and `sweeps` proposes the others by the scores of those before.
"""

from ablations.designs.design import Design, Levels, resolve
from ablations.designs.fractions import FractionalFactorial, GeneralizedSubset
from ablations.designs.grids import FullGrid, KeepInteraction, OneAtATime
from ablations.designs.points import SpaceFilling
from ablations.designs.search import Search, in_order

__all__ = [
    "Design",
    "FractionalFactorial",
    "FullGrid",
    "GeneralizedSubset",
    "KeepInteraction",
    "Levels",
    "OneAtATime",
    "Search",
    "SpaceFilling",
    "in_order",
    "resolve",
]
