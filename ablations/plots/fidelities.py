"""What becomes of answers, language by language."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from ablations.answers import KINDS, kind_shares
from ablations.outcomes import GROUP_ORDER
from ablations.plots import style
from ablations.table import Results
from lvlm.errors import InputError
from lvlm.languages import language

LOOKS = dict(
    zip(
        KINDS,
        (("#009E73", ""), ("#E69F00", "////"), ("#9c9c9c", ""), ("#D55E00", "\\\\\\\\"), ("#d4d4d4", "....")),
        strict=True,
    )
)
"""Colour and hatch of each kind of answer: the hatch tells them in grey."""


def wrong_language(
    results: Results,
    *,
    arms: Sequence[str] | None = None,
    task: str | None = None,
    width: float = style.PAGE_INCHES,
) -> Figure:
    """What becomes of the answers in every language, a panel per arm: right or wrong, and in which language."""
    chosen = [results.label(arm) for arm in arms] if arms is not None else _extremes(results)
    shares = kind_shares(results, task=task)
    present = [arm for arm in chosen if arm in shares.index.get_level_values("arm")]
    if not present:
        raise InputError(f"There are no answers of these arms in {results.folder}.")
    codes = list(dict.fromkeys(shares.index.get_level_values("language")))
    codes.sort(key=lambda code: _place(language(code).tier))
    across = 1 if style.is_narrow(width) else min(3, len(present))
    down = -(-len(present) // across)
    with plt.rc_context(style.STYLE | {"axes.grid": False}):
        size = (width, 0.35 + down * (0.35 + 0.145 * len(codes)))
        figure, axes = plt.subplots(down, across, figsize=size, sharey=True, squeeze=False, layout="constrained")
        for ax, arm in zip(axes.flat, present, strict=False):
            _stack(ax, shares.loc[[arm]].droplevel("arm").reindex(codes))
            ax.set(title=style.fits(results.short_label(arm), width / across - 0.9, points=8.5))
        for ax in axes.flat[len(present) :]:
            ax.set_visible(False)
        for ax in axes[-1]:
            ax.set(xlabel="answers (%)")
        handles = [
            Patch(facecolor=colour, hatch=hatch, edgecolor="white", label=k) for k, (colour, hatch) in LOOKS.items()
        ]
        style.legend(figure, handles, width=width, beside="")
        totals = shares.loc[present, "answers"]
        note = (
            f"All seeds together, {style.counted(int(totals.min()), int(totals.max()), 'answers')} in a bar"
            f"{f' ({task})' if task else ''}. Shares of these items, without an interval: for "
            f"effects on fidelity see the tables. {style.sample_said(results, present)}."
        )
        means = shares.groupby(level="arm").mean()
        elsewhere = means[KINDS[1]] + means[KINDS[3]]
        alt = "; ".join(
            f"{results.short_label(arm)}: {elsewhere[arm]:.0f} % of answers in another language, "
            f"{means[KINDS[0]][arm]:.0f} % right"
            for arm in present
        )
        return style.finish(figure, f"{alt}.", title="What becomes of answers, by language", note=note)


def _stack(ax: Axes, shares: pd.DataFrame) -> None:
    """A bar for every language, in parts by what became of its answers."""
    codes, start = list(shares.index), np.zeros(len(shares))
    for kind, (colour, hatch) in LOOKS.items():
        part = shares[kind].fillna(0).to_numpy(dtype=float)
        ax.barh(
            range(len(codes)), part, left=start, height=0.82, color=colour, hatch=hatch, edgecolor="white",
            linewidth=0.3,
        )  # fmt: skip
        start = start + part
    ax.set(xlim=(0, 100), ylim=(len(codes) - 0.5, -0.5))
    ax.set_yticks(range(len(codes)), [f"{language(code).name} · {language(code).tier}" for code in codes])
    ax.tick_params(axis="y", length=0, labelsize=6.5)


def _extremes(results: Results) -> list[str]:
    """The baseline and the two arms of lowest fidelity; without a known baseline the first three."""
    rows = results.table[(results.table["metric"] == "fidelity") & (results.table["language"] != "en")]
    means = rows.groupby("arm")["value"].mean().sort_values()
    if results.study is None or results.baseline not in set(results.table["arm"]):
        return list(results.arms().index)[:3]
    return [results.baseline, *[str(arm) for arm in means.index if arm != results.baseline][:2]]


def _place(tier: str) -> int:
    return GROUP_ORDER.index(tier) if tier in GROUP_ORDER else len(GROUP_ORDER)
