"""Writes the corpus `pages`: text of each language on backgrounds, to be read whole or line by line.
Called by `python -m lvlm data pages DIR`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice
from pathlib import Path

import numpy as np
from icu4py.breakers import LineBreaker

from lvlm.data.boundaries import SPACELESS
from lvlm.data.worlds.at_hand import Written, at_hand, written_languages
from lvlm.data.worlds.folder import POOLS, Picture, Pool, Row, check_numbers, stream, write_untranslated
from lvlm.data.worlds.pages import Page, draw_page, fits_any_page
from lvlm.data.worlds.textures import photographs
from lvlm.data.worlds.typefaces import Typeface, face_for, typefaces
from lvlm.data.worlds.words import given_lists, pool_of
from lvlm.errors import InputError
from lvlm.languages import language as language_row

VERSION = 2
"""Of what is written; raised when the same seed, sizes and sources give other files than before."""
OWN_SIZES = {"train_pages": 300, "tune_pages": 20, "test_pages": 100}
"""Pages per language."""
MOST_LINES = 5
MOST_WORDS = 20
MOST_LETTERS = 80
"""Of a page of running text in a script without spaces."""
FEWEST_PARAGRAPHS = 5
READ_TEXT = "Read the text in the image."
READ_LINE = "Read line {number} of the text in the image."


@dataclass(frozen=True, slots=True)
class Texts:
    """What the pages of a language say: words in random order, or pieces of the user's text, in parts between which a
    line may break."""

    code: str
    faces: tuple[Typeface, ...]
    pools: dict[Pool, tuple[str, ...]]
    running: bool
    """Each entry is a paragraph, not a word."""
    record: dict[str, object]

    @property
    def joiner(self) -> str:
        return "" if _unspaced(self.code) else " "

    def parts(self, pool: Pool, rng: np.random.Generator) -> list[str]:
        """Enough parts for one page."""
        source = self.pools[pool]
        if not self.running:
            return [source[place] for place in rng.integers(len(source), size=int(rng.integers(1, MOST_WORDS + 1)))]
        paragraph = source[int(rng.integers(len(source)))]
        if self.joiner:
            return list(islice(_parts_of(paragraph, self.code), MOST_WORDS))
        parts = list(_parts_of(paragraph, self.code))
        ends = accumulate(map(len, parts))
        return [part for part, end in zip(parts, ends, strict=True) if end - len(part) < MOST_LETTERS]


def write_pages(
    folder: Path | str,
    *,
    seed: int,
    train_pages: int = OWN_SIZES["train_pages"],
    tune_pages: int = OWN_SIZES["tune_pages"],
    test_pages: int = OWN_SIZES["test_pages"],
    languages: Sequence[str] | None = None,
    words: Path | None = None,
    text: Path | None = None,
    photos: Path | None = None,
) -> tuple[Path, dict[str, str]]:
    """Write the corpus into a new `folder`; return it, and why languages of an asked group are not in it.

    Words (paragraphs of `text`) of one split occur in no other. A line break of the page is one in the answer.
    """
    sizes = {"train_pages": train_pages, "tune_pages": tune_pages, "test_pages": test_pages}
    check_numbers(seed, sizes)
    if photos is not None:
        photographs(photos)
    found, missing = _texts(languages, words, text)
    texts_of = {texts.code: texts for texts in found}
    counts = dict(zip(POOLS, sizes.values(), strict=True))

    def drawn(code: str, pool: Pool) -> Iterator[Picture]:
        texts = texts_of[code]
        for index in range(counts[pool]):
            rng = stream(seed, f"pages/{pool}/{code}", index)
            lines = int(rng.integers(1, MOST_LINES + 1))
            page = draw_page(texts.parts(pool, rng), texts.faces, rng, lines=lines, joiner=texts.joiner, photos=photos)
            yield f"{code}-{index:05d}.png", page.image, _rows(page, pool, code, index, rng)

    sources = {texts.code: texts.record for texts in found}
    write_untranslated(
        Path(folder), name="pages", version=VERSION, seed=seed, sizes=sizes, sources=sources, pictures=drawn
    )
    return Path(folder), missing


def _rows(page: Page, pool: Pool, code: str, index: int, rng: np.random.Generator) -> Iterator[Row]:
    """To train on, every second page of several lines asks for one of them; held out, each asks for the text and, with
    several lines, for one."""
    number = int(rng.integers(len(page.lines)))
    whole = (READ_TEXT, "\n".join(page.lines), "text")
    line = (READ_LINE.format(number=number + 1), page.lines[number], "line")
    asked = [whole] if len(page.lines) == 1 else [whole, line]
    image = f"{pool}/{code}-{index:05d}.png"
    if pool == "train":
        asked = asked[index % len(asked) :][:1]
    for prompt, gold, source in asked:
        answer: Row = {"label": [gold]} if pool == "train" else {"label": [""], "text_label": gold}
        yield {
            "id": f"pages-{pool}-{code}-{index:05d}" + ("" if pool == "train" else f"-{source}"),
            "context": [prompt],
            **answer,
            "image_id": [image] if pool == "train" else image,
            "language": code,
            "task": "reading",
            "source": source,
        }


def _texts(
    languages: Sequence[str] | None, words: Path | None, text: Path | None
) -> tuple[list[Texts], dict[str, str]]:
    if text is None:
        found, missing = written_languages(languages, words, rarer=False)
        return [_of_words(language) for language in found], missing
    if words is not None:
        raise InputError("--words and --text both say what the pages read. Give one of them.")
    files = given_lists(text)

    def texts(code: str) -> Texts:
        if code not in files:
            raise InputError(f"--text {text} holds no file for {code}. It has: {', '.join(files)}.")
        return _of_text(code, files[code])

    return at_hand(list(files) if languages is None else languages, texts)


def _of_words(language: Written) -> Texts:
    return Texts(language.code, typefaces(language.code), language.pools, False, language.record())


def _unspaced(code: str) -> bool:
    return language_row(code).script in SPACELESS


def _parts_of(paragraph: str, code: str) -> Iterator[str]:
    """What may stand on a line of its own: words, or what ICU's dictionaries find, which splits no syllable."""
    return iter(LineBreaker(paragraph, code) if _unspaced(code) else paragraph.split())


