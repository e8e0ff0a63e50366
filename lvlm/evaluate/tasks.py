"""What an answer is worth: `caption` by attributes, `vqa` and `reading` by equality, in the asked language and in any.
Called by `lvlm.evaluate`; torch-free."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

from lvlm.data.corpus import Corpus, Item
from lvlm.errors import InputError
from lvlm.evaluate.metrics import AttributeReader, best, normalised, token_f1

TASKS = ("caption", "vqa", "reading", "naming", "choice", "pair")
"""In the order of every table."""


class Scorer:
    """Scores the items of one split of a corpus, in percent."""

    def __init__(self, corpus: Corpus, split: str) -> None:
        self.corpus = corpus
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

    def notes(self, task: str) -> Iterator[str]:
        """What a reader of this task's scores must know, beyond the names of the metrics."""
        if task == "caption" and not self.readers:
            yield f"caption of {self.corpus.name}: word F1 against the best gold caption, for want of attributes"
        if not self.corpus.translatable:
            yield (
                f"score_any_language of {task} leaves out {self.corpus.name}: it is not translated, so that its items "
                "have gold answers in one language only"
            )

    def score(self, item: Item, prediction: str) -> float:
        """Against the gold answers in the asked language; NaN when a gold caption names no attribute."""
        return self._compare(item.task, item.language, prediction, item.answers)

    def score_any_language(self, item: Item, prediction: str) -> float:
        """The best score against the gold answers of the item in any language; NaN where nothing is translated."""
        if not self.corpus.translatable:
            return float("nan")
        own = self.score(item, prediction)
        others = {code: golds[item.id] for code, golds in self._translations.items() if code != item.language}
        return best([own, *(self._compare(item.task, code, prediction, golds) for code, golds in others.items())])

    def _compare(self, task: str, language: str, prediction: str, golds: Sequence[str]) -> float:
        if task != "caption":
            return normalised(prediction, golds)
        reader = self.readers.get(language)
        return reader.f1(prediction, golds) if reader else token_f1(prediction, golds)


@lru_cache(maxsize=16)
def scorer_of(corpus: Corpus, split: str) -> Scorer:
    """The scorer of a split, made once for an opened corpus: validation asks for it again and again."""
    return Scorer(corpus, split)
