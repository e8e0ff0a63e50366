"""Does seeing an image in tiles, at twice the resolution and the same number of image tokens, help?

    python -m sweeps launch tiling        # 2 arms x 5 seeds
    python -m ablations report tiling

Cost: about three and a half minutes a run on one core, so about 20 minutes on 2; with 2 x 2 tiles the tower sees five
views of each image instead of one, which are cached once for all arms that share a tower.

Recipe: reading takes thousands of pictures of words, so this study trains mostly on those: 6,000 in English, seen
twice, beside 800 dialogues.

Expected: small text needs the resolution, so reading gains, most in English, the language whose text is trained;
questions about large shapes gain little. Centurio has no tiling ablation to compare with.
"""

from ablations.designs import FullGrid
from ablations.factors import Factor
from ablations.studies import Expectation, Study

SHAPES, READING = "runs/data/shapes", "runs/data/reading"

study = Study(
    name="tiling",
    question="Do tiles help, and with what?",
    base="tiny",
    factors=(Factor(name="tiles", path="model.tiles", levels=(1, 2), labels={1: "no tiles", 2: "2 x 2 tiles"}),),
    baseline={"tiles": 1},
    fixed={
        "pretrain.mix.corpora": [{"path": SHAPES, "split": "captions", "samples": 1200}],
        "instruct.mix.corpora": [
            {"path": SHAPES, "split": "instruct", "samples": 800},
            {"path": READING, "split": "instruct", "languages": ["en"], "samples": 6000},
        ],
        "instruct.epochs": 2,
        "evaluate.corpora": [{"path": SHAPES, "split": "test"}, {"path": READING, "split": "test"}],
        "evaluate.items": 100,
    },
    design=FullGrid(),
    seeds=(0, 1, 2, 3, 4),
    primary="reading/en",
    expectations=(
        Expectation(
            claim="Tiles help reading (English, the only language whose text in images is trained)",
            metric="score", group="reading/en", arm={"tiles": 2}, direction="higher",
        ),
        Expectation(
            claim="Tiles help reading in the other languages",
            metric="score", group="reading/multilingual", arm={"tiles": 2}, direction="higher",
        ),
        Expectation(
            claim="Tiles change English questions about shapes little (less than 5 points either way)",
            metric="score", group="vqa/en", arm={"tiles": 2}, direction="little", margin=5.0,
        ),
    ),
)  # fmt: skip
