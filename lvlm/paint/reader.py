"""Reads from a picture what it shows: the attributes of the nearest clean rendering. Used by `lvlm.paint.scores`; no
torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from lvlm.data.corpus import Corpus
from lvlm.errors import InputError
from lvlm.records import RENDERINGS_FILE

Attributes = Mapping[str, str]
"""Kind -> value, such as colour -> red."""


@dataclass(frozen=True)
class AttributeReader:
    """The clean renderings of a closed world, (renderings, side, side, 3), and what each shows."""

    renderings: npt.NDArray[np.float32]
    shown: tuple[Attributes, ...]

    @classmethod
    def of_scenes(cls, scenes: Sequence[tuple[npt.NDArray[Any], Attributes]]) -> AttributeReader:
        """From pictures in bytes and what each shows."""
        pictures, shown = zip(*scenes, strict=True)
        return cls(np.stack(pictures).astype(np.float32), tuple(shown))

    @classmethod
    def of_corpus(cls, corpus: Corpus) -> AttributeReader | None:
        """That of a corpus with a `renderings.json`; None where it has none."""
        path = corpus.folder / RENDERINGS_FILE
        if not path.is_file():
            return None
        try:
            shown = json.loads(path.read_text(encoding="utf-8"))
            kinds = {tuple(sorted(attributes)) for attributes in shown.values()}
        except (ValueError, AttributeError, TypeError) as error:
            raise InputError(
                f"{path} must map pictures to attributes, as in {{'clean/0.png': {{'colour': 'red'}}}}."
            ) from error
        if len(kinds) != 1:
            raise InputError(f"{path}: every rendering must name the same kinds of attribute; found: {sorted(kinds)}.")
        pictures = []
        for name in shown:
            with Image.open(corpus.image_path(name)) as image:
                pictures.append(np.asarray(image.convert("RGB")))
        if len({picture.shape for picture in pictures}) != 1:
            raise InputError(f"{path}: the renderings differ in size. Write them all in one.")
        return cls.of_scenes(list(zip(pictures, shown.values(), strict=True)))

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of attribute, in the order in which they are written."""
        return tuple(self.shown[0])

    def chance(self) -> float:
        """Percent of scenes that a rendering drawn at random shows, all attributes at once."""
        return 100.0 / len({tuple(attributes.items()) for attributes in self.shown})

    def read(self, pictures: npt.NDArray[Any]) -> list[Attributes]:
        """What each of (pictures, side, side, 3) shows: the attributes of the rendering at the smallest squared
        distance, after pictures of another size were brought to that of the renderings."""
        side = self.renderings.shape[1]
        if pictures.shape[1] != side:
            sized = [Image.fromarray(picture).resize((side, side), Image.Resampling.BOX) for picture in pictures]
            pictures = np.stack([np.asarray(picture) for picture in sized])
        flat, known = (one.reshape(len(one), -1).astype(np.float32) for one in (pictures, self.renderings))
        distances = (known**2).sum(axis=1) - 2 * flat @ known.T
        return [self.shown[place] for place in distances.argmin(axis=1)]
