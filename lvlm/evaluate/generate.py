"""Greedy answers to prompts with images, in batches and over processes, at the price of one pass over each image.
Called by `lvlm.evaluate` for the scores of a run and while training, and by the `generate` command."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist
from transformers import DynamicCache

from lvlm.errors import InputError
from lvlm.model.lora import summed_lora
from lvlm.model.tiling import open_image, pixels

ImageFeatures = Callable[[Sequence[Path]], Tensor]
"""Image files -> (images, views, tokens, width), in the order asked for."""
NAMED = 8
"""Prompts that an error names where it cannot tell which of them it was."""


@dataclass(frozen=True, slots=True)
class Beginnings:
    """The first `tokens` of an answer follow one of these texts, as far as that goes."""

    texts: tuple[str, ...]
    tokens: int


Next = Mapping[tuple[int, ...], Sequence[int]]
"""Token ids that an answer has so far -> those that may follow; anything may follow where it is not there."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the model is asked: a user text, with `<image_placeholder>` where several images belong, and image files."""

    text: str
    images: tuple[Path, ...] = ()
    name: str = ""
    """What an error calls it: task, language and id of the item."""
    beginnings: Beginnings | None = None
    """What the answer may begin with; None leaves it free."""


@dataclass(frozen=True, slots=True)
class _Row:
    """A prompt as token ids, cut after its last image: `head` is shared by all prompts about the same images."""

    index: int
    images: tuple[Path, ...]
    head: tuple[int, ...]
    tail: tuple[int, ...]
    begins: Next | None = None


