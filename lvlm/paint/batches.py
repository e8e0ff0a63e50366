"""Turns the entries of an optimizer step into pictures, captions and noise. Used by `lvlm.paint.stage`; the loop of
`lvlm.train` walks it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from lvlm.errors import InputError
from lvlm.paint.painter import Painter
from lvlm.train.batches import EncodedSample, Group, StepBatches
from lvlm.train.images import load_pixels

if TYPE_CHECKING:
    from lvlm.data.plan import Plan

SAID_FIRST = 0x7A17
"""Tells the random streams of this stage from those of others."""
STATES = 0x57A7E
"""Tells the noise on a caption's states from that on its picture."""


class PaintSample(EncodedSample):
    """One entry of the plan at its place in a step: its caption and picture, and the noise that it is trained with."""

    __slots__ = ("caption", "draw", "dropped", "size", "timestep")

    def __init__(
        self, caption: str, images: tuple[Path, ...], *, size: int, length: int, stream: np.random.SeedSequence,
        dropout: float, timesteps: int,
    ) -> None:  # fmt: skip
        super().__init__(_no_text, length=length, supervised=1, images=images)
        rng = np.random.default_rng(stream)
        self.dropped = bool(rng.random() < dropout)
        self.timestep = int(rng.integers(timesteps))
        self.draw = int(rng.integers(1 << 62))
        self.caption = "" if self.dropped else caption
        self.size = size


def _no_text() -> Any:
    raise AssertionError("a picture's caption is read as states, not as tokens to learn")


@dataclass(frozen=True, slots=True)
class PaintBatch:
    """What one forward pass sees beside the pictures and the captions' states."""

    captions: tuple[str, ...]
    images: tuple[Path, ...]
    noise: Tensor
    """(pictures, channels, height, width)."""
    vae_noise: Tensor
    """The same shape: what a VAE's draw is moved by."""
    timesteps: Tensor
    """(pictures,)."""
    weights: Tensor
    """(pictures,): the share of each in the loss of the step."""
    draws: tuple[int, ...]
    """Seeds of each picture's noise."""
    size: int
    """Pixels of a picture's side."""
    last: bool = False

    @property
    def told(self) -> str:
        """Its size, for a reader."""
        return f"{len(self.captions)} pictures of {self.size} x {self.size} pixels"

    def to(self, device: torch.device) -> PaintBatch:
        """The same with its tensors on `device`."""
        moved = (tensor.to(device) for tensor in (self.noise, self.vae_noise, self.timesteps, self.weights))
        noise, vae_noise, timesteps, weights = moved
        return replace(self, noise=noise, vae_noise=vae_noise, timesteps=timesteps, weights=weights)


class PaintBatches(StepBatches):
    """The micro-batches of any optimizer step: a pure function of (plan, seed, step). Noise, timestep and whether a
    caption is dropped belong to the place of a sample in its step, so that no memory setting can move them."""

    def __init__(
        self, plan: Plan, painter: Painter, *, seed: int, token_budget: int, rank: int = 0, processes: int = 1
    ) -> None:
        no_texts: Any = None  # captions are read as states
        super().__init__(plan, no_texts, "sample", token_budget=token_budget, rank=rank, processes=processes)
        self.painter, self.seed = painter, seed
        self._captions: dict[int, str] = {}

    def size(self, step: int) -> int:
        """Pixels of a picture's side in a step."""
        config = self.painter.config
        if config.later_image_size is None or config.later_from is None:
            return self.painter.first_size
        start = config.later_from if config.later_from >= 1 else config.later_from * self.plan.steps
        return config.later_image_size if step >= int(start) else self.painter.first_size

    def samples(self, step: int) -> list[EncodedSample]:
        """What all processes together learn from in this step, in the plan's order."""
        size = self.size(step)
        _, height, width = self.painter.signal_shape(size)
        return [
            PaintSample(
                self.caption(entry),
                self.plan.image_paths(entry),
                size=size,
                length=self.plan.tokens(entry)[0] + height * width,
                stream=np.random.SeedSequence([self.seed, SAID_FIRST, step, place]),
                dropout=self.painter.config.caption_dropout,
                timesteps=self.painter.diffusion.timesteps,
            )
            for place, entry in enumerate(self.plan.step_entries(step))
        ]

    def caption(self, entry: Any) -> str:
        """What an entry of the plan says of its picture; one that is not a caption and a picture is an `InputError`."""
        if entry.number not in self._captions:
            sample = self.plan.sample(entry)
            if len(sample.turns) != 1 or len(sample.images) != 1:
                raise InputError(
                    f"paint.mix: sample '{entry.id}' of corpus '{entry.corpus}', split '{entry.split}', language "
                    f"'{entry.language}' has {len(sample.turns)} turns and {len(sample.images)} pictures. To paint, a "
                    "row needs one picture and one answer, its caption; name a split of captions."
                )
            self._captions[entry.number] = sample.turns[0][1]
        return self._captions[entry.number]

    def captions(self) -> Iterator[str]:
        """The caption of every entry, in the plan's order."""
        for entry in self.plan.order:
            yield self.caption(entry)

    def _heaviest(self) -> set[int]:
        """A step with the largest pictures; all of one size are alike."""
        return {max(self.plan.steps - 1, 0, key=self.size)}

    def _collate(self, members: Group, *, last: bool = False) -> Any:
        samples: list[Any] = [sample for sample, _ in members]
        size = samples[0].size  # a micro-batch is of one step
        shape = self.painter.signal_shape(size)
        draws = [torch.Generator().manual_seed(sample.draw) for sample in samples]
        both = torch.stack([torch.randn((2, *shape), generator=draw) for draw in draws])
        return PaintBatch(
            captions=tuple(sample.caption for sample in samples),
            images=tuple(image for sample in samples for image in sample.images),
            noise=both[:, 0],
            vae_noise=both[:, 1],
            timesteps=torch.tensor([sample.timestep for sample in samples]),
            weights=torch.tensor([weight for _, weight in members]),
            draws=tuple(sample.draw for sample in samples),
            size=size,
            last=last,
        )


