"""How much of the instruction data should stay English, at a fixed number of samples? (Centurio, RQ2)

    python -m sweeps launch english_share        # 6 arms x 5 seeds
    python -m ablations report english_share

Cost: about a minute a run on one core, so about 15 minutes on 2; the pretrain stage is trained once per seed.

Expected: from 50 % upwards more English costs the low tiers most. Centurio finds the best share near 50 %; here
English is also carried by the other languages' data, so the lower side of an optimum is an open question.
"""

from ablations.designs import FullGrid
from ablations.factors import Factor
from ablations.studies import Expectation, Study

SHARES = (0.01, 0.10, 0.25, 0.50, 0.75, 0.90)

study = Study(
    name="english_share",
    question="How much English in the instruction data, at a fixed number of samples in all languages?",
    base="tiny",
    fixed={"instruct.mix.languages": "all"},
    factors=(
        Factor(
            name="english_share",
            path="instruct.mix.english_share",
            levels=SHARES,
            labels={share: f"{share:.0%} English" for share in SHARES},
        ),
    ),
    baseline={"english_share": 0.50},
    design=FullGrid(),
    seeds=(0, 1, 2, 3, 4),
    expectations=(
        Expectation(
            claim="A share of 90 % English costs the lowest tier",
            metric="score", group="T1", arm={"english_share": 0.90}, direction="lower",
        ),
        Expectation(
            claim="An interior optimum, upper side: 90 % English is worse than 50 %",
            metric="score", group="multilingual", arm={"english_share": 0.90}, direction="lower",
        ),
        Expectation(
            claim="An interior optimum, lower side: 1 % English is worse than 50 %",
            metric="score", group="multilingual", arm={"english_share": 0.01}, direction="lower",
        ),
        Expectation(
            claim="The score falls more in T1 than in T5 at 90 % English",
            metric="score", group="T1", than_group="T5", arm={"english_share": 0.90}, direction="lower",
        ),
        Expectation(
            claim="A share of 1 % English costs English",
            metric="score", group="en", arm={"english_share": 0.01}, direction="lower",
        ),
    ),
)  # fmt: skip
