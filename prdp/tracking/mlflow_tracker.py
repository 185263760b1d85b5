"""MLflow: metrics, pictures and the configuration of a run; needs the extra `mlflow`."""

from __future__ import annotations

import importlib.util
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prdp.tracking.tensorboard_tracker import picture_grid
from prdp.types import Float64, UInt8

if TYPE_CHECKING:
    from prdp.config import TrackingConfig

EXPERIMENT = "prdp"
"""Where neither `tracking.mlflow_experiment` nor MLFLOW_EXPERIMENT_NAME names one."""
RUN_ID_TAG = "prdp.run_id"
"""By which a resumed run finds its own again."""
DATABASE = "mlflow.db"
_ARTIFACTS = "mlflow_artifacts"
_STATES = {"finished": "FINISHED", "interrupted": "KILLED", "failed": "FAILED"}
_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
"""Unless set: MLflow's own patience would keep training waiting for minutes where a server is away, and it tells its
makers how it is used.
"""
_UNFIT = re.compile(r"[^\w\-. /:]")
_MOST_PARAMETERS, _LONGEST_PARAMETER = 100, 6000


class MlflowTracker:
    """Sends metrics and pictures to a run of MLflow, whose step is the epoch.

    One run per job: a resumed job continues the run with its id as a tag. Epochs that are run again are logged again,
    at the same step. Without a server everything lies in the run's folder: `mlflow ui --backend-store-uri
    sqlite:///<run folder>/mlflow.db` shows it.
    """

    def __init__(self, config: TrackingConfig, run_dir: Path, run_config: Mapping[str, Any], run_id: str) -> None:
        """Start the run, or continue the one of the same id. Arguments as in `build_trackers`.

        Raises:
            ModuleNotFoundError: mlflow, or what its database needs, is not installed.
        """
        check_installed()
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        from mlflow.tracking import MlflowClient

        local = f"sqlite:///{(run_dir / DATABASE).absolute()}"
        uri = config.mlflow_uri or os.environ.get("MLFLOW_TRACKING_URI") or local
        run_dir.mkdir(parents=True, exist_ok=True)
        self._client: Any = MlflowClient(tracking_uri=uri)
        name = config.mlflow_experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
        place = (run_dir / _ARTIFACTS).absolute().as_uri() if uri == local else None
        experiment = self._experiment(name, place)
        found = self._client.search_runs([experiment], f"tags.`{RUN_ID_TAG}` = '{run_id}'", max_results=1)
        if found:
            self._run = str(found[0].info.run_id)
            self._client.update_run(self._run, status="RUNNING")
        else:
            made = self._client.create_run(experiment, run_name=run_dir.name, tags={RUN_ID_TAG: run_id})
            self._run = str(made.info.run_id)
            self._describe(run_config)

    def log(self, metrics: Mapping[str, float], epoch: int) -> None:
        """Record numbers of one epoch."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        rows = [Metric(_UNFIT.sub("_", name), float(value), now, epoch) for name, value in metrics.items()]
        for start in range(0, len(rows), 500):
            self._client.log_batch(self._run, metrics=rows[start : start + 500])

    def images(self, name: str, images: UInt8, captions: Sequence[str], epoch: int) -> None:
        """Record uint8 images [n, H, W, 3] as one grid, and the captions as a numbered list beside it."""
        key = _UNFIT.sub("_", name)
        self._client.log_image(self._run, picture_grid(images), key=key, step=epoch)
        text = "\n".join(f"{i}. {caption}" for i, caption in enumerate(captions, 1))
        self._client.log_text(self._run, text, f"captions/{key.replace('/', '_')}_{epoch:05d}.txt")

    def histogram(self, name: str, values: Float64, epoch: int) -> None:
        """MLflow has none; the log has mean and spread."""

    def finish(self, status: str) -> None:
        """Close the run."""
        self._client.set_terminated(self._run, _STATES[status])

    def _experiment(self, name: str, artifacts: str | None) -> str:
        known = self._client.get_experiment_by_name(name)
        if known is not None:
            return str(known.experiment_id)
        return str(self._client.create_experiment(name, artifact_location=artifacts))

    def _describe(self, run_config: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        rows = [Param(_UNFIT.sub("_", name), value[:_LONGEST_PARAMETER]) for name, value in _flat(run_config)]
        for start in range(0, len(rows), _MOST_PARAMETERS):
            self._client.log_batch(self._run, params=rows[start : start + _MOST_PARAMETERS])


def _flat(section: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, str]]:
    for name, value in section.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", str(value)


def check_installed() -> None:
    """Raise ModuleNotFoundError that tells what to do when mlflow is missing."""
    if importlib.util.find_spec("mlflow") is None:
        raise ModuleNotFoundError(
            "tracking.mlflow=true needs MLflow, which is not installed: `pip install prdp[mlflow]`"
        )
