"""Reads image files into pixels, in loader processes where asked to. Used by `lvlm.train.features` and
`lvlm.train.batches`."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lvlm.errors import InputError
from lvlm.model.tiling import ImageTransform, open_image, pixels
from lvlm.train.locks import release_in_child

GROUPS_AHEAD = 2


def load_pixels(groups: Iterable[Sequence[Path]], transform: ImageTransform, *, workers: int = 0) -> Iterator[Tensor]:
    """Groups of image files -> their pixels (images, views, 3, height, width), in order; an empty group gives no
    images.

    A thread decodes ahead, while torch computes. `workers` > 0 only moves that into processes: the groups, their order
    and their pixels are the same.
    """
    decoder = _Decoder(transform)
    results: Iterable[Tensor | InputError] = _ahead(decoder, groups)
    if workers:
        # The groups themselves are the loader's sampler, so that they are made lazily and in the training process.
        # The generator is the loader's own: it draws a seed for its workers and must not move the training's state.
        sampler: Any = groups
        results = DataLoader(
            decoder,
            batch_size=None,
            sampler=sampler,
            num_workers=workers,
            generator=torch.Generator(),
            worker_init_fn=release_in_child,
        )
    for result in results:
        if isinstance(result, InputError):
            raise result
        yield result


def _ahead(decoder: _Decoder, groups: Iterable[Sequence[Path]]) -> Iterator[Tensor | InputError]:
    """What the decoder makes of the groups, `GROUPS_AHEAD` of them before they are asked for."""
    with ThreadPoolExecutor(max_workers=1) as thread:
        waiting: deque[Future[Tensor | InputError]] = deque()
        for group in groups:
            waiting.append(thread.submit(decoder.__getitem__, group))
            if len(waiting) > GROUPS_AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


class _Decoder(Dataset["Tensor | InputError"]):
    def __init__(self, transform: ImageTransform) -> None:
        self.transform = transform

    def __getitem__(self, group: Any) -> Tensor | InputError:
        try:
            images = [pixels(open_image(path), self.transform) for path in group]
        except InputError as error:  # handed over as a value: raised in a loader process it would arrive as a traceback
            return error
        return torch.stack(images) if images else torch.empty(0, 1)
