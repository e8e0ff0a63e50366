"""Other programs around our models: vLLM answers for what was exported, and lmms-eval asks its tasks. Both are played
here by modules with their interface (vLLM's `LLM.generate`, lmms-eval 0.7's `lmms`); vLLM's part is computed by stock
LLaVA."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch

from lvlm import cli
from lvlm.errors import InputError
from lvlm.evaluate.generate import Prompt, generate_answers
from lvlm.model.checkpoints import load
from lvlm.model.export import export
from lvlm.model.tiling import open_image, pixels
from tests.corpora import make_corpus
from tests.foreign import make_timm_tower, model_config
from tests.tiny import tiny_image

TOWER = {"img_size": 24, "patch_size": 8, "embed_dim": 16, "depth": 3, "num_heads": 2}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(a checkpoint, the same as stock LLaVA)."""
    from lvlm.model.lvlm import Lvlm

    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("engines")
    tower = make_timm_tower(root / "tower", "vit_base_patch16_siglip_224", image_size=24, **TOWER)
    model, processor = Lvlm.assemble(model_config(tiles=1, adapter="mlp", tower=str(tower)), seed=0)
    model.save_pretrained(root / "model")
    processor.save_pretrained(root / "model")
    export(root / "model", root / "llava", form="llava")
    return root / "model", root / "llava"


class StockLlm:
    """What vLLM's `LLM` is to its callers, by transformers: greedy, one prompt after the other."""

    calls: list[Any] = []  # noqa: RUF012

    def __init__(self, model: str, **settings: Any) -> None:
        from transformers import AutoProcessor, LlavaForConditionalGeneration

        assert settings["generation_config"] == "vllm", "the file's sampling and penalties are left aside"
        self.limit = settings["limit_mm_per_prompt"]["image"]
        self.model = LlavaForConditionalGeneration.from_pretrained(model, dtype=torch.float32)
        self.processor = AutoProcessor.from_pretrained(model)

    @torch.no_grad()
    def generate(self, prompts: Any, sampling_params: Any, *, use_tqdm: bool = True) -> list[Any]:
        self.calls.append(len(prompts))
        return [self._answer(prompt, sampling_params) for prompt in prompts]

    def _answer(self, prompt: Any, asked: Any) -> Any:
        assert (asked.temperature, asked.skip_special_tokens) == (0.0, True)
        images = prompt.get("multi_modal_data", {}).get("image", [])
        token = self.model.config.image_token_index
        assert prompt["prompt_token_ids"].count(token) == len(images) <= self.limit
        repeats = [self.model.config.image_seq_length if id == token else 1 for id in prompt["prompt_token_ids"]]
        ids = [id for id, times in zip(prompt["prompt_token_ids"], repeats, strict=True) for _ in range(times)]
        pixels = (
            {"pixel_values": self.processor.image_processor(images, return_tensors="pt")["pixel_values"]}
            if images
            else {}
        )
        out = self.model.generate(
            input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long), do_sample=False,
            max_new_tokens=asked.max_tokens, eos_token_id=asked.stop_token_ids,
            suppress_tokens=[id for id, bias in (asked.logit_bias or {}).items() if bias == -100.0] or None, **pixels,
        )[0, len(ids) :]  # fmt: skip
        text = self.processor.tokenizer.decode(out, skip_special_tokens=True)
        return SimpleNamespace(finished=True, outputs=[SimpleNamespace(text=text, finish_reason="stop")])


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> type[StockLlm]:
    module = ModuleType("vllm")
    fields = ("temperature", "max_tokens", "stop_token_ids", "logit_bias", "skip_special_tokens")

    def parameters(**values: Any) -> Any:
        assert set(values) == set(fields)
        return SimpleNamespace(**values)

    module.LLM, module.SamplingParams = StockLlm, parameters  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.setattr("lvlm.evaluate.vllm.version", lambda name: "1.2.3")
    StockLlm.calls = []
    return StockLlm


def pictures(folder: Path) -> list[Path]:
    paths = [folder / f"{number}.png" for number in range(3)]
    for number, path in enumerate(paths):
        tiny_image(number, size=(61, 47 + 9 * number)).save(path)
    return paths


