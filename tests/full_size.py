"""Models of full size on the `meta` device, which hold no numbers: the facts of the backbones' published configs, and a
model that a preset describes. Nothing is downloaded."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import timm
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from lvlm.model.assembly import saved_config
from lvlm.model.lvlm import Lvlm
from lvlm.model.tower import load_tower
from lvlm.settings import ModelConfig

LLMS: dict[str, dict[str, Any]] = {
    "microsoft/Phi-3.5-mini-instruct": {
        "model_type": "phi3", "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 32064, "tie_word_embeddings": False,
    },
    "Qwen/Qwen2.5-7B-Instruct": {
        "model_type": "qwen2", "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
        "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064, "tie_word_embeddings": False,
    },
    "CohereLabs/aya-expanse-8b": {
        "model_type": "cohere", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 256000, "tie_word_embeddings": True,
    },
    "01-ai/Yi-1.5-9B-Chat": {
        "model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 48,
        "num_attention_heads": 32, "num_key_value_heads": 4, "vocab_size": 64000, "tie_word_embeddings": False,
    },
}  # fmt: skip
"""Hub name -> what its config.json says about sizes."""


def full_size_model(config: ModelConfig) -> Lvlm:
    """The model that `config` describes, at full size and without storage."""
    create = timm.create_model

    def without_weights(name: str, *, pretrained: bool, **args: Any) -> Any:
        assert pretrained, "a run wants the tower's weights"
        return create(name, pretrained=False, **args)

    with torch.device("meta"), patch.object(timm, "create_model", without_weights):
        tower, description = load_tower(config.tower, feature_layer=config.feature_layer, image_size=config.image_size)
        text_config = AutoConfig.for_model(**LLMS[config.llm], pad_token_id=0)
        llm = AutoModelForCausalLM.from_config(text_config)
        described = saved_config(config, llm_config=text_config, tower=description)
        model = Lvlm(described, vision_tower=tower, language_model=llm)
    return model.to("meta")  # the adapter, which has storage to compute positions in
