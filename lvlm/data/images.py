"""The image folder of a corpus: paths that stay inside it, files that exist, pictures that decode, their content.
`lvlm.data.corpus` calls it before training, so that a broken picture is an error on the first minute and never a
grey one on the third day; the keys of trained stages hold the content.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from lvlm.data.memory import SETTLED_SECONDS
from lvlm.data.progress import shown
from lvlm.errors import InputError

VERIFIED_FILE = "verified-images.jsonl"


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
        """Decode every image once. With `home`, those found sound before (same path, size, time of change and inode)
        are not decoded again."""
        memory = _Verified(home)
        todo = [
            name
            for name in dict.fromkeys(names)
            if name not in self._decoded and memory.digest_of(self.path(name)) is None
        ]
        with _pool() as pool:
            checks = ((check, 1) for check in pool.map(lambda name: _check(self.path(name)), todo))
            try:
                told = shown(checks, title="checking images", unit="images", total=len(todo))
                for name, (fault, state) in zip(todo, told, strict=True):
                    if fault:
                        raise InputError(
                            f"{blame(name)}, field 'image_id': the image {self.path(name)} cannot be decoded "
                            f"({fault}). "
                            "Replace the file, or remove the row."
                        )
                    memory.add(self.path(name), state)
            finally:
                pool.shutdown(cancel_futures=True)
                memory.save()
        self._decoded.update(names)


def picture_fault(path: Path) -> str:
    """Why an image file cannot become RGB pixels; an empty text if it can."""
    return _check(path)[0]


def content_digest(images: Iterable[Path], home: Path | None = None) -> str:
    """Identifies pictures by name and content: an edited one differs, a copy of the corpus does not.

    Files that `check_decodes` has read for this `home` and that have not been touched since are not read again.
    """
    paths = sorted(set(images), key=lambda path: path.parts)  # as paths compare, but quicker
    memory = _Verified(home)
    contents = {path: known for path in paths if (known := memory.digest_of(path))}
    unread = [path for path in paths if path not in contents]
    with _pool() as pool:
        read = ((content, 1) for content in pool.map(lambda path: _digest(path.read_bytes()), unread))
        told = shown(read, title="digesting images", unit="images", total=len(unread))
        contents.update(zip(unread, told, strict=True))
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f"{path.name}\0{contents[path]}\n".encode())
    return digest.hexdigest()[:12]


State = tuple[int, int, int, str]
"""Size, time of change (ns), inode and content digest of a file."""


def _check(path: Path) -> tuple[str, State]:
    """(what is wrong, or an empty text; the state of the file that was looked at)."""
    try:
        stat = path.stat()
        content = path.read_bytes()
    except OSError as error:
        return str(error), (0, 0, 0, "")
    fault, _ = content_fault(content)
    return fault, (0, 0, 0, "") if fault else (stat.st_size, stat.st_mtime_ns, stat.st_ino, _digest(content))


def content_fault(content: bytes) -> tuple[str, str]:
    """Why the content of an image file cannot become RGB pixels (an empty text if it can), and its format's name."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            image.draft("RGB", (32, 32))  # JPEG: all entropy-coded data is read, the costly transform shrinks
            image.load()
            image.getexif()
            if image.mode == "F":
                raise ValueError("floating-point pixels, whose range is unknown; save it as 8-bit or 16-bit PNG")
            if not image.mode.startswith("I"):  # these are scaled, all others converted
                image.crop((0, 0, 1, 1)).convert("RGB")
            return "", image.format or ""
    except UnidentifiedImageError:  # whose text is an address in memory
        return "not an image of any known format", ""
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        return str(error).partition("\n")[0] or type(error).__name__, ""


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=12).hexdigest()


def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1))


_loaded: dict[Path, tuple[int, dict[str, State]]] = {}
"""How many bytes of each file of verified images were read here, and what they held."""


class _Verified:
    """What was found sound, across processes: one line per image with path, size, time of change, inode and content
    digest, added as it is found; the last one counts."""

    def __init__(self, home: Path | None) -> None:
        self.file = home / "data" / VERIFIED_FILE if home else None
        self.known = self._load()
        self.new: dict[str, State] = {}

    def _load(self) -> dict[str, State]:
        if not self.file or not self.file.exists():
            return {}
        read, known = _loaded.get(self.file, (0, {}))
        if self.file.stat().st_size < read:  # another file by now
            read, known = 0, {}
        with open(self.file, "rb") as file:
            file.seek(read)
            lines = file.read().splitlines(keepends=True)
        for line in lines:
            if not line.endswith(b"\n"):  # another process is about to write its rest
                break
            read += len(line)
            try:
                path, size, changed, inode, digest = json.loads(line)
            except ValueError:  # cut short by a process that was killed, or of an older form
                continue
            known[path] = size, changed, inode, digest
        _loaded[self.file] = read, known
        return known

    def digest_of(self, path: Path) -> str | None:
        """The content digest of a file that was found sound and has not been touched since."""
        known = self.known.get(os.path.abspath(path)) if self.known else None
        if known is None:
            return None
        stat = path.stat()
        return known[3] if known[:3] == (stat.st_size, stat.st_mtime_ns, stat.st_ino) else None

    def add(self, path: Path, state: State) -> None:
        if time.time() - state[1] / 1e9 > SETTLED_SECONDS:
            self.new[os.path.abspath(path)] = state

    def save(self) -> None:
        if self.file and self.new:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            lines = (json.dumps([path, *state], ensure_ascii=False) for path, state in sorted(self.new.items()))
            with open(self.file, "ab", buffering=0) as file:  # one write: lines of several processes do not mix
                file.write(("\n".join(lines) + "\n").encode())
