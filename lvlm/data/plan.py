"""The plan of a stage: which sample, in which language, in which order, and what was cut. The trainer walks it step
by step; `python -m lvlm plan` prints it. Its hash identifies the data that a stage sees.
"""

from __future__ import annotations

import hashlib
import math
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from lvlm.data.corpus import Corpus
from lvlm.data.counts import CountMemory, Counts, Cut, Measure, count_tokens, cut_turns, keep_turns
from lvlm.data.fertility import Fertility, fertility_lines, measure_fertility
from lvlm.data.ledger import Ledger
from lvlm.data.pool import PlanEntry, Pool, gather
from lvlm.data.readers import Sample
from lvlm.data.tally import Tally, add_up, lines, realised, total_rows
from lvlm.errors import InputError
from lvlm.languages import language
from lvlm.paint_settings import PaintConfig
from lvlm.settings import StageConfig, Unit

HASHED_TOGETHER = 1 << 16


class PlanOrder(Sequence[PlanEntry]):
    """The entries of a plan in training order; made when asked for, held as integers."""

    def __init__(self, pool: Pool, numbers: npt.NDArray[np.int64]) -> None:
        self._pool, self.numbers = pool, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, index: int) -> PlanEntry: ...
    @overload
    def __getitem__(self, index: slice) -> list[PlanEntry]: ...
    def __getitem__(self, index: int | slice) -> PlanEntry | list[PlanEntry]:
        if isinstance(index, slice):
            return [self._pool.entry(int(number)) for number in self.numbers[index]]
        return self._pool.entry(int(self.numbers[index]))

    def __iter__(self) -> Iterator[PlanEntry]:
        return (self._pool.entry(int(number)) for number in self.numbers)


