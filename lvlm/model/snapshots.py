"""Snapshots of Centurio's trainer (arXiv 2501.05122): what was trained, on the tower and LLM that a model config names.
Called by `lvlm.model.checkpoints`."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import LoraConfig
from torch import Tensor

from lvlm.config import one_line
from lvlm.errors import InputError
from lvlm.model.assembly import assemble
from lvlm.model.checkpoints import PREFIXES, restore_lora
from lvlm.model.keys import compare, read_tensors
from lvlm.model.layouts import LORA_CONFIG, LORA_WEIGHTS, Located, read_json
from lvlm.model.lora import ADAPTER
from lvlm.model.tower import create
from lvlm.settings import ModelConfig

if TYPE_CHECKING:
    from lvlm.model.lvlm import Lvlm
    from lvlm.model.processor import LvlmProcessor

WRAPPERS = "model.model."
"""What stands before every key: the trainer's module holds a module that holds the model."""
CHANGE_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Ways to draw a LoRA that take their share out of the LLM's own weights, which a LoRA's folder does not hold."""


@dataclass(frozen=True)
class Snapshot:
    """What a snapshot's file holds, under the model's own keys."""

    file: Path
    tower: dict[str, Tensor]
    adapter: dict[str, Tensor]
    lora: dict[str, Tensor]
    """Under peft's keys; DeepSpeed keeps it, Lightning does not."""
    is_deepspeed: bool
    optimised: int | None
    """How many tensors the optimizer of a Lightning file had; None where the file does not say."""


def load_snapshot(
    found: Located, model_config: ModelConfig, *, seed: int, precision: str
) -> tuple[Lvlm, LvlmProcessor]:
    """(model, processor): tower and LLM of `model_config` as `precision` holds them, with what the snapshot has in
    their place, its tower in the types of its file."""
    snapshot = read_snapshot(found.path)
    lora = _lora(snapshot, found.lora)
    model, processor = assemble(model_config.model_copy(update={"checkpoint": None}), seed=seed, precision=precision)
    named = (
        f"model.adapter={model_config.adapter}, model.tiles={model_config.tiles}, model.tower={model_config.tower} and "
        f"model.llm={model_config.llm} describe"
    )
    adapter = model.multi_modal_projector
    compare(snapshot.adapter, adapter.state_dict(), found.path, model=named, prefix=PREFIXES["adapter"])
    adapter.load_state_dict(snapshot.adapter)
    if snapshot.tower:
        _load_tower(model, snapshot, named)
    if lora is not None:
        assert found.lora is not None
        config = lora_settings(found.lora, model_config)
        restore_lora(model.language_model, config, lora, found.lora)
        model.config.lora = ["llm"]
    return model.eval(), processor


def read_snapshot(file: Path) -> Snapshot:
    """What a snapshot's file holds. Only tensors and plain values are unpickled."""
    try:
        data = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{file} holds more than tensors and plain values, and nothing else is unpickled here, since a pickle can "
            f"run any code ({_first_sentence(error)}). If you trust where it came from, write its tensors to a file of "
            "their own: `data = torch.load(FILE, weights_only=False); key = 'module' if 'module' in data else "
            "'state_dict'; torch.save({key: data[key]}, NEW_FILE)`."
        ) from error
    except Exception as error:  # what torch raises depends on the bytes
        raise InputError(f"{file} is no checkpoint that torch can read: {one_line(error)}. Copy it again.") from error
    data = data if isinstance(data, dict) else {}
    key = next((name for name in ("module", "state_dict") if isinstance(data.get(name), Mapping)), None)
    if key is None:
        raise InputError(
            f"{file} is no snapshot of DeepSpeed (no 'module' in it) and none of Lightning (no 'state_dict'); it has: "
            f"{', '.join(map(str, list(data)[:12])) or 'no names'}."
        )
    parts: dict[str, dict[str, Tensor]] = {name: {} for name in (*PREFIXES, "lora")}
    surplus = []
    for name, value in data[key].items():
        inner = name.removeprefix(WRAPPERS)
        part = next((part for part, prefix in PREFIXES.items() if inner.startswith(prefix)), None)
        if inner == name or part is None or (part == "llm" and ".lora_" not in inner):
            surplus.append(name)
        elif part == "llm":
            parts["lora"][inner.removeprefix(PREFIXES["llm"]).replace(f".{ADAPTER}", "")] = value
        else:
            parts[part][inner.removeprefix(PREFIXES[part])] = value
    if surplus:
        raise InputError(
            f"{file} holds tensors that Centurio's trainer does not train, so that it is unclear where they belong: "
            f"{', '.join(surplus)}. Known keys begin with {WRAPPERS} and name vision_tower, multi_modal_projector, or "
            "the language_model's LoRA."
        )
    states = data.get("optimizer_states") or [{}]
    groups = states[0].get("param_groups")
    optimised = None if groups is None else sum(len(group["params"]) for group in groups)
    return Snapshot(file, parts["tower"], parts["adapter"], parts["lora"], key == "module", optimised)


