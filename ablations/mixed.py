"""A crossed mixed model of runs and languages, for designs with gaps or many factors; beside it least squares with
errors clustered by run. Where every arm has every seed, `contrasts` says the same with less.

Without a component for the run the languages of a run would count as independent runs, and the error would halve.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import statsmodels.api as sm
from numpy.typing import NDArray
from scipy import stats
from statsmodels.regression.mixed_linear_model import MixedLM, VCSpec
from statsmodels.tools.sm_exceptions import ConvergenceWarning

from ablations.factors import Factor
from ablations.intervals import LEVEL
from ablations.pairing import in_group, values
from lvlm.errors import InputError

if TYPE_CHECKING:
    from ablations.table import Results

Floats = NDArray[np.float64]
Term = str | tuple[str, str]

MOST_ROWS = 2_500
"""Time grows with the cube of the rows: 10 seconds of CPU for 1,548 of them, about a minute here."""
BOUNDARY = 1e-4
"""A component with less of the variance than this is taken for none."""
LEAST_START, PLAIN_START = 0.1, 0.5
"""Where the search for a component begins at least, and where moments make no sense, over the residual standard
deviation: at 0 it would stay."""
FEW_RUNS = 20
"""With fewer clusters than this, errors clustered by run come out short."""


@dataclass(frozen=True)
class Mixed:
    """Fixed effects with two intervals, and what the rest of the variance belongs to.

    `fixed` has a row per term: `estimate`, `se`, `low`, `high` of the mixed model (t with seeds - 1 degrees of
    freedom), `clustered_low`, `clustered_high` of least squares with errors clustered by run; points. `components` are
    standard deviations in points. Where the fit has not converged its bounds are NaN, and `reason` says so; the
    clustered ones stand.
    """

    metric: str
    group: str
    fixed: pd.DataFrame
    components: dict[str, float]
    converged: bool
    warnings: tuple[str, ...]
    n_rows: int
    n_runs: int
    n_seeds: int
    n_languages: int
    df: float
    reason: str = ""

    def table(self) -> pd.DataFrame:
        """The fixed effects for reading."""
        shown = self.fixed[["term"]].assign(points=[f"{one:+z.1f}" for one in self.fixed["estimate"]])
        for name, kind in (("95 % interval", ""), ("clustered by run", "clustered_")):
            bounds = zip(self.fixed[f"{kind}low"], self.fixed[f"{kind}high"], strict=True)
            shown[name] = [f"[{low:+.1f}, {high:+.1f}]" if np.isfinite(low) else "–" for low, high in bounds]
        return shown

    def _repr_html_(self) -> str:
        parts = ", ".join(f"{name} {sd:.2f}" for name, sd in self.components.items())
        notes = "".join(f"<p>{note}</p>" for note in (self.reason, *self.warnings) if note)
        said = f"{self.n_rows} rows of {self.n_runs} runs; standard deviations in points: {parts}"
        return f"{self.table().to_html(index=False, border=0)}<p>{said}.</p>{notes}"


@dataclass(frozen=True)
class _Rows:
    """One row per run and language: values, and which arm, seed, run and language each belongs to."""

    y: Floats
    labels: Mapping[str, NDArray[np.str_]]

    def count(self, name: str) -> int:
        return len(np.unique(self.labels[name]))


def mixed_effects(
    results: Results,
    *,
    metric: str = "score",
    group: str = "multilingual",
    terms: Sequence[Term] | None = None,
    arms: Sequence[str] | None = None,
) -> Mixed:
    """The effects of all factors at once, from whatever runs there are.

    y = terms + language + seed + run + language:arm + error, by restricted maximum likelihood
    (`statsmodels.MixedLM`), with one row per run and language. `terms` are factors and pairs of them; by default every
    factor that varies. Levels are compared with the baseline's; a factor that does not apply to an arm changes nothing
    there. With `arms` these are compared with the baseline as they are, arm by arm, without factors.

    The intervals are t with seeds - 1 degrees of freedom: Satterthwaite's are not in statsmodels, and more than the
    seeds would claim too much. Standard errors are those of generalised least squares at the estimated components,
    which stand also where a component is 0 and the likelihood has no curvature.

    Simulated with 6 arms, 6 languages, 3 and 5 seeds and 3 of 30 runs missing, all components at work (60 and 150
    studies): standard errors are right (0.61 where estimates differ by 0.62), all fits converged, and the intervals
    cover 99 to 100 %, more than they say, as an effect has more degrees of freedom than there are seeds; normal ones
    cover 93 %, those clustered by run 90 %, since these take the languages as given. 1,548 rows take 10 seconds of CPU.
    """
    rows = _rows(results, metric, group, arms)
    by_arm = _arm_columns(results, arms) if arms is not None else _factor_columns(results, rows, terms)
    design = by_arm.reindex(rows.labels["arm"])
    names = ["intercept", *design.columns]
    x = np.column_stack([np.ones(len(rows.y)), design.to_numpy(dtype=float)])
    if np.linalg.matrix_rank(x) < x.shape[1]:
        raise InputError(
            f"These runs cannot tell apart the effects of {', '.join(design.columns)}: some always go together. "
            "Name fewer terms, as in terms=('languages', 'tiles')."
        )
    seeds, runs = rows.count("seed"), rows.count("run")
    fit = _fit(rows, x)
    df = float(seeds - 1)
    reason = "one seed" if seeds < 2 else "" if fit.converged else "the mixed model did not converge"
    half = np.full(len(names), np.nan) if reason else stats.t.ppf((1 + LEVEL) / 2, df) * fit.se
    clustered = _clustered(rows, x)
    fixed = pd.DataFrame(
        {
            "term": names,
            "estimate": fit.estimate,
            "se": fit.se,
            "low": fit.estimate - half,
            "high": fit.estimate + half,
            "clustered_low": clustered[:, 0],
            "clustered_high": clustered[:, 1],
        }
    )
    notes = list(fit.warnings)
    if runs < FEW_RUNS:
        notes.append(f"clustered by run: {runs} runs are few, and these intervals come out somewhat short")
    return Mixed(
        metric, group, fixed, fit.components, fit.converged, tuple(notes), len(rows.y), runs, seeds,
        rows.count("language"), df, reason,
    )  # fmt: skip


@dataclass(frozen=True)
class _Fit:
    estimate: Floats
    se: Floats
    components: dict[str, float]
    converged: bool
    warnings: tuple[str, ...]


def _rows(results: Results, metric: str, group: str, arms: Sequence[str] | None) -> _Rows:
    """Values by run and language: the mean over tasks, each taken from its own mean over runs, so that a task which
    some runs lack does not move them."""
    wide = values(results, metric)
    if arms is not None:
        wide = wide[wide.index.get_level_values("arm").isin([results.baseline, *map(results.label, arms)])]
    member = in_group(wide.columns, group)  # type: ignore[arg-type]
    own: pd.DataFrame = wide[wide.columns[member]].dropna(axis="columns", how="all")
    if own.empty:
        raise InputError(f"No task and language of '{group}' has a known {metric}.")
    means = own.mean()
    by_language = (own - means).T.groupby(level="language", sort=False).mean().T
    by_language = by_language + means.groupby(level="language", sort=False).mean()
    long = pd.Series(by_language.stack(), name="y").dropna().reset_index()
    if len(long) > MOST_ROWS:
        raise InputError(
            f"A mixed model of {len(long):,} rows (runs x languages) would take very long; up to {MOST_ROWS:,} are "
            "taken. Narrow the group (group='T1') or compare fewer arms (arms=[...])."
        )
    labels = {name: long[name].astype(str).to_numpy(dtype=str) for name in ("arm", "seed", "language")}
    labels["run"] = np.char.add(np.char.add(labels["arm"], "|"), labels["seed"])
    return _Rows(long["y"].to_numpy(dtype=float), labels)


def _arm_columns(results: Results, arms: Sequence[str]) -> pd.DataFrame:
    """Arms x indicators of the arms that are compared with the baseline."""
    chosen = [label for label in dict.fromkeys(map(results.label, arms)) if label != results.baseline]
    every = [results.baseline, *chosen]
    return pd.DataFrame(np.eye(len(every))[:, 1:], index=every, columns=[results.short_label(arm) for arm in chosen])


def _factor_columns(results: Results, rows: _Rows, terms: Sequence[Term] | None) -> pd.DataFrame:
    """Arms x columns of the terms: an indicator per level but the baseline's, x and x² of a factor with a range."""
    study = results.known_study("Compare arms by label: arms=['LABEL', ...].")
    seen = results.arms().reindex(np.unique(rows.labels["arm"]))
    known = {factor.name: factor for factor in study.factors}
    single = {name: _columns(known[name], seen[name], study.baseline[name]) for name in known}
    chosen: Sequence[Term] = [name for name, columns in single.items() if columns.shape[1]] if terms is None else terms
    parts = []
    for term in chosen:
        names = (term,) if isinstance(term, str) else term
        if unknown := [name for name in names if name not in known]:
            raise InputError(f"'{unknown[0]}' is not a factor of study '{results.name}'; factors: {', '.join(known)}.")
        sides = [single[name] for name in names]
        parts.append(sides[0] if len(sides) == 1 else _products(*sides))
    if not parts:
        raise InputError(f"No factor of study '{results.name}' has two levels with runs yet.")
    together = pd.concat(parts, axis="columns")
    return together.loc[:, ~together.columns.duplicated()]


