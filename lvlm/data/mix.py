"""Which sample in which language: exact shares, nested along one order of languages. `lvlm.data.plan` calls it, corpus
by corpus.

All ids of a corpus stand in one order, given by a hash of the id alone. The first M of N ids leave English, the
rest stay, so another English share moves the border and nothing else. Who gets position p of the first M is read
off one sequence per number of languages, and the sequence for n + 1 languages is that for n with evenly spaced
positions of every language handed to the new one. Shares that are meant of tokens move the border and the weights.
"""

from __future__ import annotations

import hashlib
import math
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Literal

import numpy as np
import numpy.typing as npt

from lvlm.errors import InputError
from lvlm.languages import NO_TIER, find, group_languages, in_table_order, is_group, language
from lvlm.settings import MixConfig

Rule = Literal["uniform", "inverse_tier", "inverse_exp_tier"]
Allocation = Rule | Mapping[str, float]
"""A rule that needs nothing but the table, or a weight for each language beside English."""
Numbers = npt.NDArray[np.int64]
TokensOf = Callable[[Numbers, Numbers], Numbers]
"""(samples,) tokens, from which of the ids and in which of the languages, as indices."""
MEAN_SAMPLES = 1024
"""Ids over which the mean tokens of a language are taken, the same in every language."""

_BY_LANGUAGE, _BY_LEVEL, _OFFSET = 0.382, 0.4252, 0.8162
"""Phases of the thinning, spread over languages and levels; of some thousand tried, among those with the smallest
deviations."""


@dataclass(frozen=True, slots=True)
class LanguageMix:
    """Languages in table order with English first, the English share and how the rest is divided."""

    languages: tuple[str, ...]
    english_share: float
    allocation: Allocation = "uniform"
    pivot: str | None = None
    """Where languages have a number of pairs instead of shares: the one that has all other samples."""

    @classmethod
    def of(cls, config: MixConfig, available: Sequence[str], *, corpus: str) -> LanguageMix:
        """The mix of a config on a corpus that has the `available` languages."""
        if isinstance(config.languages, str):
            if not is_group(config.languages) and find(config.languages):
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
        if config.allocation == "pairs" or config.parallel:
            pivot = _pivot(config, languages, corpus)
            if config.allocation == "pairs":
                return cls(languages, 0.0, pivot=pivot)
        if config.allocation != "uniform" and languages == ("en",):
            raise InputError(
                f"The mix's 'allocation' is {config.allocation} but English is its only language, so that there is "
                "nothing to divide. Leave it out, or add other languages."
            )
        if config.share_of != "samples" and languages == ("en",):
            raise InputError(
                f"The mix's 'share_of' is {config.share_of} but English is its only language, which has everything in "
                "any unit. Leave it out, or add other languages."
            )
        share = resolve_share(config.english_share, languages)
        others = [code for code in languages if code != "en"]
        return cls(languages, share, _allocation(config, others, corpus))


def _pivot(config: MixConfig, languages: Sequence[str], corpus: str) -> str:
    """The pivot of a config in the table's code; raises where pairs have no two sides."""
    pivot = language(config.pivot).code
    if pivot not in languages:
        raise InputError(
            f"The mix's 'pivot' is {pivot}, which its 'languages' lack in corpus '{corpus}': {', '.join(languages)}. "
            "Add it there, or name another."
        )
    if languages == (pivot,) and (config.pairs or config.parallel):
        name = "pairs" if config.pairs else "parallel"
        raise InputError(
            f"The mix's '{name}' is {getattr(config, name)}, but {pivot}, the pivot, is its only language, so that "
            "nothing is translated. Add other languages, or leave it out."
        )
    return pivot


