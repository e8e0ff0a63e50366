"""The emoji world: whose names, which concepts, what is asked about them, and how they are drawn."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lvlm import cli
from lvlm.data.corpus import open_corpus
from lvlm.data.worlds import cldr, emoji_pictures, emoji_writer
from lvlm.data.worlds.cldr import open_names
from lvlm.data.worlds.emoji import Concepts, emoji_id, gaps, load_concepts, pool_of
from lvlm.data.worlds.emoji_items import LETTERS
from lvlm.data.worlds.emoji_pictures import AUGMENTATIONS, draw_look, open_pictures, scene, single
from lvlm.data.worlds.emoji_writer import CONCEPTS_FILE, REFUSED_FILE, is_written, read_concepts, write_emoji
from lvlm.data.worlds.fonts import font_path
from lvlm.errors import InputError
from lvlm.evaluate.metrics import AttributeReader
from lvlm.evaluate.tasks import Scorer
from lvlm.languages import TIERS, language
from tests.emoji_sources import EMOJI, LANGUAGES, keywords_of, name_of, write_cldr, write_pictures

debian = [
    pytest.mark.system,
    pytest.mark.skipif(not cldr.DEBIAN_FOLDER.exists(), reason="unicode-cldr-core is not installed"),
    pytest.mark.skipif(not emoji_pictures.DEBIAN_FONT.exists(), reason="fonts-noto-color-emoji is not installed"),
]
IDS = tuple(map(emoji_id, EMOJI))
Row = dict[str, Any]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("sources")
    return {"names": write_cldr(folder), "pictures": write_pictures(folder / "png")}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, sources: dict[str, Path]) -> Path:
    folder = tmp_path_factory.mktemp("world") / "emoji"
    return write_emoji(folder, seed=0, train_images=64, tune_images=8, test_images=32, **sources)


def rows_of(folder: Path, split: str, code: str) -> list[Row]:
    return [json.loads(line) for line in (folder / split / f"{code}.jsonl").read_text(encoding="utf-8").splitlines()]


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def answer_of(row: Row) -> str:
    return str(row.get("text_label") or row["label"][0])


def options_of(row: Row) -> list[str]:
    """The four names of a choice, in order."""
    lines = row["context"][0].splitlines()
    assert [line[:3] for line in lines[2:6]] == [f"{letter}. " for letter in LETTERS]
    return [line[3:] for line in lines[2:6]]


# --- names


TABLE = {
    "en": "elephant", "ar": "فيل", "de": "Elefant", "ja": "ゾウ", "zh": "大象", "ko": "코끼리", "hi": "हाथी",
    "ru": "слон", "el": "ελέφαντας", "ka": "სპილო", "th": "ช้าง", "am": "ዝሆን", "he": "פיל", "ta": "யானை",
    "sw": "ndovu", "te": "ఏనుగు", "my": "ဆင်", "cy": "eliffant", "qu": "elefante", "tl": "elepante", "sr": "слон",
    "arz": "فيل",
}  # fmt: skip


class TestTheNamesOfDebiansCldr:
    pytestmark = debian

    @pytest.mark.parametrize("code", TABLE)
    def test_an_elephant_is_what_people_call_it(self, code: str) -> None:
        names = open_names().annotations(code).names
        assert names["🐘"] == TABLE[code]

    def test_there_are_names_in_eighty_of_the_hundred_languages_and_one_to_borrow(self) -> None:
        codes = open_names().languages()
        tiers = Counter(language(code).tier for code in codes)
        assert (tiers["en"] + tiers["T5"], *(tiers[tier] for tier in TIERS[1:])) == (7, 18, 25, 14, 16)
        assert "arz" not in codes
        borrowed = open_names().annotations("arz").names
        assert borrowed == open_names().annotations("ar").names

    def test_chinese_follows_the_script_of_our_table(self) -> None:
        shown = open_names().annotations("zh").names["🐶"]
        assert shown == {"Hant": "狗頭", "Hans": "狗脸"}[language("zh").script]

    def test_all_languages_together_leave_hundreds_of_concepts_and_every_pair_of_names_differs(self) -> None:
        concepts = load_concepts(open_names(), pictures=open_pictures(), number=200)
        assert len(concepts.languages) == 80
        for code in concepts.languages:
            assert len({name.casefold() for name in concepts.names[code].values()}) == 200
        said = set(concepts.names["en"].values())
        assert "tiger" in said and not {"one o’clock", "twelve o’clock"} & said, "a clock that is turned tells another"
        assert len(load_concepts(open_names(), pictures=open_pictures(), languages=["all"]).languages) > 100
        code, lacks, alone = gaps(concepts)[0]
        assert (code, lacks > alone > 300) == ("ti", True)

    def test_the_colour_font_draws_every_concept_in_colour(self) -> None:
        pictures = open_pictures()
        for concept in load_concepts(open_names(), pictures=pictures).ids[::8]:
            shown = np.asarray(pictures.picture(concept), dtype=np.int32)
            assert max(shown.shape[:2]) == emoji_pictures.PICTURE
            opaque = shown[shown[..., 3] > 200][:, :3]
            assert len(opaque) > 500 and len(np.unique(opaque, axis=0)) > 20


def test_the_package_emoji_serves_its_languages_without_cldr(tmp_path: Path) -> None:
    source = open_names("package")
    assert {"en", "de", "ar", "ja"} <= set(source.languages()) and len(source.languages()) == 14
    assert source.annotations("de").names["🐘"] == "elefant", "the package has names in lower case"
    with pytest.raises(InputError, match=r"no names in 'sw' \(Swahili\); it has: en"):
        source.annotations("sw")
    everything = type("Everything", (), {"__contains__": lambda self, concept: True})()
    concepts = load_concepts(source, pictures=everything, languages=["en", "de"])
    assert len(concepts.ids) == 96 and set(concepts.names) == {"en", "de"}


def test_names_are_one_line_of_composed_characters(tmp_path: Path) -> None:
    decomposed = {"de": {EMOJI[0]: "  Ko\u0308nig \n und  so "}}
    folder = write_cldr(tmp_path, languages=["en", "de"], renamed=decomposed)
    assert open_names(folder).annotations("de").names[EMOJI[0]] == "König und so"
    assert open_names(folder.parent).title == "Unicode CLDR 99", "the folder above is found as well"


def test_a_language_with_few_names_takes_part_only_where_it_is_asked_for(tmp_path: Path) -> None:
    folder = write_cldr(tmp_path, languages=["en", "de", "sw"], lacking={"sw": [chr(0xF0000 + n) for n in range(500)]})
    assert open_names(folder).languages() == ("en", "de")
    assert len(open_names(folder).annotations("sw").names) == len(EMOJI)


# --- concepts


def load(
    tmp_path: Path, *, codes: tuple[str, ...] | None = None, number: int | None = None, **changes: Any
) -> Concepts:
    names = open_names(write_cldr(tmp_path / "cldr", **changes))
    return load_concepts(names, pictures=set(IDS), languages=codes, number=number)


def test_a_concept_that_one_language_lacks_is_refused_by_name_and_comes_back_without_it(tmp_path: Path) -> None:
    lacking = {"sw": EMOJI[3:5], "jv": EMOJI[4:5]}
    concepts = load(tmp_path, lacking=lacking)
    assert set(concepts.ids) == set(IDS) - set(IDS[3:5])
    assert {entry.concept: entry.languages for entry in concepts.refused} == {IDS[3]: ("sw",), IDS[4]: ("sw", "jv")}
    assert gaps(concepts) == [("sw", 2, 1), ("jv", 1, 0)]
    without = load(tmp_path / "again", lacking=lacking, codes=("en", "de", "jv"))
    assert set(without.ids) == set(IDS) - {IDS[4]}


@pytest.mark.parametrize("name", [name_of(EMOJI[7], "ru").upper() + "!", "?!"])
def test_a_name_that_is_not_a_concepts_own_or_says_nothing_is_refused(tmp_path: Path, name: str) -> None:
    concepts = load(tmp_path, renamed={"ru": {EMOJI[2]: name}})
    refused = {entry.concept for entry in concepts.refused}
    assert refused == ({IDS[2], IDS[7]} if "!" in name[1:] and name != "?!" else {IDS[2]})
    assert {entry.languages for entry in concepts.refused} == {("ru",)}


def test_names_that_differ_in_marks_alone_are_told_apart_in_a_caption(tmp_path: Path) -> None:
    concepts = load(tmp_path, renamed={"de": {EMOJI[0]: "เสือ", EMOJI[1]: "เสื้อ"}})
    assert not concepts.refused
    reader = AttributeReader.of(concepts.attributes("de"))
    assert reader.read("เสื้อ, เสือ, เสื้อ") == {f"emoji:{IDS[0]}": 1, f"emoji:{IDS[1]}": 2}


def test_the_pool_of_a_concept_depends_on_it_alone(tmp_path: Path) -> None:
    few = load(tmp_path / "few", codes=("en", "de"), number=30)
    many = load(tmp_path / "many")
    assert set(few.ids) < set(many.ids)
    for pool in ("train", "tune", "test"):
        assert set(few.of(pool)) == {concept for concept in few.ids if concept in many.of(pool)}
    shares = Counter(pool_of(f"{number:x}") for number in range(20_000))
    assert [round(shares[pool] / 20_000, 2) for pool in ("train", "tune", "test")] == [0.7, 0.1, 0.2]


def test_related_concepts_share_a_keyword_and_those_that_share_most_come_first(tmp_path: Path) -> None:
    def keywords(emoji: str, code: str) -> tuple[str, ...]:
        closest = ("shared once more",) if emoji in EMOJI[:2] else ()
        return (*keywords_of(emoji, code), *closest)

    concepts = load(tmp_path, keywords=keywords)
    assert concepts.related[IDS[0]][0] == IDS[1]
    assert set(concepts.related[IDS[0]]) == set(IDS[1:6])
    assert all(concept not in others for concept, others in concepts.related.items())


# --- items


def by_name(folder: Path, code: str) -> dict[str, str]:
    return {name: concept for concept, name in read_concepts(folder).names[code].items()}


@pytest.mark.parametrize("split", ["instruct", "tune", "test"])
def test_choices_are_four_names_that_share_keywords_with_the_right_one(world: Path, split: str) -> None:
    related = read_concepts(world).related
    rows = [row for row in rows_of(world, split, "sw") if row["task"] == "choice"]
    assert rows
    for row in rows:
        concepts = [by_name(world, "sw")[name] for name in options_of(row)]
        right = concepts.pop(LETTERS.index(answer_of(row)))
        assert right not in concepts and len(set(concepts)) == 3
        assert set(concepts) <= set(related[right])


def test_the_right_name_of_a_choice_is_that_of_its_picture(world: Path) -> None:
    rows = {row["id"]: row for row in rows_of(world, "test", "de")}
    for name, row in rows.items():
        if row["task"] == "choice":
            named = rows[name.replace("-choice", "-naming")]
            assert options_of(row)[LETTERS.index(answer_of(row))] == answer_of(named)
            assert row["image_id"] == named["image_id"]


def test_which_of_two_pictures_asks_for_the_one_that_is_named(world: Path) -> None:
    rows = {row["id"]: row for row in rows_of(world, "test", "en")}
    pairs = [row for row in rows.values() if row["task"] == "pair"]
    assert pairs
    for row in pairs:
        named = rows[row["id"].replace("-pair", "-naming")]
        assert len(set(row["image_id"])) == 2
        assert row["image_id"][int(answer_of(row)) - 1] == named["image_id"][0]
        assert f'"{answer_of(named)}"' in row["context"][0]


@pytest.mark.parametrize(
    ("split", "task", "places"), [("instruct", "choice", 4), ("test", "choice", 4), ("test", "pair", 2)]
)
def test_right_answers_stand_everywhere_equally_often(world: Path, split: str, task: str, places: int) -> None:
    counts = Counter(answer_of(row) for row in rows_of(world, split, "en") if row["task"] == task)
    assert len(counts) == places and max(counts.values()) - min(counts.values()) <= 1


def test_languages_differ_in_names_alone(world: Path) -> None:
    names = read_concepts(world).names
    for split in ("captions", "instruct", "tune", "test"):
        for english, other in zip(rows_of(world, split, "en"), rows_of(world, split, "jv"), strict=True):
            assert {**english, "context": 0, "label": 0, "text_label": 0, "language": 0} == {
                **other, "context": 0, "label": 0, "text_label": 0, "language": 0,
            }  # fmt: skip
            text = "\n".join([*english["context"], answer_of(english)]).replace(" in English", " in Javanese")
            for concept, name in names["en"].items():
                text = text.replace(name, names["jv"][concept])
            text = text.replace("(in English)", "(in Javanese)")
            assert text == "\n".join([*other["context"], answer_of(other)])


def test_training_neither_shows_nor_names_what_is_held_out(world: Path) -> None:
    concepts = read_concepts(world)
    trained = "\n".join(
        "\n".join([*row["context"], *row["label"]])
        for split in ("captions", "instruct")
        for row in rows_of(world, split, "en")
    )
    for concept in concepts.of("tune", "test"):
        assert concepts.names["en"][concept] not in trained
    for split, pool in (("tune", "tune"), ("test", "test")):
        for row in rows_of(world, split, "en"):
            if row["task"] == "naming":
                shown = by_name(world, "en")[answer_of(row)]
                assert pool_of(shown) == (pool if row["source"].startswith("unseen") else "train")


def test_what_is_tuned_on_is_never_reported_on(world: Path) -> None:
    concepts = read_concepts(world)
    for split, other in (("tune", "test"), ("test", "tune")):
        said = "\n".join("\n".join([*row["context"], answer_of(row)]) for row in rows_of(world, split, "en"))
        assert not [concept for concept in concepts.of(other) if concepts.names["en"][concept] in said]


def test_test_items_cover_seen_and_unseen_concepts_under_every_augmentation(world: Path) -> None:
    sources = Counter(row["source"] for row in rows_of(world, "test", "en") if row["task"] == "naming")
    assert set(sources) == {
        f"{seen}{far}" for seen in ("seen", "unseen") for far in ("", *(f":{name}" for name in AUGMENTATIONS))
    }
    assert sources["seen"] == sources["unseen"] == 8 and sources["seen:scale"] == 2


def test_the_corpus_opens_in_every_language_and_gold_answers_score_full(world: Path) -> None:
    corpus = open_corpus(world)
    assert corpus.languages == LANGUAGES and corpus.translatable
    for split in corpus.splits:
        corpus.check(split, images=True)
    scorer = Scorer(corpus, "test")
    items = [item for code in ("en", "sw") for item in corpus.items("test", code)]
    assert {item.task for item in items} == {"naming", "choice", "pair", "caption"}
    assert {scorer.score(item, item.answers[0]) for item in items} == {100.0}


def test_the_ledger_lists_what_was_refused_with_the_languages_to_blame(
    tmp_path: Path, sources: dict[str, Path]
) -> None:
    names = write_cldr(tmp_path / "cldr", lacking={"sw": EMOJI[:1], "jv": EMOJI[:1]})
    folder = write_emoji(
        tmp_path / "emoji", seed=0, train_images=1, tune_images=1, test_images=1, names=names,
        pictures=sources["pictures"],
    )  # fmt: skip
    with open(folder / REFUSED_FILE, encoding="utf-8", newline="") as file:
        (row,) = csv.DictReader(file)
    assert row == {
        "concept": IDS[0], "english": name_of(EMOJI[0], "en"), "reason": "no name", "languages": "sw jv",
    }  # fmt: skip


def test_the_same_seed_writes_the_same_bytes_and_more_images_leave_the_earlier_ones(
    tmp_path: Path, sources: dict[str, Path]
) -> None:
    def write(name: str, *, seed: int = 0, images: int = 4) -> dict[str, bytes]:
        folder = write_emoji(
            tmp_path / name, seed=seed, train_images=images, tune_images=1, test_images=2, languages=["en", "sw"],
            **sources,
        )  # fmt: skip
        return files_of(folder)

    first, other, longer = write("first"), write("other", seed=1), write("longer", images=6)
    assert first == write("again")
    assert first["instruct/sw.jsonl"] != other["instruct/sw.jsonl"]
    pictures = [name for name in first if name.startswith("images/")]
    assert all(first[name] == longer[name] for name in pictures)
    assert longer["instruct/sw.jsonl"].startswith(first["instruct/sw.jsonl"])


# --- pictures


def test_far_looks_lie_where_training_never_does() -> None:
    def looks(far: Any) -> dict[str, np.ndarray]:
        drawn = [draw_look(np.random.default_rng(seed), far=far) for seed in range(300)]
        return {
            "scale": np.array([look.scale for look in drawn]),
            "rotation": np.abs([look.degrees for look in drawn]),
            "position": np.abs([look.place for look in drawn]).min(axis=1),
        }

    near = looks(None)
    assert looks("scale")["scale"].max() < near["scale"].min()
    assert looks("rotation")["rotation"].min() > near["rotation"].max()
    assert (
        looks("position")["position"].min()
        > np.abs([draw_look(np.random.default_rng(s)).place for s in range(300)]).max()
    )
    assert looks("scale")["rotation"].max() <= near["rotation"].max() + 1, "the other sides stay as in training"


def test_a_picture_stays_inside_its_image_and_a_scene_reads_row_by_row() -> None:
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)]
    discs = [Image.new("RGBA", (128, 90), (*colour, 255)) for colour in colours]
    for far in (None, *AUGMENTATIONS):
        for seed in range(10):
            shown = np.asarray(
                single(Image.new("RGBA", (128, 90), (255, 0, 255, 255)), np.random.default_rng(seed), far=far)
            )
            mask = (shown == (255, 0, 255)).all(-1)
            edge = mask[0].sum() + mask[-1].sum() + mask[:, 0].sum() + mask[:, -1].sum()
            assert mask.sum() > 300 and edge < 96, (far, seed)
    for count in (2, 3, 4):
        shown = np.asarray(scene(discs[:count], np.random.default_rng(count)))
        middles = [np.argwhere((shown == colour).all(-1)).mean(0) for colour in colours[:count]]
        assert middles[0][1] < middles[1][1]
        if count > 2:
            assert max(middles[0][0], middles[1][0]) < middles[2][0]
        if count == 4:
            assert middles[2][1] < middles[3][1]


# --- bad input


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"names": "nowhere"}, "CLDR is not at nowhere.*unicode-cldr-core.*cldr-common.*--names DIR.*--names package"),
        ({"pictures": "nowhere.ttf"}, "no pictures of emoji at nowhere.ttf.*fonts-noto-color-emoji.*--pictures PATH"),
        ({"pictures": str(font_path())}, "DejaVuSans.ttf cannot be used for pictures.*no colours"),
        ({"languages": ["en", "fr"]}, r"no names of emoji in 'fr' \(French\)"),
        ({"languages": ["xx"]}, "Unknown language code 'xx'"),
        ({"languages": []}, "languages is empty"),
        ({"concepts": 61}, "61 concepts are asked for; 60 emoji"),
        ({"concepts": 5}, "are too few"),
        ({"concepts": 0}, "0 concepts are asked for, which are too few"),
        ({"concepts": -3}, "-3 concepts are asked for, which are too few"),
        ({"seed": -1}, "seed is -1"),
        ({"test_images": 0}, "test_images is 0"),
    ],
)  # fmt: skip
def test_bad_input_is_one_clear_paragraph_and_leaves_nothing(
    tmp_path: Path, sources: dict[str, Path], changes: dict[str, Any], message: str
) -> None:
    given = {"seed": 0, "train_images": 1, "tune_images": 1, "test_images": 1, **sources, **changes}
    with pytest.raises(InputError, match=f"(?s){message}"):
        write_emoji(tmp_path / "emoji", **given)
    assert not list(tmp_path.iterdir())


def test_a_broken_file_of_cldr_and_a_folder_without_pictures_are_named(tmp_path: Path) -> None:
    folder = write_cldr(tmp_path / "cldr")
    (folder / "annotations" / "sw.xml").write_text("<ldml>")
    with pytest.raises(InputError, match=r"sw\.xml is no annotation file"):
        open_names(folder).languages()
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no PNG files named by code points"):
        open_pictures(tmp_path / "empty")
    with pytest.raises(InputError, match=f"{CONCEPTS_FILE} cannot be read.*lvlm data emoji"):
        read_concepts(tmp_path)


def test_a_world_of_other_languages_is_not_taken_for_the_own_one(
    tmp_path: Path, sources: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(emoji_writer, "OWN_SIZES", {"train_images": 1, "tune_images": 1, "test_images": 1})
    monkeypatch.setattr(emoji_writer, "OWN_NUMBER", len(EMOJI))
    monkeypatch.setattr(cldr, "DEBIAN_FOLDER", sources["names"])
    own = write_emoji(tmp_path / "own", seed=0, **sources)
    few = write_emoji(tmp_path / "few", seed=0, languages=["T5", "sw"], **sources)
    assert is_written(own) and not is_written(few) and open_corpus(few).languages == ("en", "de", "sw")
    monkeypatch.setattr(cldr, "DEBIAN_FOLDER", tmp_path / "absent")
    assert is_written(own), "where there is no CLDR, nothing could be written in its place"


def test_the_command_writes_the_world_and_refuses_its_options_elsewhere(
    tmp_path: Path, sources: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    places = [f"--{name}={path}" for name, path in sources.items()]
    asked = ["data", "emoji", str(tmp_path / "emoji"), "--train", "2", "--concepts", "40", "--languages", "en", "jv"]
    assert cli.main([*asked, *places]) == 0
    assert len(read_concepts(tmp_path / "emoji").ids) == 40 and len(rows_of(tmp_path / "emoji", "instruct", "jv")) == 2
    assert cli.main(["data", "shapes", str(tmp_path / "shapes"), *places]) == 2
    assert "no use for --names and --pictures" in capsys.readouterr().err
