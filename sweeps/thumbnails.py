"""Small pictures of some test items, kept beside the results so that answers can be looked at wherever these are taken.
Used by `sweeps.read`."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from zlib import crc32

import pandas as pd
from PIL import Image, ImageOps

from ablations.table import THUMBNAILS_FILE
from lvlm.config import RunConfig
from lvlm.records import write_table

if TYPE_CHECKING:
    from lvlm.evaluate.items import Asked

ITEMS = 24
"""Pictures kept for each task and source."""
PIXELS = 160
"""The longer side of one."""
QUALITY = 82


def write_thumbnails(config: RunConfig, folder: Path, *, items: int = ITEMS) -> Path | None:
    """Keep pictures of `items` test items of each task and source beside the results; None where none has a picture.

    Which ones follows from their ids alone: the same in every run. Raises `InputError` where a corpus of the evaluation
    is not to be found from here.
    """
    from lvlm.check import open_used
    from lvlm.evaluate.items import asked_items

    corpora = open_used(config.evaluate.corpora)
    rows = [
        {"task": one.item.task, "source": one.item.source, "item": one.item.id, "image": _thumbnail(paths)}
        for one in chosen(asked_items(config.evaluate, corpora, permission="report"), items=items)
        if (paths := [path for name in one.item.images if (path := one.corpus.image_path(name)).exists()])
    ]
    if not rows:
        return None
    write_table(folder / THUMBNAILS_FILE, pd.DataFrame(rows))
    return folder / THUMBNAILS_FILE


def chosen(asked: Iterable[Asked], *, items: int) -> list[Asked]:
    """`items` different ids of each task and source, taken from its languages in turn."""
    pools: dict[tuple[str, str], dict[str, list[Asked]]] = {}
    for one in asked:
        languages = pools.setdefault((one.item.task, one.item.source), {})
        languages.setdefault(one.item.language, []).append(one)
    found: list[Asked] = []
    for languages in pools.values():
        queues = [sorted(own, key=lambda one: (crc32(one.item.id.encode()), one.item.id)) for own in languages.values()]
        picked: dict[str, Asked] = {}
        for rank in range(max(map(len, queues))):
            for queue in queues:
                if rank < len(queue) and len(picked) < items:
                    picked.setdefault(queue[rank].item.id, queue[rank])
        found += picked.values()
    return found


def _thumbnail(paths: Sequence[Path]) -> bytes:
    """The pictures of an item side by side as WebP, `PIXELS` at most on the longer side of each."""
    shown = []
    for path in paths:
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened).convert("RGB")
        image.thumbnail((PIXELS, PIXELS))
        shown.append(image)
    size = (sum(image.width + 4 for image in shown) - 4, max(image.height for image in shown))
    whole = Image.new("RGB", size, "white")
    left = 0
    for image in shown:
        whole.paste(image, (left, 0))
        left += image.width + 4
    buffer = io.BytesIO()
    whole.save(buffer, "WEBP", quality=QUALITY, method=6)
    return buffer.getvalue()
