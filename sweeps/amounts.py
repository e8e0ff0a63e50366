"""What the stages of an arm see and cost: samples, LLM tokens, images and FLOPs, counted from the data and the model's
outline before anything is trained; and how long stages have to be for every arm to see as much as the baseline. Used by
`planner`, `probe` and the command `plan`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import numpy.typing as npt

from ablations.factors import with_values
from ablations.studies import Amount, Cell, Study, cell_id
from lvlm.config import RunConfig, make_config
from lvlm.errors import InputError
from lvlm.paint.captions import caption_measure
from lvlm.paint_settings import PaintConfig
from sweeps.plan import PlannedCell

if TYPE_CHECKING:
    from lvlm.data.corpus import Corpus
    from lvlm.model.tokenizer import TokenCounter

AMOUNTS: tuple[Amount, ...] = get_args(Amount)
TITLES = {"samples": "samples", "llm_tokens": "LLM tokens", "images": "images", "flops": "FLOPs"}
SAME = 1e-9
"""Sums of floating-point numbers that differ by less than this share are equal."""
ROUNDED = 0.005
"""A ratio so near to 1 is not shown."""
Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True)
class StagePool:
    """What each sample that a stage may draw is in every amount, by its number in the pool."""

    each: dict[Amount, Numbers]

    def __len__(self) -> int:
        return len(self.each["samples"])

    def mean(self, amount: Amount) -> float:
        """Of one sample."""
        return float(self.each[amount].mean())

    def sums(self, samples: int, *, seed: int) -> dict[Amount, float]:
        """What a stage of so many samples amounts to."""
        from lvlm.data.plan import draw_order

        order = draw_order(len(self), samples, seed)
        return {amount: float(each[order].sum()) for amount, each in self.each.items()}

    def samples_for(self, amount: Amount, wanted: float, *, seed: int) -> int:
        """The number of samples, at least one, whose sum comes nearest to what is wanted."""
        from lvlm.data.plan import draw_order

        each = self.each[amount]
        epochs = int(wanted // each.sum())
        last = draw_order(len(self), (epochs + 1) * len(self), seed)[epochs * len(self) :]
        sums = np.concatenate([[0.0], np.cumsum(each[last])]) + epochs * each.sum()
        return max(1, epochs * len(self) + int(np.abs(sums - wanted).argmin()))


@dataclass
class Meter:
    """Counts stages; each mix, tokenizer and model is looked at once. `home` is where counts are remembered."""

    home: Path
    _corpora: dict[str, dict[str, Corpus]] = field(default_factory=dict)
    _counters: dict[str, TokenCounter] = field(default_factory=dict)
    _samples: dict[str, npt.NDArray[np.int64]] = field(default_factory=dict)
    _pools: dict[str, StagePool] = field(default_factory=dict)

    def pool(self, config: RunConfig, stage: str) -> StagePool:
        """The pool of a stage of a run. Raises `InputError` for data or backbones that cannot be read."""
        key = _key(config.model, config.every_stage()[stage], stage)
        if key not in self._pools:
            self._pools[key] = self._pool(config, stage)
        return self._pools[key]

    def samples(self, config: RunConfig, stage: str) -> int:
        """How many samples a stage sees."""
        from lvlm.data.plan import stage_samples

        return stage_samples(config.every_stage()[stage], len(self.pool(config, stage)))

    def stages(self, config: RunConfig) -> dict[str, dict[Amount, float]]:
        """Stage -> what it amounts to."""
        return {
            stage: self.pool(config, stage).sums(self.samples(config, stage), seed=config.seed)
            for stage in config.every_stage()
        }

    def corpora(self, config: RunConfig) -> dict[str, Corpus]:
        """The corpora of a run, opened."""
        from lvlm.check import open_corpora

        key = _key(*config.every_stage().values(), config.evaluate)
        if key not in self._corpora:
            self._corpora[key] = open_corpora(config, home=self.home)
        return self._corpora[key]

    def counter(self, config: RunConfig) -> TokenCounter:
        """What counts tokens as the run does; the draws of a backbone share their tokenizer."""
        from lvlm.model.autohook import models_later

        with models_later():
            from lvlm.model.tokenizer import load_counter

        key = _key(config.model.llm, config.model.template, config.model.checkpoint)
        if key not in self._counters:
            self._counters[key] = load_counter(config.model, seed=config.seed)
        return self._counters[key]

    def _pool(self, config: RunConfig, name: str) -> StagePool:
        from lvlm.model.work import planned_outline

        stage, counter = config.every_stage()[name], self.counter(config)
        text, supervised, images = self._counted(config, name).T
        if isinstance(stage, PaintConfig):
            return self._painted(config, stage, text)
        vocabulary = len(counter.chat.tokenizer)
        outline = planned_outline(config.model, seed=config.seed, vocabulary=vocabulary, home=self.home)
        work = outline.work(stage, text=text, supervised=supervised, images=images)
        return StagePool(
            {
                "samples": np.ones(len(text)),
                "llm_tokens": (text + outline.image_tokens * images).astype(float),
                "images": images.astype(float),
                "flops": work.per_sample,
            }
        )

    def _painted(self, config: RunConfig, stage: PaintConfig, text: npt.NDArray[np.int64]) -> StagePool:
        """Of captions with so many tokens: one picture each, and the work of the denoiser on the largest."""
        from lvlm.paint.work import planned_flops

        flops = planned_flops(config, stage, tokens=max(1, round(float(text.mean()))))
        each = np.ones(len(text))
        return StagePool({"samples": each, "llm_tokens": text.astype(float), "images": each, "flops": flops * each})

    def _counted(self, config: RunConfig, name: str) -> npt.NDArray[np.int64]:
        """(pool, 3): text tokens, supervised tokens and images of every sample, by its number in the pool."""
        from lvlm.data.plan import build_plan

        stage, counter = config.every_stage()[name], self.counter(config)
        model, read_as = config.model, stage.prompt if isinstance(stage, PaintConfig) else None
        key = _key(stage.mix, stage.max_text_tokens, model.llm, model.template, model.checkpoint, read_as)
        if key not in self._samples:
            whole = stage.model_copy(update={"epochs": 1.0, "samples": None, "steps": None})
            plan = build_plan(
                name,
                whole,
                seed=config.seed,
                corpora=self.corpora(config),
                measure=caption_measure(counter.chat, read_as) if read_as else counter.measure,
                tokenizer=None if read_as else counter.key,
                home=self.home,
                look_at_images=False,
            )
            found = plan.per_sample()
            self._samples[key] = np.empty_like(found)
            self._samples[key][plan.order.numbers] = found
        return self._samples[key]


def hold_equal(study: Study, cells: Sequence[Cell], meter: Meter) -> list[Cell]:
    """The same cells with stages so long that each sees as much of `study.held_equal` as that stage of the baseline
    with the same seed, to the nearest sample; a stage that does so already stays as it is."""
    first = study.baseline_arm.label
    baselines = {cell.seed: cell.config for cell in cells if cell.arm.label == first}
    lengths = _same_steps if study.held_equal == "samples" else _same_amounts
    return [_with_lengths(study, cell, lengths(study, cell, baselines[cell.seed], meter)) for cell in cells]


def _same_steps(study: Study, cell: Cell, baseline: RunConfig, _: Meter) -> dict[str, int]:
    """Stage -> samples, where steps are given and an arm's hold another number of them than the baseline's."""
    varied = {path for factor in study.factors for path in factor.paths}
    found: dict[str, int] = {}
    for name, stage in cell.config.every_stage().items():
        both = (stage, baseline.every_stage().get(name))
        own, wanted = (one and one.steps and one.steps * one.batch_samples for one in both)
        if own and wanted and own != wanted and f"{name}.steps" not in varied:
            found[name] = wanted
    return found


def _same_amounts(study: Study, cell: Cell, baseline: RunConfig, meter: Meter) -> dict[str, int]:
    """Stage -> samples, for the stages that do not amount to as much as the baseline's."""
    amount = study.held_equal
    found: dict[str, int] = {}
    if cell.config == baseline:
        return {}
    for name in cell.config.every_stage():
        wanted = meter.pool(baseline, name).sums(meter.samples(baseline, name), seed=cell.seed)[amount]
        pool, samples = meter.pool(cell.config, name), meter.samples(cell.config, name)
        if not wanted or not pool.each[amount].sum():
            raise InputError(
                f"study '{study.name}': held_equal='{amount}', but stage {name} of arm "
                f"'{cell.arm.label if wanted else study.baseline_arm.label}' has no {TITLES[amount]}."
            )
        if abs(pool.sums(samples, seed=cell.seed)[amount] - wanted) > SAME * wanted:
            fitting = pool.samples_for(amount, wanted, seed=cell.seed)
            found |= {name: fitting} if fitting != samples else {}
    return found


