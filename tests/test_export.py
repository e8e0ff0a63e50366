"""What is exported is the same model: through our Auto classes, and as stock LLaVA in a process that does not know this
package. What cannot be the same is refused, and nothing is left behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    LlavaForConditionalGeneration,
    SiglipVisionModel,
)

from lvlm import cli
from lvlm.errors import InputError
from lvlm.model import export as module
from lvlm.model.checkpoints import load
from lvlm.model.export import LIMIT, answers, difference, export
from lvlm.model.lvlm import Lvlm
from lvlm.model.parts import prepare_training
from lvlm.model.stock import stock_tower
from lvlm.model.tower import TimmTower
from tests.checkpoint_models import write_own
from tests.foreign import make_family, make_timm_tower, model_config, write_snapshot
from tests.test_model_towers import write as write_hub_tower
from tests.test_model_training import stage, train
from tests.tiny import begin_with, make_tower, tiny_image

SMALL = {"img_size": 24, "patch_size": 8, "embed_dim": 16, "depth": 3, "num_heads": 2}
TIMM = {
    "siglip": ("vit_base_patch16_siglip_224", {}, "siglip_vision_model"),
    "siglip-tanh": ("vit_base_patch16_siglip_gap_224", {"act_layer": "gelu_tanh"}, "siglip_vision_model"),
    "clip": ("vit_base_patch16_clip_quickgelu_224", {}, "clip_vision_model"),
    "vit": ("vit_tiny_patch16_224", {}, "vit"),
    "dinov2": ("vit_small_patch14_dinov2", {"init_values": 0.3}, "vit"),
}
"""Kind of timm tower -> its architecture, its settings, and what it becomes."""
HUB = ("siglip", "clip", "dinov2")
STOCK = """
import json, sys
import torch
torch.set_num_threads(1)
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration
image = Image.open(sys.argv[1])
for folder in sys.argv[2:]:
    model = LlavaForConditionalGeneration.from_pretrained(folder)
    processor = AutoProcessor.from_pretrained(folder, backend="torchvision")
    question = "<image_placeholder>\\nWas ist das?"
    text = processor.apply_chat_template([{"role": "user", "content": question}], add_generation_prompt=True)
    inputs = processor(text=[text], images=[image], return_tensors="pt")
    content = [{"type": "image", "image": image}, {"type": "text", "text": "Was ist das?"}]
    whole = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=True, return_dict=True,
        return_tensors="pt",
    )
    assert torch.equal(whole["input_ids"], inputs["input_ids"]), (whole["input_ids"], inputs["input_ids"])
    ids = model.generate(**inputs, max_new_tokens=12)[0, inputs["input_ids"].shape[1] :]
    print(json.dumps({"ids": inputs["input_ids"][0].tolist(), "answer": ids.tolist()}))
