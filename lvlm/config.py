"""The config of a run: all its settings, read from YAML, overridden, named with dots. A study varies these fields and
nothing else; `lvlm.cli`, `ablations.factors` and `sweeps` read them.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Self, Union, get_args, get_origin

import yaml
from pydantic import (
    BaseModel,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from lvlm.errors import InputError, nearest
from lvlm.lineage import check_lineage
from lvlm.paint_settings import PaintConfig
from lvlm.settings import AnySettings, ComputeConfig, EvaluateConfig, Label, ModelConfig, Settings, StageConfig

FREE_COMPUTE = (
    "micro_batch_tokens", "packing", "gradient_checkpointing", "strategy", "loader_workers", "feature_cache",
    "feature_cache_gib", "stage_cache_gib", "evaluate_batch", "checkpoint_every",
)  # fmt: skip
"""Compute settings about memory and speed: they move no more than the last bits of a result, so they are no part of a
cell's identity, and an unfinished run may be resumed with other values of them."""
MASKS_DEPEND_ON = ("micro_batch_tokens", "packing", "strategy")
"""Those among them that decide what a micro-batch is, and with it the masks of LoRA's dropout. Where there is dropout
they are part of the stage's key, and `lvlm.run` refuses to resume with other values."""
STAGES = ("align", "pretrain", "instruct", "paint")
"""In the order in which they run; a run has any of them."""
NEW_STAGES = ("align", "paint")
"""Those that a config without them does not name: its fingerprint is that of before they existed."""
LABELS = ("name", "tags")
"""Settings that say what a run is called: no part of what it is."""


class RunConfig(Settings):
    """One run, from data to scores."""

    name: str = "run"
    tags: tuple[Label, ...] = ()
    """Labels that the record and the tracker carry; they change no result, and a finished run keeps its own."""
    seed: Annotated[int, Field(ge=0)] = 0
    model: ModelConfig = ModelConfig()
    align: StageConfig | None = None
    """The LLM alone, on text."""
    pretrain: StageConfig | None = None
    instruct: StageConfig | None = None
    paint: PaintConfig | None = None
    evaluate: EvaluateConfig = EvaluateConfig()
    compute: ComputeConfig = ComputeConfig()

    def stages(self) -> dict[str, StageConfig]:
        """The stages that train parts of the vision-language model, in order."""
        return {name: stage for name in STAGES if name != "paint" and (stage := getattr(self, name)) is not None}

    def every_stage(self) -> dict[str, StageConfig | PaintConfig]:
        """`stages`, and after them the one that trains a denoiser and leaves the LLM as it is."""
        return {**self.stages(), **({} if self.paint is None else {"paint": self.paint})}

    @model_validator(mode="after")
    def _stages_fit_together(self) -> Self:
        for name, stage in self.stages().items():
            if stage.contrast.weight and name != "align":
                raise ValueError(
                    f"{name}.contrast.weight is {stage.contrast.weight:g}, but states are compared on text alone, in "
                    "the stage align; leave it out"
                )
        check_lineage(self)
        if self.align and (
            idle := [part for part in ("tower", "adapter") if getattr(self.align.train, part) != "frozen"]
        ):
            raise ValueError(
                f"align.train.{idle[0]} is {getattr(self.align.train, idle[0])}, but align reads text alone, from "
                "which only the LLM learns; set tower and adapter to frozen"
            )
        return self

    @model_serializer(mode="wrap")
    def _absent_stages_are_left_out(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in dump(self).items() if name not in NEW_STAGES or value is not None}


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a run config from YAML and apply `key=value` overrides (dotted keys; values in YAML)."""
    path = Path(path)
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except FileNotFoundError as error:
        raise InputError(f"The run config {path} does not exist.") from error
    except IsADirectoryError as error:
        raise InputError(f"The run config {path} is a folder; name the YAML file in it.") from error
    except OSError as error:
        raise InputError(f"The run config {path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"The run config {path} is not UTF-8 text (byte {error.start}). Save it as UTF-8.") from error
    except (yaml.YAMLError, ValueError) as error:
        raise InputError(f"The run config {path} is not valid YAML: {one_line(error)}.") from error
    if not isinstance(data, dict):
        raise InputError(f"The run config {path} must be a mapping of settings, not {type(data).__name__}.")
    return make_config(override(data, overrides), where=str(path))


def make_config(data: Mapping[str, Any], *, where: str = "run config") -> RunConfig:
    """Validate a nested mapping as a run config; every fault is named with its dotted field."""
    return make_settings(RunConfig, data, where=where)


def make_settings(model: type[AnySettings], data: Mapping[str, Any], *, where: str) -> AnySettings:
    """Validate a nested mapping as any of the classes above; every fault is named with its dotted field."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        faults = "; ".join(_fault(item, model) for item in error.errors())
        raise InputError(f"{where}: {faults}.") from error


