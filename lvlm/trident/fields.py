"""Fields of the run config that follow from several overrides of a Centurio command line, from one another, or from its
experiment. Used by `lvlm.trident`."""

from __future__ import annotations

import os.path
import re
import shlex
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any

from lvlm.errors import InputError
from lvlm.trident.keys import ADAPTER, EAGER, FIXED, MODEL, TABLE, Benchmark
from lvlm.trident.line import Line

CHECKPOINT, LORA = MODEL + "train_checkpoint", MODEL + "lora_checkpoint"
TILES, ADAPTER_TILES = "run.multi_scale", ADAPTER + "multi_scale"


def fields(line: Line) -> dict[str, Any]:
    """Our dotted field -> its value, for all that a command line says and its experiment takes for granted."""
    stage = line.experiment.stage
    found = {name: value for name, (value, _) in FIXED.items()}
    for key in TABLE:
        if line.applies(key) and key.field != "--folder" and line.texts[key.name] is not None:
            found[key.field] = line[key.name]
    found |= {name: derive(line) for name, derive in (DERIVED | (TRAINED if stage else SCORED)).items()}
    return {name.format(stage=stage): value for name, value in found.items() if stage or "{stage}" not in name}


def _tiles(line: Line) -> int:
    """n of n x n tiles, where loading and adapter agree on it: they read it from overrides of different names."""
    loads, kind = line[TILES], line.texts[MODEL + "adapter_type"]
    named = ADAPTER_TILES if line[ADAPTER_TILES] is not None else "run.multiscale"
    expects = line[named]
    if kind == "mlp":
        line.unused |= dict.fromkeys((ADAPTER_TILES, "run.multiscale"), "the adapter mlp reads the global view alone")
        if loads == 1:
            return 1
        raise InputError(
            f"{TILES}={loads} cuts every image into {1 + loads**2} views and {MODEL}adapter_type=mlp expects one. Use "
            f"{MODEL}adapter_type=multiscale-pool ++{ADAPTER_TILES}={loads}, or leave {TILES} out."
        )
    if named == ADAPTER_TILES:
        line.unused["run.multiscale"] = f"{ADAPTER_TILES} is given, which it would stand in for"
    if loads != expects:
        told = {name: "given" if name in line.given else "its default" for name in (TILES, named)}
        raise InputError(
            f"{TILES} is {loads} ({told[TILES]}) and {named} is {expects} ({told[named]}), and they have to agree: "
            f"Centurio cuts images by the first, and by the second its adapter {kind} expects {1 + expects**2} views "
            f"of each, so that it would take those of other images for its own, or fail. Give both, as in "
            f"++{TILES}={expects} ++{ADAPTER_TILES}={expects}."
        )
    if loads == 1:
        raise InputError(
            f"{TILES}=1 gives one view of an image, and Centurio's adapter {kind} expects at least five. Use "
            f"{MODEL}adapter_type=mlp, or ++{TILES}=2 ++{ADAPTER_TILES}=2."
        )
    return int(loads)


def _pool_of(adapter: str) -> Callable[[Line], Any]:
    """The setting of its own that an adapter has, which Centurio calls `pool` for both."""

    def derive(line: Line) -> Any:
        kind = line[MODEL + "adapter_type"]
        if kind not in ("window-pool", "window-shuffle"):
            line.unused[ADAPTER + "pool"] = f"the adapter {kind} has no such setting"
        return line[ADAPTER + "pool"] if kind == adapter else None

    return derive


