"""What every form of source is read into: the turns and pictures of one row, or the reason why it was refused. The
forms fill records, `lvlm.data.sources.writer` makes rows of a corpus out of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lvlm.data.checks import IMAGE_PLACEHOLDER

IMAGE_TOKEN = "<image>"
"""Where LLaVA's family puts an image into a text."""


class Refused(Exception):
    """Why one row cannot become a sample: a reason that rows share, and what is particular to this one."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True, slots=True)
class Picture:
    """An image of a row: its path below an image root, or the bytes of its file."""

    path: str = ""
    content: bytes | None = None


@dataclass(frozen=True, slots=True)
class Record:
    """One conversation as its source has it. `mended` says what was left out or changed, in words that rows share."""

    turns: tuple[tuple[str, str], ...]
    pictures: tuple[Picture, ...] = ()
    id: str | None = None
    source: str | None = None
    mended: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Fields:
    """Which columns of a table, or fields of a JSON object, hold what; for the forms that do not fix it themselves."""

    image: str | None = None
    question: str | None = None
    answer: str | None = None
    id: str | None = None
    source: str | None = None
    prompt: str | None = None
    """What the user says where there is no question."""


@dataclass(frozen=True, slots=True)
class Form:
    """A form in which data sets are distributed: how its rows are found, and what is in one of them."""

    about: str
    suffixes: tuple[str, ...]
    rows: Callable[[Path], Iterator[tuple[str, Any]]]
    """A file -> (place of the row for messages, the row). Holds a few rows at a time. `InputError` for a broken
    file."""
    record: Callable[[Any, Fields], Record]
    """Raises `Refused` for a row that cannot become a sample."""
    fields: tuple[str, ...] = ()
    """Which of `Fields` it looks at."""
    streams: bool = False
    """Whether the path `-` may stand for standard input."""


def pictures(value: Any) -> tuple[Picture, ...]:
    """The images of a row: a path, the bytes of a file, an object of both as Hugging Face stores them, or a list."""
    if isinstance(value, list):
        return tuple(picture for entry in value for picture in _picture(entry))
    return _picture(value)


def _picture(value: Any) -> tuple[Picture, ...]:
    match value:
        case None | "":
            return ()
        case str():
            return (Picture(path=value.removeprefix("./")),)
        case bytes():
            return (Picture(content=value),)
        case {"bytes": bytes(content)}:
            return (Picture(content=content),)
        case {"path": str(path)} if path:
            return (Picture(path=path.removeprefix("./")),)
        case _:
            raise Refused("an image that is neither a path nor the bytes of a file", type(value).__name__)


def text_id(value: Any) -> tuple[str | None, tuple[str, ...]]:
    """The id of a row as text, and what was mended for it."""
    if value is None or value == "":
        return None, ()
    if isinstance(value, str) or type(value) is int:
        return str(value), ()
    return None, ("an id that is neither text nor a whole number was replaced",)


def optional_text(value: Any) -> str | None:
    """A text that says something, or nothing."""
    return value if isinstance(value, str) and value else None


def placed(turns: list[tuple[str, str]], images: int, *, in_front: bool = False) -> tuple[tuple[str, str], ...]:
    """The turns with our placeholder where the source had `<image>`; `in_front` puts several images without one before
    the first turn."""
    if any(IMAGE_PLACEHOLDER in text for turn in turns for text in turn):
        raise Refused(f"a text that holds {IMAGE_PLACEHOLDER}")
    marks = sum(user.count(IMAGE_TOKEN) for user, _ in turns)
    if not marks and in_front and images > 1:
        (user, answer), *rest = turns
        return ((IMAGE_PLACEHOLDER * images + "\n" + user, answer), *rest)
    if marks != images and (marks or images > 1):
        raise Refused(f"{IMAGE_TOKEN} and the images differ in number", f"{marks} and {images}")
    return tuple((user.replace(IMAGE_TOKEN, IMAGE_PLACEHOLDER), answer) for user, answer in turns)
