"""The code version in a stage's key is raised by hand (`lvlm.records.TRAINER_VERSION`); here nobody can forget to ask.

The modules that decide a stage's numbers are recorded as somebody last looked at them. After a change: raise
TRAINER_VERSION if any number can differ, and then in any case

    python tests/test_code_version.py        # records the code as it is
"""

from __future__ import annotations

import ast
import hashlib
import json
from pathlib import Path

from lvlm.records import TRAINER_VERSION

ROOT = Path(__file__).resolve().parent.parent
RECORDED = Path(__file__).with_name("code_version.json")
FOLDERS = ("lvlm/model", "lvlm/train", "lvlm/paint")
ALSO = ("lvlm/data/readers.py", "lvlm/data/boundaries.py")
"""What makes a sample of a row; all else in `lvlm.data` decides the plan, whose hash is in the key itself."""
NO_NUMBERS = {
    "lvlm/model": {
        "autohook",
        "register",
        "export",
        "llava",
        "release",
        "snapshots",
        "digests",
        "layouts",
        "agreement",
    },
    "lvlm/train": {"decide", "identity", "locks", "progress", "shelf", "space", "stages"},
    "lvlm/paint": {"command", "work", "tiny", "sheet", "plugins", "evaluation"},
}  # fmt: skip
"""Modules that name, lock, list or export, and decide no number of a stage."""


def deciding() -> list[Path]:
    """Every module that may decide a number: a new one does until it is named above."""
    found = [path for folder in FOLDERS for path in sorted((ROOT / folder).glob("*.py"))]
    return [path for path in found if path.stem not in NO_NUMBERS[str(path.parent.relative_to(ROOT))]] + [
        ROOT / name for name in ALSO
    ]


def code_digest(source: str) -> str:
    """The same for code that differs in comments, docstrings, layout and annotations alone."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and (
            node.body and isinstance(node.body[0], ast.Expr) and isinstance(node.body[0].value, ast.Constant)
        ):
            node.body[0].value.value = ""
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            node.returns = None
        if isinstance(node, ast.arg):
            node.annotation = None
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()[:12]


def code_now() -> dict[str, str]:
    return {str(path.relative_to(ROOT)): code_digest(path.read_text(encoding="utf-8")) for path in deciding()}


def test_no_code_that_decides_numbers_changes_unseen() -> None:
    recorded, now = json.loads(RECORDED.read_text(encoding="utf-8")), code_now()
    changed = sorted(name for name in recorded["code"].keys() | now if recorded["code"].get(name) != now.get(name))
    assert recorded["trainer"] == TRAINER_VERSION and not changed, (
        f"Since it was looked at last (trainer version {recorded['trainer']}) this code has changed: "
        f"{', '.join(changed) or 'none'}. If any number of a trained stage can differ, raise TRAINER_VERSION in "
        "lvlm/records.py, so that old stages are not taken for new ones. Then: python tests/test_code_version.py"
    )


def test_only_what_computes_counts() -> None:
    plain = "def step(x):\n    return 2 * x\n"
    told = '"""A module."""\ndef step(x: float) -> float:\n    """Twice."""  # as in the paper\n    return 2 * x\n'
    assert code_digest(told) == code_digest('"""Another."""\n' + plain.replace("\n    ", '\n    """."""\n    '))
    assert code_digest(plain) != code_digest(plain.replace("2", "3"))


if __name__ == "__main__":
    RECORDED.write_text(json.dumps({"trainer": TRAINER_VERSION, "code": code_now()}, indent=1) + "\n", encoding="utf-8")
    print(f"{RECORDED.name}: {len(code_now())} modules, trainer version {TRAINER_VERSION}")
