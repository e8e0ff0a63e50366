"""How nearly a language model puts a sentence and its translation into one place: retrieval and similarity of its
hidden states, layer by layer, and how many tokens its tokenizer makes of a word. Called by `lvlm.run` for the record
and by `python -m lvlm alignment`.

A sentence is encoded alone, without a chat template, and stands for itself as the mean of its tokens' states in a
layer, centred by the mean over the sentences of its language. These are what transfer from the pivot is held against.
Whoever compares models by them must see that the pivot's own scores agree, or measures how readable a model is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lvlm.data.boundaries import count_words
from lvlm.data.corpus import Corpus
from lvlm.data.mix import hash_order
from lvlm.errors import InputError
from lvlm.languages import in_table_order, language
from lvlm.model.states import text_states
from lvlm.records import SCORE_COLUMNS
from lvlm.settings import CorpusUse, EvaluateConfig

if TYPE_CHECKING:
    import pandas as pd

    from lvlm.model.lvlm import Lvlm

TASK = "alignment"
"""What stands for a task in the rows of a run's scores."""
TOGETHER = 64
"""Sentences of one pass."""


def alignment_of(model: Lvlm, processor: Any, config: EvaluateConfig, corpora: Mapping[str, Corpus]) -> pd.DataFrame:
    """`measure_alignment` of the LLM of a model, on the sentences that an evaluation names."""
    sentences = parallel_sentences(config.alignment, corpora)
    model.eval()
    return measure_alignment(model.language_model, processor.tokenizer, sentences, pivot=language(config.pivot).code)


