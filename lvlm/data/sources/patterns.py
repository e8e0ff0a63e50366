"""From what is written on the command line to the files of a source: paths, folders, `*` and `{0000..0009}`."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from lvlm.data.sources.record import Form
from lvlm.errors import InputError

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


def source_files(words: Sequence[str], form: Form) -> list[Path]:
    """The files of a source, each once, in the order given; those of a folder or a pattern in the order of their
    names. A file that is not there is an error."""
    files = [file for word in words for spelt in _braces(word) for file in _found(spelt, form)]
    if twice := next((file for file in files if files.count(file) > 1), None):
        raise InputError(f"The source {twice} is named twice. Name it once.")
    return files


def _braces(word: str) -> Iterator[str]:
    match = _BRACES.search(word)
    if match is None:
        yield word
        return
    if limits := _RANGE.fullmatch(match[1]):
        first, last = limits[1], limits[2]
        if int(first) > int(last):
            raise InputError(f"The source {word}: the range {{{match[1]}}} runs backwards. Write the lower end first.")
        names = [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]
    elif "," in match[1]:
        names = match[1].split(",")
    else:
        raise InputError(
            f"The source {word}: {match[0]} is neither a range such as {{0000..0009}} nor a list such as {{a,b}}."
        )
    for name in names:
        yield from _braces(word[: match.start()] + name + word[match.end() :])


def _found(word: str, form: Form) -> list[Path]:
    if word == "-" and form.streams:
        return [Path("-")]
    if "://" in word or word.startswith("pipe:"):
        hint = " or pipe it in, with - for the source" if form.streams else ""
        raise InputError(f"The source {word} is not on this machine. Download it first{hint}.")
    if glob.has_magic(word) and not Path(word).exists():
        files = sorted(map(Path, glob.glob(word, recursive=True)))
        if not files:
            raise InputError(f"No file matches the source {word} (looked for from {Path.cwd()}).")
    elif Path(word).is_dir():
        files = sorted(file for file in Path(word).rglob("*") if file.is_file() and file.name.endswith(form.suffixes))
        if not files:
            raise InputError(f"The folder {word} holds no file that ends in {', '.join(form.suffixes)}.")
    elif Path(word).exists():
        files = [Path(word)]
    else:
        raise InputError(f"The source {word} does not exist (looked for from {Path.cwd()}).")
    if wrong := next((file for file in files if not file.name.endswith(form.suffixes)), None):
        raise InputError(f"The source {wrong} does not end in {', '.join(form.suffixes)}, as files of this form do.")
    return files
