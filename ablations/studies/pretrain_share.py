"""In which languages should the captions of pre-training be, before instruction tuning in all? (Centurio, RQ3)

    python -m sweeps launch pretrain_share        # 4 arms x 5 seeds
    python -m ablations report pretrain_share

Cost: about a minute a run on one core, so about 12 minutes on 2; captions are trained once per seed and mix.

Recipe: 4,000 captions in every mix, on which the LLM learns with a LoRA that instruction tuning goes on with, as in
Centurio; with a frozen LLM captions reach the adapter alone, which knows no language. The arm without pre-training sees
that much less, as in the paper. Instructions are the same in all arms: all languages, half of them English.

Expected: captions in many languages help every tier, T1 and T2 most; captions in English help English; 1 % of them in
English does as well as half.
"""

from typing import Any

from ablations.designs import FullGrid
from ablations.factors import Factor, Level
from ablations.studies import Expectation, Study

SHARES = {"half English": 0.50, "1% English": 0.01}
LABELS: dict[Level, str] = {"none": "no pre-training", "English only": "captions in English only"}
SETTINGS: dict[Level, dict[str, Any]] = {"none": {"pretrain": None}, "English only": {"pretrain.mix.languages": "en"}}
for name, share in SHARES.items():
    LABELS[name] = f"captions {name}"
    SETTINGS[name] = {"pretrain.mix.languages": "all", "pretrain.mix.english_share": share}
NONE, ENGLISH = {"captions": "none"}, {"captions": "English only"}

study = Study(
    name="pretrain_share",
    question="In which languages should the captions of pre-training be?",
    base="tiny",
    fixed={
        "pretrain.mix.corpora": [{"path": "runs/data/shapes", "split": "captions", "samples": 4000}],
        "pretrain.train.llm": "lora",
        "pretrain.optim.lr": 1.0e-3,
        "pretrain.optim.adapter_lr": 2.0e-3,
        "instruct.mix.languages": "all",
        "instruct.mix.english_share": 0.50,
    },
    factors=(
        Factor(
            name="captions",
            path="pretrain.mix.english_share",
            levels=tuple(SETTINGS),
            labels=LABELS,
            settings=SETTINGS,
        ),
    ),
    baseline={"captions": "half English"},
    design=FullGrid(),
    seeds=(0, 1, 2, 3, 4),
    expectations=(
        Expectation(
            claim="Captions in all languages help the other languages more than captions in English",
            metric="score", group="multilingual", arm={}, against=ENGLISH, direction="higher",
        ),
        Expectation(
            claim="Captions in English help English",
            metric="score", group="en", arm=ENGLISH, against=NONE, direction="higher",
        ),
        Expectation(
            claim="Captions in English do little for other languages (less than 3 points either way)",
            metric="score", group="multilingual", arm=ENGLISH, against=NONE, direction="little", margin=3.0,
        ),
        *(
            Expectation(
                claim=f"Captions in all languages help {tier} more than captions in English do",
                metric="score", group=tier, arm={}, against=ENGLISH, direction="higher",
            )
            for tier in ("T5", "T4", "T3", "T2", "T1")
        ),
        *(
            Expectation(
                claim=f"They help {tier} more than T5",
                metric="score", group=tier, than_group="T5", arm={}, against=ENGLISH, direction="higher",
            )
            for tier in ("T2", "T1")
        ),
        Expectation(
            claim="Captions of which 1 % are English do as well as half (within 3 points)",
            metric="score", group="multilingual", arm={"captions": "1% English"}, direction="little", margin=3.0,
        ),
    ),
)  # fmt: skip
