"""How the language model reads a caption: the tokens, and how many. No torch. Used by `lvlm.paint.states`, and wherever
a stage `paint` is planned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from lvlm.data.counts import Measure
    from lvlm.data.readers import Conversation


def caption_ids(chat: Any, prompt: Literal["bare", "chat"], caption: str) -> list[int]:
    """The tokens of a caption and those around it; of an empty one the latter alone. `prompt` is that of
    `PaintConfig`."""
    found: list[int] = chat.encode_prompt([], caption) if prompt == "chat" else chat.encode_text(caption)
    return found


def caption_measure(chat: Any, prompt: Literal["bare", "chat"]) -> Measure:
    """What counts (tokens, 1) of conversations: their last answer is the caption, and a picture is one thing to
    learn."""

    def measure(conversations: Sequence[Conversation]) -> list[tuple[int, int]]:
        return [(len(caption_ids(chat, prompt, turns[-1][1])), 1) for turns, _ in conversations]

    return measure
