"""Every preset fits the strict config, and what it describes has the published sizes, counted on models without
storage."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lvlm import cli
from lvlm.languages import language
from lvlm.model.checkpoints import parts
from lvlm.model.lvlm import Lvlm
from lvlm.model.parts import prepare_training
from lvlm.model.templates import centurio_template
from tests.full_size import LLMS, full_size_model

PRESETS = sorted(path.stem for path in cli.PRESETS.glob("*.yaml"))
FULL_SIZE = [name for name in PRESETS if not name.startswith("tiny") and name != "viscpm_paint"]
CENTURIO = [name for name in FULL_SIZE if name.startswith("centurio")]


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@cache
def built(name: str) -> Lvlm:
    """A preset's model, before anything was set to learn."""
    return full_size_model(cli.read_run(name, []).model)


def test_the_presets_are_these() -> None:
    assert PRESETS == [
        "centurio_aya", "centurio_ocr", "centurio_phi35", "centurio_qwen", "tiny", "tiny_paint", "viscpm_chat",
        "viscpm_paint",
    ]  # fmt: skip


@pytest.mark.parametrize("name", [*FULL_SIZE, "viscpm_paint"])
def test_a_preset_says_what_it_is_and_takes_any_override(name: str) -> None:
    stage = "paint" if name == "viscpm_paint" else "instruct"
    config = cli.read_run(name, ["pretrain=null", f"{stage}.mix.english_share=0.25", "tags=[mine]"])
    assert (config.name, config.tags, list(config.every_stage())) == (name, ("mine",), [stage])
    text = (cli.PRESETS / f"{name}.yaml").read_text(encoding="utf-8")
    for said in ("arXiv 2", "Taken from the paper:", "Taken from its code:", "Substituted", "data/..."):
        assert said in text.partition("name: ")[0], said
    uses = [use for one in config.every_stage().values() for use in one.mix.corpora] + [*config.evaluate.corpora]
    assert all(Path(use.path).parts[0] == "data" for use in uses)


SIZES = {
    "centurio_phi35": (12_982_272, 729, 3.8e9),
    "centurio_ocr": (12_982_272, 729, 3.8e9),
    "centurio_qwen": (21_109_760, 729, 7.6e9),
    "centurio_aya": (26_222_592, 729, 8.0e9),
    "viscpm_chat": (None, 64, 8.8e9),
}
"""Preset -> parameters of the adapter (the resampler is ours), tokens of an image, published size of the LLM."""


@pytest.mark.parametrize("name", FULL_SIZE)
def test_a_preset_has_the_published_sizes(name: str) -> None:
    model, (adapter, tokens, published) = built(name), SIZES[name]
    if adapter:
        assert count(model.multi_modal_projector) == adapter
    assert model.config.image_tokens == tokens
    assert count(model.language_model) == pytest.approx(published, rel=0.01)
    size = model.config.image_transform.image_size
    with torch.device("meta"):
        views = torch.zeros(2 * model.config.views, 3, size, size)
    width, patches = (1152, 729) if name in CENTURIO else (1024, 196)
    features = model.image_features(views)
    assert features.shape == (2, model.config.views, patches, width)
    assert model.multi_modal_projector(features).shape == (2, tokens, model.language_model.config.hidden_size)


def test_a_preset_says_once_what_it_is_and_what_data_it_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for command in ("train", "plan"):
        assert cli.main([command, "viscpm_chat", "instruct=null"]) == 2
        said = capsys.readouterr().err
        assert said.count("VisCPM-Chat (arXiv 2308.12038)") == said.count("CPM-Bee 10B (48 layers") == 1
        assert "#" not in said and "name: viscpm_chat" not in said
        assert "pretrain.mix.corpora: data/english_pairs does not exist; evaluate.corpora: data/llava_test does" in said
        assert "pretrain.mix.corpora='[{path: FOLDER, split: train}]'" in said and "data/llava_150k" not in said
    monkeypatch.setenv("RANK", "1")
    assert cli.main(["plan", "viscpm_chat"]) == 2
    assert "CPM-Bee" not in capsys.readouterr().err, "one of several processes speaks"


def test_labels_leave_the_folder_of_a_run_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders: list[Path] = []

    def noted(config: Any, folder: Path, **_: Any) -> Any:
        folders.append(folder)
        raise KeyboardInterrupt

    monkeypatch.setattr("lvlm.run.run", noted)
    for change in ("seed=3", "tags=[other]", "model.tiles=2"):
        cli.main(["train", "tiny", "seed=3", change, "--home", str(tmp_path)])
    assert folders[0] == folders[1] != folders[2]


