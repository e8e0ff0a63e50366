"""Options that save memory: what they need, that they act, and what they leave as it is."""

from __future__ import annotations

import sys
from importlib.util import find_spec

import pytest
import torch
from safetensors.torch import load_file

from lvlm.config import make_config
from lvlm.errors import InputError
from lvlm.model.assembly import assemble
from lvlm.model.checkpoints import load
from lvlm.model.lora import lora_layers
from lvlm.model.parts import prepare_training, set_train_mode
from lvlm.model.sums import SummableLora
from lvlm.model.weights import matrices, quantised_layers
from lvlm.run import run
from tests.checkpoint_models import write_own
from tests.families import CONTROLS, make_family
from tests.test_model_towers import write
from tests.test_model_training import batch_for, stage
from tests.tiny import make_llm, tiny_world
from tests.train_world import run_config, write_corpus


@pytest.fixture
def nothing_is_loaded(monkeypatch):
    def load_tower(*_, **__):
        raise AssertionError("a check comes before anything is loaded")

    monkeypatch.setattr("lvlm.model.assembly.load_tower", load_tower)


# Attention


@pytest.mark.parametrize(
    ("package", "gpu", "precision", "reasons"),
    [
        (False, True, "bf16", ["flash-attn is not installed"]),
        (True, False, "bf16", ["torch sees no GPU"]),
        (True, True, "fp32", [r"compute\.precision is fp32"]),
        (False, False, "fp32", ["not installed", "no GPU", "fp32"]),
    ],
)
def test_flash_attention_says_what_it_lacks(monkeypatch, nothing_is_loaded, package, gpu, precision, reasons):
    monkeypatch.setattr("lvlm.model.attention.find_spec", lambda name: package or None)
    monkeypatch.setattr("torch.cuda.is_available", lambda: gpu)
    config = tiny_world().model_config(attn="flash_attention_2")
    with pytest.raises(InputError, match="; ".join(f".*{reason}" for reason in reasons) + r".*model\.attn=sdpa"):
        assemble(config, seed=0, precision=precision)


def test_flash_attention_is_checked_for_a_saved_model_too(tmp_path):
    model, processor = tiny_world().assemble()
    write_own(tmp_path, model, processor)
    with pytest.raises(InputError, match=r"flash_attention_2 is not possible here.*model\.attn=sdpa"):
        load(tmp_path, attn="flash_attention_2")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.skipif(find_spec("flash_attn") is None, reason="needs the package flash-attn")
@pytest.mark.parametrize("family", CONTROLS)
def test_flash_attention_gives_the_logits_of_eager_attention(tmp_path, family):
    write(tmp_path / "tower", "siglip")
    llm = str(make_family(tmp_path / "llm", family))
    found = {}
    for attn in ("eager", "flash_attention_2"):
        config = tiny_world().model_config(llm=llm, tower=str(tmp_path / "tower"), attn=attn)
        model, processor = assemble(config, seed=0, precision="bf16")
        assert model.language_model.config._attn_implementation == attn
        assert model.vision_tower.model.config._attn_implementation == attn
        batch = {name: value.cuda() for name, value in batch_for(model, processor).items()}
        with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
            logits = model.cuda()(**batch).logits.float()
        found[attn] = logits[batch["attention_mask"].bool()]
    eager, flash = found.values()
    assert (flash - eager).norm() < 0.02 * eager.norm()


@pytest.mark.parametrize("name", ["siglip", "clip", "dinov2"])
def test_a_tower_of_transformers_attends_as_it_is_told_and_as_it_was_saved(tmp_path, name):
    write(tmp_path / "tower", name)
    features = {}
    for attn in ("sdpa", "eager"):
        model, processor = tiny_world().assemble(tower=str(tmp_path / "tower"), attn=attn)
        saved, _ = load(write_own(tmp_path / attn, model, processor), attn=attn)
        assert model.vision_tower.model.config._attn_implementation == attn
        assert saved.vision_tower.model.config._attn_implementation == attn
        with torch.no_grad():
            features[attn] = model.image_features(torch.linspace(-1, 1, 3 * 24 * 24).view(1, 3, 24, 24))
    torch.testing.assert_close(features["sdpa"], features["eager"], rtol=1e-5, atol=1e-5)


# Checkpointing


@pytest.mark.parametrize("mode", ["lora", "full", "frozen"])
def test_a_tower_of_transformers_computes_blocks_again_where_it_learns(tmp_path, mode):
    write(tmp_path, "siglip")
    gradients, calls = [], []
    for checkpointing in (False, True):
        model, processor = tiny_world().assemble(tower=str(tmp_path))
        settings = stage(tower=mode, **({"dropout": 0.3} if mode == "lora" else {}))
        prepare_training(model, settings, seed=0, checkpointing=checkpointing)
        counted = []
        block = model.vision_tower.model.encoder.layers[0]
        block.mlp.register_forward_pre_hook(lambda *_, counted=counted: counted.append(1))
        set_train_mode(model, settings.train)
        torch.manual_seed(1)
        model(**batch_for(model, processor)).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
        calls.append(len(counted))
    assert calls == [1, 1 if mode == "frozen" else 2]
    for name, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][name]), name


