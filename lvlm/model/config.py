"""The configuration of a model as saved in its `config.json`. Used by `lvlm.model.lvlm` and registered with
`AutoConfig`."""

from __future__ import annotations

from typing import Any, ClassVar

from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from lvlm.model.autohook import register_now
from lvlm.model.tiling import ImageTransform, view_count


class LvlmConfig(PreTrainedConfig):  # type: ignore[misc]
    """Which LLM, tower and adapter, and how an image becomes tokens."""

    model_type = "lvlm"
    sub_configs_defaults: ClassVar[dict[str, SubConfigSpec]] = {
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="qwen2")
    }

    text_config: dict[str, Any] | PreTrainedConfig | None = None
    """The LLM's own config, any causal LM of transformers."""
    tower: dict[str, Any] | None = None
    """How timm or transformers builds the tower: `architecture`, `args`; its pixels: `image_size`, `mean`, `std`,
    `interpolation`; its output: `width`, `grid`."""
    adapter: str = "multiscale-pool"
    adapter_args: dict[str, int] | None = None
    """Settings of this adapter alone, such as `pool`, where they are not its defaults."""
    tiles: int = 1
    fit: str = "squash"
    feature_layer: int = -2
    image_token_id: int | None = None
    image_tokens: int | None = None
    """LLM tokens of one image."""
    lora: list[str] | None = None
    """Parts whose LoRA is kept beside the weights: `llm`, `tower`."""
    halved: list[str] | None = None
    """Parts whose matrices are stored in bfloat16, because they were frozen under that precision."""

    def __post_init__(self, **kwargs: Any) -> None:
        register_now()
        super().__post_init__(**kwargs)
        # Sub-models decide for themselves; this flag keeps transformers from untying the LLM's embeddings.
        self.tie_word_embeddings = bool(getattr(self.text_config, "tie_word_embeddings", False))

    @property
    def views(self) -> int:
        """Views of one image."""
        return view_count(self.tiles)

    @property
    def image_transform(self) -> ImageTransform:
        """What turns an image into this model's pixels."""
        assert self.tower is not None
        return ImageTransform(
            image_size=self.tower["image_size"],
            mean=tuple(self.tower["mean"]),
            std=tuple(self.tower["std"]),
            interpolation=self.tower["interpolation"],
            tiles=self.tiles,
            fit=self.fit,
        )
