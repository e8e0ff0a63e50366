"""Language mixes: exact, nested in both directions, and a function of the ids alone."""

from __future__ import annotations

import hashlib
import math
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lvlm.config import fingerprint, make_settings
from lvlm.data.corpus import open_corpus
from lvlm.data.mix import Allocation, LanguageMix, assign_languages, english_count, hash_order, language_codes
from lvlm.data.pool import gather
from lvlm.errors import InputError
from lvlm.languages import GROUPS, group_languages, in_table_order, language, table
from lvlm.settings import MixConfig
from tests.corpora import make_corpus, train_row, write_rows

CODES = group_languages("L100", tuple(table()))
WORLD = ("en", "de", "fr", "ar", "ru", "tr", "fi", "el", "he", "ka", "sw", "ht", "is", "eo", "jv", "no")
SHARES = (0.0, 0.01, 0.1, 0.25, 1 / 3, 0.5, 0.75, 0.9, 0.99, 1.0)
ALLOCATIONS: tuple[Allocation, ...] = ("uniform", "inverse_tier", "inverse_exp_tier")


def bound(languages: int, allocation: Allocation) -> int:
    """The deviation from the quota that the docstring of `assign_languages` states, for this many languages beside
    English."""
    by_tier = (2, 5, 8) if allocation == "inverse_exp_tier" else (2, 4, 8)
    few, some, many = by_tier if isinstance(allocation, str) else (3, 10, 14)
    return few if languages <= 5 else some if languages <= 24 else many


def quotas(codes: tuple[str, ...], allocation: Allocation) -> dict[str, float]:
    """The share of each language beside English, by the definition of the allocation."""
    if isinstance(allocation, Mapping):
        raw = {code: allocation[code] for code in codes}
    else:
        rule = {"uniform": lambda tier: 1.0, "inverse_tier": lambda tier: 1 / tier}.get(
            allocation, lambda tier: math.e**-tier
        )
        raw = {code: rule(int(language(code).tier[1])) for code in codes}
    return {code: value / sum(raw.values()) for code, value in raw.items()}


def make_ids(count: int, salt: int = 0) -> list[str]:
    return [f"sample-{salt}-{number}" for number in range(count)]


mixes = st.fixed_dictionaries(
    {
        "count": st.integers(1, 700),
        "salt": st.integers(0, 5),
        "others": st.integers(1, len(CODES) - 1),
        "allocation": st.one_of(
            st.sampled_from(ALLOCATIONS),
            st.lists(st.floats(-2, 2), min_size=len(CODES), max_size=len(CODES)).map(
                lambda powers: {code: 10**power for code, power in zip(CODES, powers, strict=True)}
            ),
        ),
    }
)
shares = st.one_of(st.sampled_from(SHARES), st.floats(0, 1))


@settings(max_examples=60, deadline=None)
@given(mixes, shares)
def test_english_is_exact_and_the_rest_near_its_quota(mix: dict[str, Any], share: float) -> None:
    codes, ids = CODES[: mix["others"] + 1], make_ids(mix["count"], mix["salt"])
    given_to = assign_languages(ids, languages=codes, english_share=share, allocation=mix["allocation"])
    assert list(given_to) == ids
    count = Counter(given_to.values())
    assert count["en"] == int(Fraction(str(share)) * len(ids) + Fraction(1, 2))
    for code, weight in quotas(codes[1:], mix["allocation"]).items():
        assert abs(count[code] - weight * (len(ids) - count["en"])) <= bound(mix["others"], mix["allocation"])


@settings(max_examples=60, deadline=None)
@given(mixes, shares, shares)
def test_a_lower_share_only_moves_ids_out_of_english(mix: dict[str, Any], one: float, two: float) -> None:
    codes, ids = CODES[: mix["others"] + 1], make_ids(mix["count"], mix["salt"])
    high, low = (
        assign_languages(ids, languages=codes, english_share=share, allocation=mix["allocation"])
        for share in (max(one, two), min(one, two))
    )
    assert all(low[name] == high[name] for name in ids if high[name] != "en")
    assert all(high[name] == "en" for name in ids if low[name] == "en")


@settings(max_examples=60, deadline=None)
@given(mixes, shares, st.integers(1, len(CODES) - 1))
def test_more_languages_only_take_ids_for_themselves(mix: dict[str, Any], share: float, others: int) -> None:
    ids, (few, many) = make_ids(mix["count"], mix["salt"]), sorted((mix["others"], others))
    small, large = (
        assign_languages(ids, languages=CODES[: count + 1], english_share=share, allocation=mix["allocation"])
        for count in (few, many)
    )
    new = set(CODES[few + 1 :])
    assert all(large[name] == small[name] or large[name] in new for name in ids)


