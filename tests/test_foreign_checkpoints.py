"""Centurio's checkpoints load exactly: its release on the hub, and its trainer's snapshots by DeepSpeed and Lightning.
What does not fit is refused with the names of all that does not."""

from __future__ import annotations

import copy
import json
import shutil
import warnings
from fractions import Fraction

import pytest
import torch

from lvlm.errors import InputError
from lvlm.model.adapters import build_adapter
from lvlm.model.backbones import backbone_digests
from lvlm.model.checkpoints import load
from lvlm.model.layouts import locate
from lvlm.model.lora import merge_lora
from lvlm.model.lvlm import Lvlm
from lvlm.model.parts import prepare_training
from lvlm.model.release import release_config
from lvlm.model.snapshots import lora_settings
from lvlm.model.tower import TimmTower, create
from tests.checkpoint_models import WEIGHT_FAULTS, edit, logits, made, trained, write_own
from tests.foreign import LORA, TOWER, make_family, model_config, write_release, write_snapshot
from tests.test_model_training import stage
from tests.tiny import tiny_world

FAMILIES = ("qwen2", "phi3", "cohere")


@pytest.fixture(scope="module")
def qwen():
    torch.set_num_threads(1)
    return trained(tower="full")


@pytest.fixture
def fresh(qwen):
    """A copy that may be changed."""
    return copy.deepcopy(qwen[0]), qwen[1], qwen[2]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_release_gives_the_logits_it_was_written_with(tmp_path, family):
    model, processor, batch = trained(family, tower="full")
    merge_lora(model.language_model)
    folder = write_release(tmp_path / "anything", model, processor)
    loaded, read = load(folder)
    assert torch.equal(logits(loaded, batch), logits(model, batch))
    assert (loaded.config.adapter, loaded.config.tiles, loaded.config.feature_layer) == ("multiscale-pool", 2, -2)
    assert read.image_token_id == loaded.config.image_token_id == processor.image_token_id
    assert read.chat_template == processor.chat_template
    assert read.image_separator == ("" if family == "cohere" else "\n")
    assert loaded.generation_config.suppress_tokens == [processor.image_token_id]


@pytest.mark.parametrize(
    ("family", "kind", "tower"),
    [
        ("qwen2", "deepspeed", True),
        ("qwen2", "lightning", False),
        ("phi3", "lightning", True),
        ("cohere", "deepspeed", False),
    ],
)
def test_a_snapshot_gives_the_logits_it_was_written_with(tmp_path, family, kind, tower):
    model, _, batch = trained(family, tower="full" if tower else "frozen")
    path = write_snapshot(tmp_path, model, deepspeed=kind == "deepspeed", tower=tower)
    loaded, _ = load(path, model=model_config(family))
    torch.testing.assert_close(logits(loaded, batch), logits(model, batch), rtol=0, atol=1e-6)
    before = {key for key, value in model.named_parameters() if ".lora_" in key}
    assert {key for key, _ in loaded.named_parameters() if ".lora_" in key} == before
    prepare_training(loaded, stage(llm="lora"), seed=0)  # the same LoRA goes on


def test_deepspeeds_folder_and_a_renamed_file_are_the_same_snapshot(tmp_path, qwen, monkeypatch):
    path = write_snapshot(tmp_path, qwen[0], deepspeed=True, tower=True)
    folder = path.parents[1]
    assert locate(folder).path == path and locate(folder).lora == tmp_path / LORA
    for place in (folder, path.parent):
        monkeypatch.chdir(place)
        assert locate(".").lora == locate(path.relative_to(place)).lora == tmp_path / LORA
    other = path.rename(path.with_name("weights.bin"))
    assert torch.equal(logits(load(other, model=model_config())[0], qwen[2]), logits(qwen[0], qwen[2]))


def test_a_snapshot_in_bf16_is_read_into_fp32(tmp_path, fresh):
    """LoRA in bf16 in the file and in fp32 in its folder agree, and the finer one is taken."""
    model, _, batch = fresh
    path = write_snapshot(tmp_path, model, deepspeed=True, tower=True)

    def halve(state):
        state |= {key: value.bfloat16() for key, value in state.items() if ".lora_" in key}

    edit(path, halve)
    loaded, _ = load(path, model=model_config())
    assert loaded.dtype == torch.float32 and torch.equal(logits(loaded, batch), logits(model, batch))


