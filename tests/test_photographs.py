"""Real photographs in every form in which files come: the corpus takes them, and each becomes plain RGB for the
tower."""

from __future__ import annotations

import itertools
import json
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lvlm.data.corpus import open_corpus
from lvlm.model.tiling import to_rgb
from lvlm.records import CURVE_FILE
from lvlm.run import run
from tests.corpora import write_rows
from tests.train_world import run_config

PHOTOGRAPHS = {
    "skimage/data": (
        "astronaut.png",
        "coffee.png",
        "chelsea.png",
        "rocket.jpg",
        "camera.png",
        "coins.png",
        "color.png",
    ),
    "sklearn/datasets/images": ("china.jpg", "flower.jpg"),
}
SIZES = ((64, 48), (33, 97), (224, 224), (300, 200), (17, 17))
ORIENTATION = 0x0112  # EXIF tag; 6 is a quarter turn, as telephones write it


@cache
def shipped() -> list[Image.Image]:
    """The photographs that come with scikit-image and scikit-learn; those that a version does not ship are left out."""
    found = []
    for folder, names in PHOTOGRAPHS.items():
        package, *inside = folder.split("/")
        spec = find_spec(package)  # finds the package without the seconds that importing it takes
        if spec and spec.origin:
            found += [Path(spec.origin).parent.joinpath(*inside, name) for name in names]
    return [Image.open(path).convert("RGB").resize((320, 240)) for path in found if path.is_file()]


def save(image: Image.Image, form: str, path: Path) -> Path:
    """One photograph in one form; returns where it lies."""
    if form == "grey":
        image.convert("L").save(path := path.with_suffix(".jpg"))
    elif form == "rgba":
        with_alpha = image.convert("RGBA")
        with_alpha.putalpha(Image.linear_gradient("L").resize(image.size))
        with_alpha.save(path := path.with_suffix(".png"))
    elif form == "16-bit":
        Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257).save(path := path.with_suffix(".png"))
    elif form == "palette":
        image.quantize(64).save(path := path.with_suffix(".png"))
    elif form == "rotated":
        exif = Image.Exif()
        exif[ORIENTATION] = 6
        image.save(path := path.with_suffix(".jpg"), exif=exif)
    elif form == "line":
        image.resize((1, 4000)).save(path := path.with_suffix(".png"))
    else:
        image.save(path := path.with_suffix(f".{form}"))
    return path


def photograph_corpus(folder: Path, count: int = 200) -> Path:
    """`count` files of mixed sizes and modes and one Centurio file that asks about each."""
    photographs = shipped()
    forms = itertools.cycle(("jpg", "png", "grey", "rgba", "16-bit", "palette", "rotated", "line"))
    (folder / "images").mkdir(parents=True)
    rows = []
    for number, form in zip(range(count), forms, strict=False):
        image = photographs[number % len(photographs)].resize(SIZES[number % len(SIZES)])
        path = save(image, form, folder / "images" / f"{number:04d}")
        turns = {"context": ["Which form?", "And the number?"], "label": [form, str(number)]}
        rows.append({**turns, "image_id": [path.name], "source": form})
    return write_rows(folder / "photographs.json", rows)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return photograph_corpus(tmp_path_factory.mktemp("photographs") / "corpus")


def test_photographs_are_shipped() -> None:
    assert len(shipped()) >= 6


def test_the_corpus_checks_clean(photographs: Path) -> None:
    corpus = open_corpus(photographs)
    corpus.check("train", images=True)
    samples = corpus.samples("train", "en")
    assert len(samples) == 200 and len({sample.images for sample in samples}) == 200
    modes = {Image.open(corpus.image_path(sample.images[0])).mode for sample in samples}
    assert {"RGB", "L", "RGBA", "I;16", "P"} <= modes


def test_every_photograph_becomes_rgb_pixels(photographs: Path) -> None:
    corpus = open_corpus(photographs)
    for sample in corpus.samples("train", "en"):
        with Image.open(corpus.image_path(sample.images[0])) as image:
            rgb = to_rgb(image)
            assert rgb.mode == "RGB"
            assert rgb.size == (image.size[::-1] if sample.source == "rotated" else image.size)
            assert np.ptp(np.asarray(rgb)) > 60, f"{sample.source}: a photograph is neither black nor white"


def test_a_run_trains_on_all_of_them_and_scores_them(photographs: Path, tmp_path: Path) -> None:
    rows = [row for row in json.loads(photographs.read_text(encoding="utf-8")) if row["source"] != "line"][:20]
    asked = [{**row, "context": row["context"][:1], "label": [""], "text_label": row["label"][0]} for row in rows]
    items = write_rows(photographs.parent / "items.json", asked)
    mix = {"corpora": [{"path": str(photographs), "split": "train"}], "languages": "en"}
    config = run_config(photographs, pretrain=None, instruct__mix=mix, instruct__steps=50, instruct__batch_samples=4,
                        instruct__optim={"lr": 1e-2}, evaluate__corpora=[{"path": str(items), "split": "test"}],
                        evaluate__tune_corpora=[])  # fmt: skip
    record = run(config, tmp_path / "run", home=tmp_path / "home")
    curve = [json.loads(line) for line in (tmp_path / "run" / CURVE_FILE).read_text(encoding="utf-8").splitlines()]
    losses = [point["loss"] for point in curve if "loss" in point]
    assert record.budget["samples"] == record.budget["images"] == 200
    assert record.budget["views"] == 200 * 5
    assert all(np.isfinite(losses)) and np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
    assert "vqa/en" in record.scores
