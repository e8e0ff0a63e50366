"""Saved models come back exactly, in a fresh process, through our loader and through transformers' Auto classes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file

from lvlm.errors import InputError
from lvlm.model.assembly import assemble
from lvlm.model.checkpoints import load
from lvlm.model.lora import inject_lora, lora_layers
from lvlm.model.lvlm import Lvlm
from lvlm.model.parts import prepare_training
from tests.checkpoint_models import WEIGHT_FAULTS, write_own
from tests.test_model_towers import write as write_hub_tower
from tests.test_model_training import MODES, batch_for, stage, train
from tests.tiny import make_llm, make_tokenizer, make_tower, tiny_image, tiny_world

VARIANTS = {"-".join(modes): dict(zip(("tower", "adapter", "llm"), modes, strict=True)) for modes in MODES}
ADAPTER, LORA = "frozen-full-frozen", "full-full-lora"
HELD = (ADAPTER, LORA, "lora-full-full")
"""Those that are also saved with frozen matrices in bfloat16."""
WITH_LORA = [name for name in VARIANTS if "lora" in name]
FRESH = """
import sys, torch
torch.set_num_threads(1)
from transformers import AutoModelForCausalLM, AutoProcessor
import lvlm
from pathlib import Path
for folder in sorted(Path(sys.argv[1]).iterdir()):
    expected = torch.load(folder / "expected.pt", weights_only=True)
    bf16 = folder.name.endswith("bf16")
    model, processor = lvlm.load(folder, precision="bf16" if bf16 else "fp32")
    auto = [AutoModelForCausalLM.from_pretrained(folder).eval()] if folder.name == "full-full-lora" else []
    for loaded in (model, *auto):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            logits = loaded(**expected["batch"]).logits
        assert torch.equal(logits, expected["logits"]), (folder.name, (logits - expected["logits"]).abs().max())
        tied = loaded.get_input_embeddings().weight is loaded.get_output_embeddings().weight
        assert tied == expected["tied"], folder.name
    print(folder.name)
