"""Features kept on disk: equal to computed ones, computed once whatever the processes, safe when a process is
killed."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from lvlm.errors import InputError
from lvlm.train import features
from lvlm.train.decide import Costs, decide_cache, weigh
from lvlm.train.features import FeatureStore, TowerFeatures
from lvlm.train.locks import file_lock
from tests.tiny import tiny_image, tiny_world


@pytest.fixture(scope="module")
def model() -> Any:
    torch.set_num_threads(1)
    return tiny_world().assemble(tiles=2)[0]


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(9):
        tiny_image(number).save(folder / f"{number}.png")
    return sorted(folder.iterdir())


def tower_of(model: Any, *, precision: str = "fp32", workers: int = 0) -> TowerFeatures:
    return TowerFeatures(model, device=torch.device("cpu"), precision=precision, workers=workers)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_stored_equal_computed_to_the_bit_in_any_grouping(
    model: Any, images: list[Path], tmp_path: Path, precision: str
) -> None:
    tower = tower_of(model, precision=precision)
    computed = tower(images)
    assert computed.shape == (9, 5, 9, 16) and computed.dtype == torch.float32
    assert not torch.equal(computed[0], computed[1])
    store = FeatureStore(tmp_path, tower)
    assert store.add(images[:5]) == 5
    assert store.add(images) == 4
    assert torch.equal(store(images), computed)
    assert torch.equal(store([images[7], images[2], images[7]]), computed[[7, 2, 7]])
    assert torch.equal(torch.cat([tower([image]) for image in images]), computed)
    again = FeatureStore(tmp_path, tower)
    assert again.missing(images) == [] and torch.equal(again(images), computed)


def test_features_do_not_depend_on_loader_processes(model: Any, images: list[Path]) -> None:
    assert torch.equal(tower_of(model, workers=2)(images), tower_of(model)(images))


def test_the_key_is_that_of_weights_transform_tiles_precision_and_device(model: Any) -> None:
    keys = {tower_of(model).key(), tower_of(model, precision="bf16").key()}
    assert len(keys) == 2
    assert tower_of(tiny_world().assemble(tiles=2, seed=3)[0]).key() in keys, "the seed of the adapter does not matter"
    keys |= {
        tower_of(tiny_world().assemble(tiles=tiles, **more)[0]).key()
        for tiles, more in ((1, {}), (2, {"feature_layer": -1}))
    }
    other = tiny_world().assemble(tiles=2)[0]
    with torch.no_grad():
        next(iter(other.vision_tower.parameters())).view(-1)[0] += 1e-3
    keys.add(tower_of(other).key())
    keys.add(TowerFeatures(model, device=torch.device("cuda"), precision="fp32").key())  # nothing runs there
    assert len(keys) == 6


def test_a_changed_image_is_computed_again(model: Any, images: list[Path], tmp_path: Path) -> None:
    FeatureStore(tmp_path, tower_of(model)).add(images)
    tiny_image(99).save(images[3])
    store = FeatureStore(tmp_path, tower_of(model))
    assert store.missing(images) == [images[3]]
    assert torch.equal(store(images), tower_of(model)(images))


def test_a_killed_process_leaves_whole_parts_and_no_lock(
    model: Any, images: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "IMAGES_PER_PART", 3)
    child = os.fork()
    if not child:
        try:
            store = FeatureStore(tmp_path, tower_of(model))
            store.add(
                images, on_progress=lambda done, total: os.kill(os.getpid(), signal.SIGKILL) if done == 6 else None
            )
        finally:
            os._exit(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    store = FeatureStore(tmp_path, tower_of(model))
    assert store.missing(images) == images[6:]
    half = next(store.folder.glob("*/00000.npy")).with_name("00002.npy")
    half.write_bytes(b"half written")  # data without its index, as a kill between the two leaves it
    assert torch.equal(store(images), tower_of(model)(images))


def test_two_processes_compute_each_image_once(model: Any, images: list[Path], tmp_path: Path) -> None:
    children = []
    for _ in range(2):
        child = os.fork()
        if not child:
            os._exit(FeatureStore(tmp_path, tower_of(model)).add(images))
        children.append(child)
    computed = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert sorted(computed) == [0, 9]


def test_who_waits_for_features_hears_of_the_one_that_computes(model: Any, images: list[Path], tmp_path: Path) -> None:
    def heard(owner: str) -> None:
        raise InterruptedError(owner)

    store = FeatureStore(tmp_path, tower_of(model), on_wait=heard)
    held = file_lock(store.folder / "lock", purpose="computes elsewhere")
    with held, pytest.raises(InterruptedError, match="computes elsewhere"):
        store.add(images)


def test_an_unreadable_image_is_an_error_that_names_it(model: Any, images: list[Path]) -> None:
    images[4].write_bytes(images[4].read_bytes()[:200])
    for workers in (0, 2):
        with pytest.raises(InputError, match=r"4\.png") as caught:
            tower_of(model, workers=workers)(images)
        assert "Traceback" not in str(caught.value)


def test_the_cache_is_used_where_it_pays() -> None:
    costs = Costs(compute=4e-3, write=1e-3, read=1e-4, bytes=100_000)
    disk = 10**12
    assert not weigh(costs, images=100, missing=100, uses=100, free_bytes=disk).on, "each image used once"
    assert weigh(costs, images=100, missing=100, uses=200, free_bytes=disk).on
    assert weigh(costs, images=100, missing=0, uses=100, free_bytes=disk).on, "another run has computed them"
    assert not weigh(costs, images=100, missing=100, uses=200, free_bytes=10**6).on, "no room on the disk"
    slow_disk = Costs(compute=1e-3, write=1e-3, read=2e-3, bytes=100_000)
    assert not weigh(slow_disk, images=100, missing=0, uses=10_000, free_bytes=disk).on
    assert "0.8 s without" in weigh(costs, images=100, missing=100, uses=200, free_bytes=disk).reason


def test_the_decision_measures_and_leaves_no_file(model: Any, images: list[Path], tmp_path: Path) -> None:
    store = FeatureStore(tmp_path / "home", tower_of(model))
    decision = decide_cache(store, tower_of(model), images, uses=900)
    assert decision.on and "9 images (0 already kept) read 900 times" in decision.reason
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images"]
