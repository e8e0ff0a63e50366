"""Do prompts in languages without any picture paint what they say? (VisCPM-Paint; claim P4 of MPM; P1, P2, P3, P5)

    python -m lvlm data paint runs/data/paint
    python -m lvlm data paint runs/data/paint_native --native --mismatch 0.25 --train 60 --tune 1 --test 1
    python -m lvlm data sentences runs/data/sentences
    python -m sweeps launch paint_transfer        # 11 arms x 5 seeds
    python -m ablations report paint_transfer

Cost: three to five minutes a run on one core, so one and a half to two and a half hours on 2. All arms and seeds begin
with the same denoiser, trained once on English captions with a table of words (`tiny-unet`), so that intervals speak of
language models, data order and noise like these, and of this denoiser.

Recipe: the table is replaced by the frozen language model; projection and cross-attention learn to read it on 25,600
captions, in English alone, with half of them translated, or with half of them native: other pictures in each language,
a quarter of whose captions tell of another picture. Pictures are painted from prompts in all 16 languages with the same
noise and read by the nearest clean rendering; chance is 1.4 % (`random`), the empty prompt stands under `empty`.

States are trained on with noise (`paint.state_noise`), so that the denoiser reads what is common to captions of one
meaning and not what marks them as English. How much was chosen by English prompts of the split `tune` alone, the only
ones that zero-shot transfer may look at: all 72 are right with 0.5, 85 % with 1.

In two arms the language model reads 2,400 texts in 16 languages before: without parallel samples, the control, and with
half of them parallel and a contrastive term.

Expected: zero-shot prompts are above chance and below English, less so in low tiers; translated captions close most of
the gap, noisy native ones less; English pays little. The aligned model transfers more than its control. The projection
alone reads worse, keys and values do as well as all of cross-attention; the last hidden state, made to predict the next
word, transfers less than the one before it.
"""

from ablations.designs import OneAtATime
from ablations.factors import Factor
from ablations.studies import Expectation, Study
from ablations.studies._texts import SENTENCES, reading
from lvlm.languages import in_table_order

PAINT = {"path": "runs/data/paint", "split": "captions"}
OTHERS = in_table_order(["ar", "de", "fr", "fi", "ru", "tr", "el", "he", "ka", "ht", "is", "sw", "eo", "jv", "no"])
NATIVE = {"path": "runs/data/paint_native", "split": "captions", "languages": list(OTHERS), "samples_per_language": 53}
TRANSLATED, FOUND, ALIGNED = {"data": "translated"}, {"data": "native"}, {"llm": "aligned"}

study = Study(
    name="paint_transfer",
    question="Do prompts in languages without any picture paint what they say?",
    base="tiny_paint",
    fixed={"evaluate.alignment": [{"path": SENTENCES, "split": "test"}]},
    factors=(
        Factor(
            name="data",
            path="paint.mix.corpora",
            levels=("pivot", "translated", "native"),
            labels={
                "pivot": "captions in English only", "translated": "half translated", "native": "half native, noisy",
            },
            settings={
                "pivot": {"paint.mix.corpora": [PAINT], "paint.mix.languages": "en", "paint.mix.english_share": None},
                "translated": {
                    "paint.mix.corpora": [PAINT], "paint.mix.languages": "all", "paint.mix.english_share": 0.5,
                },
                "native": {
                    "paint.mix.corpora": [{**PAINT, "samples": 795}, NATIVE], "paint.mix.languages": "en",
                    "paint.mix.english_share": None,
                },
            },
        ),
        Factor(
            name="learns",
            path="paint.train",
            levels=("projection", "kv", "cross_attention", "all"),
            labels={
                "projection": "projection alone", "kv": "keys and values", "cross_attention": "cross-attention",
                "all": "whole denoiser",
            },
        ),
        Factor(
            name="state", path="paint.layer", levels=(-1, -2), labels={-1: "last state", -2: "last but one"}
        ),
        Factor(
            name="noise",
            path="paint.state_noise",
            levels=(0.0, 0.5, 1.0),
            labels={0.0: "no noise on states", 0.5: "noise of half their size", 1.0: "noise of their size"},
        ),
        Factor(
            name="llm",
            path="align.mix.parallel",
            levels=("shipped", "unaligned", "aligned"),
            labels={"shipped": "model as shipped", "unaligned": "more text", "aligned": "parallel text, contrast"},
            settings={"shipped": {"align": None}, "unaligned": reading(0.0, 0.0), "aligned": reading(0.5, 1.0)},
        ),
    ),
    baseline={"data": "pivot", "learns": "cross_attention", "state": -2, "noise": 0.5, "llm": "shipped"},
    design=OneAtATime(),
    seeds=(0, 1, 2, 3, 4),
    primary="paint/multilingual",
    expectations=(
        Expectation(
            claim="Translated captions paint better from other languages than English ones alone",
            metric="score", group="multilingual", arm=TRANSLATED, direction="higher",
        ),
        Expectation(
            claim="English pays little for translated captions (less than 10 points either way)",
            metric="score", group="en", arm=TRANSLATED, direction="little", margin=10.0,
        ),
        Expectation(
            claim="Translated captions paint better from other languages than as many noisy native ones",
            metric="score", group="multilingual", arm=TRANSLATED, against=FOUND, direction="higher",
        ),
        Expectation(
            claim="An aligned language model transfers more than its unaligned control",
            metric="transfer", group="multilingual", arm=ALIGNED, against={"llm": "unaligned"}, direction="higher",
        ),
        Expectation(
            claim="The control matches: English from the unaligned model (less than 10 points either way)",
            metric="score", group="en", arm=ALIGNED, against={"llm": "unaligned"}, direction="little", margin=10.0,
        ),
        Expectation(
            claim="The last hidden state transfers less than the one before it",
            metric="transfer", group="multilingual", arm={"state": -1}, direction="lower",
        ),
        Expectation(
            claim="The control matches: English from the last hidden state (less than 10 points either way)",
            metric="score", group="en", arm={"state": -1}, direction="little", margin=10.0,
        ),
        Expectation(
            claim="The projection alone paints worse from English than cross-attention",
            metric="score", group="en", arm={"learns": "projection"}, direction="lower",
        ),
        Expectation(
            claim="Keys and values do as well as all of cross-attention (within 10 points)",
            metric="score", group="multilingual", arm={"learns": "kv"}, direction="little", margin=10.0,
        ),
        Expectation(
            claim="Without noise on the states nearly nothing transfers",
            metric="score", group="multilingual", arm={"noise": 0.0}, direction="lower",
        ),
        Expectation(
            claim="Noise as large as the states costs English",
            metric="score", group="en", arm={"noise": 1.0}, direction="lower",
        ),
        Expectation(
            claim="Noise as large as the states transfers more of what English has",
            metric="transfer", group="multilingual", arm={"noise": 1.0}, direction="higher",
        ),
        Expectation(
            claim="Translated captions help T1 more than T5",
            metric="score", group="T1", than_group="T5", arm=TRANSLATED, direction="higher",
        ),
    ),
)  # fmt: skip
