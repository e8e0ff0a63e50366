"""How much of the variance each factor, and each pair of them, explains."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ablations.plots import style
from ablations.table import Results


def importance(
    results: Results,
    *,
    metric: str = "score",
    group: str = "multilingual",
    pairs: bool = True,
    width: float = style.PAGE_INCHES,
) -> Figure:
    """The share of the variance between runs that factors explain, with intervals; the largest first."""
    frame = results.importance(metric=metric, group=group, pairs=pairs).sort_values("omega2", ascending=False)
    names = [_named(factors) for factors in frame["factors"]]
    values = {column: 100 * frame[column].to_numpy(dtype=float) for column in ("omega2", "low", "high")}
    with plt.rc_context(style.STYLE | {"axes.grid.axis": "x"}):
        figure, ax = plt.subplots(figsize=(width, 0.6 + 0.26 * len(frame)), layout="constrained")
        for row, name in enumerate(names):
            is_pair = " x " in name
            low, value, high = (float(values[column][row]) for column in ("low", "omega2", "high"))
            colour = style.FAINT if is_pair else style.COLOURS["T5"]
            if np.isfinite(low):
                ax.plot([low, high], [row, row], color=colour, linewidth=1.4)
            face = "white" if is_pair else colour
            ax.plot(value, row, marker="D" if is_pair else "o", color=colour, markerfacecolor=face, markersize=5.5)
        ax.axvline(0, color=style.INK, linewidth=0.8)
        ax.set_yticks(range(len(names)), [style.fits(name, 0.3 * width) for name in names])
        ax.set_ylim(len(names) - 0.4, -0.6)
        ax.set(xlabel="share of the variance between runs (%)")
        if any(" x " in name for name in names):
            kinds = (
                ("o", style.COLOURS["T5"], style.COLOURS["T5"], "factor"),
                ("D", style.FAINT, "white", "interaction"),
            )
            handles = [
                Line2D([], [], marker=marker, color=colour, markerfacecolor=face, linestyle="none", label=label)
                for marker, colour, face, label in kinds
            ]
            style.legend(figure, handles, width=width, beside="")
        notes = dict.fromkeys(part for note in frame["note"] for part in str(note).split("; ") if part)
        said = [*dict.fromkeys(frame["method"]), "bars: 95 %", f"n = {int(frame['n_runs'].max())} runs", *notes]
        note = f"{'; '.join(said)}."
        rows = zip(names, values["omega2"], strict=True)
        alt = "; ".join(f"{name} {value:.0f} %" for name, value in rows if not np.isnan(value))
        title = f"What explains {style.metric_title(metric).lower()}, {style.group_title(group)}"
        return style.finish(
            figure, f"{alt} of the variance between runs.", title=title, note=note[0].upper() + note[1:]
        )


def _named(factors: object) -> str:
    parts = [factors] if isinstance(factors, str) else list(factors)  # type: ignore[call-overload]
    return " x ".join(style.phrase(str(part)) for part in parts)
