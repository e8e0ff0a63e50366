"""A searched study as plain data in its plan, so that workers can make cells of new arms without its file. Used by
`planner` and `search`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ablations.designs import Search
from ablations.factors import Factor
from ablations.studies import Cell, Study
from lvlm.config import fingerprint, override
from sweeps.plan import DEFAULT_RUNNER, Plan, PlannedCell


def search_data(study: Study, search: Search, *, overrides: Sequence[str], runner: str) -> dict[str, Any]:
    """What a worker needs to go on with a search. `key` identifies its course: whatever a proposal depends on, beside
    the scores, and not how many arms and seeds there are to be, so that a search can grow."""
    factors = [_factor_data(factor) for factor in study.factors]
    settings = {
        "sampler": search.sampler,
        "objectives": list(search.objectives or (study.primary,)),
        "first": search.first,
        "draw": search.draw,
        "prune": search.prune,
    }
    baseline = replace(study, seeds=(0,), full_seeds=None).cells("default", overrides=overrides)[0].id
    key = fingerprint([settings, factors, dict(study.baseline), baseline, runner, study.held_equal])
    return {
        "key": key,
        "arms": search.arms,
        **settings,
        "factors": factors,
        "baseline": dict(study.baseline),
        "base": override(study.base_data, overrides),
    }


def declared_search(plan: Plan) -> Search:
    """The search of a plan."""
    data = plan.search
    return Search(
        arms=data["arms"],
        sampler=data["sampler"],
        objectives=tuple(data["objectives"]) if len(data["objectives"]) > 1 else (),
        first=data["first"],
        draw=data["draw"],
        prune=data["prune"],
    )


def declared_study(plan: Plan) -> Study:
    """The study of a plan, whose cells have the same ids as those that its file makes."""
    return Study(
        name=plan.study,
        question=plan.question,
        base=plan.search["base"],
        factors=tuple(_factor(data) for data in plan.search["factors"]),
        baseline=plan.search["baseline"],
        design=declared_search(plan),
        seeds=tuple(plan.seeds),
        primary=plan.primary,
        held_equal=plan.held_equal,  # type: ignore[arg-type]  # the study checks the text
    )


def planned_cell(cell: Cell, runner: str) -> PlannedCell:
    """A cell as a plan has it; a runner other than the default is part of its identity."""
    return PlannedCell(
        id=cell.id if runner == DEFAULT_RUNNER else fingerprint([cell.id, runner]),
        arm=cell.arm.label,
        levels=dict(cell.arm.levels),
        seed=cell.seed,
        config=cell.config.model_dump(mode="json"),
    )


def _factor_data(factor: Factor) -> dict[str, Any]:
    return {
        "name": factor.name,
        "path": factor.path,
        "levels": list(factor.levels),
        "range": list(factor.range) if factor.range is not None else None,
        "log": factor.log,
        "labels": [[level, text] for level, text in factor.labels.items()],  # a key of JSON is a text
        "requires": {name: list(levels) for name, levels in factor.requires.items()},
        "nuisance": factor.nuisance,
    } | ({"settings": [[level, dict(fields)] for level, fields in factor.settings.items()]} if factor.settings else {})


def _factor(data: dict[str, Any]) -> Factor:
    return Factor(
        **{
            **data,
            "levels": tuple(data["levels"]),
            "range": tuple(data["range"]) if data["range"] is not None else None,
            "labels": {level: text for level, text in data["labels"]},
            "requires": {name: tuple(levels) for name, levels in data["requires"].items()},
            "settings": {level: fields for level, fields in data.get("settings", [])},
        }
    )
