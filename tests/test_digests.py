"""Digests of large files: remembered as long as the file stays what it was, and never longer."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import pytest

from lvlm.model import digests
from lvlm.model.backbones import backbone_digests
from lvlm.model.digests import file_digest
from lvlm.settings import ModelConfig

LONG_AGO = time.time() - 1000


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """The files whose content is read, each time; everything from 8 bytes on counts as large."""
    names: list[str] = []
    real = digests._blocks
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(digests, "LARGE", 8)
    monkeypatch.setattr(digests, "_blocks", lambda path: names.append(path.name) or real(path))
    return names


def write(path: Path, content: bytes, *, at: float = LONG_AGO) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    os.utime(path, (at, at))
    return path


def test_a_large_file_is_read_once(read: list[str], tmp_path: Path) -> None:
    path = write(tmp_path / "weights", b"0123456789")
    for _ in range(3):
        assert file_digest(path) == hashlib.sha256(b"0123456789").digest()
    assert read == ["weights"]


def test_a_changed_file_is_read_again(read: list[str], tmp_path: Path) -> None:
    path = write(tmp_path / "weights", b"0123456789")
    before = file_digest(path)
    write(path, b"other bytes")
    assert file_digest(path) == hashlib.sha256(b"other bytes").digest(), "another size"
    write(path, b"9876543210", at=LONG_AGO + 1)
    assert file_digest(path) == hashlib.sha256(b"9876543210").digest(), "another time of change"
    os.replace(write(tmp_path / "new", b"abcdefghij", at=LONG_AGO + 1), path)
    assert file_digest(path) == hashlib.sha256(b"abcdefghij").digest(), "another inode"
    assert len(read) == 4 and before != file_digest(path)


def test_a_file_that_was_just_written_is_not_trusted(read: list[str], tmp_path: Path) -> None:
    path = write(tmp_path / "weights", b"0123456789", at=time.time())
    file_digest(path), file_digest(path)
    assert len(read) == 2


def test_small_files_and_broken_memories_do_no_harm(read: list[str], tmp_path: Path) -> None:
    file_digest(write(tmp_path / "small", b"0"))
    assert not (tmp_path / "cache").exists() and read == []
    path = write(tmp_path / "weights", b"0123456789")
    write(tmp_path / "cache" / "lvlm" / "file-digests.jsonl", b'["cut sho\n[1]\n')
    assert file_digest(path) == file_digest(path) == hashlib.sha256(b"0123456789").digest()
    assert len(read) == 1


def test_where_nothing_can_be_kept_files_are_read(
    read: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(write(tmp_path / "a-file", b"")))
    path = write(tmp_path / "weights", b"0123456789")
    assert file_digest(path) == file_digest(path) == hashlib.sha256(b"0123456789").digest()
    assert len(read) == 2


def test_backbones_keep_the_digests_that_they_had(read: list[str], tmp_path: Path) -> None:
    """Folders are identified as before large files were remembered: keys of trained stages hold."""
    write(tmp_path / "llm" / "config.json", b"{}")
    weights = write(tmp_path / "llm" / "model.safetensors", b"0123456789")
    config = ModelConfig(tower="a-hub-name", llm=str(tmp_path / "llm"))
    expected = hashlib.sha256()
    for name, content in (("config.json", b"{}"), ("model.safetensors", b"0123456789")):
        expected.update(name.encode() + b"\0" + hashlib.sha256(content).digest())
    first = backbone_digests(config, seed=0)
    assert first["llm"] == expected.hexdigest()[:12] and first == backbone_digests(config, seed=0)
    assert read == ["model.safetensors"]
    write(weights, b"0123456780", at=LONG_AGO + 5)
    assert backbone_digests(config, seed=0)["llm"] != first["llm"]