def _columns(factor: Factor, levels: pd.Series[Any], base: Any) -> pd.DataFrame:
    if factor.is_continuous:
        at = np.array([factor.scaled(float(base if pd.isna(one) else one)) for one in levels])
        if len(set(at)) == 1:
            return pd.DataFrame(index=levels.index)
        middle = factor.scaled(float(base))
        pairs = {factor.name: at - middle, f"{factor.name}²": (at - middle) ** 2}
        return pd.DataFrame(pairs, index=levels.index)
    present = [level for level in factor.levels if level != base and level is not None and (levels == level).any()]
    return pd.DataFrame({factor.label(level): (levels == level).astype(float) for level in present}, index=levels.index)


def _products(first: pd.DataFrame, second: pd.DataFrame) -> pd.DataFrame:
    """The columns of a pair that some arm has."""
    both = {f"{one} x {other}": first[one] * second[other] for one, other in product(first, second)}
    return pd.DataFrame({name: column for name, column in both.items() if column.any()}, index=first.index)


def _fit(rows: _Rows, x: Floats) -> _Fit:
    """Restricted maximum likelihood of all components, then generalised least squares at these."""
    random = _random(rows)
    if not random:
        raise InputError("One seed and one language leave nothing to tell noise from effects: run more seeds.")
    spec = VCSpec(
        list(random), [[[f"{name} {column}" for column in range(z.shape[1])]] for name, z in random.items()],
        [[z] for z in random.values()],
    )  # fmt: skip
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = MixedLM(rows.y, x, groups=np.zeros(len(rows.y)), exog_vc=spec)
        start = _start(rows.y, x, random)
        result = model.fit(reml=True, start_params=start, method=["bfgs", "lbfgs", "powell"], gtol=1e-4)
    variances = dict(zip(random, map(float, result.vcomp), strict=True)) | {"residual": float(result.scale)}
    total = sum(variances.values())
    zero = [name for name, variance in variances.items() if variance < BOUNDARY * total]
    notes = [f"no variance is seen in: {', '.join(zero)}"] if zero else []
    if "run" in zero:
        notes.append("with no variance between runs, the interval clustered by run is the safer one")
    converged = bool(result.converged)
    notes += sorted(
        {str(one.message) for one in caught if issubclass(one.category, ConvergenceWarning)} if not converged else ()
    )
    estimate, se = _least_squares(rows.y, x, random, variances)
    return _Fit(estimate, se, {name: one**0.5 for name, one in variances.items()}, converged, tuple(notes))


