"""The plan of a sweep: its cells in the order of work, written down so that workers need no study file; and where
everything lies. Used all over `sweeps`."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lvlm.errors import InputError
from lvlm.records import RECORD_FILE, write_json
from sweeps.storage import Storage, find_storage

if TYPE_CHECKING:
    from lvlm.config import RunConfig


DEFAULT_RUNNER = "lvlm.run:run"
"""What runs one cell: `module:function`."""
TRACEBACK_FILE = "traceback.txt"
"""In the run folder of a cell that failed."""


@dataclass(frozen=True)
class Place:
    """Where everything of one study lies: `home/studies/<name>/`.

    `name` is that of the study; with overrides `<study>@<hash of them>`, so that they never mix with other results.
    """

    home: Path
    name: str

    @property
    def study(self) -> str:
        """The name of the study."""
        return self.name.partition("@")[0]

    @property
    def folder(self) -> Path:
        return self.home / "studies" / self.name

    @property
    def home_option(self) -> str:
        """What a command to paste needs to find this home: ` --home DIR`, or nothing where it is the default."""
        return "" if self.home == _home() else f" --home {shlex.quote(str(self.home))}"

    @property
    def storage(self) -> Storage:
        """Where the trials of this study are kept."""
        return find_storage(self.folder, self.study)

    @property
    def logs(self) -> Path:
        return self.folder / "logs"

    @property
    def current_plan(self) -> Path:
        """The plan of the latest launch."""
        return self.folder / "plan.json"

    def cell(self, cell_id: str) -> Path:
        """The run folder of a cell."""
        return self.folder / "cells" / cell_id

    def is_recorded(self, cell_id: str) -> bool:
        """Whether the run of this cell has finished, whatever its trial says."""
        return (self.cell(cell_id) / RECORD_FILE).exists()


@dataclass(frozen=True)
class PlannedCell:
    """One run to do: `levels` by factor name, `config` as plain data."""

    id: str
    arm: str
    levels: dict[str, Any]
    seed: int
    config: dict[str, Any]

    def run_config(self) -> RunConfig:
        """The run config, validated again."""
        from lvlm.config import make_config  # pydantic takes longer to load than `status` takes to answer

        return make_config(self.config, where=f"cell {self.id}")


@dataclass(frozen=True)
class ProposedArm:
    """An arm that a search has proposed, with a cell for every seed. `number` counts from 1, as the baseline is 0;
    `notes` is what the sampler wants to know of it later."""

    number: int
    levels: dict[str, Any]
    notes: dict[str, Any]
    cells: list[PlannedCell]


@dataclass(frozen=True)
class Plan:
    """All cells of one version of a study. `version` identifies what is run, whatever the order.

    Of a search these are the baseline's and, after `grow`, those of the arms that have been proposed so far.
    """

    study: str
    question: str
    budget: str
    overrides: list[str]
    runner: str
    primary: str
    factors: dict[str, list[Any]]
    cells: list[PlannedCell]
    version: str
    source: str = field(default="", compare=False)
    """How the user names the study: its name or the path of its file."""
    ranges: dict[str, list[Any]] = field(default_factory=dict)
    """Factor with a range, which has no levels in `factors` -> lowest, highest, whether points lie evenly in the
    logarithm."""
    held_equal: str = "samples"
    """What every arm sees as much of as the baseline: samples, llm_tokens, images or flops."""
    tells_apart: list[str] = field(default_factory=list, compare=False)
    """What the design can tell apart and what is confounded with what, in lines."""
    search: dict[str, Any] = field(default_factory=dict)
    """What a worker needs to propose arms (`sweeps.declared`); empty where a design fixed them."""
    log_models: bool = field(default=False, compare=False)
    """Whether the tracker keeps each cell's last model."""

    @property
    def arms(self) -> list[str]:
        """Arm labels in the order of the design."""
        return list(dict.fromkeys(cell.arm for cell in self.cells))

    @property
    def seeds(self) -> list[int]:
        return list(dict.fromkeys(cell.seed for cell in self.cells))

    @property
    def size(self) -> int:
        """How many cells there are in the end."""
        return max(len(self.cells), int(self.search.get("arms", 0)) * len(self.seeds))

    @property
    def arms_to_propose(self) -> int:
        """How many arms a search has still to choose."""
        return max(0, int(self.search.get("arms", 0)) - len(self.arms))

    @property
    def said_factors(self) -> dict[str, list[Any]]:
        """What a reader is told of each factor: its levels, or the ends of its range."""
        return {name: levels or self.ranges[name][:2] for name, levels in self.factors.items()}

    @property
    def cells_of_baseline(self) -> list[PlannedCell]:
        """Those of the first arm."""
        return [cell for cell in self.cells if cell.arm == self.cells[0].arm]

    @property
    def searched(self) -> str:
        """The search in words; empty where there is none."""
        if not self.search:
            return ""
        prune = f", pruned by {self.search['prune']}" if self.search["prune"] else ""
        return f"{self.search['sampler']} for {' and '.join(self.search['objectives'])}{prune}"

    def proposals(self, folder: Path) -> Path:
        """Where the arms of the search lie, a file each, in a study's `folder`."""
        return folder / "search" / str(self.search["key"])

    def read_proposals(self, folder: Path) -> list[ProposedArm]:
        """The arms that have been proposed, in order, and no more of them than the search has."""
        return list(self._proposed(folder, known={}))

    def grow(self, folder: Path) -> None:
        """Take in the cells that have been proposed since. Whatever holds this plan sees them."""
        if not self.search:
            return
        seeds, there = set(self.seeds), {cell.id for cell in self.cells}
        for arm in self._proposed(folder, known=Counter(cell.arm for cell in self.cells)):
            self.cells.extend(cell for cell in arm.cells if cell.seed in seeds and cell.id not in there)

    def _proposed(self, folder: Path, *, known: dict[str, int]) -> Iterator[ProposedArm]:
        """The proposed arms, but those that have all their cells in `known` (arm -> cells)."""
        labels, seeds = list(known), len(self.seeds)
        for number in range(1, self.search["arms"]):
            if number < len(labels) and known[labels[number]] == seeds:
                continue
            path = self.proposals(folder) / f"{number:04d}.json"
            if not path.exists():
                return
            data = json.loads(path.read_text(encoding="utf-8"))
            yield ProposedArm(**{**data, "cells": [PlannedCell(**cell) for cell in data["cells"]]})

    @property
    def command(self) -> str:
        """The study as the commands take it: its name or file, then its overrides."""
        return shlex.join([self.source, *self.overrides])

    @property
    def launch_command(self) -> str:
        """What to paste to go on with this plan; a home other than the default comes behind it."""
        budget = "" if self.budget == "default" else f" --budget {self.budget}"
        runner = "" if self.runner == DEFAULT_RUNNER else f" --runner {shlex.quote(self.runner)}"
        models = " --log-models" if self.log_models else ""
        return f"python -m sweeps launch {self.command}{budget}{runner}{models}"

    def place(self, home: str | Path | None = None) -> Place:
        """Where this plan is carried out."""
        return Place(find_home(home), _folder_name(self.study, self.overrides))

    def save(self, place: Place) -> None:
        """Keep the plan under its version, and as the current one."""
        write_json(place.folder / "plans" / f"{self.version}.json", asdict(self))
        write_json(place.current_plan, asdict(self))

    @classmethod
    def load(cls, place: Place, version: str | None = None) -> Plan:
        """The plan of a version, or of the latest launch."""
        path = place.current_plan if version is None else place.folder / "plans" / f"{version}.json"
        if not path.exists():
            raise InputError(
                f"Nothing has been launched in {place.folder} (no {path.name}). Start it with: python -m sweeps launch "
                f"{place.study}, and with the same key=value settings as here.{_others(place)}"
            )
        plan = cls.read(path)
        plan.grow(place.folder)
        return plan

    @classmethod
    def read(cls, path: Path) -> Plan:
        """The plan in a file."""
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            return cls(**{**data, "cells": [PlannedCell(**cell) for cell in data["cells"]]})
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(
                f"{path} cannot be read ({type(error).__name__}: {error}): it is damaged, or of another version of "
                "this toolkit. Launching the study again writes it anew, and keeps what is finished."
            ) from error


