"""Small pictures of test items beside the results: the same ones in every run, few, and of every task and language."""

from __future__ import annotations

import io
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from lvlm.check import open_used
from lvlm.config import RunConfig, make_config
from lvlm.data.worlds.writer import write_world
from lvlm.errors import InputError
from lvlm.evaluate.items import asked_items
from sweeps.thumbnails import PIXELS, chosen, write_thumbnails

LANGUAGES = ["en", "de", "ar"]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    folder = tmp_path_factory.mktemp("worlds")
    write_world("shapes", folder / "shapes", seed=0, train=1, tune=1, test=12, languages=LANGUAGES)
    write_world("reading", folder / "reading", seed=0, train=1, tune=1, test=4, languages=LANGUAGES)
    corpora = [{"path": str(folder / name), "split": "test"} for name in ("shapes", "reading")]
    return make_config({"evaluate": {"corpora": corpora, "languages": LANGUAGES}})


def test_a_few_items_of_each_task_and_source_are_kept_as_small_pictures(config: RunConfig, tmp_path: Path) -> None:
    path = write_thumbnails(config, tmp_path, items=3)
    assert path is not None
    table = pd.read_parquet(path)
    assert list(table.columns) == ["task", "source", "item", "image"]
    assert set(table["task"]) == {"caption", "vqa", "reading"}
    assert (
        table.groupby(["task", "source"]).size().le(3).all() and not table.duplicated(["task", "source", "item"]).any()
    )
    for data in table["image"]:
        with Image.open(io.BytesIO(data)) as image:
            assert image.format == "WEBP" and max(image.size) <= PIXELS
    again = tmp_path / "again"
    again.mkdir()
    write_thumbnails(config, again, items=3)
    assert pd.read_parquet(again / path.name).equals(table)


def test_items_that_every_language_has_for_itself_are_taken_in_turn(config: RunConfig) -> None:
    asked = asked_items(config.evaluate, open_used(config.evaluate.corpora), permission="report")
    found = [one.item for one in chosen(asked, items=3) if one.item.task == "reading"]
    assert {item.language for item in found} == set(LANGUAGES)
    assert len({item.id for item in found}) == len(found)


def test_corpora_that_are_gone_are_an_error_and_leave_nothing(config: RunConfig, tmp_path: Path) -> None:
    gone = make_config({"evaluate": {"corpora": [{"path": str(tmp_path / "gone"), "split": "test"}]}})
    with pytest.raises(InputError, match="does not exist"):
        write_thumbnails(gone, tmp_path)
    assert not list(tmp_path.iterdir())
