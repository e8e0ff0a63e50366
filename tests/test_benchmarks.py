"""Benchmarks become corpora of ours from Centurio's files and from those of their authors, with the published prompts;
what cannot be read is named by file, row and field."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lvlm import cli
from lvlm.data.benchmarks import BENCHMARKS
from lvlm.data.benchmarks.convert import AUTHORS as READERS
from lvlm.data.benchmarks.convert import PATTERNS, write_benchmark
from lvlm.data.benchmarks.prompts import asked, prompt, prompts
from lvlm.data.corpus import Corpus, Item, open_corpus
from lvlm.errors import InputError
from tests.examples.benchmarks import AUTHORS, CENTURIO, m5b_shards, picture, write_json
from tests.source_files import tar_of

I = "<image_placeholder>"  # noqa: E741
WORD = "\nAnswer the question using a single word or phrase."


def written(write: Callable[[Path], None], name: str, tmp_path: Path, **options: Any) -> Corpus:
    (tmp_path / "source").mkdir()
    write(tmp_path / "source")
    write_benchmark(name, tmp_path / "source", tmp_path / "corpus", **options)
    return open_corpus(tmp_path / "corpus")


def items(corpus: Corpus) -> dict[str, list[Item]]:
    return {code: corpus.items("test", code) for code in corpus.languages}


def test_every_benchmark_has_an_example_in_each_of_its_forms() -> None:
    assert tuple(CENTURIO) == BENCHMARKS == tuple(PATTERNS)
    assert set(AUTHORS) == set(READERS) == set(BENCHMARKS) - {"bin_mc"}


@pytest.mark.parametrize(("form", "name"), [(form, name) for form in (AUTHORS, CENTURIO) for name in form])
def test_five_items_become_a_corpus_whose_pictures_decode(form: Any, name: str, tmp_path: Path) -> None:
    corpus = written(form[name], name, tmp_path)
    corpus.check("test", images=True)
    assert corpus.splits == {"test": "report"}
    for code, found in items(corpus).items():
        by_task = {task: [item for item in found if item.task == task] for task in {item.task for item in found}}
        for task, some in by_task.items():
            assert len(some) <= 10 and {"xmmmu": "mmmu", "m3exam_cyclic": "m3exam"}.get(task, task) in prompts()
            assert all(item.language == code and item.source.startswith(task.partition("_")[0]) for item in some)
            assert all(item.images for item in some)
    assert sum(map(len, items(corpus).values())) >= 5
    if name in ("xgqa", "xm3600", "xmmmu", "xvnli"):
        assert corpus.translatable
    else:
        assert not corpus.translatable


def only(corpus: Corpus, code: str) -> list[tuple[str, tuple[str, ...]]]:
    return [(item.prompt, item.answers) for item in corpus.items("test", code)]


def test_prompts_and_answers_of_the_authors_forms(tmp_path: Path) -> None:
    def read(name: str, code: str) -> list[tuple[str, tuple[str, ...]]]:
        (tmp_path / name).mkdir()
        return only(written(AUTHORS[name], name, tmp_path / name), code)

    assert read("xm3600", "th")[1] == ("Briefly describe the image in Thai in one sentence.", ("เรือในทะเลสาบ ๑",))
    maxm = read("maxm", "fr")
    assert maxm[0] == (f"Où est-ce ?{WORD}\nAnswer in French.", ("la forêt", "forêt"))
    assert maxm[1][0].startswith("Quel est le lieu?\n")
    assert read("xgqa", "de")[1] == (f"Ist es 1?{WORD}\nAnswer in English.", ("no",))
    assert read("mtvqa", "vi")[1] == (f"Was steht da, 1?{WORD}\nAnswer in Vietnamese.", ("Wort 1",))
    assert sorted(read("smpqa", "de"))[0] == (f"Is the bar with label 'uhr' the biggest?{WORD}", ("yes",))
    assert read("mme", "en")[1] == ("Are there nine boats? Please answer yes or no.", ("No",))
    xvnli = read("xvnli", "ru")
    assert [answers for _, answers in xvnli] == [("yes",), ("no",), ("maybe",), ("maybe",), ("yes",)]
    assert xvnli[1][0] == 'Is it guaranteed true that "Hypothèse 1."? Yes, no, or maybe? Answer in English:'
    two = f"Given the two images {I}{I}, is it correct to say "
    assert read("marvl", "sw")[:2] == [
        (f'{two}"Kuna ngoma 0."? Answer yes or no.', ("yes",)),
        (f'{two}"Kuna ngoma 1."? Answer yes or no.', ("no",)),
    ]
    assert read("nlvr2", "en")[1] == (f'{two}"There are 1 cups."? Answer yes or no.', ("no",))
    assert read("m5b_vgr", "ha")[1] == (f'{two}"Akwai 1."? Answer yes or no.', ("yes",))
    assert read("m5b_vlod", "zu")[1] == (
        f"Based on the 5 images {I * 5} ordered from top-left to bottom-right, which image does not match the "
        'hypothesis "Kukhona 1."? Choose one from [A, B, C, D, E] and only output a single letter:',
        ("B",),
    )
    cvqa = read("cvqa", "es")
    assert cvqa[1] == (
        "¿Qué es?\nThere are several options:\nA. pan\nB. maíz\nC. sal\nD. té\n"
        "Answer with the option's letter from the given choices directly.",
        ("B",),
    )


def test_shards_of_m5_show_the_pictures_of_a_row_stacked_in_one(tmp_path: Path) -> None:
    def shards(folder: Path) -> None:
        m5b_shards(folder, "ha", ["yes", "no", "no", "yes", "no"], "horizontally_stacked_images.jpg")

    vgr = written(shards, "m5b_vgr", tmp_path)
    assert only(vgr, "ha")[1] == (
        f'Given the two images {I}, is it correct to say "Akwai 1."? Answer yes or no.',
        ("no",),
    )
    item = items(vgr)["ha"][1]
    assert item.id == "vgr-ha-1" and item.source == "vgr:Cups" and len(item.images) == 1
    assert [answers for _, answers in only(vgr, "ha")] == [("yes",), ("no",), ("no",), ("yes",), ("no",)]
    (tmp_path / "five").mkdir()
    vlod = written(
        lambda folder: m5b_shards(folder, "zu", "12345", "two_col_stacked_images.jpg"),
        "m5b_vlod", tmp_path / "five",
    )  # fmt: skip
    assert [answers for _, answers in only(vlod, "zu")] == [(letter,) for letter in "ABCDE"]
    assert all(item.prompt.count(I) == len(item.images) == 1 for item in items(vlod)["zu"])
    (tmp_path / "cut").mkdir()
    with pytest.raises(InputError, match=r"000000, field 'sample_id' *: the field is missing"):
        written(lambda folder: _without(folder, "sample_id"), "m5b_vgr", tmp_path / "cut")


def test_text_of_a_shard_that_is_no_utf_8_is_named(tmp_path: Path) -> None:
    def shards(folder: Path) -> None:
        (folder / "wds" / "ha").mkdir(parents=True)
        (folder / "wds" / "ha" / "0.tar").write_bytes(tar_of([("7.hypothesis", b"Ak\xff")]))

    with pytest.raises(InputError, match=r"0\.tar, sample 7, field 'hypothesis': is not UTF-8 text \(byte 2\)"):
        written(shards, "m5b_vgr", tmp_path)


def test_tars_beside_the_parquet_files_of_m5_are_left_alone(tmp_path: Path) -> None:
    def both(folder: Path) -> None:
        AUTHORS["m5b_vgr"](folder)
        (folder / "images").mkdir()
        (folder / "images" / "pictures.tar").write_bytes(tar_of([("0.jpg", b"a picture")]))

    assert all(len(item.images) == 2 for item in items(written(both, "m5b_vgr", tmp_path))["ha"])


def _without(folder: Path, name: str) -> None:
    m5b_shards(folder, "ha", ["yes"], "horizontally_stacked_images.jpg")
    (path,) = folder.rglob("*.tar")
    whole = path.read_bytes()
    with tarfile.open(fileobj=io.BytesIO(whole)) as archive, tarfile.open(path, "w") as less:
        for member in archive:
            if not member.name.endswith(name):
                less.addfile(member, archive.extractfile(member))


def test_images_within_questions_and_options_keep_their_places(tmp_path: Path) -> None:
    directly = "Answer with the option's letter from the given choices directly."
    exam = items(written(AUTHORS["m3exam"], "m3exam", tmp_path))["th"]
    assert len(exam) == 5, "a question without an image is none of this benchmark"
    assert exam[0].prompt == f"{I}\nเท่าไร\nOptions:\nA. หนึ่ง\nB. สอง\nC. สาม\n {directly}"
    assert exam[1].prompt == f"ข้อใด\nOptions:\nA. {I}\nB. {I}\n {directly}"
    assert [Path(image).name for image in exam[1].images] == ["image-1.jpg", "image-2.jpg"]
    assert [item.answers for item in exam] == [("B",), ("B",), ("B",), ("C",), ("A",)]
    assert len(exam[4].images) == 2 == exam[4].prompt.count(I)
    (tmp_path / "cyclic").mkdir()
    cyclic = items(written(AUTHORS["m3exam_cyclic"], "m3exam_cyclic", tmp_path / "cyclic"))["th"]
    assert [item.answers for item in cyclic] == [("B",), ("A",), ("C",), ("B",), ("A",)]
    assert cyclic[0].prompt == exam[0].prompt and "\nA. สาม\nB. หนึ่ง\nC. สอง\n" in cyclic[2].prompt
    assert cyclic[4].images == exam[1].images[::-1], "pictures turn with the options that they are in"
    (tmp_path / "mmmu").mkdir()
    mmmu = {item.id: item for item in items(written(AUTHORS["mmmu"], "mmmu", tmp_path / "mmmu"))["en"]}
    second, third = (mmmu[f"mmmu-validation_Economics_{number}"] for number in (2, 3))
    assert second.prompt == f"Which?\nThere are several options:\nA. {I}\nB. {I}\nC. x\n{directly}"
    assert len(set(second.images)) == 2 and second.source == "mmmu:Economics"
    assert third.prompt == f"{I} Which?{WORD}" and third.answers == ("12", "twelve")


def test_centurios_rows_are_prompts_or_fill_its_templates(tmp_path: Path) -> None:
    (tmp_path / "xm").mkdir()
    caption = written(CENTURIO["xm3600"], "xm3600", tmp_path / "xm").items("test", "de")[1]
    assert caption.prompt == "Briefly describe the image in German in one sentence."
    assert caption.answers == ("Satz 2", "Satz 3") and caption.images == ("images/1.jpg",)
    (tmp_path / "marvl").mkdir()
    pair = written(CENTURIO["marvl"], "marvl", tmp_path / "marvl").items("test", "ta")[1]
    assert pair.prompt == f'Given the two images {I}{I}, is it correct to say "Say 1"? Answer yes or no.'
    assert pair.answers == ("no",) and len(pair.images) == 2
    (tmp_path / "m3").mkdir()
    exam = written(CENTURIO["m3exam"], "m3exam", tmp_path / "m3").items("test", "th")
    assert len(exam) == 5 and exam[1].prompt.startswith("Q 1\nOptions:\nA. one"), "rotations are left aside"
    (tmp_path / "cycle").mkdir()
    cycle = written(CENTURIO["m3exam_cyclic"], "m3exam_cyclic", tmp_path / "cycle").items("test", "th")
    assert [item.answers for item in cycle[:2]] == [("A",), ("B",)]
    assert [item.id for item in cycle[1:3]] == ["m3exam_cyclic-q0-00001", "m3exam_cyclic-q1-00002"]
    (tmp_path / "cvqa").mkdir()
    found = written(CENTURIO["cvqa"], "cvqa", tmp_path / "cvqa").items("test", "es")
    assert {item.source for item in found} == {"cvqa:es-mexico", "cvqa:es-chile"} and len(found) == 10


def test_true_is_an_answer_where_nothing_is_said_to_be_true_or_false(tmp_path: Path) -> None:
    """Only Centurio's rows of marvl write yes and no as True and False."""
    CENTURIO["mtvqa"](tmp_path / "source")
    path = tmp_path / "source" / "mtvqa" / "mtvqa_test_it.json"
    write_json(path, [row | {"text_label": "True"} for row in json.loads(path.read_text())])
    write_benchmark("mtvqa", tmp_path / "source", tmp_path / "corpus")
    assert {item.answers for item in open_corpus(tmp_path / "corpus").items("test", "it")} == {("True",)}


