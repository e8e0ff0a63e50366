"""The rules of the repository: who may import whom, one set of versions everywhere, cheap commands."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("lvlm", "ablations", "sweeps")

ORDER = [
    "errors",
    "processes",
    "commands",
    "languages",
    "settings",
    "paint_settings",
    "config",
    "records",
    "trident",
    "data",
    "backbones",
    "model",
    "evaluate",
    "train",
    "translate",
    "provenance",
    "check",
    "startup",
    "paint",
    "run",
    "ready",
    "scoring",
    "lmms_model",
    "lmms",
    "cli",
]
"""Stations of `lvlm`, left to right: a module imports from its own station and from those before it."""

NO_TORCH = (
    "lvlm/errors",
    "lvlm/commands",
    "lvlm/languages",
    "lvlm/settings",
    "lvlm/paint_settings",
    "lvlm/lineage",
    "lvlm/config",
    "lvlm/records",
    "lvlm/trident",
    "lvlm/data",
    "lvlm/evaluate/metrics",
    "lvlm/paint/command",
    "lvlm/paint/captions",
    "lvlm/paint/reader",
    "lvlm/paint/frechet",
    "ablations",
)
HEAVY = {"torch", "transformers", "timm", "peft", "accelerate", "diffusers"}


def modules() -> list[Path]:
    return [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def imports(path: Path, *, top_level_only: bool = False) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def station(name: str) -> str | None:
    parts = name.split(".")
    return parts[1] if parts[0] == "lvlm" and len(parts) > 1 and parts[1] in ORDER else None


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    relative = path.relative_to(ROOT).with_suffix("")
    package, names = relative.parts[0], imports(path)
    if package == "lvlm" and len(relative.parts) > 1 and relative.parts[1] in ORDER:
        here = ORDER.index(relative.parts[1])
        backward = {name for name in names if (other := station(name)) and ORDER.index(other) > here}
        assert not backward, f"{relative} imports from a later station: {sorted(backward)}"
    tops = {name.split(".")[0] for name in names}
    if package == "lvlm":
        assert not tops & {"ablations", "sweeps", "optuna", "mlflow"}
    if package == "ablations":
        assert not tops & ({"sweeps", "optuna", "mlflow"} | HEAVY)
        inside = {name.split(".")[1] for name in names if name.startswith("lvlm.")}
        assert inside <= {"commands", "config", "languages", "records", "errors"}, f"{relative} imports {inside}"
    if package == "sweeps":
        inside = {name.split(".")[1] for name in names if name.startswith("ablations.")}
        assert inside <= {"factors", "designs", "studies", "table"}, f"{relative} imports {inside}"


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_light_modules_import_no_torch(path: Path) -> None:
    if str(path.relative_to(ROOT)).startswith(NO_TORCH):
        assert not {name.split(".")[0] for name in imports(path)} & HEAVY


LATE = {
    "diffusers": {"denoisers"},
    "peft": {"sums", "snapshots"},
    "pandas": set(),
    "deepspeed": {"zero"},
    "bitsandbytes": set(),
}
"""Packages that take long to import and that many runs do without -> the modules of `lvlm` that begin with them, which
are imported late themselves."""


def test_what_many_runs_do_without_is_imported_late() -> None:
    for path in (ROOT / "lvlm").rglob("*.py"):
        tops = {name.split(".")[0] for name in imports(path, top_level_only=True)}
        assert not {package for package in tops & LATE.keys() if path.stem not in LATE[package]}, path


def test_files_stay_small_and_named_by_noun() -> None:
    for path in modules():
        assert path.stem not in {"utils", "helpers", "common", "misc"}
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 450, f"{path} is long: split it by noun"


def constraints() -> dict[str, str]:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+!-]+", line) for line in lines)
    return dict(line.split("==") for line in lines)


def project(*extras: str) -> dict[str, str]:
    table = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = table["dependencies"] + [text for extra in extras for text in table["optional-dependencies"][extra]]
    return {re.split(r"[><=![]", text)[0]: text for text in wanted}


def test_constraints_cover_every_dependency() -> None:
    pinned = {name.lower().replace("_", "-") for name in constraints()}
    assert not {name.lower() for name in project("dev")} - pinned


def test_what_the_packages_import_is_declared() -> None:
    tops = {name.split(".")[0] for path in modules() for name in imports(path)}
    declared = {name.lower() for name in project("dev", "quantised")}
    others = {"PIL": "pillow", "yaml": "pyyaml", "fontTools": "fonttools", "fasttext": "fasttext-predict"}
    others |= {"pyDOE3": "pydoe3", "pynvml": "nvidia-ml-py", "optuna_dashboard": "optuna-dashboard"}
    others |= {"grpc": "grpcio", "IPython": "ipykernel"}  # which stands on it
    others |= {"sklearn": "scikit-learn"}
    declared |= {"vllm", "lmms_eval"}  # programs that a user has and this package serves
    third_party = tops - set(sys.stdlib_module_names) - set(PACKAGES)
    assert not {others.get(name, name) for name in third_party} - declared


def test_conda_environment_says_the_same() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    (pip,) = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    assert pip == ["--constraint constraints.txt", "--editable .[dev]"]
    python = next(entry for entry in environment["dependencies"] if str(entry).startswith("python"))
    assert python == "python=3.11"
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"] == ">=3.11"


COMMANDS = [
    "lvlm", "lvlm train", "lvlm evaluate", "lvlm generate", "lvlm export", "lvlm data", "lvlm plan", "lvlm backbones",
    "lvlm from-trident", "lvlm corpus", "lvlm benchmark", "lvlm translate", "lvlm fidelity", "lvlm lmms-eval",
    "lvlm paint",
    "sweeps", "sweeps launch", "sweeps plan", "sweeps worker", "sweeps status", "sweeps export", "sweeps cache",
    "sweeps ui", "sweeps new",
    "ablations", "ablations report", "ablations power", "ablations list",
]  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_cheap_and_ends_in_a_line_to_paste(command: str) -> None:
    package, *verb = command.split()
    code = (
        "import sys, runpy\n"
        f"sys.argv = ['{package}', *{verb!r}, '--help']\n"
        f"try: runpy.run_module('{package}', run_name='__main__')\n"
        "except SystemExit as stop: assert not stop.code\n"
        "heavy = {'torch', 'transformers', 'diffusers', 'mlflow', 'optuna', 'pandas', 'matplotlib'}\n"
        "print('HEAVY', sorted(heavy & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True).stdout
    *text, heavy = shown.strip().splitlines()
    assert heavy == "HEAVY []"
    assert f"python -m {package}" in text[-1]


@pytest.mark.parametrize(
    "first",
    [
        "from lvlm import Lvlm, LvlmProcessor, load",
        "import lvlm; from transformers import AutoProcessor, AutoModelForCausalLM",
        "from transformers import AutoProcessor, AutoModelForCausalLM; import lvlm",
    ],
)
def test_the_auto_classes_know_the_model_in_any_order_of_imports(first: str) -> None:
    code = (
        f"{first}\n"
        "from lvlm.model.config import LvlmConfig\n"
        "from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING as models\n"
        "from transformers.models.auto.processing_auto import PROCESSOR_MAPPING as processors\n"
        "print(models[LvlmConfig].__name__, processors[LvlmConfig].__name__)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True).stdout
    assert shown.split() == ["Lvlm", "LvlmProcessor"]


def test_the_readme_shows_every_file_and_its_links_exist() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    tree = readme.split("## Where things are")[1].split("## ")[0]
    shown, folder = set(), ""
    for line in tree.splitlines():
        if match := re.match(r"    (\S+/)\s", line):
            folder = match[1]
        elif match := re.match(r"      (\w+)\s", line):
            shown.add(f"{folder}{match[1]}.py")
    files = {str(path.relative_to(ROOT)) for path in modules() if not re.fullmatch(r"__\w+__", path.stem)}
    assert shown == files
    links = re.findall(r"\]\(([^)#]+)\)", readme)
    assert not [link for link in links if "://" not in link and not (ROOT / link).exists()]
