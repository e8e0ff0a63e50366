"""From run folders to the study's tidy table and its per-item predictions. Used by `sweeps.launcher` at the end and by
the command `export`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from ablations.studies import Arm, Cell, Study, load_study
from ablations.table import BUDGET_COLUMNS, THUMBNAILS_FILE, Origin, tidy, write_results
from lvlm.config import one_line
from lvlm.errors import InputError
from lvlm.records import PREDICTIONS_FILE, SCORES_FILE, RunRecord
from sweeps.plan import Place, Plan, PlannedCell
from sweeps.queue import CellState, Queue
from sweeps.thumbnails import write_thumbnails


@dataclass(frozen=True)
class Export:
    """What was written: the table, the predictions (None where runs keep none), and how many of the planned runs are
    in them; `unpictured` says why no pictures of items lie beside them."""

    results: Path
    predictions: Path | None
    runs: int
    planned: int
    unpictured: str = ""


def export(place: Place, plan: Plan, *, study: Study | None = None) -> Export:
    """Write results, budget, origin and predictions from the finished cells of `plan` into the study's folder."""
    study = study or load_study(plan.source)
    names = [factor.name for factor in study.factors]
    if names != list(plan.factors):
        raise InputError(
            f"Study '{plan.study}' has the factors {', '.join(names)} now, "
            f"but {', '.join(plan.factors)} when it was launched. "
            f"Launch it again: {plan.launch_command}"
        )
    states = _states(place, plan)
    finished = [cell for cell in plan.cells if place.is_recorded(cell.id)]
    table = tidy(study, ((_cell(cell), pd.read_parquet(place.cell(cell.id) / SCORES_FILE)) for cell in finished))
    records = {cell.id: RunRecord.load(place.cell(cell.id)) for cell in finished}
    results = write_results(
        place.folder,
        table,
        planned=[_cell(cell) for cell in plan.cells],
        failed=_errors(plan, states),
        pruned={cell_id for cell_id, state in states.items() if state.state == "pruned"},
        budget=_budget(finished, records),
        origin=_origin(plan, records.values()),
    )
    predictions = _write_predictions(place, finished)
    why = _write_thumbnails(place, finished) if predictions else ""
    return Export(results, predictions, runs=len(finished), planned=plan.size, unpictured=why)


def _cell(cell: PlannedCell) -> Cell:
    return Cell(arm=Arm(levels=cell.levels, label=cell.arm), seed=cell.seed, config=cell.run_config(), id=cell.id)


def _states(place: Place, plan: Plan) -> dict[str, CellState]:
    """How the cells without a record stand, where that is known."""
    found = Queue(plan, place.storage).states() if place.storage.exists else {}
    return {cell_id: state for cell_id, state in found.items() if not place.is_recorded(cell_id)}


def _errors(plan: Plan, states: Mapping[str, CellState]) -> dict[str, str]:
    """Why cells failed, in one line each."""
    return {
        cell.id: (states[cell.id].error or "").partition("\n")[0]
        for cell in plan.cells
        if cell.id in states and states[cell.id].state == "failed"
    }


def _budget(cells: Iterable[PlannedCell], records: Mapping[str, RunRecord]) -> pd.DataFrame:
    """What every finished run was spent on, a row each; empty where its record does not say."""
    rows = [
        {"run": cell.id, "arm": cell.arm, "seed": cell.seed}
        | {name: records[cell.id].budget.get(name) for name in BUDGET_COLUMNS}
        for cell in cells
    ]
    return pd.DataFrame(rows, columns=["run", "arm", "seed", *BUDGET_COLUMNS])


def _origin(plan: Plan, records: Iterable[RunRecord]) -> Origin:
    """What was launched, and of which code and backbones the finished runs are."""
    commits: dict[str, None] = {}
    backbones: dict[str, dict[str, None]] = {}
    for record in records:
        commits[str(record.provenance.get("git_commit") or "unknown")] = None
        for part, found in (record.provenance.get("backbones") or {}).items():
            backbones.setdefault(part, {})[str(found)] = None
    return Origin(
        study=plan.study,
        source=plan.source,
        version=plan.version,
        budget=plan.budget,
        overrides=tuple(plan.overrides),
        seeds=tuple(plan.seeds),
        held_equal=plan.held_equal,
        search=plan.searched,
        git_commits=tuple(commits),
        backbones={part: tuple(found) for part, found in backbones.items()},
    )


def _write_predictions(place: Place, cells: list[PlannedCell]) -> Path | None:
    """One file, run after run, each row with its run, arm and seed in front."""
    path = place.folder / PREDICTIONS_FILE
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    writer: pq.ParquetWriter | None = None
    schema: pa.Schema | None = None
    for table in _predictions(place, cells):  # runs that paint have columns that others lack
        own = table.schema
        schema = own if schema is None else pa.unify_schemas([schema, own], promote_options="permissive")
    try:
        for table in _predictions(place, cells):
            if writer is None:
                writer = pq.ParquetWriter(temporary, schema)
            for name in writer.schema.names:
                if name not in table.column_names:
                    table = table.append_column(name, pa.nulls(len(table), writer.schema.field(name).type))
            writer.write_table(table.select(writer.schema.names).cast(writer.schema))
    finally:
        if writer is not None:
            writer.close()
    if writer is None:
        return None
    temporary.replace(path)
    return path


def _write_thumbnails(place: Place, cells: list[PlannedCell]) -> str:
    """Pictures of some items beside their answers; why there are none, as where the corpora were taken away since."""
    try:
        written = write_thumbnails(cells[0].run_config(), place.folder)
    except (InputError, OSError) as error:
        earlier = (place.folder / THUMBNAILS_FILE).exists()  # of the same items
        return "" if earlier else one_line(error)
    return "" if written else "no item has a picture"


def _predictions(place: Place, cells: list[PlannedCell]) -> Iterator[pa.Table]:
    for cell in cells:
        file = place.cell(cell.id) / PREDICTIONS_FILE
        if not file.exists():
            continue
        table = pq.read_table(file).replace_schema_metadata(None)
        # A column without a single value is typed "null" by the writer of that run; as text it fits the other runs.
        for index, column in enumerate(table.schema):
            if pa.types.is_null(column.type):
                table = table.set_column(index, column.name, table.column(index).cast(pa.string()))
        for name, value, kind in (
            ("seed", cell.seed, pa.int64()),
            ("arm", cell.arm, pa.string()),
            ("run", cell.id, pa.string()),
        ):
            table = table.add_column(0, name, pa.array([value] * len(table), kind))
        yield table