def test_a_line_ends_where_json_lines_end_it(tmp_path: Path) -> None:
    AUTHORS["xm3600"](tmp_path)
    path = tmp_path / "captions.jsonl"
    path.write_text(path.read_text(encoding="utf-8").replace("dem See", "dem\u2028See\x85"), encoding="utf-8")
    write_benchmark("xm3600", tmp_path, tmp_path / "corpus")
    assert "dem\u2028See" in open_corpus(tmp_path / "corpus").items("test", "de")[0].answers[0]


def test_an_image_whose_place_a_translation_has_lost_is_shown_first(tmp_path: Path) -> None:
    from tests.examples.benchmarks import png, write_parquet

    row = {"id": "validation_Art_1", "question": "कौन?", "image_1": png(1), "question_type": "open", "options": "[]",
           "answer": "(2, 3)"}  # fmt: skip
    write_parquet(tmp_path / "hi.parquet", [row])
    write_benchmark("xmmmu", tmp_path, tmp_path / "corpus")
    (item,) = open_corpus(tmp_path / "corpus").items("test", "hi")
    assert item.prompt == f"{I}\nकौन?{WORD}" and len(item.images) == 1
    assert item.answers == ("(2, 3)",), "a pair of numbers is one answer"


def test_languages_and_first_leave_the_rest_out(tmp_path: Path) -> None:
    corpus = written(AUTHORS["xgqa"], "xgqa", tmp_path, languages=["de"], first=2)
    assert corpus.languages == ("de",) and len(corpus.items("test", "de")) == 2
    with pytest.raises(InputError, match="no items of xgqa in sw"):
        write_benchmark("xgqa", tmp_path / "source", tmp_path / "none", languages=["de", "sw"])
    (tmp_path / "source" / "testdev_balanced_questions_xx.json").write_text("[broken")
    with pytest.raises(InputError, match=r"questions_xx\.json: Unknown language code 'xx'.*--languages"):
        write_benchmark("xgqa", tmp_path / "source", tmp_path / "none")
    assert write_benchmark("xgqa", tmp_path / "source", tmp_path / "both", languages=["en", "de"]).shared_ids
    assert not (tmp_path / "none").exists()


