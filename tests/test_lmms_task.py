"""lmms-eval itself, where it is installed, runs a task of local files on a checkpoint of ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lvlm import cli
from lvlm.evaluate.generate import Prompt, generate_answers
from lvlm.model.checkpoints import load
from tests.tiny import tiny_image, tiny_world

QUESTIONS = ("What colour is it?", "Welche Farbe hat der Kreis?", "红色？")
TASK = """
task: toy
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/toy.jsonl}}}}
test_split: test
output_type: generate_until
doc_to_visual: !function toy.pictures
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{max_new_tokens: 6, temperature: 0, do_sample: false}}
process_results: !function toy.results
metric_list: [{{metric: exact, aggregation: mean, higher_is_better: true}}]
"""
CODE = """
from PIL import Image


def pictures(document):
    return [Image.open(document["picture"])]


def results(document, answers):
    return {"exact": float(answers[0] == document["answer"])}
"""


def test_a_local_task_gets_our_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    pytest.importorskip("lmms_eval", reason="lmms-eval is not installed")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    model, processor = tiny_world().assemble(seed=3)
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    files = [tmp_path / f"{number}.png" for number in range(len(QUESTIONS))]
    for number, file in enumerate(files):
        tiny_image(number).save(file)
    prompts = [Prompt(question, (file,)) for question, file in zip(QUESTIONS, files, strict=True)]
    answers = generate_answers(*load(tmp_path / "model"), prompts, max_new_tokens=6)
    golds = [*answers[:2], "never said"]
    rows = [
        {"question": prompt.text, "picture": str(prompt.images[0]), "answer": gold}
        for prompt, gold in zip(prompts, golds, strict=True)
    ]
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    (tasks / "toy.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (tasks / "toy.yaml").write_text(TASK.format(folder=tasks))
    (tasks / "toy.py").write_text(CODE)
    words = ["--tasks", "toy", "--include_path", str(tasks), "--batch_size", "2", "--device", "cpu"]
    words += ["--log_samples", "--output_path", str(tmp_path / "out")]
    assert cli.main(["lmms-eval", str(tmp_path / "model"), *words]) == 0
    (table,) = (tmp_path / "out").rglob("*_results.json")
    assert json.loads(table.read_text())["results"]["toy"]["exact,none"] == pytest.approx(2 / 3)
    (samples,) = (tmp_path / "out").rglob("*_samples_toy.jsonl")
    said = [json.loads(line) for line in samples.read_text().splitlines()]
    assert [row["filtered_resps"] for row in sorted(said, key=lambda row: row["doc_id"])] == answers
