"""The hidden states of a language model on text, layer by layer. Used by `lvlm.train` for the contrastive term and by
`lvlm.evaluate.alignment`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def text_states(llm: Any, batch: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """(batch, tokens, hidden) of the embeddings, of every block and, last, before the head of a causal LM.

    `batch` has `input_ids`, padded on the right if at all, and `position_ids` where samples lie end to end.
    """
    outputs = llm.base_model(**batch, use_cache=False, output_hidden_states=True)
    return (*outputs.hidden_states[:-1], outputs[0])
