"""Which emoji the emoji world has: those that every chosen language names and that have a picture, who is for training,
and who looks related by keywords. Called by `emoji_items` and `emoji_writer`.
"""

from __future__ import annotations

import unicodedata
import zlib
from collections import Counter, defaultdict
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass

from lvlm.data.worlds.cldr import Annotations, NameSource
from lvlm.data.worlds.folder import POOLS, Pool
from lvlm.errors import InputError
from lvlm.languages import asked_for, in_table_order, is_group

OWN_GROUP = "L100"
"""Languages of a world unless told otherwise: those of Centurio's 100 that have names."""
FEWEST = 24
"""Concepts that a world needs, so that each pool has some."""
OWN_NUMBER = 96
"""Concepts of a world unless told otherwise: as many as a tiny language model can read of in 80 languages."""

TURNED = (
    range(0x1F550, 0x1F568), range(0x1F446, 0x1F44A), range(0x2190, 0x2200), range(0x2934, 0x2936),
    range(0x2B05, 0x2B08), range(0x23E9, 0x23F0), range(0x1F53C, 0x1F53E), (0x25B6, 0x25C0, 0x27A1),
)  # fmt: skip
"""Clock faces, hands that point, arrows: turned in the picture they would show what another name says."""


@dataclass(frozen=True)
class Refused:
    """An emoji with an English name that takes no part, and why: the languages that lack it, or one reason."""

    concept: str
    english: str
    reason: str
    languages: tuple[str, ...] = ()


@dataclass(frozen=True)
class Concepts:
    """What the world speaks of. Ids are code points in hexadecimal ("1f436"), in the order of the code points.

    names: language -> id -> name. related: id -> the ids that share a keyword with it in any language, those first
    that share most, counted over all languages.
    """

    ids: tuple[str, ...]
    names: Mapping[str, Mapping[str, str]]
    related: Mapping[str, tuple[str, ...]]
    refused: tuple[Refused, ...]

    @property
    def languages(self) -> tuple[str, ...]:
        return tuple(self.names)

    def attributes(self, code: str) -> dict[str, str]:
        """Name -> attribute id ("emoji:1f436") of a language, for the score of scenes."""
        return {name: f"emoji:{concept}" for concept, name in self.names[code].items()}

    def of(self, *pools: Pool) -> tuple[str, ...]:
        """The concepts of some pools: those of `tune` and `test` are never shown or named in training."""
        return tuple(concept for concept in self.ids if pool_of(concept) in pools)


def emoji_id(emoji: str) -> str:
    """The id of an emoji: its code points in hexadecimal."""
    return "-".join(f"{ord(character):x}" for character in emoji)


def pool_of(concept: str) -> Pool:
    """To which pool a concept belongs: by its id alone, so that other languages or pictures move none. A fifth is for
    `test`, a tenth for `tune`."""
    place = zlib.crc32(concept.encode()) % 10
    return "test" if place < 2 else "tune" if place == 2 else "train"


def load_concepts(
    source: NameSource,
    *,
    pictures: Container[str],
    languages: Sequence[str] | None = None,
    number: int | None = None,
) -> Concepts:
    """Of the concepts that all `languages` name (codes, and groups of those that the source has; None: `OWN_GROUP`),
    each in a way of its own, the first `number` in an order that only their ids determine. None takes `OWN_NUMBER`, or
    all where there are fewer.

    Only single characters with a picture are considered: sequences (families, professions, flags) have names that
    are put together by rule. Whatever is left out is in `refused` with its reason.
    """
    asked = (OWN_GROUP,) if languages is None else languages
    if not asked:
        raise InputError("languages is empty. Name at least one language, or leave it out for all with names.")
    given, members = asked_for(asked, source.languages() if any(map(is_group, asked)) else ())
    codes = in_table_order({*given, *members})
    known = {code: source.annotations(code) for code in dict.fromkeys(("en", *codes))}
    candidates = {
        emoji: emoji_id(emoji) for emoji in sorted(known["en"].names) if len(emoji) == 1 and emoji_id(emoji) in pictures
    }
    kept, refused = _named_by_all(candidates, known, codes)
    if number is not None and number < FEWEST:
        raise InputError(f"{number} concepts are asked for, which are too few. Ask for at least {FEWEST}.")
    if number is not None and number > len(kept):
        raise InputError(
            f"{number} concepts are asked for; {len(kept)} emoji with a picture have a name in all "
            f"{len(codes)} languages. Ask for fewer concepts, or for fewer languages."
        )
    first = sorted(kept, key=lambda emoji: (zlib.crc32(f"order/{candidates[emoji]}".encode()), emoji))
    kept = sorted(first[: number or OWN_NUMBER])
    concepts = Concepts(
        ids=tuple(candidates[emoji] for emoji in kept),
        names={code: {candidates[emoji]: known[code].names[emoji] for emoji in kept} for code in codes},
        related=_related([known[code] for code in known], {emoji: candidates[emoji] for emoji in kept}),
        refused=tuple(refused),
    )
    if len(kept) < FEWEST or not all(concepts.of(pool) for pool in POOLS):
        raise InputError(_too_few(concepts, source.title))
    return concepts