def _checkpoint(line: Line) -> str | None:
    """What training left: the trainable weights, with the LoRA folder beside them that Centurio names apart."""
    weights, lora = line[CHECKPOINT], line[LORA]
    if weights is None:
        if lora is not None or not line.experiment.stage:
            raise InputError(
                f"The command line lacks {CHECKPOINT}=..., which holds the adapter that was trained: the "
                "mp_rank_00_model_states.pt of a DeepSpeed run, or the .ckpt of a DDP run."
            )
        return None
    path = PurePosixPath(weights)
    saved = next((place for place in (path, *path.parents) if place.suffix == ".ckpt"), None)
    if saved is None:
        raise InputError(
            f"{CHECKPOINT}={weights} has no part such as 0-24250.ckpt, beside which the LoRA lies as 0-24250. Give the "
            "path as training left it."
        )
    beside = str(saved.with_suffix(""))
    if line[MODEL + "use_lora"] and lora is None:
        raise InputError(
            f"The command line lacks {LORA}=...: Centurio would draw a new LoRA, and model.checkpoint reads the one "
            f"beside the weights. Give {LORA}={beside}."
        )
    if lora is not None and (not line[MODEL + "use_lora"] or os.path.normpath(lora) != os.path.normpath(beside)):
        why = "is not read with use_lora=False" if not line[MODEL + "use_lora"] else f"does not belong to {weights}"
        raise InputError(
            f"{LORA}={lora} {why}; model.checkpoint reads weights and LoRA of one training, which lie side by side. "
            f"Give {LORA}={beside} and {MODEL}use_lora=True."
        )
    return str(weights)


def _attn(line: Line) -> str:
    if line[MODEL + "use_flash_attn"]:
        return "flash_attention_2"
    return "eager" if any(part in line["run.llm"].lower() for part in EAGER) else "sdpa"


def _strategy(line: Line) -> str:
    return line["trainer.strategy"] or ("zero2" if line.experiment.stage and line["trainer.devices"] > 1 else "auto")


def _training_corpora(line: Line) -> list[dict[str, Any]]:
    folder = line.need("run.train_data", "the folder of the data files")
    root = line["run.train_image_root"] or line.need("run.image_root", "the folder of the images")
    path = str(PurePosixPath(folder) / line["run.train_file"])
    line.notes += [
        f"{path} has its languages baked in. Rows without the field `language` all count as English in every table, "
        "and rows without `id` go by their place in the file; add the fields, or write a corpus folder, for counts by "
        "language and for a mix that can be varied.",
        f"Images are looked for under {root} alone; Centurio goes on to flickr30k/flickr_images and imagenet/train "
        "there. Give such images by their path from the folder.",
        "Samples come in an order drawn from the seed, not in that of the file. The loss averages over the tokens of "
        "a whole step, not over each micro-batch first, and the header of an answer is not trained on.",
        "Nothing is scored at the end: evaluate.corpora is empty.",
    ]
    return [{"path": path, "split": "train", "images": root}]


def _parts_llm(line: Line) -> str:
    return "lora" if line[MODEL + "use_lora"] else "frozen"


def _parts_tower(line: Line) -> str:
    return "frozen" if line[MODEL + "freeze_vit"] else "full"


def _lora(line: Line) -> dict[str, Any]:
    names = {"r": MODEL + "lora_r", "alpha": MODEL + "lora_alpha", "dropout": MODEL + "lora_dropout"}
    if line[MODEL + "use_lora"]:
        return {ours: line[theirs] for ours, theirs in names.items()}
    line.unused |= dict.fromkeys([*names.values(), "module.optimizer.lora_lr"], "use_lora is False")
    return {}


def _rate(line: Line) -> float:
    lora = line["module.optimizer.lora_lr"] if line[MODEL + "use_lora"] else None
    return float(line["module.optimizer.lr"] if lora is None else lora)


def _adapter_rate(line: Line) -> float | None:
    rate = line["module.optimizer.lr"]
    return None if rate == _rate(line) else float(rate)


def _of_tower(name: str) -> Callable[[Line], float | None]:
    def derive(line: Line) -> float | None:
        if not line[MODEL + "freeze_vit"]:
            return None if line[name] is None else float(line[name])
        line.unused[name] = "the tower is frozen"
        return None

    return derive


def _batch_samples(line: Line) -> int:
    return int(line["run.train_batch_size"] * line["trainer.devices"] * line["trainer.accumulate_grad_batches"])


