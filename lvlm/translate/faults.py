"""What a translation must have in common with its original: the placeholders and the numbers, in the digits of any
script. `lvlm.translate.driver` refuses whatever has not."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

from lvlm.data.checks import IMAGE_PLACEHOLDER

_NUMBER = re.compile(
    r"\d{1,3}(?:[.,'’٫٬ \u00a0\u202f]\d{3})+(?!\d)"  # 1,000 or 1.000 or 1 000, whatever the language groups with
    r"|\d{1,2}(?:,\d{2})+,\d{3}(?!\d)"  # 1,00,000
    r"|\d+"
)


def numbers(text: str) -> Counter[str]:
    """The numbers of a text and how often each occurs, as ASCII digits without separators of thousands. `3.5` and
    `3,5` are both 3 and 5."""
    return Counter(
        "".join(str(unicodedata.decimal(sign)) for sign in match if sign.isdecimal()) for match in _NUMBER.findall(text)
    )


def fault(text: str, translation: str) -> str:
    """The reason why a translation is refused; an empty text if there is none."""
    if not translation.strip():
        return "empty" if text.strip() else ""
    if text.count(IMAGE_PLACEHOLDER) != translation.count(IMAGE_PLACEHOLDER):
        return "placeholders"
    if numbers(text) != numbers(translation):
        return "numbers"
    return ""
