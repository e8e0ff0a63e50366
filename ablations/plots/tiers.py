"""Scores along one factor, tier by tier."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ablations.contrasts import effect, groups, level
from ablations.factors import Factor
from ablations.plots import style
from ablations.published import overlay
from ablations.table import Results
from lvlm.errors import InputError

Point = tuple[str, str, float, float, float]
"""(arm, group, value, low, high)."""


def by_tier(
    results: Results,
    factor: str,
    *,
    metrics: Sequence[str] = ("score", "fidelity"),
    task: str | None = None,
    published: bool = False,
    width: float = style.PAGE_INCHES,
) -> Figure:
    """Each metric by tier along one factor, all else as in the baseline: means above, differences from it below.

    With `published` the paper's curve of the multilingual mean is laid over ours, shifted and stretched to it.
    """
    arms, declared = results.margin(factor), style.factor_of(results, factor)
    if len(arms) < 2:
        raise InputError(
            f"Only {len(arms)} arm(s) of study '{results.name}' vary '{factor}' alone so far; two are needed."
        )
    style.require(metrics, "metrics")
    names = groups(results, by="tier", task=task)
    across = 1 if style.is_narrow(width) else len(metrics)
    down = 2 * len(metrics) // across
    with plt.rc_context(style.STYLE):
        figure, axes = plt.subplots(
            down, across, figsize=(width, 0.45 + 1.75 * down), sharex=True, squeeze=False, layout="constrained"
        )
        means: dict[str, list[Point]] = {}
        for number, metric in enumerate(metrics):
            top = 2 * (number // across)
            above, below = axes[top, number % across], axes[top + 1, number % across]
            means[metric] = [_mean(results, arm, metric, name) for name in names for arm in arms]
            if published:
                _overlay(above, results, factor, arms, metric, "/".join(filter(None, [task, "multilingual"])))
            changes = [_change(results, arm, metric, name) for name in names for arm in arms]
            for ax, points in ((above, means[metric]), (below, changes)):
                _dodged(ax, points, arms, names, markers=4.2 if across == 1 else 4.6)
                if results.baseline in arms:
                    place = arms.index(results.baseline)
                    ax.axvspan(place - 0.42, place + 0.42, color=style.BASELINE_COLOUR, zorder=0, linewidth=0)
            above.set(title=style.metric_title(metric, task), ylabel=style.axis_label(metric))
            below.axhline(0, color=style.INK, linewidth=0.8, zorder=1)
            below.set(ylabel="difference (points)")
        for ax in axes[-1]:
            _tick(ax, results, declared, arms, inches=width / across - 0.9)
            ax.set(xlabel=style.titled(declared.name))
        figure.align_ylabels()
        style.legend(figure, style.group_handles(names), width=width)
        note = f"{style.LEVEL_NOTE} {style.PAIRED_NOTE} Shaded: the baseline. {style.sample_said(results, arms)}."
        if published:
            group = "/".join(filter(None, [task, "multilingual"]))
            note += f" {style.published_said(results, factor, metrics[0], [group])}"
        return style.finish(
            figure, _said(means[metrics[0]], metrics[0], task), note=note,
            title=f"{style.titled(declared.name)}: {style.seeds_said(results, arms)}",
        )  # fmt: skip


def _mean(results: Results, arm: str, metric: str, group: str) -> Point:
    one = level(results, arm, metric=metric, group=group)
    return arm, group, one.estimate, one.low, one.high


def _change(results: Results, arm: str, metric: str, group: str) -> Point:
    """Against the baseline, which itself stands at 0 without an interval."""
    if arm == results.baseline:
        return arm, group, 0.0, np.nan, np.nan
    found = effect(results, arm, metric=metric, group=group)
    return arm, group, found.points, found.low, found.high


def _dodged(ax: Axes, points: Sequence[Point], arms: Sequence[str], names: Sequence[str], *, markers: float) -> None:
    """Points side by side by group at each arm, in the order of the legend; NaN bounds draw no bar."""
    step = 0.66 / max(1, len(names) - 1)
    frame = pd.DataFrame(points, columns=["arm", "group", "value", "low", "high"])
    frame["x"] = [
        arms.index(a) + step * (names.index(g) - (len(names) - 1) / 2)
        for a, g in zip(frame["arm"], frame["group"], strict=True)
    ]
    palette = {name: style.COLOURS[name.rpartition("/")[2]] for name in names}
    sns.lineplot(
        frame, x="x", y="value", hue="group", hue_order=list(names), palette=palette, errorbar=None, estimator=None,
        legend=False, linewidth=0.7, alpha=0.4, ax=ax,
    )  # fmt: skip
    for name, part in frame.groupby("group", sort=False):
        key = str(name).rpartition("/")[2]
        bars = np.nan_to_num(np.abs(part[["low", "high"]].to_numpy().T - part["value"].to_numpy()))
        ax.errorbar(
            part["x"], part["value"], yerr=bars, fmt=style.MARKERS[key], color=style.COLOURS[key], elinewidth=1.0,
            markersize=markers * (1.5 if key == "multilingual" else 1.0), markeredgecolor="white", markeredgewidth=0.3,
        )  # fmt: skip
    ax.set(xlabel="", xlim=(-0.5, len(arms) - 0.5))


def _overlay(ax: Axes, results: Results, factor: str, arms: Sequence[str], metric: str, group: str) -> None:
    found = overlay(results, factor, metric=metric, group=group)
    places = [(arms.index(label), value) for one, value in zip(found["level"], found["value"], strict=True)
              if (label := results.label({factor: one})) in arms]  # fmt: skip
    if places:
        ax.plot(*zip(*places, strict=True), **style.PUBLISHED)


def _tick(ax: Axes, results: Results, factor: Factor, arms: Sequence[str], *, inches: float) -> None:
    levels = {results.label({factor.name: one}): one for one in results.levels_of(factor)}
    room = inches / len(arms)
    texts = [style.fits(style.short(factor, levels[arm]), room, points=7) for arm in arms]
    longest = max(len(line) for text in texts for line in text.split("\n"))
    ax.set_xticks(range(len(arms)), texts)
    if longest * style.LETTER_WIDTH * 7 / 72 > room:
        plt.setp(ax.get_xticklabels(), rotation=45, ha="right", rotation_mode="anchor")


def _said(points: Sequence[Point], metric: str, task: str | None) -> str:
    """For each group where it is highest and lowest, in words."""
    lines = []
    for name in dict.fromkeys(group for _, group, *_ in points):
        own = sorted((value, arm) for arm, group, value, *_ in points if group == name and not np.isnan(value))
        if own:
            (least, worst), (most, best) = own[0], own[-1]
            lines.append(f"{style.group_title(name)} from {least:.1f} ({worst}) to {most:.1f} ({best})")
    return f"{style.metric_title(metric, task)} in percent: {'; '.join(lines)}."
