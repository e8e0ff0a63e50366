"""Pieces of HTML that notebooks and the report share: tables with captions, pictures with alternative texts, and the
line that says whose records are shown."""

from __future__ import annotations

import io
import re
from base64 import b64encode
from collections.abc import Callable
from html import escape
from typing import TYPE_CHECKING, Any

import pandas as pd

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ablations.table import Results

VERDICT_CLASSES = {"shown": "shown", "contradicted": "contradicted", "within noise": "noise", "not judged": "not"}
EXAMPLE_STYLE = "border-left:4px solid #e69f00;padding:4px 12px;margin:4px 0"
OWN_STYLE = "border-left:4px solid #0072b2;padding:4px 12px;margin:4px 0"
PIXELS_PER_INCH, NARROW_PIXELS, DOTS_PER_INCH = 140, 600, 170
"""Of a figure's width on the page; the width of a page below which figures are those of a column; of the image."""
NUMBER = r"(> )?[+-]?[\d,]+(\.\d+)?(e[+-]?\d+)?%?"
RIGHT = rf"{NUMBER}|\[{NUMBER}, {NUMBER}\]|–"
"""A column of nothing but such texts stands right."""


def results_html(results: Results) -> str:
    """What Jupyter shows of results: whose they are, how many, and the arms."""
    arms = results.arms().reset_index()
    arms["arm"] = [f"{arm} (baseline)" if results.study and arm == results.baseline else arm for arm in arms["arm"]]
    question = f"<p><em>{escape(results.study.question)}</em></p>" if results.study else ""
    return f"{banner(results)}{question}<p>{escape(results.summary())}</p>{table(arms, 'Arms, their levels and seeds')}"


def banner(results: Results) -> str:
    """Whose records are shown, so that nobody takes examples for their own."""
    style = EXAMPLE_STYLE if results.is_example else OWN_STYLE
    told = f"<b>{escape(results.source.partition(':')[0])}</b>:{escape(results.source.partition(':')[2])}"
    if results.is_example:
        name = escape(results.name)
        told += f" Your own come from <code>python -m sweeps launch {name}</code>; notebooks then show them with "
        told += f'<code>study = "{name}"</code>.'
    return f"<p role='note' style='{style}'>{told}</p>"


def table(frame: pd.DataFrame, caption: str, *, sortable: bool = False) -> str:
    """A table with its caption; header cells are told from others, columns of numbers or intervals stand right, and
    `sortable` ones are sorted by the report's script. A wide one scrolls in its own region, which the keyboard
    reaches."""
    heads = "".join(f"<th scope='col'>{escape(str(name))}</th>" for name in frame.columns)
    texts = [[_cell(value) for value in row] for row in frame.itertuples(index=False, name=None)]
    numeric = [all(re.fullmatch(RIGHT, text) for text in column) for column in zip(*texts, strict=True)]
    body = []
    for row in texts:
        cells = []
        for number, text in enumerate(row):
            kind = f" class='v-{VERDICT_CLASSES[text]}'" if text in VERDICT_CLASSES else ""
            kind = " class='n'" if numeric[number] and not kind else kind
            cells.append(f"<th scope='row'>{escape(text)}</th>" if number == 0 else f"<td{kind}>{escape(text)}</td>")
        body.append(f"<tr>{''.join(cells)}</tr>")
    kind = " class='sortable'" if sortable else ""
    said = f"<caption>{escape(caption)}</caption>"
    whole = f"<table{kind}>{said}<thead><tr>{heads}</tr></thead><tbody>{''.join(body)}</tbody></table>"
    return f"<div class='wide' role='region' tabindex='0' aria-label='{escape(caption)}'>{whole}</div>"


def picture(draw: Callable[..., Figure], *given: Any, **options: Any) -> str:
    """A figure as an image in the page, with its description: drawn across a page, for a narrow screen in a column's
    width. `draw` is a function of `ablations.plots` that takes a `width`."""
    from ablations.plots import COLUMN_INCHES, PAGE_INCHES, alternative

    wide = draw(*given, width=PAGE_INCHES, **options)
    narrow = draw(*given, width=COLUMN_INCHES, **options)
    shown = round(PAGE_INCHES * PIXELS_PER_INCH)
    return (
        f"<p class='picture'><picture><source media='(max-width: {NARROW_PIXELS}px)' srcset='{_png(narrow)}'>"
        f"<img width='{shown}' alt='{escape(alternative(wide))}' src='{_png(wide)}'></picture></p>"
    )


def _png(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DOTS_PER_INCH)
    return f"data:image/png;base64,{b64encode(buffer.getvalue()).decode('ascii')}"


def _cell(value: Any) -> str:
    is_missing = value is None or bool(pd.api.types.is_scalar(value) and pd.isna(value))
    return "–" if is_missing else str(value)