def test_checkpointing_ends_with_the_stage_that_asks_for_it():
    model, processor = tiny_world().assemble()
    prepare_training(model, stage(tower="full", llm="lora"), seed=0, checkpointing=True)
    llm = model.language_model
    assert llm.is_activation_checkpointing and model.vision_tower.model.grad_checkpointing
    counted = []
    llm.model.layers[0].mlp.register_forward_pre_hook(lambda *_: counted.append(1))
    model.eval()(**batch_for(model, processor)).loss.backward()
    assert counted == [1], "evaluation computes once"
    prepare_training(model, stage(tower="full", llm="lora"), seed=0)
    assert not llm.is_activation_checkpointing and not model.vision_tower.model.grad_checkpointing


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    torch.set_num_threads(1)
    return write_corpus(tmp_path_factory.mktemp("corpus"))


def ran(corpus, home, **changes):
    """(predictions, weights of the last model) of a run of two stages with dropout."""
    changes = {f"compute__{name}": value for name, value in changes.items()}
    config = run_config(corpus, instruct__train={"tower": "lora", "adapter": "full", "llm": "lora"}, **changes)
    folder = home / f"run{len(list(home.iterdir()))}"
    record = run(config, folder, home=home)
    model = record.provenance["model"]
    return (
        (folder / "predictions.parquet").read_bytes(),
        {
            str(file): load_file(f"{model}/{file}")
            for file in ("model.safetensors", "lora/llm/adapter_model.safetensors")
        },
        record,
    )


def test_a_run_with_checkpointing_leaves_the_same_model_to_the_bit(corpus, tmp_path):
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    predictions, weights, _ = ran(corpus, tmp_path / "a")
    predictions_again, weights_again, _ = ran(corpus, tmp_path / "b", gradient_checkpointing=True)
    assert predictions == predictions_again
    for file, state in weights.items():
        assert all(torch.equal(value, weights_again[file][key]) for key, value in state.items()), file


def test_a_bf16_run_that_takes_its_stages_from_the_cache_answers_as_the_one_that_trained_them(corpus, tmp_path):
    predictions, weights, record = ran(corpus, tmp_path, precision="bf16")
    again, _, second = ran(corpus, tmp_path, precision="bf16")
    assert predictions == again
    assert len(record.provenance["stages_trained_here"]) == 2 and not second.provenance["stages_trained_here"]
    types = {value.dtype for value in weights["model.safetensors"].values()}
    assert types == {torch.float32, torch.bfloat16}
    assert {value.dtype for value in weights["lora/llm/adapter_model.safetensors"].values()} == {torch.float32}


def test_fifty_steps_in_bf16_stay_near_those_in_fp32():
    """The band: every loss within 2% of the first one, while both fall to less than a fifth of it."""
    losses = {}
    for precision in ("fp32", "bf16"):
        model, processor = assemble(tiny_world().model_config(tiles=2), seed=0, precision=precision)
        settings = stage(tower="lora", llm="lora", r=8)
        prepare_training(model, settings, seed=0, precision=precision)
        batch = batch_for(model, processor)
        learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
        assert all(parameter.dtype == torch.float32 for parameter in learning)
        optimizer = torch.optim.AdamW(learning, lr=5e-3)
        set_train_mode(model, settings.train)
        losses[precision] = []
        for _ in range(50):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                loss = model(**batch).loss
            loss.backward()
            optimizer.step()
            losses[precision].append(loss.item())
    fp32, bf16 = (torch.tensor(values) for values in losses.values())
    assert float((bf16 - fp32).abs().max()) < 0.02 * float(fp32[0])
    assert fp32[-1] < 0.2 * fp32[0] and bf16[-1] < 0.2 * bf16[0]
    assert not torch.equal(fp32, bf16)


def test_a_stage_holds_in_bf16_what_it_freezes_and_in_fp32_what_learns():
    model, _ = tiny_world().assemble()
    rounded = model.language_model.model.layers[0].mlp.up_proj.weight.bfloat16().float()
    for settings, tower, llm in (
        (stage(llm="full"), torch.bfloat16, torch.float32),
        (stage(tower="full", llm="lora"), torch.float32, torch.bfloat16),
        (stage(llm="full"), torch.bfloat16, torch.float32),
    ):
        prepare_training(model, settings, seed=0, precision="bf16")
        assert model.vision_tower.model.blocks[0].mlp.fc1.weight.dtype == tower
        assert {weight.dtype for weight in matrices(model.language_model)} == {llm}
        assert model.config.halved == (["tower"] if llm == torch.float32 else ["llm"])
    assert torch.equal(model.language_model.model.layers[0].mlp.up_proj.weight, rounded)


