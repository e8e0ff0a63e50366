"""What the pivot studies ask of a table of results: curves over the number of translated pairs, and how much of the
pivot's own score arrives in another language. Computed here, drawn by `ablations.plots.transfers`; notebook 05 reads
both.

The score in any language, the score and fidelity stay apart throughout: a model that understands a question and answers
it in the pivot has a high score in any language and a low fidelity, and one number of both could not show it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd

from ablations.intervals import Interval, over_seeds
from ablations.table import Results
from lvlm.errors import InputError
from lvlm.languages import in_table_order, language
from lvlm.records import PREDICTIONS_FILE

METRICS = ("fidelity", "score", "score_any_language")


def curves(results: Results, *, metrics: Sequence[str] = METRICS) -> pd.DataFrame:
    """Of a study with the factors `pairs` and `target`: the mean of each metric in the target language after k pairs of
    it, with a 95 % t interval over seeds.

    Columns target, tier, pairs, metric, estimate, low, high, seeds. The arm without pairs counts for every target.
    """
    if missing := [name for name in ("pairs", "target") if name not in results.factors]:
        raise InputError(
            f"Study '{results.name}' has no factor {' and no factor '.join(missing)}: curves over translated pairs are "
            "of the study `pivot_pairs`."
        )
    table = results.table
    targets = [code for code in dict.fromkeys(table["target"].dropna())]
    rows = []
    for code in targets:
        own = table[(table["language"] == code) & ((table["target"] == code) | (table["pairs"] == 0))]
        for metric in metrics:
            for k, some in _by_seed(own, metric, "pairs").items():
                one = over_seeds(some)
                rows.append((code, language(code).tier, int(k), metric, one.estimate, one.low, one.high, one.n_seeds))
    names = ["target", "tier", "pairs", "metric", "estimate", "low", "high", "seeds"]
    return pd.DataFrame(rows, columns=names)


def pairs_needed(curve: pd.DataFrame, *, metric: str = "fidelity", level: float = 90.0) -> pd.DataFrame:
    """For every target the smallest number of pairs from which on the metric stays at `level` or above: its mean, and
    the lower end of its interval. Columns target, tier, by mean, by interval; empty where no number suffices.

    Seeds that all have one value, such as 100 %, tell no noise and have no interval: the value counts as its end.
    """
    rows = []
    for code, own in curve[curve["metric"] == metric].groupby("target", sort=False):
        ordered = own.sort_values("pairs")
        low = ordered["low"].where(ordered["low"].notna() | (ordered["seeds"] < 2), ordered["estimate"])
        found = [_from_where(ordered["pairs"], end >= level) for end in (ordered["estimate"], low)]
        rows.append((code, language(str(code)).tier, *found))
    needed = pd.DataFrame(rows, columns=["target", "tier", "by mean", "by interval"])
    return needed.astype({"by mean": "Int64", "by interval": "Int64"})


def transfer(
    results: Results,
    *,
    metric: str = "score_any_language",
    pivot: str | Mapping[str, str] = "en",
    by: Literal["language", "tier"] = "language",
) -> pd.DataFrame:
    """The transfer ratio of every arm and language: the metric in that language by the metric in the pivot, run by run,
    and its mean over seeds with a 95 % t interval. By tier it is that of the mean over the tier's languages.

    Columns arm, pivot, language, tier, ratio, low, high, seeds, pivot score (percent); by tier no language. Ratios of
    arms whose pivot scores differ say as much of how well the pivot was learned as of transfer; and in any language an
    answer in the pivot is easier than one in the target, so that arms of different fidelity differ for that reason too:
    compare these with `score` and a forced first token. `pivot` may differ by arm.
    """
    if by not in ("language", "tier"):
        raise InputError(f"Transfer is told by language or by tier, not by '{by}'.")
    rows = []
    for arm in results.arms().index:
        own = pivot if isinstance(pivot, str) else pivot[str(arm)]
        values = _runs(results, str(arm), metric)
        base = values.get(own, pd.Series(dtype=float))
        groups: dict[str, list[str]] = {}
        for code in in_table_order(values.columns.drop(own, errors="ignore")):
            groups.setdefault(language(code).tier if by == "tier" else code, []).append(code)
        for name, codes in groups.items():
            ratio = (values[codes].mean(axis=1, skipna=False) / base.where(base > 0)).dropna()
            if len(ratio):
                one = over_seeds(ratio)
                where = (str(arm), own, name, language(codes[0]).tier)
                rows.append((*where, one.estimate, one.low, one.high, one.n_seeds, float(base.mean())))
    names = ["arm", "pivot", "language", "tier", "ratio", "low", "high", "seeds", "pivot score"]
    found = pd.DataFrame(rows, columns=names)
    return found.drop(columns="language") if by == "tier" else found


def distances(ratios: pd.DataFrame, results: Results, *, noun_first: Collection[str] = ()) -> pd.DataFrame:
    """`transfer` with what each pivot and target have in common: `same script`, `same family` (both by the language
    table), `same order` of noun and colour (`noun_first` names the languages where the noun comes first), and `shared
    words`, percent of the words of both languages' gold answers that are in both; NaN where no predictions are kept."""
    words = _words(results)

    def shared(one: str, other: str) -> float:
        both = words.get(one, set()) | words.get(other, set())
        return 100 * len(words.get(one, set()) & words.get(other, set())) / len(both) if both else float("nan")

    pairs = [(language(one), language(other)) for one, other in zip(ratios["pivot"], ratios["language"], strict=True)]
    common: dict[str, Any] = {
        "same script": [one.script == other.script for one, other in pairs],
        "same family": [one.family == other.family for one, other in pairs],
        "same order": [(one.code in noun_first) == (other.code in noun_first) for one, other in pairs],
        "shared words": [shared(one.code, other.code) for one, other in pairs],
    }
    return ratios.assign(**common)


