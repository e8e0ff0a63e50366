"""What an answer is worth: the metric that is a task's score, and those beside it, in the asked language and in any.
Called by `lvlm.evaluate`; torch-free."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from string import ascii_uppercase
from typing import Literal

from lvlm.data.corpus import Corpus, Item
from lvlm.errors import InputError
from lvlm.evaluate.choices import chosen_letter, chosen_word, options
from lvlm.evaluate.cider import Cider
from lvlm.evaluate.metrics import (
    RIGHT,
    WRONG,
    AttributeReader,
    best,
    equal,
    exact,
    normalise,
    normalised,
    relaxed,
    token_f1,
)
from lvlm.evaluate.segments import segmentation
from lvlm.languages import language
from lvlm.records import NAMED_METRICS, TASKS

__all__ = ["MEASURES", "TASKS", "Measure", "Scorer", "scorer_of"]

SHORT = ("exact", "normalised", "relaxed")


@dataclass(frozen=True, slots=True)
class Measure:
    """How a task is scored. Those of the benchmarks are Centurio's (arXiv 2501.05122, appendix), whose relaxed match of
    a letter is here the letter that the answer chooses."""

    score: Literal["attributes", "equal", "exact", "relaxed", "cider"]
    choices: tuple[str, ...] = ()
    """The words or letters that every item asks to choose from; options that a prompt lists are found in it."""
    in_language: bool = True
    """Whether the answer is in the language of the question, and not a letter or a word of English in all of them."""
    together: Callable[[Item], Hashable] | None = None
    """Items of which this is the same also count as a whole; None where each counts for itself alone."""

    @property
    def named(self) -> tuple[str, ...]:
        """The metrics beside the score; of captions only where attributes do not score them."""
        return SHORT if self.score in ("equal", "exact", "relaxed") else ("cider",)


YES_NO = Measure("exact", ("yes", "no"), in_language=False)
LETTER = Measure("relaxed", in_language=False)
MEASURES: Mapping[str, Measure] = {
    "caption": Measure("attributes"),
    **dict.fromkeys(("vqa", "reading", "naming"), Measure("equal")),
    "choice": LETTER,
    "pair": Measure("exact", ("1", "2"), in_language=False),
    "xm3600": Measure("cider"),
    **dict.fromkeys(("maxm", "mtvqa", "smpqa_read"), Measure("exact")),
    "xgqa": Measure("exact", in_language=False),
    "xvnli": Measure("exact", ("yes", "no", "maybe"), in_language=False),
    **dict.fromkeys(("marvl", "vgr", "smpqa_ground"), YES_NO),
    "mme": replace(YES_NO, together=lambda item: (item.source, item.images)),
    "vlod": Measure("relaxed", ("A", "B", "C", "D", "E"), in_language=False),
    **dict.fromkeys(("m3exam", "xmmmu", "bin_mc", "cvqa", "mmmu"), LETTER),
    "paint": Measure("exact", in_language=False),  # its answers are pictures, scored in `lvlm.paint`
    "m3exam_cyclic": replace(LETTER, together=lambda item: item.id.rpartition("-")[0]),
}


class Scorer:
    """Scores the items of one split of a corpus, in percent."""

    def __init__(self, corpus: Corpus, split: str) -> None:
        self.corpus = corpus
        self.split = split
        self.languages = corpus.languages_of(split)
        self.readers = {
            code: AttributeReader.of(attributes, where=f"The attributes of corpus '{corpus.name}', language '{code}'")
            for code in self.languages
            if (attributes := corpus.attributes(code))
        }
        if self.readers and (missing := [code for code in self.languages if code not in self.readers]):
            raise InputError(
                f"The attributes of corpus '{corpus.name}' ({corpus.folder}) lack {', '.join(missing)}: captions would "
                "be scored by another measure in these languages than in the others. Add their surface forms."
            )
        self._translations: dict[str, dict[str, tuple[str, ...]]] = {}
        if corpus.translatable:
            for code in self.languages:
                self._translations[code] = {item.id: item.answers for item in corpus.items(split, code)}
        self._cider: dict[tuple[str, str], Cider] = {}
        self._groups: dict[tuple[str, str], Counter[Hashable]] = {}

    def notes(self, task: str, code: str) -> Iterator[str]:
        """What a reader of this task's scores in a language must know, beyond the names of the metrics."""
        if task == "caption" and not self.readers:
            yield f"caption of {self.corpus.name}: word F1 against the best gold caption, for want of attributes"
        if not self.corpus.translatable and MEASURES[task].in_language:
            yield (
                f"score_any_language of {task} leaves out {self.corpus.name}: it is not translated, so that its items "
                "have gold answers in one language only"
            )
        if "cider" in self.named(task) and (how := segmentation(code)):
            yield f"cider in {language(code).name}: words are found {how}"

    def named(self, task: str) -> tuple[str, ...]:
        """The metrics beside the score."""
        return () if task == "caption" and self.readers else MEASURES[task].named

    def score(self, item: Item, prediction: str) -> float:
        """Against the gold answers in the asked language; NaN when a gold caption names no attribute."""
        return self._compare(item, item.language, prediction, item.answers)

    def score_any_language(self, item: Item, prediction: str) -> float:
        """The best score against the gold answers of the item in any language that has it; NaN where nothing is
        translated, and where the answer is in no language of its own."""
        if not self.corpus.translatable or not MEASURES[item.task].in_language:
            return float("nan")
        own = self.score(item, prediction)
        others = ((code, golds.get(item.id)) for code, golds in self._translations.items() if code != item.language)
        return best([own, *(self._compare(item, code, prediction, golds) for code, golds in others if golds)])

    def beside(self, item: Item, prediction: str) -> dict[str, float]:
        """Every metric beside the score; NaN for those that the task does not have."""
        named = self.named(item.task)
        return {
            metric: self._by(metric, item, item.language, prediction, item.answers) if metric in named else float("nan")
            for metric in NAMED_METRICS
        }

    def random(self, item: Item) -> float:
        """The expected score of an answer drawn from the item's choices; NaN where they are not known."""
        known = _choices(item)
        return sum(self.score(item, choice) for choice in known) / len(known) if known else float("nan")

    def group(self, item: Item) -> tuple[Hashable, int] | None:
        """(what the items that count together with this one share, how many of them the split has); None where the
        task has no such items."""
        if (together := MEASURES[item.task].together) is None:
            return None
        row = item.task, item.language
        if row not in self._groups:
            items = self.corpus.items(self.split, item.language)
            self._groups[row] = Counter(together(one) for one in items if one.task == item.task)
        return together(item), self._groups[row][together(item)]

    def _compare(self, item: Item, code: str, prediction: str, golds: Sequence[str]) -> float:
        return self._by(MEASURES[item.task].score, item, code, prediction, golds)

    def _by(self, metric: str, item: Item, code: str, prediction: str, golds: Sequence[str]) -> float:
        """A metric of an answer, against gold answers in the language `code`."""
        match metric:
            case "attributes":
                reader = self.readers.get(code)
                return reader.f1(prediction, golds) if reader else token_f1(prediction, golds)
            case "cider":
                return self._cider_of(item.task, code).score(item.id, prediction)
            case "equal":
                return equal(prediction, golds)
            case "exact":
                return exact(prediction, golds)
            case "normalised":
                return normalised(prediction, golds, code)
            case _:
                return _relaxed(item, code, prediction, golds)

    def _cider_of(self, task: str, code: str) -> Cider:
        """CIDEr with the document frequencies of all items of the split, asked or not."""
        if (task, code) not in self._cider:
            golds = {item.id: item.answers for item in self.corpus.items(self.split, code) if item.task == task}
            self._cider[task, code] = Cider(golds, code)
        return self._cider[task, code]


def _choices(item: Item) -> tuple[str, ...]:
    """What an item asks to choose from: letters that its prompt lists, or what its task always asks for."""
    listed = tuple(options(item.prompt))
    return listed if listed and all(_letter(gold) in listed for gold in item.answers) else MEASURES[item.task].choices


def _letter(gold: str) -> str:
    return gold.strip().upper()


def _relaxed(item: Item, code: str, prediction: str, golds: Sequence[str]) -> float:
    """Whether an answer chooses a gold one; where nothing is to be chosen, whether it begins or ends with one."""
    known = _choices(item)
    if not known:
        return relaxed(prediction, golds, code)
    if all(choice in ascii_uppercase for choice in known):
        texts = options(item.prompt)
        letter = chosen_letter(prediction, {choice: texts.get(choice, "") for choice in known}, code)
        return RIGHT if letter in [_letter(gold) for gold in golds] else WRONG
    word = chosen_word(prediction, known)
    return RIGHT if word in [normalise(gold) for gold in golds] else WRONG


@lru_cache(maxsize=16)
def scorer_of(corpus: Corpus, split: str) -> Scorer:
    """The scorer of a split, made once for an opened corpus: validation asks for it again and again."""
    return Scorer(corpus, split)
