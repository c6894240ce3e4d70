"""Trackers: figures read back with each service's own means, offline, from inside the run folder."""

import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from shearling.errors import UserError
from shearling.training.loop import train
from shearling.training.run_folder import RunFolder
from shearling.training.trackers import TRACKERS, build_trackers

LOSSES = {1: 3.5, 2: 3.25, 4: 2.0}
CONFIG = {"model": {"d_model": 32, "norm": {"kind": "rmsnorm"}}, "seed": 0, "training": {"clip": None}}

TRACKING = """
import sys
from pathlib import Path
from shearling.training.trackers import build_trackers

name, run, config, *steps = sys.argv[1:]
(tracker,) = build_trackers([name], Path(run), "tiny", eval(config))
for step in map(int, steps):
    tracker.log(step, {"loss": eval(config)["losses"][step], "tokens": 256 * step})
tracker.close()
"""


@pytest.fixture
def home(tmp_path) -> Path:
    """An empty home and working directory of the process that tracks."""
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


@pytest.fixture
def run(tmp_path) -> Path:
    folder = tmp_path / "a run #1"  # what would be misread in an address
    folder.mkdir()
    return folder


@pytest.fixture
def track(home, run):
    """Logs LOSSES of some steps to a tracker, in a process of its own: these libraries keep global state."""

    def _track(name: str, steps: list[int], **environment: str) -> subprocess.CompletedProcess[str]:
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("WANDB", "MLFLOW", "XDG"))}
        return subprocess.run(
            [sys.executable, "-c", TRACKING, name, str(run), repr({**CONFIG, "losses": LOSSES}), *map(str, steps)],
            cwd=home, env={**clean, "HOME": str(home), **environment}, stdin=subprocess.DEVNULL, capture_output=True,
            text=True, timeout=100,
        )  # fmt: skip

    return _track


def tracked(done: subprocess.CompletedProcess[str], home: Path, run: Path) -> None:
    """The process ended well, and all its files are in the run folder."""
    assert done.returncode == 0, done.stderr
    assert [path for path in home.rglob("*") if path.is_file()] == []
    assert {path.name for path in run.parent.iterdir()} == {home.name, run.name}


def test_tensorboard_shows_the_figures_of_a_run_and_of_its_resumption(track, home, run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tracked(track("tensorboard", [1, 2]), home, run)
    tracked(track("tensorboard", [4]), home, run)
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    assert {event.step: event.value for event in events.Scalars("loss")} == LOSSES
    assert {event.step: event.value for event in events.Scalars("tokens")} == {step: 256 * step for step in LOSSES}


class TestMLflow:
    @pytest.fixture(autouse=True)
    def _environment(self, monkeypatch):
        for name, value in {"MLFLOW_ALLOW_FILE_STORE": "true", "MLFLOW_DISABLE_TELEMETRY": "true"}.items():
            monkeypatch.setenv(name, value)

    def read(self, run: Path):
        from mlflow import MlflowClient

        client = MlflowClient((run / "mlflow").as_uri())
        (experiment,) = (found for found in client.search_experiments() if found.name == "shearling")
        (only,) = client.search_runs([experiment.experiment_id])
        return client, only

    def test_shows_the_figures_of_a_run_and_of_its_resumption(self, track, home, run):
        tracked(track("mlflow", [1, 2]), home, run)
        tracked(track("mlflow", [4]), home, run)
        client, only = self.read(run)
        history = client.get_metric_history(only.info.run_id, "loss")
        assert {metric.step: metric.value for metric in history} == LOSSES
        assert len(history) == len(LOSSES)
        assert (only.info.run_name, only.info.status) == ("tiny", "FINISHED")

    def test_shows_the_config_under_dotted_names(self, track, home, run):
        tracked(track("mlflow", [1]), home, run)
        params = self.read(run)[1].data.params
        assert params["model.norm.kind"] == "rmsnorm"
        assert params["model.d_model"] == "32"
        assert params["training.clip"] == "None"

    def test_goes_where_the_environment_says(self, track, home, run, tmp_path):
        elsewhere = tmp_path / "server"
        done = track("mlflow", [1], MLFLOW_TRACKING_URI=elsewhere.as_uri())
        assert done.returncode == 0, done.stderr
        assert any(elsewhere.rglob("loss"))
        assert not (run / "mlflow").exists()

    def test_at_an_address_it_cannot_read_is_a_user_s_mistake(self, track):
        done = track("mlflow", [1], MLFLOW_TRACKING_URI="nonsense://x")
        assert "UserError: training.trackers: mlflow: " in done.stderr


def wandb_records(path: Path):
    """Records of a .wandb file: LevelDB's log format behind a header of 7 bytes, a protocol buffer each."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, position, parts = path.read_bytes(), 7, b""
    while position < len(content):
        room = 32768 - position % 32768
        if room < 7:
            position += room
            continue
        length, kind = struct.unpack_from("<HB", content, position + 4)
        parts += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(parts)
            parts = b""


class TestWandB:
    def test_offline_keeps_the_figures_of_a_run_and_of_its_resumption_under_one_id(self, track, home, run):
        tracked(track("wandb", [1, 2], WANDB_MODE="offline"), home, run)
        tracked(track("wandb", [4], WANDB_MODE="offline"), home, run)
        records = [record for path in sorted((run / "wandb").rglob("*.wandb")) for record in wandb_records(path)]
        ids = {record.run.run_id for record in records if record.HasField("run")}
        assert ids == {(run / "wandb_run_id").read_text()}
        rows = [
            {
                item.nested_key[0] if item.nested_key else item.key: float(item.value_json)
                for item in record.history.item
            }
            for record in records
            if record.HasField("history")
        ]
        assert {int(row["_step"]): row["loss"] for row in rows} == LOSSES

    def test_online_without_an_account_is_a_user_s_mistake(self, track):
        done = track("wandb", [1])
        assert "UserError: training.trackers: wandb: No API key" in done.stderr
        assert "WANDB_MODE=offline" in done.stderr


@pytest.mark.parametrize(
    ("name", "package", "loaded"),
    [("tensorboard", "tensorboard", "torch.utils.tensorboard"), ("wandb", "wandb", None), ("mlflow", "mlflow", None)],
)
def test_a_missing_package_names_the_extra_to_install(tmp_path, monkeypatch, name, package, loaded):
    for variable in ("WANDB_CACHE_DIR", "MLFLOW_DISABLE_TELEMETRY", "MLFLOW_ALLOW_FILE_STORE"):
        monkeypatch.setenv(variable, "")
    monkeypatch.setitem(sys.modules, package, None)
    if loaded:
        monkeypatch.delitem(sys.modules, loaded, raising=False)
    with pytest.raises(UserError, match=rf"{name} needs .* \({package}\): pip install 'shearling\[track\]'"):
        build_trackers([name], tmp_path, "tiny", CONFIG)


def test_every_tracker_that_a_config_can_name_is_there(experiment):
    assert set(experiment(training={"trackers": list(TRACKERS)}).training.trackers) == set(TRACKERS)


def test_a_run_s_tracker_has_what_its_metrics_have(experiment):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = experiment(training={"trackers": ["tensorboard"], "steps": 4, "evaluate_every": 2})
    train(config)
    events = EventAccumulator(str(config.output_dir / "tensorboard"))
    events.Reload()
    lines = RunFolder(config.output_dir).read_metrics()
    for key in ("loss", "learning_rate", "gradient_norm", "validation_loss", "bits_per_byte"):
        expected = [(line["step"], pytest.approx(line[key], rel=1e-6)) for line in lines if key in line]
        assert [(event.step, event.value) for event in events.Scalars(key)] == expected
