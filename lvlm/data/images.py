"""The image folder of a corpus: paths that stay inside it, files that exist, pictures that decode.
`lvlm.data.corpus` calls it before training, so that a broken picture is an error on the first minute and never a
grey one on the third day.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image

from lvlm.errors import InputError
from lvlm.records import write_text

VERIFIED_FILE = "verified-images.jsonl"
_MANY = 2000
"""From this many pictures on, the check says on a terminal how far it is."""


class ImageFolder:
    """Images under `root`, checked once each: for existence and place at once, by decoding where asked."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._real_root = os.path.realpath(root)
        self._real_folders: dict[str, str] = {}
        self._present: set[str] = set()
        self._decoded: set[str] = set()

    def path(self, relative: str) -> Path:
        """Where an image lies."""
        return self.root / relative

    def check_present(self, names: Iterable[str], blame: Callable[[str], str]) -> None:
        """Raise for the first image that is missing or lies outside the folder. `blame(name)` says which row asks for
        it."""
        for name in names:
            if name in self._present:
                continue
            path = os.path.join(self.root, name)
            if not self._inside(path):
                raise InputError(
                    f"{blame(name)}, field 'image_id': '{name}' leads out of the image folder {self.root} through a "
                    "link."
                )
            if not os.path.isfile(path):
                raise InputError(
                    f"{blame(name)}, field 'image_id': the image {path} does not exist. "
                    "Put it there, or mend the path (relative to the corpus's image folder)."
                )
            self._present.add(name)

    def _inside(self, path: str) -> bool:
        folder, _ = os.path.split(path)
        if folder not in self._real_folders:
            self._real_folders[folder] = os.path.realpath(folder)
        real = os.path.realpath(path) if os.path.islink(path) else self._real_folders[folder]
        return real == self._real_root or real.startswith(self._real_root + os.sep)

    def check_decodes(self, names: Sequence[str], blame: Callable[[str], str], home: Path | None = None) -> None:
        """Decode every image once. With `home`, those found sound before (same path, size and time) are not decoded
        again."""
        memory = _Verified(home)
        todo = [
            name for name in dict.fromkeys(names) if name not in self._decoded and not memory.knows(self.path(name))
        ]
        with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
            faults = pool.map(lambda name: _decode_fault(self.path(name)), todo)
            try:
                for name, fault in zip(todo, _shown(faults, len(todo)), strict=True):
                    if fault:
                        raise InputError(
                            f"{blame(name)}, field 'image_id': the image {self.path(name)} cannot be decoded "
                            f"({fault}). "
                            "Replace the file, or remove the row."
                        )
                    memory.add(self.path(name))
            finally:
                pool.shutdown(cancel_futures=True)
                memory.save()
        self._decoded.update(names)


def _decode_fault(path: Path) -> str:
    try:
        with Image.open(path) as image:
            image.draft("RGB", (32, 32))  # JPEG: all entropy-coded data is read, the costly transform shrinks
            image.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        return str(error).partition("\n")[0] or type(error).__name__
    return ""


def _shown(faults: Iterable[str], count: int) -> Iterable[str]:
    if count < _MANY or not sys.stderr.isatty():
        return faults
    from rich.console import Console
    from rich.progress import track

    return track(faults, total=count, description="Checking images", console=Console(stderr=True), transient=True)


class _Verified:
    """What was found sound, across processes: one line per image with path, size and time of change."""

    def __init__(self, home: Path | None) -> None:
        self.file = home / "data" / VERIFIED_FILE if home else None
        self.known = self._load()
        self.new: dict[str, list[int]] = {}

    def _load(self) -> dict[str, list[int]]:
        if not self.file or not self.file.exists():
            return {}
        rows = map(json.loads, self.file.read_text(encoding="utf-8").splitlines())
        return {path: state for path, *state in rows}

    def knows(self, path: Path) -> bool:
        return bool(self.known) and self.known.get(os.path.abspath(path)) == _state(path)

    def add(self, path: Path) -> None:
        self.new[os.path.abspath(path)] = _state(path)

    def save(self) -> None:
        if self.file and self.new:
            together = {**self._load(), **self.new}  # another worker may have added its own since
            lines = (json.dumps([path, *state], ensure_ascii=False) for path, state in sorted(together.items()))
            write_text(self.file, "\n".join(lines) + "\n")


def _state(path: Path) -> list[int]:
    state = path.stat()
    return [state.st_size, state.st_mtime_ns]
