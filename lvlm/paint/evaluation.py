"""Scores the pictures of a finished run anew, beside its answers. Called by `python -m lvlm evaluate`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from lvlm.config import RunConfig
from lvlm.data.corpus import Corpus
from lvlm.model.layouts import content_digest
from lvlm.paint.command import painter_folder
from lvlm.paint.painter import load_painter
from lvlm.paint.sample import Drawing
from lvlm.paint.scores import PICTURES, PaintedScores, Tables, evaluate_both
from lvlm.settings import EvaluateConfig
from lvlm.startup import quiet_transformers
from lvlm.train.compute import compute
from lvlm.train.progress import Reporter


def evaluate_painted(
    answered: Callable[[EvaluateConfig], Tables],
    checkpoint: Path,
    recorded: RunConfig,
    config: EvaluateConfig,
    corpora: Mapping[str, Corpus],
    reporter: Reporter,
    *,
    out: Path | None,
    device: str | None,
) -> Tables:
    """(scores, predictions) of both kinds of task by the painter of a run, whose pictures are kept under `out`."""
    assert recorded.paint is not None
    settings = recorded.compute.model_copy(update={"device": device} if device else {})
    with compute(settings) as machinery, quiet_transformers(), reporter.evaluation() as progress:
        folder, _ = painter_folder(checkpoint)
        painter = load_painter(folder, autocast=machinery.autocast, precision=machinery.precision)
        painter.config = recorded.paint  # runs that share the stage may differ in what decides no weight
        painter.states.llm.to(machinery.device)
        painter.to(machinery.device)
        drawing = Drawing(recorded.seed, recorded.paint.sample_steps, recorded.paint.guidance)
        painted = PaintedScores(
            painter,
            drawing,
            None if out is None else out / PICTURES,
            content_digest([folder]),
            batch_size=settings.evaluate_batch,
        )
        with machinery.autocast():
            return evaluate_both(answered, painted, config, corpora, permission="report", on_progress=progress)
