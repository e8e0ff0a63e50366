"""Arms against each other: English against the other languages, and which arms nothing beats in both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ablations.contrasts import Effect, effect, level
from ablations.plots import style
from ablations.table import Results

CROSS: Any = {"color": "#999999", "linewidth": 0.8, "linestyle": (0, (4, 3)), "zorder": 1}
STAIRS: Any = {"color": "#777777", "linewidth": 1.0, "linestyle": (0, (1, 1.5)), "zorder": 1}
"""The front: dotted, as bars are whole lines."""


def english_against_multilingual(
    results: Results, *, metric: str = "score", arms: Sequence[str] | None = None, width: float = style.PAGE_INCHES
) -> Figure:
    """One marker per arm: English against the mean of the other languages; bars: difference from the baseline."""
    chosen = list(arms) if arms is not None else one_factor_arms(results)
    base = {group: level(results, None, metric=metric, group=group) for group in ("en", "multilingual")}
    with plt.rc_context(style.STYLE | {"axes.grid.axis": "both"}):
        figure, ax = plt.subplots(figsize=_size(width, len(chosen)), layout="constrained")
        ax.axvline(base["en"].estimate, **CROSS)
        ax.axhline(base["multilingual"].estimate, **CROSS)
        handles, said = [], []
        for number, arm in enumerate(chosen):
            look = _look(number, hollow=arm == results.baseline)
            found = {group: effect(results, arm, metric=metric, group=group) for group in base}
            x, y = (base[group].estimate + (found[group].points if arm != results.baseline else 0.0) for group in base)
            if arm != results.baseline:
                ax.errorbar(
                    x, y, xerr=_reach(found["en"]), yerr=_reach(found["multilingual"]), fmt="none",
                    ecolor=look["markeredgecolor"], elinewidth=1.0, alpha=0.8, zorder=2,
                )  # fmt: skip
            ax.plot(x, y, zorder=3, **look)
            name = "baseline" if arm == results.baseline else results.short_label(arm)
            handles.append(Line2D([], [], label=style.fits(name, 1.6), **look))
            said.append(f"{name}: English {x:.1f}, multilingual {y:.1f}")
        ax.set(xlabel=f"English, {style.unit(metric)}", ylabel=f"multilingual, {style.unit(metric)}")
        style.legend(figure, handles, width=width, beside="upper right")
        note = (
            f"Hollow: the baseline, {results.baseline}. Bars: 95 % interval of the paired difference from it; one that "
            f"crosses a dashed line is within noise. {style.sample_said(results, chosen)}."
        )
        return style.finish(figure, f"{'; '.join(said)}.", title="English against the other languages", note=note)


def pareto(
    results: Results,
    *,
    x: str = "score/en",
    y: str = "score/multilingual",
    width: float = style.PAGE_INCHES,
) -> Figure:
    """Every arm by two outcomes with intervals; filled those that no arm beats in both, hollow those within noise of
    them, grey the others."""
    frame: pd.DataFrame = results.pareto(x=x, y=y)
    order = frame.sort_values("x", kind="stable")
    front, near = order[order["on_front"]], order[~order["on_front"] & order["reaches_front"]]
    rest = order[~order["on_front"] & ~order["reaches_front"]]
    with plt.rc_context(style.STYLE | {"axes.grid.axis": "both"}):
        figure, ax = plt.subplots(figsize=_size(width, len(front) + len(near)), layout="constrained")
        ax.step(front["x"], front["y"], where="pre", **STAIRS)
        _crosses(ax, rest, "#aaaaaa")
        ax.plot(rest["x"], rest["y"], marker="o", linestyle="none", color="#aaaaaa", markersize=3.5, zorder=2)
        handles = []
        for number, (_, row) in enumerate(pd.concat([front, near]).iterrows()):
            look = _look(number, hollow=not row["on_front"])
            _crosses(ax, pd.DataFrame([row]), look["markeredgecolor"])
            ax.plot(row["x"], row["y"], zorder=4, **look)
            handles.append(Line2D([], [], label=style.fits(results.short_label(row["arm"]), 1.6), **look))
        if len(rest):
            handles.append(
                Line2D([], [], marker="o", linestyle="none", color="#aaaaaa", markersize=3.5, label="others")
            )
        ax.set(xlabel=_axis(x), ylabel=_axis(y))
        style.legend(figure, handles, width=width, beside="upper right")
        note = (
            "Filled: on the front (dotted), no arm has a higher mean in both. Hollow: no arm is shown to be "
            "better in both. Bars: "
            f"95 % intervals. {style.sample_said(results, list(frame['arm']))}."
        )
        names = [f"{results.short_label(str(row.arm))} ({row.x:.1f}, {row.y:.1f})" for row in front.itertuples()]
        alt = f"On the front: {'; '.join(names)}. Within noise of it: {len(near)} further arms; others: {len(rest)}."
        return style.finish(
            figure,
            alt,
            title=f"{_axis(y)} against {_axis(x)}".replace(" (%)", "").replace("against Score", "against score"),
            note=note,
        )


def one_factor_arms(results: Results) -> list[str]:
    """The baseline and every arm with results that differs from it in one factor, in the study's order."""
    if results.study is None:
        return list(results.arms().index)
    found = [arm for factor in results.study.factors for arm in results.margin(factor.name)]
    return list(dict.fromkeys([results.baseline, *found]))


def _look(number: int, *, hollow: bool) -> dict[str, Any]:
    colour = style.ARM_COLOURS[number % len(style.ARM_COLOURS)]
    return {
        "marker": style.ARM_MARKERS[number % len(style.ARM_MARKERS)],
        "markersize": 6.5,
        "markerfacecolor": "white" if hollow else colour,
        "markeredgecolor": colour,
        "linestyle": "none",
    }


def _size(width: float, arms: int) -> tuple[float, float]:
    return (width, 2.9) if style.is_narrow(width) else (width, max(3.0, 0.4 + 0.26 * arms))


def _crosses(ax: Axes, rows: pd.DataFrame, colour: str) -> None:
    """The intervals of both outcomes; NaN bounds draw no bar."""
    if rows.empty:
        return
    bars = [
        np.nan_to_num(np.abs(rows[[f"{name}_low", f"{name}_high"]].to_numpy(dtype=float).T - rows[name].to_numpy()))
        for name in ("x", "y")
    ]
    ax.errorbar(
        rows["x"], rows["y"], xerr=bars[0], yerr=bars[1], fmt="none", ecolor=colour, elinewidth=0.9, alpha=0.8, zorder=2
    )


def _axis(name: str) -> str:
    """`Score, English` for `score/en`, `Reading, T1` for `reading/T1`."""
    metric, _, group = name.partition("/")
    return f"{style.metric_title(metric)}, {style.group_title(group)} (%)"


def _reach(found: Effect) -> list[list[float]] | None:
    if not np.isfinite(found.low):
        return None
    return [[found.points - found.low], [found.high - found.points]]
