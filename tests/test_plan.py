"""Plans: the same ids in the same steps whatever the mix, exact durations, cuts that are counted, a hash that covers it
all."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from lvlm.data import progress
from lvlm.data.corpus import Sample, open_corpus
from lvlm.data.plan import Plan, build_plan
from lvlm.data.readers import Conversation
from lvlm.errors import InputError
from lvlm.settings import StageConfig
from tests.corpora import change_row, make_corpus, train_row, write_rows

LANGUAGES = ("en", "de", "ru", "el", "sw", "jv")


def words(sample: Sample) -> tuple[int, int]:
    """A tokenizer that splits at blanks."""
    ((text, supervised),) = all_words([(sample.turns, len(sample.images))])
    return text, supervised


def all_words(conversations: Sequence[Conversation]) -> list[tuple[int, int]]:
    answers = [sum(len(answer.split()) for _, answer in turns) for turns, _ in conversations]
    users = [sum(len(user.split()) for user, _ in turns) for turns, _ in conversations]
    return [(own + asked, own) for own, asked in zip(answers, users, strict=True)]


def make_plan(*folders: Path, seed: int = 0, measure: Any = all_words, uses: Any = None, **settings: Any) -> Plan:
    mix = {name: settings.pop(name) for name in ("languages", "english_share", "allocation") if name in settings}
    corpora = uses or [{"path": str(folder), "split": "instruct"} for folder in folders]
    config = StageConfig.model_validate({"mix": {"corpora": corpora, **mix}, "batch_samples": 10, **settings})
    return build_plan("instruct", config, seed=seed, corpora={str(f): open_corpus(f) for f in folders}, measure=measure)


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    return make_corpus(tmp_path, LANGUAGES, rows=64)


@pytest.fixture
def reading(tmp_path: Path) -> Path:
    return make_corpus(tmp_path, ("en", "de"), name="reading", rows=9, translatable=False)


def ids(plan: Plan) -> list[tuple[str, str]]:
    return [(entry.corpus, entry.id) for entry in plan.order]


def test_arms_see_the_same_ids_in_the_same_steps(toy: Path, reading: Path) -> None:
    arms: list[dict[str, Any]] = [
        {"languages": "en"},
        {"languages": "T5"},
        {"languages": "all", "english_share": 0.1},
        {"languages": "all", "english_share": 0.9, "allocation": "inverse_tier"},
        {"languages": ("de", "sw")},
    ]
    plans = [make_plan(toy, reading, epochs=2.5, **arm) for arm in arms]
    assert len({tuple(ids(plan)) for plan in plans}) == 1
    assert len({plan.hash for plan in plans}) == len(arms)


def test_each_epoch_is_every_sample_once(toy: Path, reading: Path) -> None:
    plan = make_plan(toy, reading, epochs=2)
    pool = 64 + 18
    first, second = ids(plan)[:pool], ids(plan)[pool:]
    assert sorted(first) == sorted(second) and len(set(first)) == pool and first != second
    language = {(entry.corpus, entry.id): entry.language for entry in plan.order}
    assert all(language[entry.corpus, entry.id] == entry.language for entry in plan.order)


@pytest.mark.parametrize(
    ("duration", "samples", "steps"),
    [({}, 64, 7), ({"epochs": 1.0}, 64, 7), ({"epochs": 0.5}, 32, 4), ({"epochs": 2.5}, 160, 16),
     ({"samples": 33}, 33, 4), ({"samples": 200}, 200, 20), ({"steps": 3}, 30, 3), ({"steps": 9}, 90, 9),
     ({"epochs": 0.001}, 1, 1)],
)  # fmt: skip
def test_durations(toy: Path, duration: dict[str, Any], samples: int, steps: int) -> None:
    plan = make_plan(toy, **duration)
    assert (len(plan.order), plan.steps) == (samples, steps)
    batches = [plan.step_entries(step) for step in range(plan.steps)]
    assert [entry for batch in batches for entry in batch] == list(plan.order)
    assert all(len(batch) == 10 for batch in batches[:-1])
    with pytest.raises(IndexError):
        plan.step_entries(plan.steps)


def test_a_longer_plan_starts_like_a_shorter_one(toy: Path) -> None:
    assert ids(make_plan(toy, steps=15))[:40] == ids(make_plan(toy, steps=4))


def test_seed_changes_the_order_and_not_the_languages(toy: Path) -> None:
    one, two = make_plan(toy, seed=1), make_plan(toy, seed=2)
    assert ids(one) != ids(two)
    assert sorted((e.id, e.language) for e in one.order) == sorted((e.id, e.language) for e in two.order)
    assert one.hash != two.hash and one.hash == make_plan(toy, seed=1).hash


def test_samples_are_those_of_the_files(toy: Path, reading: Path) -> None:
    plan = make_plan(toy, reading, languages="all", english_share=0.25)
    for entry in plan.order:
        sample = plan.sample(entry)
        assert (sample.corpus, sample.id, sample.language) == (entry.corpus, entry.id, entry.language)
        assert sample.turns[0][0].startswith(f"{entry.language} question 0 of {int(entry.id.split('-')[1])}")
        assert [path.name for path in plan.image_paths(entry)] == [Path(image).name for image in sample.images]
        assert plan.image_paths(entry)[0].exists()


def test_shares_are_realised_per_corpus(toy: Path, reading: Path, tmp_path: Path) -> None:
    plan = make_plan(toy, reading, languages="all", english_share=0.25)
    count = Counter(entry.language for entry in plan.order if entry.corpus == "toy")
    assert count["en"] == 16 and all(abs(count[code] - 48 / 5) <= 2 for code in LANGUAGES[1:])
    assert Counter(entry.language for entry in plan.order if entry.corpus == "reading") == {"en": 9, "de": 9}
    third = make_corpus(tmp_path, LANGUAGES, name="more", rows=30)
    both = make_plan(toy, third, languages="all", english_share=0.25)
    alone = {entry.id: entry.language for entry in plan.order if entry.corpus == "toy"}
    assert alone == {entry.id: entry.language for entry in both.order if entry.corpus == "toy"}


def test_number_of_samples_of_a_corpus(toy: Path, reading: Path) -> None:
    def drawn(count: int) -> set[str]:
        return {
            entry.id for entry in make_plan(toy, uses=[{"path": str(toy), "split": "instruct", "samples": count}]).order
        }

    assert len(drawn(20)) == 20 and drawn(20) < drawn(40)
    use = {"path": str(reading), "split": "instruct"}
    plan = make_plan(reading, uses=[{**use, "languages": ["de"], "samples": 4}])
    assert Counter(entry.language for entry in plan.order) == {"de": 4}
    assert len(make_plan(reading, uses=[{**use, "samples": 11}]).order) == 11


def test_a_corpus_that_stays_in_its_languages_is_counted_by_language(tmp_path: Path) -> None:
    folder = make_corpus(tmp_path, ("en", "de", "ar", "th"), name="pages", rows=9, translatable=False)
    use = {"path": str(folder), "split": "instruct"}

    def drawn(*uses: dict[str, Any]) -> dict[str, set[str]]:
        ids: dict[str, set[str]] = {}
        for entry in make_plan(folder, uses=[{**use, **more} for more in uses]).order:
            ids.setdefault(entry.language, set()).add(entry.id)
        return ids

    latin_down = drawn(
        {"languages": ["en", "de"], "samples_per_language": 2}, {"languages": ["ar", "th"], "samples_per_language": 8}
    )
    assert {code: len(ids) for code, ids in latin_down.items()} == {"en": 2, "de": 2, "ar": 8, "th": 8}
    uniform = drawn({"samples_per_language": 5})
    assert all(len(ids) == 5 for ids in uniform.values())
    assert latin_down["de"] < uniform["de"] and uniform["th"] < latin_down["th"], "more takes the same ones and others"
    for uses, message in (
        ([{"samples_per_language": 10}], "has 9"),
        ([{"languages": ["de"]}, {"languages": ["de", "en"]}], "twice for 'de'"),
        ([{"samples_per_language": 2, "samples": 2}], "not both"),
    ):
        with pytest.raises((InputError, ValidationError), match=message):
            drawn(*uses)  # type: ignore[arg-type]


def test_only_the_files_of_the_mix_are_read(toy: Path) -> None:
    for code in ("sw", "jv"):
        (toy / "instruct" / f"{code}.jsonl").write_text("broken")
    make_plan(toy, languages="T5-T3")
    make_plan(toy, languages="all", english_share=1.0)
    with pytest.raises(InputError, match=r"sw\.jsonl"):
        make_plan(toy, languages="all")


def test_order_of_the_file_does_not_matter(toy: Path) -> None:
    before = [(entry.id, entry.language) for entry in make_plan(toy, languages="all").order]
    for path in (toy / "instruct").glob("*.jsonl"):
        path.write_text("\n".join(reversed(path.read_text().splitlines())))
    plan = make_plan(toy, languages="all")
    assert [(entry.id, entry.language) for entry in plan.order] == before
    assert all(plan.sample(entry).id == entry.id for entry in plan.order)


def test_json_and_json_lines_give_the_same_plan(tmp_path: Path) -> None:
    plans = [
        make_plan(make_corpus(tmp_path / suffix, LANGUAGES, suffix=suffix), english_share=0.3)
        for suffix in ("json", "jsonl")
    ]
    one, two = ([(entry.id, entry.language, plan.sample(entry).turns) for entry in plan.order] for plan in plans)
    assert one == two


def test_hash_covers_what_is_trained_on(toy: Path) -> None:
    first = make_plan(toy, max_text_tokens=16)
    assert make_plan(toy, batch_samples=11).hash != first.hash
    assert make_plan(toy, epochs=2).hash != first.hash
    assert make_plan(toy, max_text_tokens=8).hash != first.hash
    change_row(toy / "instruct" / "en.jsonl", 0, label=["other", "words"])
    assert make_plan(toy, max_text_tokens=16).hash != first.hash


def test_whole_turns_are_cut_and_counted_by_language(tmp_path: Path) -> None:
    """German speaks three times as many words: only German is cut, and the ledger says so."""
    folder = make_corpus(tmp_path, ("en", "de"), rows=40, turns=3)
    long = [train_row(n, "de", turns=3) for n in range(40)]
    for row in long:
        row["label"] = [f"{answer} {answer} {answer}" for answer in row["label"]]
    write_rows(folder / "instruct" / "de.jsonl", long)
    plan = make_plan(folder, max_text_tokens=30)  # a turn: 5 + 3 words in English, 5 + 9 in German
    german = [entry for entry in plan.order if entry.language == "de"]
    assert len(german) == 20
    assert {len(plan.sample(entry).turns) for entry in german} == {2}
    assert {len(plan.sample(entry).turns) for entry in plan.order if entry.language == "en"} == {3}
    assert all(words(plan.sample(entry))[0] <= 30 for entry in plan.order)
    cuts = plan.ledger.rows()
    assert {row["language"] for row in cuts} == {"de"} and {row["source"] for row in cuts} == {"even", "odd"}
    assert (sum(row["samples"] for row in cuts), sum(row["turns"] for row in cuts)) == (20, 20)
    assert sum(row["cut_turns"] for row in plan.summary()["mix"]) == 20
    assert not make_plan(folder, max_text_tokens=100).ledger.rows()


def test_cuts_count_as_often_as_their_samples_are_seen(tmp_path: Path) -> None:
    folder = make_corpus(tmp_path, ("en",), rows=8, turns=3)  # a turn: 5 + 3 words, so that one turn of each is cut
    plan = make_plan(folder, max_text_tokens=20, epochs=2.5)
    mix = plan.summary()["mix"]
    for source in ("even", "odd"):
        seen = sum(plan.sample(entry).source == source for entry in plan.order)
        (row,) = [row for row in mix if row["source"] == source]
        assert (row["samples"], row["cut_samples"], row["cut_turns"]) == (seen, seen, seen)
    assert sum(row["cut_turns"] for row in mix) == 20
    assert sum(row["turns"] for row in plan.ledger.rows()) == 8


def test_images_of_dropped_turns_go_with_them(tmp_path: Path) -> None:
    folder = make_corpus(tmp_path, ("en",), rows=1)
    turns = ["<image_placeholder> one two three", "four five six <image_placeholder>"]
    change_row(folder / "instruct" / "en.jsonl", 0, context=turns, image_id=["train/0.png", "train/1.png"])
    plan = make_plan(folder, max_text_tokens=8, epochs=3)
    sample = plan.sample(plan.order[0])
    assert sample.images == ("train/0.png",) and len(sample.turns) == 1
    assert [path.name for path in plan.image_paths(plan.order[0])] == ["0.png"]
    assert [row["images"] for row in plan.ledger.rows()] == [1]
    assert plan.counts["images"] == 3, "one picture of two is left, and seen three times"


def test_a_single_turn_that_does_not_fit_is_an_error(tmp_path: Path) -> None:
    folder = make_corpus(tmp_path, ("en",), rows=4)
    change_row(folder / "instruct" / "en.jsonl", 2, context=["word " * 20, "b"])
    with pytest.raises(
        InputError, match=r"en\.jsonl, row 2 \(line 3\), field 'context': .* 23 text tokens.*max_text_tokens=8"
    ):
        make_plan(folder, max_text_tokens=8)


def test_counts_and_summary(toy: Path, reading: Path) -> None:
    plan = make_plan(toy, reading, epochs=1.5, english_share=0.25)
    samples = [plan.sample(entry) for entry in plan.order]
    assert plan.counts == {
        "samples": 123,
        "images": 123,
        "text_tokens": sum(words(sample)[0] for sample in samples),
        "supervised_tokens": sum(words(sample)[1] for sample in samples),
    }
    summary = json.loads(json.dumps(plan.summary()))
    assert summary["hash"] == plan.hash and summary["english_share"] == {"toy/instruct": 0.25}
    count = Counter(sample.language for sample in samples)
    assert {code: total["samples"] for code, total in summary["languages"].items()} == count
    sources = Counter((s.corpus, s.language, s.source) for s in samples)
    assert {(row["corpus"], row["language"], row["source"]): row["samples"] for row in summary["mix"]} == sources


def test_table(toy: Path, reading: Path) -> None:
    text = "\n".join(make_plan(toy, reading, english_share=0.25).table())
    translated, stays = text.split("corpora that stay in their language: reading/instruct")
    assert "translatable corpora: toy/instruct" in translated
    row = next(line.split() for line in translated.splitlines() if line.split()[:1] == ["en"])
    assert row[:3] == ["en", "16", "25.00%"]
    assert ["T5", "9", "50.00%"] in [line.split()[:3] for line in stays.splitlines()]
    assert "cut: nothing" in text
    assert "not measured" in make_plan(toy, measure=None).table()[-1]


def test_a_large_corpus_is_planned_quickly(tmp_path: Path) -> None:
    rows = [{"context": f"question {number}", "label": "an answer", "image_id": ""} for number in range(20_000)]
    path = write_rows(tmp_path / "large.json", rows)
    start = time.process_time()
    plan = make_plan(path, measure=None, uses=[{"path": str(path), "split": "train"}])
    assert len(plan.order) == 20_000 and time.process_time() - start < 5


def test_long_work_on_data_says_how_far_it_is(
    toy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_plan(toy)
    assert capsys.readouterr().err == "", "what takes no time"
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    make_plan(toy)
    told = capsys.readouterr().err
    assert "instruct: counting tokens: 64 of 64 samples" in told
    monkeypatch.setattr(progress, "QUIET_SECONDS", 0.0)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    make_plan(toy)
    drawn = capsys.readouterr().err
    assert "\r" in drawn and drawn.endswith("\r\x1b[K"), "a line that is wiped at the end"
    monkeypatch.setenv("RANK", "1")
    make_plan(toy)
    assert capsys.readouterr().err == "", "one of several processes speaks"
