"""From a model to scores: every item is asked once, scored in the asked and in any language, and its language told.
Called by `lvlm.run` for the record and the validation curve; torch and pandas are imported when answers are generated
and scored, and not before."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, Protocol

from lvlm.data.corpus import IMAGE_PLACEHOLDER, Corpus, Item, Permission
from lvlm.evaluate.detectors import PACKAGED, Detector, detector_notes, open_detector
from lvlm.evaluate.fidelity import LanguageDetector, fidelity, undetermined
from lvlm.evaluate.items import Asked, asked_items
from lvlm.evaluate.kept import KeptAnswers
from lvlm.evaluate.metrics import majority, normalise
from lvlm.evaluate.tasks import MEASURES, TASKS, Scorer, scorer_of
from lvlm.records import ANSWER_METRICS, NAMED_METRICS, PREDICTION_COLUMNS, SCORE_COLUMNS
from lvlm.settings import EvaluateConfig

if TYPE_CHECKING:
    import pandas as pd

    from lvlm.evaluate.generate import Beginnings, ImageFeatures, Prompt

CONSTANT, FEW = 0.95, 10
"""From this share of equal answers on, in rows of at least so many items, answers count as constant."""
TRAINING_ROWS = 500
"""Training rows per language and split from which the detector learns the words of an untranslatable corpus."""


class Answerer(Protocol):
    """What answers prompts: `generate_answers` with its model, or another engine. See there for the arguments."""

    def __call__(
        self,
        prompts: Sequence[Prompt],
        *,
        max_new_tokens: int,
        known: Mapping[int, str] | None = None,
        on_answers: Callable[[Mapping[int, str]], None] | None = None,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> list[str]: ...


def evaluate(
    model: Any,
    processor: Any,
    config: EvaluateConfig,
    corpora: Mapping[str, Corpus],
    *,
    permission: Permission = "report",
    features: ImageFeatures | None = None,
    batch_size: int = 64,
    detector: Detector | None = None,
    keep: KeptAnswers | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(scores, predictions) of a model on `config.corpora`, with the columns of `lvlm.records`; values in percent.

    `corpora` maps the paths of the config to opened corpora. A split without `permission` (`report`, or `tune` while
    training) is refused. `features` maps image files to tower output; None computes it from pixels. Under several
    processes each answers its share and all return the same tables. `scores.attrs["notes"]` says what a reader of the
    scores must know. With `keep`, answers that an evaluation of the same has left are taken from there, and the caller
    removes them when the tables are written. `on_progress(done, total)` counts items.
    """
    from lvlm.evaluate.generate import generate_answers

    answerer = partial(generate_answers, model, processor, batch_size=batch_size, features=features)
    return evaluate_with(
        answerer, config, corpora, permission=permission, detector=detector, keep=keep, on_progress=on_progress
    )


