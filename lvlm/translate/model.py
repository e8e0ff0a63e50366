"""A Hugging Face seq2seq model as a translator: NLLB, M2M100, mBART, Marian, MADLAD and others of their make."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from lvlm.config import fingerprint
from lvlm.errors import InputError
from lvlm.languages import language
from lvlm.model.digests import file_digest
from lvlm.translate.sentences import pieces
from lvlm.translate.tokens import LanguageTokens
from lvlm.translate.translator import Translation

Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
UNSTATED = 1_000_000
"""Tokenizers that know no limit state one of at least so many tokens."""
WITHOUT_SPACES = frozenset({"Hans", "Hant", "Hani", "Jpan"})
"""Scripts in which sentences follow each other without a blank."""


class Seq2SeqTranslator:
    """Greedy or beam search over batches of similar length. A text of more than `max_tokens` tokens (None: as many as
    the model takes) is translated in pieces, sentence by sentence where that suffices."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        name: str = "",
        version: str = "",
        batch: int = 64,
        beams: int = 1,
        max_tokens: int | None = None,
    ) -> None:
        self.model, self.tokenizer, self.name = model.eval(), tokenizer, name
        self.version = version
        self.languages = LanguageTokens.of(tokenizer)
        self.batch, self.beams = batch, beams
        stated = [tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", None)]
        limits = [limit for limit in stated if limit is not None and limit < UNSTATED]
        self.most = min([*limits, 1024])
        if max_tokens is not None and not 8 <= max_tokens <= self.most:
            raise InputError(f"--max-tokens {max_tokens}: give a number from 8 to {self.most}, which the model takes.")
        self.max_tokens = max_tokens or self.most

    @classmethod
    def load(
        cls, path: str, *, device: Device = "auto", precision: Precision = "auto", **options: Any
    ) -> Seq2SeqTranslator:
        """Read a model folder, or fetch a model of the hub by its name. `precision` auto is bf16 on a GPU, else
        fp32."""
        from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

        if device == "cuda" and not torch.cuda.is_available():
            raise InputError("--device cuda, but this machine has no GPU that torch can use. Take --device cpu.")
        place = "cuda" if device == "auto" and torch.cuda.is_available() else device.replace("auto", "cpu")
        kind = ("bf16" if place == "cuda" else "fp32") if precision == "auto" else precision
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[kind]
        if path.startswith((".", "/", "~")) and not Path(path).is_dir():
            raise InputError(f"--model {path} is not a folder (looked for from {Path.cwd()}).")
        try:
            tokenizer = AutoTokenizer.from_pretrained(path)
            model = AutoModelForSeq2SeqLM.from_pretrained(path, dtype=dtype)
        except (OSError, ValueError, KeyError) as error:
            raise InputError(
                f"--model {path} cannot be read as a seq2seq model of transformers with its tokenizer: "
                f"{' '.join(str(error).split())[:300]}"
            ) from error
        return cls(model.to(place), tokenizer, name=path, version=_version(path, model), **options)

    @property
    def settings(self) -> dict[str, Any]:
        """What its translations depend on, for the record of an unfinished one."""
        return {
            "model": self.name,
            "version": self.version,
            "precision": str(self.model.dtype).removeprefix("torch."),
            "beams": self.beams,
            "max_tokens": self.max_tokens,
        }

    def require(self, source: str, targets: Sequence[str]) -> None:
        """Raise for a language that the model cannot be told."""
        self.languages.require([*([source] if self.languages.forced else []), *targets], self.name)

    def translate(self, texts: Sequence[str], source: str, target: str) -> list[Translation]:
        """See `Translator`. Raises `InputError` for a language that the model has no token for."""
        self.require(source, [target])
        if self.languages.forced:
            self._tell_source(self.languages.tokens[source])
        parts = [pieces(text, lambda piece: self._length(piece) <= self.max_tokens) for text in texts]
        flat = [piece for part in parts for piece in part]
        done = iter(self._by_length(flat, target))
        joint = "" if language(target).script in WITHOUT_SPACES else " "
        return [_joined([next(done) for _ in part], joint) for part in parts]

    def _tell_source(self, token: str) -> None:
        if not hasattr(self.tokenizer, "src_lang"):
            raise InputError(
                f"The tokenizer of {self.name} has language tokens but no src_lang ({type(self.tokenizer).__name__}): "
                "it cannot be told the language of the original."
            )
        self.tokenizer.src_lang = token.strip("_")  # M2M100 is told `de` for __de__

    def _length(self, text: str) -> int:
        return len(self.tokenizer(text, truncation=False)["input_ids"]) + (not self.languages.forced)

    def _by_length(self, texts: Sequence[str], target: str) -> list[Translation]:
        order = sorted(range(len(texts)), key=lambda place: (-self._length(texts[place]), texts[place]))
        result: dict[int, Translation] = {}
        for start in range(0, len(order), self.batch):
            some = order[start : start + self.batch]
            result.update(zip(some, self._generate([texts[place] for place in some], target), strict=True))
        return [result[place] for place in range(len(texts))]

    @torch.inference_mode()
    def _generate(self, texts: list[str], target: str) -> Iterator[Translation]:
        told: dict[str, Any] = {}
        token = self.languages.tokens.get(target)
        if token and self.languages.forced:
            told["forced_bos_token_id"] = self.tokenizer.convert_tokens_to_ids(token)
        elif token:
            texts = [f"{token} {text}" for text in texts]
        inputs = self.tokenizer(texts, return_tensors="pt", padding=True, truncation=False).to(self.model.device)
        ids = inputs["input_ids"]
        try:
            sequences = self.model.generate(
                input_ids=ids,
                attention_mask=inputs["attention_mask"],
                do_sample=False,
                num_beams=self.beams,
                max_new_tokens=min(2 * ids.shape[1] + 32, self.most - 1),
                **told,
            )
        except torch.OutOfMemoryError as error:
            raise InputError(
                f"{len(texts)} texts of up to {ids.shape[1]} tokens do not fit into the memory of the GPU. Lower "
                "--batch or --max-tokens; what is translated so far is kept."
            ) from error
        ends, unknown = self.tokenizer.eos_token_id, self.tokenizer.unk_token_id
        for row in sequences.tolist():
            answer = row[1:]  # behind the token that starts the decoder, which is the end token in some models
            fault = "unfinished" if ends not in answer else "unknown characters" if unknown in answer else ""
            yield Translation(self.tokenizer.decode(answer, skip_special_tokens=True).strip(), fault)


def _version(path: str, model: Any) -> str:
    """Identifies the files of a model folder, or the commit of a model of the hub."""
    if not Path(path).is_dir():
        return str(getattr(model.config, "_commit_hash", None))
    files = sorted(file for file in Path(path).iterdir() if file.is_file())
    return fingerprint([[file.name, file_digest(file).hex()] for file in files])


def _joined(parts: Sequence[Translation], joint: str) -> Translation:
    return Translation(joint.join(part.text for part in parts), next((part.fault for part in parts if part.fault), ""))
