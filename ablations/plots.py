"""Figures of a study's results, with our own intervals: seaborn draws points and lines, never an interval of its own.

Each function takes `Results` and returns a matplotlib Figure. The notebooks and the report call them.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from ablations.contrasts import Effect, effect, groups, level
from ablations.factors import Factor, Level
from ablations.outcomes import GROUP_ORDER
from ablations.studies import Study
from ablations.table import Results
from lvlm.errors import InputError

# Okabe and Ito's palette, which colour-blind readers can tell apart; cool for high-resource tiers, warm for low ones.
COLOURS = dict(
    zip(GROUP_ORDER, ("#222222", "#0072B2", "#56B4E9", "#009E73", "#E69F00", "#D55E00", "#CC79A7"), strict=True)
)
MARKERS = dict(zip(GROUP_ORDER, ("o", "s", "D", "^", "v", "P", "*"), strict=True))
VERDICT_COLOURS = {"shown": "#009E73", "within noise": "#888888", "contradicted": "#D55E00", "not judged": "#CCCCCC"}
MARGIN_COLOUR = "#dfe9f2"
NAMES = {"en": "English", "multilingual": "multilingual"}
METRIC_LABELS = {
    "score": "score (%)",
    "fidelity": "fidelity (%)",
    "score_any_language": "score, right in any language (%)",
    "right_elsewhere": "right, but in another language (points)",
}
STYLE: Any = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "axes.edgecolor": "#888888",
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9.5,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "figure.dpi": 110,
}
PAIRED_NOTE = "Differences: paired by seed, 95 % two-way (seed x language) t intervals; English: t over seeds."
LEVEL_NOTE = "Means: 95 % t interval over seeds."


def by_tier(
    results: Results, factor: str, *, metrics: Sequence[str] = ("score", "fidelity"), task: str | None = None
) -> Figure:
    """Each metric by tier along one factor, all else as in the baseline.

    Means above, differences from the baseline below.
    """
    arms, declared = results.margin(factor), _factor(results, factor)
    if len(arms) < 2:
        raise InputError(
            f"Only {len(arms)} arm(s) of study '{results.name}' vary '{factor}' alone so far; two are needed."
        )
    names = groups(results, by="tier", task=task)
    ticks = [_level_label(results, declared, arm) for arm in arms]
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            2, len(metrics), figsize=(1.2 + 4.3 * len(metrics), 6.4), sharex=True, squeeze=False, layout="constrained"
        )
        for column, metric in enumerate(metrics):
            means = [(arm, name, level(results, arm, metric=metric, group=name)) for name in names for arm in arms]
            changes = [(arm, name, _change(results, arm, metric, name)) for name in names for arm in arms]
            _dodged(axes[0, column], [(a, g, one.estimate, one.low, one.high) for a, g, one in means], arms, names)
            _dodged(axes[1, column], [(a, g, *one) for a, g, one in changes], arms, names)
            axes[0, column].set(title=_metric(metric, task), ylabel=_unit(metric))
            axes[1, column].axhline(0, color="#222222", linewidth=0.9, zorder=1)
            axes[1, column].set(ylabel="difference (points)", xlabel="")
            axes[1, column].set_xticks(range(len(arms)), ticks)
        figure.legend(handles=_tier_handles(names), loc="outside right center")
        figure.suptitle(f"{_title(declared.name)}: {_seeds(results, arms)}", x=0.01, ha="left", fontsize=12)
        figure.supxlabel(f"{LEVEL_NOTE} {PAIRED_NOTE}", fontsize=8, color="#555555", x=0.01, ha="left")
    plt.close(figure)  # the caller shows it; left open, Jupyter would show it twice
    return figure


def interaction_map(
    results: Results,
    *,
    rows: str = "languages",
    columns: str = "english_share",
    metric: str = "score",
    in_groups: Sequence[str] = ("multilingual", "T1"),
) -> Figure:
    """Mean of a metric for each pair of levels of two factors, and its change from the baseline.

    Combinations without runs stay blank.
    """
    down, across = _factor(results, rows), _factor(results, columns)
    if ranges := [factor.name for factor in (down, across) if factor.is_continuous]:
        raise InputError(f"A map has levels on both sides, and '{ranges[0]}' has a range.")
    with plt.rc_context(STYLE | {"axes.grid": False}):
        size = (1.9 + 0.98 * len(across.levels) * len(in_groups), 1.9 + 0.62 * len(down.levels))
        figure, axes = plt.subplots(1, len(in_groups), figsize=size, squeeze=False, sharey=True, layout="constrained")
        for ax, group in zip(axes[0], in_groups, strict=True):
            means, texts = _grid(results, down, across, metric, group)
            sns.heatmap(
                means, ax=ax, annot=texts, fmt="", cmap="cividis", linewidths=1.5, annot_kws={"fontsize": 8},
                cbar_kws={"label": _unit(metric), "shrink": 0.85}, mask=means.isna(),
            )  # fmt: skip
            for row, one in enumerate(down.levels):
                if not across.applies({**dict(_study(results).baseline), down.name: one}):
                    _merge_row(ax, row, means, texts)
            ax.set_facecolor("#eeeeee")
            ax.set(title=f"{_metric(metric, None)}, {NAMES.get(group, group)}", xlabel=_title(across.name), ylabel="")
            ax.tick_params(length=0)
            plt.setp(ax.get_xticklabels(), rotation=0)
            plt.setp(ax.get_yticklabels(), rotation=0)
        note = (
            "Each cell: mean, below it the difference from the baseline (points) ± half of its 95 % two-way interval. "
            "Grey: not run."
        )
        figure.supxlabel(
            f"{note} {_seeds(results, list(results.arms().index))}.", fontsize=8, color="#555555", x=0.01, ha="left"
        )
    plt.close(figure)  # the caller shows it; left open, Jupyter would show it twice
    return figure


def english_against_multilingual(
    results: Results, *, metric: str = "score", arms: Sequence[str] | None = None
) -> Figure:
    """One marker per arm.

    English against the mean of the other languages, bars for the difference from the baseline.
    """
    chosen = list(arms) if arms is not None else one_factor_arms(results)
    base = {group: level(results, None, metric=metric, group=group) for group in ("en", "multilingual")}
    palette = ["#222222", *sns.color_palette("colorblind", 10).as_hex()]
    shapes = "osD^vPX*<>p"
    with plt.rc_context(STYLE | {"axes.grid.axis": "both"}):
        figure, ax = plt.subplots(figsize=(9.4, 4.6), layout="constrained")
        ax.axvline(base["en"].estimate, color="#999999", linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
        ax.axhline(base["multilingual"].estimate, color="#999999", linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
        handles = []
        for number, arm in enumerate(chosen):
            colour, shape = palette[number % len(palette)], shapes[number % len(shapes)]
            found = {group: effect(results, arm, metric=metric, group=group) for group in base}
            x, y = (base[group].estimate + (found[group].points if arm != results.baseline else 0.0) for group in base)
            if arm != results.baseline:
                ax.errorbar(
                    x, y, xerr=_reach(found["en"]), yerr=_reach(found["multilingual"]), fmt="none", ecolor=colour,
                    elinewidth=1.3, alpha=0.75, zorder=2,
                )  # fmt: skip
            face = "white" if arm == results.baseline else colour
            style: dict[str, Any] = {
                "marker": shape,
                "markersize": 8,
                "markerfacecolor": face,
                "markeredgecolor": colour,
                "linestyle": "none",
            }
            ax.plot(x, y, zorder=3, **style)
            name = f"{arm} (baseline)" if arm == results.baseline else results.short_label(arm)
            handles.append(Line2D([], [], label=name, **style))
        ax.set(
            xlabel=f"English, {_unit(metric)}",
            ylabel=f"multilingual, {_unit(metric)}",
            title="English against the other languages",
        )
        figure.legend(handles=handles, loc="outside right upper")
        figure.supxlabel(
            "Bars: 95 % interval of the paired difference from the baseline; "
            "one that crosses a dashed line is within noise.\n"
            f"{_seeds(results, chosen)}.", fontsize=8, color="#555555", x=0.01, ha="left",
        )  # fmt: skip
    plt.close(figure)  # the caller shows it; left open, Jupyter would show it twice
    return figure


def expected(results: Results) -> Figure:
    """Every expectation of the study with its effect and interval, coloured by verdict.

    Behind the interval of one that expects little change lies its margin: there the verdict is about the band, not 0.
    """
    _study(results)
    judged = results.verdicts()
    if not judged:
        raise InputError(f"Study '{results.name}' declares no expectations.")
    with plt.rc_context(STYLE | {"axes.grid.axis": "x"}):
        figure, ax = plt.subplots(figsize=(9.6, 1.3 + 0.34 * len(judged)), layout="constrained")
        for row, (expectation, found) in enumerate(judged):
            if (margin := expectation.margin) is not None:
                ax.barh(row, 2 * margin, left=-margin, height=0.72, color=MARGIN_COLOUR, zorder=0)
            if np.isfinite(found.low):
                ax.plot(
                    [found.low, found.high],
                    [row, row],
                    color=VERDICT_COLOURS[found.verdict],
                    linewidth=2,
                    solid_capstyle="butt",
                )
            ax.plot(found.points, row, marker="o", color=VERDICT_COLOURS[found.verdict], markersize=6)
        ax.axvline(0, color="#222222", linewidth=0.9)
        ax.set_yticks(range(len(judged)), [_wrapped(expectation.claim) for expectation, _ in judged], fontsize=8)
        ax.set_ylim(len(judged) - 0.4, -0.6)
        ax.set(
            xlabel="difference (points), with 95 % interval", title=f"What the study expected: {_seeds(results, None)}"
        )
        handles = [
            Line2D([], [], marker="o", linestyle="-", color=colour, label=word)
            for word, colour in VERDICT_COLOURS.items()
        ]
        seen = {found.verdict for _, found in judged}
        shown: list[Any] = [one for one in handles if one.get_label() in seen]
        if any(expectation.margin is not None for expectation, _ in judged):
            shown.append(Patch(color=MARGIN_COLOUR, label="margin for little change"))
        figure.legend(handles=shown, loc="outside lower right", ncols=5)
    plt.close(figure)  # the caller shows it; left open, Jupyter would show it twice
    return figure


def one_factor_arms(results: Results) -> list[str]:
    """The baseline and every arm with results that differs from it in one factor, in the study's order."""
    if results.study is None:
        return list(results.arms().index)
    found = [arm for factor in results.study.factors for arm in results.margin(factor.name)]
    return list(dict.fromkeys([results.baseline, *found]))


