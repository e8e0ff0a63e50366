"""Tables in the layout of the field's papers: a row per arm, a column per tier, the average first. Called as
`results.layout()`, `results.to_latex()` and `results.to_markdown()`."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Literal

import numpy as np

from ablations.contrasts import effect, groups, level
from ablations.factors import Level
from ablations.outcomes import GROUP_ORDER
from ablations.plots.style import seeds_said
from lvlm.errors import InputError

if TYPE_CHECKING:
    from ablations.table import Results

Show = Literal["levels", "differences"]
COLUMN_ORDER = ("multilingual", "en", *GROUP_ORDER[1:-1])
"""As in Centurio's tables: the average, English, then the tiers from high to low."""
COLUMN_NAMES = {"multilingual": "multil."}
LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "·": r"$\cdot$", "×": r"$\times$", "−": "$-$", "–": "--",
    "±": r"$\pm$", "<": "$<$", ">": "$>$", "[": "{[}", "*": "{*}",
}  # fmt: skip
"""A bracket or a star at the start of a row would be taken for an option of the line break before it."""
SMALLEST = "smallest visible"
LETTERS = 18
"""Of a row's name in one line."""


@dataclass(frozen=True)
class Cell:
    """A number with its interval (NaN where there is none); `is_best` where it is told apart from all others."""

    value: float
    low: float
    high: float
    is_best: bool = False
    excludes_zero: bool = False
    signed: bool = False

    def number(self) -> str:
        return "–" if np.isnan(self.value) else f"{self.value:{'+' if self.signed else ''}.1f}".replace("-", "−")

    def bounds(self) -> str:
        form = "+.1f" if self.signed else ".1f"
        return f"[{self.low:{form}}, {self.high:{form}}]".replace("-", "−") if np.isfinite(self.low) else ""


@dataclass(frozen=True)
class Layout:
    """A table of arms x groups; Jupyter shows it, `to_latex` and `to_markdown` are for a paper.

    `smallest` has the smallest visible difference from the baseline for each column, a last row; empty where none is
    known.
    """

    columns: tuple[str, ...]
    rows: Mapping[str, tuple[Cell, ...]]
    caption: str
    label: str
    smallest: tuple[str, ...] = ()

    def to_latex(self, *, intervals: bool = True) -> str:
        r"""As LaTeX, with booktabs (`\usepackage{booktabs}`); intervals in a smaller size below the numbers, so that
        seven columns fit across a page of two columns."""
        lines = [
            r"\begin{table*}", r"\centering", r"\small", r"\setlength{\tabcolsep}{2pt}",
            rf"\begin{{tabular}}{{l{'r' * len(self.columns)}}}", r"\toprule", _latex_row("", self.columns), r"\midrule",
        ]  # fmt: skip
        for arm, cells in self.rows.items():
            with_bounds = intervals and any(one.bounds() for one in cells)
            first, rest = _in_two(arm) if with_bounds else (arm, "")
            lines.append(" & ".join([_latex(first), *map(_latex_number, cells)]) + r" \\")
            if with_bounds:
                bounds = (rf"{{\scriptsize {_latex(one.bounds())}}}" if one.bounds() else "" for one in cells)
                lines.append(" & ".join([_latex(rest), *bounds]) + r" \\[2pt]")
        if self.smallest:
            lines += [r"\midrule", _latex_row(SMALLEST, self.smallest)]
        lines += [
            r"\bottomrule",
            r"\end{tabular}",
            rf"\caption{{{_latex(self.caption)}}}",
            rf"\label{{tab:{self.label}}}",
        ]
        return "\n".join([*lines, r"\end{table*}"]) + "\n"

    def to_markdown(self, *, intervals: bool = True) -> str:
        """As a table of GitHub's Markdown, its caption below."""
        rows = [["", *self.columns], ["---", *["---:"] * len(self.columns)]]
        for arm, cells in self.rows.items():
            rows.append([arm.replace("|", r"\|"), *(_plain_cell(one, intervals, "**") for one in cells)])
        if self.smallest:
            rows.append([SMALLEST, *self.smallest])
        return "\n".join(f"| {' | '.join(row)} |" for row in rows) + f"\n\n{self.caption}\n"

    def __repr__(self) -> str:
        return self.to_markdown()

    def _repr_html_(self) -> str:
        heads = "".join(f"<th scope='col' style='text-align:right'>{escape(name)}</th>" for name in self.columns)
        body = []
        for arm, cells in self.rows.items():
            shown = "".join(f"<td style='text-align:right;white-space:nowrap'>{_html_cell(one)}</td>" for one in cells)
            body.append(f"<tr><th scope='row' style='text-align:left'>{escape(arm)}</th>{shown}</tr>")
        if self.smallest:
            shown = "".join(f"<td style='text-align:right'>{text}</td>" for text in self.smallest)
            body.append(f"<tr><th scope='row' style='text-align:left'>{SMALLEST}</th>{shown}</tr>")
        caption = f"<caption style='caption-side:bottom;text-align:left'>{escape(self.caption)}</caption>"
        return f"<table>{caption}<thead><tr><td></td>{heads}</tr></thead><tbody>{''.join(body)}</tbody></table>"


