"""The built-in world's scenes, lexicons and questions: what is said is complete, readable back and true.
Run by `make test`.
"""

from collections import Counter
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import yaml
from fontTools.ttLib import TTFont

from lvlm.data.worlds.lexicon import FOLDER, lexicon_codes, load_lexicon, read_lexicon
from lvlm.data.worlds.questions import KINDS, Question, questions_for
from lvlm.data.worlds.scenes import (
    COLOURS,
    COUNTS,
    HELD_OUT,
    PAIRS,
    PLACES,
    SHAPES,
    SIZES,
    Group,
    Scene,
    sample_scene,
)
from lvlm.errors import InputError
from lvlm.evaluate.metrics import AttributeReader, words
from lvlm.languages import table

CODES = lexicon_codes()
VALUES: dict[str, tuple[object, ...]] = {
    "colour": COLOURS,
    "shape": SHAPES,
    "size": SIZES,
    "place": PLACES,
    "count": COUNTS,
    "exists": ("yes", "no"),
}
MOST = {1: 5, 2: 11, 3: 16}  # questions that every scene of so many groups has
every_language = pytest.mark.parametrize("code", CODES)


def scenes(n: int, *, seed: int = 0, groups: int | None = None, pairs: str = "training") -> list[Scene]:
    rng = np.random.default_rng(seed)
    return [sample_scene(rng, groups=groups, pairs=pairs) for _ in range(n)]  # type: ignore[arg-type]


def every_group() -> list[Group]:
    return [
        Group(shape, colour, size, place, count)
        for shape in SHAPES
        for colour in COLOURS
        for size in SIZES
        for place in PLACES
        for count in COUNTS
    ]


# --- scenes -----------------------------------------------------------------------------------------------------------


def test_held_out_pairs_leave_every_colour_and_shape_frequent() -> None:
    assert set(PAIRS) >= HELD_OUT and len(HELD_OUT) == 10
    assert Counter(shape for _, shape in HELD_OUT) == Counter(SHAPES)
    colours = Counter(colour for colour, _ in HELD_OUT)
    assert set(colours) == set(COLOURS) and max(colours.values()) <= 2


def test_training_scenes_never_show_or_name_a_held_out_pair() -> None:
    rng = np.random.default_rng(1)
    seen = set()
    for scene in scenes(3000):
        seen |= scene.pairs
        named = {question.pair for question in questions_for(scene, rng, n=MOST[len(scene.groups)])} - {None}
        assert not (scene.pairs | named) & HELD_OUT
    assert seen == set(PAIRS) - HELD_OUT


def test_held_out_scenes_show_one_held_out_pair_and_reach_all_of_them() -> None:
    drawn = scenes(1500, pairs="held_out")
    assert all(scene.groups[0].pair in HELD_OUT and len(scene.pairs & HELD_OUT) == 1 for scene in drawn)
    assert {scene.groups[0].pair for scene in drawn} == HELD_OUT


def test_scenes_follow_their_seed_and_their_declared_frequencies() -> None:
    drawn = scenes(4000)
    assert drawn == scenes(4000) and drawn != scenes(4000, seed=1)
    sizes = Counter(len(scene.groups) for scene in drawn)
    assert [sizes[n] / 4000 for n in (1, 2, 3)] == pytest.approx([0.60, 0.25, 0.15], abs=0.03)
    assert all(len(scene.groups) == 2 for scene in scenes(50, groups=2))
    for name, values in (("size", SIZES), ("place", PLACES), ("count", COUNTS), ("shape", SHAPES)):
        counts = Counter(getattr(group, name) for scene in drawn for group in scene.groups)
        total = sum(counts.values())
        for value in values:
            assert counts[value] / total == pytest.approx(1 / len(values), abs=0.025)


def test_key_ignores_the_order_of_groups_and_nothing_else() -> None:
    one, other = Group("star", "red", "small", "left", 2), Group("ring", "blue", "large", "top", 1)
    assert Scene((one, other)).key == Scene((other, one)).key
    assert len({Scene((group,)).key for group in every_group()}) == len(every_group())


