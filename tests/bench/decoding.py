"""How fast image files become pixels, beside a plain loop of Pillow and torchvision over the same files. Run by hand:

    python tests/bench/decoding.py [--images FOLDER] [--size 384] [--workers 2]

Promised: 1.5 times as fast on one core, values within 1 of 255; how many are further off is printed. Without a folder
it makes photographs of its own (JPEG, 640 x 480, noise and edges). The plain loop is what Centurio's code does: open,
convert, resize, to tensor, normalise. Time is that of the processor; other work on the machine still
stretches it (shared caches and cores), so give it a free one.

Where it misses: with MALLOC_ARENA_MAX=1 in the environment 1.3 to 1.6 times becomes 2.0 to 2.3, so that what it loses
it loses to the heap of its own that glibc gives the loader's thread.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import transforms

from lvlm.data.worlds.textures import photographs, texture
from lvlm.model.tiling import ImageTransform
from lvlm.train.images import load_pixels

MEAN = STD = (0.5, 0.5, 0.5)
ROUNDS = 5


def make_photographs(folder: Path, count: int) -> None:
    for number in range(count):
        rng = np.random.default_rng(number)
        size = (640, 480) if number % 2 else (480, 640)
        image = texture(rng, size)
        for _ in range(6):
            part = texture(rng, (int(rng.integers(40, 240)), int(rng.integers(40, 240))))
            image.paste(part, (int(rng.integers(size[0])), int(rng.integers(size[1]))))
        image.save(folder / f"{number:03d}.jpg", quality=90)


def best_of(one: Callable[[], object], other: Callable[[], object], clock: Callable[[], float]) -> tuple[float, float]:
    """Seconds of each, in turns, so that what else the machine does slows both."""
    times: list[tuple[float, float]] = []
    for _ in range(ROUNDS):
        start = clock()
        one()
        between = clock()
        other()
        times.append((between - start, clock() - between))
    return min(first for first, _ in times), min(second for _, second in times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--size", type=int, default=384)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as made:
        if options.images is None:
            make_photographs(Path(made), 48)
        files = list(photographs(options.images or Path(made)))
        compare(files, size=options.size, workers=options.workers)


def compare(files: list[Path], *, size: int, workers: int) -> None:
    plain_transform = transforms.Compose(
        [
            transforms.Resize((size, size), interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )
    ours = ImageTransform(image_size=size, mean=MEAN, std=STD, interpolation="bicubic", tiles=1)

    def plain_loop() -> list[Tensor]:
        result = []
        for path in files:
            with Image.open(path) as image:
                result.append(plain_transform(image.convert("RGB")))
        return result

    def our_loop(workers: int = 0) -> list[Tensor]:
        return [pixels[0, 0] for pixels in load_pixels([[path] for path in files], ours, workers=workers)]

    steps = torch.cat([(a - b).abs().flatten() for a, b in zip(plain_loop(), our_loop(), strict=True)]) * 255 * STD[0]
    further = int((steps > 1.5).sum())
    plain, mine = best_of(plain_loop, our_loop, time.process_time)
    print(f"{len(files)} files to {size} x {size}: largest difference {steps.max():.0f} of 255")
    print(f"values that differ: {(steps > 0.5).float().mean():.2%}; by more than 1: {further} of {len(steps):,}")
    print(f"plain loop  {len(files) / plain:7.1f} images/s of one core")
    print(f"this loader {len(files) / mine:7.1f} images/s of one core: {plain / mine:.2f} times (promised: 1.5)")
    wall, shared = best_of(plain_loop, lambda: our_loop(workers), time.perf_counter)
    print(
        f"with {workers} loader processes, their start included: {wall / shared:.2f} times the plain loop (wall time)"
    )


if __name__ == "__main__":
    main()
