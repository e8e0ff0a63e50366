"""The commands `python -m lvlm evaluate`, `alignment` and `fidelity`: a checkpoint's scores, how well its language
model aligns its languages, and what a detector of languages takes texts for. Called by `lvlm.cli`."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lvlm.config import RunConfig, make_settings
from lvlm.errors import InputError
from lvlm.languages import group_languages, in_table_order, is_group, language
from lvlm.processes import process_index
from lvlm.ready import model_source, ready, recorded_config
from lvlm.records import CONFIG_FILE, PREDICTIONS_FILE, SCORES_FILE, TASKS, write_table
from lvlm.settings import EvaluateConfig

if TYPE_CHECKING:
    import pandas as pd

    from lvlm.data.corpus import Corpus
    from lvlm.evaluate.detectors import Detector
    from lvlm.evaluate.kept import KeptAnswers
    from lvlm.train.progress import Reporter

Tables = tuple["pd.DataFrame", "pd.DataFrame"]


def evaluate(options: argparse.Namespace) -> None:
    """Score a checkpoint, print the summary and write the tables to `--out`, where a killed evaluation goes on."""
    from lvlm.check import check_items, open_used
    from lvlm.evaluate.tiers import check_grouping, grouped, left_out, summarise
    from lvlm.run import default_home
    from lvlm.train.progress import Reporter

    for by in options.by:
        check_grouping(by)
    recorded = recorded_config(options.checkpoint)
    config = _config(options, recorded)
    if options.out and options.out.exists() and not options.out.is_dir():
        raise InputError(f"--out {options.out} is a file; name a folder for the two tables.")
    answered = _by_vllm if options.engine == "vllm" else partial(_by_own_engine, recorded=recorded)
    corpora = open_used(config.corpora)
    paints = recorded is not None and recorded.paint is not None
    check_items(config, corpora, permission="report", home=default_home(), paints=paints)
    main = process_index() == 0
    keep: KeptAnswers | None = None
    reporter = Reporter(silent=not main)

    def texts(config: EvaluateConfig) -> Tables:
        nonlocal keep
        tables, keep = answered(options, config, corpora, reporter)
        return tables

    if recorded is not None and recorded.paint is not None:
        from lvlm.paint.evaluation import evaluate_painted

        scores, predictions = evaluate_painted(
            texts, options.checkpoint, recorded, config, corpora, reporter, out=options.out, device=options.device
        )
    else:
        scores, predictions = texts(config)
    if not main:
        return
    for name, value in summarise(scores).items():
        print(f"{name:32s} {value:6.1f}")
    for by in options.by:
        for row in grouped(scores, by).itertuples():
            print(f"score by {by}: {row.group:20s} {row.value:6.1f}  ({row.pairs} pairs of task and language)")
    for note in [*scores.attrs["notes"], *left_out(scores)]:
        print(f"note: {note}")
    if options.out:
        for frame, name in ((scores, SCORES_FILE), (predictions, PREDICTIONS_FILE)):
            write_table(options.out / name, frame)
        if keep:
            keep.remove()
        print(f"written: {options.out}")


def _config(options: argparse.Namespace, recorded: RunConfig | None) -> EvaluateConfig:
    changes: dict[str, Any] = recorded.evaluate.model_dump() if recorded else {}
    if options.corpus:
        pairs = [text.partition(":") for text in options.corpus]
        changes["corpora"] = [{"path": path, "split": split or "test"} for path, _, split in pairs]
    if options.tasks:
        changes["tasks"] = options.tasks
    if options.items is not None:
        changes["items"] = options.items
    if options.languages:
        changes["languages"] = options.languages[0] if len(options.languages) == 1 else options.languages
    if options.detector:
        changes["detector"] = options.detector
    config = make_settings(EvaluateConfig, changes, where="The evaluation that was asked for")
    if not config.corpora:
        raise InputError(
            f"{options.checkpoint} is a bare model folder: say what to score it on, "
            "as in --corpus runs/data/shapes:test."
        )
    return config


def _by_own_engine(
    options: argparse.Namespace,
    config: EvaluateConfig,
    corpora: Mapping[str, Corpus],
    reporter: Reporter,
    *,
    recorded: RunConfig | None,
) -> tuple[Tables, KeptAnswers | None]:
    from lvlm.evaluate import evaluate

    source = model_source(options.checkpoint, recorded)
    settings = recorded or RunConfig()
    with ready(source, recorded, device=options.device) as it, reporter.evaluation() as progress:
        keep = _keep(options.out, it.identity(*source, settings.seed)) if options.out else None
        tables = evaluate(
            it.model,
            it.processor,
            config,
            corpora,
            permission="report",
            features=it.features,
            batch_size=settings.compute.evaluate_batch,
            keep=keep,
            on_progress=progress,
        )
    return tables, keep


def _by_vllm(
    options: argparse.Namespace, config: EvaluateConfig, corpora: Mapping[str, Corpus], reporter: Reporter
) -> tuple[Tables, KeptAnswers | None]:
    from lvlm.evaluate import evaluate_with
    from lvlm.evaluate.items import asked_items
    from lvlm.evaluate.vllm import VllmAnswerer
    from lvlm.model.layouts import content_digest

    folder: Path = options.checkpoint
    asked = asked_items(config, corpora, permission="report")
    answerer = VllmAnswerer(folder, images=max(len(entry.item.images) for entry in asked))
    keep = _keep(options.out, {"digest": content_digest([folder]), "engine": answerer.note}) if options.out else None
    with reporter.evaluation() as progress:
        tables = evaluate_with(answerer, config, corpora, permission="report", keep=keep, on_progress=progress)
    tables[0].attrs["notes"].append(answerer.note)
    return tables, keep


def _keep(out: Path, model: dict[str, Any]) -> KeptAnswers:
    from lvlm.evaluate.kept import KeptAnswers
    from lvlm.run import default_home

    return KeptAnswers(out, model, home=default_home())


def alignment(options: argparse.Namespace) -> None:
    """Print how well a checkpoint or a language model aligns the languages of a parallel corpus."""
    from lvlm.check import open_used
    from lvlm.evaluate.alignment import measure_alignment, parallel_sentences, score_rows
    from lvlm.settings import CorpusUse

    path, _, split = options.corpus.partition(":")
    wanted = {"path": path, "split": split or "test", "samples": options.items}
    use = make_settings(CorpusUse, wanted, where="The corpus that was asked for")
    corpora = open_used([use])
    codes = _languages(options.languages, list(corpora[path].languages_of(use.split)))
    pivot = language(options.pivot).code
    sentences = parallel_sentences([use], corpora, languages=[*codes, pivot])
    with _language_model(options) as (llm, tokenizer):
        found = measure_alignment(llm, tokenizer, sentences, pivot=pivot)
    print(f"{len(sentences[pivot])} sentences; by chance {100 / len(sentences[pivot]):.1f} of 100 are found")
    layers = int(found["layer"].max())
    print(f"{'language':10s} {'tokens/word':>11s}  retrieval (R@1) of the {pivot} sentence, layers 0 to {layers}; CKA")
    for code, own in found.groupby("language", sort=False):
        columns = [
            "" if code == pivot else " ".join(f"{value:5.1f}" for value in own[name]) for name in ("retrieval", "cka")
        ]
        print(f"{code:10s} {own['tokens_per_word'].iloc[0]:11.2f}  {columns[0]}  {columns[1] and '| ' + columns[1]}")
    means = score_rows(found).groupby("metric")["value"].mean()
    print(f"mean over blocks and languages: retrieval {means['retrieval']:.1f}, cka {means['cka']:.1f}")
    if options.out:
        write_table(options.out, found)
        print(f"written: {options.out}")


@contextmanager
def _language_model(options: argparse.Namespace) -> Iterator[tuple[Any, Any]]:
    """(LLM, tokenizer) of a run's folder, of a saved model of ours, or by a name or folder as `model.llm` takes it."""
    from lvlm.model.layouts import RELEASE, read_json

    folder = Path(options.model)
    kind = read_json(folder / "config.json").get("model_type") if (folder / "config.json").is_file() else None
    if kind in ("lvlm", RELEASE) or (folder / CONFIG_FILE).exists():
        recorded = recorded_config(folder)
        with ready(model_source(folder, recorded), recorded, device=options.device) as it:
            yield it.model.language_model, it.processor.tokenizer
        return
    from lvlm.model.assembly import load_llm
    from lvlm.model.backbones import resolve
    from lvlm.startup import quiet_transformers
    from lvlm.train.compute import compute

    settings = RunConfig().compute.model_copy(update={"device": options.device} if options.device else {})
    with compute(settings) as machinery, quiet_transformers():
        source = resolve(options.model, seed=0)
        llm, tokenizer = load_llm(source, attn="sdpa", precision=machinery.precision)
        with machinery.autocast():
            yield llm.to(machinery.device).eval(), tokenizer