class PaintStream:
    """The micro-batches of consecutive steps with their pictures and the states of their captions."""

    def __init__(self, batches: PaintBatches, *, device: torch.device, first_step: int, workers: int = 0) -> None:
        self.batches, self.device, self.workers = batches, device, workers
        self._pixels = self._load(range(first_step, batches.plan.steps))

    def step(self, step: int) -> Iterator[tuple[PaintBatch, dict[str, Tensor]]]:
        """The micro-batches of the next step, each with `clean`, `states` and `mask`."""
        for batch in self.batches(step):
            yield self._ready(batch, next(self._pixels))  # type: ignore[arg-type]

    def outside(self, batch: PaintBatch) -> tuple[PaintBatch, dict[str, Tensor]]:
        """A micro-batch that is not the stream's next: the probe before step 0."""
        pixels = next(load_pixels([batch.images], self.batches.painter.transform(batch.size)))
        return self._ready(batch, pixels)

    def _load(self, steps: range) -> Iterator[Tensor]:
        """The pictures of every micro-batch, those of one size after the other."""
        start = steps.start
        while start < steps.stop:
            size = self.batches.size(start)
            stop = next((step for step in range(start, steps.stop) if self.batches.size(step) != size), steps.stop)
            groups = (
                tuple(image for sample, _ in group for image in sample.images)
                for step in range(start, stop)
                for group in self.batches.groups(step)
            )
            yield from load_pixels(groups, self.batches.painter.transform(size), workers=self.workers)
            start = stop

    def _ready(self, batch: PaintBatch, pixels: Tensor) -> tuple[PaintBatch, dict[str, Tensor]]:
        painter, batch = self.batches.painter, batch.to(self.device)
        states, mask = painter.states(batch.captions)
        if painter.config.state_noise:
            states = states + painter.config.state_noise * _noise_like(states, mask, batch.draws)
        clean = painter.encode(pixels[:, 0].to(self.device), batch.vae_noise)
        return batch, {"clean": clean, "states": states.to(self.device), "mask": mask.to(self.device)}


def _noise_like(states: Tensor, mask: Tensor, draws: Sequence[int]) -> Tensor:
    """Normal noise (captions, tokens, width) as large as each token of `states`, from a seed for each caption, whoever
    it is computed with; none where `mask` says that a caption has ended."""
    noise = torch.zeros(states.shape)
    for row, length, draw in zip(noise, mask.sum(dim=1).tolist(), draws, strict=True):
        own = torch.Generator().manual_seed(draw ^ STATES)
        row[:length] = torch.randn((length, states.shape[-1]), generator=own)
    return noise.to(states.device) * states.square().mean(dim=-1, keepdim=True).sqrt()
