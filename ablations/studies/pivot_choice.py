"""Which language makes a good pivot, and to which others does it carry? (viscpm A10, A11)

    python -m sweeps launch pivot_choice        # 8 arms x 5 seeds
    python -m ablations report pivot_choice

Cost: 50 seconds a run on one core, so about 18 minutes on 2; captions are trained once per seed and
pivot.

Captions and dialogues are all in one language, one of each tier beside English and a second of T5 that is written from
right to left; or half English, half German. All 16 languages are asked. The arms are one half of a matrix from pivot to
target, whose cells differ in script, in the order of noun and adjectives and in the words that both share; notebook 05
holds transfer against these. A tier says how much of a language the language model has read: it is no measure of
distance, and pairs of languages in one tier are what the comparison rests on.

Expected: English carries best, as the language model knows it best; a pivot of the lowest tier carries worst; two
pivots carry to the others as well as one does; pivots carry further to languages in their own script.
"""

from ablations.designs import FullGrid
from ablations.factors import Factor
from ablations.studies import Expectation, Study

PIVOTS = {
    "en": "English", "de": "German (T5)", "ar": "Arabic (T5)", "ru": "Russian (T4)", "el": "Greek (T3)",
    "sw": "Swahili (T2)", "jv": "Javanese (T1)", "en+de": "English and German",
}  # fmt: skip
NOUN_FIRST = ("ar", "fr", "he", "ht", "jv", "sw")
"""Languages in which the shape's noun comes before its colour; in the others it comes after it."""


def pivot(code: str) -> dict[str, str]:
    return {"pivot": code}


study = Study(
    name="pivot_choice",
    question="Which language makes a good pivot, and to which others does it carry?",
    base="tiny",
    fixed={"instruct.mix.english_share": None},
    factors=(
        Factor(
            name="pivot",
            path="instruct.mix.languages",
            levels=tuple(PIVOTS),
            labels={code: f"pivot: {name}" for code, name in PIVOTS.items()},
            settings={
                code: {f"{stage}.mix.languages": code.split("+") for stage in ("pretrain", "instruct")}
                for code in PIVOTS
            },
        ),
    ),
    baseline={"pivot": "en"},
    design=FullGrid(),
    seeds=(0, 1, 2, 3, 4),
    primary="score_any_language/multilingual",
    expectations=(
        *(
            Expectation(
                claim=f"{name} carries worse than English to a language that is neither (French)",
                metric="score_any_language", group="fr", arm=pivot(code), direction="lower",
            )
            for code, name in PIVOTS.items()
            if code in ("el", "sw", "jv")
        ),
        Expectation(
            claim="Two pivots carry to French as well as English alone (less than 3 points either way)",
            metric="score_any_language", group="fr", arm=pivot("en+de"), direction="little", margin=3.0,
        ),
        Expectation(
            claim="Two pivots keep fidelity in French higher than English alone",
            metric="fidelity", group="fr", arm=pivot("en+de"), direction="higher",
        ),
        Expectation(
            claim="German carries further to French, in its script, than to Hebrew, held against English",
            metric="score_any_language", group="fr", than_group="he", arm=pivot("de"), direction="higher",
        ),
        Expectation(
            claim="Arabic carries further to Hebrew (noun first, too) than to Georgian, held against English",
            metric="score_any_language", group="he", than_group="ka", arm=pivot("ar"), direction="higher",
        ),
        Expectation(
            claim="As its own pivot Javanese is answered better than from English",
            metric="score", group="jv", arm=pivot("jv"), direction="higher",
        ),
    ),
)  # fmt: skip