def fidelity(options: argparse.Namespace) -> None:
    """Print what a detector takes labelled texts for, or tell the languages of finished predictions again."""
    if options.check == (options.predictions is not None):
        raise InputError("fidelity needs either --check or a predictions.parquet.")
    if options.table and options.predictions:
        raise InputError(f"--table {options.table} is for --check; with predictions leave it out.")
    if options.detector in ("auto", "corpus"):
        raise InputError(
            f"--detector {options.detector} learns from the corpora of an evaluation, and there are none here. Give "
            "packaged, or a fastText file."
        )
    from lvlm.evaluate.detectors import open_detector

    detector = open_detector(options.detector)
    print(f"detector: {detector.note}")
    for line in _told_again(options, detector) if options.predictions else _checked(options, detector):
        print(line)


def _checked(options: argparse.Namespace, detector: Detector) -> Iterator[str]:
    """The confusion matrix on labelled texts."""
    from lvlm.evaluate.labelled import confusions, locale_texts, read_table, report

    texts = read_table(options.table) if options.table else locale_texts()
    yield f"texts: {options.table or 'lists, spans of time and amounts by the locale data of Unicode CLDR (Babel)'}"
    codes = _languages(options.languages, list(texts))
    yield from report(confusions(detector, {code: texts[code] for code in codes}))


