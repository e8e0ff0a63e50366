"""Shares meant of tokens: the border of English lies where no other is nearer, and everything else of a mix stays as it
is. What comes out is told in samples, tokens and supervised tokens, with tokens per word."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lvlm.cli import main
from lvlm.config import make_config
from lvlm.data import fertility
from lvlm.data.boundaries import count_words
from lvlm.data.corpus import open_corpus
from lvlm.data.mix import Numbers, border, hash_order, language_codes
from lvlm.data.plan import Plan, build_plan
from lvlm.data.readers import Conversation
from lvlm.errors import InputError
from lvlm.evaluate.segments import segment
from lvlm.languages import group_languages, table
from lvlm.settings import ModelConfig, StageConfig
from lvlm.startup import _read
from tests.corpora import make_corpus, train_row, write_rows

CODES = group_languages("L100", tuple(table()))
LANGUAGES = ("en", "de", "sw")
shares = st.one_of(st.sampled_from((0.0, 0.01, 0.25, 0.5, 0.9, 1.0)), st.floats(0, 1))
amounts = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), min_size=1, max_size=60)


def columns(pairs: Sequence[tuple[int, int]]) -> tuple[Numbers, Numbers]:
    english, others = np.array(pairs, dtype=np.int64).T
    return english, others


@given(amounts, shares)
def test_no_border_is_nearer_to_the_share(pairs: list[tuple[int, int]], share: float) -> None:
    english, others = columns(pairs)

    def off(away: int) -> Fraction:
        stay, left = int(english[away:].sum()), int(others[:away].sum())
        return abs(Fraction(stay, stay + left or 1) - Fraction(str(share)))

    assert off(border(share, english, others)) == min(off(away) for away in range(len(pairs) + 1))


@given(amounts, shares, shares)
def test_a_lower_share_never_brings_back_to_english(pairs: list[tuple[int, int]], one: float, two: float) -> None:
    assert border(max(one, two), *columns(pairs)) <= border(min(one, two), *columns(pairs))


mixes = st.fixed_dictionaries(
    {
        "count": st.integers(1, 300),
        "others": st.integers(1, len(CODES) - 1),
        "allocation": st.sampled_from(["uniform", "inverse_exp_tier"]),
        "salt": st.integers(0, 5),
    }
)


def assigned(mix: dict[str, Any], share: float, tokens: Any, others: int | None = None) -> tuple[list[str], Numbers]:
    ids = [f"{mix['salt']}-{number}" for number in range(mix["count"])]
    codes, _ = language_codes(
        ids, languages=CODES[: (others or mix["others"]) + 1], english_share=share, allocation=mix["allocation"],
        tokens=tokens,
    )  # fmt: skip
    return ids, codes


def some_tokens(at: Numbers, codes: Numbers) -> Numbers:
    """Of one id in one language always as many; languages differ."""
    return 1 + (at * 7919 + codes * 104_729) % (3 + codes)


@settings(max_examples=60, deadline=None)
@given(mixes, shares)
def test_where_every_sample_is_one_token_tokens_are_samples(mix: dict[str, Any], share: float) -> None:
    (_, of_tokens), (_, of_samples) = (
        assigned(mix, share, tokens) for tokens in (lambda at, codes: np.ones(len(at), dtype=np.int64), None)
    )
    assert np.array_equal(of_tokens, of_samples)


@settings(max_examples=60, deadline=None)
@given(mixes, shares, shares)
def test_a_lower_share_of_tokens_only_moves_ids_out_of_english(mix: dict[str, Any], one: float, two: float) -> None:
    high, low = (assigned(mix, share, some_tokens)[1] for share in (max(one, two), min(one, two)))
    assert ((high == low) | (high == 0)).all()


@settings(max_examples=60, deadline=None)
@given(mixes, shares, st.integers(1, len(CODES) - 1))
def test_more_languages_take_ids_for_themselves_and_move_the_border(
    mix: dict[str, Any], share: float, others: int
) -> None:
    few, many = sorted((mix["others"], others))
    ids, small = assigned(mix, share, some_tokens, few)
    _, large = assigned(mix, share, some_tokens, many)
    order = hash_order(ids, salt="language")
    borders = [int((codes > 0).sum()) for codes in (small, large)]
    for codes, own in zip((small, large), borders, strict=True):
        assert (codes[order[:own]] > 0).all(), "ids leave English in one order"
    both = order[: min(borders)]
    assert ((large[both] == small[both]) | (large[both] > few)).all()


def test_the_order_of_the_ids_does_not_matter() -> None:
    ids = [f"id-{number}" for number in range(400)]
    lengths = {name: np.array([1, 3, 2]) * random.Random(name).randrange(1, 30) for name in ids}

    def given_to(names: list[str]) -> dict[str, int]:
        def tokens(at: Numbers, codes: Numbers) -> Numbers:
            return np.array([lengths[names[a]][c] for a, c in zip(at.tolist(), codes.tolist(), strict=True)])

        codes, _ = language_codes(names, languages=LANGUAGES, english_share=0.4, allocation="uniform", tokens=tokens)
        return dict(zip(names, codes.tolist(), strict=True))

    assert given_to(random.Random(1).sample(ids, len(ids))) == given_to(ids)


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_the_other_languages_have_about_their_shares_of_tokens(share: float) -> None:
    ids, per_sample = [f"id-{number}" for number in range(30_000)], np.array([10, 12, 40, 90, 16])
    noise = np.random.default_rng(0).uniform(0.2, 1.8, size=len(ids))

    def tokens(at: Numbers, codes: Numbers) -> Numbers:
        return (per_sample[codes] * noise[at]).astype(np.int64) + 1

    weights = {"de": 1.0, "ru": 2.0, "el": 1.0, "sw": 4.0}
    codes, languages = language_codes(
        ids, languages=("en", *weights), english_share=share, allocation=weights, tokens=tokens
    )
    sums = np.bincount(codes, tokens(np.arange(len(ids)), codes), minlength=5)
    assert sums[0] / sums.sum() == pytest.approx(share, abs=1e-4)
    asked = np.array([weights[code] for code in languages[1:]]) / sum(weights.values())
    assert sums[1:] / sums[1:].sum() == pytest.approx(asked, rel=0.05)


def measure(conversations: Sequence[Conversation]) -> list[tuple[int, int]]:
    """Words, and of the template five tokens for each conversation and two for each turn, one of them supervised."""
    counts = []
    for turns, _ in conversations:
        users, answers = (
            sum(len(turn[place].replace("<image_placeholder>", " ").split()) for turn in turns) for place in (0, 1)
        )
        counts.append((users + answers + 5 + 2 * len(turns), answers + len(turns)))
    return counts


def make_plan(*folders: Path, measured: bool = True, **settings: Any) -> Plan:
    mix = {
        name: settings.pop(name)
        for name in ("languages", "english_share", "allocation", "share_of")
        if name in settings
    }
    corpora = [{"path": str(folder), "split": "instruct"} for folder in folders]
    config = StageConfig.model_validate({"mix": {"corpora": corpora, **mix}, **settings})
    opened = {str(folder): open_corpus(folder) for folder in folders}
    return build_plan("instruct", config, seed=0, corpora=opened, measure=measure if measured else None)


def write_wordy(folder: Path, rows: int = 200) -> None:
    """German answers have three times as many words as English ones, Swahili prompts five times as many."""
    for code, label, context in (("en", 1, 1), ("de", 3, 1), ("sw", 1, 5)):
        texts = [
            (" ".join(["ask"] * context * (1 + n % 5)), " ".join(["say"] * label * (2 + n % 3))) for n in range(rows)
        ]
        own = [train_row(n, code, context=[ask] * 2, label=[say] * 2) for n, (ask, say) in enumerate(texts)]
        write_rows(folder / "instruct" / f"{code}.jsonl", own)


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    folder = make_corpus(tmp_path, LANGUAGES, rows=1)
    write_wordy(folder)
    return folder


@pytest.mark.parametrize("unit", ["samples", "tokens", "supervised_tokens"])
@pytest.mark.parametrize("share", [0.2, 0.5])
def test_a_plan_has_its_shares_in_the_unit_asked_and_says_them_in_all(toy: Path, unit: str, share: float) -> None:
    plan = make_plan(toy, english_share=share, share_of=unit)
    summary = json.loads(json.dumps(plan.summary()))
    found = summary["realised"]["toy/instruct"]
    assert summary["share_of"] == unit and list(found) == list(LANGUAGES)
    tokens = {code: [plan.tokens(entry) for entry in plan.order if entry.language == code] for code in LANGUAGES}
    counted = {
        code: {
            "samples": len(own),
            "tokens": sum(text for text, _ in own),
            "supervised_tokens": sum(supervised for _, supervised in own),
        }
        for code, own in tokens.items()
    }
    for one in ("samples", "tokens", "supervised_tokens"):
        everything = sum(own[one] for own in counted.values())
        assert {code: own[one] / everything for code, own in counted.items()} == pytest.approx(
            {code: own[one] for code, own in found.items()}
        )
    assert found["en"][unit] == pytest.approx(share, abs=0.005)
    assert found["de"][unit] == pytest.approx(found["sw"][unit], rel=0.25)
    if unit != "samples":
        assert abs(found["en"]["samples"] - share) > 0.02
    assert summary["languages"]["de"]["shares"] == found["de"]
    line = next(line.split() for line in plan.table() if line.split()[:1] == ["de"])
    assert [line[2], line[4], line[6]] == [f"{found['de'][one]:.2%}" for one in found["de"]]


def test_shares_are_told_after_cuts(toy: Path) -> None:
    plan = make_plan(toy, share_of="tokens", max_text_tokens=40)
    assert {row["language"] for row in plan.ledger.rows()} == {"de", "sw"}
    own = {code: sum(plan.tokens(e)[0] for e in plan.order if e.language == code) for code in LANGUAGES}
    found = plan.summary()["realised"]["toy/instruct"]
    assert found["en"]["tokens"] == pytest.approx(own["en"] / sum(own.values())) and found["en"]["tokens"] > 0.55


def test_shares_of_tokens_depend_on_ids_and_texts_alone(toy: Path, tmp_path: Path) -> None:
    before = {entry.id: entry.language for entry in make_plan(toy, share_of="tokens").order}
    path = toy / "instruct" / "de.jsonl"
    path.write_text("\n".join(reversed(path.read_text().splitlines())))
    other = make_corpus(tmp_path, LANGUAGES, name="other", rows=30)
    after = make_plan(other, toy, share_of="tokens").order
    assert {entry.id: entry.language for entry in after if entry.corpus == "toy"} == before


def test_a_sample_that_was_refused_counts_in_the_language_that_it_takes(toy: Path) -> None:
    german = {e.id for e in make_plan(toy, english_share=0, share_of="tokens").order if e.language == "de"}
    gone = sorted(german)[:20]
    path = toy / "instruct" / "de.jsonl"
    write_rows(path, [row for row in map(json.loads, path.read_text().splitlines()) if row["id"] not in gone])
    write_rows(toy / "refused" / "instruct" / "de.jsonl", [{"id": name} for name in gone])
    plan = make_plan(toy, english_share=0, share_of="tokens")
    english = {entry.id for entry in plan.order if entry.language == "en"}
    assert english and english <= set(gone) and len({entry.id for entry in plan.order}) == 200


def test_a_unit_that_cannot_be_counted_or_changes_nothing_is_an_error(toy: Path, tmp_path: Path) -> None:
    stays = make_corpus(tmp_path, LANGUAGES, name="stays", translatable=False)
    with pytest.raises(InputError, match="'share_of' is tokens, but this plan is made without a tokenizer"):
        make_plan(toy, share_of="tokens", measured=False)
    with pytest.raises(InputError, match="'share_of' is tokens, but none of its corpora is translatable"):
        make_plan(stays, share_of="tokens")
    with pytest.raises(InputError, match="'share_of' is tokens but English is its only language"):
        make_plan(toy, share_of="tokens", languages="en")


def test_data_are_not_read_ahead_of_the_tokenizer_that_divides_them(toy: Path) -> None:
    for unit, ahead in (("samples", True), ("tokens", False)):
        stage = {"mix": {"corpora": [{"path": str(toy), "split": "instruct"}], "share_of": unit}}
        assert (_read(make_config({"instruct": stage}), toy) is not None) == ahead


def test_tokens_per_word_leave_out_the_template(toy: Path) -> None:
    plan = make_plan(toy, max_text_tokens=40, epochs=2)
    assert plan.fertility is not None
    assert {code: own.tokens_per_word for code, own in plan.fertility.items()} == dict.fromkeys(LANGUAGES, 1.0)
    counts = Counter(entry.language for entry in set(plan.order))
    assert {code: own.samples for code, own in plan.fertility.items()} == counts
    rows = {line.split()[0]: line.split() for line in plan.fertility_table()[2:]}
    for code in LANGUAGES:
        entries = [entry for entry in plan.order if entry.language == code]
        cut = sum(len(plan.sample(entry).turns) < 2 for entry in entries)
        assert rows[code][-2:] == ["1.00", f"{cut / len(entries):.2%}"]
    assert rows["en"][-1] == "0.00%" != rows["sw"][-1]
    assert plan.summary()["fertility"]["sw"]["tokens_per_word"] == 1.0
    assert make_plan(toy, measured=False).summary()["fertility"] is None


def test_words_of_a_large_language_are_counted_in_some_samples(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = make_plan(toy, languages="en").fertility
    monkeypatch.setattr(fertility, "SAMPLES", 40)
    some = make_plan(toy, languages="en").fertility
    assert whole and some and (whole["en"].samples, some["en"].samples) == (200, 40)
    assert some["en"].tokens_per_word == 1.0 and some["en"].words == pytest.approx(whole["en"].words / 5, rel=0.2)


@pytest.mark.parametrize(
    ("code", "text", "count"),
    [
        ("de", "Der Hund - ein Dackel - schläft, 3 Stunden.", 7),
        ("th", "สุนัขสองตัววิ่งเล่น", 4),
        ("ja", "犬が走っています。", 6),
        ("zh", "两只狗", 2),
        ("ko", "개 두 마리", 3),
    ],
)
def test_words_are_those_that_captions_are_compared_by(code: str, text: str, count: int) -> None:
    assert count_words(text, code) == len(segment(text, code))
    assert abs(count_words(text, code) - count) <= 1


def test_tokens_of_texts_are_those_of_the_tokenizer(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the template and tokenizer of the shipped model, on the command line."""
    from lvlm.model.tokenizer import load_counter

    stage = {"mix": {"corpora": [{"path": str(toy), "split": "instruct"}], "languages": "en"}}
    config = toy / "run.yaml"
    config.write_text(json.dumps({"instruct": stage}))
    assert main(["plan", str(config), "--fertility", "--home", str(toy / "home")]) == 0
    shown = capsys.readouterr().out.split("fertility: ")[1].splitlines()
    line = next(line.split() for line in shown if line.split()[:1] == ["en"])
    tokenizer = load_counter(ModelConfig(), seed=0).chat.tokenizer
    rows = map(json.loads, (toy / "instruct" / "en.jsonl").read_text().splitlines())
    texts = [text for row in rows for text in (*row["context"], *row["label"])]
    own = sum(len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"])
    assert int(line[3].replace(",", "")) == pytest.approx(own, rel=0.02)
