"""The model class that lmms-eval drives: it hands over contexts and pictures, we answer them as an evaluation of ours
would. Imported by lmms-eval through the manifest of `lvlm.lmms`; needs lmms-eval installed."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from lmms_eval.api.registry import register_model
from PIL import Image
from torch.nn import functional

from lvlm.errors import InputError
from lvlm.evaluate.generate import Prompt, generate_answers
from lvlm.model.chat import IMAGE_PLACEHOLDER
from lvlm.model.tiling import to_rgb
from lvlm.ready import model_source, ready, recorded_config

IMAGE = "<image>"
"""How the contexts of lmms-eval's tasks mark the place of a picture."""
MAX_NEW_TOKENS = 1024
"""Where a task names no limit: what lmms-eval's own LLaVA takes."""


@register_model("lvlm")
class LvlmModel(lmms):  # type: ignore[misc]
    """A checkpoint of this package: `--model lvlm --model_args pretrained=RUN_OR_MODEL_FOLDER`.

    Answers are greedy, in batches of `batch_size` over pictures; a task that asks for sampling, beams, video or rounds
    is refused by name. Where generation fails, that is an error: no empty answer is scored. Under several processes
    each answers the share that lmms-eval gave it.
    """

    is_simple = True

    def __init__(self, pretrained: str, batch_size: int | str = 1, device: str | None = None, **others: Any) -> None:
        super().__init__()
        if unknown := {name: value for name, value in others.items() if value is not None and name != "max_batch_size"}:
            raise InputError(f"The model lvlm has no argument {', '.join(unknown)}. It takes pretrained=CHECKPOINT.")
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise InputError(f"The model lvlm takes a whole number of pictures as --batch_size, not '{batch_size}'.")
        self.batch_size = int(batch_size)
        recorded = recorded_config(Path(pretrained))
        self._open = ExitStack()
        kind = device.partition(":")[0] if device else None
        self._ready = self._open.enter_context(ready(model_source(Path(pretrained), recorded), recorded, device=kind))
        self._folder = Path(self._open.enter_context(tempfile.TemporaryDirectory(prefix="lvlm-lmms-eval-")))
        self.accelerator = self._ready.compute.accelerator
        self.device = self._ready.compute.device
        self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """One answer for each request, up to the first of its `until` texts."""
        settings = [_greedy(request) for request in requests]
        prompts = [self._prompt(request) for request in requests]
        answers = [""] * len(requests)
        for limit in sorted(set(settings)):
            places = [place for place, own in enumerate(settings) if own == limit]
            found = generate_answers(
                self._ready.model,
                self._ready.processor,
                [prompts[place] for place in places],
                max_new_tokens=limit,
                batch_size=self.batch_size,
                features=self._ready.features,
                divided=False,
            )
            for place, answer in zip(places, found, strict=True):
                answers[place] = _cut(answer, requests[place].args[1].get("until"))
        for request, answer in zip(requests, answers, strict=True):
            self.cache_hook.add_partial("generate_until", request.args[:2], answer)
        return answers

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """(loss, whether greedy search would write it) of each continuation. The loss is the mean negative log
        probability of its tokens: lmms-eval takes the choice with the least."""
        return [self._loss(request) for request in requests]

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        """Refused."""
        tasks = ", ".join(sorted({str(request.task_name) for request in requests}))
        raise InputError(f"The model lvlm answers one question at a time; {tasks} asks in rounds. Leave it out.")

    def clean(self) -> None:
        """Let go of the model and of the pictures."""
        self._open.close()
        super().clean()

    def _prompt(self, request: Instance) -> Prompt:
        context, _, visuals, doc_id, task, split = request.args
        images = self._pictures(visuals, doc_id, task, split)
        return Prompt(_placed(context, len(images)), images, name=f"{task}/{split}/{doc_id}")

    def _pictures(
        self, visuals: Callable[[Any], Sequence[Any]] | None, doc_id: Any, task: str, split: str
    ) -> tuple[Path, ...]:
        """The pictures of a document as files, each content once, so that questions about it share its features."""
        files = []
        for picture in (visuals(self.task_dict[task][split][doc_id]) or []) if visuals else []:
            if not isinstance(picture, Image.Image):
                raise InputError(
                    f"{task}/{split}/{doc_id} shows a {type(picture).__name__}, and the model lvlm sees images only."
                )
            upright = to_rgb(picture)
            content = hashlib.sha256(repr(upright.size).encode() + upright.tobytes()).hexdigest()
            file = self._folder / f"{content}.png"
            if not file.exists():
                upright.save(file, compress_level=1)
            files.append(file)
        return tuple(files)

    @torch.inference_mode()
    def _loss(self, request: Instance) -> tuple[float, bool]:
        context, target, visuals, doc_id, task, split = request.args
        continuation = target if isinstance(target, str) else target(self.task_dict[task][split][doc_id])
        images = self._pictures(visuals, doc_id, task, split)
        processor, model = self._ready.processor, self._ready.model
        begin = processor.encode_prompt(_placed(context, len(images)), len(images))
        own = processor.tokenizer(continuation, add_special_tokens=False)["input_ids"]
        if not own:
            raise InputError(f"{task}/{split}/{doc_id} asks for the likelihood of an empty text.")
        ids = torch.tensor([[*begin, *own]], device=self.device)
        inputs = {"image_features": self._ready.features(images).to(self.device)} if images else {}
        logits = (
            model(input_ids=ids, attention_mask=torch.ones_like(ids), **inputs).logits[0, -len(own) - 1 : -1].float()
        )
        wanted = ids[0, -len(own) :]
        return float(functional.cross_entropy(logits, wanted)), bool((logits.argmax(-1) == wanted).all())


def _placed(context: str, images: int) -> str:
    """A context with our placeholder for each picture: where the task marks their places, else before the text."""
    if images and context.count(IMAGE) == images:
        return context.replace(IMAGE, IMAGE_PLACEHOLDER)
    if images > 1 and context.count(IMAGE_PLACEHOLDER) != images:
        return IMAGE_PLACEHOLDER * images + "\n" + context
    return context


def _greedy(request: Instance) -> int:
    """The most new tokens of a request; one that asks for more than greedy search is refused."""
    asked = request.args[1]
    samples, temperature = asked.get("do_sample"), asked.get("temperature")
    hot = bool(samples) if temperature is None else temperature > 0
    if (hot and samples is not False) or (asked.get("num_beams") or 1) > 1:
        raise InputError(
            f"The task {request.task_name} asks for sampling or beams, and the model lvlm searches greedily. Set "
            "--gen_kwargs temperature=0,do_sample=False,num_beams=1, or leave it out."
        )
    return int(asked.get("max_new_tokens") or MAX_NEW_TOKENS)


def _cut(answer: str, until: str | Sequence[str] | None) -> str:
    for end in [until] if isinstance(until, str) else until or ():
        answer = answer.split(end)[0] if end else answer
    return answer.strip()