def test_images_lie_apart_and_are_written_once_where_a_table_holds_them(tmp_path: Path) -> None:
    for name in ("xgqa", "mtvqa"):
        (tmp_path / name).mkdir()
    AUTHORS["xgqa"](tmp_path / "xgqa")
    (tmp_path / "xgqa" / "images").rename(tmp_path / "gqa")
    write_benchmark("xgqa", tmp_path / "xgqa", tmp_path / "one", images=tmp_path / "gqa")
    item = open_corpus(tmp_path / "one").items("test", "de")[0]
    assert open_corpus(tmp_path / "one").image_path(item.images[0]) == (tmp_path / "gqa" / "n7.jpg").resolve()
    AUTHORS["mtvqa"](tmp_path / "mtvqa")
    write_benchmark("mtvqa", tmp_path / "mtvqa", tmp_path / "two")
    assert len(list((tmp_path / "two" / "images").iterdir())) == 3, "two questions about one picture share it"


def test_ids_that_differ_between_languages_are_not_taken_for_translations(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    AUTHORS["xgqa"](tmp_path / "source")
    path = tmp_path / "source" / "testdev_balanced_questions_de.json"
    rows = json.loads(path.read_text())
    path.write_text(json.dumps(dict(list(rows.items())[1:])))
    assert not write_benchmark("xgqa", tmp_path / "source", tmp_path / "corpus").shared_ids
    assert not open_corpus(tmp_path / "corpus").translatable


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("xgqa", {"answer": None}, r"_de\.json, row 1, .*'text_label'"),
        ("xgqa", {"imageId": "n9"}, r"_de\.json, row 1: the image n9 is not under .*--images"),
        ("xgqa", {"question": ["a"]}, r"_de\.json, row 1, field 'question': must be text"),
        ("xgqa", {"question": f"Is {I} it? {I}"}, r"row 1, as a row of a corpus, field 'context': holds 2"),
    ],
)
def test_what_cannot_be_read_is_named_and_nothing_is_written(
    name: str, change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    (tmp_path / "source").mkdir()
    AUTHORS[name](tmp_path / "source")
    path = tmp_path / "source" / "testdev_balanced_questions_de.json"
    rows = json.loads(path.read_text())
    rows["20131"] |= change
    write_json(path, rows)
    with pytest.raises(InputError, match=message):
        write_benchmark(name, tmp_path / "source", tmp_path / "corpus")
    assert [entry.name for entry in tmp_path.iterdir()] == ["source"]


def test_hidden_answers_and_wrong_folders_are_refused(tmp_path: Path) -> None:
    from tests.examples.benchmarks import png, write_parquet

    row = {"image": png(0), "ID": "1", "Subset": "('Hindi', 'India')", "Question": "?", "Options": ["a", "b"]}
    write_parquet(tmp_path / "cvqa" / "data" / "test-0.parquet", [{**row, "Label": -1}])
    with pytest.raises(InputError, match=r"test-0\.parquet, row 0, field 'Label': is -1 .*hidden"):
        write_benchmark("cvqa", tmp_path / "cvqa", tmp_path / "corpus")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"holds nothing of maxm.*maxm_LANGUAGE_test\.json.*maxm_v1_LANGUAGE\.json"):
        write_benchmark("maxm", tmp_path / "empty", tmp_path / "corpus")
    with pytest.raises(InputError, match=r"'xgga' is no benchmark.*xgqa"):
        write_benchmark("xgga", tmp_path / "empty", tmp_path / "corpus")
    with pytest.raises(InputError, match="is no folder"):
        write_benchmark("maxm", tmp_path / "none", tmp_path / "corpus")


def test_the_command_counts_what_it_wrote(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "source").mkdir()
    AUTHORS["xgqa"](tmp_path / "source")
    assert cli.main(["benchmark", "xgqa", str(tmp_path / "source"), str(tmp_path / "corpus"), "--first", "3"]) == 0
    shown = capsys.readouterr().out
    assert [line.split() for line in shown.splitlines()[:2]] == [["xgqa", "de", "3"], ["xgqa", "en", "3"]]
    assert cli.main(["benchmark", "xgqa", str(tmp_path / "source"), str(tmp_path / "corpus")]) == 2
    assert "not an empty folder" in capsys.readouterr().err


def test_words_of_an_item_are_filled_in_as_they_are() -> None:
    assert '"a {question} \\1"' in prompt("xvnli", "fr", hypothesis="a {question} \\1")
    assert asked("Où ?") == "Où ?" and asked("这是什么？") == "这是什么？" and asked("où") == "où?"
    assert picture(1).size == (8, 6)