def layout(
    results: Results,
    *,
    arms: Sequence[str | Mapping[str, Level]] | None = None,
    factor: str | None = None,
    metric: str = "score",
    task: str | None = None,
    show: Show = "levels",
) -> Layout:
    """Arms x tiers: means with t intervals over seeds (`levels`), or paired differences from the baseline with two-way
    intervals (`differences`).

    `arms` are all, or those that vary `factor` alone. The best mean of a column is in bold only where the 95 % interval
    of its paired difference from every other arm of the table excludes 0.
    """
    if show not in ("levels", "differences"):
        raise InputError(f"show is 'levels' or 'differences', not '{show}'.")
    if arms is not None and factor is not None:
        raise InputError("Give arms or a factor whose arms are shown, not both.")
    every = results.margin(factor) if factor else list(results.arms().index)
    chosen = [results.label(arm) for arm in arms] if arms is not None else every
    if show == "differences":
        chosen = [arm for arm in chosen if arm != results.baseline]
    present = [name.rpartition("/")[2] for name in groups(results, by="tier", task=task)]
    names = [name for name in COLUMN_ORDER if name in present]
    keys = [f"{task}/{name}" if task else name for name in names]
    if not chosen:
        raise InputError(
            "No arm is left for the table: name arms with results, for differences other than the baseline."
        )
    rows: dict[str, list[Cell]] = {arm: [] for arm in chosen}
    for key in keys:
        for arm, cell in zip(chosen, _column(results, chosen, metric, key, show), strict=True):
            rows[arm].append(cell)
    smallest = _smallest(results, chosen, metric, keys)
    return Layout(
        columns=tuple(COLUMN_NAMES.get(name, name) for name in names),
        rows={_row_name(results, arm, factor): tuple(cells) for arm, cells in rows.items()},
        caption=_caption(results, chosen, metric=metric, task=task, show=show, with_smallest=bool(smallest)),
        label="-".join(filter(None, [results.name, metric, task, show])).replace("_", "-"),
        smallest=smallest,
    )


def _caption(
    results: Results, arms: Sequence[str], *, metric: str, task: str | None, show: Show, with_smallest: bool
) -> str:
    said = f"{metric.replace('_', ' ')}{f' on {task}' if task else ''} (%)"
    what = (
        f"{said}: means, with 95 % t intervals over seeds"
        if show == "levels"
        else f"{said}: difference from the baseline in points, paired by seed, with 95 % two-way (seed x language) t "
        "intervals; *: the interval excludes 0"
    )
    parts = [f"Study {results.name}, {what}; {seeds_said(results, arms)}."]
    if results.study:
        parts.append(f"Baseline: {results.baseline}.")
    if show == "levels":
        parts.append("Bold: better than every other arm here, each paired 95 % interval clear of 0.")
    if with_smallest:
        parts.append(
            "Last row: the smallest difference from the baseline that these arms' runs would have shown with 80 % "
            "power, in points."
        )
    return " ".join([*parts, *([results.source] if results.is_example else [])])


