"""Tiny random instances of the five LLM families of the papers, of the classes that the large ones have, each with a
tokenizer that has its control tokens. Used by the tests of models and templates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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


def tiny_config(family: str, **changes: Any) -> Any:
    """The config of a two-layer LLM of a family."""
    from transformers import AutoConfig

    return AutoConfig.for_model(family, **{"vocab_size": 40, **SIZES, **OWN.get(family, {}), **changes})


def tokenizer_of(family: str, *, placeholder: bool = False) -> Any:
    """A small byte-level tokenizer with the family's control tokens, its BOS put before every text as the large one
    does, and Centurio's template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    from lvlm.model.chat import IMAGE_PLACEHOLDER
    from lvlm.model.templates import CENTURIO

    controls = CONTROLS[family]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<pad>", *controls, *([IMAGE_PLACEHOLDER] if placeholder else [])]
    special += ["<|endoftext|>"] if family == "qwen2" else []  # which transformers' class for Qwen adds if it lacks
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["Was ist das? Ein Kreis."], trainer)
    bos = None if family == "qwen2" else controls[0]
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token=bos,
        eos_token=controls[-1],
        extra_special_tokens=special[1:],
    )
    fast.chat_template = CENTURIO[family].jinja()
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
