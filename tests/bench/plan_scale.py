"""Seconds and peak memory of `python -m lvlm plan` on generated text in 100 languages, by the number of samples.

python tests/bench/plan_scale.py [--samples 10000 100000 1000000] [--shapes spread parallel]    about five minutes
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml
from loops.measure import load, table

from lvlm.data.counts import MANY_SAMPLES
from lvlm.data.readers import LARGE_BYTES
from lvlm.languages import Language
from lvlm.languages import table as all_languages

EXPLANATION = """\
A sample is a question of six made-up words of two to six letters and a one-word answer, as in visual question
answering, in the script of its language: about 130 bytes. Questions never repeat; a language has 2,000 answers.
`spread`: the language files share no ids and hold all samples together, as corpora collected from the web do; the mix
keeps every sample in its language. `parallel`: every file holds the same ids in its own language, as translated corpora
do, and the mix picks one language for each id; a plan of n rows then has n / 100 samples and reads all n rows, for
every file is checked as a whole. Each corpus is planned by processes of their own (tiny preset's tokenizer, text alone,
one stage, one epoch). The second call finds token counts of plans from {many:,} samples on, and the rows of data files
from {large:,} bytes on, under the work folder, where the first has left them.
CPU seconds count all threads; peak memory is the child's maximum resident set, of which about 0.8 GiB are the imported
libraries. Wall seconds stretch with other work on the machine: {load} at the end."""

LETTERS = {
    "Latn": range(0x61, 0x7B),
    "Cyrl": range(0x430, 0x450),
    "Arab": range(0x627, 0x64B),
    "Hebr": range(0x5D0, 0x5EB),
    "Deva": range(0x915, 0x93A),
    "Hans": range(0x4E00, 0x5200),
    "Jpan": range(0x3041, 0x3097),
    "Hang": range(0xAC00, 0xB000),
    "Thai": range(0xE01, 0xE2F),
    "Grek": range(0x3B1, 0x3CA),
}
"""Code points of words by script; other scripts are written in Latin letters."""


@dataclass(frozen=True)
class Cost:
    """What one call took, and the hash that it printed."""

    wall: float
    cpu: float
    peak_bytes: int
    hash: str


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, nargs="+", default=[10_000, 100_000, 1_000_000], help="rows to read")
    parser.add_argument("--shapes", nargs="+", choices=("spread", "parallel"), default=["spread", "parallel"])
    parser.add_argument("--suffix", choices=("jsonl", "json"), default="jsonl")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(prefix="lvlm-bench-") as scratch:
        for shape in options.shapes:
            for samples in options.samples:
                folder = Path(scratch) / f"{shape}-{samples}"
                size = write_corpus(folder, samples, parallel=shape == "parallel", suffix=options.suffix)
                calls = [measure(folder, home=folder / "home") for _ in range(2)]
                for name, cost in zip(("first", "second"), calls, strict=True):
                    rows.append([f"{shape}, {name} call", f"{samples:,}", *_cells(cost, samples)])
                    print(f"{rows[-1]}  {size / 2**20:.0f} MiB of text, plan {cost.hash}", flush=True)
                if calls[0].hash != calls[1].hash:
                    sys.exit(f"{shape}, {samples}: the second call printed another plan")
    print("\n" + table(HEAD, rows) + "\n\n" + EXPLANATION.format(load=load(), many=MANY_SAMPLES, large=LARGE_BYTES))


HEAD = ("corpus", "rows", "wall s", "CPU s", "CPU µs a row", "peak MiB")


def _cells(cost: Cost, samples: int) -> list[str]:
    peak = cost.peak_bytes / 2**20
    return [f"{cost.wall:.1f}", f"{cost.cpu:.1f}", f"{1e6 * cost.cpu / samples:.0f}", f"{peak:.0f}"]


def languages() -> dict[str, Language]:
    """Centurio's 100."""
    return {code: row for code, row in all_languages().items() if row.in_l100}


def write_corpus(folder: Path, samples: int, *, parallel: bool, suffix: str) -> int:
    """A corpus folder with `samples` rows over the languages and a run config on it; its bytes."""
    codes = list(languages())
    split = folder / "instruct"
    split.mkdir(parents=True)
    for index, (code, language) in enumerate((code, languages()[code]) for code in codes):
        count = samples // len(codes) + (index < samples % len(codes) and not parallel)
        lines = _rows(language, count, prefix="row" if parallel else code)
        with open(split / f"{code}.{suffix}", "w", encoding="utf-8") as file:
            if suffix == "jsonl":
                file.writelines(line + "\n" for line in lines)
            else:
                file.write("[\n" + ",\n".join(lines) + "\n]\n")
    entry = {"name": "scale", "languages": codes, "translatable": parallel}
    splits = {"instruct": {"permission": "train"}}
    (folder / "corpus.yaml").write_text(yaml.safe_dump({**entry, "splits": splits}), encoding="utf-8")
    stage = {
        "mix": {"corpora": [{"path": str(folder), "split": "instruct"}], "languages": codes},
        "train": {"tower": "frozen", "adapter": "full", "llm": "lora"},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump({"instruct": stage}), encoding="utf-8")
    return sum(path.stat().st_size for path in split.iterdir())


def _rows(language: Language, count: int, *, prefix: str) -> Iterator[str]:
    draw = random.Random(language.code)
    letters = [chr(point) for point in LETTERS.get(language.script, LETTERS["Latn"])]
    words = ["".join(draw.choices(letters, k=draw.randint(2, 6))) for _ in range(2000)]
    for number in range(count):
        row = {
            "id": f"{prefix}-{number:07d}",
            "context": [" ".join(draw.choices(words, k=6)) + "?"],
            "label": [" ".join(draw.choices(words, k=1))],
            "image_id": "",
        }
        yield json.dumps(row, ensure_ascii=False)


def measure(folder: Path, *, home: Path) -> Cost:
    """Plan the corpus in a process of its own."""
    command = [sys.executable, "-m", "lvlm", "plan", str(folder / "run.yaml"), "--home", str(home)]
    with tempfile.TemporaryFile("w+") as output:
        began = time.monotonic()
        child = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(child.pid, 0)
        wall = time.monotonic() - began
        child.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        text = output.read()
    if child.returncode:
        sys.exit(f"{' '.join(command)} ended with status {child.returncode}:\n{text}")
    found = text.partition(", plan ")[2].split()[0]
    return Cost(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024, found)


if __name__ == "__main__":
    main()