@dataclass(frozen=True)
class Plan:
    """The manifest of a stage."""

    stage: str
    batch_samples: int
    order: PlanOrder
    epochs: float
    ledger: Ledger
    english_share: dict[str, float]
    """Per translatable corpus and split: the share that holds (a default is resolved here)."""
    share_of: Unit
    """What the shares of the mix are meant of."""
    fertility: dict[str, Fertility] | None
    """By language; None where nothing was measured."""
    digests: dict[str, str]
    """Per corpus and split: the content of the files read."""
    hash: str
    _pool: Pool
    _tokens: Counts | None
    """Of the samples of the pool as they are trained on."""
    _cuts: dict[int, Cut]
    """By number in the pool."""

    @property
    def steps(self) -> int:
        """Optimizer steps; the last one may be short."""
        return math.ceil(len(self.order) / self.batch_samples)

    def step_entries(self, step: int) -> list[PlanEntry]:
        """The samples of one optimizer step, from 0."""
        if not 0 <= step < self.steps:
            raise IndexError(f"step {step} of a plan with {self.steps} steps")
        return self.order[step * self.batch_samples : (step + 1) * self.batch_samples]

    def sample(self, entry: PlanEntry) -> Sample:
        """The sample of an entry as it is trained on: read from its file, without the turns that were cut."""
        part = self._pool.parts[self._pool.part[entry.number]]
        (sample,) = part.rows.samples(self._pool.row[entry.number : entry.number + 1], part.corpus.name)
        cut = self._cuts.get(entry.number)
        return sample if cut is None else keep_turns(sample, cut.turns)

    def image_paths(self, entry: PlanEntry) -> tuple[Path, ...]:
        """Where the images of an entry lie, in order; reads no file."""
        part = self._pool.parts[self._pool.part[entry.number]]
        images = part.rows.image_rows(self._pool.row[entry.number]).tolist()
        if cut := self._cuts.get(entry.number):
            images = images[: len(images) - cut.dropped_images]
        return tuple(part.corpus.image_path(part.rows.images[index]) for index in images)

    def tokens(self, entry: PlanEntry) -> tuple[int, int]:
        """(text tokens, supervised tokens) of an entry of a measured plan."""
        assert self._tokens is not None
        text, supervised = self._tokens[entry.number].tolist()
        return text, supervised

    def per_sample(self) -> npt.NDArray[np.int64]:
        """(samples, 3): text tokens, supervised tokens and images of every sample of a measured plan as it is trained
        on, in training order."""
        assert self._tokens is not None
        found = np.zeros((len(self._pool), 3), dtype=np.int64)
        found[:, :2] = self._tokens
        for part, numbers in self._pool.by_part(np.arange(len(self._pool))):
            rows = self._pool.row[numbers]
            found[numbers, 2] = part.rows.image_starts[rows + 1] - part.rows.image_starts[rows]
        for number, cut in self._cuts.items():
            found[number, 2] -= cut.dropped_images
        return found[self.order.numbers]

    def lengths(self, image_tokens: int) -> npt.NDArray[np.int64]:
        """(samples,): tokens of every sample of a measured plan, in training order, with `image_tokens` for each of its
        images."""
        found = self.per_sample()
        lengths: npt.NDArray[np.int64] = found[:, 0] + image_tokens * found[:, 2]
        return lengths

    def tallies(self) -> list[Tally]:
        """Counts by corpus, split, language and source, over the whole order."""
        times = np.bincount(self.order.numbers, minlength=len(self._pool))
        used, was_cut = np.flatnonzero(times), np.fromiter(self._cuts, dtype=np.int64, count=len(self._cuts))
        result: list[Tally] = []
        for part, numbers in self._pool.by_part(used):
            rows = self._pool.row[numbers]
            sources = part.rows.source_codes[rows]
            images = part.rows.image_starts[rows + 1] - part.rows.image_starts[rows]
            for code in np.unique(sources):
                of_source = sources == code
                mine, weight = numbers[of_source], times[numbers[of_source]]
                tally = Tally(
                    part.corpus.name, part.use.split, part.corpus.translatable, part.language, part.rows.sources[code]
                )
                tally.samples = int(weight.sum())
                tally.images = int((images[of_source] * weight).sum())
                if self._tokens is not None:
                    tally.text_tokens, tally.supervised_tokens = (weight @ self._tokens[mine]).tolist()
                for number in mine[np.isin(mine, was_cut)].tolist():
                    times_seen = int(times[number])
                    tally.cut_samples += times_seen
                    tally.cut_turns += self._cuts[number].dropped_turns * times_seen
                    tally.images -= self._cuts[number].dropped_images * times_seen
                result.append(tally)
        return result

    @property
    def counts(self) -> dict[str, int | None]:
        """Samples, images and tokens of the whole stage."""
        total = add_up(self.tallies(), lambda tally: "all")["all"]
        return {
            "samples": total.samples,
            "images": total.images,
            "text_tokens": total.text_tokens,
            "supervised_tokens": total.supervised_tokens,
        }

    def summary(self) -> dict[str, Any]:
        """What plan.json keeps."""
        tallies = self.tallies()
        return {
            "stage": self.stage,
            "hash": self.hash,
            "steps": self.steps,
            "batch_samples": self.batch_samples,
            "epochs": self.epochs,
            "counts": self.counts,
            "english_share": self.english_share,
            "share_of": self.share_of,
            "realised": realised(tallies),
            "languages": total_rows(tallies, lambda tally: tally.language),
            "tiers": total_rows(tallies, lambda tally: language(tally.language).tier),
            "mix": [tally.as_row() for tally in tallies],
            "fertility": self.fertility and {code: own.as_row() for code, own in self.fertility.items()},
            "ledger": self.ledger.rows(),
            "digests": self.digests,
        }

    def table(self) -> list[str]:
        """Lines for the terminal: the realised mix by tier, language and source."""
        head = (
            f"stage {self.stage}: {len(self.order):,} samples in {self.steps:,} steps of {self.batch_samples} "
            f"({self.epochs:.4g} epochs of {len(self._pool):,}), plan {self.hash}"
        )
        cut = sum(cut.turns for cut in self.ledger.cuts.values())
        foot = (
            f"cut: {cut:,} turns of {sum(cut.samples for cut in self.ledger.cuts.values()):,} samples, "
            "each counted once"
            if cut
            else "cut: nothing"
        )
        if self._tokens is None:
            foot = "cut: not measured (no tokenizer was given)"
        return [head, *lines(self.tallies()), foot]

    def fertility_table(self) -> list[str]:
        """Lines for the terminal: tokens per word and share of samples cut, by language."""
        if self.fertility is None:
            return ["fertility: not measured (no tokenizer was given)"]
        return fertility_lines(self.fertility, add_up(self.tallies(), lambda tally: tally.language))


