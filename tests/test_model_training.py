"""What learns: exactly the tensors that a stage declares, in every combination of parts."""

from __future__ import annotations

import copy
from itertools import product

import pytest
import torch
from peft import LoraConfig

from lvlm.errors import InputError
from lvlm.model.lora import inject_lora, linear_names, lora_layers
from lvlm.model.parts import describe, prepare_training
from lvlm.settings import LoraSettings, MixConfig, StageConfig, TrainedParts
from tests.tiny import make_llm, tiny_image, tiny_world

MODES = [
    modes
    for modes in product(("frozen", "lora", "full"), ("frozen", "full"), ("frozen", "lora", "full"))
    if set(modes) != {"frozen"}
]


def stage(tower="frozen", adapter="full", llm="frozen", *, start_lora="continue", **lora):
    return StageConfig(
        start_lora=start_lora,
        mix=MixConfig(corpora=()),
        train=TrainedParts(tower=tower, adapter=adapter, llm=llm),
        lora=LoraSettings(**({"r": 4} | lora)) if "lora" in (tower, llm) else LoraSettings(),
    )


def batch_for(model, processor):
    samples = [
        processor.encode_sample([("What is it?", "A red circle.")], 1),
        processor.encode_sample([("Hi", "Hello.")]),
    ]
    batch = processor.collate(samples)
    images = processor(text=["<image_placeholder>"], images=[tiny_image()], return_tensors="pt")
    return batch | {"pixel_values": images["pixel_values"]}


def train(model, processor, *, steps=2):
    batch = batch_for(model, processor)
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=1e-2, weight_decay=0.0)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
    return model.eval()


@pytest.mark.parametrize("modes", MODES, ids="-".join)
def test_what_changed_is_what_was_declared(modes):
    model, processor = tiny_world().assemble(tiles=2)
    tower, adapter, llm = modes
    counts = prepare_training(model, stage(tower=tower, adapter=adapter, llm=llm), seed=0)
    declared = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    before = {name: value.clone() for name, value in model.named_parameters()}
    train(model, processor)
    changed = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    assert changed == declared
    assert sum(row.trainable for row in counts) == sum(before[name].numel() for name in declared)
    for row, mode in zip(counts, modes, strict=True):
        assert row.mode == mode and (row.trainable == 0) == (mode == "frozen")
        assert (row.trainable == row.parameters) == (mode == "full")
    assert len(describe(counts)) == 4


def test_lora_is_on_every_linear_layer_of_the_llm_but_the_head(tmp_path):
    model, _ = tiny_world().assemble(llm=str(make_llm(tmp_path, tied=False)))
    prepare_training(model, stage(llm="lora"), seed=0)
    per_layer = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"]
    per_layer += ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
    assert set(lora_layers(model.language_model)) == {f"model.layers.{i}.{name}" for i in (0, 1) for name in per_layer}
    assert not lora_layers(model.vision_tower) and not lora_layers(model.multi_modal_projector)


def test_new_lora_changes_no_output():
    model, processor = tiny_world().assemble()
    batch = batch_for(model, processor)
    with torch.no_grad():
        before = model(**batch).logits
        prepare_training(model, stage(tower="lora", llm="lora"), seed=0)
        assert torch.equal(model.eval()(**batch).logits, before)


def test_lora_draws_are_shared_by_arms_and_differ_by_seed():
    """The same seed gives the same LoRA and adapter whatever else the arm changes; the global random state plays no
    part."""
    arms = []
    for tiles, tower, seed in ((1, "frozen", 0), (2, "lora", 0), (1, "frozen", 1)):
        torch.manual_seed(len(arms))
        model, _ = tiny_world().assemble(tiles=tiles, seed=seed)
        state = torch.random.get_rng_state()
        prepare_training(model, stage(tower=tower, llm="lora"), seed=seed)
        assert torch.equal(torch.random.get_rng_state(), state)
        arms.append({name: value for name, value in model.language_model.state_dict().items() if "lora_A" in name})
    assert len(arms[0]) == 14
    assert all(torch.equal(arms[0][name], arms[1][name]) for name in arms[0])
    assert not any(torch.equal(arms[0][name], arms[2][name]) for name in arms[0])
    values = list(arms[0].values())
    assert not any(torch.equal(a, b) for i, a in enumerate(values) for b in values[:i] if a.shape == b.shape)


def test_a_second_stage_continues_the_same_lora():
    model, processor = tiny_world().assemble()
    prepare_training(model, stage(llm="lora"), seed=0)
    train(model, processor)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    prepare_training(model, stage(llm="lora", tower="full"), seed=5)
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with pytest.raises(InputError, match="already has a LoRA"):
        prepare_training(model, stage(llm="lora", r=8), seed=0)