assert "lvlm" not in sys.modules
"""


def assembled(folder, family="qwen2", **changes):
    """A folder with an untrained model without tiles."""
    return write_own(folder, *Lvlm.assemble(model_config(family, **{"tiles": 1, "adapter": "mlp"} | changes), seed=0))


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Folders of models that stock LLaVA can be: one per timm tower, the LLM's family changing along; BOS in one."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("plain")
    families = ("qwen2", "cohere", "phi3", "qwen2", "qwen2")
    for (name, (architecture, args, _)), family in zip(TIMM.items(), families, strict=True):
        tower = make_timm_tower(root / "towers" / name, architecture, image_size=24, **SMALL | args)
        llm = {"llm": str(with_bos(root / "llm"))} if name == "dinov2" else {}
        assembled(root / name, family, tower=str(tower), **llm)
    return root


def with_bos(folder):
    """An LLM whose tokenizer puts a BOS before every text, and whose template writes one too, as Llama 3 and Aya."""
    make_family(folder, "qwen2")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    begin_with(tokenizer, "<s>")
    tokenizer.chat_template = "{{ bos_token }}" + tokenizer.chat_template
    tokenizer.save_pretrained(folder)
    return folder


@torch.no_grad()
def our_answer(folder, image):
    """(ids, ids of the answer) by our own model and processor."""
    model, processor = load(folder)
    text = processor.apply_chat_template(
        [{"role": "user", "content": "<image_placeholder>\nWas ist das?"}], add_generation_prompt=True
    )
    inputs = processor(text=[text], images=[image], return_tensors="pt")
    ids = model.generate(**inputs, max_new_tokens=12)[0]
    return inputs["input_ids"][0].tolist(), ids[inputs["input_ids"].shape[1] :].tolist()


def test_stock_classes_answer_as_ours_without_this_package(plain, tmp_path):
    tiny_image(3).save(tmp_path / "image.png")
    for name, (_, _, kind) in TIMM.items():
        done = export(plain / name, tmp_path / name, form="llava")
        assert done.difference <= LIMIT and done.pillow is not None
        config = json.loads((tmp_path / name / "config.json").read_text())
        vision = config["vision_config"]
        assert config["architectures"] == ["LlavaForConditionalGeneration"] and config["model_type"] == "llava"
        assert (vision["model_type"], vision["num_hidden_layers"], config["vision_feature_layer"]) == (kind, 3, -2)
        assert config["vision_feature_select_strategy"] == ("full" if "siglip" in name else "default")
    script = [sys.executable, "-c", STOCK, str(tmp_path / "image.png"), *(str(tmp_path / name) for name in TIMM)]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    shown = subprocess.run(script, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment)
    assert shown.returncode == 0, shown.stderr[-3000:]
    for name, line in zip(TIMM, shown.stdout.splitlines(), strict=True):
        found = json.loads(line)
        ids, answer = our_answer(plain / name, tiny_image(3))
        assert found == {"ids": ids, "answer": answer}, name
        assert len(answer) > 3


@pytest.mark.parametrize("layer", [-1, -2])
@pytest.mark.parametrize("name", HUB)
def test_a_tower_of_transformers_passes_as_it_is(tmp_path, name, layer):
    write_hub_tower(tmp_path / "tower", name)
    folder = assembled(
        tmp_path / "model", tower=str(tmp_path / "tower"), adapter="multiscale-pool", feature_layer=layer
    )
    done = export(folder, tmp_path / "llava", form="llava")
    assert done.difference <= LIMIT
    state = load_file(tmp_path / "llava" / "model.safetensors")
    tower = load_file(tmp_path / "tower" / "model.safetensors")
    ours = {key.partition("vision_tower.")[2]: value for key, value in state.items() if "vision_tower." in key}
    block = next(key for key in ours if "0." in key and "fc1.weight" in key)
    assert any(torch.equal(ours[block], value) for value in tower.values())


def test_so400m_becomes_siglip_as_its_authors_built_it():
    """The shapes of the real tower, without its weights."""
    import timm
    from transformers import SiglipVisionConfig

    with torch.device("meta"):
        model = timm.create_model("vit_so400m_patch14_siglip_384", pretrained=False, num_classes=0)
        stock = stock_tower(TimmTower(model, feature_layer=-2), image_size=384, depth=0)
        wanted = SiglipVisionModel(
            SiglipVisionConfig(
                hidden_size=1152, intermediate_size=4304, num_hidden_layers=27, num_attention_heads=16, image_size=384,
                patch_size=14, vision_use_head=False,
            )
        ).state_dict()  # fmt: skip
    assert stock.prefix == 0 and stock.config.num_hidden_layers == 27 and stock.config.hidden_act == "gelu"
    missing = {key for key in wanted if key not in stock.state}
    assert all("layers.26." in key or "post_layernorm" in key for key in missing)
    assert all(wanted[key].shape == value.shape for key, value in stock.state.items())


REFUSED = {
    "tiles": ({"adapter": "multiscale-pool", "tiles": 2}, "has 'multiscale-pool' with tiles=2"),
    "adapter": ({"adapter": "resampler"}, "has 'resampler' with tiles=1"),
    "fit": ({"fit": "letterbox"}, "fit=letterbox"),
    "positions": ({"tower": "siglip", "image_size": 40}, "positions are interpolated from 24 to 40"),
    "registers": ({"tower": "vit_small_patch14_reg4_dinov2"}, "tokens before those of the patches"),
    "norms": ({"tower": "vit_tiny_patch16_224", "qk_norm": True}, r"its block 0 has a norm at attn\.q_norm"),
    "stem": ({"tower": "tiny-vit/0"}, "its patches come from a ConvStem"),
    "cap": ({"llm": "gemma2", "attn": "eager"}, "final_logit_softcapping"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_stock_llava_cannot_be_is_refused_with_the_reason(tmp_path, name):
    changes, expected = REFUSED[name]
    changes = {"tower": str(make_tower(tmp_path / "tower")), **changes}
    if changes["tower"] == "siglip":
        write_hub_tower(tmp_path / "hub", "siglip")
        changes["tower"] = str(tmp_path / "hub")
    elif changes["tower"].startswith("vit_"):
        args = SMALL | {name: changes.pop(name) for name in ("qk_norm",) if name in changes}
        changes["tower"] = str(make_timm_tower(tmp_path / "timm", changes["tower"], image_size=24, **args))
    if "llm" in changes:
        changes["llm"] = str(make_family(tmp_path / "llm", changes["llm"], head_dim=8))
    folder = assembled(tmp_path / "model", **changes)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(InputError, match=expected) as refused:
        export(folder, tmp_path / "llava", form="llava")
    assert "Export without `--as llava`" in str(refused.value) and "\n" not in str(refused.value)
    assert sorted(tmp_path.iterdir()) == before


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder of a model with tiles, a trained tower and LoRA in its LLM."""
    model, processor = Lvlm.assemble(model_config(tiles=2), seed=0)
    prepare_training(model, stage(tower="full", llm="lora"), seed=0)
    train(model, processor)
    return write_own(tmp_path_factory.mktemp("trained") / "model", model, processor)