def build_plan(
    stage: str,
    config: StageConfig | PaintConfig,
    *,
    seed: int,
    corpora: Mapping[str, Corpus],
    measure: Measure | None = None,
    tokenizer: Callable[[], str | None] | None = None,
    home: Path | None = None,
    look_at_images: bool = True,
) -> Plan:
    """Decide everything about a stage's data, and find everything that is wrong with it, before anything is trained.

    `corpora` maps the paths of the mix to opened corpora. `measure` counts tokens; without it nothing can be cut, and
    shares of tokens are refused.
    `home` is the work folder in which images that were decoded once are remembered, and counts too where `tokenizer`
    says what tells this measure from others (see `lvlm.data.counts`). A plan that only counts may leave the images
    unread (`look_at_images`).

    The order is one permutation per epoch of all sample ids, drawn from the seed over ids sorted by (corpus, split,
    id): arms that differ only in language, share or model see the same ids in the same steps. Raises `InputError`
    for input that cannot be trained on.
    """

    def count(asked: Pool) -> Counts:
        assert measure is not None
        memory = CountMemory.of(home, tokenizer, len(asked))
        return count_tokens(asked, np.arange(len(asked)), measure, memory, title=f"{stage}, its mix")

    pool, shares = gather(config.mix, corpora, count if measure else None)
    duration = stage_samples(config, len(pool))
    numbers = draw_order(len(pool), duration, seed)
    if config.mix.parallel:
        numbers = draw_pairs(pool.alike(), duration, seed, batch_samples=config.batch_samples)
    order = PlanOrder(pool, numbers)
    used = np.unique(order.numbers)
    for part, numbers in pool.by_part(used) if look_at_images else ():
        part.corpus.check_images(part.rows, pool.row[numbers], decode=True, home=home)
    ledger, fertility, tokens, cuts = Ledger(), None, None, dict[int, Cut]()
    if measure is not None:
        memory = CountMemory.of(home, tokenizer, len(used))
        tokens = count_tokens(pool, used, measure, memory, title=stage)
        fertility = measure_fertility(pool, used, tokens, measure)
        cuts = _cut(pool, used, tokens, measure, memory, limit=config.max_text_tokens, ledger=ledger)
    digests = {
        f"{corpora[use.path].name}/{use.split}": corpora[use.path].digest(
            use.split, [part.language for part in pool.parts if part.use is use]
        )
        for use in config.mix.corpora
    }
    return Plan(
        stage=stage,
        batch_samples=config.batch_samples,
        order=order,
        epochs=duration / len(pool),
        ledger=ledger,
        english_share=shares,
        share_of=config.mix.share_of,
        fertility=fertility,
        digests=digests,
        hash=_hash(pool, order.numbers, list(digests.values()), config.batch_samples, cuts),
        _pool=pool,
        _tokens=tokens,
        _cuts=cuts,
    )


