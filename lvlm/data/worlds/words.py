"""Words of a language for pictures that hold text: from the user's list, a frequency list that a package ships, or the
names and keywords of Unicode CLDR. Called by the corpora `plots` and `pages`.
"""

from __future__ import annotations

import re
import unicodedata
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from xml.etree import ElementTree

from fontTools import unicodedata as scripts

from lvlm.data.worlds.cldr import BORROWED, DEBIAN_FOLDER, LOCALES
from lvlm.data.worlds.folder import Pool
from lvlm.errors import InputError
from lvlm.languages import language as language_row

LONGEST_LIST = 5000
"""Of a frequency list so many usable words count; its rarer half is what plots show, as in SMPQA."""
LETTERS = (3, 12)
"""Of a word, marks not counted; two are enough in syllabaries and in scripts whose vowels are marks."""
FEWEST_WORDS = 30
"""A pool with fewer words is an error: a plot needs eight, and a benchmark more than the same eight."""

_WORDFREQ = {"no": "nb", "tl": "fil", "hr": "sh", "bs": "sh"}  # `sh` is in Latin letters, so not for `sr`
_NOT_IN_WORDFREQ = {"sr"}
_SCRIPTS = {"Hant": {"Hani"}, "Hans": {"Hani"}, "Jpan": {"Hani", "Hira", "Kana"}}
_ALPHABETS = {"Latn", "Cyrl", "Grek", "Geor", "Arab", "Hebr"}
_FINAL_SIGMA = re.compile(r"(?<=\w)σ\b")  # wordfreq folds it away
_COUNT = re.compile(r"[\s,;]+[\d.]+$")