"""
README = """
import sys
import lvlm
assert not {"torch", "transformers"} & set(sys.modules), "import lvlm alone must stay light"
import torch
torch.set_num_threads(1)
from PIL import Image
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor
folder, picture = sys.argv[1:]
image = Image.open(picture)
processor = AutoProcessor.from_pretrained(folder)
written = []
for auto in (AutoModelForCausalLM, AutoModelForImageTextToText):
    model = auto.from_pretrained(folder)
    assert isinstance(model, lvlm.Lvlm) and isinstance(processor, lvlm.LvlmProcessor)
    def ask(prompts, images):
        texts = []
        for prompt in prompts:
            messages = [{"role": "system", "content": "You are a helpful assistant."}, {"role": "user", "content":
            prompt}]
            texts.append(processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
        inputs = processor(text=texts, images=images, return_tensors="pt").to(model.device)
        ids = model.generate(**inputs, max_new_tokens=16)
        ids = [new[len(old):] for old, new in zip(inputs.input_ids, ids)]
        return processor.batch_decode(ids, skip_special_tokens=True)
    one = "<image_placeholder>\\nBriefly describe the image in German."
    two = "<image_placeholder><image_placeholder>\\nWhich is larger?"
    answers = [ask([one], [image]), ask([two], [image, image.rotate(90)]), ask(["Hello"], None)]
    assert ask([one, two, "Hello"], [[image], [image, image.rotate(90)], []]) == [answer[0] for answer in answers]
    assert ask([one, two], [image, image, image.rotate(90)]) == [answer[0] for answer in answers[:2]]
    written.append(answers)
assert written[0] == written[1]
assert AutoConfig.from_pretrained(folder).model_type == "lvlm"
print("ok")
"""


def run(script, *args):
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, args)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.split()


def note(folder, model, batch, *, bf16=False):
    """Write the logits that a model gives beside its files."""
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        logits = model(**batch).logits
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    torch.save({"batch": batch, "logits": logits, "tied": tied}, folder / "expected.pt")
    return logits


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """One saved model per variant, LoRA kept and merged, tied and untied embeddings."""
    root = tmp_path_factory.mktemp("saved")
    for name, parts in VARIANTS.items():
        model, processor = tiny_world().assemble(tiles=2)
        prepare_training(model, stage(**parts), seed=0)
        train(model, processor)
        batch = batch_for(model, processor)
        note(write_own(root / name, model, processor), model, batch)
        if "lora" in name:
            folder = write_own(root / f"{name}-merged", model, processor, merge_lora=True)
            note(folder, load(folder)[0], batch)
    for name in HELD:
        model, processor = assemble(tiny_world().model_config(tiles=2), seed=0, precision="bf16")
        prepare_training(model, stage(**VARIANTS[name]), seed=0, precision="bf16")
        with torch.autocast("cpu", torch.bfloat16):
            train(model, processor)
        note(write_own(root / f"{name}-bf16", model, processor), model, batch_for(model, processor), bf16=True)
    bare = make_llm(root.parent / f"{root.name}-llm", placeholder=False, tied=False)
    model, processor = tiny_world().assemble(llm=str(bare), adapter="mlp", feature_layer=-1)
    note(write_own(root / "untied-resized", model, processor), model, batch_for(model, processor))
    return root


def test_logits_are_bit_equal_in_a_fresh_process(folders):
    merged, held = {f"{name}-merged" for name in WITH_LORA}, {f"{name}-bf16" for name in HELD}
    assert set(run(FRESH, folders)) == {*VARIANTS, *merged, *held, "untied-resized"}


def test_readme_usage_in_a_fresh_process(folders, tmp_path):
    tiny_image(7).save(tmp_path / "image.png")
    assert run(README, folders / LORA, tmp_path / "image.png") == ["ok"]


@pytest.mark.parametrize("name", WITH_LORA)
def test_merged_equals_unmerged_and_leaves_the_model_as_it_is(folders, name):
    kept, merged = (
        torch.load(folders / folder / "expected.pt", weights_only=True) for folder in (name, f"{name}-merged")
    )
    torch.testing.assert_close(kept["logits"], merged["logits"], rtol=1e-4, atol=1e-4)
    assert not torch.equal(kept["logits"], torch.zeros_like(kept["logits"]))
    config = json.loads((folders / f"{name}-merged" / "config.json").read_text())
    assert not config.get("lora") and not (folders / f"{name}-merged" / "lora").exists()
    model, _ = load(folders / name)
    keys = set(model.state_dict())
    model.save_pretrained(folders.parent / f"{name}-again", merge_lora=True)
    assert set(model.state_dict()) == keys and model.config.lora


def test_lora_is_an_ordinary_peft_adapter(folders):
    """peft itself reads the saved LoRA and gives the same LLM."""
    from peft import PeftModel

    model, _ = load(folders / LORA)
    plain, _ = load(folders / ADAPTER)
    weights = load_file(folders / LORA / "model.safetensors")
    prefix = "language_model."
    state = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
    plain.language_model.load_state_dict(state, strict=False)
    wrapped = PeftModel.from_pretrained(plain.language_model, folders / LORA / "lora" / "llm").eval()
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        assert torch.equal(wrapped(input_ids=ids).logits, model.language_model(input_ids=ids).logits)


def test_only_safetensors_and_plain_keys_are_written(folders):
    keys = set(load_file(folders / LORA / "model.safetensors"))
    assert not any("lora" in key or "base_layer" in key for key in keys)
    assert keys == set(load_file(folders / ADAPTER / "model.safetensors"))
    assert "language_model.lm_head.weight" not in keys, "tied weights are stored once"
    assert not [path for path in folders.rglob("*") if path.suffix in (".bin", ".pt") and path.name != "expected.pt"]


@pytest.mark.parametrize("fault", ["missing", "surplus", "shape"])
@pytest.mark.parametrize("file", ["model.safetensors", "lora/llm/adapter_model.safetensors"])
def test_weights_that_do_not_fit_are_refused(folders, tmp_path, file, fault):
    folder = tmp_path / "broken"
    shutil.copytree(folders / LORA, folder)
    state = load_file(folder / file)
    key = next(key for key in state if "layers.1" in key and key.endswith("weight"))
    if fault == "surplus":
        state[key.replace("layers.1", "layers.7")] = state[key].clone()
    else:
        value = state.pop(key)
        if fault == "shape":
            state[key] = torch.zeros(3, value.shape[-1] + 1)
    save_file(state, folder / file, metadata={"format": "pt"})
    with pytest.raises(InputError, match=key.replace("layers.1", "layers.7") if fault == "surplus" else key):
        load(folder)


@pytest.mark.parametrize("file", ["model.safetensors", "lora/llm/adapter_model.safetensors"])
def test_weights_that_are_cut_short_are_refused(folders, tmp_path, file):
    shutil.copytree(folders / LORA, tmp_path / "broken")
    _cut(tmp_path / "broken" / file)
    with pytest.raises(InputError, match=r"The weights in .*broken.* cannot be read: .*Copy them again\."):
        load(tmp_path / "broken")


@pytest.mark.parametrize("part", ["llm", "tower", "hub tower"])
def test_a_backbone_that_is_cut_short_is_refused(tmp_path, part):
    make = {"llm": make_llm, "tower": make_tower, "hub tower": lambda folder: write_hub_tower(folder, "siglip")}
    make[part](tmp_path / "part")
    _cut(tmp_path / "part" / "model.safetensors")
    with pytest.raises(InputError, match=r"cannot (be read|be loaded|load the tower).*: (Error while|incomplete)"):
        tiny_world().assemble(**{part.removeprefix("hub "): str(tmp_path / "part")})


@pytest.mark.parametrize("content", ['{"version": "1.0"}', '{"version": "1.0", "added_tokens": [], "model": {}}', "{"])
def test_a_tokenizer_that_cannot_be_read_is_refused(tmp_path, content):
    (make_llm(tmp_path) / "tokenizer.json").write_text(content)
    with pytest.raises(InputError, match=r"language model .* cannot be loaded: tokenizer: "):
        tiny_world().assemble(llm=str(tmp_path))


def _cut(file):
    file.write_bytes(file.read_bytes()[:-50])


def test_a_backbone_s_code_is_never_run_nor_asked_for(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("builtins.input", lambda text: asked.append(text) or "y")
    for part in ("llm", "tower"):
        config = {
            "model_type": "their-own",
            "auto_map": {name: f"theirs.{name}" for name in ("AutoConfig", "AutoModel")},
        }
        (tmp_path / part).mkdir()
        (tmp_path / part / "config.json").write_text(json.dumps(config))
        (tmp_path / part / "theirs.py").write_text("raise SystemExit('remote code was run')")
        make_tokenizer(tmp_path / part)
        with pytest.raises(InputError, match="contains custom code"):
            tiny_world().assemble(**{part: str(tmp_path / part)})
    assert not asked


def test_a_lora_whose_layers_are_named_by_a_pattern_comes_back(tmp_path):
    model, processor = tiny_world().assemble()
    inject_lora(model.language_model, LoraConfig(target_modules=r".*\.(q|v)_proj", exclude_modules=["lm_head"]))
    again, _ = load(write_own(tmp_path, model, processor))
    assert set(lora_layers(again.language_model)) == set(lora_layers(model.language_model))
    config = json.loads((tmp_path / "lora" / "llm" / "adapter_config.json").read_text())
    assert (config["target_modules"], config["exclude_modules"]) == (r".*\.(q|v)_proj", ["lm_head"])


def test_a_lora_that_is_gone_is_refused(folders, tmp_path):
    shutil.copytree(folders / LORA, tmp_path / "broken")
    shutil.rmtree(tmp_path / "broken" / "lora")
    with pytest.raises(InputError, match="does not exist"):
        Lvlm.from_pretrained(tmp_path / "broken")
    with pytest.raises(InputError, match=r"holds no config\.json"):
        load(tmp_path)


def test_a_model_without_its_tokenizer_is_refused(folders, tmp_path):
    shutil.copytree(folders / ADAPTER, tmp_path / "broken")
    for file in (tmp_path / "broken").glob("*token*"):
        file.unlink()
    with pytest.raises(InputError, match=r"The model .*broken cannot be read: .*Copy its whole folder\.") as refused:
        load(tmp_path / "broken")
    assert "\n" not in str(refused.value)


def test_a_model_of_another_kind_is_refused():
    with pytest.raises(InputError, match=r"'model_type', is 'qwen2' and not 'lvlm'"):
        load(tiny_world().llm)


def test_attention_is_that_which_was_asked_for(tmp_path):
    """No model folder keeps it, and the two differ in the last bits."""
    model, processor = tiny_world().assemble(attn="eager")
    folder = write_own(tmp_path / "model", model, processor)
    batch = batch_for(model, processor)
    eager, sdpa = load(folder, attn="eager")[0], load(folder, attn="sdpa")[0]
    for loaded, name in ((eager, "eager"), (sdpa, "sdpa")):
        assert loaded.language_model.config._attn_implementation == name
    with torch.no_grad():
        assert torch.equal(eager(**batch).logits, model(**batch).logits)
        assert not torch.equal(sdpa(**batch).logits, model(**batch).logits)


def test_bfloat16_is_stored_for_what_was_frozen_and_read_as_it_is_asked_for(folders):
    def types(**settings):
        model, _ = load(folders / f"{LORA}-bf16", **settings)
        return {
            part: {parameter.dtype for parameter in getattr(model, part).parameters()}
            for part in ("vision_tower", "multi_modal_projector", "language_model")
        }

    fp32, both = {torch.float32}, {torch.float32, torch.bfloat16}
    assert types(precision="bf16") == {"vision_tower": fp32, "multi_modal_projector": fp32, "language_model": both}
    assert set(map(frozenset, types().values())) == {frozenset(fp32)}
    stored = load_file(folders / f"{LORA}-bf16" / "model.safetensors")
    halved = {key for key, value in stored.items() if value.dtype == torch.bfloat16}
    assert halved and all(key.startswith("language_model.") and "proj" in key for key in halved)
    assert json.loads((folders / f"{LORA}-bf16" / "config.json").read_text())["dtype"] == "float32"
    kept, _ = load(folders / f"{LORA}-bf16", precision="bf16")
    lora = [value for name, value in kept.state_dict().items() if "lora_B" in name]
    assert lora and all(not torch.equal(value, value.bfloat16().float()) for value in lora), "LoRA loses no bit"
    whole = Lvlm.from_pretrained(folders / f"{LORA}-bf16", dtype=torch.bfloat16)
    assert {parameter.dtype for name, parameter in whole.named_parameters() if "lora_" not in name} == {torch.bfloat16}


@pytest.mark.parametrize("part", ["siglip", "clip", "resampler"])
def test_what_is_computed_at_start_and_not_saved_comes_back(tmp_path, part):
    """Positions of the towers of transformers and of the resampler's keys are in no file."""
    changes = {"adapter": "resampler", "queries": 4, "tiles": 2}
    if part != "resampler":
        write_hub_tower(tmp_path / "tower", part)
        changes = {"tower": str(tmp_path / "tower")}
    model, processor = tiny_world().assemble(**changes)
    loaded, _ = load(write_own(tmp_path / "model", model, processor))
    computed = {name: value for name, value in model.named_buffers() if name not in model.state_dict()}
    assert any(not name.startswith("language_model.") for name in computed)
    assert all(torch.equal(loaded.get_buffer(name), value) for name, value in computed.items())
    batch = batch_for(model, processor)
    with torch.no_grad():
        assert torch.equal(loaded(**batch).logits, model(**batch).logits)


def test_training_goes_on_from_a_saved_model(folders):
    """A second stage on a loaded model learns the same tensors as one on the model that was never saved."""
    model, processor = load(folders / LORA)
    before = set(model.state_dict())
    prepare_training(model, stage(llm="lora"), seed=0)
    assert set(model.state_dict()) == before
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {
        name for name, _ in model.named_parameters() if ".lora_" in name or name.startswith("multi_modal_projector")
    }
    train(model, processor)


@pytest.mark.parametrize("fault", WEIGHT_FAULTS)
@pytest.mark.parametrize(
    ("part", "key"), [("llm", "model.layers.0.mlp.up_proj.weight"), ("tower", "blocks.0.mlp.fc1.weight")]
)
def test_a_backbone_whose_weights_do_not_fit_is_refused_and_never_drawn(tmp_path, part, key, fault):
    folder = (make_llm if part == "llm" else make_tower)(tmp_path / part)
    state = load_file(folder / "model.safetensors")
    WEIGHT_FAULTS[fault](state, key)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=rf"{fault}: .*{key}"):
        tiny_world().assemble(**{part: str(folder)})
