"""The tokenizer of the tiny language models: byte-fallback BPE and a chat template. Called by `lvlm.backbones.lm`."""

from __future__ import annotations

import json
from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

VOCABULARY = 1500
PAD, USER, ASSISTANT, END, IMAGE = "<pad>", "<|user|>", "<|assistant|>", "<|end|>", "<image_placeholder>"
SPECIAL = (PAD, USER, ASSISTANT, END, IMAGE)
CHAT_TEMPLATE = (
    "{% set waiting = namespace(text='') %}{% for message in messages %}"  # a system text opens the next user turn
    "{% if message['role'] == 'system' %}{% set waiting.text = message['content'] ~ '\\n' %}"
    "{% elif message['role'] == 'user' %}<|user|>{{ waiting.text }}{{ message['content'] }}<|end|>"
    "{% set waiting.text = '' %}"
    "{% elif message['role'] == 'assistant' %}<|assistant|>"
    "{% generation %}{{ message['content'] }}<|end|>{% endgeneration %}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def train_tokenizer(texts: Iterable[str], *, vocabulary_size: int = VOCABULARY) -> PreTrainedTokenizerFast:
    """A BPE tokenizer whose merges follow `texts`; a character that they lack falls back to its UTF-8 bytes."""
    tokenizer = _bare(BPE())
    bytes_needed = [f"<0x{value:02X}>" for value in range(256)]
    trainer = BpeTrainer(
        vocab_size=vocabulary_size - len(bytes_needed), special_tokens=list(SPECIAL), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    learned = json.loads(tokenizer.to_str())["model"]
    vocabulary: dict[str, int] = dict(learned["vocab"])
    for token in bytes_needed:
        vocabulary.setdefault(token, len(vocabulary))
    merges = [tuple(merge) for merge in learned["merges"]]
    final = _bare(BPE(vocab=vocabulary, merges=merges, byte_fallback=True))
    final.add_special_tokens(list(SPECIAL))
    return PreTrainedTokenizerFast(
        tokenizer_object=final, pad_token=PAD, eos_token=END, chat_template=CHAT_TEMPLATE, padding_side="left",
        additional_special_tokens=[USER, ASSISTANT, IMAGE], clean_up_tokenization_spaces=False, model_max_length=1024,
    )  # fmt: skip


def _bare(model: BPE) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(prepend_scheme="always"),
            pre_tokenizers.Split(Regex(r"[\n:;(),.?!¿؟]"), "isolated"),
        ]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", left=1)]
    )
    return tokenizer