def find_home(home: str | Path | None = None) -> Path:
    """The work folder, absolute: the argument, else LVLM_HOME, else `runs` here. Raises `InputError` where a file is
    in its way."""
    return checked_folder(_home(home), what="The work folder (--home DIR, else LVLM_HOME)")


def checked_folder(path: Path, *, what: str) -> Path:
    """`path`, where a folder lies or can be made; `what` it is begins the error."""
    if (there := next((part for part in (path, *path.parents) if part.exists()), path)).is_file():
        raise InputError(f"{what} has to be a folder, and {there} is a file. Give another one.")
    return path


def _home(home: str | Path | None = None) -> Path:
    return Path(home or os.environ.get("LVLM_HOME") or "runs").expanduser().resolve()


def find_place(study: str | Path, home: str | Path | None = None, overrides: Sequence[str] = ()) -> Place:
    """Where a study lies, given its name or the path of its file, and the overrides that it was launched with; the file
    is not loaded. The name of its results folder will do, too."""
    name = Path(study).stem if str(study).endswith(".py") else str(study)
    if not re.fullmatch(r"\w+(@[0-9a-f]{8})?", name):
        raise InputError(f"'{study}' is neither the name of a study nor the path of a study file (.py).")
    return Place(find_home(home), _folder_name(name, overrides))


def _folder_name(study: str, overrides: Sequence[str]) -> str:
    if not overrides:
        return study
    from ablations.studies import results_name  # as in `run_config`

    return results_name(study, overrides)


def _others(place: Place) -> str:
    plans = sorted((place.home / "studies").glob(f"{place.study}*/{place.current_plan.name}"))
    found = [path.parent.name for path in plans if Place(place.home, path.parent.name).study == place.study]
    return f" Launched here with other settings: {', '.join(found)}." if found else ""
