"""Five items of every benchmark, with words and pictures of our own, in Centurio's form and in that of its authors.
`AUTHORS` and `CENTURIO` write them into a folder."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

Row = Mapping[str, Any]


def picture(number: int) -> Image.Image:
    return Image.new("RGB", (8, 6), (40 * number % 256, 90, 200))


def png(number: int) -> dict[str, Any]:
    """A cell of a Hugging Face table."""
    buffer = io.BytesIO()
    picture(number).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": f"{number}.png"}


def pictures(folder: Path, *names: str) -> None:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        picture(number).save(folder / name)


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def write_lines(path: Path, rows: Sequence[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def write_parquet(path: Path, rows: Sequence[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(rows)), path)


# --- as their authors distribute them


def xm3600(folder: Path) -> None:
    pictures(folder / "images", *(f"{number:04d}.jpg" for number in range(5)))
    said = {"de": ["Ein Boot auf dem See.", "Boot Nummer {}"], "th": ["เรือในทะเลสาบ {thai}"]}
    write_lines(
        folder / "captions.jsonl",
        [
            {
                "image/key": f"{number:04d}",
                "image/locale": "de",
                **{
                    code: {
                        "caption": [text.format(number, thai="๐๑๒๓๔"[number]) for text in texts],
                        "caption/tokenized": [],
                    }
                    for code, texts in said.items()
                },
            }
            for number in range(5)
        ],
    )


def maxm(folder: Path) -> None:
    pictures(folder / "images", "a1.jpg", "b2.jpg")
    pairs = [
        {
            "question_id": f"fr-{number}",
            "question": question,
            "answers": ["la forêt", "forêt"],
            "processed_answers": ["la forêt", "forêt"] if number else [],
            "is_collection": False,
        }
        for number, question in enumerate(["Où est-ce ?", "Quel est le lieu", "Où", "Dans quoi ?", "Quoi ?"])
    ]
    annotations = [{"image_id": "a1", "qa_pairs": pairs[:2]}, {"image_id": "b2", "qa_pairs": pairs[2:]}]
    value = {"dataset": "maxm", "version": "v1", "split": "fr", "annotations": annotations}
    write_json(folder / "maxm_v1_fr.json", value)


def xgqa(folder: Path) -> None:
    pictures(folder / "images", "n7.jpg", "n8.jpg")
    for code, question in {"en": "Is it {}?", "de": "Ist es {}?"}.items():
        rows = {
            f"2013{number}": {
                "imageId": f"n{7 + number % 2}",
                "question": question.format(number),
                "answer": ("yes", "no")[number % 2],
                "isBalanced": True,
            }
            for number in range(5)
        }
        write_json(folder / f"testdev_balanced_questions_{code}.json", rows)


def mtvqa(folder: Path) -> None:
    rows = [
        {
            "image": png(number),
            "id": f"p{number}",
            "qa_pairs": str([{"question": f"Was steht da, {one}?", "answer": f"Wort {one}"} for one in range(many)]),
            "lang": code,
        }
        for number, (many, code) in enumerate([(2, "DE"), (1, "DE"), (2, "VI")])
    ]
    write_parquet(folder / "data" / "test-00000-of-00001.parquet", rows)


def smpqa(folder: Path) -> None:
    pictures(folder, "plots/bar_0.png", "plots/pie_0.png")
    bar = {
        "image": "plots/bar_0.png",
        "questions_name": ["What is the label of the biggest bar?", "What is the label of the red bar?"],
        "answer_name": ["uhr", "tal"],
        "question_ground": ["Is the bar with label 'uhr' the biggest?"],
        "answer_ground": ["yes"],
    }
    pie = {
        "image": "plots/pie_0.png",
        "questions_name": "What is the label of the smallest slice?",
        "answer_name": "tal",
        "question_ground": "Is the slice with label 'tal' colored in red?",
        "answer_ground": "no",
    }
    write_json(folder / "bar_annotations_de.json", [bar])
    write_json(folder / "pie_annotations_de.json", [pie])


def mme(folder: Path) -> None:
    pictures(folder, "count/0001.png", "landmark/images/x.jpg", "count/0002.png")
    ask = "Are there {} boats? Please answer yes or no.\t{}\n"
    (folder / "count" / "0001.txt").write_text(ask.format("two", "Yes") + ask.format("nine", "No"))
    (folder / "count" / "0002.txt").write_text(ask.format("no", "Yes"))
    (folder / "landmark" / "questions_answers_YN").mkdir()
    (folder / "landmark" / "questions_answers_YN" / "x.txt").write_text(ask.format("old", "No") + ask.format("a", "No"))


def xvnli(folder: Path) -> None:
    pictures(folder, "flickr30k-images/75.jpg")
    said = ("entailment", "contradiction", "neutral", "-", "neutral", "entailment")
    for code in ("fr", "ru"):
        write_lines(
            folder / code / "test.jsonl",
            [
                {
                    "gold_label": label,
                    "sentence1": "Une photo.",
                    "sentence2": f"Hypothèse {number}.",
                    "captionID": "75.jpg#0",
                    "pairID": f"75.jpg#{number}",
                    "Flikr30kID": "75",
                }
                for number, label in enumerate(said)
            ],
        )


def marvl(folder: Path) -> None:
    names = [f"sw/images/3-Ngómä/{number}.jpg" for number in range(4)]
    pictures(folder, *names)
    rows = [
        {
            "concept": "3-Ngómä",
            "language": "sw",
            "caption": f"Kuna ngoma {number}.",
            "left_img": f"{number % 4}.jpg",
            "right_img": "3-Ngómä/3.jpg",
            "chapter": "Music",
            "id": f"sw-{number}",
            "label": number % 2 == 0,
        }
        for number in range(5)
    ]
    write_lines(folder / "sw" / "annotations" / "marvl-sw.jsonl", rows)


def nlvr2(folder: Path) -> None:
    pictures(folder, *(f"test1/test1-{number}-0-img{side}.png" for number in range(5) for side in (0, 1)))
    rows = [
        {
            "sentence": f"There are {number} cups.",
            "label": ("True", "False")[number % 2],
            "identifier": f"test1-{number}-0-1",
            "left_url": "",
            "right_url": "",
        }
        for number in range(5)
    ]
    write_lines(folder / "test1.json", rows)


def m5b_vgr(folder: Path) -> None:
    rows = [
        {
            "sample_id": f"ha-{number}",
            "language": "ha",
            "topic": "Cups",
            "hypothesis": f"Akwai {number}.",
            "label": number % 2 == 1,
            "images": [png(number), png(number + 1)],
        }
        for number in range(5)
    ]
    write_parquet(folder / "data" / "ha-00000-of-00001.parquet", rows)


def m5b_vlod(folder: Path) -> None:
    pictures(folder / "images", *(f"{number}.jpg" for number in range(6)))
    rows = [
        {
            "sample_id": f"zu-{number}",
            "topic": "Cups",
            "hypothesis": f"Kukhona {number}.",
            "label": str(number + 1),
            "image_names": [f"{(number + one) % 6}.jpg" for one in range(5)],
        }
        for number in range(5)
    ]
    write_parquet(folder / "zu-00000-of-00001.parquet", rows)


def m5b_shards(folder: Path, code: str, labels: Sequence[str], *stacked: str) -> None:
    """As M5's own code reads them: the pictures of a row stacked in one."""
    path = folder / "wds" / code / "m5b-000000.tar"
    path.parent.mkdir(parents=True)
    with tarfile.open(path, "w") as archive:
        for number, label in enumerate(labels):
            files = {name: png(number)["bytes"] for name in ("vertically_stacked_images.jpg", *stacked)} | {
                name: text.encode()
                for name, text in {
                    "hypothesis": f"Akwai {number}.", "label_str": label, "topic": "Cups", "language": code,
                    "sample_id": f"{code}-{number}", "en_translation": f"There are {number}.",
                }.items()
            }  # fmt: skip
            for name, content in files.items():
                member = tarfile.TarInfo(f"{number:06d}.{name}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))


def m3exam(folder: Path) -> None:
    _m3exam(folder, slice(None))


def m3exam_cyclic(folder: Path) -> None:
    _m3exam(folder, slice(3))


def _m3exam(folder: Path, chosen: slice) -> None:
    inside = folder / "multimodal-question"
    pictures(inside / "images-thai", *(f"image-{number}.jpg" for number in range(3)))
    base = {"background_description": [], "need_image": "yes", "language": "thai", "subject_category": "math"}
    plain = ["(1) หนึ่ง", "(2) สอง", "(3) สาม"]
    rows = [
        {**base, "question_text": "(image)[image-0.jpg]\nเท่าไร", "options": plain, "answer_text": "2"},
        {**base, "question_text": "ไม่มีภาพ", "options": plain, "answer_text": "1"},
        {**base, "question_text": "ข้อใด", "options": ["A. (image)[image-1.jpg]", "B. (image)[image-2.jpg]"],
         "answer_text": "B"},
        {**base, "question_text": "ก (image)[image-1.jpg] ข", "options": ["4", "2"], "answer_text": "2"},
        {**base, "question_text": "?", "options": plain, "answer_text": "(3)",
         "background_description": ["ดู (image)[image-2.jpg]"]},
        {**base, "question_text": "(image)[image-0.jpg] (image)[image-0.jpg]", "options": plain, "answer_text": "1"},
    ]  # fmt: skip
    write_json(inside / "thai-questions-image.json", rows[chosen])


def _mmmu_rows(question: str) -> list[Row]:
    empty = {f"image_{number}": None for number in range(2, 8)}
    base = {"explanation": "", "question_type": "multiple-choice", "subfield": "Bonds", "image_1": png(1), **empty}
    return [
        {**base, "id": "validation_Economics_1", "question": f"{question} <image 1>", "options": "['1%', \"Bob's\"]",
         "answer": "B"},
        {**base, "id": "validation_Economics_2", "question": question, "image_2": png(2),
         "options": "['<image 1>', '<image 2>', 'x']", "answer": "A"},
        {**base, "id": "validation_Economics_3", "question": f"<image 1> {question}", "options": "[]",
         "question_type": "open", "answer": "['12', 'twelve']"},
        {**base, "id": "validation_Art_4", "question": f"<image 1> {question}", "options": "[]",
         "question_type": "open", "answer": "7.5"},
        {**base, "id": "validation_Art_5", "question": f"<image 1> {question}", "options": "['a', 'b', 'c', 'd', 'e']",
         "answer": "E"},
    ]  # fmt: skip


def mmmu(folder: Path) -> None:
    rows = _mmmu_rows("Which?")
    write_parquet(folder / "Economics" / "validation-00000-of-00001.parquet", rows[:3])
    write_parquet(folder / "Art" / "validation-00000-of-00001.parquet", rows[3:])


def xmmmu(folder: Path) -> None:
    for code, question in {"en": "Which?", "hi": "कौन?"}.items():
        write_parquet(folder / "data" / f"{code}-00000-of-00001.parquet", _mmmu_rows(question))


def cvqa(folder: Path) -> None:
    spoken = [
        ("Spanish", "Mexico"),
        ("Spanish", "Chile"),
        ("Hindi", "India"),
        ("Spanish", "Mexico"),
        ("Urdu", "India"),
    ]
    rows = [
        {
            "image": png(number),
            "ID": f"59_{number}",
            "Subset": str(subset),
            "Question": "¿Qué es?",
            "Translated Question": "What is it?",
            "Options": ["pan", "maíz", "sal", "té"],
            "Translated Options": ["bread", "corn", "salt", "tea"],
            "Label": number % 4,
            "Category": "Food",
        }
        for number, subset in enumerate(spoken)
    ]
    write_parquet(folder / "data" / "test-00000-of-00001.parquet", rows)


AUTHORS: Mapping[str, Callable[[Path], None]] = {
    write.__name__: write
    for write in (
        cvqa, m3exam, m3exam_cyclic, m5b_vgr, m5b_vlod, marvl, maxm, mme, mmmu, mtvqa, nlvr2, smpqa, xgqa, xm3600,
        xmmmu, xvnli,
    )
}  # fmt: skip


# --- in Centurio's form


def _centurio(name: str, files: Mapping[str, Callable[[int], Row]]) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        pictures(folder / "images", *(f"{number}.jpg" for number in range(5)))
        for file, row in files.items():
            rows = [{"context": ["Question?"], "label": [""], **row(number)} for number in range(5)]
            write_json(folder / name / file, rows)

    return write


def _yes_no(number: int) -> Row:
    return {"text_label": ("yes", "no")[number % 2], "image_id": f"{number}.jpg"}


def _letters(number: int) -> Row:
    question = (
        f"Q {number}\nOptions:\nA. one\nB. two\n Answer with the option's letter from the given choices directly."
    )
    return {"context": [question], "text_label": "AB"[number % 2], "image_id": [f"{number}.jpg"]}


def _rotated(number: int) -> Row:
    return {**_letters(number), "text_label": f"{'AB'[number % 2]}###q{number // 2}"}


def _two(number: int) -> Row:
    return {"context": f"Say {number}", "text_label": ("True", "False")[number % 2], "image_id": ["0.jpg", "1.jpg"]}


def _vgr(number: int) -> Row:
    question = (
        'Given the two images <image_placeholder><image_placeholder>, is it correct to say "x"? Answer yes or no.'
    )
    return {"context": [question], "text_label": "yes", "image_id": ["0.jpg", "1.jpg"]}


def _vlod(number: int) -> Row:
    return {
        "context": ["Which of " + "<image_placeholder>" * 5 + " is it? Choose one from [A, B, C, D, E]:"],
        "text_label": "ABCDE"[number],
        "image_id": [f"{one}.jpg" for one in range(5)],
    }


def _xm3600(folder: Path) -> None:
    pictures(folder / "images", *(f"{number}.jpg" for number in range(5)))
    rows = [{"context": "German", "label": "", "image_id": f"{number}", "text_label": "de"} for number in range(5)]
    write_json(folder / "xm3600" / "xm3600_de.json", rows)
    captions = [{"image_id": f"{number // 2}", "id": number, "caption": f"Satz {number}"} for number in range(10)]
    coco = {"annotations": captions, "images": [{"id": f"{number}"} for number in range(5)]}
    write_json(folder / "xm3600" / "xm3600_coco_de.json", coco)


def _answer(number: int) -> Row:
    return {"text_label": f"word {number}", "image_id": f"{number}"}


CENTURIO: Mapping[str, Callable[[Path], None]] = {
    "bin_mc": _centurio("babel-imagenet", {"mc_bin_sw_8.json": _letters}),
    "cvqa": _centurio("cvqa", {"cvqa_es-mexico.json": _letters, "cvqa_es-chile.json": _letters}),
    "m3exam": _centurio("m3exam", {"m3exam-thai.json": _letters, "m3exam-cycle-thai.json": _letters}),
    "m3exam_cyclic": _centurio("m3exam", {"m3exam-cycle-thai.json": _rotated}),
    "m5b_vgr": _centurio("m5b", {"m5b_vgr_ha.json": _vgr}),
    "m5b_vlod": _centurio("m5b", {"m5b_vlod_ha.json": _vlod}),
    "marvl": _centurio("marvl", {"marvl_test_ta.json": _two}),
    "maxm": _centurio(
        "maxm", {"maxm_ro_test.json": lambda number: {"text_label": ["a", "b"], "image_id": f"{number}.jpg"}}
    ),
    "mme": _centurio("MME", {"mme_test.json": _yes_no}),
    "mmmu": _centurio("mmmu", {"mmmu_en_validation.json": _letters}),
    "mtvqa": _centurio("mtvqa", {"mtvqa_test_it.json": _answer}),
    "nlvr2": _centurio("marvl", {"nlvr_test_en.json": _two}),
    "smpqa": _centurio("smpqa", {"zu_name.json": _answer, "zu_ground.json": _yes_no}),
    "xgqa": _centurio("xgqa", {f"xgqa_input_test_{code}.json": _answer for code in ("en", "ko")}),
    "xm3600": _xm3600,
    "xmmmu": _centurio("xmmmu", {"xmmmu_pt.json": _letters}),
    "xvnli": _centurio(
        "xvnli", {"xvnli_input_test_ar.json": lambda number: {"text_label": "maybe", "image_id": f"{number}",
                                                              "pair_id": f"pair-{number}"}}
    ),
}  # fmt: skip
