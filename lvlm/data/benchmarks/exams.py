"""Multiple choice, as its authors distribute it: M3Exam, MMMU and xMMMU, CVQA. Called by `convert`."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence

from lvlm.data.benchmarks.forms import Record, Source, embedded, json_records, parquet_records
from lvlm.data.benchmarks.prompts import LETTERS, prompt
from lvlm.data.benchmarks.question import Question
from lvlm.data.checks import IMAGE_PLACEHOLDER

M3EXAM_IMAGE = re.compile(r"\(image\)\s*\[([^\]]+)\]")
MMMU_IMAGE = re.compile(r"<image (\d+)>")
LABEL = re.compile(r"\s*[(（]?\s*([A-Za-z]|\d{1,2})\s*[)）.．、:：]\s*")
"""What stands before an option: `(1)`, `A.`, `b)`."""


def read_m3exam(source: Source) -> Iterator[Question]:
    """`LANGUAGE-questions-image.json`, languages by their English names: `background_description`, `question_text` and
    `options` with images as `(image)[NAME]` in `images-LANGUAGE`, `answer_text` the label of an option or its text.

    Questions that name no image are no items here (Centurio asks those with at least one).
    """
    return _m3exam(source, cyclic=False)


def read_m3exam_cyclic(source: Source) -> Iterator[Question]:
    """`LANGUAGE-questions-image.json`, as for m3exam."""
    return _m3exam(source, cyclic=True)


def _m3exam(source: Source, *, cyclic: bool) -> Iterator[Question]:
    """Each question as it is, or `cyclic` once for every rotation of its options: ids are then QUESTION-ROTATION."""
    names = ["{language}-questions-image.json", "*/{language}-questions-image.json"]
    for path, said, code in source.files(*names):
        inside = path.parent.relative_to(source.folder).as_posix()
        for row, record in enumerate(json_records(path)):
            background = record.texts("background_description") if record.data.get("background_description") else ()
            labels, options = unlabelled(record.texts("options"))
            question = "\n".join([*background, record.text("question_text")])
            if not any(map(M3EXAM_IMAGE.search, [question, *options])):
                continue
            right = LETTERS.index(letter_of(record, "answer_text", labels, options))
            for turn in range(len(options) if cyclic else 1):
                parts = [question, *options[turn:], *options[:turn]]
                pictures = [name for part in parts for name in M3EXAM_IMAGE.findall(part)]
                asked, *turned = (M3EXAM_IMAGE.sub(IMAGE_PLACEHOLDER, part) for part in parts)
                places = [(f"images-{said}/{name}", f"{inside}/images-{said}/{name}", name) for name in pictures]
                yield Question(
                    task="m3exam_cyclic" if cyclic else "m3exam",
                    language=code,
                    id=f"{said}-{row:04d}-{turn}" if cyclic else f"{said}-{row:04d}",
                    prompt=prompt("m3exam", code, question=asked, options=turned),
                    answers=(LETTERS[(right - turn) % len(options)],),
                    images=tuple(source.image(record.where, *place) for place in places),
                    source=f"m3exam:{record.data.get('subject_category', 'all')}",
                    where=record.where,
                )


def read_mmmu(source: Source) -> Iterator[Question]:
    """`SUBJECT/validation-*.parquet` of MMMU, in English."""
    for path, *_ in source.files("*/validation-*.parquet", "validation-*.parquet", "*/*/validation-*.parquet"):
        for record in parquet_records(path):
            yield _mmmu("mmmu", "en", record)


def read_xmmmu(source: Source) -> Iterator[Question]:
    """`LANGUAGE-*.parquet` of xMMMU (PangeaBench), with the columns of MMMU."""
    for path, _, code in source.files("data/{language}-*.parquet", "{language}-*.parquet", "{language}.parquet"):
        for record in parquet_records(path):
            yield _mmmu("xmmmu", code, record)


def _mmmu(task: str, code: str, record: Record) -> Question:
    """`question` and `options` (Python text) with images as `<image 1>`, which are the columns `image_1` to `image_7`;
    an `open` question has one answer or a list, as Python text, and no options. Where a translation has lost the place
    of the image, the first comes before the question."""
    question, options = record.text("question"), _literal(record, "options")
    chosen = record.data.get("question_type", "multiple-choice") != "open" and bool(options)
    if not any(map(MMMU_IMAGE.search, [question, *options])):
        question = f"<image 1>\n{question}"
    parts = [question, *options] if chosen else [question]
    numbers = [number for part in parts for number in MMMU_IMAGE.findall(part)]
    pictures = tuple(embedded(record, record.value(f"image_{one}"), f"image_{one}") for one in numbers)
    question, *options = (MMMU_IMAGE.sub(IMAGE_PLACEHOLDER, part) for part in parts)
    name = record.text("id")
    return Question(
        task=task,
        language=code,
        id=name,
        prompt=prompt("mmmu" if chosen else "mmmu_open", code, question=question, options=options),
        answers=(letter_of(record, "answer", LETTERS, options),) if chosen else tuple(_literal(record, "answer")),
        images=pictures,
        source=f"{task}:{re.sub(r'^(dev|validation|test)_|_[0-9]+$', '', name)}",
        where=record.where,
    )


def read_cvqa(source: Source) -> Iterator[Question]:
    """Parquet of CVQA: `Question` and `Options` in the language of `Subset` (`('Spanish', 'Mexico')`, which becomes the
    source of the item), `Label` the place of the right option from 0."""
    for path, *_ in source.files("data/test-*.parquet", "test-*.parquet", "test*.parquet"):
        for record in parquet_records(path):
            subset = tuple(_literal(record, "Subset", opening="("))
            if len(subset) != 2:
                raise record.fail("Subset", f"must be a language and a country, not {record.value('Subset')!r}.")
            code, options = source.code(subset[0], record.where), record.texts("Options")
            if code is None:
                continue
            label = record.value("Label")
            if not isinstance(label, int) or not 0 <= label < len(options):
                hidden = " (the answers behind the leaderboard are hidden)" if label == -1 else ""
                raise record.fail(
                    "Label", f"is {label}{hidden}; an item needs the place of the right option from 0. Fill it in."
                )
            yield Question(
                task="cvqa",
                language=code,
                id=record.text("ID"),
                prompt=prompt("cvqa", code, question=record.text("Question"), options=options),
                answers=(LETTERS[label],),
                images=(embedded(record, record.value("image"), "image"),),
                source=f"cvqa:{'-'.join(part.strip().lower().replace(' ', '_') for part in subset)}",
                where=record.where,
            )


def unlabelled(options: Sequence[str]) -> tuple[tuple[str, ...], list[str]]:
    """(labels, texts) of options. A label is taken off where every option has one, in order from 1 or from A."""
    found_labels = [match[1].upper() if (match := LABEL.match(option)) else "" for option in options]
    for labels in (tuple(str(number) for number in range(1, len(options) + 1)), tuple(LETTERS[: len(options)])):
        if tuple(found_labels) == labels:
            return labels, [LABEL.sub("", option, count=1) for option in options]
    return tuple(LETTERS[: len(options)]), list(options)


def letter_of(record: Record, field: str, labels: Sequence[str], options: Sequence[str]) -> str:
    """The letter of the right option, which a field names by its label, by its letter or by its text."""
    said = record.text(field).strip()
    bare = said.strip("()（）.． ").upper()
    for known in (labels, options, LETTERS[: len(options)], [str(number) for number in range(1, len(options) + 1)]):
        for name in (bare, said):
            if name in known:
                return LETTERS[list(known).index(name)]
    raise record.fail(field, f"{said!r} is none of the {len(options)} options.")


def _literal(record: Record, field: str, *, opening: str = "[") -> list[str]:
    """A list of texts, also where it is written as Python text that begins with `opening`; plain text is a list of one,
    and blank text of none."""
    value = record.value(field)
    if isinstance(value, str) and value.strip().startswith(opening):
        try:
            value = ast.literal_eval(value.replace("\n", " ").strip())
        except (ValueError, SyntaxError) as error:
            raise record.fail(field, f"is no list that can be read: {value[:60]!r}.") from error
    if isinstance(value, str | int | float):
        return [str(value)] if str(value).strip() else []
    if not isinstance(value, list | tuple):
        raise record.fail(field, f"must be a list of texts, not {str(value)[:60]!r}.")
    return [str(one) for one in value]
