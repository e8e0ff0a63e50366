"""Pieces of HTML that notebooks and the report share: tables with captions, pictures with alternative texts, and the
line that says whose records are shown."""

from __future__ import annotations

import io
from base64 import b64encode
from html import escape
from typing import TYPE_CHECKING, Any

import pandas as pd

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ablations.table import Results

VERDICT_CLASSES = {"shown": "shown", "contradicted": "contradicted", "within noise": "noise", "not judged": "not"}
EXAMPLE_STYLE = "border-left:4px solid #e69f00;padding:4px 12px;margin:4px 0"
OWN_STYLE = "border-left:4px solid #0072b2;padding:4px 12px;margin:4px 0"


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
    """A table with its caption; header cells are told from others, numbers stand right, and `sortable` ones are sorted
    by the report's script. A wide one scrolls in its own region, which the keyboard reaches."""
    heads = "".join(f"<th scope='col'>{escape(str(name))}</th>" for name in frame.columns)
    numeric = [pd.api.types.is_numeric_dtype(kind) for kind in frame.dtypes]
    body = []
    for row in frame.itertuples(index=False, name=None):
        cells = []
        for number, value in enumerate(row):
            text = "–" if _is_missing(value) else str(value)
            kind = f" class='v-{VERDICT_CLASSES[text]}'" if text in VERDICT_CLASSES else ""
            kind = " class='n'" if numeric[number] and not kind else kind
            cells.append(f"<th scope='row'>{escape(text)}</th>" if number == 0 else f"<td{kind}>{escape(text)}</td>")
        body.append(f"<tr>{''.join(cells)}</tr>")
    kind = " class='sortable'" if sortable else ""
    said = f"<caption>{escape(caption)}</caption>"
    whole = f"<table{kind}>{said}<thead><tr>{heads}</tr></thead><tbody>{''.join(body)}</tbody></table>"
    return f"<div class='wide' role='region' tabindex='0' aria-label='{escape(caption)}'>{whole}</div>"


def picture(figure: Figure, *, dots_per_inch: int = 170) -> str:
    """A figure as an image in the page, as wide on it as in print and a half, with its description."""
    from ablations.plots import alternative

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dots_per_inch)
    data = b64encode(buffer.getvalue()).decode("ascii")
    width = round(figure.get_size_inches()[0] * 140)
    said = escape(alternative(figure))
    return f"<p class='picture'><img width='{width}' alt='{said}' src='data:image/png;base64,{data}'></p>"


def _is_missing(value: Any) -> bool:
    return value is None or bool(pd.api.types.is_scalar(value) and pd.isna(value))