def _random(rows: _Rows) -> dict[str, Floats]:
    """Indicator matrices (rows, labels) of the components that these rows can tell apart."""
    labels = rows.labels
    several = rows.count("run") > rows.count("arm")
    names: dict[str, Sequence[str]] = {"language": ["language"]} if rows.count("language") > 1 else {}
    if several:
        names["seed"] = ["seed"]
    if rows.count("language") > 1:
        names["run"] = ["run"]
    if several and rows.count("language") > 1:
        names |= {"language:seed": ["language", "seed"], "language:arm": ["language", "arm"]}
    made = {}
    for name, parts in names.items():
        joined = labels[parts[0]]
        for part in parts[1:]:
            joined = np.char.add(np.char.add(joined, "|"), labels[part])
        made[name] = np.asarray(pd.get_dummies(joined, dtype=float).to_numpy())
    return made


def _start(y: Floats, x: Floats, random: Mapping[str, Floats]) -> Floats:
    """Components over the residual standard deviation by the method of moments, where the search begins.

    Quadratic forms of what least squares leave over, set equal to their expectations (MINQUE(0); Rao, 1971): exact in a
    balanced design, and near enough in others to save most of the search.
    """
    q, _ = np.linalg.qr(x)
    left = y - q @ (q.T @ y)
    z = np.column_stack(list(random.values()))
    ends = np.cumsum([one.shape[1] for one in random.values()])[:-1]
    crossed = z.T @ z - (z.T @ q) @ (q.T @ z)
    expected = np.empty((len(random) + 1, len(random) + 1))
    expected[:-1, :-1] = [[(part**2).sum() for part in np.split(row, ends, 1)] for row in np.split(crossed, ends)]
    expected[-1, :-1] = expected[:-1, -1] = [part.sum() for part in np.split(crossed.diagonal(), ends)]
    expected[-1, -1] = len(y) - x.shape[1]
    found = np.array([*((part**2).sum() for part in np.split(z.T @ left, ends)), (left**2).sum()])
    variances = np.linalg.lstsq(expected, found, rcond=None)[0]
    parts, residual = np.clip(variances[:-1], 0, None), float(variances[-1])
    if residual <= 0.01 * parts.sum():  # far from there the likelihood is flat, and the search believes that it is done
        return np.full(len(random), PLAIN_START)
    return np.asarray(np.clip(np.sqrt(parts / residual), LEAST_START, None))