def _dodged(
    ax: Axes, points: Sequence[tuple[str, str, float, float, float]], arms: Sequence[str], names: Sequence[str]
) -> None:
    """Points (arm, group, value, low, high) side by side by group at each arm; NaN bounds draw no bar."""
    step = 0.56 / max(1, len(names) - 1)
    frame = pd.DataFrame(points, columns=["arm", "group", "value", "low", "high"])
    frame["x"] = [
        arms.index(a) + step * (names.index(g) - (len(names) - 1) / 2)
        for a, g in zip(frame["arm"], frame["group"], strict=True)
    ]
    palette = {name: COLOURS[name.rpartition("/")[2]] for name in names}
    sns.lineplot(
        frame, x="x", y="value", hue="group", hue_order=list(names), palette=palette, errorbar=None, estimator=None,
        legend=False,        linewidth=0.9, alpha=0.45, ax=ax,
    )  # fmt: skip
    for name, part in frame.groupby("group", sort=False):
        key = str(name).rpartition("/")[2]
        bars = np.nan_to_num(np.abs(part[["low", "high"]].to_numpy().T - part["value"].to_numpy()))
        ax.errorbar(
            part["x"], part["value"], yerr=bars, fmt=MARKERS[key], color=COLOURS[key], elinewidth=1.3,
            markersize=9 if key == "multilingual" else 6.5, markeredgecolor="white", markeredgewidth=0.4,
        )  # fmt: skip
    ax.set(xlabel="", xlim=(-0.5, len(arms) - 0.5))


