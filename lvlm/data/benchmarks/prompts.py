"""What a benchmark asks: its prompts from the table `prompts.yaml`, with the item's own words filled in.
Called by the readers of this package."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from string import ascii_uppercase

import yaml

from lvlm.data.checks import IMAGE_PLACEHOLDER
from lvlm.languages import language

QUESTION_MARKS = ("?", "？", "؟", ";", "⸮", "፧")
LETTERS = ascii_uppercase


@cache
def prompts() -> dict[str, str]:
    """Name -> prompt with fields in braces, as in `prompts.yaml`."""
    text = files("lvlm").joinpath("data/benchmarks/prompts.yaml").read_text(encoding="utf-8")
    table: dict[str, str] = yaml.safe_load(text)
    return table


def prompt(
    name: str,
    code: str,
    *,
    question: str = "",
    hypothesis: str = "",
    options: Sequence[str] = (),
    images: int = 1,
) -> str:
    """The prompt of this name for an item in the language `code`. Braces in the item's own words stay as they are."""
    fields = {
        "question": question.strip(),
        "hypothesis": hypothesis.strip(),
        "options": lettered(options),
        "language": language(code).name,
        "images": IMAGE_PLACEHOLDER * images,
    }
    return re.sub(r"\{(\w+)\}", lambda field: fields[field[1]], prompts()[name])


def asked(question: str) -> str:
    """A question that ends in a question mark of its script, or in the Latin one."""
    return question if question.rstrip().endswith(QUESTION_MARKS) else f"{question.rstrip()}?"


def lettered(options: Sequence[str]) -> str:
    """One line per option: `A. ...`."""
    return "\n".join(f"{letter}. {option.strip()}" for letter, option in zip(LETTERS, options, strict=False))
