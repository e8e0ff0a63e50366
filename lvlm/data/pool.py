"""The pool of a stage: every sample of its mix once, each in the one language that the mix gives it.
`lvlm.data.plan` draws from it. A sample is held as two integers (which file, which row), so that millions cost
little.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from lvlm.data.corpus import Corpus
from lvlm.data.mix import LanguageMix, Numbers, hash_order, in_parallel, language_codes, pair_codes
from lvlm.data.readers import Rows
from lvlm.errors import InputError
from lvlm.languages import in_table_order, language
from lvlm.settings import CorpusUse, MixConfig


@dataclass(frozen=True, slots=True)
class PlanEntry:
    """One sample in one language. `number` is its place in the pool of the plan that it comes from."""

    corpus: str
    id: str
    language: str
    split: str = ""
    number: int = field(default=-1, compare=False)


@dataclass(frozen=True, slots=True)
class Part:
    """One language of one corpus in the mix: the pool refers to it by its index."""

    corpus: Corpus
    use: CorpusUse
    language: str
    rows: Rows


@dataclass(frozen=True, slots=True)
class Pool:
    """Every sample of the stage once, sorted by (corpus, split, id, language), as two integers each."""

    parts: tuple[Part, ...]
    part: npt.NDArray[np.int32]
    row: Numbers

    def __len__(self) -> int:
        return len(self.part)

    def entry(self, number: int) -> PlanEntry:
        """A sample by its number in the pool."""
        part = self.parts[self.part[number]]
        return PlanEntry(part.corpus.name, part.rows.ids[self.row[number]], part.language, part.use.split, number)

    def alike(self) -> npt.NDArray[np.bool_]:
        """(samples - 1,): whether each sample and the next have one id, in two languages."""
        names = [(part.corpus.name, part.use.split) for part in self.parts]
        owners = zip(self.part.tolist(), self.row.tolist(), strict=True)
        keys = [(names[part], self.parts[part].rows.ids[row]) for part, row in owners]
        return np.array([one == other for one, other in pairwise(keys)], dtype=bool)

    def by_part(self, numbers: Numbers) -> Iterator[tuple[Part, Numbers]]:
        """`numbers` divided among the parts that have any of them, in their order."""
        owners = self.part[numbers]
        order = np.argsort(owners, kind="stable")
        borders = np.searchsorted(owners[order], np.arange(len(self.parts) + 1))
        for part, start, stop in zip(self.parts, borders, borders[1:], strict=False):
            if start < stop:
                yield part, numbers[order[start:stop]]


Count = Callable[[Pool], npt.NDArray[np.int32]]
"""(samples, 2): text tokens and supervised tokens of every sample of a pool, before anything is cut."""


def gather(mix: MixConfig, corpora: Mapping[str, Corpus], count: Count | None = None) -> tuple[Pool, dict[str, float]]:
    """The pool of a mix, and the English share that holds per translatable corpus and split. Reads only the files that
    it needs. Shares of tokens need `count`, which is given every sample in English and in the other language that it
    may get.
    """
    if not mix.corpora:
        raise InputError("The mix's field 'corpora' is empty: name at least one corpus and split to train on.")
    _check_used_once(mix, corpora)
    usual = {"english_share": None, "allocation": "uniform", "share_of": "samples", "parallel": 0.0}
    idle = [name for name, value in usual.items() if getattr(mix, name) != value]
    if idle and not any(corpora[use.path].translatable for use in mix.corpora):
        raise InputError(
            f"The mix's '{idle[0]}' is {getattr(mix, idle[0])}, but none of its corpora is translatable: every sample "
            f"stays in its language. Leave {idle[0]} out, or add a translatable corpus."
        )
    if mix.share_of != "samples" and count is None:
        raise InputError(
            f"The mix's 'share_of' is {mix.share_of}, but this plan is made without a tokenizer, so that no tokens can "
            "be counted. Plan it with one (`build_plan(..., measure=...)`), or set share_of to samples."
        )
    parts: list[Part] = []
    chosen: list[tuple[int, Numbers]] = []
    shares: dict[str, float] = {}
    for use in mix.corpora:
        corpus = corpora[use.path]
        corpus.require(use.split, "train")
        if corpus.translatable:
            divided, share = _translated(mix, use, corpus, count)
            shares[f"{corpus.name}/{use.split}"] = share
        else:
            divided = _untranslated(use, corpus)
        for code, rows in divided:
            chosen.append((len(parts), rows))
            parts.append(Part(corpus, use, code, corpus.train_rows(use.split, code)))
    part = np.concatenate([np.full(len(rows), index, dtype=np.int32) for index, rows in chosen])
    row = np.concatenate([rows for _, rows in chosen])
    ranks: list[tuple[tuple[str, str], str, str]] = []
    for index, rows in chosen:
        item = parts[index]
        key, ids = (item.corpus.name, item.use.split), item.rows.ids
        ranks += [(key, ids[at], item.language) for at in rows.tolist()]
    places = sorted(range(len(ranks)), key=ranks.__getitem__)
    return Pool(tuple(parts), part[places], row[places]), shares


def _check_used_once(mix: MixConfig, corpora: Mapping[str, Corpus]) -> None:
    """Raise for a sample that two uses would draw: only of a corpus that stays in its languages may a split be used
    several times, for different languages."""
    used: set[tuple[str, str, str]] = set()
    for use in mix.corpora:
        corpus = corpora[use.path]
        whole = corpus.translatable or use.languages is None
        codes = corpus.languages_of(use.split) if whole else in_table_order(use.languages or ())
        for code in codes:
            if (key := (corpus.name, use.split, code)) in used:
                raise InputError(
                    f"The mix's field 'corpora' names corpus '{corpus.name}', split '{use.split}' twice"
                    + ("" if corpus.translatable else f" for '{code}'")
                    + ". Use it once, with more samples."
                )
            used.add(key)


def _translated(
    mix: MixConfig, use: CorpusUse, corpus: Corpus, count: Count | None
) -> tuple[list[tuple[str, Numbers]], float]:
    if use.languages is not None:
        raise InputError(
            f"The mix gives 'languages' for corpus '{corpus.name}', which is translatable: its languages are those of "
            "the mix. "
            "Leave them out there, and set mix.languages."
        )
    if use.samples_per_language is not None:
        raise InputError(
            f"The mix gives 'samples_per_language' for corpus '{corpus.name}', which is translatable: how many samples "
            "a language gets follows from the mix. Give 'samples' there, and mix.english_share and mix.allocation."
        )
    asked = LanguageMix.of(mix, corpus.languages_of(use.split), corpus=corpus.name)
    first = asked.languages[0]
    ids = corpus.ids(use.split) if corpus.refused(use.split, first) else corpus.train_rows(use.split, first).ids
    drawn = _Drawn(use, corpus, asked.languages, ids, _draw_use(use, corpus, ids))

    def tokens(chosen: Numbers, codes: Numbers) -> Numbers:
        assert count is not None
        column = {"tokens": 0, "supervised_tokens": 1}[mix.share_of]
        return count(drawn.pool(chosen, codes.copy()))[:, column].astype(np.int64)

    pool_ids = drawn.names(np.arange(len(drawn.places)))
    chosen, share = np.arange(len(pool_ids)), asked.english_share
    if asked.pivot is not None:
        assert mix.pairs is not None
        codes = pair_codes(pool_ids, languages=asked.languages, pivot=asked.pivot, pairs=mix.pairs)
        share = float(np.mean([asked.languages[number] == "en" for number in codes.tolist()]))
    else:
        codes, _ = language_codes(
            pool_ids,
            languages=asked.languages,
            english_share=asked.english_share,
            allocation=asked.allocation,
            tokens=None if mix.share_of == "samples" else tokens,
        )
    if mix.parallel:
        chosen, codes = _two_by_two(mix, drawn, codes)
        share = float(np.mean([asked.languages[number] == "en" for number in codes.tolist()]))
    divided = drawn.divide(chosen, codes)
    return [(code, rows) for code, _, rows in divided], share


def _two_by_two(mix: MixConfig, drawn: _Drawn, codes: Numbers) -> tuple[Numbers, Numbers]:
    """(ids, codes) of the samples of a mix of which some come in pairs; an id that lacks a language comes alone."""
    names, use, corpus = drawn.names(np.arange(len(codes))), drawn.use, drawn.corpus
    lacking = frozenset[str]().union(*(corpus.refused(use.split, code) for code in drawn.languages))
    order = hash_order(names, salt="parallel")
    alone = np.array([names[at] in lacking for at in order.tolist()], dtype=bool)
    whole = int(np.count_nonzero(~alone))
    if mix.parallel * len(codes) > 2 * whole:
        raise InputError(
            f"The mix asks for parallel={mix.parallel} of corpus '{corpus.name}', split '{use.split}', where only "
            f"{whole} of {len(codes)} samples are translated into every language of the mix. Lower the share, or leave "
            "out the languages in which translations were refused."
        )
    pivot = drawn.languages.index(language(mix.pivot).code)
    others = [number for number in range(len(drawn.languages)) if number != pivot]
    order = np.concatenate([order[~alone], order[alone]])
    return in_parallel(codes, order, pivot=pivot, others=others, share=mix.parallel)


@dataclass(frozen=True, slots=True)
class _Drawn:
    """The ids of a translatable corpus that a mix has drawn: `places` in `ids`."""

    use: CorpusUse
    corpus: Corpus
    languages: Sequence[str]
    ids: Sequence[str]
    places: Numbers

    def names(self, chosen: Numbers) -> list[str]:
        return [self.ids[place] for place in self.places[chosen].tolist()]

    def divide(self, chosen: Numbers, codes: Numbers) -> Iterator[tuple[str, Numbers, Numbers]]:
        """For each language that any of the chosen ids get, and that takes those refused elsewhere: which of them get
        it, and their rows in its file. `codes` are indices into `languages`, changed where a sample was refused."""
        names = self.names(chosen)
        _keep_what_was_refused(codes, self.languages, names, self.use, self.corpus)
        for number in np.unique(codes).tolist():
            own = np.flatnonzero(codes == number)
            rows = self.corpus.train_rows(self.use.split, self.languages[number])
            numbers = self.places[chosen[own]]
            if rows.ids != self.ids:
                numbers = np.array([rows.row_of(names[at]) for at in own.tolist()], dtype=np.int64)
            yield self.languages[number], own, numbers

    def pool(self, chosen: Numbers, codes: Numbers) -> Pool:
        """The chosen ids, each in its language, in their order."""
        parts, part, row = list[Part](), np.empty(len(chosen), dtype=np.int32), np.empty(len(chosen), dtype=np.int64)
        for code, own, numbers in self.divide(chosen, codes):
            part[own], row[own] = len(parts), numbers
            parts.append(Part(self.corpus, self.use, code, self.corpus.train_rows(self.use.split, code)))
        return Pool(tuple(parts), part, row)


def _keep_what_was_refused(
    codes: Numbers, languages: Sequence[str], ids: Sequence[str], use: CorpusUse, corpus: Corpus
) -> None:
    """Change `codes` where a sample's translation into its language was refused: it takes the first language of the mix
    that has it, which is English where the mix has English."""
    refused = [corpus.refused(use.split, code) for code in languages]
    for number in range(len(languages)):
        for at in np.flatnonzero(codes == number).tolist() if refused[number] else ():
            if ids[at] in refused[number]:
                other = next((place for place, names in enumerate(refused) if ids[at] not in names), None)
                if other is None:
                    raise InputError(
                        f"Corpus '{corpus.name}', split '{use.split}', id '{ids[at]}': its translation was refused in "
                        f"every language of the mix ({', '.join(languages)}). Add a language that has it, such as that "
                        "of the original."
                    )
                codes[at] = other


def _untranslated(use: CorpusUse, corpus: Corpus) -> list[tuple[str, Numbers]]:
    languages = in_table_order(use.languages) if use.languages is not None else corpus.languages_of(use.split)
    if not languages:
        raise InputError(
            f"The mix gives an empty list of 'languages' for corpus '{corpus.name}'. Leave it out for all of them."
        )
    rows = {code: corpus.train_rows(use.split, code) for code in languages}
    numbers = {code: corpus.row_numbers(use.split, code) for code in languages}
    if use.samples_per_language is not None:
        return [(code, numbers[code][_draw_of_language(use, corpus, rows[code], numbers[code])]) for code in languages]
    names = [f"{rows[code].ids[row]}\0{code}" for code in languages for row in numbers[code]]
    drawn = np.zeros(len(names), dtype=bool)
    drawn[_draw_use(use, corpus, names)] = True
    result, start = [], 0
    for code in languages:
        own = drawn[start : start + len(numbers[code])]
        start += len(numbers[code])
        if own.any():
            result.append((code, numbers[code][own]))
    return result


def _draw_of_language(use: CorpusUse, corpus: Corpus, rows: Rows, numbers: Numbers) -> Numbers:
    """The places of the `use.samples_per_language` first rows of a language in an order that only the ids determine."""
    wanted = use.samples_per_language
    if wanted is not None and wanted > len(numbers):
        raise InputError(
            f"The mix asks for samples_per_language={wanted} of corpus '{corpus.name}', split '{use.split}', but "
            f"{rows.path.name} has {len(numbers)}. Lower the number, or leave it out for all."
        )
    return np.sort(hash_order([rows.ids[row] for row in numbers.tolist()], salt="samples")[:wanted])


def _draw_use(use: CorpusUse, corpus: Corpus, names: Sequence[str]) -> Numbers:
    """The places of the `use.samples` first names in an order that only the names determine."""
    if use.samples is None:
        return np.arange(len(names), dtype=np.int64)
    if use.samples > len(names):
        raise InputError(
            f"The mix asks for samples={use.samples} of corpus '{corpus.name}', split '{use.split}', which has "
            f"{len(names)}. "
            "Lower the number, or leave it out for all."
        )
    return np.sort(hash_order(names, salt="samples")[: use.samples])