def _told_again(options: argparse.Namespace, detector: Detector) -> Iterator[str]:
    """Fidelity and undetermined share of finished predictions, as recorded and by this detector."""
    from lvlm.evaluate.fidelity import fidelity, undetermined
    from lvlm.evaluate.tasks import MEASURES

    table = _predictions(options.predictions)
    table = table[[MEASURES[task].in_language for task in table["task"]]]
    codes = _languages(options.languages, list(dict.fromkeys(table["language"])))
    yield f"{'task':12s} {'language':10s} {'answers':>7s} {'fidelity':>8s} {'undet.':>6s}   recorded:"
    for (task, code), rows in table.groupby(["task", "language"], sort=False):
        if code in codes:
            asked = [code] * len(rows)
            recorded = [found if isinstance(found, str) else None for found in rows["answer_language"]]
            again = [detector.detect(answer) for answer in rows["prediction"]]
            told = [f"{fidelity(some, asked)[0]:8.1f} {undetermined(some)[0]:6.1f}" for some in (again, recorded)]
            yield f"{task:12s} {code:10s} {len(rows):7d} {told[0]}   {told[1]}"


def _predictions(path: Path) -> pd.DataFrame:
    import pandas as pd
    import pyarrow

    wanted = f"Give a run's or an evaluation's {PREDICTIONS_FILE}."
    if not path.is_file():
        raise InputError(f"There are no predictions {path}. {wanted}")
    try:
        table = pd.read_parquet(path)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise InputError(f"{path} is no parquet file that can be read. {wanted}") from error
    if missing := [name for name in ("task", "language", "prediction", "answer_language") if name not in table]:
        raise InputError(f"{path} lacks the columns {', '.join(missing)}. {wanted}")
    if unknown := sorted(set(table["task"]) - set(TASKS)):
        raise InputError(f"{path} has the tasks {', '.join(unknown)}, which are not known here. {wanted}")
    return table


def _languages(wanted: list[str] | None, there: list[str]) -> list[str]:
    """Those of the languages `there` that are asked for, by codes or as one group; None asks for all."""
    if wanted is None:
        return there
    if len(wanted) == 1 and is_group(wanted[0]):
        return list(group_languages(wanted[0], there))
    codes = in_table_order(wanted)
    if missing := [code for code in codes if code not in there]:
        raise InputError(
            f"--languages names {', '.join(missing)}, of which there are no texts. There are: {', '.join(there)}."
        )
    return list(codes)
