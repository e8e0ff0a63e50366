"""How figures look: one order and colour of tiers, sizes in print, the words under a figure and for those who do not
see it, and saving for a paper. Every other module of this package draws with it."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ablations.factors import Factor, Level
from ablations.outcomes import GROUP_ORDER
from ablations.published import agreement, overlay
from ablations.studies import Study
from ablations.table import Results
from lvlm.errors import InputError

PAGE_INCHES = 6.9
"""Width of a figure across a page of two columns; text in it has the size it is printed in."""
COLUMN_INCHES = 3.3
NARROW_INCHES = 5.0
"""Below this panels stand one below the other and the legend below them."""

# Okabe and Ito's palette, which colour-blind readers can tell apart; cool for high-resource tiers, warm for low ones.
# In grey the markers tell them, and the order, which is everywhere the same.
COLOURS = dict(
    zip(GROUP_ORDER, ("#222222", "#0072B2", "#56B4E9", "#009E73", "#E69F00", "#D55E00", "#CC79A7"), strict=True)
)
MARKERS = dict(zip(GROUP_ORDER, ("o", "s", "D", "^", "v", "P", "*"), strict=True))
VERDICT_COLOURS = {"shown": "#009E73", "within noise": "#777777", "contradicted": "#D55E00", "not judged": "#BBBBBB"}
VERDICT_MARKERS = {"shown": "o", "within noise": "|", "contradicted": "X", "not judged": "s"}
ARM_COLOURS = ("#222222", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A5195", "#8C6D31")
ARM_MARKERS = "osD^vPX*<>p"
PUBLISHED: Any = {
    "color": "#7A5195", "marker": "x", "markersize": 5, "linestyle": (0, (1, 1.5)), "linewidth": 1.2, "zorder": 5,
}  # fmt: skip
"""A curve of a paper."""
INK, FAINT, LIGHT = "#222222", "#555555", "#e4e4e4"
BASELINE_COLOUR = "#f1f1f1"
BELOW = "below"
"""Label of a legend that stands below the panels."""
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
    "grid.color": LIGHT,
    "grid.linewidth": 0.6,
    "axes.edgecolor": "#888888",
    "axes.linewidth": 0.7,
    "axes.titlesize": 8.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 8,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "legend.frameon": False,
    "legend.fontsize": 7.5,
    "legend.handletextpad": 0.5,
    "figure.dpi": 130,
    "pdf.fonttype": 42,  # letters stay letters: a journal's checks and a reader's search find them
    "svg.hashsalt": "ablations",
}
TITLE_POINTS, NOTE_POINTS = 9.5, 6.5
LETTER_WIDTH = 0.56
"""Width of a letter on average, as a part of the size of its font."""

PAIRED_NOTE = "Differences: paired by seed, 95 % two-way (seed x language) t intervals; English: t over seeds."
LEVEL_NOTE = "Means: 95 % t interval over seeds."
FORMATS = ("pdf", "svg", "png")
Beside = Literal["center right", "upper right", ""]


def save(figure: Figure, stem: str | Path, formats: Sequence[str] = FORMATS) -> list[Path]:
    """Write a figure as STEM.pdf, STEM.svg and STEM.png (or the given ones of these), each whole or not at all.

    Fonts are embedded as such, PNG has 300 dots an inch, the description of the figure goes along, and the same figure
    gives the same bytes. Returns the paths.
    """
    if unknown := [name for name in formats if name not in FORMATS]:
        raise InputError(f"A figure is saved as {', '.join(FORMATS)}, not as {', '.join(map(repr, unknown))}.")
    stem = Path(stem)
    stem.parent.mkdir(parents=True, exist_ok=True)
    said = alternative(figure)
    about: dict[str, dict[str, Any]] = {
        "pdf": {"Subject": said, "CreationDate": None},
        "svg": {"Description": said, "Date": None},
        "png": {"Description": said, "Software": None},
    }
    paths = []
    for name in formats:
        path = stem.with_name(f"{stem.name}.{name}")
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        with plt.rc_context(STYLE):
            figure.savefig(temporary, format=name, dpi=300, metadata=about[name])
        temporary.replace(path)
        paths.append(path)
    return paths


def finish(figure: Figure, alt: str, *, title: str = "", note: str = "", with_title: bool = True) -> Figure:
    """A figure that is ready: title above, note below, both wrapped to its width, and described in words.

    It is closed for pyplot, as the caller shows it: left open, Jupyter would show it twice.
    """
    width, height = figure.get_size_inches()
    above = _fitted(title, width, TITLE_POINTS) if title and with_title else ""
    below = _fitted(note, width, NOTE_POINTS) if note else ""
    top, foot = _inches(above, TITLE_POINTS), _inches(below, NOTE_POINTS)
    keys = {one: (one.get_window_extent().width, one.get_window_extent().height) for one in figure.legends}
    under = sum(high / figure.dpi + 0.04 for one, (_, high) in keys.items() if one.get_label() == BELOW)
    beside = max([wide / figure.dpi + 0.04 for one, (wide, _) in keys.items() if one.get_label() != BELOW], default=0.0)
    whole = height + top + foot + under  # the panels keep their height, whatever stands around them
    figure.set_size_inches(width, whole)
    panels = (0.0, (foot + under) / whole, 1.0 - beside / width, height / whole)
    engine: Any = figure.get_layout_engine()
    engine.set(rect=panels)
    for one in keys:
        place = (0.0, foot / whole, 1.0, 1.0) if one.get_label() == BELOW else (0.0, panels[1], 1.0, panels[3])
        one.set_bbox_to_anchor(place, transform=figure.transFigure)
    figure.text(0.01, 1 - 0.05 / whole, above, fontsize=TITLE_POINTS, va="top")
    figure.text(0.01, 0.05 / whole, below, fontsize=NOTE_POINTS, color=FAINT, va="bottom")
    figure.set_label(f"{title}. {alt}" if title else alt)
    # Notebooks keep it as the alternative text of the picture.
    figure._repr_mimebundle_ = partial(_described, figure)  # type: ignore[attr-defined]
    plt.close(figure)
    return figure


def alternative(figure: Figure) -> str:
    """What a figure shows, in words."""
    return str(figure.get_label())


def _described(figure: Figure, **_: Any) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
    return {"text/plain": alternative(figure)}, {"image/png": {"alt": alternative(figure)}}


def _fitted(text: str, inches: float, points: float) -> str:
    letters = int(inches * 72 / (LETTER_WIDTH * points))
    text = text.replace(" = ", "\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}")  # "n = 3" stays in one line
    return "\n".join(textwrap.fill(line, letters) for line in text.split("\n")).replace("\N{NO-BREAK SPACE}", " ")


def _inches(text: str, points: float) -> float:
    """Height of lines of text, with some room around them."""
    return (text.count("\n") + 1) * points * 1.3 / 72 + 0.08 if text else 0.0


def fits(text: str, inches: float, *, points: float = 7.5) -> str:
    """A text in lines that fit into a width; a word is never broken."""
    return textwrap.fill(text, max(4, int(inches * 72 / (LETTER_WIDTH * points))), break_long_words=False)


def is_narrow(width: float) -> bool:
    """Whether a figure of this width, in inches, stands in a column."""
    return width < NARROW_INCHES


def legend(figure: Figure, handles: Sequence[Any], *, width: float, beside: Beside = "center right") -> None:
    """The legend beside the panels, or below them in a column or where `beside` is empty; never over the data.

    Below it has as many columns as fit. `finish` makes room for it.
    """
    if beside and not is_narrow(width):
        figure.legend(handles=list(handles), loc=beside, borderaxespad=0)
        return
    for columns in range(len(handles), 0, -1):
        made = figure.legend(
            handles=list(handles), loc="lower left", ncols=columns, columnspacing=1.2, borderaxespad=0, borderpad=0.3
        )
        if columns == 1 or made.get_window_extent().width / figure.dpi <= width - 0.05:
            made.set_label(BELOW)
            return
        made.remove()


def group_handles(names: Sequence[str]) -> list[Line2D]:
    """A line of the legend for each group (`vqa/T1`: that of T1)."""
    keys = [name.rpartition("/")[2] for name in names]
    return [
        Line2D([], [], color=COLOURS[key], marker=MARKERS[key], linewidth=1.1, markersize=5, label=NAMES.get(key, key))
        for key in keys
    ]


def study_of(results: Results) -> Study:
    """The study behind results; an error where it is not known."""
    return results.known_study("This figure needs it.")


def require(names: Sequence[Any], what: str) -> None:
    """An error where there is nothing to draw."""
    if not len(names):
        raise InputError(f"A figure needs one of {what} at least; an empty list was given.")


def factor_of(results: Results, name: str) -> Factor:
    """One of its factors; an error that lists them where there is none of this name."""
    results.margin(name)
    return next(factor for factor in study_of(results).factors if factor.name == name)


def titled(name: str) -> str:
    """`English share` for `english_share`."""
    return name.replace("_", " ").capitalize().replace("english", "English")


def phrase(name: str) -> str:
    """`English share` within a sentence, `languages` for `languages`."""
    return name.replace("_", " ").replace("english", "English")


def short(factor: Factor, one: Level) -> str:
    """`50%` for `50% English` on an axis that is called English share."""
    return factor.label(one).removesuffix(" English") if factor.name == "english_share" else factor.label(one)


def metric_title(metric: str, task: str | None = None) -> str:
    """`Score, reading`."""
    name = METRIC_LABELS.get(metric, metric).partition(" (")[0]
    name = name[:1].upper() + name[1:]
    return f"{name}, {task}" if task else name


def unit(metric: str) -> str:
    """`score (%)`."""
    return METRIC_LABELS.get(metric, f"{metric} (%)")


def axis_label(metric: str) -> str:
    """`score (%)`; of a metric with a long name, which stands in the title, the unit alone."""
    said = unit(metric)
    return said if len(said) <= 16 else said.rpartition("(")[2].rstrip(")")


def group_title(group: str) -> str:
    """`English`, `T1`, `reading, T1`."""
    task, _, name = group.rpartition("/")
    said = NAMES.get(name, name)
    return f"{task}, {said}" if task else said


def seeds_said(results: Results, arms: Sequence[str] | None = None) -> str:
    """`3 seeds`, or `2 to 3 seeds` where arms have different numbers of them."""
    counts = results.arms()["seeds"]
    counts = counts.loc[[arm for arm in arms if arm in counts.index]] if arms else counts
    return seeds_between(int(counts.min()), int(counts.max()))


def seeds_between(least: int, most: int) -> str:
    """`3 seeds`, or `2 to 3 seeds`."""
    return f"{most} seed{'s' if most != 1 else ''}" if least == most else f"{least} to {most} seeds"


def published_said(results: Results, factor: str, metric: str, names: Sequence[str]) -> str:
    """Where a published curve comes from, and how its order agrees with ours."""
    found = {name: overlay(results, factor, metric=metric, group=name) for name in names}
    sources = list(dict.fromkeys(str(source) for one in found.values() for source in one.get("source", ())))
    if not sources:
        return "No published curve has these levels."
    agreed = {
        name: agreement(results, factor, metric=metric, group=name) for name, one in found.items() if not one.empty
    }
    said = [
        f"{group_title(name)} {one.rho:.2f}" + (f" [{one.low:.2f}, {one.high:.2f}]" if np.isfinite(one.low) else "")
        for name, one in agreed.items()
        if np.isfinite(one.rho)
    ]
    levels = max(one.n_levels for one in agreed.values())
    return (
        f"Dotted, x: {'; '.join(sources)}, one run per arm, shifted and stretched to the mean and spread of ours. "
        f"Rank correlation over the {levels} shared levels: {', '.join(said) or 'not known'}."
    )


def counted(least: int, most: int, noun: str) -> str:
    """`384 answers`, or `100 to 384 answers` where it differs."""
    return f"{most:,} {noun}" if least == most else f"{least:,} to {most:,} {noun}"


def sample_said(results: Results, arms: Sequence[str] | None = None) -> str:
    """What a figure rests on: `n = 3 seeds x 16 languages`, with `example records` where they are not the user's."""
    languages = results.table["language"].nunique()
    said = f"n = {seeds_said(results, arms)} x {languages} languages"
    return f"{said}. Example records, study {results.name}" if results.is_example else said
