"""What the frozen language model makes of captions: one row of hidden states for each token. Used by the stage `paint`,
by sampling and by the scores."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from lvlm.errors import InputError
from lvlm.paint.captions import caption_ids
from lvlm.paint_settings import PaintConfig

TOGETHER = 64
"""Captions of one length that go through the LLM at once."""
KEPT_BYTES = 4 << 30
"""Most memory that kept states may take."""


class CaptionStates:
    """Hidden states of an LLM for captions, in float32, without gradient.

    Captions of equal length go through the LLM together, so that none is padded there. `keep` computes each of many
    once; what is not kept is computed at each call.
    """

    def __init__(
        self,
        llm: Any,
        chat: Any,
        config: PaintConfig,
        *,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self.llm, self.chat = llm, chat
        self.layer, self.bidirectional, self.prompt = config.layer, config.bidirectional, config.prompt
        self.autocast = autocast
        self._kept: dict[str, Tensor] = {}
        layers = int(llm.config.num_hidden_layers)
        if not -layers - 1 <= self.layer <= layers:
            raise InputError(
                f"paint.layer is {self.layer}, but the language model has {layers} layers: choose a hidden state from "
                f"0 (the embeddings) to {layers}, or from the end, -1 to {-layers - 1}."
            )
        if self.bidirectional:
            self._check_bidirectional()

    @property
    def width(self) -> int:
        """Numbers of one token's state."""
        return int(self.llm.config.hidden_size)

    @property
    def kept(self) -> int:
        """How many captions are kept."""
        return len(self._kept)

    def ids(self, caption: str) -> list[int]:
        """The tokens that the LLM reads; of an empty caption those around it."""
        return caption_ids(self.chat, self.prompt, caption)

    def keep(self, captions: Iterable[str]) -> bool:
        """Compute the states of these captions once, those of equal length in order of their text, so that they do not
        depend on who asks when; False, and none is kept, where they would take more than `KEPT_BYTES`."""
        new = {caption: self.ids(caption) for caption in sorted(set(captions)) if caption not in self._kept}
        if sum(map(len, new.values())) * self.width * 4 > KEPT_BYTES:
            return False
        self._kept |= self._compute(new)
        return True

    def __call__(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """States (captions, tokens, width), zeros where a caption has ended, and where it has not: (captions,
        tokens)."""
        missing = {caption: self.ids(caption) for caption in sorted(set(captions)) if caption not in self._kept}
        found = self._kept | self._compute(missing) if missing else self._kept
        rows = [found[caption] for caption in captions]
        lengths = torch.tensor([len(row) for row in rows])
        states = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        mask = torch.arange(states.shape[1])[None] < lengths[:, None]
        return states, mask.to(states.device)

    def _compute(self, captions: dict[str, list[int]]) -> dict[str, Tensor]:
        """The states of each caption, given by its tokens, in groups that only the captions determine."""
        found: dict[str, Tensor] = {}
        by_length = sorted(captions.items(), key=lambda item: (len(item[1]), item[0]))
        for _, group in groupby(by_length, key=lambda item: len(item[1])):
            members = list(group)
            for start in range(0, len(members), TOGETHER):
                some = members[start : start + TOGETHER]
                states = self._states(torch.tensor([ids for _, ids in some]))
                found |= {caption: row.clone() for (caption, _), row in zip(some, states, strict=True)}
        return found

    @torch.no_grad()
    def _states(self, ids: Tensor) -> Tensor:
        ids = ids.to(next(self.llm.parameters()).device)
        mask = None
        if self.bidirectional:  # a mask of four dimensions is taken as it is: everything sees everything
            mask = torch.zeros(len(ids), 1, ids.shape[1], ids.shape[1], device=ids.device)
        with self.autocast():
            outputs = self.llm.base_model(
                input_ids=ids, attention_mask=mask, use_cache=False, output_hidden_states=self.layer != -1
            )
        found: Tensor = outputs[0] if self.layer == -1 else outputs.hidden_states[self.layer]
        return found.float()

    def _check_bidirectional(self) -> None:
        layers = int(self.llm.config.num_hidden_layers)
        first, second = self._states(torch.tensor([[0, 1, 2], [0, 1, 3]]))[:, 0]
        if self.layer not in (0, -layers - 1) and torch.equal(first, second):  # embeddings see nothing at all
            raise InputError(
                f"paint.bidirectional is true, but {type(self.llm).__name__} with model.attn="
                f"{self.llm.config._attn_implementation} lets no token see what comes after it. Set model.attn=sdpa or "
                "eager, or paint.bidirectional=false."
            )
