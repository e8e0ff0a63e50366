"""Where does the best share of English lie when translations are poor? (the explanation offered for claim C4, apart)

    python -m lvlm data shapes runs/data/shapes
    python -m lvlm data shapes runs/data/shapes_mistakes --mistakes 0.5
    python -m sweeps launch translation_quality        # 8 arms x 5 seeds
    python -m ablations report translation_quality

Cost: about a minute a run on one core, so about 20 minutes on 2; the pretrain stage is trained once per seed, and the
arms without mistakes are those of `english_share`.

Centurio's training data are English, translated by machine; more English is then also more data without faults. In the
built-in world translations have no fault, and the best share of English is small (`english_share`). Here half
of the words of every translation may be other words of the language; English and all that is evaluated have none.

Expected: with mistakes, little English costs more than without, in other languages too, and the best share rises
towards the middle.
"""

from ablations.designs import FullGrid
from ablations.factors import Factor
from ablations.studies import Expectation, Study

SHARES = (0.01, 0.10, 0.50, 0.90)
CORPORA = {0.0: "runs/data/shapes", 0.5: "runs/data/shapes_mistakes"}

study = Study(
    name="translation_quality",
    question="Where does the best share of English lie when translations are poor?",
    base="tiny",
    fixed={"instruct.mix.languages": "all"},
    factors=(
        Factor(
            name="english_share",
            path="instruct.mix.english_share",
            levels=SHARES,
            labels={share: f"{share:.0%} English" for share in SHARES},
        ),
        Factor(
            name="mistakes",
            path="instruct.mix.corpora",
            levels=tuple(CORPORA),
            labels={rate: f"{rate:.0%} wrong words" for rate in CORPORA},
            settings={
                rate: {"instruct.mix.corpora": [{"path": path, "split": "instruct", "samples": 3200}]}
                for rate, path in CORPORA.items()
            },
        ),
    ),
    baseline={"english_share": 0.50, "mistakes": 0.0},
    design=FullGrid(),
    seeds=(0, 1, 2, 3, 4),
    expectations=(
        Expectation(
            claim="With half of the words wrong, 1 % English is worse than 50 %",
            metric="score", group="multilingual", arm={"english_share": 0.01, "mistakes": 0.5},
            against={"english_share": 0.50, "mistakes": 0.5}, direction="lower",
        ),
        Expectation(
            claim="With half of the words wrong, 90 % English is worse than 50 %",
            metric="score", group="multilingual", arm={"english_share": 0.90, "mistakes": 0.5},
            against={"english_share": 0.50, "mistakes": 0.5}, direction="lower",
        ),
        Expectation(
            claim="Half of the words wrong costs other languages at 50 % English",
            metric="score", group="multilingual", arm={"mistakes": 0.5}, direction="lower",
        ),
        Expectation(
            claim="It costs the score in any language too: what is seen is learnt worse",
            metric="score_any_language", group="multilingual", arm={"mistakes": 0.5}, direction="lower",
        ),
    ),
)  # fmt: skip