def _allocation(config: MixConfig, others: Sequence[str], corpus: str) -> Allocation:
    """The allocation of a config over these languages; raises where a weight or a size is missing or idle."""
    if config.allocation == "weights":
        assert config.weights is not None
        weights = _by_code(config.weights, "weights")
        if idle := [code for code in weights if code not in others]:
            raise InputError(
                f"The mix's 'weights' name {', '.join(idle)}, which would change nothing in corpus '{corpus}': the mix "
                f"divides {', '.join(others)}, and English has its 'english_share'. Leave them out there."
            )
        _all_given(weights, others, "weights")
        return weights
    if config.allocation == "temperature":
        assert config.sizes is not None and config.temperature is not None
        sizes = _by_code(config.sizes, "sizes")
        _all_given(sizes, others, "sizes")
        largest = math.log(max(sizes.values()))
        weights = {code: math.exp((math.log(size) - largest) / config.temperature) for code, size in sizes.items()}
        if lost := [code for code in others if not weights[code]]:
            raise InputError(
                f"The mix's 'temperature' is {config.temperature}, so low that {', '.join(lost)} would get nothing. "
                "Raise it, or leave these languages out."
            )
        return {code: weights[code] for code in others}
    assert config.allocation != "pairs"
    return config.allocation


def _by_code(amounts: Mapping[str, float], field: str) -> dict[str, float]:
    own = {language(code).code: amount for code, amount in amounts.items()}
    if len(own) < len(amounts):
        raise InputError(f"The mix's '{field}' give a language twice, under two of its codes: {', '.join(amounts)}.")
    return own


