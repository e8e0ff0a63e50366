"""Models of transformers as translators: a tiny NLLB that has learned its six sentences, and random instances of the
other classes with tokenizers of their own forms. Nothing is downloaded."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from lvlm import cli
from lvlm.data.corpus import open_corpus
from lvlm.errors import InputError
from lvlm.translate.model import Seq2SeqTranslator
from lvlm.translate.tokens import LanguageTokens
from tests.corpora import make_corpus, train_row, write_rows

SENTENCES = {
    "Which colour is it?": ("Welche Farbe hat es?", "它是什么颜色？"),
    "It is red.": ("Es ist rot.", "红色。"),
    "There are 3 dogs.": ("Da sind 3 Hunde.", "有3只狗。"),
    "A long bus.": ("Ein langer Bus.", "一辆长巴士。"),
    "Describe the image.": ("Beschreibe das Bild.", "描述图片。"),
    "I see 12 of them.": ("Ich sehe drei davon.", "我看到12个。"),  # German loses the number
}
CODES = ("eng_Latn", "deu_Latn", "zho_Hant")


def nllb_tokenizer() -> Any:
    """NLLB's own tokenizer class over characters."""
    from transformers import NllbTokenizer

    letters = sorted({sign for text, others in SENTENCES.items() for sign in f"{text}{''.join(others)}"} - {" "})
    words = ["<s>", "<pad>", "</s>", "<unk>", "▁", *letters]
    return NllbTokenizer(vocab={word: number for number, word in enumerate(words)}, extra_special_tokens=list(CODES))


def tiny_m2m(vocabulary: int, *, seed: int = 0) -> Any:
    """The class of NLLB-200's dense models and of M2M100."""
    from transformers import M2M100Config, M2M100ForConditionalGeneration

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return M2M100ForConditionalGeneration(
            M2M100Config(
                vocab_size=vocabulary,
                d_model=64,
                encoder_layers=1,
                decoder_layers=1,
                encoder_attention_heads=4,
                decoder_attention_heads=4,
                encoder_ffn_dim=128,
                decoder_ffn_dim=128,
                dropout=0.0,
                attention_dropout=0.0,
                encoder_layerdrop=0.0,
                decoder_layerdrop=0.0,
                max_position_embeddings=64,
                pad_token_id=1,
                bos_token_id=0,
                eos_token_id=2,
                decoder_start_token_id=2,
            )
        )


