"""A model as stock LLaVA of transformers, which vLLM, SGLang and others serve. Called by `lvlm.model.export`."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import CLIPImageProcessor, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor

from lvlm.errors import InputError
from lvlm.model.chat import IMAGE_PLACEHOLDER
from lvlm.model.lora import split_state
from lvlm.model.stock import StockTower, stock_tower
from lvlm.model.tiling import INTERPOLATIONS

if TYPE_CHECKING:
    from lvlm.model.lvlm import Lvlm
    from lvlm.model.processor import LvlmProcessor

VISION, PROJECTOR, LLM, HEAD = (
    "model.vision_tower.",
    "model.multi_modal_projector.",
    "model.language_model.",
    "lm_head.",
)
FLATTEN = """\
{%- set flat = namespace(messages=[]) -%}
{%- for message in messages -%}
{%- if message['content'] is string -%}
{%- set flat.messages = flat.messages + [message] -%}
{%- else -%}
{%- set text = namespace(value='') -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' -%}
{%- set text.value = text.value + IMAGE -%}
{%- else -%}
{%- set text.value = text.value + part['text'] -%}
{%- endif -%}
{%- endfor -%}
{%- set flat.messages = flat.messages + [dict(message, content=text.value)] -%}
{%- endif -%}
{%- endfor -%}
{%- set messages = flat.messages -%}
"""
"""What stands before a chat template, so that contents may be lists of texts and images, as for our processor."""


def llava_processor(model: Lvlm, processor: LvlmProcessor) -> LlavaProcessor:
    """The stock processor that makes the same ids and, with torchvision as its backend, the same pixels."""
    tower, transform = _stock(model), processor.image_transform
    side = {"height": transform.image_size, "width": transform.image_size}
    images = CLIPImageProcessor(
        size=side,
        crop_size=side,
        do_center_crop=False,
        resample=int(INTERPOLATIONS[transform.interpolation]),
        image_mean=list(transform.mean),
        image_std=list(transform.std),
    )
    tokenizer = _written_bos_only(processor)
    image = f"{IMAGE_PLACEHOLDER}{processor.image_separator}"
    tokenizer.chat_template = FLATTEN.replace("IMAGE", repr(image)) + processor.chat_template
    return LlavaProcessor(
        images,
        tokenizer,
        patch_size=tower.config.patch_size,
        vision_feature_select_strategy=_strategy(tower),
        chat_template=tokenizer.chat_template,
        image_token=IMAGE_PLACEHOLDER,
        num_additional_image_tokens=tower.prefix,
    )


def to_llava(model: Lvlm, *, dtype: torch.dtype) -> LlavaForConditionalGeneration:
    """The stock model with this one's weights, LoRA merged; an `InputError` with the reason if there is none.

    In `dtype`, or in float32 where that would round any of them: sums and products of weights in 16 bits need more.

    It may be saved, not run: what is computed at start and not saved is not there.
    """
    tower = _stock(model)
    text_config, scale = _text_config(model)
    llm: Any = model.language_model
    inner, _ = split_state(llm.base_model, merged=True)
    head = model.get_output_embeddings().weight
    tied = bool(text_config.tie_word_embeddings) and scale == 1 and "embed_tokens.weight" in inner
    text_config.tie_word_embeddings = tied
    config = LlavaConfig(
        vision_config=tower.config,
        text_config=text_config,
        image_token_index=model.config.image_token_id,
        image_seq_length=model.config.image_tokens,
        vision_feature_layer=-2,
        vision_feature_select_strategy=_strategy(tower),
        projector_hidden_act="gelu",
        tie_word_embeddings=tied,
    )
    with torch.device("meta"):
        llava = LlavaForConditionalGeneration(config)
    projector = model.multi_modal_projector.adapter.state_dict()
    state: dict[str, Tensor] = {VISION + key: value for key, value in tower.state.items()}
    state |= {PROJECTOR + key: value for key, value in projector.items()}
    state |= {LLM + key: value for key, value in inner.items()}
    state[f"{HEAD}weight"] = inner["embed_tokens.weight"] if tied else head.float() * scale
    for key, value in llava.state_dict().items():
        if key.startswith(VISION) and key not in state:  # the block, norm and pooler that nobody reads
            state[key] = torch.zeros(value.shape, dtype=model.dtype)
    llava.load_state_dict({key: value.detach() for key, value in state.items()}, assign=True)
    llava.tie_weights()
    llava.generation_config = copy.deepcopy(model.generation_config)
    exact = all(torch.equal(value.to(dtype).to(value.dtype), value) for value in llava.state_dict().values())
    return llava.to(dtype if exact else torch.float32)


def _stock(model: Lvlm) -> StockTower:
    """The tower in stock form, if the rest of the model has one."""
    config = model.config
    if config.adapter not in ("mlp", "multiscale-pool") or config.tiles != 1:
        raise InputError(
            f"Stock LLaVA has one adapter, two linear layers on one view of an image; this model has "
            f"'{config.adapter}' with tiles={config.tiles}. Export without `--as llava`."
        )
    if config.fit != "squash":
        raise InputError(
            f"The image processor of stock LLaVA squashes an image to a square; this model was trained with "
            f"fit={config.fit}. Export without `--as llava`."
        )
    layers: int | None = getattr(getattr(model.vision_tower.model, "config", None), "num_hidden_layers", None)
    layer = config.feature_layer
    depth = 0 if layers is None else (layers + layer if layer < 0 else layer) + 1
    return stock_tower(model.vision_tower, image_size=config.tower["image_size"], depth=depth)


def _strategy(tower: StockTower) -> str:
    return "default" if tower.prefix else "full"


def _text_config(model: Lvlm) -> tuple[Any, float]:
    """The LLM's config, and what its head is multiplied with: stock LLaVA has the head alone, so that a scale of the
    logits goes into its weight and leaves the config."""
    config: Any = copy.deepcopy(model.config.text_config)
    if getattr(config, "final_logit_softcapping", None) is not None:
        raise InputError(
            f"Stock LLaVA does not cap logits as '{config.model_type}' does (final_logit_softcapping="
            f"{config.final_logit_softcapping}). Export without `--as llava`."
        )
    if model.get_output_embeddings().bias is not None:
        raise InputError("Stock LLaVA's head has no bias, and this LLM's has one. Export without `--as llava`.")
    scale = 1.0
    if getattr(config, "logit_scale", None) is not None:
        scale, config.logit_scale = scale * config.logit_scale, 1.0
    if getattr(config, "logits_scaling", None) is not None:
        scale, config.logits_scaling = scale / config.logits_scaling, 1.0
    return config, scale


def _written_bos_only(processor: LvlmProcessor) -> Any:
    """A copy of the tokenizer that leaves BOS to the template, if that writes it: a stock processor would else put a
    second one before a rendered conversation."""
    tokenizer = copy.deepcopy(processor.tokenizer)
    rendered = processor.apply_chat_template([{"role": "user", "content": "x"}])
    if processor.chat.begin is not None and rendered.startswith(tokenizer.bos_token):
        if hasattr(tokenizer, "add_bos_token"):
            tokenizer.add_bos_token = False
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="$A", pair="$A $B", special_tokens=[])
    return tokenizer
