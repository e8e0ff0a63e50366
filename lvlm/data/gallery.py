"""Images beside what is asked and answered about them, as Jupyter shows them: a look at a corpus before training on it,
and at a model after. Called by `notebooks/00_tour.ipynb`; torch-free."""

from __future__ import annotations

import io
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from PIL import Image, ImageOps

from lvlm.data.corpus import Corpus
from lvlm.languages import language

Line = tuple[str, str, str]
"""(language, what is asked, what is answered)."""


@dataclass(frozen=True)
class Gallery:
    """Image file -> lines, shown as one card per image."""

    cards: Mapping[Path, Sequence[Line]]

    def _repr_html_(self) -> str:
        page = "display: flex; flex-wrap: wrap; gap: 20px 48px; margin: 12px 0"
        card = "display: flex; align-items: center; gap: 20px; max-width: 100%; overflow-x: auto"
        shown = ((_picture(path), "".join(map(_row, lines))) for path, lines in self.cards.items())
        cards = (f'<div style="{card}">{picture}<table>{rows}</table></div>' for picture, rows in shown)
        return f'<div style="{page}">{"".join(cards)}</div>'


def gallery(corpus: Corpus, split: str, *, languages: Sequence[str], samples: int = 3) -> Gallery:
    """The first samples of a training split in each of the languages, by image (the first one of a sample)."""
    cards: dict[Path, list[Line]] = {}
    for code in languages:
        numbers = corpus.row_numbers(split, code)[:samples]
        for sample in corpus.train_rows(split, code).iter_samples(numbers, corpus.name):
            for image in sample.images[:1]:
                cards.setdefault(corpus.image_path(image), []).extend((code, *turn) for turn in sample.turns)
    return Gallery(cards)


def _picture(path: Path) -> str:
    """An image element that holds its pixels, 136 wide on the page."""
    with Image.open(path) as opened:
        image = ImageOps.exif_transpose(opened).convert("RGB")
    image.thumbnail((272, 272))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return f'<img width="136" src="data:image/png;base64,{b64encode(buffer.getvalue()).decode()}">'


def _row(line: Line) -> str:
    """A table row. `dir=auto` has the browser write Arabic and Hebrew from the right."""
    code, *texts = line
    cells = "".join(f'<td dir="auto" style="text-align: start">{escape(text)}</td>' for text in texts)
    return f'<tr><th style="text-align: left">{escape(language(code).name)}</th>{cells}</tr>'
