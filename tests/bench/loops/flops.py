"""How many floating-point operations training on some samples needs, from the configs alone. Used by `gpu.py`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

FORWARD, TO_INPUTS, TO_WEIGHTS = 2, 2, 2
"""Operations for each weight and token: a multiply-add is two, and each gradient costs what the forward pass does."""
CAUSAL = 0.5
"""Share of the token pairs of a sample of which one may see the other."""


@dataclass(frozen=True)
class Work:
    """Floating-point operations by part."""

    tower: float
    adapter: float
    llm: float

    @property
    def total(self) -> float:
        return self.tower + self.adapter + self.llm


def needed_work(
    text: Any,
    vision: Any,
    *,
    rank: int,
    lengths: Sequence[int],
    supervised: int,
    images: int,
    image_tokens: int,
    pairs: float = CAUSAL,
) -> Work:
    """What one pass over samples of these `lengths` (tokens, those of images included, no padding) needs where the
    tower is frozen, the adapter `mlp` learns in full, and the LLM through LoRA of `rank` on each of its matrices.

    With w, m, n, b, p of the tower (width, MLP width, tokens, blocks up to the one that is read, patch side), h of the
    LLM, T tokens, S supervised ones and V words:

    - tower, forward only: images x (2 n 3 p^2 w + b (2 n (4 w^2 + 2 w m) + 4 n^2 w));
    - adapter: image tokens x ((2 + 2) w h + (2 + 2 + 2) h^2): nobody asks for the gradient of the features;
    - LLM: (2 + 2) T for each frozen weight (forward and gradient of the inputs, none of the weight), (2 + 2 + 2) T for
      each weight of LoRA, 3 x 4 x L^2 x heads x head width a layer and sample for attention, times the share of `pairs`
      that attend, and (2 + 2) S h V for the head, at supervised positions alone.

    Norms, activations and what is computed a second time (checkpointing) do not count. `text` is a config with the
    fields of Qwen 2, `vision` one of SigLIP's tower as stock LLaVA has it, which has one block more than is read.
    """
    w, m, p = vision.hidden_size, vision.intermediate_size, vision.patch_size
    n, blocks = (vision.image_size // p) ** 2, vision.num_hidden_layers - 1
    view = FORWARD * n * 3 * p**2 * w + blocks * (FORWARD * n * (4 * w**2 + 2 * w * m) + 2 * FORWARD * n**2 * w)

    h, heads = text.hidden_size, text.num_attention_heads
    head_width = getattr(text, "head_dim", None) or h // heads
    d, kv, inner = heads * head_width, text.num_key_value_heads * head_width, text.intermediate_size
    matrices = [(h, d), (h, kv), (h, kv), (d, h), (h, inner), (h, inner), (inner, h)]
    frozen = text.num_hidden_layers * sum(a * b for a, b in matrices)
    lora = text.num_hidden_layers * rank * sum(a + b for a, b in matrices)
    attention = text.num_hidden_layers * 3 * 2 * FORWARD * d * pairs * sum(length**2 for length in lengths)
    learning = FORWARD + TO_INPUTS + TO_WEIGHTS
    return Work(
        tower=images * view,
        adapter=images * image_tokens * ((FORWARD + TO_WEIGHTS) * w * h + learning * h**2),
        llm=sum(lengths) * ((FORWARD + TO_INPUTS) * frozen + learning * lora)
        + attention
        + supervised * (FORWARD + TO_INPUTS) * h * text.vocab_size,
    )
