"""Heat maps: two factors against each other, arms against languages, asked languages against answered ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ablations.contrasts import effect, effects, level
from ablations.factors import Factor, Level
from ablations.outcomes import GROUP_ORDER
from ablations.plots import style
from ablations.plots.arms import one_factor_arms
from ablations.table import Results
from lvlm.errors import InputError
from lvlm.languages import language

SMALLEST_LETTERS = 4.5
"""Points below which numbers in a map are left out."""


def interaction_map(
    results: Results,
    *,
    rows: str = "languages",
    columns: str = "english_share",
    metric: str = "score",
    in_groups: Sequence[str] = ("multilingual", "T1"),
    width: float = style.PAGE_INCHES,
) -> Figure:
    """Mean of a metric for each pair of levels of two factors, and its change from the baseline.

    Combinations without runs stay blank.
    """
    down, across = style.factor_of(results, rows), style.factor_of(results, columns)
    if ranges := [factor.name for factor in (down, across) if factor.is_continuous]:
        raise InputError(f"A map has levels on both sides, and '{ranges[0]}' has a range.")
    if down is across:
        raise InputError(f"A map has two factors, and '{rows}' was given twice.")
    style.require(in_groups, "in_groups")
    own = style.study_of(results)
    cells = max(1, len(across.levels))
    beside = 2 if width * 0.8 / (cells * min(2, len(in_groups))) > 0.62 else 1
    panels = -(-len(in_groups) // beside)
    cell = (width / beside - 1.4) / cells
    stacked = cell < 11 * style.LETTER_WIDTH * 6 / 72  # too narrow for `-19.4 ± 5.1` in one line
    row_inches, letters = (0.47, 6.0) if stacked else (0.42, 6.5)
    with plt.rc_context(style.STYLE | {"axes.grid": False}):
        size = (width, 0.1 + panels * (0.55 + row_inches * len(down.levels)))
        figure, axes = plt.subplots(panels, beside, figsize=size, squeeze=False, sharey=True, layout="constrained")
        said = []
        for ax, group in zip(axes.flat, in_groups, strict=False):
            means, texts = _grid(results, down, across, metric, group, stacked=stacked)
            sns.heatmap(
                means, ax=ax, annot=texts, fmt="", cmap="cividis", linewidths=1.2, annot_kws={"fontsize": letters},
                cbar_kws={"label": style.unit(metric), "shrink": 0.85}, mask=means.isna(),
            )  # fmt: skip
            for row, one in enumerate(down.levels):
                if not across.applies({**dict(own.baseline), down.name: one}):
                    _merge_row(ax, row, means, texts, letters)
            ax.set_facecolor("#eeeeee")
            ax.set(title=f"{style.metric_title(metric)}, {style.group_title(group)}", ylabel="")
            ax.set(xlabel=style.titled(across.name))
            _flat(ax)
            said.append(f"{style.group_title(group)} from {_extreme(means, 'least')} to {_extreme(means, 'most')}")
        for ax in axes.flat[len(in_groups) :]:
            ax.set_visible(False)
        note = (
            "Each cell: mean, below it the difference from the baseline (points) ± half of its 95 % two-way interval. "
            f"Grey: not run. {style.sample_said(results)}."
        )
        return style.finish(
            figure, f"{style.metric_title(metric)} in percent: {'; '.join(said)}.", note=note, with_title=False,
            title=f"{style.titled(down.name)} against {style.phrase(across.name)}",
        )  # fmt: skip


def language_map(
    results: Results,
    *,
    arms: Sequence[str] | None = None,
    metric: str = "score",
    task: str | None = None,
    width: float = style.PAGE_INCHES,
) -> Figure:
    """The difference of each arm from the baseline in every language, by tier; `*` where its interval excludes 0.

    Where the columns are too narrow for numbers that can be read, the stars stand alone.
    """
    chosen = [arm for arm in (arms if arms is not None else one_factor_arms(results)) if arm != results.baseline]
    if not chosen:
        raise InputError(f"Study '{results.name}' has no arm beside the baseline yet.")
    found = effects(results, arms=chosen, metric=metric, by="language", task=task)
    codes = [one.group.rpartition("/")[2] for one in found]
    order = sorted(dict.fromkeys(codes), key=lambda code: (_tier_place(code), codes.index(code)))
    names = [results.short_label(arm) for arm in chosen]
    inches = (width - (1.75 if style.is_narrow(width) else 1.9)) / len(names)
    letters = min(6.0, inches * 72 / (6.4 * style.LETTER_WIDTH))
    if not (numbers := letters >= SMALLEST_LETTERS):
        letters = 6.0
    frame = pd.DataFrame(np.nan, index=order, columns=names)
    starred = pd.DataFrame("", index=order, columns=names)
    for one, code in zip(found, codes, strict=True):
        name = results.short_label(one.arm)
        frame.loc[code, name] = one.points
        if not np.isnan(one.points):
            star = "*" if one.verdict == "shown" else ""
            starred.loc[code, name] = f"{one.points:+z.1f}{star}".replace("-", "−") if numbers else star
    reach = float(np.nanmax(np.abs(frame.to_numpy()))) or 1.0
    labels = [f"{language(code).name} · {_tier(code)}" for code in order]
    upright = inches >= 0.5
    shown = [style.fits(name, inches if upright else 1.2, points=7) for name in names]
    longest = max(len(line) for name in shown for line in name.split("\n"))
    below = 0.0 if upright else longest * style.LETTER_WIDTH * 7 / 72
    with plt.rc_context(style.STYLE | {"axes.grid": False}):
        figure, ax = plt.subplots(figsize=(width, 0.35 + below + 0.155 * len(order)), layout="constrained")
        sns.heatmap(
            frame.set_axis(labels), ax=ax, annot=starred.to_numpy(), fmt="",
            cmap="PuOr_r", vmin=-reach, vmax=reach, linewidths=0.6, annot_kws={"fontsize": letters},
            cbar_kws={"label": f"{style.metric_title(metric, task).lower()}: difference (points)", "shrink": 0.8},
            mask=frame.isna().to_numpy(), yticklabels=1,
        )  # fmt: skip
        _tier_lines(ax, [_tier(code) for code in order])
        ax.set_facecolor("#eeeeee")
        ax.set(xlabel="", ylabel="")
        ax.set_xticks(np.arange(len(names)) + 0.5, shown)
        _flat(ax, rotation=0 if upright else 90)
        note = (
            "Paired by seed, against the baseline; * the 95 % t interval over seeds excludes 0 (nothing is adjusted "
            f"for the number of cells). Positive: the arm is better. {'' if numbers else 'Numbers need a wider page. '}"
            f"{style.sample_said(results)}."
        )
        means = frame.mean()
        alt = "; ".join(f"{name}: {means[name]:+z.1f} points on average" for name in names)
        return style.finish(figure, f"{alt}.", title="Difference from the baseline, by language", note=note)


def confusion(
    results: Results, *, arm: str | None = None, task: str | None = None, width: float = style.PAGE_INCHES
) -> Figure:
    """In which language questions were answered: a row for each asked language, percent of its answers."""
    label = results.label(arm)
    frame = results.confusion(arm=arm, task=task)
    counts = frame.pop("answers")
    texts = frame.map(lambda share: "" if share < 0.5 else f"{share:.0f}").to_numpy()
    names = list(frame.index) if style.is_narrow(width) else [f"{language(c).name} · {_tier(c)}" for c in frame.index]
    cell = (width - (0.9 if style.is_narrow(width) else 2.0)) / len(frame.columns)
    letters = min(6.5, cell * 72 / (2.6 * style.LETTER_WIDTH))
    with plt.rc_context(style.STYLE | {"axes.grid": False}):
        size = (width, 0.75 + 0.145 * len(frame))
        figure, ax = plt.subplots(figsize=size, layout="constrained")
        sns.heatmap(
            frame.set_axis(names), ax=ax, annot=texts if letters >= SMALLEST_LETTERS else False, fmt="", cmap="Blues",
            vmin=0, vmax=100, linewidths=0.4, annot_kws={"fontsize": letters}, xticklabels=1, yticklabels=1,
            cbar_kws={"label": "answers (%)", "shrink": 0.7},
        )  # fmt: skip
        ax.set(xlabel="language of the answer", ylabel="language of the question")
        _flat(ax, rotation=90)
        away = 100 - pd.Series({code: frame.loc[code, code] for code in frame.index if code in frame.columns})
        worst = away.idxmax()
        note = (
            f"Arm: {label}. All seeds together, {style.counted(counts.min(), counts.max(), 'answers')} in a row. "
            f"Undetermined: too short or too alike across languages to tell. {style.sample_said(results, [label])}."
        )
        alt = (
            f"{away.mean():.0f} % of answers are not in the asked language on average; most in "
            f"{language(str(worst)).name}: {away.max():.0f} %."
        )
        return style.finish(figure, alt, title=f"Asked and answered languages: {results.short_label(label)}", note=note)


def _grid(
    results: Results, down: Factor, across: Factor, metric: str, group: str, *, stacked: bool
) -> tuple[pd.DataFrame, pd.DataFrame]:
    index, columns = [down.label(one) for one in down.levels], [style.short(across, one) for one in across.levels]
    means = pd.DataFrame(np.nan, index=index, columns=columns)
    texts = pd.DataFrame("", index=index, columns=columns)
    present, between = set(results.table["arm"]), "\n" if stacked else " "
    for row, first in enumerate(down.levels):
        for column, second in enumerate(across.levels):
            levels: Mapping[str, Level] = {down.name: first, across.name: second}
            arm = style.study_of(results).arm(levels)
            if arm.label not in present:
                continue
            mean = level(results, arm.label, metric=metric, group=group)
            means.iloc[row, column] = mean.estimate
            change = "baseline"
            if arm.label != results.baseline:
                found = effect(results, arm.label, metric=metric, group=group)
                half = f"{between}± {found.points - found.low:.1f}" if np.isfinite(found.low) else ""
                change = f"{found.points:+z.1f}{half}"
            texts.iloc[row, column] = f"{mean.estimate:.1f}\n{change.replace('-', '−')}"
    return means, texts


def _extreme(means: pd.DataFrame, which: Literal["least", "most"]) -> str:
    """`36.6 at English only, 1%`."""
    values = means.to_numpy(dtype=float)
    place = np.nanargmin(values) if which == "least" else np.nanargmax(values)
    row, column = divmod(int(place), values.shape[1])
    return f"{values[row, column]:.1f} at {means.index[row]}, {means.columns[column]}"


def _merge_row(ax: Axes, row: int, means: pd.DataFrame, texts: pd.DataFrame, letters: float) -> None:
    """Draw a row as one cell: the factor across does not apply there, so that the row is one arm."""
    value = float(means.to_numpy(dtype=float)[row, 0])
    if np.isnan(value):
        return
    for text in [text for text in ax.texts if int(text.get_position()[1]) == row]:
        text.remove()
    mappable: Any = ax.collections[0]
    shade = mappable.to_rgba(np.array([value]))[0]
    ax.add_patch(Rectangle((0, row), means.shape[1], 1, facecolor=shade, edgecolor="white", linewidth=1.2))
    ink = "white" if np.dot(shade[:3], (0.299, 0.587, 0.114)) < 0.5 else "#262626"
    said = str(texts.iloc[row, 0])
    ax.text(means.shape[1] / 2, row + 0.5, said, ha="center", va="center", fontsize=letters, color=ink)


def _flat(ax: Axes, *, rotation: float = 0) -> None:
    ax.tick_params(length=0)
    plt.setp(ax.get_xticklabels(), rotation=rotation, fontsize=7)
    plt.setp(ax.get_yticklabels(), rotation=0, fontsize=7)


def _tier_lines(ax: Axes, tiers: Sequence[str]) -> None:
    """A line between one tier and the next."""
    for row in range(1, len(tiers)):
        if tiers[row] != tiers[row - 1]:
            ax.axhline(row, color=style.INK, linewidth=0.9)


def _tier(code: str) -> str:
    return language(code).tier


def _tier_place(code: str) -> int:
    tier = _tier(code)
    return GROUP_ORDER.index(tier) if tier in GROUP_ORDER else len(GROUP_ORDER)