def _of_text(code: str, file: Path) -> Texts:
    """The paragraphs of a file, one a line, of which a font has all glyphs and every page can show the beginning."""
    try:
        paragraphs = [" ".join(line.split()) for line in file.read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is not UTF-8 text (byte {error.start}). Save it as UTF-8.") from error
    unique = list(dict.fromkeys(filter(None, paragraphs)))
    if not unique:
        raise InputError(f"{file} holds no text. Give one paragraph a line (100 are enough).")
    face, can = face_for(unique, code)
    begin = [paragraph for paragraph in can if fits_any_page(next(_parts_of(paragraph, code)), typefaces(code))]
    pools: dict[Pool, tuple[str, ...]] = {
        pool: tuple(paragraph for paragraph in begin if pool_of(paragraph) == pool) for pool in POOLS
    }
    if few := [pool for pool in POOLS if len(pools[pool]) < FEWEST_PARAGRAPHS]:
        raise InputError(
            f"{file} leaves fewer than {FEWEST_PARAGRAPHS} paragraphs for {', '.join(few)}: {len(begin)} of its lines "
            "can be written with the fonts here. Give a longer text, one paragraph a line (100 are enough)."
        )
    record: dict[str, object] = {
        "text": file.name,
        "paragraphs": len(unique),
        "without glyphs": len(unique) - len(can),
        "begin with too wide a word": len(can) - len(begin),
        **{str(pool): len(own) for pool, own in pools.items()},
        "font": str(face),
    }
    return Texts(code, typefaces(code), pools, True, record)
