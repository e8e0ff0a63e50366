"""The gradient of one optimizer step is the same for every split into micro-batches and processes, and pixels or kept
features."""

from __future__ import annotations

import json
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from lvlm.data.corpus import open_corpus
from lvlm.data.plan import build_plan
from lvlm.errors import InputError
from lvlm.model.parts import prepare_training
from lvlm.train.batches import BatchStream, SampleEncoder, StepBatches
from lvlm.train.features import FeatureStore, TowerFeatures
from lvlm.train.loss import weighted_cross_entropy
from lvlm.train.packing import check_isolation, micro_batches, packed_micro_batches
from lvlm.train.strategies import StepLoss
from tests.processes import together
from tests.tiny import tiny_world
from tests.train_worker import train
from tests.train_world import run_config, write_corpus

ONE, FOUR, EIGHT = 100_000, 420, 1
"""Token budgets that split the step of eight samples into one, several and eight micro-batches."""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return write_corpus(tmp_path_factory.mktemp("gradient") / "noise")


@pytest.fixture(autouse=True)
def only_the_budget_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lvlm.train.batches.micro_batches", partial(micro_batches, overhead_tokens=10**6))


def step_of(corpus: Path, reduction: str, budget: int, **split: Any) -> tuple[Any, StepBatches]:
    """The model as it starts a stage without dropout, and its step batches, split by `split` (rank, packing, ...)."""
    config = run_config(corpus, instruct__reduction=reduction, instruct__lora={"r": 4, "alpha": 8, "dropout": 0.0})
    assert config.instruct is not None
    model, processor = tiny_world().assemble(tiles=2)
    prepare_training(model, config.instruct, seed=0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # zero at the start, which would hide the gradient of A
            torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(1))
    encoder = SampleEncoder(processor)
    plan = build_plan(
        "instruct", config.instruct, seed=0, corpora={str(corpus): open_corpus(corpus)}, measure=encoder.measure
    )
    return model, StepBatches(plan, encoder, config.instruct.reduction, token_budget=budget, **split)


def gradient(corpus: Path, reduction: str, budget: int, **split: Any) -> tuple[int, float, torch.Tensor]:
    """(micro-batches, loss, flat gradient) of step 0."""
    model, batches = step_of(corpus, reduction, budget, **split)
    tower = TowerFeatures(model, device=torch.device("cpu"), precision="fp32")
    stream = BatchStream(
        batches, model.config.image_transform, store=None, tower=tower, device=torch.device("cpu"), first_step=0
    )
    total, count, step_loss = 0.0, 0, StepLoss(model, nullcontext)
    for batch, images in stream.step(0):
        loss = step_loss(batch, images)
        loss.backward()
        total, count = total + loss.item(), count + 1
    return count, total, torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])


def relative_difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("reduction", ["token", "sample"])
def test_gradient_does_not_depend_on_micro_batches(corpus: Path, reduction: str) -> None:
    whole, loss, expected = gradient(corpus, reduction, ONE)
    some, loss_some, in_some = gradient(corpus, reduction, FOUR)
    eight, loss_eight, in_eight = gradient(corpus, reduction, EIGHT)
    assert whole < some < eight == 8
    assert relative_difference(in_some, expected) < 1e-6
    assert relative_difference(in_eight, expected) < 1e-6
    assert loss_some == pytest.approx(loss, rel=1e-6) and loss_eight == pytest.approx(loss, rel=1e-6)


@pytest.mark.parametrize("reduction", ["token", "sample"])
def test_gradient_does_not_depend_on_packing(corpus: Path, reduction: str) -> None:
    """Samples end to end in one row, and in several, learn as samples of their own: none sees another, and each has its
    own image."""
    _, loss, expected = gradient(corpus, reduction, ONE)
    row, loss_row, in_row = gradient(corpus, reduction, ONE, packing=True)
    rows, loss_rows, in_rows = gradient(corpus, reduction, FOUR, packing=True)
    assert row == 1 < rows < 8
    assert relative_difference(in_row, expected) < 1e-6
    assert relative_difference(in_rows, expected) < 1e-6
    assert loss_row == pytest.approx(loss, rel=1e-6) and loss_rows == pytest.approx(loss, rel=1e-6)


def test_packed_rows_have_no_padding_and_stay_within_the_budget(corpus: Path) -> None:
    _, batches = step_of(corpus, "token", FOUR, packing=True)
    _, padded = step_of(corpus, "token", FOUR)
    for step in range(batches.plan.steps):
        for batch in batches(step):
            assert batch.input_ids.shape == (1, sum(batch.lengths)) and sum(batch.lengths) <= FOUR
        assert len(batches(step)) <= len(padded(step))
    assert packed_micro_batches([5, 3, 9, 2], 8) == [[2], [0, 1], [3]], "one beyond the budget goes alone"
    assert packed_micro_batches([4, 4, 3, 3, 2], 8) == [[0, 1], [2, 3, 4]]


