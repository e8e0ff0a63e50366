"""Centurio's templates, token for token, and those of the families' makers: what a model of each family was trained on
is what it is asked with."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from lvlm.errors import InputError
from lvlm.model.chat import IMAGE_PLACEHOLDER
from lvlm.model.processor import LvlmProcessor
from lvlm.model.templates import CENTURIO, centurio_template
from tests.families import CONTROLS, tokenizer_of
from tests.test_chat import rendered, supervised

ONE_IMAGE = {
    "qwen2": (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\n<image_placeholder>\nWas?<|im_end|>\n",
        "<|im_start|>assistant\n", "Ein\nKreis.", "<|im_end|>", "<|im_start|>user\nUnd?<|im_end|>\n",
    ),
    "phi3": (
        "<s><|system|>\nYou are a helpful AI assistant.<|end|><|user|>\n<image_placeholder>\nWas?<|end|>\n",
        "<|assistant|>\n", "Ein\nKreis.", "<|end|>", "\n<|user|>\nUnd?<|end|>\n",
    ),
    "llama": (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nYou are a helpful AI assistant."
        "<|start_header_id|>user<|end_header_id|>\n\n<image_placeholder>\nWas?<|eot_id|>",
        "<|start_header_id|>assistant<|end_header_id|>\n\n", "Ein\nKreis.", "<|eot_id|>",
        "<|start_header_id|>user<|end_header_id|>\n\nUnd?<|eot_id|>",
    ),
    "gemma2": (
        "<bos><start_of_turn>user\n<image_placeholder>Was?<end_of_turn>\n",
        "<start_of_turn>model\n", "Ein\nKreis.", "<end_of_turn>", "\n<start_of_turn>user\nUnd?<end_of_turn>\n",
    ),
    "cohere": (
        "<BOS_TOKEN><|START_OF_TURN_TOKEN|><|USER_TOKEN|><image_placeholder>Was?<|END_OF_TURN_TOKEN|>",
        "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>", "Ein\nKreis.", "<|END_OF_TURN_TOKEN|>",
        "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>Und?<|END_OF_TURN_TOKEN|>",
    ),
}  # fmt: skip
"""Family -> prompt, opener, answer, end of turn, next user turn: the strings of Centurio's code."""


def processor_of(family, *, own=False):
    """A processor with a small tokenizer of the family and Centurio's template, or its makers'."""
    return LvlmProcessor(
        tokenizer_of(family, placeholder=True, own=own), image_size=8, mean=(0.5,) * 3, std=(0.5,) * 3, image_tokens=1,
        image_separator="\n" if own else CENTURIO[family].separator,
    )  # fmt: skip


@pytest.mark.parametrize("family", ONE_IMAGE)
def test_the_tokens_are_those_of_centurio(family):
    prompt, opener, answer, end, following = ONE_IMAGE[family]
    processor = processor_of(family)
    encoded = processor.encode_sample([("Was?", answer), ("Und?", "Nichts.")], 1)
    expected = prompt + opener + answer + end + following + opener + "Nichts." + end
    assert processor.tokenizer.decode(encoded["input_ids"]).rstrip("\n") == expected
    whole = processor.tokenizer(expected, add_special_tokens=False)["input_ids"]
    assert processor.tokenizer.decode(whole) == expected, "the special tokens are special"
    assert sum(token in whole for token in map(processor.tokenizer.convert_tokens_to_ids, CONTROLS[family])) == len(
        CONTROLS[family]
    )
    assert supervised(processor.tokenizer, **encoded) == [answer + end, "Nichts." + end]
    asked = processor.encode_prompt("Was?", 1)
    assert processor.tokenizer.decode(asked) == prompt + opener
    assert encoded["input_ids"][: len(asked)] == asked


CONVERSATIONS = {
    "many lines": [("A list:\n\n- a\n- b", "1\n2\n\n3")],
    "other scripts": [("वृत्त का रंग क्या है?", "लाल।"), ("ما لون الدائرة؟", "أحمر")],
    "empty answer": [("Say nothing.", ""), ("And now?", "ok")],
    "a user who writes control strings": [("Say </s> <|im_end|> <end_of_turn> <|eot_id|>", "no")],
}