def _with_lengths(study: Study, cell: Cell, lengths: dict[str, int]) -> Cell:
    changes: dict[str, Any] = {}
    for stage, samples in lengths.items():
        changes |= {f"{stage}.samples": samples, f"{stage}.epochs": None, f"{stage}.steps": None}
    if study.held_equal != "samples":
        changes["tags"] = [*cell.config.tags, f"held_equal: {study.held_equal}"]
    if not changes:
        return cell
    config = make_config(with_values(cell.config.model_dump(mode="json"), changes), where=f"arm '{cell.arm.label}'")
    return Cell(arm=cell.arm, seed=cell.seed, config=config, id=cell_id(config))


def arm_amounts(cells: Iterable[PlannedCell], meter: Meter) -> dict[str, dict[Amount, float]]:
    """Arm -> what its runs amount to, over their stages: means over its seeds."""
    by_arm: dict[str, list[dict[Amount, float]]] = {}
    for cell in cells:
        stages = meter.stages(cell.run_config()).values()
        by_arm.setdefault(cell.arm, []).append({amount: sum(one[amount] for one in stages) for amount in AMOUNTS})
    return {
        arm: {amount: sum(run[amount] for run in runs) / len(runs) for amount in AMOUNTS}
        for arm, runs in by_arm.items()
    }


def amount_lines(amounts: Mapping[str, Mapping[Amount, float]]) -> list[str]:
    """A table: a row for each arm with every amount, and its ratio to the first arm's where they differ."""
    first = next(iter(amounts.values()))
    rows = [["", *TITLES.values()]]
    for arm, found in amounts.items():
        rows.append([arm, *(_shown(found[amount], first[amount], amount) for amount in AMOUNTS)])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  " + "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows]


def _shown(value: float, first: float, amount: Amount) -> str:
    text = f"{value:.3g}" if amount == "flops" else f"{value:,.0f}"
    return text if not first or abs(value / first - 1) < ROUNDED else f"{text} (x{value / first:.2f})"


def _key(*parts: Any) -> str:
    return json.dumps([one.model_dump(mode="json") if hasattr(one, "model_dump") else one for one in parts])
