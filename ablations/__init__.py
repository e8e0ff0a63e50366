"""Ablations: factors, designs and studies, and how to read what a sweep found.

Names are loaded when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ablations.contrasts import Effect, adjust, effects, equivalence, interaction, main_effect
    from ablations.designs import (
        FractionalFactorial,
        FullGrid,
        GeneralizedSubset,
        KeepInteraction,
        OneAtATime,
        Search,
        SpaceFilling,
    )
    from ablations.factors import Factor
    from ablations.resampling import item_bootstrap
    from ablations.studies import Arm, Cell, Expectation, Study, list_studies, load_study
    from ablations.table import Results, load_results

__all__ = [
    "Arm",
    "Cell",
    "Effect",
    "Expectation",
    "Factor",
    "FractionalFactorial",
    "FullGrid",
    "GeneralizedSubset",
    "KeepInteraction",
    "OneAtATime",
    "Results",
    "Search",
    "SpaceFilling",
    "Study",
    "adjust",
    "effects",
    "equivalence",
    "interaction",
    "item_bootstrap",
    "list_studies",
    "load_results",
    "load_study",
    "main_effect",
]

# No name here is also that of a module of this package: importing that module would put it in the name's place.
_HOME = {
    **dict.fromkeys(("FractionalFactorial", "FullGrid", "GeneralizedSubset"), "designs"),
    **dict.fromkeys(("KeepInteraction", "OneAtATime", "Search", "SpaceFilling"), "designs"),
    **dict.fromkeys(("Arm", "Cell", "Expectation", "Study", "list_studies", "load_study"), "studies"),
    **dict.fromkeys(("Results", "load_results"), "table"),
    **dict.fromkeys(("Effect", "adjust", "effects", "equivalence", "interaction", "main_effect"), "contrasts"),
    "Factor": "factors",
    "item_bootstrap": "resampling",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'ablations' has no attribute '{name}'")
    return getattr(import_module(f"ablations.{_HOME[name]}"), name)
