"""Designs: which combinations of levels are run, as a fixed list with the baseline first, and what it can tell apart.

A study names one for the default budget and one for the full budget. What chooses its next arm by the scores of others
is a search and no design.
"""

from ablations.designs.design import Design, Levels, resolve
from ablations.designs.fractions import FractionalFactorial, GeneralizedSubset
from ablations.designs.grids import FullGrid, KeepInteraction, OneAtATime
from ablations.designs.points import SpaceFilling

__all__ = [
    "Design",
    "FractionalFactorial",
    "FullGrid",
    "GeneralizedSubset",
    "KeepInteraction",
    "Levels",
    "OneAtATime",
    "SpaceFilling",
    "resolve",
]
