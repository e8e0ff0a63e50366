"""Where the pictures of a source come to lie in the corpus: files of the source in their place or copied, bytes as new
files, none of them encoded anew. Each is decoded once; one that cannot be is a refused row.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from lvlm.data.checks import check_images
from lvlm.data.images import content_fault
from lvlm.data.sources.record import Picture, Refused
from lvlm.errors import InputError

REMEMBERED = 1 << 17
"""Image files of which it is remembered that they are sound."""
FOLDER_SIZE = 1000
SUFFIXES = {"JPEG": "jpg", "MPO": "jpg", "TIFF": "tif"}
"""Of formats whose suffix is not their own name."""


@dataclass(frozen=True, slots=True)
class Placed:
    """A sound picture: its name in the corpus, and the file or the bytes that it is made from."""

    name: str
    file: Path | None = None
    content: bytes | None = None


class ImageRoots:
    """The folders in which a source's image files are looked for, in this order, and what becomes of them: `copy`, or
    a link from the corpus to the folder that holds all of them."""

    def __init__(self, roots: Sequence[Path], *, copy: bool) -> None:
        for root in roots:
            if not root.is_dir():
                raise InputError(f"--images-root {root} is not a folder (looked for from {Path.cwd()}).")
        self.roots = tuple(root.absolute() for root in roots)
        self.copy = copy
        self.common = Path(os.path.commonpath(self.roots))
        if not copy and len(self.roots) > 1 and self.common == self.common.parent:
            raise InputError(
                f"--images-root: {' and '.join(map(str, roots))} share no folder that the corpus could be linked to. "
                "Take --images copy."
            )
        self._real = os.path.realpath(self.common)
        self._find = lru_cache(maxsize=REMEMBERED)(self._look)
        self._used = {"files": False, "bytes": False}

    def place(self, pictures: Sequence[Picture], number: int) -> list[Placed]:
        """Names and origins of the pictures of row `number`. Raises `Refused` for one that is not there or not sound.
        Called by several threads."""
        placed = []
        for index, picture in enumerate(pictures):
            if picture.content is None:
                found = self._find(picture.path)
                if isinstance(found, Refused):
                    raise Refused(found.reason, found.detail)
                placed.append(found)
            else:
                fault, form = content_fault(picture.content)
                if fault:
                    raise Refused("an image that cannot be decoded", fault)
                suffix = SUFFIXES.get(form, form.lower())
                name = f"{number // FOLDER_SIZE:05d}/{number:08d}-{index}.{suffix}"
                placed.append(Placed(name, content=picture.content))
        return placed

    def _look(self, path: str) -> Placed | Refused:
        try:
            check_images({"image_id": path}, lambda _, fault: InputError(fault), ())
        except InputError as error:
            return Refused("an image path that leaves the image folder", str(error))
        file = next((file for root in self.roots if (file := root / path).is_file()), None)
        if file is None:
            return Refused("an image that is not there", path)
        if not self.copy and not os.path.realpath(file).startswith(self._real + os.sep):
            return Refused("an image behind a link out of the image folder (--images copy takes it)", path)
        try:
            fault, _ = content_fault(file.read_bytes())
        except OSError as error:
            fault = str(error)
        if fault:
            return Refused("an image that cannot be decoded", f"{path}: {fault}")
        return Placed(path if self.copy else file.relative_to(self.common).as_posix(), file=file)

    def put(self, placed: Placed, folder: Path) -> None:
        """Write a picture under `folder`, or note that it stays where it is."""
        self._used["bytes" if placed.file is None else "files"] = True
        if not self.copy and all(self._used.values()):
            raise InputError(
                f"Some rows hold their images and some name files ({placed.file or placed.name}): the corpus cannot "
                "link to a folder and have images of its own. Take --images copy."
            )
        if placed.file is not None and not self.copy:
            return
        target = folder / placed.name
        if placed.file is not None and target.exists():  # an earlier row shows it too
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        if placed.file is not None:
            shutil.copyfile(placed.file, target)
        elif placed.content is not None:
            target.write_bytes(placed.content)

    def finish(self, folder: Path) -> None:
        """Make `folder` the corpus's image folder, where nothing was written into it."""
        if self._used["files"] and not self.copy:
            folder.symlink_to(self._real, target_is_directory=True)
        else:
            folder.mkdir(exist_ok=True)
