"""The stage `paint` of a run: its data, its training with the loop of `lvlm.train`, its model. Called by `lvlm.run`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lvlm.config import RunConfig
from lvlm.data.corpus import Corpus, Permission
from lvlm.data.plan import build_plan
from lvlm.errors import InputError
from lvlm.languages import in_table_order
from lvlm.model.backbones import resolve
from lvlm.model.parts import describe
from lvlm.paint.batches import PaintBatch, PaintBatches, PaintStream
from lvlm.paint.captions import caption_measure
from lvlm.paint.denoisers import PROJECTION, set_learning
from lvlm.paint.diffusion import errors, target
from lvlm.paint.painter import LlmSource, Painter, llm_digest, make_painter, read_painter
from lvlm.paint.plugins import check_models
from lvlm.paint.sample import Drawing
from lvlm.paint.scores import PICTURES, PaintedScores, Tables, evaluate_both
from lvlm.paint.work import painting_flops
from lvlm.paint_settings import PaintConfig
from lvlm.settings import EvaluateConfig
from lvlm.train.compute import Compute
from lvlm.train.loop import StageLoop
from lvlm.train.optim import build_optimizer
from lvlm.train.progress import Reporter
from lvlm.train.stages import Stage
from lvlm.train.strategies import Autocast, WholeCopies

if TYPE_CHECKING:
    from lvlm.model.lvlm import Lvlm
    from lvlm.train.train import Phase

NAME = "paint"


class PaintLoss(nn.Module):
    """A micro-batch's share of the step's loss: the mean squared error of each picture, by its weight."""

    def __init__(self, painter: Painter, autocast: Autocast) -> None:
        super().__init__()
        self.denoiser = painter.denoiser
        self._of = (painter,)  # in a tuple, so that it is no child
        self._autocast = autocast

    def forward(self, batch: PaintBatch, inputs: Mapping[str, Tensor]) -> Tensor:
        """`inputs`: `clean` (pictures, channels, height, width), `states` and `mask` of the captions."""
        (painter,) = self._of
        clean = inputs["clean"]
        noisy = painter.scheduler.add_noise(clean, batch.noise, batch.timesteps)
        wanted = target(painter.scheduler, painter.diffusion.prediction, clean, batch.noise, batch.timesteps)
        with self._autocast():
            predicted = painter.predict(noisy, batch.timesteps, inputs["states"], inputs["mask"])
        return torch.dot(errors(predicted, wanted), batch.weights)


@dataclass
class Painting:
    """The stage of one run. Settings here, data and models in the calls; `painter` and `batches` are there after
    `prepare`."""

    config: RunConfig
    compute: Compute
    reporter: Reporter
    phases: Phase
    painter: Painter = field(init=False)
    batches: PaintBatches = field(init=False)

    @property
    def settings(self) -> PaintConfig:
        """Those of the stage."""
        assert self.config.paint is not None
        return self.config.paint

    def prepare(self, model: Lvlm, processor: Any, corpora: Mapping[str, Corpus], home: Path) -> PaintBatches:
        """The data of the stage, planned, checked and counted, for the painter that starts from the denoiser."""
        if self.compute.zero_stage:
            raise InputError(
                "The stage paint trains whole copies of its denoiser: set compute.strategy=ddp, or run it in a process "
                "of its own."
            )
        check_models(self.settings)
        self.painter = self._painter(model, processor)
        plan = build_plan(
            NAME,
            self.settings,
            seed=self.config.seed,
            corpora=corpora,
            measure=caption_measure(processor.chat, self.settings.prompt),
            home=home,
        )
        accelerator = self.compute.accelerator
        self.batches = PaintBatches(
            plan,
            self.painter,
            seed=self.config.seed,
            token_budget=self.config.compute.micro_batch_tokens,
            rank=accelerator.process_index,
            processes=accelerator.num_processes,
        )
        self.batches.caption(plan.order[0])  # a split of dialogues shows now
        return self.batches

    def _painter(self, model: Lvlm, processor: Any) -> Painter:
        settings, seed = self.settings, self.config.seed
        return make_painter(
            settings,
            Path(resolve(settings.denoiser, seed=seed)),
            model.language_model,
            processor.chat,
            seed=seed,
            languages=(),
            autocast=self.compute.autocast,
        )

    def train(
        self,
        stage: Stage,
        model: Lvlm,
        *,
        parent: Path | None,
        validate: Callable[[], Mapping[str, float]] | None,
    ) -> dict[str, Any]:
        """Train the denoiser and publish it in the stage's folder; returns what was spent."""
        painter, batches, accelerator = self.painter, self.batches, self.compute.accelerator
        counts = set_learning(painter.denoiser, self.settings.train)
        painter.languages = in_table_order({entry.language for entry in batches.plan.order})
        self.reporter.say(f"{stage.name}: what learns\n" + "\n".join(describe(counts)))
        self.reporter.say("\n".join(batches.plan.table()))
        stage.folder.mkdir(parents=True, exist_ok=True)
        if accelerator.is_main_process:
            stage.save_plan(batches.plan.summary())
        with self.phases("features"):
            self._read_by(model)
            painter.to(self.compute.device)
            if self.config.compute.gradient_checkpointing:
                painter.denoiser.enable_gradient_checkpointing()
            kept = self._keep(batches)
        with self.phases(f"train/{stage.name}"):
            spent = self._loop(stage, batches, validate).run()
        painter.denoiser.eval()
        with self.phases("save"):
            if accelerator.is_main_process:
                self._make_room(stage, sum(parameter.numel() for parameter in painter.parameters()) * 4)
                stage.publish_model(lambda folder: painter.save(folder, self._llm(parent)))
                self._make_room(stage, 0)
            accelerator.wait_for_everyone()
        text = batches.plan.per_sample()[:, 0]
        learning = sum(part.trainable for part in counts)
        totals = {
            "llm_tokens": int(text.sum()), "supervised_tokens": 0, "views": spent.images,
            "flops": painting_flops(painter, self.settings.train, batches), "trainable_parameters": learning,
        }  # fmt: skip
        return {
            "spent": {**vars(spent), **totals},
            "micro_batch_tokens": batches.token_budget,
            "features": "stored" if kept else "computed",
            "features_reason": f"states of {painter.states.kept:,} captions kept" if kept else "states computed anew",
        }

    def _keep(self, batches: PaintBatches) -> bool:
        """Have the states of all captions computed once, where `compute.feature_cache` does not forbid it and memory
        suffices."""
        if self.config.compute.feature_cache == "off":
            return False
        kept = self.painter.states.keep(["", *batches.captions()])
        if not kept and self.config.compute.feature_cache == "on":
            raise InputError(
                "compute.feature_cache is on, but the states of all captions do not fit into memory. Set it to auto."
            )
        return kept

    def _loop(
        self, stage: Stage, batches: PaintBatches, validate: Callable[[], Mapping[str, float]] | None
    ) -> StageLoop:
        painter, config, settings = self.painter, self.config.compute, self.settings

        def stream_from(step: int) -> Any:
            return PaintStream(batches, device=self.compute.device, first_step=step, workers=config.loader_workers)

        def share() -> WholeCopies:
            optimizer = build_optimizer(painter, settings.optim, part_of=_part_of)
            loss = PaintLoss(painter, self.compute.autocast)
            return WholeCopies(
                painter, settings, self.compute.accelerator, self.compute.autocast, loss=loss, optimizer=optimizer
            )

        def validation() -> Mapping[str, float]:
            assert validate is not None
            with self.phases("evaluate"):
                return validate()

        return StageLoop(
            model=painter,
            batches=batches,
            stream_from=stream_from,
            config=settings,
            stage=stage.name,
            seed=self.config.seed,
            folder=stage.folder,
            identity=stage.identity,
            compute=self.compute,
            reporter=self.reporter,
            memory={"gradient_checkpointing": config.gradient_checkpointing},
            checkpoint_seconds=config.checkpoint_every,
            validate=None if validate is None else validation,
            share=share,
            train_mode=painter.denoiser.train,
        )

    def _make_room(self, stage: Stage, needed: int) -> None:
        if said := stage.make_room(self.config.compute.stage_cache_gib, needed, spare=tuple):
            self.reporter.say(f"{stage.name}: {said}")

    def _llm(self, parent: Path | None) -> LlmSource:
        digest = llm_digest(self.config.model, seed=self.config.seed)
        return LlmSource(digest, None if parent is None else str(parent), self.config.model, self.config.seed)

    def take(self, model: Lvlm, folder: Path | None) -> None:
        """Paint with the language model of `model` and the denoiser that somebody else has left in `folder`; None is
        the one that was trained here."""
        if folder is not None:
            states = self.painter.states
            self.painter = make_painter(
                self.settings, folder, states.llm, states.chat, seed=self.config.seed,
                languages=read_painter(folder)["languages"], autocast=self.compute.autocast,
            )  # fmt: skip
        self._read_by(model)
        self.painter.to(self.compute.device)

    def _read_by(self, model: Lvlm) -> None:
        """Let captions be read by the language model of `model`, as earlier stages left it."""
        model.requires_grad_(False).eval().to(self.compute.device)
        self.painter.states.llm = model.language_model

    def evaluate(
        self,
        answered: Callable[[EvaluateConfig], Tables],
        config: EvaluateConfig,
        corpora: Mapping[str, Corpus],
        *,
        permission: Permission,
        folder: Path,
        key: str | None,
        on_progress: Callable[[int, int], None],
    ) -> Tables:
        """(scores, predictions) of both kinds of task: what is `answered`, and what is painted into `folder` by the
        denoiser of the stage `key`, where that has begun."""
        painted = None
        if key is not None:
            drawing = Drawing(self.config.seed, self.settings.sample_steps, self.settings.guidance)
            pictures = folder / PICTURES if permission == "report" else None
            painted = PaintedScores(self.painter, drawing, pictures, key, batch_size=self.config.compute.evaluate_batch)
        return evaluate_both(answered, painted, config, corpora, permission=permission, on_progress=on_progress)


def _part_of(name: str) -> str:
    """The word under which the optimizer's settings know a part of a painter: the projection is what an adapter is
    elsewhere."""
    return "adapter" if name.removeprefix("denoiser.").startswith(PROJECTION) else "llm"
