"""Painted pictures on one sheet: rows of languages, columns of prompts or seeds. Used by the command `paint` and by
notebooks; no torch."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from lvlm.data.worlds.fonts import font
from lvlm.errors import InputError
from lvlm.languages import in_table_order
from lvlm.records import PREDICTIONS_FILE

SHOWN_PIXELS = 128
"""Smaller pictures are shown enlarged by a whole number, as long as a side has no more pixels than this."""
RIGHT, WRONG = (40, 150, 70), (190, 190, 190)


def grid(
    pictures: npt.NDArray[np.uint8],
    labels: Sequence[str] | None,
    *,
    columns: int,
    heads: Sequence[str] = (),
    right: Sequence[bool] | None = None,
    side: int = SHOWN_PIXELS,
) -> Image.Image:
    """(pictures, side, side, 3) in rows of `columns`, each row behind its label and each column below its head. With
    `right` pictures are framed, those that are right in green."""
    own = pictures.shape[1]
    side = own * max(1, side // own)
    gap = side // 16
    letters = max(8, side // 8)
    margin = 0 if labels is None else side // 2
    top = max([0, *(letters * 3 * (head.count("\n") + 1) // 2 for head in heads)])
    rows, step = len(pictures) // columns, side + gap
    sheet = Image.new("RGB", (margin + columns * step + gap, top + rows * step + gap), "white")
    draw = ImageDraw.Draw(sheet)
    for place, picture in enumerate(pictures):
        row, column = divmod(place, columns)
        left, upper = margin + gap + column * step, top + gap + row * step
        if right is not None:
            frame = (left - gap // 2, upper - gap // 2, left + side + gap // 2, upper + side + gap // 2)
            draw.rectangle(frame, fill=RIGHT if right[place] else WRONG)
        sheet.paste(Image.fromarray(picture).resize((side, side), Image.Resampling.NEAREST), (left, upper))
    for row, text in enumerate(labels or ()):
        draw.text(
            (margin // 2, top + gap + row * step + side // 2), text, "black", font(max(9, side // 5)), anchor="mm"
        )
    for column, text in enumerate(heads):
        middle = (margin + gap + column * step + side // 2, top // 2)
        draw.multiline_text(middle, text, "black", font(letters), anchor="mm", align="center", spacing=1)
    return sheet


def side_by_side(folder: str | Path, *, items: int = 6, side: int = 60) -> Image.Image:
    """The pictures that a finished run painted of some prompts, a row for each language, and those that show every
    attribute of their prompt in a green frame. The noise is the same down a column. Notebooks keep an alternative text
    with it, which says how many are right in each language."""
    import pandas as pd

    folder = Path(folder)
    if not (folder / PREDICTIONS_FILE).exists():
        raise InputError(
            f"{folder} holds no {PREDICTIONS_FILE}: give the folder of a finished run with the stage paint."
        )
    table = pd.read_parquet(folder / PREDICTIONS_FILE)
    painted = table[table["task"] == "paint"] if "image" in table else table[:0]
    if painted.empty:
        raise InputError(f"The run {folder} has painted nothing. Give one with the stage paint.")
    codes = in_table_order(painted["language"].unique())
    chosen = painted[painted["language"] == codes[0]]
    chosen = chosen.iloc[:: max(1, len(chosen) // items)][:items]
    rows: Any = painted.set_index(["language", "item"])
    shown = [rows.loc[(code, item)] for code in codes for item in chosen["item"]]
    pictures = np.stack([np.asarray(Image.open(folder / row["image"]).convert("RGB")) for row in shown])
    heads = [answer.replace(" ", "\n").replace(":", " ").split("\n") for answer in chosen["answer"]]
    right = [bool(row["score"] == 100) for row in shown]
    sheet = grid(
        pictures,
        codes,
        columns=len(chosen),
        heads=["\n".join(words.split(" ")[-1] for words in head) for head in heads],
        right=right,
        side=side,
    )
    counts = np.reshape(right, (len(codes), -1)).sum(axis=1)
    said = ", ".join(f"{code} {count}" for code, count in zip(codes, counts, strict=True))
    alt = f"What {len(chosen)} prompts painted, a row for each language. Right in every attribute: {said}."
    sheet._repr_mimebundle_ = partial(_described, alt)  # type: ignore[attr-defined]
    return sheet


def _described(alt: str, **_: Any) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
    return {"text/plain": alt}, {"image/png": {"alt": alt}}
