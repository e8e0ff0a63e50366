"""Language mixes: exact, nested in both directions, and a function of the ids alone."""

from __future__ import annotations

import random
import time
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lvlm.data.mix import Allocation, LanguageMix, assign_languages, english_count, hash_order, language_codes
from lvlm.errors import InputError
from lvlm.languages import GROUPS, group_languages, language, table
from lvlm.settings import MixConfig

CODES = tuple(table())
WORLD = ("en", "de", "fr", "ar", "ru", "tr", "fi", "el", "he", "ka", "sw", "ht", "is", "eo", "jv", "no")
SHARES = (0.0, 0.01, 0.1, 0.25, 1 / 3, 0.5, 0.75, 0.9, 0.99, 1.0)
ALLOCATIONS: tuple[Allocation, ...] = ("uniform", "inverse_tier")


def bound(languages: int) -> int:
    """The deviation from the quota that the docstring of `assign_languages` states, for this many languages beside
    English."""
    return 2 if languages <= 5 else 4 if languages <= 24 else 8


def weights(codes: tuple[str, ...], allocation: Allocation) -> dict[str, Fraction]:
    raw = {code: Fraction(1, 1 if allocation == "uniform" else int(language(code).tier[1])) for code in codes}
    return {code: value / sum(raw.values()) for code, value in raw.items()}


def make_ids(count: int, salt: int = 0) -> list[str]:
    return [f"sample-{salt}-{number}" for number in range(count)]


mixes = st.fixed_dictionaries(
    {
        "count": st.integers(1, 700),
        "salt": st.integers(0, 5),
        "others": st.integers(1, len(CODES) - 1),
        "allocation": st.sampled_from(ALLOCATIONS),
    }
)
shares = st.one_of(st.sampled_from(SHARES), st.floats(0, 1))


@settings(max_examples=60, deadline=None)
@given(mixes, shares)
def test_english_is_exact_and_the_rest_near_its_quota(mix: dict[str, int], share: float) -> None:
    codes, ids = CODES[: mix["others"] + 1], make_ids(mix["count"], mix["salt"])
    given_to = assign_languages(ids, languages=codes, english_share=share, allocation=mix["allocation"])  # type: ignore[arg-type]
    assert list(given_to) == ids
    count = Counter(given_to.values())
    assert count["en"] == int(Fraction(str(share)) * len(ids) + Fraction(1, 2))
    for code, weight in weights(codes[1:], mix["allocation"]).items():  # type: ignore[arg-type]
        assert abs(count[code] - weight * (len(ids) - count["en"])) <= bound(mix["others"])


@settings(max_examples=60, deadline=None)
@given(mixes, shares, shares)
def test_a_lower_share_only_moves_ids_out_of_english(mix: dict[str, int], one: float, two: float) -> None:
    codes, ids = CODES[: mix["others"] + 1], make_ids(mix["count"], mix["salt"])
    high, low = (
        assign_languages(ids, languages=codes, english_share=share, allocation=mix["allocation"])  # type: ignore[arg-type]
        for share in (max(one, two), min(one, two))
    )
    assert all(low[name] == high[name] for name in ids if high[name] != "en")
    assert all(high[name] == "en" for name in ids if low[name] == "en")


@settings(max_examples=60, deadline=None)
@given(mixes, shares, st.integers(1, len(CODES) - 1))
def test_more_languages_only_take_ids_for_themselves(mix: dict[str, int], share: float, others: int) -> None:
    ids, (few, many) = make_ids(mix["count"], mix["salt"]), sorted((mix["others"], others))
    small, large = (
        assign_languages(ids, languages=CODES[: count + 1], english_share=share, allocation=mix["allocation"])  # type: ignore[arg-type]
        for count in (few, many)
    )
    new = set(CODES[few + 1 :])
    assert all(large[name] == small[name] or large[name] in new for name in ids)


