"""A study file to start from. Used by the command `new`."""

from __future__ import annotations

import re
from pathlib import Path

from ablations.studies import list_studies
from lvlm.errors import InputError
from lvlm.records import write_text
from sweeps.plan import checked_folder

TEXT = '''"""What do languages and tiles do to the score?

Question: does the score in other languages than English rise with the number of training languages?
Command:  python -m sweeps launch {name}.py && python -m ablations report {name}.py
          On several machines: launch --storage postgresql://USER@HOST/DATABASE, and `python -m sweeps worker {name}`
          on the others; on a cluster: launch --workers 16 --cluster slurm. `status {name} --watch` shows it live.
Cost:     {cells} cells of about a minute on one core on the built-in world.
Expected: English-only training costs score elsewhere, most where a language has few resources.
"""

from ablations.designs import OneAtATime
from ablations.factors import Factor
from ablations.studies import Expectation, Study

study = Study(
    name="{name}",  # the name of this file; results go to runs/studies/{name}
    question="Does the score in other languages than English rise with the number of training languages?",
    # The run that every arm starts from: a preset, the path of a YAML file, or nested settings. `python -m lvlm plan
    # tiny` prints the mix of samples that such a run would see: tasks, languages, tokens; it trains nothing.
    base="tiny",
    # Settings that differ from the base in every arm: dotted fields of the run config.
    fixed={{}},
    # What varies. `path` is a dotted field of the run config, checked when this file is loaded.
    factors=(
        Factor(name="languages", path="instruct.mix.languages", levels=("en", "T5", "all")),
        # In the English-only arm there is no share to choose: `requires` says where a factor means anything.
        Factor(
            name="english_share",
            path="instruct.mix.english_share",
            levels=(0.25, 0.5),
            requires={{"languages": ("T5", "all")}},
        ),
    ),
    # The arm that the others are compared with: one level for each factor.
    baseline={{"languages": "all", "english_share": 0.5}},
    # Which combinations are run: OneAtATime, FullGrid, KeepInteraction, FractionalFactorial, GeneralizedSubset, or
    # SpaceFilling for factors with a range=(0.01, 0.99) in the place of levels, with log=True evenly in the logarithm
    # (see ablations/designs/). A Search chooses arms by their scores: it finds good ones, and tells nothing of effects.
    design=OneAtATime(),
    # What every arm sees as much of as the baseline: samples, llm_tokens, images or flops (tower included).
    held_equal="samples",
    # Each seed is a block: all arms share its data order, initialisation and backbones. Intervals exist from two seeds
    # on, and are wide with two.
    seeds=(0, 1, 2),
    # The outcome that the study is about.
    primary="score/multilingual",
    # Directions that you expect, written down before the study is run; the report gives a verdict on each.
    expectations=(
        Expectation(
            claim="English-only instruction lowers the score in other languages",
            metric="score",
            group="multilingual",
            arm={{"languages": "en"}},
            direction="lower",
        ),
    ),
)
'''
CELLS = 4 * 3  # arms of the design above x seeds


def write_study(name: str, folder: Path) -> Path:
    """Write `folder/name.py`; its path. Raises `InputError` for the name of a study that comes with the toolkit, whose
    results folder it would share, and where a file lies already."""
    name = name.removesuffix(".py")
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise InputError(
            f"A study is named with lower-case letters, digits and _, starting with a letter, not '{name}'."
        )
    if name in list_studies():
        raise InputError(f"'{name}' is a study that comes with the toolkit. Choose another name.")
    path = checked_folder(folder, what="The place of a study (--folder DIR)") / f"{name}.py"
    if path.exists():
        raise InputError(f"{path} exists. Choose another name, or edit that file.")
    write_text(path, TEXT.format(name=name, cells=CELLS))
    return path
