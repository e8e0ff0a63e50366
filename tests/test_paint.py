"""The stage paint: what learns and what stays, the states that it reads, resume, pictures that depend on their seed."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from lvlm.cli import main
from lvlm.config import RunConfig
from lvlm.data.corpus import open_corpus
from lvlm.errors import InputError
from lvlm.evaluate.items import asked_items
from lvlm.paint.denoisers import learns, load_denoiser
from lvlm.paint.painter import Painter, load_painter
from lvlm.paint.sample import Drawing, paint
from lvlm.paint.scores import PaintedScores
from lvlm.paint.stage import Painting, PaintLoss
from lvlm.paint.states import CaptionStates
from lvlm.records import RunRecord
from lvlm.run import run
from lvlm.settings import EvaluateConfig
from lvlm.train.compute import compute
from lvlm.train.progress import Reporter
from tests.paint_world import paint_config, paint_world
from tests.processes import together
from tests.tiny import tiny_world


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    folder = tmp_path_factory.mktemp("paint")
    run(paint_config(), folder / "run", home=folder)
    return folder / "run"


def prepared(config: RunConfig, home: Path) -> tuple[Painting, Any]:
    """The stage of a run before its training, and its model."""
    from lvlm.model.assembly import assemble
    from lvlm.provenance import Phases

    assert config.paint is not None
    model, processor = assemble(config.model, seed=config.seed)
    with compute(config.compute) as machinery:
        painting = Painting(config, machinery, Reporter(silent=True), Phases())
        path = config.paint.mix.corpora[0].path
        painting.prepare(model, processor, {path: open_corpus(path)}, home)
    return painting, model


def hashes(model: torch.nn.Module) -> dict[str, str]:
    return {
        name: hashlib.sha256(tensor.detach().numpy().tobytes()).hexdigest()
        for name, tensor in model.state_dict().items()
    }


@pytest.mark.parametrize("train", ["projection", "kv", "cross_attention", "all"])
def test_exactly_what_is_said_to_learn_changes(train: str, tmp_path: Path) -> None:
    config = paint_config(paint__train=train, evaluate__corpora=[])
    assert config.paint is not None
    before = load_denoiser(Path(config.paint.denoiser), width=32, seed=0)
    record = run(config, tmp_path / "run", home=tmp_path)
    after = load_denoiser(Path(record.provenance["painter"]), width=32, seed=0)
    changed = {name for name, digest in hashes(after).items() if digest != hashes(before)[name]}
    wanted = {name for name in hashes(before) if learns(name, config.paint.train)}
    assert changed == wanted  # the keys' bias of a softmax has no gradient, but diffusers' keys have no bias
    assert record.budget["trainable_parameters"] == sum(
        tensor.numel() for name, tensor in before.state_dict().items() if name in wanted
    )


def test_the_language_model_is_left_as_it_is(done: Path) -> None:
    source = RunRecord.load(done).provenance["painter"]
    about = json.loads((Path(source) / "painter.json").read_text())
    assert about["languages"] == ["en", "de", "sw"] and about["llm"]["folder"] is None
    painter = load_painter(Path(source))
    from lvlm.model.assembly import load_llm

    fresh, _ = load_llm(tiny_world().llm, attn="eager", precision="fp32")
    assert hashes(painter.states.llm) == hashes(fresh)


def states(**changes: Any) -> CaptionStates:
    config = paint_config(**{f"paint__{name}": value for name, value in changes.items()})
    from lvlm.model.assembly import load_llm
    from lvlm.model.chat import Chat

    llm, tokenizer = load_llm(tiny_world().llm, attn="eager", precision="fp32")
    assert config.paint is not None
    return CaptionStates(llm.eval(), Chat(tokenizer), config.paint)


CAPTIONS = ["a red circle", "", "ein großes rotes Quadrat", "a blue star", "a red circle"]


@pytest.mark.parametrize("layer", [-1, 1, 0])
def test_kept_states_are_those_that_are_computed(layer: int) -> None:
    computed, kept = states(layer=layer), states(layer=layer)
    assert kept.keep([*CAPTIONS, "one more that is not asked for"]) and not computed.kept
    (one, mask), (other, same) = computed(CAPTIONS), kept(CAPTIONS)
    assert torch.equal(mask, same) and torch.allclose(one, other, atol=1e-6)
    assert torch.equal(one[0], one[4]) and not one[1][mask[1].logical_not()].any()
    alone, _ = kept(CAPTIONS[1:2])
    assert torch.equal(alone[0], other[1][: alone.shape[1]])


def test_the_last_state_is_the_hidden_state_behind_the_final_norm() -> None:
    last, also = states(layer=-1), states(layer=2)
    assert torch.equal(last(CAPTIONS)[0], also(CAPTIONS)[0])


def test_a_bidirectional_prefix_lets_the_first_token_see_the_last() -> None:
    for bidirectional, sees in ((False, False), (True, True)):
        (red, blue), _ = states(bidirectional=bidirectional)(["a star, red", "a star, tan"])
        assert torch.equal(red[0], blue[0]) != sees


def test_a_layer_that_is_not_there_is_an_error() -> None:
    with pytest.raises(InputError, match=r"paint.layer is 3, but the language model has 2 layers"):
        states(layer=3)


def test_control_strings_in_a_caption_are_ordinary_text() -> None:
    own = states()
    end = own.chat.end_of_turn_ids()[-1]
    assert own.ids("a <|im_end|> b").count(end) == 1 and own.ids("") == [end]


def gradient(config: RunConfig, home: Path) -> list[torch.Tensor]:
    """Of one optimizer step, added up over its micro-batches."""
    from lvlm.paint.batches import PaintStream
    from lvlm.paint.denoisers import set_learning

    painting, _ = prepared(config, home)
    assert config.paint is not None
    set_learning(painting.painter.denoiser, config.paint.train)
    loss = PaintLoss(painting.painter, painting.compute.autocast)
    stream = PaintStream(painting.batches, device=torch.device("cpu"), first_step=1)
    for batch, inputs in stream.step(1):
        loss(batch, inputs).backward()
    return [weight.grad for weight in painting.painter.parameters() if weight.grad is not None]


def test_the_gradient_does_not_depend_on_the_micro_batches(tmp_path: Path) -> None:
    noisy = {"paint__state_noise": 0.5}
    whole = gradient(paint_config(compute__micro_batch_tokens=1 << 16, **noisy), tmp_path)
    parts = gradient(paint_config(compute__micro_batch_tokens=400, **noisy), tmp_path)
    assert len(whole) == len(parts) > 10
    for one, other in zip(whole, parts, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-7)


def test_two_processes_learn_what_one_does(tmp_path: Path) -> None:
    config = paint_config(evaluate__corpora=[], paint__train="all")

    def work(processes: int) -> None:
        run(config, tmp_path / f"{processes}/run", home=tmp_path / str(processes))

    for processes in (1, 2):
        assert together(partial(work, processes), processes) == [0] * processes
    records = [RunRecord.load(tmp_path / f"{processes}/run") for processes in (1, 2)]
    one, two = (load_denoiser(Path(record.provenance["painter"]), width=32, seed=0) for record in records)
    before = load_denoiser(Path(str(config.paint and config.paint.denoiser)), width=32, seed=0)
    moved, apart = (
        torch.cat([(a - b).flatten() for a, b in zip(other.parameters(), one.parameters(), strict=True)])
        for other in (before, two)
    )
    assert torch.linalg.norm(apart) < 1e-3 * torch.linalg.norm(moved)


def test_activations_that_are_computed_again_change_nothing(done: Path, tmp_path: Path) -> None:
    config = paint_config(compute__gradient_checkpointing=True, compute__micro_batch_tokens=400, evaluate__items=1)
    again = run(config, tmp_path / "run", home=tmp_path)
    files = [
        load_denoiser(Path(record.provenance["painter"]), width=32, seed=0).state_dict()
        for record in (RunRecord.load(done), again)
    ]
    assert all(torch.allclose(files[0][name], files[1][name], rtol=1e-3, atol=1e-5) for name in files[0])


class Killed(Exception):
    """Stands for a process that ends in the middle."""


def test_a_run_that_was_stopped_ends_like_one_that_was_not(tmp_path: Path) -> None:
    config = paint_config(paint__steps=4, paint__train="all", evaluate__items=1)
    whole = run(config, tmp_path / "a/run", home=tmp_path / "a")

    def stop(event: dict[str, Any]) -> None:
        if event["kind"] == "step" and event["step"] == 2:
            raise Killed

    with pytest.raises(Killed):
        run(config, tmp_path / "b/run", home=tmp_path / "b", on_progress=stop)
    resumed = run(config, tmp_path / "b/run", home=tmp_path / "b")
    assert resumed.stage_keys == whole.stage_keys and resumed.plan_hash == whole.plan_hash
    files = [Path(record.provenance["painter"]) / "diffusion_pytorch_model.safetensors" for record in (whole, resumed)]
    assert files[0].read_bytes() == files[1].read_bytes()
    tables = [pd.read_parquet(tmp_path / name / "run/scores.parquet") for name in "ab"]
    pd.testing.assert_frame_equal(*tables)


def painted(painter: Painter, names: list[str], *, guidance: float = 3.0, batch_size: int = 64) -> np.ndarray:
    captions = [f"caption {number}" for number in range(len(names))]
    return paint(painter, captions, names, Drawing(0, 3, guidance), batch_size=batch_size).astype(int)


def test_a_picture_depends_on_its_seed_and_name_and_not_on_its_batch(done: Path) -> None:
    painter = load_painter(Path(RunRecord.load(done).provenance["painter"]))
    names = list("abcde")
    one = painted(painter, names)
    assert np.abs(one - painted(painter, names, batch_size=2)).max() <= 1  # last bits, then rounded
    assert np.array_equal(one, painted(painter, names))
    assert np.abs(one - painted(painter, list("fbcde")))[0].max() > 20


def test_a_guidance_of_1_is_the_caption_alone_and_0_the_empty_one(done: Path) -> None:
    painter = load_painter(Path(RunRecord.load(done).provenance["painter"]))
    asked: list[int] = []
    original = painter.states.__class__.__call__

    def counted(self: CaptionStates, captions: Any) -> Any:
        asked.append(len(captions))
        return original(self, captions)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CaptionStates, "__call__", counted)
        alone = painted(painter, ["a", "b"], guidance=1.0)
        both = painted(painter, ["a", "b"], guidance=1.0 + 1e-12)
        empty = painted(painter, ["a", "b"], guidance=0.0)
    assert asked == [2, 4, 4] and np.abs(alone - both).max() <= 1
    assert np.array_equal(empty, paint(painter, ["", ""], ["a", "b"], Drawing(0, 3, 1.0)).astype(int)) or (
        np.abs(empty - paint(painter, ["", ""], ["a", "b"], Drawing(0, 3, 1.0)).astype(int)).max() <= 1
    )


def test_the_scores_have_a_row_for_every_language_and_metric_and_name_the_pictures(done: Path) -> None:
    scores, predictions = (pd.read_parquet(done / name) for name in ("scores.parquet", "predictions.parquet"))
    wanted = [
        "score",
        "colour",
        "shape",
        "place",
        "random",
        "ceiling",
        "empty",
        "gap",
        "transfer",
        "frechet",
        "agreement",
    ]
    for code in ("en", "de", "sw"):
        own = scores[(scores["language"] == code) & (scores["task"] == "paint")]
        assert list(own["metric"]) == wanted
        assert own.set_index("metric").loc["ceiling", "value"] == 100
        assert own.set_index("metric").loc["random", "value"] == pytest.approx(100 / 72)
    assert all((done / name).is_file() for name in predictions["image"])
    assert set(predictions["prediction"].str.split().str.len()) == {3}
    record = RunRecord.load(done)
    assert {"score/en", "paint/multilingual", "score/T5"} <= record.scores.keys()
    assert record.budget["paint/samples"] == 18 and record.budget["flops"] > 0


def test_stages_are_shared_by_what_decides_their_weights(done: Path, tmp_path: Path) -> None:
    home, known = done.parent, RunRecord.load(done).stage_keys
    other = run(paint_config(paint__guidance=1.0, evaluate__items=1), tmp_path / "run", home=home)
    assert other.stage_keys == known and other.provenance["stages_trained_here"] == []


def test_painting_and_answering_stand_in_one_table(tmp_path: Path) -> None:
    corpus, _ = paint_world()
    from tests.train_world import write_corpus

    noise = write_corpus(tmp_path / "noise")
    config = paint_config(
        instruct={"mix": {"corpora": [{"path": str(noise), "split": "train"}], "languages": "en"}, "steps": 2},
        evaluate__corpora=[{"path": str(corpus), "split": "test"}, {"path": str(noise), "split": "test"}],
        evaluate__languages=["en", "de"],
        evaluate__items=2,
    )
    record = run(config, tmp_path / "run", home=tmp_path)
    assert list(record.stage_keys) == ["instruct", "paint"]
    assert {"vqa/en", "paint/en"} <= record.scores.keys()
    about = json.loads((Path(record.provenance["painter"]) / "painter.json").read_text())
    assert about["llm"]["folder"] == record.provenance["model"]


def test_a_stage_before_painting_is_validated_on_questions_alone(tmp_path: Path) -> None:
    corpus, _ = paint_world()
    from tests.train_world import write_corpus

    noise = write_corpus(tmp_path / "noise")
    mix = {"corpora": [{"path": str(noise), "split": "train"}], "languages": "en"}
    prompts = {"path": str(corpus), "split": "tune"}
    config = {"instruct": {"mix": mix, "steps": 2, "validate_every": 1}, "evaluate__items": 1}
    with pytest.raises(InputError, match=r"instruct\.validate_every is set, but evaluate\.tune_corpora holds prompts"):
        run(paint_config(**config), tmp_path / "run", home=tmp_path)
    questions = {"path": str(noise), "split": "tune"}
    seen: dict[str, set[str]] = {}

    def watch(event: dict[str, Any]) -> None:
        if event["kind"] == "validation":
            seen.setdefault(event["stage"], set()).update(name.partition("/")[0] for name in event)

    both = paint_config(**config, paint__validate_every=2, evaluate__tune_corpora=[prompts, questions])
    run(both, tmp_path / "run", home=tmp_path, on_progress=watch)
    assert "vqa" in seen["instruct"] and "paint" not in seen["instruct"] and {"vqa", "paint"} <= seen["paint"]


def test_the_denoiser_reads_the_language_model_that_text_has_aligned(tmp_path: Path) -> None:
    from tests.train_world import write_rows

    for code, said in (("en", "a red cross"), ("de", "ein rotes Kreuz")):
        rows = [{"id": f"t{n}", "context": [f"{n}?"], "label": [said], "image_id": ""} for n in range(8)]
        write_rows(tmp_path / f"text/train/{code}.jsonl", rows)
    entry = "name: text\nlanguages: [en, de]\ntranslatable: true\nsplits: {train: {permission: train}}\n"
    (tmp_path / "text/corpus.yaml").write_text(entry, encoding="utf-8")
    align = {
        "mix": {"corpora": [{"path": str(tmp_path / "text"), "split": "train"}], "languages": ["en", "de"]},
        "train": {"adapter": "frozen", "llm": "full"},
        "steps": 2,
    }
    record = run(paint_config(align=align, evaluate__items=1), tmp_path / "run", home=tmp_path)
    assert list(record.stage_keys) == ["align", "paint"]
    aligned = load_painter(Path(record.provenance["painter"])).states
    assert Path(record.provenance["model"]).parent.name == record.stage_keys["align"]
    assert not torch.equal(aligned(CAPTIONS[:1])[0], states()(CAPTIONS[:1])[0])


def test_prompts_without_a_painter_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no stage paint"):
        run(paint_config(paint=None), tmp_path / "run", home=tmp_path)


def test_dialogues_are_no_captions(tmp_path: Path) -> None:
    from tests.train_world import write_corpus

    noise = write_corpus(tmp_path / "noise")
    mix = {"corpora": [{"path": str(noise), "split": "train"}], "languages": "en"}
    with pytest.raises(InputError, match="needs one picture and one answer"):
        run(paint_config(paint__mix=mix), tmp_path / "run", home=tmp_path)


def test_the_command_writes_a_grid_whole_or_not_at_all(
    done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    out = tmp_path / "grid.png"
    prompt = next(iter(open_corpus(paint_world()[0]).items("test", "en"))).prompt
    assert main(["paint", str(done), prompt, "--languages", "en", "sw", "--images", "2", "--out", str(out)]) == 0
    with Image.open(out) as image:
        assert image.width > 2 * 128 and image.height > 2 * 120
    assert "sw: " in capsys.readouterr().out
    for wrong, said in (
        (["--languages", "zh"], "in zh, and it is known in en, de, sw"),
        (["--images", "0"], "--images is 0"),
        (["--steps", "2000"], "2000 steps were asked for"),
        (["--guidance", "inf"], "--guidance is inf"),
        (["--out", str(tmp_path / "x.jpg")], "ends in .png"),
        (["--out", str(tmp_path / "nowhere/x.png")], "must be there"),
    ):
        assert main(["paint", str(done), prompt, "--out", str(tmp_path / "no.png"), *wrong]) == 2
        error = capsys.readouterr().err
        assert said in error and len(error.strip().splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["grid.png"]


def test_evaluating_a_run_again_paints_the_same(done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(done), "--out", str(tmp_path / "again")]) == 0
    assert "paint/multilingual" in capsys.readouterr().out
    for name in ("scores.parquet", "predictions.parquet"):
        first, second = (pd.read_parquet(folder / name) for folder in (done, tmp_path / "again"))
        pd.testing.assert_frame_equal(
            first.drop(columns="image", errors="ignore"), second.drop(columns="image", errors="ignore")
        )
    assert len(list((tmp_path / "again/pictures").rglob("*.png"))) == 4 * 6


def test_later_pictures_are_larger(tmp_path: Path) -> None:
    config = paint_config(paint__later_image_size=16, paint__later_from=2)
    painting, _ = prepared(config, tmp_path)
    sizes = [batch.size for step in range(3) for batch in painting.batches(step)]
    assert set(sizes[:-1]) == {12} and sizes[-1] == 16 and painting.painter.size == 16


def test_captions_are_dropped_as_often_as_is_said(tmp_path: Path) -> None:
    painting, _ = prepared(paint_config(paint__caption_dropout=0.5, paint__steps=40), tmp_path)
    samples = [sample for step in range(40) for sample in painting.batches.samples(step)]
    assert 0.4 < np.mean([sample.dropped for sample in samples]) < 0.6  # type: ignore[attr-defined]
    assert {sample.caption == "" for sample in samples if sample.dropped} == {True}  # type: ignore[attr-defined]


def test_noise_on_states_is_as_large_as_is_said_and_none_follows_the_end_of_a_caption(tmp_path: Path) -> None:
    from lvlm.paint.batches import PaintStream

    def states(noise: float) -> list[dict[str, torch.Tensor]]:
        painting, _ = prepared(paint_config(paint__state_noise=noise), tmp_path)
        stream = PaintStream(painting.batches, device=torch.device("cpu"), first_step=0)
        return [inputs for _, inputs in stream.step(0)]

    for clean, noisy in zip(states(0.0), states(0.5), strict=True):
        moved, mask = noisy["states"] - clean["states"], clean["mask"]
        sizes = moved[mask].square().mean(dim=-1).sqrt() / clean["states"][mask].square().mean(dim=-1).sqrt()
        assert sizes.mean() == pytest.approx(0.5, abs=0.05)
        assert not moved[~mask].any()


def test_kept_pictures_are_taken_by_the_same_drawing_and_painter_alone(done: Path, tmp_path: Path) -> None:
    painter = load_painter(Path(RunRecord.load(done).provenance["painter"]))
    corpus = open_corpus(paint_world()[0])
    config = EvaluateConfig(corpora=({"path": "c", "split": "test"},), languages=["en"], items=2)  # type: ignore[arg-type]
    asked = asked_items(config, {"c": corpus}, permission="report")
    first = PaintedScores(painter, Drawing(0, 2, 3.0), tmp_path / "pictures", "key")
    for number, scores in enumerate((
        first, replace(first, drawing=Drawing(1, 2, 3.0)), replace(first, drawing=Drawing(0, 1, 3.0)),
        replace(first, drawing=Drawing(0, 2, 1.0)), replace(first, key="another"), first,
    )):  # fmt: skip
        scores(asked)
        assert len(list(tmp_path.rglob("*.png"))) == 4 * min(number + 1, 5)  # two prompts, and their empty captions
