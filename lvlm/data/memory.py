"""What took long to find in a data file, kept under the work folder so that the next process finds it there: validated
rows and token counts, as arrays. Called by `lvlm.data.readers` and `lvlm.data.counts`.

One file for each name, written under a temporary name and renamed, so that processes never see half of one. A file that
is missing, broken or of another making is as good as absent, and where nothing can be written nothing is kept.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

T = TypeVar("T")
Arrays = Mapping[str, npt.NDArray[Any]]
LIMIT_BYTES = 1 << 30
"""What all files of a work folder take together; those used longest ago give way."""
SETTLED_SECONDS = 2.0
"""A file changed this recently may change again without another time of change, and is not remembered yet."""


class Memory:
    """The files under `folder`."""

    def __init__(self, folder: Path, *, limit_bytes: int = LIMIT_BYTES) -> None:
        self.folder, self.limit_bytes = folder, limit_bytes

    @classmethod
    def under(cls, home: Path) -> Memory:
        """That of a work folder."""
        return cls(home / "data" / "remembered")

    def recall(self, name: str, make: Callable[[Arrays], T]) -> T | None:
        """What `make` makes of the arrays kept under a name; None where there are none that it can use."""
        path = self._path(name)
        try:
            with np.load(path, allow_pickle=False) as file:  # a zip archive, whose checksums are looked at
                found = make({key: file[key] for key in file.files})
            os.utime(path)
        except Exception:  # whatever is wrong with it, the data file still holds everything
            return None
        return found

    def keep(self, name: str, arrays: Arrays) -> None:
        """Keep arrays under a name, in the place of those that have it."""
        temporary = self.folder / f".{name}.{os.getpid()}.tmp"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            try:
                with open(temporary, "wb") as file:
                    np.savez(file, **arrays)  # type: ignore[arg-type]
                os.replace(temporary, self._path(name))
            finally:
                temporary.unlink(missing_ok=True)
            self._make_room()
        except OSError:  # a full disk, or a folder of somebody else
            return

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.npz"

    def _make_room(self) -> None:
        """Remove what was used longest ago until the rest is within the limit; what a killed process left goes so
        too."""
        files = [(stat.st_mtime_ns, stat.st_size, path) for path in self.folder.iterdir() if (stat := _stat(path))]
        taken = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if taken <= self.limit_bytes:
                return
            path.unlink(missing_ok=True)
            taken -= size


def memory_name(kind: str, *facts: Any) -> str:
    """A name for arrays of a kind, made of all that they depend on."""
    return f"{kind}-{hashlib.blake2b(repr(facts).encode(), digest_size=16).hexdigest()}"


def code_digest(*modules: str) -> str:
    """Identifies the code of modules."""
    digest = hashlib.blake2b(digest_size=16)
    for name in modules:
        spec = importlib.util.find_spec(name)
        assert spec is not None and spec.origin is not None
        digest.update(Path(spec.origin).read_bytes())
    return digest.hexdigest()


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except FileNotFoundError:  # another process has renamed or removed it
        return None
