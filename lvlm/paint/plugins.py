"""Scores of pictures by models that the user has: CLIP, and the Frechet distance on a model's features. Used by
`lvlm.paint.scores`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import AutoImageProcessor, AutoModel, AutoProcessor, CLIPModel

from lvlm.config import one_line
from lvlm.errors import InputError
from lvlm.paint_settings import PaintConfig

AT_ONCE = 64
Pictures = npt.NDArray[np.uint8]


class ClipScore:
    """A CLIP of transformers in a local folder: 100 x the cosine of picture and text, and never below 0.

    It judges what it knows: an English CLIP wants English texts, and one that reads a language better is kinder to it.
    """

    def __init__(self, folder: Path) -> None:
        self.model = _load(CLIPModel.from_pretrained, folder, "CLIP")
        self.processor = _load(AutoProcessor.from_pretrained, folder, "CLIP")

    @torch.no_grad()
    def __call__(self, pictures: Pictures, texts: Sequence[str]) -> list[float]:
        """One score for each of (pictures, side, side, 3) and its text."""
        found: list[float] = []
        for start in range(0, len(texts), AT_ONCE):
            some = slice(start, start + AT_ONCE)
            inputs = self.processor(
                images=list(pictures[some]), text=list(texts[some]), return_tensors="pt", padding=True, truncation=True
            )
            out = self.model(**inputs)
            cosines = torch.nn.functional.cosine_similarity(out.image_embeds, out.text_embeds)
            found += (100 * cosines.clamp(min=0)).tolist()
        return found


class ModelFeatures:
    """An image model of transformers in a local folder: its pooled output, or the mean over its last states. With the
    Inception network of the FID, exported so, and enough pictures, `frechet_distance` on them is an FID."""

    def __init__(self, folder: Path) -> None:
        self.model = _load(AutoModel.from_pretrained, folder, "image model")
        self.processor = _load(AutoImageProcessor.from_pretrained, folder, "image model")

    @torch.no_grad()
    def __call__(self, pictures: Pictures) -> npt.NDArray[np.float64]:
        """(pictures, features)."""
        found = []
        for start in range(0, len(pictures), AT_ONCE):
            inputs = self.processor(images=list(pictures[start : start + AT_ONCE]), return_tensors="pt")
            out = self.model(**inputs)
            pooled = getattr(out, "pooler_output", None)
            found.append((out.last_hidden_state.mean(dim=1) if pooled is None else pooled).flatten(1))
        return torch.cat(found).double().numpy()  # type: ignore[no-any-return]


def check_models(config: PaintConfig) -> None:
    """Raise for models that are named and not there, before anything is trained."""
    for folder, what in ((config.clip, "CLIP"), (config.features, "image model")):
        if folder is not None:
            _check(Path(folder), what)


def _check(folder: Path, what: str) -> None:
    if not (folder / "config.json").exists():
        raise InputError(
            f"There is no {what} at {folder} (no config.json). Give a local folder as transformers writes it; download "
            "a hub model first."
        )


def _load(load: Callable[..., Any], folder: Path, what: str) -> Any:
    _check(folder, what)
    try:
        found = load(folder, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise InputError(f"The {what} {folder} cannot be loaded: {one_line(error).rstrip('.')}.") from error
    return found.eval() if isinstance(found, torch.nn.Module) else found
