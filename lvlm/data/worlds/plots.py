"""Bar and pie plots, as data, and what is asked about them: after SMPQA (Centurio, arXiv 2501.05122, section 5.4).
Called by `plots_corpus`; `chart` draws them. A plot knows no words: labels are given when it is drawn or asked about.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Kind = Literal["bar", "pie"]
Topic = Literal["biggest", "smallest", "colour"]

BARS = (4, 8)
VALUES = (30, 100)
CLEARLY: dict[Kind, int] = {"bar": 5, "pie": 10}
"""The biggest and the smallest value are at least so far from the next one, so that a reader can tell them."""
PLOT_COLOURS = {
    "blue": (31, 96, 196),
    "green": (44, 150, 62),
    "red": (214, 39, 40),
    "yellow": (247, 218, 40),
    "black": (20, 20, 20),
    "orange": (255, 138, 20),
    "purple": (120, 50, 160),
    "brown": (122, 72, 38),
    "pink": (250, 160, 205),
    "gray": (150, 150, 150),
}  # fmt: skip
"""Names as the questions say them, and RGB."""
SHORT_ANSWER = "\nAnswer the question using a single word or phrase."


@dataclass(frozen=True, slots=True)
class Plot:
    """What a plot shows; the same in every language.

    size: width and height in pixels. horizontal: bars from left to right. start: where a pie's first slice begins, in
    degrees. pulled: the slices that stand out of the pie.
    """

    kind: Kind
    values: tuple[int, ...]
    colours: tuple[str, ...]
    size: tuple[int, int]
    horizontal: bool = False
    start: int = 0
    pulled: tuple[int, ...] = ()

    @property
    def part(self) -> str:
        """What the questions call one of its parts."""
        return "bar" if self.kind == "bar" else "slice"

    @property
    def biggest(self) -> int:
        return self.values.index(max(self.values))

    @property
    def smallest(self) -> int:
        return self.values.index(min(self.values))

    @property
    def configuration(self) -> tuple[object, ...]:
        """What two plots of different splits never share."""
        return self.kind, self.horizontal, self.values, self.colours


def sample_plot(kind: Kind, rng: np.random.Generator) -> Plot:
    """A plot with one clearly biggest and one clearly smallest part, every part in a colour of its own."""
    parts = int(rng.integers(BARS[0], BARS[1] + 1))
    while True:
        values = tuple(int(value) for value in rng.integers(VALUES[0], VALUES[1] + 1, parts))
        ordered = sorted(values)
        if min(ordered[1] - ordered[0], ordered[-1] - ordered[-2]) >= CLEARLY[kind]:
            break
    names = list(PLOT_COLOURS)
    colours = tuple(names[int(i)] for i in rng.permutation(len(names))[:parts])
    if kind == "pie":
        height = int(rng.integers(440, 501))
        size = height + int(rng.integers(340, 381)), height  # room for a label on either side
        pulled = tuple(part for part in range(parts) if rng.random() < 0.25)
        return Plot("pie", values, colours, size, start=int(rng.integers(360)), pulled=pulled)
    if rng.random() < 0.5:
        return Plot("bar", values, colours, (int(rng.integers(640, 721)), 110 + 56 * parts), horizontal=True)
    slot = 172 if parts < 6 else 88  # from six bars on the labels are slanted
    return Plot("bar", values, colours, (140 + slot * parts, int(rng.integers(480, 561))))


@dataclass(frozen=True, slots=True)
class PlotQuestion:
    """One question. Ground: whether the label at `part` is the biggest, the smallest, or of `colour`. Read: what the
    label at `part` is, which the question calls the biggest, the smallest, or by its colour."""

    form: Literal["ground", "read"]
    topic: Topic
    part: int
    colour: str = ""
    truth: bool = True

    def text(self, plot: Plot, labels: Sequence[str]) -> str:
        """In English, as in SMPQA: only the labels are in the plot's language."""
        if self.form == "ground":
            claim = f"colored in {self.colour}" if self.topic == "colour" else f"the {self.topic}"
            question = f"Is the {plot.part} with label '{labels[self.part]}' {claim}?"
        else:
            question = f"What is the label of the {self.colour or self.topic} {plot.part}?"
        return question + SHORT_ANSWER

    def answer(self, labels: Sequence[str]) -> str:
        if self.form == "read":
            return labels[self.part]
        return "yes" if self.truth else "no"


def ground_questions(plot: Plot, rng: np.random.Generator) -> list[PlotQuestion]:
    """Eight yes/no questions in pairs of a yes and a no: biggest, smallest, and the colours of two labels."""
    parts = range(len(plot.values))
    questions = []
    for topic, part in (("biggest", plot.biggest), ("smallest", plot.smallest)):
        questions.append(PlotQuestion("ground", topic, part))  # type: ignore[arg-type]
        questions.append(PlotQuestion("ground", topic, _other(parts, part, rng), truth=False))  # type: ignore[arg-type]
    for part in rng.choice(len(plot.values), 2, replace=False).tolist():
        questions.append(PlotQuestion("ground", "colour", part, plot.colours[part]))
        elsewhere = plot.colours[_other(parts, part, rng)]  # of another part, so that seeing the colour is not enough
        questions.append(PlotQuestion("ground", "colour", part, elsewhere, truth=False))
    return questions


def read_questions(plot: Plot, rng: np.random.Generator) -> list[PlotQuestion]:
    """Five questions for a label: of the biggest, of the smallest, and of three colours."""
    return [
        PlotQuestion("read", "biggest", plot.biggest),
        PlotQuestion("read", "smallest", plot.smallest),
        *(
            PlotQuestion("read", "colour", part, plot.colours[part])
            for part in rng.choice(len(plot.values), 3, replace=False).tolist()
        ),
    ]


def _other(parts: range, part: int, rng: np.random.Generator) -> int:
    others = [other for other in parts if other != part]
    return others[int(rng.integers(len(others)))]