@dataclass(frozen=True, slots=True)
class WordList:
    """Words of one language, the most frequent first, and where they come from.

    `left_out` counts what the source has and no picture shows, by reason.
    """

    language: str
    origin: str
    words: tuple[str, ...]
    left_out: dict[str, int] = field(default_factory=dict)

    @property
    def rarer_half(self) -> tuple[str, ...]:
        return self.words[len(self.words) // 2 :]


def pool_of(word: str) -> Pool:
    """The one split that may show a word: by its letters alone, so alike in every language and in every corpus."""
    tenth = zlib.crc32(unicodedata.normalize("NFC", word).casefold().encode()) % 10
    return "train" if tenth < 6 else "tune" if tenth == 6 else "test"


def words_in(words: Iterable[str], pool: Pool, *, language: str) -> tuple[str, ...]:
    """Those of `words` that a split may show; too few are an `InputError`."""
    own = tuple(word for word in words if pool_of(word) == pool)
    if len(own) < FEWEST_WORDS:
        raise InputError(
            f"The word list of language '{language}' leaves {len(own)} words for the split '{pool}', which needs "
            f"{FEWEST_WORDS}. Give a longer list with --words (about 1,000 words, {LETTERS[0]} to {LETTERS[1]} letters "
            "each), or leave the language out."
        )
    return own


def load_words(code: str, given: Path | None = None) -> WordList:
    """The words of a language: of `given` (a file CODE.txt, or a folder of them) where it has the language, else of
    `wordfreq`, of `pythainlp` for Thai, or of Unicode CLDR. A language without words is an `InputError`.
    """
    row = language_row(code)
    own = given_lists(given).get(row.code) if given else None
    if own is not None:
        return _selected(row.code, str(own.name), _read_list(own))
    found = _packaged(row.code)
    if found is None:
        none, other = f"Unicode CLDR is not at {DEBIAN_FOLDER}", "install Debian's unicode-cldr-core"
        if DEBIAN_FOLDER.is_dir():
            none, other = f"Unicode CLDR at {DEBIAN_FOLDER} none either", "leave the language out"
        raise InputError(
            f"There are no words at hand in '{row.code}' ({row.name}): wordfreq has no list of it, and {none}. Give a "
            f"list with --words ({row.code}.txt, one word a line, the most frequent first), or {other}."
        )
    return found


def given_lists(given: Path) -> dict[str, Path]:
    """Language -> its file, of a file CODE.txt or of a folder that holds such files."""
    if not given.exists():
        raise InputError(
            f"{given} does not exist. Name a file called by its language, such as zu.txt, or a folder of them."
        )
    files = sorted(given.glob("*.txt")) if given.is_dir() else [given]
    if not files:
        raise InputError(f"The folder {given} holds no word list. A list is called by its language, such as zu.txt.")
    found: dict[str, Path] = {}
    for file in files:
        first = found.setdefault(language_row(file.stem).code, file)
        if first != file:
            raise InputError(f"Both {first} and {file} are for {language_row(file.stem).name}. Keep one of them.")
    return found


def _read_list(file: Path) -> Iterator[str]:
    """One word a line, which a count may follow."""
    try:
        for line in file.read_text(encoding="utf-8-sig").splitlines():
            if word := _COUNT.sub("", line).strip():
                yield word
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is not UTF-8 text (byte {error.start}). Save it as UTF-8.") from error


@cache
def _packaged(code: str) -> WordList | None:
    if code == "th":
        return _selected(code, f"pythainlp {version('pythainlp')}, Thai Textbook Corpus", _pythainlp())
    name = _WORDFREQ.get(code, code)
    if code not in _NOT_IN_WORDFREQ and name in _wordfreq_lists():
        import wordfreq

        ranked = wordfreq.iter_wordlist(name, wordlist="small")
        return _selected(code, f"wordfreq {version('wordfreq')}, small list '{name}'", ranked, native=name)
    if code not in BORROWED and (words := _cldr(LOCALES.get(code, code))):
        return _selected(code, "Unicode CLDR, names and keywords of emoji", words, native="")
    return None


@cache
def _wordfreq_lists() -> frozenset[str]:
    import wordfreq  # half a second

    return frozenset(wordfreq.available_languages("small"))


def _pythainlp() -> Iterator[str]:
    spec = find_spec("pythainlp")  # a list is read, so that the package itself need not be imported
    assert spec is not None and spec.origin is not None
    text = (Path(spec.origin).parent / "corpus" / "ttc_freq.txt").read_text(encoding="utf-8")
    return (line.partition("\t")[0] for line in text.splitlines())


def _cldr(code: str) -> list[str]:
    """Words of all emoji names and keywords, those in most names first."""
    counts: Counter[str] = Counter()
    for folder in ("annotations", "annotationsDerived"):
        file = DEBIAN_FOLDER / folder / f"{code}.xml"
        if file.exists():
            for annotation in ElementTree.parse(file).iter("annotation"):
                counts.update((annotation.text or "").replace("|", " ").split())
    return sorted(counts, key=lambda word: (-counts[word], word))


def _selected(code: str, origin: str, ranked: Iterable[str], *, native: str | None = None) -> WordList:
    """The first `LONGEST_LIST` usable words of `ranked`.

    A word that English uses more often than `native`, a list of wordfreq, is English in a list of another language; so
    is every word of English where `native` is empty. None asks nothing: the user knows what the list holds.
    """
    script = language_row(code).script
    english = _frequencies("en") if native is not None and native != "en" else {}
    own = _frequencies(native) if english and native else {}
    left_out: Counter[str] = Counter()
    seen: set[str] = set()

    def usable() -> Iterator[str]:
        for text in ranked:
            word = _FINAL_SIGMA.sub("ς", unicodedata.normalize("NFC", text))
            fault = _fault(word, script)
            if not fault and english.get(word, 0.0) > own.get(word, 0.0):
                fault = "more frequent in English"
            if not fault and word.casefold() in seen:
                fault = "repeated"
            if fault:
                left_out[fault] += 1
                continue
            seen.add(word.casefold())
            yield word

    words = tuple(islice(usable(), LONGEST_LIST))
    if not words:
        raise InputError(
            f"The word list {origin} of language '{code}' holds no word in the script {script} with {LETTERS[0]} to "
            f"{LETTERS[1]} letters."
        )
    return WordList(code, origin, words, dict(sorted(left_out.items())))


@cache
def _frequencies(name: str) -> dict[str, float]:
    import wordfreq

    frequencies: dict[str, float] = wordfreq.get_frequency_dict(name, wordlist="small")
    return frequencies


def _fault(word: str, script: str) -> str:
    """Why a word cannot be a label, or an empty text."""
    letters = [character for character in word if unicodedata.category(character).startswith("L")]
    if any(unicodedata.category(character)[0] not in "LM" and character != " " for character in word):
        return "not letters alone"
    own = _SCRIPTS.get(script, {script})
    if any(scripts.script(letter) not in own for letter in letters):
        return "in another script"
    fewest = LETTERS[0] if script in _ALPHABETS else 2
    if not fewest <= len(letters) <= LETTERS[1]:
        return "too short" if len(letters) < fewest else "too long"
    return "an abbreviation" if word.isupper() else ""
