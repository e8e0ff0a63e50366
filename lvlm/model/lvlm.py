"""The model: vision tower -> adapter -> tokens of a causal LM. Used by `lvlm.train`, `lvlm.evaluate` and through
transformers' Auto classes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from lvlm.errors import InputError
from lvlm.model.adapters import Projector, build_adapter
from lvlm.model.apart import samples_attend_apart
from lvlm.model.attention import check_family, suited
from lvlm.model.config import LvlmConfig
from lvlm.model.economy import last_block_only_at
from lvlm.model.register import register_model
from lvlm.model.tower import VisionTower, build_tower
from lvlm.model.weights import halve, keep_scales
from lvlm.settings import ModelConfig

IMAGE_INPUTS = ("pixel_values", "image_features", "image_counts")
MORE_OUTPUTS = ("output_hidden_states", "output_attentions", "output_router_logits")
"""What a call or the LLM's config may ask for that needs the last block at every token."""


class Lvlm(PreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """A causal LM of transformers that reads images through a timm tower and an adapter."""

    config_class = LvlmConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    _skip_keys_device_placement: ClassVar[list[str]] = ["past_key_values"]

    def __init__(
        self, config: LvlmConfig, *, vision_tower: VisionTower | None = None, language_model: Any = None
    ) -> None:
        check_family(config._attn_implementation, config.text_config)  # None before it is resolved, but where asked for
        super().__init__(config)
        assert config.tower is not None
        self.vision_tower = vision_tower or build_tower(config.tower, feature_layer=config.feature_layer)
        text_config: Any = config.text_config
        self.language_model = language_model or AutoModelForCausalLM.from_config(
            text_config, attn_implementation=suited(config._attn_implementation, text_config)
        )
        with torch.device("cpu"):  # what it computes at start needs real storage even when the rest is built on `meta`
            adapter = build_adapter(
                config.adapter,
                config.tower,
                llm_width=text_config.hidden_size,
                tiles=config.tiles,
                args=config.adapter_args,
            )
        if vision_tower is None:
            self.vision_tower.attend(config._attn_implementation)
        if config.image_tokens not in (None, adapter.tokens):
            raise InputError(
                f"The model's config says {config.image_tokens} tokens for an image, but its adapter "
                f"'{config.adapter}' makes {adapter.tokens} of a grid of {config.tower['grid']}."
            )
        config.image_tokens = adapter.tokens
        self.multi_modal_projector = Projector(adapter)
        for name, built in (("tower", self.vision_tower), ("llm", self.language_model)):
            if name in (config.halved or []):
                halve(built)
        for part in (vision_tower, language_model):  # weights that came from elsewhere are not drawn again
            for module in part.modules() if part is not None else ():
                module._is_hf_initialized = True
        self.post_init()

    @property
    def dtype(self) -> torch.dtype:
        """The widest of its parameters: matrices of a part may be held in half of it, and a file says this one."""
        types = {parameter.dtype for parameter in self.parameters() if parameter.is_floating_point()}
        widest: torch.dtype = max(types, key=lambda dtype: dtype.itemsize)
        return widest

    @classmethod
    def assemble(cls, model_config: ModelConfig, *, seed: int, precision: str = "fp32") -> tuple[Lvlm, Any]:
        """(model, processor) from the backbones that `model_config` names, with an adapter drawn from `seed`.

        In float32; with `precision` `bf16` the matrices of an LLM that its files have in 16 bits are in bfloat16, to be
        used under autocast.
        """
        from lvlm.model.assembly import assemble

        return assemble(model_config, seed=seed, precision=precision)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """As in transformers, but strict: a missing, surplus or misshapen tensor is an error, and LoRA that was kept
        comes back."""
        from lvlm.model.checkpoints import load_model

        return load_model(cls, super().from_pretrained, pretrained_model_name_or_path, *args, **kwargs)

    def save_pretrained(self, save_directory: Any, **kwargs: Any) -> None:
        """Write `config.json`, `model.safetensors` with plain keys, and the LoRA of each part as a peft adapter under
        `lora/`."""
        from lvlm.model.checkpoints import save_model

        save_model(self, super().save_pretrained, save_directory, **kwargs)

    def named_non_persistent_buffers(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, Tensor]]:
        """Those that transformers makes anew when it loads a model, and that an LLM then fills by itself: not those of
        tower and adapter, which are built as they are."""
        found = super().named_non_persistent_buffers(*args, **kwargs)
        return ((name, buffer) for name, buffer in found if name.startswith("language_model."))

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        moved = super()._apply(fn, recurse=recurse)
        keep_scales(self.language_model)
        return moved

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()  # type: ignore[no-any-return]

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> Any:
        return self.language_model.get_output_embeddings()  # type: ignore[no-any-return]

    def image_features(self, pixel_values: Tensor) -> Tensor:
        """Pixels of all views (images * views, 3, size, size) -> tower output (images, views, tokens, width).

        Without gradient where the tower is frozen.
        """
        views = self.config.views
        if len(pixel_values) % views:
            raise InputError(
                f"pixel_values hold {len(pixel_values)} views, which is no multiple of the {views} views of one image."
            )
        learns = torch.is_grad_enabled() and any(part.requires_grad for part in self.vision_tower.parameters())
        with torch.set_grad_enabled(learns):
            features: Tensor = self.vision_tower(pixel_values.to(next(self.vision_tower.parameters()).dtype))
        return features.reshape(-1, views, *features.shape[1:])

    def embed(
        self,
        input_ids: Tensor,
        *,
        pixel_values: Tensor | None = None,
        image_features: Tensor | None = None,
        image_counts: Tensor | None = None,
    ) -> Tensor:
        """Input embeddings (batch, tokens, hidden) with the image tokens replaced by what the adapter makes of the
        images, in order."""
        embeddings: Tensor = self.get_input_embeddings()(input_ids)
        if pixel_values is not None and image_features is not None:
            raise InputError("Give pixel_values or image_features, not both.")
        if pixel_values is not None and len(pixel_values):
            image_features = self.image_features(pixel_values)
        mask = input_ids == self.config.image_token_id
        images = 0 if image_features is None else len(image_features)
        self._check_images(mask, images=images, image_counts=image_counts)
        if image_features is None or not images:
            return embeddings
        projected = self.multi_modal_projector(image_features)
        return embeddings.masked_scatter(mask.unsqueeze(-1), projected.to(embeddings.dtype))

    def _check_images(self, mask: Tensor, *, images: int, image_counts: Tensor | None) -> None:
        """Each sample must have as many image tokens as its images need; a sum over the batch would let two faults
        cancel out."""
        per_image = self.config.image_tokens
        tokens = mask.sum(dim=1).tolist()
        wanted = [count // per_image for count in tokens] if image_counts is None else image_counts.tolist()
        for row, (count, wants) in enumerate(zip(tokens, wanted, strict=True)):
            if count != wants * per_image:
                raise InputError(
                    f"Sample {row} of the batch has {count} image tokens; "
                    f"{wants} images of {per_image} tokens need {wants * per_image}."
                )
        if sum(wanted) != images:
            raise InputError(
                f"The batch has tokens for {sum(wanted)} images ({wanted} by sample) but {images} images were given."
            )

    def hidden_states(self, batch: Mapping[str, Any], *, read_at: Tensor | None = None) -> Tensor:
        """(batch, tokens, hidden) before the head, from the inputs of `forward`; no logits are computed.

        With `read_at`, flat positions into (batch * tokens), rising, the rows elsewhere are not to be used.
        """
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        images = {name: inputs.pop(name, None) for name in IMAGE_INPUTS}
        embeddings = self.embed(inputs.pop("input_ids"), **images)
        plain = len(embeddings) == 1 and all(inputs[name] is None for name in inputs.keys() - {"position_ids"})
        end_to_end = inputs.get("position_ids") if plain else None  # under a mask they say nothing about samples
        if inputs.get("position_ids") is None:
            inputs["position_ids"] = _positions(inputs.get("attention_mask"), embeddings)
        llm = self.language_model
        with samples_attend_apart(llm, end_to_end), last_block_only_at(llm, read_at):
            outputs = self.language_model.base_model(inputs_embeds=embeddings, use_cache=False, **inputs)
        hidden: Tensor = outputs[0]
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """The head, with the scaling and capping of the LLM families that have them: (..., hidden) -> (...,
        vocabulary)."""
        values: Tensor = self.get_output_embeddings()(hidden)
        config: Any = self.config.text_config
        if (scale := getattr(config, "logit_scale", None)) is not None:  # Cohere
            values = values * scale
        if (scaling := getattr(config, "logits_scaling", None)) is not None:  # Granite
            values = values / scaling
        if (cap := getattr(config, "final_logit_softcapping", None)) is not None:  # Gemma 2
            values = torch.tanh(values / cap) * cap
        return values

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_features: Tensor | None = None,
        image_counts: Tensor | None = None,
        labels: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits, and the mean loss over `labels` != -100 where labels are given.

        `input_ids`, `attention_mask`, `labels` (batch, tokens); `pixel_values` (views of all images, 3, size, size)
        or `image_features` (images, views, tokens, width); `image_counts` (batch) the images of each sample,
        checked sample by sample. `logits_to_keep` is how many tokens at the end have logits, all where it is 0, or the
        places of those that have; the last block is spared elsewhere.
        """
        if inputs_embeds is None:
            if input_ids is None:
                raise InputError("The model needs input_ids or inputs_embeds.")
            images = {"pixel_values": pixel_values, "image_features": image_features, "image_counts": image_counts}
            # Past the prompt the images are in the cache already, and one token a step is worth no check.
            cached = past_key_values is not None and past_key_values.get_seq_length() > 0
            plain = cached and pixel_values is None and image_features is None
            inputs_embeds = self.get_input_embeddings()(input_ids) if plain else self.embed(input_ids, **images)
        if position_ids is None:
            position_ids = _positions(attention_mask, inputs_embeds)
        llm_config = self.language_model.config
        whole = labels is not None or any(kwargs.get(name, getattr(llm_config, name, False)) for name in MORE_OUTPUTS)
        with last_block_only_at(self.language_model, None if whole else _read_at(logits_to_keep, inputs_embeds)):
            outputs: CausalLMOutputWithPast = self.language_model(
                inputs_embeds=inputs_embeds,
                attention_mask=attention_mask,
                position_ids=position_ids,
                past_key_values=past_key_values,
                labels=labels,
                use_cache=use_cache,
                logits_to_keep=logits_to_keep,
                **kwargs,
            )
        return outputs

    def prepare_inputs_for_generation(
        self, *args: Any, is_first_iteration: bool = False, **kwargs: Any
    ) -> dict[str, Any]:
        inputs: dict[str, Any] = super().prepare_inputs_for_generation(
            *args, is_first_iteration=is_first_iteration, **kwargs
        )
        if not is_first_iteration and kwargs.get("use_cache", True):
            for name in IMAGE_INPUTS:
                inputs.pop(name, None)
        return inputs

    def _expand_inputs_for_generation(
        self,
        expand_size: int = 1,
        is_encoder_decoder: bool = False,
        input_ids: Tensor | None = None,
        **model_kwargs: Any,
    ) -> tuple[Tensor, dict[str, Any]]:
        """For beams: repeat each sample with all of its images, which are not one row each."""
        pixel_values, features = (model_kwargs.pop(name, None) for name in ("pixel_values", "image_features"))
        counts = model_kwargs.get("image_counts")
        if expand_size > 1 and input_ids is not None and (pixel_values is not None or features is not None):
            if counts is None:
                counts = (input_ids == self.config.image_token_id).sum(dim=1) // self.config.image_tokens
            rows = torch.split(torch.arange(int(counts.sum()), device=counts.device), counts.tolist())  # type: ignore[no-untyped-call]
            order = torch.cat([row for row in rows for _ in range(expand_size)])
            if pixel_values is not None:
                shape = pixel_values.shape[1:]
                pixel_values = pixel_values.reshape(-1, self.config.views, *shape)[order].reshape(-1, *shape)
            if features is not None:
                features = features[order]
        input_ids, model_kwargs = super()._expand_inputs_for_generation(
            expand_size, is_encoder_decoder, input_ids, **model_kwargs
        )
        return input_ids, model_kwargs | {"pixel_values": pixel_values, "image_features": features}


def _read_at(logits_to_keep: int | Tensor, embeddings: Tensor) -> Tensor | None:
    """Flat positions into (batch * tokens), rising, of the tokens that have logits; None where all have."""
    batch, tokens, _ = embeddings.shape
    places = torch.arange(tokens, device=embeddings.device)
    # A place that is read twice works once: the gradients of both readings add up there.
    kept = places[-logits_to_keep:] if isinstance(logits_to_keep, int) else torch.unique(places[logits_to_keep])
    if len(kept) == tokens:
        return None
    return (tokens * torch.arange(batch, device=embeddings.device)[:, None] + kept).flatten()


def _positions(attention_mask: Tensor | None, embeddings: Tensor) -> Tensor | None:
    """Position ids that ignore padding on either side: (batch, tokens); None lets the LLM count by itself."""
    if attention_mask is None or attention_mask.dim() != 2:
        return None
    positions = attention_mask.long().cumsum(dim=-1).sub(1).clamp(min=0)
    return positions[:, -embeddings.shape[1] :]


register_model()
