"""What painted pictures are worth: attributes that they show, the conditional-loss gap, the Frechet distance on local
features, and whether languages agree. Rows like those of any other task. Called by `lvlm.paint.stage` and by
`python -m lvlm evaluate`."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from lvlm.config import fingerprint
from lvlm.data.corpus import Corpus, Permission
from lvlm.evaluate.items import Asked, asked_items
from lvlm.model.seeding import generator_for
from lvlm.model.tiling import open_image, pixels
from lvlm.paint.diffusion import errors, target
from lvlm.paint.frechet import LOCAL_FEATURES, frechet_distance, local_features
from lvlm.paint.painter import Painter
from lvlm.paint.reader import AttributeReader, Attributes
from lvlm.paint.sample import Drawing, paint
from lvlm.records import PREDICTION_COLUMNS, SCORE_COLUMNS
from lvlm.settings import EvaluateConfig

if TYPE_CHECKING:
    import pandas as pd

    from lvlm.paint.plugins import ClipScore, ModelFeatures

Tables = tuple["pd.DataFrame", "pd.DataFrame"]
Row = tuple[str, str, str, float, int]
"""task, language, metric, value, n: a row of the scores."""
TASK = "paint"
PICTURES = "pictures"
"""The folder of a run in which its painted pictures lie."""
GAP_TIMES = (0.3, 0.5, 0.7)
"""Where in the noise the conditional-loss gap is measured, as shares of its steps."""
AT_ONCE = 64
NAN = float("nan")


def evaluate_both(
    answered: Callable[[EvaluateConfig], Tables],
    painted: PaintedScores | None,
    config: EvaluateConfig,
    corpora: Mapping[str, Corpus],
    *,
    permission: Permission,
    on_progress: Callable[[int, int], None] | None = None,
) -> Tables:
    """(scores, predictions) of all tasks: those of text are `answered`, prompts of the task `paint` are `painted`, or
    left out with None, as long as nothing can paint."""
    import pandas as pd

    asked = asked_items(config, corpora, permission=permission) if config.corpora else []
    prompts = [entry for entry in asked if entry.item.task == TASK]
    others = tuple(dict.fromkeys(entry.item.task for entry in asked if entry.item.task != TASK))
    if not prompts:
        return answered(config)
    if painted is None:
        return answered(config.model_copy(update={"tasks": others}))
    scores, predictions = painted(prompts, on_progress=on_progress)
    if not others:
        return scores, predictions
    texts = answered(config.model_copy(update={"tasks": others}))
    together = [pd.concat(pair, ignore_index=True) for pair in zip(texts, (scores, predictions), strict=True)]
    together[0].attrs["notes"] = [*texts[0].attrs["notes"], *scores.attrs["notes"]]
    return together[0], together[1]


@dataclass(frozen=True)
class PaintedScores:
    """Paints prompts and scores the pictures, which are kept as PNG under `folder` (None keeps none).

    Metrics by language, in percent where not said otherwise; the noise of an item is the same in every language:

    - `score`: pictures that show every attribute of their prompt, read by `AttributeReader`; `colour`, `shape`, ...
      each attribute apart. They measure what can be named, not beauty.
    - `random`: what a scene drawn at random would score. `ceiling`: what the reader scores on the real pictures of the
      same items. `empty`: what pictures of the empty caption score, which is to be near `random`.
    - `gap`: the conditional-loss gap, x 100: how much larger the error of the denoiser is beside the caption of another
      item than beside the right one, on the real picture with the same noise at three times; 0 where captions are not
      read. `transfer` is that gap in percent of the mean gap of the languages that the denoiser was trained in.
    - `frechet`: the Frechet distance on local features between painted and real pictures (see `lvlm.paint.frechet`);
      lower is better. It is no FID and comparable to none.
    - `agreement`: pictures that show the same as the picture of the same item in the languages trained in (in those
      themselves: in the others of them, else in all other languages), right or wrong.
    - `clip_score`, `frechet_model`: with `paint.clip` and `paint.features`, by models that the user has (see
      `lvlm.paint.plugins`). CLIP compares with the English prompt of the item where there is one.
    """

    painter: Painter
    drawing: Drawing
    folder: Path | None
    key: str = ""
    """Identifies the painter: pictures of another are not taken for its own."""
    batch_size: int = AT_ONCE

    def __call__(self, asked: Sequence[Asked], *, on_progress: Callable[[int, int], None] | None = None) -> Tables:
        """(scores, predictions) of prompts."""
        import pandas as pd

        captions = [entry.item.prompt for entry in asked]
        self.painter.states.keep(["", *captions])
        pictures = self._pictures(asked, captions, "asked", on_progress)
        emptied = self._emptied(asked)
        real = [self._real(entry) for entry in asked]
        shown, empties, truths = (
            [self._read(entry.corpus, picture) for entry, picture in zip(asked, some, strict=True)]
            for some in (pictures, emptied, real)
        )
        gaps = self._gaps(asked)
        rows = []
        for place, entry in enumerate(asked):
            gold = gold_attributes(entry)
            right = {kind: 100.0 * (shown[place].get(kind) == value) for kind, value in gold.items()} if gold else {}
            rows.append(
                {
                    **dict.fromkeys(PREDICTION_COLUMNS, NAN),
                    "task": TASK, "language": entry.item.language, "item": entry.item.id, "source": entry.item.source,
                    "prompt": entry.item.prompt, "answer": " | ".join(entry.item.answers),
                    "prediction": " ".join(f"{kind}:{value}" for kind, value in shown[place].items()),
                    "score": min(right.values()) if right and shown[place] else NAN, "answer_language": None,
                    "image": self._name(entry, "asked") if self.folder else None, "gap": gaps[place], **right,
                }
            )  # fmt: skip
        scores = pd.DataFrame(self._rows(asked, rows, pictures, real, shown, empties, truths), columns=SCORE_COLUMNS)
        scores.attrs["notes"] = self._notes(asked)
        return scores, pd.DataFrame(rows)

    def _rows(
        self,
        asked: Sequence[Asked],
        rows: Sequence[Mapping[str, Any]],
        pictures: Sequence[npt.NDArray[np.uint8]],
        real: Sequence[npt.NDArray[np.uint8]],
        shown: Sequence[Attributes],
        empties: Sequence[Attributes],
        truths: Sequence[Attributes],
    ) -> list[Row]:
        places: dict[str, list[int]] = {}
        for place, entry in enumerate(asked):
            places.setdefault(entry.item.language, []).append(place)
        known = {(entry.item.language, entry.item.id): shown[place] for place, entry in enumerate(asked)}
        trained = [code for code in self.painter.languages if code in places]
        reference = _mean([rows[place]["gap"] for code in trained for place in places[code]])[0]
        found: list[Row] = []
        for code, own in places.items():
            golds = {place: gold_attributes(asked[place]) for place in own}
            gap = _mean([rows[place]["gap"] for place in own])
            values = {
                "score": _mean([rows[place]["score"] for place in own]),
                **{kind: _mean([rows[place].get(kind, NAN) for place in own]) for kind in self._kinds(asked, own)},
                "random": _mean([self._chance(asked[place].corpus) for place in own]),
                "ceiling": _mean([_right(truths[place], golds[place]) for place in own]),
                "empty": _mean([_right(empties[place], golds[place]) for place in own]),
                "gap": gap,
                "transfer": (100 * gap[0] / reference if reference > 0 else NAN, gap[1]),
                "frechet": self._frechet([pictures[place] for place in own], [real[place] for place in own]),
                "agreement": self._agreement([asked[place] for place in own], known, list(places), trained),
                **self._by_models(asked, own, pictures, real),
            }
            found += [(TASK, code, metric, *value) for metric, value in values.items()]
        return found

    def _pictures(
        self,
        asked: Sequence[Asked],
        captions: Sequence[str],
        kind: str,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> list[npt.NDArray[np.uint8]]:
        """One picture of each caption; those that an earlier evaluation of the same has left are taken from there."""
        names = [self._name(entry, kind) for entry in asked]
        found = {place: kept for place, name in enumerate(names) if (kept := self._kept(name)) is not None}
        missing = [place for place in range(len(asked)) if place not in found]
        for start in range(0, len(missing), self.batch_size):
            some = missing[start : start + self.batch_size]
            new = paint(
                self.painter,
                [captions[place] for place in some],
                [asked[place].item.id for place in some],
                self.drawing,
                batch_size=self.batch_size,
            )
            for place, picture in zip(some, new, strict=True):
                found[place] = picture
                self._keep(names[place], picture)
            if on_progress:
                on_progress(len(found), len(asked))
        return [found[place] for place in range(len(asked))]

    def _emptied(self, asked: Sequence[Asked]) -> list[npt.NDArray[np.uint8]]:
        """The picture of the empty caption with the noise of each item, which no language changes."""
        first: dict[str, Asked] = {}
        for entry in asked:
            first.setdefault(entry.item.id, entry)
        painted = self._pictures(list(first.values()), [""] * len(first), "empty")
        by_id = dict(zip(first, painted, strict=True))
        return [by_id[entry.item.id] for entry in asked]

    def _name(self, entry: Asked, kind: str) -> str:
        """Where a picture lies, from the run's folder."""
        prompt = entry.item.prompt if kind == "asked" else ""
        code = entry.item.language if kind == "asked" else "empty"
        facts = [self.key, vars(self.drawing), entry.corpus.name, entry.split, entry.item.id, prompt]
        plain = re.sub(r"[^\w.-]", "_", entry.item.id)[:80]
        return f"{PICTURES}/{code}/{plain}-{fingerprint(facts)}.png"

    def _kept(self, name: str) -> npt.NDArray[np.uint8] | None:
        path = None if self.folder is None else self.folder.parent / name
        return None if path is None or not path.exists() else np.asarray(open_image(path).convert("RGB"))

    def _keep(self, name: str, picture: npt.NDArray[np.uint8]) -> None:
        if self.folder is None:
            return
        path = self.folder.parent / name
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        Image.fromarray(picture).save(temporary, format="PNG")
        temporary.replace(path)

    def _real(self, entry: Asked) -> npt.NDArray[np.uint8]:
        """The real picture of an item, as the painter would be shown it."""
        if not entry.item.images:
            return np.zeros((self.painter.size, self.painter.size, 3), dtype=np.uint8)
        shown = pixels(open_image(entry.corpus.image_path(entry.item.images[0])), self._transform())[0]
        found: npt.NDArray[np.uint8] = ((shown + 1) * 127.5).round().clamp(0, 255).byte().permute(1, 2, 0).numpy()
        return found

    def _transform(self) -> Any:
        return self.painter.transform(self.painter.size)

    def _read(self, corpus: Corpus, picture: npt.NDArray[np.uint8]) -> Attributes:
        reader = reader_of(corpus)
        return {} if reader is None else reader.read(picture[None])[0]

    def _chance(self, corpus: Corpus) -> float:
        reader = reader_of(corpus)
        return NAN if reader is None else reader.chance()

    def _kinds(self, asked: Sequence[Asked], places: Sequence[int]) -> list[str]:
        readers = [reader_of(asked[place].corpus) for place in places]
        return list(dict.fromkeys(kind for reader in readers if reader for kind in reader.kinds))

    @torch.no_grad()
    def _gaps(self, asked: Sequence[Asked]) -> list[float]:
        """The conditional-loss gap of each item, x 100; NaN for items without a picture."""
        found = [NAN] * len(asked)
        wrong = wrong_captions(asked)
        places = [place for place, entry in enumerate(asked) if entry.item.images and wrong[place] is not None]
        for start in range(0, len(places), self.batch_size):
            some = places[start : start + self.batch_size]
            shown = [open_image(asked[place].corpus.image_path(asked[place].item.images[0])) for place in some]
            clean = torch.stack([pixels(picture, self._transform())[0] for picture in shown])
            clean = self.painter.encode(clean.to(self.painter.device))
            names = [asked[place].item.id for place in some]
            right = self._errors(clean, names, [asked[place].item.prompt for place in some])
            other = self._errors(clean, names, [str(wrong[place]) for place in some])
            for place, value in zip(some, (100 * (other - right)).tolist(), strict=True):
                found[place] = value
        return found

    def _errors(self, clean: torch.Tensor, names: Sequence[str], captions: Sequence[str]) -> torch.Tensor:
        """(pictures,): the denoiser's error beside these captions, mean over the times of the gap."""
        painter, total = self.painter, torch.zeros(len(clean), device=clean.device)
        states, mask = (tensor.to(clean.device) for tensor in painter.states(captions))
        for share in GAP_TIMES:
            noise = torch.stack([
                torch.randn(clean.shape[1:], generator=generator_for(self.drawing.seed, f"gap/{share}/{name}"))
                for name in names
            ]).to(clean.device)  # fmt: skip
            when = torch.full((len(clean),), int(share * painter.diffusion.timesteps), device=clean.device)
            noisy = painter.scheduler.add_noise(clean, noise, when)
            wanted = target(painter.scheduler, painter.diffusion.prediction, clean, noise, when)
            total += errors(painter.predict(noisy, when, states, mask), wanted) / len(GAP_TIMES)
        return total

    def _frechet(
        self, painted: Sequence[npt.NDArray[np.uint8]], real: Sequence[npt.NDArray[np.uint8]]
    ) -> tuple[float, int]:
        if len(painted) <= LOCAL_FEATURES:
            return NAN, len(painted)
        return frechet_distance(*(local_features(np.stack(some)) for some in (painted, real))), len(painted)

    def _by_models(
        self,
        asked: Sequence[Asked],
        own: Sequence[int],
        pictures: Sequence[npt.NDArray[np.uint8]],
        real: Sequence[npt.NDArray[np.uint8]],
    ) -> dict[str, tuple[float, int]]:
        """Metrics by models of the user's, where the config names them."""
        painted = np.stack([pictures[place] for place in own])
        found: dict[str, tuple[float, int]] = {}
        if self._clip is not None:
            english = {entry.item.id: entry.item.prompt for entry in asked if entry.item.language == "en"}
            texts = [english.get(asked[place].item.id, asked[place].item.prompt) for place in own]
            found["clip_score"] = _mean(self._clip(painted, texts))
        if self._features is not None:
            sets = self._features(painted), self._features(np.stack([real[place] for place in own]))
            enough = len(own) > 1
            found["frechet_model"] = frechet_distance(*sets) if enough else NAN, len(own)
        return found

    @cached_property
    def _clip(self) -> ClipScore | None:
        from lvlm.paint.plugins import ClipScore

        folder = self.painter.config.clip
        return None if folder is None else ClipScore(Path(folder))

    @cached_property
    def _features(self) -> ModelFeatures | None:
        from lvlm.paint.plugins import ModelFeatures

        folder = self.painter.config.features
        return None if folder is None else ModelFeatures(Path(folder))

    def _agreement(
        self,
        own: Sequence[Asked],
        known: Mapping[tuple[str, str], Attributes],
        languages: Sequence[str],
        trained: Sequence[str],
    ) -> tuple[float, int]:
        code = own[0].item.language
        with_whom = [other for other in trained if other != code] or [other for other in languages if other != code]
        same = [
            100.0 * (known[code, entry.item.id] == known[other, entry.item.id])
            for entry in own
            for other in with_whom
            if (other, entry.item.id) in known and known[code, entry.item.id]
        ]
        return _mean(same)

    def _notes(self, asked: Sequence[Asked]) -> list[str]:
        drawn = self.drawing
        notes = [
            f"paint: {drawn.steps} steps of DDIM, guidance {drawn.guidance:g}, noise of seed {drawn.seed}; trained in "
            f"{', '.join(self.painter.languages) or 'no language'}"
        ]
        for corpus in dict.fromkeys(entry.corpus for entry in asked):
            if reader_of(corpus) is None:
                notes.append(f"score of paint has no value for {corpus.name}: it has no clean renderings to read by")
        few = {entry.item.language for entry in asked}
        if any(sum(entry.item.language == code for entry in asked) <= LOCAL_FEATURES for code in few):
            notes.append(f"frechet has no value where there are not more than {LOCAL_FEATURES} pictures")
        return notes


