"""Where a model config's backbones lie: the shipped draws, a local folder, or a hub name. No torch. Called by
`lvlm.model.assembly` and `lvlm.model.tokenizer` and, for the key of a stage, by `lvlm.run`."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from lvlm.config import RunConfig
from lvlm.errors import InputError
from lvlm.model.layouts import content_digest, locate
from lvlm.settings import ModelConfig

TOKENIZER = "tiny-tokenizer"
PAINTING = ("denoiser", "vae", "safety_checker")
"""What a run starts from beside its vision-language model, where it paints."""


def assets() -> Path:
    """The folder with the shipped backbones."""
    return Path(str(files("lvlm").joinpath("assets")))


def draws(family: str) -> int:
    """How many draws of `tiny-lm`, `tiny-vit` or `tiny-unet` are shipped, numbered from 0."""
    return len(list(assets().glob(f"{family}-[0-9]*")))


def resolve(name: str, *, seed: int) -> str:
    """The folder or hub name behind `tiny-lm`, `tiny-vit/3`, `tiny-lm-clean`, a path, or a hub name.

    A shipped name without a draw takes draw `seed % n` of the n shipped, so that a seed is a block: data order,
    initialisation and backbones. So does a folder that holds draws, named 0, 1, ...
    """
    family, _, draw = name.partition("/")
    if family in ("tiny-lm", "tiny-vit", "tiny-unet"):
        shipped = draws(family)
        if draw and draw not in map(str, range(shipped)):
            raise InputError(
                f"The backbone '{name}' does not exist: draws go from 0 to {shipped - 1}, such as {family}/0."
            )
        folder = assets() / f"{family}-{draw or seed % max(1, shipped)}"
    elif name in ("tiny-lm-clean", "sd21-base"):
        folder = assets() / name
    else:
        return _local_draw(name, seed)
    if not (folder / "config.json").exists():
        raise InputError(f"The shipped backbone '{name}' is not installed: {folder} holds no config.json.")
    return str(folder)


def _local_draw(name: str, seed: int) -> str:
    folder = Path(name)
    drawn = 0
    while not (folder / "config.json").exists() and (folder / str(drawn) / "config.json").exists():
        drawn += 1
    if drawn:
        return str(folder / str(seed % drawn))
    if "backbones" in folder.parts and not folder.exists():
        raise InputError(
            f"There is no backbone at {name} (looked for from {Path.cwd()}). Those of the emoji world and those with "
            "another answer mix are built on demand: `python -m lvlm backbones --corpus runs/data/emoji --out "
            "runs/backbones/emoji`; `python -m lvlm backbones --answer-mix 0 0.5 1 1.5`."
        )
    return name


def tokenizer_source(llm: str) -> str:
    """Where the tokenizer of a resolved LLM lies; draws share one, which lies beside them."""
    folder = Path(llm)
    shared = folder.parent / TOKENIZER
    if folder.is_dir() and shared.is_dir() and not (folder / "tokenizer.json").exists():
        return str(shared)
    return llm


def backbone_digests(config: ModelConfig, *, seed: int) -> dict[str, str]:
    """Content hashes of what a run starts from: the checkpoint, if there is one, and the tower and the LLM that this
    seed uses where those are not in it; a hub name stands for itself."""
    digests = {}
    if config.checkpoint is not None:
        found = locate(config.checkpoint)
        digests["checkpoint"] = found.digest()
        if found.stands_alone:
            return digests
    tower, llm = resolve(config.tower, seed=seed), resolve(config.llm, seed=seed)
    return {**digests, "tower": _digest(tower), "llm": _digest(llm), "tokenizer": _digest(tokenizer_source(llm))}


def run_digests(config: RunConfig) -> dict[str, str]:
    """`backbone_digests` of a run, and those of the denoiser and what stands around it where the run paints."""
    digests = backbone_digests(config.model, seed=config.seed)
    if config.paint is not None:
        digests["denoiser"] = _digest(resolve(config.paint.denoiser, seed=config.seed))
        around = {name: getattr(config.paint, name) for name in ("vae", "safety_checker")}
        digests |= {name: _digest(folder) for name, folder in around.items() if folder is not None}
    return digests


def _digest(source: str) -> str:
    return content_digest([Path(source)]) if Path(source).is_dir() else source
