"""The tidy table: one row per run x task x language x metric. `sweeps` writes it, the analysis reads nothing else."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from ablations.factors import Factor, Level
from ablations.origin import Origin as Origin  # for `sweeps`, which sees no other module than this one
from ablations.origin import declared
from ablations.places import EXAMPLES, PLANNED_FILE, RESULTS_FILE, home_folder, locate, others, planned
from ablations.places import study_folder as study_folder
from ablations.reading import LEADING as LEADING
from ablations.reading import TRAILING as TRAILING
from ablations.reading import read_table
from ablations.studies import Cell, Expectation, Study
from lvlm.errors import InputError, nearest
from lvlm.languages import language
from lvlm.records import SCORE_COLUMNS, write_table, write_text

if TYPE_CHECKING:
    from ablations.answers import Disagreement
    from ablations.contrasts import Change, Effect
    from ablations.layout import Layout
    from ablations.mixed import Mixed
    from ablations.pareto import Cheapest
    from ablations.plots.namespace import Plots
    from ablations.power import Power
    from ablations.response import Response
    from ablations.significance import Equivalence

BUDGET_FILE = "budget.csv"  # what every finished run was spent on: run, arm, seed and `BUDGET_COLUMNS`
BUDGET_COLUMNS = (
    "samples", "llm_tokens", "images", "views", "flops", "trainable_parameters", "train_seconds", "seconds",
)  # fmt: skip
REPORT_FILES = ("report.html", "effects.csv", "verdicts.csv")
"""What the report of a study writes beside its table: the page, all effects, the verdicts."""
PICTURE_FILE = "by_{}.png"  # and one picture for each factor
THUMBNAILS_FILE = "thumbnails.parquet"
"""Small pictures of some test items: task, source, item, image (the bytes of an image file)."""


def columns(study: Study) -> list[str]:
    """The columns of a study's table."""
    return [*LEADING, *(factor.name for factor in study.factors), *TRAILING]


def tidy(study: Study, runs: Iterable[tuple[Cell, pd.DataFrame]]) -> pd.DataFrame:
    """The table of a study from the scores (`lvlm.records.SCORE_COLUMNS`) of its finished runs.

    Values in percent, NaN where unknown.
    """
    parts = []
    for cell, scores in runs:
        if missing := [name for name in SCORE_COLUMNS if name not in scores.columns]:
            raise InputError(
                f"The scores of run {cell.id} ({cell.config.name}) lack the column(s) {', '.join(missing)}."
            )
        part = scores.loc[:, list(SCORE_COLUMNS)].assign(
            study=study.name, arm=cell.arm.label, seed=cell.seed, run=cell.id
        )
        part["tier"] = [language(code).tier for code in part["language"]]
        for name, level in cell.arm.levels.items():
            part[name] = [level] * len(part)
        parts.append(part)
    if not parts:
        return pd.DataFrame(columns=columns(study))
    return pd.concat(parts, ignore_index=True)[columns(study)]