def evaluate_with(
    answerer: Answerer,
    config: EvaluateConfig,
    corpora: Mapping[str, Corpus],
    *,
    permission: Permission = "report",
    detector: Detector | None = None,
    keep: KeptAnswers | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """`evaluate` for whatever answers prompts."""
    asked = asked_items(config, corpora, permission=permission)
    for entry in asked:
        scorer_of(entry.corpus, entry.split)  # a fault in the corpus shows before the model has worked
    told = dict.fromkeys(corpora.values(), detector) if detector else detectors(config, corpora)
    answers = _answers(answerer, asked, config, keep, on_progress)
    scores, predictions = score_answers(asked, answers, told)
    scores.attrs["notes"] += detector_notes(told, predictions)
    return scores, predictions


def detectors(config: EvaluateConfig, corpora: Mapping[str, Corpus]) -> dict[Corpus, Detector]:
    """What tells the language of answers to each corpus of an evaluation: `EvaluateConfig.detector` says which."""
    used = list(dict.fromkeys(corpora[use.path] for use in config.corpora))
    own = [corpus for corpus in used if config.detector == "corpus" or (config.detector == "auto" and corpus.closed)]
    name = PACKAGED if config.detector == "auto" else config.detector
    return {corpus: corpora_detector(*own) if corpus in own else open_detector(name) for corpus in used}


def corpora_detector(*corpora: Corpus) -> LanguageDetector:
    """A detector of the corpora's languages, fitted on their text, once for the same opened corpora.

    It learns from what may be asked and answered: prompts and gold answers of the splits for tuning and reporting,
    surface forms of the attributes, and the first training rows of untranslatable corpora, whose words differ.
    """
    return _fitted(tuple(dict.fromkeys(corpora)))


@lru_cache(maxsize=8)
def _fitted(corpora: tuple[Corpus, ...]) -> LanguageDetector:
    texts: dict[str, list[str]] = {}
    for corpus in corpora:
        for split, permission in corpus.splits.items():
            for code in corpus.languages_of(split):
                known = texts.setdefault(code, [])
                if permission != "train":
                    known += [text for item in corpus.items(split, code) for text in (item.prompt, *item.answers)]
                elif not corpus.translatable:
                    numbers = corpus.row_numbers(split, code)[:TRAINING_ROWS]
                    samples = corpus.train_rows(split, code).iter_samples(numbers, corpus.name)
                    known += [text for sample in samples for turn in sample.turns for text in turn]
        for code in corpus.languages:
            texts.setdefault(code, []).extend(corpus.attributes(code))
    return LanguageDetector.fit(
        {code: [text.replace(IMAGE_PLACEHOLDER, " ") for text in known] for code, known in texts.items()}
    )


def _answers(
    answerer: Answerer,
    asked: Sequence[Asked],
    config: EvaluateConfig,
    keep: KeptAnswers | None,
    on_progress: Callable[[int, int], None] | None,
) -> list[str]:
    """One answer per item, task by task: answers of one task are of similar length, so that batches stay full."""
    from lvlm.evaluate.generate import Prompt

    limit = config.max_new_tokens
    known = keep.open(asked, limit, config.forced_tokens) if keep else {}
    answers: list[str] = []

    def of_task(prompts: list[Prompt], before: int) -> list[str]:
        def add(found: Mapping[int, str]) -> None:
            if keep:
                keep.add({before + number: answer for number, answer in found.items()})

        def tell(done: int, _: int) -> None:
            if on_progress:
                on_progress(before + done, len(asked))

        here = {place - before: answer for place, answer in known.items() if 0 <= place - before < len(prompts)}
        return answerer(prompts, max_new_tokens=limit, known=here, on_answers=add, on_progress=tell)

    for task in TASKS:
        prompts = [
            Prompt(
                entry.item.prompt,
                tuple(entry.corpus.image_path(image) for image in entry.item.images),
                name=f"{task}/{entry.item.language}/{entry.item.id}",
                beginnings=_beginnings(entry, config.forced_tokens),
            )
            for entry in asked
            if entry.item.task == task
        ]
        answers += of_task(prompts, len(answers))
    return answers


def _beginnings(entry: Asked, tokens: int) -> Beginnings | None:
    """What the answer to an item may begin with, where that is forced."""
    from lvlm.evaluate.generate import Beginnings

    if not tokens or not MEASURES[entry.item.task].in_language:
        return None
    return Beginnings(_golds(entry.corpus, entry.split, *entry.row), tokens)


@lru_cache(maxsize=1024)
def _golds(corpus: Corpus, split: str, task: str, language: str) -> tuple[str, ...]:
    items = corpus.items(split, language)
    return tuple(dict.fromkeys(gold for item in items if item.task == task for gold in item.answers))


def score_answers(
    asked: Sequence[Asked], answers: Sequence[str], detector: Detector | Mapping[Corpus, Detector]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(scores, predictions) from one answer per item; every item counts once. One detector tells the language of all
    answers, or one for each corpus."""
    import pandas as pd

    detector_of = detector if isinstance(detector, Mapping) else {entry.corpus: detector for entry in asked}
    rows = []
    notes: dict[str, None] = {}
    for entry, answer in zip(asked, answers, strict=True):
        item, scorer = entry.item, scorer_of(entry.corpus, entry.split)
        notes |= dict.fromkeys(scorer.notes(item.task, item.language))
        rows.append(
            {
                "task": item.task,
                "language": item.language,
                "item": item.id,
                "source": item.source,
                "prompt": item.prompt,
                "answer": " | ".join(item.answers),
                "prediction": answer,
                "score": scorer.score(item, answer),
                "score_any_language": scorer.score_any_language(item, answer),
                "answer_language": detector_of[entry.corpus].detect(answer),
                **scorer.beside(item, answer),
            }
        )
    predictions = pd.DataFrame(rows, columns=list(PREDICTION_COLUMNS))
    scores = pd.DataFrame(_score_rows(asked, rows), columns=list(SCORE_COLUMNS))
    scores.attrs["notes"] = [*notes, *constant_answers(predictions)]
    return scores, predictions


def _score_rows(asked: Sequence[Asked], rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, str, float, int]]:
    members: dict[tuple[str, str], list[int]] = {}
    for place, entry in enumerate(asked):
        members.setdefault(entry.row, []).append(place)
    result = []
    for (task, language), places in members.items():
        items = [asked[place].item for place in places]
        scorers = [scorer_of(asked[place].corpus, asked[place].split) for place in places]
        constant = majority([item.answers for item in items])
        detected = [rows[place]["answer_language"] for place in places]
        pairs = list(zip(scorers, items, strict=True))
        values = {
            "score": _mean([rows[place]["score"] for place in places]),
            "score_any_language": _mean([rows[place]["score_any_language"] for place in places]),
            "fidelity": fidelity(detected, [language] * len(places)),
            "undetermined": undetermined(detected),
            "majority": _mean([scorer.score(item, constant) for scorer, item in pairs]),
            "random": _mean([scorer.random(item) for scorer, item in pairs]),
            "together": _together(pairs, [rows[place]["score"] for place in places]),
            **{metric: _mean([rows[place][metric] for place in places]) for metric in NAMED_METRICS},
        }
        absent = set(NAMED_METRICS) - {metric for scorer in scorers for metric in scorer.named(task)}
        if not MEASURES[task].in_language:
            absent |= {"score_any_language", "fidelity", "undetermined"}
        if not values["random"][1]:
            absent.add("random")
        if not MEASURES[task].together:
            absent.add("together")
        result += [(task, language, metric, *values[metric]) for metric in ANSWER_METRICS if metric not in absent]
    return result


def constant_answers(predictions: pd.DataFrame) -> list[str]:
    """One line for every (task, language) where nearly all answers are one and the same though the gold answers are
    not: its score is that of a constant, and shows nothing learnt. Rows of fewer than `FEW` items say nothing."""
    notes = []
    for (task, language), rows in predictions.groupby(["task", "language"], sort=False):
        answers = rows["prediction"].map(normalise).value_counts()
        golds = rows["answer"].value_counts()
        if len(rows) < FEW or answers.iloc[0] < CONSTANT * len(rows) or golds.iloc[0] >= CONSTANT * len(rows):
            continue
        said = rows["prediction"][rows["prediction"].map(normalise) == answers.index[0]].iloc[0]
        notes.append(
            f"{task} in {language}: {answers.iloc[0]} of {len(rows)} answers are {said[:60]!r}, whatever is asked; "
            "its score is that of a constant"
        )
    return notes


def _together(pairs: Sequence[tuple[Scorer, Item]], scores: Sequence[float]) -> tuple[float, int]:
    """(percent of the groups of items that are right as a whole, number of groups), of those asked as a whole."""
    groups: dict[tuple[Scorer, Hashable, int], list[float]] = {}
    for (scorer, item), score in zip(pairs, scores, strict=True):
        if group := scorer.group(item):
            groups.setdefault((scorer, *group), []).append(score)
    return _mean([min(some) for (_, _, size), some in groups.items() if len(some) == size])


def _mean(values: Sequence[float]) -> tuple[float, int]:
    """(mean, number) of the values that are known; NaN when none is."""
    known = [value for value in values if value == value]
    return (sum(known) / len(known) if known else float("nan")), len(known)
