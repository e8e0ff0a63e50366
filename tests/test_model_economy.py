"""What training leaves out changes neither loss nor gradients, and is really left out."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from lvlm.model.economy import FusedRmsNorm, fuse_norms, last_block_only_at
from lvlm.model.lora import add_lora
from tests.families import CONTROLS, tiny_config


def causal_lm(family, attn="eager", **changes):
    torch.manual_seed(0)
    llm = AutoModelForCausalLM.from_config(tiny_config(family, **changes), attn_implementation=attn).eval()
    add_lora(llm, r=2, alpha=4, dropout=0.0, seed=0)
    for name, parameter in llm.named_parameters():
        parameter.requires_grad_("lora_" in name)
        if "lora_B" in name or "norm" in name:
            torch.nn.init.normal_(parameter, mean=0.5, std=0.2)
    return llm


def loss_and_gradients(llm, positions, *, spared, ids=None, **inputs):
    llm.zero_grad()
    ids = torch.arange(3, 21).reshape(2, 9) if ids is None else ids
    with last_block_only_at(llm, positions if spared else None):
        hidden = llm.base_model(input_ids=ids, use_cache=False, **inputs)[0]
    loss = llm.get_output_embeddings()(hidden.flatten(0, 1)[positions]).square().mean()
    loss.backward()
    return loss, {name: parameter.grad for name, parameter in llm.named_parameters() if parameter.requires_grad}


SDPA = sorted(set(CONTROLS) - {"gemma2"})  # whose capped scores that kernel does not have


def same_gradients(llm, positions, **inputs):
    loss, gradients = loss_and_gradients(llm, positions, spared=False, **inputs)
    fuse_norms(llm)
    spared, economical = loss_and_gradients(llm, positions, spared=True, **inputs)
    torch.testing.assert_close(spared, loss)
    for name, gradient in gradients.items():
        torch.testing.assert_close(economical[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("family, attn", [*((family, "eager") for family in CONTROLS), *((f, "sdpa") for f in SDPA)])
@pytest.mark.parametrize("positions", [[2, 3, 8, 11, 17], [12]], ids=["both rows", "one row"])
def test_gradients_are_those_of_the_whole_model(family, attn, positions):
    same_gradients(causal_lm(family, attn), torch.tensor(positions))


def test_samples_end_to_end_and_grouped_heads_give_the_gradients_of_the_whole_model():
    llm = causal_lm("llama", "sdpa", num_attention_heads=4, num_key_value_heads=2)
    packed = {"ids": torch.arange(3, 12)[None], "position_ids": torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4]])}
    same_gradients(llm, torch.tensor([2, 3, 6, 8]), **packed)


def test_the_last_block_works_only_where_it_is_read():
    llm = causal_lm("qwen2", "sdpa")
    seen: dict[str, int] = {}
    linear = [name for name, _ in llm.named_modules() if name.endswith("base_layer")]
    for name in linear:
        llm.get_submodule(name).register_forward_pre_hook(
            lambda _, inputs, name=name: seen.update({name: inputs[0][..., 0].numel()})
        )
    loss_and_gradients(llm, torch.tensor([2, 3, 8]), spared=True)
    everywhere = [name for name in linear if "layers.0" in name or "k_proj" in name or "v_proj" in name]
    assert seen == {name: 18 if name in everywhere else 3 for name in linear} and len(linear) == 14
    llm(input_ids=torch.tensor([[3, 4, 5, 6]]))
    assert set(seen.values()) == {4}, "the context has an end"
    assert llm.model.layers[1].self_attn.config is llm.config


@pytest.mark.parametrize("family, attn", [*((family, "eager") for family in CONTROLS), *((f, "sdpa") for f in SDPA)])
@pytest.mark.parametrize("padded", [0, 2], ids=["no padding", "padding"])
@torch.no_grad()
def test_behind_a_cache_the_read_tokens_come_out_as_from_the_whole_model(family, attn, padded):
    llm, found = causal_lm(family, attn), []
    ids, mask = torch.arange(3, 21).reshape(2, 9), torch.ones(2, 9, dtype=torch.long)
    mask[1, :padded] = 0
    for read in (None, torch.tensor([3, 7])):  # the last of four tokens of both rows
        cache = DynamicCache(config=llm.config)
        with last_block_only_at(llm, None if read is None else torch.tensor([], dtype=torch.long)):
            llm.base_model(input_ids=ids[:, :5], attention_mask=mask[:, :5], past_key_values=cache)
        with last_block_only_at(llm, read):
            hidden = llm.base_model(input_ids=ids[:, 5:], attention_mask=mask, past_key_values=cache)[0]
        found.append(hidden)
    torch.testing.assert_close(found[1][:, -1], found[0][:, -1], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found[1][:, 0], found[0][:, 0]), "elsewhere the last block did not work"


@pytest.mark.parametrize("attn", ["eager", "sdpa"])
def test_nothing_read_gives_no_gradient_and_no_error(attn):
    llm = causal_lm("qwen2", attn)
    with last_block_only_at(llm, torch.tensor([], dtype=torch.long)):
        hidden = llm.base_model(input_ids=torch.tensor([[3, 4, 5]]), use_cache=False)[0]
    hidden.flatten(0, 1)[:0].sum().backward()


def read_of(llm, ids, positions, **inputs):
    """Logits at flat positions, from the whole model and from the spared one."""
    with torch.no_grad():
        whole = llm(input_ids=ids, **inputs).logits
        with last_block_only_at(llm, positions):
            spared = llm(input_ids=ids, **inputs).logits
    return whole.flatten(0, 1)[positions], spared.flatten(0, 1)[positions]


OTHERS = {
    "gpt_oss": {"num_local_experts": 4},  # whose MLP gives its router's scores too
    "deepseek_v2": {"head_dim": None, "first_k_dense_replace": 2},  # whose q_proj is None
    "moshi": {"head_dim": None},  # whose MLP is told its layer, and takes no less than a token
    "inkling_text": {},  # which mixes neighbours after its MLP
}


@pytest.mark.parametrize("family", OTHERS)
def test_other_families_give_the_logits_of_the_whole_model(family):
    torch.manual_seed(0)
    config = tiny_config(family, **OTHERS[family])
    llm = AutoModelForCausalLM.from_config(config, attn_implementation="eager" if family == "gpt_oss" else "sdpa")
    for parameter in llm.eval().parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    for positions in ([2, 8, 17], []):
        whole, spared = read_of(llm, torch.arange(3, 21).reshape(2, 9), torch.tensor(positions, dtype=torch.long))
        torch.testing.assert_close(spared, whole, rtol=1e-4, atol=1e-4)


def test_a_query_behind_a_cache_without_a_mask_sees_all_of_it():
    llm, found = causal_lm("qwen2", "sdpa"), []
    for read in (None, torch.tensor([0, 1])):
        cache = DynamicCache(config=llm.config)
        with torch.no_grad():
            llm.base_model(input_ids=torch.arange(3, 11).reshape(2, 4), past_key_values=cache)
            with last_block_only_at(llm, read):
                found.append(llm.base_model(input_ids=torch.tensor([[12], [13]]), past_key_values=cache)[0])
    torch.testing.assert_close(found[1], found[0])


def test_a_part_whose_forward_somebody_replaced_keeps_theirs():
    llm, calls = causal_lm("qwen2", "sdpa"), []
    mlp = llm.model.layers[-1].mlp
    own = mlp.forward
    mlp.forward = lambda x: calls.append(x.shape[1]) or own(x)  # as the hooks of accelerate do
    for _ in range(2):
        read_of(llm, torch.tensor([[3, 4, 5, 6]]), torch.tensor([3]))
    assert calls == [4, 1, 4, 1]


def test_an_llm_that_computes_blocks_twice_runs_whole():
    llm = causal_lm("qwen2")
    positions = torch.tensor([2, 3])
    _, gradients = loss_and_gradients(llm, positions, spared=False)
    llm.activation_checkpointing_enable({"use_reentrant": False})
    llm.train()
    _, checkpointed = loss_and_gradients(llm, positions, spared=True)
    for name, gradient in gradients.items():
        torch.testing.assert_close(checkpointed[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_the_fused_norm_is_its_formula():
    x = torch.randn(3, 5, 7, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(7, dtype=torch.float64)
    expected = x / torch.sqrt(x.square().mean(-1, keepdim=True) + 1e-3) * weight
    torch.testing.assert_close(FusedRmsNorm.apply(x, weight, 1e-3), expected, rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(lambda x: FusedRmsNorm.apply(x, weight, 1e-3), x)


@pytest.mark.parametrize(("family", "norms"), [("qwen2", 5), ("llama", 5), ("phi3", 5), ("gemma2", 0)])
def test_norms_are_fused_by_what_they_compute(family, norms):
    llm = causal_lm(family)
    kinds = {type(module).__name__ for module in llm.modules()}
    assert fuse_norms(llm) == norms
    assert fuse_norms(llm) == 0, "once is enough"
    assert {type(module).__name__ for module in llm.modules()} == kinds


def test_a_norm_that_learns_gets_its_gradient():
    llm = causal_lm("qwen2")
    llm.requires_grad_(True)
    _, gradients = loss_and_gradients(llm, torch.tensor([2, 3]), spared=False)
    fuse_norms(llm)
    _, fused = loss_and_gradients(llm, torch.tensor([2, 3]), spared=False)
    assert fused["model.norm.weight"] is not None
    torch.testing.assert_close(fused["model.norm.weight"], gradients["model.norm.weight"])
