"""A corpus of noise pictures in two languages and a run config on the tiny fakes, for the tests of training. Workers
import it too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from lvlm.config import RunConfig, make_config
from tests.tiny import TinyWorld, tiny_image, tiny_world

ANSWERS = {
    "en": ("red", "a blue square", "three small green stars beside it", "left"),
    "de": ("rot", "ein blaues Quadrat", "drei kleine grüne Sterne daneben", "links"),
}
QUESTIONS = {"en": "What colour is the circle?", "de": "Welche Farbe hat der Kreis?"}


def write_corpus(folder: Path, *, samples: int = 24, items: int = 4) -> Path:
    """A translatable corpus `noise` (en, de) with splits train, tune and test; one sample in six has no image, some
    have two turns."""
    (folder / "images").mkdir(parents=True)
    for number in range(max(8, items)):
        tiny_image(number).save(folder / "images" / f"{number}.png")
    for code, answers in ANSWERS.items():
        rows = []
        for index in range(samples):
            turns = 1 + index % 2
            rows.append(
                {
                    "id": f"s{index:03d}",
                    "context": [QUESTIONS[code]] * turns,
                    "label": [answers[(index + turn) % 4] for turn in range(turns)],
                    "image_id": [] if index % 6 == 5 else [f"{index % 8}.png"],
                    "task": "instruct",
                    "source": "noise",
                }
            )
        write_rows(folder / "train" / f"{code}.jsonl", rows)
        for split in ("tune", "test"):
            held = [
                {"id": f"{split}{index}", "context": [QUESTIONS[code]], "label": [""],
                 "text_label": [answers[index % 4]], "image_id": [f"{index}.png"], "task": "vqa", "source": "noise"}
                for index in range(items)
            ]  # fmt: skip
            write_rows(folder / split / f"{code}.jsonl", held)
    permissions = {"train": "train", "tune": "tune", "test": "report"}
    splits = {name: {"permission": permission} for name, permission in permissions.items()}
    entry = {"name": "noise", "languages": list(ANSWERS), "translatable": True, "splits": splits}
    (folder / "corpus.yaml").write_text(yaml.safe_dump(entry), encoding="utf-8")
    return folder


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """One JSON object per line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def run_config(corpus: Path, *, llm: str | None = None, tower: str | None = None, **changes: Any) -> RunConfig:
    """Two short stages on the tiny fakes: captions into the adapter, then adapter and LoRA with dropout.

    `changes` set dotted fields, with `__` for the dot. Another process passes the fakes' folders as `llm` and `tower`.
    """
    world = TinyWorld(Path(), llm, tower) if llm and tower else tiny_world()
    mix = {"corpora": [{"path": str(corpus), "split": "train"}]}
    data: dict[str, Any] = {
        "name": "tiny",
        "model": {"tower": world.tower, "llm": world.llm, "tiles": 2},
        "pretrain": {"mix": {**mix, "languages": "en"}, "steps": 4, "batch_samples": 4},
        "instruct": {
            "mix": {**mix, "languages": ["en", "de"]},
            "train": {"adapter": "full", "llm": "lora"},
            "lora": {"r": 4, "alpha": 8, "dropout": 0.1},
            "steps": 6,
            "batch_samples": 8,
        },
        "evaluate": {
            "corpora": [{"path": str(corpus), "split": "test"}],
            "tune_corpora": [{"path": str(corpus), "split": "tune"}],
            "tune_items": 2,
            "max_new_tokens": 4,
        },
        "compute": {"device": "cpu", "threads": 1},
    }
    for name, value in changes.items():
        place = data
        *parents, last = name.split("__")
        for parent in parents:
            place = place[parent]
        place[last] = value
    return make_config(data)
