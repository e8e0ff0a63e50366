"""Curves: the response to a continuous factor with its optimum, and what a number of seeds can see."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from ablations.contrasts import groups
from ablations.plots import style
from ablations.table import Results

if TYPE_CHECKING:
    from ablations.response import Response


def response(
    results: Results,
    factor: str,
    *,
    metric: str = "score",
    in_groups: Sequence[str] | None = None,
    width: float = style.PAGE_INCHES,
) -> Figure:
    """A smooth curve over a factor of numbers, with its band and the interval of its optimum, a panel per group."""
    names = list(in_groups) if in_groups is not None else groups(results, by="tier")
    found = [results.response(factor, metric=metric, group=name) for name in names]
    across = 2 if style.is_narrow(width) else min(4, len(names))
    down = -(-len(names) // across)
    with plt.rc_context(style.STYLE):
        size = (width, 0.35 + 1.55 * down)
        figure, axes = plt.subplots(down, across, figsize=size, sharex=True, squeeze=False, layout="constrained")
        for ax, name, one in zip(axes.flat, names, found, strict=False):
            _draw(ax, one, name)
        reach = max(ax.get_ylim()[1] - ax.get_ylim()[0] for ax in axes.flat[: len(names)])
        for number, ax in enumerate(axes.flat):
            if number >= len(names):
                ax.set_visible(False)
                continue
            middle = sum(ax.get_ylim()) / 2
            ax.set_ylim(middle - 0.56 * reach, middle + 0.5 * reach)  # as many points to the inch in each panel
            _optimum(ax, found[number], names[number])
            if number + across >= len(names):
                ax.tick_params(labelbottom=True)
                ax.set(xlabel=style.titled(factor))
            if number % across == 0:
                ax.set(ylabel=style.unit(metric))
            if found[number].grid.max() <= 1:
                ax.xaxis.set_major_formatter(PercentFormatter(1.0))
        seeds = sorted({one.n_seeds for one in found})
        note = (
            f"Points: means with 95 % t intervals over seeds. Line and band: {found[0].method}, 95 %. Bar at the foot: "
            "95 % interval of the best level, its mark the estimate. Panels have the same scale and other origins. "
            f"{style.sample_said(results)}."
        )
        alt = "; ".join(f"{style.group_title(name)}: {said(one)}" for name, one in zip(names, found, strict=True))
        title = f"{style.metric_title(metric)} along {factor.replace('_', ' ')}"
        counted = (
            "1 seed" if seeds == [1] else f"{' to '.join(str(n) for n in dict.fromkeys((seeds[0], seeds[-1])))} seeds"
        )
        return style.finish(figure, f"{alt}.", title=f"{title}: {counted}", note=note)


def said(one: Response) -> str:
    """Where the optimum of a response lies, in words."""
    best = one.optimum
    if not np.isfinite(best.estimate):
        return f"no optimum ({one.reason or best.reason})"
    percent = one.grid.max() <= 1
    number = (lambda x: f"{x:.0%}") if percent else (lambda x: f"{x:.3g}")
    bounds = f" [{number(best.low)}, {number(best.high)}]" if np.isfinite(best.low) else ""
    return f"best at {number(best.estimate)}{bounds}, {one.interior}"


def _draw(ax: Axes, one: Response, name: str) -> None:
    key = name.rpartition("/")[2]
    colour, marker = style.COLOURS.get(key, style.INK), style.MARKERS.get(key, "o")
    if np.isfinite(one.low).any():
        ax.fill_between(one.grid, one.low, one.high, color=colour, alpha=0.2, linewidth=0)
    ax.plot(one.grid, one.estimate, color=colour, linewidth=1.3)
    points = one.points
    bars = np.nan_to_num(np.abs(points[["low", "high"]].to_numpy(dtype=float).T - points["mean"].to_numpy(dtype=float)))
    ax.errorbar(
        points["level"].astype(float), points["mean"], yerr=bars, fmt=marker, color=colour, markersize=4,
        elinewidth=0.9, markeredgecolor="white", markeredgewidth=0.3,
    )  # fmt: skip
    ax.set_title(style.group_title(name))


def _optimum(ax: Axes, one: Response, name: str) -> None:
    """The interval of the best level along the foot of a panel, and its verdict."""
    best = one.optimum
    bottom, top = ax.get_ylim()
    foot = bottom + 0.045 * (top - bottom)
    if np.isfinite(best.low):
        ax.plot([best.low, best.high], [foot, foot], color=style.INK, linewidth=2.2, solid_capstyle="butt", zorder=4)
    if np.isfinite(best.estimate):
        ax.plot(best.estimate, foot, marker="d", color="white", markeredgecolor=style.INK, markersize=5, zorder=5)
    place = {"transform": ax.transAxes, "ha": "right", "va": "bottom", "fontsize": style.NOTE_POINTS}
    ax.text(0.99, 0.085, one.interior, color=style.FAINT, **place)
