"""The corpus `pages`: text inside the picture and legible, lines in order, disjoint splits, the user's own text."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lvlm import cli
from lvlm.data.corpus import open_corpus
from lvlm.data.worlds import pages as pages_module
from lvlm.data.worlds.pages import Page, draw_page
from lvlm.data.worlds.pages_corpus import write_pages
from lvlm.data.worlds.textures import texture
from lvlm.data.worlds.typefaces import typefaces
from lvlm.data.worlds.words import load_words, pool_of
from lvlm.errors import InputError
from tests.test_words import made_up, needs_noto
from tests.test_world_plots import rows

LANGUAGES = ("en", "ar")
SIZES = {"train_pages": 8, "tune_pages": 2, "test_pages": 8}


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pages(tmp_path_factory.mktemp("world") / "pages", seed=0, languages=LANGUAGES, **SIZES)[0]


def page(code: str, index: int, *, lines: int = 3, joiner: str = " ", photos: Path | None = None) -> Page:
    rng = np.random.default_rng(index)
    words = load_words(code).words
    parts = [words[place] for place in rng.integers(len(words), size=10)]
    return draw_page(parts, typefaces(code), rng, lines=lines, joiner=joiner, photos=photos)


NEEDS_NOTO = [pytest.param(code, marks=[pytest.mark.system, needs_noto]) for code in ("th", "zh", "hi")]


@pytest.mark.parametrize("code", ["en", "ar", *NEEDS_NOTO])
def test_text_lies_inside_the_picture_and_stands_out(code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    inks: list[tuple[np.ndarray, np.ndarray]] = []
    write = pages_module._write

    def watched(image: Image.Image, ink: Image.Image, box: Any, rng: np.random.Generator) -> None:
        write(image, ink, box, rng)
        grey = np.asarray(image.crop(box).convert("L"), dtype=float)
        covered = np.asarray(ink)
        inks.append((grey[covered > 250], grey[covered == 0]))

    monkeypatch.setattr(pages_module, "_write", watched)
    for index in range(25):
        drawn = page(code, index, lines=1 + index % 5, joiner="" if code in ("th", "zh") else " ")
        width, height = drawn.image.size
        left, top, right, bottom = drawn.box
        assert 0 <= left < right <= width and 0 <= top < bottom <= height
        assert 1 <= len(drawn.lines) <= 1 + index % 5
        letters, under = inks[-1]
        assert abs(letters.mean() - under.mean()) > 80, "ink and background are alike"


def test_lines_hold_the_parts_in_order_and_never_touch() -> None:
    face = typefaces("en")[0]
    for index in range(20):
        rng = np.random.default_rng(index)
        parts = [f"{chr(97 + number)}gyj" for number in range(12)]
        drawn = draw_page(parts, [face], rng, lines=4, joiner=" ")
        said = " ".join(drawn.lines).split(" ")
        assert said == parts[: len(said)]
        block = pages_module._block(drawn.lines, face, 20, rng)
        inked = (np.asarray(block) > 64).any(axis=1).astype(int)
        assert (np.diff(inked) == 1).sum() >= len(drawn.lines), "two lines run into each other"


def test_a_text_that_the_turn_makes_too_wide_lies_on_paper_of_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages_module, "PAPER_SHARE", 1.0)
    monkeypatch.setattr(pages_module, "SIDES", (320, 320))
    for index in range(20):
        block = Image.new("L", (560 + 3 * index, 319), 255)
        monkeypatch.setattr(pages_module, "_block", lambda *_, block=block: block)
        drawn = page("en", index)
        assert drawn.box[2] - drawn.box[0] <= 320 - 2 * pages_module.MARGIN


def test_pages_differ_in_font_background_and_size() -> None:
    drawn = [page("en", index) for index in range(12)]
    assert len({each.image.size for each in drawn}) > 8 and len({each.image.tobytes() for each in drawn}) == 12
    used = {texture(np.random.default_rng(seed), (64, 48)).tobytes() for seed in range(12)}
    assert len(used) == 12 and len(typefaces("en")) >= 5


def test_a_part_that_fits_at_no_size_is_an_error() -> None:
    with pytest.raises(InputError, match="is wider than"):
        draw_page(["m" * 80], typefaces("en"), np.random.default_rng(0), lines=2, joiner=" ")
    with pytest.raises(InputError, match="cannot draw"):
        draw_page(["ไทย"], typefaces("en"), np.random.default_rng(0), lines=2, joiner=" ")


def test_items_ask_for_the_text_or_for_one_of_its_lines(pages: Path) -> None:
    for code in LANGUAGES:
        items = {row["id"]: row for row in rows(pages, "test", code)}
        texts = [row for row in items.values() if row["source"] == "text"]
        assert len(texts) == SIZES["test_pages"]
        for row in texts:
            lines = row["text_label"].split("\n")
            line = items.get(row["id"].replace("-text", "-line"))
            assert (line is not None) == (len(lines) > 1)
            if line is not None:
                number = int(line["context"][0].split()[2])
                assert line["text_label"] == lines[number - 1]
        trained = rows(pages, "instruct", code)
        assert len(trained) == SIZES["train_pages"] and {row["source"] for row in trained} == {"text", "line"}
        assert {row["task"] for row in trained} == {"reading"}


def test_splits_share_no_word(pages: Path) -> None:
    for code in LANGUAGES:
        for pool, split in (("train", "instruct"), ("tune", "tune"), ("test", "test")):
            golds = [row.get("text_label") or row["label"][0] for row in rows(pages, split, code)]
            said = {word for gold in golds for word in gold.split()}
            assert said and {pool_of(word) for word in said} == {pool}


def test_the_same_seed_gives_the_same_bytes_and_the_folder_is_a_corpus(pages: Path, tmp_path: Path) -> None:
    again, missing = write_pages(tmp_path / "again", seed=0, languages=["ar", "en"], **SIZES)
    files = [path for path in sorted(pages.rglob("*")) if path.is_file()]
    assert not missing and len(files) > 30
    assert all((again / path.relative_to(pages)).read_bytes() == path.read_bytes() for path in files)
    corpus = open_corpus(pages)
    assert not corpus.translatable
    for split in corpus.splits:
        corpus.check(split, images=True)


def test_a_user_s_text_is_read_by_paragraphs_on_the_user_s_photographs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = made_up(900)
    paragraphs = [f"Zeile {' '.join(words[5 * number : 5 * number + 5])} — Ende." for number in range(180)]
    text, photos = tmp_path / "text", tmp_path / "photos"
    text.mkdir()
    photos.mkdir()
    too_wide = f"https://{'w' * 60} {paragraphs[0]}"
    (text / "de.txt").write_text("\n".join([*paragraphs, "日本語の行", too_wide]), encoding="utf-8")
    Image.new("RGB", (700, 900), (10, 200, 30)).save(photos / "meadow.jpg")
    small = ["--train", "6", "--tune", "2", "--test", "6", "--text", str(text), "--photos", str(photos)]
    assert cli.main(["data", "pages", str(tmp_path / "out"), *small, "--languages", "L100"]) == 0
    assert "holds no file for fr. It has: de" in capsys.readouterr().err
    sources = json.loads((tmp_path / "out" / "sources.json").read_text(encoding="utf-8"))
    assert sources["de"]["paragraphs"] == 182 and sources["de"]["without glyphs"] == 1
    assert sources["de"]["begin with too wide a word"] == 1
    for row in rows(tmp_path / "out", "test", "de"):
        if row["source"] == "text":
            said = row["text_label"].replace("\n", " ")
            (paragraph,) = [text for text in paragraphs if text.startswith(said)]
            assert pool_of(paragraph) == "test"
            with Image.open(tmp_path / "out" / "images" / row["image_id"]) as image:
                counts = dict((colour, count) for count, colour in image.getcolors(1 << 20) or [])
            assert max(counts, key=lambda colour: counts[colour]) == pytest.approx((10, 200, 30), abs=6)
    for more, said in (
        (["--words", str(text)], "Give one of them"),
        (["--languages", "fr"], "no file for fr"),
        (["--languages", "script:Arab"], "No language of script:Arab can be written here: --text"),
        (["--photos", str(text)], "holds no photograph"),
        (["--text", str(tmp_path / "absent")], "absent does not exist"),
    ):
        assert cli.main(["data", "pages", str(tmp_path / "no"), *small, *more]) == 2
        assert said in capsys.readouterr().err
    (text / "de.txt").write_text("one\ntwo\n", encoding="utf-8")
    assert cli.main(["data", "pages", str(tmp_path / "no"), *small]) == 2
    assert "fewer than 5 paragraphs" in capsys.readouterr().err and not (tmp_path / "no").exists()


RUNNING = {
    "my": "မြန်မာနိုင်ငံတွင် လူအများ နေထိုင်ကြသည်။",
    "km": "ខ្ញុំចង់ទៅផ្សារនៅថ្ងៃនេះ ដើម្បីទិញបន្លែ",
    "th": "สุนัขสองตัววิ่งเล่นอยู่ในสวน เพราะอากาศดี",
}


@pytest.mark.system
@needs_noto
@pytest.mark.parametrize("code", RUNNING)
def test_running_text_without_spaces_breaks_between_words(tmp_path: Path, code: str) -> None:
    """No line begins in the middle of a syllable, with a sign that needs the letter before it, or ends in a blank."""
    text = tmp_path / f"{code}.txt"
    digits = "ขคงจฉชซญฐฑ" if code == "th" else "កខគឃងចឆជឈញ" if code == "km" else "ကခဂဃငစဆဇညတ"
    names = ("".join(digits[int(digit)] for digit in f"{number:03d}") for number in range(200))
    text.write_text("\n".join(f"{name} {RUNNING[code] * 3}" for name in names), encoding="utf-8")
    folder, missing = write_pages(
        tmp_path / "out", seed=0, languages=[code], train_pages=1, tune_pages=1, test_pages=12, text=text
    )
    assert not missing
    lines = [line for row in rows(folder, "test", code) for line in row["text_label"].split("\n")]
    assert len(lines) > 20 and all(line == line.strip() for line in lines)
    assert all(unicodedata.category(line[0])[0] != "M" and line[-1] not in "\u17d2\u1039เแโใไ" for line in lines)


@pytest.mark.system
@needs_noto
def test_scripts_without_spaces_have_none_between_words(tmp_path: Path) -> None:
    folder, _ = write_pages(tmp_path / "thai", seed=0, languages=["th"], train_pages=2, tune_pages=1, test_pages=4)
    for row in rows(folder, "test", "th"):
        assert " " not in row["text_label"]
        assert unicodedata.is_normalized("NFC", row["text_label"])
