"""The digest of a file's content; that of a large file is remembered, for a backbone of 15 GB takes a minute to read.
No torch. Called by `lvlm.model.layouts`.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

from lvlm.data.progress import shown

LARGE = 1 << 24
"""Bytes from which on a digest is remembered; smaller files are read more quickly than looked up."""
SETTLED_SECONDS = 2.0
"""A file changed this recently may change again without another time of change, and is not remembered yet."""
_BLOCK = 1 << 22

State = tuple[int, int, int]
"""Size, time of change (ns) and inode of a file."""


def file_digest(path: Path) -> bytes:
    """SHA-256 of a file. That of a large one is kept in the user's cache folder (`XDG_CACHE_HOME`, else `~/.cache`) as
    long as path, size, time of change and inode stay the same; where that folder cannot be written, nothing is kept."""
    state = _state(path)
    if state[0] < LARGE:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    name, memory = os.path.abspath(path), cache_folder() / "file-digests.jsonl"
    if found := _remembered(memory).get((name, *state)):
        return bytes.fromhex(found)
    digest = hashlib.sha256()
    for block in shown(_blocks(path), title=f"reading {path.name}", unit="MiB", total=state[0] >> 20):
        digest.update(block)
    if _state(path) == state and time.time() - state[1] / 1e9 > SETTLED_SECONDS:
        _remember(memory, [name, *state, digest.hexdigest()])
    return digest.digest()


def cache_folder() -> Path:
    """Where this user's programs keep what they could compute again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lvlm"


def _state(path: Path) -> State:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns, stat.st_ino


def _blocks(path: Path) -> Iterator[tuple[bytes, int]]:
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            yield block, len(block) >> 20


def _remembered(memory: Path) -> dict[tuple[str, int, int, int], str]:
    try:
        lines = memory.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return {}
    known = {}
    for line in lines:
        try:
            name, size, changed, inode, digest = json.loads(line)
            known[name, size, changed, inode] = digest
        except (ValueError, TypeError):  # cut short by a full disk
            continue
    return known


def _remember(memory: Path, row: list[str | int]) -> None:
    """Add a line; one write, so that lines of several processes do not mix."""
    try:
        memory.parent.mkdir(parents=True, exist_ok=True)
        with open(memory, "ab", buffering=0) as file:
            file.write(json.dumps(row).encode() + b"\n")
    except OSError:
        return
