"""The settings of a run's parts, typed: model, data, stages, evaluation, compute. `lvlm.config` puts them together."""

from __future__ import annotations

from itertools import product
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Part = Literal["frozen", "lora", "full"]
Switch = Annotated[
    Literal["auto", "on", "off"],
    BeforeValidator(lambda value: ("on" if value else "off") if isinstance(value, bool) else value),
]
"""YAML reads a bare `on` or `off` as a truth value."""


def _norwegian(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return ["no" if code is False else code for code in value]
    return "no" if value is False else value


def _norwegian_key(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {"no" if code is False else code: amount for code, amount in value.items()}


Codes = Annotated[tuple[str, ...], BeforeValidator(_norwegian)]
"""Languages by their codes. YAML reads a bare `no`, the code of Norwegian, as a truth value."""
GroupOrCodes = Annotated[str | tuple[str, ...], BeforeValidator(_norwegian)]
Amounts = Annotated[dict[str, Annotated[float, Field(gt=0)]], BeforeValidator(_norwegian_key)]
"""A number for each language."""
Beta = Annotated[float, Field(ge=0, lt=1)]

Label = Annotated[str, Field(pattern=r"^\w([\w .:-]{0,98}\w)?$")]
"""Letters, digits, spaces and . : _ -, as the name of an MLflow tag may hold."""


class Settings(BaseModel):
    """Immutable settings; an unknown key is an error, and so is a number that is not finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


AnySettings = TypeVar("AnySettings", bound=Settings)


ADAPTER_SETTINGS = {"pool": ("window-pool",), "shuffle": ("window-shuffle",), "queries": ("resampler", "query-mlp")}
"""Settings that some adapters alone have."""


class ModelConfig(Settings):
    """Which tower, adapter and LLM, and how an image becomes tokens."""

    tower: str = "tiny-vit"
    """`tiny-vit` (draw `seed % n` of the n shipped), `tiny-vit/3` (that draw), a folder, a folder of draws named 0,
    1, ..., a name that timm knows, or a hub name of a plain vision transformer of transformers, which has a slash.
    """
    llm: str = "tiny-lm"
    """`tiny-lm`, `tiny-lm/3`, `tiny-lm-clean` (never answers in another language), a local folder, a
    folder of draws named 0, 1, ..., or a hub name."""
    adapter: Literal[
        "mlp", "multiscale-pool", "window-pool", "window-shuffle", "multiscale-shuffle", "resampler", "query-mlp"
    ] = "multiscale-pool"
    """What maps vision features to LLM tokens, each described in `lvlm/model/adapters.py`. `multiscale-pool` with one
    tile is the `mlp` adapter exactly; `mlp` takes one tile only."""
    pool: Annotated[int, Field(ge=1)] | None = None
    """For `window-pool`: each view becomes pool x pool tokens; None is 8."""
    shuffle: Annotated[int, Field(ge=1)] | None = None
    """For `window-shuffle`: shuffle x shuffle tokens become one; None is 2."""
    queries: Annotated[int, Field(ge=1)] | None = None
    """For `resampler` and `query-mlp`: how many tokens an image becomes; None is 64."""
    tiles: Annotated[int, Field(ge=1, le=8)] = 1
    """n: a global view plus n x n tiles at n times the resolution; 1 means no tiling."""
    image_size: Annotated[int, Field(ge=8)] | None = None
    """Pixels of a view's side, where it is not the tower's own size; positions are interpolated."""
    fit: Literal["squash", "letterbox", "crop"] = "squash"
    """How an image becomes square: its sides squashed as in Centurio, the whole of it padded with the mean colour, or
    its middle with the aspect ratio kept."""
    template: Literal["own", "centurio"] = "own"
    """How a conversation is written: by the tokenizer's own chat template, or as Centurio's code does for the LLM's
    family."""
    feature_layer: int = -2
    """Which block of the tower gives the features, counted from the end, or which stage of a tower of timm in stages;
    -2 is the penultimate one, without final norm."""
    attn: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    """How attention is computed; `flash_attention_2` needs a GPU and the package flash-attn, and Gemma 2 computes with
    `eager` or that. A tower of timm chooses for itself."""
    load_4bit: bool = False
    """The LLM's frozen matrices in 4 bits (nf4) through bitsandbytes; a saved model has them in 16 again."""
    load_8bit: bool = False
    """The same in 8 bits."""
    checkpoint: str | None = None
    """A saved model to start from, in any layout that `lvlm.load` reads; `tower` and `llm` are read where it lacks
    them, and whatever it contradicts is an error. None draws a new adapter."""

    @property
    def adapter_args(self) -> dict[str, int]:
        """The settings that the adapter has for itself, where they are given."""
        given = {name: getattr(self, name) for name in ADAPTER_SETTINGS}
        return {name: value for name, value in given.items() if value is not None}

    @property
    def bits(self) -> int | None:
        """Of the LLM's frozen matrices, where they are quantised."""
        return 4 if self.load_4bit else 8 if self.load_8bit else None

    @model_validator(mode="after")
    def _settings_fit_together(self) -> Self:
        if self.load_4bit and self.load_8bit:
            raise ValueError("load_4bit and load_8bit are both true; choose one")
        if self.adapter == "mlp" and self.tiles != 1:
            raise ValueError(f"adapter 'mlp' takes tiles=1, not {self.tiles}; use adapter 'multiscale-pool' for tiles")
        for name in self.adapter_args:
            if self.adapter not in ADAPTER_SETTINGS[name]:
                having = "' or '".join(ADAPTER_SETTINGS[name])
                raise ValueError(f"{name} is a setting of adapter '{having}', not of '{self.adapter}'")
        return self


class CorpusUse(Settings):
    """One corpus in a mix or an evaluation."""

    path: str
    split: str
    languages: Codes | None = None
    """Which of the corpus's languages take part; None is all. An evaluation takes it for every corpus, a mix only for
    those that are not translatable: the others are divided by `MixConfig.languages`."""
    samples: Annotated[int, Field(ge=1)] | None = None
    """How many sample ids, drawn once in an order that only the corpus determines; None is all."""
    samples_per_language: Annotated[int, Field(ge=1)] | None = None
    """For a mix, and a corpus that is not translatable: so many samples of each language, the same ones and more where
    the number is larger."""
    images: str | None = None
    """The folder that image paths start from, where images lie apart from the corpus; None is where
    `lvlm.data.corpus.open_corpus` looks."""

    @model_validator(mode="after")
    def _one_number_of_samples(self) -> Self:
        if self.samples is not None and self.samples_per_language is not None:
            raise ValueError("give samples or samples_per_language, not both")
        return self

    @model_serializer(mode="wrap")
    def _unset_number_is_left_out(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # A config without it keeps the fingerprint that it had before it existed.
        return {name: value for name, value in dump(self).items() if (name, value) != ("samples_per_language", None)}


Unit = Literal["samples", "tokens", "supervised_tokens"]
"""What shares of a mix are counted in. `tokens` are text tokens, image tokens not counted; `supervised_tokens` those of
them that are learned. Each sample counts once, whatever the epochs, and before it is cut at `max_text_tokens`."""
ALLOCATION_SETTINGS = {"temperature": "temperature", "sizes": "temperature", "weights": "weights", "pairs": "pairs"}
"""Settings that one allocation alone has, and needs."""


class MixConfig(Settings):
    """Which sample in which language: `english_share` and `allocation` act on the translatable corpora, whose
    budget is fixed.
    """

    corpora: tuple[CorpusUse, ...]
    languages: GroupOrCodes = "all"
    """A group (`en`, `T5`, `T5-T4`, `T5-T3`, `T5-T2`, `L100`, `all`, `script:Arab`, `family:Turkic`) or codes. Groups
    always include English."""
    english_share: Share | None = None
    """Share of the translatable samples that stay English; None is 0.5 where there are other languages."""
    share_of: Unit = "samples"
    """What `english_share` and the shares of the allocation are meant of. In tokens, English has its share as nearly as
    whole samples allow, and the other languages have theirs approximately (see `lvlm.data.mix.language_codes`)."""
    allocation: Literal["uniform", "inverse_tier", "inverse_exp_tier", "temperature", "weights", "pairs"] = "uniform"
    """How the rest is divided: equally, in proportion to 1/tier or exp(-tier) (Centurio, appendix D.2, Stratified-1 and
    -2), to size^(1/temperature), or to `weights`. `pairs` is no division: every language but the pivot has `pairs`
    samples, and the pivot has what remains."""
    temperature: Annotated[float, Field(gt=0)] | None = None
    """For `temperature`: 1 follows `sizes`, more flattens them."""
    sizes: Amounts | None = None
    """For `temperature`: how much text there is of each language, in any unit, such as tokens of the LLM's own training
    data. It must be given, for the files of a translatable corpus all have the same samples; it may name more languages
    than the mix has."""
    weights: Amounts | None = None
    """For `weights`: one for each language of the mix but English."""
    pairs: Annotated[int, Field(ge=0)] | None = None
    """For `pairs`: so many translated samples of each language but the pivot, the same ones and more where the number
    is larger."""
    pivot: Annotated[str, BeforeValidator(_norwegian)] = "en"
    """For `pairs` and `parallel`: the language that the others are translated from."""
    parallel: Share = 0.0
    """Share of the samples that come two by two, one id in two languages of which one is the pivot, in the same
    optimizer step. The number of samples stays; there are fewer ids."""

    @model_validator(mode="after")
    def _the_allocation_has_its_settings(self) -> Self:
        for name, allocation in ALLOCATION_SETTINGS.items():
            if getattr(self, name) is None and self.allocation == allocation:
                raise ValueError(f"allocation '{allocation}' needs {name}; give it, or choose another allocation")
            if getattr(self, name) is not None and self.allocation != allocation:
                raise ValueError(f"{name} is a setting of allocation '{allocation}', not of '{self.allocation}'")
        return self

    @model_validator(mode="after")
    def _pairs_are_counted_from_a_pivot(self) -> Self:
        if self.allocation == "pairs" and (self.english_share is not None or self.share_of != "samples"):
            idle = "share_of" if self.english_share is None else "english_share"
            raise ValueError(f"allocation 'pairs' counts samples, so that {idle} would change nothing; leave it out")
        if self.pivot != "en" and self.allocation != "pairs" and not self.parallel:
            raise ValueError(f"pivot is {self.pivot}, but only allocation 'pairs' and parallel have a pivot")
        return self

    @model_serializer(mode="wrap")
    def _unset_settings_are_left_out(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # A config that has none of them keeps the fingerprint that it had before they existed.
        unset = {"share_of": "samples", "pivot": "en", "parallel": 0.0, **dict.fromkeys(ALLOCATION_SETTINGS)}
        return {name: value for name, value in dump(self).items() if name not in unset or value != unset[name]}


class TrainedParts(Settings):
    """What learns in a stage. `lora` is for the LLM and the tower; the adapter is `frozen` or `full`."""

    tower: Part = "frozen"
    adapter: Literal["frozen", "full"] = "full"
    llm: Part = "frozen"

    @model_validator(mode="after")
    def _something_learns(self) -> Self:
        if self.tower == self.adapter == self.llm == "frozen":
            raise ValueError("tower, adapter and llm are all frozen: nothing would learn")
        return self


class LoraSettings(Settings):
    """Low-rank adaptation of every linear layer of a part that is trained with `lora`."""

    r: Annotated[int, Field(ge=1)] = 16
    alpha: Annotated[float, Field(gt=0)] = 32.0
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0


class ContrastSettings(Settings):
    """A term that draws the two sides of a parallel sample together (`mix.parallel`); see `lvlm.train.contrast`."""

    weight: Annotated[float, Field(ge=0)] = 0.0
    """What it is multiplied by before it is added to the loss; 0 is off."""
    temperature: Annotated[float, Field(gt=0)] = 0.1
    layer: Annotated[int, Field(ge=0)] | None = None
    """The LLM's block whose output is compared: 0 are the embeddings, the number of blocks is the state before the
    head; None is the middle one."""


class OptimConfig(Settings):
    """AdamW and its schedule. Learning rates and weight decays of adapter and tower default to `lr` and
    `weight_decay`; biases and norms do not decay."""

    lr: Annotated[float, Field(gt=0)] = 1e-3
    adapter_lr: Annotated[float, Field(gt=0)] | None = None
    tower_lr: Annotated[float, Field(gt=0)] | None = None
    betas: tuple[Beta, Beta] = (0.9, 0.98)
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    adapter_weight_decay: Annotated[float, Field(ge=0)] | None = None
    tower_weight_decay: Annotated[float, Field(ge=0)] | None = None
    warmup: Annotated[float, Field(ge=0)] = 0.03
    """Below 1 a fraction of all steps, from 1 on a number of steps."""
    schedule: Literal["cosine", "constant"] = "cosine"
    clip: Annotated[float, Field(gt=0)] | None = 1.0


class StageConfig(Settings):
    """One stage of training: its data, what learns, and for how long: one of epochs, samples and steps, or one epoch
    where none of them is given."""

    mix: MixConfig
    train: TrainedParts = TrainedParts()
    lora: LoraSettings = LoraSettings()
    start_lora: Literal["continue", "merge"] = "continue"
    """What becomes of a LoRA that an earlier stage trained: the same one learns on, or it is merged into the weights
    and a new one is drawn, whose settings may differ."""
    optim: OptimConfig = OptimConfig()
    contrast: ContrastSettings = ContrastSettings()
    batch_samples: Annotated[int, Field(ge=1)] = 16
    """Samples of one optimizer step, whatever the memory settings."""
    epochs: Annotated[float, Field(gt=0)] | None = None
    samples: Annotated[int, Field(ge=1)] | None = None
    steps: Annotated[int, Field(ge=1)] | None = None
    reduction: Literal["token", "sample"] = "token"
    """What one optimizer step averages over: supervised tokens, or samples (each the mean of its tokens)."""
    max_text_tokens: Annotated[int, Field(ge=8)] = 512
    """A sample with more text tokens loses whole turns from its end, counted in the ledger by language."""
    validate_every: Annotated[float, Field(gt=0)] | None = None
    """Below 1 a fraction of the stage, from 1 on a number of steps, None is off. Uses splits with permission `tune`."""

    @model_validator(mode="after")
    def _one_duration(self) -> Self:
        given = [name for name in ("epochs", "samples", "steps") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"give only one of epochs, samples, steps; given: {', '.join(given)}")
        return self

    @model_validator(mode="after")
    def _no_setting_is_ignored(self) -> Self:
        # A value other than the default was meant; the default may come from a config that was written out in full.
        for part, setting in product(("adapter", "tower"), ("lr", "weight_decay")):
            value = getattr(self.optim, f"{part}_{setting}")
            if value is not None and getattr(self.train, part) == "frozen":
                raise ValueError(
                    f"optim.{part}_{setting} is {value} but train.{part} is frozen; leave it out, or train the {part}"
                )
        if self.lora != LoraSettings() and "lora" not in (self.train.llm, self.train.tower):
            raise ValueError("lora is set but no part is trained with it; leave it out, or set train.llm=lora")
        return self

    @model_validator(mode="after")
    def _contrast_has_its_pairs(self) -> Self:
        if not self.contrast.weight and self.contrast != ContrastSettings():
            raise ValueError("contrast.temperature or layer is set, but contrast.weight is 0; leave them out")
        if self.contrast.weight and not self.mix.parallel:
            raise ValueError(
                f"contrast.weight is {self.contrast.weight:g}, but mix.parallel is 0, so that there are no pairs; "
                "raise it, or leave contrast out"
            )
        if self.contrast.weight and self.lora.dropout:
            raise ValueError(
                "contrast.weight and lora.dropout are both above 0, and states that are dropped from cannot be "
                "compared over a step; set lora.dropout to 0"
            )
        return self

    @model_serializer(mode="wrap")
    def _an_unused_contrast_is_left_out(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # A config without it keeps the fingerprint that it had before it existed.
        usual = ContrastSettings().model_dump()
        return {name: value for name, value in dump(self).items() if name != "contrast" or value != usual}


class EvaluateConfig(Settings):
    """What is scored, on which split, and how answers are generated (greedy)."""

    corpora: tuple[CorpusUse, ...] = ()
    languages: GroupOrCodes = "all"
    tasks: tuple[str, ...] | None = None
    items: Annotated[int, Field(ge=1)] | None = None
    """At most this many items per task and language, the same ids in every language; None is all."""
    tune_corpora: tuple[CorpusUse, ...] = ()
    """Scored while training where `validate_every` is set; splits with permission `tune`."""
    tune_items: Annotated[int, Field(ge=1)] = 32
    max_new_tokens: Annotated[int, Field(ge=1)] = 96
    detector: str = "auto"
    """What tells the language of an answer: `corpus` by the words and scripts of the evaluation's corpora, which hold
    whatever can be said there; `packaged`, CLD2 confirmed by langid, for free text; or a fastText file by its path, as
    GlotLID's. `auto` takes `corpus` for corpora of a closed vocabulary (those that a built-in world wrote, and those
    that name their attributes) and `packaged` for all others. The notes of the scores name what was used."""

    name_language: bool = False
    """Whether every question ends with a line that names its language in English: "Answer in Swahili."; questions whose
    answers are in no language stay."""
    forced_tokens: Annotated[int, Field(ge=0)] = 0
    """So many first tokens of an answer are chosen among those with which gold answers of the task in the asked
    language begin (any item's), so that a model that would answer in another language is led into this one."""
    alignment: tuple[CorpusUse, ...] = ()
    """Parallel sentences on which the alignment of the languages is measured, in the LLM that the first stage with
    images begins with; splits with permission `report`, of which `samples` is the number of ids."""
    pivot: Annotated[str, BeforeValidator(_norwegian)] = "en"
    """The language that `alignment` compares the others with."""

    @model_serializer(mode="wrap")
    def _usual_settings_are_left_out(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # A config that has none keeps the fingerprint that it had before there was a choice.
        usual = {"detector": "auto", "name_language": False, "forced_tokens": 0, "alignment": [], "pivot": "en"}
        return {
            name: value
            for name, value in dump(self).items()
            if name not in usual or (list(value) if isinstance(value, tuple) else value) != usual[name]
        }

    @model_validator(mode="after")
    def _a_pivot_is_for_alignment(self) -> Self:
        if self.pivot != "en" and not self.alignment:
            raise ValueError(f"pivot is {self.pivot}, but alignment names no sentences; leave it out, or name some")
        return self

    @model_validator(mode="after")
    def _samples_count_per_language_here(self) -> Self:
        if any(use.samples_per_language is not None for use in (*self.corpora, *self.tune_corpora)):
            raise ValueError("samples_per_language is for a mix; in an evaluation 'samples' counts per language")
        return self


class ComputeConfig(Settings):
    """How it is computed. Nothing here changes the objective; `precision` and `threads` can change the last bits
    and are recorded.
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """`bf16` is autocast; frozen matrices are then held in bf16. `auto` is bf16 on a GPU and fp32 on a CPU."""
    threads: Annotated[int, Field(ge=1)] | None = None
    micro_batch_tokens: Annotated[int, Field(ge=64)] = 4096
    """LLM tokens (image and text, padding included) of one forward pass; splits an optimizer step, never changes it."""
    packing: bool = False
    """Samples of a micro-batch laid end to end in one row without padding, none of which sees another."""
    gradient_checkpointing: bool = False
    """Activations of LLM and tower are computed again in the backward pass instead of kept."""
    strategy: Literal["auto", "ddp", "zero2", "zero3"] = "auto"
    """How several processes share the work: whole copies (`ddp`), or DeepSpeed's ZeRO with optimizer and gradients
    (`zero2`) or the weights too (`zero3`) divided; `auto` is what the launcher was told, else `ddp`."""
    loader_workers: Annotated[int, Field(ge=0)] = 0
    feature_cache: Switch = "auto"
    """Features of a frozen tower kept on disk: `on` where there is room, `auto` where a measurement says it pays."""
    feature_cache_gib: Annotated[float, Field(gt=0)] | None = None
    """Most disk that kept features may take under the work folder, in GiB; None adds at most half of what is free."""
    stage_cache_gib: Annotated[float, Field(gt=0)] | None = None
    """Most disk that trained stages may take under the work folder, in GiB: before one is written, those used longest
    ago give way, but for those in use and those that waiting cells of a study need. None keeps all."""
    evaluate_batch: Annotated[int, Field(ge=1)] = 64
    checkpoint_every: Annotated[float, Field(gt=0)] | None = None
    """Seconds between checkpoints of an unfinished stage; None is one minute, or longer where saving one takes more
    than 3 % of the time."""
