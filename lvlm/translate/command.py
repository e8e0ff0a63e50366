"""The command `python -m lvlm translate`: its options, and what it prints. `lvlm.cli` adds it."""

from __future__ import annotations

import argparse
from pathlib import Path

TEXT = "Translate a corpus into further languages with a seq2seq model."
EXAMPLE = "translate my_corpus --model facebook/nllb-200-distilled-1.3B --to de sw zh"


def add_options(sub: argparse.ArgumentParser) -> None:
    """The options of the command."""
    sub.add_argument("corpus", type=Path, metavar="CORPUS", help="a corpus folder; it gains the languages")
    sub.add_argument("--to", nargs="+", required=True, metavar="LANG", help="codes and groups (T5, T5-T3, all)")
    sub.add_argument("--model", required=True, help="NLLB, M2M100, mBART, Marian, ...: a folder, or a name of the hub")
    sub.add_argument("--from", dest="source", default="en", metavar="LANG", help="the original (default: en)")
    sub.add_argument("--splits", nargs="+", help="default: those with permission train")
    sub.add_argument("--batch", type=int, default=64, help="texts at a time (default: 64)")
    sub.add_argument("--beams", type=int, default=1, help="beams of the search; 1 is greedy (default: 1)")
    sub.add_argument(
        "--max-tokens", type=int, metavar="N", help="longer texts go in pieces, by sentences (default: the model's)"
    )
    sub.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    sub.add_argument(
        "--precision", choices=("auto", "fp32", "bf16", "fp16"), default="auto", help="auto: bf16 on a GPU, else fp32"
    )


def run(options: argparse.Namespace) -> None:
    """Translate, and say of each split and language what became of it."""
    from lvlm.errors import InputError
    from lvlm.languages import asked_for, in_table_order, language, table

    source = language(options.source).code
    codes, members = asked_for(options.to, tuple(table()))
    asked = [*codes, *(code for code in members if code != source)]
    if options.beams < 1 or options.batch < 1:
        raise InputError(f"--beams {options.beams}, --batch {options.batch}: give numbers from 1.")

    from lvlm.translate.driver import plan_translation, translate_corpus
    from lvlm.translate.model import Seq2SeqTranslator

    _, _, targets = plan_translation(options.corpus, asked, source=source, splits=options.splits)
    translator = Seq2SeqTranslator.load(
        options.model,
        device=options.device,
        precision=options.precision,
        batch=options.batch,
        beams=options.beams,
        max_tokens=options.max_tokens,
    )
    known = translator.languages.tokens
    if known and (unknown := [code for code in targets if code not in (*known, *in_table_order(codes))]):
        groups = ", ".join(name for name in options.to if name not in codes)
        print(f"note: {options.model} has no token for {', '.join(unknown)}, which are left out of {groups}")
        targets = tuple(code for code in targets if code not in unknown)
    translator.require(source, targets)
    for outcome in translate_corpus(
        options.corpus,
        targets,
        translator,
        settings=translator.settings,
        source=source,
        splits=options.splits,
        batch=options.batch,
    ):
        print(outcome.line(), flush=True)
    print(f"written: {options.corpus}")
