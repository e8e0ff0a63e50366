"""Every way in which a user's files can be wrong is one clear error that names file, row and field."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from lvlm import cli
from lvlm.config import to_yaml
from lvlm.data.corpus import open_corpus
from lvlm.data.plan import build_plan
from lvlm.errors import InputError
from lvlm.run import run
from lvlm.settings import StageConfig
from tests.corpora import change_row, make_corpus, write_rows
from tests.train_world import run_config, write_corpus

PLACEHOLDER = "<image_placeholder>"


def plan(folder: Path, **mix: Any) -> None:
    mix.setdefault("corpora", [{"path": str(folder), "split": "instruct"}])
    config = StageConfig.model_validate({"mix": mix})
    build_plan("instruct", config, seed=0, corpora={str(folder): open_corpus(folder)})


def refuses(action: Callable[[], object], *parts: str) -> str:
    """The message of the InputError; it is one paragraph and holds every part."""
    with pytest.raises(InputError) as caught:
        action()
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, f"{part!r} is not in: {message}"
    return message


TRAIN_ROWS: dict[str, tuple[dict[str, Any], str, str]] = {
    "missing image": ({"image_id": "train/9.png"}, "image_id", "does not exist"),
    "parent": ({"image_id": "../secret.png"}, "image_id", "leaves the image folder"),
    "parent inside": ({"image_id": "train/../../secret.png"}, "image_id", "leaves the image folder"),
    "backslash": ({"image_id": "train\\..\\..\\secret.png"}, "image_id", "leaves the image folder"),
    "absolute": ({"image_id": "/etc/passwd"}, "image_id", "leaves the image folder"),
    "two images without placeholder": ({"image_id": ["train/0.png", "train/1.png"]}, "context", "names 2 images"),
    "placeholder without image": ({"context": [PLACEHOLDER, "b"], "image_id": ""}, "context", "names 0 images"),
    "two placeholders for one image": ({"context": [PLACEHOLDER, PLACEHOLDER]}, "context", "holds 2"),
    "placeholder in an answer": ({"label": [PLACEHOLDER, "b"]}, "label", "turn 0"),
    "unknown language": ({"language": "xx"}, "language", "Unknown language code 'xx'"),
    "another language": ({"language": "fr"}, "language", "the file of 'de'"),
    "empty answer": ({"label": ["a", "  "]}, "label", "turn 1 is empty"),
    "answers missing": ({"label": ["a"]}, "label", "has 1 turns but 'context' has 2"),
    "no answer field": ({"label": None}, "label", "missing"),
    "no image field": ({"image_id": None}, "image_id", "missing"),
    "empty image among others": ({"image_id": ["train/0.png", ""]}, "image_id", "empty path"),
    "numbers for text": ({"context": [1, 2]}, "context", "list of texts"),
    "null": ({"label": ["a", None]}, "label", "list of texts"),
    "unknown field": ({"langauge": "de"}, "langauge", "Known fields: id, context"),
    "duplicate id": ({"id": "t-00001"}, "id", "already the id of row 1"),
    "id of no other file": ({"id": "other"}, "id", "does not occur in"),
    "list for an id": ({"id": ["x"]}, "id", "must be text"),
    "number for a source": ({"source": 3}, "source", "must be text"),
    "test row among training rows": ({"text_label": "x"}, "text_label", "test row"),
}


@pytest.mark.parametrize("case", TRAIN_ROWS)
def test_bad_training_row(tmp_path: Path, case: str) -> None:
    changes, field, fault = TRAIN_ROWS[case]
    folder = make_corpus(tmp_path, ("en", "de"))
    (folder / "secret.png").write_bytes((folder / "images/train/0.png").read_bytes())
    path = folder / "instruct" / "de.jsonl"
    change_row(path, 17, **changes)
    refuses(lambda: open_corpus(folder).check("instruct"), str(path), "row 17 (line 18)", f"'{field}'", fault)


@pytest.mark.parametrize("case", [case for case in TRAIN_ROWS if case != "missing image"])
def test_the_plan_finds_it_too(tmp_path: Path, case: str) -> None:
    """Also where the mix gives the broken row to another language: the files that a mix reads are sound as a whole."""
    folder = make_corpus(tmp_path, ("en", "de"))
    change_row(folder / "instruct" / "de.jsonl", 17, **TRAIN_ROWS[case][0])
    refuses(lambda: plan(folder), "row 17", f"'{TRAIN_ROWS[case][1]}'")


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"text_label": ""}, "text_label"),
        ({"text_label": ["a", " "]}, "text_label"),
        ({"text_label": []}, "text_label"),
        ({"text_label": 3}, "text_label"),
        ({"label": ["gold"]}, "label"),
        ({"context": ["a", "b"]}, "context"),
        ({"image_id": "test/9.png"}, "image_id"),
    ],
)
def test_bad_test_row(tmp_path: Path, changes: dict[str, Any], field: str) -> None:
    folder = make_corpus(tmp_path, ("en", "de"))
    change_row(folder / "test" / "en.jsonl", 2, **changes)
    refuses(lambda: open_corpus(folder).check("test"), "test/en.jsonl, row 2 (line 3)", f"'{field}'")


def test_broken_json_lines(tmp_path: Path) -> None:
    folder = make_corpus(tmp_path)
    path = folder / "instruct" / "en.jsonl"
    lines = path.read_text().splitlines()
    lines[4] = lines[4][:-1]
    path.write_text("\n".join(lines))
    refuses(lambda: plan(folder), f"{path}, line 5, column {len(lines[4]) + 1}", "broken JSON")


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ('[\n {"context": "a", "label": "b", "image_id": ""},\n {"context": "a" "label"}\n]', "line 3, column 18"),
        ('[\n {"context": "a", "label": "b", "image_id": ""},  # a remark\n]', "line 2, column 51"),
        ('[\n {"context": "a", "label": "b", "image_id": ""}\n', "line 3, column 1"),
        ('[\n {"context": "a", "label": "b", "image_id": ""},\n]', "line 3, column 1"),
        ('[\n {"context": "a", "label": "b", "image_id": ""}\n] x', "line 3, column 3"),
        ("[{}, 3]", "row 0, field 'image_id'"),
        ("[3]", "row 0: a row must be an object"),
        ("[]", "holds no rows"),
        ("", "holds no rows"),
    ],
)
def test_broken_json_list(tmp_path: Path, text: str, where: str) -> None:
    path = tmp_path / "mix.json"
    path.write_text(text)
    refuses(lambda: open_corpus(path), f"{path}", where)


def test_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "mix.jsonl"
    path.write_bytes('{"context": "a", "label": "b", "image_id": ""}\n{"context": "ä"}'.encode("latin-1"))
    refuses(lambda: open_corpus(path), f"{path}, line 2", "UTF-8")


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_truncated_image(tmp_path: Path, suffix: str) -> None:
    folder = make_corpus(tmp_path, ("en",))
    image = folder / "images" / "train" / f"cut.{suffix}"
    Image.effect_noise((80, 80), 60).save(image)
    change_row(folder / "instruct" / "en.jsonl", 5, image_id=f"train/cut.{suffix}")
    plan(folder)
    whole = image.read_bytes()
    image.write_bytes(whole[: len(whole) // 2])
    open_corpus(folder).check("instruct")
    for action in (lambda: open_corpus(folder).check("instruct", images=True), lambda: plan(folder)):
        refuses(action, "en.jsonl, row 5 (line 6)", "'image_id'", f"cut.{suffix} cannot be decoded")
    image.write_text("no image at all")
    refuses(lambda: plan(folder), "row 5", "cannot be decoded")


def test_missing_image_in_a_plan(tmp_path: Path) -> None:
    folder = make_corpus(tmp_path, ("en",))
    change_row(folder / "instruct" / "en.jsonl", 5, image_id="train/9.png")
    refuses(lambda: plan(folder), "row 5", "'image_id'", "train/9.png does not exist")


@pytest.mark.parametrize("link", ["file", "folder"])
def test_link_out_of_the_image_folder(tmp_path: Path, link: str) -> None:
    folder = make_corpus(tmp_path, ("en",))
    outside = tmp_path / "outside"
    outside.mkdir()
    Image.new("RGB", (4, 4)).save(outside / "secret.png")
    if link == "file":
        os.symlink(outside / "secret.png", folder / "images" / "train" / "secret.png")
        name = "train/secret.png"
    else:
        os.symlink(outside, folder / "images" / "linked")
        name = "linked/secret.png"
    change_row(folder / "instruct" / "en.jsonl", 3, image_id=name)
    refuses(lambda: plan(folder), "row 3", "'image_id'", "through a link")


def test_an_id_missing_in_one_language(tmp_path: Path) -> None:
    folder = make_corpus(tmp_path)
    path = folder / "instruct" / "fr.jsonl"
    path.write_text("\n".join(path.read_text().splitlines()[:-1]))
    refuses(lambda: plan(folder), "fr.jsonl", "'t-00023' is missing")


CORPUS_KEYS: dict[str, tuple[dict[str, Any], str]] = {
    "unknown key": ({"langauges": ["en"]}, "unknown key 'langauges'"),
    "unknown key of a split": ({"splits": {"a": {"permission": "train", "allow": 1}}}, "unknown key 'splits.a.allow'"),
    "no permission": ({"splits": {"instruct": {}}}, "'splits.instruct.permission' is missing"),
    "wrong permission": ({"splits": {"instruct": {"permission": "all"}}}, "'train', 'tune' or 'report'"),
    "unknown language": ({"languages": ["en", "xx"]}, "Unknown language code 'xx'"),
    "language twice": ({"languages": ["en", "en"]}, "listed twice"),
    "no languages": ({"languages": []}, "must each name at least one"),
    "translatable": ({"translatable": "perhaps"}, "'translatable'"),
    "split outside": ({"splits": {"../instruct": {"permission": "train"}}}, "plain name"),
    "language without a file": ({"languages": ["en", "de", "fi"]}, "instruct/fi.jsonl does not exist"),
}  # fmt: skip


@pytest.mark.parametrize("case", CORPUS_KEYS)
def test_bad_corpus_file(tmp_path: Path, case: str) -> None:
    changes, fault = CORPUS_KEYS[case]
    folder = make_corpus(tmp_path, ("en", "de"), entry=changes)
    refuses(lambda: open_corpus(folder).check("instruct"), str(folder / "corpus.yaml"), fault)


@pytest.mark.parametrize("key", ["name", "languages", "translatable", "splits"])
def test_missing_key_in_corpus_file(tmp_path: Path, key: str) -> None:
    folder = make_corpus(tmp_path)
    data = yaml.safe_load((folder / "corpus.yaml").read_text())
    del data[key]
    (folder / "corpus.yaml").write_text(yaml.safe_dump(data))
    refuses(lambda: open_corpus(folder), "corpus.yaml", f"'{key}' is missing")


def test_not_a_corpus(tmp_path: Path) -> None:
    refuses(lambda: open_corpus(tmp_path / "nowhere"), "does not exist")
    refuses(lambda: open_corpus(tmp_path), "holds no corpus.yaml")
    (tmp_path / "corpus.yaml").write_text("a: [")
    with pytest.raises(InputError, match="not valid YAML"):
        open_corpus(tmp_path)


@pytest.mark.parametrize("split", ["test", "tune"])
def test_no_training_on_a_split_for_another_use(tmp_path: Path, split: str) -> None:
    folder = make_corpus(tmp_path)
    refuses(
        lambda: plan(folder, corpora=[{"path": str(folder), "split": split}]),
        f"'{split}'",
        "cannot be used for 'train'",
        "instruct",
    )


def test_unknown_split(tmp_path: Path) -> None:
    folder = make_corpus(tmp_path)
    refuses(lambda: plan(folder, corpora=[{"path": str(folder), "split": "instrut"}]), "no split 'instrut'", "instruct")


MIXES: dict[str, tuple[dict[str, Any], str]] = {
    "language that the corpus lacks": ({"languages": ["en", "zh"]}, "has only: en, de"),
    "unknown language": ({"languages": ["en", "xx"]}, "Unknown language code 'xx'"),
    "unknown group": ({"languages": "T9"}, "Unknown language group"),
    "share with English only": ({"languages": "en", "english_share": 0.5}, "English is its only language"),
    "share without English": ({"languages": ["de"], "english_share": 0.5}, "lack en"),
    "nothing": ({"languages": []}, "no language at all"),
    "no corpus": ({"corpora": []}, "'corpora' is empty"),
}


@pytest.mark.parametrize("case", MIXES)
def test_bad_mix(tmp_path: Path, case: str) -> None:
    mix, fault = MIXES[case]
    folder = make_corpus(tmp_path, ("en", "de"))
    refuses(lambda: plan(folder, **mix), fault)


def test_bad_use_of_a_corpus(tmp_path: Path) -> None:
    folder = make_corpus(tmp_path)
    use = {"path": str(folder), "split": "instruct"}
    refuses(lambda: plan(folder, corpora=[{**use, "samples": 25}]), "samples=25", "which has 24")
    refuses(lambda: plan(folder, corpora=[{**use, "languages": ["en"]}]), "translatable")
    refuses(lambda: plan(folder, corpora=[use, use]), "twice")
    reading = make_corpus(tmp_path, name="reading", translatable=False)
    use = {"path": str(reading), "split": "instruct"}
    refuses(lambda: plan(reading, corpora=[{**use, "languages": ["zh"]}]), "has no language 'zh'")
    refuses(lambda: plan(reading, corpora=[use], english_share=0.5), "none of its corpora is translatable")


def test_rows_of_the_wrong_kind(tmp_path: Path) -> None:
    folder = make_corpus(tmp_path, entry={"splits": {"test": {"permission": "train"}}})
    refuses(lambda: plan(folder, corpora=[{"path": str(folder), "split": "test"}]), "holds test rows")


def test_message_names_the_row_of_a_list(tmp_path: Path) -> None:
    rows = [{"context": "a", "label": "b", "image_id": ""}, {"context": "a", "label": "", "image_id": ""}]
    message = refuses(lambda: open_corpus(write_rows(tmp_path / "x.json", rows)), "row 1, field 'label'")
    assert not re.search(r"\(line", message)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:200])


def floating(path: Path) -> None:
    Image.new("F", (8, 8)).save(path, "TIFF")


def another_split(corpus: Path, *codes: str) -> None:
    """A split for reporting that no run names, with these languages; a row of German is broken. The vocabulary is
    closed, so that this split too tells the languages apart."""
    entry = yaml.safe_load((corpus / "corpus.yaml").read_text())
    entry["splits"]["another"] = {"permission": "report"}
    entry["attributes"] = "attributes.json"
    (corpus / "attributes.json").write_text('{"en": {"red": "colour:red"}, "de": {"rot": "colour:red"}}')
    (corpus / "corpus.yaml").write_text(yaml.safe_dump(entry))
    (corpus / "another").mkdir()
    for code in codes:
        (corpus / "another" / f"{code}.jsonl").write_bytes((corpus / "test" / f"{code}.jsonl").read_bytes())
    if "de" in codes:
        change_row(corpus / "another" / "de.jsonl", 0, text_label="")


DATA_FAULTS: dict[str, tuple[Callable[[Path], Any], dict[str, Any], str]] = {
    "training row": (lambda c: change_row(c / "train/en.jsonl", 2, label=["", ""]), {}, "train/en.jsonl, row 2"),
    "training picture": (lambda c: floating(c / "images/0.png"), {}, "0.png cannot be decoded (floating-point"),
    "test row": (lambda c: change_row(c / "test/de.jsonl", 1, text_label=""), {}, "test/de.jsonl, row 1"),
    "test picture": (lambda c: cut(c / "images/9.png"), {}, "9.png cannot be decoded"),
    "test picture absent": (lambda c: (c / "images/9.png").unlink(), {}, "9.png does not exist"),
    "tune row": (lambda c: change_row(c / "tune/de.jsonl", 1, text_label=""), {}, "tune/de.jsonl, row 1"),
    "task": (lambda c: change_row(c / "test/de.jsonl", 1, task="ocr"), {}, "'ocr' cannot be scored"),
    "tuning on the test split": (lambda c: None, {"tune_corpora": "test"}, "cannot be used for 'tune'"),
    "scoring the training split": (lambda c: None, {"corpora": "train"}, "cannot be used for 'report'"),
    "unknown split": (lambda c: None, {"corpora": "tset"}, "no split 'tset'"),
    "file of a split that nothing uses": (lambda c: another_split(c, "en"), {}, "another/de.jsonl does not exist"),
    "row that only tells languages": (lambda c: another_split(c, "en", "de"), {}, "another/de.jsonl, row 0"),
}


@pytest.mark.parametrize("command", ["run", "plan"])
@pytest.mark.parametrize("case", DATA_FAULTS)
def test_a_run_and_its_plan_find_the_same_faults(
    tmp_path: Path, case: str, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    damage, splits, fault = DATA_FAULTS[case]
    corpus = write_corpus(tmp_path / "noise", samples=6, items=10)
    damage(corpus)
    changes = {f"evaluate__{name}": [{"path": str(corpus), "split": split}] for name, split in splits.items()}
    config = run_config(corpus, evaluate__tune_items=10, **changes)
    if command == "run":
        message = refuses(lambda: run(config, tmp_path / "run", home=tmp_path / "home"))
    else:
        (tmp_path / "run.yaml").write_text(to_yaml(config))
        assert cli.main(["plan", str(tmp_path / "run.yaml"), "--home", str(tmp_path / "home")]) == 2
        message = capsys.readouterr().err
    assert fault in message and not (tmp_path / "home" / "stages").exists()


SETTINGS_IGNORED: dict[str, tuple[dict[str, Any], str]] = {
    "adapter_lr": ({"instruct__train": {"adapter": "frozen", "llm": "lora"}, "instruct__optim": {"adapter_lr": 1e-4}},
                   "train.adapter is frozen"),
    "tower_lr": ({"instruct__optim": {"tower_lr": 1e-4}}, "train.tower is frozen"),
    "lora": ({"instruct__train": {"adapter": "full", "llm": "full"}}, "no part is trained with it"),
}  # fmt: skip


@pytest.mark.parametrize("case", SETTINGS_IGNORED)
def test_a_setting_that_would_be_ignored_is_refused(tmp_path: Path, case: str) -> None:
    changes, fault = SETTINGS_IGNORED[case]
    refuses(lambda: run_config(tmp_path, **changes), fault)


def test_an_allocation_with_nothing_to_divide_is_refused(tmp_path: Path) -> None:
    folder = make_corpus(tmp_path, ("en", "de"))
    refuses(lambda: plan(folder, languages="en", allocation="inverse_tier"), "English is its only language")
    stays = make_corpus(tmp_path, ("en", "de"), name="stays", translatable=False)
    refuses(lambda: plan(stays, allocation="inverse_tier"), "none of its corpora is translatable")


NUMBERS_OUTSIDE: dict[str, dict[str, Any]] = {
    "instruct.optim.lr": {"instruct__optim": {"lr": float("inf")}},
    "instruct.optim.weight_decay": {"instruct__optim": {"weight_decay": float("nan")}},
    "instruct.optim.betas.1": {"instruct__optim": {"betas": [0.9, 1.0]}},
    "instruct.optim.betas.0": {"instruct__optim": {"betas": [-0.1, 0.9]}},
}


@pytest.mark.parametrize("field", NUMBERS_OUTSIDE)
def test_a_number_that_cannot_train_is_refused(tmp_path: Path, field: str) -> None:
    refuses(lambda: run_config(tmp_path, **NUMBERS_OUTSIDE[field]), f"'{field}'")


def test_attributes_that_are_not_utf8(tmp_path: Path) -> None:
    folder = make_corpus(tmp_path)
    (folder / "attributes.json").write_bytes('{"de": {"grün": "colour:green"}}'.encode("latin-1"))
    refuses(lambda: open_corpus(folder).attributes("de"), f"{folder / 'attributes.json'} is not UTF-8")
