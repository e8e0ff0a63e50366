"""Figures of a study's results, with our own intervals: seaborn draws points and lines, never an interval of its own.

Each takes `Results` and returns a matplotlib Figure in the size it is printed in: across a page, or in a column with
`width=COLUMN_INCHES`. The notebooks and the report call them, also as `results.plot.NAME(...)`.
"""

from __future__ import annotations

from ablations.plots.arms import english_against_multilingual, one_factor_arms, pareto
from ablations.plots.curves import power, response
from ablations.plots.expectations import expected
from ablations.plots.fidelities import wrong_language
from ablations.plots.importances import importance
from ablations.plots.maps import confusion, interaction_map, language_map
from ablations.plots.style import COLOURS, COLUMN_INCHES, MARKERS, PAGE_INCHES, VERDICT_COLOURS, alternative, save
from ablations.plots.tiers import by_tier

FIGURES = (
    "by_tier", "response", "importance", "pareto", "english_against_multilingual", "interaction_map", "language_map",
    "expected", "wrong_language", "confusion", "power",
)  # fmt: skip
"""Every figure, by the name of its function."""

__all__ = [
    "COLOURS",
    "COLUMN_INCHES",
    "FIGURES",
    "MARKERS",
    "PAGE_INCHES",
    "VERDICT_COLOURS",
    "alternative",
    "by_tier",
    "confusion",
    "english_against_multilingual",
    "expected",
    "importance",
    "interaction_map",
    "language_map",
    "one_factor_arms",
    "pareto",
    "power",
    "response",
    "save",
    "wrong_language",
]
