"""Figures of the pivot studies, from what `ablations.transfer` computes. Notebook 05 calls them."""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from ablations.intervals import Interval
from ablations.plots import style


def pairs_figure(curve: pd.DataFrame, *, level: float = 90.0, width: float = style.PAGE_INCHES) -> Figure:
    """A panel for each metric: its mean in the target language over the number of pairs, a line for each target.

    `curve` as `transfer.curves` gives it; `level` draws a line across fidelity.
    """
    metrics, numbers = list(dict.fromkeys(curve["metric"])), sorted(curve["pairs"].unique())
    with plt.rc_context(style.STYLE):
        figure, axes = plt.subplots(
            1, len(metrics), figsize=(width, 2.7), sharey=True, squeeze=False, layout="constrained"
        )
        for axis, metric in zip(axes[0], metrics, strict=True):
            for code in dict.fromkeys(curve["target"]):
                own = curve[(curve["metric"] == metric) & (curve["target"] == code)].sort_values("pairs")
                x, tier = [numbers.index(k) for k in own["pairs"]], str(own["tier"].iloc[0])
                look: dict[str, Any] = {"color": style.COLOURS[tier], "marker": style.MARKERS[tier], "markersize": 3.5}
                axis.plot(x, own["estimate"], label=f"{code} ({tier})", linewidth=1.2, **look)
                axis.fill_between(x, own["low"], own["high"], color=look["color"], alpha=0.15, linewidth=0)
            if metric == "fidelity":
                axis.axhline(level, color=style.INK, linewidth=0.7, linestyle="--")
            axis.set_xticks(range(len(numbers)), [f"{k:,}" for k in numbers], rotation=45)
            title = style.fits(style.METRIC_LABELS.get(metric, metric), 0.8 * width / len(metrics))
            axis.set(title=title, xlabel="translated pairs", ylim=(-3, 103))
        style.legend(figure, axes[0, 0].get_legend_handles_labels()[0], width=width, beside="")
        ends = curve.sort_values("pairs").groupby(["metric", "target"], sort=False)["estimate"].agg(["first", "last"])
        said = [f"{metric} of {code} from {one:.0f} to {other:.0f}" for (metric, code), one, other in ends.itertuples()]
        alt = f"From {numbers[0]:,} to {numbers[-1]:,} translated pairs, in percent: {', '.join(said)}."
        seeds = style.counted(curve["seeds"].min(), curve["seeds"].max(), "seeds")
        note = f"{style.LEVEL_NOTE} Dashed: {level:g} %. n = {seeds}."
        return style.finish(figure, alt, title="What pairs of a language do for it", note=note)


def alignment_figure(
    points: pd.DataFrame, found: Interval, *, measure: str = "retrieval", width: float = style.PAGE_INCHES
) -> Figure:
    """Transfer over measured alignment, a point for each run, a colour for each arm; and the pivot's score over the
    same alignment, which must be level for the first to speak of transfer."""
    with plt.rc_context(style.STYLE):
        figure, axes = plt.subplots(1, 2, figsize=(width, 2.9), layout="constrained")
        panels = (("transfer", "transfer ratio, target / pivot"), ("pivot score", "score in the pivot (%)"))
        for axis, (column, label) in zip(axes, panels, strict=True):
            for number, arm in enumerate(dict.fromkeys(points["arm"])):
                own = points[points["arm"] == arm]
                colour, marker = (some[number % len(some)] for some in (style.ARM_COLOURS, style.ARM_MARKERS))
                axis.scatter(own["alignment"], own[column], s=14, color=colour, marker=marker, label=arm)
            axis.set(xlabel=f"{measure} of parallel sentences (%)", ylabel=label)
        interval = f" ({found.low:.2f} to {found.high:.2f})" if found.low == found.low else ""
        axes[0].set_title(f"r = {found.estimate:.2f}{interval}")
        axes[1].set_title("does the control match?")
        style.legend(figure, axes[0].get_legend_handles_labels()[0], width=width, beside="")
        alt = f"Points over {measure}, one for each run: left the transfer ratio, right the score in the pivot."
        note = "Correlation over the arms of a seed, mean over seeds through Fisher's z with a 95 % t interval."
        return style.finish(figure, alt, title="Transfer against measured alignment", note=note)
