"""How MLflow's page of an experiment opens: a saved view with the factors and the main scores as columns. Used by
`tracking`, `server`.

MLflow keeps the columns that somebody chose in the browser alone. What it keeps in the store are saved views: a tag of
the experiment each, listed in a menu of the page and opened by its id in the address.
"""

from __future__ import annotations

import json
import time

from sweeps.plan import Plan

TAG = "mlflow.sharedViewState."
SCORES = ("score/multilingual", "score/en", "fidelity/multilingual")


def view_tag(plan: Plan, parent: str, *, name: str) -> tuple[str, str]:
    """Key and value of the tag that holds the view of one parent run's cells, best primary outcome first."""
    scores = dict.fromkeys([plan.primary, *SCORES])
    columns = [f"params.`{factor}`" for factor in (*plan.factors, "seed")]
    columns += [f"metrics.`{score}`" for score in scores]
    state = {
        "searchFilter": f"tags.`mlflow.parentRunId` = '{parent}'",
        "orderByKey": f"metrics.`{plan.primary}`",
        "orderByAsc": False,
        "selectedColumns": columns,
        "runsHiddenMode": "SHOW_ALL",
    }
    view = {"name": name, "createdAt": int(time.time() * 1000), "state": json.dumps(state)}
    return TAG + plan.version, json.dumps(view, ensure_ascii=False)


def page(address: str, experiment: str, view: str | None = None) -> str:
    """The address of an experiment's runs; MLflow's own first page shows traces of chat models."""
    link = f"{address}/#/experiments/{experiment}/runs?workflowType=machine_learning"
    return f"{link}&viewStateShareKey={view}" if view else link
