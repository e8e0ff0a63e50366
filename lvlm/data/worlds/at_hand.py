"""Which languages a corpus of written words can have here: those with words and with a font that writes them.
Called by `plots_corpus` and `pages_corpus`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lvlm.data.worlds.typefaces import Typeface, face_for
from lvlm.data.worlds.words import Pool, WordList, given_lists, load_words, words_in
from lvlm.errors import InputError
from lvlm.languages import GROUPS, group_languages, in_table_order, table

SMPQA_LANGUAGES = ("en", "de", "it", "id", "zu", "ru", "zh", "ko", "hi", "ar", "th")
"""Those of Centurio's SMPQA (arXiv 2501.05122), which are written unless others are asked for."""
POOLS: tuple[Pool, ...] = ("train", "tune", "test")


@dataclass(frozen=True, slots=True)
class Written:
    """A language that can be written here: its list, the words for each split, and the face that has their glyphs."""

    words: WordList
    face: Typeface
    pools: dict[Pool, tuple[str, ...]]

    @property
    def code(self) -> str:
        return self.words.language

    def record(self) -> dict[str, Any]:
        """What the corpus says of the language's words and font."""
        return {
            "words": self.words.origin,
            "usable": len(self.words.words),
            "left out": self.words.left_out,
            **{pool: len(words) for pool, words in self.pools.items()},
            "font": str(self.face),
        }


def written(code: str, given: Path | None, *, rarer: bool) -> Written:
    """A language's words, of the rarer half of its list or of all of it, and its font; `InputError` says what is
    missing."""
    words = load_words(code, given)
    face, can = face_for(words.rarer_half if rarer else words.words, code)
    return Written(words, face, {pool: words_in(can, pool, language=code) for pool in POOLS})


def written_languages(
    asked: Sequence[str] | None, given: Path | None, *, rarer: bool
) -> tuple[list[Written], dict[str, str]]:
    """The languages to write in the order of the table, and why others of an asked group cannot be written here.

    A language asked for by its code must be there; of a group (`all`, `T5-T3`, ...) those that are.
    """
    if asked is not None and not asked:
        raise InputError("languages is empty. Name at least one language, or leave it out for those of SMPQA.")
    groups = [name for name in asked or () if name in GROUPS or ":" in name]
    codes = in_table_order(SMPQA_LANGUAGES if asked is None else [code for code in asked if code not in groups])
    wanted = in_table_order({*codes, *(code for group in groups for code in group_languages(group, list(table())))})
    if given is not None and (idle := [code for code in given_lists(given) if code not in wanted]):
        raise InputError(
            f"--words has a list for {', '.join(idle)}, which the corpus does not hold. Name the language under "
            "--languages, or take the list away."
        )
    found: list[Written] = []
    missing: dict[str, str] = {}
    for code in wanted:
        try:
            found.append(written(code, given, rarer=rarer))
        except InputError as error:
            if code in codes:
                raise
            missing[code] = str(error)
    if not found:
        raise InputError(f"No language of {', '.join(groups)} can be written here: {next(iter(missing.values()))}")
    return found, missing
