"""Does keeping image features pay? Seconds with and without the store, beside what the measurement at start predicts.

python tests/bench/feature_cache.py [--images 8] [--depth 2] [--uses 1 2 3 5]    about four minutes on a free core
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from loops.measure import load, table
from PIL import Image
from safetensors.torch import save_file

from lvlm.config import ModelConfig
from lvlm.model.assembly import assemble
from lvlm.model.backbones import draws
from lvlm.startup import quiet_transformers
from lvlm.train.decide import decide_cache
from lvlm.train.features import FeatureStore, TowerFeatures

GROUP = 4
"""Images of one call, as a micro-batch asks for them."""
EXPLANATION = """\
Every image is a JPEG of noise, {size} pixels a side, read in groups of {group} as micro-batches ask for them, in as
many passes over all images as the column `uses` says. `without`: every pass decodes and encodes each image. `with`: an
empty store is filled, then every pass reads it; both are timed in turn. `predicted` is what `weigh` makes of a few
images timed before each row, as a stage does at its start. The verdict is that prediction; `wrong` marks a row where it
points the other way though the measured times differ by more than 20 %. The so400m tower is SigLIP's shape (width 1152,
16 heads, 384 pixels in patches of 14, so 729 tokens) with random weights and {depth} blocks instead of 26; with all of
them computing takes about {times:.0f} times as long and reading as long as here, so that keeping pays the sooner. fp32,
one thread, no loader processes, local disk whose pages may still be in memory when they are read: a store larger than
the memory reads more slowly. Times are wall seconds: {load} at the end."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=8, help="for the so400m tower; twenty times as many for tiny-vit")
    parser.add_argument("--depth", type=int, default=2, help="blocks of the so400m tower that run, of 26")
    parser.add_argument("--uses", type=int, nargs="+", default=[1, 2, 3, 5])
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[list[str]] = []
    with tempfile.TemporaryDirectory(prefix="lvlm-bench-") as scratch, quiet_transformers():
        folder = Path(scratch)
        towers: dict[str, tuple[str, int, int]] = {
            f"so400m shape, {options.depth} blocks": (str(so400m(folder / "so400m", options.depth)), 1, 384)
        }
        if draws("tiny-vit"):
            towers = {f"tiny-vit, {tiles} tiles": ("tiny-vit/0", tiles, 96) for tiles in (1, 2)} | towers
        for name, (tower, tiles, size) in towers.items():
            images = write_images(folder / f"images-{size}", options.images if size > 96 else 20 * options.images, size)
            model = assemble(ModelConfig(tower=tower, llm="tiny-lm/0", tiles=tiles), seed=0)[0]
            features = TowerFeatures(model, device=torch.device("cpu"), precision="fp32")
            for uses in options.uses:
                rows.append([name, str(uses), *compare(features, images, uses, folder)])
                print(rows[-1], flush=True)
    head = ("tower", "uses", "without s", "with s", "ratio", "predicted without", "predicted with", "verdict")
    print("\n" + table(head, rows) + "\n")
    print(EXPLANATION.format(size="96 or 384", group=GROUP, depth=options.depth, times=26 / options.depth, load=load()))
    if wrong := [row for row in rows if row[-1].endswith("wrong")]:
        raise SystemExit(f"{len(wrong)} of {len(rows)} predictions point the other way")


def so400m(folder: Path, depth: int) -> Path:
    """A random tower of SigLIP-so400m's shape that computes `depth` blocks."""
    import timm

    blocks = depth + 1  # the features are those of the block before the last
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tower = timm.create_model("vit_so400m_patch14_siglip_384", pretrained=False, num_classes=0, depth=blocks)
    folder.mkdir(parents=True)
    description = {
        "timm": {"architecture": "vit_so400m_patch14_siglip_384", "args": {"depth": blocks}},
        "image_size": 384,
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
        "interpolation": "bicubic",
    }
    (folder / "config.json").write_text(json.dumps(description), encoding="utf-8")
    save_file({name: tensor.contiguous() for name, tensor in tower.state_dict().items()}, folder / "model.safetensors")
    return folder


def write_images(folder: Path, count: int, size: int) -> list[Path]:
    """JPEG files of noise."""
    folder.mkdir(exist_ok=True)
    draw = np.random.default_rng(0)
    paths = [folder / f"{number:04d}.jpg" for number in range(count)]
    for path in paths:
        if not path.exists():
            Image.fromarray(draw.integers(0, 256, (size, size, 3), dtype=np.uint8)).save(path)
    return paths


def compare(tower: TowerFeatures, images: Sequence[Path], uses: int, folder: Path) -> list[str]:
    """Time `uses` passes over `images` both ways; the cells of a row."""
    with tempfile.TemporaryDirectory(dir=folder) as home:
        store = FeatureStore(Path(home), tower)
        predicted = decide_cache(store, tower, images, uses=uses * len(images), per_call=GROUP)
        without = _seconds(lambda: _passes(tower, images, uses))
        with_store = _seconds(lambda: (store.add(images), _passes(store, images, uses)))
    ratio = with_store / without
    wrong = predicted.on != (ratio < 1) and not 1 / 1.2 <= ratio <= 1.2
    return [
        f"{without:.2f}",
        f"{with_store:.2f}",
        f"{ratio:.2f}",
        f"{predicted.seconds_without:.2f}",
        f"{predicted.seconds_with:.2f}",
        ("on" if predicted.on else "off") + (", wrong" if wrong else ""),
    ]


def _passes(features: Callable[[Sequence[Path]], torch.Tensor], images: Sequence[Path], uses: int) -> None:
    for _ in range(uses):
        for start in range(0, len(images), GROUP):
            features(images[start : start + GROUP])


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
