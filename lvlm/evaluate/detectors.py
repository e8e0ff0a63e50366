"""Detectors of the language of any text: the packaged one, and fastText files such as GlotLID that a user has. Called
by `lvlm.evaluate`, which says for which corpus; torch-free."""

from __future__ import annotations

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Mapping
from functools import cache, lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from lvlm.errors import InputError
from lvlm.evaluate.fidelity import LanguageDetector
from lvlm.languages import find, siblings

if TYPE_CHECKING:
    import pandas as pd

    from lvlm.data.corpus import Corpus

PACKAGED = "packaged"
"""The detector for answers in free text where the config names no other."""
SURE = 0.5
"""Least probability, summed over the labels of a language, with which a fastText model tells it."""
LID176 = {"als": "gsw"}
"""What lid.176 means by a code that stands for another language in ISO 639-3; it alone has two-letter labels."""


class Detector(Protocol):
    """Tells the language of a text."""

    @property
    def note(self) -> str:
        """What it is, for the notes of scores."""
        ...

    def detect(self, text: str) -> str | None:
        """The code of the language table, or the detector's own where the table lacks the language; None when it
        cannot be told."""
        ...


class Packaged:
    """Compact Language Detector 2, where it is sure and langid does not contradict: over 165 languages, of them 94 of
    Centurio's 100 (arz, azb, bm, ki, sc and tpi are missing); offline, a millisecond a text, free licences.

    CLD2 alone takes French captions for English, and langid guesses at any price. A language that both know is told
    only where both name it, one that langid does not know by CLD2 alone. So most single words stay undetermined, and
    what is told of the 81 that both know is seldom wrong; `python -m lvlm fidelity --check` measures it.
    """

    @property
    def note(self) -> str:
        return f"CLD2 (pycld2 {version('pycld2')}), confirmed by langid (py3langid {version('py3langid')})"

    def detect(self, text: str) -> str | None:
        """See `Detector`."""
        import pycld2

        line = _line(text)
        label: str = pycld2.detect(line.encode())[2][0][1]
        if label == "un" or label.startswith("xx-"):  # xx-Cakm: a script alone
            return None
        code = _code(label)
        return code if code not in _known_to_langid() or code == _by_langid(line) else None


def _by_langid(line: str) -> str:
    import py3langid

    label: str = py3langid.classify(line)[0]
    return _code(label)


@cache
def _known_to_langid() -> frozenset[str]:
    import py3langid

    return frozenset(_code(label) for label, _ in py3langid.rank(""))


class FastText:
    """A fastText model for languages: GlotLID, OpenLID, lid.176, or one's own. A language is told from a probability of
    one half, so that siblings between which the model is torn stay undetermined."""

    def __init__(self, file: Path) -> None:
        import fasttext

        if not file.is_file():
            raise InputError(
                f"The detector {file} does not exist. Give a fastText file, such as GlotLID's model.bin, or one of "
                f"auto, corpus and {PACKAGED}."
            )
        try:
            self.model = fasttext.load_model(str(file))
        except ValueError as error:
            raise InputError(f"The detector {file} is no fastText model: {error}. Give a .bin or .ftz file.") from error
        with file.open("rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()[:12]
        self.note = f"fastText model {file.name} (sha256 {digest})"
        self.own = LID176 if any(len(label) == 2 for label in map(_bare, self.model.predict("a", k=-1)[0])) else {}

    def detect(self, text: str) -> str | None:
        """See `Detector`."""
        line = _line(text)
        if not any(character.isalpha() for character in line):
            return None
        found: dict[str, float] = {}
        for label, probability in zip(*self.model.predict(line, k=-1), strict=True):
            code = _code(self.own.get(_bare(label), _bare(label)))
            found[code] = found.get(code, 0.0) + probability
        best = max(found, key=lambda code: found[code], default="")
        return best if found.get(best, 0.0) >= SURE else None


@lru_cache(maxsize=4)
def open_detector(name: str) -> Detector:
    """`packaged`, or the fastText model in a file."""
    return Packaged() if name == PACKAGED else FastText(Path(name))


def detector_notes(told: Mapping[Corpus, Detector], predictions: pd.DataFrame) -> list[str]:
    """Which detector told the language of which answers; and, where it can take siblings for one another, how often it
    named one of the asked language."""
    corpora: dict[str, list[str]] = {}
    for corpus, detector in told.items():
        corpora.setdefault(detector.note, []).append(corpus.name)
    notes = [f"language of the answers to {', '.join(names)}: {note}" for note, names in corpora.items()]
    if all(isinstance(detector, LanguageDetector) for detector in told.values()):
        return notes
    asked = Counter(predictions["language"])
    pairs = Counter(zip(predictions["language"], predictions["answer_language"], strict=True))
    confused = [
        f"{wanted} told as {found} {count:,} of {asked[wanted]:,}"
        for (wanted, found), count in pairs.items()
        if isinstance(found, str) and found in siblings(wanted)
    ]
    if confused:
        notes.append(f"fidelity takes siblings for other languages, detectors may confuse them: {'; '.join(confused)}")
    return notes


def _line(text: str) -> str:
    """One line of valid text: detectors refuse or count control characters and halves of surrogates."""
    return "".join(
        " " if unicodedata.category(letter) in ("Cc", "Cs", "Cn", "Co", "Zl", "Zp") else letter for letter in text
    )


def _bare(label: str) -> str:
    return label.removeprefix("__label__")


@lru_cache(maxsize=8192)
def _code(label: str) -> str:
    found = find(label)
    return found.language.code if found else label
