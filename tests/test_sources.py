"""Data sets in the forms in which others distribute them become corpora that open, plan and keep every pixel, in memory
that does not grow with them."""

from __future__ import annotations

import gzip
import io
import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from lvlm.data.corpus import open_corpus
from lvlm.data.sources.record import Fields
from lvlm.data.sources.writer import Source, write_source
from tests.corpora import write_rows
from tests.source_files import cauldron, folder_of_images, made, picture, said, shard, tar_of

PLACEHOLDER = "<image_placeholder>"


LLAVA = [
    {
        "id": "000000033471",
        "image": "coco/1.jpg",
        "conversations": said("<image>\nWhat?", "A bus.", "Red?", "Yes."),
    },
    {"id": "000000033471", "image": "coco/1.jpg", "conversations": said("Describe it.\n<image>", "A red bus.")},
    {"id": "wgByO4Y_0", "model": "", "conversations": said("Who are you?", "An assistant.")},
    {"id": 7, "image": "gqa/2.jpg", "conversations": said("<image>\nHow many?", "2")},
]


@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_llava_keeps_turns_images_and_order_and_makes_ids_unique(tmp_path: Path, suffix: str) -> None:
    source = write_rows(tmp_path / "data" / f"llava.{suffix}", LLAVA)
    folder_of_images(tmp_path / "data", "coco/1.jpg", "gqa/2.jpg")
    corpus, report = made(tmp_path, "llava", source, task="vqa")
    samples = corpus.samples("train", "en")
    assert [sample.id for sample in samples] == ["000000033471", "000000033471-2", "wgByO4Y_0", "7"]
    assert samples[0].turns == ((f"{PLACEHOLDER}\nWhat?", "A bus."), ("Red?", "Yes."))
    assert samples[1].turns[0][0] == f"Describe it.\n{PLACEHOLDER}"
    assert [sample.images for sample in samples] == [("coco/1.jpg",), ("coco/1.jpg",), (), ("gqa/2.jpg",)]
    assert {sample.task for sample in samples} == {"vqa"}
    assert (report.read, report.written, report.refused.total()) == (4, 4, 0)
    assert report.mended == {"an id that was taken was given a number": 1}


@pytest.mark.parametrize("copy", [False, True])
def test_images_are_linked_or_copied_and_never_encoded_anew(tmp_path: Path, copy: bool) -> None:
    source = write_rows(tmp_path / "llava.json", LLAVA)
    root = folder_of_images(tmp_path / "data", "coco/1.jpg", "gqa/2.jpg")
    corpus, _ = made(tmp_path, "llava", source, images_root=(root,), copy_images=copy)
    assert corpus.image_path("gqa/2.jpg").read_bytes() == (root / "gqa/2.jpg").read_bytes()
    assert (tmp_path / "corpus" / "images").is_symlink() is not copy


@pytest.mark.parametrize("copy", [False, True])
def test_images_are_found_over_several_folders(tmp_path: Path, copy: bool) -> None:
    """ShareGPT4V and LLaVA-NeXT: pictures of coco, sam and others, which people keep apart."""
    rows = [
        {"id": number, "image": name, "model": "gpt4v", "conversations": said("<image>\nDescribe.", f"Text {number}.")}
        for number, name in enumerate(["train2017/1.jpg", "images/sa_2.jpg"])
    ]
    source = write_rows(tmp_path / "sharegpt4v.json", rows)
    coco = folder_of_images(tmp_path / "data" / "coco", "train2017/1.jpg")
    sam = folder_of_images(tmp_path / "data" / "sam", "images/sa_2.jpg")
    corpus, _ = made(tmp_path, "llava", source, images_root=(coco, sam), copy_images=copy)
    names = [sample.images[0] for sample in corpus.samples("train", "en")]
    assert names == ["train2017/1.jpg", "images/sa_2.jpg"] if copy else ["coco/train2017/1.jpg", "sam/images/sa_2.jpg"]


