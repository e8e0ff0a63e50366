"""The command `python -m lvlm paint`: pictures of a prompt, in one language or in several side by side. Called by
`lvlm.cli`."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from lvlm.config import RunConfig, load_config
from lvlm.errors import InputError
from lvlm.languages import group_languages, in_table_order, is_group
from lvlm.records import CONFIG_FILE, RECORD_FILE, RunRecord

TEXT = "Paint a prompt with a checkpoint of the stage paint."
EXAMPLE = 'paint runs/runs/my-run "on the left: a large red cross" --languages en de sw --out cross.png'


def add_options(sub: argparse.ArgumentParser) -> None:
    """The options of the command."""
    sub.add_argument("checkpoint", type=Path, help="the folder of a finished run with the stage paint, or of its model")
    sub.add_argument("prompt", help="what to paint, in any language")
    sub.add_argument("--out", type=Path, default=Path("painted.png"), metavar="FILE", help="default: painted.png")
    sub.add_argument(
        "--languages",
        nargs="+",
        metavar="CODE",
        help="paint the prompt in each: codes or a group, where it is a prompt of the run's own corpora, or CODE=TEXT",
    )
    sub.add_argument(
        "--images", type=int, default=1, metavar="N", help="pictures of each, the same N noises in every row"
    )
    sub.add_argument("--seed", type=int, default=0, help="of the noise that pictures begin with (default: 0)")
    sub.add_argument("--steps", type=int, metavar="N", help="from noise to picture (default: as the run is set)")
    sub.add_argument(
        "--guidance", type=float, help="1 is the prompt alone, more follows it further (default: likewise)"
    )
    sub.add_argument("--device", choices=("auto", "cpu", "cuda"), help="default: that of the run, else auto")


def run(options: argparse.Namespace) -> None:
    """Paint what was asked for and write it as one PNG file."""
    _check(options)
    folder, recorded = painter_folder(options.checkpoint)
    prompts = prompts_of(options.prompt, options.languages, recorded)

    from lvlm.paint.painter import load_painter
    from lvlm.paint.sample import Drawing, paint
    from lvlm.startup import quiet_transformers
    from lvlm.train.compute import compute
    from lvlm.train.progress import Reporter

    reporter = Reporter()
    settings = (recorded or RunConfig()).compute
    settings = settings.model_copy(update={"device": options.device} if options.device else {})
    with compute(settings) as machinery, quiet_transformers():
        painter = load_painter(folder, autocast=machinery.autocast, precision=machinery.precision)
        painter.states.llm.to(machinery.device)
        painter.to(machinery.device)
        own = recorded.paint if recorded and recorded.paint else painter.config
        steps = own.sample_steps if options.steps is None else options.steps
        guidance = own.guidance if options.guidance is None else options.guidance
        drawing = Drawing(options.seed, steps, guidance)
        names = [str(number) for number in range(options.images)]
        with machinery.autocast(), reporter.bar("painting", None):
            pictures = paint(
                painter,
                [text for _, text in prompts for _ in names],
                names * len(prompts),
                drawing,
                batch_size=settings.evaluate_batch,
                on_progress=lambda done, total: reporter.advance(done, "steps", total=total),
            )
    from lvlm.paint.sheet import grid

    sheet = grid(pictures, [code for code, _ in prompts] if options.languages else None, columns=options.images)
    temporary = options.out.with_name(f".{options.out.name}.{os.getpid()}.tmp")
    sheet.save(temporary, format="PNG")
    temporary.replace(options.out)
    for code, text in prompts:
        print(f"{code + ': ' if options.languages else ''}{text}")
    print(f"written: {options.out}")


def painter_folder(checkpoint: Path) -> tuple[Path, RunConfig | None]:
    """Where the painter of a checkpoint lies, and the config of its run if it is one."""
    if not checkpoint.exists():
        raise InputError(
            f"There is no checkpoint {checkpoint}. Give the folder of a finished run that has the stage paint."
        )
    if not (checkpoint / RECORD_FILE).exists():
        return checkpoint, None
    painter = RunRecord.load(checkpoint).provenance.get("painter")
    if painter is None:
        raise InputError(
            f"The run {checkpoint} has no stage paint. Give one that has, or ask this one with `generate`."
        )
    if not Path(painter).exists():
        raise InputError(f"The run {checkpoint} kept no painter at {painter}. Start the run again to train it anew.")
    return Path(painter), load_config(checkpoint / CONFIG_FILE)


def prompts_of(prompt: str, asked: Sequence[str] | None, recorded: RunConfig | None) -> list[tuple[str, str]]:
    """(language, text) of every row: the prompt by itself, its translations in the corpora of the run, or the texts
    that were given beside their languages."""
    if not asked:
        return [("", prompt)]
    given = dict(text.split("=", 1) for text in asked if "=" in text)
    codes = [text for text in asked if "=" not in text]
    if not codes:
        return [(code, given[code]) for code in (text.partition("=")[0] for text in asked)]
    known = translations(prompt, recorded)
    wanted = group_languages(codes[0], list(known)) if len(codes) == 1 and is_group(codes[0]) else in_table_order(codes)
    if missing := [code for code in wanted if code not in known and code not in given]:
        where = f"in {', '.join(known)}" if known else "in no language: it is no prompt of the corpora of a run"
        raise InputError(
            f"--languages asks for the prompt in {', '.join(missing)}, and it is known {where}. Give its texts, as in "
            f"--languages {missing[0]}='...'."
        )
    return [(code, given.get(code, known.get(code, ""))) for code in in_table_order({*wanted, *given})]


def translations(prompt: str, recorded: RunConfig | None) -> dict[str, str]:
    """Language -> the prompt, of the first item in the corpora of a run's evaluation that has it in any language."""
    from lvlm.check import open_used

    if recorded is None:
        return {}
    corpora = open_used(recorded.evaluate.corpora)
    for use in recorded.evaluate.corpora:
        corpus = corpora[use.path]
        if not corpus.translatable:
            continue
        items = {code: corpus.items(use.split, code) for code in corpus.languages_of(use.split)}
        same = {item.id for own in items.values() for item in own if item.prompt == prompt and item.task == "paint"}
        if same:
            name = min(same)
            return {code: item.prompt for code, own in items.items() for item in own if item.id == name}
    return {}


def _check(options: argparse.Namespace) -> None:
    """Raise for options that nothing can be painted with, before anything heavy is loaded."""
    for name, least in (("images", 1), ("seed", 0), ("steps", 1), ("guidance", 0)):
        value = getattr(options, name)
        if value is not None and not least <= value < float("inf"):
            raise InputError(f"--{name} is {value}; give a number from {least}.")
    if options.out.suffix.lower() != ".png":
        raise InputError(f"--out {options.out}: pictures are written as PNG; give a name that ends in .png.")
    if not options.out.parent.is_dir() or options.out.is_dir():
        raise InputError(
            f"--out {options.out}: its folder {options.out.parent} must be there, and the name be a file's."
        )