def test_impossible_scenes_are_refused() -> None:
    group = Group("star", "red", "small", "left", 2)
    with pytest.raises(ValueError, match="1 to 3"):
        Scene(())
    with pytest.raises(ValueError, match="place"):
        Scene((group, Group("ring", "red", "small", "left", 1)))
    with pytest.raises(ValueError, match="colour and shape"):
        Scene((group, Group("star", "red", "large", "top", 1)))
    with pytest.raises(ValueError, match="count"):
        Group("star", "red", "small", "left", 5)


# --- captions ---------------------------------------------------------------------------------------------------------


@every_language
def test_attributes_read_off_a_group_are_the_groups(code: str) -> None:
    lexicon = load_lexicon(code)
    reader = AttributeReader.of(lexicon.attributes)
    for group in every_group():
        found = reader.read(lexicon.caption(Scene((group,))))
        assert found == Counter(group.attributes), (group, found)


@every_language
def test_attributes_read_off_a_caption_come_group_by_group(code: str) -> None:
    lexicon = load_lexicon(code)
    reader = AttributeReader.of(lexicon.attributes)
    for scene in scenes(200, groups=3):
        caption = lexicon.caption(scene)
        said: Counter[str] = Counter()
        for number, group in enumerate(scene.groups, start=1):
            said.update(group.attributes)
            begun = lexicon.caption(Scene(scene.groups[:number]))
            assert caption.startswith(begun) and reader.read(begun) == said
        assert reader.read(caption[:1].title() + caption[1:] + ".") == said


def test_the_longest_surface_wins_on_whole_words() -> None:
    reader = AttributeReader.of({"sky": "shape:moon", "sky blue": "colour:blue", "blue": "colour:purple"})
    assert reader.read("Sky BLUE sky; bluer, blue!") == Counter(["colour:blue", "shape:moon", "colour:purple"])
    assert reader.read("") == AttributeReader.of({}).read("blue") == Counter()


@every_language
def test_text_is_clean(code: str) -> None:
    lexicon = load_lexicon(code)
    texts = [lexicon.caption_request, lexicon.read_request, *(lexicon.caption(scene) for scene in scenes(200))]
    for scene in scenes(100):
        for question in questions_for(scene, np.random.default_rng(0), n=5):
            texts += [lexicon.question(question), lexicon.answer(question)]
    for text in texts:
        assert text == " ".join(text.split()) and not set("{}|[]_") & set(text), text


def test_agreement_spot_checks() -> None:
    def phrase(code: str, shape: str, colour: str, size: str, count: int) -> str:
        return load_lexicon(code).noun_phrase(Group(shape, colour, size, "left", count))

    assert phrase("en", "circle", "red", "small", 3) == "small red circles (three)"
    assert phrase("fr", "star", "white", "small", 1) == "une petite étoile blanche"
    assert phrase("de", "square", "blue", "large", 1) == "ein großes blaues Quadrat"
    assert phrase("ru", "heart", "blue", "large", 1) == "большое синее сердце"
    assert phrase("ar", "square", "red", "small", 3) == "مربعات حمراء صغيرة (ثلاثة)"
    assert phrase("ar", "star", "red", "small", 2) == "نجمتان حمراوان صغيرتان (اثنان)"
    assert phrase("he", "ring", "black", "small", 2) == "טבעות שחורות קטנות (שתיים)"
    assert phrase("sw", "arrow", "green", "small", 4) == "mishale midogo ya kijani (nne)"
    assert phrase("is", "heart", "black", "small", 2) == "lítil svört hjörtu (tveir)"
    assert phrase("tr", "square", "blue", "large", 1) == "büyük mavi bir kare"


def test_english_article_follows_the_next_word() -> None:
    ask = load_lexicon("en").question
    assert ask(Question("exists", False, "exists:yes", pair=("orange", "ring"))) == "Is there an orange ring?"
    assert ask(Question("exists", False, "exists:yes", pair=("red", "ring"))) == "Is there a red ring?"


# --- lexicons ---------------------------------------------------------------------------------------------------------


def test_the_sixteen_languages_are_in_the_language_table() -> None:
    assert " ".join(CODES) == "ar de el en eo fi fr he ht is jv ka no ru sw tr"
    assert set(CODES) <= set(table())
    assert {table()[code].tier for code in CODES} == {"en", "T5", "T4", "T3", "T2", "T1"}


