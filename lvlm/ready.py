"""A checkpoint ready to answer, where and how its run computed. Called by the commands that use one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lvlm.config import RunConfig, load_config
from lvlm.errors import InputError
from lvlm.records import CONFIG_FILE
from lvlm.settings import ModelConfig

if TYPE_CHECKING:
    from lvlm.model.lvlm import Lvlm
    from lvlm.model.processor import LvlmProcessor
    from lvlm.train.compute import Compute
    from lvlm.train.features import ImageFeatures


def recorded_config(checkpoint: Path) -> RunConfig | None:
    """The config of a run's folder; a bare model folder has none. A checkpoint that is not there is an error."""
    if not checkpoint.exists():
        raise InputError(f"There is no checkpoint {checkpoint}. Give a model folder, or the folder of a finished run.")
    return load_config(checkpoint / CONFIG_FILE) if (checkpoint / CONFIG_FILE).exists() else None


def model_source(checkpoint: Path, recorded: RunConfig | None) -> tuple[Path, ModelConfig | None]:
    """The path to load, and the model config that belongs to it: that of a run which trained nothing and evaluated its
    `model.checkpoint`."""
    from lvlm.model.layouts import model_folder

    if recorded and recorded.model.checkpoint and not recorded.stages():
        return Path(recorded.model.checkpoint), recorded.model
    return model_folder(checkpoint), None


@dataclass(frozen=True)
class Ready:
    """A loaded model with what it needs, and how it computes."""

    model: Lvlm
    processor: LvlmProcessor
    features: ImageFeatures
    compute: Compute

    def identity(self, path: Path, model: ModelConfig | None, seed: int) -> dict[str, Any]:
        """What its answers depend on beside the prompts: the content of its files, and how it computes."""
        from lvlm.model.backbones import backbone_digests
        from lvlm.model.layouts import locate

        digests = backbone_digests(model, seed=seed) if model else {"checkpoint": locate(path).digest()}
        settings = model.model_dump(mode="json") if model else None
        attn = self.model.language_model.config._attn_implementation
        return {"digests": digests, "model": settings, "attn": attn, **self.compute.identity()}


@contextmanager
def ready(
    source: tuple[Path, ModelConfig | None], recorded: RunConfig | None, *, device: str | None
) -> Iterator[Ready]:
    """The model of `model_source` inside its autocast; without a run the compute settings are the defaults."""
    from lvlm.model.checkpoints import load
    from lvlm.startup import quiet_transformers
    from lvlm.train.compute import compute
    from lvlm.train.features import TowerFeatures

    config = recorded or RunConfig()
    settings = config.compute.model_copy(update={"device": device} if device else {})
    with compute(settings) as machinery, quiet_transformers():
        path, model_config = source
        model, processor = load(
            path,
            attn=recorded.model.attn if recorded else None,
            model=model_config,
            seed=config.seed,
            bits=config.model.bits,
            precision=machinery.precision,
        )
        model.to(machinery.device)
        features = TowerFeatures(
            model, device=machinery.device, precision=machinery.precision, workers=settings.loader_workers
        )
        with machinery.autocast():
            yield Ready(model, processor, features, machinery)