def _fault(item: Any, model: type[BaseModel]) -> str:
    field = ".".join(str(part) for part in item["loc"]) or "config"
    if item["type"] == "extra_forbidden":
        return f"unknown setting '{field}'; known here: {', '.join(_siblings(item['loc'][:-1], model))}"
    message = item["msg"].removeprefix("Value error, ")
    return f"'{field}': {message}" + ("" if isinstance(item["input"], dict) else f" (given: {item['input']!r})")


def one_line(error: Exception) -> str:
    """The message of an error of another library, fit for one paragraph."""
    return " ".join(str(error).split())


def _siblings(loc: Iterable[str | int], root: type[BaseModel]) -> list[str]:
    model = _model_at([str(part) for part in loc if isinstance(part, str)], root)
    return sorted(model.model_fields) if model else []


def _model_at(parts: Sequence[str], root: type[BaseModel] | None = None) -> type[BaseModel] | None:
    model: type[BaseModel] = root or RunConfig
    for part in parts:
        field = model.model_fields.get(part)
        inner = _inner_model(field.annotation) if field else None
        if inner is None:
            return None
        model = inner
    return model


def _inner_model(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        if found := _inner_model(argument):
            return found
    return None


def check_path(path: str) -> None:
    """Raise unless `path` is a dotted field of `RunConfig` (`instruct.mix.english_share`)."""
    parts = path.split(".")
    model = _model_at(parts[:-1])
    if model is None or parts[-1] not in model.model_fields:
        known = flat_fields()
        raise InputError(f"'{path}' is not a field of the run config. The nearest fields are: {nearest(path, known)}.")


def numeric_type(path: str) -> type[int] | type[float] | None:
    """What a dotted field of `RunConfig` takes where that is one number (or None): `int` or `float`."""
    *parents, last = path.split(".")
    model = _model_at(parents)
    assert model is not None
    kinds = {kind for kind in _plain_types(model.model_fields[last].annotation) if kind is not NoneType}
    return int if kinds == {int} else float if kinds == {float} else None


def _plain_types(annotation: Any) -> Iterable[Any]:
    """The alternatives of an annotation, without what is said about them."""
    if get_origin(annotation) in (Union, UnionType):
        return [kind for part in get_args(annotation) for kind in _plain_types(part)]
    return _plain_types(get_args(annotation)[0]) if get_origin(annotation) is Annotated else [annotation]


def flat_fields(model: type[BaseModel] = RunConfig, prefix: str = "") -> list[str]:
    """Every dotted field of the run config."""
    names: list[str] = []
    for name, field in model.model_fields.items():
        inner = _inner_model(field.annotation)
        is_sequence = "tuple" in str(field.annotation)
        names += flat_fields(inner, f"{prefix}{name}.") if inner and not is_sequence else [prefix + name]
    return names


def override(data: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Apply `key=value` texts to a nested mapping; the value is read as YAML."""
    result = copy.deepcopy(dict(data))
    for text in overrides:
        key, sign, value = text.partition("=")
        if not sign:
            raise InputError(
                f"The override '{text}' is not of the form key=value, such as instruct.mix.english_share=0.25."
            )
        try:
            parsed = yaml.safe_load(value)
        except (yaml.YAMLError, ValueError) as error:
            raise InputError(f"The override '{text}': its value is not valid YAML: {one_line(error)}.") from error
        set_value(result, key.strip(), parsed)
    return result


def set_value(data: dict[str, Any], path: str, value: Any) -> None:
    """Set a dotted field in a nested mapping, in place."""
    check_path(path)
    *parents, last = path.split(".")
    for parent in parents:
        if not isinstance(data.get(parent), dict):
            data[parent] = {}
        data = data[parent]
    data[last] = value


def flatten(config: RunConfig) -> dict[str, Any]:
    """Dotted name -> value for every field, as recorded in MLflow; settings of an allocation only where it has them.
    Lists are kept as JSON text."""
    fields = flat(config.model_dump(mode="json"))
    return {key: json.dumps(value) if isinstance(value, list) else value for key, value in fields.items()}


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted key -> value for everything in nested mappings; an empty one has none."""
    if not isinstance(value, Mapping):
        return {prefix: value}
    found: dict[str, Any] = {}
    for key, inner in value.items():
        found |= flat(inner, f"{prefix}.{key}" if prefix else str(key))
    return found


def to_yaml(config: RunConfig) -> str:
    """The config as YAML that `load_config` reads back to an equal config."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def fingerprint(value: Any) -> str:
    """Twelve hex digits that identify a JSON-able value."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:12]
