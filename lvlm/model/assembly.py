"""The model that a run starts from: a tower, an LLM and a freshly drawn adapter, or a checkpoint. Called through
`Lvlm.assemble`."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from lvlm.errors import InputError
from lvlm.model.adapters import initialise_adapter
from lvlm.model.attention import check_attention, check_family
from lvlm.model.backbones import resolve
from lvlm.model.chat import IMAGE_PLACEHOLDER
from lvlm.model.checkpoints import load
from lvlm.model.config import LvlmConfig
from lvlm.model.keys import refuse
from lvlm.model.lvlm import Lvlm
from lvlm.model.processor import LvlmProcessor
from lvlm.model.templates import Template
from lvlm.model.tokenizer import chosen_template, llm_named, load_tokenizer
from lvlm.model.tower import load_tower
from lvlm.model.weights import check_quantisation, halve, matrices, quantise
from lvlm.settings import ModelConfig


def assemble(model_config: ModelConfig, *, seed: int, precision: str = "fp32") -> tuple[Lvlm, LvlmProcessor]:
    """(model, processor); see `Lvlm.assemble`. The global random state stays as it was."""
    check_attention(model_config.attn, precision=precision)
    check_quantisation(model_config.bits)
    with torch.random.fork_rng(devices=[]):
        return _assemble(model_config, seed=seed, precision=precision)


def _assemble(model_config: ModelConfig, *, seed: int, precision: str) -> tuple[Lvlm, LvlmProcessor]:
    if model_config.checkpoint is not None:
        return load(model_config.checkpoint, model=model_config, seed=seed, precision=precision)
    tower, description = load_tower(
        resolve(model_config.tower, seed=seed),
        feature_layer=model_config.feature_layer,
        image_size=model_config.image_size,
    )
    source = resolve(model_config.llm, seed=seed)
    llm, tokenizer = load_llm(source, attn=model_config.attn, precision=precision)
    config = saved_config(model_config, llm_config=llm.config, tower=description)
    config.image_token_id = tokenizer.convert_tokens_to_ids(IMAGE_PLACEHOLDER)
    config._attn_implementation = model_config.attn
    model = Lvlm(config, vision_tower=tower, language_model=llm)
    initialise_adapter(model.multi_modal_projector.adapter, vision_width=description["width"], seed=seed)
    processor = make_processor(config, tokenizer, template=chosen_template(model_config, llm.config))
    check_head(model, precision=precision)
    set_generation(model, processor)
    tower.attend(model_config.attn)
    with llm_named(source):
        llm.set_attn_implementation(model_config.attn)
    hold(model, precision=precision)
    if model_config.bits:
        quantise(llm, model_config.bits)
    return model.eval(), processor


def saved_config(model_config: ModelConfig, *, llm_config: Any, tower: dict[str, Any]) -> LvlmConfig:
    """What a model of these settings keeps of them, beside its LLM's config and its tower's description."""
    return LvlmConfig(
        text_config=llm_config,
        tower=tower,
        adapter=model_config.adapter,
        adapter_args=model_config.adapter_args or None,
        tiles=model_config.tiles,
        fit=model_config.fit,
        feature_layer=model_config.feature_layer,
    )


def hold(model: Lvlm, *, precision: str) -> None:
    """Hold the weights in float32, in place; for `precision` `bf16` the matrices of a tower or LLM whose files have
    them in 16 bits in bfloat16. Blocks in float32 are not rounded, since they may have learned and may go on to; what a
    stage freezes is halved where that is prepared."""
    named = {"llm": model.language_model, "tower": model.vision_tower} if precision == "bf16" else {}
    head = model.get_output_embeddings().weight  # which `load_llm` has put into float32
    named = {
        name: part for name, part in named.items() if all(w.itemsize == 2 for w in matrices(part) if w is not head)
    }
    halved = {id(weight) for part in named.values() for weight in matrices(part)}
    for parameter in model.parameters():
        if parameter.is_floating_point() and id(parameter) not in halved:
            parameter.data = parameter.data.float()
    for part in named.values():
        halve(part)
    model.config.halved = list(named) or None


def load_llm(source: str, *, attn: str, precision: str) -> tuple[Any, Any]:
    """(causal LM, tokenizer) whose vocabulary has the image placeholder, in float32; for `precision` `bf16` its
    matrices stay in the type they are stored in. It computes attention eagerly, which it can anywhere. A missing,
    surplus or misshapen tensor is an `InputError` that lists it."""
    tokenizer = load_tokenizer(source)
    with llm_named(source):
        check_family(attn, AutoConfig.from_pretrained(source, trust_remote_code=False))
        dtype = "auto" if precision == "bf16" else torch.float32
        llm, info = AutoModelForCausalLM.from_pretrained(
            source,
            dtype=dtype,
            attn_implementation="eager",
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # so that all faults come back together and are refused below
            output_loading_info=True,
            trust_remote_code=False,
        )
    refuse(source, missing=info["missing_keys"], surplus=info["unexpected_keys"], shapes=info["mismatched_keys"])
    stay = {id(weight) for weight in matrices(llm)} - {id(llm.get_output_embeddings().weight)}
    for parameter in llm.parameters():
        if id(parameter) not in stay:
            parameter.data = parameter.data.float()
    llm.config.dtype = torch.float32
    _make_room(llm, len(tokenizer))
    return llm, tokenizer


def _make_room(llm: Any, vocabulary: int) -> None:
    """Add rows to the embeddings for `vocabulary` tokens, where none are spare."""
    rows = llm.get_input_embeddings().num_embeddings
    if vocabulary <= rows:
        return
    llm.resize_token_embeddings(vocabulary, mean_resizing=False)
    # New rows start at the mean of the old ones: a random row would be a token that no training has ever pushed down.
    for layer in (llm.get_input_embeddings(), llm.get_output_embeddings()):
        _fill_with_mean(layer, rows)


@torch.no_grad()
def _fill_with_mean(layer: nn.Module, rows: int) -> None:
    weight: Any = layer.weight
    weight[rows:] = weight[:rows].mean(dim=0)


def write_as(
    model_config: ModelConfig, config: LvlmConfig, processor: LvlmProcessor, *, model: Lvlm | None = None
) -> LvlmProcessor:
    """A saved processor with the template that a model config asks for; `model` then stops where that ends."""
    template = chosen_template(model_config, config.text_config)
    if template is None:
        return processor
    processor = make_processor(config, processor.tokenizer, template=template)
    if model is not None:
        set_generation(model, processor)
    return processor


def make_processor(config: LvlmConfig, tokenizer: Any, *, template: Template | None = None) -> LvlmProcessor:
    """The processor that fits a model config; conversations are written by `template`, or by the tokenizer's own."""
    transform = config.image_transform
    assert config.image_tokens is not None
    return LvlmProcessor(
        tokenizer,
        **_written_by(template),
        image_size=transform.image_size,
        mean=transform.mean,
        std=transform.std,
        interpolation=transform.interpolation,
        tiles=transform.tiles,
        fit=transform.fit,
        image_tokens=config.image_tokens,
    )


