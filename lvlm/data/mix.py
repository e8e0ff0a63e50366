"""Which sample in which language: exact shares, nested along one order of languages. `lvlm.data.plan` calls it, corpus
by corpus.

All ids of a corpus stand in one order, given by a hash of the id alone. The first M of N ids leave English, the
rest stay, so another English share moves the border and nothing else. Who gets position p of the first M is read
off one sequence per number of languages, and the sequence for n + 1 languages is that for n with evenly spaced
positions of every language handed to the new one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Literal

import numpy as np
import numpy.typing as npt

from lvlm.errors import InputError
from lvlm.languages import GROUPS, group_languages, in_table_order, language
from lvlm.settings import MixConfig

Allocation = Literal["uniform", "inverse_tier"]

_BY_LANGUAGE, _BY_LEVEL, _OFFSET = 0.382, 0.4252, 0.8162
"""Phases of the thinning, spread over languages and levels; of some thousand tried, among those with the smallest
deviations."""


@dataclass(frozen=True, slots=True)
class LanguageMix:
    """Languages in table order with English first, the English share and how the rest is divided."""

    languages: tuple[str, ...]
    english_share: float
    allocation: Allocation = "uniform"

    @classmethod
    def of(cls, config: MixConfig, available: Sequence[str], *, corpus: str) -> LanguageMix:
        """The mix of a config on a corpus that has the `available` languages."""
        if isinstance(config.languages, str):
            if config.languages not in GROUPS and config.languages in available:
                raise InputError(
                    f"The mix's 'languages' is the code '{config.languages}'; write a list, [{config.languages}], or a "
                    "group."
                )
            languages = group_languages(config.languages, available)
        else:
            languages = in_table_order(config.languages)
            if lacking := [code for code in languages if code not in available]:
                raise InputError(
                    f"The mix asks for {', '.join(lacking)} in its field 'languages', but corpus '{corpus}' has only: "
                    f"{', '.join(available)}."
                )
        if config.allocation != "uniform" and languages == ("en",):
            raise InputError(
                f"The mix's 'allocation' is {config.allocation} but English is its only language, so that there is "
                "nothing to divide. Leave it out, or add other languages."
            )
        return cls(languages, resolve_share(config.english_share, languages), config.allocation)


def resolve_share(english_share: float | None, languages: Sequence[str]) -> float:
    """The English share that holds: None is 0.5 beside other languages, 1 with English only, 0 where English is not
    among them."""
    if not languages:
        raise InputError(
            "The mix's field 'languages' leaves no language at all. Name at least one that the corpus has."
        )
    if "en" not in languages:
        if english_share:
            raise InputError(
                f"The mix's 'english_share' is {english_share} but its 'languages' ({', '.join(languages)}) lack en. "
                "Add en, or set it to 0."
            )
        return 0.0
    if len(languages) == 1:
        if english_share is not None and english_share < 1:
            raise InputError(
                f"The mix's 'english_share' is {english_share} but English is its only language. Leave it out, or add "
                "other languages."
            )
        return 1.0
    if english_share is None:
        return 0.5
    if not 0 <= english_share <= 1:
        raise InputError(f"The mix's 'english_share' is {english_share}; it must lie between 0 and 1.")
    return english_share


def assign_languages(
    ids: Sequence[str],
    *,
    languages: Sequence[str],
    english_share: float | None = None,
    allocation: Allocation = "uniform",
) -> dict[str, str]:
    """Give every id exactly one language, whatever the order in which the ids come and whatever else is in the mix.

    - English gets exactly `english_share * N` ids, rounded half up.
    - With the same languages, a lower `english_share` only moves ids out of English.
    - With the same share, languages added behind the others (in table order: T5, T4, ...) only take ids over for
    themselves.
    - Both hold strictly, at every share and number of languages. Their price: another language differs from its quota
    by up to 2 ids with
      5 other languages, 4 with 24, 8 with all 99 of the table (measured, whatever N; a test holds these figures),
      instead of by less than 1.

    `allocation`: `uniform`, or `inverse_tier` with weights 1/tier (Centurio, arXiv 2501.05122, appendix D.2).
    """
    codes, chosen = language_codes(ids, languages=languages, english_share=english_share, allocation=allocation)
    return {name: chosen[code] for name, code in zip(ids, codes.tolist(), strict=True)}


def language_codes(
    ids: Sequence[str], *, languages: Sequence[str], english_share: float | None, allocation: Allocation
) -> tuple[npt.NDArray[np.int64], tuple[str, ...]]:
    """`assign_languages` as an array: the index of each id's language in the returned languages."""
    chosen = in_table_order(languages)
    share = resolve_share(english_share, chosen)
    others = tuple(code for code in chosen if code != "en")
    away = len(ids) - english_count(share, len(ids))
    codes = np.zeros(len(ids), dtype=np.int64)  # English is the first of the table; without it away == len(ids)
    if away:
        order = hash_order(ids, salt="language")
        codes[order[:away]] = _sequence(away, _weights(others, allocation)) + (len(chosen) - len(others))
    return codes, chosen


def english_count(share: float, samples: int) -> int:
    """share * samples, rounded half up, in the decimals in which the share was written."""
    return int(Fraction(str(share)) * samples + Fraction(1, 2))


def hash_order(ids: Sequence[str], *, salt: str) -> npt.NDArray[np.int64]:
    """Positions of `ids` in an order that only the ids determine; `salt` tells one use of such an order from
    another."""
    keys = np.fromiter(
        (int.from_bytes(hashlib.blake2b(f"{salt}\0{name}".encode(), digest_size=8).digest(), "big") for name in ids),
        dtype=np.uint64,
        count=len(ids),
    )
    order = np.argsort(keys, kind="stable")
    if len(ids) > 1 and np.any(np.diff(keys[order]) == 0):  # equal hashes must not fall back on the order of the file
        order = np.array(sorted(range(len(ids)), key=lambda index: (int(keys[index]), ids[index])), dtype=np.int64)
    return order.astype(np.int64)


def _weights(languages: Sequence[str], allocation: Allocation) -> tuple[float, ...]:
    return tuple(1.0 if allocation == "uniform" else 1 / int(language(code).tier[1:]) for code in languages)


@lru_cache(maxsize=16)
def _sequence(length: int, weights: tuple[float, ...]) -> npt.NDArray[np.int64]:
    """Which language (index into `weights`) each position belongs to; a longer sequence starts with the shorter ones,
    close to the weights.

    Language n takes the fraction w_n / (w_0 + .. + w_n) of the positions of each language before it, evenly spaced
    in their own count. An earlier deviation shrinks by what is taken; the phases keep the new roundings from adding
    up.
    """
    positions = [np.arange(length, dtype=np.int64)]
    total = weights[0]
    for level, weight in enumerate(weights[1:], start=1):
        total += weight
        taken = []
        for index, own in enumerate(positions):
            phase = (index * _BY_LANGUAGE + level * _BY_LEVEL + _OFFSET) % 1.0
            due = np.floor(np.arange(len(own) + 1) * (weight / total) + phase)
            goes = due[1:] > due[:-1]
            taken.append(own[goes])
            positions[index] = own[~goes]
        positions.append(np.sort(np.concatenate(taken)))
    sequence = np.empty(length, dtype=np.int64)
    for index, own in enumerate(positions):
        sequence[own] = index
    sequence.setflags(write=False)
    return sequence