def _smallest(results: Results, arms: Sequence[str], metric: str, groups_shown: Sequence[str]) -> tuple[str, ...]:
    """The smallest visible difference from the baseline by group, least to most over the arms; none where no arm has
    two seeds in common with it."""
    if results.study is None or results.baseline not in set(results.table["arm"]):
        return ()
    texts = []
    for group in groups_shown:
        found = [effect(results, arm, metric=metric, group=group).smallest for arm in arms if arm != results.baseline]
        seen = sorted(one for one in found if np.isfinite(one))
        texts.append("–".join(dict.fromkeys(f"{one:.1f}" for one in (*seen[:1], *seen[-1:]))) or "–")
    return tuple(texts) if set(texts) - {"–"} else ()


def _column(results: Results, arms: Sequence[str], metric: str, group: str, show: Show) -> list[Cell]:
    if show == "differences":
        found = [effect(results, arm, metric=metric, group=group) for arm in arms]
        return [Cell(one.points, one.low, one.high, excludes_zero=one.verdict == "shown", signed=True) for one in found]
    means = [level(results, arm, metric=metric, group=group) for arm in arms]
    best = _told_apart(results, arms, [one.estimate for one in means], metric, group)
    return [Cell(one.estimate, one.low, one.high, is_best=arm == best) for arm, one in zip(arms, means, strict=True)]


def _told_apart(results: Results, arms: Sequence[str], means: Sequence[float], metric: str, group: str) -> str | None:
    """The arm with the best mean, where it is told apart from every other one; None else, or where it stands alone."""
    known = [(mean, arm) for mean, arm in zip(means, arms, strict=True) if not np.isnan(mean)]
    if len(known) < 2 or results.is_searched:
        return None
    best = max(known)[1]
    others = (effect(results, best, arm, metric=metric, group=group) for _, arm in known if arm != best)
    return best if all(one.low > 0 for one in others) else None


def _row_name(results: Results, arm: str, factor: str | None) -> str:
    """What sets an arm apart; of the baseline its level of the one factor that the table varies, if it is one."""
    if results.study is None or arm != results.baseline:
        return results.short_label(arm)
    varied = [one for one in results.study.factors if factor in (None, one.name)]
    return f"{varied[0].label(results.study.baseline[varied[0].name])} (baseline)" if len(varied) == 1 else "baseline"


def _plain_cell(one: Cell, intervals: bool, bold: str) -> str:
    number = f"{bold}{one.number()}{bold}" if one.is_best else one.number()
    star = " *" if one.excludes_zero else ""
    return " ".join(filter(None, [number, one.bounds() if intervals else ""])) + star


def _latex_row(name: str, texts: Sequence[str]) -> str:
    return " & ".join(map(_latex, [name, *texts])) + r" \\"


def _in_two(name: str) -> tuple[str, str]:
    """A name over two lines, where one would be wide."""
    first, *rest = textwrap.wrap(name, max(LETTERS, len(name) // 2 + LETTERS // 2), break_long_words=False)
    return first, " ".join(rest)


def _latex_number(one: Cell) -> str:
    number = rf"\textbf{{{_latex(one.number())}}}" if one.is_best else _latex(one.number())
    return number + (r"\rlap{$^{*}$}" if one.excludes_zero else "")


def _html_cell(one: Cell) -> str:
    number = f"<b>{one.number()}</b>" if one.is_best else one.number()
    bounds = f" <small>{one.bounds()}</small>" if one.bounds() else ""
    return number + bounds + (" *" if one.excludes_zero else "")


def _latex(text: str) -> str:
    return re.sub("|".join(map(re.escape, LATEX)), lambda found: LATEX[found[0]], text)
