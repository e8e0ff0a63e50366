"""What lets a run begin sooner: its data are read and checked by a process of their own while this one imports torch
and the rest, which takes about as long, and the garbage collector rests meanwhile. Called by `lvlm.run`."""

from __future__ import annotations

import atexit
import gc
import multiprocessing
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING

from lvlm.check import check_evaluation, open_corpora
from lvlm.config import RunConfig
from lvlm.errors import InputError
from lvlm.processes import process_count
from lvlm.train.locks import release_in_child

if TYPE_CHECKING:
    from lvlm.data.corpus import Corpus
    from lvlm.settings import CorpusUse

LARGEST_BYTES = 1 << 28
"""Data files that are larger together are read by the process that needs them: handing their rows over would take twice
the memory, to gain seconds."""


@contextmanager
def no_collection() -> Iterator[None]:
    """Without the garbage collector, which looks again and again through all that imports make to stay; it never looks
    through that later either. A process that has torch already has imported most, and may hold garbage that matters:
    there, nothing changes."""
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        atexit.register(gc.unfreeze)  # else libraries find their objects alive at the end and say so
        gc.enable()


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without transformers' progress bars over the files of a model, which would tear the run's own."""
    from transformers.utils import logging

    was_on = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_on:
            logging.enable_progress_bar()


@dataclass(frozen=True)
class CheckedData:
    """The corpora of a run with the rows that it uses, all of them sound, and the images of its evaluation."""

    corpora: dict[str, Corpus]
    evaluation_images: list[Path]


class DataAhead:
    """A process that reads and checks the data of a run from now on.

    Where this process has torch already, or several threads, it is not forked, as neither is made for that; nor where
    it works together with others, which have taken the cores.
    """

    def __init__(self, config: RunConfig, home: Path) -> None:
        self._process: BaseProcess | None = None
        if _may_fork():
            context = multiprocessing.get_context("fork")
            self._answer, other_end = context.Pipe(duplex=False)
            self._process = context.Process(target=_work, args=(config, home, self._answer, other_end), daemon=True)
            self._process.start()
            other_end.close()

    def result(self) -> CheckedData | None:
        """What was read, as soon as it is there; None where the caller is to read for itself. Raises the `InputError`
        that was met."""
        if self._process is None:
            return None
        found: CheckedData | InputError | None = None
        with suppress(EOFError, OSError):  # it was killed, or met what the caller will meet too
            found = self._answer.recv()
        self.close()
        if isinstance(found, InputError):
            raise found
        return found

    def close(self) -> None:
        """Stop reading, if that is still going on."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._answer.close()
            self._process = None


def _may_fork() -> bool:
    alone = process_count() == 1 and threading.active_count() == 1 and "torch" not in sys.modules
    return alone and "fork" in multiprocessing.get_all_start_methods()


def _work(config: RunConfig, home: Path, receiver: Connection, answer: Connection) -> None:
    receiver.close()  # so that writing fails where the one that asked is gone
    release_in_child()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for that one, which ends this
    gc.disable()  # it ends before that matters
    found: CheckedData | InputError | None = None
    try:
        found = _read(config, home)
    except InputError as error:
        found = error
    except Exception:
        found = None  # the caller reads again and tells
    with suppress(BrokenPipeError):
        answer.send(found)


def _read(config: RunConfig, home: Path) -> CheckedData | None:
    from lvlm.data.plan import build_plan

    uses = [use for stage in config.every_stage().values() for use in stage.mix.corpora]
    uses += [*config.evaluate.corpora, *config.evaluate.tune_corpora]
    if sum(path.stat().st_size for path in {path for use in uses for path in _files(use)}) > LARGEST_BYTES:
        return None
    if any(stage.mix.share_of != "samples" for stage in config.every_stage().values()):
        return None  # which sample is in which language takes a tokenizer to say
    corpora = open_corpora(config, home=home)
    for name, stage in config.every_stage().items():
        build_plan(name, stage, seed=config.seed, corpora=corpora, home=home)  # reads what the stage uses
    return CheckedData(corpora, check_evaluation(config, corpora, home=home))


def _files(use: CorpusUse) -> list[Path]:
    path = Path(use.path)
    return [path] if path.is_file() else list((path / use.split).glob("*.json*"))
