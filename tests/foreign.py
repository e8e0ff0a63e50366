"""Writes a tiny model of ours in the layouts of Centurio: its release on the hub and the snapshots of its trainer.
`tiny_parts()` builds the backbones, whose families are those of Centurio's models, once per test session.
"""

from __future__ import annotations

import json
import tempfile
from collections import OrderedDict
from functools import cache
from pathlib import Path
from typing import Any

TOWER = "test_vit3"  # timm's own tiny one: six blocks of width 96 on 160 pixels, with the attention pool of SigLIP
LORA = "0-24250"


@cache
def tiny_parts() -> tuple[Path, Path]:
    """(folder of LLMs by family, folder of the tower)."""
    root = Path(tempfile.mkdtemp(prefix="lvlm-foreign-"))
    for family in ("qwen2", "phi3", "cohere"):
        make_family(root / family, family)
    make_timm_tower(root / "tower")
    return root, root / "tower"


def make_family(folder: Path, family: str, **changes: Any) -> Path:
    """A folder with a random LLM of a family (2 layers, width 32) and the tokenizer of the tests."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from tests.tiny import make_tokenizer

    tokenizer = make_tokenizer(folder)
    sizes = {
        "vocab_size": len(tokenizer) + 24, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 1024,
        "pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None,
        "initializer_range": 0.2, "tie_word_embeddings": family == "cohere",
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **sizes | changes))
    model.float().save_pretrained(folder)
    return folder


def make_timm_tower(folder: Path, architecture: str = TOWER, *, image_size: int = 160, **args: Any) -> Path:
    """A folder with a random timm tower, in full, as float32 safetensors."""
    import timm
    import torch
    from safetensors.torch import save_file

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        tower = timm.create_model(architecture, pretrained=False, num_classes=0, **args)
        for parameter in tower.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    folder.mkdir(parents=True, exist_ok=True)
    save_file({key: value.contiguous() for key, value in tower.state_dict().items()}, folder / "model.safetensors")
    description = {"timm": {"architecture": architecture, "args": args}, "image_size": image_size}
    pixels = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic"}
    (folder / "config.json").write_text(json.dumps(description | pixels), encoding="utf-8")
    return folder


def model_config(family: str = "qwen2", **changes: Any) -> Any:
    """The `ModelConfig` of Centurio on these backbones."""
    from lvlm.settings import ModelConfig

    llms, tower = tiny_parts()
    return ModelConfig(**{"llm": str(llms / family), "tower": str(tower), "tiles": 2, **changes})


def whole_tower(model: Any) -> dict[str, Any]:
    """The tensors of a model's tower under timm's keys; the blocks that ours leaves out come from its folder."""
    from safetensors.torch import load_file

    ours = {key.removeprefix("model."): value for key, value in model.vision_tower.state_dict().items()}
    return load_file(tiny_parts()[1] / "model.safetensors") | ours


def write_release(folder: Path, model: Any, processor: Any, **changes: Any) -> Path:
    """A model as Centurio's authors released theirs: plain keys, two shards; `changes` to `config.json`."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    state = {f"vision_tower.{key}": value for key, value in whole_tower(model).items()}
    state |= {key: value for key, value in model.state_dict().items() if not key.startswith("vision_tower.")}
    if model.config.text_config.tie_word_embeddings:
        state.pop("language_model.lm_head.weight")
    names = list(state)
    shards = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for shard, keys in shards.items():
        save_file({key: state[key].contiguous() for key in keys}, folder / shard, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {key: shard for shard, keys in shards.items() for key in keys}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    code = "modeling_centurio.CenturioForConditionalGeneration"
    config = {
        "architectures": ["CenturioForConditionalGeneration"], "model_type": "centurio",
        "auto_map": {"AutoConfig": "configuration_centurio.CenturioConfig", "AutoModelForCausalLM": code},
        "adapter_type": "multiscale-pool", "adapter_config": {"adapter_multi_scale": 2},
        "image_hidden_size": model.config.tower["width"], "ignore_index": -100,
        "image_token_index": processor.image_token_id, "timm_model": TOWER,
        "text_config": model.config.text_config.to_dict(), "transformers_version": "4.45.2",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config | changes), encoding="utf-8")
    stops = {"eos_token_id": processor.tokenizer.eos_token_id}
    (folder / "generation_config.json").write_text(json.dumps(stops), encoding="utf-8")
    template, processor.tokenizer.chat_template = processor.chat_template, None
    processor.tokenizer.save_pretrained(folder)
    processor.tokenizer.chat_template = template
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}), encoding="utf-8")
    (folder / "modeling_centurio.py").write_text("raise SystemExit('remote code was run')", encoding="utf-8")
    return folder


