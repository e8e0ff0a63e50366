"""CIDEr: a caption against several gold captions, where n-grams that are rare in the whole set count most.
Called by `tasks`."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lvlm.evaluate.segments import segment

LONGEST = 4
"""Words of the longest n-gram."""
SIGMA = 6.0
"""How fast the score falls with the difference in length, in words."""

NGrams = Counter[tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class _Vector:
    """The n-grams of a caption, weighted: one mapping and norm for each length from 1 to `LONGEST`."""

    weights: tuple[Mapping[tuple[str, ...], float], ...]
    norms: tuple[float, ...]
    bigrams: int


class Cider:
    """CIDEr of captions in one language, against the gold captions of a set of items.

    As the reference implementation computes it (`pycocoevalcap` 1.2: with clipped counts and a penalty on length),
    times 100: a caption can have up to 1000. The document frequencies are those of the whole set, so that an item's
    value depends on the set and not on which of its items are asked. Values of sets that differ in size are not
    comparable: an n-gram weighs log(items / items that have it).
    """

    def __init__(self, golds: Mapping[str, Sequence[str]], code: str) -> None:
        self.code = code
        self._golds = {item: [_ngrams(segment(caption, code)) for caption in some] for item, some in golds.items()}
        self._log_items = math.log(len(golds)) if golds else 0.0
        self._frequency: Counter[tuple[str, ...]] = Counter()
        for some in self._golds.values():
            self._frequency.update({ngram for counts in some for ngram in counts})
        self._vectors: dict[str, list[_Vector]] = {}

    def score(self, item: str, prediction: str) -> float:
        """100 x CIDEr of a caption of `item`; NaN in a set of one item, where every n-gram weighs nothing."""
        if len(self._golds) < 2:
            return float("nan")
        said = _ngrams(segment(prediction, self.code))
        if not any(said.keys() & gold.keys() for gold in self._golds[item]):
            return 0.0
        if item not in self._vectors:
            self._vectors[item] = [self._vector(gold) for gold in self._golds[item]]
        vector = self._vector(said)
        golds = self._vectors[item]
        return 1000.0 * sum(_similarity(vector, gold) for gold in golds) / len(golds)

    def _vector(self, counts: NGrams) -> _Vector:
        weights: tuple[dict[tuple[str, ...], float], ...] = tuple({} for _ in range(LONGEST))
        for ngram, count in counts.items():
            weight = self._log_items - math.log(max(1, self._frequency[ngram]))
            weights[len(ngram) - 1][ngram] = count * weight
        norms = tuple(math.sqrt(sum(value * value for value in one.values())) for one in weights)
        return _Vector(weights, norms, sum(count for ngram, count in counts.items() if len(ngram) == 2))


def _ngrams(words: Sequence[str]) -> NGrams:
    return Counter(
        tuple(words[start : start + length])
        for length in range(1, LONGEST + 1)
        for start in range(len(words) - length + 1)
    )


def _similarity(said: _Vector, gold: _Vector) -> float:
    """Mean over n of the clipped cosine, times the penalty; length is counted in bigrams, as in the reference."""
    penalty = math.exp(-((said.bigrams - gold.bigrams) ** 2) / (2 * SIGMA**2))
    total = 0.0
    for weights, wanted, norm, wanted_norm in zip(said.weights, gold.weights, said.norms, gold.norms, strict=True):
        common = sum(min(value, wanted[ngram]) * wanted[ngram] for ngram, value in weights.items() if ngram in wanted)
        if norm and wanted_norm:
            total += common / (norm * wanted_norm)
    return penalty * total / LONGEST
