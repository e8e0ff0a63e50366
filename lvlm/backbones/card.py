"""Measures the tiny backbones and writes their model card. Called by `python -m lvlm backbones` and by tests of the
shipped ones.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from lvlm.backbones.text import scene_questions
from lvlm.backbones.tokenizer import ASSISTANT, END, USER
from lvlm.data.worlds.lexicon import load_lexicon
from lvlm.data.worlds.reading import words_for
from lvlm.data.worlds.scenes import sample_scene


def answer_accuracy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    code: str,
    *,
    groups: int | None,
    told: str = "en",
    items: int = 100,
    seed: int = 0,
) -> tuple[float, float]:
    """(share right in the asked language, share right in it or in English) of greedy answers about scenes given as
    text.

    `groups` objects a scene (1 needs no binding); the scene is told in `told`, the question is in `code`.
    """
    rng = np.random.default_rng([seed, groups or 0])
    prompts, golds, english = [], [], []
    for _ in range(items):
        scene = sample_scene(rng, groups=groups)
        state = rng.bit_generator.state
        turns = scene_questions(
            scene, rng, told=load_lexicon(told), asked=load_lexicon(code), answered=load_lexicon(code), count=1
        )
        rng.bit_generator.state = state  # the same question once more, for its English answer
        also = scene_questions(
            scene, rng, told=load_lexicon(told), asked=load_lexicon(code), answered=load_lexicon("en"), count=1
        )
        prompts.append(turns[0][0])
        golds.append(turns[0][1])
        english.append(also[0][1])
    answers = greedy_answers(model, tokenizer, prompts)
    right = [answer == gold for answer, gold in zip(answers, golds, strict=True)]
    either = [answer in (gold, other) for answer, gold, other in zip(answers, golds, english, strict=True)]
    return float(np.mean(right)), float(np.mean(either))


@torch.inference_mode()
def greedy_answers(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, prompts: Sequence[str], *, max_new_tokens: int = 24
) -> list[str]:
    """One greedy answer per prompt, decoded without special tokens."""
    user, assistant, end = tokenizer.convert_tokens_to_ids([USER, ASSISTANT, END])
    texts = tokenizer(list(prompts), add_special_tokens=False)["input_ids"]
    rows = [[user, *text, end, assistant] for text in texts]
    longest = max(map(len, rows))
    ids = torch.tensor([[tokenizer.pad_token_id] * (longest - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    generated = model.generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=max_new_tokens, do_sample=False,
        eos_token_id=end, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return [text.strip() for text in tokenizer.batch_decode(generated[:, longest:], skip_special_tokens=True)]


@torch.inference_mode()
def retrieval(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, code: str, *, pairs: int = 200, seed: int = 0
) -> float:
    """R@1 of finding the English caption of a scene from the one in `code`: cosine of centred, mean-pooled last
    states.
    """
    rng = np.random.default_rng(seed)
    scenes = [sample_scene(rng) for _ in range(pairs)]
    sides = [
        _pooled(model, tokenizer, [load_lexicon(side).caption(scene) for scene in scenes]) for side in (code, "en")
    ]
    here, there = (torch.nn.functional.normalize(side - side.mean(0), dim=1) for side in sides)
    return float(((here @ there.T).argmax(1) == torch.arange(pairs)).float().mean())


def _pooled(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> torch.Tensor:
    batch = tokenizer(texts, return_tensors="pt", padding=True, padding_side="right", add_special_tokens=False)
    mask = batch["attention_mask"].unsqueeze(-1).float()
    states = model.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
    pooled: torch.Tensor = (states * mask).sum(1) / mask.sum(1)
    return pooled


def tokens_per_word(tokenizer: PreTrainedTokenizerFast, code: str, *, captions: int = 200, seed: int = 0) -> float:
    """Mean number of tokens that a word of a caption in `code` takes (fertility)."""
    rng = np.random.default_rng(seed)
    words = [
        word
        for _ in range(captions)
        for word in re.findall(r"[^\W\d_]+", load_lexicon(code).caption(sample_scene(rng)))
    ]
    return float(np.mean([len(tokenizer.encode(word, add_special_tokens=False)) for word in words]))


def read_aloud(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, code: str, *, items: int = 60, seed: int = 0
) -> float:
    """Share of unseen reading words that the model puts together from spaced letters."""
    lexicon = load_lexicon(code)
    rng = np.random.default_rng(seed)
    words = [str(word) for word in rng.choice(words_for(lexicon, "test"), size=items)]
    answers = greedy_answers(model, tokenizer, [f"{' '.join(word)}\n{lexicon.read_request}" for word in words])
    return float(np.mean([answer == word for answer, word in zip(answers, words, strict=True)]))


def language_figures(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, code: str) -> dict[str, float]:
    """Every figure of one language: answers on one and two objects, told in English and in the language, retrieval,
    fertility.
    """
    one, one_any = answer_accuracy(model, tokenizer, code, groups=1)
    two, two_any = answer_accuracy(model, tokenizer, code, groups=2)
    own, _ = answer_accuracy(model, tokenizer, code, groups=1, told=code)
    return {
        "one_object": one, "one_object_or_english": one_any, "one_object_told_in_it": own,
        "two_objects": two, "two_objects_or_english": two_any,
        "retrieval_r1": retrieval(model, tokenizer, code), "spelling": read_aloud(model, tokenizer, code),
        "tokens_per_word": tokens_per_word(tokenizer, code),
    }  # fmt: skip


def render_card(figures: Mapping[str, Mapping[str, Mapping[str, float]]], *, tier: Callable[[str], str]) -> str:
    """The model card as Markdown: one row per language or probe, the mean over draws and the range between them."""
    draws = [name for name in figures if re.fullmatch(r"tiny-lm-\d+", name)]
    towers = [name for name in figures if name.startswith("tiny-vit-")]
    lines = [INTRODUCTION]
    for title, names in (
        (f"Language models, {len(draws)} draws: mean (lowest to highest)", draws),
        ("The clean control", ["tiny-lm-clean"]),
    ):
        if not names or names[0] not in figures:
            continue
        codes = list(figures[names[0]])
        measures = list(figures[names[0]][codes[0]])
        head = f"{' | '.join(name.replace('_', ' ') for name in measures)} |\n|" + " --- |" * (len(measures) + 2)
        lines += ["", f"## {title}", "", f"| tier | languages | {head}"]
        for group in dict.fromkeys(map(tier, codes)):
            inside = [code for code in codes if tier(code) == group]
            means = [
                [float(np.mean([figures[name][code][measure] for code in inside])) for name in names]
                for measure in measures
            ]
            lines.append(f"| {group} | {len(inside)} | {' | '.join(map(_cell, means))} |")
        lines += ["", f"| language | tier | {head}"]
        for code in codes:
            cells = [_cell([figures[name][code][measure] for name in names]) for measure in measures]
            lines.append(f"| {code} | {tier(code)} | {' | '.join(cells)} |")
    if towers:
        lines += [
            "",
            f"## Vision towers, {len(towers)} draws: linear probe on single tokens",
            "",
            "| view / attribute | accuracy |",
            "| --- | --- |",
        ]
        probes = [figures[tower]["probe"] for tower in towers]
        lines += [f"| {name} | {_cell([one[name] for one in probes])} |" for name in probes[0] if " " not in name]
        lines += ["", "Single letters at full resolution, mean over draws:", "", "| script | letters | accuracy |"]
        lines += ["| --- | --- | --- |", *_scripts(probes)]
    return "\n".join(lines) + "\n"


def _scripts(probes: Sequence[Mapping[str, float]]) -> list[str]:
    """A row for each script: its mean, and every letter with its share in hundredths."""
    found: dict[str, dict[str, float]] = {}
    for name in sorted(set.intersection(*(set(one) for one in probes))):
        if name.startswith("tile/letter "):
            letter = name.removeprefix("tile/letter ")
            script = unicodedata.name(letter).split()[0].capitalize()
            found.setdefault(script, {})[letter] = float(np.mean([one[name] for one in probes]))
    return [
        f"| {script} | {' '.join(f'{letter} {100 * share:.0f}' for letter, share in shares.items())} "
        f"| {np.mean(list(shares.values())):.2f} |"
        for script, shares in found.items()
    ]


def _cell(values: Sequence[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.2f}"
    return f"{np.mean(values):.2f} ({min(values):.2f} to {max(values):.2f})"


INTRODUCTION = """# The tiny backbones

