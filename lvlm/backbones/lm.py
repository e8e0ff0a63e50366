"""Trains the tiny multilingual language models on text alone. Called by `python -m lvlm backbones`."""

from __future__ import annotations

import math
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from lvlm.backbones.text import Turns
from lvlm.backbones.tokenizer import ASSISTANT, END, USER

IGNORED_WEIGHT = 0.03  # loss weight of tokens that are not an answer: reading the prompt is worth a little


class TextSource(Protocol):
    """What a language model reads: `TextWorld`, `EmojiText`."""

    def documents(self, rng: np.random.Generator, *, count: int) -> Iterator[tuple[str, Turns]]:
        """Yield `count` documents as (language of the requests, turns)."""


@dataclass(frozen=True)
class LmRecipe:
    """Sizes and hyper-parameters, the same for every draw."""

    documents: int = 100_000
    batch: int = 16
    lr: float = 1.5e-3  # AdamW: embeddings and norms
    matrix_lr: float = 8e-3  # Muon: the matrices of the layers
    warmup_steps: int = 200
    hidden: int = 128
    layers: int = 4
    heads: int = 4
    feed_forward: int = 384
    initializer_range: float = 0.08


@dataclass(frozen=True)
class Document:
    """Token ids and the loss weight of each as a target."""

    ids: np.ndarray
    weights: np.ndarray


def new_model(tokenizer: PreTrainedTokenizerFast, *, recipe: LmRecipe, seed: int) -> Qwen2ForCausalLM:
    """A Qwen2 model with random weights.

    Keys start as queries, so that equal words attend to each other from the first step.
    """
    torch.manual_seed(stream(seed, "init"))
    config = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=recipe.hidden, num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads, num_key_value_heads=recipe.heads, intermediate_size=recipe.feed_forward,
        initializer_range=recipe.initializer_range, tie_word_embeddings=True, max_position_embeddings=1024,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id, bos_token_id=None,
    )  # fmt: skip
    model = Qwen2ForCausalLM(config)
    for layer in model.model.layers:
        layer.self_attn.k_proj.load_state_dict(layer.self_attn.q_proj.state_dict())
    return model


def stream(seed: int, purpose: str) -> int:
    """An independent integer seed for one purpose of one draw."""
    return int(np.random.SeedSequence([seed, zlib.crc32(purpose.encode())]).generate_state(1)[0])


def encode(
    tokenizer: PreTrainedTokenizerFast, documents: Sequence[Turns], *, request_weight: float = IGNORED_WEIGHT
) -> list[Document]:
    """Documents as the chat template renders them; answers and their end weigh 1, all else `request_weight`."""
    flat = [text for turns in documents for turn in turns for text in turn]
    pieces = iter(tokenizer.backend_tokenizer.encode_batch(flat, add_special_tokens=False))
    user, assistant, end = tokenizer.convert_tokens_to_ids([USER, ASSISTANT, END])
    encoded = []
    for turns in documents:
        ids: list[int] = []
        weights: list[float] = []
        for _ in turns:
            question = [user, *next(pieces).ids, end, assistant]
            answer = [*next(pieces).ids, end]
            ids += question + answer
            weights += [request_weight] * len(question) + [1.0] * len(answer)
        encoded.append(Document(np.array(ids, dtype=np.int64), np.array(weights, dtype=np.float32)))
    return encoded


def batches(
    documents: Sequence[Document], rng: np.random.Generator, *, size: int, pad: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """(ids, weights), each `(batch, tokens)`, right-padded; batches hold documents of like length, in random order."""
    order = rng.permutation(len(documents))
    pool = size * 64
    groups: list[np.ndarray] = []
    for start in range(0, len(order), pool):
        part = order[start : start + pool]
        part = part[np.argsort([len(documents[i].ids) for i in part], kind="stable")]
        groups += [part[i : i + size] for i in range(0, len(part), size)]
    for index in rng.permutation(len(groups)):
        chosen = [documents[i] for i in groups[index]]
        tokens = max(len(document.ids) for document in chosen)
        ids = np.full((len(chosen), tokens), pad)
        weights = np.zeros((len(chosen), tokens), dtype=np.float32)
        for row, document in enumerate(chosen):
            ids[row, : len(document.ids)] = document.ids
            weights[row, : len(document.ids)] = document.weights
        yield torch.from_numpy(ids), torch.from_numpy(weights)


def train_lm(
    tokenizer: PreTrainedTokenizerFast,
    *,
    world: TextSource,
    recipe: LmRecipe,
    seed: int,
    on_progress: Callable[[dict[str, float]], None] | None = None,
    compiled: bool = True,
    request_weight: float = IGNORED_WEIGHT,
    start: Qwen2ForCausalLM | None = None,
) -> Qwen2ForCausalLM:
    """Train one draw: its seed sets the initial weights, the documents and their order.

    With `start` a trained model learns on, in place, from documents of its own streams.

    `compiled` needs a C++ compiler and pays from about a minute of training on; so does a `request_weight` of 0 where
    the vocabulary is large, as requests then need no logits.
    """
    model = new_model(tokenizer, recipe=recipe, seed=seed) if start is None else start
    further = "" if start is None else "further "
    model.train()
    loss_of = torch.compile(weighted_loss, dynamic=True) if compiled else weighted_loss
    matrices = [weight for layer in model.model.layers for weight in layer.parameters() if weight.ndim == 2]
    others = [weight for weight in model.parameters() if all(weight is not matrix for matrix in matrices)]
    optimizers = [
        torch.optim.AdamW(others, lr=recipe.lr, betas=(0.9, 0.98), weight_decay=0.01, fused=True),
        torch.optim.Muon(matrices, lr=recipe.matrix_lr, weight_decay=0.01),
    ]
    steps = recipe.documents // recipe.batch
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _cosine(step, steps, recipe.warmup_steps))
        for optimizer in optimizers
    ]
    started, step, running = time.monotonic(), 0, 0.0
    text_rng = np.random.default_rng(stream(seed, f"{further}documents"))
    order_rng = np.random.default_rng(stream(seed, f"{further}order"))
    while step < steps:  # documents are drawn in portions, so that memory stays small
        portion = [turns for _, turns in world.documents(text_rng, count=min(20_480, (steps - step) * recipe.batch))]
        for ids, weights in batches(
            encode(tokenizer, portion, request_weight=request_weight),
            order_rng,
            size=recipe.batch,
            pad=tokenizer.pad_token_id,
        ):
            loss: Any = loss_of(model, ids, weights)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer, schedule in zip(optimizers, schedules, strict=True):
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                schedule.step()
            step += 1
            running = 0.98 * running + 0.02 * loss.item() if step > 1 else loss.item()
            if on_progress and step % 200 == 0:
                on_progress({"step": step, "steps": steps, "loss": running, "seconds": time.monotonic() - started})
    return model.eval()


def weighted_loss(model: Qwen2ForCausalLM, ids: Tensor, weights: Tensor) -> Tensor:
    """Cross-entropy of the next token, averaged with `weights`."""
    states = model.model(input_ids=ids, use_cache=False).last_hidden_state[
        :, :-1
    ]  # right padding: causal mask suffices
    target_weights = weights[:, 1:]
    kept = target_weights > 0
    logits = model.lm_head(states[kept])
    losses = cross_entropy(logits, ids[:, 1:][kept], reduction="none")
    return (losses * target_weights[kept]).sum() / target_weights.sum()


def _cosine(step: int, steps: int, warmup: int) -> float:
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
