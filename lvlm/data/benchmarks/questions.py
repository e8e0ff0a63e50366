"""Captions and questions with short answers, as their authors distribute them: XM3600, MaXM, xGQA, MTVQA, SMPQA, MME.
Called by `convert`."""

from __future__ import annotations

from collections.abc import Iterator

from lvlm.data.benchmarks.forms import Record, Source, embedded, json_object, json_records, parquet_records, text_of
from lvlm.data.benchmarks.prompts import asked, prompt
from lvlm.data.benchmarks.question import Question
from lvlm.errors import InputError


def read_xm3600(source: Source) -> Iterator[Question]:
    """`captions.jsonl`: a line per image with `image/key`, and under each language `caption`, a list of texts."""
    for path, *_ in source.files("captions.jsonl", "*/captions.jsonl"):
        for record in json_records(path):
            key = record.text("image/key")
            picture = source.image(record.where, key)
            for said, entry in record.data.items():
                if not isinstance(entry, dict) or "caption" not in entry:
                    continue
                code = source.code(said, record.where)
                if code is None:
                    continue
                captions = Record(f"{record.where}, field '{said}'", entry).texts("caption")
                yield Question(
                    "xm3600", code, key, prompt("xm3600", code), captions, (picture,), "xm3600", record.where
                )


def read_maxm(source: Source) -> Iterator[Question]:
    """`maxm_v1_LANGUAGE.json`: `annotations`, each with `image_id` and `qa_pairs` of `question_id`, `question`,
    `answers` and `processed_answers` (those that count, where there are any)."""
    for path, _, code in source.files("maxm_v1_{language}.json", "*/maxm_v1_{language}.json"):
        for entry in json_object(path).objects("annotations"):
            picture = source.image(entry.where, entry.text("image_id"))
            for pair in entry.objects("qa_pairs"):
                answers = pair.texts("processed_answers") if pair.data.get("processed_answers") else ()
                yield Question(
                    task="maxm",
                    language=code,
                    id=pair.text("question_id"),
                    prompt=prompt("maxm", code, question=asked(pair.text("question"))),
                    answers=answers or pair.texts("answers"),
                    images=(picture,),
                    source="maxm",
                    where=pair.where,
                )


def read_xgqa(source: Source) -> Iterator[Question]:
    """`testdev_balanced_questions_LANGUAGE.json` or `LANGUAGE/test.json`: question id -> `imageId`, `question`,
    `answer` (in English)."""
    names = [
        "testdev_balanced_questions_{language}.json",
        "zero_shot/testdev_balanced_questions_{language}.json",
        "annotations/zero_shot/testdev_balanced_questions_{language}.json",
        "data/zero_shot/testdev_balanced_questions_{language}.json",
        "{language}/test.json",
        "few_shot/{language}/test.json",
        "annotations/few_shot/{language}/test.json",
        "data/few_shot/{language}/test.json",
    ]
    for path, _, code in source.files(*names):
        for record in json_records(path):
            yield Question(
                task="xgqa",
                language=code,
                id=record.text("key" if "key" in record.data else "questionId"),
                prompt=prompt("xgqa", code, question=asked(record.text("question"))),
                answers=record.texts("answer"),
                images=(source.image(record.where, record.text("imageId")),),
                source="xgqa",
                where=record.where,
            )


def read_mtvqa(source: Source) -> Iterator[Question]:
    """Parquet with `image`, `id`, `lang`, and `qa_pairs`: a list of `question` and `answer`, mostly as Python text."""
    for path, *_ in source.files("data/test-*.parquet", "test-*.parquet", "test*.parquet"):
        for record in parquet_records(path):
            code = source.code(record.text("lang"), record.where)
            if code is None:
                continue
            picture = embedded(record, record.value("image"), "image")
            for number, pair in enumerate(record.objects("qa_pairs")):
                yield Question(
                    task="mtvqa",
                    language=code,
                    id=f"{record.text('id')}-{number}",
                    prompt=prompt("mtvqa", code, question=pair.text("question")),
                    answers=pair.texts("answer"),
                    images=(picture,),
                    source="mtvqa",
                    where=pair.where,
                )


def read_smpqa(source: Source) -> Iterator[Question]:
    """`bar_annotations_LANGUAGE.json` and `pie_annotations_LANGUAGE.json`: a plot a row, with `image`, one or more of
    `questions_name` and `answer_name` (to read), and of `question_ground` and `answer_ground` (yes or no)."""
    fields = {
        "smpqa_read": (("questions_name", "question_name"), ("answer_name", "answers_name")),
        "smpqa_ground": (("question_ground", "questions_ground"), ("answer_ground", "answers_ground")),
    }
    for kind in ("bar", "pie"):
        name = f"{kind}_annotations_{{language}}.json"
        for path, _, code in source.files(name, f"*/{name}"):
            for row, record in enumerate(json_records(path)):
                picture = source.image(record.where, record.text("image"))
                for task, (of_question, of_answer) in fields.items():
                    questions, answers = (
                        record.texts(next((one for one in names if one in record.data), names[0]))
                        for names in (of_question, of_answer)
                    )
                    if len(questions) != len(answers):
                        raise record.fail(of_answer[0], f"has {len(answers)} answers to {len(questions)} questions.")
                    for number, (question, answer) in enumerate(zip(questions, answers, strict=True)):
                        yield Question(
                            task=task,
                            language=code,
                            id=f"{kind}-{row:03d}-{number}",
                            prompt=prompt(task, code, question=question),
                            answers=(answer,),
                            images=(picture,),
                            source=f"smpqa:{kind}",
                            where=record.where,
                        )


def read_mme(source: Source) -> Iterator[Question]:
    """A folder per category with a text file beside each image, or in `questions_answers_YN` beside `images`; its lines
    are a question, a tab and Yes or No."""
    paths = sorted([*source.folder.glob("*/*.txt"), *source.folder.glob("*/questions_answers_YN/*.txt")])
    for path in paths:
        category = path.relative_to(source.folder).parts[0]
        picture = source.image(str(path), f"{category}/{path.stem}", f"{category}/images/{path.stem}")
        for number, line in enumerate(text_of(path).splitlines(), start=1):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            question, tab, answer = line.rpartition("\t")
            if not tab or answer.strip().lower() not in ("yes", "no"):
                raise InputError(f"{where}: must be a question, a tab and Yes or No, not {line[:60]!r}.")
            yield Question(
                task="mme",
                language="en",
                id=f"{category}-{path.stem}-{number}",
                prompt=prompt("mme", "en", question=question),
                answers=(answer.strip(),),
                images=(picture,),
                source=f"mme:{category}",
                where=where,
            )
