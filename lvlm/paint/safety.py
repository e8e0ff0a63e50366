"""Looks at painted pictures before anybody else does, with a classifier that the user has. Used by
`lvlm.paint.sample`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification

from lvlm.config import one_line
from lvlm.errors import InputError

UNSAFE = ("unsafe", "nsfw")
"""What the class of pictures to hide is called, in any case of letters."""


class SafetyChecker:
    """An image classifier of transformers in a local folder, one of whose classes is among `UNSAFE`."""

    def __init__(self, folder: Path) -> None:
        if not (folder / "config.json").exists():
            raise InputError(
                f"There is no safety checker at {folder} (no config.json). Give a local folder with an image "
                "classifier of transformers; download a hub model first."
            )
        try:
            labels = AutoConfig.from_pretrained(folder).id2label
            self.model: Any = AutoModelForImageClassification.from_pretrained(folder, use_safetensors=True).eval()
            self.processor: Any = AutoImageProcessor.from_pretrained(folder)
        except (OSError, ValueError) as error:
            raise InputError(f"The safety checker {folder} cannot be loaded: {one_line(error).rstrip('.')}.") from error
        self.hidden = [int(number) for number, name in labels.items() if str(name).lower() in UNSAFE]
        if not self.hidden:
            raise InputError(
                f"The classifier {folder} has the classes {', '.join(map(str, labels.values()))}, and none of them is "
                f"called {' or '.join(UNSAFE)}: it cannot say which pictures to hide."
            )

    @torch.no_grad()
    def unsafe(self, pictures: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
        """(pictures,): whether the likeliest class of each (side, side, 3) is one to hide."""
        inputs = self.processor(images=list(pictures), return_tensors="pt").to(self.model.device)
        found: npt.NDArray[np.bool_] = np.isin(self.model(**inputs).logits.argmax(dim=-1).cpu().numpy(), self.hidden)
        return found
