"""Conversations to token ids and labels, through the tokenizer's own chat template. Used by `lvlm.model.processor`.

The template is rendered once with a mark in place of every text; the ids are then made from pieces of it, so that
it is known, and never guessed, which ids are template, which are a user's and which are supervised.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from lvlm.errors import InputError

IGNORED = -100
IMAGE_PLACEHOLDER = "<image_placeholder>"
Turns = Sequence[tuple[str, str]]
REMEMBERED = 1 << 16
"""Pieces of text whose ids a `Chat` keeps: template and short answers come again and again."""
_MARK = re.compile("\ue000(\\d+)\ue001")  # private-use characters: no template writes them


class Chat:
    """The chat template of one tokenizer. Settings in the constructor, conversations in the calls."""

    def __init__(self, tokenizer: Any) -> None:
        if not tokenizer.chat_template:
            raise InputError("The tokenizer has no chat template. Put a chat_template.jinja beside its tokenizer.json.")
        self.tokenizer = tokenizer
        self.controls = _control_pattern(tokenizer)
        self.begin = _automatic_bos(tokenizer)
        self._skeletons: dict[tuple[int, bool, bool], list[str]] = {}
        self._known: dict[str, list[int]] = {}

    def encode(
        self, turns: Turns, *, system: str | None = None, placeholders: bool = True
    ) -> tuple[list[int], list[int]]:
        """(ids, labels) of a whole conversation, equal in length; labels are -100 outside assistant texts and their
        end-of-turn.

        With `placeholders`, `<image_placeholder>` in a user text is the image token; every other control string,
        and all of them in assistant texts, become ordinary tokens.
        """
        texts, literals = self._parts(turns, system=system, prompt=False)
        return self._ids(self._pieces(texts, literals, system=system, placeholders=placeholders))

    def encode_prompt(
        self, turns: Turns, prompt: str, *, system: str | None = None, placeholders: bool = True
    ) -> list[int]:
        """The ids of a conversation that ends in `prompt` and the assistant's header: what generation continues."""
        texts, literals = self._parts([*turns, (prompt, "")], system=system, prompt=True)
        return self._ids(self._pieces(texts, literals, system=system, placeholders=placeholders))[0]

    def end_of_turn_ids(self) -> list[int]:
        """The ids that end an assistant's turn; generation stops at the last of them."""
        _, literals = self._parts([("x", "y")], system=None, prompt=False)
        return list(self.tokenizer(self._end_of_turn(literals[-1]), add_special_tokens=False)["input_ids"])

    def _parts(self, turns: Turns, *, system: str | None, prompt: bool) -> tuple[list[str], list[str]]:
        """The texts of a conversation and the literal template around them: one literal more than texts."""
        texts = ([] if system is None else [system]) + [text for turn in turns for text in turn]
        if prompt:
            texts.pop()
        literals = self._skeleton(len(texts), has_system=system is not None, prompt=prompt)
        rendered = self._render(texts, has_system=system is not None, prompt=prompt)
        for candidate in (texts, [text.strip() for text in texts]):
            if rendered == literals[0] + "".join(
                text + literal for text, literal in zip(candidate, literals[1:], strict=True)
            ):
                return candidate, literals
        raise InputError(
            "The chat template of this tokenizer changes the text of a turn beyond trimming it, so that it is unclear "
            f"which tokens are the answer. "
            f"The conversation begins: {texts[0][:80]!r}. Use a template that writes texts as they are."
        )

    def _skeleton(self, count: int, *, has_system: bool, prompt: bool) -> list[str]:
        key = (count, has_system, prompt)
        if key not in self._skeletons:
            marked = self._render(
                [f"\ue000{index}\ue001" for index in range(count)], has_system=has_system, prompt=prompt
            )
            parts = _MARK.split(marked)
            if parts[1::2] != [str(index) for index in range(count)]:
                raise InputError(
                    "The chat template of this tokenizer leaves out or reorders turns; it cannot be used for training."
                )
            self._skeletons[key] = parts[::2]
        return self._skeletons[key]

    def _render(self, texts: Sequence[str], *, has_system: bool, prompt: bool) -> str:
        roles = ["system"] * has_system + ["user" if index % 2 == 0 else "assistant" for index in range(len(texts))]
        messages = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]
        rendered: str = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
        return rendered

    def _pieces(
        self, texts: Sequence[str], literals: Sequence[str], *, system: str | None, placeholders: bool
    ) -> list[tuple[str, bool]]:
        """(text, supervised) in order. A piece ends where supervision changes, as generation too starts there, and
        inside control strings."""
        pieces = [(literals[0], False)]
        for index, (text, literal) in enumerate(zip(texts, literals[1:], strict=True)):
            turn_text = index - (system is not None)  # user texts are even, answers odd, a system text is -1
            answer = turn_text >= 0 and turn_text % 2 == 1
            end = self._end_of_turn(literal) if answer else ""
            _extend(pieces, self._ordinary(text, placeholders=placeholders and not answer), supervised=answer)
            _extend(pieces, [end], supervised=answer)
            _extend(pieces, [literal[len(end) :]], supervised=False)
        return pieces

    def _end_of_turn(self, literal: str) -> str:
        match = self.controls.search(literal)
        if match is None or literal[: match.start()].strip():
            raise InputError(
                "The chat template does not end an assistant's turn with a special token: "
                "the model would never learn to stop."
            )
        return literal[: match.end()]

    def _ordinary(self, text: str, *, placeholders: bool) -> list[str]:
        """The text cut so that no control string in it survives tokenization; placeholders stay whole where they are
        allowed."""
        cuts, start = [], 0
        for match in self.controls.finditer(text):
            if placeholders and match.group() == IMAGE_PLACEHOLDER:
                continue
            cuts += [text[start : match.start()], *match.group()]
            start = match.end()
        return [*cuts, text[start:]]

    def _ids(self, pieces: Sequence[tuple[str, bool]]) -> tuple[list[int], list[int]]:
        kept = [(text, supervised) for text, supervised in pieces if text]
        encoded = self._tokens([text for text, _ in kept])
        ids: list[int] = []
        labels: list[int] = []
        for (_, supervised), piece in zip(kept, encoded, strict=True):
            ids += piece
            labels += piece if supervised else [IGNORED] * len(piece)
        if self.begin is not None and ids[:1] != [self.begin]:
            return [self.begin, *ids], [IGNORED, *labels]
        return ids, labels

    def _tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text by itself."""
        if new := [text for text in dict.fromkeys(texts) if text not in self._known]:
            if len(self._known) + len(new) > REMEMBERED:
                self._known, new = {}, list(dict.fromkeys(texts))
            self._known |= zip(new, self.tokenizer(new, add_special_tokens=False)["input_ids"], strict=True)
        return [self._known[text] for text in texts]


def _extend(pieces: list[tuple[str, bool]], parts: Sequence[str], *, supervised: bool) -> None:
    """Join the first part to the last piece where supervision stays the same; the other parts become pieces of their
    own."""
    if pieces[-1][1] == supervised:
        pieces[-1] = (pieces[-1][0] + parts[0], supervised)
        parts = parts[1:]
    pieces.extend((part, supervised) for part in parts)


def _control_pattern(tokenizer: Any) -> re.Pattern[str]:
    """Matches every added token but pure white space, which templates and texts contain as ordinary text."""
    contents = {token.content for token in tokenizer.added_tokens_decoder.values() if token.content.strip()}
    if not contents:
        raise InputError("The tokenizer has no special tokens: turns could not be told apart from text.")
    return re.compile("|".join(re.escape(content) for content in sorted(contents, key=len, reverse=True)))


def _automatic_bos(tokenizer: Any) -> int | None:
    """The BOS that this tokenizer puts before every text by itself, or None."""
    ids = tokenizer("", add_special_tokens=True)["input_ids"]
    return int(ids[0]) if ids and ids[0] == tokenizer.bos_token_id else None