def generate_answers(
    model: Any,
    processor: Any,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int,
    batch_size: int = 64,
    features: ImageFeatures | None = None,
    divided: bool = True,
    known: Mapping[int, str] | None = None,
    on_answers: Callable[[Mapping[int, str]], None] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[str]:
    """The greedy answer to every prompt, in the order of `prompts`, whatever the batch size and number of processes.

    Other batches can move the last bits of the logits, which decides between tokens that are as good as equal.

    Prompts about the same images share one pass over them, the larger part of the cost: an item is asked in every
    language. `features` gives what the tower makes of image files; None computes it from their pixels here. Inside
    `torch.distributed` every process answers its share and all of them return all answers; where not `divided`, each
    answers its own prompts. An answer ends before the end of turn or after `max_new_tokens`. The model's generation
    config gives the end of turn and `suppress_tokens` (an answer writes no image token); its penalties and sampling are
    left aside. `on_progress(done, total)` takes other processes to be as far as this one.

    `known` has answers by the number of their prompt that are not computed again, the same ones in every process; all
    others go in the batches in which they would go without it. `on_answers` is told every batch of this process by
    number. Where generation fails, that is an `InputError` that names the prompt, and never an answer.
    """
    known = known or {}
    rows = _ordered(list(_rows(processor, prompts)))
    rank, processes = (dist.get_rank(), dist.get_world_size()) if divided and dist.is_initialized() else (0, 1)
    share = rows[len(rows) * rank // processes : len(rows) * (rank + 1) // processes]
    answers = {row.index: known[row.index] for row in share if row.index in known}
    answer = partial(
        _answer, model, processor, features or _features_from_pixels(model, processor),
        size=batch_size, max_new_tokens=max_new_tokens, known=known,
    )  # fmt: skip
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode(), summed_lora(model):
            for batch in _head_batches(share, batch_size):
                try:
                    for found in answer(batch):
                        answers |= found
                        if on_answers:
                            on_answers(found)
                        if on_progress:
                            on_progress(len(rows) * len(answers) // len(share), len(rows))
                except Exception as error:
                    asked = [prompts[row.index] for row in batch]
                    raise fault(error, asked, lambda place, batch=batch: list(answer([batch[place]]))) from error  # type: ignore[misc]
    finally:
        model.train(was_training)
    everyone = _gather(answers, processes)
    return [everyone[index] for index in range(len(prompts))]


def _answer(
    model: Any,
    processor: Any,
    features: ImageFeatures,
    batch: Sequence[_Row],
    *,
    size: int,
    max_new_tokens: int,
    known: Mapping[int, str],
) -> Iterator[dict[int, str]]:
    """Answers to rows with at most `size` different heads, `size` rows at a time; the `known` ones are left out."""
    if all(row.index in known for row in batch):
        return
    heads = _Heads(model, batch, features)
    by_length = sorted(batch, key=lambda row: (-len(row.tail), row.index))
    for start in range(0, len(by_length), size):
        if group := [row for row in by_length[start : start + size] if row.index not in known]:
            ids = _continue(model, processor, heads, group, max_new_tokens)
            texts = processor.tokenizer.batch_decode(ids, skip_special_tokens=True)
            yield {row.index: text.strip() for row, text in zip(group, texts, strict=True)}


def fault(error: Exception, prompts: Sequence[Prompt], ask: Callable[[int], object]) -> InputError:
    """What an exception over some prompts is to be told as. `ask` tries one of them by its place: the first that fails
    by itself too is named, else all are."""
    for place in range(len(prompts)) if len(prompts) > 1 else ():
        try:
            ask(place)
        except Exception as alone:
            return no_answer([prompts[place]], alone)
    together = no_answer(prompts, error)
    if len(prompts) == 1:
        return together
    return InputError(f"{together} Each of them can be answered by itself: set a smaller compute.evaluate_batch.")


def no_answer(prompts: Sequence[Prompt], error: Exception) -> InputError:
    """What failed, with the prompts by name."""
    names = ", ".join(prompt.name or repr(prompt.text) for prompt in prompts[:NAMED])
    more = f" and {len(prompts) - NAMED:,} more" if len(prompts) > NAMED else ""
    told = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
    return InputError(f"The model gave no answer to {names}{more}. {' '.join(told.split())}")


def _rows(processor: Any, prompts: Sequence[Prompt]) -> Iterator[_Row]:
    image = processor.image_token_id
    begins: dict[Beginnings | None, Next | None] = {None: None}
    for index, prompt in enumerate(prompts):
        try:
            ids = tuple(processor.encode_prompt(prompt.text, len(prompt.images)))
        except Exception as error:
            raise no_answer([prompt], error) from error
        # At least one token on either side: the head must leave something in the cache, the tail must give logits.
        last = max((place for place, token in enumerate(ids) if token == image), default=0) if prompt.images else 0
        cut = min(last + 1, len(ids) - 1)
        if prompt.beginnings not in begins:
            begins[prompt.beginnings] = _may_follow(processor.tokenizer, prompt.beginnings)
        yield _Row(index, prompt.images, ids[:cut], ids[cut:], begins[prompt.beginnings])


def _ordered(rows: Sequence[_Row]) -> list[_Row]:
    """Rows with one head together, and beside heads and questions as long as theirs, so that little is padded."""
    longest: dict[tuple[tuple[int, ...], tuple[Path, ...]], int] = {}
    for row in rows:
        longest[row.head, row.images] = max(longest.get((row.head, row.images), 0), len(row.tail))
    return sorted(rows, key=lambda row: (len(row.head), longest[row.head, row.images], row.images, row.head, row.index))


def _may_follow(tokenizer: Any, beginnings: Beginnings | None) -> Next:
    assert beginnings is not None
    found: dict[tuple[int, ...], dict[int, None]] = {}
    whole = set[tuple[int, ...]]()
    for ids in tokenizer(list(beginnings.texts), add_special_tokens=False)["input_ids"]:
        whole.add(tuple(ids))
        for place in range(min(len(ids), beginnings.tokens)):
            found.setdefault(tuple(ids[:place]), {})[ids[place]] = None
    return {before: list(after) for before, after in found.items() if before not in whole}


def _head_batches(rows: Sequence[_Row], size: int) -> Iterator[list[_Row]]:
    """Consecutive rows with at most `size` different heads."""
    batch: list[_Row] = []
    heads: set[tuple[tuple[int, ...], tuple[Path, ...]]] = set()
    for row in rows:
        if (row.head, row.images) not in heads and len(heads) == size:
            yield batch
            batch, heads = [], set()
        heads.add((row.head, row.images))
        batch.append(row)
    if batch:
        yield batch


class _Heads:
    """The keys and values of all different heads of some rows, computed in one pass and handed out row by row."""

    def __init__(self, model: Any, rows: Sequence[_Row], features: ImageFeatures) -> None:
        self.places: dict[tuple[tuple[int, ...], tuple[Path, ...]], int] = {}
        for row in rows:
            self.places.setdefault((row.head, row.images), len(self.places))
        ids, self.mask = _padded([head for head, _ in self.places], model.device)
        files = [image for _, images in self.places for image in images]
        inputs = {"image_features": _of_files(features, files).to(model.device)} if files else {}
        self.cache = DynamicCache(config=model.config.get_text_config())
        _forward(model, ids, self.mask, self.cache, read=0, **inputs)

    def of(self, rows: Sequence[_Row]) -> tuple[DynamicCache, Tensor]:
        """A cache of its own and the mask (rows, head tokens) for these rows."""
        places = torch.tensor([self.places[row.head, row.images] for row in rows], device=self.mask.device)
        cache = copy(self.cache)
        cache.layers = [
            copy(layer) for layer in self.cache.layers
        ]  # selecting replaces tensors and leaves the originals
        cache.batch_select_indices(places)
        return cache, self.mask[places]


def _continue(model: Any, processor: Any, heads: _Heads, rows: Sequence[_Row], max_new_tokens: int) -> list[list[int]]:
    """New token ids of every row, without the end of turn. Finished rows leave the batch."""
    stops = _stop_ids(model, processor)
    never = list(model.generation_config.suppress_tokens or [])
    written: list[list[int]] = [[] for _ in rows]
    active = list(range(len(rows)))
    cache, mask = heads.of(rows)
    ids, tail_mask = _padded([row.tail for row in rows], mask.device)
    mask = torch.cat([mask, tail_mask], dim=1)
    for step in range(max_new_tokens):
        logits = _forward(model, ids, mask, cache)[:, -1]
        logits[:, never] = float("-inf")
        for place, row in enumerate(active):
            if (begins := rows[row].begins) and (allowed := begins.get(tuple(written[row]))):
                kept_logits = logits[place, allowed]
                logits[place] = float("-inf")
                logits[place, allowed] = kept_logits
        chosen = logits.argmax(-1)
        going = []
        for place, token in enumerate(chosen.tolist()):
            if token not in stops:
                written[active[place]].append(token)
                going.append(place)
        if not going or step + 1 == max_new_tokens:
            break
        if len(going) < len(active):
            kept = torch.tensor(going, device=mask.device)
            cache.batch_select_indices(kept)
            chosen, mask = chosen[kept], mask[kept]
            active = [active[place] for place in going]
        ids, mask = chosen[:, None], torch.cat([mask, mask.new_ones(len(active), 1)], dim=1)
    return written


def _forward(model: Any, ids: Tensor, mask: Tensor, cache: DynamicCache, *, read: int = 1, **inputs: Tensor) -> Tensor:
    """One pass over `ids` (rows, new tokens), padded as `mask` (rows, all tokens) says -> logits (rows, read,
    vocabulary) of the last tokens."""
    positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
    output = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=read or torch.empty(0, dtype=torch.long, device=ids.device),  # a 0 would be all
        **inputs,
    )
    logits: Tensor = output.logits
    return logits


def _padded(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """(ids, mask), both (rows, longest), padded on the left; the mask comes from the lengths, as 0 may be a token."""
    longest = max(map(len, rows))
    ids = torch.tensor([[0] * (longest - len(row)) + list(row) for row in rows], device=device)
    lengths = torch.tensor([len(row) for row in rows], device=device)
    mask = torch.arange(longest, device=device)[None] >= longest - lengths[:, None]
    return ids, mask.long()


def _stop_ids(model: Any, processor: Any) -> frozenset[int]:
    declared = model.generation_config.eos_token_id
    declared = declared if isinstance(declared, list) else [] if declared is None else [declared]
    return frozenset([*declared, processor.chat.end_of_turn_ids()[-1]])


def _of_files(features: ImageFeatures, files: Sequence[Path]) -> Tensor:
    """Features of all files, each different file asked for once."""
    different = list(dict.fromkeys(files))
    places = {file: place for place, file in enumerate(different)}
    return features(different)[[places[file] for file in files]]


def _features_from_pixels(model: Any, processor: Any) -> ImageFeatures:
    def features(images: Sequence[Path]) -> Tensor:
        views = torch.cat([pixels(open_image(image), processor.image_transform) for image in images])
        result: Tensor = model.image_features(views.to(model.device))
        return result

    return features


def _gather(answers: dict[int, str], processes: int) -> dict[int, str]:
    if processes == 1:
        return answers
    parts: list[dict[int, str]] = [{} for _ in range(processes)]
    dist.all_gather_object(parts, answers)
    return {index: answer for part in parts for index, answer in part.items()}
