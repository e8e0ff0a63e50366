"""The stage `align`: text two by two in a step, a contrastive term that no memory setting moves, and a stage like any
other: planned, cached, resumed, continued by the stages after it."""

from __future__ import annotations

import os
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lvlm.config import RunConfig, fingerprint, make_config
from lvlm.data.corpus import open_corpus
from lvlm.data.plan import build_plan, draw_pairs
from lvlm.errors import InputError
from lvlm.model.states import text_states
from lvlm.run import run
from lvlm.train.batches import SampleEncoder, StepBatches
from lvlm.train.compute import compute
from lvlm.train.contrast import StepContrast, info_nce, pairs_of, step_contrast
from lvlm.train.strategies import WholeCopies, sum_over_processes
from tests.corpora import make_corpus, train_row, write_rows
from tests.processes import together
from tests.tiny import tiny_world

LANGUAGES = ("en", "de", "sw")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A parallel corpus without images."""
    folder = make_corpus(tmp_path_factory.mktemp("text"), LANGUAGES, rows=24)
    for code in LANGUAGES:
        rows = [
            train_row(n, code, turns=1 + n % 2, label=[f"{code} {'word ' * (n % 5)}{n}"] * (1 + n % 2))
            for n in range(24)
        ]
        write_rows(folder / "instruct" / f"{code}.jsonl", [{**row, "image_id": []} for row in rows])
    return folder


def config(text: Path, **align: Any) -> RunConfig:
    """A run of the stage `align` alone; of keywords, `__` stands for a dot."""
    stage: dict[str, Any] = {
        "mix": {"corpora": [{"path": str(text), "split": "instruct"}], "languages": list(LANGUAGES), "parallel": 0.5},
        "train": {"adapter": "frozen", "llm": "full"},
        "batch_samples": 8,
        "steps": 3,
        "contrast": {"weight": 0.5},
    }
    for name, value in align.items():
        place = stage
        *parents, last = name.split("__")
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    return make_config({
        "model": {"tower": tiny_world().tower, "llm": tiny_world().llm},
        "align": stage,
        "compute": {"device": "cpu", "threads": 1},
    })  # fmt: skip


def planned(found: RunConfig, text: Path, **changes: Any) -> Any:
    assert found.align is not None
    return build_plan("align", found.align, seed=0, corpora={str(text): open_corpus(text)}, **changes)


def test_both_sides_of_a_parallel_sample_are_in_one_step_and_one_is_in_the_pivot(text: Path) -> None:
    plan = planned(config(text, steps=None, epochs=2), text)
    assert len(plan.order) == 48
    paired = 0
    for step in range(plan.steps):
        sides: dict[str, set[str]] = {}
        for entry in plan.step_entries(step):
            sides.setdefault(entry.id, set()).add(entry.language)
        assert all("en" in found for found in sides.values() if len(found) == 2)
        paired += sum(len(found) == 2 for found in sides.values())
    assert paired == 2 * 6  # of 24 samples half in pairs, twice


def test_a_larger_share_keeps_the_pairs_of_a_smaller_one_and_the_number_of_samples(text: Path) -> None:
    def pairs(share: float) -> set[str]:
        found = config(text, mix__parallel=share, steps=None, contrast={})
        plan = planned(found, text)
        assert len(plan.order) == 24
        return {name for name, times in Counter(entry.id for entry in plan.order).items() if times == 2}

    assert [len(pairs(share)) for share in (0.0, 0.1, 0.5, 1.0)] == [0, 1, 6, 12]
    assert pairs(0.1) < pairs(0.5) < pairs(1.0)


def test_pairs_never_straddle_a_step_while_single_samples_are_left() -> None:
    alike = np.array([number % 3 == 0 for number in range(29)])  # ten pairs and ten single samples
    order = draw_pairs(alike, 30, 3, batch_samples=5)
    assert sorted(order.tolist()) == list(range(30))
    first = np.flatnonzero(alike)
    place = np.argsort(order)
    assert (place[first] // 5 == place[first + 1] // 5).sum() >= 9
    with pytest.raises(InputError, match="batch_samples is 5, an odd number"):
        draw_pairs(np.array([True, False] * 4 + [True]), 10, 0, batch_samples=5)


def gradients(
    found: RunConfig, text: Path, *, token_budget: int, packing: bool = False, processes: int = 1
) -> tuple[torch.Tensor, float]:
    """(the gradient of the first step over all weights and processes, the contrastive term)."""
    assert found.align is not None
    model, processor = tiny_world().assemble()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("language_model."))
    encoder = SampleEncoder(processor)
    plan = planned(found, text, measure=encoder.measure)
    with compute(found.compute) as machinery:
        rank = machinery.accelerator.process_index
        assert machinery.accelerator.num_processes == processes
        batches = StepBatches(
            plan, encoder, "token", token_budget=token_budget, packing=packing, rank=rank, processes=processes
        )
        strategy = WholeCopies(model, found.align, machinery.accelerator, machinery.autocast)
        term = step_contrast(model, batches, 0, found.align, machinery) if found.align.contrast.weight else None
        for batch in batches(0):
            strategy.backward(term.pull(batch) if term else batch, {})
        sum_over_processes(machinery.accelerator, strategy.learning)
    return torch.cat([p.grad.flatten() for p in strategy.learning if p.grad is not None]), term.value if term else 0.0


@pytest.mark.parametrize(("budget", "packing"), [(64, False), (128, False), (96, True), (4096, True)])
def test_the_contrastive_objective_does_not_depend_on_the_micro_batches(text: Path, budget: int, packing: bool) -> None:
    whole, value = gradients(config(text, mix__parallel=1.0), text, token_budget=1 << 20)
    split, same = gradients(config(text, mix__parallel=1.0), text, token_budget=budget, packing=packing)
    assert value > 0 and same == pytest.approx(value, rel=1e-6)
    assert torch.linalg.norm(split - whole) < 1e-5 * torch.linalg.norm(whole)


def test_two_processes_have_the_gradient_of_one(text: Path, tmp_path: Path) -> None:
    found = config(text, mix__parallel=1.0)
    tiny_world()

    def work(processes: int) -> None:
        total, value = gradients(found, text, token_budget=128, processes=processes)
        if os.environ.get("RANK", "0") == "0":
            torch.save((total, value), tmp_path / f"{processes}.pt")

    for processes in (1, 2):
        assert together(partial(work, processes), processes) == [0] * processes
    (one, alone), (both, shared) = (torch.load(tmp_path / f"{processes}.pt") for processes in (1, 2))
    assert shared == pytest.approx(alone, rel=1e-6) and alone > 0
    assert torch.linalg.norm(both - one) < 1e-5 * torch.linalg.norm(one)


def test_the_gradient_is_that_of_the_formula(text: Path) -> None:
    """Against autograd through the term written out for one batch of the whole step."""
    found = config(text, mix__parallel=1.0)
    assert found.align is not None
    with_term, value = gradients(found, text, token_budget=1 << 20)
    without, _ = gradients(config(text, mix__parallel=1.0, contrast={}), text, token_budget=1 << 20)
    model, processor = tiny_world().assemble()
    encoder = SampleEncoder(processor)
    plan = planned(found, text, measure=encoder.measure)
    means = {}
    for entry in plan.step_entries(0):
        ids = encoder(plan.sample(entry)).ids[None]
        means[entry.number] = text_states(model.language_model, {"input_ids": ids})[1].mean(dim=1)[0]
    pairs = pairs_of(plan.step_entries(0), "en")
    assert len(pairs) >= 2
    sides = [torch.stack([means[pair[side]] for pair in pairs]) for side in (0, 1)]
    term = 0.5 * info_nce(*sides, 0.1)
    assert float(term.detach()) == pytest.approx(value, rel=1e-5)
    learning = [p for name, p in model.named_parameters() if name.startswith("language_model.")]
    grads = torch.autograd.grad(term, learning, allow_unused=True)
    written = torch.cat(
        [torch.zeros_like(p).flatten() if g is None else g.flatten() for p, g in zip(learning, grads, strict=True)]
    )
    assert torch.linalg.norm(with_term - without - written) < 1e-4 * torch.linalg.norm(written)


def test_the_term_falls_where_the_sides_of_pairs_agree_and_is_nothing_for_one_pair(text: Path) -> None:
    rows = torch.eye(4)
    assert info_nce(rows, rows, 0.1) < 1e-3 < info_nce(rows, rows.flip(0), 0.1)
    assert StepContrast(0.0, {}).gradients == {}
    alone = config(text, mix__parallel=0.1, batch_samples=2)
    assert gradients(alone, text, token_budget=4096)[1] == 0.0


def test_a_run_with_align_trains_the_llm_alone_once_and_the_next_stage_goes_on_from_it(
    text: Path, tmp_path: Path
) -> None:
    pictures = make_corpus(tmp_path, ("en", "de"), name="pictures")
    data = config(text, train__llm="lora").model_dump(mode="json")
    uses = [{"path": str(pictures), "split": "instruct"}]
    data["pretrain"] = {"mix": {"corpora": uses, "languages": "en"}, "steps": 2}
    data["evaluate"] = {"corpora": [{"path": str(pictures), "split": "test"}], "items": 2, "max_new_tokens": 2}
    record = run(make_config(data), tmp_path / "one", home=tmp_path / "home")
    assert list(record.stage_keys) == ["align", "pretrain"]
    assert record.budget["align/images"] == 0 and record.budget["align/samples"] == 24
    data["pretrain"]["steps"] = 1
    again = run(make_config(data), tmp_path / "two", home=tmp_path / "home")
    assert again.provenance["stages_trained_here"] == ["pretrain"]
    assert again.stage_keys["align"] == record.stage_keys["align"]


def test_a_config_without_the_new_fields_keeps_its_fingerprint(text: Path) -> None:
    stage = {"mix": {"corpora": [{"path": "data/x", "split": "y"}]}}
    old = make_config({"instruct": stage}).model_dump(mode="json")
    assert "align" not in old and "contrast" not in old["instruct"]
    assert not {"pairs", "pivot", "parallel"} & set(old["instruct"]["mix"])
    assert fingerprint(make_config(old).model_dump(mode="json")) == fingerprint(old)
    kept = make_config({"align": {**stage, "train": {"adapter": "frozen", "llm": "full"}}}).model_dump(mode="json")
    assert make_config(kept).align is not None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train__adapter": "full"}, r"align\.train\.adapter is full, but align reads text alone"),
        ({"mix__parallel": 0.0}, r"mix\.parallel is 0, so that there are no pairs"),
        ({"contrast": {"temperature": 0.2}}, r"contrast\.weight is 0; leave them out"),
        ({"train__llm": "lora", "lora": {"dropout": 0.1}}, "states that are dropped from cannot be compared"),
    ],
)  # fmt: skip
def test_settings_of_align_that_cannot_be_are_errors(text: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        config(text, **changes)


def test_align_refuses_images_and_a_layer_that_the_llm_has_not(text: Path, tmp_path: Path) -> None:
    pictures = make_corpus(tmp_path, LANGUAGES)
    with pytest.raises(InputError, match="stage align, which reads text alone"):
        run(config(pictures), tmp_path / "run", home=tmp_path)
    with pytest.raises(InputError, match=r"contrast\.layer is 9, but the LLM has 2 blocks"):
        gradients(config(text, contrast__layer=9), text, token_budget=4096)


@pytest.mark.parametrize("pivot", ["en", "sw"])
def test_pairs_are_exact_in_every_language_but_the_pivot_and_nested(text: Path, pivot: str) -> None:
    def languages(pairs: int) -> dict[str, str]:
        mix = {"allocation": "pairs", "pairs": pairs, "pivot": pivot, "parallel": 0.0}
        found = config(text, steps=None, contrast={}, **{f"mix__{name}": value for name, value in mix.items()})
        return {entry.id: entry.language for entry in planned(found, text).order}

    before: dict[str, str] = {}
    for pairs in (0, 1, 4, 12):
        chosen = languages(pairs)
        others = [code for code in LANGUAGES if code != pivot]
        counts = Counter(chosen.values())
        assert {code: counts[code] for code in others} == dict.fromkeys(others, pairs)
        assert counts[pivot] == 24 - 2 * pairs
        assert all(chosen[name] == code for name, code in before.items() if code != pivot)
        before = chosen


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mix__pairs": 13}, "pairs=13 in each of 2 languages, 26 samples together, but draws only 24"),
        ({"mix__pivot": "fr"}, r"'pivot' is fr, which its 'languages' lack"),
        ({"mix__languages": ["en"]}, r"'pairs' is 4, but en, the pivot, is its only language"),
        ({"mix__english_share": 0.5}, "counts samples, so that english_share would change nothing"),
    ],
)  # fmt: skip
def test_pairs_that_cannot_be_are_errors(text: Path, changes: dict[str, Any], message: str) -> None:
    settings = {"mix__allocation": "pairs", "mix__pairs": 4, "mix__parallel": 0.0, "contrast": {}, **changes}
    with pytest.raises(InputError, match=message):
        planned(config(text, **settings), text)