def test_llava_next_as_parquet_with_images_inside(tmp_path: Path) -> None:
    """lmms-lab/LLaVA-NeXT-Data and LLaVA-OneVision-Data: the same rows, images as bytes."""
    rows = [
        {
            "id": f"{number}",
            "conversations": said("<image>\nWhat?", f"Thing {number}."),
            "data_source": "vqa",
            "image": {"bytes": picture(number, form), "path": None},
        }
        for number, form in enumerate(["JPEG", "PNG", "WEBP"])
    ]
    rows.append({"id": "text", "conversations": said("Hello", "Hi"), "data_source": "magpie", "image": None})
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "train-00000-of-00001.parquet")
    corpus, _ = made(tmp_path, "llava", tmp_path / "train-00000-of-00001.parquet")
    samples = corpus.samples("train", "en")
    assert [sample.source for sample in samples] == ["vqa", "vqa", "vqa", "magpie"]
    assert [Path(name).suffix for sample in samples for name in sample.images] == [".jpg", ".png", ".webp"]
    assert corpus.image_path(samples[1].images[0]).read_bytes() == rows[1]["image"]["bytes"]


def test_the_cauldron_becomes_conversations_over_all_images_of_a_row(tmp_path: Path) -> None:
    (tmp_path / "nlvr2").mkdir()
    for number in range(2):
        table = pa.Table.from_pylist(cauldron(3, start=3 * number))
        pq.write_table(table, tmp_path / "nlvr2" / f"train-{number:05d}-of-00002.parquet")
    corpus, report = made(tmp_path, "cauldron", tmp_path / "nlvr2", name="nlvr2")
    samples = corpus.samples("train", "en")
    assert (report.read, report.turns, report.images) == (6, 12, 9)
    assert samples[0].turns == (("Q0?", "A0."), ("Q1?", "A0."))
    assert samples[1].turns == ((f"{PLACEHOLDER}{PLACEHOLDER}\nQ0?", "A1."), ("Q1?", "A1."))
    assert samples[5].id == "nlvr2-00000005" and samples[5].source == "NLVR2"
    assert corpus.image_path(samples[5].images[1]).read_bytes() == picture(5)


