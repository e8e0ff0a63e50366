"""The plain loops: stock `LlavaForConditionalGeneration`, peft LoRA, padded batches, under `transformers.Trainer` or
trl's `SFTTrainer`. Used by `throughput.py` and `gpu.py`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch.utils.data import Dataset
from transformers import LlavaConfig, LlavaForConditionalGeneration, PrinterCallback, Trainer, TrainingArguments

from loops.measure import Cost
from loops.ours import Measured
from loops.tower import stock_tower
from lvlm.model.tiling import ImageTransform, open_image, pixels
from lvlm.settings import StageConfig
from lvlm.train.batches import IGNORED, EncodedSample

LLM_LAYERS = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"


class Samples(Dataset[dict[str, Tensor]]):
    """The same token ids and labels as our trainer's; the image is opened and transformed when its sample is asked
    for."""

    def __init__(self, samples: Sequence[EncodedSample], transform: ImageTransform) -> None:
        self.samples = samples
        self.transform = transform

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        sample = self.samples[index]
        labels = torch.full_like(sample.text.ids, IGNORED)
        labels[sample.text.predicted_from + 1] = sample.text.targets
        (image,) = sample.images
        return {
            "input_ids": sample.text.ids,
            "labels": labels,
            "pixel_values": pixels(open_image(image), self.transform)[0],
        }


class Padded:
    """Samples to one batch, padded on the right to the longest."""

    def __init__(self, pad_id: int) -> None:
        self.pad_id = pad_id

    def __call__(self, members: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        def padded(name: str, fill: int) -> Tensor:
            rows = [member[name] for member in members]
            return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=fill)

        return {
            "input_ids": padded("input_ids", self.pad_id),
            "labels": padded("labels", IGNORED),
            "attention_mask": torch.nn.utils.rnn.pad_sequence(
                [torch.ones_like(member["input_ids"]) for member in members], batch_first=True
            ),
            "pixel_values": torch.stack([member["pixel_values"] for member in members]),
        }


def build(ours: Any, stage: StageConfig) -> Any:
    """The stock model with the weights of `ours`, a prepared model of our trainer: LLM, projector and LoRA alike."""
    tower = stock_tower()
    llm = ours.language_model
    config = LlavaConfig(
        vision_config=tower.config,
        text_config=llm.config,
        image_token_id=ours.config.image_token_id,
        projector_hidden_act="gelu",
        vision_feature_layer=ours.config.feature_layer,
        vision_feature_select_strategy="default",
        tie_word_embeddings=llm.config.tie_word_embeddings,
    )
    model = LlavaForConditionalGeneration(config).float()
    model.model.vision_tower.load_state_dict(tower.state_dict())
    plain = {key.replace(".base_layer.", "."): value for key, value in llm.state_dict().items() if ".lora_" not in key}
    inner = {key.removeprefix("model."): value for key, value in plain.items() if key.startswith("model.")}
    model.model.language_model.load_state_dict(inner)
    model.lm_head.load_state_dict({"weight": plain["lm_head.weight"]})
    model.model.multi_modal_projector.load_state_dict(ours.multi_modal_projector.adapter.state_dict())
    return with_lora(model, lora_of(ours), stage)


def lora_of(ours: Any) -> dict[str, Tensor]:
    """The LoRA of a prepared model of our trainer, by its names in the LLM."""
    return {key: value for key, value in ours.language_model.state_dict().items() if ".lora_" in key}


def with_lora(model: Any, drawn: Mapping[str, Tensor], stage: StageConfig) -> Any:
    """The stock model with LoRA on its LLM that begins as `drawn`, and a projector that learns."""
    lora = LoraConfig(
        r=stage.lora.r,
        lora_alpha=stage.lora.alpha,
        lora_dropout=stage.lora.dropout,
        target_modules=LLM_LAYERS,
        modules_to_save=["multi_modal_projector"],
    )
    wrapped = get_peft_model(model, lora)
    if stage.train.tower == "full":
        tower = getattr(model.model.vision_tower, "vision_model", model.model.vision_tower)
        # As ours, which ends with the block that gives the features: the last one and the norm behind it learn nothing.
        for part in (tower.embeddings, tower.pre_layrnorm, *tower.encoder.layers[:-1]):
            part.requires_grad_(True)
    place = "base_model.model.model.language_model."
    found = wrapped.load_state_dict({place + key.removeprefix("model."): drawn[key] for key in drawn}, strict=False)
    assert not found.unexpected_keys and sum(".lora_" in key for key in wrapped.state_dict()) == len(drawn)
    return wrapped


def has_trl() -> bool:
    """Whether trl is installed; the project does not need it."""
    return find_spec("trl") is not None


def train(
    model: Any,
    tokenizer: Any,
    samples: Sequence[EncodedSample],
    *,
    loop: str,
    at_once: int,
    stage: StageConfig,
    transform: ImageTransform,
    pad_id: int,
    folder: Path,
    **changes: Any,
) -> Measured:
    """Train a model of `build` on `samples` in their order under `loop` (`Trainer` or `SFTTrainer`), `at_once` in a
    forward pass; the cost is that of its `train()`. `changes` are arguments of the loop."""
    logging.getLogger("transformers.trainer").setLevel(logging.ERROR)
    settings: dict[str, Any] = dict(
        output_dir=str(folder),
        per_device_train_batch_size=at_once,
        gradient_accumulation_steps=stage.batch_samples // at_once,
        num_train_epochs=1,
        learning_rate=stage.optim.lr,
        lr_scheduler_type="constant",
        adam_beta1=stage.optim.betas[0],
        adam_beta2=stage.optim.betas[1],
        weight_decay=stage.optim.weight_decay,
        max_grad_norm=stage.optim.clip or 0.0,
        train_sampling_strategy="sequential",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
        remove_unused_columns=False,
    )
    settings |= changes
    data, padded = Samples(samples, transform), Padded(pad_id)
    if loop == "SFTTrainer":
        import datasets
        import trl

        arguments = trl.SFTConfig(
            **settings, dataset_kwargs={"skip_prepare_dataset": True}, max_length=None, gradient_checkpointing=False,
            bf16=False,
        )  # fmt: skip
        trainer: Any = trl.SFTTrainer(
            model=model,
            args=arguments,
            processing_class=tokenizer,
            train_dataset=datasets.Dataset.from_dict({"number": list(range(len(data)))}),
            data_collator=lambda rows: padded([data[row["number"]] for row in rows]),
        )
    else:
        arguments = TrainingArguments(**settings)
        trainer = Trainer(model=model, args=arguments, train_dataset=data, data_collator=padded)
    trainer.remove_callback(PrinterCallback)
    wall, cpu = time.perf_counter(), time.process_time()
    trainer.train()
    cost = Cost(time.perf_counter() - wall, time.process_time() - cpu)
    return Measured(
        training=cost,
        losses=[row["loss"] for row in trainer.state.log_history if "loss" in row],
        trainable_parameters=sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
    )