@every_language
def test_surfaces_name_one_attribute_and_all_attributes_have_one(code: str) -> None:
    lexicon = load_lexicon(code)
    expected = {f"{kind}:{name}" for kind, names in VALUES.items() for name in names}
    assert set(lexicon.attributes.values()) == expected - {"count:1", "exists:yes", "exists:no"}
    assert AttributeReader.of(lexicon.attributes).by_words, "one attribute behind each surface, or an error"
    assert all(surface == surface.lower() for surface in lexicon.attributes)


@every_language
def test_answers_differ_within_an_attribute(code: str) -> None:
    lexicon = load_lexicon(code)
    for kind, names in VALUES.items():
        answers = [lexicon.answer(Question(kind, False, f"{kind}:{name}")) for name in names]
        assert len({answer.lower() for answer in answers}) == len(names)
        if kind not in ("exists", "count"):
            assert [lexicon.attributes[answer.lower()] for answer in answers] == [f"{kind}:{name}" for name in names]


@every_language
def test_reading_words_are_not_the_worlds_own(code: str) -> None:
    lexicon = load_lexicon(code)
    own = {word for surface in lexicon.attributes for word in words(surface)}
    own |= {lexicon.answer(Question("count", False, "count:1"))}
    assert not own & set(lexicon.words)
    assert len(lexicon.words) >= 60 and len(set(lexicon.words)) == len(lexicon.words)
    assert all(word == word.lower() and word.isalpha() and 3 <= len(word) <= 5 for word in lexicon.words)


