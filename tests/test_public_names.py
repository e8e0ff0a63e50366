"""The names that notebooks import from `sweeps` and `ablations` stay what they are, whatever else was imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CHECK = """
import importlib, pkgutil
import {package} as package
def check(when):
    for name in package.__all__:
        scope = {{}}
        exec(f"from {package} import {{name}}", scope)
        assert callable(scope[name]), f"{{name}} is a {{type(scope[name]).__name__}} {{when}}"
check("in a fresh process")
for module in pkgutil.iter_modules(package.__path__, "{package}."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
check("after importing every module")
print("checked")
"""


@pytest.mark.parametrize("package", ["sweeps", "ablations"])
def test_every_public_name_is_a_function_or_class(package: str) -> None:
    code = CHECK.format(package=package)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "checked"
