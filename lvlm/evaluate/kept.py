"""Answers of an unfinished evaluation, kept beside its tables until these are written, so that a killed one goes on.
Called by `lvlm.evaluate`; torch-free."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from lvlm.config import fingerprint
from lvlm.data.images import content_digest
from lvlm.evaluate.items import Asked
from lvlm.processes import process_index


class KeptAnswers:
    """Answers by the place of their item among those asked, in one hidden file of `folder` for each process: a line for
    every batch. A killed process leaves at most the beginning of a line, which is left aside.

    `model` is what the answers depend on beside the items: the model's digests and how it computes. Answers of another
    model, of other items, prompts or pictures, or of other lengths are never taken. `home` is the work folder, where
    the digests of pictures are remembered.
    """

    def __init__(self, folder: Path, model: Mapping[str, Any], *, home: Path | None = None) -> None:
        self.folder = folder
        self.model = dict(model)
        self.home = home
        self._pattern = ""
        self._file: IO[bytes] | None = None

    def open(self, asked: Sequence[Asked], max_new_tokens: int, forced_tokens: int = 0) -> dict[int, str]:
        """The answers that there are, of whatever number of processes; `add` goes on with its own file."""
        items = [(*entry.row, entry.item.id, entry.item.prompt, entry.item.images) for entry in asked]
        pictures = content_digest(
            (entry.corpus.image_path(name) for entry in asked for name in entry.item.images), self.home
        )
        forced = [forced_tokens] if forced_tokens else []
        key = fingerprint([self.model, max_new_tokens, items, pictures, *forced])
        self._pattern = f".answers-{key}-*.jsonl"
        known: dict[int, str] = {}
        for path in sorted(self.folder.glob(self._pattern)):
            for line in path.read_bytes().splitlines(keepends=True):
                if line.endswith(b"\n"):
                    known.update(json.loads(line))
        self.folder.mkdir(parents=True, exist_ok=True)
        self._file = _appending(self.folder / f".answers-{key}-{process_index()}.jsonl")
        return known

    def add(self, answers: Mapping[int, str]) -> None:
        """A finished batch."""
        assert self._file is not None, "open it first"
        line = json.dumps(list(answers.items()), ensure_ascii=False) + "\n"
        self._file.write(line.encode("utf-8", "surrogatepass"))
        self._file.flush()

    def remove(self) -> None:
        """Forget the answers of all processes: the tables are written."""
        if self._file is not None:
            self._file.close()
            self._file = None
        if self._pattern:
            for path in self.folder.glob(self._pattern):
                path.unlink(missing_ok=True)


def _appending(path: Path) -> IO[bytes]:
    """The file, cut behind its last whole line."""
    file = open(path, "a+b")  # noqa: SIM115  open until `remove`
    file.seek(0)
    file.truncate(sum(len(line) for line in file if line.endswith(b"\n")))
    return file
