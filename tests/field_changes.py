"""For every field of the run config what it is set to instead, and what must then differ; a second field is set where
the first needs it. `tests.test_every_field` goes through them."""

from __future__ import annotations

from typing import Any

Changes = dict[str, Any]


BY_PAIRS: Changes = {"mix.allocation": "pairs", "mix.pairs": 2}
IN_PAIRS: Changes = {
    "align.mix.parallel": 1.0,
    **{f"{name}.lora.dropout": 0.0 for name in ("align", "pretrain", "instruct")},
    "align.contrast.weight": 0.5,
}
OWN = ("lr", "weight_decay")
BY_SIZE: Changes = {"mix.allocation": "temperature", "mix.sizes": {"de": 8, "sw": 1}}


def of_stage(name: str) -> dict[str, tuple[str, Changes]]:
    def one(kind: str, field: str, value: Any, **others: Any) -> tuple[str, tuple[str, Changes]]:
        return f"{name}.{field}", (kind, {**{f"{name}.{k}": v for k, v in others.items()}, f"{name}.{field}": value})

    return dict([
        one("plan", "mix.corpora", "half"),
        one("plan", "mix.languages", ["en", "de"]),
        one("plan", "mix.english_share", 0.25),
        one("plan", "mix.allocation", "inverse_tier"),
        one("plan", "mix.share_of", "supervised_tokens"),
        one("plan", "mix.temperature", 5, **BY_SIZE),
        one("plan", "mix.sizes", {"de": 1, "sw": 8}, **(BY_SIZE | {"mix.temperature": 1})),
        one("plan", "mix.weights", {"de": 1, "sw": 8}, **{"mix.allocation": "weights"}),
        one("plan", "mix.pairs", 3, **BY_PAIRS),
        one("plan", "mix.pivot", "de", **(BY_PAIRS | {"mix.pairs": 2})),
        one("plan", "mix.parallel", 0.5),
        one("refused", "contrast.weight", 1.0, **{"mix.parallel": 1.0, "lora.dropout": 0.0}),
        one("refused", "contrast.temperature", 1.0),
        one("refused", "contrast.layer", 2),
        one("weights", "train.tower", "frozen"),
        one("weights", "train.adapter", "frozen"),
        one("weights", "train.llm", "full"),
        one("weights", "optim.lr", 5e-3),
        one("weights", "optim.adapter_lr", 1e-5),
        one("weights", "optim.tower_lr", 1e-5),
        one("weights", "optim.betas", [0.5, 0.9]),
        one("weights", "optim.weight_decay", 0.5),
        one("weights", "optim.adapter_weight_decay", 0.5),
        one("weights", "optim.tower_weight_decay", 0.5),
        one("weights", "optim.warmup", 1),
        one("weights", "optim.schedule", "constant"),
        one("weights", "optim.clip", 1e-4),
        one("plan", "batch_samples", 3),
        one("plan", "epochs", 0.25, steps=None),
        one("plan", "samples", 5, steps=None),
        one("plan", "steps", 1),
        one("weights", "reduction", "sample"),
        one("plan", "max_text_tokens", 60),
        one("validations", "validate_every", 1),
    ])  # fmt: skip


def of_all_stages(field: str, value: Any) -> dict[str, tuple[str, Changes]]:
    """A setting of the LoRA that goes through all stages."""
    changes = {f"{name}.{field}": value for name in ("align", "pretrain", "instruct")}
    return {name: ("weights", changes) for name in changes}


def of_align() -> dict[str, tuple[str, Changes]]:
    """Those of a stage, where parts that see images have none, and states may be compared."""
    changes = of_stage("align")
    parts = ("train.tower", "train.adapter", *(f"optim.{part}_{of}" for part in ("tower", "adapter") for of in OWN))
    changes |= {f"align.{field}": ("refused", {f"align.{field}": 0.1}) for field in parts}
    changes |= {f"align.train.{part}": ("refused", {f"align.train.{part}": "full"}) for part in ("tower", "adapter")}
    whole = {"lora.r": 16, "lora.alpha": 32.0, "lora.dropout": 0.0}  # as where there is none
    changes["align.train.llm"] = ("weights", {f"align.{k}": v for k, v in {"train.llm": "full", **whole}.items()})
    for field, value in {"weight": 1.0, "temperature": 1.0, "layer": 2}.items():
        changes[f"align.contrast.{field}"] = ("weights", IN_PAIRS | {f"align.contrast.{field}": value})
    return changes