def test_a_snapshot_without_lora(tmp_path):
    model, _, batch = trained(llm="frozen")
    for deepspeed in (True, False):
        path = write_snapshot(tmp_path / str(deepspeed), model, deepspeed=deepspeed) if deepspeed else None
        path = path or write_snapshot(made(tmp_path / "lightning"), model, deepspeed=False)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            loaded, _ = load(path, model=model_config())
        assert torch.equal(logits(loaded, batch), logits(model, batch))
    silent = write_snapshot(made(tmp_path / "silent"), model, deepspeed=False, optimizer_states=None)
    with pytest.warns(UserWarning, match="does not say whether a LoRA was trained"):
        load(silent, model=model_config())


@pytest.mark.parametrize("fault", WEIGHT_FAULTS)
@pytest.mark.parametrize(
    ("layout", "key"),
    [
        ("release", "multi_modal_projector.adapter.linear_1.weight"),
        ("release", "language_model.model.norm.weight"),
        ("release", "vision_tower.attn_pool.q.weight"),
        ("deepspeed", "model.model.multi_modal_projector.adapter.linear_2.bias"),
        ("deepspeed", "model.model.vision_tower.blocks.0.attn.qkv.weight"),
        ("lightning", "model.model.multi_modal_projector.adapter.linear_1.weight"),
        ("lora", "base_model.model.model.layers.1.mlp.up_proj.lora_A.weight"),
    ],
)
def test_tensors_that_do_not_fit_are_listed(tmp_path, fresh, layout, key, fault):
    model, processor, _ = fresh
    if layout == "release":
        merge_lora(model.language_model)
        path = write_release(tmp_path / "release", model, processor)
        weights = json.loads((path / "model.safetensors.index.json").read_text())["weight_map"]
        file, config = path / weights[key], None
    else:
        path = write_snapshot(tmp_path, model, deepspeed=layout == "deepspeed", tower=True)
        file, config = path, model_config()
    if layout == "lora":
        file = tmp_path / LORA / "adapter_model.safetensors"
    edit(file, lambda state: WEIGHT_FAULTS[fault](state, key))
    with pytest.raises(InputError) as refused:
        load(path, model=config)
    text = str(refused.value)
    assert key.removeprefix("model.model.") in text and "\n" not in text
    assert {"surplus keys": ".more"}.get(fault, fault) in text


def test_lora_of_another_step_is_refused(tmp_path, fresh):
    path = write_snapshot(tmp_path, fresh[0], deepspeed=True, tower=True)
    key = "base_model.model.model.layers.0.mlp.up_proj.lora_B.weight"
    edit(tmp_path / LORA / "adapter_model.safetensors", lambda state: state[key].mul_(1.01))
    with pytest.raises(InputError, match=rf"1 of 28 tensors have other values, beginning with {key}"):
        load(path, model=model_config())


@pytest.mark.parametrize("deepspeed", [True, False])
def test_lora_that_is_not_beside_its_snapshot_is_missed(tmp_path, fresh, deepspeed):
    path = write_snapshot(tmp_path, fresh[0], deepspeed=deepspeed, tower=True)
    shutil.rmtree(tmp_path / LORA)
    with pytest.raises(InputError, match="is not beside it"):
        load(path, model=model_config())
    if deepspeed:
        write_snapshot(tmp_path, fresh[0], deepspeed=True, tower=True)
        edit(path, lambda state: [state.pop(key) for key in list(state) if ".lora_" in key])
        with pytest.raises(InputError, match=r"missing keys: base_model.*lora_A"):
            load(path, model=model_config())


@pytest.mark.parametrize(
    ("setting", "value", "expected"),
    [
        ("use_dora", True, "'use_dora' is True"),
        ("init_lora_weights", "pissa_niter_16", "'init_lora_weights' is 'pissa_niter_16'"),
        ("modules_to_save", ["lm_head"], "'modules_to_save'"),
        ("peft_type", "ADALORA", "'peft_type' is 'ADALORA'"),
        ("r", 8, "other shapes"),
    ],
)
def test_lora_settings_that_cannot_be_continued_are_refused(tmp_path, fresh, setting, value, expected):
    path = write_snapshot(tmp_path, fresh[0], deepspeed=True, tower=True)
    file = tmp_path / LORA / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {setting: value}))
    with pytest.raises(InputError, match=expected):
        load(path, model=model_config())