Made by `python -m lvlm backbones` from seeds alone; this card is written by the same command. They exist so that
studies of multilingual vision-language training run in minutes on a laptop. They know the built-in world and nothing
else.

- **Language models**: Qwen2 classes, 1.05 M parameters, trained on generated text only: scenes in words, questions,
  translations and spelling in 16 languages whose share falls with the tier. `answer_mix` (in `training.json`) is the
  share of requests in each tier that are answered in English; it is an assumption about the world, as instruction text
  on the web is mostly English. `tiny-lm-clean` is the control without it. "One object" counts answers in the asked
  language; "or English" also those that are right in English.
- **Vision towers**: timm VisionTransformer behind a convolutional stem, 0.9 M parameters, 48 x 48 pixels, 36 tokens.
  Colour x shape pairs that the test splits hold out were never shown to them.
- A draw is another seed for the initial weights, the data and their order. Seed s of a run uses draw s of both, modulo
  the number shipped (below), so that intervals over seeds speak of backbones like these and not of one.

The terms on which a set is accepted, before any study is run: on scenes with one object at least 0.90 of the answers
are right in English and, as the mean of the T5 languages, in the asked language; the share falls from T5 to T1; in the
clean control the two counts are nearly equal. Questions that need one object told from another (`two objects`) are a
secondary outcome: a random choice between the objects is right about half of the time.

Accuracies are greedy, exact match, 100 items a cell; `retrieval r1` finds the English caption among 200;
`spelling` puts test words of the reading world together from their letters; `tokens per word` is fertility."""
