"""Statements about one or more pictures, as their authors distribute them: XVNLI, MaRVL, NLVR2, M5B-VGR, M5B-VLOD.
Called by `convert`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from lvlm.data.benchmarks.forms import Record, Source, embedded, found, json_records, parquet_records, shard_records
from lvlm.data.benchmarks.prompts import LETTERS, prompt
from lvlm.data.benchmarks.question import Picture, Question

ENTAILMENT = {"entailment": "yes", "contradiction": "no", "neutral": "maybe"}
TRUTH = {"true": "yes", "false": "no", "yes": "yes", "no": "no", "1": "yes", "0": "no"}
STACKED = {"vgr": "horizontally_stacked_images.jpg", "vlod": "two_col_stacked_images.jpg"}
"""The picture in M5's shards that its code asks about unless told otherwise."""
SHARD_TEXTS = ("hypothesis", "label_str", "topic", "language", "sample_id")
OUTLIER = {str(number): letter for number, letter in enumerate(LETTERS[:5], start=1)} | {
    letter.lower(): letter for letter in LETTERS[:5]
}


def read_xvnli(source: Source) -> Iterator[Question]:
    """`LANGUAGE/test.jsonl` (IGLUE): `sentence2` is the hypothesis, `gold_label` what the picture `Flikr30kID` says of
    it; rows whose annotators did not agree (`-`) are no items."""
    for path, _, code in source.files("{language}/test.jsonl", "annotations/{language}/test.jsonl"):
        for record in json_records(path):
            if record.text("gold_label") == "-":
                continue
            yield Question(
                task="xvnli",
                language=code,
                id=record.text("pairID"),
                prompt=prompt("xvnli", code, hypothesis=record.text("sentence2")),
                answers=(_answer(record, "gold_label", ENTAILMENT),),
                images=(_flickr(record, source),),
                source="xvnli",
                where=record.where,
            )


def _flickr(record: Record, source: Source) -> str:
    name = record.text("Flikr30kID")
    return source.image(record.where, name, f"flickr30k-images/{name}", f"flickr30k_images/{name}")


def read_marvl(source: Source) -> Iterator[Question]:
    """`marvl-LANGUAGE.jsonl`: `caption` is the statement about `left_img` and `right_img`, which lie under
    `LANGUAGE/images/CONCEPT`; `label` is its truth."""
    name = "marvl-{language}.jsonl"
    names = [
        name,
        f"annotations/{name}",
        f"zero_shot/annotations/{name}",
        f"{{language}}/annotations/{name}",
        f"*/{{language}}/annotations/{name}",
    ]
    for path, _, code in source.files(*names):
        for record in json_records(path):
            concept, here = record.text("concept"), record.text("language")
            pictures = []
            for side in ("left_img", "right_img"):
                image = record.text(side)
                inside = image if "/" in image else f"{concept}/{image}"
                pictures.append(
                    source.image(record.where, f"{here}/images/{inside}", f"images/{here}/{inside}", inside)
                )
            yield _grounded("marvl", code, record, record.text("id"), record.text("caption"), tuple(pictures))


def read_nlvr2(source: Source) -> Iterator[Question]:
    """`test1.json` (JSON Lines; IGLUE calls it `test.jsonl`): `sentence` is the statement, and the pictures carry the
    `identifier` without its last number. The English of MaRVL."""
    for path, *_ in source.files("test1.json", "data/test1.json", "nlvr2/data/test1.json", "test.jsonl",
                                  "annotations/test.jsonl"):  # fmt: skip
        for record in json_records(path):
            name = record.text("identifier")
            stem, split = name.rpartition("-")[0], name.partition("-")[0]
            pictures = tuple(
                source.image(record.where, f"{stem}-img{number}", f"{split}/{stem}-img{number}") for number in (0, 1)
            )
            yield _grounded("marvl", "en", record, name, record.text("sentence"), pictures)


def read_vgr(source: Source) -> Iterator[Question]:
    """M5B-VGR, as parquet, `LANGUAGE-*.parquet` or with a column `language`: `hypothesis` about two pictures, `label`
    its truth; or as shards, `wds/LANGUAGE/*.tar`: the two side by side in one picture, `label_str` the truth."""
    for code, record in _m5b(source):
        pictures = _pictures("vgr", record, source, number=2)
        yield _grounded("vgr", code, record, record.text("sample_id"), record.text("hypothesis"), pictures)


def read_vlod(source: Source) -> Iterator[Question]:
    """M5B-VLOD, as parquet, `LANGUAGE-*.parquet` or with a column `language`: five pictures, of which `label` (1 to 5,
    or a letter) does not match `hypothesis`; or as shards, `wds/LANGUAGE/*.tar`: the five in two columns of one
    picture, the label in `label_str`."""
    for code, record in _m5b(source):
        pictures = _pictures("vlod", record, source, number=5)
        yield Question(
            task="vlod",
            language=code,
            id=record.text("sample_id"),
            prompt=prompt("vlod", code, hypothesis=record.text("hypothesis"), images=len(pictures)),
            answers=(_answer(record, _label(record), OUTLIER),),
            images=pictures,
            source=_topic("vlod", record),
            where=record.where,
        )


def _m5b(source: Source) -> Iterator[tuple[str, Record]]:
    names = ["data/{language}-*.parquet", "{language}-*.parquet", "{language}.parquet", "data/{language}.parquet"]
    for path, said in found(source.folder, [*names, "wds/{language}/*.tar", "{language}/*.tar"]):
        for record in shard_records(path, SHARD_TEXTS) if path.suffix == ".tar" else parquet_records(path):
            language = record.text("language") if "language" in record.data else said
            if code := source.code(language, record.where):
                yield code, record


def _label(record: Record) -> str:
    return "label_str" if "label_str" in record.data else "label"


def _pictures(task: str, record: Record, source: Source, *, number: int) -> tuple[Picture, ...]:
    """The pictures of a row: stacked in one, in a list `images`, or by the names in `image_names` under the image
    folder."""
    if (stacked := STACKED[task]) in record.data:
        return (embedded(record, record.value(stacked), stacked),)
    field = "images" if "images" in record.data else "image_names"
    values = record.value(field)
    if not isinstance(values, list) or len(values) != number:
        raise record.fail(field, f"must list {number} pictures.")
    if field == "images":
        return tuple(embedded(record, value, field) for value in values)
    return tuple(source.image(record.where, name) for name in record.texts(field))


def _grounded(
    task: str, code: str, record: Record, name: str, hypothesis: str, pictures: tuple[Picture, ...]
) -> Question:
    text = prompt(task, code, hypothesis=hypothesis, images=len(pictures))
    answers = (_answer(record, _label(record), TRUTH),)
    return Question(task, code, name, text, answers, pictures, _topic(task, record), record.where)


def _topic(task: str, record: Record) -> str:
    return f"{task}:{record.text('topic')}" if record.data.get("topic") else task


def _answer(record: Record, field: str, answers: Mapping[str, str]) -> str:
    said = str(record.value(field)).strip().lower()
    if said not in answers:
        raise record.fail(field, f"must be one of {', '.join(answers)}, not {said!r}.")
    return answers[said]
