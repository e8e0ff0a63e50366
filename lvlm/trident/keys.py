"""What each override of a Centurio command line becomes here, as data: names and defaults are those of Centurio's YAML.
`lvlm.trident` reads it, and `lvlm/presets/TRIDENT.md` shows it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Reader:
    """How the text behind `=` becomes a value: `read` raises KeyError or ValueError for any other; `wants` completes
    the sentence "give ..."."""

    wants: str
    read: Callable[[str], Any]
    null: bool = False
    """Whether `null` may stand there."""


def _flag(text: str) -> bool:
    return {"true": True, "false": False}[text.lower()]


def listed(text: str) -> list[str]:
    """`[a,b]` or a single `a` as a list, each without its quotes."""
    inner = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    return [stripped for part in inner.split(",") if (stripped := part.strip().strip("\"'"))]


def _devices(text: str) -> int:
    number = len(listed(text)) if text.startswith("[") else int(text)
    if number < 1:
        raise ValueError
    return number


def _one(text: str) -> str:
    (folder,) = listed(text)
    return folder


def _choice(known: Mapping[str, Any]) -> Reader:
    return Reader(f"one of {', '.join(known)}", known.__getitem__)


TEXT = Reader("its value", str)
PATH = Reader("a path", str, null=True)
NUMBER = Reader("a number", float)
OPTIONAL = Reader("a number or null", float, null=True)
WHOLE = Reader("a whole number", int)
SIZE = Reader("a whole number, or -1 for the tower's own", lambda text: None if int(text) == -1 else int(text))
DEVICES = Reader("a number of devices, or a list of them", _devices)
FLAG = Reader("True or False", _flag)
FOLDER = Reader("a folder", str)
ROOT = Reader("one folder (where Centurio looks through several, put links to all of their files into one)", _one)
LABELS = Reader("a list such as [training,english_only]", listed)
ADAPTERS = {
    "mlp": "mlp",
    "multiscale-pool": "multiscale-pool",
    "window-pool": "window-pool",
    "window-shuffel": "window-shuffle",
    "multiscale-shuffel": "multiscale-shuffle",
}
"""Centurio's `adapter_type` (its spelling) -> ours; its code takes any other for `mlp`, we refuse it."""
STRATEGIES = {
    "auto": "auto",
    "ddp": "ddp",
    "ddp_find_unused_parameters_true": "ddp",
    "ddp_find_unused_parameters_false": "ddp",
    "deepspeed_stage_2": "zero2",
    "deepspeed_stage_3": "zero3",
}
EAGER = ("stablelm", "gemma-2")
"""Parts of the names of LLMs that Centurio computes without a fused attention, where it does not use flash-attn."""
PRECISIONS = {"bf16": "bf16", "bf16-mixed": "bf16", "32": "fp32", "32-true": "fp32"}


@dataclass(frozen=True)
class Key:
    """One override: its name, the field of ours that it goes to, how its text reads, and what to know about it."""

    name: str
    field: str
    """Dotted, with `{stage}` for the stage that is trained; `--folder` is an argument; empty where nothing here
    corresponds, and then `says` tells why the result is the same without it."""
    reads: Reader
    says: str
    default: str | None = None
    """What `mblipv2_train.yaml` says where the override is absent; None is nothing."""
    on: Literal["train", "test", "both"] = "both"