def test_a_snapshot_and_a_model_config_that_contradict_each_other(tmp_path, fresh):
    path = write_snapshot(tmp_path, fresh[0], deepspeed=True, tower=True)
    with pytest.raises(InputError, match=r"says neither its tower nor its LLM.*model\.checkpoint="):
        load(path)
    with pytest.raises(InputError, match=r"linear_1\.weight \(\(32, 192\) there, \(32, 96\).*") as refused:
        load(path, model=model_config(tiles=1))
    assert "model.tiles=1" in str(refused.value) and str(path) in str(refused.value)
    with pytest.raises(InputError, match=r"model\.tower="):
        load(path, model=model_config(tower=tiny_world().tower))
    with pytest.raises(InputError, match=r"LoRA of Qwen/Qwen2\.5-7B-Instruct, but model\.llm is Qwen/Qwen2\.5-7B\."):
        lora_settings(tmp_path / LORA, model_config(llm="Qwen/Qwen2.5-7B"))


def test_what_is_no_checkpoint_is_refused(tmp_path, fresh):
    model, processor, _ = fresh
    unsafe = write_snapshot(tmp_path, model, deepspeed=False, tower=True, hyper_parameters=Fraction(1, 2))
    with pytest.raises(InputError, match=r"holds more than tensors.*fractions\.Fraction") as refused:
        load(unsafe, model=model_config())
    assert "torch.save" in str(refused.value) and "\n" not in str(refused.value)
    torch.save({"weights": {}}, tmp_path / "other.pt")
    (tmp_path / "text.ckpt").write_text("no pickle")
    (tmp_path / "short.ckpt").write_text("hi")
    for path, expected in {
        tmp_path / "other.pt": "no 'module' in it",
        tmp_path / "text.ckpt": "more than tensors|no checkpoint that torch can read",
        tmp_path / "short.ckpt": "no checkpoint that torch can read",
        tmp_path / "none": "There is no checkpoint",
        tmp_path / LORA: "is a LoRA alone",
    }.items():
        with pytest.raises(InputError, match=expected):
            load(path, model=model_config())
    (made(tmp_path / "zero3" / "checkpoint") / "zero_pp_rank_0_mp_rank_00_model_states.pt").touch()
    with pytest.raises(InputError, match="zero_to_fp32"):
        load(tmp_path / "zero3", model=model_config())
    folder = write_release(tmp_path / "release", *(model, processor))
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(InputError, match="lacks model-00002-of-00002"):
        load(folder)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"image_token_index": 5}, "image_token_index 5, but <image_placeholder> is token 3"),
        ({"adapter_type": "honeybee"}, "'honeybee'. Known here are mlp, multiscale-pool"),
        ({"adapter_config": {"adapter_multi_scale": 2, "adapter_depth": 3}}, "adapter_depth"),
        ({"timm_model": "vit_none"}, "timm has no 'vit_none'"),
        ({"image_hidden_size": 1152}, "image_hidden_size 1152.*96 wide"),
        ({"text_config": {"model_type": "gpt-none"}}, "'text_config'"),
        ({"adapter_config": {"adapter_multi_scale": 3}}, None),
        ({"adapter_type": "window-shuffel", "adapter_config": {"adapter_pool": 2}}, "linear_1.weight"),
    ],
)
def test_a_release_that_says_something_else_is_refused(tmp_path, fresh, changes, expected):
    model, processor, _ = fresh
    merge_lora(model.language_model)
    folder = write_release(tmp_path / "release", model, processor, **changes)
    if expected is None:  # pooled tiles make the same tensors whatever their number, and the config is believed
        assert load(folder)[0].config.tiles == 3
        return
    with pytest.raises(InputError, match=expected):
        load(folder)


