"""Into how many languages should instruction data be spread, at a fixed number of samples? (Centurio, RQ1)

    python -m sweeps launch number_of_languages        # 6 arms x 5 seeds
    python -m ablations report number_of_languages

Cost: about a minute a run on one core, so about 15 minutes on 2; the pretrain stage is trained once per seed.

Expected: English only costs the other languages score and fidelity, most in low tiers; each added tier improves itself
and takes little from the tiers that were there before; English stays within a few points.
"""

from ablations.designs import FullGrid
from ablations.factors import Factor
from ablations.studies import Expectation, Study

GROUPS = ("en", "T5", "T5-T4", "T5-T3", "T5-T2", "all")

study = Study(
    name="number_of_languages",
    question="How many training languages, at a fixed number of samples?",
    base="tiny",
    fixed={"instruct.mix.english_share": None},  # half of the samples wherever there is more than English
    factors=(
        Factor(
            name="languages",
            path="instruct.mix.languages",
            levels=GROUPS,
            labels={"en": "English only", **{group: group for group in GROUPS[1:-1]}, "all": "all languages"},
        ),
    ),
    baseline={"languages": "all"},
    design=FullGrid(),
    seeds=(0, 1, 2, 3, 4),
    expectations=(
        Expectation(
            claim="English-only instruction tuning lowers the score in other languages",
            metric="score", group="multilingual", arm={"languages": "en"}, direction="lower",
        ),
        Expectation(
            claim="English-only instruction tuning lowers fidelity in other languages",
            metric="fidelity", group="multilingual", arm={"languages": "en"}, direction="lower",
        ),
        Expectation(
            claim="English suffers little from training in all languages (less than 3 points either way)",
            metric="score", group="en", arm={}, against={"languages": "en"}, direction="little", margin=3.0,
        ),
        Expectation(
            claim="The score falls more in T1 than in T5 under English-only tuning",
            metric="score", group="T1", than_group="T5", arm={"languages": "en"}, direction="lower",
        ),
        *(
            Expectation(
                claim=f"Adding {tier} to the training languages improves {tier}",
                metric="score", group=tier, direction="higher",
                arm={"languages": group}, against={"languages": smaller},
            )
            for tier, smaller, group in zip(("T5", "T4", "T3", "T2", "T1"), GROUPS, GROUPS[1:], strict=False)
        ),
    ),
)  # fmt: skip
