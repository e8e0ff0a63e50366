"""Trained tiny models of Centurio's form, and what the tests of its checkpoints do with them and with their files."""

from __future__ import annotations

import torch
from safetensors.torch import load_file, save_file

from lvlm.model.lvlm import Lvlm
from lvlm.model.parts import prepare_training
from tests.foreign import model_config
from tests.test_model_training import batch_for, stage, train

WEIGHT_FAULTS = {
    "missing keys": lambda state, key: state.pop(key),
    "surplus keys": lambda state, key: state.update({key + ".more": state[key].clone()}),
    "other shapes": lambda state, key: state.update({key: torch.zeros(3, 2)}),
}
"""What an error calls a fault of saved weights, and how to make it."""


def trained(family="qwen2", *, tower="frozen", llm="lora", **changes):
    """A model of Centurio's form after two steps, its processor, and a batch."""
    model, processor = Lvlm.assemble(model_config(family, **changes), seed=0)
    prepare_training(model, stage(tower=tower, llm=llm), seed=0)
    train(model, processor)
    return model, processor, batch_for(model, processor)


@torch.no_grad()
def logits(model, batch):
    return model(**batch).logits


def edit(file, change):
    """Change the tensors in a safetensors file or in a snapshot's pickle, in place."""
    if file.suffix == ".safetensors":
        state = load_file(file)
        change(state)
        save_file(state, file, metadata={"format": "pt"})
    else:
        data = torch.load(file, weights_only=True)
        change(data["module"] if "module" in data else data["state_dict"])
        torch.save(data, file)


def write_own(folder, model, processor, **settings):
    """A model and its processor as this package saves them."""
    model.save_pretrained(folder, **settings)
    processor.save_pretrained(folder)
    return folder


def made(folder):
    folder.mkdir(parents=True)
    return folder
