"""One item of a benchmark as its reader gives it, before it becomes a row of a corpus. Made by the readers of this
package, written by `convert`."""

from __future__ import annotations

from dataclasses import dataclass

Picture = str | bytes
"""The path of an image under the image folder, or the image file itself where a table holds it."""


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked, with every accepted answer. `where` names file and row in a message."""

    task: str
    language: str
    id: str
    prompt: str
    answers: tuple[str, ...]
    images: tuple[Picture, ...]
    source: str
    where: str
