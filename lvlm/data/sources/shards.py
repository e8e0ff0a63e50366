"""WebDataset: tar shards, plain or gzipped, in which the files of a sample follow one another and share the name before
the first dot. Read from front to end, from a file or from standard input, and never unpacked.
"""

from __future__ import annotations

import gzip
import json
import sys
import tarfile
import zlib
from collections.abc import Container, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path
from typing import IO, Any, cast

from lvlm.data.sources.conversations import conversation
from lvlm.data.sources.images_texts import exchanges
from lvlm.data.sources.record import Fields, Form, Picture, Record, Refused, optional_text, placed, text_id
from lvlm.data.sources.tables import named_turns
from lvlm.errors import InputError

TEXTS = frozenset({"json", "txt"})
PICTURES = frozenset({"jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff"})
GZIP_MAGIC = b"\x1f\x8b"


@dataclass(slots=True)
class Shared:
    """The files of one sample, by what follows the first dot of their names."""

    key: str
    pictures: dict[str, bytes] = field(default_factory=dict)
    texts: dict[str, bytes] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)


class _Member(tarfile.TarInfo):
    """A header that cannot be read is an error wherever it stands: by itself tarfile ends there without a word."""

    @classmethod
    def frombuf(cls, buf: Any, encoding: str, errors: str) -> Any:
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # the mark of a tar's end
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError("no mark of its end" if not buf else str(error)) from error


def shard_rows(path: Path, texts: Container[str] = TEXTS) -> Iterator[tuple[str, Shared]]:
    """The samples of a shard, one at a time, with their pictures and the files with these endings; `-` is standard
    input."""
    shown = "standard input" if str(path) == "-" else str(path)
    key = ""
    try:
        for sample in _samples(path, texts):
            key = sample.key
            yield f"{shown}, sample {key}", sample
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        behind = f", after sample {key}" if key else ""
        raise InputError(
            f"{shown}{behind}: not a whole tar shard, plain or gzipped ({str(error)[:200]}). Get it anew."
        ) from error


def _samples(path: Path, texts: Container[str]) -> Iterator[Shared]:
    with ExitStack() as open_files:
        file = cast(
            BufferedReader, sys.stdin.buffer if str(path) == "-" else open_files.enter_context(open(path, "rb"))
        )
        stream: IO[bytes] = file
        if file.peek(2).startswith(GZIP_MAGIC):
            stream = cast(IO[bytes], gzip.GzipFile(fileobj=file))
        archive = open_files.enter_context(tarfile.open(fileobj=stream, mode="r|", tarinfo=_Member))
        current: Shared | None = None
        for member in archive:
            archive.members = []  # type: ignore[attr-defined]  # tarfile remembers them all
            if member.isdir():
                continue
            key, ending = _split(member.name)
            if current is None or key != current.key:
                if current is not None:
                    yield current
                current = Shared(key)
            _add(current, ending, texts, archive, member)
        if current is not None:
            yield current
        while stream.read(1 << 16):  # to the checksum of a gzipped one
            pass


def _split(name: str) -> tuple[str, str]:
    folder, slash, file = name.removeprefix("./").rpartition("/")
    stem, _, ending = file.partition(".")
    return f"{folder}{slash}{stem}", ending.lower()


def _add(sample: Shared, ending: str, texts: Container[str], archive: tarfile.TarFile, member: tarfile.TarInfo) -> None:
    kind = ending.rpartition(".")[2]
    if not member.isfile() or (kind not in PICTURES and ending not in texts):
        sample.others.append(ending if member.isfile() else f"{ending} (a link or a device)")
        return
    if ending in sample.pictures or ending in sample.texts:
        sample.others.append(f"{ending} (there twice)")
        return
    file = archive.extractfile(member)
    content = file.read() if file else b""
    if len(content) != member.size:
        raise tarfile.ReadError(f"{member.name} is cut short")
    if kind in PICTURES:
        sample.pictures[ending] = content
    else:
        sample.texts[ending] = content


def record(sample: Shared, fields: Fields) -> Record:
    """The pictures of a sample with what its .json holds (conversations, texts, or the fields that were named), else
    with its .txt as a caption."""
    images = tuple(Picture(content=content) for content in sample.pictures.values())
    data = _json(sample.texts["json"]) if "json" in sample.texts else {}
    mended = tuple(f"a file .{ending} of a sample was left out" for ending in sample.others)
    name, replaced = text_id(data.get(fields.id, sample.key) if fields.id else sample.key)
    source = optional_text(data.get(fields.source or "data_source"))
    if fields.answer is not None:
        if missing := [wanted for wanted in (fields.answer, fields.question) if wanted and wanted not in data]:
            raise Refused(f"no field {missing[0]} in the .json", f"fields: {', '.join(data)}"[:120])
        turns = named_turns(data, fields)
    elif "conversations" in data:
        turns, changed = conversation(data["conversations"])
        mended = (*mended, *changed)
    elif "texts" in data:
        turns, named = exchanges(data["texts"])
        source = source or named
    elif "txt" in sample.texts:
        turns = [(fields.prompt or "", _decoded(sample.texts["txt"], ".txt").strip())]
    else:
        raise Refused("no .txt, and no conversations or texts in a .json (name its fields with --answer)")
    return Record(
        turns=placed(turns, len(images), in_front="conversations" not in data),
        pictures=images,
        id=name,
        source=source,
        mended=(*mended, *replaced),
    )


def _json(content: bytes) -> Mapping[str, Any]:
    try:
        data = json.loads(_decoded(content, ".json"))
    except json.JSONDecodeError as error:
        raise Refused("broken JSON", str(error)) from error
    if not isinstance(data, dict):
        raise Refused("a .json that is no object", repr(data)[:60])
    return data


def _decoded(content: bytes, what: str) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Refused(f"a {what} that is not UTF-8 text", f"byte {error.start}") from error


FORM = Form(
    "WebDataset: tar shards of images with .json or .txt",
    (".tar", ".tar.gz", ".tgz"),
    shard_rows,
    record,
    fields=("question", "answer", "id", "source", "prompt"),
    streams=True,
)