@pytest.mark.parametrize("allocation", ALLOCATIONS)
def test_groups_are_nested(allocation: Allocation) -> None:
    ids = make_ids(1500)
    available = (*WORLD, "br") if allocation == "uniform" else WORLD  # Breton is of no tier
    groups = [name for name in GROUPS if name != "en" and (name != "all" or "br" in available)]
    assigned = [
        assign_languages(ids, languages=group_languages(name, available), english_share=0.25, allocation=allocation)
        for name in groups
    ]
    for smaller, larger, name in zip(assigned, assigned[1:], groups[1:], strict=False):
        added = {code for code in available if code not in set(smaller.values())}
        assert all(larger[i] == smaller[i] or larger[i] in added for i in ids), name
        assert set(larger.values()) > set(smaller.values())


DECADES = {code: 10 ** (5 * random.Random(code).random()) for code in CODES}
"""Weights up to 100,000 times one another."""


@pytest.mark.parametrize("allocation", [*ALLOCATIONS, DECADES], ids=[*map(str, ALLOCATIONS), "weights"])
@pytest.mark.parametrize("others", [1, 2, 3, 5, 15, 24, 49, 99])
def test_deviation_at_every_share(allocation: Allocation, others: int) -> None:
    """The stated bound at each of 20 000 budgets: a lower share is a longer prefix of one order, followed id by id."""
    codes = in_table_order(WORLD) if others == 15 else CODES[: others + 1]
    ids = make_ids(20_000)
    index, _ = language_codes(ids, languages=codes, english_share=0.0, allocation=allocation)
    given_to = index[hash_order(ids, salt="language")]
    budget = np.arange(1, len(ids) + 1)
    for number, weight in enumerate(quotas(codes[1:], allocation).values(), start=1):
        assert np.abs(np.cumsum(given_to == number) - weight * budget).max() <= bound(others, allocation)


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


@pytest.mark.parametrize(
    ("allocation", "counts"),
    [
        ("inverse_tier", [120, 150, 200, 300, 600]),
        ("inverse_exp_tier", [16, 43, 118, 321, 872]),  # e^-5 : e^-4 : e^-3 : e^-2 : e^-1
        ({"de": 1, "ru": 1, "el": 2, "sw": 0.5, "eo": 5.5}, [137, 137, 274, 68.5, 753.5]),
    ],
)
def test_allocations_by_hand(allocation: Allocation, counts: list[float]) -> None:
    codes = ("en", "de", "ru", "el", "sw", "eo")
    assigned = assign_languages(make_ids(1370), languages=codes, english_share=0.0, allocation=allocation)
    count = Counter(assigned.values())
    assert [count[code] for code in codes[1:]] == pytest.approx(counts, abs=3)


def mix_of(available: tuple[str, ...] = WORLD, **settings: Any) -> LanguageMix:
    return LanguageMix.of(make_settings(MixConfig, {"corpora": [], **settings}, where="mix"), available, corpus="toy")


def test_a_temperature_flattens_the_sizes() -> None:
    sizes = {"de": 1e9, "sw": 1e5, "eo": 1e3, "fr": 7}

    def shares(temperature: float) -> list[float]:
        mix = mix_of(languages=["en", "de", "sw", "eo"], allocation="temperature", temperature=temperature, sizes=sizes)
        return list(quotas(mix.languages[1:], mix.allocation).values())

    assert shares(1) == pytest.approx([0.99989900, 9.999e-05, 9.999e-07], rel=1e-4)
    roots = [size**0.2 for size in (1e9, 1e5, 1e3)]
    assert shares(5) == pytest.approx([root / sum(roots) for root in roots])
    assert shares(1e6) == pytest.approx([1 / 3] * 3, abs=1e-4)


