"""What can be wrong with a run's data, found before anything is trained: the same for a run and for its plan. No torch.
Called by `lvlm.run`, and by `lvlm.cli` for the commands `plan` and `evaluate`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from lvlm.config import RunConfig
from lvlm.errors import InputError
from lvlm.records import RECORD_FILE, RunRecord
from lvlm.settings import CorpusUse, EvaluateConfig, StageConfig
from lvlm.train.identity import config_diff

if TYPE_CHECKING:
    from lvlm.data.corpus import Corpus, Permission
    from lvlm.data.plan import Plan


def open_corpora(config: RunConfig, *, home: Path | None = None) -> dict[str, Corpus]:
    """Path -> corpus, for all that the stages, the evaluation and the validation name; each split may be used so.
    Rows found sound are remembered under `home`."""
    uses: list[tuple[str, CorpusUse, Permission]] = [
        (f"{name}.mix.corpora", use, "train")
        for name, stage in config.every_stage().items()
        for use in stage.mix.corpora
    ]
    uses += [("evaluate.corpora", use, "report") for use in config.evaluate.corpora]
    uses += [("evaluate.tune_corpora", use, "tune") for use in config.evaluate.tune_corpora]
    uses += [("evaluate.alignment", use, "report") for use in config.evaluate.alignment]
    _check_there([(field, use) for field, use, _ in uses])
    corpora = open_used((use for _, use, _ in uses), home=home)
    for _, use, permission in uses:
        corpora[use.path].require(use.split, permission)
    for corpus in corpora.values():
        corpus.stamp()  # for the record: a language without its file shows now
    if _validates(config) and not config.evaluate.tune_corpora:
        raise InputError(
            "A stage of the run config sets validate_every, but evaluate.tune_corpora names nothing to "
            "validate on. Name a corpus and a split with permission 'tune' there, or leave validate_every out."
        )
    return corpora


def _check_there(uses: Iterable[tuple[str, CorpusUse]]) -> None:
    """Raise for all corpora together that are not there, with the field that names each."""
    absent = [(field, use) for field, use in uses if not Path(use.path).exists()]
    if not absent:
        return
    faults = "; ".join(f"{field}: {use.path} does not exist" for field, use in absent)
    field, use = absent[0]
    written = ("shapes", "reading", "sentences", "origins", "paint")
    built_in = next((use.path for _, use in absent if Path(use.path).name in written), None)
    hint = f" `python -m lvlm data {Path(built_in).name} {built_in}` writes a built-in one." if built_in else ""
    raise InputError(
        f"{faults} (looked for from {Path.cwd()}). A corpus is a folder with a corpus.yaml, or a JSON file. Put it "
        f"there, or name yours, as in {field}='[{{path: FOLDER, split: {use.split}}}]'.{hint}"
    )


def open_used(uses: Iterable[CorpusUse], *, home: Path | None = None) -> dict[str, Corpus]:
    """Path -> corpus, each opened once with the images that its uses name; they must agree on those."""
    from lvlm.data.corpus import open_corpus

    corpora: dict[str, Corpus] = {}
    images: dict[str, str | None] = {}
    for use in uses:
        if use.path not in corpora:
            corpora[use.path], images[use.path] = open_corpus(use.path, images=use.images, home=home), use.images
        if images[use.path] != use.images:
            raise InputError(
                f"The corpus {use.path} is used with images={images[use.path]} in one place and images={use.images} "
                "in another. Give it the same folder wherever it is named."
            )
    return corpora


def check_learns(config: StageConfig, plan: Plan) -> None:
    """Raise if no step of a stage could change anything: tower and adapter learn from pictures alone. The stage `align`
    reads none."""
    if plan.stage == "align" and plan.counts["images"]:
        raise InputError(
            f"{plan.counts['images']} images belong to the samples of stage align, which reads text alone. Name a "
            "corpus without images in align.mix.corpora, or learn from this one in pretrain or instruct."
        )
    if config.train.llm == "frozen" and plan.counts["images"] == 0:
        raise InputError(
            f"No sample of stage {plan.stage} has an image, and {plan.stage}.train.llm is frozen: tower and adapter "
            f"would learn nothing. Name a corpus with images in {plan.stage}.mix.corpora, or let the LLM learn "
            f"({plan.stage}.train.llm=lora)."
        )


def check_evaluation(config: RunConfig, corpora: Mapping[str, Corpus], *, home: Path) -> list[Path]:
    """Raise for whatever is wrong with the items of the evaluation and of the validation, their pictures included;
    returns the images of the evaluation, once each. Pictures found sound are remembered under `home`."""
    paints = config.paint is not None
    if config.evaluate.tune_corpora:
        _check_validated(config, corpora)
        check_items(tuning(config.evaluate), corpora, permission="tune", home=home, paints=paints)
    return check_items(config.evaluate, corpora, permission="report", home=home, paints=paints)


def _check_validated(config: RunConfig, corpora: Mapping[str, Corpus]) -> None:
    """Raise where a stage before `paint` is to be validated on prompts alone, which nothing paints by then."""
    from lvlm.evaluate.items import asked_items

    validated = [name for name, stage in config.stages().items() if stage.validate_every]
    if config.paint is None or not validated:
        return
    if all(entry.item.task == "paint" for entry in asked_items(tuning(config.evaluate), corpora, permission="tune")):
        raise InputError(
            f"{validated[0]}.validate_every is set, but evaluate.tune_corpora holds prompts to paint alone, and "
            "nothing paints before the stage paint. Name a corpus with questions as well, or leave it out there."
        )


def check_items(
    config: EvaluateConfig, corpora: Mapping[str, Corpus], *, permission: Permission, home: Path, paints: bool = False
) -> list[Path]:
    """`check_evaluation` for the corpora of one evaluation; `paints` says that a denoiser is there for prompts."""
    from lvlm.evaluate import detectors
    from lvlm.evaluate.items import asked_items
    from lvlm.evaluate.tasks import scorer_of

    asked = asked_items(config, corpora, permission=permission)
    if not paints and (entry := next((one for one in asked if one.item.task == "paint"), None)) is not None:
        raise InputError(
            f"The evaluation asks for pictures (task paint, corpus {entry.corpus.name}/{entry.split}), but the run has "
            "no stage paint. Give it one, or leave the task out (evaluate.tasks)."
        )
    detectors(config, corpora)  # that of closed corpora reads more than what is asked; kept for then
    ids: dict[tuple[Corpus, str, str], set[str]] = {}
    for entry in asked:
        scorer_of(entry.corpus, entry.split)
        ids.setdefault((entry.corpus, entry.split, entry.item.language), set()).add(entry.item.id)
    for (corpus, split, language), chosen in ids.items():
        corpus.check(split, [language], ids=chosen, images=True, home=home)
    return list(dict.fromkeys(entry.corpus.image_path(image) for entry in asked for image in entry.item.images))


def check_same_data(folder: Path, config: RunConfig, record: RunRecord) -> None:
    """Raise if the backbones or corpora of a finished run are no longer those that its record names."""
    from lvlm.model.backbones import run_digests

    now = {
        "backbones": run_digests(config),
        "corpora": {path: corpus.stamp() for path, corpus in open_corpora(config).items()},
    }
    if lines := config_diff({name: record.provenance.get(name, now[name]) for name in now}, now):
        raise InputError(
            f"The run in {folder} is finished, but what it was made of has changed since (digests there -> now): "
            f"{'; '.join(lines)}. Name another folder, or remove this one, to run with what is there now; to keep the "
            f"scores, put the old files back or read {folder / RECORD_FILE}."
        )


def tuning(config: EvaluateConfig) -> EvaluateConfig:
    """What is scored while training."""
    return config.model_copy(update={"corpora": config.tune_corpora, "items": config.tune_items})


def setting_notes(config: RunConfig) -> list[str]:
    """What a config asks for that this run does not use, or leaves undone; nothing of it is wrong."""
    notes = []
    if not config.evaluate.corpora:
        notes.append("evaluate.corpora is empty: nothing was scored")
    if not _validates(config):
        defaults = EvaluateConfig()
        unused = [
            f"evaluate.{name}"
            for name in ("tune_corpora", "tune_items")
            if getattr(config.evaluate, name) != getattr(defaults, name)
        ]
        if unused:
            verb = "are" if len(unused) > 1 else "is"
            notes.append(f"{' and '.join(unused)} {verb} not used: no stage sets validate_every")
    return notes


def refusal_notes(config: RunConfig, corpora: Mapping[str, Corpus]) -> list[str]:
    """How many samples of each stage lack a translation into some languages, and so stay in another."""
    notes = []
    for name, stage in config.every_stage().items():
        for use in stage.mix.corpora:
            corpus = corpora[use.path]
            refused = {code: len(corpus.refused(use.split, code)) for code in corpus.languages_of(use.split)}
            if counts := ", ".join(f"{code} {count:,}" for code, count in refused.items() if count):
                notes.append(
                    f"{name}: translations of {corpus.name}/{use.split} that were refused: {counts}; where the mix "
                    "gives such a sample to such a language, it takes the first of the mix that has it"
                )
    return notes


def _validates(config: RunConfig) -> bool:
    return any(stage.validate_every for stage in config.every_stage().values())