@cache
def dejavu_characters() -> frozenset[str]:
    with TTFont(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf") as font:
        return frozenset(map(chr, font.getBestCmap()))


@every_language
def test_dejavu_sans_has_every_character(code: str) -> None:
    text = (FOLDER / f"{code}.yaml").read_text(encoding="utf-8")
    assert not set(text + text.title()) - dejavu_characters() - {"\n"}


def changed(folder: Path, code: str, change: dict[str, object], *, drop: str | None = None) -> Path:
    """A copy of a lexicon with top-level keys replaced or one dropped."""
    content = yaml.load((FOLDER / f"{code}.yaml").read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
    content.update(change)
    if drop is not None:
        del content[drop]
    path = folder / f"{code}.yaml"
    path.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    return path


ENGLISH_WORDS = load_lexicon("en").words


@pytest.mark.parametrize(
    ("change", "drop", "named"),
    [
        ({}, "joiner", "joiner"),
        ({"colors": "red"}, None, "colors"),
        ({"sizes": {"small": "small"}}, None, "sizes"),
        ({"sizes": {"small": "small", "large": {"one": "large", "answer": "large"}}}, None, "sizes.large"),
        ({"counted": "{noun} ({count})"}, None, "counted"),
        ({"order": ["size", "colour"]}, None, "order"),
        ({"articles": {"neuter": "a"}}, None, "articles"),
        ({"numbers": ["one", "two", "three"]}, None, "numbers"),
        ({"numbers": ["one", "two", "two", "four"]}, None, "two"),
        ({"sizes": {"small": "small", "large": "red"}}, None, "red"),
        ({"words": " ".join([*ENGLISH_WORDS[1:], "häuser"])}, None, "häuser"),
        ({"words": " ".join([*ENGLISH_WORDS, ENGLISH_WORDS[0]])}, None, ENGLISH_WORDS[0]),
        ({"code": "de"}, None, "code"),
    ],
)
def test_a_faulty_file_is_an_error_that_names_file_and_key(
    tmp_path: Path, change: dict[str, object], drop: str | None, named: str
) -> None:
    path = changed(tmp_path, "en", change, drop=drop)
    with pytest.raises(InputError) as error:
        read_lexicon(path)
    assert str(path) in str(error.value) and named in str(error.value)


def test_an_unchanged_copy_is_accepted_and_a_repeated_key_is_not(tmp_path: Path) -> None:
    path = changed(tmp_path, "no", {})
    assert read_lexicon(path).code == "no"
    path.write_text(path.read_text(encoding="utf-8") + "\njoiner: ' '\n", encoding="utf-8")
    with pytest.raises(InputError, match="joiner"):
        read_lexicon(path)


def test_an_unknown_language_is_an_error_with_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"'enn'.*Nearest: en"):
        load_lexicon("enn")
    assert load_lexicon("en") is load_lexicon("en")


# --- questions --------------------------------------------------------------------------------------------------------


def right_answers(scene: Scene, question: Question) -> set[str]:
    """Every answer that is true of the scene, found without looking at the question's own answer."""
    groups = [g for g in scene.groups if question.kind == "more" or not question.places or g.place in question.places]
    if question.kind == "exists":
        return {"exists:yes" if question.pair in {g.pair for g in scene.groups} else "exists:no"}
    if question.kind == "more":
        counts = {place: sum(g.count for g in scene.groups if g.place == place) for place in question.places}
        return {f"place:{place}" for place, count in counts.items() if count == max(counts.values())}
    if question.pair is not None:
        groups = [g for g in groups if g.pair == question.pair]
    return {f"{question.kind}:{getattr(g, question.kind)}" for g in groups}


@pytest.mark.parametrize("pairs", ["training", "held_out"])
def test_every_question_has_exactly_the_stated_answer(pairs: str) -> None:
    rng = np.random.default_rng(0)
    for scene in scenes(1500, pairs=pairs):
        questions = questions_for(scene, rng, n=MOST[len(scene.groups)])
        assert len(set(questions)) == MOST[len(scene.groups)]
        for question in questions:
            assert right_answers(scene, question) == {question.answer}, (scene, question)
            assert question.binding == (len(scene.groups) > 1)


@every_language
def test_questions_that_read_alike_have_one_answer_text(code: str) -> None:
    lexicon = load_lexicon(code)
    rng = np.random.default_rng(0)
    for scene in scenes(300):
        texts: dict[str, str] = {}
        for question in questions_for(scene, rng, n=MOST[len(scene.groups)]):
            answer = texts.setdefault(lexicon.question(question), lexicon.answer(question))
            assert answer == lexicon.answer(question)
        assert len(texts) == MOST[len(scene.groups)]


def test_kinds_come_evenly_and_yes_as_often_as_no() -> None:
    rng = np.random.default_rng(0)
    for groups in (1, 2, 3):
        for pairs in ("training", "held_out"):
            drawn = [q for scene in scenes(4000, groups=groups, pairs=pairs) for q in questions_for(scene, rng, n=1)]
            kinds = Counter(question.kind for question in drawn)
            if groups == 1:
                assert set(kinds) == set(KINDS) - {"more", "exists"}
                assert all(kinds[kind] / 4000 == pytest.approx(1 / 5, abs=0.025) for kind in kinds)
                continue
            assert set(kinds) == set(KINDS)  # groups of equal counts leave no question of "more"
            assert all(kinds[kind] / 4000 == pytest.approx(1 / 7, abs=0.04) for kind in kinds)
            yes = [question.answer == "exists:yes" for question in drawn if question.kind == "exists"]
            assert abs(np.mean(yes) - 0.5) < 4 * 0.5 / len(yes) ** 0.5


def test_a_pair_asked_for_in_vain_is_a_near_miss() -> None:
    rng = np.random.default_rng(0)
    for scene in scenes(1500):
        for question in questions_for(scene, rng, n=MOST[len(scene.groups)]):
            if question.kind == "exists":
                assert len(scene.groups) > 1
            if question.answer == "exists:no":
                assert question.pair is not None
                shared = [(question.pair[0] == g.colour) + (question.pair[1] == g.shape) for g in scene.groups]
                assert max(shared) == 1
                recombined = {(a.colour, b.shape) for a in scene.groups for b in scene.groups} - scene.pairs - HELD_OUT
                assert question.pair in recombined or not recombined


def test_questions_follow_their_seed_and_refuse_too_many() -> None:
    scene = scenes(1, groups=3)[0]
    ask = [questions_for(scene, np.random.default_rng(seed), n=5) for seed in (0, 0, 1, 2, 3)]
    assert ask[0] == ask[1] and len(set(ask)) > 1
    with pytest.raises(ValueError, match="n=7"):
        questions_for(scenes(1, groups=1)[0], np.random.default_rng(0), n=7)


def test_a_lexicon_is_found_under_any_code_of_its_language() -> None:
    assert [load_lexicon(code).code for code in ("iw", "nb", "heb_Hebr", "German")] == ["he", "no", "he", "de"]
