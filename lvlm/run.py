"""One run, from config to scores: `run(config, folder) -> RunRecord`. Called by `python -m lvlm train`, by sweeps and
by notebooks."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from contextlib import closing, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lvlm.check import (
    check_evaluation,
    check_learns,
    check_same_data,
    open_corpora,
    refusal_notes,
    setting_notes,
    tuning,
)
from lvlm.config import RunConfig, fingerprint, to_yaml
from lvlm.processes import process_count
from lvlm.provenance import Phases, git_commit, machine, spent_on, versions
from lvlm.records import (
    ALIGNMENT_FILE,
    CONFIG_FILE,
    CURVE_FILE,
    PLAN_FILE,
    PREDICTIONS_FILE,
    RECORD_FILE,
    SCORES_FILE,
    STAGES_FILE,
    TRAINER_VERSION,
    RunRecord,
    write_json,
    write_table,
    write_text,
)
from lvlm.startup import DataAhead, no_collection, quiet_transformers
from lvlm.train.identity import check_same_config

if TYPE_CHECKING:
    import pandas as pd

    from lvlm.data.corpus import Corpus, Permission
    from lvlm.evaluate.kept import KeptAnswers
    from lvlm.paint.stage import Painting
    from lvlm.settings import CorpusUse, EvaluateConfig
    from lvlm.train.batches import StepBatches
    from lvlm.train.compute import Compute
    from lvlm.train.features import ImageFeatures
    from lvlm.train.progress import Reporter
    from lvlm.train.stages import Stage


def default_home() -> Path:
    """The work folder: the environment variable LVLM_HOME, or `runs` here."""
    return Path(os.environ.get("LVLM_HOME", "runs"))


def run(
    config: RunConfig,
    folder: str | Path,
    *,
    home: str | Path | None = None,
    on_progress: Callable[[dict[str, Any]], None] | None = None,
    spare_stages: Callable[[], Collection[str]] = tuple,
) -> RunRecord:
    """Train the stages of `config`, evaluate the last model, and leave the record in `folder`.

    A finished folder is returned without computing; an interrupted one continues where its last checkpoint stands.
    Stages that another run with the same `home` has trained are taken from there. `on_progress` receives a dict for
    every step, validation and phase; raising from it stops the run, which can be resumed (a step that it is told of is
    saved first). `spare_stages` names the keys of stages that `compute.stage_cache_gib` must not remove, beside those
    in use. Raises `InputError` if the folder belongs to another configuration, or is finished and its backbones or
    corpora have changed since, and `Diverged` if the loss is no longer finite.
    """
    folder, home = Path(folder), Path(home or default_home()).resolve()
    phases = Phases()
    check_same_config(folder, config)
    if process_count() == 1 and (folder / RECORD_FILE).exists():
        return _finished(folder, config)
    with closing(DataAhead(config, home)) as ahead:
        with phases("start-up"), no_collection():
            from accelerate.utils import broadcast_object_list

            import lvlm.model.assembly  # noqa: F401  all else that is heavy
            from lvlm.train.compute import compute
            from lvlm.train.locks import file_lock
            from lvlm.train.progress import Reporter
        with compute(config.compute) as machinery:
            main = machinery.accelerator.is_main_process
            reporter = Reporter(on_progress if main else None, silent=not main)

            def wait(owner: str) -> None:
                ahead.close()  # files may change before it is this one's turn
                reporter.say(f"waiting for {owner}")

            lock = file_lock(folder / ".lock", purpose=f"runs {config.name}", on_wait=wait)
            with lock if main else nullcontext(), quiet_transformers():
                # One looks for all, as others may see a record sooner or later than it does.
                (done,) = broadcast_object_list([(folder / RECORD_FILE).exists()])
                notes = check_same_config(folder, config)  # again: the one that was waited for may have begun here
                if done:
                    return _finished(folder, config, silent=not main)
                record = _Run(config, folder, home, machinery, reporter, phases, ahead, spare_stages).run(notes)
                if main:
                    record.save(folder)
                machinery.accelerator.wait_for_everyone()
    return RunRecord.load(folder)


def _finished(folder: Path, config: RunConfig, *, silent: bool = False) -> RunRecord:
    """The record of a finished run, if it still says what a new run would."""
    from lvlm.train.progress import Reporter

    record = RunRecord.load(folder)
    check_same_data(folder, config, record)
    Reporter(silent=silent).say(f"{config.name}: already finished, taken from {folder}")
    return record


class _Run:
    """The phases of one run."""

    def __init__(
        self,
        config: RunConfig,
        folder: Path,
        home: Path,
        compute: Compute,
        reporter: Reporter,
        phases: Phases,
        ahead: DataAhead,
        spare_stages: Callable[[], Collection[str]],
    ) -> None:
        self.config = config
        self.folder = folder
        self.home = home
        self.compute = compute
        self.reporter = reporter
        self.phases = phases
        self.ahead = ahead
        self.spare_stages = spare_stages
        self.main = compute.accelerator.is_main_process
        self.corpora: dict[str, Corpus] = {}
        self.stages: dict[str, Stage] = {}
        self.results: dict[str, dict[str, Any]] = {}
        self.painting: Painting | None = None
        self.alignment: pd.DataFrame | None = None

    def run(self, notes: list[str]) -> RunRecord:
        """All phases; returns the record, which the caller writes last."""
        try:
            return self._run(notes)
        finally:
            for stage in self.stages.values():
                stage.release()

    def _run(self, notes: list[str]) -> RunRecord:
        self._prepare()
        self.reporter.say(f"{self.config.name}: {self.compute.line()}")
        if self.main:  # from here on the folder belongs to this configuration
            write_text(self.folder / CONFIG_FILE, to_yaml(self.config))
        for name in self.config.every_stage():
            if name != "align":
                self._measure_alignment()
            self._train(name)
        self._measure_alignment()
        with self.phases("evaluate"):
            from lvlm.evaluate.kept import KeptAnswers

            self.reporter.tell("evaluate", stage="evaluate")
            keep = KeptAnswers(self.folder, self._answers_depend_on(), home=self.home)
            scores, predictions = self._evaluate(self._features(), self.config.evaluate, "report", keep)
        record = self._record(scores, predictions, notes)
        if self.main:
            keep.remove()
        return record

    def _prepare(self) -> None:
        """The data, planned, checked and tokenised, and the model."""
        with self.phases("start-up"):
            from lvlm.model.assembly import assemble
            from lvlm.model.backbones import run_digests
            from lvlm.train.batches import SampleEncoder
            from lvlm.train.train import StageTraining

            self.commit = git_commit()
        with self.phases("data"):
            ahead = self.ahead.result()
            self.corpora = ahead.corpora if ahead else open_corpora(self.config, home=self.home)
            self.stamps = {path: corpus.stamp() for path, corpus in self.corpora.items()}
        with self.phases("start-up"):
            self.backbones = run_digests(self.config)
            self.model, self.processor = assemble(
                self.config.model, seed=self.config.seed, precision=self.compute.precision
            )
            self.encoder = SampleEncoder(self.processor)
            self.training = StageTraining(
                self.config, self.home, self.compute, self.reporter, self.phases, self.spare_stages
            )
            if self.config.paint is not None:
                from lvlm.paint.stage import Painting

                self.painting = Painting(self.config, self.compute, self.reporter, self.phases)
        with self.phases("data"):
            self.batches = {name: self._batches(name) for name in self.config.every_stage()}
            self.reporter.samples = {name: len(batches.plan.order) for name, batches in self.batches.items()}
            self.evaluation_images = (
                ahead.evaluation_images if ahead else check_evaluation(self.config, self.corpora, home=self.home)
            )

    def _batches(self, name: str) -> StepBatches:
        """The data of a stage, planned, checked and tokenised."""
        from lvlm.data.plan import build_plan
        from lvlm.train.batches import StepBatches

        if name == "paint" and self.painting:
            return self.painting.prepare(self.model, self.processor, self.corpora, self.home)
        config, accelerator = self.config.stages()[name], self.compute.accelerator
        plan = build_plan(
            name,
            config,
            seed=self.config.seed,
            corpora=self.corpora,
            measure=self.encoder.measure,
            tokenizer=self.processor.counter.key,
            home=self.home,
        )
        check_learns(config, plan)
        return StepBatches(
            plan,
            self.encoder,
            config.reduction,
            token_budget=self.config.compute.micro_batch_tokens,
            rank=accelerator.process_index,
            processes=accelerator.num_processes,
            lockstep=self.compute.zero_stage > 0,
            packing=self.config.compute.packing,
        )

    def _train(self, name: str) -> None:
        """Have the stage trained, here or by whoever was first, and its model in memory."""
        from lvlm.model.checkpoints import load

        stage = self.stages[name] = self._stage(name)
        if self.main:
            write_json(self.folder / STAGES_FILE, {name: stage.key for name, stage in self.stages.items()})
        trained_here = False

        def train() -> Mapping[str, Any]:
            nonlocal trained_here
            trained_here = True
            validate = self._validate if stage.config.validate_every else None
            if name == "paint" and self.painting:
                *earlier, _ = [None, *(one.model_folder for one in self.stages.values())]
                scored = (lambda: self._validate(self._features())) if validate else None
                return self.painting.train(stage, self.model, parent=earlier[-1], validate=scored)
            later = list(self.evaluation_images) if name == list(self.config.stages())[-1] else []
            return self.training(
                stage,
                batches=self.batches[name],
                model=self.model,
                processor=self.processor,
                later_images=later,
                validate=validate,
            )

        # Waiting for another worker and loading its model; training here has phases of its own.
        with self.phases("shared stages"):
            result = stage.train_once(
                train, self.compute.accelerator, on_wait=lambda owner: self.reporter.say(f"{name}: waiting for {owner}")
            )
            if not trained_here:
                self.reporter.say(f"{name}: taken from {stage.folder}")
            if name == "paint" and self.painting:
                self.painting.take(self.model, None if trained_here else stage.model_folder)
            elif not trained_here or self.compute.zero_stage:  # a model that was divided is read back whole
                self.model, self.processor = load(
                    stage.model_folder,
                    attn=self.config.model.attn,
                    bits=self.config.model.bits,
                    precision=self.compute.precision,
                )
                self.model.to(self.compute.device)
        self.results[name] = {**result, "trained_here": trained_here}

    def _stage(self, name: str) -> Stage:
        """The stage in the cache, keyed by all that it depends on."""
        from lvlm.data.images import content_digest
        from lvlm.model.backbones import PAINTING
        from lvlm.train.stages import make_stage

        batches = self.batches[name]
        with self.phases("data"):
            data = {"images": content_digest(batches.images(), self.home)}
            if name == "paint":  # what stands around the LLM decides nothing before
                data |= {part: digest for part, digest in self.backbones.items() if part in PAINTING}
            if self.config.every_stage()[name].validate_every:
                data |= {f"tune {use.path}:{use.split}": self._digest(use) for use in self.config.evaluate.tune_corpora}
        return make_stage(
            self.home,
            self.config,
            name,
            parent=next((stage.key for stage in reversed(self.stages.values())), None),
            backbones={part: digest for part, digest in self.backbones.items() if part not in PAINTING},
            plan_hash=batches.plan.hash,
            data=data,
            compute=self.compute.identity(),
            masks=self._masks(),
        )

    def _masks(self) -> dict[str, Any]:
        """What a mask of dropout depends on beside the step: how its samples are divided."""
        settings = self.config.compute
        masks = {"micro_batch_tokens": settings.micro_batch_tokens, "processes": self.compute.accelerator.num_processes}
        return masks | {
            name: True for name, on in (("packing", settings.packing), ("lockstep", self.compute.zero_stage)) if on
        }

    def _digest(self, use: CorpusUse) -> str:
        corpus = self.corpora[use.path]
        return corpus.digest(use.split, corpus.languages_of(use.split))

    def _measure_alignment(self) -> None:
        """How well the LLM in memory aligns its languages, where that is asked for; once, before it sees images."""
        if self.alignment is None and self.config.evaluate.alignment:
            from lvlm.evaluate.alignment import alignment_of

            with self.phases("evaluate"), self.compute.autocast():
                model = self.model.to(self.compute.device)
                self.alignment = alignment_of(model, self.processor, self.config.evaluate, self.corpora)

    def _validate(self, features: ImageFeatures) -> dict[str, float]:
        """Score and fidelity on the tune splits, as numbers for the curve."""
        from lvlm.evaluate.tiers import summarise

        scores, _ = self._evaluate(features, tuning(self.config.evaluate), "tune")
        return summarise(scores)

    def _features(self) -> ImageFeatures:
        """What the tower makes of the evaluation's images: from the store where the training used it, else computed."""
        from lvlm.train.features import TowerFeatures

        tower = TowerFeatures(
            self.model,
            device=self.compute.device,
            precision=self.compute.precision,
            workers=self.config.compute.loader_workers,
        )
        shared = all(stage.train.tower == "frozen" for stage in self.config.stages().values())
        wanted = self.config.compute.feature_cache
        used = any(self.results[name]["features"] == "stored" for name in self.config.stages() if name in self.results)
        if not shared or wanted == "off" or (wanted == "auto" and not used):
            return tower
        return self.training.store(tower)

    def _evaluate(
        self, features: ImageFeatures, config: EvaluateConfig, permission: Permission, keep: KeptAnswers | None = None
    ) -> tuple[pd.DataFrame, pd.DataFrame]:
        """(scores, predictions) of the model in memory, and of the pictures that it has painted."""
        from lvlm.evaluate import evaluate

        self.model.to(self.compute.device)
        with self.compute.autocast(), self.reporter.evaluation() as progress:

            def answered(config: EvaluateConfig) -> tuple[pd.DataFrame, pd.DataFrame]:
                return evaluate(
                    self.model,
                    self.processor,
                    config,
                    self.corpora,
                    permission=permission,
                    features=features,
                    batch_size=self.config.compute.evaluate_batch,
                    keep=keep,
                    on_progress=progress,
                )

            if self.painting is None:
                return answered(config)
            return self.painting.evaluate(
                answered,
                config,
                self.corpora,
                permission=permission,
                folder=self.folder,
                key=self.stages["paint"].key if "paint" in self.stages else None,
                on_progress=progress,
            )

    def _answers_depend_on(self) -> dict[str, Any]:
        """What beside the items decides the answers of the last model."""
        return {
            "model": self.config.model.model_dump(mode="json"),
            "seed": self.config.seed,
            "backbones": self.backbones,
            "stages": {name: stage.key for name, stage in self.stages.items()},
            **self.compute.identity(),
        }

    def _record(self, scores: pd.DataFrame, predictions: pd.DataFrame, notes: list[str]) -> RunRecord:
        """Write every file of the run but the record itself, and return that."""
        from lvlm.evaluate.tiers import left_out, summarise

        plans = {name: batches.plan for name, batches in self.batches.items()}
        if self.main:
            write_json(self.folder / PLAN_FILE, {name: plan.summary() for name, plan in plans.items()})
            curve = "".join(stage.curve.read_text(encoding="utf-8") for stage in self.stages.values())
            write_text(self.folder / CURVE_FILE, curve)
            if self.alignment is not None:
                from lvlm.evaluate.alignment import with_alignment

                write_table(self.folder / ALIGNMENT_FILE, self.alignment)
                scores = with_alignment(scores, self.alignment)
            for frame, name in ((scores, SCORES_FILE), (predictions, PREDICTIONS_FILE)):
                write_table(self.folder / name, frame)
        notes = [*notes, *setting_notes(self.config), *refusal_notes(self.config, self.corpora)]
        hashes = {name: plan.hash for name, plan in plans.items()}
        seconds = self.phases.summary()
        return RunRecord(
            name=self.config.name,
            seed=self.config.seed,
            folder=str(self.folder),
            stage_keys={name: stage.key for name, stage in self.stages.items()},
            plan_hash=next(iter(hashes.values())) if len(hashes) == 1 else fingerprint(hashes),
            scores=summarise(scores),
            budget=spent_on(self.results, seconds["total"]),
            provenance={
                "git_commit": self.commit,
                "trainer": TRAINER_VERSION,
                "versions": versions(),
                "machine": machine(),
                **self.compute.describe(),
                "backbones": self.backbones,
                "corpora": self.stamps,
                "model": next((str(self.stages[name].model_folder) for name in [*self.config.stages()][::-1]), None),
                **({"painter": str(self.stages["paint"].model_folder)} if self.painting else {}),
                "plan_hashes": hashes,
                "seconds": seconds,
                "stages_trained_here": [name for name, result in self.results.items() if result["trained_here"]],
                "features": {name: result["features"] for name, result in self.results.items()},
                "micro_batch_tokens": {name: result.get("micro_batch_tokens") for name, result in self.results.items()},
                "features_reason": {name: result.get("features_reason") for name, result in self.results.items()},
            },
            notes=[*notes, *scores.attrs.get("notes", []), *left_out(scores)],
            tags=list(self.config.tags),
        )
