"""The tiny LM with a larger vocabulary, as a folder. Used by the benches beside this folder."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lvlm.model.backbones import resolve, tokenizer_source


def write_llm(folder: Path, vocabulary: int) -> Path:
    """The first draw of the tiny LM, its embeddings filled up with random rows to `vocabulary`."""
    source = resolve("tiny-lm/0", seed=0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
        model.resize_token_embeddings(vocabulary)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tokenizer_source(source)).save_pretrained(folder)
    return folder