def _first_sentence(error: Exception) -> str:
    text = one_line(error)
    start = text.find("Unsupported")
    return text[max(0, start) :].split(". ")[0].split(" Please")[0].rstrip(".")


def _lora(snapshot: Snapshot, folder: Path | None) -> dict[str, Tensor] | None:
    """The LoRA of a snapshot, or None. Where both the file and the folder beside it hold it, they must hold the same:
    the trainer writes them one after the other from the same weights, so that another one is from another time."""
    file = snapshot.file
    if folder is None:
        held = len(snapshot.adapter) + len(snapshot.tower)
        if snapshot.lora or (snapshot.optimised or 0) > held:
            raise InputError(
                f"A LoRA was trained with {file}, and its folder with {LORA_CONFIG} is not beside it: the trainer "
                "saves that of 0-24250.ckpt as the folder 0-24250. Copy it there."
            )
        if not snapshot.is_deepspeed and snapshot.optimised is None:
            warnings.warn(
                f"{file} does not say whether a LoRA was trained with it, and no LoRA folder is beside it: the LLM "
                "stays as it is.",
                stacklevel=4,
            )
        return None
    saved = read_tensors(folder / LORA_WEIGHTS)
    if not snapshot.is_deepspeed:
        return saved
    compare(snapshot.lora, saved, file, model=f"the LoRA in {folder} belongs to")
    other = [key for key, value in snapshot.lora.items() if not _same(value, saved[key])]
    if other:
        raise InputError(
            f"The LoRA in {folder} is not the one in {file}: {len(other)} of {len(saved)} tensors have other values, "
            f"beginning with {other[0]}. One of the two is from another step; copy both from the same one."
        )
    return {key: max(value, saved[key], key=Tensor.element_size) for key, value in snapshot.lora.items()}


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal in the coarser of their types."""
    dtype = min(a.dtype, b.dtype, key=lambda dtype: dtype.itemsize)
    return torch.equal(a.to(dtype), b.to(dtype))


def lora_settings(folder: Path, model_config: ModelConfig) -> LoraConfig:
    """The LoRA's own settings, in the words of whichever peft wrote them; what cannot be continued here is an error."""
    path = folder / LORA_CONFIG
    given = read_json(path)
    base, llm = given.get("base_model_name_or_path") or "", model_config.llm
    if _is_hub_name(base) and _is_hub_name(llm) and base != llm:
        raise InputError(f"{path} is a LoRA of {base}, but model.llm is {llm}. Set model.llm={base}.")
    start = str(given.get("init_lora_weights"))
    faults = [f"'{name}' is {given[name]!r}" for name in ("use_dora", "modules_to_save") if given.get(name)]
    faults += [f"'init_lora_weights' is '{start}'"] if start.startswith(CHANGE_THE_BASE) else []
    if given.get("peft_type") != "LORA":
        faults.append(f"'peft_type' is {given.get('peft_type')!r}")
    if faults:
        raise InputError(f"{path}: {', '.join(faults)}. Only a plain LoRA can be loaded on another copy of its LLM.")
    config: LoraConfig = LoraConfig.from_pretrained(folder)
    config.inference_mode = False
    return config


def _is_hub_name(name: str) -> bool:
    return name.count("/") == 1 and not name.startswith((".", "/", "~")) and not Path(name).exists()


def _load_tower(model: Lvlm, snapshot: Snapshot, named: str) -> None:
    """Put an unfrozen tower's tensors into the blocks that are kept; those of later blocks are checked and left
    out."""
    with torch.device("meta"):
        whole = create(model.config.tower)
    compare(snapshot.tower, whole.state_dict(), snapshot.file, model=named, prefix=PREFIXES["tower"])
    kept: Any = model.vision_tower.model
    kept.load_state_dict({key: snapshot.tower[key] for key in kept.state_dict()}, assign=True)
