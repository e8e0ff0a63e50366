"""Command lines of Centurio's README become run configs that say the same; what contradicts itself, is unknown or has
no counterpart is refused with the reason."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lvlm import cli
from lvlm.config import RunConfig, check_path, load_config, to_yaml
from lvlm.data.benchmarks import BENCHMARKS
from lvlm.errors import InputError
from lvlm.records import TASKS
from lvlm.trident import Translation, from_trident
from lvlm.trident.fields import DERIVED, SCORED, TRAINED
from lvlm.trident.keys import EXPERIMENTS, FIXED, REFUSED, TABLE

TRAIN = r"""
python -u -m trident.run experiment=mblipv2_train \
  run.train_data=/p/data/jsons \ # where all data files lie
  run.image_root=/p/data/images \
  run.train_file=multilingual/combination/mblipv2_instruct_base_en.json \
  hydra.run.dir=$output \  # the folder of the run
  ++run.llm=microsoft/Phi-3.5-mini-instruct ++run.vit_model=vit_so400m_patch14_siglip_384 \
  ++run.train_padding_side="left" module.model.adapter_type="mlp" module.model.load_4bit=False \
  module.model.use_flash_attn=True module.model.use_lora=True \
  module.optimizer.lr=0.0001 module.optimizer.weight_decay=0.0 \
  module.model.lora_r=256 module.model.lora_alpha=512 ++run.max_seq_len=1024 \
  run.test_batch_size=2 run.test_num_workers=2 run.train_batch_size=2 run.train_num_workers=6 \
  trainer.devices=$NUM_GPUS trainer.accumulate_grad_batches=$ACCUM ++run.seed=4242 \
  trainer.val_check_interval=0.25 ++trainer.strategy="ddp_find_unused_parameters_true" \
  '++logger.wandb.tags=[training,english_only]' \
"""
TILED = '++run.multi_scale=2 module.model.adapter_type="multiscale-pool" ++module.model.adapter_config.multi_scale=2'
SAVED = "/checkpoints/12_08_2024_09_58_16/checkpoints/0-24250"
TEST = rf"""
python -u -m trident.run experiment=mblipv2_test_maxm run.train_data=/p/data/jsons \
  run.xm3600_image_root=/p/data/images/maxm hydra.run.dir=$output \
  ++module.model.train_checkpoint={SAVED}.ckpt/checkpoint/mp_rank_00_model_states.pt \
  ++module.model.lora_checkpoint={SAVED} \
  ++run.llm=meta-llama/Meta-Llama-3-8B-Instruct ++run.vit_model=vit_so400m_patch14_siglip_384 \
  ++run.train_padding_side="left" module.model.adapter_type="mlp" module.model.load_4bit=False \
  module.model.use_flash_attn=True module.model.use_lora=True run.test_batch_size=2 run.test_num_workers=16 \
  trainer.devices=1 '++logger.wandb.tags=[eval,maxm]'
