"""Do translated pairs in some languages repair fidelity in languages that have none? (viscpm A13)

    python -m sweeps launch pivot_unseen        # 6 arms x 5 seeds
    python -m ablations report pivot_unseen

Cost: 45 seconds a run on one core, so about 12 minutes on 2; the pretrain stage is trained once per seed.

Of 3,200 dialogues 15 %, 480 in all, are translated, into the languages of T5 alone or of more and more tiers; the rest
is in the pivot, English. Equal numbers of pairs, divided among more languages: what a tier without pairs gains is what
"answer in the language of the question" carries by itself.

Expected: each tier gains most when it has pairs itself; tiers without pairs gain too, the less the lower they are. If
they gained nothing, what is learned would be the language and not the rule.
"""

from ablations.designs import FullGrid
from ablations.factors import Factor
from ablations.studies import Expectation, Study

GROUPS = ("T5", "T5-T4", "T5-T3", "T5-T2", "all")
TIERS = ("T5", "T4", "T3", "T2", "T1")
NONE = {"languages": "none"}

study = Study(
    name="pivot_unseen",
    question="Do translated pairs in some languages repair fidelity in languages that have none?",
    base="tiny",
    factors=(
        Factor(
            name="languages",
            path="instruct.mix.languages",
            levels=("none", *GROUPS),
            labels={"none": "pivot only", **{group: f"pairs in {group}" for group in GROUPS}},
            settings={
                "none": {"instruct.mix.languages": "en", "instruct.mix.english_share": None},
                **{group: {"instruct.mix.languages": group, "instruct.mix.english_share": 0.85} for group in GROUPS},
            },
        ),
    ),
    baseline=NONE,
    design=FullGrid(),
    seeds=(0, 1, 2, 3, 4),
    primary="fidelity/multilingual",
    expectations=(
        *(
            Expectation(
                claim=f"Pairs in T5 alone raise fidelity in {tier}, which has none",
                metric="fidelity", group=tier, arm={"languages": "T5"}, direction="higher",
            )
            for tier in TIERS[1:]
        ),
        *(
            Expectation(
                claim=f"{tier} gains from pairs of its own, at the same number in all",
                metric="fidelity", group=tier, arm={"languages": group}, against={"languages": smaller},
                direction="higher",
            )
            for tier, smaller, group in zip(TIERS[1:], GROUPS, GROUPS[1:], strict=False)
        ),
        Expectation(
            claim="Pairs move the score in any language little (less than 5 points either way)",
            metric="score_any_language", group="multilingual", arm={"languages": "T5"}, direction="little", margin=5.0,
        ),
        Expectation(
            claim="They cost the pivot little (less than 3 points either way)",
            metric="score", group="en", arm={"languages": "all"}, direction="little", margin=3.0,
        ),
    ),
)  # fmt: skip
