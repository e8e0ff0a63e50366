"""Pictures and folders of the built-in worlds: what is drawn where, how words are written, what a folder holds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont, features
from scipy import ndimage

from lvlm.data.worlds import fonts, writer
from lvlm.data.worlds.lexicon import lexicon_codes, load_lexicon
from lvlm.data.worlds.reading import TRAINING_WORDS, reading_image, words_for
from lvlm.data.worlds.render import RGB, draw_word, render
from lvlm.data.worlds.scenes import COLOURS, HELD_OUT, PLACES, SHAPES, SIZES, Group, Scene, sample_scene
from lvlm.data.worlds.writer import write_reading, write_shapes, write_world
from lvlm.errors import InputError

LANGUAGES = ("en", "de", "ru")
GREY = (134, 134, 134)


def pixels_of(image: Image.Image, colour: str) -> np.ndarray:
    """(height, width) mask of the pixels whose nearest named colour, or grey, is `colour`, and near enough."""
    names = [*RGB, "grey"]
    pixels = np.asarray(image, dtype=np.int32)
    distance = np.stack([((pixels - point) ** 2).sum(-1) for point in [*RGB.values(), GREY]])
    return (distance.argmin(0) == names.index(colour)) & (distance.min(0) < 60**2)


def place_of(mask: np.ndarray) -> set[str]:
    """The places, cut out by the image's diagonals, in which the mask has pixels that are clear of the diagonals."""
    rows, columns = np.nonzero(mask)
    x, y = columns + 0.5 - mask.shape[1] / 2, rows + 0.5 - mask.shape[0] / 2
    clear = np.abs(np.abs(x) - np.abs(y)) > 1.5
    sideways = np.abs(x) > np.abs(y)
    named = np.where(sideways, np.where(x < 0, "left", "right"), np.where(y < 0, "top", "bottom"))
    return set(named[clear].tolist())


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def rows_of(folder: Path, split: str, language: str) -> list[dict[str, Any]]:
    return [
        json.loads(line) for line in (folder / split / f"{language}.jsonl").read_text(encoding="utf-8").splitlines()
    ]


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world") / "shapes"
    return write_shapes(folder, seed=0, train_images=12, tune_images=4, test_images=8, languages=LANGUAGES)


