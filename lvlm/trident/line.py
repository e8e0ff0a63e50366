"""A command line of Centurio with the defaults of its experiment: values, and what of it changes nothing. Used by
`lvlm.trident`."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from typing import Any

from lvlm.config import RunConfig
from lvlm.errors import InputError
from lvlm.trident.keys import FOLDER, TABLE, Experiment, Key

SHELL_VARIABLE = re.compile(r"\$(\w+|\{\w+\})")
KEYS: Mapping[str, Key] = {key.name: key for key in TABLE}


class Line:
    """A command line with the defaults of its experiment."""

    def __init__(self, experiment: Experiment, given: Mapping[str, str]) -> None:
        self.experiment, self.given = experiment, given
        self.notes: list[str] = []
        self.unused: dict[str, str] = {}
        """Override -> why it changes nothing beside the others of this line."""
        self.texts = {key.name: experiment.defaults.get(key.name, key.default) for key in TABLE} | dict(given)
        self.values = {name: _read(KEYS[name], text) for name, text in self.texts.items()}

    def __getitem__(self, name: str) -> Any:
        """The value of an override or its default; None where there is neither."""
        return self.values[name]

    def need(self, name: str, why: str) -> Any:
        """The value of an override that has no default."""
        if (value := self[name]) is None:
            raise InputError(f"The command line lacks {name}=..., {why}.")
        return value

    def applies(self, key: Key) -> bool:
        """Whether this experiment reads an override."""
        return bool(key.field) and key.on in ("both", "train" if self.experiment.stage else "test")

    def command(self, config: RunConfig) -> str:
        """What runs the config, with the folder and the processes that the command line names."""
        devices, folder = self["trainer.devices"], self["hydra.run.dir"]
        words = ["python"] if devices == 1 else ["torchrun", "--nproc-per-node", str(devices)]
        words += ["-m", "lvlm", "train", "RUN.yaml"]
        if folder:  # a variable of the shell has its value where the command is pasted
            words += ["--folder", f'"{folder}"' if "$" in folder else shlex.quote(folder)]
        words += [f"{name}.validate_every=null" for name, stage in config.stages().items() if stage.validate_every]
        return " ".join(words)

    def meaningless(self) -> list[str]:
        """What was given and changes nothing, each with the reason."""
        other = "only an evaluation reads it" if self.experiment.stage else "nothing is trained"
        lines = []
        for name, text in self.given.items():
            key = KEYS[name]
            why = self.unused.get(name) or (key.says if not key.field else None if self.applies(key) else other)
            if why:
                lines.append(f"no meaning here: {name}={text}: {why}")
        return lines


def _read(key: Key, text: str | None) -> Any:
    if text is None or (text == "null" and key.reads.null):
        return None
    rest = SHELL_VARIABLE.sub("", text) if key.reads is FOLDER else text  # that one goes into a command to paste
    if "$" in rest:
        raise InputError(f"{key.name}={text} holds a variable that nothing has replaced; give {key.reads.wants}.")
    try:
        return key.reads.read(text)
    except (KeyError, ValueError) as error:
        raise InputError(f"{key.name}={text} cannot be read; give {key.reads.wants} ({key.says}).") from error
