"""A fastText model for languages in fastText's own binary form, written without fastText: a bag of whole words with one
weight for each (word, language)."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

MAGIC, VERSION = 793712314, 12
SOFTMAX, SUPERVISED = 3, 3


def write_fasttext(path: Path, words: Mapping[str, Mapping[str, float]], labels: Sequence[str]) -> Path:
    """`words` gives each word its logits by label; a text has the mean of those of its words (and of its end)."""
    entries = ["</s>", *words]
    dimension = len(labels)
    # dim, ws, epoch, minCount, neg, wordNgrams, loss, model, bucket, minn, maxn, lrUpdateRate; t
    arguments = struct.pack("<12id", dimension, 5, 5, 1, 5, 1, SOFTMAX, SUPERVISED, 0, 0, 0, 100, 1e-4)
    dictionary = struct.pack("<3i2q", len(entries) + len(labels), len(entries), len(labels), 100, -1)
    for word in entries:
        dictionary += word.encode() + b"\0" + struct.pack("<qb", 1, 0)
    for label in labels:
        dictionary += f"__label__{label}".encode() + b"\0" + struct.pack("<qb", 1, 1)
    weights = [[words.get(word, {}).get(label, 0.0) for label in labels] for word in entries]
    identity = [[float(row == column) for column in range(dimension)] for row in range(dimension)]
    path.write_bytes(struct.pack("<2i", MAGIC, VERSION) + arguments + dictionary + _matrix(weights) + _matrix(identity))
    return path


def _matrix(rows: Sequence[Sequence[float]]) -> bytes:
    """Not quantised, then a dense matrix."""
    values = [value for row in rows for value in row]
    return struct.pack("<?2q", False, len(rows), len(rows[0])) + struct.pack(f"<{len(values)}f", *values)
