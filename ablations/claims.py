"""The published claims, as data: what was said where, what would have to be seen here, and what was seen there.

`findings` judges them on a study's results, `evidence` on the published tables. A claim is tested by every study that
varies the fields of the run config that it speaks of: a level is named by the field and its value, so that a study of
one's own is judged like those that come with the toolkit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ablations.factors import Level
from ablations.published.tables import Cells, best
from lvlm.languages import TIERS

Choice = Level | tuple[Level, ...]
"""A level, or several that mean the same: the first that a study has."""
Where = Mapping[str, Choice]
"""Dotted field of the run config -> its level; the other factors as in the study's baseline."""
INFINITE = float("inf")
ABOVE, BELOW = (0.0, INFINITE), (-INFINITE, 0.0)
"""Regions that an effect is claimed to lie in, in points."""


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """One comparison of a claim: `arm` against `against` lies in `region` (points), on one metric and group.

    With `than_group` how much larger it is in `group` than there. `published` is the same in the published tables.
    """

    arm: Where
    against: Where
    group: str
    region: tuple[float, float]
    metric: str = "score"
    than_group: str | None = None
    published: Cells | None = None


@dataclass(frozen=True, kw_only=True)
class Reached:
    """The mean of an arm on one metric and group lies in `region`, in percent."""

    arm: Where
    group: str
    region: tuple[float, float]
    metric: str = "fidelity"
    published: Cells | None = None


@dataclass(frozen=True, kw_only=True)
class Optimum:
    """The level of a continuous factor at which `group` is best lies in `region` (percent), inside of what was tried.

    With `than_group` how far the optimum of `group` lies above the optimum there.
    """

    path: str
    group: str
    region: tuple[float, float]
    metric: str = "score"
    than_group: str | None = None
    table: str = "rq2"