@torch.no_grad()
def check_head(model: Lvlm, *, precision: str) -> None:
    """The training loss applies the head to hidden states itself; an LLM family that does more than that must not pass
    unseen."""
    ids = torch.tensor([[0, 1]])
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        expected = model.language_model(input_ids=ids).logits
        found = model.logits(model.hidden_states({"input_ids": ids}))
    if not torch.allclose(found, expected, rtol=1e-4, atol=1e-4):
        raise InputError(
            f"The language model {type(model.language_model).__name__} computes its logits in a way that is not "
            "known here (more than a linear head, a scale and a cap). Use another model."
        )


def set_generation(model: Lvlm, processor: LvlmProcessor) -> None:
    """Greedy, stops at the end of turn, never writes an image placeholder."""
    settings = model.generation_config
    known = model.language_model.generation_config.eos_token_id
    ends = {processor.chat.end_of_turn_ids()[-1], *([known] if isinstance(known, int) else known or [])}
    settings.eos_token_id = sorted(ends)
    settings.pad_token_id = processor.pad_token_id
    settings.bos_token_id = processor.tokenizer.bos_token_id
    settings.suppress_tokens = [model.config.image_token_id]
    settings.do_sample = False


def _written_by(template: Template | None) -> dict[str, str]:
    """What a processor is told about a template."""
    if template is None:
        return {}
    return {"chat_template": template.jinja(), "image_separator": template.separator}
