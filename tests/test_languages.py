"""One table: every code that corpora, benchmarks and detectors write finds its row, and groups are made of rows."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lvlm.data.corpus import open_corpus
from lvlm.data.pool import gather
from lvlm.errors import InputError
from lvlm.evaluate.items import asked_items
from lvlm.languages import (
    GROUPS,
    NO_TIER,
    SIBLINGS,
    asked_for,
    find,
    group_languages,
    in_table_order,
    language,
    siblings,
    table,
    variety,
)
from lvlm.settings import CorpusUse, EvaluateConfig, MixConfig
from tests.corpora import change_row, make_corpus, test_row, train_row, write_rows

PUBLISHED = Path(__file__).parents[1] / "ablations" / "published"
ASSETS = Path(__file__).parents[1] / "lvlm" / "assets"


def rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))


def test_the_first_hundred_rows_are_the_published_training_languages() -> None:
    published = rows(PUBLISHED / "languages.csv")
    own = [row for row in table().values() if row.in_l100]
    assert own == list(table().values())[:100]
    for row, known in zip(own, published, strict=True):
        tier = "en" if known["code"] == "en" else f"T{known['tier']}"
        assert (row.code, row.flores, row.name, row.tier, row.script) == (
            known["code"], known["flores"], known["name"], tier, known["script"]
        )  # fmt: skip


def test_every_row_is_complete_and_none_stands_twice() -> None:
    for row in table().values():
        assert row.family and row.script and row.name, row
        assert row.in_l100 == (row.tier != NO_TIER), row
        assert row.flores.partition("_")[2] in ("", row.script), row
    for field in ("name", "flores", "iso639_3"):
        given_to = [value for row in table().values() if (value := getattr(row, field))]
        assert len(set(given_to)) == len(given_to), field


def test_no_code_or_name_stands_for_two_languages() -> None:
    """Every column of the table and every other code leads to its own row, whatever the others say."""
    for code, row in table().items():
        for text in (code, row.name, row.flores, row.iso639_3):
            assert not text or language(text) is row, text
    for other in rows(ASSETS / "other_codes.csv"):
        assert language(other["other"]) is table()[other["code"]], other
        assert other["source"], other


def test_every_language_of_the_published_results_has_a_row() -> None:
    published = {row["language"] for row in rows(PUBLISHED / "centurio2025_per_language.csv")}
    outside = {code for code in published if not language(code).in_l100}
    assert outside == {
        "ber", "bre-france", "kin-rwanda", "min-indonesia", "mon-mongolia", "orm-ethiopia", "sin-sri_lanka",
        "sun-indonesia",
    }  # fmt: skip
    assert {language(code).tier for code in outside} == {NO_TIER}
    pairs = [code for code in published if "-" in code]
    assert len(pairs) == 39 and len({(read := variety(code)).language.code + str(read.country) for code in pairs}) == 39


VARIETIES = {
    "he": "he Hebr", "iw": "he Hebr", "heb_Hebr": "he Hebr", "he-IL": "he Hebr IL", "Hebrew": "he Hebr",
    "no": "no Latn", "nb": "no Latn", "nn": "no Latn", "nno_Latn": "no Latn", "nor-norway": "no Latn NO",
    "zh": "zh Hant", "zh-Hans": "zh Hans", "zh_hant": "zh Hant", "zh-CN": "zh Hans CN", "zh-TW": "zh Hant TW",
    "zho_Hans": "zh Hans", "cmn_Hani": "zh Hani", "zho-singapore": "zh Hans SG", "zh-Hant-HK": "zh Hant HK",
    "quy": "qu Latn", "quz": "qu Latn", "que": "qu Latn", "Cusco Quechua": "qu Latn",
    "tl": "tl Latn", "fil": "tl Latn", "tgl": "tl Latn", "fil-philippines": "tl Latn PH",
    "arz": "arz Arab", "ar-eg": "arz Arab", "Egyptian_Arabic-Egypt": "arz Arab EG", "arb_Arab": "ar Arab",
    "kr": "ko Hang", "kor_Hang": "ko Hang", "ko-Kore-KR": "ko Hang KR", "knc_Latn": "knc Latn",
    "jw": "jv Latn", "in": "id Latn", "ji": "yi Hebr", "mo": "ro Latn",
    "sr-Latn": "sr Latn", "srp_Cyrl": "sr Cyrl", "pt-BR": "pt Latn BR", "PT_br": "pt Latn BR",
    "es-419": "es Latn 419", "spa-mexico": "es Latn MX", "kor-south_korea": "ko Hang KR", "als": "sq Latn",
    "MĀORI": "mi Latn", "Portugese": "pt Latn", "afrikaans": "af Latn", "swa": "sw Latn", "swh_Latn": "sw Latn",
    "ger": "de Latn", "pa-Arab": "pnb Arab", "ber": "ber Tfng", "dgo": "doi Deva",
}  # fmt: skip


@pytest.mark.parametrize("code", VARIETIES)
def test_codes_by_hand(code: str) -> None:
    code_, script, *country = VARIETIES[code].split()
    read = variety(code)
    assert (read.language.code, read.script, read.country) == (code_, script, country[0] if country else None)


LID_176 = """
af als am an ar arz as ast av az azb ba bar bcl be bg bh bn bo bpy br bs bxr ca cbk ce ceb ckb co cs cv cy da de diq
dsb dty dv el eml en eo es et eu fa fi fr frr fy ga gd gl gn gom gu gv he hi hif hr hsb ht hu hy ia id ie ilo io is it
ja jbo jv ka kk km kn ko krc ku kv kw ky la lb lez li lmo lo lrc lt lv mai mg mhr min mk ml mn mr mrj ms mt mwl my myv
mzn nah nap nds ne new nl nn no oc or os pa pam pfl pl pms pnb ps pt qu rm ro ru rue sa sah sc scn sco sd sh si sk sl
so sq sr su sv sw ta te tg th tk tl tr tt tyv ug uk ur uz vec vep vi vls vo wa war wuu xal xmf yi yo yue zh
"""
FLORES_BESIDE = "ace_Arab ajp_Arab bjn_Arab kas_Deva knc_Arab nno_Latn sat_Beng taq_Tfng zho_Hans"
"""What NLLB translates into beside the column `flores`."""
CLDR_EMOJI = """
af am ar as ast az be bg bn br bs ca ccp ceb chr ckb cs cy da de de_CH doi dsb el en en_001 es es_419 et eu fa fi fil
fo fr fr_CA ga gd gl gu ha ha_NE he hi hi_Latn hr hsb hu hy ia id ig is it ja jv ka kab kk kl km kn ko kok ku ky lb lo
lt lv mai mi mk ml mn mni mr ms mt my ne nl nn no or pa pa_Arab pcm pl ps pt qu rm ro ru rw sa sat sc sd si sk sl so
sq sr sr_Cyrl_BA sr_Latn su sv sw ta te tg th ti tk to tr tt ug uk ur uz vi wo xh yo yue yue_Hans zh zh_Hant_HK zu
"""


def test_labels_of_detectors_translators_and_annotations_have_rows() -> None:
    own = {row.flores for row in table().values() if row.flores} - {"lat_Latn"}  # Latin is not in NLLB
    assert len(LID_176.split()) == 176 and len(own | set(FLORES_BESIDE.split())) == 203
    labels = [*LID_176.split(), *CLDR_EMOJI.split(), *FLORES_BESIDE.split()]
    assert [label for label in labels if find(label) is None] == []


def test_flores_codes_name_their_script() -> None:
    for code in ("srp_Latn", "kas_Deva", "taq_Tfng", "mni_Mtei", "bjn_Arab"):
        assert variety(code).script == code[4:]


@pytest.mark.parametrize("code", ["", "-", "zz", "T5", "und_Latn", "deu_Foo", "de-narnia", "en please", "de-de-de"])
def test_an_unknown_code_is_an_error(code: str) -> None:
    assert find(code) is None
    with pytest.raises(InputError, match="Unknown language code"):
        language(code)


def test_an_unknown_code_names_the_nearest() -> None:
    with pytest.raises(InputError, match="nearest known codes are: german"):
        language("Germn")


@given(
    st.sampled_from(list(table())), st.sampled_from(["Latn", "Cyrl", "Hans", ""]), st.sampled_from(["BR", "419", ""])
)
def test_case_and_separator_change_nothing(code: str, script: str, country: str) -> None:
    tag = "-".join(part for part in (code, script, country) if part)
    assert variety(tag).language.code == code
    assert variety(tag) == variety(tag.upper()) == variety(tag.replace("-", "_").lower())
    assert not script or variety(tag).script == script


def test_groups_are_nested_and_english_comes_first() -> None:
    everything = tuple(table())
    sizes = {name: len(group_languages(name, everything)) for name in GROUPS}
    assert sizes == {"en": 1, "T5": 7, "T5-T4": 25, "T5-T3": 53, "T5-T2": 70, "L100": 100, "all": len(everything)}
    for name in (*GROUPS, "script:Cyrl", "family:Uralic"):
        assert group_languages(name, everything[::-1])[0] == "en", name


def test_groups_by_script_and_family() -> None:
    available = ("sw", "fi", "en", "ar", "tr", "he", "et", "fa", "br")
    assert group_languages("script:Arab", available) == ("en", "ar", "fa")
    assert group_languages("script:latn", available) == ("en", "fi", "tr", "et", "sw", "br")
    assert group_languages("family:Uralic", available) == ("en", "fi", "et")
    assert group_languages("family:indo-european", available) == ("en", "fa", "br")


@pytest.mark.parametrize(
    ("group", "message"),
    [
        ("T9", "Unknown language group 'T9'. Groups are: en, T5"),
        ("script:Arabic", "no language has this script. The nearest are: Arab"),
        ("family:Uralik", "no language has this family. The nearest are: Uralic"),
        ("script:Grek", "has none of the languages that there are here: en, ar"),
    ],
)
def test_a_group_of_nothing_is_an_error(group: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        group_languages(group, ("en", "ar"))


def test_a_list_may_name_groups_beside_codes() -> None:
    available = ("sw", "de", "en", "ar", "he")
    assert asked_for(["iw", "T5", "script:Hebr"], available) == (("iw",), ("en", "ar", "de", "he"))
    assert asked_for(["en", "sw"], available) == (("en", "sw"), ())
    with pytest.raises(InputError, match="no language has this script"):
        asked_for(["en", "script:Foo"], available)


def test_siblings_are_rows_and_go_both_ways() -> None:
    assert siblings("hr") == siblings("hrv_Latn") == {"bs", "sr", "sh"}
    assert siblings("ja") == frozenset()
    for group in SIBLINGS:
        assert in_table_order(group) and set(in_table_order(group)) == group
        assert all(one in siblings(other) for one in group for other in group - {one})


@pytest.fixture
def spelt(tmp_path: Path) -> Path:
    """A corpus whose author writes `iw`, `fil` and `zh-Hans`: in corpus.yaml, file names and rows."""
    return make_corpus(tmp_path, ("en", "iw", "fil", "zh-Hans"), rows=12)


def pooled(folder: Path, **mix: Any) -> dict[str, str]:
    config = MixConfig.model_validate({"corpora": [{"path": str(folder), "split": "instruct"}], **mix})
    pool, _ = gather(config, {str(folder): open_corpus(folder)})
    return {entry.id: entry.language for entry in map(pool.entry, range(len(pool)))}


def test_a_corpus_may_write_its_languages_under_any_code(spelt: Path) -> None:
    corpus = open_corpus(spelt)
    assert corpus.languages == ("en", "zh", "he", "tl")
    assert {sample.language for sample in corpus.samples("instruct", "he")} == {"he"}
    assert corpus.attributes("tl") == {"fil red": "colour:red"}
    assert corpus.stamp()
    everything = pooled(spelt, languages="T5-T3", english_share=0.25)
    assert set(everything.values()) == {"en", "zh", "he", "tl"}
    assert everything == pooled(spelt, languages=["Hebrew", "zho_Hans", "tgl", "en"], english_share=0.25)


def test_an_evaluation_may_name_its_languages_under_any_code(spelt: Path) -> None:
    use = CorpusUse(path=str(spelt), split="test")
    for languages in (["heb"], ["he"], "iw"):
        config = EvaluateConfig(corpora=(use,), languages=languages)
        asked = asked_items(config, {str(spelt): open_corpus(spelt)}, permission="report")
        assert {one.item.language for one in asked} == {"he"} and len(asked) == 6
    for group, expected in (("script:Hebr", {"en", "he"}), ("family:Austronesian", {"en", "tl"})):
        config = EvaluateConfig(corpora=(use,), languages=group)
        asked = asked_items(config, {str(spelt): open_corpus(spelt)}, permission="report")
        assert {one.item.language for one in asked} == expected
    part = use.model_copy(update={"languages": ("fil", "zh-Hant")})
    config = EvaluateConfig(corpora=(part,), languages="all")
    asked = asked_items(config, {str(spelt): open_corpus(spelt)}, permission="report")
    assert {one.item.language for one in asked} == {"tl", "zh"}


def test_a_file_is_found_under_another_code_of_its_language(tmp_path: Path) -> None:
    folder = make_corpus(tmp_path, ("en", "he"), rows=3)
    file = folder / "instruct" / "he.jsonl"
    for number in range(3):
        change_row(file, number, language=None)
    file.rename(file.with_name("heb_Hebr.jsonl"))
    assert [sample.language for sample in open_corpus(folder).samples("instruct", "he")] == ["he"] * 3
    write_rows(folder / "instruct" / "iw.jsonl", [train_row(0, "iw")])
    with pytest.raises(InputError, match=r"Both .*heb_Hebr.jsonl and .*iw.jsonl exist"):
        open_corpus(folder).samples("instruct", "he")


def test_two_codes_of_one_language_in_a_corpus_are_an_error(tmp_path: Path) -> None:
    folder = make_corpus(tmp_path, ("en", "zh-Hans", "zh-Hant"), rows=2)
    with pytest.raises(InputError, match="'zh-Hans' and 'zh-Hant' are one language, zh"):
        open_corpus(folder)


def test_rows_of_a_bare_file_are_in_the_language_that_any_code_names(tmp_path: Path) -> None:
    codes = ["iw", "he", "fil", "en"]
    items = [test_row(number, code, image_id="") for number, code in enumerate(codes)]
    path = tmp_path / "bare.json"
    path.write_text(json.dumps(items), encoding="utf-8")
    corpus = open_corpus(path)
    assert corpus.languages == ("en", "he", "tl")
    assert [item.id for item in corpus.items("test", "he")] == ["q-00000", "q-00001"]
    assert {item.language for item in corpus.items("test", "tl")} == {"tl"}
