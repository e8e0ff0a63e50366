"""Figures of the pivot studies, from what `ablations.transfer` computes. Notebook 05 calls them."""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from ablations.intervals import Interval
from ablations.plots import COLOURS, LEVEL_NOTE, MARKERS, METRIC_LABELS, STYLE


def pairs_figure(curve: pd.DataFrame, *, level: float | None = 90.0) -> Figure:
    """A panel for each metric: its mean in the target language over the number of pairs, a line for each target.

    `curve` as `transfer.curves` gives it; `level` draws a line across fidelity.
    """
    metrics, numbers = list(dict.fromkeys(curve["metric"])), sorted(curve["pairs"].unique())
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            1, len(metrics), figsize=(1 + 4.2 * len(metrics), 4.2), sharey=True, squeeze=False, layout="constrained"
        )
        for axis, metric in zip(axes[0], metrics, strict=True):
            for code, own in curve[curve["metric"] == metric].groupby("target", sort=False):
                tier, ordered = str(own["tier"].iloc[0]), own.sort_values("pairs")
                x = [numbers.index(k) for k in ordered["pairs"]]
                style: dict[str, Any] = {"color": COLOURS[tier], "marker": MARKERS[tier], "markersize": 5}
                axis.plot(x, ordered["estimate"], label=f"{code} ({tier})", **style)
                axis.fill_between(x, ordered["low"], ordered["high"], color=COLOURS[tier], alpha=0.15, linewidth=0)
            if metric == "fidelity" and level is not None:
                axis.axhline(level, color="#222222", linewidth=0.8, linestyle="--")
            axis.set_xticks(range(len(numbers)), [f"{k:,}" for k in numbers])
            axis.set(title=METRIC_LABELS.get(metric, metric), xlabel="translated pairs", ylim=(-3, 103))
        axes[0, 0].legend()
        figure.supxlabel(LEVEL_NOTE, fontsize=8.5)
    plt.close(figure)
    return figure


def alignment_figure(points: pd.DataFrame, found: Interval, *, measure: str = "retrieval") -> Figure:
    """Transfer over measured alignment, a point for each run, a colour for each arm; and the pivot's score over the
    same alignment, which must be level for the first to speak of transfer."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
        for axis, column, label in zip(
            axes, ("transfer", "pivot score"), ("transfer ratio, target / pivot", "score in the pivot (%)"), strict=True
        ):
            for arm, own in points.groupby("arm", sort=False):
                axis.scatter(own["alignment"], own[column], s=28, label=arm, alpha=0.85)
            axis.set(xlabel=f"{measure} of parallel sentences (%)", ylabel=label)
        interval = f" ({found.low:.2f} to {found.high:.2f})" if found.low == found.low else ""
        axes[0].set_title(f"r = {found.estimate:.2f}{interval}")
        axes[1].set_title("does the control match?")
        axes[0].legend(fontsize=7.5)
    plt.close(figure)
    return figure