def _named_by_all(
    candidates: Mapping[str, str], known: Mapping[str, Annotations], codes: Sequence[str]
) -> tuple[list[str], list[Refused]]:
    """The emoji among `candidates` (emoji -> id) that can take part, and why the others cannot."""
    english, refused = known["en"].names, list[Refused]()
    named: dict[str, str] = {}
    for emoji, concept in candidates.items():
        if any(ord(emoji) in part for part in TURNED):
            refused.append(Refused(concept, english[emoji], "means another when turned"))
        elif lacking := tuple(code for code in codes if emoji not in known[code].names):
            refused.append(Refused(concept, english[emoji], "no name", lacking))
        else:
            named[emoji] = concept
    shared = {code: _shared_names(known[code], named) for code in codes}
    kept: list[str] = []
    for emoji, concept in named.items():
        if unclear := tuple(code for code in codes if emoji in shared[code]):
            refused.append(Refused(concept, english[emoji], "named as another, or without a letter", unclear))
        else:
            kept.append(emoji)
    return kept, refused


def gaps(concepts: Concepts) -> list[tuple[str, int, int]]:
    """(language, emoji that it lacks, those that it alone lacks) of all that narrow the world, worst first."""
    lacks, alone = Counter[str](), Counter[str]()
    for entry in concepts.refused:
        if entry.reason == "no name":
            lacks.update(entry.languages)
            if len(entry.languages) == 1:
                alone.update(entry.languages)
    return [(code, count, alone[code]) for code, count in lacks.most_common()]


def _shared_names(language: Annotations, candidates: Container[str]) -> set[str]:
    """The candidates whose name is not theirs alone once case and punctuation are set aside, or has no letter."""
    by_form: dict[str, list[str]] = defaultdict(list)
    for emoji, name in language.names.items():
        if emoji in candidates:
            by_form[_form(name)].append(emoji)
    return {emoji for form, members in by_form.items() if len(members) > 1 or not form for emoji in members}


def _form(name: str) -> str:
    """Letters, digits and marks of a name, in one case."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
    return "".join(character for character in folded if unicodedata.category(character)[0] in "LNM")


def _related(languages: Sequence[Annotations], kept: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    shared: dict[str, Counter[str]] = {emoji: Counter() for emoji in kept}
    for language in languages:
        by_keyword: dict[str, list[str]] = defaultdict(list)
        for emoji in kept:
            for keyword in language.keywords.get(emoji, ()):
                by_keyword[keyword].append(emoji)
        for members in by_keyword.values():
            for emoji in members:
                shared[emoji].update(other for other in members if other != emoji)
    return {
        kept[emoji]: tuple(kept[other] for other in sorted(counts, key=lambda other: (-counts[other], other)))
        for emoji, counts in shared.items()
    }


def _too_few(concepts: Concepts, title: str) -> str:
    narrow = ", ".join(f"{code} ({count})" for code, count, _ in gaps(concepts)[:5])
    hint = f" Languages that lack most: {narrow}; leave one of them out." if narrow else ""
    return (
        f"{len(concepts.ids)} emoji with a picture and a name in all of {', '.join(concepts.languages)} ({title}) are "
        f"too few; the world needs at least {FEWEST}, some of them for each of training, tuning and testing.{hint}"
    )