def test_packing_is_refused_where_samples_would_see_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = tiny_world().assemble()
    check_isolation(model)
    hidden_states = type(model).hidden_states

    def leaking(self: Any, batch: Any, **read: Any) -> torch.Tensor:
        return hidden_states(self, {"input_ids": batch["input_ids"]}, **read)

    monkeypatch.setattr(type(model), "hidden_states", leaking)
    with pytest.raises(InputError, match=r"compute\.packing is on, but Qwen2ForCausalLM lets samples"):
        check_isolation(model)


@pytest.mark.parametrize("packing", [False, True])
def test_in_lockstep_every_process_has_as_many_passes_each_with_an_image(corpus: Path, packing: bool) -> None:
    """And what is added for that adds nothing to the gradient."""
    _, loss, expected = gradient(corpus, "token", ONE)
    shares = [
        gradient(corpus, "token", FOUR, rank=rank, processes=3, lockstep=True, packing=packing) for rank in range(3)
    ]
    assert len({count for count, _, _ in shares}) == 1
    assert sum(share for _, share, _ in shares) == pytest.approx(loss, rel=1e-6)
    assert relative_difference(sum(part for _, _, part in shares), expected) < 1e-6  # type: ignore[arg-type]
    for rank in range(3):
        _, batches = step_of(corpus, "token", 60, rank=rank, processes=3, lockstep=True, packing=packing)
        groups = [group for step in range(batches.plan.steps) for group in batches.groups(step)]
        assert all(any(sample.images for sample, _ in group) for group in groups)
        assert any(not sample.images for group in groups for sample, _ in group), "there are texts among them"


def test_reductions_differ(corpus: Path) -> None:
    """Otherwise the equality above would say nothing about the divisor."""
    by_token, by_sample = gradient(corpus, "token", ONE)[2], gradient(corpus, "sample", ONE)[2]
    assert relative_difference(by_token, by_sample) > 1e-2


def test_token_loss_equals_the_plain_mean_of_one_padded_batch(corpus: Path) -> None:
    """The same number from transformers' own loss: all samples padded together, mean over labels."""
    model, batches = step_of(corpus, "token", ONE)
    samples = [batches.plan.sample(entry) for entry in batches.plan.step_entries(0)]
    processor = batches.encoder.processor
    inputs = processor.collate([processor.encode_sample(sample.turns, len(sample.images)) for sample in samples])
    images = [image for sample in batches.samples(0) for image in sample.images]
    features = TowerFeatures(model, device=torch.device("cpu"), precision="fp32")(images)
    with torch.no_grad():
        expected = model(**inputs, image_features=features).loss.item()
    assert gradient(corpus, "token", FOUR)[1] == pytest.approx(expected, rel=1e-5)


def test_a_step_is_a_pure_function_of_plan_and_step(corpus: Path) -> None:
    _, batches = step_of(corpus, "token", FOUR)
    _, again = step_of(corpus, "token", EIGHT)
    for step in reversed(range(batches.plan.steps)):
        assert batches.plan.step_entries(step) == again.plan.step_entries(step)
        assert sum(len(batch.lengths) for batch in batches(step)) == len(again(step)) == 8


def test_processes_share_a_step_without_overlap(corpus: Path) -> None:
    _, alone = step_of(corpus, "token", EIGHT)
    whole = sorted(batch.targets.tolist() for batch in alone(1))
    weight = float(alone(1)[0].weights[0])
    parts = []
    for rank in range(3):
        _, share = step_of(corpus, "token", EIGHT, rank=rank, processes=3)
        for batch in share(1):
            parts.append(batch.targets.tolist())
            assert float(batch.weights[0]) == weight, "the divisor is that of the whole step"
    assert sorted(parts) == whole


def test_a_micro_batch_without_supervised_tokens_gives_no_nan(corpus: Path) -> None:
    model, batches = step_of(corpus, "token", ONE)
    (batch,) = batches(0)
    hidden = model.hidden_states({"input_ids": batch.input_ids[:, :3]})
    nothing = torch.zeros(0, dtype=torch.long)
    loss = weighted_cross_entropy(model.logits(hidden.flatten(0, 1).index_select(0, nothing)), nothing, torch.zeros(0))
    loss.backward()
    assert loss.item() == 0.0
    assert all(p.grad is None or not p.grad.isnan().any() for p in model.parameters())


def test_the_longest_micro_batch_is_found(corpus: Path) -> None:
    _, batches = step_of(corpus, "token", FOUR)
    largest = max(batch.input_ids.numel() for step in range(batches.plan.steps) for batch in batches(step))
    longest = batches.longest()
    assert longest is not None and longest.input_ids.numel() == largest
    _, idle = step_of(corpus, "token", FOUR, rank=8, processes=9)
    assert idle.longest() is None, "eight samples leave the ninth process without any"


