"""What should data in a target language be: translated, native, or more of the pivot? And how clean? (viscpm A3 to A5)

    python -m lvlm data origins runs/data/origins
    python -m sweeps launch pivot_kind        # 9 arms x 5 seeds
    python -m ablations report pivot_kind

Cost: 35 seconds a run on one core, so about 13 minutes on 2; the pretrain stage is trained once per seed.

Every arm sees 3,200 dialogues, 2,560 of them the same ones in the pivot, English. The other 640 are further ones in the
pivot, or 128 in each of five target languages (one of each tier): translated from pictures that the pivot speaks of,
with no, 10, 25 or 50 % of their words exchanged for other words of the language; or native, about pictures of their
own, where no, 25, 50 or 75 % of the dialogues speak of another picture. The pivot alone so sees 3,200 pictures, with
translations 2,560 and with native dialogues 2,688: a translation shows nothing new. Rates are those of the corpus
`origins`: what is wrong at a low rate is wrong at a higher one too.

Expected: any data in the target language repairs fidelity, noise or not; the score follows how clean it is, so that
translations are worth as much as native data without noise and more than noisy ones; the crossing point is what is
looked for. More of the pivot changes little.
"""

from typing import Any

from ablations.designs import FullGrid
from ablations.factors import Factor, Level
from ablations.studies import Expectation, Study

LANGUAGES = ["en", "de", "ru", "el", "sw", "jv"]
PIVOT, EACH = 2560, 128
SPLITS = {
    "translated": "instruct", "errors 10%": "errors_10", "errors 25%": "errors_25", "errors 50%": "errors_50",
    "native": "native", "noise 25%": "native_25", "noise 50%": "native_50", "noise 75%": "native_75",
}  # fmt: skip
LABELS: dict[Level, str] = {"pivot": "pivot only"}
LABELS |= {name: f"{'translated' if 'errors' in name else 'native'}, {name}" for name in SPLITS if name[-1] == "%"}


def corpora(split: str | None) -> list[dict[str, Any]]:
    def use(split: str, languages: list[str], number: int) -> dict[str, Any]:
        return {"path": "runs/data/origins", "split": split, "languages": languages, "samples_per_language": number}

    if split is None:
        return [use("instruct", ["en"], PIVOT + 5 * EACH)]
    return [use("instruct", ["en"], PIVOT), use(split, LANGUAGES[1:], EACH)]


def arm(kind: str) -> dict[str, str]:
    return {"kind": kind}


study = Study(
    name="pivot_kind",
    question="What should data in a target language be: translated, native or more of the pivot, and how clean?",
    base="tiny",
    fixed={"instruct.mix.english_share": None, "evaluate.languages": LANGUAGES},
    factors=(
        Factor(
            name="kind",
            path="instruct.mix.corpora",
            levels=("pivot", *SPLITS),
            labels=LABELS,
            settings={
                "pivot": {"instruct.mix.corpora": corpora(None)},
                **{name: {"instruct.mix.corpora": corpora(split)} for name, split in SPLITS.items()},
            },
        ),
    ),
    baseline={"kind": "pivot"},
    design=FullGrid(),
    seeds=(0, 1, 2, 3, 4),
    expectations=(
        Expectation(
            claim="Translated data raise the score in other languages",
            metric="score", group="multilingual", arm=arm("translated"), direction="higher",
        ),
        Expectation(
            claim="Native data without noise are worth as much as translated ones (within 3 points)",
            metric="score", group="multilingual", arm=arm("native"), against=arm("translated"), direction="little",
            margin=3.0,
        ),
        Expectation(
            claim="Native data of which half speak of another picture are worth less than translated ones",
            metric="score", group="multilingual", arm=arm("noise 50%"), against=arm("translated"), direction="lower",
        ),
        Expectation(
            claim="Native data of which three quarters speak of another picture still raise fidelity",
            metric="fidelity", group="multilingual", arm=arm("noise 75%"), direction="higher",
        ),
        Expectation(
            claim="They lower the score in any language",
            metric="score_any_language", group="multilingual", arm=arm("noise 75%"), direction="lower",
        ),
        Expectation(
            claim="A quarter of wrong words makes translations worth less",
            metric="score", group="multilingual", arm=arm("errors 25%"), against=arm("translated"), direction="lower",
        ),
        Expectation(
            claim="Translations with half of their words wrong still raise fidelity",
            metric="fidelity", group="multilingual", arm=arm("errors 50%"), direction="higher",
        ),
        Expectation(
            claim="Noise in other languages costs the pivot little (less than 3 points either way)",
            metric="score", group="en", arm=arm("noise 75%"), direction="little", margin=3.0,
        ),
    ),
)  # fmt: skip
