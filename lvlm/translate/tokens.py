"""How a translation model is told its languages: by tokens of its tokenizer, in whichever of the usual ways, or not at
all. `lvlm.translate.model` asks here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from lvlm.errors import InputError
from lvlm.languages import language, table

_BETWEEN = re.compile(r"__([a-z]{2,3}(?:_[A-Za-z]+)?)__")  # M2M100: __de__
_REGION = re.compile(r"([a-z]{2,3})_[A-Z]{2}")  # mBART: de_DE
_BEFORE = re.compile(r">>([A-Za-z_]+)<<|<2([A-Za-z_]+)>")  # Marian with several targets: >>deu<<; MADLAD: <2de>


@dataclass(frozen=True, slots=True)
class LanguageTokens:
    """The language tokens of a tokenizer, by our codes.

    `forced`: the decoder begins with the target's token, and the tokenizer is told the source (NLLB, M2M100, mBART).
    Otherwise the target's token stands before the text. Without any token the model has one direction.
    """

    tokens: dict[str, str]
    forced: bool

    @classmethod
    def of(cls, tokenizer: Any) -> LanguageTokens:
        """The tokens of a Hugging Face tokenizer."""
        own = getattr(tokenizer, "lang_token_to_id", {})  # M2M100 keeps them beside its vocabulary
        names = sorted({*tokenizer.get_vocab(), *tokenizer.all_special_tokens, *own})
        flores = {entry.flores: entry.code for entry in table().values() if entry.flores}
        if tokens := {flores[name]: name for name in names if name in flores}:  # NLLB: deu_Latn
            return cls(tokens, True)
        for pattern, forced in ((_BETWEEN, True), (_REGION, True), (_BEFORE, False)):
            if tokens := _by_code(names, pattern):
                return cls(tokens, forced)
        return cls({}, False)

    def require(self, codes: list[str], model: str) -> None:
        """Raise for languages that the model cannot be told."""
        if not self.tokens and len(codes) > 1:
            raise InputError(
                f"The model {model} has no language tokens, so that it translates into one language; --to names "
                f"{', '.join(codes)}. Name the one that it is made for."
            )
        if self.tokens and (lacking := [code for code in codes if code not in self.tokens]):
            raise InputError(
                f"The model {model} has no token for {', '.join(lacking)}. Leave it out of --to and --from, or take "
                f"another model; this one knows: {', '.join(self.tokens)}."
            )


def _by_code(names: list[str], pattern: re.Pattern[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name in names:
        if match := pattern.fullmatch(name):
            written = next(group for group in match.groups() if group)
            try:
                code = language(written).code
            except InputError:  # a language of the model that is none of ours
                continue
            if code not in found or written == code:
                found[code] = name
    return found
