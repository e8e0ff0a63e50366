"""Should instruction tuning go on with the LoRA of pre-training, or merge it and begin another? (Centurio, 4.1)

    python -m sweeps launch continue_or_merge_lora        # 4 arms x 5 seeds
    python -m ablations report continue_or_merge_lora

Cost: about a minute a run on one core, so about 12 minutes on 2; captions are trained once per seed and mix.

Pre-training is on 4,000 captions, half English or English only, with a LoRA on the LLM; instructions are the same in
all arms. Merged, the LoRA becomes part of the weights and a new one of the same rank is drawn: the model can then
change in twice as many directions, and the new LoRA starts at zero.

Expected: Centurio says, without a figure, that merging was worse.
"""

from ablations.designs import FullGrid
from ablations.factors import Factor
from ablations.studies import Expectation, Study

MERGED = {"start_lora": "merge"}

study = Study(
    name="continue_or_merge_lora",
    question="Go on with the LoRA of pre-training, or merge it and begin another?",
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
            name="start_lora",
            path="instruct.start_lora",
            levels=("continue", "merge"),
            labels={"continue": "LoRA continued", "merge": "LoRA merged"},
        ),
        Factor(
            name="captions",
            path="pretrain.mix.languages",
            levels=("all", "en"),
            labels={"all": "captions in all languages", "en": "captions in English only"},
        ),
    ),
    baseline={"start_lora": "continue", "captions": "all"},
    design=FullGrid(),
    seeds=(0, 1, 2, 3, 4),
    expectations=(
        Expectation(
            claim="Merging the LoRA of pre-training and beginning another is worse in other languages",
            metric="score", group="multilingual", arm=MERGED, direction="lower",
        ),
        Expectation(
            claim="It is worse in English",
            metric="score", group="en", arm=MERGED, direction="lower",
        ),
        Expectation(
            claim="It is worse in other languages after captions in English only",
            metric="score", group="multilingual", arm=MERGED | {"captions": "en"}, against={"captions": "en"},
            direction="lower",
        ),
    ),
)  # fmt: skip
