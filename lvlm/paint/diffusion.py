"""Noise, and what is to be told of it: the forward process and the target of the loss, as diffusers' schedulers have
them. Used by `lvlm.paint.painter`, `lvlm.paint.stage`, `lvlm.paint.scores` and `lvlm.paint.tiny`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lvlm.errors import InputError
from lvlm.model.layouts import read_json
from lvlm.paint_settings import Prediction, Schedule
from lvlm.records import write_json

SCHEDULER_FILE = "scheduler_config.json"
BETAS: dict[str, dict[str, Any]] = {
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
    "linear": {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02},
    "scaled_linear": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
}
"""Schedule -> what diffusers calls it, with the ends of DDPM (linear) and of Stable Diffusion (scaled_linear)."""


@dataclass(frozen=True)
class Diffusion:
    """A noise schedule of `timesteps` steps and what the denoiser predicts."""

    schedule: Schedule = "cosine"
    prediction: Prediction = "v_prediction"
    timesteps: int = 1000

    @property
    def settings(self) -> dict[str, Any]:
        """As diffusers' schedulers take them; without clipping, as latents are not bounded."""
        settings = {"num_train_timesteps": self.timesteps, "prediction_type": self.prediction, "clip_sample": False}
        return settings | BETAS[self.schedule]

    def scheduler(self) -> Any:
        """The forward process, as diffusers' DDPM scheduler."""
        from diffusers import DDPMScheduler

        return DDPMScheduler(**self.settings)

    def sampler(self, steps: int, *, clip: bool) -> Any:
        """DDIM without noise of its own, set to so many steps: the first noise decides a picture. With `clip` what it
        expects of the picture stays from -1 to 1, as pixels do and latents do not."""
        from diffusers import DDIMScheduler

        if steps > self.timesteps:
            raise InputError(f"{steps} steps were asked for, but the noise has {self.timesteps} (paint.timesteps).")
        settings = {**self.settings, "clip_sample": clip}
        found = DDIMScheduler(**settings, set_alpha_to_one=True, timestep_spacing="trailing")
        found.set_timesteps(steps)
        return found

    def save(self, folder: Path) -> None:
        """Keep the settings beside a denoiser."""
        write_json(folder / SCHEDULER_FILE, asdict(self))


def saved_diffusion(folder: Path) -> dict[str, Any]:
    """Which fields of `Diffusion` a denoiser's folder names, in our words or in those of diffusers; empty where it
    names none."""
    places = [folder / SCHEDULER_FILE, folder.parent / "scheduler" / SCHEDULER_FILE]
    path = next((place for place in places if place.exists()), None)
    if path is None:
        return {}
    found = read_json(path)
    if "schedule" in found:
        return {name: found[name] for name in Diffusion.__dataclass_fields__ if name in found}
    names = {str(betas["beta_schedule"]): schedule for schedule, betas in BETAS.items()}
    if (schedule := names.get(str(found.get("beta_schedule")))) is None:
        raise InputError(
            f"{path}, field 'beta_schedule', is {found.get('beta_schedule')!r}; known here: {', '.join(names)}. Set "
            "paint.schedule to one of these, and remove the file."
        )
    ours = {"rescale_betas_zero_snr": False, "trained_betas": None, **BETAS[schedule]}
    if others := [name for name, value in ours.items() if name in found and found[name] != value]:
        raise InputError(
            f"{path}, field '{others[0]}', is {found[others[0]]!r}, and the noise of schedule '{schedule}' has "
            f"{ours[others[0]]!r} here. A denoiser that learned with another noise would be misread; choose another."
        )
    return {
        "schedule": schedule,
        "prediction": found.get("prediction_type", "epsilon"),
        "timesteps": int(found.get("num_train_timesteps", 1000)),
    }


def target(scheduler: Any, prediction: str, clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """What the denoiser is to predict of `clean` (batch, channels, height, width) under `noise` at `timesteps`."""
    if prediction == "epsilon":
        return noise
    if prediction == "sample":
        return clean
    velocity: Tensor = scheduler.get_velocity(clean, noise, timesteps)
    return velocity


def errors(predicted: Tensor, wanted: Tensor) -> Tensor:
    """(batch,): the mean squared error of each picture, in float32."""
    return torch.square(predicted.float() - wanted.float()).flatten(1).mean(dim=1)
