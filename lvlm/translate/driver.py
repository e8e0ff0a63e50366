"""Translates splits of a corpus: batches, what is kept and refused, and the files that the corpus gains. Called by
`lvlm.translate.command`; whatever translates is a `Translator`.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import yaml

from lvlm.data.checks import as_list, check_test, check_train
from lvlm.data.corpus import CORPUS_FILE, REFUSED_FOLDER, Corpus, open_corpus
from lvlm.data.progress import shown
from lvlm.data.readers import Rows
from lvlm.errors import InputError
from lvlm.languages import in_table_order, variety
from lvlm.train.locks import file_lock
from lvlm.translate.faults import fault
from lvlm.translate.journal import Journal
from lvlm.translate.spans import Span, put_together, take_apart
from lvlm.translate.stand_ins import hide_numbers, show_numbers
from lvlm.translate.translator import Translation, Translator

WORK_FOLDER = ".translating"
WINDOW_ROWS = 1000
"""Rows whose texts are sorted by length together; a text that they repeat is translated once."""
TRANSLATED = ("context", "label", "text_label")
Row = dict[str, Any]


class Refusal(Exception):
    """Why a row has no translation: in which field, the reason, the original and what was made of it."""

    def __init__(self, name: str, reason: str, text: str, translation: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.entry = {"field": name, "reason": reason, "text": text, "translation": translation}


@dataclass(slots=True)
class Outcome:
    """What became of one split in one language."""

    split: str
    language: str
    rows: int = 0
    written: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    """Rows by reason."""
    was_there: bool = False
    ledger: Path | None = None
    """Where the refused rows stand, if there are any."""

    def line(self) -> str:
        """For the terminal."""
        if self.was_there:
            return f"{self.split}/{self.language}: already there, left alone"
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in self.refused.most_common())
        told = f" ({reasons}; {self.ledger})" if reasons else ""
        return (
            f"{self.split}/{self.language}: {self.rows:,} rows, {self.written:,} written, "
            f"{self.refused.total():,} refused{told}"
        )


def translate_corpus(
    folder: Path | str,
    languages: Sequence[str],
    translator: Translator,
    *,
    settings: Mapping[str, Any],
    source: str = "en",
    splits: Sequence[str] | None = None,
    batch: int = 64,
) -> Iterator[Outcome]:
    """Give a corpus further languages, split by split; yields as each is in place. `splits` None is every split with
    permission `train`.

    `settings` is what the translations depend on. Killed at any moment and started again with the same arguments it
    ends with the same files, and translates at most one batch twice. A row of which any text is refused is left out of
    that language's file and stands in `refused/SPLIT/LANGUAGE.jsonl`.
    """
    corpus, work, targets = plan_translation(folder, languages, source=source, splits=splits)
    if batch < 1:
        raise InputError(f"--batch {batch}: give a number from 1.")
    barren = []
    for split in work:
        for code in targets:
            journal = corpus.folder / WORK_FOLDER / split / f"{code}.jsonl"
            with file_lock(journal.with_suffix(".lock"), purpose=f"translating {split}/{code}", on_wait=_waiting):
                if code in open_corpus(folder).languages_of(split):
                    journal.unlink(missing_ok=True)  # its process was killed at the very end
                    yield Outcome(split, code, was_there=True)
                    continue
                outcome = _Translation(corpus, split, source, code, translator, settings, batch, journal).run()
            yield outcome
            if not outcome.written:
                barren.append(outcome.line())
    if barren:
        raise InputError(f"No row of {'; '.join(barren)} could be kept, so that the corpus has not gained it.")


def plan_translation(
    folder: Path | str, languages: Sequence[str], *, source: str, splits: Sequence[str] | None
) -> tuple[Corpus, tuple[str, ...], tuple[str, ...]]:
    """(corpus, splits, languages) to be translated. Raises `InputError` for whatever cannot be."""
    corpus = open_corpus(folder)
    if not (corpus.folder / CORPUS_FILE).exists():
        raise InputError(
            f"{corpus.folder} holds no {CORPUS_FILE}: only a corpus folder can gain languages. `python -m lvlm corpus "
            "centurio FILE DIR` makes one of a bare file."
        )
    if not corpus.translatable:
        raise InputError(
            f"The corpus '{corpus.name}' ({corpus.folder}) stays in its languages: {CORPUS_FILE} says translatable: "
            "false, as for text in images."
        )
    chosen = tuple(splits or (name for name, permission in corpus.splits.items() if permission == "train"))
    if not chosen:
        raise InputError(f"The corpus '{corpus.name}' has no split with permission train. Name others with --splits.")
    for split in chosen:
        if source not in (there := corpus.languages_of(split)):
            raise InputError(
                f"Corpus '{corpus.name}', split '{split}' has no '{source}' to translate from; it has: "
                f"{', '.join(there)}. Name one of them with --from."
            )
        if lacking := len(corpus.refused(split, source)):
            raise InputError(
                f"Corpus '{corpus.name}', split '{split}': '{source}' is itself a translation, in which {lacking} ids "
                "were refused. Translate from the original."
            )
    for code in languages:
        if (asked := variety(code)).script != asked.language.script:
            raise InputError(
                f"--to {code} is in the script {asked.script}; a corpus has one '{asked.language.code}', which is "
                f"translated into {asked.language.script} ({asked.language.flores or 'no code of FLORES-200'}). Name "
                f"{asked.language.code} if you mean that."
            )
    targets = in_table_order(languages)
    if not targets:
        raise InputError("--to leaves no language to translate into.")
    if source in targets:
        raise InputError(f"--to names {source}, which is translated from. Leave it out.")
    return corpus, chosen, targets


class _Translation:
    """One split into one language."""

    def __init__(
        self,
        corpus: Corpus,
        split: str,
        source: str,
        target: str,
        translator: Translator,
        settings: Mapping[str, Any],
        batch: int,
        journal: Path,
    ) -> None:
        self.corpus, self.split, self.source, self.target = corpus, split, source, target
        self.translator, self.batch = translator, batch
        self.rows: Rows = corpus.rows(split, source)
        self.outcome = Outcome(split, target)
        self.file = corpus.folder / split / f"{target}.jsonl"
        self.ledger = corpus.folder / REFUSED_FOLDER / split / f"{target}.jsonl"
        for file in (self.file, self.file.with_suffix(".json")):
            if file.exists() and not journal.exists():
                raise InputError(
                    f"{file} exists, but {CORPUS_FILE} does not list '{target}'. List it there, or remove the file."
                )
        self.journal = Journal(journal, {**settings, "source": source, "original": self.rows.digest})

    def run(self) -> Outcome:
        partial, refused = _beside(self.file), _beside(self.ledger)
        self.ledger.parent.mkdir(parents=True, exist_ok=True)
        title = f"{self.split}: {self.source} to {self.target}"
        with (
            closing(self.journal),
            open(partial, "w", encoding="utf-8", newline="\n") as out,
            open(refused, "w", encoding="utf-8", newline="\n") as ledger,
        ):
            for _ in shown(self._work(out, ledger), title=title, unit="rows", total=len(self.rows)):
                pass
        if not self.outcome.written:  # the ledger of a language that the corpus has not gained lies apart
            self.ledger = self.journal.path.with_suffix(".refused.jsonl")
        if self.outcome.refused:
            os.replace(refused, self.ledger)
            self.outcome.ledger = self.ledger
        else:
            refused.unlink()
            self.ledger.unlink(missing_ok=True)
        if self.outcome.written:
            os.replace(partial, self.file)
            add_language(self.corpus.folder, self.split, self.target)
        else:
            partial.unlink()
        self.journal.path.unlink()
        return self.outcome

    def _work(self, out: IO[str], ledger: IO[str]) -> Iterator[tuple[None, int]]:
        """Translate and write window by window; yields after each batch how many rows that brings it forward."""
        for window, start in enumerate(range(0, len(self.rows), WINDOW_ROWS)):
            numbers = np.arange(start, min(start + WINDOW_ROWS, len(self.rows)))
            rows = list(self.rows.parse(numbers))
            known = self.journal.window(window)
            batches = self._batches(_to_translate(rows))
            for place, texts in enumerate(batches):
                self._learn(window, texts, known)
                yield None, (place + 1) * len(rows) // len(batches) - place * len(rows) // len(batches)
            lost = [text for texts in batches for text in texts if fault(text, known[text].text) == "numbers"]
            hidden = {text: behind for text in lost if (behind := hide_numbers(text))}
            for texts in self._batches(set(hidden.values())):
                self._learn(window, texts, known)
                yield None, 0
            known |= _with_numbers(hidden, known)
            for number, row in zip(numbers.tolist(), rows, strict=True):
                self._write({**row, "id": self.rows.ids[number]}, known, out, ledger)
            if not batches:
                yield None, len(rows)

    def _learn(self, window: int, texts: Sequence[str], known: dict[str, Translation]) -> None:
        """Translate a batch, unless an earlier run did."""
        if all(text in known for text in texts):
            return
        answers = self.translator.translate(texts, self.source, self.target)
        self.journal.add(window, texts, answers)
        known.update(zip(texts, answers, strict=True))

    def _batches(self, texts: Set[str]) -> list[list[str]]:
        """The texts in batches, longest first; the same for the same texts."""
        ordered = sorted(texts, key=lambda text: (-len(text), text))
        return [ordered[start : start + self.batch] for start in range(0, len(ordered), self.batch)]

    def _write(self, row: Row, known: Mapping[str, Translation], out: IO[str], ledger: IO[str]) -> None:
        self.outcome.rows += 1
        try:
            translated = self._translated(row, known)
        except Refusal as refusal:
            self.outcome.refused[refusal.reason] += 1
            ledger.write(json.dumps({"id": row["id"], "language": self.target, **refusal.entry}) + "\n")
            return
        out.write(json.dumps(translated, ensure_ascii=False) + "\n")
        self.outcome.written += 1

    def _translated(self, row: Row, known: Mapping[str, Translation]) -> Row:
        """The row in the target language. Raises `Refusal`."""
        result = {**row, "language": self.target}
        for name in TRANSLATED:
            if name in row:
                texts = [_translate(f"{name}[{place}]", text, known) for place, text in enumerate(as_list(row[name]))]
                result[name] = texts[0] if isinstance(row[name], str) else texts

        def broken(name: str, rule: str) -> InputError:
            raise Refusal(name, "rule of corpora", str(row.get(name)), rule)

        images = [] if row["image_id"] in ("", [""]) else as_list(row["image_id"])
        (check_test if "text_label" in row else check_train)(result, images, broken)
        return result


def _to_translate(rows: Sequence[Row]) -> set[str]:
    spans = (span for row in rows for _, text in _texts(row) for span in take_apart(text))
    return {span.text for span in spans if span.translated}


def _with_numbers(hidden: Mapping[str, str], known: Mapping[str, Translation]) -> dict[str, Translation]:
    """The translations of texts through those of the same texts with their numbers behind stand-ins, where all came
    back."""
    shown = {text: (known[behind], show_numbers(text, known[behind].text)) for text, behind in hidden.items()}
    return {text: Translation(made) for text, (answer, made) in shown.items() if made and not answer.fault}


def _texts(row: Row) -> Iterator[tuple[str, str]]:
    """(field, text) of all that is translated in a row."""
    for name in TRANSLATED:
        for text in as_list(row.get(name, [])):
            yield name, text


def _translate(name: str, text: str, known: Mapping[str, Translation]) -> str:
    spans: list[Span] = take_apart(text)
    used = {span.text: known[span.text] for span in spans if span.translated}
    made = put_together(spans, {original: answer.text for original, answer in used.items()})
    reasons = [answer.fault or ("" if answer.text.strip() else "empty") for answer in used.values()]
    if reason := next((reason for reason in reasons if reason), "") or fault(text, made):
        raise Refusal(name, reason, text, made)
    return made


def _waiting(owner: str) -> None:
    print(f"waiting for {owner}", file=sys.stderr, flush=True)


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.partial")


def add_language(folder: Path, split: str, code: str) -> None:
    """List a language of a split in corpus.yaml; those of the other splits stay as they are."""
    path = folder / CORPUS_FILE
    with file_lock(folder / WORK_FOLDER / "corpus.lock", purpose=f"adding {split}/{code}"):
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
        before = list(data["languages"])
        data["languages"] = before + [code] * (code not in before)
        for name, entry in data["splits"].items():
            own = list(entry.pop("languages", None) or before)
            own += [code] * (name == split and code not in own)
            if set(own) != set(data["languages"]):
                entry["languages"] = own
        partial = _beside(path)
        partial.write_text(yaml.safe_dump(data, allow_unicode=True, sort_keys=False), encoding="utf-8", newline="\n")
        os.replace(partial, path)
