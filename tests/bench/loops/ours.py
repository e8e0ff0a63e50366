"""One stage of an arm under our trainer: its plan, samples and a measured run. Used by `throughput.py`, `gpu.py`,
`cost.py` and `stock`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from loops.measure import Clock, Cost
from lvlm.config import RunConfig, make_config
from lvlm.data.corpus import open_corpus
from lvlm.data.plan import Plan, build_plan
from lvlm.model.assembly import assemble
from lvlm.model.parts import prepare_training
from lvlm.records import CURVE_FILE
from lvlm.settings import ComputeConfig, StageConfig
from lvlm.train.batches import EncodedSample, SampleEncoder, StepBatches
from lvlm.train.compute import compute
from lvlm.train.progress import Reporter
from lvlm.train.stages import Stage
from lvlm.train.train import StageTraining

STAGE = "instruct"
LORA = {"r": 16, "alpha": 32.0}


@dataclass(frozen=True)
class Measured:
    """A training run of one arm: what it cost, its loss at every step, and how many parameters learn."""

    training: Cost
    losses: list[float]
    trainable_parameters: int
    features: Cost | None = None
    saving: Cost | None = None


@dataclass(frozen=True)
class Arm:
    """One stage of an arm with its data, read, planned and tokenised."""

    config: RunConfig
    plan: Plan
    encoder: SampleEncoder
    name: str = STAGE
    """Of the stage."""

    @classmethod
    def make(
        cls,
        *,
        shapes: Path,
        tower: str,
        samples: int,
        llm: str = "tiny-lm/0",
        lora: Mapping[str, float] = LORA,
        rate: float = 1e-3,
        **settings: Any,
    ) -> Arm:
        """The instruct stage of the built-in recipe on short answers and captions in equal parts: all 16 languages,
        half of it English. `settings` are those of compute."""
        uses = [{"path": str(shapes), "split": split, "samples": samples // 2} for split in ("instruct", "captions")]
        stage = {
            "mix": {
                "corpora": uses,
                "languages": "all",
                "english_share": 0.5,
            },
            "train": {"tower": "frozen", "adapter": "full", "llm": "lora"},
            "lora": dict(lora),
            # Constant and one rate for all, so that both loops state the same optimizer in one line.
            "optim": {"lr": rate, "schedule": "constant", "warmup": 0.0},
            "batch_samples": 16,
            "samples": samples,
        }
        config = make_config(
            {
                "model": {"tower": tower, "llm": llm},
                STAGE: stage,
                "compute": {"device": "cpu", "precision": "fp32", **settings},
            }
        )
        return cls.of(config)

    @classmethod
    def of(cls, config: RunConfig, name: str = STAGE) -> Arm:
        """A stage of any run."""
        stage = config.stages()[name]
        _, processor = assemble(config.model, seed=config.seed, precision=config.compute.precision)
        encoder = SampleEncoder(processor)
        corpora = {use.path: open_corpus(use.path) for use in stage.mix.corpora}
        plan = build_plan(name, stage, seed=config.seed, corpora=corpora, measure=encoder.measure)
        return cls(config, plan, encoder, name)

    @property
    def stage(self) -> StageConfig:
        return self.config.stages()[self.name]

    def batches(self, settings: ComputeConfig | None = None) -> StepBatches:
        """The optimizer steps of the plan."""
        settings = settings or self.config.compute
        return StepBatches(
            self.plan, self.encoder, "token", token_budget=settings.micro_batch_tokens, packing=settings.packing
        )

    def samples(self) -> list[EncodedSample]:
        """What is learned from, in order."""
        batches = self.batches()
        return [sample for step in range(self.plan.steps) for sample in batches.samples(step)]

    def prepared_model(self) -> Any:
        """The model as it stands before step 0, for the other loop to start from the same weights."""
        precision = self.config.compute.precision
        model, _ = assemble(self.config.model, seed=self.config.seed, precision=precision)
        prepare_training(model, self.stage, seed=self.config.seed, name=self.name, precision=precision)
        return model

    def train(self, folder: Path, *, home: Path, cached: bool, **changes: Any) -> Measured:
        """Train the stage from step 0 in an empty `folder`; features are kept in `home` if `cached`. `changes` are
        compute settings."""
        settings = self.config.compute.model_copy(update={"feature_cache": "on" if cached else "off", **changes})
        config = self.config.model_copy(update={"compute": settings})
        model, processor = assemble(config.model, seed=config.seed, precision=settings.precision)
        stage = Stage(name=self.name, config=self.stage, identity={}, folder=folder)
        clock = Clock()
        with compute(settings) as machinery:
            training = StageTraining(config, home, machinery, Reporter(silent=True), clock)
            result = training(
                stage, batches=self.batches(settings), model=model, processor=processor, later_images=(), validate=None
            )
        rows = [json.loads(line) for line in (folder / CURVE_FILE).read_text(encoding="utf-8").splitlines()]
        assert settings.threads in (None, torch.get_num_threads())
        return Measured(
            training=clock.costs[f"train/{self.name}"],
            losses=[row["loss"] for row in rows],
            trainable_parameters=result["spent"]["trainable_parameters"],
            features=clock.costs["features"],
            saving=clock.costs["save"],
        )