def _cut(
    pool: Pool,
    used: npt.NDArray[np.int64],
    tokens: Counts,
    measure: Measure,
    memory: CountMemory | None,
    *,
    limit: int,
    ledger: Ledger,
) -> dict[int, Cut]:
    """How the `used` samples with more than `limit` text tokens are cut, by number; `tokens` become those of what is
    left, and the ledger has what is not."""
    cuts: dict[int, Cut] = {}
    for part, number, cut in cut_turns(pool, used[tokens[used, 0] > limit], tokens, measure, memory, limit=limit):
        tokens[number] = cut.text_tokens, cut.supervised_tokens
        cuts[number] = cut
        source = part.rows.sources[part.rows.source_codes[pool.row[number]]]
        ledger.add(part.corpus.name, part.language, source, turns=cut.dropped_turns, images=cut.dropped_images)
    return cuts


def stage_samples(config: StageConfig | PaintConfig, pool: int) -> int:
    """How many samples a stage sees that draws from a pool of so many."""
    if config.samples is not None:
        return config.samples
    if config.steps is not None:
        return config.steps * config.batch_samples
    return max(1, int(Fraction(str(config.epochs or 1)) * pool + Fraction(1, 2)))


def draw_order(pool: int, samples: int, seed: int) -> npt.NDArray[np.int64]:
    """(samples,): numbers of the samples of a pool in training order: one permutation after the other, so that fewer
    samples are the first of more."""
    epochs = [
        np.random.default_rng(np.random.SeedSequence([seed, zlib.crc32(b"order"), epoch])).permutation(pool)
        for epoch in range(math.ceil(samples / pool))
    ]
    return np.concatenate(epochs)[:samples].astype(np.int64)


def draw_pairs(alike: npt.NDArray[np.bool_], samples: int, seed: int, *, batch_samples: int) -> npt.NDArray[np.int64]:
    """`draw_order` for a pool in which some samples and the next are two sides of a pair (`alike`, as `Pool.alike`
    gives it): both are in the same optimizer step of `batch_samples`.

    Pairs and single samples are permuted alike; a pair for which a step has no room opens the next one, and the next
    single sample goes before it. Only where no single sample is left, at the end, may two sides come apart.
    """
    starts = np.flatnonzero(~np.concatenate([[False], alike]))
    sizes = np.diff(np.append(starts, len(alike) + 1))
    if batch_samples % 2 and sizes.min() == 2:
        raise InputError(
            f"batch_samples is {batch_samples}, an odd number, but every sample of the mix is one of a pair that "
            "belongs in one step. Make it even, or lower mix.parallel."
        )
    order, waiting = list[int](), deque[int]()
    epochs = math.ceil(samples / (len(alike) + 1))
    units = deque(draw_order(len(starts), epochs * len(starts), seed).tolist())
    while len(order) < samples:
        room = batch_samples - len(order) % batch_samples
        unit = (waiting if waiting and (room >= 2 or not units) else units).popleft()
        if sizes[unit] > room and units:
            waiting.append(unit)
        else:
            order += range(starts[unit], starts[unit] + sizes[unit])
    return np.array(order[:samples], dtype=np.int64)


def _hash(
    pool: Pool, numbers: npt.NDArray[np.int64], digests: Sequence[str], batch: int, cuts: Mapping[int, Cut]
) -> str:
    """Twelve hex digits over order, ids, languages, content, batch size and cuts."""
    cut = [(number, (cuts[number].turns, cuts[number].dropped_turns)) for number in sorted(cuts)]
    state = hashlib.sha256(repr((batch, list(digests), cut)).encode())
    before = [f"{part.corpus.name}\0{part.use.split}\0" for part in pool.parts]
    after = [f"\0{part.language}\n" for part in pool.parts]
    ids = [part.rows.ids for part in pool.parts]
    for start in range(0, len(pool), HASHED_TOGETHER):
        some = slice(start, start + HASHED_TOGETHER)
        places = zip(pool.part[some].tolist(), pool.row[some].tolist(), strict=True)
        state.update("".join([f"{before[part]}{ids[part][row]}{after[part]}" for part, row in places]).encode())
    state.update(numbers.astype("<i8").tobytes())
    return state.hexdigest()[:12]
