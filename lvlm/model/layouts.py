"""Where a saved model lies and in which layout, told by what is in it and never by its name. No torch. Called by
`lvlm.model.checkpoints`, `lvlm.model.backbones` and `lvlm.cli`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lvlm.errors import InputError
from lvlm.model.digests import file_digest
from lvlm.records import RECORD_FILE, RunRecord

Layout = Literal["own", "release", "snapshot"]
LORA_CONFIG = "adapter_config.json"
LORA_WEIGHTS = "adapter_model.safetensors"
RELEASE = "centurio"
"""`model_type` of the models that Centurio's authors published."""


@dataclass(frozen=True, slots=True)
class Located:
    """A saved model: this package's folder, Centurio's folder on the Hugging Face hub, or a snapshot that Centurio's
    trainer left (DeepSpeed or Lightning), which holds what was trained and nothing else."""

    layout: Layout
    path: Path
    """The folder with `config.json`, or the file of a snapshot."""
    lora: Path | None = None
    """The folder in which a snapshot's LoRA was saved beside it, if there is one."""

    @property
    def stands_alone(self) -> bool:
        """Whether tower and LLM are in it too."""
        return self.layout != "snapshot"

    def digest(self) -> str:
        """Twelve hex digits of the content of all files that belong to it."""
        folders = [self.path, self.lora] if self.lora else [self.path]
        return content_digest(folders)


def content_digest(places: Iterable[Path]) -> str:
    """Twelve hex digits of the files there, and of their names inside each folder."""
    digest = hashlib.sha256()
    for place in places:
        for path in sorted(place.rglob("*")) if place.is_dir() else [place]:
            if path.is_file():
                digest.update(path.relative_to(place).as_posix().encode() + b"\0")
                digest.update(file_digest(path))
    return digest.hexdigest()[:12]


def locate(path: str | Path) -> Located:
    """What is saved at `path`: a model folder, a finished run, a snapshot's file, or the folder that DeepSpeed made
    around it."""
    path = Path(path)
    if path.is_file():
        return Located("snapshot", path, _lora_beside(path))
    if not path.is_dir():
        raise InputError(f"There is no checkpoint {path}. Give a local file or folder; download a hub model first.")
    if (path / RECORD_FILE).exists():
        return locate(_model_of_run(path))
    if (path / "config.json").exists():
        return Located(_layout_of_folder(path), path)
    if (path / LORA_CONFIG).exists():
        raise InputError(
            f"{path} is a LoRA alone: give the checkpoint that was saved beside it, such as {path.name}.ckpt."
        )
    files = sorted(path.rglob("*_model_states.pt"))
    if len(files) == 1 and not files[0].name.startswith("zero_pp_rank"):
        return Located("snapshot", files[0], _lora_beside(files[0]))
    if files:
        raise InputError(
            f"{path} holds weights that DeepSpeed divided among several files ({', '.join(file.name for file in files)}"
            "). Join them with the zero_to_fp32.py that DeepSpeed put there, and give the joined file."
        )
    raise InputError(
        f"{path} is neither a model folder (it holds no config.json) nor a finished run (no {RECORD_FILE}) nor a "
        "snapshot of DeepSpeed (no *_model_states.pt). Give one of these, or a snapshot's file."
    )


def model_folder(path: str | Path) -> Path:
    """The folder of a model that stands alone; an error for a snapshot."""
    found = locate(path)
    if not found.stands_alone:
        raise InputError(f"{found.path} cannot be used by itself. {how_to_load(found.path)}")
    return found.path


def how_to_load(path: Path) -> str:
    """What to do with a snapshot, which names neither tower nor LLM."""
    return (
        "It holds only what its training changed, and the tower and the LLM are to be named beside it: in a run config "
        f"with model.checkpoint={path} and the model.tower, model.llm, model.adapter and model.tiles that it was "
        f"trained with, or in Python with load({str(path)!r}, model=ModelConfig(tower=..., llm=..., ...))."
    )


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file of a checkpoint."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON: {error}. Copy the whole model folder.") from error
    if not isinstance(found, dict):
        raise InputError(f"{path} holds no JSON object. Copy the whole model folder.")
    return found


def _layout_of_folder(folder: Path) -> Layout:
    config = read_json(folder / "config.json")
    kind = config.get("model_type")
    if kind == "lvlm":
        return "own"
    if kind == RELEASE or "CenturioForConditionalGeneration" in (config.get("architectures") or ()):
        return "release"
    raise InputError(
        f"{folder / 'config.json'}, field 'model_type', is {kind!r} and not 'lvlm' or '{RELEASE}': this is no model of "
        "this package or of Centurio. Give the folder of a finished run, or one that `python -m lvlm export` wrote."
    )


def _model_of_run(folder: Path) -> Path:
    model = RunRecord.load(folder).provenance.get("model")
    if model is None:
        raise InputError(f"The run {folder} trained no stage, so that it has no model of its own.")
    if not Path(model).exists():
        raise InputError(f"The run {folder} kept no model at {model}. Start the run again to train it anew.")
    return Path(model)


def _lora_beside(file: Path) -> Path | None:
    """Centurio's trainer saves the LoRA of `0-24250.ckpt`, a file or DeepSpeed's folder, as the folder `0-24250`."""
    file = file.absolute()
    for place in (file, *file.parents[:2]):
        if place.suffix == ".ckpt" and (place.with_suffix("") / LORA_CONFIG).exists():
            return place.with_suffix("")
    return None