def test_vllm_gets_the_ids_and_pixels_that_our_engine_computes_with(
    folders: tuple[Path, Path], vllm: type[StockLlm], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lvlm.evaluate import vllm as module

    images = pictures(tmp_path)
    prompts = [
        Prompt("What colour is it?", (images[0],)),
        Prompt("<image_placeholder> or <image_placeholder>?", (images[2], images[1])),
        Prompt("Say <|im_end|> and stop."),
        Prompt("红色？", (images[1],)),
    ]
    model, processor = load(folders[0])
    expected = generate_answers(model, processor, prompts, max_new_tokens=8)
    assert len(set(expected)) > 2
    answerer = module.VllmAnswerer(folders[1], images=2)
    assert answerer(prompts, max_new_tokens=8) == expected
    told: list[dict[int, str]] = []
    monkeypatch.setattr(module, "AT_ONCE", 2)
    vllm.calls.clear()
    found = answerer(prompts, max_new_tokens=8, known={1: "kept"}, on_answers=lambda some: told.append(dict(some)))
    assert found == [expected[0], "kept", *expected[2:]] and vllm.calls == [2, 1]
    assert [list(some) for some in told] == [[0, 2], [3]]


def test_vllm_never_writes_what_the_model_must_not(
    folders: tuple[Path, Path], vllm: type[StockLlm], tmp_path: Path
) -> None:
    from lvlm.evaluate.vllm import VllmAnswerer

    model, processor = load(folders[0])
    prompts = [Prompt("What colour is it?", (pictures(tmp_path)[0],))]
    free = generate_answers(model, processor, prompts, max_new_tokens=8)
    model.generation_config.suppress_tokens = [processor.tokenizer(free[0], add_special_tokens=False)["input_ids"][0]]
    bound = generate_answers(model, processor, prompts, max_new_tokens=8)
    assert bound != free
    shutil.copytree(folders[1], tmp_path / "llava")
    path = tmp_path / "llava" / "generation_config.json"
    never = {"suppress_tokens": model.generation_config.suppress_tokens}
    path.write_text(json.dumps(json.loads(path.read_text()) | never))
    assert VllmAnswerer(tmp_path / "llava", images=1)(prompts, max_new_tokens=8) == bound


def test_what_vllm_cannot_answer_is_an_error_that_names_it(
    folders: tuple[Path, Path], vllm: type[StockLlm], monkeypatch: pytest.MonkeyPatch
) -> None:
    from lvlm.evaluate.vllm import VllmAnswerer

    answerer = VllmAnswerer(folders[1], images=1)
    prompts = [Prompt("Fine?", name="vqa/en/1"), Prompt("Bad?", name="vqa/de/2")]
    whole = answerer._generate

    def fails(asked: Any, limit: int) -> list[str]:
        if prompts[1] in asked:
            raise ValueError("too long")
        return whole(asked, limit)

    monkeypatch.setattr(answerer, "_generate", fails)
    with pytest.raises(InputError, match=r"no answer to vqa/de/2\. ValueError: too long"):
        answerer(prompts, max_new_tokens=2)
    monkeypatch.undo()
    broken = SimpleNamespace(finished=True, outputs=[SimpleNamespace(text="", finish_reason="abort")])
    monkeypatch.setattr(StockLlm, "generate", lambda self, prompts, *_, **__: [broken] * len(prompts))
    with pytest.raises(InputError, match=r"no answer to vqa/en/1\. RuntimeError: vLLM broke off"):
        answerer(prompts, max_new_tokens=2)


def test_the_command_evaluates_by_vllm(
    folders: tuple[Path, Path], vllm: type[StockLlm], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("LVLM_HOME", str(tmp_path / "home"))
    corpus = make_corpus(tmp_path, ("en", "de"), test_rows=3)
    words = ["--corpus", f"{corpus}:test", "--device", "cpu"]
    assert cli.main(["evaluate", str(folders[0]), *words, "--out", str(tmp_path / "own")]) == 0
    assert cli.main(["evaluate", str(folders[1]), *words, "--engine", "vllm", "--out", str(tmp_path / "vllm")]) == 0
    assert "note: answers by vLLM 1.2.3 in bfloat16" in capsys.readouterr().out
    for name in ("scores.parquet", "predictions.parquet"):
        pd.testing.assert_frame_equal(
            pd.read_parquet(tmp_path / "vllm" / name), pd.read_parquet(tmp_path / "own" / name)
        )
    assert cli.main(["evaluate", str(folders[0]), *words, "--engine", "vllm"]) == 2
    assert "export CHECKPOINT FOLDER --as llava" in capsys.readouterr().err
    assert cli.main(["evaluate", str(folders[1]), *words, "--engine", "vllm", "--processes", "2"]) == 2
    assert "leave --processes out" in capsys.readouterr().err
    assert cli.main(["evaluate", str(tmp_path), *words, "--engine", "vllm"]) == 2
    assert "it is no stock LLaVA" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "vllm", None)
    assert cli.main(["evaluate", str(folders[1]), *words, "--engine", "vllm"]) == 2
    assert "needs the package vllm" in capsys.readouterr().err


# lmms-eval 0.7.3: a model is a subclass of `lmms`; a request is an `Instance` whose `args` are (context, generation
# settings, pictures of a document, its number, task, split), or with a continuation in the place of the settings.


class Lmms:
    def __init__(self) -> None:
        self._rank, self._world_size = 0, 1
        self.cache_hook = SimpleNamespace(add_partial=lambda *_: None)
        self.task_dict: dict[str, dict[str, Any]] = {}

    def clean(self) -> None:
        pass


@pytest.fixture
def lmms_model(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    names = ("lmms_eval", "lmms_eval.api", "lmms_eval.api.instance", "lmms_eval.api.model", "lmms_eval.api.registry")
    modules = {name: ModuleType(name) for name in names}
    modules["lmms_eval.api.instance"].Instance = SimpleNamespace  # type: ignore[attr-defined]
    modules["lmms_eval.api.model"].lmms = Lmms  # type: ignore[attr-defined]
    modules["lmms_eval.api.registry"].register_model = lambda name: lambda kind: kind  # type: ignore[attr-defined]
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    yield importlib.import_module("lvlm.lmms_model")
    sys.modules.pop("lvlm.lmms_model")


def request(*args: Any) -> Any:
    return SimpleNamespace(args=args, task_name=args[-2])


@torch.no_grad()
def loss_of(model: Any, processor: Any, prompt: Prompt, continuation: str) -> float:
    """transformers' own loss of a continuation."""
    ids = processor.encode_prompt(prompt.text, len(prompt.images))
    own = processor.tokenizer(continuation, add_special_tokens=False)["input_ids"]
    views = [pixels(open_image(image), processor.image_transform) for image in prompt.images]
    labels = torch.tensor([[-100] * len(ids) + own])
    out = model.eval()(
        input_ids=torch.tensor([ids + own]), attention_mask=torch.ones_like(labels), labels=labels,
        pixel_values=torch.cat(views),
    )  # fmt: skip
    return float(out.loss)


def test_lmms_eval_gets_our_answers_in_its_order(folders: tuple[Path, Path], lmms_model: Any, tmp_path: Path) -> None:
    from PIL import Image

    images = pictures(tmp_path)
    documents = [{"images": [0], "q": "What colour is it?"}, {"images": [2, 1], "q": "The same?"},
                 {"images": [], "q": "Say a word."}, {"images": [1, 0], "q": "<image> or <image>?"}]  # fmt: skip
    prompts = [
        Prompt("What colour is it?", (images[0],)),
        Prompt("<image_placeholder><image_placeholder>\nThe same?", (images[2], images[1])),
        Prompt("Say a word."),
        Prompt("<image_placeholder> or <image_placeholder>?", (images[1], images[0])),
    ]
    adapter = lmms_model.LvlmModel(pretrained=str(folders[0]), batch_size="2", device="cpu", max_batch_size=None)
    adapter.task_dict = {"toy": {"test": documents}}

    def shown(document: Any) -> list[Image.Image]:
        return [Image.open(images[number]) for number in document["images"]]

    settings = [{"max_new_tokens": 6, "temperature": 0, "do_sample": False, "num_beams": 1, "until": ["\n\n"]}] * 4
    settings[2] = {"max_new_tokens": 2, "do_sample": True, "temperature": 0}
    asked = [request(doc["q"], settings[n], shown, n, "toy", "test") for n, doc in enumerate(documents)]
    model, processor = load(folders[0])
    whole = generate_answers(model, processor, prompts, max_new_tokens=6)
    whole[2] = generate_answers(model, processor, prompts[2:3], max_new_tokens=2)[0]
    assert adapter.generate_until(asked) == whole and len(set(whole)) == 4
    assert adapter.generate_until(asked[::-1]) == whole[::-1]
    cut = whole[0][2:4]
    ended = request(documents[0]["q"], {"max_new_tokens": 6, "until": cut}, shown, 0, "toy", "test")
    assert adapter.generate_until([ended]) == [whole[0].split(cut)[0].strip()]
    for text in ("red", "blue square"):
        (found,) = adapter.loglikelihood([request(documents[3]["q"], text, shown, 3, "toy", "test")])
        assert found == (pytest.approx(loss_of(model, processor, prompts[3], text), rel=1e-5), False)
    (first,) = adapter.loglikelihood([request(documents[0]["q"], lambda document: "x", shown, 0, "toy", "test")])
    assert first[0] == pytest.approx(loss_of(model, processor, prompts[0], "x"), rel=1e-5)
    with pytest.raises(InputError, match="asks for sampling or beams"):
        adapter.generate_until([request("x", {"temperature": 0.7, "do_sample": True}, None, 0, "toy", "test")])
    with pytest.raises(InputError, match="toy asks in rounds"):
        adapter.generate_until_multi_round(asked)
    with pytest.raises(InputError, match="toy/test/0 shows a str"):
        video = request("x", {}, lambda document: ["film.mp4"], 0, "toy", "test")
        adapter.generate_until([video])
    adapter.clean()
    with pytest.raises(InputError, match="no argument tiles"):
        lmms_model.LvlmModel(pretrained=str(folders[0]), tiles=3)
    for size in ("auto", "0"):
        with pytest.raises(InputError, match=f"a whole number .* not '{size}'"):
            lmms_model.LvlmModel(pretrained=str(folders[0]), batch_size=size)


def test_the_command_hands_over_to_lmms_eval(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    seen: list[Any] = []
    names = ("lmms_eval", "lmms_eval.cli", "lmms_eval.cli.dispatch", "lmms_eval.models", "lmms_eval.models.registry_v2")
    modules = {name: ModuleType(name) for name in names}
    registry = SimpleNamespace(register_manifest=lambda manifest, overwrite: seen.append(vars(manifest)))
    modules["lmms_eval.models"].MODEL_REGISTRY_V2 = registry  # type: ignore[attr-defined]
    modules["lmms_eval.models.registry_v2"].ModelManifest = SimpleNamespace  # type: ignore[attr-defined]
    modules["lmms_eval.cli.dispatch"].main = lambda: seen.append(sys.argv[1:])  # type: ignore[attr-defined]
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    before = list(sys.argv)
    assert cli.main(["lmms-eval", str(folders[0]), "--tasks", "mme", "--limit", "2"]) == 0
    assert seen[0] == {"model_id": "lvlm", "simple_class_path": "lvlm.lmms_model.LvlmModel"}
    assert seen[1] == ["--model", "lvlm", "--model_args", f"pretrained={folders[0]}", "--tasks", "mme", "--limit", "2"]
    assert sys.argv == before
    monkeypatch.setitem(sys.modules, "lmms_eval.cli.dispatch", None)
    assert cli.main(["lmms-eval", str(folders[0]), "--tasks", "mme"]) == 2
    assert "pip install lmms-eval" in capsys.readouterr().err
    assert cli.main(["lmms-eval", "/nowhere", "--tasks", "mme"]) == 2
