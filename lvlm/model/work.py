"""How many floating-point operations training on samples needs, as it follows from the outline of a model (see
`lvlm.model.outline`). No torch. Called by `lvlm.train.train` for the record, and by `sweeps.amounts` to plan.

Counted is what the recipe needs: tower, adapter and LLM, forward and backward, no gradient of a frozen weight, logits
where a token is supervised, and the tower once for every time that an image is trained on. Padding and what is computed
a second time (checkpointing) are no work. Features taken from the cache save time and count as work here all the same,
so that the number depends on no memory setting. Norms and activations do not count.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lvlm.data.memory import Memory, code_digest, memory_name
from lvlm.model.backbones import resolve
from lvlm.settings import ModelConfig, StageConfig

Numbers = npt.NDArray[np.float64]
FORWARD, TO_INPUTS, TO_WEIGHTS = 2, 2, 2
"""Operations for each weight and token: a multiply-add is two, and each gradient costs what the forward pass does."""
PRODUCTS, PASSES = 2, 3
"""Of attention: queries with keys and shares with values; forward, and backward twice that."""
CAUSAL = 0.5
"""Share of the token pairs of a sample of which one may see the other."""


@dataclass(frozen=True)
class Work:
    """Floating-point operations by part, one number for each sample."""

    tower: Numbers
    adapter: Numbers
    llm: Numbers

    @property
    def per_sample(self) -> Numbers:
        """Of all parts together."""
        return self.tower + self.adapter + self.llm

    @property
    def total(self) -> float:
        """Of all samples together."""
        return float(self.per_sample.sum())


@dataclass(frozen=True)
class Outline:
    """What the work of a model follows from: of its tower and adapter what torch counts for one image, of its LLM the
    sizes of its matrices."""

    image_tokens: int
    tower_forward: float
    tower_weights: float
    """The part of it that is products with weights: what their gradients cost, too."""
    tower_full: float
    """Forward and backward where all of it learns."""
    tower_lora: float
    """Tokens x (inputs + outputs), over the matrices that LoRA would have."""
    adapter_work: tuple[tuple[float, float], tuple[float, float]]
    """Forward and backward: [whether the adapter learns][whether the tower does]."""
    llm_weights: int
    llm_lora: int
    llm_attention: int
    """Layers x heads x head width."""
    head: int

    def work(
        self, stage: StageConfig, *, text: npt.ArrayLike, supervised: npt.ArrayLike, images: npt.ArrayLike,
        pairs: float = CAUSAL,
    ) -> Work:  # fmt: skip
        """Of samples with so many `text` tokens (those of images not counted), `supervised` ones and `images`, in a
        `stage`; `pairs` is the share of token pairs that attend.

        The LLM needs, for T tokens, S supervised ones and V words, (2 + 2) T for each frozen weight (forward and the
        gradient of the inputs), (2 + 2 + 2) T for each that learns, 3 x 4 T^2 x heads x head width a layer for
        attention, times `pairs`, and (2 + 2) S V x width for the head, 6 where it learns.
        """
        seen = np.asarray(images, dtype=np.float64)
        length = np.asarray(text, dtype=np.float64) + self.image_tokens * seen
        learning, passing = FORWARD + TO_INPUTS + TO_WEIGHTS, FORWARD + TO_INPUTS
        tower = {
            "frozen": self.tower_forward,
            "full": self.tower_full,
            "lora": self.tower_full - self.tower_weights + learning * stage.lora.r * self.tower_lora,
        }[stage.train.tower]
        each = self.llm_weights * (learning if stage.train.llm == "full" else passing)
        if stage.train.llm == "lora":
            each += learning * stage.lora.r * self.llm_lora
        head = self.head * (learning if stage.train.llm == "full" else passing)
        attention = PASSES * PRODUCTS * FORWARD * self.llm_attention * pairs
        adapter = self.adapter_work[stage.train.adapter == "full"][stage.train.tower != "frozen"]
        return Work(
            tower=seen * tower,
            adapter=seen * adapter,
            llm=length * each + attention * length**2 + np.asarray(supervised, dtype=np.float64) * head,
        )


def planned_outline(model_config: ModelConfig, *, seed: int, vocabulary: int, home: Path) -> Outline:
    """The outline of the model that a run of this config would train, whose tokenizer has `vocabulary` tokens."""

    def make() -> Outline:
        from lvlm.model.outline import planned  # torch, without which a plan that was made before is made again

        return planned(model_config, seed=seed, vocabulary=vocabulary)

    sources = (resolve(model_config.tower, seed=seed), resolve(model_config.llm, seed=seed), model_config.checkpoint)
    said = [_config_of(source) for source in sources if source is not None]
    return remembered(home, (model_config.model_dump_json(), said, vocabulary), make)


def remembered(home: Path, facts: object, make: Callable[[], Outline]) -> Outline:
    """The outline that follows from `facts`: made once in a work folder."""
    code = code_digest(*(f"lvlm.model.{name}" for name in ("work", "outline", "tower", "adapters")))
    name = memory_name("outline", code, version("torch"), version("transformers"), version("timm"), facts)
    memory = Memory.under(home)
    found = memory.recall(name, lambda arrays: Outline(**json.loads(str(arrays["outline"]))))
    if found is None:
        found = make()
        memory.keep(name, {"outline": np.array(json.dumps(asdict(found)))})
    return found


def _config_of(source: str) -> str:
    """What a folder says of its model; a hub name stands for itself."""
    path = Path(source) / "config.json"
    return path.read_text(encoding="utf-8") if path.is_file() else source
