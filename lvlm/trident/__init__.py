"""A command line of Centurio's README (trident and Hydra) as the run config that does the same. Behind
`python -m lvlm from-trident`. No torch."""

from __future__ import annotations

import re
import shlex
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lvlm.config import RunConfig, make_config, set_value, to_yaml
from lvlm.errors import InputError, nearest
from lvlm.trident.fields import fields
from lvlm.trident.keys import EXPERIMENTS, REFUSED
from lvlm.trident.line import KEYS, Line

LAUNCHER = "trident.run"


@dataclass(frozen=True)
class Translation:
    """A run config, and what a reader of it must know: the command that runs it, what has no meaning here, what
    differs."""

    config: RunConfig
    command: str
    notes: list[str]

    def text(self) -> str:
        """YAML that `load_config` reads back to an equal config, under the rest as comments."""
        notes = [
            textwrap.fill(note, 118, initial_indent="# - ", subsequent_indent="#   ", break_on_hyphens=False,
                          break_long_words=False)
            for note in self.notes
        ]  # fmt: skip
        return "\n".join([f"# Run it: {self.command}", *notes, to_yaml(self.config)])


def from_trident(words: Sequence[str]) -> Translation:
    """The run config that does what a command line asks for: its words, or all of it as one text.

    Raises `InputError` for an override that is unknown, cannot be read, contradicts another or has no counterpart.
    """
    given = overrides(words)
    if "experiment" not in given:
        raise InputError(f"The command line names no experiment=...; known here: {', '.join(EXPERIMENTS)}.")
    name = given["experiment"]
    if name in REFUSED:
        raise InputError(f"experiment={name} has no counterpart here: {REFUSED[name]}.")
    if name not in EXPERIMENTS:
        raise InputError(f"experiment={name} is unknown. The nearest known ones are: {nearest(name, [*EXPERIMENTS])}.")
    line = Line(EXPERIMENTS[name], given)
    data: dict[str, Any] = {}
    for field, value in fields(line).items():
        set_value(data, field, value)
    config = make_config(data, where="The run config of this command line")
    return Translation(config, line.command(config), [*line.notes, *line.meaningless()])


def overrides(words: Sequence[str]) -> dict[str, str]:
    """Override -> text of its value, without the `+` before and the quotes around; what starts trident is left out."""
    words = _split(words[0]) if len(words) == 1 else list(words)
    if LAUNCHER in words:
        words = words[words.index(LAUNCHER) + 1 :]
    found: dict[str, str] = {}
    for word in words:
        name, sign, value = word.partition("=")
        name = name.lstrip("+")
        if not sign or name.startswith("-") or len(word.splitlines()) > 1:
            raise InputError(f"'{word}' is no override of the form key=value, such as run.llm=FOLDER.")
        if name not in KEYS:
            raise InputError(f"The override '{name}' is unknown. The nearest known ones are: {nearest(name, [*KEYS])}.")
        found[name] = _unquoted(value)  # given twice the last one counts, as in Hydra
    return found


def _split(text: str) -> list[str]:
    """The words of a command line of one or more lines, without the backslashes and comments at their ends."""
    words = []
    for line in text.splitlines():
        line = re.sub(r"(^|\s)#.*", "", line).rstrip().removesuffix("\\")
        try:
            words += shlex.split(line)
        except ValueError as error:
            raise InputError(f"The command line cannot be read ({error}): {line.strip()}") from error
    return words


def _unquoted(text: str) -> str:
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "\"'"
    return text[1:-1] if quoted else text
