"""Trains one stage: what learns, which features, the loop, the saved model. Called by `lvlm.run` for a stage that is
not in the cache."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate.utils import broadcast_object_list

from lvlm.config import RunConfig
from lvlm.model.outline import outline
from lvlm.model.parts import PartCount, describe, prepare_training
from lvlm.records import write_json
from lvlm.train.batches import BatchStream, StepBatches
from lvlm.train.compute import Compute
from lvlm.train.decide import CacheDecision, decide_cache
from lvlm.train.features import FeatureStore, ImageFeatures, TowerFeatures
from lvlm.train.loop import StageLoop
from lvlm.train.packing import check_isolation
from lvlm.train.progress import Reporter
from lvlm.train.space import NoRoom
from lvlm.train.stages import Stage

if TYPE_CHECKING:
    from lvlm.model.lvlm import Lvlm

DECISION_FILE = "feature_cache.json"
Validate = Callable[[ImageFeatures], Mapping[str, float]]
Phase = Callable[[str], AbstractContextManager[None]]
"""Times what runs inside `with phase(name)`."""


@dataclass(frozen=True)
class StageTraining:
    """Everything that training a stage needs beside the stage itself."""

    config: RunConfig
    home: Path
    compute: Compute
    reporter: Reporter
    phases: Phase
    spare: Callable[[], Collection[str]] = tuple
    """Keys of stages that give no way to this one."""

    def __call__(
        self,
        stage: Stage,
        *,
        batches: StepBatches,
        model: Lvlm,
        processor: Any,
        later_images: Sequence[Path],
        validate: Validate | None,
    ) -> dict[str, Any]:
        """Train `model` on the plan of `batches` and publish it in the stage's folder; returns what was spent.
        `later_images`: those that the run reads after this stage."""
        accelerator = self.compute.accelerator
        counts = self._prepare(stage, model)
        text, supervised, images = batches.plan.per_sample().T
        work = outline(model.config, home=self.home).work(
            stage.of_language, text=text, supervised=supervised, images=images
        )
        self.reporter.say(f"{stage.name}: what learns\n" + "\n".join(describe(counts)))
        self.reporter.say("\n".join(batches.plan.table()))
        stage.folder.mkdir(parents=True, exist_ok=True)
        if accelerator.is_main_process:
            stage.save_plan(batches.plan.summary())
        tower = TowerFeatures(
            model,
            device=accelerator.device,
            precision=self.compute.precision,
            workers=self.config.compute.loader_workers,
        )
        with self.phases("features"):
            decision = self._decide_features(stage, tower, batches, later_images)
            store = self.store(tower) if decision.on else None
        loop = self._loop(stage, batches, tower, store, validate)
        with self.phases(f"train/{stage.name}"):
            spent = loop.run()
        model.eval()
        with self.phases("save"), loop.strategy.whole():
            if accelerator.is_main_process:
                self._make_room(stage, model.get_memory_footprint())
                stage.publish_model(lambda folder: _save(folder, model, processor))
                self._make_room(stage, 0)  # what is written may be larger than in memory, where that is quantised
            accelerator.wait_for_everyone()
        loop.strategy.finish()
        views = spent.images * model.config.views
        learning = sum(part.trainable for part in counts)
        reason = decision.reason + (f"; no more of them were kept: {store.full}" if store and store.full else "")
        return {
            "spent": {
                **vars(spent),
                "views": views,
                "flops": work.total,
                "trainable_parameters": learning,
            },
            "micro_batch_tokens": batches.token_budget,
            "features": "stored" if store else "computed",
            "features_reason": reason,
        }

    def _prepare(self, stage: Stage, model: Lvlm) -> list[PartCount]:
        """Set what learns, on the device that it learns on; counts by part."""
        settings = self.config.compute
        with self.phases("start-up"):
            counts = prepare_training(
                model,
                stage.of_language,
                seed=self.config.seed,
                name=stage.name,
                precision=self.compute.precision,
                checkpointing=settings.gradient_checkpointing,
            )
            model.to(self.compute.device)
            if settings.packing:
                with self.compute.autocast():
                    check_isolation(model)
        return counts

    def _loop(
        self,
        stage: Stage,
        batches: StepBatches,
        tower: TowerFeatures,
        store: FeatureStore | None,
        validate: Validate | None,
    ) -> StageLoop:
        """The loop over the steps of `batches`, with features from the store, of a frozen tower, or of none."""
        model, settings, frozen = tower.model, self.config.compute, stage.of_language.train.tower == "frozen"

        def stream_from(step: int) -> BatchStream:
            return BatchStream(
                batches,
                model.config.image_transform,
                store=store,
                tower=tower if frozen else None,
                device=tower.device,
                first_step=step,
                workers=settings.loader_workers,
            )

        def fetch(step: int) -> None:
            if store and store.lacks(image for sample in batches.samples(step) for image in sample.images):
                with self.phases("features"):
                    self._keep(store.add_ahead, batches.images(step))

        def validation() -> Mapping[str, float]:
            assert validate is not None
            with self.phases("evaluate"):
                return validate(store or tower)

        return StageLoop(
            model=model,
            batches=batches,
            stream_from=stream_from,
            config=stage.of_language,
            stage=stage.name,
            seed=self.config.seed,
            folder=stage.folder,
            identity=stage.identity,
            compute=self.compute,
            reporter=self.reporter,
            memory={"packing": settings.packing, "gradient_checkpointing": settings.gradient_checkpointing},
            checkpoint_seconds=settings.checkpoint_every,
            fetch=fetch,
            validate=None if validate is None else validation,
        )

    def _make_room(self, stage: Stage, needed: int) -> None:
        if said := stage.make_room(self.config.compute.stage_cache_gib, needed, spare=self.spare):
            self.reporter.say(f"{stage.name}: {said}")

    def store(self, tower: TowerFeatures) -> FeatureStore:
        """Where the run keeps the features of a tower."""
        return FeatureStore(
            self.home,
            tower,
            limit_gib=self.config.compute.feature_cache_gib,
            on_wait=lambda owner: self.reporter.say(f"image features: waiting for {owner}"),
            on_full=lambda why: self.reporter.say(f"image features: no more are kept: {why}"),
        )

    def _keep(self, add: Callable[..., int], images: Iterable[Path]) -> None:
        """Let `add` of a store keep features, and show how far it is."""
        with self.reporter.bar("image features", None):
            add(images, on_progress=self._feature_progress)

    def _decide_features(
        self, stage: Stage, tower: TowerFeatures, batches: StepBatches, later: Sequence[Path]
    ) -> CacheDecision:
        """Whether the features are kept. The setting `on` keeps them wherever they find room, `auto` where a
        measurement says that it pays too. A resumed stage keeps its first decision, unless that lacked room."""
        if stage.of_language.train.tower != "frozen":
            return CacheDecision(False, f"the tower is trained ({stage.of_language.train.tower})")
        setting, decided = self.config.compute.feature_cache, stage.folder / DECISION_FILE
        uses = list(batches.images())
        if not uses or setting == "off":
            return CacheDecision(False, "no images" if not uses else "compute.feature_cache is off")
        decision: CacheDecision | None = None
        if self.compute.accelerator.is_main_process:
            store = self.store(tower)
            asked = {
                "feature_cache": setting,
                "loader_workers": self.config.compute.loader_workers,
                "store": store.key,
                "uses": len(uses) + len(later),
            }
            decision = _read_decision(decided, asked) or self._weigh(store, batches, [*uses, *later])
            if decision.on and self.compute.zero_stage:  # it divides or rounds the tower when training begins
                try:
                    self._keep(store.add, uses)
                except NoRoom as full:
                    decision = CacheDecision(False, f"feature cache off: {full}", lack=str(full))
            if decision.lack:
                decided.unlink(missing_ok=True)
            else:
                write_json(decided, {"asked": asked, "on": decision.on, "reason": decision.reason})
        (decision,) = broadcast_object_list([decision])
        assert decision is not None
        self.reporter.say(f"{stage.name}: {decision.reason}")
        return decision

    def _weigh(self, store: FeatureStore, batches: StepBatches, uses: Sequence[Path]) -> CacheDecision:
        """Whether a store pays for all `uses` of images, or where that is not asked, whether it has room."""
        images = list(dict.fromkeys(uses))
        if self.config.compute.feature_cache == "auto":
            calls = [sum(len(sample.images) for sample, _ in group) for group in batches.groups(0)]
            per_call = max(1, round(sum(calls) / max(1, len(calls))))
            return decide_cache(store, store.tower, images, uses=len(uses), per_call=per_call)
        lack = store.lack(images)
        reason = f"feature cache {'off: ' + lack if lack else 'on: compute.feature_cache is on'}"
        return CacheDecision(not lack, reason, lack=lack)

    def _feature_progress(self, done: int, total: int) -> None:
        self.reporter.advance(done, "images", total=total)
        self.reporter.tell("features", done=done, total=total)


def _read_decision(path: Path, asked: Mapping[str, Any]) -> CacheDecision | None:
    """What was decided before on the same grounds."""
    if not path.exists():
        return None
    known = json.loads(path.read_text(encoding="utf-8"))
    return CacheDecision(known["on"], known["reason"]) if known.get("asked") == asked else None


def _save(folder: Path, model: Lvlm, processor: Any) -> None:
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
