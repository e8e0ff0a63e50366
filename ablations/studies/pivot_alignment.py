"""Does transfer from the pivot follow how well the language model aligns its languages? (the core claim of MPM; A9)

    python -m lvlm data sentences runs/data/sentences
    python -m sweeps launch pivot_alignment        # 7 arms x 5 seeds
    python -m ablations report pivot_alignment

Cost: one minute a run on one core, so about 20 minutes on 2: every arm has a language model of its own.

Before it sees an image, each shipped language model reads 2,400 texts (a scene told, asked about and answered) in 16
languages, half of them English, with all its weights. Of these 0, 1, 10 or 50 % come as parallel samples, and with
50 % a contrastive term of weight 0.1 or 1 draws the two sides of each pair together. One arm reads nothing and is the
shipped model. Then captions and dialogues are in the pivot, English, alone. Retrieval and CKA of parallel sentences are
measured in the model that vision begins with, before it does.

Texts are answered in the language that they ask in, so that reading them also ends the shipped models' habit of
answering in English: fidelity of the arm without text is no measure for the others.

What a model saw is not how well it is aligned, so transfer is held against the measured alignment (notebook 05). The
control, 0 %, reads as much text: arms may be compared as far as their scores in the pivot agree.

Expected: parallel text alone moves alignment little, the contrastive term much; the score in any language outside the
pivot rises with measured alignment; fidelity need not.
"""

from ablations.designs import FullGrid
from ablations.factors import Factor
from ablations.studies import Expectation, Study
from ablations.studies._texts import SENTENCES, reading

STRENGTHS = {
    "0%": (0.0, 0.0), "1%": (0.01, 0.0), "10%": (0.10, 0.0), "50%": (0.50, 0.0),
    "contrast 0.1": (0.50, 0.1), "contrast 1": (0.50, 1.0),
}  # fmt: skip
"""Level -> (share of parallel samples, weight of the contrastive term)."""
STRONG = {"alignment": "contrast 1"}

study = Study(
    name="pivot_alignment",
    question="Does transfer from the pivot follow how well the language model aligns its languages?",
    base="tiny",
    fixed={
        "pretrain.mix.corpora": [{"path": "runs/data/shapes", "split": "captions", "samples": 1200}],
        "instruct.mix.corpora": [{"path": "runs/data/shapes", "split": "instruct", "samples": 1600}],
        "instruct.mix.languages": "en",
        "instruct.mix.english_share": None,
        "evaluate.alignment": [{"path": SENTENCES, "split": "test"}],
    },
    factors=(
        Factor(
            name="alignment",
            path="align.mix.parallel",
            levels=("none", *STRENGTHS),
            labels={
                "none": "no text",
                **{name: f"{name} parallel" if name[-1] == "%" else f"50% parallel, {name}" for name in STRENGTHS},
            },
            settings={"none": {"align": None}, **{name: reading(*strength) for name, strength in STRENGTHS.items()}},
        ),
    ),
    baseline={"alignment": "0%"},
    design=FullGrid(),
    seeds=(0, 1, 2, 3, 4),
    primary="score_any_language/multilingual",
    expectations=(
        Expectation(
            claim="The contrastive term raises retrieval of parallel sentences",
            metric="retrieval", group="multilingual", arm=STRONG, direction="higher",
        ),
        Expectation(
            claim="Parallel text without it moves retrieval little (less than 5 points either way)",
            metric="retrieval", group="multilingual", arm={"alignment": "50%"}, direction="little", margin=5.0,
        ),
        Expectation(
            claim="The better aligned model transfers better: more is right in any language",
            metric="score_any_language", group="multilingual", arm=STRONG, direction="higher",
        ),
        Expectation(
            claim="The better aligned model has more right in the asked language",
            metric="score", group="multilingual", arm=STRONG, direction="higher",
        ),
        Expectation(
            claim="The better aligned model gains most where the tier is lowest",
            metric="score_any_language", group="T1", than_group="T5", arm=STRONG, direction="higher",
        ),
        Expectation(
            claim="The control matches: the pivot's score moves little (less than 3 points either way)",
            metric="score", group="en", arm=STRONG, direction="little", margin=3.0,
        ),
        Expectation(
            claim="Beside the control aligned states do little for fidelity (less than 5 points either way)",
            metric="fidelity", group="multilingual", arm=STRONG, direction="little", margin=5.0,
        ),
    ),
)  # fmt: skip