@pytest.fixture(scope="module")
def nllb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a model that translates the sentences above into both languages, and says which by its first
    token."""
    torch.set_num_threads(1)
    tokenizer = nllb_tokenizer()
    model = tiny_m2m(len(tokenizer))
    tokenizer.src_lang = "eng_Latn"
    pairs = [(text, *pair) for text, both in SENTENCES.items() for pair in zip(CODES[1:], both, strict=True)]
    inputs = tokenizer([text for text, _, _ in pairs], return_tensors="pt", padding=True)
    answers = [tokenizer(other, add_special_tokens=False)["input_ids"] for _, _, other in pairs]
    longest = max(map(len, answers))
    codes = [tokenizer.convert_tokens_to_ids(code) for _, code, _ in pairs]
    before = [[2, code, *ids, *[1] * (longest - len(ids))] for code, ids in zip(codes, answers, strict=True)]
    after = [[-100, *ids, 2, *[-100] * (longest - len(ids))] for ids in answers]
    told = {**inputs, "decoder_input_ids": torch.tensor(before), "labels": torch.tensor(after)}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(600):
        output = model(**told)
        losses = torch.nn.functional.cross_entropy(
            output.logits.flatten(0, 1), told["labels"].flatten(), reduction="none"
        )
        if losses.max() < 0.1:  # each token of each sentence, so that none goes astray on another processor
            break
        output.loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    else:
        raise AssertionError(f"the sentences were not learned: {losses.max():.2f}")
    folder = tmp_path_factory.mktemp("nllb")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def load(folder: Path, **options: Any) -> Seq2SeqTranslator:
    return Seq2SeqTranslator.load(str(folder), device="cpu", **options)


def test_nllb_translates_into_the_language_that_is_forced(nllb: Path) -> None:
    translator = load(nllb)
    for number, code in enumerate(("de", "zh")):
        made = translator.translate(list(SENTENCES), "en", code)
        assert [answer.text for answer in made] == [others[number] for others in SENTENCES.values()]
        assert not any(answer.fault for answer in made)


@pytest.mark.parametrize("options", [{"batch": 1}, {"batch": 4}, {"beams": 3}, {"precision": "bf16"}])
def test_translations_do_not_depend_on_the_batch(nllb: Path, options: dict[str, Any]) -> None:
    texts = list(SENTENCES)
    assert load(nllb, **options).translate(texts, "en", "de") == load(nllb).translate(texts, "en", "de")


def test_a_long_text_is_translated_sentence_by_sentence(nllb: Path) -> None:
    text = " ".join(list(SENTENCES)[:4])
    translator = load(nllb, max_tokens=24)
    assert translator.translate([text], "en", "de")[0].text == " ".join(
        german for german, _ in list(SENTENCES.values())[:4]
    )
    assert translator.translate([text], "en", "zh")[0].text == "".join(
        other for _, other in list(SENTENCES.values())[:4]
    )
    seen: list[int] = []
    generate = translator.model.generate
    translator.model.generate = lambda **told: (seen.append(told["input_ids"].shape[1]), generate(**told))[1]
    translator.translate(["dogs " * 40], "en", "de")
    assert max(seen) <= 24


def test_what_the_model_does_not_end_or_does_not_know_is_a_fault(nllb: Path) -> None:
    translator = load(nllb)
    generate = translator.model.generate

    def fault_of(*end: int) -> str:
        translator.model.generate = lambda **told: torch.cat([generate(**told)[:, :5], torch.tensor([end])], dim=1)
        return translator.translate(["It is red."], "en", "de")[0].fault

    assert fault_of(7, 7) == "unfinished"
    assert fault_of(3, 2) == "unknown characters"
    assert fault_of(7, 2) == ""


def test_a_batch_that_does_not_fit_is_an_error_that_says_what_to_do(nllb: Path) -> None:
    translator = load(nllb)

    def full(**told: Any) -> None:
        raise torch.OutOfMemoryError("no memory")

    translator.model.generate = full
    with pytest.raises(InputError, match=r"1 texts of up to 13 tokens .* Lower --batch"):
        translator.translate(["It is red."], "en", "de")


def test_the_command_translates_a_corpus_and_lists_what_it_refuses(
    nllb: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_corpus(tmp_path, ("en",))
    rows = [
        train_row(0, "en", context=["<image_placeholder>\nWhich colour is it?", "Describe the image."],
                  label=["It is red.", "A long bus."]),
        train_row(1, "en", context=["Describe the image."], label=["I see 12 of them."]),
        train_row(2, "en", context=["Describe the image."], label=["There are 3 dogs."]),
    ]  # fmt: skip
    write_rows(folder / "instruct" / "en.jsonl", rows)
    command = ["translate", str(folder), "--model", str(nllb), "--device", "cpu", "--to"]
    assert cli.main([*command, "de", "zh"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].startswith("instruct/de: 3 rows, 2 written, 1 refused (numbers 1;")
    assert shown[1] == "instruct/zh: 3 rows, 3 written, 0 refused"
    first, second = open_corpus(folder).samples("instruct", "de")
    assert first.turns == (
        ("<image_placeholder>\nWelche Farbe hat es?", "Es ist rot."), ("Beschreibe das Bild.", "Ein langer Bus."),
    )  # fmt: skip
    assert (second.id, second.turns) == ("t-00002", (("Beschreibe das Bild.", "Da sind 3 Hunde."),))
    (entry,) = map(json.loads, (folder / "refused" / "instruct" / "de.jsonl").read_text().splitlines())
    assert (entry["id"], entry["field"], entry["reason"]) == ("t-00001", "label[0]", "numbers")
    assert entry["translation"] == "Ich sehe drei davon."
    open_corpus(folder).check("instruct")
    assert cli.main([*command, "T5"]) == 0
    assert "no token for ar, es, fr, ja, which are left out of T5" in capsys.readouterr().out
    assert cli.main([*command, "T5", "fr"]) == 2
    assert "has no token for fr. Leave it out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--to", "sw"], "has no token for sw"),
        (["--to", "xx"], "Unknown language code 'xx'"),
        (["--to", "en"], "--to names en"),
        (["--to", "de", "--from", "fr"], "no 'fr' to translate from"),
        (["--to", "de", "--max-tokens", "2000"], "--max-tokens 2000: give a number from 8 to 64"),
        (["--to", "de", "--batch", "0"], "--batch 0"),
        (["--to", "de", "--model", "./absent"], "--model ./absent is not a folder"),
        (["--to", "de", "--model", "."], "--model . cannot be read as a seq2seq model"),
    ],
)
def test_a_wrong_command_is_one_error(
    nllb: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: Sequence[str],
    part: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = make_corpus(tmp_path, ("en",), rows=2)
    assert cli.main(["translate", str(folder), "--model", str(nllb), "--device", "cpu", *words]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") and message.count("\n") == 1 and part in message
    assert open_corpus(folder).languages == ("en",)


# --- the ways of other models


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SentencePiece model of some letters, and its vocabulary."""
    import sentencepiece

    model = io.BytesIO()
    texts = [text for text, others in SENTENCES.items() for text in (text, others[0])]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts * 5), model_writer=model, vocab_size=60, model_type="bpe", minloglevel=2
    )
    folder = tmp_path_factory.mktemp("pieces")
    (folder / "source.spm").write_bytes(model.getvalue())
    read = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    names = [read.id_to_piece(number) for number in range(read.get_piece_size())]
    words = ["<s>", "<pad>", "</s>", "<unk>", *(name for name in names if not name.startswith("<"))]
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    return folder