def by_distance(found: pd.DataFrame) -> pd.DataFrame:
    """The mean transfer ratio of pivot and target that have something in common, and of those that do not, and the mean
    over pivots of the difference within a pivot, so that a good pivot is no part of it. For shared words: above the
    pivot's median or not. It describes these pairs: they share languages, so that no interval holds."""
    above = found["shared words"] > found.groupby("pivot")["shared words"].transform("median")
    marked = found.assign(**{"more shared words": above.where(found["shared words"].notna())})
    rows = []
    for name in ("same script", "same family", "same order", "more shared words"):
        known = marked[marked[name].notna()].astype({name: bool})
        means = [float(known.loc[known[name] == there, "ratio"].mean()) for there in (True, False)]
        own = known.groupby(["pivot", name])["ratio"].mean().unstack()
        within = float((own[True] - own[False]).mean()) if {True, False} <= set(own.columns) else float("nan")
        rows.append((name, *means, within, len(known)))
    return pd.DataFrame(rows, columns=["in common", "mean with", "mean without", "difference within a pivot", "pairs"])


def against_alignment(
    results: Results,
    *,
    measure: str = "retrieval",
    metric: str = "score_any_language",
    pivot: str = "en",
    by: Literal["run", "language"] = "run",
) -> pd.DataFrame:
    """One row for each run whose language model was measured: the mean of an alignment measure over the languages
    beside the pivot, the mean transfer ratio over the same, and the pivot's score. Columns arm, seed, alignment
    (percent), transfer, pivot score (percent). By language one row for each run and language, with a column language.

    An `InputError` where no run was measured.
    """
    if by not in ("run", "language"):
        raise InputError(f"Transfer is held against alignment by run or by language, not by '{by}'.")
    rows = []
    for arm in results.arms().index:
        aligned, scores = (_runs(results, str(arm), name) for name in (measure, metric))
        codes = [code for code in scores.columns if code != pivot and code in aligned.columns]
        for seed in scores.index.intersection(aligned.index) if codes and pivot in scores else ():
            base = float(scores.loc[seed, pivot])
            for own in [codes] if by == "run" else [[code] for code in codes]:
                ratio = float(scores.loc[seed, own].mean()) / base if base > 0 else float("nan")
                rows.append((str(arm), int(seed), own[0], float(aligned.loc[seed, own].mean()), ratio, base))
    if not rows:
        raise InputError(
            f"No run of study '{results.name}' has the metric {measure}: alignment is measured where "
            "evaluate.alignment names parallel sentences, as in the study `pivot_alignment`."
        )
    found = pd.DataFrame(rows, columns=["arm", "seed", "language", "alignment", "transfer", "pivot score"])
    return found.drop(columns="language") if by == "run" else found


