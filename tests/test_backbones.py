"""The tiny backbones: how they are made, and that the shipped ones are what their card says."""

from __future__ import annotations

import os
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import lvlm
from lvlm.backbones import build as backbones_build
from lvlm.backbones import glyphs, vision
from lvlm.backbones.answers import build_answer_mixes, scaled_mix
from lvlm.backbones.build import CLEAN, DRAWS, build, finished, progress_of, read_card
from lvlm.backbones.lm import IGNORED_WEIGHT, encode
from lvlm.backbones.text import ANSWER_MIX, NO_MIX, TextWorld
from lvlm.backbones.tokenizer import ASSISTANT, END, IMAGE, PAD, USER, train_tokenizer
from lvlm.data.worlds.lexicon import load_lexicon
from lvlm.data.worlds.render import RGB
from lvlm.data.worlds.scenes import COLOURS, HELD_OUT, SHAPES
from lvlm.errors import InputError
from lvlm.languages import language
from lvlm.model.backbones import resolve, tokenizer_source

ASSETS = Path(lvlm.__file__).parent / "assets"


def documents(seed: int, world: TextWorld | None = None, count: int = 300) -> list[tuple[str, list[tuple[str, str]]]]:
    return list((world or TextWorld()).documents(np.random.default_rng(seed), count=count))


def test_documents_follow_the_seed() -> None:
    assert documents(1) == documents(1)
    assert documents(1) != documents(2)


def test_the_answer_mix_sets_how_often_answers_are_english() -> None:
    def english_share(world: TextWorld) -> float:
        english, total = 0, 0
        for code, turns in documents(3, world, count=6000):
            if language(code).tier != "T1" or turns[0][0].endswith(load_lexicon(code).read_request):
                continue
            total += 1
            lexicon = load_lexicon("en")
            words = {word.strip(":;().,") for _, answer in turns for word in answer.split()}
            english += words <= {
                w for surface in [*lexicon.attributes, "yes", "no", "a", "on", "the", "at"] for w in surface.split()
            }
        return english / total

    assert english_share(TextWorld(answer_mix=NO_MIX)) < 0.02
    assert english_share(TextWorld()) == pytest.approx(ANSWER_MIX["T1"], abs=0.1)