def asked_of(translator: Seq2SeqTranslator, source: str, target: str) -> tuple[list[str], int | None]:
    """(the tokens that the encoder is given, the forced first token of the answer) for one text."""
    told: dict[str, Any] = {}
    generate = translator.model.generate
    translator.model.generate = lambda **options: (told.update(options), generate(**options))[1]
    translator.translate(["It is red."], source, target)
    return translator.tokenizer.convert_ids_to_tokens(told["input_ids"][0].tolist()), told.get("forced_bos_token_id")


def test_nllb_is_told_source_and_target(nllb: Path) -> None:
    translator = load(nllb)
    tokens, forced = asked_of(translator, "en", "zh")
    assert tokens[0] == "eng_Latn" and forced == translator.tokenizer.convert_tokens_to_ids("zho_Hant")
    tokens, _ = asked_of(translator, "de", "zh")
    assert tokens[0] == "deu_Latn"


def test_m2m100_is_told_source_and_target(pieces: Path) -> None:
    from transformers import M2M100Tokenizer

    tokenizer = M2M100Tokenizer(str(pieces / "vocab.json"), str(pieces / "source.spm"))
    translator = Seq2SeqTranslator(tiny_m2m(max(tokenizer.lang_token_to_id.values()) + 1), tokenizer)
    tokens, forced = asked_of(translator, "en", "sw")
    assert tokens[0] == "__en__" and forced == tokenizer.get_lang_id("sw")
    assert {"he", "no", "zh", "tl"} <= translator.languages.tokens.keys()


def test_mbart_is_told_source_and_target() -> None:
    from transformers import MBart50Tokenizer, MBartConfig, MBartForConditionalGeneration

    tokenizer = MBart50Tokenizer()
    config = MBartConfig(
        vocab_size=len(tokenizer), d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, max_position_embeddings=64,
    )  # fmt: skip
    translator = Seq2SeqTranslator(MBartForConditionalGeneration(config), tokenizer)
    tokens, forced = asked_of(translator, "en", "de")
    assert tokens[0] == "en_XX" and forced == tokenizer.convert_tokens_to_ids("de_DE")
    assert translator.languages.tokens["zh"] == "zh_CN"


def marian(pieces: Path, *prefixes: str) -> Seq2SeqTranslator:
    from transformers import MarianConfig, MarianMTModel, MarianTokenizer

    words = json.loads((pieces / "vocab.json").read_text())
    for prefix in prefixes:
        words[prefix] = len(words)
    vocabulary = pieces / f"vocab-{len(prefixes)}.json"
    vocabulary.write_text(json.dumps(words))
    tokenizer = MarianTokenizer(str(pieces / "source.spm"), str(pieces / "source.spm"), str(vocabulary))
    config = MarianConfig(
        vocab_size=len(words), d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, max_position_embeddings=64, pad_token_id=1,
        eos_token_id=2, forced_eos_token_id=None, decoder_start_token_id=1,
    )  # fmt: skip
    return Seq2SeqTranslator(MarianMTModel(config), tokenizer, name="marian")


def test_a_model_without_language_tokens_has_one_direction(pieces: Path) -> None:
    translator = marian(pieces)
    tokens, forced = asked_of(translator, "en", "de")
    assert forced is None and not any("_" in token or "<<" in token for token in tokens)
    with pytest.raises(InputError, match="one language; --to names de, fr"):
        translator.require("en", ["de", "fr"])


def test_the_target_stands_before_the_text_where_a_model_wants_that(pieces: Path) -> None:
    translator = marian(pieces, ">>de<<", ">>fr<<")
    tokens, forced = asked_of(translator, "en", "fr")
    assert tokens[0] == ">>fr<<" and forced is None
    assert LanguageTokens.of(translator.tokenizer).tokens == {"de": ">>de<<", "fr": ">>fr<<"}
    with pytest.raises(InputError, match="no token for sw"):
        translator.translate(["x"], "en", "sw")
