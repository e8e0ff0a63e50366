"""Do instructions in the target language repair fidelity without pictures? (viscpm A15; arXiv 2503.22577)

    python -m lvlm data origins runs/data/origins
    python -m lvlm data sentences runs/data/sentences
    python -m sweeps launch pivot_text        # 4 arms x 5 seeds
    python -m ablations report pivot_text

Cost: 40 seconds a run on one core, so about 7 minutes on 2; the pretrain stage is trained once per seed.

Every arm sees 3,200 samples. In one all are dialogues about pictures in the pivot, English. In the others 320 give
way: to texts without a picture in the five target languages, 64 each (a scene told in words, asked about and answered);
to as many such texts in the pivot, which tells text from language; or to dialogues about pictures in the target
languages.

Expected: texts in the target languages repair fidelity nearly as well as dialogues about pictures do, and cost nothing
of what is right in any language; texts in the pivot repair nothing.
"""

from typing import Any

from ablations.designs import FullGrid
from ablations.factors import Factor
from ablations.studies import Expectation, Study

LANGUAGES = ["en", "de", "ru", "el", "sw", "jv"]
EACH = 64
TEXT, PICTURES, PIVOT_TEXT = {"added": "text"}, {"added": "pictures"}, {"added": "pivot text"}


def pictures(languages: list[str], number: int) -> dict[str, Any]:
    use = {"path": "runs/data/origins", "split": "instruct", "languages": languages}
    return use | {"samples_per_language": number}


def text(pairs: int) -> dict[str, Any]:
    """The rest of the dialogues, and 320 texts of which each target language has so many."""
    sentences = {"path": "runs/data/sentences", "split": "train", "samples": 5 * EACH}
    return {
        "instruct.mix.corpora": [pictures(["en"], 3200 - 5 * EACH), sentences],
        "instruct.mix.languages": LANGUAGES,
        "instruct.mix.allocation": "pairs",
        "instruct.mix.pairs": pairs,
    }


study = Study(
    name="pivot_text",
    question="Do instructions in the target language repair fidelity without pictures?",
    base="tiny",
    fixed={"instruct.mix.english_share": None, "evaluate.languages": LANGUAGES},
    factors=(
        Factor(
            name="added",
            path="instruct.mix.corpora",
            levels=("nothing", "text", "pivot text", "pictures"),
            labels={
                "nothing": "pivot only", "text": "target text", "pivot text": "pivot text",
                "pictures": "target dialogues with pictures",
            },
            settings={
                "nothing": {"instruct.mix.corpora": [pictures(["en"], 3200)]},
                "text": text(EACH),
                "pivot text": text(0),
                "pictures": {
                    "instruct.mix.corpora": [pictures(["en"], 3200 - 5 * EACH), pictures(LANGUAGES[1:], EACH)]
                },
            },
        ),
    ),
    baseline={"added": "nothing"},
    design=FullGrid(),
    seeds=(0, 1, 2, 3, 4),
    primary="fidelity/multilingual",
    expectations=(
        Expectation(
            claim="Texts in the target languages raise fidelity",
            metric="fidelity", group="multilingual", arm=TEXT, direction="higher",
        ),
        Expectation(
            claim="Nearly as well as dialogues about pictures (within 5 points)",
            metric="fidelity", group="multilingual", arm=TEXT, against=PICTURES, direction="little", margin=5.0,
        ),
        Expectation(
            claim="They cost little of what is right in any language (less than 3 points either way)",
            metric="score_any_language", group="multilingual", arm=TEXT, direction="little", margin=3.0,
        ),
        Expectation(
            claim="Texts in the pivot change fidelity little (less than 3 points either way)",
            metric="fidelity", group="multilingual", arm=PIVOT_TEXT, direction="little", margin=3.0,
        ),
        Expectation(
            claim="Texts cost the pivot little (less than 3 points either way)",
            metric="score", group="en", arm=TEXT, direction="little", margin=3.0,
        ),
    ),
)  # fmt: skip
