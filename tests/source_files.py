"""Small files in the forms in which others distribute data sets, and the corpora made of them."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from lvlm.data.corpus import Corpus, open_corpus
from lvlm.data.plan import build_plan
from lvlm.data.sources.writer import Report, Source, write_source
from lvlm.settings import StageConfig


def picture(number: int = 0, form: str = "JPEG") -> bytes:
    """The bytes of an image file."""
    file = io.BytesIO()
    Image.new("RGB", (20 + number, 12), (40 * number % 256, 90, 120)).save(file, form)
    return file.getvalue()


def folder_of_images(root: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(picture(number))
    return root


def said(*texts: str) -> list[dict[str, str]]:
    """LLaVA's conversation of alternating turns."""
    return [{"from": ("human", "gpt")[place % 2], "value": text} for place, text in enumerate(texts)]


def made(tmp_path: Path, form: str, *files: Path | str, **changes: Any) -> tuple[Corpus, Report]:
    """The corpus of a source, opened and checked as a plan does, its images decoded."""
    report = write_source(Source(form, tuple(map(str, files)), **changes), tmp_path / "corpus")
    corpus = open_corpus(tmp_path / "corpus")
    split = changes.get("split", "train")
    corpus.check(split, images=True)
    config = StageConfig.model_validate({"mix": {"corpora": [{"path": "c", "split": split}], "languages": ["en"]}})
    assert len(build_plan("instruct", config, seed=0, corpora={"c": corpus}).order) == report.written
    return corpus, report


def ledger(tmp_path: Path) -> list[dict[str, Any]]:
    lines = (tmp_path / "corpus" / "refused.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def cauldron(rows: int, start: int = 0) -> list[dict[str, Any]]:
    """Rows as HuggingFaceM4/the_cauldron has them; every second one has two images."""
    return [
        {
            "images": [{"bytes": picture(number), "path": None}] * (1 + number % 2),
            "texts": [{"user": f"Q{turn}?", "assistant": f"A{number}.", "source": "NLVR2"} for turn in range(2)],
        }
        for number in range(start, start + rows)
    ]


def tar_of(members: Sequence[tuple[str, bytes]]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


def shard(start: int, samples: int = 2) -> list[tuple[str, bytes]]:
    """What img2dataset writes: an image, its caption and metadata that say the same."""
    return [
        (f"{number:09d}.{ending}", content)
        for number in range(start, start + samples)
        for ending, content in (
            ("jpg", picture(number)),
            ("json", json.dumps({"caption": f"Caption {number}", "key": number, "status": "success"}).encode()),
            ("txt", f"Caption {number}\n".encode()),
        )
    ]
