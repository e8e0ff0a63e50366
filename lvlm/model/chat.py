"""Conversations to token ids and labels, through the tokenizer's own chat template. Used by `lvlm.model.processor`.

The template is rendered once with a mark in place of every text; the ids are then made from pieces of it, so that
it is known, and never guessed, which ids are template, which are a user's and which are supervised.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from jinja2 import TemplateError

from lvlm.config import one_line
from lvlm.errors import InputError

IGNORED = -100
IMAGE_PLACEHOLDER = "<image_placeholder>"
Turns = Sequence[tuple[str, str]]
Pieces = list[tuple[str, bool]]
"""(text, supervised) in order: a conversation as it is tokenised."""
Encoded = tuple[list[int], list[int]]
"""(ids, labels), equal in length."""
REMEMBERED, REMEMBERED_CHARACTERS = 1 << 16, 64
"""Pieces of text whose ids a `Chat` keeps, and how long one is at most: short answers come again and again."""
_BLOCK = re.compile(r"\{[{%].*?[%}]\}", re.DOTALL)
_CONSTANT = re.compile(r"'((?:[^'\\]|\\.)*)'" r'|"((?:[^"\\]|\\.)*)"')
_MARK = re.compile("\ue000(\\d+)\ue001")  # private-use characters: no template writes them


class Chat:
    """The chat template of one tokenizer. Settings in the constructor, conversations in the calls."""

    def __init__(self, tokenizer: Any) -> None:
        if not tokenizer.chat_template:
            raise InputError("The tokenizer has no chat template. Put a chat_template.jinja beside its tokenizer.json.")
        self.tokenizer = tokenizer
        self.controls = _control_pattern(tokenizer)
        self.begin = _automatic_bos(tokenizer)
        self._special = _special_pattern(tokenizer)
        self._skeletons: dict[tuple[int, bool, bool], list[str]] = {}
        self._frames: dict[int, list[tuple[str, int | None, str, bool]]] = {}
        self._known: dict[str, list[int]] = {}
        self._known_lengths: dict[str, int] = {}

    def encode(
        self, turns: Turns, *, system: str | None = None, placeholders: bool = True
    ) -> tuple[list[int], list[int]]:
        """(ids, labels) of a whole conversation, equal in length; labels are -100 outside assistant texts and their
        end-of-turn.

        With `placeholders`, `<image_placeholder>` in a user text is the image token; every other control string,
        and all of them in assistant texts, become ordinary tokens.
        """
        return _joined(self._token_pieces([self._turn_pieces(turns, system, placeholders)])[0])

    def encode_all(self, conversations: Sequence[Turns], placeholders: Sequence[bool]) -> list[Encoded]:
        """`encode` of each conversation without a system text, in much less time than one by one."""
        return [_joined(pieces) for pieces in self._token_pieces(self._pieces_of_all(conversations, placeholders))]

    def measure_all(self, conversations: Sequence[Turns], placeholders: Sequence[bool]) -> list[tuple[int, int]]:
        """(tokens, supervised tokens) of each conversation, as `encode` gives them."""
        counts: dict[int, tuple[int, int]] = {}
        for turns_each, texts in self._plain(conversations, placeholders).items():
            counts |= zip(texts, self._measure_plain(turns_each, list(texts.values())), strict=True)
        others = [index for index in range(len(conversations)) if index not in counts]
        pieces = [self._turn_pieces(conversations[index], None, placeholders[index]) for index in others]
        for index, own in zip(others, self._token_pieces(pieces), strict=True):
            total, supervised = (sum([len(ids) for ids, learned in own if learned >= least]) for least in (False, True))
            counts[index] = total, supervised
        return [counts[index] for index in range(len(conversations))]

    def _measure_plain(self, turns: int, conversations: Sequence[Sequence[str]]) -> list[tuple[int, int]]:
        """`measure_all` of plain conversations, given as their texts: piece by piece of the template, each over all
        conversations at once."""
        sizes = np.zeros((2, len(conversations)), dtype=np.int64)
        begun = np.full(len(conversations), self.begin is None)  # with a BOS, or in no need of one
        empty = np.ones(len(conversations), dtype=bool)
        for before, number, after, supervised in self.frame(turns):
            if number is None:
                texts = [before]
            else:
                texts = [f"{before}{own[number]}{after}" for own in conversations]
            if begun.all() or not empty.any():
                lengths = self._lengths(texts)
            else:  # whether the template writes the BOS shows in the first id
                ids = self._tokens(texts)
                lengths = list(map(len, ids))
                begun |= empty & [own[:1] == [self.begin] for own in ids]
                empty &= np.equal(lengths, 0)
            sizes[0] += lengths
            if supervised:
                sizes[1] += lengths
        sizes[0] += ~begun
        return list(zip(*sizes.tolist(), strict=True))

    def encode_prompt(
        self, turns: Turns, prompt: str, *, system: str | None = None, placeholders: bool = True
    ) -> list[int]:
        """The ids of a conversation that ends in `prompt` and the assistant's header: what generation continues."""
        texts, literals = self._parts([*turns, (prompt, "")], system=system, prompt=True)
        pieces = self._pieces(texts, literals, system=system, placeholders=placeholders)
        return _joined(self._token_pieces([pieces])[0])[0]

    def encode_text(self, text: str) -> list[int]:
        """The ids of a text by itself, in which control strings are ordinary text, and of the token that ends a
        turn."""
        pieces = [(piece, False) for piece in self._ordinary(text, placeholders=False) if piece]
        ids = _joined(self._token_pieces([pieces])[0])[0] if pieces else [self.begin] if self.begin is not None else []
        return [*ids, self.end_of_turn_ids()[-1]]

    def end_of_turn_ids(self) -> list[int]:
        """The ids that end an assistant's turn; generation stops at the last of them."""
        _, literals = self._parts([("x", "y")], system=None, prompt=False)
        return list(self.tokenizer(self._end_of_turn(literals[-1]), add_special_tokens=False)["input_ids"])

    def _pieces_of_all(self, conversations: Sequence[Turns], placeholders: Sequence[bool]) -> list[Pieces]:
        """The pieces of each conversation."""
        pieces: dict[int, Pieces] = {}
        for turns_each, plain in self._plain(conversations, placeholders).items():
            frame = self.frame(turns_each)
            for index, own in plain.items():
                pieces[index] = [
                    (before if number is None else f"{before}{own[number]}{after}", supervised)
                    for before, number, after, supervised in frame
                ]
        return [
            pieces[index] if index in pieces else self._turn_pieces(turns, None, allowed)
            for index, (turns, allowed) in enumerate(zip(conversations, placeholders, strict=True))
        ]

    def _plain(self, conversations: Sequence[Turns], placeholders: Sequence[bool]) -> dict[int, dict[int, list[str]]]:
        """By number of turns, the texts of the conversations in which a template can find nothing to act on, each under
        its index. Rendering one after the other takes most of the time, so these are rendered together."""
        plain: dict[int, dict[int, list[str]]] = {}
        everything = "\ue000".join([text for turns in conversations for turn in turns for text in turn])
        special = self._special if self._special.search(everything) else None
        for index, (turns, allowed) in enumerate(zip(conversations, placeholders, strict=True)):
            texts = [text for turn in turns for text in turn]
            if all([
                text
                and text == text.strip()
                and (IMAGE_PLACEHOLDER not in text or (allowed and place % 2 == 0))
                and not (special and special.search(text))
                for place, text in enumerate(texts)
            ]):  # fmt: skip
                plain.setdefault(len(turns), {})[index] = texts
        return {
            turns_each: members
            for turns_each, members in plain.items()
            if len(members) > 1 and self._writes_verbatim(list(members.values()))
        }

    def _writes_verbatim(self, conversations: Sequence[Sequence[str]]) -> bool:
        """Whether the template leaves the texts of these conversations, all of one length, as they are: the first
        texts of all written as one text, the second ones likewise, and so on."""
        together = [" ".join(texts) for texts in zip(*conversations, strict=True)]
        literals = self._skeleton(len(together), has_system=False, prompt=False)
        return self._render(together, has_system=False, prompt=False) == _interleaved(literals, together)

    def frame(self, turns: int) -> list[tuple[str, int | None, str, bool]]:
        """The pieces of plain conversations of so many turns: (template before, number of the text, template after,
        supervised)."""
        if turns not in self._frames:
            marks = [f"\ue000{index}\ue001" for index in range(2 * turns)]
            literals = self._skeleton(len(marks), has_system=False, prompt=False)
            frame: list[tuple[str, int | None, str, bool]] = []
            for piece, supervised in self._pieces(marks, literals, system=None, placeholders=True):
                before, *found = _MARK.split(piece)  # users and assistants alternate: one text a piece at most
                frame.append((before, int(found[0]), found[1], supervised) if found else (before, None, "", supervised))
            self._frames[turns] = frame
        return self._frames[turns]

    def _turn_pieces(self, turns: Turns, system: str | None, placeholders: bool) -> Pieces:
        texts, literals = self._parts(turns, system=system, prompt=False)
        return self._pieces(texts, literals, system=system, placeholders=placeholders)

    def _parts(self, turns: Turns, *, system: str | None, prompt: bool) -> tuple[list[str], list[str]]:
        """The texts of a conversation and the literal template around them: one literal more than texts."""
        texts = ([] if system is None else [system]) + [text for turn in turns for text in turn]
        if prompt:
            texts.pop()
        literals = self._skeleton(len(texts), has_system=system is not None, prompt=prompt)
        rendered = self._render(texts, has_system=system is not None, prompt=prompt)
        for candidate in (texts, [text.strip() for text in texts]):
            if rendered == _interleaved(literals, candidate):
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
        try:
            rendered: str = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
        except TemplateError as error:
            raise InputError(
                f"The chat template of this tokenizer refuses turns of {', '.join(dict.fromkeys(roles))}: "
                f"{one_line(error)}. Leave out what it does not write, or use another template."
            ) from error
        return rendered

    def _pieces(
        self, texts: Sequence[str], literals: Sequence[str], *, system: str | None, placeholders: bool
    ) -> Pieces:
        """A piece ends where supervision changes, as generation too starts there, and inside control strings."""
        pieces = [(literals[0], False)]
        for index, (text, literal) in enumerate(zip(texts, literals[1:], strict=True)):
            turn_text = index - (system is not None)  # user texts are even, answers odd, a system text is -1
            answer = turn_text >= 0 and turn_text % 2 == 1
            end = self._end_of_turn(literal) if answer else ""
            _extend(pieces, self._ordinary(text, placeholders=placeholders and not answer), supervised=answer)
            _extend(pieces, [end], supervised=answer)
            _extend(pieces, [literal[len(end) :]], supervised=False)
        return [(text, supervised) for text, supervised in pieces if text]

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

    def _token_pieces(self, conversations: Sequence[Pieces]) -> list[list[tuple[list[int], bool]]]:
        """The ids of each piece of each conversation, with the BOS where the tokenizer puts one."""
        ids = iter(self._tokens([text for pieces in conversations for text, _ in pieces]))
        encoded = [[(next(ids), supervised) for _, supervised in pieces] for pieces in conversations]
        if self.begin is None:
            return encoded
        begin = [self.begin]
        return [
            pieces if next((ids for ids, _ in pieces if ids), [])[:1] == begin else [(begin, False), *pieces]
            for pieces in encoded
        ]

    def _tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text by itself."""
        new = list(dict.fromkeys(text for text in texts if text not in self._known))
        ids = {text: getattr(own, "ids", own) for text, own in zip(new, self._encoded(new), strict=True)}
        found = [ids[text] if text in ids else self._known[text] for text in texts]
        if len(self._known) + len(ids) > REMEMBERED:
            self._known.clear()
        self._known |= {text: own for text, own in ids.items() if len(text) <= REMEMBERED_CHARACTERS}
        return found

    def _lengths(self, texts: Sequence[str]) -> list[int]:
        """How many ids each text has by itself."""
        known = self._known_lengths
        new = list(dict.fromkeys(text for text in texts if text not in known))
        lengths = dict(zip(new, map(len, self._encoded(new)), strict=True))
        found = [lengths[text] if text in lengths else known[text] for text in texts]
        if len(known) + len(lengths) > REMEMBERED:
            known.clear()
        known |= {text: length for text, length in lengths.items() if len(text) <= REMEMBERED_CHARACTERS}
        return found

    def _encoded(self, texts: Sequence[str]) -> Sequence[Any]:
        """Lists of ids, or encodings that know their `ids` and their length."""
        if not texts:
            return []
        whole = partial(self.tokenizer, add_special_tokens=False)
        if not getattr(self.tokenizer, "is_fast", False) or len(texts) == 1:
            return whole(list(texts))["input_ids"]  # type: ignore[no-any-return]
        # The first text goes through the tokenizer, which thereby turns off padding and truncation in its backend; the
        # others go to the backend at once, for most of a call is spent on turning encodings into lists.
        first, *others = texts
        encodings = self.tokenizer.backend_tokenizer.encode_batch_fast
        return [whole([first])["input_ids"][0], *encodings(others, add_special_tokens=False)]


def _joined(pieces: Sequence[tuple[list[int], bool]]) -> Encoded:
    """(ids, labels) of a conversation."""
    ids = [token for piece, _ in pieces for token in piece]
    labels = [token if supervised else IGNORED for piece, supervised in pieces for token in piece]
    return ids, labels


def _interleaved(literals: Sequence[str], texts: Sequence[str]) -> str:
    """The template's literals with the texts between them."""
    return literals[0] + "".join(text + literal for text, literal in zip(texts, literals[1:], strict=True))


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


def _special_pattern(tokenizer: Any) -> re.Pattern[str]:
    """Matches the control strings but the image placeholder, and whatever else stands in quotes in the template's
    code: all that the template can tell texts apart by."""
    strings = {token.content.strip() for token in tokenizer.added_tokens_decoder.values()} - {IMAGE_PLACEHOLDER}
    for block in _BLOCK.findall(tokenizer.get_chat_template()):
        for single, double in _CONSTANT.findall(block):
            strings.add((single or double).replace("\\n", "\n").replace("\\t", "\t").strip())
    return re.compile("|".join(re.escape(text) for text in sorted(strings - {""}, key=len, reverse=True)))


def _automatic_bos(tokenizer: Any) -> int | None:
    """The BOS that this tokenizer puts before every text by itself, or None."""
    ids = tokenizer("", add_special_tokens=True)["input_ids"]
    return int(ids[0]) if ids and ids[0] == tokenizer.bos_token_id else None
