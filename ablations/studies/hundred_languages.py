"""Into how many of 80 languages should instruction data be spread, with names that people wrote? (Centurio, RQ1)

    make study STUDY=hundred_languages                        # writes the corpus and the backbones it needs, first
    python -m sweeps launch hundred_languages                 # 6 arms x 2 seeds
    BUDGET=full python -m sweeps launch hundred_languages     # the same arms, 5 seeds
    python -m ablations report hundred_languages

Needs: `python -m lvlm data emoji runs/data/emoji` (names of Unicode CLDR in 80 of Centurio's 100 languages, pictures of
a colour font) and `python -m lvlm backbones --corpus runs/data/emoji --out runs/backbones/emoji`: a language model that
has read those names as text and a tower that has seen the pictures. One draw of each serves all seeds unless more are
built (`--draws 0 1 2`), so that intervals then speak of these backbones alone.

Cost on two cores: the 12 cells took 20 minutes beside other work (measured), the backbones are thought to take 15
minutes on free cores and took far longer beside it, the corpus 45 seconds; BUDGET=full, 30 cells, has not been run. A
few minutes of it, with fewer steps: instruct.mix.corpora='[{path: runs/data/emoji, split: instruct, samples: 320}]'
evaluate.items=2 behind the command.

Found by default (2 seeds, one draw of the backbones, 79 languages beside English, fidelity in 72 of them): English
only costs 48.9 points of fidelity [39.5, 58.2] and 1.8 [-0.2, 3.8] of the naming of pictures, of which only 3.9 % are
named right with all languages: tower and language model are too small for these names, and differences between tiers
do not show.

Expected: as in `number_of_languages`, at its real breadth: English only costs the other languages names and fidelity;
each added tier improves itself; English stays within a few points. Choices and pairs are answered by a letter or a
number, which has no language, so names are the primary outcome. Half of the test items show concepts that training
never does; towers and language models as small as these name hardly any of them (`source` in the predictions).
"""

from ablations.designs import FullGrid
from ablations.factors import Factor
from ablations.studies import Expectation, Study

EMOJI, BACKBONES = "runs/data/emoji", "runs/backbones/emoji"
GROUPS = ("en", "T5", "T5-T4", "T5-T3", "T5-T2", "L100")
ENGLISH_ONLY = {"languages": "en"}

study = Study(
    name="hundred_languages",
    question="How many of the world's languages, at a fixed number of samples?",
    base="tiny",
    fixed={
        "model.tower": f"{BACKBONES}/vit",
        "model.llm": f"{BACKBONES}/lm",
        "pretrain.mix.corpora": [{"path": EMOJI, "split": "captions"}],
        "pretrain.epochs": 2,
        "instruct.mix.corpora": [{"path": EMOJI, "split": "instruct"}],
        "instruct.epochs": 2,
        "instruct.mix.english_share": None,  # half of the samples wherever there is more than English
        "evaluate.corpora": [{"path": EMOJI, "split": "test"}],
        "evaluate.items": 16,
        "evaluate.languages": "L100",
    },
    factors=(
        Factor(
            name="languages",
            path="instruct.mix.languages",
            levels=GROUPS,
            labels={"en": "English only"},
        ),
    ),
    baseline={"languages": "L100"},
    design=FullGrid(),
    seeds=(0, 1),
    primary="naming/multilingual",
    full_seeds=(0, 1, 2, 3, 4),
    expectations=(
        Expectation(
            claim="English-only instruction tuning lowers the naming of pictures in other languages",
            metric="score", group="naming/multilingual", arm=ENGLISH_ONLY, direction="lower",
        ),
        Expectation(
            claim="English-only instruction tuning lowers fidelity in other languages",
            metric="fidelity", group="naming/multilingual", arm=ENGLISH_ONLY, direction="lower",
        ),
        Expectation(
            claim="English suffers little from training in all languages (less than 3 points either way)",
            metric="score", group="en", arm={}, against=ENGLISH_ONLY, direction="little", margin=3.0,
        ),
        Expectation(
            claim="The score falls more in T1 than in T5 under English-only tuning",
            metric="score", group="T1", than_group="T5", arm=ENGLISH_ONLY, direction="lower",
        ),
        *(
            Expectation(
                claim=f"Adding {tier} to the training languages improves its names",
                metric="score", group=f"naming/{tier}", direction="higher",
                arm={"languages": group}, against={"languages": smaller},
            )
            for tier, smaller, group in zip(("T5", "T4", "T3", "T2", "T1"), GROUPS, GROUPS[1:], strict=False)
        ),
    ),
)  # fmt: skip
