"""From captions to pictures: DDIM from a noise that is known by name, with classifier-free guidance. Used by
`lvlm.paint.scores` and the command `paint`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lvlm.model.seeding import generator_for
from lvlm.paint.painter import Painter

Pictures = npt.NDArray[np.uint8]
"""(pictures, side, side, 3)."""


@dataclass(frozen=True)
class Drawing:
    """How pictures are drawn: the seed of their noise, steps, and how far guidance moves them."""

    seed: int
    steps: int
    guidance: float


def first_noise(painter: Painter, seed: int, name: str) -> Tensor:
    """The noise that the picture `name` begins with, the same for any caption and in any batch."""
    return torch.randn(painter.signal_shape(painter.size), generator=generator_for(seed, f"paint/{name}"))


@torch.no_grad()
def paint(
    painter: Painter,
    captions: Sequence[str],
    names: Sequence[str],
    drawing: Drawing,
    *,
    batch_size: int = 64,
    on_progress: Callable[[int, int], None] | None = None,
) -> Pictures:
    """A picture of each caption; that of the same caption and name is the same in any batch, but for the last bits of
    its numbers before they are rounded to bytes.

    What the denoiser says of the empty caption (u) and of the caption (c) becomes u + guidance (c - u); with a
    guidance of 1 the empty caption is not asked. `on_progress(done, total)` counts steps of pictures.
    """
    painter.denoiser.eval()
    found: list[Pictures] = []
    total = len(captions) * drawing.steps
    for start in range(0, len(captions), batch_size):
        some = slice(start, start + batch_size)

        def tell(step: int, start: int = start, size: int = len(captions[some])) -> None:
            if on_progress:
                on_progress(start * drawing.steps + size * step, total)

        noise = torch.stack([first_noise(painter, drawing.seed, name) for name in names[some]])
        signal = _denoised(painter, list(captions[some]), noise.to(painter.device), drawing, tell)
        found.append(to_bytes(painter.decode(signal)))
    pictures = np.concatenate(found) if found else np.zeros((0, painter.size, painter.size, 3), dtype=np.uint8)
    if painter.safety is not None and len(pictures):
        pictures[painter.safety.unsafe(pictures)] = 0
    return pictures


def _denoised(
    painter: Painter, captions: list[str], signal: Tensor, drawing: Drawing, tell: Callable[[int], None]
) -> Tensor:
    """All steps of one batch."""
    sampler = painter.diffusion.sampler(drawing.steps, clip=painter.vae is None)
    guided = drawing.guidance != 1
    states, mask = painter.states([*([""] * len(captions) if guided else []), *captions])
    states, mask = states.to(signal.device), mask.to(signal.device)
    for number, when in enumerate(sampler.timesteps, start=1):
        both = torch.cat([signal, signal]) if guided else signal
        said = painter.predict(both, when.to(signal.device).expand(len(both)), states, mask).float()
        if guided:
            empty, asked = said.chunk(2)
            said = empty + drawing.guidance * (asked - empty)
        signal = sampler.step(said, when, signal).prev_sample
        tell(number)
    return signal


def to_bytes(pictures: Tensor) -> Pictures:
    """(pictures, 3, side, side) from -1 to 1 -> (pictures, side, side, 3) bytes."""
    found: Pictures = ((pictures + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()
    return found
