"""Every field of the run config does something: another value changes the plan, what is learned, or what is answered.
A field that nobody lists here fails, and so does one that nothing reads."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.models.qwen2.modeling_qwen2 import Qwen2MLP

from lvlm.check import tuning
from lvlm.config import RunConfig, flat_fields, make_config, set_value
from lvlm.data.corpus import Corpus, open_corpus
from lvlm.data.plan import build_plan
from lvlm.errors import InputError
from lvlm.evaluate import alignment, evaluate
from lvlm.model.tiling import pixels
from lvlm.run import run
from lvlm.settings import TrainedParts
from lvlm.train import images, loop
from lvlm.train.batches import MicroBatch
from lvlm.train.compute import compute
from lvlm.train.shelf import Shelf
from lvlm.train.strategies import StepLoss
from tests.corpora import change_row, make_corpus, test_row, train_row, write_rows
from tests.field_changes import FIELDS, NEEDS, Changes
from tests.tiny import make_llm, make_tower, tiny_image, tiny_world

LANGUAGES = ("en", "de", "sw")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Three languages of two tiers, answers of several lengths, items of two tasks."""
    torch.set_num_threads(1)
    permissions = {"instruct": "train", "text": "train", "tune": "tune", "test": "report", "said": "report"}
    splits = {name: {"permission": permission} for name, permission in permissions.items()}
    folder = make_corpus(tmp_path_factory.mktemp("fields"), LANGUAGES, test_rows=4, entry={"splits": splits})
    for number in range(4):
        for part in ("train", "test"):
            tiny_image(number).save(folder / "images" / part / f"{number}.png")
    for code in LANGUAGES:
        rows = [
            train_row(number, code, label=[f"{code} {'word ' * (number % 3)}end", f"{code} more"])
            for number in range(24)
        ]
        write_rows(folder / "instruct" / f"{code}.jsonl", rows)
        write_rows(folder / "text" / f"{code}.jsonl", [{**row, "image_id": ""} for row in rows])
        said = [test_row(number, code, image_id="", text_label=f"{code} {'so ' * number}") for number in range(4)]
        write_rows(folder / "said" / f"{code}.jsonl", said)
        for split in ("tune", "test"):
            change_row(folder / split / f"{code}.jsonl", 0, task="reading")
    return open_corpus(folder)


def base(corpus: Corpus, changes: dict[str, Any]) -> RunConfig:
    """All stages alike, with LoRA in tower and LLM so that every setting has something to act on."""
    path = str(corpus.folder)
    stage = {
        "mix": {"corpora": [{"path": path, "split": "instruct"}], "languages": list(LANGUAGES)},
        "train": {"tower": "lora", "adapter": "full", "llm": "lora"},
        "lora": {"r": 4, "alpha": 8, "dropout": 0.1},
        "batch_samples": 4,
        "steps": 2,
    }
    data: dict[str, Any] = {
        "model": {"tower": tiny_world().tower, "llm": tiny_world().llm},
        "align": {
            **stage,
            "mix": {"corpora": [{"path": path, "split": "text"}], "languages": list(LANGUAGES)},
            "train": {"adapter": "frozen", "llm": "lora"},
        },
        "pretrain": stage,
        "instruct": stage,
        "evaluate": {
            "corpora": [{"path": path, "split": "test"}],
            "tune_corpora": [{"path": path, "split": "tune"}],
            "tune_items": 2,
            "max_new_tokens": 3,
        },
        "compute": {"device": "cpu", "threads": 1},
    }
    data = make_config(data).model_dump(mode="json")
    for field, value in changes.items():
        set_value(data, field, value)
    return make_config(data)


def digest(*tensors: torch.Tensor) -> str:
    return hashlib.sha256(b"".join(tensor.detach().contiguous().numpy().tobytes() for tensor in tensors)).hexdigest()


ASSEMBLED: dict[str, Any] = {}


def fresh(config: RunConfig) -> Any:
    """(model, processor) as assembled; read from disk once for each model config and seed."""
    from lvlm.model.assembly import assemble

    key = f"{config.model} {config.seed}"
    if key not in ASSEMBLED:
        ASSEMBLED[key] = assemble(config.model, seed=config.seed)
    return copy.deepcopy(ASSEMBLED[key][0]), ASSEMBLED[key][1]


