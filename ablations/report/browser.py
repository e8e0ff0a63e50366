"""Answers to be read in the report, with the images that they are about: by arm, task, language and what became of
them. A bounded number of items lies in the page."""

from __future__ import annotations

import html
import json
from base64 import b64encode
from typing import Any

import pandas as pd

from ablations.answers import KINDS, kinds, media_type, read_predictions, thumbnails
from ablations.report.frame import Section
from ablations.table import Results
from lvlm.errors import InputError
from lvlm.languages import in_table_order, language

MOST_ANSWERS = 6000
"""Answers that lie in the page; of the items with a picture as many as that allows, evenly by task."""
CARDS = 10
"""Questions that are shown at once."""
FILTERS = {"arms": "arm", "tasks": "task", "languages": "language", "kinds": "what became of it"}
KEY = ["task", "source", "item"]


def browser(results: Results) -> Section:
    """The section of the answers; it says why there are none where that is so."""
    title = "Answers, one by one"
    try:
        answers = read_predictions(results)
    except InputError as error:
        return Section(title, f"<p class='note'>{html.escape(str(error))}</p>")
    if answers.empty:
        return Section(title, "<p class='note'>The per-item table beside these results holds no answers.</p>")
    seed = answers.groupby("seed")["arm"].nunique().idxmax()  # the first of those with the most arms
    answers = answers[answers["seed"] == seed]
    pictures = thumbnails(results)
    chosen = _items(answers, set(pictures))
    answers = answers.merge(chosen, on=KEY)
    data = json.dumps(_data(results, answers, pictures), ensure_ascii=False).replace("<", "\\u003c")
    controls = "".join(
        f"<div><label for='answers-{name}'>{label}</label><select id='answers-{name}' name='{name}'></select></div>"
        for name, label in FILTERS.items()
    )
    total = "Their pictures are small copies." if pictures else "No pictures of the items lie beside the results."
    body = (
        f"<p>{len(chosen)} of the test items, chosen by their ids alone, with the answers of "
        f"{answers['arm'].nunique()} of the {len(results.arms())} arms (seed {seed}) in every language. {total} "
        "Graded answers, such as captions, are called right from half of the points on.</p>"
        "<noscript><p class='warning'>Reading the answers needs scripts, which this page keeps in itself.</p>"
        "</noscript><div id='answers-browser'>"
        f"<div class='filters' role='group' aria-label='Which answers are shown'>{controls}</div>"
        "<p role='status' aria-live='polite'></p><div class='cards'></div>"
        "<div class='pager'><button type='button'>Back</button><button type='button'>Next questions</button></div>"
        "</div>"
        f"<script type='application/json' id='answers-data'>{data}</script>"
    )
    return Section(title, body)


def _items(answers: pd.DataFrame, pictured: set[tuple[str, str, str]]) -> pd.DataFrame:
    """The items that are shown: those with a picture where there are any, as many of each task as fit."""
    counts = answers.groupby(KEY, sort=False, observed=True).size().rename("answers").reset_index()
    if pictured:
        counts = counts[[tuple(row) in pictured for row in counts[KEY].itertuples(index=False)]]
    counts["rank"] = counts.groupby(["task", "source"], sort=False).cumcount()
    by_rank = counts.sort_values("rank", kind="stable")
    fits = by_rank["answers"].cumsum() <= MOST_ANSWERS
    return by_rank.loc[fits | (by_rank["rank"] == 0), KEY]


def _data(results: Results, answers: pd.DataFrame, pictures: dict[tuple[str, str, str], bytes]) -> dict[str, Any]:
    """What the script reads: names once, answers as numbers of them."""
    arms = [arm for arm in results.arms().index if arm in set(answers["arm"])]
    codes = list(in_table_order(set(answers["language"])))
    tasks = list(dict.fromkeys(answers["task"]))
    texts: dict[str, int] = {}
    items: dict[tuple[str, str, str], int] = {}
    images: list[str] = []
    about: list[list[Any]] = []
    rows = []
    answers = answers.assign(kind=kinds(answers).cat.codes)
    order = {arm: number for number, arm in enumerate(arms)}
    for row in answers.sort_values(["task", "item"], kind="stable").to_dict("records"):
        key = (row["task"], row["source"], row["item"])
        if key not in items:
            items[key] = len(items)
            image = pictures.get(key)
            about.append([row["item"], tasks.index(row["task"]), None if image is None else len(images)])
            if image is not None:
                images.append(f"data:{media_type(image)};base64,{b64encode(image).decode('ascii')}")
        told = row["answer_language"] if isinstance(row["answer_language"], str) else None
        said = [texts.setdefault(str(text), len(texts)) for text in (row["prompt"], row["answer"], row["prediction"])]
        place = None if not told else texts.setdefault(told, len(texts))
        points = round(max(row["score"], row["score_any_language"]))
        rows.append(
            [items[key], order[row["arm"]], codes.index(row["language"]), *said, int(row["kind"]), place, points]
        )
    rows.sort(key=lambda row: (row[0], row[2], row[1]))
    return {
        "arms": [results.short_label(arm) for arm in arms],
        "languages": [language(code).name for code in codes],
        "codes": codes,
        "tasks": tasks,
        "kinds": list(KINDS),
        "texts": list(texts),
        "items": about,
        "images": images,
        "rows": rows,
        "size": CARDS,
    }
