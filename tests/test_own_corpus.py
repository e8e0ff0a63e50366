"""The page on a study of the user's own corpus: its files are written, its commands run, its errors are said so."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from ablations.table import load_results
from sweeps import cli

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "sweeps" / "OWN_CORPUS.md").read_text(encoding="utf-8")


def blocks(language: str) -> dict[str, str]:
    """The fenced blocks in a language, under the first name in code before each."""
    found = {}
    for before, text in re.findall(rf"\n\n([^\n]+(?:\n[^\n]+)*)\n\n```{language}\n(.*?)```", PAGE, re.DOTALL):
        name = re.match(r"`([^`]+)`", before)
        found[name[1] if name else ""] = text
    return found


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The page's files, and more rows in the form of its rows."""
    for kind in ("yaml", "json", "python"):
        for name, text in blocks(kind).items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    for split in ("instruct", "test"):
        english = json.loads((tmp_path / "my_corpus" / split / "en.json").read_text(encoding="utf-8"))
        for code in ("en", "de", "sw"):
            path = tmp_path / "my_corpus" / split / f"{code}.json"
            given = json.loads(path.read_text(encoding="utf-8")) if path.exists() else english
            more = [{**row, "id": f"{row['id']}-{number}"} for number in range(3) for row in given]
            path.write_text(json.dumps([*given, *more], ensure_ascii=False), encoding="utf-8")
    (tmp_path / "my_corpus" / "images").mkdir()
    for number, name in enumerate(("kitchen", "garden")):
        Image.new("RGB", (40, 30), (100 * number, 90, 30)).save(tmp_path / "my_corpus" / "images" / f"{name}.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("LVLM_HOME", raising=False)
    return tmp_path


def test_the_page_leads_from_a_folder_of_json_and_images_to_a_report(place: Path) -> None:
    said = {}
    for line in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)[0].strip().splitlines():
        program, *arguments = shlex.split(line)
        assert program == "python"
        done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        said[" ".join(arguments[1:3])] = done.stdout
    assert "2 arms x 2 seeds: 4 cells" in said["sweeps plan"]
    assert "4 of 4 cells done, 0 failed" in said["sweeps launch"] and "% training" in said["sweeps status"]
    results = load_results(place / "runs/studies/my_study").table
    assert set(results["language"]) == {"en", "de", "sw"} and results["run"].nunique() == 4
    there = {file.name for file in (place / "runs/studies/my_study").iterdir()}
    assert {name for name in re.findall(r"- `([\w.]+)`:", PAGE) if "." in name} <= there


FAULTS = (
    ("my_corpus/corpus.yaml", "[en, de, sw]", "[en, de, xx]"),
    ("my_study.py", '"split": "instruct"', '"split": "train"'),
    ("my_study.py", "instruct.mix.languages", "instruct.mix.language"),
    ("my_study.py", 'path="instruct.mix.languages", levels=("en", "all")', 'path="model.tiles", levels=("one", "all")'),
    ("my_study.py", "    seeds=(0, 1),\n", ""),
)
"""In the order of the page: file, what stands there, what is written instead."""


@pytest.mark.parametrize("number", range(len(FAULTS)))
def test_an_error_of_the_page_is_said_so_before_anything_starts(
    place: Path, number: int, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = re.findall(r"```text\n(.*?)```", PAGE, re.DOTALL)[0].strip().splitlines()
    assert len(lines) == len(FAULTS)
    name, before, after = FAULTS[number]
    text = (place / name).read_text(encoding="utf-8")
    assert before in text
    (place / name).write_text(text.replace(before, after), encoding="utf-8")
    assert cli.main(["launch", "my_study.py", "--workers", "1"]) == 2
    said = capsys.readouterr().err
    assert lines[number] in said and said.count("\n") == 1
    assert not (place / "runs").exists(), "nothing was started or written"


def test_no_gpu_where_one_is_asked_for_is_one_paragraph(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sweeps.devices.DRIVERS", ())
    assert cli.main(["launch", "my_study.py", "compute.device=cuda"]) == 2
    said = capsys.readouterr().err
    assert "ask for a GPU (compute.device=cuda)" in said and said.count("\n") == 1
    assert not (place / "runs/studies").exists()