def trained(config: RunConfig, name: str, corpus: Corpus, folder: Path) -> dict[str, Any]:
    """The stage `name`, trained alone: the weights that it learned, and how often it was validated."""
    from lvlm.model.parts import prepare_training
    from lvlm.train.batches import BatchStream, SampleEncoder, StepBatches
    from lvlm.train.loop import StageLoop
    from lvlm.train.progress import Reporter

    stage = config.stages()[name]
    validations: list[int] = []
    with compute(config.compute) as machinery:
        model, processor = fresh(config)
        prepare_training(model, stage, seed=config.seed)
        encoder = SampleEncoder(processor)
        opened = {str(corpus.folder): corpus}
        plan = build_plan(name, stage, seed=config.seed, corpora=opened, measure=encoder.measure)
        batches = StepBatches(plan, encoder, stage.reduction, token_budget=4096)

        def stream_from(step: int) -> BatchStream:
            return BatchStream(
                batches, model.config.image_transform, store=None, tower=None, device=machinery.device, first_step=step
            )

        StageLoop(
            model=model, batches=batches, stream_from=stream_from, config=stage, stage=name, seed=config.seed,
            folder=folder, identity={}, compute=machinery, reporter=Reporter(silent=True),
            validate=lambda: validations.append(1) or {},  # type: ignore[func-returns-value]
        ).run()  # fmt: skip
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return {"weights": digest(*weights), "validations": len(validations)}


def planned(config: RunConfig, name: str, corpus: Corpus) -> str:
    """The hash of a stage's plan."""
    from lvlm.model.tokenizer import load_counter

    opened, counter = {str(corpus.folder): corpus}, load_counter(config.model, seed=config.seed)
    return build_plan(name, config.stages()[name], seed=config.seed, corpora=opened, measure=counter.measure).hash


def modelled(config: RunConfig) -> str:
    """What the assembled model says about a picture, and how it is built."""
    model, processor = fresh(config)
    views = pixels(tiny_image(5), processor.image_transform)
    ids = torch.tensor([processor.encode_prompt("What is it?", 1)])
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=views).logits
    adapter = type(model.multi_modal_projector.adapter).__name__
    return f"{digest(logits)} {adapter} {model.language_model.config._attn_implementation}"


def lora_after(config: RunConfig) -> str:
    """The draw of the LoRA that the second stage begins with, after the first one."""
    from lvlm.model.parts import prepare_training

    model, _ = fresh(config)
    for name, stage in config.stages().items():
        prepare_training(model, stage, seed=config.seed, name=name)
    return digest(*(value for name, value in model.state_dict().items() if "lora_A" in name))


def answered(config: RunConfig, corpus: Corpus) -> str:
    """Every answer of the evaluation and of the validation, by an untrained model, and what is noted of them."""
    model, processor = fresh(config)
    opened, chosen = {str(corpus.folder): corpus}, config.evaluate
    tables = [
        evaluate(model, processor, part, opened, permission=permission)
        for part, permission in ((chosen, "report"), (tuning(chosen), "tune"))
    ]  # type: ignore[arg-type]
    return "\n".join(line for scores, found in tables for line in (found.to_csv(), *scores.attrs["notes"]))


@pytest.fixture(scope="module")
def unchanged(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Any]:
    """(what, stage) -> the outcome of the base config, computed once."""
    config, folder, known = base(corpus, {}), tmp_path_factory.mktemp("unchanged"), dict[str, Any]()

    def outcome(what: str, stage: str) -> Any:
        if what == "plan":
            return planned(config, stage, corpus)
        if what in ("weights", "validations"):
            if stage not in known:
                known[stage] = trained(config, stage, corpus, folder / stage)
            return known[stage][what]
        if what not in known:
            outcomes: dict[str, Callable[[], Any]] = {
                "model": lambda: modelled(config),
                "answers": lambda: answered(config, corpus),
                "run": lambda: seen(config, folder / "run"),
            }
            known[what] = outcomes[what]()
        return known[what]

    return outcome


SEEN = ("passes", "blocks", "threads", "workers", "checkpoints", "stages", "alignment")


def seen(config: RunConfig, folder: Path) -> dict[str, Any]:
    """What is seen of a short run: its record, the micro-batches and LLM blocks that it computes, the threads, loader
    processes and checkpoints that it asks for, and when it looks for stages to remove."""
    small = config.instruct and config.instruct.model_copy(update={"train": TrainedParts(llm="lora")})
    found: dict[str, Any] = {name: [] for name in SEEN}

    def noting(what: str, note: Callable[..., Any], original: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*args: Any, **settings: Any) -> Any:
            found[what].append(note(*args, **settings))
            return original(*args, **settings)

        return noted

    def shape(_: Any, batch: MicroBatch, images: Any) -> tuple[Any, bool]:
        return tuple(batch.input_ids.shape), batch.position_ids is None

    with pytest.MonkeyPatch.context() as patch:
        for place, name, what, note in (
            (StepLoss, "forward", "passes", shape),
            (Qwen2MLP, "forward", "blocks", lambda *_: 1),
            (images, "DataLoader", "workers", lambda *_, num_workers, **__: num_workers),
            (loop, "save_checkpoint", "checkpoints", lambda *_, **__: 1),
            (Shelf, "shrink", "stages", lambda _, limit, **__: limit > 0),
            (alignment, "measure_alignment", "alignment", lambda *_, pivot: pivot),
        ):
            patch.setattr(place, name, noting(what, note, getattr(place, name)))
        patch.setattr(torch, "set_num_threads", found["threads"].append)  # more than one would stay until a test forks
        record = run(
            config.model_copy(update={"align": None, "pretrain": None, "instruct": small}), folder / "run", home=folder
        )
    told = {name: record.provenance[name] for name in ("device", "precision", "features_reason")}
    return found | {"name": record.name, "tags": record.tags, "features": told.pop("features_reason"), **told}


