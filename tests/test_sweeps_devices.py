"""Cores and GPUs of one machine, divided among its workers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lvlm.errors import InputError
from sweeps.crew import Crew
from sweeps.devices import default_workers, environments, gpu_line, usable_gpus, visible_gpus
from sweeps.launcher import launch
from sweeps.plan import PlannedCell
from sweeps.planner import make_plan
from tests.sweeps_fakes import RUNNER, fake_study


def of(name: str, gpus: str, workers: int, *, cores: int = 8) -> list[str | None]:
    """One environment variable of every worker, where the GPUs are named by letters."""
    return [variables.get(name) for variables in environments(list(gpus), workers, cores=cores)]


def test_gpus_are_divided_among_workers_and_shared_where_there_are_too_few() -> None:
    assert of("CUDA_VISIBLE_DEVICES", "abcd", 4) == ["a", "b", "c", "d"]
    assert of("CUDA_VISIBLE_DEVICES", "abcde", 2) == ["a,b", "c,d,e"]
    assert of("CUDA_VISIBLE_DEVICES", "ab", 5) == ["a", "a", "a", "b", "b"]
    assert of("CUDA_VISIBLE_DEVICES", "", 2) == [None, None]
    assert "up to 3 share one" in gpu_line(2, 5) and "--workers 5" in gpu_line(5, 2)
    assert gpu_line(4, 4) == "4 GPU(s), one for each worker." and gpu_line(0, 4) == ""


@pytest.mark.parametrize("gpus", ["a", "abc", "abcdefgh"])
@pytest.mark.parametrize("workers", [1, 2, 3, 7, 8, 20])
def test_every_worker_sees_a_gpu_and_every_gpu_has_about_as_many_workers(gpus: str, workers: int) -> None:
    seen = [text.split(",") for text in of("CUDA_VISIBLE_DEVICES", gpus, workers) if text]
    loads = [sum(gpu in names for names in seen) for gpu in gpus]
    assert len(seen) == workers and max(loads) - min(loads) <= 1 and min(loads) >= 1
    assert max(map(len, seen)) == 1 or max(loads) == 1, "none has several while others share"


def test_threads_of_all_workers_together_are_the_cores() -> None:
    assert of("OMP_NUM_THREADS", "", 2) == ["4", "4"] and of("OMP_NUM_THREADS", "", 3) == ["2", "2", "2"]
    assert set(of("OMP_NUM_THREADS", "", 20)) == {"1"}


def test_workers_there_are_unless_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sweeps.devices.cores", lambda: 64)
    assert (default_workers(100), default_workers(3), default_workers(0)) == (8, 3, 1)
    assert (default_workers(100, 16), default_workers(5, 16), default_workers(100, 0, on_cluster=True)) == (16, 5, 8)


def cells(device: str) -> list[PlannedCell]:
    return make_plan(fake_study(), overrides=[f"compute.device={device}"]).cells


def test_gpus_are_those_that_torch_sees_under_the_names_that_the_user_gave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "driver").touch()
    monkeypatch.setattr("sweeps.devices.DRIVERS", (str(tmp_path / "driver"),))
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert visible_gpus() == ("0", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-8a, 5, 9")
    assert visible_gpus() == ("GPU-8a", "5")
    assert usable_gpus(cells("cuda")) == usable_gpus(cells("auto")) == ("GPU-8a", "5")
    assert usable_gpus(cells("cpu")) == ()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert visible_gpus() == ()
    with pytest.raises(InputError, match="as CUDA_VISIBLE_DEVICES hides them"):
        usable_gpus(cells("cuda"))


def test_a_gpu_that_is_asked_for_and_not_there_is_an_error_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sweeps.devices.DRIVERS", ())
    with pytest.raises(
        InputError, match=r"8 of 8 cells to run ask for a GPU \(compute.device=cuda\), and torch sees none"
    ):
        launch(fake_study(), home=tmp_path / "home", runner=RUNNER, overrides=["compute.device=cuda"])
    assert not (tmp_path / "home").exists()


def test_workers_are_started_with_their_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[dict[str, str]] = []

    def start(*_: Any, env: dict[str, str], **__: Any) -> None:
        started.append(env)

    monkeypatch.setattr("sweeps.crew.subprocess.Popen", start)
    monkeypatch.setattr("sweeps.crew.cores", lambda: 6)
    plan = make_plan(fake_study(), runner=RUNNER)
    crew = Crew(plan.place(tmp_path), plan, workers=3, since=0.0, gpus=("4", "7"))
    crew.start()
    assert [env["CUDA_VISIBLE_DEVICES"] for env in started] == ["4", "4", "7"]
    assert {env["OMP_NUM_THREADS"] for env in started} == {"2"}
    assert crew.about()[1] == "2 GPU(s) for 3 workers: up to 2 share one."