def write_snapshot(folder: Path, model: Any, *, deepspeed: bool, tower: bool = False, **extra: Any) -> Path:
    """The file of a snapshot with its LoRA folder beside it; `extra` goes into the pickle."""
    import torch

    from lvlm.model.lora import lora_config, lora_layers

    state = OrderedDict(
        (f"model.model.{key}", value)
        for key, value in model.state_dict().items()
        if key.startswith("multi_modal_projector.")
    )
    if tower:
        state |= {f"model.model.vision_tower.{key}": value for key, value in whole_tower(model).items()}
    llm = model.language_model
    lora = {f"base_model.model.{key}": value for key, value in llm.state_dict().items() if ".lora_" in key}
    optimised = len(state) + len(lora)
    if lora_layers(llm):
        write_lora(folder / LORA, lora, lora_config(llm))
    if not deepspeed:
        groups = [{"lr": 1e-4, "params": list(range(optimised))}]
        data = {
            "epoch": 0, "global_step": 24250, "pytorch-lightning_version": "2.1.3", "state_dict": state, "loops": {},
            "callbacks": {}, "optimizer_states": [{"state": {}, "param_groups": groups}], "lr_schedulers": [],
        }  # fmt: skip
        path = folder / f"{LORA}.ckpt"
    else:
        state |= {f"model.model.language_model.{key}": value for key, value in lora.items()}
        shapes = OrderedDict((key, value.shape) for key, value in state.items())
        data = {
            "module": state, "buffer_names": [], "optimizer": None, "param_shapes": [shapes],
            "frozen_param_shapes": None, "shared_params": {}, "lr_scheduler": None, "sparse_tensor_module_names": set(),
            "skipped_samples": 0, "global_steps": 24250, "global_samples": 776000, "dp_world_size": 4,
            "mp_world_size": 1, "ds_config": {"zero_optimization": {"stage": 2}}, "ds_version": "0.15.1",
        }  # fmt: skip
        path = folder / f"{LORA}.ckpt" / "checkpoint" / "mp_rank_00_model_states.pt"
        path.parent.mkdir(parents=True, exist_ok=True)
        (path.parents[1] / "latest").write_text("checkpoint")
    torch.save(data | extra, path)
    return path


def write_lora(folder: Path, lora: dict[str, Any], config: Any) -> None:
    """What `PeftModel.save_pretrained` writes, with the settings that peft 0.12 had."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    state = {key.replace(".default.", "."): value.contiguous() for key, value in lora.items()}
    save_file(state, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    modules = sorted({name.rpartition(".")[2] for name in config.target_modules})
    settings = {
        "alpha_pattern": {}, "auto_mapping": None, "base_model_name_or_path": "Qwen/Qwen2.5-7B-Instruct",
        "bias": "none", "fan_in_fan_out": False, "inference_mode": True, "init_lora_weights": True,
        "layer_replication": None, "layers_pattern": None, "layers_to_transform": None, "loftq_config": {},
        "lora_alpha": config.lora_alpha, "lora_dropout": config.lora_dropout, "megatron_config": None,
        "megatron_core": "megatron.core", "modules_to_save": None, "peft_type": "LORA", "r": config.r,
        "rank_pattern": {}, "revision": None, "target_modules": modules,
        "task_type": "CAUSAL_LM", "use_dora": False, "use_rslora": False,
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(settings), encoding="utf-8")