def test_a_table_with_named_columns(tmp_path: Path) -> None:
    rows = [
        {"key": 5, "pic": picture(1), "ask": ["One?", "Two?"], "say": ["1", "2"], "kind": "counting"},
        {"key": 6, "pic": None, "ask": ["No picture?"], "say": ["Yes"], "kind": None},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
    fields = Fields(image="pic", question="ask", answer="say", id="key", source="kind")
    corpus, _ = made(tmp_path, "parquet", tmp_path / "t.parquet", fields=fields, name="table")
    first, second = corpus.samples("train", "en")
    assert (first.id, first.source, first.turns) == ("5", "counting", (("One?", "1"), ("Two?", "2")))
    assert (second.id, second.source, second.images) == ("6", "table", ())


def test_captions_of_a_table_are_answers_to_the_prompt(tmp_path: Path) -> None:
    folder_of_images(tmp_path, "a.jpg")
    pq.write_table(pa.table({"file": ["a.jpg"], "caption": ["A line."]}), tmp_path / "t.parquet")
    fields = Fields(image="file", answer="caption", prompt="Describe the image.")
    corpus, _ = made(tmp_path, "parquet", tmp_path / "t.parquet", fields=fields)
    (sample,) = corpus.samples("train", "en")
    assert sample.turns == (("Describe the image.", "A line."),) and sample.images == ("a.jpg",)


@pytest.mark.parametrize("ending", ["tar", "tar.gz"])
def test_webdataset_shards_are_read_in_order(tmp_path: Path, ending: str) -> None:
    for number in range(3):
        content = tar_of(shard(2 * number))
        (tmp_path / f"{number:05d}.{ending}").write_bytes(gzip.compress(content) if ending == "tar.gz" else content)
    pattern = tmp_path / ("{00000..00002}." + ending)
    corpus, report = made(tmp_path, "webdataset", pattern, fields=Fields(prompt="Describe."), split="captions")
    samples = corpus.samples("captions", "en")
    assert [sample.turns for sample in samples] == [(("Describe.", f"Caption {number}"),) for number in range(6)]
    assert [sample.id for sample in samples] == [f"{number:09d}" for number in range(6)]
    assert corpus.image_path(samples[4].images[0]).read_bytes() == picture(4)
    assert not report.mended


def test_webdataset_takes_fields_conversations_or_texts_from_its_json(tmp_path: Path) -> None:
    members = [
        ("a/1.png", picture(1, "PNG")),
        ("a/1.json", json.dumps({"conversations": said("<image>\nQ?", "A.")}).encode()),
        ("a/2.0.webp", picture(2, "WEBP")),
        ("a/2.1.webp", picture(3, "WEBP")),
        ("a/2.json", json.dumps({"texts": [{"user": "Q?", "assistant": "B.", "source": "s"}]}).encode()),
        ("a/2.cls", b"7"),
        ("a/2.meta.json", b"{}"),
        ("a/2.JSON", b"{}"),
        ("a/2.1.webp", picture(4, "WEBP")),
    ]
    (tmp_path / "x.tar").write_bytes(tar_of(members))
    corpus, report = made(tmp_path, "webdataset", tmp_path / "x.tar")
    first, second = corpus.samples("train", "en")
    assert (first.id, first.turns) == ("a/1", ((f"{PLACEHOLDER}\nQ?", "A."),))
    assert (second.source, second.turns, len(second.images)) == ("s", ((f"{PLACEHOLDER * 2}\nQ?", "B."),), 2)
    left_out = ("cls", "meta.json", "json (there twice)", "1.webp (there twice)")
    assert report.mended == {f"a file .{ending} of a sample was left out": 1 for ending in left_out}
    assert corpus.image_path(second.images[1]).read_bytes() == picture(3, "WEBP"), "the first of two of a name stays"

    (tmp_path / "y.tar").write_bytes(tar_of(shard(0)))
    fields = Fields(answer="caption", id="key", prompt="Say.")
    write_source(Source("webdataset", (str(tmp_path / "y.tar"),), fields=fields), tmp_path / "named")
    (first, _) = open_corpus(tmp_path / "named").samples("train", "en")
    assert (first.id, first.turns) == ("0", (("Say.", "Caption 0"),))


def test_a_shard_can_come_through_a_pipe(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "lvlm", "corpus", "webdataset", "-", str(tmp_path / "corpus"), "--prompt", "Say."]
    done = subprocess.run(command, input=tar_of(shard(0)), capture_output=True, check=True)
    assert b"2 rows read: 2 written" in done.stdout
    assert len(open_corpus(tmp_path / "corpus").samples("train", "en")) == 2


def test_files_of_centurios_trainer_become_a_folder(tmp_path: Path) -> None:
    rows = [
        {"context": [f"{PLACEHOLDER}\nQ?", "R?"], "label": ["A", "B"], "image_id": ["0.jpg"]},
        {"context": "Text?", "label": "Only.", "image_id": ""},
    ]
    folder_of_images(tmp_path, "0.jpg")
    corpus, _ = made(tmp_path, "centurio", write_rows(tmp_path / "mix.json", rows), name="mix", translatable=False)
    samples = corpus.samples("train", "en")
    assert [sample.id for sample in samples] == ["mix-00000000", "mix-00000001"]
    assert samples[0].turns == ((f"{PLACEHOLDER}\nQ?", "A"), ("R?", "B")) and samples[1].images == ()
    assert not corpus.translatable


@pytest.mark.parametrize("form", ["webdataset", "cauldron"])
def test_memory_does_not_grow_with_the_source(tmp_path: Path, form: str) -> None:
    """Peak memory of a child process: 120 MB of images may cost little more than 25 MB of them."""
    file = io.BytesIO()
    Image.effect_noise((640, 400), 90).convert("RGB").save(file, "PNG", compress_level=0)
    peaks = []
    for count in (32, 160):
        source = tmp_path / f"{count}.{'tar' if form == 'webdataset' else 'parquet'}"
        if form == "webdataset":
            members = [(f"{number}.{ending}", file.getvalue()) for number in range(count) for ending in ("png", "txt")]
            source.write_bytes(tar_of([(name, b"x" if name.endswith("txt") else image) for name, image in members]))
        else:
            texts = [{"user": "Q", "assistant": "A", "source": "s"}]
            table = pa.Table.from_pylist([{"images": [{"bytes": file.getvalue(), "path": None}], "texts": texts}] * 16)
            with pq.ParquetWriter(source, table.schema, use_dictionary=False) as out:
                for _ in range(count // 16):
                    out.write_table(table)
        code = (
            "from lvlm.data.sources.writer import Source, preview_source\n"
            f"preview_source(Source({form!r}, ({str(source)!r},)), {count})\n"
            "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
        peaks.append(int(done.stdout) / 1024)
    assert peaks[1] < peaks[0] + 40, peaks
