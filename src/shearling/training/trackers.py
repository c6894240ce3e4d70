"""Optional places where metrics go besides metrics.jsonl: TensorBoard, Weights & Biases, MLflow."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Protocol

from shearling.errors import UserError


class Tracker(Protocol):
    """Something that takes figures by step."""

    def log(self, step: int, figures: dict[str, float]) -> None:
        """Record `figures` of `step`."""

    def close(self) -> None:
        """Bring everything to its place."""


class TensorBoard:
    """Event files in `tensorboard/` of the run folder."""

    def __init__(self, run: Path, name: str, config: dict[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(run / "tensorboard"))

    def log(self, step: int, figures: dict[str, float]) -> None:
        for key, value in figures.items():
            self._writer.add_scalar(key, value, step)

    def close(self) -> None:
        self._writer.close()


class WandB:
    """A Weights & Biases run; resuming goes on with the same one. `WANDB_MODE=offline` keeps it on this machine."""

    def __init__(self, run: Path, name: str, config: dict[str, Any]) -> None:
        import wandb

        identity = run / "wandb_run_id"
        known = identity.read_text() if identity.exists() else None
        self._run = wandb.init(dir=str(run), name=name, config=config, id=known, resume="allow")
        identity.write_text(self._run.id)

    def log(self, step: int, figures: dict[str, float]) -> None:
        self._run.log(figures, step=step)

    def close(self) -> None:
        self._run.finish()


class MLflow:
    """An MLflow run at `MLFLOW_TRACKING_URI`; without it, in `mlflow/` of the run folder."""

    def __init__(self, run: Path, name: str, config: dict[str, Any]) -> None:
        import os

        from mlflow import MlflowClient

        self._client = MlflowClient(os.environ.get("MLFLOW_TRACKING_URI", f"file:{(run / 'mlflow').resolve()}"))
        experiment = self._client.get_experiment_by_name("shearling")
        experiment_id = experiment.experiment_id if experiment else self._client.create_experiment("shearling")
        identity = run / "mlflow_run_id"
        if not identity.exists():
            identity.write_text(self._client.create_run(experiment_id, run_name=name).info.run_id)
        self._run_id = identity.read_text()

    def log(self, step: int, figures: dict[str, float]) -> None:
        for key, value in figures.items():
            self._client.log_metric(self._run_id, key, value, step=step)

    def close(self) -> None:
        self._client.set_terminated(self._run_id)


TRACKERS: dict[str, Callable[[Path, str, dict[str, Any]], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WandB,
    "mlflow": MLflow,
}


def build_trackers(names: Iterable[str], run: Path, name: str, config: dict[str, Any]) -> list[Tracker]:
    """The trackers called `names`.

    Raises:
        UserError: a tracker's package is not installed.
    """
    built = []
    for tracker in names:
        try:
            built.append(TRACKERS[tracker](run, name, config))
        except ImportError as error:
            raise UserError(
                f"training.trackers: {tracker} needs a package that is missing ({error.name}): "
                "pip install 'shearling[track]'"
            ) from error
    return built