@lru_cache(maxsize=16)
def reader_of(corpus: Corpus) -> AttributeReader | None:
    """That of a corpus, whose renderings are read once."""
    return AttributeReader.of_corpus(corpus)


def gold_attributes(entry: Asked) -> dict[str, str]:
    """Kind -> value, as the gold answer of a prompt names them (`colour:red shape:cross`)."""
    pairs = [text.partition(":") for text in entry.item.answers[0].split()]
    return {kind: value for kind, sign, value in pairs if sign}


def wrong_captions(asked: Sequence[Asked]) -> list[str | None]:
    """For each item the caption of another item of its language with another gold answer: half of the items further on,
    in the order in which they are asked, or the next that differs. None where there is no such item."""
    members: dict[tuple[Corpus, str], list[Asked]] = {}
    position: list[int] = []
    for entry in asked:
        own = members.setdefault((entry.corpus, entry.item.language), [])
        position.append(len(own))
        own.append(entry)
    found: list[str | None] = []
    for entry, at in zip(asked, position, strict=True):
        own = members[entry.corpus, entry.item.language]
        further = [own[(at + len(own) // 2 + step) % len(own)] for step in range(len(own))]
        other = next((one for one in further if one.item.answers != entry.item.answers), None)
        found.append(None if other is None else other.item.prompt)
    return found


def _right(shown: Attributes, gold: Attributes) -> float:
    """100 where every attribute is shown, else 0; NaN where nothing could be read."""
    return 100.0 * all(shown.get(kind) == value for kind, value in gold.items()) if shown and gold else NAN


def _mean(values: Sequence[float]) -> tuple[float, int]:
    """(mean, number) of the values that are known; NaN when none is."""
    known = [value for value in values if value == value]
    return (sum(known) / len(known) if known else NAN), len(known)