@pytest.fixture(scope="module")
def reading(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world") / "reading"
    sizes = {"train_english": 110, "train_per_language": 100, "tune_per_language": 12, "test_per_language": 24}
    return write_reading(folder, seed=0, languages=LANGUAGES, **sizes)


# --- scenes


@pytest.mark.parametrize("shape", SHAPES)
def test_each_copy_is_one_spot_of_its_colour(shape: str) -> None:
    rng = np.random.default_rng(1)
    for number, colour in enumerate(COLOURS):
        for size in SIZES:
            for count in (1 + number % 2, 3 + number % 2):
                place = PLACES[int(rng.integers(4))]
                image = render(Scene((Group(shape, colour, size, place, count),)), rng)
                spots = ndimage.label(pixels_of(image, colour), structure=np.ones((3, 3)))[0]
                areas = np.bincount(spots.ravel())[1:]
                assert (areas >= 8).sum() == count, (colour, size, place)


def test_groups_keep_to_their_places() -> None:
    rng = np.random.default_rng(2)
    for _ in range(100):
        scene = sample_scene(rng, groups=3)
        if len({group.colour for group in scene.groups}) < 3:
            continue
        image = render(scene, rng)
        for group in scene.groups:
            mask = ndimage.binary_opening(pixels_of(image, group.colour), structure=np.ones((2, 2)))
            assert place_of(mask) == {group.place}, scene.key


def test_a_lone_group_lies_mostly_in_its_place() -> None:
    rng = np.random.default_rng(3)
    for _ in range(120):
        scene = sample_scene(rng, groups=1)
        (group,) = scene.groups
        rows, columns = np.nonzero(pixels_of(render(scene, rng), group.colour))
        centre = np.zeros((96, 96), dtype=bool)
        centre[round(rows.mean()), round(columns.mean())] = True
        assert place_of(centre) == {group.place}, scene.key


@pytest.mark.parametrize("shape", SHAPES)
def test_large_is_clearly_larger_than_small(shape: str) -> None:
    rng = np.random.default_rng(4)
    area = {
        size: [pixels_of(render(Scene((Group(shape, "red", size, "left", 1),)), rng), "red").sum() for _ in range(30)]
        for size in SIZES
    }
    assert min(area["large"]) > 1.5 * max(area["small"])


def test_an_image_follows_from_scene_and_generator_and_scales() -> None:
    scene = sample_scene(np.random.default_rng(5), groups=2)
    first, again, other = (render(scene, np.random.default_rng(seed)).tobytes() for seed in (1, 1, 2))
    assert first == again != other
    large = render(scene, np.random.default_rng(1), size=192)
    assert large.size == (192, 192)
    for group in scene.groups:
        assert group.place in place_of(pixels_of(large, group.colour))


# --- words


def spot_of(word: str, language: str, seed: int = 0) -> np.ndarray:
    """Coverage of a word as drawn, cropped: (height, width) in 0..1."""
    flat = Image.new("RGB", (192, 192), GREY)
    written = draw_word(flat, word, np.random.default_rng(seed), language=language)
    return cropped(np.abs(np.asarray(written, dtype=float) - GREY[0]).max(-1))


def basic_spot_of(text: str) -> np.ndarray:
    """The same without shaping: each letter's isolated form, from left to right."""
    font = ImageFont.truetype(str(fonts.font_path()), 32, layout_engine=ImageFont.Layout.BASIC)
    mask = Image.new("L", (192, 96))
    ImageDraw.Draw(mask).text((20, 20), text, fill=255, font=font)
    return cropped(np.asarray(mask, dtype=float))


def cropped(ink: np.ndarray) -> np.ndarray:
    rows, columns = np.nonzero(ink > 0.3 * ink.max())
    return ink[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] / ink.max()


def likeness(one: np.ndarray, other: np.ndarray) -> float:
    """Correlation of two spots stretched to one size."""
    small = [
        np.asarray(Image.fromarray((255 * spot).astype(np.uint8)).resize((60, 20), Image.Resampling.BOX), dtype=float)
        for spot in (one, other)
    ]
    return float(np.corrcoef(small[0].ravel(), small[1].ravel())[0, 1])


def widest_part(spot: np.ndarray) -> float:
    """Share of the width that the widest connected stroke spans."""
    found = ndimage.find_objects(ndimage.label(spot > 0.4, structure=np.ones((3, 3)))[0])
    return max(part[1].stop - part[1].start for part in found) / spot.shape[1]


def test_arabic_letters_are_joined() -> None:
    for seed in range(4):
        assert widest_part(spot_of("كتب", "ar", seed)) > 0.9
    assert widest_part(basic_spot_of("كتب")) < 0.7


def test_hebrew_runs_from_right_to_left() -> None:
    word = "שלום"
    for seed in range(4):
        drawn = spot_of(word, "he", seed)
        assert likeness(drawn, basic_spot_of(word[::-1])) > 0.6 > likeness(drawn, basic_spot_of(word))
    assert likeness(spot_of("дом", "ru"), basic_spot_of("дом")) > 0.6


@pytest.mark.parametrize("code", lexicon_codes())
def test_every_word_of_every_lexicon_can_be_drawn_beside_a_distractor(code: str) -> None:
    rng = np.random.default_rng(6)
    for word in load_lexicon(code).words:
        assert reading_image(word, rng, language=code).size == (96, 96)


def test_words_that_cannot_be_drawn_are_refused() -> None:
    blank = Image.new("RGB", (96, 96), GREY)
    rng = np.random.default_rng(0)
    with pytest.raises(InputError, match=r"U\+4E2D.*'en'"):
        draw_word(blank, "a中", rng, language="en")
    with pytest.raises(InputError, match="does not fit"):
        draw_word(blank, "immeasurable", rng, language="en")
    with pytest.raises(InputError, match="empty"):
        draw_word(blank, " ", rng, language="en")


def test_missing_raqm_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "check", lambda feature: False)
    fonts.check_layout.cache_clear()
    with pytest.raises(InputError, match="libfribidi0"):
        draw_word(Image.new("RGB", (96, 96)), "dog", np.random.default_rng(0), language="en")


# --- corpus folders


def write_small(name: str, folder: Path, *, seed: int = 0, train: int = 4) -> Path:
    return write_world(name, folder, seed=seed, train=train, tune=2, test=4, languages=["de", "en"])


