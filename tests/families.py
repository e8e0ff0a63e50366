"""Tiny random instances of the five LLM families of the papers, of the classes that the large ones have, each with a
tokenizer that has its control tokens. Used by the tests of models and templates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.tiny import begin_with, byte_level

CONTROLS = {
    "qwen2": ("<|im_start|>", "<|im_end|>"),
    "phi3": ("<s>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
    "llama": ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    "gemma2": ("<bos>", "<start_of_turn>", "<end_of_turn>"),
    "cohere": (
        "<BOS_TOKEN>", "<|START_OF_TURN_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>", "<|END_OF_TURN_TOKEN|>",
    ),
}  # fmt: skip
"""Model type -> its control tokens; the first is the BOS, but Qwen has none, and the last ends a turn."""
SPARE_ROWS = {"qwen2": 5, "phi3": 3, "llama": 0, "gemma2": 0, "cohere": 4}
"""Rows of the embeddings beyond the tokenizer's vocabulary: Llama 3 and Gemma 2 have none."""
TIED = {"gemma2", "cohere"}
SIZES = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
OWN = {
    "gemma2": {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 4.0, "query_pre_attn_scalar": 8},
    "cohere": {"logit_scale": 0.5},
}


ALTERNATE = (
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate') }}{% endif %}"
)
TEMPLATES = {
    "qwen2": (
        "{% if messages[0]['role'] == 'system' %}{{ '<|im_start|>system\n' + messages[0]['content'] + '<|im_end|>\n' }}"
        "{% else %}{{ '<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant."
        "<|im_end|>\n' }}{% endif %}{% for m in messages %}{% if m['role'] != 'system' or not loop.first %}"
        "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "phi3": (
        "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
    ),
    "llama": (
        "{% for m in messages %}{% set text = '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' "
        "+ m['content'] | trim + '<|eot_id|>' %}{% if loop.first %}{% set text = bos_token + text %}{% endif %}"
        "{{ text }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
    ),
    "gemma2": (
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
        "{% endif %}{% for m in messages %}" + ALTERNATE + "{% set role = 'model' if m['role'] == 'assistant' else "
        "m['role'] %}{{ '<start_of_turn>' + role + '\n' + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
    ),
    "cohere": (
        "{{ bos_token }}{% for m in messages %}" + ALTERNATE + "{% set role = '<|USER_TOKEN|>' if m['role'] == 'user' "
        "else '<|CHATBOT_TOKEN|>' %}{{ '<|START_OF_TURN_TOKEN|>' + role + m['content'].strip() "
        "+ '<|END_OF_TURN_TOKEN|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' }}{% endif %}"
    ),
}
"""Model type -> what its makers' own template writes, without its tools."""


def tiny_config(family: str, **changes: Any) -> Any:
    """The config of a two-layer LLM of a family."""
    from transformers import AutoConfig

    return AutoConfig.for_model(family, **{"vocab_size": 40, **SIZES, **OWN.get(family, {}), **changes})


def tokenizer_of(family: str, *, placeholder: bool = False, own: bool = False) -> Any:
    """A small byte-level tokenizer with the family's control tokens, its BOS put before every text as the large one
    does, and Centurio's template or the family's `own`."""
    from transformers import PreTrainedTokenizerFast

    from lvlm.model.chat import IMAGE_PLACEHOLDER
    from lvlm.model.templates import CENTURIO

    controls = CONTROLS[family]
    special = ["<pad>", *controls, *([IMAGE_PLACEHOLDER] if placeholder else [])]
    special += ["<|endoftext|>"] if family == "qwen2" else []  # which transformers' class for Qwen adds if it lacks
    fast = PreTrainedTokenizerFast(
        tokenizer_object=byte_level(["Was ist das? Ein Kreis."], special, vocabulary=300),
        pad_token="<pad>",
        eos_token=controls[-1],
        extra_special_tokens=special[1:],
    )
    if family != "qwen2":
        begin_with(fast, controls[0])
    fast.chat_template = TEMPLATES[family] if own else CENTURIO[family].jinja()
    return fast


def make_family(folder: Path, family: str) -> Path:
    """A folder with a random LLM of a family in half precision and its tokenizer, which lacks the image placeholder."""
    import torch
    from transformers import AutoModelForCausalLM

    tokenizer = tokenizer_of(family)
    config = tiny_config(
        family,
        vocab_size=len(tokenizer) + SPARE_ROWS[family],
        tie_word_embeddings=family in TIED,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        initializer_range=0.3,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def attention_of(family: str) -> str:
    """What `model.attn` a family computes with on a CPU."""
    return "eager" if family == "gemma2" else "sdpa"