MODEL, ADAPTER = "module.model.", "module.model.adapter_config."
TABLE: tuple[Key, ...] = (
    Key("experiment", "name", TEXT, "which stage is trained, or which benchmark is scored"),
    Key("run.train_data", "{stage}.mix.corpora", TEXT, "the folder that data files start from"),
    Key("run.train_file", "{stage}.mix.corpora", TEXT, "under train_data; its languages are those that it was made of",
        "multilingual/combination/mblipv2_instruct_base_en.json", "train"),
    Key("run.image_root", "{stage}.mix.corpora", ROOT, "the folder that image paths start from"),
    Key("run.train_image_root", "{stage}.mix.corpora", ROOT, "the same for training alone; image_root where absent",
        on="train"),
    Key("run.xm3600_image_root", "evaluate.corpora", ROOT, "images of XM3600 and of MaXM", on="test"),
    Key("run.gqa_image_root", "evaluate.corpora", ROOT, "images of xGQA", on="test"),
    Key("run.smpqa_image_root", "evaluate.corpora", ROOT, "images of SMPQA", on="test"),
    Key("run.mtvqa_image_root", "evaluate.corpora", ROOT, "images of MTVQA", on="test"),
    Key("run.m3exam_image_root", "evaluate.corpora", ROOT, "images of M3Exam", on="test"),
    Key("run.mmmu_image_root", "evaluate.corpora", ROOT, "images of MMMU", on="test"),
    Key("run.imagenet_image_root", "evaluate.corpora", ROOT, "images of BIN-MC", on="test"),
    Key("hydra.run.dir", "--folder", FOLDER, "an argument of the command that is printed above the config"),
    Key("run.llm", "model.llm", TEXT, "a hub name or a folder", "meta-llama/Meta-Llama-3-8B-Instruct"),
    Key("run.vit_model", "model.tower", TEXT, "a name of timm", "vit_large_patch14_clip_336.openai"),
    Key(MODEL + "adapter_type", "model.adapter", _choice(ADAPTERS), "Centurio takes any other text for mlp", "mlp"),
    Key("run.multi_scale", "model.tiles", WHOLE, "how images are cut; has to be what the adapter expects", "1"),
    Key(ADAPTER + "multi_scale", "model.tiles", WHOLE, "what the adapter expects; run.multiscale where absent"),
    Key("run.multiscale", "model.tiles", WHOLE, "the adapter's again, by another name than run.multi_scale", "2"),
    Key(ADAPTER + "pool", "model.pool", WHOLE, "of window-pool; of window-shuffel it is model.shuffle", "12"),
    Key("run.overwrite_size", "model.image_size", SIZE, "pixels of a view's side", "-1"),
    Key("run.image_process_mode", "model.fit", _choice({"square": "squash"}), "its letterbox pads the large view alone",
        "square"),
    Key(MODEL + "use_flash_attn", "model.attn", FLAG,
        "flash_attention_2, or sdpa (for StableLM and Gemma 2 eager)", "True"),
    Key(MODEL + "load_4bit", "model.load_4bit", FLAG, "nf4 through bitsandbytes", "True"),
    Key(MODEL + "load_8bit", "model.load_8bit", FLAG, "int8 through bitsandbytes", "False"),
    Key(MODEL + "train_checkpoint", "model.checkpoint", PATH, "the .pt file of DeepSpeed, or the .ckpt of DDP"),
    Key(MODEL + "lora_checkpoint", "model.checkpoint", PATH, "is read from beside train_checkpoint, so it has to be "
        "the folder there"),
    Key(MODEL + "use_lora", "{stage}.train.llm", FLAG, "lora, or frozen: the weights themselves never learn", "True"),
    Key(MODEL + "freeze_vit", "{stage}.train.tower", FLAG, "frozen, or full", "True", "train"),
    Key(MODEL + "lora_r", "{stage}.lora.r", WHOLE, "the rank", "64", "train"),
    Key(MODEL + "lora_alpha", "{stage}.lora.alpha", NUMBER, "the update counts alpha / r", "128", "train"),
    Key(MODEL + "lora_dropout", "{stage}.lora.dropout", NUMBER, "on the input of each update", "0.05", "train"),
    Key(MODEL + "gradient_checkpoint", "compute.gradient_checkpointing", FLAG, "moves the last bits at most; theirs "
        "leaves the tower out", "True", "train"),
    Key("run.max_seq_len", "{stage}.max_text_tokens", WHOLE, "longer samples lose whole turns here, and tokens there",
        "512", "train"),
    Key("run.image_tokens", "", WHOLE, "an image always takes what its adapter makes of it, beside max_text_tokens",
        "-1"),
    Key("run.train_padding_side", "", TEXT, "padding is masked and positions count without it: its side changes "
        "nothing"),
    Key("run.test_padding_side", "", TEXT, "batches are padded on the left to generate, as there", "left"),
    Key("run.train_shuffle", "", FLAG, "the order is always drawn from the seed", "False"),
    Key("module.optimizer.lr", "{stage}.optim.lr", NUMBER, "of adapter and LoRA", "0.0002", "train"),
    Key("module.optimizer.lora_lr", "{stage}.optim.lr", OPTIONAL, "of LoRA alone; lr is then adapter_lr", None,
        "train"),
    Key("module.optimizer.vit_lr", "{stage}.optim.tower_lr", OPTIONAL, "of the tower, where it learns", None, "train"),
    Key("module.optimizer.weight_decay", "{stage}.optim.weight_decay", NUMBER, "biases and norms do not decay here",
        "0.0", "train"),
    Key("module.optimizer.vit_weight_decay", "{stage}.optim.tower_weight_decay", OPTIONAL, "of the tower, where it "
        "learns", None, "train"),
    Key("module.scheduler.num_warmup_steps", "{stage}.optim.warmup", NUMBER, "below 1 a fraction of all steps", "0.03",
        "train"),
    Key("trainer.gradient_clip_val", "{stage}.optim.clip", OPTIONAL, "the norm of all gradients together", "1.0",
        "train"),
    Key("run.train_batch_size", "{stage}.batch_samples", WHOLE, "samples = this x devices x accumulate_grad_batches",
        "1", "train"),
    Key("trainer.accumulate_grad_batches", "{stage}.batch_samples", WHOLE, "see run.train_batch_size", "1", "train"),
    Key("trainer.devices", "{stage}.batch_samples", DEVICES, "see run.train_batch_size; also the number of processes "
        "in the command that is printed", "1"),
    Key("run.test_batch_size", "compute.evaluate_batch", WHOLE, "answers generated at once", "8"),
    Key("run.train_num_workers", "compute.loader_workers", WHOLE, "processes that read images", "6", "train"),
    Key("run.test_num_workers", "compute.loader_workers", WHOLE, "processes that read images", "1", "test"),
    Key("run.seed", "seed", WHOLE, "draws order, adapter and LoRA, but by other generators than theirs", "42"),
    Key("trainer.max_epochs", "{stage}.epochs", NUMBER, "passes over the file", "1", "train"),
    Key("trainer.val_check_interval", "{stage}.validate_every", TEXT, "with a point a share of an epoch, else a number "
        "of micro-batches", "0.25", "train"),
    Key("trainer.strategy", "compute.strategy", _choice(STRATEGIES), "DeepSpeed's stage 2 where absent, and auto on "
        "one device", None),
    Key("trainer.precision", "compute.precision", _choice(PRECISIONS), "autocast over fp32 weights", "bf16"),
    Key("logger.wandb.tags", "tags", LABELS, "labels of the record and of the tracker"),
    Key("logger", "", TEXT, "sweeps are tracked by MLflow, single runs by their folder"),
)  # fmt: skip

