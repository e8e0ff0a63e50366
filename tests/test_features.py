"""Features kept on disk: equal to computed ones, computed once whatever the processes, safe when a process is
killed."""

from __future__ import annotations

import copy
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from lvlm.errors import InputError
from lvlm.model.assembly import assemble
from lvlm.settings import ModelConfig
from lvlm.train import features
from lvlm.train.decide import Costs, decide_cache, measure_costs, weigh
from lvlm.train.features import FeatureStore, TowerFeatures
from lvlm.train.locks import file_lock
from lvlm.train.space import NoRoom
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
        for tiles, more in ((1, {}), (2, {"feature_layer": -1}), (2, {"fit": "letterbox"}), (2, {"image_size": 32}))
    }
    other = tiny_world().assemble(tiles=2)[0]
    with torch.no_grad():
        next(iter(other.vision_tower.parameters())).view(-1)[0] += 1e-3
    keys.add(tower_of(other).key())
    keys.add(TowerFeatures(model, device=torch.device("cuda"), precision="fp32").key())  # nothing runs there
    assert len(keys) == 8


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
    half = store.folder / "00002.npy"
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
    costs = Costs(compute=4e-3, fill=4e-3, write=1e-3, read=1e-4, bytes=100_000)
    assert not weigh(costs, images=100, missing=100, uses=100).on, "each image used once"
    assert weigh(costs, images=100, missing=100, uses=200).on
    assert weigh(costs, images=100, missing=0, uses=100).on, "another run has computed them"
    assert not weigh(costs, images=100, missing=100, uses=200, lack="full").on, "no room on the disk"
    small_calls = Costs(compute=9e-3, fill=4e-3, write=1e-3, read=1e-4, bytes=100_000)
    assert weigh(small_calls, images=100, missing=100, uses=100).on, "once too, where single images compute slowly"
    hardly = Costs(compute=1.1e-3, fill=1e-3, write=1e-5, read=1e-5, bytes=100_000)
    assert not weigh(hardly, images=100, missing=100, uses=100).on, "a gain that a measurement of moments cannot tell"
    slow_disk = Costs(compute=1e-3, fill=1e-3, write=1e-3, read=2e-3, bytes=100_000)
    assert not weigh(slow_disk, images=100, missing=0, uses=10_000).on
    assert "0.8 s without" in weigh(costs, images=100, missing=100, uses=200).reason


def test_the_decision_measures_and_leaves_no_file(model: Any, images: list[Path], tmp_path: Path) -> None:
    store = FeatureStore(tmp_path / "home", tower_of(model))
    decision = decide_cache(store, tower_of(model), images, uses=900, per_call=4)
    assert decision.on and "9 images (0 already kept) read 900 times" in decision.reason
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images"]


GIB = 2**30


def keys_of(home: Path) -> set[str]:
    return {path.name for path in (home / "features").iterdir() if path.is_dir()}


def bytes_of(home: Path) -> int:
    return sum(path.stat().st_size for path in (home / "features").rglob("*") if path.is_file())


def other_model(number: int) -> Any:
    """The same tower with other weights, so that its features have another key."""
    changed = copy.deepcopy(tiny_world().assemble(tiles=2)[0])
    with torch.no_grad():
        next(iter(changed.vision_tower.parameters())).view(-1)[0] += number
    return changed


def test_features_used_longest_ago_give_way(model: Any, images: list[Path], tmp_path: Path) -> None:
    stores = [FeatureStore(tmp_path, tower_of(other_model(number))) for number in (1, 2)]
    for age, store in ((100, stores[0]), (200, stores[1])):
        store.add(images)
        os.utime(store.space.root / f"{store.key}.use", (age, age))
    first, second = (store.key for store in stores)
    size = bytes_of(tmp_path) // 2
    del store, stores  # nobody uses them any more
    bounded = FeatureStore(tmp_path, tower_of(model), limit_gib=2.2 * size / GIB)
    bounded.add(images)
    assert keys_of(tmp_path) == {second, bounded.key}
    assert bytes_of(tmp_path) <= 2.2 * size
    assert torch.equal(bounded(images), tower_of(model)(images))
    assert first not in keys_of(tmp_path)


def test_features_that_a_process_uses_do_not_give_way(model: Any, images: list[Path], tmp_path: Path) -> None:
    used = FeatureStore(tmp_path, tower_of(other_model(1)))
    used.add(images)
    bounded = FeatureStore(tmp_path, tower_of(model), limit_gib=1.5 * bytes_of(tmp_path) / GIB)
    assert "exceed compute.feature_cache_gib=" in bounded.lack(images)
    with pytest.raises(NoRoom, match="in use exceed"):
        bounded.add(images)
    assert torch.equal(bounded(images), tower_of(model)(images)), "computed where it finds no place"
    assert used.missing(images) == [] and bounded.missing(images) == images
    assert [path.name for path in bounded.folder.iterdir()] == ["lock"], "nothing half-written"
    del used
    again = FeatureStore(tmp_path, tower_of(model), limit_gib=bounded.space.limit_gib)
    assert again.lack(images) == "" and again.add(images) == 9


def test_what_somebody_removed_is_computed_again(model: Any, images: list[Path], tmp_path: Path) -> None:
    """As by hand, or from a machine that does not see the locks of this one."""
    reader, computed = FeatureStore(tmp_path, tower_of(model)), tower_of(model)(images)
    reader.add(images)
    assert torch.equal(reader(images[:4]), computed[:4])
    shutil.rmtree(reader.folder)
    assert torch.equal(reader(images[:4]), computed[:4]), "a mapped file outlives its name"
    late = FeatureStore(tmp_path, tower_of(model))
    late.add(images)
    shutil.rmtree(late.folder)
    assert torch.equal(late(images), computed)
    assert torch.equal(late(images), computed) and FeatureStore(tmp_path, tower_of(model)).missing(images) == []