def _validate_every(line: Line) -> float | None:
    """With a point Lightning reads a share of an epoch, without one a number of micro-batches."""
    name, stage = "trainer.val_check_interval", line.experiment.stage
    text, accumulated = line[name], line["trainer.accumulate_grad_batches"]
    try:
        batches = int(text) if re.fullmatch(r"\d+", text) else None
        every = float(text) / line["trainer.max_epochs"] if batches is None else batches / accumulated
    except (ValueError, ZeroDivisionError) as error:
        raise InputError(f"{name}={text} cannot be read; give a share such as 0.25, or a whole number.") from error
    if batches is None and every >= 1:
        line.unused[name] = "the evaluation at the end stands for it"
        return None
    if batches is not None and batches % accumulated:
        raise InputError(
            f"{name}={text} micro-batches are {every:.2f} steps of {accumulated}, and validation comes between steps. "
            "Give a multiple."
        )
    line.notes.append(
        f"{name}: the files that Centurio validates on are named in its YAML. {stage}.validate_every needs "
        "evaluate.tune_corpora, a corpus folder with a split of permission `tune`; until you name one, the command "
        "above leaves validation out, which changes nothing in training."
    )
    return float(every)


def _scored_corpora(line: Line) -> list[dict[str, Any]]:
    benchmark = _benchmark(line)
    folder = str(PurePosixPath(line.need("run.train_data", "the folder of the data files")) / benchmark.folder)
    if benchmark.beside is not None and line[benchmark.images] is None and line["run.image_root"] is not None:
        root = str(PurePosixPath(line["run.image_root"]) / benchmark.beside)
    else:
        root = line.need(benchmark.images, "the folder of the images")
        line.unused["run.image_root"] = f"{benchmark.images} says where the images lie"
    for key in TABLE:
        if key.name.endswith("_image_root") and key.name != benchmark.images:
            line.unused[key.name] = "another benchmark's images"
    corpus, first = f"runs/data/{benchmark.name}", f" --first {benchmark.first}" if benchmark.first else ""
    command = f"benchmark {benchmark.name} {shlex.quote(folder)} {corpus} --images {shlex.quote(root)}{first}"
    line.notes.append(f"{corpus} is a corpus that this writes: python -m lvlm {command}")
    if benchmark.differs:
        line.notes.append(f"{benchmark.name}: {benchmark.differs}.")
    return [{"path": corpus, "split": "test", "images": root}]


def _benchmark(line: Line) -> Benchmark:
    assert line.experiment.benchmark is not None
    return line.experiment.benchmark


Derive = Callable[[Line], Any]
DERIVED: dict[str, Derive] = {
    "model.tiles": _tiles,
    "model.pool": _pool_of("window-pool"),
    "model.shuffle": _pool_of("window-shuffle"),
    "model.checkpoint": _checkpoint,
    "model.attn": _attn,
    "compute.strategy": _strategy,
}
TRAINED: dict[str, Derive] = {
    "{stage}.mix.corpora": _training_corpora,
    "{stage}.train.llm": _parts_llm,
    "{stage}.train.tower": _parts_tower,
    "{stage}.lora": _lora,
    "{stage}.optim.lr": _rate,
    "{stage}.optim.adapter_lr": _adapter_rate,
    "{stage}.optim.tower_lr": _of_tower("module.optimizer.vit_lr"),
    "{stage}.optim.tower_weight_decay": _of_tower("module.optimizer.vit_weight_decay"),
    "{stage}.batch_samples": _batch_samples,
    "{stage}.validate_every": _validate_every,
}
SCORED: dict[str, Derive] = {
    "evaluate.corpora": _scored_corpora,
    "evaluate.tasks": lambda line: _benchmark(line).tasks,
    "evaluate.max_new_tokens": lambda line: _benchmark(line).max_new_tokens,
}
"""Our field -> how it follows from several overrides, from one another or from the experiment; of the stages alone, and
of evaluations alone. Every other field takes the value of its override."""
