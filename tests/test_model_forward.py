"""The model's forward pass and generation: features, merging, padding, batches."""

from __future__ import annotations

import pytest
import torch

from lvlm.errors import InputError
from lvlm.model.chat import IMAGE_PLACEHOLDER
from lvlm.model.tiling import pixels
from tests.tiny import make_llm, make_tower, tiny_image, tiny_world

P = IMAGE_PLACEHOLDER
PROMPTS = (
    ("Hi", []),
    (f"{P}\nWhat colour is the circle on the left?", [1]),
    (f"First {P} and then {P}, which is larger? यह क्या है?", [2, 3]),
    (f"{P} ?", [4]),
    ("A text without any image, which is quite a bit longer than the first one was.", []),
)


@pytest.fixture(scope="module", params=[1, 2], ids=["tiles1", "tiles2"])
def pair(request):
    model, processor = tiny_world().assemble(tiles=request.param)
    return model, processor


def inputs_for(processor, chosen):
    texts = [
        processor.apply_chat_template([{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True)
        for text, _ in chosen
    ]
    images = [[tiny_image(seed) for seed in seeds] for _, seeds in chosen]
    return processor(text=texts, images=images, return_tensors="pt")


def answers(model, processor, chosen, **kwargs):
    inputs = inputs_for(processor, chosen)
    generated = model.generate(**inputs, max_new_tokens=12, **kwargs)
    return processor.batch_decode(generated[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def test_batched_answers_equal_single_answers(pair):
    model, processor = pair
    single = [answers(model, processor, [prompt])[0] for prompt in PROMPTS]
    assert answers(model, processor, PROMPTS) == single
    assert len(set(single)) > 2, "answers that are all alike could not show a fault"


def test_generation_from_features_equals_generation_from_pixels(pair):
    model, processor = pair
    inputs = inputs_for(processor, PROMPTS)
    expected = model.generate(**inputs, max_new_tokens=8)
    features = model.image_features(inputs.pop("pixel_values"))
    assert features.shape == (4, model.config.views, 9, 16)
    assert torch.equal(model.generate(**inputs, image_features=features, max_new_tokens=8), expected)


def test_beams_keep_each_sample_with_its_images(pair):
    model, processor = pair
    single = [answers(model, processor, [prompt], num_beams=2)[0] for prompt in PROMPTS[1:4]]
    assert answers(model, processor, PROMPTS[1:4], num_beams=2) == single


def test_generation_without_cache_gives_the_same(pair):
    model, processor = pair
    assert answers(model, processor, PROMPTS[1:3], use_cache=False) == answers(model, processor, PROMPTS[1:3])


def test_padding_on_either_side_changes_no_logit(pair):
    model, processor = pair
    rows = [{"input_ids": processor.encode_prompt(text, len(seeds))} for text, seeds in PROMPTS]
    features = model.image_features(
        torch.cat([pixels(tiny_image(s), processor.image_transform) for _, seeds in PROMPTS for s in seeds])
    )
    lefts, rights = (processor.collate(rows, padding_side=side) for side in ("left", "right"))
    with torch.no_grad():
        left = model(**lefts, image_features=features).logits
        right = model(**rights, image_features=features).logits
        for row, entry in enumerate(rows):
            length = len(entry["input_ids"])
            torch.testing.assert_close(left[row, -length:], right[row, :length], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_logits_of_some_tokens_are_those_of_all_and_spare_the_last_block_elsewhere(pair):
    model, processor = pair
    inputs, worked = inputs_for(processor, PROMPTS), []
    whole = model(**inputs, output_hidden_states=True)
    tokens = inputs["input_ids"].shape[1]
    places = torch.tensor([tokens - 4, tokens - 1])
    hook = model.language_model.base_model.layers[-1].mlp.gate_proj.register_forward_pre_hook(
        lambda _, given: worked.append(given[0][..., 0].numel())
    )
    for kept, logits in ((1, whole.logits[:, -1:]), (3, whole.logits[:, -3:]), (places, whole.logits[:, places])):
        torch.testing.assert_close(model(**inputs, logits_to_keep=kept).logits, logits, rtol=1e-4, atol=1e-5)
    states = model(**inputs, logits_to_keep=1, output_hidden_states=True).hidden_states
    hook.remove()
    torch.testing.assert_close(states, whole.hidden_states, msg="what is asked for is computed")
    assert worked == [len(PROMPTS) * count for count in (1, 3, 2, tokens)]


@pytest.mark.parametrize("kept", [[-1], 3, [[1, 2], [3, 4]], [3, 3], [6, 2]], ids=str)
def test_any_places_have_the_logits_and_gradients_of_the_llm_by_itself(pair, kept):
    model, processor = pair
    inputs, places, found = inputs_for(processor, PROMPTS[::4]), torch.tensor(kept), []
    embeddings = {"inputs_embeds": model.embed(inputs["input_ids"]), "attention_mask": inputs["attention_mask"]}
    positions = inputs["attention_mask"].cumsum(1).sub(1).clamp(min=0)
    weight = model.language_model.base_model.layers[-1].mlp.gate_proj.weight.requires_grad_(True)
    for asked in (model, model.language_model):
        logits = asked(**embeddings, position_ids=positions, logits_to_keep=places).logits
        found.append((logits, torch.autograd.grad(logits.square().sum(), weight, retain_graph=True)[0]))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-3)


@torch.no_grad()
def test_states_that_the_config_asks_for_are_computed(pair, monkeypatch):
    model, processor = pair
    inputs = inputs_for(processor, PROMPTS)
    whole = model(**inputs, output_hidden_states=True).hidden_states
    monkeypatch.setattr(model.language_model.config, "output_hidden_states", True)
    torch.testing.assert_close(model(**inputs, logits_to_keep=1).hidden_states, whole)


def test_a_static_cache_gives_the_same_answers(pair):
    model, processor = pair
    for prompts in (PROMPTS[-1:], PROMPTS):
        assert answers(model, processor, prompts, cache_implementation="static") == answers(model, processor, prompts)


@pytest.mark.parametrize("kind", ["padded", "padded, with a hole", "packed, seen by a mask", "two rows, one numbering"])
@torch.no_grad()
def test_zeros_in_positions_end_no_sample_under_a_mask_or_over_rows(pair, kind):
    model, _ = pair
    ids, packed = torch.arange(5, 12)[None], torch.tensor([[0, 1, 2, 0, 1, 2, 3]])
    given = {
        "padded": {"attention_mask": torch.tensor([[0, 0, 1, 1, 1, 1, 1]])},
        "padded, with a hole": {"attention_mask": torch.tensor([[0, 1, 1, 0, 1, 1, 1]])},
        "packed, seen by a mask": {"attention_mask": torch.ones(1, 7, dtype=torch.long), "position_ids": packed},
        "two rows, one numbering": {"position_ids": packed},
    }[kind]
    ids = ids.expand(2, -1) if "two rows" in kind else ids
    mask = given.get("attention_mask")
    positions = given.get("position_ids", mask.cumsum(1).sub(1).clamp(min=0) if mask is not None else None)
    whole = model.language_model.base_model(
        inputs_embeds=model.embed(ids), position_ids=positions, attention_mask=mask, use_cache=False
    )[0]
    real = torch.ones_like(ids).bool() if mask is None else mask.bool()
    found = model.hidden_states({"input_ids": ids, **given})
    torch.testing.assert_close(found[real], whole[real], rtol=1e-4, atol=1e-5)


def test_images_reach_their_own_places(pair):
    """Embeddings with the image tokens replaced, against a loop over the tokens of each sample."""
    model, processor = pair
    inputs = inputs_for(processor, PROMPTS)
    with torch.no_grad():
        projected = model.multi_modal_projector(model.image_features(inputs["pixel_values"])).flatten(0, 1)
        embeddings = model.embed(inputs["input_ids"], pixel_values=inputs["pixel_values"])
        table = model.get_input_embeddings().weight
        place = 0
        for row, ids in enumerate(inputs["input_ids"].tolist()):
            for column, token in enumerate(ids):
                expected = projected[place] if token == model.config.image_token_id else table[token]
                place += token == model.config.image_token_id
                assert torch.equal(embeddings[row, column], expected)
        assert place == len(projected)


def test_counts_are_checked_sample_by_sample(pair):
    model, processor = pair
    inputs = inputs_for(processor, PROMPTS[:2])
    with pytest.raises(InputError, match="Sample 0"):
        model(**{**inputs, "image_counts": torch.tensor([1, 0])})
    with pytest.raises(InputError, match="images were given"):
        model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
    swapped = inputs["input_ids"].clone()
    swapped[1, inputs["input_ids"][1].tolist().index(model.config.image_token_id)] = 5
    swapped[0, -1] = model.config.image_token_id  # the total is right, each sample is wrong
    with pytest.raises(InputError, match="Sample 0"):
        model(input_ids=swapped, attention_mask=inputs["attention_mask"], pixel_values=inputs["pixel_values"])


def test_head_of_hidden_states_is_the_forward_pass(pair, monkeypatch):
    model, processor = pair
    inputs = dict(inputs_for(processor, PROMPTS))
    with torch.no_grad():
        expected = model(**inputs).logits
        monkeypatch.setattr(model.language_model.lm_head, "forward", None)  # no logits on this path
        hidden = model.hidden_states(inputs)
        monkeypatch.undo()
        torch.testing.assert_close(model.logits(hidden), expected)


@pytest.mark.parametrize("family", ["gemma2", "cohere", "granite", "llama"])
def test_head_of_llm_families(family):
    from transformers import AutoConfig, AutoModelForCausalLM

    from lvlm.model.lvlm import Lvlm

    sizes = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
    }
    extra = {
        "gemma2": {"head_dim": 8, "final_logit_softcapping": 3.0},
        "cohere": {"logit_scale": 0.5},
        "granite": {"logits_scaling": 4.0},
    }
    config = AutoConfig.for_model(
        family,
        vocab_size=50,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=0.5,
        **sizes,
        **extra.get(family, {}),
    )
    model, _ = tiny_world().assemble()
    llm = AutoModelForCausalLM.from_config(config).eval()
    other = Lvlm(
        type(model.config)(text_config=config, tower=model.config.tower, image_token_id=3, image_tokens=9),
        vision_tower=model.vision_tower,
        language_model=llm,
    ).eval()
    ids = torch.tensor([[4, 5, 6, 7]])
    with torch.no_grad():
        torch.testing.assert_close(other.logits(other.hidden_states({"input_ids": ids})), llm(input_ids=ids).logits)


@pytest.mark.parametrize("class_token", [False, True])
def test_features_are_the_penultimate_block_without_norm(tmp_path, class_token):
    import timm
    from safetensors.torch import load_file

    folder = make_tower(tmp_path, class_token=class_token)
    whole = timm.create_model(
        "vit_tiny_patch16_224", num_classes=0, img_size=24, patch_size=8, embed_dim=16, depth=3, num_heads=2,
        class_token=class_token, global_pool="token" if class_token else "avg",
    )  # fmt: skip
    whole.load_state_dict({key: value.float() for key, value in load_file(folder / "model.safetensors").items()})
    outputs = []
    for block in whole.eval().blocks:
        block.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    values = torch.randn(2, 3, 24, 24)
    for layer, index in ((-2, 1), (-1, 2), (0, 0)):
        model, _ = tiny_world().assemble(tower=str(folder), feature_layer=layer)
        outputs.clear()
        with torch.no_grad():
            whole.forward_features(values)
            found = model.image_features(values)[:, 0]
        torch.testing.assert_close(found, outputs[index][:, int(class_token) :])
        assert len(model.vision_tower.model.blocks) == index + 1
    with pytest.raises(InputError, match="feature_layer=-4"):
        tiny_world().assemble(tower=str(folder), feature_layer=-4)


def test_a_placeholder_is_added_where_it_is_missing(tmp_path):
    world = tiny_world()
    folder = make_llm(tmp_path / "bare", placeholder=False)
    model, processor = world.assemble(llm=str(folder))
    rows = model.get_input_embeddings().weight
    assert len(rows) == len(processor.tokenizer) == model.config.text_config.vocab_size
    assert model.config.image_token_id == processor.image_token_id == len(rows) - 1
    assert model.get_output_embeddings().weight is rows
    torch.testing.assert_close(rows[-1], rows[:-1].mean(dim=0))
    assert answers(model, processor, PROMPTS) == [answers(model, processor, [prompt])[0] for prompt in PROMPTS]


def test_assembly_depends_on_the_seed_only_and_leaves_global_randomness_alone():
    state = torch.random.get_rng_state()
    one, two, other = (tiny_world().assemble(seed=seed)[0] for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))
    changed = {key for key, value in one.state_dict().items() if not torch.equal(value, other.state_dict()[key])}
    assert changed == {
        f"multi_modal_projector.adapter.linear_{i}.{kind}" for i in (1, 2) for kind in ("weight", "bias")
    }


def test_positions_ignore_padding():
    """On an LLM with learned absolute positions; rotary ones would hide a shift."""
    from transformers import GPT2Config, GPT2LMHeadModel

    from lvlm.model.lvlm import Lvlm

    base, _ = tiny_world().assemble()
    config = GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2, n_positions=32, initializer_range=0.5)
    model = Lvlm(
        type(base.config)(text_config=config, tower=base.config.tower, image_token_id=3, image_tokens=9),
        vision_tower=base.vision_tower,
        language_model=GPT2LMHeadModel(config),
    ).eval()
    ids, padded = torch.tensor([[4, 5, 6]]), torch.tensor([[0, 0, 4, 5, 6]])
    mask = torch.tensor([[0, 0, 1, 1, 1]])
    with torch.no_grad():
        expected = model(input_ids=ids).logits
        torch.testing.assert_close(model(input_ids=padded, attention_mask=mask).logits[:, 2:], expected)
        hidden = model.hidden_states({"input_ids": padded, "attention_mask": mask})
        torch.testing.assert_close(model.logits(hidden)[:, 2:], expected)


def test_the_shipped_tower_architecture_loads(tmp_path):
    import json

    from safetensors.torch import save_file

    from lvlm.backbones.vit import tiny_vit

    description = {"image_size": 48, "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic"}
    description["timm"] = {"architecture": "tiny_vit", "args": {}}
    (tmp_path / "config.json").write_text(json.dumps(description), encoding="utf-8")
    save_file({key: value.half() for key, value in tiny_vit().state_dict().items()}, tmp_path / "model.safetensors")
    model, processor = tiny_world().assemble(tower=str(tmp_path), tiles=2)
    assert processor.image_tokens == 36
    features = model.image_features(pixels(tiny_image(), processor.image_transform))
    assert features.shape == (1, 5, 36, 128)
    model.save_pretrained(tmp_path / "saved")
    again = type(model).from_pretrained(tmp_path / "saved").eval()
    assert torch.equal(again.image_features(pixels(tiny_image(), processor.image_transform)), features)