"""


def trained(*changes: str, line: str = TRAIN) -> Translation:
    """The training line on 4 devices with 4 steps of accumulation, and `changes` behind it."""
    line = line.replace("$NUM_GPUS", "4").replace("$ACCUM", "4").rstrip().removesuffix("\\")
    return from_trident([" ".join([line, *changes])])


def scored(*changes: str, experiment: str = "mblipv2_test_maxm") -> Translation:
    line = TEST.replace("mblipv2_test_maxm", experiment)
    return from_trident([" ".join([line.strip(), *changes])])


def refusal(*changes: str, **line: str) -> str:
    with pytest.raises(InputError) as refused:
        (scored if "experiment" in line else trained)(*changes, **line)
    return str(refused.value)


def flat(config: RunConfig, *fields: str) -> list[Any]:
    """Values of dotted fields."""
    values = []
    for field in fields:
        value: Any = config
        for part in field.split("."):
            value = getattr(value, part)
        values.append(value)
    return values


def test_the_training_line() -> None:
    config = trained().config
    assert flat(config, "name", "tags", "seed") == ["mblipv2_train", ("training", "english_only"), 4242]
    assert flat(config.model, "llm", "tower") == ["microsoft/Phi-3.5-mini-instruct", "vit_so400m_patch14_siglip_384"]
    assert flat(config.model, "adapter", "tiles", "attn", "load_4bit", "template", "feature_layer", "checkpoint") == [
        "mlp", 1, "flash_attention_2", False, "centurio", -2, None,
    ]  # fmt: skip
    stage = config.instruct
    assert stage is not None and config.pretrain is None
    (use,) = stage.mix.corpora
    assert use.path == "/p/data/jsons/multilingual/combination/mblipv2_instruct_base_en.json"
    assert (use.split, use.images, stage.mix.english_share) == ("train", "/p/data/images", None)
    assert flat(stage, "train.tower", "train.adapter", "train.llm") == ["frozen", "full", "lora"]
    assert flat(stage, "lora.r", "lora.alpha", "lora.dropout") == [256, 512, 0.05]
    assert flat(stage.optim, "lr", "adapter_lr", "weight_decay", "warmup", "schedule", "clip", "betas") == [
        1e-4, None, 0, 0.03, "cosine", 1.0, (0.9, 0.999),
    ]  # fmt: skip
    assert flat(stage, "batch_samples", "epochs", "max_text_tokens", "validate_every") == [2 * 4 * 4, 1, 1024, 0.25]
    assert flat(config.compute, "strategy", "gradient_checkpointing", "loader_workers", "evaluate_batch") == [
        "ddp", True, 6, 2,
    ]  # fmt: skip


def test_the_tiled_line_changes_adapter_and_tiles_alone() -> None:
    plain, tiled = trained().config, trained(line=TRAIN.replace('module.model.adapter_type="mlp"', TILED)).config
    assert flat(tiled.model, "adapter", "tiles") == ["multiscale-pool", 2]
    assert tiled.model_copy(update={"model": plain.model}) == plain


def test_the_evaluation_line() -> None:
    found = scored()
    config, notes = found.config, " ".join(found.notes)
    assert not config.stages() and config.tags == ("eval", "maxm")
    assert config.model.checkpoint == f"{SAVED}.ckpt/checkpoint/mp_rank_00_model_states.pt"
    (use,) = config.evaluate.corpora
    assert (use.path, use.split, use.images) == ("runs/data/maxm", "test", "/p/data/images/maxm")
    assert flat(config, "evaluate.tasks", "evaluate.max_new_tokens") == [("maxm",), 10]
    assert flat(config.compute, "loader_workers", "evaluate_batch") == [16, 2]
    assert found.command == 'python -m lvlm train RUN.yaml --folder "$output"'
    assert "lvlm benchmark maxm /p/data/jsons/maxm runs/data/maxm --images /p/data/images/maxm" in notes
    assert "--first 512" in " ".join(scored(experiment="mblipv2_test_xm3600").notes)
    assert scored("module.model.load_4bit=True", "trainer.devices=2").command.startswith("torchrun --nproc-per-node 2 ")


def test_what_is_printed_is_read_back_equal_and_says_how_to_run_it(tmp_path: Path, capsys: Any) -> None:
    for translation in (trained(), scored()):
        (tmp_path / "run.yaml").write_text(translation.text())
        read = load_config(tmp_path / "run.yaml")
        assert read == translation.config and translation.text().endswith("\n" + to_yaml(read))
    (tmp_path / "run.yaml").write_text(trained().text())
    ran = trained().text().splitlines()[0].partition(" -m lvlm ")[2].replace("RUN.yaml", str(tmp_path / "run.yaml"))
    assert ran.endswith('--folder "$output" instruct.validate_every=null')
    arguments = shlex.split(ran.replace("$output", str(tmp_path / "out")))
    assert cli.main(arguments) == 2  # the whole command is understood, and only the data is not there
    assert "mblipv2_instruct_base_en.json does not exist" in capsys.readouterr().err
    assert "needs evaluate.tune_corpora" in trained().text()


@pytest.mark.parametrize("way", ["quoted", "words", "behind --"])
def test_the_line_comes_quoted_or_as_words(way: str, capsys: Any) -> None:
    line = TRAIN.replace("$NUM_GPUS", "4").replace("$ACCUM", "4")
    words = shlex.split(re.sub(r"\\ *(#.*)?\n", " ", line))
    arguments = {"quoted": [line], "words": words, "behind --": ["--", *words[4:]]}[way]
    assert cli.main(["from-trident", *arguments]) == 0
    assert capsys.readouterr().out == trained().text()


def test_defaults_are_those_of_the_yaml() -> None:
    config = from_trident(["experiment=mblipv2_train", "run.train_data=/d", "run.image_root=/i"]).config
    assert flat(config.model, "llm", "tower", "load_4bit", "attn") == [
        "meta-llama/Meta-Llama-3-8B-Instruct", "vit_large_patch14_clip_336.openai", True, "flash_attention_2",
    ]  # fmt: skip
    assert flat(config, "seed", "instruct.optim.lr", "instruct.lora.r", "instruct.lora.alpha") == [42, 2e-4, 64, 128]
    assert flat(config, "instruct.batch_samples", "instruct.max_text_tokens", "compute.strategy") == [1, 512, "auto"]
    several = from_trident(
        ["experiment=mblipv2_train run.train_data=/d run.image_root=/i trainer.devices=[0,1]"]
    ).config
    assert flat(several, "instruct.batch_samples", "compute.strategy") == [2, "zero2"], "DeepSpeed is their default"


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_gives_a_config(name: str) -> None:
    benchmark, stage = EXPERIMENTS[name].benchmark, EXPERIMENTS[name].stage
    if stage:
        config = trained(line=TRAIN.replace("mblipv2_train", name)).config
        assert list(config.stages()) == [stage]
        tower = flat(config, f"{stage}.train.tower", f"{stage}.optim.tower_lr")
        assert tower == (["full", 1e-5] if name == "mblipv2_train_vit" else ["frozen", None])
        return
    assert benchmark is not None and benchmark.name in BENCHMARKS and set(benchmark.tasks) <= set(TASKS)
    config = scored(f"{benchmark.images}=/images", experiment=name).config
    assert config.evaluate.corpora[0].images == "/images" and config.evaluate.tasks == benchmark.tasks
    if benchmark.beside:
        line = TEST.replace("mblipv2_test_maxm", name).replace("run.xm3600_image_root", "run.image_root")
        assert from_trident([line]).config.evaluate.corpora[0].images == f"/p/data/images/maxm/{benchmark.beside}"


CHANGED: dict[str, tuple[str, Any]] = {
    "run.train_file=other.json": ("instruct.mix.corpora.0.path", "/p/data/jsons/other.json"),
    "run.train_image_root=/q": ("instruct.mix.corpora.0.images", "/q"),
    "run.image_root=[/q]": ("instruct.mix.corpora.0.images", "/q"),
    "++run.overwrite_size=224": ("model.image_size", 224),
    "module.model.use_flash_attn=false": ("model.attn", "sdpa"),
    "module.model.use_flash_attn=False run.llm=google/gemma-2-9b-it": ("model.attn", "eager"),
    "module.model.load_8bit=True": ("model.load_8bit", True),
    "module.model.gradient_checkpoint=False": ("compute.gradient_checkpointing", False),
    "module.optimizer.lora_lr=1e-3": ("instruct.optim.lr", 1e-3),
    "module.scheduler.num_warmup_steps=100": ("instruct.optim.warmup", 100),
    "trainer.gradient_clip_val=null": ("instruct.optim.clip", None),
    "trainer.max_epochs=2": ("instruct.validate_every", 0.125),
    "trainer.val_check_interval=400": ("instruct.validate_every", 100),
    "trainer.val_check_interval=1.0": ("instruct.validate_every", None),
    "trainer.strategy=deepspeed_stage_3": ("compute.strategy", "zero3"),
    "trainer.precision=32-true": ("compute.precision", "fp32"),
    f"module.model.train_checkpoint={SAVED}.ckpt module.model.lora_checkpoint={SAVED}/": (
        "model.checkpoint", f"{SAVED}.ckpt",
    ),
}  # fmt: skip
"""Override -> the field that it changes, and to what."""


@pytest.mark.parametrize("change", CHANGED)
def test_an_override_changes_its_field(change: str) -> None:
    field, wanted = CHANGED[change]
    value: Any = trained(change).config.model_dump(mode="json")
    for part in field.split("."):
        value = value[int(part) if part.isdigit() else part]
    assert value == wanted


def test_rates_of_parts_and_their_conditions() -> None:
    apart = trained("module.optimizer.lora_lr=1e-3", "module.model.freeze_vit=False", "module.optimizer.vit_lr=1e-6")
    assert flat(apart.config, "instruct.optim.lr", "instruct.optim.adapter_lr", "instruct.optim.tower_lr") == [
        1e-3, 1e-4, 1e-6,
    ]  # fmt: skip
    without = trained("module.model.use_lora=False", "module.optimizer.lora_lr=1e-3", "module.optimizer.vit_lr=1e-6")
    assert flat(without.config, "instruct.train.llm", "instruct.optim.lr", "instruct.lora.r") == ["frozen", 1e-4, 16]
    notes = " ".join(without.notes)
    assert "no meaning here: module.model.lora_r=256: use_lora is False" in notes
    assert "no meaning here: module.optimizer.vit_lr=1e-6: the tower is frozen" in notes


def test_what_has_no_meaning_here_is_listed_with_the_reason() -> None:
    trains, scores = " ".join(trained().notes), " ".join(scored("module.model.lora_r=8", "run.image_root=/q").notes)
    assert "no meaning here: run.train_padding_side=left: padding is masked" in trains
    assert "no meaning here: run.test_num_workers=2: only an evaluation reads it" in trains
    assert "no meaning here: run.train_padding_side=left: padding" in scores
    assert "no meaning here: module.model.lora_r=8: nothing is trained" in scores
    assert "no meaning here: run.image_root=/q: run.xm3600_image_root says" in scores


def test_pool_is_a_setting_of_two_adapters() -> None:
    tiles = ("++run.multi_scale=2", "++module.model.adapter_config.multi_scale=2")
    pool = trained("module.model.adapter_type=window-pool", *tiles).config.model
    shuffle = trained("module.model.adapter_type=window-shuffel", *tiles, "++module.model.adapter_config.pool=3").config
    assert flat(pool, "adapter", "pool", "shuffle") == ["window-pool", 12, None]
    assert flat(shuffle.model, "adapter", "pool", "shuffle") == ["window-shuffle", None, 3]


REFUSALS: dict[str, str] = {
    "trainer.devices=$NUM_GPUS": "holds a variable that nothing has replaced; give a number of devices",
    "trainer.accumulate_grad_batches=${ACCUM}": "give a whole number",
    "run.train_data=$DATA/jsons": "run.train_data=$DATA/jsons holds a variable",
    "hydra.run.dir=${now:%Y}": "holds a variable that nothing has replaced; give a folder",
    "module.model.lora_rank=8": "'module.model.lora_rank' is unknown. The nearest known ones are: module.model.lora_r",
    "~logger": "'~logger' is no override of the form key=value",
    "--multirun": "'--multirun' is no override",
    "module.model.adapter_type=window-shuffle": "give one of mlp, multiscale-pool, window-pool, window-shuffel",
    "run.image_process_mode=letterbox": "its letterbox pads the large view alone",
    "run.image_root=[/a,/b]": "give one folder (where Centurio looks through several",
    "module.model.load_4bit=yes": "give True or False",
    "trainer.strategy=fsdp": "give one of auto, ddp",
    "trainer.val_check_interval=401": "401 micro-batches are 100.25 steps of 4",
    "trainer.val_check_interval=often": "give a share such as 0.25",
    "module.optimizer.lr=nan": "'instruct.optim.lr'",
    "'logger.wandb.tags=[a/b]'": "'tags.0'",
    "++run.multi_scale=2": "run.multi_scale=2 cuts every image into 5 views and module.model.adapter_type=mlp expects",
    "module.model.adapter_type=multiscale-pool": "run.multi_scale is 1 (its default) and run.multiscale is 2 (its",
    "module.model.adapter_type=multiscale-pool ++run.multi_scale=2 ++module.model.adapter_config.multi_scale=3": (
        "run.multi_scale is 2 (given) and module.model.adapter_config.multi_scale is 3 (given), and they have to "
        "agree: Centurio cuts images by the first"
    ),
    "module.model.adapter_type=multiscale-pool ++module.model.adapter_config.multi_scale=1": "expects at least five",
    f"module.model.lora_checkpoint={SAVED}": "lacks module.model.train_checkpoint=...",
    f"module.model.train_checkpoint={SAVED}.ckpt": f"Give module.model.lora_checkpoint={SAVED}.",
    f"module.model.train_checkpoint={SAVED}.ckpt module.model.lora_checkpoint=/other": "/other does not belong to",
    f"module.model.train_checkpoint=/x.pt module.model.lora_checkpoint={SAVED}": "has no part such as 0-24250.ckpt",
}
"""What is added to the training line -> what the error says."""


@pytest.mark.parametrize("change", REFUSALS)
def test_what_cannot_be_done_here_is_refused_with_the_reason(change: str) -> None:
    assert REFUSALS[change] in refusal(change)


@pytest.mark.parametrize("name", [*REFUSED, "mblipv2_test_flores"])
def test_an_experiment_without_a_counterpart_is_refused(name: str) -> None:
    assert REFUSED.get(name, "The nearest known ones are: mblipv2_test_") in refusal(experiment=name)


def test_a_line_that_lacks_something_is_refused() -> None:
    with pytest.raises(InputError, match=r"names no experiment="):
        from_trident(["run.llm=a"])
    with pytest.raises(InputError, match=r"lacks run\.train_data=\.\.\."):
        from_trident(["experiment=mblipv2_train"])
    with pytest.raises(InputError, match=r"lacks module\.model\.train_checkpoint=\.\.\."):
        from_trident(["experiment=mblipv2_test_maxm run.train_data=/d run.image_root=/i"])
    with pytest.raises(InputError, match="No closing quotation"):
        from_trident(["experiment='mblipv2_train"])


def test_the_command_answers_without_torch() -> None:
    code = (
        "import sys; from lvlm.cli import main\n"
        f"assert main(['from-trident', {TEST!r}]) == 0\n"
        "assert not {'torch', 'transformers', 'pandas', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_every_field_of_the_table_is_a_field_of_ours() -> None:
    names = [key.field for key in TABLE] + [*FIXED, *DERIVED, *TRAINED, *SCORED]
    for name in names:
        if name not in ("", "--folder"):
            check_path(name.format(stage="instruct"))
    assert len({key.name for key in TABLE}) == len(TABLE)


def test_the_page_shows_the_table() -> None:
    def code(text: str | None) -> str:
        return f"`{text}`" if text else ""

    on = {"both": "both", "train": "training", "test": "evaluation"}
    rows = [[code(key.name), code(key.field) or "no meaning", code(key.default), on[key.on], key.says] for key in TABLE]
    rows += [[code(name), code(str(value)), why] for name, (value, why) in FIXED.items()]
    rows += [
        [code(name), f"stage `{entry.stage}`" if entry.stage else f"evaluation of `{entry.benchmark.name}`"]  # type: ignore[union-attr]
        for name, entry in EXPERIMENTS.items()
    ]
    rows += [[code(name), f"none: {why}"] for name, why in REFUSED.items()]
    page = (cli.PRESETS / "TRIDENT.md").read_text(encoding="utf-8")
    shown = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line.startswith("| `")
    ]
    assert shown == rows