def test_the_same_sizes_keep_groups_nested_at_every_temperature() -> None:
    draw, ids = random.Random(0), make_ids(900)
    sizes = {code: 10 ** (6 * draw.random()) for code in WORLD}
    for temperature in (0.7, 1.0, 3.3):
        before: dict[str, str] = {}
        weights: dict[str, float] = {}
        for group in ("T5", "T5-T4", "T5-T3", "T5-T2", "L100"):
            mix = mix_of(languages=group, allocation="temperature", temperature=temperature, sizes=sizes)
            after = assign_languages(
                ids, languages=mix.languages, english_share=mix.english_share, allocation=mix.allocation
            )
            assert isinstance(mix.allocation, Mapping)
            assert weights.items() <= mix.allocation.items(), "a last bit would be enough to hand an id on"
            weights = dict(mix.allocation)
            new = set(mix.languages) - set(before.values())
            assert all(after[name] == was or after[name] in new for name, was in before.items()), group
            before = after


TWO = {"languages": ["en", "de", "sw"]}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "weights without their allocation": ({"weights": {"de": 1}}, "weights is a setting of allocation 'weights'"),
    "a temperature of another allocation": (
        {"allocation": "inverse_tier", "temperature": 2}, "temperature is a setting of allocation 'temperature'"
    ),
    "sizes beside weights": (
        {"allocation": "weights", "weights": {"de": 1, "sw": 1}, "sizes": {"de": 1}}, "sizes is a setting of"
    ),
    "no weights": ({"allocation": "weights"}, "allocation 'weights' needs weights"),
    "no temperature": ({"allocation": "temperature", "sizes": {"de": 1, "sw": 1}}, "needs temperature"),
    "no sizes": ({"allocation": "temperature", "temperature": 2}, "needs sizes"),
    "a weight of nothing": ({"allocation": "weights", "weights": {"de": 0, "sw": 1}}, "greater than 0"),
    "a size that is no number": (
        {"allocation": "temperature", "temperature": 1, "sizes": {"de": float("nan")}}, "'sizes.de'"
    ),
    "a language without weight": ({"allocation": "weights", "weights": {"de": 1}}, "'weights' lack sw"),
    "a language without size": (
        {"allocation": "temperature", "temperature": 2, "sizes": {"sw": 1, "fr": 2}}, "'sizes' lack de"
    ),
    "a weight for no language of the mix": (
        {"allocation": "weights", "weights": {"de": 1, "sw": 1, "fr": 1}}, "name fr, which would change nothing"
    ),
    "a weight for English": ({"allocation": "weights", "weights": {"de": 1, "sw": 1, "en": 1}}, "name en, which"),
    "one language under two codes": (
        {"allocation": "weights", "weights": {"de": 1, "sw": 1, "deu_Latn": 1}}, "a language twice"
    ),
    "an unknown language": ({"allocation": "weights", "weights": {"de": 1, "zz": 1}}, "Unknown language code 'zz'"),
    "a temperature that leaves nothing": (
        {"allocation": "temperature", "temperature": 1e-4, "sizes": {"de": 1, "sw": 9}}, "de would get nothing"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_settings_of_an_allocation_that_miss_or_do_nothing_are_errors(case: str) -> None:
    settings, message = REFUSED[case]
    with pytest.raises(InputError, match=message):
        mix_of(**TWO, **settings)


def test_weights_may_stand_under_any_code_and_norwegian_too() -> None:
    mix = mix_of(languages=["iw", "nb", "en"], allocation="weights", weights={"heb_Hebr": 2, False: 1})
    assert mix == LanguageMix(("en", "he", "no"), 0.5, {"he": 2, "no": 1})


def test_a_language_without_tier_has_no_share_by_tier() -> None:
    with pytest.raises(InputError, match="br have no tier"):
        assign_languages(make_ids(9), languages=("en", "de", "br"), allocation="inverse_tier")
    assert "br" in assign_languages(make_ids(9), languages=("en", "de", "br")).values()


def test_a_mix_without_own_settings_keeps_the_fingerprint_that_it_had_before_they_existed() -> None:
    assert list(MixConfig(corpora=()).model_dump()) == ["corpora", "languages", "english_share", "allocation"]
    assert fingerprint(MixConfig(corpora=(), languages="T5").model_dump(mode="json")) == "d9f84dae2114"
    assert "share_of" not in MixConfig(corpora=(), share_of="samples").model_dump()
    assert MixConfig(corpora=(), share_of="tokens").model_dump()["share_of"] == "tokens"
    weighted = make_settings(MixConfig, {"corpora": [], "allocation": "weights", "weights": {"de": 2}}, where="mix")
    assert MixConfig.model_validate(weighted.model_dump()) == weighted


FROZEN = {
    "uniform": "b7b7856820100419f99fc9264ce0ae271c4aa8ddcb77ad4477871e10c91a4274",
    "inverse_tier": "19976095e726210aa3f52b9bb9ca5e84459535025c978a7cad05a7975562dfc1",
}
"""Assignments as they have been from the first version on: results of finished studies rest on them."""


def digest(allocation: Allocation) -> str:
    state = hashlib.sha256()
    for count in (1, 17, 700, 5000):
        ids = [f"sample-{number}" for number in range(count)]
        for codes in (CODES, WORLD, ("en", "de"), ("de", "sw"), group_languages("T5-T3", CODES)):
            for share in (None, 0.0, 0.01, 0.25, 0.9):
                if not share or "en" in codes:
                    given_to = assign_languages(ids, languages=codes, english_share=share, allocation=allocation)
                    state.update("".join(f"{name} {code}\n" for name, code in given_to.items()).encode())
    return state.hexdigest()


@pytest.mark.parametrize("allocation", FROZEN)
def test_no_assignment_has_moved(allocation: Allocation) -> None:
    assert digest(allocation) == FROZEN[str(allocation)]


def test_every_process_assigns_alike() -> None:
    """What a process could have of its own: the seed of its hashes, its threads."""
    code = "from tests.test_mix import digest; print(digest('uniform'))"
    environment = {**os.environ, "PYTHONHASHSEED": "1", "OMP_NUM_THREADS": "2"}
    root = Path(__file__).parents[1]
    shown = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=root, capture_output=True, text=True, check=True
    )
    assert shown.stdout.strip() == FROZEN["uniform"]


