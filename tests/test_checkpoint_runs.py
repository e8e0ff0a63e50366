"""Runs and commands that start from a checkpoint of Centurio's or of our own."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lvlm.config import RunConfig
from lvlm.evaluate.generate import Prompt, generate_answers
from lvlm.model.checkpoints import load
from lvlm.model.export import export
from lvlm.model.lora import merge_lora
from lvlm.model.lvlm import Lvlm
from lvlm.model.parts import prepare_training
from lvlm.run import run
from lvlm.train.features import TowerFeatures
from tests.checkpoint_models import edit, logits, made, trained, write_own
from tests.foreign import model_config, write_release, write_snapshot
from tests.test_model_training import stage
from tests.train_world import run_config, write_corpus


@pytest.fixture(scope="module")
def qwen():
    torch.set_num_threads(1)
    return trained(tower="full")


@pytest.fixture
def fresh(qwen):
    """A copy that may be changed."""
    return copy.deepcopy(qwen[0]), qwen[1], qwen[2]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("foreign") / "noise", samples=8, items=2)


def test_a_run_without_stages_evaluates_a_snapshot(tmp_path, corpus, qwen, capsys):
    """Its answers are those of the model that the snapshot was written from, and the commands take the run's folder."""
    from lvlm import cli

    model, processor, _ = qwen
    path = write_snapshot(made(tmp_path / "snapshot"), model, deepspeed=True, tower=True)
    data = run_config(corpus, pretrain=None, instruct=None).model_dump(mode="json")
    data["model"] = model_config(checkpoint=str(path)).model_dump(mode="json")
    record = run(RunConfig.model_validate(data), tmp_path / "run", home=tmp_path / "home")
    assert record.provenance["model"] is None and not record.stage_keys and "score/en" in record.scores
    folder = write_own(tmp_path / "own", model, processor)
    question = [str(corpus / "images" / "0.png"), "What colour is the circle?", "--max-new-tokens", "6"]
    answers = []
    for checkpoint in (tmp_path / "run", folder):
        assert cli.main(["generate", str(checkpoint), *question]) == 0
        answers.append(capsys.readouterr().out)
    assert answers[0] == answers[1]
    assert cli.main(["generate", str(path), *question]) == 2
    message = capsys.readouterr().err
    assert "model.checkpoint=" in message and len(message.strip().splitlines()) == 1


def test_every_command_takes_a_release(tmp_path, corpus, fresh, capsys):
    from lvlm import cli

    model, processor, _ = fresh
    merge_lora(model.language_model)
    folders = {"release": write_release(tmp_path / "release", model, processor), "own": tmp_path / "own"}
    write_own(folders["own"], model, processor)
    question = [str(corpus / "images" / "0.png"), "What colour is the circle?", "--max-new-tokens", "6"]
    shown = {}
    for name, folder in folders.items():
        assert cli.main(["evaluate", str(folder), "--corpus", f"{corpus}:test", "--items", "1"]) == 0
        assert cli.main(["generate", str(folder), *question]) == 0
        shown[name] = capsys.readouterr().out
    assert shown["release"] == shown["own"]
    assert cli.main(["export", str(folders["release"]), str(tmp_path / "out")]) == 0
    assert cli.main(["generate", str(tmp_path / "out"), *question]) == 0
    assert shown["own"].splitlines()[-1] == capsys.readouterr().out.splitlines()[-1]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_release_in_bf16_computes_as_the_run_asks(tmp_path, corpus, fresh, precision):
    """The commands answer as a run that evaluates it, whose weights are held alike, and its export stays in bf16."""
    model, processor, batch = fresh
    merge_lora(model.language_model)
    folder = write_release(tmp_path / "release", model, processor)
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16().float()
    for file in folder.glob("*.safetensors"):
        edit(file, lambda state: state.update({key: value.bfloat16() for key, value in state.items()}))
    loaded, _ = load(folder, precision=precision)
    assert loaded.dtype == loaded.get_input_embeddings().weight.dtype == torch.float32
    assert loaded.config.halved == (["llm", "tower"] if precision == "bf16" else None)
    prepared, processor = Lvlm.assemble(model_config(checkpoint=str(folder)), seed=0, precision=precision)
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")
    tower = TowerFeatures(loaded, device=torch.device("cpu"), precision=precision)
    with autocast:
        expected = logits(model, batch)
        assert torch.equal(logits(loaded, batch), expected) and torch.equal(logits(prepared, batch), expected)
        question = [Prompt("What colour is it?", (corpus / "images" / "0.png",))]
        answers = [
            generate_answers(each, processor, question, max_new_tokens=6, features=features)
            for each, features in ((loaded, tower), (model, None))
        ]
    assert answers[0] == answers[1]
    if precision == "fp32":
        assert export(folder, tmp_path / "out").difference == 0
        assert {value.dtype for value in load_file(tmp_path / "out" / "model.safetensors").values()} == {torch.bfloat16}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_release_whose_tower_alone_is_in_fp32_loses_no_bit_of_it(tmp_path, fresh, precision):
    """As Centurio's are, by the size of their files."""
    model, processor, _ = fresh
    merge_lora(model.language_model)
    folder = write_release(tmp_path / "release", model, processor)
    for file in folder.glob("*.safetensors"):
        edit(file, halve_all_but_the_tower)
    loaded, _ = load(folder, precision=precision)
    whole = model.vision_tower.state_dict()
    assert all(torch.equal(value, whole[key]) for key, value in loaded.vision_tower.state_dict().items())
    assert loaded.config.halved == (["llm"] if precision == "bf16" else None)
    weight = loaded.language_model.model.layers[0].mlp.up_proj.weight
    assert weight.dtype == (torch.bfloat16 if precision == "bf16" else torch.float32)
    assert torch.equal(weight.float(), model.language_model.model.layers[0].mlp.up_proj.weight.bfloat16().float())


