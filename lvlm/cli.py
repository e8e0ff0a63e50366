"""`python -m lvlm`: its commands. Imports what is heavy only when a command needs it."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING

from lvlm import scoring
from lvlm.commands import HOME_HELP, Command, CommandLine, add_overrides
from lvlm.config import RunConfig, fingerprint, load_config, make_settings
from lvlm.data.benchmarks import command as benchmark
from lvlm.data.sources import command as corpus
from lvlm.data.worlds import command as worlds
from lvlm.errors import InputError
from lvlm.paint import command as painting
from lvlm.paint.captions import caption_measure
from lvlm.paint_settings import PaintConfig
from lvlm.processes import process_count, process_index, start
from lvlm.ready import model_source, ready, recorded_config
from lvlm.settings import EvaluateConfig
from lvlm.translate import command as translate

if TYPE_CHECKING:
    from lvlm.model.export import Form

DETECTOR_HELP = "what tells the language of an answer: auto, corpus, packaged, or a fastText file such as GlotLID's"
PRESETS = Path(__file__).parent / "presets"
AddCommand = Callable[[str, Command, str, str], argparse.ArgumentParser]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    return _command_line()(argv)


def _command_line() -> CommandLine:
    line = CommandLine("lvlm", "Train, evaluate and use multilingual vision-language models.", "plan tiny")
    line.parser.add_argument("--local_rank", help=argparse.SUPPRESS)  # DeepSpeed's launcher says it this way too
    for add_commands in (_training, _scoring, _using, _making):
        add_commands(line.add)
    return line


def _training(command: AddCommand) -> None:
    train = command("train", _train, "Train and evaluate one run.", "train tiny seed=1 instruct.mix.english_share=0.25")
    plan = command(
        "plan", _plan, "Print the mix that a run would see; trains nothing.", "plan tiny instruct.mix.languages=T5"
    )
    for sub in (train, plan):
        sub.add_argument(
            "run", metavar="RUN.yaml", help="a run config, or the name of a preset (" + ", ".join(_presets()) + ")"
        )
        add_overrides(sub, "any config field, dotted")
    plan.add_argument(
        "--fertility", action="store_true", help="print tokens per word and the share of samples cut, by language"
    )
    train.add_argument("--folder", type=Path, help="where the record goes (default: HOME/runs/NAME-SEED-FINGERPRINT)")
    for sub in (train, plan):
        sub.add_argument("--home", type=Path, help=HOME_HELP)
    _add_processes(train)

    trident = command(
        "from-trident",
        _from_trident,
        "Print the run config that does what a Centurio command line does.",
        "from-trident 'experiment=mblipv2_train run.train_data=data run.image_root=data/images' > my_run.yaml",
    )
    trident.add_argument(
        "line", nargs=argparse.REMAINDER, metavar="LINE", help="the command line, quoted, or its words behind --"
    )


def _scoring(command: AddCommand) -> None:
    evaluate = command(
        "evaluate", _evaluate, "Score a checkpoint.", "evaluate runs/runs/my-run --tasks vqa --languages en de sw"
    )
    evaluate.add_argument("checkpoint", type=Path, help="a model folder, or the folder of a finished run")
    evaluate.add_argument("--tasks", nargs="+", help="only these tasks (caption, vqa, reading, ...)")
    evaluate.add_argument(
        "--languages", nargs="+", help="codes, or one group (en, T5, T5-T3, L100, all, script:Arab, family:Turkic)"
    )
    evaluate.add_argument(
        "--corpus", nargs="+", metavar="FOLDER[:SPLIT]", help="corpora to score on (default: those of the run)"
    )
    evaluate.add_argument("--items", type=int, help="at most this many items per task and language")
    evaluate.add_argument("--by", nargs="+", default=[], help="print means by these, too: task, tier, script, family")
    evaluate.add_argument(
        "--out", type=Path, help="folder for scores.parquet and predictions.parquet; one that was killed goes on there"
    )
    evaluate.add_argument("--detector", metavar="NAME", help=DETECTOR_HELP)
    evaluate.add_argument(
        "--engine",
        choices=("own", "vllm"),
        default="own",
        help="vllm: for what `export --as llava` wrote (default: own)",
    )
    _add_processes(evaluate)
    _add_device(evaluate)

    fidelity = command(
        "fidelity",
        scoring.fidelity,
        "Say what a detector of languages takes labelled texts or answers for.",
        "fidelity --check",
    )
    fidelity.add_argument(
        "predictions", type=Path, nargs="?", help="a predictions.parquet: tell the languages of its answers again"
    )
    fidelity.add_argument("--check", action="store_true", help="print the confusion matrix on labelled texts")
    fidelity.add_argument(
        "--detector", metavar="NAME", default="packaged", help="packaged, or a fastText file (default: packaged)"
    )
    fidelity.add_argument(
        "--table", type=Path, metavar="FILE", help="labelled texts: .csv or .tsv with the columns language and text "
        "(default: locale data of Unicode CLDR)",
    )  # fmt: skip
    fidelity.add_argument("--languages", nargs="+", help="only the texts in these: codes, or one group")

    alignment = command(
        "alignment",
        scoring.alignment,
        "Measure how well a model aligns the languages of parallel sentences.",
        "alignment tiny-lm/0 runs/data/sentences",
    )
    alignment.add_argument("model", help="a run's folder, a model folder, or a language model as in model.llm")
    alignment.add_argument("corpus", metavar="CORPUS[:SPLIT]", help="sentences with the same ids across languages")
    alignment.add_argument("--pivot", default="en", help="the language that the others are compared with (default: en)")
    alignment.add_argument("--languages", nargs="+", help="codes, or one group (default: all of the corpus)")
    alignment.add_argument("--items", type=int, help="at most this many sentences")
    alignment.add_argument("--out", type=Path, help="a parquet file for the table, layer by layer")
    _add_device(alignment)

    lmms = command(
        "lmms-eval",
        _lmms_eval,
        "Run tasks of lmms-eval on a checkpoint.",
        "lmms-eval runs/runs/my-run --tasks mme --batch_size 16 --output_path results",
    )
    lmms.add_argument("checkpoint", type=Path, help="a model folder, or the folder of a finished run")
    lmms.add_argument("rest", nargs=argparse.REMAINDER, metavar="OPTION", help="options of lmms-eval itself")


def _using(command: AddCommand) -> None:
    generate = command(
        "generate",
        _generate,
        "Ask a checkpoint about an image.",
        'generate runs/runs/my-run photo.jpg "Describe the image."',
    )
    generate.add_argument("checkpoint", type=Path)
    generate.add_argument("image", type=Path)
    generate.add_argument("prompt", help="the question, in any language")
    generate.add_argument("--max-new-tokens", type=int, default=128)
    _add_device(generate)

    painting.add_options(command("paint", painting.run, painting.TEXT, painting.EXAMPLE))

    export = command(
        "export",
        _export,
        "Write a model folder for transformers, with LoRA merged.",
        "export runs/runs/my-run my-model",
    )
    export.add_argument("checkpoint", type=Path)
    export.add_argument("folder", type=Path, help="a new folder")
    export.add_argument("--adapters", action="store_true", help="keep LoRA beside the weights, as peft adapters")
    export.add_argument(
        "--as",
        dest="layout",
        choices=("lvlm", "llava"),
        default="lvlm",
        help="lvlm: read with this package installed; llava: stock LLaVA, for vLLM and others (no tiles, adapter mlp)",
    )


def _making(command: AddCommand) -> None:
    worlds.add_options(command("data", worlds.run, worlds.TEXT, worlds.EXAMPLE))
    corpus.add_options(command("corpus", corpus.run, corpus.TEXT, corpus.EXAMPLE))
    translate.add_options(command("translate", _translate, translate.TEXT, translate.EXAMPLE))
    benchmark.add_options(command("benchmark", benchmark.run, benchmark.TEXT, benchmark.EXAMPLE))
    backbones = command(
        "backbones",
        _backbones,
        "Train the tiny backbones (hours) and write their card, or those of an emoji corpus or of other answer mixes.",
        "backbones --out assets --draws 0",
    )
    backbones.add_argument(
        "--corpus", type=Path, help="an emoji corpus: backbones that have read its names and seen its pictures"
    )
    backbones.add_argument(
        "--answer-mix",
        type=float,
        nargs="+",
        metavar="RATE",
        help="train the shipped language models on, with requests answered in English RATE times as often: 0 is never",
    )
    backbones.add_argument(
        "--out",
        type=Path,
        help="default: the package's own folder; with --corpus HOME/backbones/emoji, with --answer-mix "
        "HOME/backbones/answer_mix",
    )
    backbones.add_argument("--draws", type=int, nargs="+", help="default: 0 1 2 3 4; with --corpus 0")
    backbones.add_argument(
        "--parts",
        nargs="+",
        choices=("lm", "clean", "vit", "card", "denoiser"),
        help="default: all; with --corpus lm vit",
    )
    backbones.add_argument(
        "--scale", type=float, default=1.0, help="train this share of the full length, to try the script out"
    )


def _add_processes(sub: argparse.ArgumentParser) -> None:
    told = "work as N processes here, one for each GPU (default: 1)"
    sub.add_argument("--processes", type=int, default=1, metavar="N", help=told)


def _add_device(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--device", choices=("auto", "cpu", "cuda"), help="default: that of the run, else auto")


def _presets() -> list[str]:
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def read_run(name: str, overrides: Sequence[str]) -> RunConfig:
    """A run config from a file or a preset name, with overrides."""
    if Path(name).is_file():
        return load_config(name, overrides)
    if name in _presets():
        return load_config(PRESETS / f"{name}.yaml", overrides)
    if not Path(name).exists():
        raise InputError(
            f"There is no run config '{name}': no such file, and no preset of that name. "
            f"Presets are: {', '.join(_presets())}."
        )
    return load_config(name, overrides)


def _introduce(name: str) -> None:
    """Say on standard error what a preset is and where it comes from: the comment that its file begins with. Of
    several processes the first alone speaks."""
    if Path(name).is_file() or name not in _presets() or process_index() > 0:
        return
    lines = (PRESETS / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    for line in takewhile(lambda line: line.startswith("#"), lines):
        print(line.removeprefix("#").removeprefix(" "), file=sys.stderr)


def _train(options: argparse.Namespace) -> int | None:
    from lvlm.run import default_home, run

    config = read_run(options.run, options.overrides)
    if _starts_others(options):
        return start(options.processes, options.called_with)
    _introduce(options.run)
    home = options.home or default_home()
    identity = fingerprint(config.model_dump(mode="json", exclude={"compute", "tags"}))
    folder = options.folder or home / "runs" / f"{config.name}-s{config.seed}-{identity}"
    record = run(config, folder, home=home)
    if process_index() > 0:
        return None
    for name, value in record.scores.items():
        print(f"{name:32s} {value:6.1f}")
    print(f"record: {folder}")
    if record.provenance["model"] is not None:
        print(f"model:  {record.provenance['model']}")
    return None


def _starts_others(options: argparse.Namespace) -> bool:
    """Whether this command is to start `--processes` that do its work, and is not one of them."""
    if options.processes < 1:
        raise InputError(f"--processes {options.processes}: give a number from 1.")
    if options.processes > 1 and "RANK" in os.environ and options.processes != process_count():
        raise InputError(
            f"--processes {options.processes}, but a launcher has started {process_count()}. Leave --processes out, or "
            "start without the launcher."
        )
    return options.processes > 1 and "RANK" not in os.environ


def _plan(options: argparse.Namespace) -> None:
    from lvlm.startup import no_collection

    with no_collection():
        _print_plan(options)


def _print_plan(options: argparse.Namespace) -> None:
    from lvlm.check import check_evaluation, check_learns, open_corpora, refusal_notes, setting_notes
    from lvlm.data.plan import build_plan
    from lvlm.model.autohook import models_later
    from lvlm.run import default_home

    with models_later():
        from lvlm.model.tokenizer import load_counter

    config = read_run(options.run, options.overrides)
    _introduce(options.run)
    home = options.home or default_home()
    corpora = open_corpora(config, home=home)
    counter = load_counter(config.model, seed=config.seed)
    for name, stage in config.every_stage().items():
        paints = stage if isinstance(stage, PaintConfig) else None
        plan = build_plan(
            name,
            stage,
            seed=config.seed,
            corpora=corpora,
            measure=caption_measure(counter.chat, paints.prompt) if paints else counter.measure,
            tokenizer=None if paints else counter.key,
            home=home,
        )
        if not isinstance(stage, PaintConfig):
            check_learns(stage, plan)
        print("\n".join([*plan.table(), *(plan.fertility_table() if options.fertility else ())]) + "\n")
    images = check_evaluation(config, corpora, home=home)
    print(f"evaluation: {len(images):,} images, all sound")
    for note in [*setting_notes(config), *refusal_notes(config, corpora)]:
        print(f"note: {note}")


def _from_trident(options: argparse.Namespace) -> None:
    from lvlm.trident import from_trident

    words = options.line[1:] if options.line[:1] == ["--"] else options.line
    if not words:
        raise InputError("from-trident needs a command line: 'experiment=mblipv2_train run.llm=... ...'.")
    print(from_trident(words).text(), end="")


def _evaluate(options: argparse.Namespace) -> int | None:
    if options.engine == "vllm" and options.processes > 1:
        raise InputError("--engine vllm divides its work itself: leave --processes out.")
    if _starts_others(options):
        return start(options.processes, options.called_with)
    scoring.evaluate(options)
    return None


def _lmms_eval(options: argparse.Namespace) -> int | None:
    from lvlm.lmms import run

    return run(options.checkpoint, options.rest)


def _generate(options: argparse.Namespace) -> None:
    from lvlm.data.images import picture_fault

    if not options.image.exists():
        raise InputError(f"The image {options.image} does not exist.")
    if fault := picture_fault(options.image):
        raise InputError(f"The image {options.image} cannot be read: {fault}.")
    asked = {"max_new_tokens": options.max_new_tokens}
    limit = make_settings(EvaluateConfig, asked, where="The generation that was asked for").max_new_tokens
    recorded = recorded_config(options.checkpoint)
    source = model_source(options.checkpoint, recorded)

    from lvlm.evaluate.generate import Prompt, generate_answers

    prompt = Prompt(options.prompt, (options.image,))
    with ready(source, recorded, device=options.device) as it:
        (answer,) = generate_answers(it.model, it.processor, [prompt], max_new_tokens=limit, features=it.features)
    print(answer)


def _export(options: argparse.Namespace) -> None:
    from lvlm.model.export import LIMIT, export
    from lvlm.startup import quiet_transformers

    if options.adapters and options.layout == "llava":
        raise InputError("--adapters keeps LoRA beside the weights, and --as llava merges it into them; choose one.")
    recorded = recorded_config(options.checkpoint)
    path, model_config = model_source(options.checkpoint, recorded)
    form: Form = "llava" if options.layout == "llava" else "adapters" if options.adapters else "merged"
    with quiet_transformers():
        exported = export(path, options.folder, form=form, model=model_config, seed=recorded.seed if recorded else 0)
    print(f"largest difference of a logit, read back from the files: {exported.difference:.1e} (limit {LIMIT:.0e})")
    if exported.pillow is not None:
        print(
            f'note: with AutoProcessor.from_pretrained(..., backend="pil") it is {exported.pillow:.1e}; the default, '
            "torchvision, makes the pixels of the training"
        )
        print(f"written: {options.folder} (LlavaForConditionalGeneration and LlavaProcessor of transformers read it)")
    else:
        print(f"written: {options.folder} (import lvlm, then AutoModelForCausalLM.from_pretrained reads it)")


def _translate(options: argparse.Namespace) -> None:
    from lvlm.startup import quiet_transformers

    with quiet_transformers():
        translate.run(options)


def _backbones(options: argparse.Namespace) -> None:
    def say(text: str) -> None:
        print(text, flush=True)

    if options.corpus is not None and options.answer_mix is not None:
        raise InputError("--corpus and --answer-mix make different backbones: give one of them.")
    if options.corpus is not None:
        from lvlm.backbones.emoji import build_emoji
        from lvlm.run import default_home

        if idle := {"card", "denoiser"} & set(options.parts or ()):
            raise InputError(
                f"--parts {' '.join(sorted(idle))} belongs to the shipped backbones, and --corpus makes others: each "
                "draw of those has its own card, and none paints."
            )
        out = options.out or default_home() / "backbones" / "emoji"
        parts = options.parts or ["lm", "vit"]
        return build_emoji(options.corpus, out, draws=options.draws or [0], parts=parts, scale=options.scale, say=say)

    if options.answer_mix is not None:
        from lvlm.backbones.answers import build_answer_mixes
        from lvlm.run import default_home

        if options.parts is not None:
            raise InputError("--parts has no meaning with --answer-mix, which makes language models. Leave it out.")
        out = options.out or default_home() / "backbones" / "answer_mix"
        draws = options.draws or [0, 1, 2, 3, 4]
        return build_answer_mixes(out, options.answer_mix, draws=draws, scale=options.scale, say=say)

    from lvlm.backbones.build import build

    out = options.out or Path(__file__).parent / "assets"
    parts = options.parts or ["lm", "clean", "vit", "card", "denoiser"]
    if others := [part for part in parts if part != "denoiser"]:
        build(out, draws=options.draws or [0, 1, 2, 3, 4], parts=others, scale=options.scale, say=say)
    if "denoiser" in parts:
        from lvlm.paint.tiny import build_denoiser

        build_denoiser(out, draws=options.draws or [0], scale=options.scale, say=say)
