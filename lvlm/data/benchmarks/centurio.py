"""Benchmarks in Centurio's JSON form: a file per language, whose rows hold the whole prompt or what its code fills into
a template. Called by `convert`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lvlm.data.benchmarks.forms import Record, Source, found, json_object, json_records
from lvlm.data.benchmarks.prompts import prompt
from lvlm.data.benchmarks.question import Question

PATTERNS: Mapping[str, tuple[tuple[str, str], ...]] = {
    "bin_mc": (("mc_bin_{language}_8.json", "bin_mc"),),
    "cvqa": (("cvqa_{language}.json", "cvqa"),),
    "m3exam": (("m3exam-{language}.json", "m3exam"),),
    "m3exam_cyclic": (("m3exam-cycle-{language}.json", "m3exam_cyclic"),),
    "m5b_vgr": (("m5b_vgr_{language}.json", "vgr"),),
    "m5b_vlod": (("m5b_vlod_{language}.json", "vlod"),),
    "marvl": (("marvl_test_{language}.json", "marvl"),),
    "maxm": (("maxm_{language}_test.json", "maxm"),),
    "mme": (("mme_test.json", "mme"),),
    "mmmu": (("mmmu_{language}_validation.json", "mmmu"),),
    "mtvqa": (("mtvqa_test_{language}.json", "mtvqa"),),
    "nlvr2": (("nlvr_test_{language}.json", "marvl"),),
    "smpqa": (("{language}_name.json", "smpqa_read"), ("{language}_ground.json", "smpqa_ground")),
    "xgqa": (("xgqa_input_test_{language}.json", "xgqa"),),
    "xm3600": (("xm3600_{language}.json", "xm3600"),),
    "xmmmu": (("xmmmu_{language}.json", "xmmmu"),),
    "xvnli": (("xvnli_input_test_{language}.json", "xvnli"),),
}
"""Benchmark -> names of its files, with the task of each. Those of cvqa, m5b_vgr, m5b_vlod and xmmmu are ours, by
analogy: Centurio's code names none."""

TRUTH = {"True": "yes", "False": "no"}
"""Labels of marvl."""
TEMPLATES = ("marvl", "xm3600", "xvnli")
"""Tasks whose rows hold a hypothesis, or the name of a language, and no whole prompt."""


@dataclass(frozen=True, slots=True)
class _Part:
    """The rows of one file, and where it comes from."""

    task: str
    code: str
    said: str
    path: Path


def has_centurio(name: str, folder: Path) -> bool:
    """Whether the folder holds files of this benchmark in Centurio's form."""
    return any(_files(folder, pattern) for pattern, _ in PATTERNS[name])


def read_centurio(name: str, source: Source) -> Iterator[Question]:
    """The items of a benchmark in Centurio's form, each with the number of its row as its id where it has none."""
    for pattern, task in PATTERNS[name]:
        for path, said in _files(source.folder, pattern):
            if said.startswith(("coco_", "cycle-")):  # XM3600's captions, and M3Exam's questions in every rotation
                continue
            code = source.code((said.partition("-")[0] if task == "cvqa" else said) or "en", str(path))
            if code is None:
                continue
            part = _Part(task, code, said, path)
            captions = _captions(part) if task == "xm3600" else {}
            for row, record in enumerate(json_records(path)):
                yield _question(part, row, record, source, captions)


def _files(folder: Path, pattern: str) -> list[tuple[Path, str]]:
    return found(folder, [pattern, f"*/{pattern}"])


def _captions(part: _Part) -> dict[str, list[str]]:
    """Image -> its captions, from `xm3600_coco_LANGUAGE.json` beside the rows."""
    path = part.path.with_name(f"xm3600_coco_{part.said}.json")
    captions: dict[str, list[str]] = {}
    for annotation in json_object(path).objects("annotations"):
        captions.setdefault(annotation.text("image_id"), []).append(annotation.text("caption"))
    return captions


def _question(part: _Part, row: int, record: Record, source: Source, captions: Mapping[str, list[str]]) -> Question:
    names, contexts = _image_names(record), record.texts("context")
    if len(contexts) != 1:
        raise record.fail("context", f"must hold one question, not {len(contexts)}.")
    said = contexts[0]
    return Question(
        task=part.task,
        language=part.code,
        id=_name(part, row, record, names),
        prompt=prompt(part.task, part.code, hypothesis=said, images=len(names)) if part.task in TEMPLATES else said,
        answers=_answers(part, record, names, captions),
        images=tuple(source.image(record.where, name) for name in names),
        source=f"cvqa:{part.said}" if part.task == "cvqa" else part.task,
        where=record.where,
    )


def _name(part: _Part, row: int, record: Record, names: Sequence[str]) -> str:
    """The id of an item: the row's own, else its image or the number of the row."""
    if part.task == "m3exam_cyclic":
        return f"{_cyclic(record)[1]}-{row:05d}"
    if own := next((field for field in ("id", "pair_id", "question_id") if field in record.data), None):
        return record.text(own)
    if part.task == "xm3600":
        return names[0] if names else ""
    return f"{part.said}-{row:05d}" if part.task == "cvqa" else f"{row:05d}"


def _answers(part: _Part, record: Record, names: Sequence[str], captions: Mapping[str, list[str]]) -> tuple[str, ...]:
    if part.task == "xm3600":
        if not names or names[0] not in captions:
            raise record.fail("image_id", f"xm3600_coco_{part.said}.json has no caption of '{', '.join(names)}'.")
        return tuple(captions[names[0]])
    if part.task == "m3exam_cyclic":
        return _cyclic(record)[:1]
    answers = record.texts("text_label")
    return tuple(TRUTH.get(one, one) for one in answers) if part.task == "marvl" else answers


def _cyclic(record: Record) -> tuple[str, str]:
    """(letter, id of the question, which its rotations share)."""
    letter, mark, question = record.text("text_label").partition("###")
    if not mark:
        raise record.fail("text_label", f"must be LETTER###QUESTION_ID, not '{letter[:60]}'.")
    return letter, question


def _image_names(record: Record) -> tuple[str, ...]:
    if "left_image" in record.data:
        return record.text("left_image"), record.text("right_image")
    return tuple(name for name in record.texts("image_id") if name)
