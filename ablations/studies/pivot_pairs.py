"""How many translated pairs does a pivot-only model need to answer in the language of the question? (MPM, VisCPM-Chat)

    python -m sweeps launch pivot_pairs        # 31 arms x 5 seeds
    python -m ablations report pivot_pairs

Cost: under a minute a run on one core, so about an hour on 2; the pretrain stage is trained once per seed.

Captions are in the pivot, English, with the LLM frozen; then the LLM learns with LoRA from 3,200 dialogues in every
arm. k of them are translated into one target language, the same ones and more where k is larger, and the others stay
in the pivot: "all" leaves none there. The targets are one language of each tier. Every arm is asked in all of them, so
that the four without pairs tell whether what is learned is "answer in the language of the question" or that language
alone.

Expected: with pivot data alone the questions are understood and many answers come in the pivot, most in low tiers; a
small number of pairs repairs fidelity while the score in any language moves little; the pivot suffers only where it has
nothing left. That pairs of one language repair another is an open question.
"""

from ablations.designs import FullGrid
from ablations.factors import Factor
from ablations.studies import Expectation, Study

TARGETS = {"de": "T5", "ru": "T4", "el": "T3", "sw": "T2", "jv": "T1"}
ALL = 3200
PAIRS = (8, 32, 128, 512, 2048, ALL)


def pairs(target: str, k: int) -> dict[str, str | int]:
    return {"target": target, "pairs": k}


study = Study(
    name="pivot_pairs",
    question="How many translated pairs does a pivot-only model need to answer in the language of the question?",
    base="tiny",
    fixed={
        "instruct.mix.english_share": None,
        "instruct.mix.allocation": "pairs",
        "evaluate.languages": ["en", *TARGETS],
        "evaluate.items": 150,
    },
    factors=(
        Factor(
            name="pairs",
            path="instruct.mix.pairs",
            levels=(0, *PAIRS),
            labels={0: "pivot only", **{k: f"{k} pairs" for k in PAIRS}, ALL: "all translated"},
        ),
        Factor(
            name="target",
            path="instruct.mix.languages",
            levels=tuple(TARGETS),
            labels={code: f"{code} ({tier})" for code, tier in TARGETS.items()},
            settings={code: {"instruct.mix.languages": ["en", code]} for code in TARGETS},
            requires={"pairs": PAIRS},
        ),
    ),
    baseline={"pairs": 0, "target": "de"},
    design=FullGrid(),
    seeds=(0, 1, 2, 3, 4),
    primary="fidelity/multilingual",
    expectations=(
        *(
            Expectation(
                claim=f"128 translated pairs raise fidelity in {code} ({tier})",
                metric="fidelity", group=code, arm=pairs(code, 128), direction="higher",
            )
            for code, tier in TARGETS.items()
        ),
        *(
            Expectation(
                claim=f"They move the score in any language little in {code} ({tier}) (less than 5 points either way)",
                metric="score_any_language", group=code, arm=pairs(code, 128), direction="little", margin=5.0,
            )
            for code, tier in TARGETS.items()
        ),
        Expectation(
            claim="8 pairs already raise fidelity in the lowest tier",
            metric="fidelity", group="jv", arm=pairs("jv", 8), direction="higher",
        ),
        Expectation(
            claim="2,048 pairs leave fidelity in the lowest tier where 512 put it (within 3 points)",
            metric="fidelity", group="jv", arm=pairs("jv", 2048), against=pairs("jv", 512), direction="little",
            margin=3.0,
        ),
        Expectation(
            claim="512 pairs cost the pivot little (less than 3 points either way)",
            metric="score", group="en", arm=pairs("sw", 512), direction="little", margin=3.0,
        ),
        Expectation(
            claim="Pairs of one language raise fidelity in another of a low tier, which has none",
            metric="fidelity", group="jv", arm=pairs("sw", 512), direction="higher",
        ),
    ),
)  # fmt: skip
