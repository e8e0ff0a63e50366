"""The settings of the stage `paint`, typed: a denoiser that learns to read the hidden states of a language model.
`lvlm.config` puts them into a run."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from lvlm.settings import MixConfig, OptimConfig, Settings, Share

Schedule = Literal["cosine", "linear", "scaled_linear"]
Prediction = Literal["v_prediction", "epsilon", "sample"]
Learning = Literal["projection", "kv", "cross_attention", "all"]


class PaintConfig(Settings):
    """The stage `paint`: captions and their pictures, a denoiser conditioned on the LLM, and how pictures are drawn.

    The LLM is frozen. The denoiser is a UNet of diffusers; its projection maps hidden states of the LLM to the width
    of its cross-attention and is drawn anew, unless the denoiser has one of that width already.
    """

    mix: MixConfig
    """Rows with one turn, whose answer is the caption, and one picture."""
    denoiser: str = "tiny-unet"
    """`tiny-unet` (12 x 12 pixels, trained on English captions with a table of words for its text encoder),
    `sd21-base` (the shape of Stable Diffusion 2.1, without weights), or a folder as diffusers writes it: `config.json`,
    the weights where there are any, and what noise they learned with in `scheduler_config.json`."""
    vae: str | None = None
    """A folder with an AutoencoderKL of diffusers; None paints pixels."""
    safety_checker: str | None = None
    """A folder with an image classifier of transformers that has a class `unsafe` or `nsfw`: pictures that it takes for
    that come out black, and are counted. None checks nothing."""
    train: Learning = "cross_attention"
    """What learns: the projection alone; with it the keys and values of cross-attention (AltDiffusion); with it all of
    cross-attention (VisCPM-Paint); or the whole denoiser."""
    layer: int = -1
    """Which hidden state of the LLM is read, as transformers counts them: 0 the embeddings, -1 the last with its norm,
    -2 the one before the last block."""
    bidirectional: bool = False
    """Whether every token of a caption sees the whole caption, as in a prefix LM; else only what stands before it."""
    prompt: Literal["bare", "chat"] = "bare"
    """How the LLM reads a caption: as it stands and an end of turn, or as a user's turn in the chat template."""
    mask: bool = True
    """Whether the denoiser knows which positions are padding. VisCPM-Paint attends to them as well."""
    schedule: Schedule | None = None
    """How noise grows; None is what the denoiser learned with, else `cosine`."""
    prediction: Prediction | None = None
    """What the denoiser predicts; None is what it learned with, else `v_prediction`."""
    timesteps: Annotated[int, Field(ge=2)] | None = None
    """Steps of the noise schedule; None is what the denoiser learned with, else 1000."""
    caption_dropout: Share = 0.1
    """Share of the captions that are emptied while training: what guidance compares with."""
    state_noise: Annotated[float, Field(ge=0)] = 0.0
    """Noise on the hidden states while training, normal and in units of each token's root mean square, so that what is
    learned from captions in one language does not hang on what sets their states apart from those of others (after
    CapDec, arXiv 2211.00575, where text stands for images)."""
    image_size: Annotated[int, Field(ge=8)] | None = None
    """Pixels of a picture's side; None is the denoiser's own size, times the VAE's factor."""
    later_image_size: Annotated[int, Field(ge=8)] | None = None
    """The size from step `later_from` on, and of the pictures that are painted in the end."""
    later_from: Annotated[float, Field(gt=0)] | None = None
    """Below 1 a fraction of the stage, from 1 on a number of steps."""
    optim: OptimConfig = OptimConfig()
    """`adapter_lr` and `adapter_weight_decay` are those of the projection."""
    batch_samples: Annotated[int, Field(ge=1)] = 32
    epochs: Annotated[float, Field(gt=0)] | None = None
    samples: Annotated[int, Field(ge=1)] | None = None
    steps: Annotated[int, Field(ge=1)] | None = None
    max_text_tokens: Annotated[int, Field(ge=8)] = 77
    """A longer caption is an error that names its row."""
    validate_every: Annotated[float, Field(gt=0)] | None = None
    """Below 1 a fraction of the stage, from 1 on a number of steps, None is off. Uses splits with permission `tune`."""
    guidance: Annotated[float, Field(ge=0)] = 3.0
    """How far a picture is moved from what an empty caption gives towards the caption; 1 is the caption alone."""
    sample_steps: Annotated[int, Field(ge=1)] = 20
    """Steps of DDIM from noise to a picture."""
    clip: str | None = None
    """A folder with a CLIP of transformers, for the metric `clip_score` of the pictures that are painted."""
    features: str | None = None
    """A folder with an image model of transformers, on whose features the metric `frechet_model` is taken."""

    @model_validator(mode="after")
    def _settings_fit_together(self) -> Self:
        given = [name for name in ("epochs", "samples", "steps") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"give only one of epochs, samples, steps; given: {', '.join(given)}")
        if (self.later_image_size is None) != (self.later_from is None):
            raise ValueError("later_image_size and later_from belong together: give both or neither")
        for name in ("tower_lr", "tower_weight_decay"):
            if getattr(self.optim, name) is not None:
                raise ValueError(f"optim.{name} is set, but the tower does not learn in this stage; leave it out")
        return self
