"""The corpora of the pivot studies: parallel text, and dialogues whose origin and noise are known."""

from __future__ import annotations

from pathlib import Path

import pytest

from lvlm.cli import main
from lvlm.data.corpus import Corpus, open_corpus
from lvlm.data.pool import gather
from lvlm.data.worlds.folder import note_of
from lvlm.data.worlds.lexicon import load_lexicon
from lvlm.data.worlds.origins_writer import ERRORS, MISMATCHED, _scene, split_of, write_origins, write_sentences
from lvlm.data.worlds.writer import write_shapes
from lvlm.errors import InputError
from lvlm.settings import MixConfig

IMAGES = 40


@pytest.fixture(scope="module")
def origins(tmp_path_factory: pytest.TempPathFactory, monkeypatch_module: pytest.MonkeyPatch) -> Corpus:
    from lvlm.data.worlds import origins_writer

    for name, size in (("native_images", IMAGES), ("own_images", IMAGES)):
        monkeypatch_module.setitem(origins_writer.OWN_SIZES["origins"], name, size)
    folder = tmp_path_factory.mktemp("origins") / "origins"
    return open_corpus(write_origins(folder, seed=0, train=IMAGES, languages=["en", "sw"]))


@pytest.fixture(scope="module")
def monkeypatch_module():
    with pytest.MonkeyPatch.context() as patch:
        yield patch


def words(corpus: Corpus, split: str) -> list[str]:
    return [word for row in corpus.samples(split, "sw") for turn in row.turns for text in turn for word in text.split()]


def test_translations_have_wrong_words_at_the_declared_rate_and_those_of_a_lower_one(origins: Corpus) -> None:
    right, before = words(origins, "instruct"), set[int]()
    for percent in ERRORS:
        found = words(origins, split_of("errors", percent))
        wrong = {place for place, (one, other) in enumerate(zip(right, found, strict=True)) if one != other}
        assert len(wrong) / len(right) == pytest.approx(percent / 100, abs=0.05)  # a word may stand for itself
        assert before <= wrong
        before = wrong


def test_native_dialogues_speak_of_another_picture_at_the_declared_rate_and_no_picture_is_shared(
    origins: Corpus,
) -> None:
    right = {row.id: row for row in origins.samples("native", "sw")}
    before = set[str]()
    for percent in MISMATCHED:
        rows = origins.samples(split_of("native", percent), "sw")
        other = {row.id for row in rows if row.turns != right[row.id].turns}
        assert len(other) / len(rows) == pytest.approx(percent / 100, abs=0.2)
        assert before <= other and all(row.images == right[row.id].images for row in rows)
        before = other
    shown = {image for row in origins.samples("instruct", "sw") for image in row.images}
    assert not shown & {image for row in right.values() for image in row.images}


def test_captions_that_a_language_has_by_itself_share_no_picture_and_are_wrong_at_the_declared_rate(
    origins: Corpus,
) -> None:
    own = {code: origins.samples("found", code) for code in ("en", "sw")}
    pictures = [{image for row in rows for image in row.images} for rows in own.values()]
    others = {image for split in ("captions", "native") for row in origins.samples(split, "sw") for image in row.images}
    assert [len(rows) for rows in own.values()] == [IMAGES, IMAGES] and not pictures[0] & pictures[1]
    assert not others & (pictures[0] | pictures[1])
    before = set[str]()
    for percent in MISMATCHED:
        rows = origins.samples(split_of("found", percent), "sw")
        wrong = {row.id for row, right in zip(rows, own["sw"], strict=True) if row.turns != right.turns}
        assert len(wrong) / IMAGES == pytest.approx(percent / 100, abs=0.2) and before <= wrong
        before = wrong


def test_a_true_caption_tells_of_its_own_picture_in_every_language(origins: Corpus) -> None:
    lexicon, scenes = load_lexicon("sw"), [_scene(0, "train", index) for index in range(IMAGES)]
    told = {row.id: row.turns[0][1] for row in origins.samples("captions", "sw")}
    assert told == {f"origins-train-{index:05d}": lexicon.caption(scene) for index, scene in enumerate(scenes)}
    own = [_scene(0, "own", index) for index in range(1, 2 * IMAGES, 2)]  # every other picture is the second language's
    assert [row.turns[0][1] for row in origins.samples("found", "sw")] == [lexicon.caption(scene) for scene in own]


def test_translated_pairs_are_of_the_very_pictures_that_the_pivot_speaks_of(origins: Corpus) -> None:
    path = str(origins.folder)
    uses = [
        {"path": path, "split": "instruct", "languages": ["en"], "samples_per_language": 20},
        {"path": path, "split": "errors_25", "languages": ["sw"], "samples_per_language": 8},
    ]
    pool, _ = gather(MixConfig(corpora=uses), {path: origins})
    entries = [pool.entry(number) for number in range(len(pool))]
    pivot, translated = ({entry.id for entry in entries if entry.language == code} for code in ("en", "sw"))
    assert len(pivot) == 20 and len(translated) == 8 and translated < pivot


def test_sentences_are_parallel_and_have_no_image(tmp_path: Path) -> None:
    corpus = open_corpus(write_sentences(tmp_path / "s", seed=0, train=12, test=5, languages=["en", "ka"]))
    assert corpus.translatable and corpus.ids("train", "en") == corpus.ids("train", "ka")
    for code in ("en", "ka"):
        assert all(not row.images and len(row.turns) == 3 for row in corpus.samples("train", code))
        assert all(not item.images and item.task == "caption" for item in corpus.items("test", code))
    one, other = (corpus.samples("train", code)[0].turns for code in ("en", "ka"))
    assert one != other
    again = open_corpus(write_sentences(tmp_path / "t", seed=0, train=4, test=5, languages=["ka"]))
    assert again.samples("train", "ka") == corpus.samples("train", "ka")[:4]


def test_sizes_that_a_corpus_has_not_are_errors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="for training alone"):
        write_origins(tmp_path / "o", seed=0, test=3)
    with pytest.raises(InputError, match="no split to tune on"):
        write_sentences(tmp_path / "s", seed=0, tune=3)


def test_translations_of_the_shapes_have_mistakes_where_they_are_trained_on_and_english_has_none(
    tmp_path: Path,
) -> None:
    sizes = {"train_images": 60, "tune_images": 6, "test_images": 6, "languages": ["en", "sw"]}
    right = open_corpus(write_shapes(tmp_path / "right", seed=0, **sizes))
    poor = open_corpus(write_shapes(tmp_path / "poor", seed=0, mistakes=0.25, **sizes))
    for split in ("captions", "instruct"):
        assert poor.samples(split, "en") == right.samples(split, "en")
        one, other = words(right, split), words(poor, split)
        wrong = sum(a != b for a, b in zip(one, other, strict=True))
        assert wrong / len(one) == pytest.approx(0.25, abs=0.05)
    for code in ("en", "sw"):
        assert poor.items("test", code) == right.items("test", code)
    few = write_shapes(tmp_path / "few", seed=0, mistakes=0.004, **sizes)
    assert "mistakes in percent 0.4." in note_of(few) and "mistakes in percent 25." in note_of(poor.folder)


@pytest.mark.parametrize(("name", "share", "said"), [("shapes", "1.5", "from 0 to 1"), ("reading", "0.5", "no use")])
def test_mistakes_are_a_share_of_the_words_of_shapes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, share: str, said: str
) -> None:
    assert main(["data", name, str(tmp_path / "w"), "--mistakes", share]) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "w").exists()
