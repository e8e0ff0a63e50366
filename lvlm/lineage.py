"""What a stage finds of the stages before it: a LoRA to go on with or to merge. Called by `lvlm.config`, so that a
fault shows before anything is trained."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lvlm.config import RunConfig
    from lvlm.settings import Settings

PARTS = ("tower", "llm")
"""Parts of the model that LoRA is for."""


def check_lineage(config: RunConfig) -> None:
    """Raise `ValueError` where stages do not fit together or to a quantised LLM.

    What a saved model to start from (`model.checkpoint`) brings along is not known here; `prepare_training` sees it.
    """
    bits, may_bring = config.model.bits, config.model.checkpoint is not None
    earlier: dict[str, tuple[str, Settings]] = {}
    for name, stage in config.stages().items():
        with_lora = [part for part in PARTS if getattr(stage.train, part) == "lora"]
        if bits and stage.train.llm == "full":
            raise ValueError(
                f"{name}.train.llm is full but model.load_{bits}bit is true, and quantised weights cannot learn; set "
                f"{name}.train.llm=lora, or leave load_{bits}bit out"
            )
        if stage.start_lora == "merge":
            if not may_bring and not set(with_lora) & set(earlier):
                raise ValueError(
                    f"{name}.start_lora is merge but no stage before {name} trains a LoRA that {name} has too; leave "
                    "it out, or train the same part with lora in both"
                )
            if bits and "llm" in with_lora and (may_bring or "llm" in earlier):
                raise ValueError(
                    f"{name}.start_lora is merge but model.load_{bits}bit is true: rounding would lose most of what "
                    f"the LoRA learned; set {name}.start_lora=continue, or leave load_{bits}bit out"
                )
        for part in with_lora if stage.start_lora == "continue" else ():
            before, settings = earlier.get(part, (name, stage.lora))
            if settings != stage.lora:
                raise ValueError(
                    f"{name}.lora ({_shown(stage.lora)}) differs from {before}.lora ({_shown(settings)}), whose LoRA "
                    f"of the {part} learns on in {name}; use the same settings in both, or {name}.start_lora=merge"
                )
        for part in PARTS:
            if part in with_lora:
                earlier[part] = (name, stage.lora)
            elif getattr(stage.train, part) == "full":  # merged into the weights
                earlier.pop(part, None)


def _shown(settings: Settings) -> str:
    return ", ".join(f"{key}={value:g}" for key, value in settings.model_dump().items())
