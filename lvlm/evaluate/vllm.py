"""Answers by vLLM, for what `python -m lvlm export --as llava` wrote: the same ids and pixels go in, its kernels and
batches do the rest. Called by `python -m lvlm evaluate --engine vllm`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from PIL import Image

from lvlm.errors import InputError
from lvlm.evaluate.generate import Prompt, fault
from lvlm.model.chat import IMAGE_PLACEHOLDER
from lvlm.model.layouts import read_json
from lvlm.model.processor import LvlmProcessor
from lvlm.model.tiling import INTERPOLATIONS, ImageTransform, open_image, square, to_rgb

AT_ONCE = 512
"""Prompts handed over together: what a killed evaluation computes again, and enough to keep a GPU full."""
DTYPE = "bfloat16"
"""In which vLLM computes, as our own trainer does on a GPU."""


class VllmAnswerer:
    """An `lvlm.evaluate.Answerer` for an exported model. `images` is the largest number of images of a prompt.

    Greedy, until the end of turn or `max_new_tokens`, without the tokens that the model never writes; as with
    `generate_answers`, penalties of its generation config are left aside. Pictures are resized here, as in training, so
    that the resize of vLLM's image processor finds nothing to do.
    """

    def __init__(self, folder: Path, *, images: int) -> None:
        config = folder / "config.json"
        if not config.is_file() or read_json(config).get("model_type") != "llava":
            raise InputError(
                f"vLLM cannot read {folder}: it is no stock LLaVA. Write one with `python -m lvlm export CHECKPOINT "
                "FOLDER --as llava` and evaluate that."
            )
        try:
            import vllm
        except ImportError as error:
            raise InputError(
                f"--engine vllm needs the package vllm, which cannot be imported here ({error}). Install it (`pip "
                "install vllm`, best in an environment of its own with this package), or leave --engine out."
            ) from error
        self.processor, self.transform = stock_processor(folder)
        self.sampling = vllm.SamplingParams
        self.llm = vllm.LLM(
            model=str(folder), dtype=DTYPE, limit_mm_per_prompt={"image": images}, generation_config="vllm", seed=0
        )
        generation = read_json(folder / "generation_config.json")
        ends = generation.get("eos_token_id")
        ends = ends if isinstance(ends, list) else [] if ends is None else [ends]
        self.stops = sorted({*ends, self.processor.chat.end_of_turn_ids()[-1]})
        self.never = list(generation.get("suppress_tokens") or [])

    @property
    def note(self) -> str:
        """What answered, for the notes of scores."""
        return f"answers by vLLM {version('vllm')} in {DTYPE}: its last bits are not those of this package's own engine"

    def __call__(
        self,
        prompts: Sequence[Prompt],
        *,
        max_new_tokens: int,
        known: Mapping[int, str] | None = None,
        on_answers: Callable[[Mapping[int, str]], None] | None = None,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> list[str]:
        """See `generate_answers`."""
        if any(prompt.beginnings for prompt in prompts):
            raise InputError(
                "evaluate.forced_tokens is above 0, and first tokens are forced by this package's own engine alone. "
                "Leave --engine vllm out, or set forced_tokens to 0."
            )
        answers = dict(known or {})
        left = [number for number in range(len(prompts)) if number not in answers]
        for start in range(0, len(left), AT_ONCE):
            numbers = left[start : start + AT_ONCE]
            asked = [prompts[number] for number in numbers]
            try:
                texts = self._generate(asked, max_new_tokens)
            except Exception as error:
                raise fault(error, asked, partial(self._one, asked, max_new_tokens)) from error
            found = dict(zip(numbers, texts, strict=True))
            answers |= found
            if on_answers:
                on_answers(found)
            if on_progress:
                on_progress(len(answers), len(prompts))
        return [answers[number] for number in range(len(prompts))]

    def _one(self, prompts: Sequence[Prompt], max_new_tokens: int, place: int) -> list[str]:
        return self._generate([prompts[place]], max_new_tokens)

    def _generate(self, prompts: Sequence[Prompt], max_new_tokens: int) -> list[str]:
        parameters = self.sampling(
            temperature=0.0,
            max_tokens=max_new_tokens,
            stop_token_ids=self.stops,
            logit_bias=dict.fromkeys(self.never, -100.0) or None,
            skip_special_tokens=True,
        )
        inputs: list[dict[str, Any]] = []
        for prompt in prompts:
            entry: dict[str, Any] = {"prompt_token_ids": self.processor.encode_prompt(prompt.text, len(prompt.images))}
            if prompt.images:
                entry["multi_modal_data"] = {"image": [self._picture(image) for image in prompt.images]}
            inputs.append(entry)
        outputs = self.llm.generate(inputs, parameters, use_tqdm=False)
        if unfinished := [
            prompt.name or prompt.text
            for prompt, output in zip(prompts, outputs, strict=True)
            if not output.finished or output.outputs[0].finish_reason not in ("stop", "length")
        ]:
            raise RuntimeError(f"vLLM broke off at {', '.join(unfinished)}")
        return [output.outputs[0].text.strip() for output in outputs]

    def _picture(self, file: Path) -> Image.Image:
        values = square(to_rgb(open_image(file)), self.transform.image_size, self.transform)
        return Image.fromarray(values.permute(1, 2, 0).numpy())


def stock_processor(folder: Path) -> tuple[LvlmProcessor, ImageTransform]:
    """(what makes prompts of an exported model, with one image token for each image, which vLLM repeats itself; its
    pictures' transform)."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    images = read_json(folder / "preprocessor_config.json")
    names = {int(number): name for name, number in INTERPOLATIONS.items()}
    transform = ImageTransform(
        image_size=images["size"]["height"],
        mean=tuple(images["image_mean"]),
        std=tuple(images["image_std"]),
        interpolation=names[images["resample"]],
        tiles=1,
    )
    content = [{"type": "image"}, {"type": "text", "text": "|"}]
    turns = [{"role": "user", "content": content}]
    written = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    separator = written.partition(IMAGE_PLACEHOLDER)[2].partition("|")[0]
    return LvlmProcessor(tokenizer, image_tokens=1, image_separator=separator), transform
