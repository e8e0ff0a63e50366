"""Does text in images help reading, in which languages must it be, and must the tower learn? (Centurio, RQ4)

    make study STUDY=text_in_image                # writes the corpus that it needs, first
    python -m sweeps launch text_in_image         # 5 arms x 5 seeds
    python -m ablations report text_in_image

Needs: `python -m lvlm data reading runs/data/text_in_image --train 3280 --english 9000 --test 200 --languages en de sw
ru el`: words and letters in two languages with Latin letters beside English and two with others.

Cost: about three minutes a run on one core, six where the tower learns, so about 40 minutes on 2 (extrapolated from
two runs).

Recipe: 2 x 2 tiles, without which small letters are hardly legible (study `tiling`); 9,000 pictures of text, each seen
once, beside 800 dialogues about shapes in all languages. "half English" divides the other half equally, "Latin down" is
Centurio's allocation: a language in other letters gets four times as many pictures as one in Latin letters, English
among them. The arm without text sees the dialogues alone, as in the paper. Text differs beside a frozen tower, where
the paper trains it, and the tower learns beside one mix alone, at a tenth of the LLM's rate, the ratio of the published
code. Rates, languages and the number of pictures were chosen after trial runs of one seed that is not in this study,
for something to be read at all: with 8,000 pictures in seven languages, half of them English, the preset's rates and a
tower that learns read 5 of 100 English words, these rates and a frozen tower 14, and both hardly a word elsewhere.

Expected: text in English alone helps reading, most in Latin letters; in more languages it helps other letters and costs
English nothing; a frozen tower reads worse. Centurio's best arm reads 10 % of the words in other letters.
"""

from typing import Any

from ablations.designs import OneAtATime
from ablations.factors import Factor
from ablations.studies import Expectation, Study

SHAPES, TEXT = "runs/data/shapes", "runs/data/text_in_image"
LATIN, OTHER = ("de", "sw"), ("ru", "el")
NONE, ENGLISH, DOWN = ({"text": name} for name in ("none", "English only", "Latin down"))
TRAINED = {"tower": "full"}


def corpora(**samples: int) -> dict[str, Any]:
    """The corpora of a mix: so many pictures of text for each language of a group, and dialogues."""
    groups = {"english": ("en",), "latin": LATIN, "other": OTHER}
    dialogues: dict[str, Any] = {"path": SHAPES, "split": "instruct", "samples": 800}
    return {
        "instruct.mix.corpora": [dialogues]
        + [
            {"path": TEXT, "split": "instruct", "languages": list(groups[name]), "samples_per_language": number}
            for name, number in samples.items()
        ]
    }


study = Study(
    name="text_in_image",
    question="Does text in images help reading, in which languages, and must the tower learn?",
    base="tiny",
    fixed={
        "model.tiles": 2,
        "pretrain.mix.corpora": [{"path": SHAPES, "split": "captions", "samples": 1200}],
        "evaluate.corpora": [{"path": SHAPES, "split": "test"}, {"path": TEXT, "split": "test"}],
        "evaluate.languages": ["en", *LATIN, *OTHER],
        "evaluate.items": 200,
        "instruct.optim.lr": 2.0e-3,
        "instruct.optim.adapter_lr": 2.0e-3,
    },
    factors=(
        Factor(
            name="text",
            path="instruct.mix.corpora",
            levels=("none", "English only", "half English", "Latin down"),
            labels={"none": "no text", "English only": "text in English only", "half English": "text half English"},
            settings={
                "none": corpora(),
                "English only": corpora(english=9000),
                "half English": corpora(english=4500, latin=1125, other=1125),
                "Latin down": corpora(english=818, latin=818, other=3272),
            },
        ),
        Factor(
            name="tower",
            path="instruct.train.tower",
            levels=("frozen", "full"),
            labels={"full": "tower trained", "frozen": "tower frozen"},
            settings={
                "full": {"instruct.train.tower": "full", "instruct.optim.tower_lr": 2.0e-4},
                "frozen": {"instruct.train.tower": "frozen", "instruct.optim.tower_lr": None},
            },
        ),
    ),
    baseline={"text": "half English", "tower": "frozen"},
    design=OneAtATime(),
    seeds=(0, 1, 2, 3, 4),
    primary="reading/multilingual",
    expectations=(
        Expectation(
            claim="Text in English alone helps the reading of English",
            metric="score", group="reading/en", arm=ENGLISH, against=NONE, direction="higher",
        ),
        Expectation(
            claim="Text in English alone helps reading in other languages",
            metric="score", group="reading/multilingual", arm=ENGLISH, against=NONE, direction="higher",
        ),
        Expectation(
            claim="A tower that learns reads English better",
            metric="score", group="reading/en", arm=TRAINED, direction="higher",
        ),
        Expectation(
            claim="A tower that learns reads other languages better",
            metric="score", group="reading/multilingual", arm=TRAINED, direction="higher",
        ),
        Expectation(
            claim="Text in more languages than English helps the reading of letters other than Latin",
            metric="score", group="reading/other", arm={}, against=ENGLISH, direction="higher",
        ),
        Expectation(
            claim="Text in more languages costs the reading of English little (less than 5 points either way)",
            metric="score", group="reading/en", arm={}, against=ENGLISH, direction="little", margin=5.0,
        ),
        Expectation(
            claim="Fewer pictures in Latin letters and more in others help the reading of others",
            metric="score", group="reading/other", arm=DOWN, direction="higher",
        ),
    ),
)  # fmt: skip