def test_the_tokenizer_falls_back_to_bytes_and_marks_answers() -> None:
    docs = [turns for _, turns in documents(0)]
    tokenizer = train_tokenizer(text for turns in docs for turn in turns for text in turn)
    assert tokenizer.decode(tokenizer.encode("a 漢字 circle", add_special_tokens=False)) == "a 漢字 circle"
    ids = tokenizer.convert_tokens_to_ids([PAD, USER, ASSISTANT, END, IMAGE])
    assert len(set(ids)) == 5 and tokenizer.pad_token_id != tokenizer.eos_token_id
    (document,) = encode(tokenizer, [[("how many?", "two"), ("where?", "on the left")]])
    answers = document.ids[document.weights == 1.0]
    assert tokenizer.decode(answers) == "two<|end|> on the left<|end|>"
    assert set(np.unique(document.weights)) == {np.float32(IGNORED_WEIGHT), np.float32(1.0)}
    messages = [{"role": "user", "content": "how many?"}, {"role": "assistant", "content": "two"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    assert tokenizer.encode(text, add_special_tokens=False) == document.ids[: len(tokenizer.encode(text))].tolist()


def test_views_label_what_their_tokens_show() -> None:
    views = vision.draw_views(np.random.default_rng(0), pictures=40)
    assert views.pixels.shape == (120, 3, 48, 48)
    shown = views.labels["colour"] > 0
    assert (views.labels["shape"][shown] > 0).all() and (views.labels["letter"][shown] == 0).all()
    means = torch.tensor(vision.MEAN), torch.tensor(vision.STD)
    patches = (
        views.pixels.unfold(2, 8, 8).unfold(3, 8, 8).mean((-1, -2)).flatten(2).transpose(1, 2) * means[1] + means[0]
    )
    red, blue = (patches[views.labels["colour"] == vision.COLOURS.index(name) + 1].mean(0) for name in ("red", "blue"))
    assert red[0] > red[2] and blue[2] > blue[0]


def test_the_build_makes_loadable_backbones_and_resumes(tmp_path: Path) -> None:
    said: list[str] = []
    build(tmp_path, draws=[0], parts=["lm", "vit", "card"], scale=1e-4, say=said.append, compiled=False)
    assert {path.name for path in tmp_path.iterdir()} == {
        "tiny-tokenizer",
        "tiny-lm-0",
        "tiny-vit-0",
        "card.json",
        "CARD.md",
    }
    before = (tmp_path / "tiny-lm-0" / "model.safetensors").read_bytes()
    build(tmp_path, draws=[0], parts=["lm"], scale=1e-4, say=said.append, compiled=False)
    assert (tmp_path / "tiny-lm-0" / "model.safetensors").read_bytes() == before
    assert "tiny-lm-0: already there" in said
    with pytest.raises(InputError, match=r"trained with other settings \(recipe;"):
        build(tmp_path, draws=[0], parts=["lm"], scale=1e-3, say=said.append, compiled=False)


def test_a_shipped_language_model_is_trained_on_with_another_answer_mix(tmp_path: Path) -> None:
    said: list[str] = []
    build_answer_mixes(tmp_path, [0.0, 1.5], draws=[0, 1], scale=1e-3, say=said.append, compiled=False)
    names = {str(path.parent.relative_to(tmp_path)) for path in tmp_path.rglob("training.json")}
    assert names == {"0/0", "0/1", "1.5/0", "1.5/1"}
    weights = {name: load_file(tmp_path / name / "model.safetensors") for name in names}
    shipped = load_file(ASSETS / "tiny-lm-1" / "model.safetensors")
    assert weights["0/1"].keys() == weights["1.5/1"].keys() <= shipped.keys()
    moved = [(weights["0/1"][key] - shipped[key]).abs().max() for key in weights["0/1"]]
    assert 0 < max(moved) < 0.5, "it goes on from the shipped draw"
    assert any((weights["0/1"][key] != weights["1.5/1"][key]).any() for key in weights["0/1"])
    assert resolve(str(tmp_path / "1.5"), seed=3) == str(tmp_path / "1.5" / "1")
    assert tokenizer_source(resolve(str(tmp_path / "0"), seed=0)) == str(tmp_path / "0" / "tiny-tokenizer")
    build_answer_mixes(tmp_path, [0.0], draws=[0], scale=1e-3, say=said.append, compiled=False)
    assert said[-1].endswith("0/0: already there")


def test_answer_mixes_are_multiples_of_the_shipped_one() -> None:
    assert scaled_mix(0.0) == NO_MIX and scaled_mix(1.0) == ANSWER_MIX
    assert scaled_mix(2.0)["T1"] == pytest.approx(0.9)
    for rate in (-1.0, 2.3):
        with pytest.raises(InputError, match=r"lies outside 0 to 2.22"):
            scaled_mix(rate)
    with pytest.raises(InputError, match="no shipped language model tiny-lm-9"):
        build_answer_mixes(Path("nowhere"), [1.0], draws=[9])


def test_documents_of_two_answer_mixes_differ_in_the_language_of_answers_alone() -> None:
    clean, mixed = (documents(5, TextWorld(answer_mix=scaled_mix(rate)), count=400) for rate in (0.0, 1.5))
    asked = [[[question for question, _ in turns] for _, turns in some] for some in (clean, mixed)]
    assert asked[0] == asked[1] and clean != mixed


def test_two_builds_do_not_write_into_one_folder(tmp_path: Path) -> None:
    target = tmp_path / "tiny-lm-0"
    with finished(target) as first:
        (first / "weights").write_text("first")
        child = os.fork()
        if not child:
            try:
                with finished(target) as second:
                    (second / "weights").write_text("second")
                os._exit(0)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert (first / "weights").read_text() == "first"
    assert (target / "weights").read_text() == "second", "whoever is ready first"
    assert list(tmp_path.iterdir()) == [target]


def test_a_build_says_a_line_now_and_then_of_the_stem_too(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, said = [0.0], list[str]()
    monkeypatch.setattr(backbones_build, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    report = progress_of("tiny-vit-0", said.append, stem_steps=400)
    for step in range(0, 400, 100):
        clock[0] += 20
        report({"stem letter": 2.0, "stem shape": 0.5, "stem step": step})
    for step in range(0, 200, 50):
        clock[0] += 20
        report({"step": step, "steps": 200, "loss": 3.0, "seconds": 60.0, "colour": 1.0})
    assert said == [
        "tiny-vit-0: stem step 100 of 400, loss of letter 2.000, shape 0.500",
        "tiny-vit-0: stem step 300 of 400, loss of letter 2.000, shape 0.500",
        "tiny-vit-0: step 50 of 200, loss 3.000, 3 min left",
        "tiny-vit-0: step 150 of 200, loss 3.000, 0 min left",
    ]


def shipped() -> list[Path]:
    """Weights of towers and language models; those of the denoiser are weighed in `test_paint_scores`."""
    return [path for part in ("lm", "vit") for path in ASSETS.glob(f"tiny-{part}-*/*.safetensors")]


def test_the_shipped_backbones_are_small_and_numbered_from_zero() -> None:
    sizes = [path.stat().st_size for path in shipped()]
    assert max(sizes) <= 3_000_000 and sum(sizes) <= 22_000_000
    names = {path.parent.name for path in shipped()}
    assert CLEAN in names
    for part in ("lm", "vit"):
        draws = sorted(int(name.rpartition("-")[2]) for name in names if re.fullmatch(rf"tiny-{part}-\d+", name))
        assert draws == list(range(DRAWS))


def tier_mean(figures: dict[str, dict[str, dict[str, float]]], tier: str, measure: str) -> float:
    """Mean over the draws and the languages of a tier."""
    draws = [rows for name, rows in figures.items() if re.fullmatch(r"tiny-lm-\d+", name)]
    return float(np.mean([rows[code][measure] for rows in draws for code in rows if language(code).tier == tier]))


def test_the_shipped_language_models_meet_the_terms_they_were_accepted_on() -> None:
    figures = read_card(ASSETS)
    draws = [rows for name, rows in figures.items() if re.fullmatch(r"tiny-lm-\d+", name)]
    assert np.mean([rows["en"]["one_object"] for rows in draws]) >= 0.90
    assert tier_mean(figures, "T5", "one_object") >= 0.90
    by_tier = [tier_mean(figures, tier, "one_object") for tier in ("T5", "T4", "T3", "T2", "T1")]
    assert by_tier == sorted(by_tier, reverse=True) and by_tier[0] - by_tier[-1] > 0.3
    clean = figures[CLEAN].values()  # without the mix there is no right answer in the wrong language
    assert np.mean([rows["one_object_or_english"] - rows["one_object"] for rows in clean]) < 0.05


def test_the_card_speaks_of_the_shipped_backbones() -> None:
    figures = read_card(ASSETS)
    assert set(figures) == {path.parent.name for path in shipped()}
    for name, rows in figures.items():
        if name.startswith("tiny-vit"):
            assert rows["probe"]["tile/letter"] > rows["probe"]["global/letter"]  # resolution matters
        else:
            by_tier = rows["de"]["one_object"] > rows["jv"]["one_object"]
            assert by_tier if name != CLEAN else rows["jv"]["one_object"] >= 0.9  # the tier matters, but to the control


def test_the_card_is_reproduced_by_measuring_again() -> None:
    from transformers import PreTrainedTokenizerFast

    from lvlm.backbones.build import TOKENIZER, load_lm
    from lvlm.backbones.card import answer_accuracy

    tokenizer = PreTrainedTokenizerFast.from_pretrained(str(ASSETS / TOKENIZER))
    model = load_lm(ASSETS / "tiny-lm-0")
    for code in ("fr", "sw"):
        measured, _ = answer_accuracy(model, tokenizer, code, groups=1)
        assert measured == pytest.approx(read_card(ASSETS)["tiny-lm-0"][code]["one_object"], abs=0.03)


def test_an_answer_does_not_depend_on_what_the_tokenizer_did_before() -> None:
    """A fast tokenizer remembers that it padded: prompts must not be padded in the middle because of that."""
    from transformers import PreTrainedTokenizerFast

    from lvlm.backbones.build import TOKENIZER, load_lm
    from lvlm.backbones.card import greedy_answers

    tokenizer = PreTrainedTokenizerFast.from_pretrained(str(ASSETS / TOKENIZER))
    model = load_lm(ASSETS / "tiny-lm-0")
    request = load_lexicon("de").read_request
    prompts = [f"{' '.join(word)}\n{request}" for word in ("haus", "schmetterling")]
    before = greedy_answers(model, tokenizer, prompts)
    tokenizer(["kurz", "ein sehr viel längerer Text"], padding=True)
    assert greedy_answers(model, tokenizer, prompts) == before


def test_squares_show_no_held_out_pair() -> None:
    """Colours are told by the glyph's brightest pixels: none of a shape's squares is in its held-out colour."""
    bank = glyphs.shape_bank()
    pixels, shapes = glyphs.draw_squares(bank, np.random.default_rng(0), count=2000, coloured=True)
    palette = torch.tensor(list(RGB.values())) / 255.0
    middle = pixels[:, :, 12, 12]
    nearest = ((middle[:, None] - palette) ** 2).sum(-1)
    plain = nearest.min(1).values < 1e-6  # the middle pixel is covered in full
    seen = {(int(shape), int(colour)) for shape, colour in zip(shapes[plain], nearest.argmin(1)[plain], strict=True)}
    held = {(SHAPES.index(shape), COLOURS.index(colour)) for colour, shape in HELD_OUT}
    assert len(seen) > 40 and not seen & held