Part = Contrast | Reached | Optimum


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A published claim. It is supported where every one of its `parts` is, and contradicted where any of them is.

    `study` is the one made for it; one that is not there yet has no parts. `margin` is what "little" means, in points.
    `why` says what could explain that this world contradicts it, once one does, and which study tests that apart.
    """

    id: str
    source: str
    statement: str
    study: str
    parts: tuple[Part, ...] = ()
    margin: float | None = None
    why: str = ""

    @property
    def direction(self) -> str:
        """What the first part expects."""
        if not self.parts:
            return ""
        region = self.parts[0].region
        return {ABOVE: "higher", BELOW: "lower"}.get(region) or said(*region)

    @property
    def size(self) -> float | None:
        """The published figure of the first part, in points; None where there is none."""
        return figure(self.parts[0]) if self.parts else None


def said(low: float, high: float) -> str:
    """A region in words."""
    if low == -INFINITE:
        return f"below {high:g}"
    return f"above {low:g}" if high == INFINITE else f"from {low:g} to {high:g}"


def figure(part: Part) -> float | None:
    """The published figure of a part, in points or percent; None where there is none."""
    if not isinstance(part, Optimum):
        return None if part.published is None else part.published.points
    groups = TIERS if part.group == "multilingual" else (part.group,)
    return best(part.table, groups) - (best(part.table, (part.than_group,)) if part.than_group else 0.0)


LANGUAGES, SHARE = "instruct.mix.languages", "instruct.mix.english_share"
CAPTIONS, TEXT, TOWER = "pretrain.mix.english_share", "instruct.mix.corpora", "instruct.train.tower"
READ = "pretrain.mix.corpora"
CHANCE = 100 / 72
"""Percent of pictures of the world `paint` that have every attribute right by chance: one of 72 kinds."""
PAIRS, PARALLEL = "instruct.mix.pairs", "align.mix.parallel"
ALL: Where = {LANGUAGES: ("all", "L100")}
ENGLISH: Where = {LANGUAGES: "en"}
HALF_CAPTIONS: Where = {CAPTIONS: ("half English", 0.5)}
ENGLISH_CAPTIONS: Where = {CAPTIONS: ("English only", 1.0)}
HALF_TEXT: Where = {TEXT: "half English"}
ENGLISH_TEXT: Where = {TEXT: "English only"}
CENTURIO, MPM = "Centurio, arXiv 2501.05122", "MPM, arXiv 2308.12038"
FIDELITY = "rq1b_xm3600_fidelity"
ADDED = (("T5", "en", "T5"), ("T5-T4", "T5", "T4"), ("T5-T3", "T5-T4", "T3"), ("T5-T2", "T5-T3", "T2"))
NAMES = {"en": "English", "all": "L100"}
"""Groups of training languages -> arms of the published tables, where these are called otherwise."""


def _fidelity(arm: str, against: str | None, *groups: str) -> Cells:
    return Cells(FIDELITY, arm, groups, against, metric="language_fidelity")


def _reading(arm: str, against: str, *groups: str) -> Cells:
    return Cells("rq4_smpqa_read", arm, groups, against, metric="accuracy")


def _captions(group: str, arm: str = "50", against: str = "100", *, than: tuple[str, ...] = ()) -> Cells:
    return Cells("rq3", arm, TIERS if group == "multilingual" else (group,), against, than_groups=than)


def _share(arm: str, against: str) -> Cells:
    return Cells("rq2", arm, TIERS, against)


CLAIMS = (
    Claim(
        id="C1a", source=f"{CENTURIO}, RQ1 (fidelity on XM3600) and Table 27", study="number_of_languages",
        statement="After instruction tuning in English only, hardly an answer is in another language than English.",
        parts=(Reached(arm=ENGLISH, group="multilingual", region=(-INFINITE, 10.0),
                       published=_fidelity("English", None, *TIERS)),),
        why="How often the built-in language models answer in English unasked is declared (25 % of requests in T5 to "
            "45 % in T1), and the level follows from it: the study answer_mix varies it.",
    ),
    Claim(
        id="C1b", source=f"{CENTURIO}, RQ1 (fidelity on XM3600) and Table 27", study="number_of_languages",
        statement="Training in all languages raises fidelity in them.",
        parts=(Contrast(arm=ALL, against=ENGLISH, metric="fidelity", group="multilingual", region=ABOVE,
                        published=_fidelity("L100", "English", *TIERS)),),
    ),
    Claim(
        id="C1c", source=f"{CENTURIO}, RQ1 (fidelity on XM3600) and Table 27", study="number_of_languages",
        statement="Training in more languages raises fidelity in languages that it never saw (T5-T3: in T2 and T1).",
        parts=tuple(
            Contrast(arm={LANGUAGES: "T5-T3"}, against=ENGLISH, metric="fidelity", group=tier, region=ABOVE,
                     published=_fidelity("T5-T3", "English", tier))
            for tier in ("T2", "T1")
        ),
    ),
    Claim(
        id="C2", source=f"{CENTURIO}, RQ1", study="number_of_languages",
        statement="Each tier of languages that is added to the training gains by it.",
        parts=tuple(
            Contrast(arm={LANGUAGES: (more, "L100") if more == "all" else more}, against={LANGUAGES: fewer}, group=tier,
                     region=ABOVE,
                     published=Cells("rq1a_all_tasks", NAMES.get(more, more), (tier,), NAMES.get(fewer, fewer)))
            for more, fewer, tier in (*ADDED, ("all", "T5-T2", "T1"))
        ),
    ),
    Claim(
        id="C3", source=f"{CENTURIO}, RQ1", study="number_of_languages", margin=3.0,
        statement="Training in all languages costs English little (less than 3 points).",
        parts=(Contrast(arm=ALL, against=ENGLISH, group="en", region=(-3.0, INFINITE),
                        published=Cells("rq1a_all_tasks", "L100", ("en",), "English")),),
    ),
    Claim(
        id="C4", source=f"{CENTURIO}, RQ2", study="english_share",
        statement="The best share of English in the instruction data lies between 25 and 75 %; both ends are worse.",
        parts=(
            Contrast(arm={SHARE: 0.5}, against={SHARE: (0.01, 0.1)}, group="multilingual", region=ABOVE,
                     published=_share("50", "1")),
            Contrast(arm={SHARE: 0.5}, against={SHARE: (0.9, 0.99)}, group="multilingual", region=ABOVE,
                     published=_share("50", "90")),
            Optimum(path=SHARE, group="multilingual", region=(25.0, 75.0)),
        ),
        why="In the built-in world translations have no fault and say what the English data say, so that English is "
            "learnt from them too and little is lost where it is left out. Published data were translated by machine: "
            "the study translation_quality gives translations mistakes. They lower the end with little English; the "
            "end with much English they leave within noise.",
    ),
    Claim(
        id="C5", source=f"{CENTURIO}, RQ2", study="english_share",
        statement="Languages of low tiers want less English than those of high tiers and English itself.",
        parts=(
            Optimum(path=SHARE, group="T1", than_group="T5", region=BELOW),
            Optimum(path=SHARE, group="T1", than_group="en", region=BELOW),
        ),
    ),
    Claim(
        id="C6a", source=f"{CENTURIO}, RQ3", study="pretrain_share",
        statement="Pre-training in all languages instead of English alone helps every tier.",
        parts=tuple(
            Contrast(arm=HALF_CAPTIONS, against=ENGLISH_CAPTIONS, group=tier, region=ABOVE, published=_captions(tier))
            for tier in TIERS
        ),
    ),
    Claim(
        id="C6b", source=f"{CENTURIO}, RQ3", study="pretrain_share",
        statement="It helps the lowest tiers most (T1 and T2 more than T5).",
        parts=tuple(
            Contrast(arm=HALF_CAPTIONS, against=ENGLISH_CAPTIONS, group=tier, than_group="T5", region=ABOVE,
                     published=_captions(tier, than=("T5",)))
            for tier in ("T2", "T1")
        ),
    ),
    Claim(
        id="C6c", source=f"{CENTURIO}, RQ3", study="pretrain_share",
        statement="Pre-training in English alone helps English, and other languages less.",
        parts=(
            Contrast(arm=ENGLISH_CAPTIONS, against={CAPTIONS: "none"}, group="en", region=ABOVE,
                     published=_captions("en", "100", "no pre-training")),
            Contrast(arm=ENGLISH_CAPTIONS, against={CAPTIONS: "none"}, group="en", than_group="multilingual",
                     region=ABOVE, published=_captions("en", "100", "no pre-training", than=TIERS)),
        ),
    ),
    Claim(
        id="C7a", source=f"{CENTURIO}, RQ4 (where the arm without text has a frozen tower too)", study="text_in_image",
        statement="Text in images helps reading even if it is English alone: English and other Latin letters.",
        parts=tuple(
            Contrast(arm=ENGLISH_TEXT, against={TEXT: "none"}, group=f"reading/{group}", region=ABOVE,
                     published=_reading("100% Eng.", "no OCR", group))
            for group in ("en", "Latin")
        ),
    ),
    Claim(
        id="C7b", source=f"{CENTURIO}, RQ4", study="text_in_image",
        statement="Text in more languages helps the reading of letters other than Latin.",
        parts=(Contrast(arm=HALF_TEXT, against=ENGLISH_TEXT, group="reading/other", region=ABOVE,
                        published=_reading("50% Eng.", "100% Eng.", "other")),),
    ),
    Claim(
        id="C7c", source=f"{CENTURIO}, RQ4", study="text_in_image", margin=5.0,
        statement="Text in more languages costs the reading of English nothing (less than 5 points).",
        parts=(Contrast(arm=HALF_TEXT, against=ENGLISH_TEXT, group="reading/en", region=(-5.0, INFINITE),
                        published=_reading("50% Eng.", "100% Eng.", "en")),),
    ),
    Claim(
        id="C8", source=f"{CENTURIO}, RQ4", study="text_in_image",
        statement="A tower that learns reads better than a frozen one, in English and elsewhere.",
        parts=tuple(
            Contrast(arm={TOWER: "full"}, against={TOWER: "frozen"}, group=f"reading/{own}", region=ABOVE,
                     published=_reading("50% Eng.", "50% (frozen)", *theirs))
            for own, theirs in (("en", ("en",)), ("multilingual", ("Latin", "other")))
        ),
    ),
    Claim(
        id="C9", source=f"{CENTURIO}, appendix D.2, Table 16", study="allocation", margin=2.0,
        statement="Favouring low tiers in the instruction data brings them nothing (less than 2 points in T1 and T2).",
        parts=tuple(
            Contrast(arm={"instruct.mix.allocation": level}, against={"instruct.mix.allocation": "uniform"}, group=tier,
                     region=(-INFINITE, 2.0), published=Cells("t16", theirs, (tier,), "uniform"))
            for level, theirs in (("inverse_tier", "stratified 1/tier"), ("inverse_exp_tier", "stratified 1/exp(tier)"))
            for tier in ("T2", "T1")
        ),
    ),
    Claim(
        id="L1", source=f"{CENTURIO}, in words, without figures", study="continue_or_merge_lora",
        statement="Merging the LoRA of pre-training and beginning another is worse than going on with it.",
        parts=(Contrast(arm={"instruct.start_lora": "merge"}, against={"instruct.start_lora": "continue"},
                        group="multilingual", region=BELOW),),
    ),
    Claim(
        id="P1", source=f"{MPM}, README of the code, in words", study="number_of_languages",
        statement="After tuning in the pivot only, more answers are right but in the wrong language.",
        parts=(
            Contrast(arm=ENGLISH, against=ALL, metric="right_elsewhere", group="multilingual", region=ABOVE),
            Contrast(arm=ENGLISH, against=ALL, metric="fidelity", group="multilingual", region=BELOW),
        ),
    ),
    Claim(
        id="P2", source=f"{MPM}, in words, without figures", study="pivot_pairs",
        statement="A few translated pairs in instruction tuning (128 of 3,200 samples) repair the language of the "
                  "answers: fidelity above 90 % in one language of each tier.",
        parts=tuple(Reached(arm={PAIRS: 128, LANGUAGES: code}, metric="fidelity", group=code, region=(90.0, INFINITE))
                    for code in ("de", "ru", "el", "sw", "jv")),
    ),
    Claim(
        id="P3", source=f"{MPM}, the method's assumption", study="pivot_alignment",
        statement="Transfer from the pivot grows with the multilingual alignment of the language model: one that "
                  "retrieves parallel sentences better has more right in any language.",
        parts=tuple(
            Contrast(arm={PARALLEL: "contrast 1"}, against={PARALLEL: "0%"}, metric=metric, group="multilingual",
                     region=ABOVE)
            for metric in ("score_any_language", "retrieval")
        ),
    ),
    Claim(
        id="P4", source=f"{MPM}, README of the code, FID on COCO", study="paint_transfer",
        statement="Text to image transfers to languages in which no image was captioned: in every tier more pictures "
                  "than by chance have all attributes right.",
        parts=tuple(Reached(arm={"paint.mix.corpora": "pivot"}, metric="score", group=tier, region=(CHANCE, INFINITE))
                    for tier in TIERS),
    ),
    Claim(
        id="P5", source=f"{MPM}, in words, without figures that could be had", study="pivot_native", margin=2.0,
        statement="Pre-training on the pivot alone does at least as well as native data of the usual quality, half of "
                  "which tell of another picture (less than 2 points behind).",
        parts=(Contrast(arm={READ: "pivot"}, against={READ: "noise 50%"}, group="multilingual",
                        region=(-2.0, INFINITE)),),
    ),
    Claim(
        id="P6", source=f"{MPM}, README of the code: VisCPM-Chat-zhplus against -balance", study="pretrain_share",
        margin=2.0,
        statement="Adding translated data to pre-training gains little (less than 2 points).",
        parts=(Contrast(arm=HALF_CAPTIONS, against=ENGLISH_CAPTIONS, group="multilingual", region=(-INFINITE, 2.0),
                        published=Cells("llava_test_gpt4_score", "VisCPM-Chat-zhplus", ("zh",), "VisCPM-Chat-balance",
                                        metric="average")),),
    ),
    Claim(
        id="T1", source="open: no published ablation", study="tiling",
        statement="Seeing an image in tiles helps reading.",
        parts=(Contrast(arm={"model.tiles": 2}, against={"model.tiles": 1}, group="reading/en", region=ABOVE),),
    ),
)  # fmt: skip
"""In the order of the papers."""