@pytest.mark.parametrize("form", ["merged", "adapters"])
@pytest.mark.parametrize("auto", [AutoModelForCausalLM, AutoModelForImageTextToText])
def test_our_auto_classes_read_an_export(trained, tmp_path, form, auto):
    done = export(trained, tmp_path / "out", form=form)
    assert done.difference <= LIMIT and done.pillow is None
    model, processor = load(trained)
    read = auto.from_pretrained(tmp_path / "out").eval(), AutoProcessor.from_pretrained(tmp_path / "out")
    assert difference(answers(*read), answers(model, processor)) == done.difference
    assert (tmp_path / "out" / "lora" / "llm" / "adapter_config.json").exists() == (form == "adapters")
    from peft import PeftModel

    if form == "adapters" and auto is AutoModelForCausalLM:
        plain = AutoModelForCausalLM.from_pretrained(model_config().llm)
        wrapped = PeftModel.from_pretrained(plain, tmp_path / "out" / "lora" / "llm").eval()
        ids = torch.tensor([[5, 6, 7]])
        with torch.no_grad():
            assert torch.equal(wrapped(input_ids=ids).logits, model.language_model(input_ids=ids).logits)


@pytest.mark.parametrize(("name", "dtype"), [("siglip", torch.bfloat16), ("dinov2", torch.float32)])
def test_16_bits_stay_in_stock_llava_unless_they_would_round_a_product(plain, tmp_path, name, dtype):
    """DINOv2 scales its branches, and stock towers have those scales in their weights."""
    model, processor = load(plain / name)
    write_own(tmp_path / "half", model.bfloat16(), processor)
    assert export(tmp_path / "half", tmp_path / "llava", form="llava").difference <= LIMIT
    state = load_file(tmp_path / "llava" / "model.safetensors")
    assert {value.dtype for value in state.values()} == {dtype}


def test_16_bits_stay_unless_lora_is_merged(trained, tmp_path):
    model, processor = load(trained)
    write_own(tmp_path / "half", model.bfloat16(), processor)
    for form, dtype in (("adapters", torch.bfloat16), ("merged", torch.float32)):
        export(tmp_path / "half", tmp_path / form, form=form)
        state = load_file(tmp_path / form / "model.safetensors")
        assert {value.dtype for value in state.values()} == {dtype}


def test_a_snapshot_is_exported_with_its_model_config(tmp_path):
    model, processor = Lvlm.assemble(model_config(tiles=2), seed=0)
    prepare_training(model, stage(llm="lora"), seed=0)
    train(model, processor)
    path = write_snapshot(tmp_path, model, deepspeed=True)
    done = export(path, tmp_path / "out", model=model_config(tiles=2))
    assert done.difference <= LIMIT
    assert difference(answers(*load(tmp_path / "out")), answers(model, processor)) <= LIMIT


@pytest.mark.parametrize("form", ["merged", "llava"])
def test_an_export_that_is_another_model_is_refused_and_leaves_nothing(plain, tmp_path, form, monkeypatch):
    whole = module._write

    def wrong(model, *args, **settings):
        with torch.no_grad():
            model.multi_modal_projector.adapter.linear_2.bias[0] += 0.01
        whole(model, *args, **settings)

    monkeypatch.setattr(module, "_write", wrong)
    with pytest.raises(InputError, match=r"a logit differs by .*, and 1e-04 is the limit\. Nothing was written"):
        export(plain / "siglip", tmp_path / "out", form=form)
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(module, "_write", whole)
    monkeypatch.setattr("lvlm.model.stock.ACTIVATIONS", {"GELU": "quick_gelu"})
    if form == "llava":
        with pytest.raises(InputError, match="a logit differs"):
            export(plain / "siglip", tmp_path / "out", form=form)


def test_the_command_prints_the_difference(plain, trained, tmp_path, capsys):
    assert cli.main(["export", str(plain / "siglip"), str(tmp_path / "llava"), "--as", "llava"]) == 0
    shown = capsys.readouterr().out
    assert "largest difference of a logit" in shown and "pil" in shown and "limit 1e-04" in shown
    assert isinstance(LlavaForConditionalGeneration.from_pretrained(tmp_path / "llava"), LlavaForConditionalGeneration)
    assert cli.main(["export", str(trained), str(tmp_path / "kept"), "--adapters"]) == 0
    assert (tmp_path / "kept" / "lora").is_dir() and "limit 1e-04" in capsys.readouterr().out
    assert cli.main(["export", str(trained), str(tmp_path / "no"), "--adapters", "--as", "llava"]) == 2
    assert "choose one" in capsys.readouterr().err
    assert cli.main(["export", str(trained), str(tmp_path / "no"), "--as", "llava"]) == 2
    assert "tiles=2" in capsys.readouterr().err and not Path(tmp_path / "no").exists()
