"""The disk that kept features may take: a bound over all towers and settings, and who gives way when it is reached.
Called by `lvlm.train.features`.

Every process that reads features of a key holds a shared lock on `KEY.use`, which lies beside the key's folder, is
touched at each use and never removed. Where room is needed, the folder of the key that was used longest ago goes first;
one that a living process holds does not go.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from lvlm.train.locks import SharedLock, lock_alone

FREE_SHARE = 0.5
"""Without a bound, features that are added may take this share of the disk that is free."""


class NoRoom(Exception):
    """Features found no place; the text says why, to be read after 'image features are not kept: '."""


class FeatureSpace:
    """The folder `root`, which holds one folder of features for each key, and its bound in GiB; None is `FREE_SHARE`
    of what is free."""

    def __init__(self, root: Path, limit_gib: float | None = None) -> None:
        self.root = root
        self.limit_gib = limit_gib
        self._held: dict[str, SharedLock] = {}

    def hold(self, key: str) -> None:
        """Say that this process uses a key: nobody removes its folder as long as this object lives."""
        if key not in self._held:
            self._held[key] = SharedLock(self._use(key))
        os.utime(self._use(key))

    def lack(self, key: str, needed: int) -> str:
        """Why `needed` more bytes of a key find no place even if other keys give way; empty if they do."""
        own, others = self._bytes(key), self._others(key)
        fixed = sum(size for _, size, free in others if not free)
        yielding = sum(size for _, size, free in others if free)
        return self._lack(needed, used=own + fixed, disk=self._free() + yielding)

    def make_room(self, key: str, needed: int) -> None:
        """Remove folders of other keys until `needed` more bytes have a place; raise `NoRoom` if they cannot have one,
        and remove nothing then. Call it with `lock` held, and take the place before letting go."""
        if reason := self.lack(key, needed):
            raise NoRoom(reason)
        others = self._others(key)
        used = self._bytes(key) + sum(size for _, size, _ in others)
        for other, size, free in others:
            if not self._lack(needed, used=used, disk=self._free()):
                return
            if free and self._remove(other):
                used -= size

    @property
    def lock(self) -> Path:
        """The file whose lock guards the bound while a place is looked for and taken."""
        return self.root / "space.lock"

    def _lack(self, needed: int, *, used: int, disk: int) -> str:
        gib = 2**30
        if self.limit_gib is None:
            if needed <= FREE_SHARE * disk:
                return ""
            return (
                f"{needed / gib:.3g} GiB are more than half of the {disk / gib:.3g} GiB that could be free on the disk"
            )
        if needed > disk:
            return f"{needed / gib:.3g} GiB do not fit on the disk, where {disk / gib:.3g} GiB could be free"
        if used + needed <= self.limit_gib * gib:
            return ""
        return (
            f"{needed / gib:.3g} GiB beside {used / gib:.3g} GiB in use exceed "
            f"compute.feature_cache_gib={self.limit_gib:g}"
        )

    def _others(self, key: str) -> list[tuple[str, int, bool]]:
        """(key, bytes, whether nobody uses it) of the other keys, from the one used longest ago."""
        found = []
        for other in self._keys():
            if other != key:
                used_at = self._used_at(other)
                with lock_alone(self._use(other)) as free:
                    found.append((used_at, other, self._bytes(other), free))
        return [(other, size, free) for _, other, size, free in sorted(found)]

    def _remove(self, key: str) -> bool:
        with lock_alone(self._use(key)) as free:
            if free:
                shutil.rmtree(self.root / key, ignore_errors=True)
            return free

    def _keys(self) -> Iterator[str]:
        if self.root.is_dir():
            yield from sorted(entry.name for entry in os.scandir(self.root) if entry.is_dir())

    def _use(self, key: str) -> Path:
        return self.root / f"{key}.use"

    def _used_at(self, key: str) -> float:
        use = self._use(key)
        return (use if use.exists() else self.root / key).stat().st_mtime

    def _bytes(self, key: str) -> int:
        total = 0
        for folder, _, files in os.walk(self.root / key):
            for name in files:
                try:
                    total += os.stat(os.path.join(folder, name)).st_size
                except FileNotFoundError:  # its owner has renamed or removed it
                    continue
        return total

    def _free(self) -> int:
        return shutil.disk_usage(existing_parent(self.root)).free


def existing_parent(folder: Path) -> Path:
    """The folder, or the nearest above it that is there."""
    while not folder.exists():
        folder = folder.parent
    return folder
