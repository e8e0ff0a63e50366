"""The corpora of printed text, `plots` and `pages`: which settings each of them takes.
Called by `python -m lvlm data`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from lvlm.data.worlds.pages_corpus import write_pages
from lvlm.data.worlds.plots_corpus import write_plots
from lvlm.errors import InputError, nearest

TAKES = {"plots": ("words",), "pages": ("words", "text", "photos")}


def write_printed(
    name: str,
    folder: Path | str,
    *,
    seed: int,
    languages: Sequence[str] | None = None,
    sizes: Mapping[str, int] | None = None,
    sources: Mapping[str, Path] | None = None,
) -> tuple[Path, dict[str, str]]:
    """Write the corpus `name`; return its folder, and why languages of an asked group are not in it.

    sizes: `train`, `tune`, `test` -> plots or pages per language. sources: `words`, `text`, `photos` -> a path; one
    that the corpus does not take is an `InputError`.
    """
    if name not in TAKES:
        raise InputError(
            f"There is no built-in corpus '{name}'. Of printed text there are: {nearest(name, list(TAKES))}."
        )
    given = dict(sources or {})
    if idle := [source for source in given if source not in TAKES[name]]:
        raise InputError(f"--{idle[0]} is not for the corpus '{name}'. Leave it out.")
    counts = {f"{split}_{name}": size for split, size in (sizes or {}).items()}
    if name == "plots":
        return write_plots(folder, seed=seed, languages=languages, words=given.get("words"), **counts)
    return write_pages(folder, seed=seed, languages=languages, **given, **counts)  # type: ignore[arg-type]