def test_a_part_in_bf16_takes_no_precision_from_the_others_when_saved(tmp_path):
    """As ZeRO leaves a frozen adapter."""
    model, processor = tiny_world().assemble()
    model.multi_modal_projector.bfloat16()
    again = load(write_own(tmp_path, model, processor))[0].state_dict()
    assert all(torch.equal(value, again[key]) for key, value in model.state_dict().items())


# Quantisation


@pytest.mark.parametrize("bits", [4, 8])
def test_quantisation_says_what_it_lacks(monkeypatch, nothing_is_loaded, tmp_path, bits):
    config = tiny_world().model_config(**{f"load_{bits}bit": True})
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "bitsandbytes", None)
        with pytest.raises(InputError, match=rf"load_{bits}bit needs the package bitsandbytes.*\.\[quantised\]"):
            assemble(config, seed=0)

    def broken(*_):
        raise RuntimeError("no kernel\nimage")

    monkeypatch.setattr("lvlm.model.weights._quantised", broken)
    with pytest.raises(InputError, match=rf"a layer of {bits} bits does not compute.*no kernel image"):
        assemble(config, seed=0)


def test_quantised_weights_cannot_learn_in_full():
    base = {"mix": {"corpora": [{"path": "x", "split": "train"}]}}
    with pytest.raises(InputError, match=r"instruct\.train\.llm is full but model\.load_4bit is true"):
        make_config({"model": {"load_4bit": True}, "instruct": {**base, "train": {"llm": "full"}}})
    with pytest.raises(InputError, match="load_4bit and load_8bit are both true"):
        make_config({"model": {"load_4bit": True, "load_8bit": True}})


@pytest.fixture(scope="module", params=[(4, "fp32"), (4, "bf16"), (8, "fp32"), (8, "bf16")], ids=str)
def quantised(request, tmp_path_factory):
    """(model, processor, bits, precision) with an LLM in few bits."""
    pytest.importorskip("bitsandbytes", reason="needs the package bitsandbytes")
    bits, precision = request.param
    llm = str(make_llm(tmp_path_factory.mktemp("llm"), hidden=64))
    config = tiny_world().model_config(llm=llm, **{f"load_{bits}bit": True})
    return *assemble(config, seed=0, precision=precision), bits, precision


def test_lora_trains_on_a_quantised_llm_and_comes_back_to_the_bit(quantised, tmp_path):
    model, processor, bits, precision = quantised
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")
    layers = quantised_layers(model.language_model)
    assert len(layers) == 14 and not quantised_layers(model.vision_tower)
    assert model.get_output_embeddings().weight.dtype == torch.float32
    settings = stage(llm="lora", r=8, dropout=0.1)
    counts = {
        row.part: row for row in prepare_training(model, settings, seed=0, precision=precision, checkpointing=True)
    }
    assert counts["llm"].parameters - counts["llm"].trainable == sum(
        parameter.numel() for parameter in tiny_world_llm(64)
    ), "two weights in a byte are counted as two"
    assert len(lora_layers(model.language_model)) == 14
    assert not any(isinstance(layer, SummableLora) for layer in lora_layers(model.language_model).values())
    before = [layer.weight.data.clone() for layer in layers.values()]
    batch = batch_for(model, processor)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3)
    losses = []
    for _ in range(6):
        set_train_mode(model, settings.train)
        optimizer.zero_grad()
        with autocast:
            loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        model.eval().to("cpu")  # an evaluation between steps changes nothing
        with torch.no_grad(), autocast:
            expected = model(**batch).logits
    assert losses[-1] < 0.5 * losses[0]
    assert all(torch.equal(old, layer.weight.data) for old, layer in zip(before, layers.values(), strict=True))
    write_own(tmp_path / "kept", model, processor)
    write_own(tmp_path / "merged", model, processor, merge_lora=True)
    again, _ = load(tmp_path / "kept", bits=bits, precision=precision)
    whole, merged = load(tmp_path / "kept")[0], load(tmp_path / "merged")[0]
    with torch.no_grad():
        with autocast:
            assert torch.equal(model(**batch).logits, expected), "saving leaves the model as it is"
            assert torch.equal(again(**batch).logits, expected)
        for loaded in (whole, merged):
            assert not quantised_layers(loaded)
            assert (loaded(**batch).logits - expected).norm() < 0.05 * expected.norm()
    with pytest.raises(InputError, match="cannot be merged into quantised weights"):
        prepare_training(again, stage(llm="lora").model_copy(update={"start_lora": "merge"}), seed=0)
    with pytest.raises(InputError, match="quantised weights cannot learn"):
        prepare_training(again, stage(llm="full"), seed=0)


def tiny_world_llm(hidden):
    """The parameters of the whole LLM."""
    model, _ = tiny_world().assemble()
    from transformers import AutoModelForCausalLM

    config = model.config.text_config
    config.hidden_size, config.intermediate_size = hidden, 2 * hidden
    return AutoModelForCausalLM.from_config(config).parameters()
