"""Curves: the response to a continuous factor with its optimum, and what a number of seeds can see."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, PercentFormatter
from numpy.typing import NDArray

from ablations.contrasts import groups
from ablations.plots import style
from ablations.power import MOST
from ablations.published import overlay
from ablations.table import Results

if TYPE_CHECKING:
    from ablations.factors import Level
    from ablations.response import Response


SEEDS = (2, 3, 5, 10, 20, 50, 100)
"""Numbers of seeds that a curve of power is marked at."""


def response(
    results: Results,
    factor: str,
    *,
    metric: str = "score",
    in_groups: Sequence[str] | None = None,
    at: Mapping[str, Level] | None = None,
    published: bool = False,
    width: float = style.PAGE_INCHES,
) -> Figure:
    """A smooth curve over a factor of numbers, with its band and the interval of its optimum, a panel per group; `at`
    holds other factors at a level.

    With `published` the paper's curve is laid over it, shifted and stretched to the mean and the spread of ours.
    """
    names = list(in_groups) if in_groups is not None else groups(results, by="tier")
    style.require(names, "in_groups")
    found = [results.response(factor, metric=metric, group=name, at=at) for name in names]
    across = 2 if style.is_narrow(width) else min(4, len(names))
    down = -(-len(names) // across)
    with plt.rc_context(style.STYLE):
        size = (width, 0.35 + 1.7 * down)
        figure, axes = plt.subplots(down, across, figsize=size, sharex=True, squeeze=False, layout="constrained")
        for ax, name, one in zip(axes.flat, names, found, strict=False):
            _draw(ax, one, name)
            if published and not (theirs := overlay(results, factor, metric=metric, group=name)).empty:
                ax.plot(theirs["level"].astype(float), theirs["value"], **style.PUBLISHED)
        for ax in axes.flat[len(names) :]:
            ax.set_visible(False)
        _panels(axes, found)
        note = (
            f"Points: means with 95 % t intervals over seeds. Line and band: {found[0].method}, 95 %. Bar at the foot: "
            "95 % interval of the best level, its mark the estimate. Panels have the same scale and other origins. "
            + (f"Of other factors: {found[0].beside}. " if found[0].beside else "")
            + f"{style.sample_said(results)}."
        )
        if published:
            note += f" {style.published_said(results, factor, metric, names)}"
        alt = "; ".join(f"{style.group_title(name)}: {said(one)}" for name, one in zip(names, found, strict=True))
        seeds = [one.n_seeds for one in found]
        along = ", ".join(
            [style.phrase(factor), *(results.level_label(name, level) for name, level in (at or {}).items())]
        )
        title = f"{style.metric_title(metric)} along {along}: {style.seeds_between(min(seeds), max(seeds))}"
        return style.finish(figure, f"{alt}.", title=title, note=note)


def power(
    results: Results,
    *,
    difference: float = 1.0,
    metric: str = "score",
    group: str = "multilingual",
    width: float = style.COLUMN_INCHES,
) -> Figure:
    """The smallest difference that a number of seeds sees with 80 % power, from the noise of these runs."""
    found = results.power(difference, metric=metric, group=group)
    curve = found.curve
    lines = [
        ("these_languages", "for these languages", "-", "o"),
        ("languages_like_these", "for languages like these", "--", "s"),
    ]
    with plt.rc_context(style.STYLE | {"axes.grid.axis": "both"}):
        figure, ax = plt.subplots(figsize=(width, 2.5), layout="constrained")
        handles: list[Line2D] = []
        for (column, label, dash, marker), colour in zip(
            lines, (style.COLOURS["T5"], style.COLOURS["T1"]), strict=True
        ):
            if column in curve and curve[column].notna().any() and (column != lines[1][0] or found.n_languages > 1):
                look: dict[str, Any] = {"color": colour, "linestyle": dash, "linewidth": 1.3, "marker": marker}
                at_ticks = [row for row, seeds in enumerate(curve["seeds"]) if seeds in SEEDS]
                ax.plot(curve["seeds"], curve[column], markersize=3.5, markevery=at_ticks, **look)
                handles.append(Line2D([], [], label=label, markersize=3.5, **look))
        ax.axhline(difference, color=style.INK, linewidth=0.8, linestyle=(0, (4, 3)))
        ax.axvline(found.n_seeds, color="#999999", linewidth=0.8)
        ax.set(xlabel="seeds per arm", ylabel="smallest visible\ndifference (points)", xscale="log", yscale="log")
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_major_formatter("{x:g}")
        shown = [number for number in SEEDS if number <= curve["seeds"].max()]
        ax.set_xticks(shown, [str(number) for number in shown])
        ax.minorticks_off()
        style.legend(figure, handles, width=width, beside="")
        dashed = f"{difference:g} point{'s' if difference != 1 else ''}"
        note = (
            f"{found.power:.0%} power, two-sided 5 %, paired by seed. Dashed: {dashed}; grey: the seeds of this study. "
            f"Pilot: {style.counted(found.n_arms, found.n_arms, 'comparisons')}, {style.sample_said(results)}."
        )
        own = curve[curve["seeds"] == found.n_seeds].iloc[0]
        alt = (
            f"The {found.n_seeds} seeds of this study see {own['these_languages']:.1f} points for these languages; "
            f"{dashed} takes {found.seeds_here or f'more than {MOST}'} seeds."
        )
        title = f"What seeds can see: {metric}, {style.group_title(group)}"
        return style.finish(figure, alt, title=title, note=note)


def said(one: Response) -> str:
    """Where the optimum of a response lies, in words."""
    if not np.isfinite(one.optimum.estimate):
        return f"no optimum ({one.reason})"
    return f"best at {' '.join(filter(None, best_said(one)))}, {one.interior}"


def best_said(one: Response) -> tuple[str, str]:
    """The best level of a response, a dash where there is none, and its interval, empty where there is none."""
    best, form = one.optimum, level_form(one)
    if np.isnan(best.estimate):
        return "–", ""
    bounds = f"[{best.low:{form}}, {best.high:{form}}]" if np.isfinite(best.low) else ""
    return f"{best.estimate:{form}}", bounds


def level_form(one: Response) -> str:
    """How a level is written: a share in percent, a large number whole."""
    most = one.grid.max()
    return ".0%" if most <= 1 else ",.0f" if most >= 100 else ".3g"


def _draw(ax: Axes, one: Response, name: str) -> None:
    key = name.rpartition("/")[2]
    colour, marker = style.COLOURS.get(key, style.INK), style.MARKERS.get(key, "o")
    if np.isfinite(one.low).any():
        ax.fill_between(one.grid, one.low, one.high, color=colour, alpha=0.2, linewidth=0)
    ax.plot(one.grid, one.estimate, color=colour, linewidth=1.3)
    points = one.points
    bars = np.nan_to_num(np.abs(points[["low", "high"]].to_numpy(dtype=float).T - points["mean"].to_numpy(dtype=float)))
    ax.errorbar(
        points["level"].astype(float), points["mean"], yerr=bars, fmt=marker, color=colour, elinewidth=0.9,
        markersize=6 if key == "multilingual" else 4, markeredgecolor="white", markeredgewidth=0.3,
    )  # fmt: skip
    ax.set_title(style.group_title(name))


FULL = 104.0
"""Percent: a panel ends a little above all, where no value of its own goes beyond."""


def _panels(axes: NDArray[Any], found: Sequence[Response]) -> None:
    """As many points to the inch in each panel, room for the optimum at its foot, and labels at the outer ones."""
    panels, across = list(axes.flat[: len(found)]), axes.shape[1]
    reach = max(ax.get_ylim()[1] - ax.get_ylim()[0] for ax in panels)
    for number, (ax, one) in enumerate(zip(panels, found, strict=True)):
        top = min(sum(ax.get_ylim()) / 2 + 0.5 * reach, max(FULL, ax.get_ylim()[1]))
        ax.set_ylim(top - 1.24 * reach, top)
        _optimum(ax, one)
        if number + across >= len(panels):
            ax.tick_params(labelbottom=True)
            ax.set(xlabel=style.titled(one.factor))
        if number % across == 0:
            ax.set(ylabel=style.unit(one.metric))
        if one.grid.max() <= 1:
            ax.xaxis.set_major_formatter(PercentFormatter(1.0))


def _optimum(ax: Axes, one: Response) -> None:
    """The interval of the best level along the foot of a panel, and its verdict."""
    best = one.optimum
    bottom, top = ax.get_ylim()
    foot = bottom + 0.05 * (top - bottom)
    if np.isfinite(best.low):
        ax.plot([best.low, best.high], [foot, foot], color=style.INK, linewidth=2.2, solid_capstyle="butt", zorder=4)
    if np.isfinite(best.estimate):
        ax.plot(best.estimate, foot, marker="d", color="white", markeredgecolor=style.INK, markersize=5, zorder=5)
    place: dict[str, Any] = {"transform": ax.transAxes, "ha": "right", "va": "bottom", "fontsize": style.NOTE_POINTS}
    ax.text(0.99, 0.085, one.interior, color=style.FAINT, **place)
