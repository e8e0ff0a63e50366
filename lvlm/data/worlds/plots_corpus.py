"""Writes the corpus `plots`: the same bar and pie plots in every language, with questions to train, tune and report on.
Called by `python -m lvlm data plots DIR`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lvlm.data.worlds.at_hand import Written, written_languages
from lvlm.data.worlds.chart import draw_plot, fits
from lvlm.data.worlds.folder import POOLS, Picture, Pool, Row, check_numbers, stream, write_untranslated
from lvlm.data.worlds.plots import Kind, Plot, PlotQuestion, ground_questions, read_questions, sample_plot
from lvlm.errors import InputError

VERSION = 1
"""Of what is written; raised when the same seed, sizes and word lists give other files than before."""
OWN_SIZES = {"train_plots": 300, "tune_plots": 20, "test_plots": 100}
"""Plots per language, every second one a pie. 100 to report on make SMPQA's 800 ground and 500 read items."""
GROUND_PAIRS = 2  # of a training dialogue: so many yes and as many no
READ_TURNS = 2


@dataclass(frozen=True, slots=True)
class Asked:
    """One plot of a split, and its questions."""

    name: str
    plot: Plot
    ground: tuple[PlotQuestion, ...]
    read: tuple[PlotQuestion, ...]


def write_plots(
    folder: Path | str,
    *,
    seed: int,
    train_plots: int = OWN_SIZES["train_plots"],
    tune_plots: int = OWN_SIZES["tune_plots"],
    test_plots: int = OWN_SIZES["test_plots"],
    languages: Sequence[str] | None = None,
    words: Path | None = None,
) -> tuple[Path, dict[str, str]]:
    """Write the corpus into a new `folder`; return it, and why languages of an asked group are not in it.

    A plot, its questions and their ids are the same in every language, so that scores are compared item by item; only
    the labels differ. No label and no configuration (kind, direction, values, colours) of one split occurs in another.
    """
    sizes = {"train_plots": train_plots, "tune_plots": tune_plots, "test_plots": test_plots}
    check_numbers(seed, sizes)
    found, missing = written_languages(languages, words, rarer=True)
    plots = asked_plots(seed, dict(zip(POOLS, sizes.values(), strict=True)))
    languages_here = {language.code: language for language in found}

    def drawn(code: str, pool: Pool) -> Iterator[Picture]:
        language = languages_here[code]
        make = _dialogue if pool == "train" else _items
        for asked in plots[pool]:
            labels = draw_labels(asked.plot, language, pool, asked.name, seed)
            chart = draw_plot(asked.plot, labels, language.face)
            yield f"{code}-{asked.name}.png", chart.image, make(asked, labels, code, pool, seed)

    sources = {language.code: language.record() for language in found}
    write_untranslated(
        Path(folder), name="plots", version=VERSION, seed=seed, sizes=sizes, sources=sources, pictures=drawn
    )
    return Path(folder), missing


def asked_plots(seed: int, counts: dict[Pool, int]) -> dict[Pool, list[Asked]]:
    """The plots of every split, bars and pies in turn. A configuration that another split has is drawn again."""
    plots: dict[Pool, list[Asked]] = {}
    taken: set[tuple[object, ...]] = set()
    for pool in reversed(POOLS):  # the number of plots to train on leaves those to report on as they are
        plots[pool] = []
        for index in range(counts[pool]):
            kind: Kind = "pie" if index % 2 else "bar"
            rng = stream(seed, f"plots/{pool}/{kind}", index // 2)
            while (plot := sample_plot(kind, rng)).configuration in taken:
                pass
            taken.add(plot.configuration)
            name = f"{kind}-{index // 2:05d}"
            plots[pool].append(Asked(name, plot, tuple(ground_questions(plot, rng)), tuple(read_questions(plot, rng))))
    return plots


def draw_labels(plot: Plot, language: Written, pool: Pool, name: str, seed: int) -> list[str]:
    """Different words of the split, short enough to be labels."""
    rng = stream(seed, f"plots/{pool}/words/{language.code}/{name}", 0)
    words = language.pools[pool]
    labels: list[str] = []
    for place in rng.permutation(len(words)):
        if fits(words[place], language.face):
            labels.append(words[place])
        if len(labels) == len(plot.values):
            return labels
    raise InputError(
        f"Only {len(labels)} words of language '{language.code}' for the split '{pool}' are short enough to be labels, "
        f"and a plot needs {len(plot.values)}. Give a list with --words, or leave the language out."
    )


def _dialogue(asked: Asked, labels: Sequence[str], code: str, pool: Pool, seed: int) -> Iterator[Row]:
    """One training row: some of the questions in random order, as many with yes as with no."""
    rng = stream(seed, f"plots/{pool}/turns/{asked.name}", 0)
    pairs = rng.choice(len(asked.ground) // 2, GROUND_PAIRS, replace=False).tolist()
    turns = [asked.ground[place] for pair in pairs for place in (2 * pair, 2 * pair + 1)]
    turns += [asked.read[place] for place in rng.choice(len(asked.read), READ_TURNS, replace=False).tolist()]
    turns = [turns[place] for place in rng.permutation(len(turns)).tolist()]
    yield {
        "id": f"plots-{pool}-{asked.name}",
        "context": [question.text(asked.plot, labels) for question in turns],
        "label": [question.answer(labels) for question in turns],
        "image_id": [f"{pool}/{code}-{asked.name}.png"],
        "language": code,
        "task": "vqa",
        "source": asked.plot.kind,
    }


def _items(asked: Asked, labels: Sequence[str], code: str, pool: Pool, seed: int) -> Iterator[Row]:
    """The eight ground and five read items of a plot, in one order for all languages."""
    for task, questions in (("smpqa_ground", asked.ground), ("smpqa_read", asked.read)):
        for number, question in enumerate(questions):
            yield {
                "id": f"plots-{pool}-{asked.name}-{question.form}{number}",
                "context": [question.text(asked.plot, labels)],
                "label": [""],
                "text_label": question.answer(labels),
                "image_id": f"{pool}/{code}-{asked.name}.png",
                "language": code,
                "task": task,
                "source": f"{asked.plot.kind}:{question.topic}",
            }