@pytest.mark.parametrize("name", writer.WORLDS)
def test_same_seed_same_bytes_other_seed_other_bytes(name: str, tmp_path: Path) -> None:
    first, again, other = (
        files_of(write_small(name, tmp_path / label, seed=seed)) for label, seed in (("a", 3), ("b", 3), ("c", 4))
    )
    assert first == again
    assert first.keys() == other.keys()
    pictures = [path for path in first if path.endswith(".png")]
    assert len(pictures) >= 10
    assert all(first[path] != other[path] for path in pictures)


@pytest.mark.parametrize("name", writer.WORLDS)
def test_more_training_images_change_nothing_else(name: str, tmp_path: Path) -> None:
    few, many = (files_of(write_small(name, tmp_path / str(train), train=train)) for train in (4, 9))
    assert set(few) < set(many)
    for path, content in few.items():
        if path.startswith(("captions", "instruct")):
            assert many[path].startswith(content) and len(many[path]) > len(content)
        elif path != "corpus.yaml":
            assert many[path] == content, path


@pytest.mark.parametrize("name", writer.WORLDS)
def test_a_language_left_out_changes_nothing_in_the_others(name: str, tmp_path: Path) -> None:
    both = files_of(write_small(name, tmp_path / "both"))
    english = files_of(write_world(name, tmp_path / "en", seed=0, train=4, tune=2, test=4, languages=["en"]))
    own = {path for path in english if path not in ("corpus.yaml", "attributes.json")}
    assert all(both[path] == english[path] for path in own)


def test_shapes_rows_are_parallel(shapes: Path) -> None:
    text = (shapes / "corpus.yaml").read_text(encoding="utf-8")
    assert "translatable: true" in text and "permission: report" in text
    for split, per_image in (("captions", 12), ("instruct", 12), ("tune", 10), ("test", 19)):
        by_language = {code: rows_of(shapes, split, code) for code in LANGUAGES}
        keys = {
            code: [(row["id"], row["image_id"], row["task"], row["source"]) for row in rows]
            for code, rows in by_language.items()
        }
        assert keys["en"] == keys["de"] == keys["ru"]
        assert len({row["id"] for row in by_language["en"]}) == len(by_language["en"]) == per_image
        for code, rows in by_language.items():
            assert all(row["language"] == code for row in rows)
    assert rows_of(shapes, "captions", "en")[0]["label"] != rows_of(shapes, "captions", "ru")[0]["label"]
    assert json.loads((shapes / "attributes.json").read_text(encoding="utf-8"))["en"]["red"] == "colour:red"


def test_reading_rows_are_each_languages_own(reading: Path) -> None:
    assert "translatable: false" in (reading / "corpus.yaml").read_text(encoding="utf-8")
    rows = [
        row for split in ("instruct", "tune", "test") for code in LANGUAGES for row in rows_of(reading, split, code)
    ]
    assert len({row["id"] for row in rows}) == len(rows) == len(LANGUAGES) * (100 + 12 + 24) + 10


def test_unseen_words_stay_out_of_training(reading: Path) -> None:
    for code in LANGUAGES:
        shown = rows_of(reading, "instruct", code)
        trained = {row["label"][0] for row in shown if row["source"] == "words"}
        assert trained == set(load_lexicon(code).words[:TRAINING_WORDS])
        letters = [row["label"][0] for row in shown if row["source"] == "letters"]
        assert len(letters) == len(shown) / 2 and len(set(letters)) > 0.7 * len(letters)
        assert set("".join(letters)) <= set("".join(trained))
        unseen = {}
        for split in ("tune", "test"):
            rows = rows_of(reading, split, code)
            words = {
                source: {row["text_label"] for row in rows if row["source"] == source} for source in ("seen", "unseen")
            }
            assert words["seen"] <= trained and not words["unseen"] & (trained | set(letters))
            assert sum(row["source"] == "unseen" for row in rows) == len(rows) / 2
            unseen[split] = words["unseen"]
        assert not unseen["tune"] & unseen["test"]


def test_no_language_trains_on_or_tunes_on_a_word_that_another_reports() -> None:
    lexicons = [load_lexicon(code) for code in lexicon_codes()]
    words = {
        pool: {word for lexicon in lexicons for word in words_for(lexicon, pool)} for pool in ("train", "tune", "test")
    }
    assert not words["train"] & (words["tune"] | words["test"])
    assert not words["tune"] & words["test"]
    assert all(len(words_for(lexicon, "tune")) >= 3 and len(words_for(lexicon, "test")) >= 7 for lexicon in lexicons)


