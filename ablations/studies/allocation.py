"""Should instruction data that is not English favour languages with few resources? (Centurio, appendix D.2)

    python -m sweeps launch allocation        # 3 arms x 5 seeds
    python -m ablations report allocation

Cost: about a minute a run on one core, so about 8 minutes on 2; the pretrain stage is trained once per seed.

`inverse_tier` divides the half that is not English in proportion to 1/tier, `inverse_exp_tier` to exp(-tier): T1, the
lowest, gets 5 and 55 times as many samples a language as T5.

Expected, after Centurio: nothing is gained by it, neither in the low tiers nor over all languages.
"""

from ablations.designs import FullGrid
from ablations.factors import Factor
from ablations.studies import Expectation, Study

LEVELS = ("uniform", "inverse_tier", "inverse_exp_tier")

study = Study(
    name="allocation",
    question="Should instruction data favour languages with few resources?",
    base="tiny",
    fixed={"instruct.mix.languages": "all", "instruct.mix.english_share": 0.50},
    factors=(
        Factor(
            name="allocation",
            path="instruct.mix.allocation",
            levels=LEVELS,
            labels={"uniform": "uniform", "inverse_tier": "1/tier", "inverse_exp_tier": "exp(-tier)"},
        ),
    ),
    baseline={"allocation": "uniform"},
    design=FullGrid(),
    seeds=(0, 1, 2, 3, 4),
    expectations=(
        Expectation(
            claim="Favouring low tiers (1/tier) changes the score over all languages little (less than 2 points)",
            metric="score", group="multilingual", arm={"allocation": "inverse_tier"}, direction="little", margin=2.0,
        ),
        Expectation(
            claim="Favouring low tiers strongly (exp(-tier)) changes it little (less than 2 points)",
            metric="score", group="multilingual", arm={"allocation": "inverse_exp_tier"}, direction="little",
            margin=2.0,
        ),
        *(
            Expectation(
                claim=f"Favouring low tiers ({name}) changes {tier} little (less than 3 points)",
                metric="score", group=tier, arm={"allocation": level}, direction="little", margin=3.0,
            )
            for level, name in (("inverse_tier", "1/tier"), ("inverse_exp_tier", "exp(-tier)"))
            for tier in ("T1", "T2")
        ),
    ),
)  # fmt: skip