@pytest.mark.parametrize("allocation", ALLOCATIONS)
def test_groups_are_nested(allocation: Allocation) -> None:
    ids = make_ids(1500)
    groups = [name for name in GROUPS if name != "en"]
    assigned = [
        assign_languages(ids, languages=group_languages(name, WORLD), english_share=0.25, allocation=allocation)
        for name in groups
    ]
    for smaller, larger, name in zip(assigned, assigned[1:], groups[1:], strict=False):
        added = {code for code in WORLD if code not in set(smaller.values())}
        assert all(larger[i] == smaller[i] or larger[i] in added for i in ids), name
        assert set(larger.values()) > set(smaller.values())


@pytest.mark.parametrize("allocation", ALLOCATIONS)
@pytest.mark.parametrize("others", [1, 2, 3, 5, 15, 24, 49, 99])
def test_deviation_at_every_share(allocation: Allocation, others: int) -> None:
    """The stated bound at each of 20 000 budgets: a lower share is a longer prefix of one order, followed id by id."""
    codes = WORLD if others == 15 else CODES[: others + 1]
    ids = make_ids(20_000)
    index, _ = language_codes(ids, languages=codes, english_share=0.0, allocation=allocation)
    given_to = index[hash_order(ids, salt="language")]
    budget = np.arange(1, len(ids) + 1)
    for number, (_, weight) in enumerate(weights(codes[1:], allocation).items(), start=1):
        assert np.abs(np.cumsum(given_to == number) - float(weight) * budget).max() <= bound(others)


@pytest.mark.parametrize("share", [0.9, 0.5, 0.1])
def test_ids_leave_english_in_one_order(share: float) -> None:
    ids = make_ids(500)
    order = hash_order(ids, salt="language")
    index, codes = language_codes(ids, languages=WORLD, english_share=share, allocation="uniform")
    away = 500 - english_count(share, 500)
    assert codes[0] == "en" and (index[order[:away]] > 0).all() and (index[order[away:]] == 0).all()


def test_order_of_the_ids_does_not_matter() -> None:
    ids = make_ids(300)
    mixed = random.Random(0).sample(ids, len(ids))
    first = assign_languages(ids, languages=WORLD, english_share=0.3)
    assert assign_languages(mixed, languages=WORLD[::-1], english_share=0.3) == first
    assert list(assign_languages(mixed, languages=WORLD, english_share=0.3)) == mixed


def test_ids_do_matter() -> None:
    one, two = (
        list(assign_languages(make_ids(200, salt), languages=WORLD, english_share=0.3).values()) for salt in (0, 1)
    )
    assert one != two


def test_inverse_tier_gives_low_tiers_more() -> None:
    codes = ("en", "de", "ru", "el", "sw", "eo")
    assigned = assign_languages(make_ids(1370), languages=codes, english_share=0.0, allocation="inverse_tier")
    count = Counter(assigned.values())
    assert [count[code] for code in codes[1:]] == pytest.approx([120, 150, 200, 300, 600], abs=2)


@pytest.mark.parametrize(
    ("share", "count", "expected"), [(0.5, 5, 3), (0.15, 10, 2), (0.01, 50, 1), (0.01, 49, 0), (0.29, 100, 29)]
)
def test_half_up_in_decimals(share: float, count: int, expected: int) -> None:
    assert english_count(share, count) == expected


def test_defaults_of_the_share() -> None:
    def share(languages: str | tuple[str, ...], english_share: float | None = None) -> float:
        return LanguageMix.of(
            MixConfig(corpora=(), languages=languages, english_share=english_share), WORLD, corpus="x"
        ).english_share

    assert share("all") == share(("en", "de")) == 0.5
    assert share("en") == share(("en",)) == share("en", 1.0) == 1.0
    assert share(("de", "fr")) == share(("de", "fr"), 0.0) == 0.0
    for languages, wrong in (("en", 0.5), (("en",), 0.0), (("de",), 0.1)):
        with pytest.raises(InputError):
            share(languages, wrong)


def test_many_ids_take_little_time() -> None:
    """A quarter of a million ids in 100 languages; a million in 16 take about four seconds of one core."""
    ids = [f"{number:07d}" for number in range(250_000)]
    start = time.process_time()
    count = Counter(assign_languages(ids, languages=CODES, english_share=0.5).values())
    assert time.process_time() - start < 6
    assert count["en"] == 125_000
    assert all(abs(count[code] - 125_000 / 99) <= bound(99) for code in CODES[1:])