def _all_given(amounts: Mapping[str, float], others: Sequence[str], field: str) -> None:
    if missing := [code for code in others if code not in amounts]:
        raise InputError(
            f"The mix's '{field}' lack {', '.join(missing)}. Give one for each language of the mix but English, or set "
            "mix.languages to those that have one."
        )


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
    by up to 2 ids with 5 other languages, 4 with 24 (5 under `inverse_exp_tier`), 8 with Centurio's 99, and with
    weights of its own by up to 3, 10 and 14 (measured, whatever N; a test holds these figures), instead of by less
    than 1.

    `allocation`: `uniform`, `inverse_tier` with weights 1/tier or `inverse_exp_tier` with exp(-tier) (Centurio, arXiv
    2501.05122, appendix D.2), or a weight for each language beside English.
    """
    codes, chosen = language_codes(ids, languages=languages, english_share=english_share, allocation=allocation)
    return {name: chosen[code] for name, code in zip(ids, codes.tolist(), strict=True)}


def language_codes(
    ids: Sequence[str],
    *,
    languages: Sequence[str],
    english_share: float | None,
    allocation: Allocation,
    tokens: TokensOf | None = None,
) -> tuple[Numbers, tuple[str, ...]]:
    """`assign_languages` as an array: the index of each id's language in the returned languages.

    With `tokens` the shares are meant of tokens. The order of the ids and the sequences stay; only the border and the
    weights differ:
    - English gets its share of all tokens as nearly as whole samples allow, each sample counted in the language that it
    gets. A lower `english_share` still only moves ids out of English, strictly.
    - The weight of another language is divided by its mean tokens per sample, over the same `MEAN_SAMPLES` ids in all
    (all ids where there are no more). Its share of tokens is approximate, by the error of that mean, by which samples
    it happens to get, and by the few ids by which its number of samples differs from its quota.
    - Languages added behind the others only take ids over for themselves, but at the border, which moves with the
    tokens that they bring: ids between the old and the new one all leave English, or all stay.
    """
    chosen = in_table_order(languages)
    share = resolve_share(english_share, chosen)
    others = tuple(code for code in chosen if code != "en")
    first = len(chosen) - len(others)
    away = len(ids) - english_count(share, len(ids))
    codes = np.zeros(len(ids), dtype=np.int64)  # English is the first of the table; without it away == len(ids)
    if away or (tokens and share < 1):
        order = hash_order(ids, salt="language")
        weights = _weights(others, allocation)
        if tokens and len(others) > 1:
            means = _mean_tokens(ids, np.arange(first, len(chosen)), tokens)
            weights = tuple(weight / mean for weight, mean in zip(weights, means, strict=True))
        sequence = _sequence(len(ids) if tokens else away, weights) + first
        if tokens and 0 < share < 1:
            away = border(share, tokens(order, codes), tokens(order, sequence))
        codes[order[:away]] = sequence[:away]
    return codes, chosen


def pair_codes(ids: Sequence[str], *, languages: Sequence[str], pivot: str, pairs: int) -> Numbers:
    """The index of each id's language in `languages` where every one but the pivot has `pairs` ids, exactly.

    With the same languages, a larger number only moves ids out of the pivot. The ids that leave are those that leave
    English first under a share.
    """
    others = [number for number, code in enumerate(languages) if code != pivot]
    away = pairs * len(others)
    if away > len(ids):
        raise InputError(
            f"The mix asks for pairs={pairs} in each of {len(others)} languages, {away} samples together, but draws "
            f"only {len(ids)} of the corpus. Lower the number, name fewer languages, or draw more samples."
        )
    codes = np.full(len(ids), languages.index(pivot), dtype=np.int64)
    codes[hash_order(ids, salt="language")[:away]] = np.resize(np.array(others, dtype=np.int64), away)
    return codes


def in_parallel(
    codes: Numbers, order: Numbers, *, pivot: int, others: Sequence[int], share: float
) -> tuple[Numbers, Numbers]:
    """(ids, codes) of as many samples as there are ids, of which a `share` come two by two.

    `codes` are the languages of all ids, `order` the ids in the order in which they come in pairs; the last of it give
    way, one for each pair. The other side of a sample in the pivot takes the `others` in turn, that of every other
    sample is in the pivot. A larger share has the pairs of a smaller one.
    """
    pairs = int(Fraction(str(share)) * len(codes) / 2 + Fraction(1, 2))
    kept, paired = order[: len(codes) - pairs], order[:pairs]
    own = codes[paired]
    turns = np.resize(np.array(others, dtype=np.int64), pairs)
    other_side = np.where(own == pivot, turns, pivot)
    return np.concatenate([kept, paired]), np.concatenate([codes[kept], other_side])


def border(share: float, english: Numbers, others: Numbers) -> int:
    """How many of the first samples leave English, so that it keeps `share` of all tokens as nearly as can be; of two
    equally near the smaller.

    `english` and `others` are the tokens of each sample, (samples,) and in the order in which they leave, as it stays
    and after it has left. A lower share never gives a smaller number, as English loses and the others gain with each.
    """
    asked = Fraction(str(share))
    stay = np.append(np.cumsum(english[::-1])[::-1], 0)
    left = np.insert(np.cumsum(others), 0, 0)

    def realised(away: int) -> Fraction:
        return Fraction(int(stay[away]), int(stay[away] + left[away]) or 1)

    below = bisect_left(range(len(stay)), -asked, key=lambda away: -realised(away))
    if below and realised(below - 1) - asked <= asked - realised(below):
        return below - 1
    return below


def _mean_tokens(ids: Sequence[str], codes: Numbers, tokens: TokensOf) -> list[float]:
    """Tokens per sample of each language of `codes`; they depend on nothing but the ids and that language."""
    some = hash_order(ids, salt="tokens")[:MEAN_SAMPLES]
    counted = tokens(np.tile(some, len(codes)), np.repeat(codes, len(some))).reshape(len(codes), len(some))
    return [max(1, total) / len(some) for total in counted.sum(axis=1).tolist()]


def english_count(share: float, samples: int) -> int:
    """share * samples, rounded half up, in the decimals in which the share was written."""
    return int(Fraction(str(share)) * samples + Fraction(1, 2))


def hash_order(ids: Sequence[str], *, salt: str) -> Numbers:
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
    if not isinstance(allocation, str):
        return tuple(allocation[code] for code in languages)
    if allocation == "uniform":
        return (1.0,) * len(languages)
    if without := [code for code in languages if language(code).tier == NO_TIER]:
        raise InputError(
            f"The mix's 'allocation' is {allocation}, but {', '.join(without)} have no tier, as they are not among "
            "Centurio's 100 languages. Leave them out, or give weights (allocation: weights)."
        )
    tiers = [int(language(code).tier[1:]) for code in languages]
    return tuple(1 / tier if allocation == "inverse_tier" else math.exp(-tier) for tier in tiers)


@lru_cache(maxsize=16)
def _sequence(length: int, weights: tuple[float, ...]) -> Numbers:
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