HERE = ("en", "de", "ru", "el", "sw")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("mix"), HERE, rows=1, test_rows=1)


def given_in(mix: dict[str, Any], *uses: tuple[Path, str]) -> dict[str, dict[str, str]]:
    """Corpus -> id -> language, as a stage's pool has them; fails where an id stands in it twice."""
    config = MixConfig.model_validate({**mix, "corpora": [{"path": str(path), "split": split} for path, split in uses]})
    pool, _ = gather(config, {str(path): open_corpus(path) for path, _ in uses})
    found: dict[str, dict[str, str]] = {}
    for number in range(len(pool)):
        entry = pool.entry(number)
        assert found.setdefault(entry.corpus, {}).setdefault(entry.id, entry.language) == entry.language
    assert sum(map(len, found.values())) == len(pool)
    return found


def write_split(folder: Path, codes: tuple[str, ...], ids: list[str], orders: random.Random | None) -> None:
    """The instruct split anew: the same ids in every file, each file in an order of its own."""
    for code in codes:
        order = orders.sample(ids, len(ids)) if orders else ids
        write_rows(folder / "instruct" / f"{code}.jsonl", [train_row(0, code, id=name) for name in order])


in_corpora = st.fixed_dictionaries(
    {
        "languages": st.sampled_from(["all", "T5", "T5-T3", "script:Latn", ["en", "sw"], ["de", "ru"]]),
        "allocation": st.sampled_from(["uniform", "inverse_exp_tier"]),
    }
)


@settings(max_examples=12, deadline=None)
@given(in_corpora, st.integers(1, 60), st.randoms(use_true_random=False))
def test_neither_the_order_of_a_file_nor_another_corpus_changes_who_gets_what(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, mix: dict[str, Any], count: int, draw: random.Random
) -> None:
    ids = [f"{draw.randrange(10**6)}-{number}" for number in range(count)]
    write_split(folder, HERE, ids, None)
    alone = given_in(mix, (folder, "instruct"))
    assert list(alone) == ["toy"] and set(alone["toy"]) == set(ids)
    write_split(folder, HERE, ids, draw)
    assert given_in(mix, (folder, "instruct")) == alone
    other = make_corpus(tmp_path_factory.mktemp("other"), HERE, name="other", rows=draw.randrange(1, 40))
    uses = [(folder, "instruct"), (other, "instruct")]
    both = given_in(mix, *draw.sample(uses, 2))
    assert both["toy"] == alone["toy"] and set(both) == {"toy", "other"}


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
    """A quarter of a million ids in 100 languages; a million take two to three seconds of one core."""
    ids = [f"{number:07d}" for number in range(250_000)]
    start = time.process_time()
    count = Counter(assign_languages(ids, languages=CODES, english_share=0.5).values())
    assert time.process_time() - start < 6
    assert count["en"] == 125_000
    assert all(abs(count[code] - 125_000 / 99) <= bound(99, "uniform") for code in CODES[1:])
