"""Can a pivot-only model answer in the language of the question when it is told or led to? (viscpm A14)

    python -m sweeps launch pivot_output        # 8 arms x 5 seeds
    python -m ablations report pivot_output

Cost: a run on one core takes about a minute where it trains, and 15 seconds where only the evaluation differs: the arms
of one number of pairs share their model. About 6 minutes on 2 cores.

After captions and dialogues in the pivot, English, alone, and with 8 pairs in each of five target languages, the same
model is asked as it is; with its language named ("Answer in Swahili."); with its first token chosen among those that
answers in the language begin with; or both. What is right with a forced first token and wrong without was known and not
said: inability is told from default.

Expected: a forced first token raises fidelity and the score much where fidelity was low, and changes little where pairs
had repaired it. Naming the language changes little: the tiny language models never read such a line. (A model that has
learned from instructions does; there the control says something of it.)
"""

from ablations.designs import FullGrid
from ablations.factors import Factor, Level
from ablations.studies import Expectation, Study

LANGUAGES = ["en", "de", "ru", "el", "sw", "jv"]
CONTROLS = {"none": (False, 0), "named": (True, 0), "first token": (False, 1), "both": (True, 1)}
TOKEN: dict[str, Level] = {"control": "first token"}
NAMED: dict[str, Level] = {"control": "named"}
PAIRS: dict[str, Level] = {"pairs": 8}

study = Study(
    name="pivot_output",
    question="Can a pivot-only model answer in the language of the question when it is told or led to?",
    base="tiny",
    fixed={
        "instruct.mix.languages": LANGUAGES,
        "instruct.mix.english_share": None,
        "instruct.mix.allocation": "pairs",
        "evaluate.languages": LANGUAGES,
        "evaluate.items": 150,
    },
    factors=(
        Factor(
            name="control",
            path="evaluate.forced_tokens",
            levels=tuple(CONTROLS),
            labels={
                "none": "asked as it is", "named": "language named", "first token": "first token forced",
                "both": "named and forced",
            },
            settings={
                name: {"evaluate.name_language": named, "evaluate.forced_tokens": forced}
                for name, (named, forced) in CONTROLS.items()
            },
        ),
        Factor(
            name="pairs",
            path="instruct.mix.pairs",
            levels=(0, 8),
            labels={0: "pivot only", 8: "8 pairs a language"},
        ),
    ),
    baseline={"control": "none", "pairs": 0},
    design=FullGrid(),
    seeds=(0, 1, 2, 3, 4),
    primary="fidelity/multilingual",
    expectations=(
        Expectation(
            claim="A forced first token raises fidelity after training on the pivot alone",
            metric="fidelity", group="multilingual", arm=TOKEN, direction="higher",
        ),
        Expectation(
            claim="A forced first token raises the score: the answer was known",
            metric="score", group="multilingual", arm=TOKEN, direction="higher",
        ),
        Expectation(
            claim="A forced first token moves the score in any language little (less than 5 points either way)",
            metric="score_any_language", group="multilingual", arm=TOKEN, direction="little", margin=5.0,
        ),
        Expectation(
            claim="A forced first token raises fidelity most in the lowest tier",
            metric="fidelity", group="T1", than_group="T5", arm=TOKEN, direction="higher",
        ),
        Expectation(
            claim="With 8 pairs a forced first token adds little (less than 10 points either way)",
            metric="fidelity", group="multilingual", arm=PAIRS | TOKEN, against=PAIRS, direction="little", margin=10.0,
        ),
        Expectation(
            claim="Naming the language changes fidelity little (less than 5 points either way)",
            metric="fidelity", group="multilingual", arm=NAMED, direction="little", margin=5.0,
        ),
    ),
)  # fmt: skip
