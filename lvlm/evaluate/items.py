"""Which items an evaluation asks: the splits, languages, tasks and number of the config, checked before anything runs.
Called by `lvlm.evaluate`; torch-free."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from lvlm.data.corpus import Corpus, Item, Permission
from lvlm.data.mix import hash_order
from lvlm.errors import InputError
from lvlm.evaluate.tasks import MEASURES, TASKS
from lvlm.languages import group_languages, in_table_order, is_group, language
from lvlm.settings import CorpusUse, EvaluateConfig


@dataclass(frozen=True, slots=True)
class Asked:
    """One item with the corpus and split that it comes from."""

    item: Item
    corpus: Corpus
    split: str

    @property
    def row(self) -> tuple[str, str]:
        """(task, language): the row of scores that the item belongs to."""
        return self.item.task, self.item.language


def asked_items(config: EvaluateConfig, corpora: Mapping[str, Corpus], *, permission: Permission) -> list[Asked]:
    """The items of `config.corpora`, by task and then by language in the order of the table.

    `corpora` maps the paths of the config to opened corpora. With `items` every (task, language) takes from each corpus
    in turn, in an order that only the ids determine, so that shared ids are the same ones in every language. `samples`
    of a `CorpusUse` counts ids per language.
    """
    if config.tasks is not None and (unknown := [task for task in config.tasks if task not in TASKS]):
        names = ", ".join(unknown)
        raise InputError(f"evaluate.tasks names {names}, which cannot be scored. Tasks are: {', '.join(TASKS)}.")
    languages = _languages(config, [corpora[use.path] for use in config.corpora])
    rows: dict[tuple[str, str], list[tuple[int, int, Asked]]] = {}
    for number, use in enumerate(config.corpora):
        corpora[use.path].require(use.split, permission)
        ranks: Counter[tuple[str, str]] = Counter()
        for asked in _of_use(use, corpora[use.path], languages):
            if config.tasks is None or asked.item.task in config.tasks:
                rows.setdefault(asked.row, []).append((ranks[asked.row], number, asked))
                ranks[asked.row] += 1
    result: list[Asked] = []
    for row in sorted(rows, key=lambda row: (TASKS.index(row[0]), languages.index(row[1]))):
        members = sorted(rows[row], key=lambda member: member[:2])
        _check_unique([asked for _, _, asked in members])
        result += [asked for _, _, asked in members[: config.items]]
    _check_found(config, result)
    return [_named(asked) for asked in result] if config.name_language else result


def _named(asked: Asked) -> Asked:
    """The same, asked with the name of its language, where the answer is in one."""
    item = asked.item
    if not MEASURES[item.task].in_language:
        return asked
    return replace(asked, item=replace(item, prompt=f"{item.prompt}\nAnswer in {language(item.language).name}."))


def _languages(config: EvaluateConfig, corpora: Sequence[Corpus]) -> tuple[str, ...]:
    available = in_table_order(code for corpus in corpora for code in corpus.languages)
    if isinstance(config.languages, str) and is_group(config.languages):
        return group_languages(config.languages, available)
    wanted = _by_code(config)
    if missing := [code for code in wanted if code not in available]:
        raise InputError(
            f"evaluate.languages names {', '.join(missing)}, which no corpus of the evaluation has. "
            f"They have: {', '.join(available) or 'none'}."
        )
    return wanted


def _of_use(use: CorpusUse, corpus: Corpus, languages: Sequence[str]) -> Iterator[Asked]:
    """The items of one corpus, language by language, in an order that only their ids determine."""
    here = corpus.languages_of(use.split)
    wanted = here if use.languages is None else in_table_order(use.languages)
    if missing := [code for code in wanted if code not in here]:
        raise InputError(
            f"The evaluation asks for {', '.join(missing)} in corpus '{corpus.name}', split '{use.split}', "
            f"which has: {', '.join(here)}."
        )
    for code in here:
        if code not in languages or code not in wanted:
            continue
        items = corpus.items(use.split, code)
        for place in hash_order([item.id for item in items], salt="samples")[: use.samples]:
            item = items[place]
            if item.task not in TASKS:
                raise InputError(
                    f"Corpus '{corpus.name}' ({corpus.folder}), split '{use.split}', language '{code}', "
                    f"id '{item.id}', field 'task': '{item.task}' cannot be scored. Tasks are: {', '.join(TASKS)}."
                )
            yield Asked(item, corpus, use.split)


def _check_unique(members: Sequence[Asked]) -> None:
    first: dict[str, Asked] = {}
    for asked in members:
        other = first.setdefault(asked.item.id, asked)
        if other is not asked:
            raise InputError(
                f"The evaluation would score the id '{asked.item.id}' of task '{asked.item.task}' in "
                f"'{asked.item.language}' twice: from {other.corpus.name}/{other.split} and "
                f"{asked.corpus.name}/{asked.split}. Name a split once, and give rows of different corpora ids of "
                "their own (field 'id')."
            )


def _check_found(config: EvaluateConfig, result: Sequence[Asked]) -> None:
    if not config.corpora:
        return
    if not result:
        raise InputError("The evaluation finds no item: its languages and tasks leave nothing of its corpora.")
    if absent := set(config.tasks or ()) - {asked.item.task for asked in result}:
        names = ", ".join(sorted(absent))
        raise InputError(f"evaluate.tasks names {names}, but no corpus of the evaluation has such items.")
    if absent := set(_by_code(config)) - {asked.item.language for asked in result}:
        names = ", ".join(in_table_order(absent))
        splits = ", ".join(dict.fromkeys(f"{use.path}:{use.split}" for use in config.corpora))
        raise InputError(
            f"evaluate.languages names {names}, but no item of the evaluation is in such a language (splits: {splits}; "
            f"tasks: {', '.join(config.tasks) if config.tasks else 'all'}). Leave the language out, name a corpus or a "
            "split that has it, or ask for a group, which takes what is there."
        )


def _by_code(config: EvaluateConfig) -> tuple[str, ...]:
    """The languages that are asked for by their codes; none where it is a group."""
    if not isinstance(config.languages, str):
        return in_table_order(config.languages)
    return () if is_group(config.languages) else in_table_order([config.languages])
