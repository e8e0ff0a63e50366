"""The last model of a cell as MLflow's logged model: loaded by `mlflow.pyfunc.load_model`, with its signature. Used by
`tracking`, and by MLflow itself when it loads one.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd
    from mlflow import MlflowClient

IMAGE, PROMPT, ANSWER = "image", "prompt", "answer"


def log_model(
    client: MlflowClient, run_id: str, checkpoint: Path, *, name: str, scores: Mapping[str, float], time_ms: int
) -> str:
    """Keep `checkpoint` (a model folder) as the logged model of a run; its id. The run's `scores` stand with it, so
    that the models of a study can be ordered by them. One that is there already is left as it is; what an interrupted
    sending left half done is taken away first."""
    from mlflow.entities import LoggedModelOutput, Metric

    run = client.get_run(run_id)
    experiment = run.info.experiment_id
    for model in client.search_logged_models([experiment], f"source_run_id = '{run_id}'"):
        if str(model.status) == "READY":
            return str(model.model_id)
        client.delete_logged_model(model.model_id)
    model = client.create_logged_model(experiment, name=name, source_run_id=run_id, model_type="lvlm")
    with tempfile.TemporaryDirectory(prefix="lvlm-model-") as folder:
        _write(Path(folder) / "model", checkpoint, model_id=model.model_id, run_id=run_id)
        client.log_model_artifacts(model.model_id, str(Path(folder) / "model"))
    steps = [point.step for point in client.get_metric_history(run_id, "train/loss")]
    step = max(steps, default=0)
    client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=step)])
    # Of a time and step that the run has for them, so that MLflow keeps each once.
    client.log_batch(
        run_id, metrics=[Metric(name, value, time_ms, 0, model_id=model.model_id) for name, value in scores.items()]
    )
    client.finalize_logged_model(model.model_id, "READY")
    return str(model.model_id)


def _write(folder: Path, checkpoint: Path, *, model_id: str, run_id: str) -> None:
    """An MLflow model folder of the flavour `python_function`."""
    from mlflow import pyfunc
    from mlflow.models import Model, ModelSignature
    from mlflow.types import ColSpec, DataType, Schema

    text = DataType.string
    signature = ModelSignature(
        inputs=Schema([ColSpec(text, IMAGE), ColSpec(text, PROMPT)]), outputs=Schema([ColSpec(text, ANSWER)])
    )
    pyfunc.save_model(
        str(folder),
        loader_module=__name__,
        data_path=str(checkpoint),
        mlflow_model=Model(run_id=run_id, model_id=model_id),
        signature=signature,
        pip_requirements=["lvlm"],  # this package: it is loaded by the code that is installed
    )


class Answers:
    """What `mlflow.pyfunc.load_model` gives: greedy answers of one model."""

    def __init__(self, checkpoint: Path) -> None:
        from lvlm.ready import ready

        with ready((checkpoint, None), None, device=None) as it:
            self._ready = it

    def predict(self, rows: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """The answer to `prompt` about the file `image`, for each row."""
        import pandas as pd

        from lvlm.evaluate.generate import Prompt, generate_answers

        prompts = [Prompt(prompt, (Path(image),)) for image, prompt in zip(rows[IMAGE], rows[PROMPT], strict=True)]
        it = self._ready
        limit = int((params or {}).get("max_new_tokens", 128))
        with it.compute.autocast():
            found = generate_answers(it.model, it.processor, prompts, max_new_tokens=limit, features=it.features)
        return pd.DataFrame({ANSWER: found})


def _load_pyfunc(path: str) -> Answers:
    """MLflow calls this with the place of the model's files."""
    return Answers(Path(path))