FIXED: dict[str, tuple[Any, str]] = {
    "model.template": ("centurio", "its chat templates"),
    "model.feature_layer": (-2, "the penultimate block of the tower"),
    "{stage}.train.adapter": ("full", "the adapter always learns"),
    "{stage}.optim.betas": ([0.9, 0.999], "those of bitsandbytes' AdamW"),
    "{stage}.optim.schedule": ("cosine", "get_cosine_schedule_with_warmup"),
}
"""Our field -> (value, why): what Centurio does without an override."""


@dataclass(frozen=True)
class Benchmark:
    """Where Centurio keeps the data of an evaluation, and what `python -m lvlm benchmark` makes of it."""

    name: str
    """What that command calls it."""
    folder: str
    """Of its files, under run.train_data."""
    images: str
    """The override that says where its images lie."""
    beside: str | None
    """Where they lie under run.image_root, if that override is absent."""
    tasks: tuple[str, ...]
    first: int | None = None
    """How many items of the file it takes, where that is not all."""
    max_new_tokens: int = 10
    differs: str = ""
    """How its scores differ from ours."""


LETTERS = "an answer chooses a letter here, and may begin or end with it in Centurio's relaxed match"
MAXM = Benchmark("maxm", "maxm", "run.xm3600_image_root", "Crossmodal3600/images", ("maxm",))
XM3600 = Benchmark(
    "xm3600", "xm3600", "run.xm3600_image_root", "Crossmodal3600/images", ("xm3600",), first=512, max_new_tokens=128,
    differs="CIDEr divides zh, ja and th into words by ICU and not by spaCy, and captions are generated without the "
    "repetition penalty of 1.1",
)  # fmt: skip
SMPQA = Benchmark("smpqa", "smpqa", "run.smpqa_image_root", "smpqa", ("smpqa_ground", "smpqa_read"))
MTVQA = Benchmark("mtvqa", "mtvqa", "run.mtvqa_image_root", "mtvqa/test", ("mtvqa",))
M3EXAM = Benchmark(
    "m3exam", "m3exam", "run.m3exam_image_root", "m3exam/data/multimodal-question", ("m3exam",), differs=LETTERS
)
MMMU = Benchmark("mmmu", "mmmu", "run.mmmu_image_root", "mmmu/images", ("mmmu",),
                 differs=f"the validation set without the few items of dev; {LETTERS}")  # fmt: skip