def linear_widths(llm: dict[str, Any]) -> list[tuple[int, int]]:
    """(in, out) of every matrix of one block; Phi-3 joins queries, keys and values, and gate and up."""
    hidden, inner = llm["hidden_size"], llm["intermediate_size"]
    keys = hidden // llm["num_attention_heads"] * llm["num_key_value_heads"]
    if llm["model_type"] == "phi3":
        return [(hidden, hidden + 2 * keys), (hidden, hidden), (hidden, 2 * inner), (inner, hidden)]
    attention = [(hidden, hidden), (hidden, keys), (hidden, keys), (hidden, hidden)]
    return [*attention, (hidden, inner), (hidden, inner), (inner, hidden)]


@pytest.mark.parametrize("name", CENTURIO)
def test_lora_of_rank_256_learns_on_every_matrix(name: str) -> None:
    config = cli.read_run(name, [])
    model, llm = built.__wrapped__(name), LLMS[config.model.llm]
    tower, adapter = (count(parts(model)[part]) for part in ("tower", "adapter"))
    for stage in config.stages().values():  # the second goes on with the LoRA of the first
        with torch.device("meta"):
            counts = {row.part: row.trainable for row in prepare_training(model, stage, seed=config.seed)}
        widths = linear_widths(llm)
        lora = llm["num_hidden_layers"] * sum(256 * (inputs + outputs) for inputs, outputs in widths)
        learns = 0 if stage.train.tower == "frozen" else tower
        assert counts == {"tower": learns, "adapter": adapter, "llm": lora}
        assert (stage.lora.alpha, stage.lora.dropout, stage.start_lora) == (512, 0.05, "continue")


def test_viscpm_freezes_its_llm_until_instruction_tuning() -> None:
    config, model = cli.read_run("viscpm_chat", []), built.__wrapped__("viscpm_chat")
    learning = []
    for stage in config.stages().values():
        learning.append({row.part: row.trainable / row.parameters for row in prepare_training(model, stage, seed=0)})
    assert learning == [{"tower": 1, "adapter": 1, "llm": 0}, {"tower": 1, "adapter": 1, "llm": 1}]
    assert [stage.batch_samples * (stage.steps or 0) for stage in config.stages().values()] == [138_240_000, 5_120_000]


@pytest.mark.parametrize(("tower", "llm"), [("frozen", "frozen"), ("full", "frozen"), ("full", "full")])
def test_the_three_levels_of_the_visual_module_of_viscpm_learn_what_they_name(tower: str, llm: str) -> None:
    """Queries and MLP; the tower too; the LLM too: with the sizes that follow from VisCPM-Chat's code."""
    config = cli.read_run("viscpm_chat", [f"pretrain.train={{tower: {tower}, adapter: full, llm: {llm}}}"])
    model = built.__wrapped__("viscpm_chat")
    adapter = model.multi_modal_projector.adapter
    assert adapter.queries.shape == (64, 1024) and adapter.queries.numel() == 65_536
    assert count(adapter.mlp) == 1024 * 4096 + 4096 + 4096 * 4096 + 4096 == 20_979_712
    assert config.pretrain is not None
    learns = {row.part: row.trainable for row in prepare_training(model, config.pretrain, seed=0)}
    sizes = {"tower": count(model.vision_tower), "adapter": count(adapter), "llm": count(model.language_model)}
    assert learns == sizes | {name: 0 for name, way in (("tower", tower), ("llm", llm)) if way == "frozen"}


@pytest.mark.parametrize("name", CENTURIO)
def test_centurio_is_trained_as_it_was(name: str) -> None:
    config = cli.read_run(name, [])
    assert config.model.template == "centurio" and centurio_template(built(name).config.text_config)
    rates = {stage: (s.optim.lr, s.optim.tower_lr) for stage, s in config.stages().items()}
    if name in ("centurio_phi35", "centurio_ocr"):
        tower = 1e-6 if name == "centurio_ocr" else None
        assert rates == dict.fromkeys(("pretrain", "instruct"), (1e-4, tower)) and config.model.tiles == 1
    else:
        assert rates == {"pretrain": (5e-5, 1e-6), "instruct": (3e-5, 1e-6)} and config.model.tiles == 2
    for stage in config.stages().values():
        assert (stage.batch_samples, stage.epochs, stage.optim.warmup, stage.optim.schedule) == (32, 1, 0.03, "cosine")
        assert (stage.mix.languages, stage.mix.english_share, stage.max_text_tokens) == ("all", 0.5, 1024)


def test_the_preset_of_text_in_images_counts_pages_as_the_paper_does() -> None:
    config = cli.read_run("centurio_ocr", [])
    for name, (others, latin) in {"pretrain": (10_000, 2_500), "instruct": (1_000, 250)}.items():
        uses = [use for use in config.stages()[name].mix.corpora if use.path == "data/pages"]
        assert [(len(use.languages or ()), use.samples_per_language) for use in uses] == [(32, others), (67, latin)]
        languages = [language(code) for use in uses for code in use.languages or ()]
        assert len({row.code for row in languages}) == 99
        assert {row.script == "Latn" for row in languages[:32]} == {False}
        assert {row.script for row in languages[32:]} == {"Latn"}
