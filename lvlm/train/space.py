"""The disk that kept features may take: a bound over all towers and settings, and who gives way when it is reached.
Called by `lvlm.train.features`.

Where room is needed, the folder of the key that was used longest ago goes first; one that a living process uses (see
`lvlm.train.shelf`) does not go.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from lvlm.train.shelf import GIB, Shelf

FREE_SHARE = 0.5
"""Without a bound, features that are added may take this share of the disk that is free."""


class NoRoom(Exception):
    """Features found no place; the text says why, to be read after 'image features are not kept: '."""


class FeatureSpace(Shelf):
    """The folder `root`, which holds one folder of features for each key, and its bound in GiB; None is `FREE_SHARE`
    of what is free."""

    def __init__(self, root: Path, limit_gib: float | None = None) -> None:
        super().__init__(root)
        self.limit_gib = limit_gib

    def lack(self, key: str, needed: int) -> str:
        """Why `needed` more bytes of a key find no place even if other keys give way; empty if they do."""
        others = [entry for entry in self.entries() if entry.key != key]
        fixed = sum(entry.bytes for entry in others if not entry.free)
        yielding = sum(entry.bytes for entry in others if entry.free)
        return self._lack(needed, used=self.bytes_of(key) + fixed, disk=self._free() + yielding)

    def make_room(self, key: str, needed: int) -> None:
        """Remove folders of other keys until `needed` more bytes have a place; raise `NoRoom` if they cannot have one,
        and remove nothing then. Call it with `lock` held, and take the place before letting go."""
        if reason := self.lack(key, needed):
            raise NoRoom(reason)
        others = [entry for entry in self.entries() if entry.key != key]
        used = self.bytes_of(key) + sum(entry.bytes for entry in others)
        for other in others:
            if not self._lack(needed, used=used, disk=self._free()):
                return
            if other.free and self.remove(other.key):
                used -= other.bytes

    def _lack(self, needed: int, *, used: int, disk: int) -> str:
        if self.limit_gib is None:
            if needed <= FREE_SHARE * disk:
                return ""
            return (
                f"{needed / GIB:.3g} GiB are more than half of the {disk / GIB:.3g} GiB that could be free on the disk"
            )
        if needed > disk:
            return f"{needed / GIB:.3g} GiB do not fit on the disk, where {disk / GIB:.3g} GiB could be free"
        if used + needed <= self.limit_gib * GIB:
            return ""
        return (
            f"{needed / GIB:.3g} GiB beside {used / GIB:.3g} GiB in use exceed "
            f"compute.feature_cache_gib={self.limit_gib:g}"
        )

    def _free(self) -> int:
        return shutil.disk_usage(existing_parent(self.root)).free


def existing_parent(folder: Path) -> Path:
    """The folder, or the nearest above it that is there."""
    while not folder.exists():
        folder = folder.parent
    return folder