XGQA = Benchmark("xgqa", "xgqa", "run.gqa_image_root", "gqa/images", ("xgqa",))
BIN_MC = Benchmark("bin_mc", "babel-imagenet", "run.imagenet_image_root", None, ("bin_mc",), differs=LETTERS)


@dataclass(frozen=True)
class Experiment:
    """One YAML of Centurio: the stage that it trains or the benchmark that it scores, and where its defaults are not
    those of the table."""

    stage: str | None = None
    benchmark: Benchmark | None = None
    defaults: Mapping[str, str | None] = field(default_factory=dict)


PHI, QWEN = "microsoft/Phi-3.5-mini-instruct", "Qwen/Qwen2.5-7B-Instruct"
SIGLIP = "vit_so400m_patch14_siglip_384"
LLM, TOWER, BATCH = "run.llm", "run.vit_model", "run.test_batch_size"
FOUR_BITS, FLASH, POOL = MODEL + "load_4bit", MODEL + "use_flash_attn", ADAPTER + "pool"
_EARLY: dict[str, str | None] = {
    LLM: "stabilityai/stablelm-2-zephyr-1_6b", TOWER: "vit_large_patch14_clip_224.openai", BATCH: "16",
    FOUR_BITS: "False", FLASH: "False", POOL: None,
}  # fmt: skip
EXPERIMENTS: dict[str, Experiment] = {
    "mblipv2_train": Experiment("instruct"),
    "mblipv2_pretrain": Experiment("pretrain", defaults={LLM: PHI, "run.train_batch_size": "2"}),
    "mblipv2_train_vit": Experiment("instruct", defaults={
        LLM: PHI, MODEL + "freeze_vit": "False", "trainer.strategy": "auto", "module.optimizer.lr": "0.0001",
        "module.optimizer.vit_lr": "0.00001", "module.optimizer.vit_weight_decay": "0.0",
    }),
    "mblipv2_test_maxm": Experiment(benchmark=MAXM, defaults={
        LLM: QWEN, TOWER: SIGLIP, BATCH: "2", FOUR_BITS: "False", POOL: None,
    }),
    "mblipv2_test_xm3600": Experiment(benchmark=XM3600, defaults=_EARLY),
    "mblipv2_test_smpqa": Experiment(benchmark=SMPQA, defaults={BATCH: "1"}),
    "mblipv2_test_mtvqa": Experiment(benchmark=MTVQA, defaults={BATCH: "1"}),
    "mblipv2_test_m3exam-standard": Experiment(benchmark=M3EXAM, defaults={
        LLM: PHI, TOWER: SIGLIP, BATCH: "1", FOUR_BITS: "False",
    }),
    "mblipv2_test_mmmu": Experiment(benchmark=MMMU, defaults={BATCH: "1"}),
    "mblipv2_test_xgqa": Experiment(benchmark=XGQA, defaults=_EARLY),
    "mblipv2_test_babelimagenet": Experiment(benchmark=BIN_MC, defaults=_EARLY),
}  # fmt: skip
REFUSED = {
    "mblipv2_test_m3exam": "the defaults of its file are not known; give its line as mblipv2_test_m3exam-standard and "
    "evaluate on what `python -m lvlm benchmark m3exam_cyclic` makes of its questions, whose metric `together` is its "
    "score",
    "mblipv2_train_resume": "a run here resumes where it stopped when it is started again with the same folder; give "
    "the experiment that was interrupted",
}
"""Experiment -> why it has no counterpart."""