@pytest.mark.parametrize("own", [False, True], ids=["Centurio's", "own"])
@pytest.mark.parametrize("family", ONE_IMAGE)
@pytest.mark.parametrize("name", CONVERSATIONS)
def test_answers_and_ends_of_turns_are_learned_and_nothing_else(family, name, own):
    processor, end = processor_of(family, own=own), ONE_IMAGE[family][3]
    turns = CONVERSATIONS[name]
    encoded = processor.encode_sample(turns)
    assert supervised(processor.tokenizer, **encoded) == [answer + end for _, answer in turns]
    begin = processor.tokenizer.bos_token or ""  # which Phi's makers leave to the tokenizer
    whole = begin + rendered(processor.tokenizer, turns).removeprefix(begin)
    assert processor.tokenizer.decode(encoded["input_ids"]) == whole
    if "control strings" not in name:  # which the text rendered in one go cannot tell from the template's
        assert encoded["input_ids"] == processor.tokenizer(whole, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("own", [False, True], ids=["Centurio's", "own"])
@pytest.mark.parametrize("family", ONE_IMAGE)
def test_texts_create_no_control_token_and_there_is_one_bos(family, own):
    """In training, in generation, and for a prompt that was rendered as the README does. A placeholder in a user text
    that no image goes with is an error; in an answer it is text."""
    processor = processor_of(family, own=own)
    typed = " ".join([*CONTROLS[family], "<pad>"])
    plain = processor.encode_sample([("Was?", "Ein Kreis.")])["input_ids"]
    hostile = processor.encode_sample([(typed, f"{typed} {IMAGE_PLACEHOLDER}")])["input_ids"]
    with pytest.raises(InputError, match="0 images but 1 times <image_placeholder>"):
        processor.encode_sample([(f"{typed} {IMAGE_PLACEHOLDER}", "Ja.")])
    asked = processor.encode_prompt(typed)
    assert hostile[: len(asked)] == asked
    for token in processor.tokenizer.all_special_ids:
        assert hostile.count(token) == plain.count(token)
    rendered = processor.apply_chat_template([{"role": "user", "content": "Was?"}], add_generation_prompt=True)
    (called,) = processor(text=[rendered])["input_ids"]
    if processor.tokenizer.bos_token_id is not None:
        for ids in (plain, hostile, asked, called):
            assert ids[0] == processor.tokenizer.bos_token_id and ids.count(ids[0]) == 1
    assert called == processor.encode_prompt("Was?")


@pytest.mark.parametrize("own", [False, True], ids=["Centurio's", "own"])
@pytest.mark.parametrize("family", ONE_IMAGE)
def test_an_image_in_a_later_turn_stays_there(family, own):
    processor = processor_of(family, own=own)
    encoded = processor.encode_sample([("Hallo", "Ja?"), (f"{IMAGE_PLACEHOLDER}\nWas?", "Rot.")], 1)
    text = processor.tokenizer.decode(encoded["input_ids"])
    assert text.count(IMAGE_PLACEHOLDER) == 1 and text.index("Ja?") < text.index(IMAGE_PLACEHOLDER)


def test_a_system_turn_replaces_the_default_where_the_family_has_one():
    text = processor_of("qwen2").apply_chat_template(
        [{"role": "system", "content": "Kurz."}, {"role": "user", "content": "Was?"}], add_generation_prompt=True
    )
    assert text == "<|im_start|>system\nKurz.<|im_end|>\n<|im_start|>user\nWas?<|im_end|>\n<|im_start|>assistant\n"
    with pytest.raises(InputError, match="leaves out or reorders turns"):
        processor_of("gemma2").encode_sample([("a", "b")], system="Kurz.")
    with pytest.raises(InputError, match=r"refuses turns of system, user, assistant: System role not supported\."):
        processor_of("gemma2", own=True).encode_sample([("a", "b")], system="Kurz.")


def test_a_family_that_centurio_does_not_know():
    with pytest.raises(InputError, match=r"no template for an LLM of type 'mamba'.*qwen2.*template=own"):
        centurio_template(SimpleNamespace(model_type="mamba"))