def test_micro_batches_are_divided_though_the_longest_is_a_single_sample(
    corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory may be short where several samples have several images, in whichever step."""
    _, batches = step_of(corpus, "token", 110)
    longest = batches.longest()
    assert longest is not None and len(longest.lengths) == 1
    divisible = [step for step in range(batches.plan.steps) if len(batches(step)) < 8]
    assert divisible and batches.halved(0) is not None
    with monkeypatch.context() as patch:
        patch.setattr(StepBatches, "_heaviest", set)
        found = {step: batches.halved(step) for step in range(batches.plan.steps)}
    assert [step for step, budget in found.items() if budget is not None] == divisible
    while (halved := batches.halved(0)) is not None:
        assert halved < batches.token_budget
        batches.token_budget = halved
    assert all(len(batches(step)) == 8 for step in range(batches.plan.steps))


def test_kept_features_give_the_same_loss_to_the_bit(corpus: Path, tmp_path: Path) -> None:
    model, batches = step_of(corpus, "token", FOUR)
    tower = TowerFeatures(model, device=torch.device("cpu"), precision="fp32")
    store = FeatureStore(tmp_path, tower)
    losses: dict[str, list[float]] = {}
    for name, kept, workers in (("computed", None, 0), ("stored", store, 0), ("loader processes", None, 2)):
        stream = BatchStream(
            batches,
            model.config.image_transform,
            store=kept,
            tower=tower,
            device=torch.device("cpu"),
            first_step=0,
            workers=workers,
        )
        losses[name] = []
        for step in range(2):
            for batch, images in stream.step(step):
                hidden = model.hidden_states({"input_ids": batch.input_ids, **images}).flatten(0, 1)
                logits = model.logits(hidden.index_select(0, batch.positions))
                losses[name].append(weighted_cross_entropy(logits, batch.targets, batch.weights).item())
    assert losses["computed"] == losses["stored"] == losses["loader processes"]
    assert len(set(losses["computed"])) == len(losses["computed"]) > 2


def test_two_processes_train_as_one(corpus: Path, tmp_path: Path) -> None:
    """Three steps under gloo: same curve and same weights as alone, within rounding."""
    alone, together = tmp_path / "alone", tmp_path / "together"
    _train(corpus, alone, processes=1)
    _train(corpus, together, processes=2)
    expected, found = torch.load(alone / "weights.pt"), torch.load(together / "weights.pt")
    assert expected.keys() == found.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-6)
    losses = [
        [json.loads(line)["loss"] for line in (folder / "curve.jsonl").read_text().splitlines()]
        for folder in (alone, together)
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def _train(corpus: Path, folder: Path, *, processes: int) -> None:
    folder.mkdir()
    world = tiny_world()
    work = partial(train, corpus, folder, world.llm, world.tower, processes=processes)
    assert together(work, processes) == [0] * processes


def test_batches_do_not_depend_on_what_is_kept_in_memory(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def batches_of(kept: int, recent: int) -> tuple[StepBatches, list[Any]]:
        monkeypatch.setattr("lvlm.train.batches.KEPT_TOKENS", kept)
        monkeypatch.setattr("lvlm.train.batches.RECENT_SAMPLES", recent)
        _, batches = step_of(corpus, "token", FOUR)
        return batches, [batch for step in range(batches.plan.steps) for batch in batches(step)]

    (all_kept, expected), (none_kept, found) = batches_of(1 << 20, 100), batches_of(0, 1)
    assert len(all_kept.encoder._tokens) > 0 == len(none_kept.encoder._tokens)
    assert len(none_kept._samples) == 1
    for one, other in zip(expected, found, strict=True):
        assert one.images == other.images and one.lengths == other.lengths
        for name in ("input_ids", "positions", "targets", "weights"):
            assert torch.equal(getattr(one, name), getattr(other, name)), name


def test_lengths_and_images_of_the_plan_are_those_of_the_tokens(corpus: Path) -> None:
    _, batches = step_of(corpus, "token", ONE)
    samples = [sample for step in range(batches.plan.steps) for sample in batches.samples(step)]
    assert [sample.length for sample in samples] == [len(sample.text.ids) for sample in samples]
    assert [sample.supervised for sample in samples] == [len(sample.text.targets) for sample in samples]
    image_tokens = batches.encoder.processor.image_tokens
    assert batches.plan.lengths(image_tokens).tolist() == [sample.length for sample in samples]
    assert list(batches.images()) == [image for sample in samples for image in sample.images]
    longest = batches.longest()
    assert longest is not None and max(longest.lengths) == max(sample.length for sample in samples)