@pytest.mark.parametrize(
    "special", [{"use_rslora": True}, {"alpha_pattern": {"q_proj": 64}}, {"rank_pattern": {"q_proj": 2}}]
)
def test_a_lora_of_peft_with_other_scales_does_not_pass_for_a_plain_one(special):
    """Its r, alpha and dropout are those of the stage, and what it computes is not."""
    model, _ = tiny_world().assemble()
    plain, llm = stage(llm="lora"), model.language_model
    settings = {"r": plain.lora.r, "lora_alpha": plain.lora.alpha, "lora_dropout": plain.lora.dropout}
    inject_lora(llm, LoraConfig(target_modules=linear_names(llm), **settings, **special))
    with pytest.raises(InputError, match=f"already has a LoRA with .*{next(iter(special))}="):
        prepare_training(model, plain, seed=0)


def test_an_earlier_lora_is_merged_and_another_one_drawn():
    """Nothing changes before the first step but rounding; the new LoRA has settings and a draw of its own."""
    model, processor = tiny_world().assemble()
    prepare_training(model, stage(tower="lora", llm="lora"), seed=0, name="pretrain")
    first = {name: value.clone() for name, value in model.state_dict().items() if "lora_A" in name}
    train(model, processor)
    batch = batch_for(model, processor)
    known = {name: value.clone() for name, value in model.state_dict().items()}
    draws = []
    with torch.no_grad():
        before = model(**batch).logits
        settings = stage(llm="lora", start_lora="merge", dropout=0.1)
        for _ in range(2):
            again = copy.deepcopy(model)
            prepare_training(again, settings, seed=0, name="instruct")
            torch.testing.assert_close(again.eval()(**batch).logits, before, rtol=1e-5, atol=1e-5)
            draws.append({name: value for name, value in again.state_dict().items() if "lora_A" in name})
    layers = lora_layers(again.language_model)
    assert all(not layer.lora_B["default"].weight.any() for layer in layers.values()), "the earlier one is gone"
    assert all(layer.lora_dropout["default"].p == 0.1 for layer in layers.values())
    for name, layer in layers.items():
        place = f"language_model.{name}"
        assert not torch.equal(layer.get_base_layer().weight, known[f"{place}.base_layer.weight"]), "merged"
        assert not torch.equal(layer.lora_A["default"].weight, first[f"{place}.lora_A.default.weight"]), "drawn anew"
    assert all(torch.equal(value, draws[1][name]) for name, value in draws[0].items()), "one seed, one draw"
    tower = {name: value for name, value in again.state_dict().items() if name.startswith("vision_tower.")}
    assert all(torch.equal(value, known[name]) for name, value in tower.items()), "a frozen part keeps its own"
    other = copy.deepcopy(model)
    prepare_training(other, stage(llm="lora", start_lora="merge", r=2), seed=0, name="instruct")
    assert {layer.r["default"] for layer in lora_layers(other.language_model).values()} == {2}
    trained = {name for name, parameter in again.named_parameters() if parameter.requires_grad}
    before = {name: value.clone() for name, value in again.state_dict().items()}
    train(again, processor)
    assert {name for name, value in again.state_dict().items() if not torch.equal(value, before[name])} == trained


def test_a_merge_without_a_lora_is_refused():
    model, _ = tiny_world().assemble()
    with pytest.raises(InputError, match="start_lora is merge but the model has no LoRA in llm"):
        prepare_training(model, stage(llm="lora", start_lora="merge"), seed=0)


def test_full_training_after_lora_starts_from_the_merged_weights():
    model, processor = tiny_world().assemble()
    plain = set(model.state_dict())
    prepare_training(model, stage(llm="lora"), seed=0)
    train(model, processor)
    batch = batch_for(model, processor)
    with torch.no_grad():
        before = model(**batch).logits
        prepare_training(model, stage(llm="full"), seed=0)
        assert set(model.state_dict()) == plain
        torch.testing.assert_close(model(**batch).logits, before, rtol=1e-4, atol=1e-4)
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight


def test_what_learns_is_float32_and_frozen_parts_keep_their_type():
    model, _ = tiny_world().assemble()
    model.bfloat16()
    prepare_training(model, stage(llm="lora"), seed=0)
    for name, parameter in model.named_parameters():
        assert parameter.dtype == (torch.float32 if parameter.requires_grad else torch.bfloat16), name


def test_dropout_of_lora_acts():
    model, processor = tiny_world().assemble()
    prepare_training(model, stage(llm="lora", dropout=0.5), seed=0)
    train(model, processor)
    batch = batch_for(model, processor)
    with torch.no_grad():
        assert not torch.equal(model.train()(**batch).logits, model(**batch).logits)
        assert torch.equal(model.eval()(**batch).logits, model(**batch).logits)


def test_a_frozen_tower_computes_no_gradient():
    model, processor = tiny_world().assemble()
    pixel_values = batch_for(model, processor)["pixel_values"]
    prepare_training(model, stage(llm="lora"), seed=0)
    assert not model.image_features(pixel_values).requires_grad
    prepare_training(model, stage(tower="lora", llm="lora"), seed=0)
    assert model.image_features(pixel_values).requires_grad
    assert len(lora_layers(model.vision_tower)) == len(linear_names(model.vision_tower)) - 2 * len(
        lora_layers(model.vision_tower)
    )