def concrete(changes: Changes, corpus: Corpus, folder: Path) -> Changes:
    """`changes` with the paths that a table cannot hold."""
    result = dict(changes)
    for field, value in changes.items():
        if value == "half":
            splits = {"align.mix.corpora": "text", "evaluate.corpora": "test", "evaluate.tune_corpora": "tune"}
            split = (splits | {"evaluate.alignment": "said"}).get(field, "instruct")
            number = {"instruct": 12, "text": 12, "said": 3}.get(split, 1)
            result[field] = [{"path": str(corpus.folder), "split": split, "samples": number}]
        if value == "another":
            make = make_tower if field == "model.tower" else make_llm
            result[field] = str(make(folder / "backbone", seed=1))
        if value == "saved":
            model, processor = fresh(base(corpus, {"seed": 1}))
            for part in (model, processor):
                part.save_pretrained(folder / "saved")
            result[field] = str(folder / "saved")
    return result


HERE = [field for field in flat_fields() if not field.startswith("paint.")]
"""Those of the stage paint stand in test_every_paint_field.py."""


@pytest.mark.parametrize("field", HERE)
def test_another_value_changes_something(
    field: str, corpus: Corpus, unchanged: Callable[[str, str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert field in FIELDS, f"{field} is new: say in FIELDS what another value changes"
    kind, table = FIELDS[field]
    if kind == "refused":
        told = "contrast" if "contrast" in field else field.rpartition(".")[2]
        with pytest.raises(InputError, match=told):
            base(corpus, table)
        return
    config = base(corpus, concrete(table, corpus, tmp_path))
    if kind == "launched":
        monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
        with pytest.raises(InputError, match=f"{field} is ddp but accelerate was launched"), compute(config.compute):
            pass
        return
    if field == "compute.device" and not torch.cuda.is_available():
        with pytest.raises(InputError, match=f"{field} is cuda, but torch sees no GPU"):
            seen(config, tmp_path)
        return
    if kind == "quantised" and find_spec("bitsandbytes") is None:
        with pytest.raises(InputError, match=f"{field} needs the package bitsandbytes"):
            modelled(config)
        return
    if kind == "lora":
        assert lora_after(config) != lora_after(base(corpus, {})), field
        return
    stage = field.partition(".")[0] if "." in field else "instruct"
    if kind.startswith("run: "):
        what = kind.removeprefix("run: ")
        known = (
            seen(base(corpus, concrete(NEEDS[field], corpus, tmp_path)), tmp_path / "base")
            if field in NEEDS
            else unchanged("run", "")
        )
        assert seen(config, tmp_path / "changed")[what] != known[what], field
        return
    if field in NEEDS:
        outcomes = {
            planned(one, stage, corpus)
            if kind == "plan"
            else trained(one, stage, corpus, tmp_path / str(place))["weights"]
            if kind == "weights"
            else modelled(one)
            for place, one in enumerate((config, base(corpus, NEEDS[field])))
        }
        assert len(outcomes) == 2, field
        return
    if kind in ("model", "quantised"):
        outcome: Any = modelled(config)
    elif kind == "answers":
        outcome = answered(config, corpus)
    elif kind == "plan":
        outcome = planned(config, stage, corpus)
    else:
        outcome = trained(config, stage, corpus, tmp_path / "stage")[kind]
    assert outcome != unchanged(kind, stage), field


def test_no_field_is_listed_that_is_gone() -> None:
    assert set(FIELDS) == set(HERE)


def test_the_same_config_gives_the_same_outcome(
    corpus: Corpus, unchanged: Callable[[str, str], Any], tmp_path: Path
) -> None:
    """Without this, every difference above could be chance."""
    again = trained(base(corpus, {}), "instruct", corpus, tmp_path / "stage")
    assert again == {kind: unchanged(kind, "instruct") for kind in ("weights", "validations")}
    assert modelled(base(corpus, {})) == unchanged("model", "")
    assert answered(base(corpus, {}), corpus) == unchanged("answers", "")