def _least_squares(
    y: Floats, x: Floats, random: Mapping[str, Floats], variances: Mapping[str, float]
) -> tuple[Floats, Floats]:
    """Generalised least squares at given variances: estimates and their standard errors, (X' V^-1 X)^-1."""
    v = variances["residual"] * np.eye(len(y))
    for name, z in random.items():
        v += variances[name] * (z @ z.T)
    weighted = np.linalg.solve(v, x)
    covariance = np.linalg.inv(x.T @ weighted)
    return covariance @ (weighted.T @ y), np.sqrt(np.diag(covariance))


def _clustered(rows: _Rows, x: Floats) -> Floats:
    """Bounds (terms, 2) of least squares with seeds and languages as fixed effects, errors clustered by run.

    statsmodels scales the variance by G / (G - 1) for G runs; what is estimated from the runs (terms and seeds, p in
    all) takes degrees of freedom from them too, so here it is G / (G - p), and t has G - p.
    """
    nuisance = [_centred(rows.labels[name]) for name in ("seed", "language")]
    full = np.column_stack([x, *nuisance])
    codes = np.unique(rows.labels["run"], return_inverse=True)[1]
    number = int(codes.max()) + 1
    left = number - int(np.linalg.matrix_rank(np.column_stack([x, nuisance[0]])))
    if left < 1:
        return np.full((x.shape[1], 2), np.nan)
    fit = sm.OLS(rows.y, full).fit(cov_type="cluster", cov_kwds={"groups": codes})
    half = stats.t.ppf((1 + LEVEL) / 2, left) * fit.bse * ((number - 1) / left) ** 0.5
    bounds = np.column_stack([fit.params - half, fit.params + half])
    return np.asarray(bounds[: x.shape[1]])


def _centred(labels: NDArray[np.str_]) -> Floats:
    """Indicators of all labels but the first, less their means."""
    columns = pd.get_dummies(labels, dtype=float).to_numpy()[:, 1:]
    return np.asarray(columns - columns.mean(axis=0))