def write_results(
    folder: str | Path,
    table: pd.DataFrame,
    *,
    planned: Sequence[Cell] | None = None,
    failed: Mapping[str, str] | None = None,
    pruned: Collection[str] = (),
    budget: pd.DataFrame | None = None,
    origin: Origin | None = None,
) -> Path:
    """Write `results.parquet` into a study's folder, whole or not at all.

    With it which cells were planned, which of them failed (run -> why) or were `pruned`, what each finished run was
    spent on, and where all that comes from.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if planned is not None:
        why = failed or {}
        cells = [
            {"run": cell.id, "arm": cell.arm.label, "seed": cell.seed, "error": why.get(cell.id)}
            | ({"pruned": True} if cell.id in pruned else {})
            for cell in planned
        ]
        write_text(folder / PLANNED_FILE, json.dumps(cells, ensure_ascii=False, indent=1) + "\n")
    if budget is not None:
        write_text(folder / BUDGET_FILE, budget.to_csv(index=False))
    if origin is not None:
        origin.save(folder)
    path = folder / RESULTS_FILE
    write_table(path, table)
    return path


@dataclass(frozen=True)
class Results:
    """The results of a study. `study` is None where its file is not known here, and `unknown` says why.

    Then arms are named and compared by label.
    """

    table: pd.DataFrame
    folder: Path
    study: Study | None
    planned: tuple[tuple[str, int], ...] = ()
    """Arm and seed of every cell that the sweep planned; empty where that is not recorded."""
    failed: Mapping[tuple[str, int], str] = field(default_factory=dict)
    """Why cells failed, by arm and seed: they have no row in the table, and no effect uses them."""
    pruned: tuple[tuple[str, int], ...] = ()
    """Arm and seed of the cells that a search ended early, likewise in no row and no effect."""
    origin: Origin | None = None
    unknown: str = ""
    """Why `study` is None, in a sentence without its full stop."""
    wide: dict[str, pd.DataFrame] = field(default_factory=dict, repr=False, compare=False)
    """Metric -> values by run and (task, language), and differences between two arms.

    `contrasts` keeps its pivots here, as every effect needs some.
    """

    @property
    def launch(self) -> str:
        """The arguments of `sweeps launch` that go on with this study: its name or file, overrides, budget and home."""
        if self.origin is None:
            return self.name
        budget = [] if self.origin.budget == "default" else ["--budget", self.origin.budget]
        return shlex.join([self.origin.source, *self.origin.overrides, *budget]) + self.home_option

    def budget(self) -> pd.DataFrame:
        """What an arm costs: `BUDGET_COLUMNS`, means over its finished runs; empty where that is not recorded."""
        path = self.folder / BUDGET_FILE
        if not path.exists():
            return pd.DataFrame(columns=["arm", *BUDGET_COLUMNS]).set_index("arm")
        means = pd.read_csv(path).groupby("arm", sort=False).mean(numeric_only=True).reindex(columns=BUDGET_COLUMNS)
        return means.loc[[arm for arm in self.arms().index if arm in means.index]]

    @property
    def name(self) -> str:
        """The study's name."""
        return self.study.name if self.study else str(self.table["study"].iloc[0])

    @property
    def factors(self) -> list[str]:
        """Short names of the factors."""
        known = {*LEADING, *TRAILING}
        return [name for name in self.table.columns if name not in known]

    @property
    def finished(self) -> list[tuple[str, int]]:
        """Arm and seed of every run in the table."""
        return list(self.table[["arm", "seed"]].drop_duplicates().itertuples(index=False, name=None))

    @property
    def missing(self) -> list[tuple[str, int]]:
        """Arm and seed of the planned cells that have no run, failed ones among them; pruned ones are to have none."""
        return sorted(set(self.planned) - set(self.finished) - set(self.pruned))

    @property
    def is_searched(self) -> bool:
        """Whether the arms were chosen by their scores, so that their effects are biased."""
        return bool(self.study and self.study.is_searched) or bool(self.origin and self.origin.search)

    @property
    def is_example(self) -> bool:
        """Whether these are records that come with the toolkit, and not the user's own."""
        return self.folder.resolve().is_relative_to(EXAMPLES.resolve())

    @property
    def source(self) -> str:
        """Which records these are, in a sentence."""
        if not self.is_example:
            return f"Your own records: {'/'.join(self.folder.resolve().parts[-2:])}."
        commits = ", ".join(commit[:8] for commit in self.origin.git_commits) if self.origin else ""
        made = f", made by code {commits}" if commits else ""
        return f"Example records of the study {self.name} that come with the toolkit{made}: not your own runs."

    @property
    def home_option(self) -> str:
        """What a command to paste needs to find these results' home: ` --home DIR`, or nothing for the default."""
        if self.is_example:
            return ""
        home, default = self.folder.resolve().parent.parent, home_folder(None).resolve()
        return "" if home == default else f" --home {shlex.quote(str(home))}"

    def arms(self) -> pd.DataFrame:
        """One row per arm: its levels and how many seeds it has, in the study's order."""
        rows = self.table.groupby("arm", sort=False).agg(
            **{name: (name, "first") for name in self.factors}, seeds=("seed", "nunique")
        )
        if self.study:
            order = [
                arm.label for arm in self.study.arms("default") + self.study.arms("full") if arm.label in rows.index
            ]
            rows = rows.loc[list(dict.fromkeys(order)) + [label for label in rows.index if label not in order]]
        return rows

    @property
    def baseline(self) -> str:
        """Label of the study's baseline arm."""
        return self.known_study("Name a baseline, such as baseline='LABEL'.").baseline_arm.label

    def known_study(self, otherwise: str) -> Study:
        """The study. Raises `InputError` where there is none, with the reason and what to do `otherwise`."""
        if self.study is None:
            raise InputError(f"{self.unknown}. {otherwise}")
        return self.study

    def label(self, arm: str | Mapping[str, Level] | None) -> str:
        """The label of an arm given by label or by levels (the rest as in the baseline); None is the baseline."""
        if arm is None:
            return self.baseline
        if isinstance(arm, str):
            known = [str(label) for label in self.table["arm"].unique()]
            if arm not in known and arm != (self.study and self.study.baseline_arm.label):
                raise InputError(f"There is no arm '{arm}' in {self.folder}. The nearest are: {nearest(arm, known)}.")
            return arm
        return self.known_study("Name arms by label, not by levels.").arm(arm).label

    def levels_of(self, factor: Factor) -> tuple[Level, ...]:
        """The levels of a factor, in order; of one with a range those that have runs."""
        if factor.range is None:
            return factor.levels
        kind = type(factor.range[0])  # a column that has gaps holds whole numbers as others
        return tuple(sorted(kind(number) for number in self.table[factor.name].dropna().unique()))

    def level_label(self, factor: str, level: Level) -> str:
        """What the study calls a level of a factor; without a known study both as they are."""
        for known in self.study.factors if self.study else ():
            if known.name == factor:  # a table gives levels in numpy's types
                return known.label(next((one for one in self.levels_of(known) if one == level), level))
        return f"{factor} {level}"

    def margin(self, factor: str) -> list[str]:
        """Labels of the arms with results that differ from the baseline in this factor only, by its levels."""
        study = self.known_study("Without it nobody knows the levels of a factor: compare arms by label.")
        known = {one.name: one for one in study.factors}
        if factor not in known:
            raise InputError(f"'{factor}' is not a factor of study '{self.name}'; factors: {', '.join(known)}.")
        present = set(self.table["arm"])
        labels = dict.fromkeys(study.arm({factor: level}).label for level in self.levels_of(known[factor]))
        return [label for label in labels if label in present]  # one, where the factor does not apply to the baseline

    def short_label(self, arm: str) -> str:
        """What sets an arm apart from the baseline, in the labels of its levels; `baseline` for the baseline itself,
        the whole label where the short one would be that of two arms."""
        return self._short_labels.get(arm, arm)

    @cached_property
    def _short_labels(self) -> dict[str, str]:
        if self.study is None:
            return {}
        base, found = self.study.baseline_arm.levels, {}
        for arm in (*self.study.arms("default"), *self.study.arms("full")):
            own = arm.levels
            differing = [f for f in self.study.factors if own[f.name] != base[f.name] and own[f.name] is not None]
            found[arm.label] = " · ".join(f.label(own[f.name]) for f in differing) or "baseline"
        times = Counter(found.values())
        return {label: short if times[short] == 1 else label for label, short in found.items()}

    def effects(self, **options: Any) -> pd.DataFrame:
        """Effects as a table, p adjusted by Benjamini-Hochberg: see `ablations.contrasts.effects` for the options."""
        from ablations.contrasts import adjust, as_table, effects

        return as_table(adjust(effects(self, **options), "bh"))

    def matrix(self, **options: Any) -> pd.DataFrame:
        """Effects for reading, a row per arm and a column per group; options of `ablations.contrasts.effects`."""
        from ablations.contrasts import as_matrix, effects

        return as_matrix(effects(self, **options), self)

    def power(self, difference: float, *, metric: str = "score", group: str = "multilingual", **options: Any) -> Power:
        """Seeds, languages and items that show a difference: see `ablations.power.plan` for the options."""
        from ablations.power import plan

        return plan(self, difference=difference, metric=metric, group=group, **options)

    def equivalence(self, arm: str | Mapping[str, Level] | None, *, margin: float, **options: Any) -> Equivalence:
        """Whether an arm changes a group by less than a margin: see `ablations.contrasts.equivalence`."""
        from ablations.contrasts import equivalence

        return equivalence(self, arm, margin=margin, **options)

    def main_effect(self, factor: str, level: Level, against: Level, *, metric: str = "score", group: str) -> Effect:
        """One level against another, averaged over the other factors: see `ablations.contrasts.main_effect`."""
        from ablations.contrasts import main_effect

        return main_effect(self, factor, level, against, metric=metric, group=group)

    def interaction(self, first: Change, second: Change, *, metric: str = "score", group: str) -> Effect:
        """How much larger one effect is beside another: see `ablations.contrasts.interaction`."""
        from ablations.contrasts import interaction

        return interaction(self, first, second, metric=metric, group=group)

    def response(self, factor: str, **options: Any) -> Response:
        """The curve of a metric along a factor of numbers, and its optimum: see `ablations.response.response` for the
        options."""
        from ablations.response import response

        return response(self, factor, **options)

    def importance(self, **options: Any) -> pd.DataFrame:
        """How much each factor and pair explains: see `ablations.importance.importance` for the options."""
        from ablations.importance import importance

        return importance(self, **options)

    def pareto(self, **options: Any) -> pd.DataFrame:
        """All arms by two outcomes, and which are on the front: see `ablations.pareto.pareto` for the options."""
        from ablations.pareto import pareto

        return pareto(self, **options)

    def cheapest(self, **options: Any) -> Cheapest:
        """The cheapest arm within noise of the best: see `ablations.pareto.cheapest_within_noise` for the options."""
        from ablations.pareto import cheapest_within_noise

        return cheapest_within_noise(self, **options)

    def mixed(self, **options: Any) -> Mixed:
        """All effects at once where runs are missing: see `ablations.mixed.mixed_effects` for the options."""
        from ablations.mixed import mixed_effects

        return mixed_effects(self, **options)

    def verdicts(self, *, factor: str | None = None) -> list[tuple[Expectation, Effect]]:
        """Every expectation of the study (about one factor) with the effect that decides it and its verdict."""
        from ablations.contrasts import verdicts

        return [pair for pair in verdicts(self) if factor is None or factor in {*pair[0].arm, *pair[0].against}]

    def findings(self) -> pd.DataFrame:
        """The verdict on every published claim that these results can test: see `ablations.findings`."""
        from ablations.findings import table, verdicts

        return table(verdicts(self))

    @property
    def plot(self) -> Plots:
        """Every figure: `results.plot.by_tier("languages")`."""
        from ablations.plots.namespace import Plots

        return Plots(self)

    def layout(self, **options: Any) -> Layout:
        """Arms x tiers with intervals, as LaTeX, Markdown or HTML: see `ablations.layout.layout`."""
        from ablations.layout import layout

        return layout(self, **options)

    def to_latex(self, *, intervals: bool = True, **options: Any) -> str:
        """The same as LaTeX (booktabs)."""
        return self.layout(**options).to_latex(intervals=intervals)

    def to_markdown(self, *, intervals: bool = True, **options: Any) -> str:
        """The same as Markdown."""
        return self.layout(**options).to_markdown(intervals=intervals)

    def confusion(self, **options: Any) -> pd.DataFrame:
        """In which language questions were answered: see `ablations.answers.confusion`."""
        from ablations.answers import confusion

        return confusion(self, **options)

    def disagreements(self, **options: Any) -> Disagreement:
        """Items about which arms disagree, with their images: see `ablations.answers.disagreements`."""
        from ablations.answers import disagreements

        return disagreements(self, **options)

    def verdict_table(self, *, factor: str | None = None) -> pd.DataFrame:
        """The verdicts as a table for reading."""
        from ablations.contrasts import verdict_table

        return verdict_table(self.verdicts(factor=factor))

    def __repr__(self) -> str:
        return f"{self.summary()}\n{self.source}"

    def summary(self) -> str:
        """One line: how many runs there are, and how many are missing."""
        runs = len(self.finished)
        line = (
            f"study {self.name}: {runs} runs, {self.table['arm'].nunique()} arms, {self.table['seed'].nunique()} seeds"
        )
        if self.is_searched:
            line += "; arms chosen by their scores"
        if self.pruned:
            line += f"; {len(self.pruned)} pruned"
        if not self.missing:
            return line
        failed = f" ({len(self.failed)} failed)" if self.failed else ""
        return f"{line}; {len(self.missing)} of {len(self.planned)} planned runs are missing{failed}"

    def _repr_html_(self) -> str:
        from ablations.markup import results_html

        return results_html(self)


def load_results(
    study: str | Path | Study, *, home: str | Path | None = None, overrides: Sequence[str] = ()
) -> Results:
    """Results of a study, given by name, by its file, as a `Study`, or by the folder or file of its table;
    `examples/drivers` (`ablations.places.list_examples`) are records that come with the toolkit.

    A study that was launched with `overrides` (`key=value`) is found with the same ones.
    """
    given, path = locate(study, home, overrides)
    name = " ".join([str(given.name if isinstance(study, Study) and given else study), *overrides])
    name += f" --home {shlex.quote(str(home))}" if home else ""
    if not path.exists():
        raise InputError(
            f"There are no results at {path}. Run the study first: python -m sweeps launch {name}; "
            f"or, if it has runs, write their table: python -m sweeps export {name}.{others(path.parent)}"
        )
    table = read_table(path, name)
    cells, failed, pruned = planned(path.parent)
    origin = Origin.load(path.parent)
    found = Results(
        table=table, folder=path.parent, study=None, planned=cells, failed=failed, pruned=pruned, origin=origin
    )
    try:
        return replace(found, study=declared(found.name, found.factors, origin, given=given))
    except InputError as error:  # the table can be read without it
        return replace(found, unknown=str(error))