def _change(results: Results, arm: str, metric: str, group: str) -> tuple[float, float, float]:
    """Points, low and high against the baseline; the baseline itself stands at 0 without an interval."""
    if arm == results.baseline:
        return 0.0, np.nan, np.nan
    found = effect(results, arm, metric=metric, group=group)
    return found.points, found.low, found.high


def _grid(results: Results, down: Factor, across: Factor, metric: str, group: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    index, columns = [down.label(one) for one in down.levels], [_short(across, one) for one in across.levels]
    means = pd.DataFrame(np.nan, index=index, columns=columns)
    texts = pd.DataFrame("", index=index, columns=columns)
    for row, first in enumerate(down.levels):
        for column, second in enumerate(across.levels):
            levels: Mapping[str, Level] = {down.name: first, across.name: second}
            arm = _study(results).arm(levels)
            mean = (
                level(results, arm.label, metric=metric, group=group)
                if arm.label in set(results.table["arm"])
                else None
            )
            if mean is None:
                continue
            means.iloc[row, column] = mean.estimate
            change = "baseline"
            if arm.label != results.baseline:
                found = effect(results, arm.label, metric=metric, group=group)
                half = f" ± {found.points - found.low:.1f}" if np.isfinite(found.low) else ""
                change = f"{found.points:+.1f}{half}"
            texts.iloc[row, column] = f"{mean.estimate:.1f}\n{change}"
    return means, texts


def _merge_row(ax: Axes, row: int, means: pd.DataFrame, texts: pd.DataFrame) -> None:
    """Draw a row as one cell: the factor across does not apply there, so that the row is one arm."""
    value = float(means.to_numpy(dtype=float)[row, 0])
    if np.isnan(value):
        return
    for text in [text for text in ax.texts if int(text.get_position()[1]) == row]:
        text.remove()
    mappable = ax.collections[0]
    shade = mappable.to_rgba(np.array([value]))[0]
    ax.add_patch(Rectangle((0, row), means.shape[1], 1, facecolor=shade, edgecolor="white", linewidth=1.5))
    ink = "white" if np.dot(shade[:3], (0.299, 0.587, 0.114)) < 0.5 else "#262626"
    ax.text(means.shape[1] / 2, row + 0.5, str(texts.iloc[row, 0]), ha="center", va="center", fontsize=8, color=ink)


def _study(results: Results) -> Study:
    return results.known_study("This figure needs it.")


def _factor(results: Results, name: str) -> Factor:
    results.margin(name)  # raises for an unknown factor
    return next(factor for factor in _study(results).factors if factor.name == name)


def _title(name: str) -> str:
    return name.replace("_", " ").capitalize()


def _level_label(results: Results, factor: Factor, arm: str) -> str:
    levels = results.levels_of(factor)
    text = _short(factor, next(one for one in levels if results.label({factor.name: one}) == arm))
    return textwrap.fill(text, 13) + ("\n(baseline)" if arm == results.baseline else "")


def _short(factor: Factor, one: Level) -> str:
    """`50%` for `50% English` on an axis that is called English share."""
    return factor.label(one).removesuffix(" English") if factor.name == "english_share" else factor.label(one)


def _reach(found: Effect) -> list[list[float]] | None:
    if not np.isfinite(found.low):
        return None
    return [[found.points - found.low], [found.high - found.points]]


def _tier_handles(names: Sequence[str]) -> list[Line2D]:
    keys = [name.rpartition("/")[2] for name in names]
    return [
        Line2D([], [], color=COLOURS[key], marker=MARKERS[key], linewidth=1.3, markersize=6, label=NAMES.get(key, key))
        for key in keys
    ]


def _metric(metric: str, task: str | None) -> str:
    name = METRIC_LABELS.get(metric, metric).partition(" (")[0].capitalize()
    return f"{name}, {task}" if task else name


def _unit(metric: str) -> str:
    return METRIC_LABELS.get(metric, f"{metric} (%)")


def _seeds(results: Results, arms: Sequence[str] | None) -> str:
    counts = results.arms()["seeds"]
    counts = counts.loc[[arm for arm in arms if arm in counts.index]] if arms else counts
    least, most = int(counts.min()), int(counts.max())
    return f"{least} seeds" if least == most and least != 1 else "1 seed" if most == 1 else f"{least} to {most} seeds"


def _wrapped(text: str, width: int = 78) -> str:
    return textwrap.fill(text, width)
