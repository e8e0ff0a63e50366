"""Answers one by one: what became of each, in which language it was given, and where arms disagree. Reads the per-item
table beside the results; the notebooks and the report show it."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ablations.table import THUMBNAILS_FILE
from lvlm.errors import InputError
from lvlm.languages import in_table_order, language
from lvlm.records import PREDICTIONS_FILE

if TYPE_CHECKING:
    from ablations.table import Results

COUNTS_FILE = "answers.parquet"
"""How many answers of each kind and language there are, where the per-item table beside it is a part of all."""
KINDS = ("right", "right, in another language", "wrong", "wrong, in another language", "wrong, language undetermined")
"""What becomes of an answer. Graded answers, such as captions, are right from half of the points on."""
HALF = 50.0
UNDETERMINED = "undetermined"
LEFT = "text-align:left"
COLUMNS = ("arm", "seed", "task", "language", "item", "source", "prompt", "answer", "prediction",
           "score", "score_any_language", "answer_language")  # fmt: skip
COUNTED = ("arm", "seed", "task", "language", "answer_language", "kind")


@dataclass(frozen=True)
class Disagreement:
    """Items about which arms disagree most, to be looked at: Jupyter shows a card for each, with its image.

    `table` has a row per item and language: task, item, language, prompt, gold, and for each arm the share of seeds
    that are right; `answers` every answer to them; `pictures` the image of (task, source, item).
    """

    table: pd.DataFrame
    answers: pd.DataFrame
    pictures: Mapping[tuple[str, str, str], bytes]
    labels: Mapping[str, str]

    def __repr__(self) -> str:
        return self.table.to_string(index=False)

    def _repr_html_(self) -> str:
        return f"<div>{''.join(self._card(row) for row in self.table.to_dict('records'))}</div>"

    def _card(self, row: Mapping[Any, Any]) -> str:
        code = str(row["language"])
        own = self.answers
        own = own[(own["task"] == row["task"]) & (own["item"] == row["item"]) & (own["language"] == code)]
        lines = []
        for arm, given in own.groupby("arm", sort=False):
            said = "; ".join(
                f'<span dir="auto">{escape(str(text))}</span>{f" (x{count})" if count > 1 else ""}'
                for text, count in given["prediction"].value_counts(sort=True).items()
            )
            mark = f"{int((given['score'] >= HALF).sum())} of {len(given)} right"
            lines.append(
                f'<tr><th style="{LEFT}">{escape(self.labels.get(str(arm), str(arm)))}</th>'
                f'<td style="{LEFT};white-space:normal">{said}</td><td style="white-space:nowrap">{mark}</td></tr>'
            )
        picture = self.pictures.get((str(row["task"]), str(row["source"]), str(row["item"])))
        shown = (
            image_tag(picture, f"The image of item {row['item']}", width=112) if picture else "<em>no image kept</em>"
        )
        head = (
            f"<p><b>{escape(language(code).name)}</b>, {escape(str(row['task']))}: "
            f'<span dir="auto">{escape(str(row["prompt"]))}</span><br>gold: <span dir="auto">'
            f"{escape(str(row['gold']))}</span></p>"
        )
        body = f'<div style="flex:none">{shown}</div><div>{head}<table>{"".join(lines)}</table></div>'
        style = "display:flex;align-items:center;gap:20px;border-top:1px solid #ddd;padding:6px 0"
        return f'<div style="{style}">{body}</div>'


def read_predictions(
    results: Results, *, columns: Sequence[str] = COLUMNS, arms: Sequence[str] | None = None, task: str | None = None
) -> pd.DataFrame:
    """The per-item table beside the results, of some arms or one task; raises `InputError` where there is none."""
    path = results.folder / PREDICTIONS_FILE
    if not path.exists():
        raise InputError(
            f"There are no answers at {path}: write them from the run folders with "
            f"python -m sweeps export {results.name}{results.home_option}."
        )
    chosen: list[tuple[str, str, object]] = [("task", "==", task)] if task else []
    if arms is not None:
        chosen.append(("arm", "in", list(arms)))
    rows = pd.read_parquet(path, columns=list(columns), filters=chosen or None)
    for name in {"score", "score_any_language"} & set(rows.columns):  # text where nothing but unknown was written
        rows[name] = pd.to_numeric(rows[name])
    return rows


def kinds(predictions: pd.DataFrame) -> pd.Series:
    """The kind of every answer, one of `KINDS`."""
    right = predictions["score"] >= HALF
    elsewhere = predictions["score_any_language"] >= HALF
    told = predictions["answer_language"].notna() & (predictions["answer_language"] != "")
    same = told & (predictions["answer_language"].astype(object) == predictions["language"].astype(object))
    found = np.select(
        [right, elsewhere & ~same, same, told], [KINDS[0], KINDS[1], KINDS[2], KINDS[3]], default=KINDS[4]
    )
    return pd.Series(pd.Categorical(found, categories=KINDS), index=predictions.index, name="kind")


def counted(predictions: pd.DataFrame) -> pd.DataFrame:
    """How many answers there are of each arm, seed, task, asked language, answered language and kind."""
    told = predictions["answer_language"].astype(object)
    rows = predictions[["arm", "seed", "task", "language"]].assign(
        answer_language=told.where(told.notna() & (told != ""), UNDETERMINED), kind=kinds(predictions).astype(str)
    )
    return rows.groupby(list(COUNTED), observed=True, sort=False).size().rename("n").reset_index()


def counts(results: Results) -> pd.DataFrame:
    """The same of a study: as counted beforehand where its per-item table is thinned, else from that table."""
    path = results.folder / COUNTS_FILE
    if path.exists():
        return pd.read_parquet(path)
    needed = ("arm", "seed", "task", "language", "score", "score_any_language", "answer_language")
    return counted(read_predictions(results, columns=needed))


def kind_shares(results: Results, *, task: str | None = None) -> pd.DataFrame:
    """Percent of answers of each kind, a row per arm and asked language, with their number `answers`."""
    rows = _of_task(counts(results), task)
    wide = rows.pivot_table(index=["arm", "language"], columns="kind", values="n", aggfunc="sum", fill_value=0)
    wide = wide.reindex(columns=list(KINDS), fill_value=0)
    total = wide.sum(axis=1)
    shares = wide.div(total, axis=0).mul(100).assign(answers=total)
    arms = [arm for arm in results.arms().index if arm in shares.index.get_level_values("arm")]
    codes = in_table_order(shares.index.get_level_values("language").unique())
    index = [pair for pair in ((arm, code) for arm in arms for code in codes) if pair in shares.index]
    return shares.loc[index]


def confusion(
    results: Results, *, arm: str | Mapping[str, object] | None = None, task: str | None = None
) -> pd.DataFrame:
    """Percent of the answers to questions in a language (row) that were given in a language (column).

    All seeds together; `undetermined` are those whose language cannot be told, `answers` is how many there are.
    """
    label = results.label(arm)  # type: ignore[arg-type]
    rows = _of_task(counts(results), task)
    rows = rows[rows["arm"] == label]
    if task is None:  # answers such as a letter have no language
        told = rows[rows["answer_language"] != UNDETERMINED]
        rows = rows[rows["task"].isin(set(told["task"]))]
    if rows.empty:
        raise InputError(f"There are no answers of '{label}' in {results.folder}.")
    wide = rows.pivot_table(index="language", columns="answer_language", values="n", aggfunc="sum", fill_value=0)
    codes = in_table_order(wide.index)
    others = [code for code in in_table_order(set(wide.columns) - {UNDETERMINED}) if code not in codes]
    wide = wide.reindex(index=list(codes), columns=[*codes, *others, UNDETERMINED], fill_value=0)
    total = wide.sum(axis=1)
    return wide.div(total, axis=0).mul(100).assign(answers=total)


def disagreements(
    results: Results,
    *,
    arms: Sequence[str] | None = None,
    task: str | None = None,
    languages: Sequence[str] | None = None,
    most: int = 8,
) -> Disagreement:
    """The items about which arms disagree most: those whose share of right seeds differs most between arms.

    Among equals those with an image come first, then items in their order; an item is shown in one language.
    """
    chosen = [results.label(arm) for arm in arms] if arms is not None else list(results.arms().index)
    rows = read_predictions(results, arms=chosen, task=task)
    if languages is not None:
        rows = rows[rows["language"].isin(list(languages))]
    if rows.empty:
        raise InputError(f"There are no answers of these arms, task and languages in {results.folder}.")
    key = ["task", "source", "item", "language"]
    right = (
        rows.assign(right=rows["score"] >= HALF).groupby([*key, "arm"], observed=True)["right"].mean().unstack("arm")
    )
    right = right[[arm for arm in chosen if arm in right.columns]].dropna()
    pictures = thumbnails(results)
    order = pd.DataFrame({"spread": right.max(axis=1) - right.min(axis=1)}).reset_index()
    order["pictured"] = [tuple(row) in pictures for row in order[key[:3]].itertuples(index=False)]
    order = order.sort_values(["spread", "pictured"], ascending=False, kind="stable")
    order = order[order["spread"] > 0].drop_duplicates(key[:3]).head(most)
    firsts = rows.drop_duplicates(key).set_index(key)
    labels = {arm: results.short_label(arm) for arm in right.columns}
    found = [
        {
            **dict(zip(key, place, strict=True)),
            "prompt": firsts.loc[place, "prompt"],
            "gold": firsts.loc[place, "answer"],
            **{labels[arm]: round(float(right.loc[place, arm]), 2) for arm in right.columns},
        }
        for place in order[key].itertuples(index=False, name=None)
    ]
    table = pd.DataFrame(found, columns=[*key, "prompt", "gold", *labels.values()])
    return Disagreement(table, rows[rows["item"].isin(table["item"])], pictures, labels)


def thumbnails(results: Results) -> dict[tuple[str, str, str], bytes]:
    """The small pictures that are kept beside the results: (task, source, item) -> an image file's bytes."""
    path = results.folder / THUMBNAILS_FILE
    if not path.exists():
        return {}
    table = pd.read_parquet(path)
    keys = table[["task", "source", "item"]].astype(str).itertuples(index=False, name=None)
    return {(task, source, item): image for (task, source, item), image in zip(keys, table["image"], strict=True)}


def image_tag(data: bytes, alt: str, *, width: int | None = None) -> str:
    """An element that holds an image."""
    wide = f' width="{width}"' if width else ""
    return f'<img alt="{escape(alt)}"{wide} src="data:{media_type(data)};base64,{b64encode(data).decode("ascii")}">'


def media_type(data: bytes) -> str:
    """That of PNG, JPEG or WebP."""
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return "image/png"
    return "image/webp" if data[8:12] == b"WEBP" else "image/jpeg"


def _of_task(rows: pd.DataFrame, task: str | None) -> pd.DataFrame:
    if task is not None and task not in set(rows["task"]):
        raise InputError(f"There are no answers to the task '{task}'; tasks: {', '.join(sorted(set(rows['task'])))}.")
    return rows if task is None else rows[rows["task"] == task]