def test_two_processes_with_other_towers_keep_one_bound(images: list[Path], tmp_path: Path) -> None:
    """Each finds its own features right, whoever got the room."""
    FeatureStore(tmp_path / "sized", tower_of(other_model(1))).add(images)
    limit = 1.5 * bytes_of(tmp_path / "sized")
    children = []
    for number in (1, 2):
        child = os.fork()
        if not child:
            tower = tower_of(other_model(number))
            store = FeatureStore(tmp_path / "home", tower, limit_gib=limit / GIB)
            right = all(torch.equal(store(images[:n]), tower(images[:n])) for n in (3, 9, 5))
            os._exit(0 if right and bytes_of(tmp_path / "home") <= limit + 1000 else 1)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0]
    assert keys_of(tmp_path / "home")


def test_without_a_bound_half_of_the_free_disk_is_left(
    model: Any, images: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FeatureStore(tmp_path, tower_of(model))
    size = tower_of(model)(images).nbytes
    for free, fits in ((int(2.1 * size), True), (int(1.9 * size), False)):
        monkeypatch.setattr(store.space, "_free", lambda free=free: free)
        assert (store.lack(images) == "") == fits


def test_a_filling_starts_its_loader_processes_once(
    model: Any, images: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    real = features.load_pixels
    monkeypatch.setattr(features, "IMAGES_PER_PART", 2)
    monkeypatch.setattr(features, "load_pixels", lambda *a, **k: calls.append(k["workers"]) or real(*a, **k))
    store = FeatureStore(tmp_path, tower_of(model, workers=1))
    store.add(images)
    assert calls == [1] and len(list(store.folder.glob("*.npy"))) == 5
    assert torch.equal(store(images), tower_of(model)(images))


def test_features_are_kept_ahead_of_training_more_at_every_call(
    model: Any, images: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "FIRST_AHEAD", 2)
    store, computed = FeatureStore(tmp_path, tower_of(model)), tower_of(model)(images)
    order = [*images[:3], images[0], *images[3:]]
    for n, kept in ((2, 2), (4, 6), (3, 9), (0, 9)):
        assert store.lacks(order) or n == 0
        assert store.add_ahead(order) == n
        assert FeatureStore(tmp_path, tower_of(model)).missing(images) == images[kept:]
    assert torch.equal(store(images), computed)
    late = FeatureStore(tmp_path, tower_of(model))
    assert late.lacks(images) and late.add_ahead(images) == 0 and not late.lacks(images)


def test_kept_features_are_those_of_the_image_whatever_it_was_computed_with(tmp_path: Path, images: list[Path]) -> None:
    """On the shipped tower, whose last bits depend on the size of a batch; a random one of few channels has none."""
    for tiles in (1, 2):
        model = assemble(ModelConfig(tower="tiny-vit/0", llm="tiny-lm/0", tiles=tiles), seed=0)[0]
        tower, stores = tower_of(model), [FeatureStore(tmp_path / f"{tiles}-{n}", tower_of(model)) for n in (0, 1)]
        stores[0].add(images)
        for image in images[::-1]:
            stores[1].add([image])
        assert torch.equal(stores[0](images), stores[1](images))
        assert torch.equal(stores[0](images[:1]), tower(images[:1] * 32)[:1])
        assert not torch.equal(stores[0](images[:1]), tower(images[:1])), "what filling up is for"


def test_two_processes_that_read_ahead_in_other_orders_compute_each_image_once(
    model: Any, images: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "FIRST_AHEAD", 1)
    children = []
    for order in (images, images[::-1]):
        child = os.fork()
        if not child:
            store, computed = FeatureStore(tmp_path, tower_of(model)), 0
            while store.lacks(order):
                computed += store.add_ahead(order)
            os._exit(computed if torch.equal(store(order), tower_of(model)(order)) else 100)
        children.append(child)
    assert sum(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children) == 9


def test_where_room_ends_training_goes_on_and_is_told_once(
    model: Any, images: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "FIRST_AHEAD", 2)
    size = tower_of(model)(images[:1]).nbytes
    told: list[str] = []
    store = FeatureStore(tmp_path, tower_of(model), limit_gib=5 * size / GIB, on_full=told.append)
    assert [store.add_ahead(images) for _ in range(3)] == [2, 0, 0]
    assert len(told) == 1 and "exceed compute.feature_cache_gib" in told[0] and store.full == told[0]
    assert not store.lacks(images) and torch.equal(store(images), tower_of(model)(images))
    assert FeatureStore(tmp_path, tower_of(model)).missing(images) == images[2:] and len(told) == 1


def test_the_measurement_starts_no_loader_processes_for_single_calls(
    model: Any, images: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training does not either; their start would be taken for the cost of the tower."""
    starts: list[int] = []
    load_pixels = features.load_pixels

    def counted(groups: Any, *rest: Any, **settings: Any) -> Any:
        starts.append(len(groups))
        return load_pixels(groups, *rest, **settings)

    monkeypatch.setattr(features, "load_pixels", counted)
    monkeypatch.setattr("lvlm.train.decide.ROUNDS", 1)
    measure_costs(tower_of(model), images, per_call=1, folder=tmp_path)
    assert len(starts) == 3 and starts[-1] == len(images), "to warm up, to fill, and once for all calls"
