"""Stages that do not fit together are refused with the config, before anything is trained."""

from __future__ import annotations

import pytest

from lvlm.config import make_config
from lvlm.errors import InputError

MIX = {"corpora": [{"path": "x", "split": "train"}]}
LORA = {"train": {"llm": "lora"}, "lora": {"r": 4}}


def config(pretrain=None, instruct=None, **model):
    stages = {"pretrain": pretrain, "instruct": instruct}
    return make_config({"model": model, **{name: {"mix": MIX, **stage} for name, stage in stages.items() if stage}})


def test_a_lora_goes_on_with_the_same_settings_or_is_merged():
    config(LORA, LORA)
    config(LORA, {**LORA, "lora": {"r": 8}, "start_lora": "merge"})
    with pytest.raises(
        InputError, match=r"instruct\.lora \(r=8.*differs from pretrain\.lora \(r=4.*llm.*start_lora=merge"
    ):
        config(LORA, {**LORA, "lora": {"r": 8}})
    config({"train": {"tower": "lora"}, "lora": {"r": 4}}, {**LORA, "lora": {"r": 8}})  # LoRA of different parts
    config(LORA, {"train": {"llm": "full"}})


@pytest.mark.parametrize("pretrain", [None, {}, {"train": {"tower": "lora"}}, {"train": {"llm": "full"}}])
def test_a_merge_needs_a_lora_of_an_earlier_stage(pretrain):
    with pytest.raises(InputError, match=r"instruct\.start_lora is merge but no stage before instruct trains a LoRA"):
        config(pretrain, {**LORA, "start_lora": "merge"})
    config(pretrain, {**LORA, "start_lora": "merge"}, checkpoint="a model that may have one")


def test_a_merge_needs_a_part_that_trains_with_lora():
    with pytest.raises(InputError, match=r"pretrain\.start_lora is merge"):
        config({**LORA, "start_lora": "merge"})
    with pytest.raises(InputError, match=r"instruct\.start_lora is merge"):
        config(LORA, {"train": {"llm": "frozen"}, "start_lora": "merge"})


@pytest.mark.parametrize("bits", [4, 8])
def test_what_a_quantised_llm_cannot_do(bits):
    quantised = {f"load_{bits}bit": True}
    config(LORA, LORA, **quantised)
    config(LORA, {"train": {"tower": "full"}}, **quantised)
    with pytest.raises(InputError, match=rf"instruct\.train\.llm is full but model\.load_{bits}bit is true"):
        config(LORA, {"train": {"llm": "full"}}, **quantised)
    with pytest.raises(InputError, match=rf"instruct\.start_lora is merge but model\.load_{bits}bit is true"):
        config(LORA, {**LORA, "start_lora": "merge"}, **quantised)
