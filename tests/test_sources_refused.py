"""Rows and sources that cannot become a corpus: refused and mended rows are counted and named, a broken source is one
error that leaves nothing behind."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lvlm import cli
from lvlm.data.sources import writer
from lvlm.data.sources.writer import Source, preview_source, write_source
from lvlm.errors import InputError
from tests.corpora import write_rows
from tests.source_files import cauldron, folder_of_images, ledger, made, picture, said, shard, tar_of

PLACEHOLDER = "<image_placeholder>"


GOOD = {"id": "good", "conversations": said("Q?", "A.")}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "missing image": ({"image": "9.jpg", "conversations": said("<image>", "A.")}, "an image that is not there"),
    "path upwards": ({"image": "../0.jpg", "conversations": said("<image>", "A.")}, "leaves the image folder"),
    "absolute path": ({"image": "/etc/passwd", "conversations": said("<image>", "A.")}, "leaves the image folder"),
    "broken image": ({"image": "broken.jpg", "conversations": said("<image>", "A.")}, "cannot be decoded"),
    "no image for the token": ({"conversations": said("<image>\nQ?", "A.")}, "differ in number"),
    "two tokens for an image": ({"image": "0.jpg", "conversations": said("<image><image>", "A.")}, "differ in number"),
    "our placeholder": ({"conversations": said(f"Q {PLACEHOLDER}", "A.")}, "holds <image_placeholder>"),
    "empty answer": ({"conversations": said("Q?", " ")}, "an empty answer"),
    "no conversation": ({"conversations": []}, "no conversation"),
    "two questions": ({"conversations": [*said("Q?"), *said("R?", "A.")]}, "do not take turns"),
    "system turn": ({"conversations": [{"from": "system", "value": "S"}, *said("Q?", "A.")]}, "neither user nor"),
    "number for text": ({"conversations": [{"from": "human", "value": 3}, *said("Q?", "A.")[1:]]}, "no text"),
    "a video": ({"video": "a.mp4", "conversations": said("Q?", "A.")}, "a video"),
    "half a character": ({"conversations": said("\ud83d", "A.")}, "no corpus may hold"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_refused_row_is_counted_and_named_and_the_others_stay(tmp_path: Path, case: str) -> None:
    row, reason = REFUSED[case]
    source = tmp_path / "data" / "rows.json"
    folder_of_images(tmp_path / "data", "0.jpg")
    (tmp_path / "data" / "broken.jpg").write_bytes(picture()[:200])
    source.write_text(json.dumps([GOOD, row]))
    (tmp_path / "0.jpg").write_bytes(picture())
    corpus, report = made(tmp_path, "llava", source)
    assert corpus.ids("train", "en") == ("good",)
    (entry,) = ledger(tmp_path)
    assert reason in entry["reason"] and entry["place"] == f"{source}, row 1"
    assert report.refused == {entry["reason"]: 1}
    assert any("refused 1: " in line and "row 1" in line for line in report.lines())


@pytest.mark.parametrize(
    ("row", "turns", "reason"),
    [
        ({"conversations": said("Q?", "A.", "R?")}, (("Q?", "A."),), "a last question without an answer"),
        ({"conversations": [*said("", "Hi.")[1:], *said("Q?", "A.")]}, (("Q?", "A."),), "before the first question"),
        ({"id": [1], "conversations": said("Q?", "A.")}, (("Q?", "A."),), "neither text nor a whole number"),
    ],
)
def test_what_is_mended_is_counted(tmp_path: Path, row: dict[str, Any], turns: object, reason: str) -> None:
    corpus, report = made(tmp_path, "llava", write_rows(tmp_path / "rows.json", [row]))
    assert corpus.samples("train", "en")[0].turns == turns
    (given,) = report.mended
    assert reason in given


def test_an_image_behind_a_link_out_of_its_folder_is_taken_only_as_a_copy(tmp_path: Path) -> None:
    folder_of_images(tmp_path / "elsewhere", "1.jpg")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "coco").symlink_to(tmp_path / "elsewhere")
    rows = [GOOD, {"image": "coco/1.jpg", "conversations": said("<image>", "A.")}]
    source = Source("llava", (str(write_rows(tmp_path / "data" / "rows.json", rows)),))
    assert "--images copy" in next(iter(preview_source(source, 10).refused))
    corpus, report = made(tmp_path, "llava", *source.files, copy_images=True)
    assert report.written == 2 and not corpus.image_path("coco/1.jpg").is_symlink()


# --- sources that cannot be read


def parquet_cut_short(folder: Path) -> tuple[str, Path]:
    pq.write_table(pa.Table.from_pylist(cauldron(4)), folder / "x.parquet")
    content = (folder / "x.parquet").read_bytes()
    (folder / "x.parquet").write_bytes(content[: len(content) // 2])
    return "cauldron", folder / "x.parquet"


def page_of_parquet_broken(folder: Path) -> tuple[str, Path]:
    pq.write_table(pa.Table.from_pylist(cauldron(40)), folder / "x.parquet", write_page_checksum=True)
    content = bytearray((folder / "x.parquet").read_bytes())
    content[60:200] = b"\xff" * 140
    (folder / "x.parquet").write_bytes(content)
    return "cauldron", folder / "x.parquet"


def no_parquet(folder: Path) -> tuple[str, Path]:
    (folder / "x.parquet").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    return "parquet", folder / "x.parquet"


def other_columns(folder: Path) -> tuple[str, Path]:
    pq.write_table(pa.table({"picture": [b""], "caption": ["x"]}), folder / "x.parquet")
    return "cauldron", folder / "x.parquet"


def broken_json(folder: Path) -> tuple[str, Path]:
    (folder / "x.json").write_text(json.dumps([GOOD, GOOD])[:-9])
    return "llava", folder / "x.json"


def broken_json_line(folder: Path) -> tuple[str, Path]:
    (folder / "x.jsonl").write_text(json.dumps(GOOD) + "\n{'id': 1}\n")
    return "llava", folder / "x.jsonl"


def no_rows(folder: Path) -> tuple[str, Path]:
    (folder / "x.json").write_text("[]")
    return "llava", folder / "x.json"


def tar_cut_short(folder: Path) -> tuple[str, Path]:
    (folder / "x.tar").write_bytes(tar_of(shard(0, 4))[:3000])
    return "webdataset", folder / "x.tar"


def tar_cut_between_members(folder: Path) -> tuple[str, Path]:
    """As a download leaves it that ends with a whole block; tarfile itself takes it for a whole archive."""
    content = tar_of(shard(0, 2))
    (folder / "x.tar").write_bytes(content[: content.rindex(b"000000001.txt")])
    return "webdataset", folder / "x.tar"


def header_of_tar_broken(folder: Path) -> tuple[str, Path]:
    content = tar_of(shard(0, 2))
    at = content.rindex(b"000000001.jpg")
    (folder / "x.tar").write_bytes(content[:at] + b"#" * 40 + content[at + 40 :])
    return "webdataset", folder / "x.tar"


def gzip_cut_short(folder: Path) -> tuple[str, Path]:
    (folder / "x.tar.gz").write_bytes(gzip.compress(tar_of(shard(0, 4)))[:-30])
    return "webdataset", folder / "x.tar.gz"


def tar_of_folders_alone(folder: Path) -> tuple[str, Path]:
    (folder / "x.tar").write_bytes(tar_of([("readme.md", b"x")]))
    return "webdataset", folder / "x.tar"


BROKEN: Mapping[Callable[[Path], tuple[str, Path]], str] = {
    parquet_cut_short: "not a sound parquet file",
    page_of_parquet_broken: "not a sound parquet file",
    no_parquet: "not a sound parquet file",
    other_columns: "no column images and texts",
    broken_json: "broken JSON",
    broken_json_line: "line 2",
    no_rows: "holds no rows",
    tar_cut_short: "not a whole tar shard",
    tar_cut_between_members: "not a whole tar shard",
    header_of_tar_broken: "not a whole tar shard",
    gzip_cut_short: "not a whole tar shard",
    tar_of_folders_alone: "no .txt",
}


@pytest.mark.parametrize("make", BROKEN, ids=lambda make: make.__name__)
def test_a_broken_source_is_one_error_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], make: Callable[[Path], tuple[str, Path]]
) -> None:
    form, file = make(tmp_path)
    options = ["--answer", "a"] if form == "parquet" else []
    assert cli.main(["corpus", form, str(file), str(tmp_path / "corpus"), *options]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") and message.count("\n") == 1
    assert BROKEN[make] in message
    assert "x." in message or make is no_rows
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["llava", "absent.json"], ["absent.json does not exist"]),
        (["webdataset", "{0..1}.tar"], ["0.tar does not exist"]),
        (["webdataset", "{3..1}.tar"], ["runs backwards"]),
        (["webdataset", "https://example.org/0.tar"], ["Download it first or pipe it in"]),
        (["llava", "*.none"], ["No file matches"]),
        (["llava", "rows.json", "rows.json"], ["named twice"]),
        (["cauldron", "rows.json"], ["does not end in .parquet"]),
        (["llava", "rows.json", "--language", "xx"], ["Unknown language code 'xx'"]),
        (["llava", "rows.json", "--answer", "a"], ["--answer: the form 'llava' itself says"]),
        (["webdataset", "rows.json", "--image", "a"], ["--image: the form 'webdataset' itself says"]),
        (["llava", "rows.json", "--limit", "0"], ["--limit 0"]),
        (["llava", "rows.json", "--split", "a/b"], ["--split 'a/b'"]),
        (["llava", "rows.json", "--split", ".."], ["--split '..'"]),
        (["llava", "rows.json", "--split", "refused"], ["--split 'refused'"]),
        (["llava", "rows.json", "--split", "corpus.yaml"], ["--split 'corpus.yaml'"]),
        (["llava", "rows.json", "--images-root", "absent"], ["--images-root absent is not a folder"]),
        (["parquet", "t.parquet"], ["t.parquet, row 0", "--answer", "The columns are: a, b"]),
        (["parquet", "t.parquet", "--answer", "c"], ["no column 'c'", "The columns are: a, b"]),
    ],
)
def test_a_wrong_command_says_what_to_do(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    parts: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "rows.json", [GOOD])
    pq.write_table(pa.table({"a": ["x"], "b": ["y"]}), tmp_path / "t.parquet")
    first_option = next((place for place, word in enumerate(words) if word.startswith("--")), len(words))
    assert cli.main(["corpus", *words[:first_option], "out", *words[first_option:]]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and all(part in message for part in parts), message
    assert not (tmp_path / "out").exists()


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    source = Source("llava", (str(write_rows(tmp_path / "rows.json", [GOOD])),))
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "mine.txt").write_text("x")
    with pytest.raises(InputError, match="not an empty folder"):
        write_source(source, tmp_path / "corpus")
    assert [path.name for path in (tmp_path / "corpus").iterdir()] == ["mine.txt"]


def test_a_source_of_wrong_rows_alone_ends_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "PATIENCE", 10)
    rows = [{"image": f"{number}.jpg", "conversations": said("<image>", "A.")} for number in range(50)]
    source = Source("llava", (str(write_rows(tmp_path / "rows.json", rows)),))
    with pytest.raises(InputError, match=r"None of the first 10 rows .* 10 for an image that is not there"):
        write_source(source, tmp_path / "corpus")


def test_limit_counts_written_rows_and_preview_read_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [GOOD if number % 2 else {"conversations": []} for number in range(10)]
    file = str(write_rows(tmp_path / "rows.json", rows))
    assert write_source(Source("llava", (file,), limit=2), tmp_path / "corpus").read == 4
    assert cli.main(["corpus", "llava", file, str(tmp_path / "new"), "--preview", "5"]) == 0
    shown = capsys.readouterr().out
    assert "5 rows read: 2 written" in shown and "refused 3: no conversation" in shown
    assert json.loads(shown.splitlines()[0])["context"] == ["Q?"]
    assert not (tmp_path / "new").exists()
