"""What drives the multilingual ability of an LVLM: its training languages, the share of English, or image tiling?

    python -m sweeps launch drivers                 # 7 arms x 3 seeds, ten minutes on 2 cores
    BUDGET=full python -m sweeps launch drivers     # 29 arms x 5 seeds, 64 minutes
    python -m ablations report drivers

Cost: about a minute a run on one core; runs with tiles more, as each image becomes 1 + 2 x 2 views. The pretrain stage
is shared by all arms with the same tiles. The default design changes one factor at a time; the full one crosses all
languages with all shares and runs two tiles beside all languages with three of the shares.

Expected: instruction tuning in English only costs the other languages score and fidelity, most in low tiers, while many
answers stay right in another language; each added tier improves itself; English suffers little; a higher share of
English costs the low tiers; the best share lies inside the range (Centurio finds about 50 %); tiles change questions
about large shapes little. Whether they help reading is asked by the study `tiling`, as reading takes thousands of
pictures of words and a recipe of its own.
"""

from ablations.designs import KeepInteraction, OneAtATime
from ablations.factors import Factor
from ablations.studies import Expectation, Study

ENGLISH_ONLY = {"languages": "en"}
SHARES = (0.01, 0.10, 0.25, 0.50, 0.75, 0.90)

languages = Factor(
    name="languages",
    path="instruct.mix.languages",
    levels=("en", "T5", "T5-T3", "all"),
    labels={"en": "English only", "T5": "T5", "T5-T3": "T5-T3", "all": "all languages"},
)
english_share = Factor(
    name="english_share",
    path="instruct.mix.english_share",
    levels=SHARES,
    labels={share: f"{share:.0%} English" for share in SHARES},
    requires={"languages": ("T5", "T5-T3", "all")},
)
tiles = Factor(name="tiles", path="model.tiles", levels=(1, 2), labels={1: "no tiles", 2: "2 x 2 tiles"})


EXPECTATIONS = (
    Expectation(
        claim="English-only instruction tuning lowers the score in other languages",
        metric="score", group="multilingual", arm=ENGLISH_ONLY, direction="lower",
    ),
    Expectation(
        claim="A share of 90 % English costs the lowest tier",
        metric="score", group="T1", arm={"english_share": 0.90}, direction="lower",
    ),
    Expectation(
        claim="Tiles change questions about shapes little (less than 5 points either way)",
        metric="score", group="vqa/multilingual", arm={"tiles": 2}, direction="little", margin=5.0,
    ),
    Expectation(
        claim="English-only instruction tuning lowers fidelity in other languages",
        metric="fidelity", group="multilingual", arm=ENGLISH_ONLY, direction="lower",
    ),
    Expectation(
        claim="The score falls more in T1 than in T5 under English-only tuning",
        metric="score", group="T1", than_group="T5", arm=ENGLISH_ONLY, direction="lower",
    ),
    Expectation(
        claim="Fidelity falls more in T1 than in T5 under English-only tuning",
        metric="fidelity", group="T1", than_group="T5", arm=ENGLISH_ONLY, direction="lower",
    ),
    Expectation(
        claim="Under English-only tuning more answers are right, but in another language",
        metric="right_elsewhere", group="multilingual", arm=ENGLISH_ONLY, direction="higher",
    ),
    *(
        Expectation(
            claim=f"Adding {tier} to the training languages improves {tier}",
            metric="score", group=tier, arm={"languages": group}, against={"languages": smaller}, direction="higher",
        )
        for tier, group, smaller in (
            ("T5", "T5", "en"), ("T4", "T5-T3", "T5"), ("T3", "T5-T3", "T5"),
            ("T2", "all", "T5-T3"), ("T1", "all", "T5-T3"),
        )
    ),
    Expectation(
        claim="English suffers little from training in all languages (less than 3 points either way)",
        metric="score", group="en", arm={}, against=ENGLISH_ONLY, direction="little", margin=3.0,
    ),
    Expectation(
        claim="A share of 90 % English costs T2",
        metric="score", group="T2", arm={"english_share": 0.90}, direction="lower",
    ),
    Expectation(
        claim="An interior optimum, lower side: 1 % English is worse than 50 %",
        metric="score", group="multilingual", arm={"english_share": 0.01}, direction="lower",
    ),
    Expectation(
        claim="An interior optimum, upper side: 90 % English is worse than 50 %",
        metric="score", group="multilingual", arm={"english_share": 0.90}, direction="lower",
    ),
)  # fmt: skip

study = Study(
    name="drivers",
    question="What drives multilingual ability: training languages, the share of English, or image tiling?",
    base="tiny",
    factors=(languages, english_share, tiles),
    baseline={"languages": "all", "english_share": 0.50, "tiles": 1},
    design=OneAtATime(levels={"english_share": (0.01, 0.50, 0.90)}),
    seeds=(0, 1, 2),
    full_design=KeepInteraction(keep=("languages", "english_share"), beside={"english_share": (0.01, 0.50, 0.90)}),
    full_seeds=(0, 1, 2, 3, 4),
    expectations=EXPECTATIONS,
)
