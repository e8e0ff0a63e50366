"""Which languages a corpus of written words can have here: those with words and with a font that writes them.
Called by `plots_corpus` and `pages_corpus`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from lvlm.data.worlds.folder import POOLS, Pool
from lvlm.data.worlds.typefaces import Typeface, face_for
from lvlm.data.worlds.words import WordList, given_lists, load_words, words_in
from lvlm.errors import InputError
from lvlm.languages import asked_for, in_table_order, table

T = TypeVar("T")
SMPQA_LANGUAGES = ("en", "de", "it", "id", "zu", "ru", "zh", "ko", "hi", "ar", "th")
"""Those of Centurio's SMPQA (arXiv 2501.05122), which are written unless others are asked for."""


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
    """`at_hand` for words; without `asked` the languages of SMPQA. A list that is given for another is an error."""
    own = given_lists(given) if given is not None else ()
    return at_hand(
        SMPQA_LANGUAGES if asked is None else asked, lambda code: written(code, given, rarer=rarer), lists=own
    )


def at_hand(
    asked: Sequence[str], make: Callable[[str], T], *, lists: Iterable[str] = ()
) -> tuple[list[T], dict[str, str]]:
    """What `make` makes of the languages asked for, in the order of the table, and why others of an asked group cannot
    be written here.

    A language asked for by its code must be there, and so must those that have word `lists`; of a group (`all`,
    `T5-T3`, ...) come those that are.
    """
    if not asked:
        raise InputError("languages is empty. Name at least one language, or leave it out for those of SMPQA.")
    named, members = asked_for(asked, list(table()))
    codes = in_table_order(named)
    wanted = in_table_order({*codes, *members})
    if idle := [code for code in lists if code not in wanted]:
        raise InputError(
            f"--words has a list for {', '.join(idle)}, which the corpus does not hold. Name the language under "
            "--languages, or take the list away."
        )
    found: list[T] = []
    missing: dict[str, str] = {}
    for code in wanted:
        try:
            found.append(make(code))
        except InputError as error:
            if code in codes:
                raise
            missing[code] = str(error)
    if not found:
        raise InputError(f"No language of {', '.join(asked)} can be written here: {next(iter(missing.values()))}")
    return found, missing
