"""Samples end to end in one row attend as if each were alone, and at the price of that."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional
from transformers import GPT2Config
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from lvlm.model import apart as apart_module
from lvlm.model.apart import APART, samples_attend_apart
from lvlm.model.economy import last_block_only_at
from tests.families import CONTROLS, tiny_config

SDPA = sorted(set(CONTROLS) - {"gemma2"})  # whose capped scores that kernel does not have
LENGTHS = [(7, 6, 3, 1), (2, 5, 5, 4), (3,)]


def causal_lm(family, **changes):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(tiny_config(family, **changes), attn_implementation="sdpa")


def row_of(lengths):
    """Token ids (1, tokens) of samples end to end, and their positions."""
    ids = 3 + torch.arange(sum(lengths)) % 17
    return ids[None], torch.cat([torch.arange(length) for length in lengths])[None]


def tiny_gpt2():
    return GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=2)


def states_and_gradients(llm, run):
    llm.zero_grad()
    states = run()
    (states * torch.arange(states.numel()).view_as(states).sin()).sum().backward()
    return states, {name: one.grad for name, one in llm.named_parameters() if one.grad is not None}


def apart(llm, ids, positions, read_at=None):
    with samples_attend_apart(llm, positions), last_block_only_at(llm, read_at):
        found = llm.base_model(input_ids=ids, position_ids=positions, use_cache=False)[0][0]
    return found if read_at is None else found[read_at]


def one_by_one(llm, ids, lengths, read_at=None):
    found = torch.cat([llm.base_model(input_ids=some, use_cache=False)[0][0] for some in ids.split(lengths, dim=1)])
    return found if read_at is None else found[read_at]


@pytest.mark.parametrize("short", [apart_module.SHORT, 0], ids=["scores", "kernel"])
@pytest.mark.parametrize("read", [False, True], ids=["all", "some"])
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("family", SDPA)
def test_states_and_gradients_are_those_of_each_sample_alone(family, lengths, read, short, monkeypatch):
    monkeypatch.setattr(apart_module, "SHORT", short)
    llm = causal_lm(family)
    ids, positions = row_of(lengths)
    read_at = torch.arange(0, sum(lengths), 2) if read else None
    alone = states_and_gradients(llm, lambda: one_by_one(llm, ids, lengths, read_at))
    together = states_and_gradients(llm, lambda: apart(llm, ids, positions, read_at))
    torch.testing.assert_close(together[0], alone[0], rtol=1e-4, atol=1e-5)
    assert set(together[1]) == set(alone[1])
    for name, gradient in alone[1].items():
        torch.testing.assert_close(together[1][name], gradient, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize("short", [apart_module.SHORT, 0], ids=["scores", "kernel"])
@pytest.mark.parametrize("lengths", [(4, 3, 2), (3, 3)], ids=str)
def test_heads_that_share_keys_attend_apart(lengths, short, monkeypatch):
    monkeypatch.setattr(apart_module, "SHORT", short)
    llm = causal_lm("llama", num_attention_heads=4, num_key_value_heads=2)
    ids, positions = row_of(lengths)
    alone = states_and_gradients(llm, lambda: one_by_one(llm, ids, lengths))
    together = states_and_gradients(llm, lambda: apart(llm, ids, positions))
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_what_stands_on_the_padding_reaches_no_sample():
    torch.manual_seed(0)
    groups = apart_module._groups(row_of((5, 4, 4, 1))[1][0])
    query, key, value = (torch.randn(2, 14, 4).mul(3).requires_grad_() for _ in range(3))
    found = apart_module._ShortAttention.apply(query, key, value, groups, 0.5)
    pull = torch.randn_like(found)
    gradients = torch.autograd.grad((found * pull).sum(), (query, key, value))
    alone = [
        functional.scaled_dot_product_attention(*parts, is_causal=True, scale=0.5).transpose(0, 1)
        for parts in zip(*(states.split((5, 4, 4, 1), dim=1) for states in (query, key, value)), strict=True)
    ]
    expected = torch.autograd.grad((torch.cat(alone) * pull).sum(), (query, key, value))
    torch.testing.assert_close((found, *gradients), (torch.cat(alone), *expected), rtol=1e-4, atol=1e-4)


def test_values_wider_than_keys_attend_by_the_kernel():
    module = SimpleNamespace(samples_apart=apart_module._groups(row_of((4, 3))[1][0]), is_causal=True)
    query, key, value = torch.randn(1, 2, 7, 4), torch.randn(1, 2, 7, 4), torch.randn(1, 2, 7, 8)
    found, _ = apart_module._attention_apart(module, query, key, value, None)
    alone = [
        functional.scaled_dot_product_attention(*parts, is_causal=True).transpose(1, 2)
        for parts in zip(*(states.split((4, 3), dim=2) for states in (query, key, value)), strict=True)
    ]
    torch.testing.assert_close(found, torch.cat(alone, dim=1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "positions", [[0, 1, 2, 7, 8, 0, 1], [5, 6, 0, 1, 0, 1, 2], [0, 0, 0, 1, 2, 0, 1]], ids=["jump", "late", "zeros"]
)
def test_samples_begin_where_transformers_sees_them_begin(positions):
    llm, ids = causal_lm("llama"), row_of((7,))[0]
    masked = llm.base_model(input_ids=ids, position_ids=torch.tensor([positions]), use_cache=False)[0][0]
    torch.testing.assert_close(apart(llm, ids, torch.tensor([positions])), masked, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "family, changes",
    [("doge", {}), ("gemma3_text", {"use_bidirectional_attention": True}), ("llama", {"attention_bias": True})],
    ids=["a mask of its own", "both ways", "plain"],
)
def test_a_layer_that_does_more_than_its_kernel_runs_as_without(family, changes):
    llm = causal_lm(family, **changes)
    for parameter in llm.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    ids, positions = row_of((4, 3, 2))
    masked = llm.base_model(input_ids=ids, position_ids=positions, use_cache=False)[0][0]
    torch.testing.assert_close(apart(llm, ids, positions), masked, rtol=1e-4, atol=1e-5)
    with samples_attend_apart(llm, positions):
        assert (llm.config._attn_implementation == APART) == (family == "llama")


def test_an_llm_that_keeps_its_blocks_elsewhere_runs_as_without():
    llm = AutoModelForCausalLM.from_config(tiny_gpt2(), attn_implementation="sdpa").eval()
    ids, positions = row_of((4, 3))
    torch.testing.assert_close(apart(llm, ids, positions), one_by_one(llm, ids, (4, 3)), rtol=1e-4, atol=1e-5)


def seen_keys(monkeypatch):
    seen: list[tuple[int, ...]] = []
    kernel = functional.scaled_dot_product_attention

    def spy(query, key, *given, **options):
        seen.append((key.shape[0], key.shape[2]))
        return kernel(query, key, *given, **options)

    monkeypatch.setattr(functional, "scaled_dot_product_attention", spy)
    return seen


def test_no_sample_is_held_against_the_whole_row(monkeypatch):
    monkeypatch.setattr(apart_module, "SHORT", 7)
    llm, seen = causal_lm("qwen2"), seen_keys(monkeypatch)
    apart(llm, *row_of((8, 7, 6, 2, 2)))
    layers = llm.config.num_hidden_layers
    assert seen == [(3, 8), (2, 2)] * layers, "samples and longest of each call: those of like length together"
    assert llm.config._attn_implementation == "sdpa", "the context has an end"
    assert not hasattr(llm.model.layers[0].self_attn, "samples_apart")


@pytest.mark.parametrize("needs", ["length", "dropout", "half precision", "nothing"])
def test_scores_are_kept_whole_where_they_are_few_and_plain(needs, monkeypatch):
    llm, seen = causal_lm("qwen2", attention_dropout=0.5 if needs == "dropout" else 0.0).train(), seen_keys(monkeypatch)
    monkeypatch.setattr(apart_module, "SHORT", 5 if needs == "length" else 8)
    with torch.autocast("cpu", torch.bfloat16, enabled=needs == "half precision"):
        apart(llm, *row_of((6, 5)))
    assert bool(seen) == (needs != "nothing"), "otherwise a kernel works on blocks of them"


@pytest.mark.parametrize("hinders", ["a window", "blocks twice", "eager"])
def test_where_it_does_not_fit_the_row_runs_as_without(hinders, monkeypatch):
    llm = causal_lm("qwen2")
    if hinders == "a window":
        llm.config.sliding_window = 3
    elif hinders == "blocks twice":
        llm.activation_checkpointing_enable({"use_reentrant": False})
    else:
        llm.set_attn_implementation("eager")
    with samples_attend_apart(llm, row_of((4, 3))[1]):
        assert llm.config._attn_implementation != APART
    llm.config.sliding_window = None
    ids, positions = row_of((4, 3))
    torch.testing.assert_close(apart(llm, ids, positions), one_by_one(llm, ids, (4, 3)), rtol=1e-4, atol=1e-5)
