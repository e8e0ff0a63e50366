"""What a study expected, and what came out."""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from ablations.plots import style
from ablations.table import Results
from lvlm.errors import InputError

MARGIN_COLOUR = "#dfe9f2"


def expected(results: Results, *, width: float = style.PAGE_INCHES) -> Figure:
    """Every expectation of the study with its effect and interval, in the marker and colour of its verdict.

    Behind the interval of one that expects little change lies its margin: there the verdict is about the band, not 0.
    """
    style.study_of(results)
    judged = results.verdicts()
    if not judged:
        raise InputError(f"Study '{results.name}' declares no expectations.")
    claims = [style.fits(expectation.claim, 0.47 * width, points=7) for expectation, _ in judged]
    tall = sum(0.13 + 0.115 * (claim.count("\n") + 1) for claim in claims)
    with plt.rc_context(style.STYLE | {"axes.grid.axis": "x"}):
        figure, ax = plt.subplots(figsize=(width, 0.55 + tall), layout="constrained")
        for row, (expectation, found) in enumerate(judged):
            colour = style.VERDICT_COLOURS[found.verdict]
            if (margin := expectation.margin) is not None:
                ax.barh(row, 2 * margin, left=-margin, height=0.72, color=MARGIN_COLOUR, zorder=0)
            if np.isfinite(found.low):
                ax.plot([found.low, found.high], [row, row], color=colour, linewidth=2, solid_capstyle="butt")
            ax.plot(found.points, row, color=colour, **_marker(found.verdict))
        ax.axvline(0, color=style.INK, linewidth=0.8)
        ax.set_yticks(range(len(judged)), claims, fontsize=7)
        ax.set_ylim(len(judged) - 0.4, -0.6)
        ax.set(xlabel="difference (points)")
        seen = {found.verdict for _, found in judged}
        shown: list[Any] = [
            Line2D([], [], linewidth=2, color=colour, label=word, **_marker(word) | {"linestyle": "-"})
            for word, colour in style.VERDICT_COLOURS.items()
            if word in seen
        ]
        if any(expectation.margin is not None for expectation, _ in judged):
            shown.append(Patch(color=MARGIN_COLOUR, label="margin for little change"))
        style.legend(figure, shown, width=width, beside="")
        counts = [f"{sum(found.verdict == word for _, found in judged)} {word}" for word in seen]
        alt = "; ".join(f"{expectation.claim}: {found.text()}" for expectation, found in judged)
        return style.finish(
            figure, f"{', '.join(sorted(counts))}. {alt}.", title=f"What was expected: {style.seeds_said(results)}",
            note="Bars: 95 % two-way (seed x language) t intervals of differences paired by seed. "
            f"{style.sample_said(results)}.",
        )  # fmt: skip


def _marker(verdict: str) -> dict[str, Any]:
    edge = {"markeredgecolor": "white", "markeredgewidth": 0.4} if verdict != "within noise" else {}
    size = 9 if verdict == "within noise" else 6
    return {"marker": style.VERDICT_MARKERS[verdict], "markersize": size, "linestyle": "none", **edge}
