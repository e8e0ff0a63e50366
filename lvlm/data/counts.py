"""How many tokens the samples of a plan have, and how many turns of each fit. Called by `lvlm.data.plan`. What was
counted is remembered by data file and tokenizer, as tokenising a large corpus takes most of the time of planning it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from lvlm.data.checks import IMAGE_PLACEHOLDER
from lvlm.data.memory import Memory, code_digest, memory_name
from lvlm.data.pool import Part, Pool
from lvlm.data.progress import shown
from lvlm.data.readers import Conversation, Rows, Sample
from lvlm.errors import InputError
from lvlm.processes import process_count, process_index

T = TypeVar("T")
Numbers = npt.NDArray[np.int64]
Counts = npt.NDArray[np.int32]
"""(samples, 2): text tokens and supervised tokens of each, image tokens not counted; -1 where they are not known."""
Measure = Callable[[Sequence[Conversation]], Sequence[tuple[int, int]]]
"""(text tokens, supervised tokens) of each conversation, image tokens not counted."""
MEASURED_TOGETHER = 2048
"""Samples that are read and handed to the tokenizer at once: enough to occupy every core, and some megabytes."""
MANY_SAMPLES = 1 << 16
"""Samples of a plan from which on counts are remembered; fewer are tokenised in seconds, and a run that does so has
their tokens ready."""


@dataclass(frozen=True)
class CountMemory:
    """What was counted in data files, under the work folder `home`, by a measure that `key` tells from others."""

    home: Path
    key: str

    @classmethod
    def of(cls, home: Path | None, key: Callable[[], str | None] | None, samples: int) -> CountMemory | None:
        """For a plan of so many samples; None where nothing is remembered."""
        found = key() if home and key and samples >= MANY_SAMPLES else None
        return cls(home, found) if home and found else None

    def recall(self, rows: Rows, columns: int, limit: int | None = None) -> npt.NDArray[np.int32]:
        """(rows, columns): what is known of the rows of a file under a `limit`, -1 elsewhere."""
        unknown = np.full((len(rows), columns), -1, dtype=np.int32)
        found = Memory.under(self.home).recall(self._name(rows, columns, limit), lambda arrays: arrays["counts"])
        return unknown if found is None or found.shape != unknown.shape else found

    def keep(self, rows: Rows, numbers: Numbers, counts: npt.NDArray[np.int32], limit: int | None = None) -> None:
        """Add what was counted in the rows `numbers` of a file to what is known."""
        known = self.recall(rows, counts.shape[1], limit)
        known[numbers] = counts
        Memory.under(self.home).keep(self._name(rows, counts.shape[1], limit), {"counts": known})

    def _name(self, rows: Rows, columns: int, limit: int | None) -> str:
        return memory_name("tokens", self._code, self.key, rows.digest, columns, limit)

    @cached_property
    def _code(self) -> str:
        return code_digest("lvlm.data.counts", "lvlm.data.readers", "lvlm.data.objects")


class Cut(NamedTuple):
    """What is left of a sample that was too long, and what is not."""

    turns: int
    dropped_turns: int
    dropped_images: int
    text_tokens: int
    supervised_tokens: int


def count_tokens(pool: Pool, used: Numbers, measure: Measure, memory: CountMemory | None, *, title: str) -> Counts:
    """The counts of the `used` samples of a pool, each as it stands in its file; those of others are not known.

    Of several processes each begins with other files, and finds in the memory what the others have counted by then.
    """
    counts = np.full((len(pool), 2), -1, dtype=np.int32)
    parts = list(pool.by_part(used))
    first = len(parts) * process_index() // process_count() if memory else 0
    work = _ahead(_uncounted(pool, parts[first:] + parts[:first], memory, counts))
    new: list[Numbers] = []
    for part, numbers, conversations, last in shown(
        work, title=f"{title}: counting tokens", unit="samples", total=len(used)
    ):
        if conversations:
            counts[numbers] = measure(conversations)
        new.append(numbers)
        if last and memory:
            of_file = np.concatenate(new)
            memory.keep(part.rows, pool.row[of_file], counts[of_file])
        if last:
            new.clear()
    return counts


def _uncounted(
    pool: Pool, parts: Sequence[tuple[Part, Numbers]], memory: CountMemory | None, counts: Counts
) -> Iterator[tuple[tuple[Part, Numbers, list[Conversation], bool], int]]:
    """(part, numbers in the pool, their conversations, whether these are the part's last) and how many samples that
    settles, file by file; what is remembered goes into `counts`."""
    for part, numbers in parts:
        unknown = numbers
        if memory:
            counts[numbers] = memory.recall(part.rows, 2)[pool.row[numbers]]
            unknown = numbers[counts[numbers, 0] < 0]
        settled = len(numbers) - len(unknown)
        yield (part, unknown[:0], [], False), settled
        for start in range(0, len(unknown), MEASURED_TOGETHER):
            some = unknown[start : start + MEASURED_TOGETHER]
            last = start + len(some) == len(unknown)
            yield (part, some, part.rows.conversations(pool.row[some]), last), len(some)


def _ahead(things: Iterator[T]) -> Iterator[T]:
    """`things`, each made while its predecessor is at work: the tokenizer needs no lock of Python's."""
    with ThreadPoolExecutor(max_workers=1) as reader:
        following = reader.submit(next, things, None)
        while (thing := following.result()) is not None:
            following = reader.submit(next, things, None)
            yield thing


def cut_turns(
    pool: Pool, over: Numbers, counts: Counts, measure: Measure, memory: CountMemory | None, *, limit: int
) -> Iterator[tuple[Part, int, Cut]]:
    """For each sample of the pool in `over`, whose text tokens exceed `limit`: its part, its number, and how it is cut
    to whole turns that fit."""
    for part, numbers in pool.by_part(over):
        known = np.full((len(numbers), len(Cut._fields)), -1, dtype=np.int32)
        if memory:
            known = memory.recall(part.rows, len(Cut._fields), limit)[pool.row[numbers]]
        new = np.flatnonzero(known[:, 0] < 0)
        for start in range(0, len(new), MEASURED_TOGETHER):
            some = new[start : start + MEASURED_TOGETHER]
            rows = pool.row[numbers[some]]
            samples = part.rows.samples(rows, part.corpus.name)
            text_tokens = counts[numbers[some], 0].tolist()
            known[some] = _fit(samples, measure, limit, text_tokens, [part.rows.where(int(row)) for row in rows])
        if memory and len(new):
            memory.keep(part.rows, pool.row[numbers[new]], known[new], limit)
        for number, cut in zip(numbers.tolist(), known.tolist(), strict=True):
            yield part, number, Cut(*cut)


def _fit(
    samples: Sequence[Sample], measure: Measure, limit: int, text_tokens: list[int], where: Sequence[str]
) -> list[Cut]:
    """How each sample is cut; as a whole it has `text_tokens`, which are too many. All lose their last turn, then those
    that still do not fit the one before it, and so on."""
    turns, cuts = [len(sample.turns) for sample in samples], dict[int, Cut]()
    while left := [index for index in range(len(samples)) if index not in cuts and turns[index] > 1]:
        for index in left:
            turns[index] -= 1
        kept = [keep_turns(samples[index], turns[index]) for index in left]
        counts = measure([(sample.turns, len(sample.images)) for sample in kept])
        for index, sample, (text, supervised) in zip(left, kept, counts, strict=True):
            text_tokens[index] = text
            if text <= limit:
                dropped = len(samples[index].turns) - turns[index], len(samples[index].images) - len(sample.images)
                cuts[index] = Cut(turns[index], *dropped, text, supervised)
    if too_long := [index for index in range(len(samples)) if index not in cuts]:
        raise InputError(
            f"{where[too_long[0]]}, field 'context': the first turn alone has {text_tokens[too_long[0]]} text tokens, "
            f"more than max_text_tokens={limit}. Raise max_text_tokens, or shorten or remove the row."
        )
    return [cuts[index] for index in range(len(samples))]


def keep_turns(sample: Sample, turns: int) -> Sample:
    """The first turns of a sample, with the images that they show."""
    kept = sample.turns[:turns]
    if any(IMAGE_PLACEHOLDER in user for user, _ in sample.turns):
        shown = sum(user.count(IMAGE_PLACEHOLDER) for user, _ in kept)
        return replace(sample, turns=kept, images=sample.images[:shown])
    return replace(sample, turns=kept)
