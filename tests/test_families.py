"""The five LLM families of the papers keep every promise of the model: vocabulary, attention, padding, precision."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from lvlm.errors import InputError
from lvlm.model.assembly import assemble
from lvlm.model.chat import IMAGE_PLACEHOLDER
from lvlm.model.checkpoints import load
from lvlm.model.parts import prepare_training, set_train_mode
from tests.checkpoint_models import write_own
from tests.families import CONTROLS, SPARE_ROWS, TIED, attention_of, make_family, tokenizer_of
from tests.test_model_training import stage
from tests.tiny import tiny_image, tiny_world


@pytest.fixture(scope="module", params=CONTROLS)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def folder(family, tmp_path_factory):
    return make_family(tmp_path_factory.mktemp(family), family)


def assembled(folder, family, *, precision="fp32", **changes):
    settings = {"llm": str(folder), "template": "centurio", "attn": attention_of(family), **changes}
    return assemble(tiny_world().model_config(**settings), seed=0, precision=precision)


def samples_of(processor):
    """Encoded samples of different lengths, with one image, two and none."""
    return [
        processor.encode_sample([("Was ist das?", "Ein roter Kreis.")], 1),
        processor.encode_sample([(f"{IMAGE_PLACEHOLDER}{IMAGE_PLACEHOLDER} Was?", "Ein Kreis ist das.")], 2),
        processor.encode_sample([("Was ist das?", "Ja."), ("Und?", "Nein.")]),
    ]


def batch_of(processor, samples=None, *, images=3):
    views = processor(
        text=[IMAGE_PLACEHOLDER] * images, images=[tiny_image(n) for n in range(images)], return_tensors="pt"
    )
    return {**processor.collate(samples or samples_of(processor)), "pixel_values": views["pixel_values"]}


def is_tied(model):
    return model.get_input_embeddings().weight is model.get_output_embeddings().weight


def test_the_vocabulary_grows_where_no_row_is_spare_and_ties_stay(family, folder, tmp_path):
    before = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    rows = before.get_input_embeddings().num_embeddings
    assert is_tied(before) == (family in TIED)
    model, processor = assembled(folder, family)
    words = len(tokenizer_of(family)) + 1
    assert len(processor.tokenizer) == words and rows == words - 1 + SPARE_ROWS[family]
    assert model.get_input_embeddings().num_embeddings == max(rows, words)
    assert (max(rows, words) > rows) == (family in ("llama", "gemma2"))
    for own, old in (
        (model.get_input_embeddings(), before.get_input_embeddings()),
        (model.get_output_embeddings(), before.get_output_embeddings()),
    ):
        assert len(own.weight) == model.config.text_config.vocab_size
        assert torch.equal(own.weight[:rows], old.weight)
        torch.testing.assert_close(own.weight[rows:], old.weight.mean(0).expand(len(own.weight) - rows, -1))
    assert is_tied(model) == (family in TIED)
    prepare_training(model, stage(llm="lora"), seed=0)
    train_on(model, processor)
    write_own(tmp_path / "kept", model, processor)
    write_own(tmp_path / "merged", model, processor, merge_lora=True)
    batch = batch_of(processor)
    with torch.no_grad():
        expected = model(**batch).logits
    for name in ("kept", "merged"):
        again, _ = load(tmp_path / name)
        assert is_tied(again) == (family in TIED), name
        with torch.no_grad():
            torch.testing.assert_close(again(**batch).logits, expected, rtol=1e-4, atol=1e-5)


def train_on(model, processor, *, steps=2):
    batch = batch_of(processor)
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()


def test_eager_and_sdpa_attention_agree(family, folder, tmp_path):
    eager, processor = assembled(folder, family, attn="eager")
    batch = batch_of(processor)
    with torch.no_grad():
        expected = eager(**batch).logits
    if family == "gemma2":
        with pytest.raises(InputError, match=r"no sdpa attention for an LLM of type 'gemma2'.*model\.attn=eager"):
            assembled(folder, family, attn="sdpa")
    else:
        sdpa, _ = assembled(folder, family, attn="sdpa")
        assert sdpa.language_model.config._attn_implementation == "sdpa"
        with torch.no_grad():
            torch.testing.assert_close(sdpa(**batch).logits, expected, rtol=1e-5, atol=1e-5)
    write_own(tmp_path, eager, processor)
    plain, _ = load(tmp_path)
    assert plain.language_model.config._attn_implementation == attention_of(family), "the best that the family has"
    with torch.no_grad():
        torch.testing.assert_close(plain(**batch).logits, expected, rtol=1e-5, atol=1e-5)
    if family == "gemma2":
        with pytest.raises(InputError, match=r"no sdpa attention"):
            load(tmp_path, attn="sdpa")
        with pytest.raises(InputError, match=r"no sdpa attention"):
            AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="sdpa")


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_batch_gives_the_logits_of_each_sample_alone(family, folder, side):
    """With capped attention scores and logits where the family has them."""
    model, processor = assembled(folder, family)
    samples = samples_of(processor)
    whole = {**processor.collate(samples, padding_side=side), "pixel_values": batch_of(processor)["pixel_values"]}
    with torch.no_grad():
        together = model(**whole).logits
        hidden = model.hidden_states({name: value for name, value in whole.items() if name != "labels"})
        torch.testing.assert_close(model.logits(hidden), together)
        for row, (sample, first, images) in enumerate(zip(samples, (0, 1, 3), (1, 2, 0), strict=True)):
            alone = processor.collate([sample])
            if images:
                alone["pixel_values"] = whole["pixel_values"][first : first + images]
            found = together[row][whole["attention_mask"][row].bool()]
            torch.testing.assert_close(found, model(**alone).logits[0], rtol=1e-4, atol=1e-5)


def step_of(model, processor, train, *, autocast=False):
    """(logits in evaluation, gradients of one step in training) of a model that is prepared."""
    batch = batch_of(processor)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        with torch.no_grad():
            logits = model.eval()(**batch).logits
        set_train_mode(model, train)
        torch.manual_seed(3)
        labels = batch.pop("labels")
        read = (labels[:, 1:] != -100).nonzero()
        positions = read[:, 0] * labels.shape[1] + read[:, 1]
        rows = model.hidden_states(batch, read_at=positions).flatten(0, 1)[positions]
        loss = torch.nn.functional.cross_entropy(model.logits(rows).float(), labels[:, 1:][tuple(read.T)])
        loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}
    return logits, gradients, torch.rand(1)


MODES = {"lora": {"tower": "lora", "llm": "lora", "dropout": 0.3}, "frozen": {}, "full": {"llm": "full"}}


@pytest.mark.parametrize("mode", MODES)
def test_checkpointing_changes_no_bit_of_a_gradient(family, folder, mode):
    """Masks of dropout included, and with blocks that are really computed again, in a frozen LLM too."""
    outcomes, calls = [], []
    for checkpointing in (False, True):
        model, processor = assembled(folder, family)
        settings = stage(**MODES[mode])
        prepare_training(model, settings, seed=0, checkpointing=checkpointing)
        counted = []
        for module in (model.language_model.model.layers[0].mlp, model.vision_tower.model.blocks[0].mlp):
            module.register_forward_pre_hook(lambda *_, counted=counted: counted.append(torch.is_grad_enabled()))
        outcomes.append(step_of(model, processor, settings.train))
        calls.append(len(counted))
    (_, expected, random), (_, found, random_after) = outcomes
    assert calls[1] - calls[0] == (2 if mode == "lora" else 1), "blocks that gradients pass through run once more"
    assert torch.equal(random, random_after), "the random state goes on as without"
    assert expected.keys() == found.keys()
    for name, gradient in expected.items():
        assert torch.equal(gradient, found[name]), name


@pytest.mark.parametrize("mode", MODES)
def test_frozen_matrices_in_bf16_change_no_bit_under_autocast(family, folder, mode):
    outcomes = []
    for precision in ("fp32", "bf16"):
        model, processor = assembled(folder, family, precision=precision)
        settings = stage(**MODES[mode])
        prepare_training(model, settings, seed=0, precision=precision)
        outcomes.append(step_of(model, processor, settings.train, autocast=True))
        kinds = {parameter.dtype for parameter in model.parameters()}
        assert kinds == ({torch.float32} if precision == "fp32" else {torch.float32, torch.bfloat16})
        assert all(p.dtype == torch.float32 for p in model.parameters() if p.requires_grad)
    (logits, expected, _), (logits_held, found, _) = outcomes
    assert torch.equal(logits, logits_held)
    for name, gradient in expected.items():
        assert torch.equal(gradient, found[name]), name