@pytest.mark.parametrize(
    ("llm", "placeholder", "parameters"),
    [("qwen2", 151665, 21_109_760), ("cohere", 255029, 26_222_592)],
)
def test_the_published_models_have_the_shapes_that_we_build(tmp_path, llm, placeholder, parameters):
    """SO400M at 384 pixels with Qwen2.5-7B and Aya-Expanse-8B, as far as their configs are known, without weights."""
    width = {"qwen2": 3584, "cohere": 4096}[llm]
    config = {
        "model_type": "centurio", "adapter_type": "multiscale-pool", "adapter_config": {"adapter_multi_scale": 2},
        "image_hidden_size": 1152, "image_token_index": placeholder,
        "text_config": {"model_type": llm, "hidden_size": width, "num_hidden_layers": 1, "torch_dtype": "bfloat16"},
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    read = release_config(tmp_path)
    with torch.device("meta"):
        adapter = build_adapter(
            read.adapter, read.tower, llm_width=read.text_config.hidden_size, tiles=read.tiles, args=None
        )
        tower = TimmTower(create(read.tower), feature_layer=read.feature_layer)
    assert adapter.linear_1.weight.shape == (width, 2304) and adapter.linear_2.weight.shape == (width, width)
    assert sum(parameter.numel() for parameter in adapter.parameters()) == parameters
    assert (read.image_tokens, read.views, read.tower["grid"]) == (729, 5, [27, 27])
    assert read.tower["mean"] == read.tower["std"] == [0.5] * 3 and read.tower["interpolation"] == "bicubic"
    assert len(tower.model.blocks) == 26 and tower.index == 25
    assert read.image_token_id == placeholder


@pytest.mark.parametrize("layout", ["own", "release"])
def test_a_checkpoint_that_stands_alone_must_agree_with_the_model_config(tmp_path, fresh, layout):
    model, processor, batch = fresh
    merge_lora(model.language_model)
    folder = (write_own if layout == "own" else write_release)(tmp_path / "model", model, processor)
    assembled, _ = Lvlm.assemble(model_config(checkpoint=str(folder)), seed=0)
    assert torch.equal(logits(assembled, batch), logits(model, batch)) and assembled.dtype == torch.float32
    for changes, expected in {
        ("tiles", 1): r"model\.tiles is 1 in the config, 2 there",
        ("adapter", "window-pool"): r"model\.adapter is window-pool in the config, multiscale-pool there",
        ("fit", "crop"): r"model\.fit is crop in the config, squash there",
        ("feature_layer", -1): r"model\.feature_layer is -1 in the config, -2 there",
        ("image_size", 80): r"model\.image_size is 80 in the config, 160 there",
        ("tower", tiny_world().tower): rf"model\.tower is vit_tiny_patch16_224 in the config, {TOWER} there",
        ("llm", str(make_family(tmp_path / "phi", "phi3"))): r"model\.llm is phi3 of 2 blocks",
    }.items():
        with pytest.raises(InputError, match=expected):
            load(folder, model=model_config(**dict([changes])))
    _, processor = Lvlm.assemble(model_config(checkpoint=str(folder), template="centurio"), seed=0)
    assert "You are a helpful assistant." in processor.chat_template


def test_one_tile_is_the_same_whichever_way_it_is_said(tmp_path):
    model, processor = Lvlm.assemble(model_config(adapter="mlp", tiles=1), seed=0)
    load(write_own(tmp_path / "model", model, processor), model=model_config(adapter="multiscale-pool", tiles=1))


def test_the_digest_of_a_checkpoint_follows_its_content(tmp_path, fresh):
    model, processor, _ = fresh
    snapshot = write_snapshot(tmp_path, model, deepspeed=True, tower=True)
    merge_lora(model.language_model)
    whole = write_release(tmp_path / "release", model, processor)

    def digests(path):
        return backbone_digests(model_config(checkpoint=str(path)), seed=0)

    assert set(digests(whole)) == {"checkpoint"}
    before = digests(snapshot)
    assert set(before) == {"checkpoint", "tower", "llm", "tokenizer"}
    (snapshot.parent / "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt").write_bytes(b"not ours")
    assert digests(snapshot) == before == digests(snapshot.parents[1])
    edit(tmp_path / LORA / "adapter_model.safetensors", lambda state: next(iter(state.values())).add_(1))
    assert digests(snapshot)["checkpoint"] != before["checkpoint"]
