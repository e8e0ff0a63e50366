"""The batches of an unfinished translation, one line each, in the order in which they were made. A process that is
killed leaves at most the beginning of a line, which is cut off."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lvlm.errors import InputError
from lvlm.translate.translator import Translation


class Journal:
    """Translations by window, which come back in the order in which they went in. `settings` are those that the
    translations depend on: a journal of others is an error."""

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(path, "a+b")  # noqa: SIM115  open until `close`
        self._cut_torn_line()
        self._file.seek(0)
        head = self._file.readline()
        if head:
            self._check(json.loads(head), settings)
        else:
            self._append(dict(settings))
        self._ahead = self._next()

    def window(self, number: int) -> dict[str, Translation]:
        """What is known of a window; ask for every window once and in order."""
        known: dict[str, Translation] = {}
        while self._ahead is not None and self._ahead["window"] == number:
            answers = [Translation(*answer) for answer in self._ahead["answers"]]
            known.update(zip(self._ahead["texts"], answers, strict=True))
            self._ahead = self._next()
        return known

    def add(self, number: int, texts: Sequence[str], answers: Sequence[Translation]) -> None:
        """A finished batch."""
        self._append({"window": number, "texts": list(texts), "answers": [list(answer) for answer in answers]})

    def close(self) -> None:
        self._file.close()

    def _append(self, entry: Mapping[str, Any]) -> None:
        self._file.write((json.dumps(entry, ensure_ascii=False) + "\n").encode("utf-8", "surrogatepass"))
        self._file.flush()

    def _next(self) -> dict[str, Any] | None:
        line = self._file.readline()
        return json.loads(line) if line else None

    def _cut_torn_line(self) -> None:
        self._file.seek(0)
        end = 0
        for line in self._file:
            if line.endswith(b"\n"):
                end += len(line)
        self._file.truncate(end)

    def _check(self, found: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
        if differing := [name for name in settings if found.get(name) != settings[name]]:
            told = "; ".join(f"{name} was {found.get(name)}, is {settings[name]}" for name in differing)
            raise InputError(
                f"{self.path} is a translation begun with other settings ({told}). Give the same ones to go on, or "
                "remove the file to start again."
            )
