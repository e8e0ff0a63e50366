"""The backbones of the emoji world: what they read and see, how they are built on demand and found again."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from lvlm import cli
from lvlm.backbones.emoji import build_emoji
from lvlm.backbones.emoji_text import KINDS, TURNS, EmojiText
from lvlm.backbones.emoji_vision import BANK, draw_views, emoji_bank
from lvlm.backbones.text import NO_MIX
from lvlm.data.worlds.cldr import open_names
from lvlm.data.worlds.emoji import Concepts, emoji_id, load_concepts
from lvlm.data.worlds.emoji_items import LETTERS
from lvlm.data.worlds.emoji_writer import PICTURES_FOLDER, read_concepts, write_emoji
from lvlm.errors import InputError
from lvlm.languages import language
from lvlm.model.backbones import resolve
from lvlm.model.lvlm import Lvlm
from lvlm.settings import ModelConfig
from tests.emoji_sources import EMOJI, write_cldr, write_pictures


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("corpus")
    names, pictures = write_cldr(folder), write_pictures(folder / "png")
    return write_emoji(
        folder / "emoji",
        seed=0,
        train_images=4,
        tune_images=1,
        test_images=2,
        concepts=30,
        names=names,
        pictures=pictures,
    )


@pytest.fixture(scope="module")
def concepts(corpus: Path) -> Concepts:
    return read_concepts(corpus)


def test_documents_ask_what_the_corpus_asks_and_answer_it_rightly(concepts: Concepts) -> None:
    kinds = Counter[str]()
    for code, turns in EmojiText(concepts, answer_mix=NO_MIX).documents(np.random.default_rng(0), count=400):
        named = {
            name: concept
            for names in concepts.names.values()
            for name, concept in zip(names.values(), names, strict=True)
        }
        for text, answer in turns:
            shown, request = text.split("\n", 1)
            if request.startswith("Name the picture"):
                kinds["naming"] += 1
                assert answer == concepts.names[code][named[shown]]
            elif request.startswith("Name everything"):
                kinds["caption"] += 1
                assert answer == ", ".join(concepts.names[code][named[name]] for name in shown.split(", "))
            elif request.startswith("Which of these"):
                kinds["choice"] += 1
                options = [line[3:] for line in request.splitlines()[2:6]]
                assert options[LETTERS.index(answer)] == concepts.names[code][named[shown]]
            else:
                kinds["pair"] += 1
                second, question = request.split("\n", 1)
                right = (shown, second)[int(answer) - 1]
                assert f'"{concepts.names[code][named[right]]}"' in question
            assert f" {language(code).name}" in text or "Which of the two" in text
    assert set(kinds) == set(KINDS) and kinds["caption"] < kinds["naming"]


def test_held_out_concepts_are_read_about_and_low_tiers_less(concepts: Concepts) -> None:
    drawn = list(EmojiText(concepts).documents(np.random.default_rng(1), count=2000))
    counts = Counter(code for code, _ in drawn)
    assert counts["en"] > 2 * counts["de"] > 2 * counts["sw"] and counts["sw"] > counts["jv"]
    said = "\n".join(text for _, turns in drawn for turn in turns for text in turn)
    assert all(concepts.names["sw"][concept] in said for concept in concepts.of("test"))
    assert max(len(turns) for _, turns in drawn) == max(TURNS.values())


def test_a_language_of_no_tier_is_read_like_the_lowest(tmp_path: Path) -> None:
    names = open_names(write_cldr(tmp_path, languages=["en", "jv", "br"]))
    everything = load_concepts(names, pictures=set(map(emoji_id, EMOJI)), languages=["all"])
    counts = Counter(code for code, _ in EmojiText(everything).documents(np.random.default_rng(3), count=3000))
    assert everything.languages == ("en", "jv", "br") and counts["br"] == pytest.approx(counts["jv"], rel=0.25)


def test_the_answer_mix_sets_how_often_names_are_answered_in_english(concepts: Concepts) -> None:
    mix = {**NO_MIX, "T2": 1.0}
    documents = EmojiText(concepts, answer_mix=mix).documents(np.random.default_rng(2), count=600)
    for code, turns in documents:
        for text, answer in turns:
            if "\nName " in text:
                assert answer.startswith("enword" if code == "sw" else f"{code}word")
            else:
                assert answer in {*LETTERS, "1", "2"}


def test_views_are_labelled_with_the_emoji_they_show(corpus: Path, concepts: Concepts) -> None:
    bank = emoji_bank(corpus / PICTURES_FOLDER, concepts.ids)
    assert bank.shape == (len(concepts.ids), 4, BANK, BANK)
    plain = torch.zeros_like(bank)  # every emoji a square of one colour: its number
    plain[:, 3] = 1.0
    plain[:, 0] = (torch.arange(len(bank)).float() / len(bank)).view(-1, 1, 1)
    pixels, labels = draw_views(plain, np.random.default_rng(0), pictures=16)
    assert pixels.shape == (32, 3, 48, 48) and labels.shape == (32, 36)
    patches = pixels.unfold(2, 8, 8).unfold(3, 8, 8).flatten(4) * 0.25 + 0.5  # (views, colours, rows, columns, pixels)
    alike = (patches.std(-1) < 1e-4).all(1).flatten(1) & (patches[:, 1:].mean(-1) < 1e-3).all(1).flatten(1)
    number = (patches[:, 0].mean(-1).flatten(1) * len(bank)).round().long() + 1
    assert alike.sum() > 50
    assert (labels[alike] == number[alike]).all()


def test_backbones_are_built_once_found_by_seed_and_make_a_model(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr("lvlm.backbones.emoji.FIGURE_ITEMS", 2)
    for draw in (0, 1):
        parts = ["lm", "vit"] if draw == 0 else ["vit"]
        build_emoji(corpus, tmp_path, draws=[draw], parts=parts, scale=1e-4, compiled=False, say=said.append)
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.glob("*/*")} == {
        "lm/0", "lm/tiny-tokenizer", "vit/0", "vit/1",
    }  # fmt: skip
    assert set(json.loads((tmp_path / "lm" / "0" / "card.json").read_text())) == {"en", "de", "ru", "sw", "jv"}
    build_emoji(corpus, tmp_path, draws=[0], parts=["lm"], scale=1e-4, compiled=False, say=said.append)
    assert said[-1].endswith("already there")
    with pytest.raises(InputError, match="trained with other settings"):
        build_emoji(corpus, tmp_path, draws=[0], parts=["vit"], scale=2e-3, compiled=False, say=said.append)

    for seed, draw in ((0, 0), (1, 1), (2, 0)):
        assert resolve(str(tmp_path / "vit"), seed=seed) == str(tmp_path / "vit" / str(draw))
    assert resolve(str(tmp_path / "vit" / "1"), seed=0) == str(tmp_path / "vit" / "1")
    config = ModelConfig(tower=str(tmp_path / "vit"), llm=str(tmp_path / "lm"))
    model, processor = Lvlm.assemble(config, seed=3)
    text = 'enword am, деслово зл: สัตว์ "x"'
    ids = processor.tokenizer.encode(text, add_special_tokens=False)
    assert processor.tokenizer.decode(ids) == text, "transformers reads the tokenizer as it was made"
    own = PreTrainedTokenizerFast.from_pretrained(str(tmp_path / "lm" / "tiny-tokenizer"))
    assert ids == own.encode(text, add_special_tokens=False)
    assert processor.tokenizer.convert_tokens_to_ids("<image_placeholder>") == model.config.image_token_id


def test_backbones_that_are_not_built_are_an_error_with_the_command(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no backbone at .*lm .*python -m lvlm backbones --corpus"):
        resolve(str(tmp_path / "backbones" / "lm"), seed=0)
    assert resolve("org/model", seed=0) == "org/model"


def test_the_command_wants_an_emoji_corpus(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["backbones", "--corpus", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "is no emoji corpus" in capsys.readouterr().err
    assert cli.main(["backbones", "--corpus", str(tmp_path), "--parts", "card"]) == 2
    assert "--parts card" in capsys.readouterr().err