def measure_alignment(llm: Any, tokenizer: Any, sentences: Mapping[str, Sequence[str]], *, pivot: str) -> pd.DataFrame:
    """A row for each language but the pivot and each layer (0: embeddings, last: the state before the head), with the
    columns language, layer, retrieval, cka, tokens_per_word, n; the pivot has a row without the first two.

    `sentences` by language, the same in the same order. `retrieval` (R@1, percent): how often the nearest of the
    pivot's sentences, by the cosine of centred mean states, is the translation; 100 / n by chance. `cka` (percent):
    linear centred kernel alignment of the two sets of states (Kornblith et al., arXiv 1905.00414), which asks whether
    sentences lie alike among each other and not whether each finds its own, so that it tells models apart where
    retrieval is full. `tokens_per_word`: the fertility of these sentences.
    """
    import pandas as pd

    codes = in_table_order(sentences)
    if pivot not in codes:
        raise InputError(f"The pivot {pivot} has no sentences; there are: {', '.join(codes)}.")
    there = _means(llm, tokenizer, sentences[pivot])
    rows: list[dict[str, Any]] = []
    for code in codes:
        texts = sentences[code]
        tokens = sum(len(ids) for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"])
        fertility = tokens / max(1, sum(count_words(text, code) for text in texts))
        shared = {"language": code, "tokens_per_word": fertility, "n": len(texts)}
        if code == pivot:
            rows.append(shared | {"layer": None, "retrieval": float("nan"), "cka": float("nan")})
            continue
        for layer, (one, other) in enumerate(zip(_means(llm, tokenizer, texts), there, strict=True)):
            rows.append(shared | {"layer": layer, "retrieval": retrieval(one, other), "cka": linear_cka(one, other)})
    return pd.DataFrame(rows, columns=["language", "layer", "retrieval", "cka", "tokens_per_word", "n"])


def score_rows(found: pd.DataFrame) -> pd.DataFrame:
    """The rows of a run's scores: `retrieval` and `cka` as the mean over the LLM's blocks, which favours none, and
    `tokens_per_word`, in the columns of `lvlm.records`."""
    import pandas as pd

    rows: list[tuple[str, str, str, float, int]] = []
    for code in dict.fromkeys(found["language"]):
        own = found[found["language"] == code]
        blocks = own[own["layer"] > 0]
        if len(blocks):
            rows += [
                (TASK, code, name, float(blocks[name].mean()), int(own["n"].iloc[0])) for name in ("retrieval", "cka")
            ]
        rows.append((TASK, code, "tokens_per_word", float(own["tokens_per_word"].iloc[0]), int(own["n"].iloc[0])))
    return pd.DataFrame(rows, columns=list(SCORE_COLUMNS))


def with_alignment(scores: pd.DataFrame, found: pd.DataFrame) -> pd.DataFrame:
    """A run's scores with the rows of its alignment; what is noted of the scores stays with them."""
    import pandas as pd

    together = pd.concat([scores, score_rows(found)], ignore_index=True)
    together.attrs.update(scores.attrs)
    return together


def retrieval(one: Tensor, other: Tensor) -> float:
    """Percent of the rows of `one` (sentences, width) whose nearest row of `other` has the same number."""
    here, there = (F.normalize(side - side.mean(dim=0), dim=1) for side in (one, other))
    nearest = (here @ there.T).argmax(dim=1)
    return 100.0 * float((nearest == torch.arange(len(one), device=one.device)).float().mean())


def linear_cka(one: Tensor, other: Tensor) -> float:
    """Percent: |X'Y|^2 / (|X'X| |Y'Y|) of centred X, Y (sentences, width), in Frobenius norms; NaN for a constant."""
    x, y = ((side - side.mean(dim=0)).double() for side in (one, other))
    norms = torch.linalg.norm(x.T @ x) * torch.linalg.norm(y.T @ y)
    return 100.0 * float(torch.linalg.norm(x.T @ y) ** 2 / norms) if norms > 0 else float("nan")


def parallel_sentences(
    uses: Sequence[CorpusUse], corpora: Mapping[str, Corpus], *, languages: Sequence[str] | None = None
) -> dict[str, list[str]]:
    """By language, the sentences that all of the corpora's languages have, in one order that only the ids determine.

    The sentence of an evaluation item is its first gold answer, that of a training row its answers. Ids of which any
    language says the same as another id are left out: there would be no telling which belongs to which.
    """
    texts: dict[str, dict[str, str]] = {}
    for use in uses:
        corpus = corpora[use.path]
        here = in_table_order(use.languages or corpus.languages_of(use.split))
        wanted = [code for code in here if languages is None or code in languages]
        found = {code: dict(_texts_of(corpus, use.split, code)) for code in wanted}
        ids = list(dict.fromkeys(name for own in found.values() for name in own))
        whole = [name for name in ids if all(name in own for own in found.values())]
        for place in hash_order(whole, salt="samples")[: use.samples].tolist():
            for code in wanted:
                texts.setdefault(code, {})[f"{corpus.name}/{use.split}/{whole[place]}"] = found[code][whole[place]]
    shared = [name for name in next(iter(texts.values()), {}) if all(name in own for own in texts.values())]
    alone = {name for own in texts.values() for name in _repeated(own)}
    kept = [name for name in shared if name not in alone]
    if len(kept) < 2 or len(texts) < 2:
        where = ", ".join(f"{use.path}:{use.split}" for use in uses)
        raise InputError(
            f"{where} have {len(kept)} different sentences in {len(texts)} languages, and alignment takes at least two "
            "of each. Name a corpus with the same ids in several languages, such as the built-in `sentences:test`."
        )
    return {code: [own[name] for name in kept] for code, own in texts.items()}


def _texts_of(corpus: Corpus, split: str, code: str) -> Iterator[tuple[str, str]]:
    if corpus.rows(split, code).kind == "test":
        yield from ((item.id, item.answers[0]) for item in corpus.items(split, code))
    else:
        yield from ((row.id, " ".join(answer for _, answer in row.turns)) for row in corpus.samples(split, code))


def _repeated(own: Mapping[str, str]) -> Iterator[str]:
    first: dict[str, str] = {}
    for name, text in own.items():
        if (other := first.setdefault(text, name)) != name:
            yield from (name, other)


@torch.inference_mode()
def _means(llm: Any, tokenizer: Any, texts: Sequence[str]) -> list[Tensor]:
    """(sentences, hidden) for each layer."""
    ids = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    order = sorted(range(len(ids)), key=lambda place: len(ids[place]))
    device = llm.get_input_embeddings().weight.device
    found: list[list[Tensor]] = []
    for start in range(0, len(order), TOGETHER):
        some = [ids[place] for place in order[start : start + TOGETHER]]
        lengths = torch.tensor([len(one) for one in some], device=device)
        padded = torch.zeros(len(some), int(lengths.max()), dtype=torch.long, device=device)
        for row, one in enumerate(some):
            padded[row, : len(one)] = torch.tensor(one, device=device)
        real = (torch.arange(padded.shape[1], device=device) < lengths[:, None]).unsqueeze(-1)
        # Padding on the right of causal attention: no real token can see it.
        states = text_states(llm, {"input_ids": padded})
        found.append([(layer.float() * real).sum(dim=1) / lengths[:, None] for layer in states])
    back = torch.argsort(torch.tensor(order))
    return [torch.cat(layer)[back.to(device)] for layer in zip(*found, strict=True)]