def halve_all_but_the_tower(state):
    state |= {key: value.bfloat16() for key, value in state.items() if not key.startswith("vision_tower.")}


def test_a_snapshot_is_held_as_the_run_computes_and_loses_nothing_that_learned(tmp_path, fresh, monkeypatch):
    model, _, _ = fresh
    path = write_snapshot(tmp_path, model, deepspeed=False, tower=True)
    asked = []
    monkeypatch.setattr("lvlm.model.assembly.check_attention", lambda attn, precision: asked.append(precision))
    loaded, _ = Lvlm.assemble(model_config(checkpoint=str(path)), seed=0, precision="bf16")
    assert asked == ["bf16", "bf16"], "flash attention is refused for fp32"
    saved = model.vision_tower.state_dict()
    assert all(torch.equal(value, saved[key]) for key, value in loaded.vision_tower.state_dict().items())


def test_weights_that_learned_go_on_unrounded_in_another_run_in_bf16(tmp_path, fresh):
    model, processor, _ = fresh
    folder = write_own(tmp_path / "model", model, processor)
    going_on, _ = Lvlm.assemble(model_config(checkpoint=str(folder)), seed=0, precision="bf16")
    prepare_training(going_on, stage(tower="full", llm="lora"), seed=0, precision="bf16")
    saved = model.vision_tower.state_dict()
    assert all(torch.equal(value, saved[key]) for key, value in going_on.vision_tower.state_dict().items())
    assert going_on.config.halved == ["llm"]


def test_training_goes_on_from_a_checkpoint(tmp_path, corpus, fresh):
    """The stage's key follows the content of the checkpoint, not its path; the plan needs no weights."""
    from lvlm.model.tokenizer import load_counter

    model, processor, _ = fresh
    merge_lora(model.language_model)
    first = write_release(tmp_path / "first", model, processor)
    copied = Path(shutil.copytree(first, tmp_path / "copied"))
    with torch.no_grad():
        model.multi_modal_projector.adapter.linear_2.bias.add_(1)
    other = write_release(tmp_path / "other", model, processor)
    keys = []
    for number, folder in enumerate((first, copied, other)):
        data = run_config(corpus, pretrain=None, instruct__steps=1).model_dump(mode="json")
        data["model"] = model_config(checkpoint=str(folder)).model_dump(mode="json")
        config = RunConfig.model_validate(data)
        record = run(config, tmp_path / f"run{number}", home=tmp_path / "home")
        keys.append(record.stage_keys["instruct"])
    assert keys[0] == keys[1] != keys[2]
    counted = load_counter(config.model, seed=0)
    turns = [("What?", "A circle.")]
    assert counted.measure([(turns, 1)]) == processor.measure([(turns, 1)])
    reloaded, _ = load(tmp_path / "run0")
    adapter = reloaded.multi_modal_projector.state_dict()
    start = load(first)[0].multi_modal_projector.state_dict()
    assert not torch.equal(adapter["adapter.linear_1.weight"], start["adapter.linear_1.weight"])
    assert (adapter["adapter.linear_1.weight"] - start["adapter.linear_1.weight"]).abs().max() < 0.1