@pytest.mark.parametrize("name", writer.WORLDS)
def test_every_row_has_its_image(name: str, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(name)
    shown = set()
    for path in folder.glob("*/*.jsonl"):
        for row in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
            held_out = path.parent.name in ("tune", "test")
            assert held_out == ("text_label" in row) == isinstance(row["image_id"], str)
            assert len(row["context"]) == len(row["label"]) and all(row["context"])
            assert row["text_label"] if held_out else all(row["label"])
            shown.update([row["image_id"]] if held_out else row["image_id"])
    assert shown == {str(path.relative_to(folder / "images")) for path in folder.glob("images/*/*.png")}
    for image_id in shown:
        with Image.open(folder / "images" / image_id) as image:
            image.load()
            assert (image.mode, image.size) == ("RGB", (96, 96))


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Scene]]:
    """The scenes in the order in which the writer draws them, with blank pictures in their place."""
    scenes: list[Scene] = []
    blank = Image.new("RGB", (1, 1))
    monkeypatch.setattr(writer, "render", lambda scene, rng: scenes.append(scene) or blank)
    yield scenes


def test_held_out_pairs_are_where_source_says(drawn: list[Scene], tmp_path: Path) -> None:
    folder = write_shapes(tmp_path / "s", seed=0, train_images=500, tune_images=60, test_images=80, languages=["en"])
    assert not any(scene.pairs & HELD_OUT for scene in drawn[:560])
    for split, scenes in (("tune", drawn[500:560]), ("test", drawn[560:])):
        tested = set()
        for row in rows_of(folder, split, "en"):
            scene = scenes[int(row["image_id"][-9:-4])]
            wanted = "unseen" if scene.pairs & HELD_OUT else "seen"
            binding = row["task"] == "vqa" and len(scene.groups) > 1
            assert row["source"] == wanted + (":binding" if binding else "")
            tested.add(row["source"])
        assert len(tested) == (4 if split == "test" else 2)
    assert sum(bool(scene.pairs & HELD_OUT) for scene in drawn[560:]) == 40
    dialogues = rows_of(folder, "instruct", "en")
    assert all(len(row["context"]) == 3 for row in dialogues)
    request = load_lexicon("en").caption_request
    assert 0.09 < np.mean([request in row["context"] for row in dialogues]) < 0.21
    for row, caption in zip(dialogues, rows_of(folder, "captions", "en"), strict=True):
        asked = dict(zip(row["context"], row["label"], strict=True))
        assert asked.get(request, caption["label"][0]) == caption["label"][0]


# --- bad input and interruptions


def test_a_folder_that_holds_something_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    for name in writer.WORLDS:
        with pytest.raises(InputError, match="not an empty folder"):
            write_small(name, tmp_path / "mine")
    assert [path.name for path in tmp_path.rglob("*")] == ["mine", "thesis.txt"]
    (tmp_path / "mine" / "thesis.txt").unlink()
    assert (write_small("reading", tmp_path / "mine") / "corpus.yaml").exists()


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_interrupted_write_leaves_nothing(
    error: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def fail_at_the_seventh(scene: Scene, rng: np.random.Generator) -> Image.Image:
        calls.append(scene)
        if len(calls) == 7:
            assert list(tmp_path.iterdir()), "the test should interrupt a write that has begun"
            raise error("stop")
        return render(scene, rng)

    monkeypatch.setattr(writer, "render", fail_at_the_seventh)
    with pytest.raises(error):
        write_small("shapes", tmp_path / "shapes")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "shape"}, "shapes"),
        ({"languages": []}, "languages is empty"),
        ({"languages": ["en", "pt"]}, "no lexicon for the language 'pt'"),
        ({"languages": ["en", "zz"]}, "no lexicon for the language 'zz'"),
        ({"train": 0}, "train_images is 0"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_bad_settings_are_one_sentence_and_write_nothing(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    settings = {"name": "shapes", "seed": 0, "train": 2, "tune": 1, "test": 1, "languages": ["en"]} | change
    with pytest.raises(InputError, match=message):
        write_world(settings.pop("name"), tmp_path / "out", **settings)
    assert not list(tmp_path.iterdir())


def test_a_lexicon_with_too_few_words_is_named() -> None:
    class Short:
        code = "xx"
        words = tuple(f"word{number}" for number in range(46))

    with pytest.raises(InputError, match=r"'xx' has 46 reading words.*lexicons/xx\.yaml"):
        words_for(Short(), "train")  # type: ignore[arg-type]
