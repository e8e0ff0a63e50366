"""What a language model reads before it sees an image, in studies of alignment."""

from __future__ import annotations

from typing import Any

SENTENCES = "runs/data/sentences"


def reading(parallel: float, weight: float) -> dict[str, Any]:
    """What the language model reads: the share of parallel samples, and the weight of the contrastive term."""
    return {
        "align.mix": {
            "corpora": [{"path": SENTENCES, "split": "train", "samples": 2400}],
            "languages": "all",
            "english_share": 0.5,
            "parallel": parallel,
        },
        "align.train": {"adapter": "frozen", "llm": "full"},
        "align.optim": {"lr": 1.0e-3},
        "align.batch_samples": 64,  # half of them parallel are 16 pairs to tell apart
        "align.contrast": {"weight": weight, "layer": 3} if weight else {},
    }
