"""How much of the loss of fidelity is a habit of the language model? (the assumption of the built-in world, varied)

    make study STUDY=answer_mix                # trains the language models that it needs, first
    python -m sweeps launch answer_mix         # 8 arms x 5 seeds
    python -m ablations report answer_mix

Needs: `python -m lvlm backbones --answer-mix 0 0.5 1 1.5 --out runs/backbones/answer_mix`: each of the five shipped
language models trained on with 16,000 documents, in which requests are answered in English so many times as often as
the shipped ones were (25 % in T5 to 45 % in T1). 0 is the clean control, of five draws. The shipped rate is trained on
as well, so that all levels differ in nothing but the rate.

Cost: about a minute a run on one core, so about 20 minutes on 2, after the 20 language models, which take about four
minutes of one core each, so about 40 on 2.

Expected: after instruction tuning in English only, fidelity falls with the rate, and not with a clean language model;
after tuning in all languages it is high at every rate. The rate sets the level of what other studies here find for
fidelity, which is why it is a factor and was never tuned.
"""

from ablations.designs import FullGrid
from ablations.factors import Factor, Level
from ablations.studies import Expectation, Study

BACKBONES = "runs/backbones/answer_mix"
RATES: dict[Level, str] = {0.0: "never in English", 0.5: "half the rate", 1.0: "shipped rate", 1.5: "1.5 x the rate"}
CLEAN: dict[str, Level] = {"answer_mix": 0.0}
MOST: dict[str, Level] = {"answer_mix": 1.5}
ENGLISH: dict[str, Level] = {"languages": "en"}

study = Study(
    name="answer_mix",
    question="How much of the loss of fidelity is a habit of the language model?",
    base="tiny",
    fixed={"instruct.mix.english_share": None},  # half of the samples wherever there is more than English
    factors=(
        Factor(
            name="answer_mix",
            path="model.llm",
            levels=tuple(RATES),
            labels=RATES,
            settings={rate: {"model.llm": f"{BACKBONES}/{rate:g}"} for rate in RATES},
        ),
        Factor(
            name="languages",
            path="instruct.mix.languages",
            levels=("all", "en"),
            labels={"all": "all languages", "en": "English only"},
        ),
    ),
    baseline={"answer_mix": 1.0, "languages": "all"},
    design=FullGrid(),
    seeds=(0, 1, 2, 3, 4),
    primary="fidelity/multilingual",
    expectations=(
        Expectation(
            claim="English-only tuning lowers fidelity with the shipped language model",
            metric="fidelity", group="multilingual", arm=ENGLISH, direction="lower",
        ),
        Expectation(
            claim="With a clean language model it lowers fidelity little (less than 5 points either way)",
            metric="fidelity", group="multilingual", arm=CLEAN | ENGLISH, against=CLEAN, direction="little",
            margin=5.0,
        ),
        Expectation(
            claim="After English-only tuning fidelity is higher with a clean language model",
            metric="fidelity", group="multilingual", arm=CLEAN | ENGLISH, against=ENGLISH, direction="higher",
        ),
        Expectation(
            claim="After English-only tuning fidelity is lower with 1.5 times the rate",
            metric="fidelity", group="multilingual", arm=MOST | ENGLISH, against=ENGLISH,
            direction="lower",
        ),
        Expectation(
            claim="After tuning in all languages the rate changes fidelity little (less than 5 points either way)",
            metric="fidelity", group="multilingual", arm=MOST, against=CLEAN, direction="little",
            margin=5.0,
        ),
        Expectation(
            claim="English-only tuning costs the other languages score with a clean language model too",
            metric="score", group="multilingual", arm=CLEAN | ENGLISH, against=CLEAN, direction="lower",
        ),
    ),
)  # fmt: skip
