"""Where a study's results come from: its file, what was launched, the code and the backbones. `sweeps` writes it beside
the table, `report` shows it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ablations.studies import Study, list_studies, load_study
from lvlm.config import one_line
from lvlm.errors import InputError
from lvlm.records import write_json

ORIGIN_FILE = "study.json"


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What was launched. `source` is the study's name or the absolute path of its file.

    `git_commits` and `backbones` (part -> fingerprints) are those of the finished runs. More than one commit means that
    the runs are not all of the same code; several fingerprints of a part are normal, as seed s uses draw s.
    """

    study: str
    source: str
    version: str
    budget: str
    overrides: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    held_equal: str = "samples"
    search: str = ""
    """What chose the arms by their scores, in words; empty where a design fixed them."""
    git_commits: tuple[str, ...] = ()
    backbones: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def save(self, folder: Path) -> None:
        """Write it beside the results."""
        write_json(folder / ORIGIN_FILE, asdict(self))

    @classmethod
    def load(cls, folder: Path) -> Origin | None:
        """What lies beside the results, None where nothing does."""
        path = folder / ORIGIN_FILE
        if not path.exists():
            return None
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            lists = {name: tuple(data[name]) for name in ("overrides", "seeds", "git_commits")}
            backbones = {part: tuple(prints) for part, prints in data["backbones"].items()}
            return cls(**{**data, **lists, "backbones": backbones})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"{path} cannot be read ({type(error).__name__}: {error}). "
                "Write it again: python -m sweeps export STUDY."
            ) from error

    def lines(self) -> list[tuple[str, str]]:
        """What a reader of the results has to know of their making: (title, text)."""
        several = " (more than one: the runs are not all of the same code)" if len(self.git_commits) > 1 else ""
        return [
            ("budget", self.budget),
            ("overrides", " ".join(self.overrides) or "none"),
            ("seeds", ", ".join(map(str, self.seeds))),
            ("held equal in every arm", self.held_equal.replace("_", " ")),
            *([("arms", f"chosen by their scores: {self.search}")] if self.search else []),
            ("version of the plan", self.version),
            ("code (git commit)", ", ".join(self.git_commits) + several or "not recorded"),
            *((f"backbone: {part}", self._draws(prints)) for part, prints in self.backbones.items()),
            ("study file", self.source),
        ]

    def _draws(self, prints: tuple[str, ...]) -> str:
        """How many draws of a backbone the runs use, and their fingerprints; runs to come may add to them."""
        draws, seeds = len(prints), len(self.seeds)
        if draws < 2:
            said = "one draw" + (" shared by all seeds" if seeds > 1 else "")
        else:
            said = f"{draws} draws" + (", one per seed" if draws == seeds else f" over {seeds} seeds")
        return f"{said}: {', '.join(prints)}"


def declared(name: str, factors: Sequence[str], origin: Origin | None, *, given: Study | None = None) -> Study:
    """The study behind a table: `given`, else by the file that it was launched from, else by its name among those of
    the toolkit.

    Raises `InputError` with the reason where that file is missing, cannot be loaded, or declares other factors than the
    table has.
    """
    unknown = f"The study '{name}' is not known here"
    source = origin.source if origin is not None else name
    if given is None and source not in list_studies() and not Path(source).is_file():
        gone = f"its file {source} does not exist any more"
        unnamed = f"no study of the toolkit has that name, and no {ORIGIN_FILE} beside the table names its file"
        raise InputError(f"{unknown}: {gone if source.endswith('.py') else unnamed}")
    try:
        study = given or load_study(source)
    except InputError as error:
        raise InputError(f"{unknown}: {one_line(error)}") from error
    if (now := [factor.name for factor in study.factors]) != list(factors):
        version = f" (version {origin.version})" if origin is not None else ""
        raise InputError(
            f"{unknown}: its file has changed since the launch{version} and declares the factors {', '.join(now)}, "
            f"while the table has {', '.join(factors) or 'none'}"
        )
    return study
