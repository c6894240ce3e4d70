"""The run folder: when it counts as begun, its metrics after a crash, and where it says it comes from."""

import json
import sys

import pytest
import torch

from shearling.data.tokenizers import load_tokenizer
from shearling.errors import UserError
from shearling.training import run_folder
from shearling.training.run_folder import PACKAGES, RunFolder, provenance, read_json


@pytest.fixture
def run(tmp_path) -> RunFolder:
    return RunFolder(tmp_path)


@pytest.fixture
def tokenizer(corpus):
    return load_tokenizer(corpus / "tokenizer")


class TestBeginning:
    def test_leaves_config_provenance_and_tokenizer(self, run, tokenizer):
        run.create("name: x\n", {"device": "CPU"}, tokenizer)
        assert run.begun
        assert run.config.read_text() == "name: x\n"
        assert json.loads(run.provenance.read_text()) == {"device": "CPU"}
        assert (run.tokenizer / "tokenizer.model").read_bytes() == tokenizer.serialized
        assert run.checkpoints.is_dir()

    def test_that_was_cut_short_has_not_begun_and_can_be_done_again(self, run, tokenizer, monkeypatch):
        def killed(*_):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(run_folder, "write_json", killed)
            with pytest.raises(KeyboardInterrupt):
                run.create("name: x\n", {}, tokenizer)
        assert not run.begun
        run.create("name: x\n", {}, tokenizer)
        assert run.begun


class TestMetrics:
    def test_end_before_a_line_that_a_crash_cut_short(self, run):
        run.metrics.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
        assert run.read_metrics() == [{"step": 1, "loss": 2.0}]

    def test_of_steps_to_be_taken_again_are_dropped(self, run):
        lines = [{"step": step, "loss": 0.1 * step} for step in (0, 1, 2, 2, 3)]
        run.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"st')
        run.cut_metrics(2)
        assert run.metrics.read_text() == "".join(json.dumps(line) + "\n" for line in lines[:4])

    def test_of_a_run_without_a_checkpoint_are_all_dropped(self, run):
        run.metrics.write_text('{"step": 0, "validation_loss": 5.5}\n')
        run.cut_metrics(-1)
        assert run.metrics.read_text() == ""

    def test_are_cut_together_with_the_diagnostics(self, run):
        assert run.read_diagnostics() == []
        run.diagnostics.write_text('{"step": 0, "log_z": 5.7}\n{"step": 4, "log_z": null}\n{"st')
        run.cut_metrics(3)
        assert run.read_diagnostics() == [{"step": 0, "log_z": 5.7}]

    def test_need_not_be_there_to_be_cut(self, run):
        run.cut_metrics(3)
        assert not run.metrics.exists()
        assert not run.diagnostics.exists()


@pytest.mark.parametrize("content", [None, b"", b"{", b"\xff\xfe"])
def test_json_that_cannot_be_read_is_named(tmp_path, content):
    path = tmp_path / "provenance.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"provenance\.json: cannot be read as JSON"):
        read_json(path)


class TestProvenance:
    def test_names_versions_device_command_and_data(self, monkeypatch):
        monkeypatch.setattr(sys, "argv", ["shearling", "train", "x.yaml"])
        record = provenance("a CPU", {"data": "abc"})
        assert json.loads(json.dumps(record)) == record
        assert record["packages"].keys() == set(PACKAGES)
        assert record["packages"]["torch"] == torch.__version__
        assert record["command_line"] == ["shearling", "train", "x.yaml"]
        assert (record["device"], record["hashes"]) == ("a CPU", {"data": "abc"})

    def test_has_no_commit_where_there_is_no_git(self, monkeypatch):
        monkeypatch.setenv("PATH", "")
        assert provenance("a CPU", {})["git_commit"] is None
