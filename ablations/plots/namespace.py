"""The figures of one study's results as `results.plot.NAME(...)`."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from types import MethodType
from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from ablations import plots
from ablations.plots.style import save

if TYPE_CHECKING:
    from ablations.table import Results


class Plots:
    """Every figure of these results: `results.plot.by_tier("languages")`. Tab lists them; `save(figure, stem)` writes
    one as PDF, SVG and PNG."""

    def __init__(self, results: Results) -> None:
        self._results = results

    def __getattr__(self, name: str) -> Callable[..., Figure]:
        if name not in plots.FIGURES:
            raise AttributeError(f"There is no figure '{name}'; figures are: {', '.join(plots.FIGURES)}.")
        return MethodType(getattr(plots, name), self._results)

    def __dir__(self) -> list[str]:
        return sorted([*plots.FIGURES, "save"])

    save = staticmethod(save)

    def __repr__(self) -> str:
        return "\n".join(f"plot.{name}: {_first_line(name)}" for name in plots.FIGURES)

    def _repr_html_(self) -> str:
        rows = (
            f"<tr><td><code>plot.{name}</code></td><td>{escape(_first_line(name))}</td></tr>" for name in plots.FIGURES
        )
        return f"<table><caption>Figures</caption>{''.join(rows)}</table>"


def _first_line(name: str) -> str:
    said = " ".join((getattr(plots, name).__doc__ or "").split())
    return said.partition(". ")[0].partition(": ")[0].rstrip(".")
