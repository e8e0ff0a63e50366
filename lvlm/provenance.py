"""Where a number comes from: code, versions, machine, and the seconds of each phase. Called by `lvlm.run`."""

from __future__ import annotations

import platform
import subprocess
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = (
    "lvlm", "torch", "transformers", "timm", "peft", "accelerate", "deepspeed", "diffusers", "tokenizers", "pillow",
    "numpy",
)  # fmt: skip


class Phases:
    """Wall seconds by phase. A phase inside another one is taken from it, so that the sum is the whole."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._begun = time.monotonic()
        self._inner: list[float] = []

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        started = time.monotonic()
        self._inner.append(0.0)
        try:
            yield
        finally:
            whole = time.monotonic() - started
            self.seconds[name] += whole - self._inner.pop()
            if self._inner:
                self._inner[-1] += whole

    def summary(self) -> dict[str, float]:
        """Seconds of every phase, `other` for what lies between them, and `total`."""
        total = time.monotonic() - self._begun
        other = total - sum(self.seconds.values())
        return {name: round(seconds, 3) for name, seconds in {**self.seconds, "other": other, "total": total}.items()}


def versions() -> dict[str, str]:
    """Versions of python and of the packages that numbers depend on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def git_commit() -> str:
    """Commit of the checkout this package runs from, with `+changes` if files differ from it; `unknown` outside a
    checkout."""
    here = Path(__file__).parent
    commit = _git(here, "rev-parse", "HEAD")
    if not commit:
        return "unknown"
    return commit + ("+changes" if _git(here, "status", "--porcelain", "--untracked-files=no", ".") else "")


def machine() -> dict[str, Any]:
    """The machine by name and processor."""
    return {"host": platform.node(), "processor": platform.machine(), "system": platform.platform()}


def _git(folder: Path, *arguments: str) -> str:
    try:
        result = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return result.stdout.strip() if result.returncode == 0 else ""


def spent_on(results: Mapping[str, Mapping[str, Any]], seconds: float) -> dict[str, float]:
    """What a model cost, from the results of its stages: sums over them, whoever trained them, and each stage apart.
    `seconds` is the wall time of the run."""
    budget: dict[str, float] = {"seconds": seconds}
    for name, result in results.items():
        for field in ("samples", "llm_tokens", "supervised_tokens", "images", "views", "flops"):
            if all(field in other["spent"] for other in results.values()):  # older stages do not say all
                budget[field] = budget.get(field, 0) + result["spent"][field]
                budget[f"{name}/{field}"] = result["spent"][field]
        budget["train_seconds"] = budget.get("train_seconds", 0.0) + result["spent"]["seconds"]
        budget[f"{name}/train_seconds"] = result["spent"]["seconds"]
        budget[f"{name}/trainable_parameters"] = result["spent"]["trainable_parameters"]
        budget["trainable_parameters"] = result["spent"]["trainable_parameters"]
    return budget
