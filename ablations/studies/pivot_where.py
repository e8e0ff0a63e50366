"""Where do translated pairs work: in pre-training, in instruction tuning, or in both? (MPM; viscpm A2)

    python -m sweeps launch pivot_where        # 8 arms x 5 seeds
    python -m ablations report pivot_where

Cost: 45 seconds a run on one core, so about 15 minutes on 2; captions are trained once per seed, mix and LLM.

The same number of pairs, 64 in each of five target languages (one of each tier), takes the place of captions in the
pivot (English), of dialogues in the pivot, or of both; lengths stay. Captions reach an LLM that is frozen, as in MPM,
or that learns with a LoRA which instruction tuning goes on with.

Expected: only instruction tuning ties the language of the answer to that of the question, so that pairs there repair
fidelity; with a frozen LLM pairs in pre-training reach the adapter alone, which knows no language, and change little.
"""

from ablations.designs import FullGrid
from ablations.factors import Factor
from ablations.studies import Expectation, Study

LANGUAGES = ["en", "de", "ru", "el", "sw", "jv"]
PAIRS = 64


def pairs(stage: str, number: int) -> dict[str, str | int]:
    return {f"{stage}.mix.allocation": "pairs", f"{stage}.mix.pairs": number}


WHERE = {
    "nowhere": (0, 0),
    "pre-training": (PAIRS, 0),
    "instruction tuning": (0, PAIRS),
    "both": (PAIRS, PAIRS),
}
PRETRAINING, INSTRUCTION, LORA = {"where": "pre-training"}, {"where": "instruction tuning"}, {"llm": "lora"}

study = Study(
    name="pivot_where",
    question="Where do translated pairs work: in pre-training, in instruction tuning, or in both?",
    base="tiny",
    fixed={
        "pretrain.mix.languages": LANGUAGES,
        "instruct.mix.languages": LANGUAGES,
        "instruct.mix.english_share": None,
        "pretrain.optim.lr": 1.0e-3,
        "pretrain.optim.adapter_lr": 2.0e-3,
        "evaluate.languages": LANGUAGES,
    },
    factors=(
        Factor(
            name="where",
            path="instruct.mix.pairs",
            levels=tuple(WHERE),
            labels={name: "no pairs" if name == "nowhere" else f"pairs in {name}" for name in WHERE},
            settings={name: pairs("pretrain", one) | pairs("instruct", two) for name, (one, two) in WHERE.items()},
        ),
        Factor(
            name="llm",
            path="pretrain.train.llm",
            levels=("frozen", "lora"),
            labels={"frozen": "captions with a frozen LLM", "lora": "captions with LoRA"},
        ),
    ),
    baseline={"where": "nowhere", "llm": "frozen"},
    design=FullGrid(),
    seeds=(0, 1, 2, 3, 4),
    primary="fidelity/multilingual",
    expectations=(
        Expectation(
            claim="Pairs in instruction tuning raise fidelity",
            metric="fidelity", group="multilingual", arm=INSTRUCTION, direction="higher",
        ),
        Expectation(
            claim="Pairs in pre-training with a frozen LLM change fidelity little (less than 3 points either way)",
            metric="fidelity", group="multilingual", arm=PRETRAINING, direction="little", margin=3.0,
        ),
        Expectation(
            claim="Instruction tuning is the better place for them",
            metric="fidelity", group="multilingual", arm=INSTRUCTION, against=PRETRAINING, direction="higher",
        ),
        Expectation(
            claim="Beside pairs in instruction tuning those in pre-training add little (less than 3 points either way)",
            metric="score", group="multilingual", arm={"where": "both"}, against=INSTRUCTION, direction="little",
            margin=3.0,
        ),
        Expectation(
            claim="Where the LLM learns from captions, pairs there raise fidelity",
            metric="fidelity", group="multilingual", arm=PRETRAINING | LORA, against=LORA, direction="higher",
        ),
        Expectation(
            claim="An LLM that learns from captions in the pivot alone loses fidelity",
            metric="fidelity", group="multilingual", arm=LORA, direction="lower",
        ),
    ),
)  # fmt: skip