FIELDS: dict[str, tuple[str, Changes]] = {
    "name": ("run: name", {"name": "other"}),
    "tags": ("run: tags", {"tags": ["one", "two"]}),
    "seed": ("weights", {"seed": 1}),
    "model.tower": ("model", {"model.tower": "another"}),
    "model.llm": ("model", {"model.llm": "another"}),
    "model.adapter": ("model", {"model.adapter": "mlp"}),
    "model.pool": ("model", {"model.adapter": "window-pool", "model.pool": 2}),
    "model.shuffle": ("model", {"model.adapter": "window-shuffle", "model.shuffle": 3}),
    "model.queries": ("model", {"model.adapter": "resampler", "model.queries": 5}),
    "model.tiles": ("model", {"model.tiles": 2}),
    "model.image_size": ("model", {"model.image_size": 40}),
    "model.template": ("model", {"model.template": "centurio"}),
    "model.fit": ("model", {"model.fit": "letterbox"}),
    "model.feature_layer": ("model", {"model.feature_layer": -1}),
    "model.attn": ("model", {"model.attn": "eager"}),
    "model.load_4bit": ("quantised", {"model.load_4bit": True}),
    "model.load_8bit": ("quantised", {"model.load_8bit": True}),
    "model.checkpoint": ("model", {"model.checkpoint": "saved"}),
    **of_align(),
    **of_stage("pretrain"),
    **of_stage("instruct"),
    **of_all_stages("lora.r", 2),
    **of_all_stages("lora.alpha", 16.0),
    **of_all_stages("lora.dropout", 0.5),
    "align.start_lora": ("refused", {"align.start_lora": "merge"}),
    "pretrain.start_lora": ("lora", {"pretrain.start_lora": "merge"}),
    "instruct.start_lora": ("lora", {"instruct.start_lora": "merge"}),
    "evaluate.corpora": ("answers", {"evaluate.corpora": "half"}),
    "evaluate.languages": ("answers", {"evaluate.languages": ["de"]}),
    "evaluate.tasks": ("answers", {"evaluate.tasks": ["vqa"]}),
    "evaluate.items": ("answers", {"evaluate.items": 1}),
    "evaluate.tune_corpora": ("answers", {"evaluate.tune_corpora": "half"}),
    "evaluate.tune_items": ("answers", {"evaluate.tune_items": 1}),
    "evaluate.max_new_tokens": ("answers", {"evaluate.max_new_tokens": 1}),
    "evaluate.name_language": ("answers", {"evaluate.name_language": True}),
    "evaluate.forced_tokens": ("answers", {"evaluate.forced_tokens": 1}),
    "evaluate.alignment": ("run: alignment", {"evaluate.alignment": "half"}),
    "evaluate.pivot": ("run: alignment", {"evaluate.alignment": "half", "evaluate.pivot": "de"}),
    "evaluate.detector": ("answers", {"evaluate.detector": "packaged"}),
    "compute.device": ("run: device", {"compute.device": "cuda"}),
    "compute.precision": ("run: precision", {"compute.precision": "bf16"}),
    "compute.threads": ("run: threads", {"compute.threads": 2}),
    "compute.micro_batch_tokens": ("run: passes", {"compute.micro_batch_tokens": 64}),
    "compute.packing": ("run: passes", {"compute.packing": True}),
    "compute.gradient_checkpointing": ("run: blocks", {"compute.gradient_checkpointing": True}),
    "compute.strategy": ("launched", {"compute.strategy": "ddp"}),
    "compute.loader_workers": ("run: workers", {"compute.loader_workers": 1}),
    "compute.feature_cache": ("run: features", {"compute.feature_cache": "on"}),
    "compute.feature_cache_gib": ("run: features", {"compute.feature_cache": "on", "compute.feature_cache_gib": 1e-6}),
    "compute.stage_cache_gib": ("run: stages", {"compute.stage_cache_gib": 1.0}),
    "compute.evaluate_batch": ("run: blocks", {"compute.evaluate_batch": 1}),
    "compute.checkpoint_every": ("run: checkpoints", {"compute.checkpoint_every": 1e-6}),
}
"""Field -> (what it changes, the changes). `run: ...`: what is seen of a run, whose results stay, as tests of their own
say. `refused`: a run cannot have it. `quantised`: without bitsandbytes the model is refused, with it another one.
`launched`: one process divides nothing, but is refused where it contradicts its launcher."""


NEEDS: dict[str, Changes] = {
    "model.pool": {"model.adapter": "window-pool", "model.pool": 1},
    "model.shuffle": {"model.adapter": "window-shuffle", "model.shuffle": 1},
    "model.queries": {"model.adapter": "resampler"},
    "compute.feature_cache_gib": {"compute.feature_cache": "on"},
    "evaluate.pivot": {"evaluate.alignment": "half"},
    **{f"align.contrast.{field}": IN_PAIRS for field in ("weight", "temperature", "layer")},
    **{
        f"{name}.mix.{field}": {f"{name}.{key}": value for key, value in changes.items()}
        for name in ("align", "pretrain", "instruct")
        for field, changes in {
            "temperature": {**BY_SIZE, "mix.temperature": 1},
            "sizes": {**BY_SIZE, "mix.temperature": 1},
            "weights": {"mix.allocation": "weights", "mix.weights": {"de": 8, "sw": 1}},
            "pairs": BY_PAIRS,
            "pivot": BY_PAIRS,
        }.items()
    },
}
"""What a field is compared with, where that is not the base config because it takes another field."""
