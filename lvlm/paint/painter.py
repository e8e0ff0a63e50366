"""A denoiser with all that turns captions into pictures: the states that it reads, its noise, its VAE. Saved and loaded
here. Used by `lvlm.paint.stage`, `lvlm.paint.sample` and the command `paint`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lvlm.config import make_settings
from lvlm.errors import InputError
from lvlm.model.backbones import resolve
from lvlm.model.checkpoints import load as load_lvlm
from lvlm.model.layouts import content_digest, read_json
from lvlm.model.tiling import ImageTransform
from lvlm.paint.denoisers import load_denoiser, load_vae
from lvlm.paint.diffusion import Diffusion, saved_diffusion
from lvlm.paint.safety import SafetyChecker
from lvlm.paint.states import CaptionStates
from lvlm.paint_settings import PaintConfig
from lvlm.records import write_json
from lvlm.settings import ModelConfig

PAINTER_FILE = "painter.json"
Autocast = Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True)
class LlmSource:
    """Where the language model of a painter lies: `folder` of the model that an earlier stage left, or None and what
    the run assembled it from. `digest` is that of its content."""

    digest: str
    folder: str | None
    model: ModelConfig
    seed: int


class Painter(nn.Module):
    """A denoiser and what stands around it; the denoiser is its only part that can learn."""

    def __init__(
        self,
        denoiser: Any,
        states: CaptionStates,
        config: PaintConfig,
        diffusion: Diffusion,
        *,
        vae: Any = None,
        safety: SafetyChecker | None = None,
        languages: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.config, self.diffusion, self.languages = config, diffusion, tuple(languages)
        self._around = (states, vae, safety)  # in a tuple, so that they are no children
        self.scheduler = diffusion.scheduler()
        self.factor = 1 if vae is None else 2 ** (len(vae.config.block_out_channels) - 1)
        self.size = config.later_image_size or self.first_size
        for pixels in {self.first_size, self.size}:
            if pixels % self.factor:
                raise InputError(f"paint.image_size is {pixels}, which the VAE cannot divide by {self.factor}.")

    @property
    def states(self) -> CaptionStates:
        """What the language model makes of captions."""
        found: CaptionStates = self._around[0]
        return found

    @property
    def vae(self) -> Any:
        """Between pictures and what the denoiser sees of them; None where it sees pixels."""
        return self._around[1]

    @property
    def safety(self) -> SafetyChecker | None:
        """What looks at pictures before anybody else does."""
        return self._around[2]

    @property
    def first_size(self) -> int:
        """Pixels of a picture's side at the beginning of the training."""
        return self.config.image_size or int(self.denoiser.config.sample_size) * self.factor

    @property
    def device(self) -> torch.device:
        found: torch.device = self.denoiser.device
        return found

    def to(self, *args: Any, **kwargs: Any) -> Painter:
        """Move the denoiser and all around it."""
        if self.vae is not None:
            self.vae.to(*args, **kwargs)
        if self.safety is not None:
            self.safety.model.to(*args, **kwargs)
        return super().to(*args, **kwargs)

    def transform(self, size: int) -> ImageTransform:
        """How a picture becomes numbers from -1 to 1: squared from its middle, as a caption rarely tells of its rim."""
        half = (0.5, 0.5, 0.5)
        return ImageTransform(size, mean=half, std=half, interpolation="bicubic", tiles=1, fit="crop")

    def signal_shape(self, size: int) -> tuple[int, int, int]:
        """(channels, height, width) of what the denoiser sees of a picture of `size` pixels."""
        return int(self.denoiser.config.in_channels), size // self.factor, size // self.factor

    @torch.no_grad()
    def encode(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        """Pictures (batch, 3, height, width) -> what the denoiser sees; a VAE's draw is moved by `noise`."""
        if self.vae is None:
            return pixels
        found: Any = self.vae.encode(pixels.to(self.device)).latent_dist
        drawn: Tensor = found.mean if noise is None else found.mean + found.std * noise.to(self.device)
        scaled: Tensor = drawn.float() * self.vae.config.scaling_factor
        return scaled

    @torch.no_grad()
    def decode(self, signal: Tensor) -> Tensor:
        """The way back: (batch, 3, height, width) from -1 to 1."""
        if self.vae is None:
            return signal
        decoded: Tensor = self.vae.decode(signal / self.vae.config.scaling_factor).sample
        return decoded.float()

    def predict(self, noisy: Tensor, timesteps: Tensor, states: Tensor, mask: Tensor) -> Tensor:
        """What the denoiser says of noisy signals (batch, channels, height, width) beside captions' states (batch,
        tokens, width); `mask` (batch, tokens) is true where there is a token."""
        seen = mask if self.config.mask else None
        found: Tensor = self.denoiser(
            noisy, timesteps, encoder_hidden_states=states, encoder_attention_mask=seen
        ).sample
        return found

    def save(self, folder: Path, llm: LlmSource) -> None:
        """Write denoiser, noise and settings; of the language model where it lies and what it is, as it did not
        change."""
        self.denoiser.save_pretrained(folder)
        self.diffusion.save(folder)
        about = {
            "paint": self.config.model_dump(mode="json", exclude={"mix", "optim", "denoiser"}),
            "languages": list(self.languages),
            "llm": {
                "digest": llm.digest,
                "folder": llm.folder,
                "model": llm.model.model_dump(mode="json"),
                "seed": llm.seed,
            },
        }
        write_json(folder / PAINTER_FILE, about)


def make_painter(
    config: PaintConfig,
    folder: Path,
    llm: Any,
    chat: Any,
    *,
    seed: int,
    languages: Sequence[str],
    autocast: Autocast = nullcontext,
) -> Painter:
    """The painter of a config on the denoiser in `folder`, with the language model and its chat template."""
    states = CaptionStates(llm, chat, config, autocast=autocast)
    found = saved_diffusion(folder)
    asked = {name: value for name in Diffusion.__dataclass_fields__ if (value := getattr(config, name)) is not None}
    return Painter(
        load_denoiser(folder, width=states.width, seed=seed),
        states,
        config,
        Diffusion(**{**found, **asked}),
        vae=None if config.vae is None else load_vae(Path(config.vae)),
        safety=None if config.safety_checker is None else SafetyChecker(Path(config.safety_checker)),
        languages=languages,
    )


def load_painter(folder: Path, *, autocast: Autocast = nullcontext, precision: str = "fp32") -> Painter:
    """The painter that a stage left in `folder`, with its language model from where that lies. One that is gone or
    another now is an `InputError`."""
    about = read_painter(folder)
    data = {**about["paint"], "mix": {"corpora": []}}
    config = make_settings(PaintConfig, data, where=str(folder / PAINTER_FILE))
    model, processor = _language_model(about["llm"], folder, precision=precision)
    return make_painter(
        config,
        folder,
        model.language_model,
        processor.chat,
        seed=about["llm"]["seed"],
        languages=about["languages"],
        autocast=autocast,
    )


def read_painter(folder: Path) -> dict[str, Any]:
    """What `painter.json` says."""
    if not (folder / PAINTER_FILE).exists():
        raise InputError(
            f"{folder} holds no {PAINTER_FILE}: it was not made by the stage paint. Give the folder of a finished run "
            "that has this stage, such as one of `python -m lvlm train tiny_paint`."
        )
    return read_json(folder / PAINTER_FILE)


def _language_model(llm: dict[str, Any], folder: Path, *, precision: str) -> tuple[Any, Any]:
    from lvlm.model.assembly import assemble

    if llm["folder"] is not None:
        if not Path(llm["folder"]).is_dir():
            raise InputError(
                f"The language model of {folder} was trained by an earlier stage and is no longer at {llm['folder']}. "
                "Start the run again to train it anew."
            )
        return load_lvlm(llm["folder"], precision=precision)
    config = make_settings(ModelConfig, llm["model"], where=str(folder / PAINTER_FILE))
    if llm_digest(config, seed=llm["seed"]) != llm["digest"]:
        raise InputError(
            f"The language model {config.llm} is another one than {folder} has learned to read. Put the old one back, "
            "or start the run again."
        )
    return assemble(config, seed=llm["seed"], precision=precision)


def llm_digest(config: ModelConfig, *, seed: int) -> str:
    """Identifies the language model that a run assembles."""
    source = config.checkpoint or resolve(config.llm, seed=seed)
    return content_digest([Path(source)]) if Path(source).exists() else source