def correlation(points: pd.DataFrame) -> Interval:
    """Pearson's correlation of alignment and transfer over the arms of each seed, and its mean over seeds with a 95 % t
    interval, both through Fisher's z. Of points by language: over the languages of each run, and the mean over the arms
    of a seed first. `points` as `against_alignment` gives them.

    Within a seed arms share their backbones' draw and data, so that what is left is what the arms differ in. Languages
    of one model differ in much else than alignment, first of all in how much of them it read. NaN with a reason where
    no seed (or run) has three arms (or languages) that differ.
    """
    found: dict[int, list[float]] = {}
    for _, own in points.dropna().groupby(["seed", "arm"] if "language" in points else ["seed"]):
        if len(own) >= 3 and own["alignment"].nunique() > 1 and own["transfer"].nunique() > 1:
            r = float(np.corrcoef(own["alignment"], own["transfer"])[0, 1])
            found.setdefault(int(own["seed"].iloc[0]), []).append(np.arctanh(np.clip(r, -0.999999, 0.999999)))
    if not found:
        few = f"fewer than 3 {'languages' if 'language' in points else 'arms'} that differ"
        return Interval(np.nan, np.nan, np.nan, np.nan, 0, 0, "t over seeds of Fisher's z", reason=few)
    z = over_seeds([float(np.mean(of_seed)) for of_seed in found.values()])
    back = [float(np.tanh(end)) for end in (z.estimate, z.low, z.high)]
    return Interval(back[0], back[1], back[2], z.df, z.n_seeds, 0, "t over seeds of Fisher's z", z.reason)


def _words(results: Results) -> dict[str, set[str]]:
    """Language -> the words of its gold answers, from the predictions beside the results."""
    path = results.folder / PREDICTIONS_FILE
    if not path.exists():
        return {}
    golds = pd.read_parquet(path, columns=["language", "answer"]).drop_duplicates()
    found: dict[str, set[str]] = {}
    for code, answer in zip(golds["language"], golds["answer"], strict=True):
        found.setdefault(str(code), set()).update(re.findall(r"\w+", str(answer).casefold()))
    return found


def _by_seed(table: pd.DataFrame, metric: str, column: str) -> dict[float, list[float]]:
    """Level of a column -> the values of its runs, each the mean over tasks."""
    own = table[(table["metric"] == metric) & table["value"].notna()]
    means = own.groupby([column, "run"])["value"].mean()
    return {float(at): list(means.loc[at]) for at in means.index.unique(level=0)}


def _runs(results: Results, arm: str, metric: str) -> pd.DataFrame:
    """(seeds, languages): a metric of an arm's runs, the mean over tasks."""
    table = results.table
    own = table[(table["arm"] == arm) & (table["metric"] == metric)]
    return own.pivot_table(index="seed", columns="language", values="value", aggfunc="mean")


def _from_where(pairs: pd.Series, reached: pd.Series) -> float:
    behind = reached[::-1].cummin()[::-1].to_numpy(dtype=bool)
    return float(pairs.to_numpy()[behind].min()) if behind.any() else float("nan")
