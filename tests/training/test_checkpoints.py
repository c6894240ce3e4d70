"""Checkpoints: what goes in comes out, and a failure on the way harms nothing that was there."""

import json
import math
from dataclasses import asdict

import numpy as np
import pytest
import safetensors.numpy
import torch
from safetensors import SafetensorError

from shearling.data.shards import open_dataset
from shearling.data.stream import BatchStream
from shearling.errors import UserError
from shearling.training import checkpoints
from shearling.training.checkpoints import (
    Checkpoint,
    load_checkpoint,
    load_latest,
    point,
    prune,
    save_checkpoint,
    saved_steps,
    step_folder,
    verify,
    weights_hash,
)
from shearling.training.state import Evaluation, Progress, build_state, restore, to_checkpoint
from shearling.training.step import train_step

CPU = torch.device("cpu")


def checkpoint(value: float = 1.0) -> Checkpoint:
    return Checkpoint({"w": torch.full((3, 2), value)}, {"exp_avg/w": torch.full((3, 2), value)}, {"value": value})


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes() if tensor.ndim else bits(tensor[None])


def listing(root) -> set[str]:
    return {path.name for path in root.iterdir()}


class TestARoundTrip:
    def test_keeps_every_bit_of_a_trained_state(self, experiment, tmp_path):
        config = experiment()
        stream = BatchStream(open_dataset(config.data.path, "train"), 32, 8, seed=0)
        state = build_state(config, CPU, compile_blocks=False)
        for step in range(3):
            train_step(state, stream.batch(step), config, factor=1e-2 / config.training.optimizer.learning_rate)
        before = to_checkpoint(state, {"identity": {"data": "d"}})
        folder = save_checkpoint(tmp_path, 3, before)
        loaded, fresh = load_checkpoint(folder), build_state(config, CPU, compile_blocks=False)
        restore(fresh, loaded)
        after = to_checkpoint(fresh, {"identity": loaded.state["identity"]})
        assert after.state == before.state
        for old, new in ((before.weights, after.weights), (before.optimizer, after.optimizer)):
            assert old.keys() == new.keys()
            assert all(old[name].dtype == new[name].dtype and bits(old[name]) == bits(new[name]) for name in old)
        names = [name for name, _ in state.model.named_parameters()]
        assert set(before.optimizer) == {f"{key}/{name}" for name in names for key in ("step", "exp_avg", "exp_avg_sq")}

    def test_keeps_values_that_have_no_text(self, tmp_path):
        odd = torch.tensor([math.nan, -0.0, math.inf, 1e-45, 3.4e38])
        odd = torch.cat([odd, torch.tensor([0x7FC00001], dtype=torch.int32).view(torch.float32)])
        tensors = {"odd": odd, "strided": torch.arange(6.0).view(2, 3).t(), "step": torch.tensor(7.0)}
        loaded = load_checkpoint(save_checkpoint(tmp_path, 0, Checkpoint(tensors, tensors, {})))
        for name, tensor in tensors.items():
            assert bits(loaded.weights[name]) == bits(tensor) == bits(loaded.optimizer[name])

    @pytest.mark.parametrize("loss", [2.5, math.inf])
    def test_keeps_how_far_the_run_has_come(self, tmp_path, loss):
        progress = Progress(step=4, tokens=10**15, seconds=1 / 3, skipped=2, first=Evaluation(0, loss, math.inf, 1e-9))
        folder = save_checkpoint(tmp_path, 4, Checkpoint({}, {}, {"progress": asdict(progress)}))
        assert Progress.from_json(load_checkpoint(folder).state["progress"]) == progress


def test_the_weights_are_plain_safetensors_in_fp32(experiment, tmp_path):
    state = build_state(experiment(), CPU, compile_blocks=False)
    folder = save_checkpoint(tmp_path, 0, to_checkpoint(state, {}))
    arrays = safetensors.numpy.load_file(folder / "model.safetensors")
    assert {array.dtype for array in arrays.values()} == {np.dtype("float32")}
    np.testing.assert_array_equal(arrays["embed.weight"], state.model.embed.weight.detach().numpy())


class TestTheLinks:
    def test_latest_leads_to_what_was_saved_last(self, tmp_path):
        for step in (5, 12):
            save_checkpoint(tmp_path, step, checkpoint(step))
            assert load_checkpoint(tmp_path / "latest").state == {"value": step}
        assert (tmp_path / "latest").readlink().as_posix() == "step_00000012"  # relative: the folder can be moved

    def test_best_is_moved_from_one_checkpoint_to_another(self, tmp_path):
        for step in (1, 2):
            save_checkpoint(tmp_path, step, checkpoint(step))
            point(tmp_path, "best", step)
        assert load_checkpoint(tmp_path / "best").state == {"value": 2}
        assert listing(tmp_path) == {"step_00000001", "step_00000002", "latest", "best"}


class TestPruning:
    @pytest.mark.parametrize(
        ("keep", "best", "kept"),
        [
            (1, None, [9]),
            (2, None, [5, 9]),
            (2, 3, [3, 5, 9]),
            (2, 9, [5, 9]),
            (7, 1, [1, 3, 5, 9]),
            (10**30, 1, [1, 3, 5, 9]),
        ],
    )
    def test_keeps_the_newest_and_the_best(self, tmp_path, keep, best, kept):
        for step in (1, 3, 5, 9):
            save_checkpoint(tmp_path, step, checkpoint(step))
        prune(tmp_path, 9, keep, [best])
        assert saved_steps(tmp_path) == kept
        for step in kept:
            assert load_checkpoint(step_folder(tmp_path, step)).state == {"value": step}

    def test_keeps_the_newest_whole_one_where_the_run_went_back_past_a_damaged_one(self, tmp_path):
        for step in (1, 2, 7):
            save_checkpoint(tmp_path, step, checkpoint(step))
        (step_folder(tmp_path, 7) / "state.json").unlink()
        save_checkpoint(tmp_path, 3, checkpoint(3))
        prune(tmp_path, 3, keep_last=1, kept=())
        assert saved_steps(tmp_path) == [3, 7]
        assert load_checkpoint(tmp_path / "latest").state == {"value": 3}

    def test_leaves_no_checkpoint_half_removed_under_its_own_name(self, tmp_path, monkeypatch):
        for step in (1, 2):
            save_checkpoint(tmp_path, step, checkpoint(step))

        def killed(path):
            (path / "state.json").unlink()
            raise KeyboardInterrupt

        monkeypatch.setattr(checkpoints.shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            prune(tmp_path, 2, 1, ())
        assert saved_steps(tmp_path) == [2]


class TestDraftsOfKilledProcesses:
    @pytest.fixture
    def root(self, tmp_path):
        save_checkpoint(tmp_path, 1, checkpoint(1))
        draft = tmp_path / ".draft_step_00000007"
        draft.mkdir()
        (draft / "model.safetensors").write_bytes(b"half")
        (tmp_path / ".draft_latest").symlink_to("step_00000007")
        return tmp_path

    def test_are_no_checkpoints(self, root):
        assert saved_steps(root) == [1]
        assert load_latest(root, warn=pytest.fail).state == {"value": 1}

    def test_are_gone_after_the_next_save(self, root):
        save_checkpoint(root, 2, checkpoint(2))
        assert listing(root) == {"step_00000001", "step_00000002", "latest"}


class TestAFailureWhileSaving:
    """The disk fills at one of the points where saving writes; what was there stays, nothing half-made is left."""

    @pytest.fixture
    def root(self, tmp_path):
        save_checkpoint(tmp_path, 1, checkpoint(1))
        return tmp_path

    def check(self, root):
        with pytest.raises(OSError, match="full"):
            save_checkpoint(root, 2, checkpoint(2))
        assert listing(root) == {"step_00000001", "latest"}
        assert load_latest(root, warn=pytest.fail).state == {"value": 1}

    @pytest.mark.parametrize("which", ["model.safetensors", "optimizer.safetensors"])
    def test_of_tensors(self, root, monkeypatch, which):
        save_file = checkpoints.save_file

        def full(tensors, path):
            save_file(tensors, path)
            if path.name == which:
                path.write_bytes(b"half")
                raise SafetensorError("No space left on device: full")

        monkeypatch.setattr(checkpoints, "save_file", full)
        self.check(root)

    @pytest.mark.parametrize("count", range(5))
    def test_of_flushing(self, root, monkeypatch, count):
        flush, calls = checkpoints.flush, []

        def full(path):
            calls.append(path)
            if len(calls) > count:
                raise OSError(28, "full")
            flush(path)

        monkeypatch.setattr(checkpoints, "flush", full)
        self.check(root)

    def test_does_not_stop_the_next_from_being_saved(self, root, monkeypatch):
        with monkeypatch.context() as patch:
            patch.setattr(checkpoints, "save_file", lambda *_: (_ for _ in ()).throw(SafetensorError("full")))
            self.check(root)
        save_checkpoint(root, 2, checkpoint(2))
        assert load_latest(root, warn=pytest.fail).state == {"value": 2}


class TestDamage:
    @pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json", "checksums.json"])
    @pytest.mark.parametrize("damage", ["missing", "empty", "one bit"])
    def test_of_any_file_is_found(self, tmp_path, name, damage):
        path = save_checkpoint(tmp_path, 3, checkpoint()) / name
        content = path.read_bytes()
        if damage == "missing":
            path.unlink()
        else:
            path.write_bytes(b"" if damage == "empty" else content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
        with pytest.raises(UserError, match=r"step_00000003: damaged checkpoint"):
            load_checkpoint(path.parent)

    def test_of_all_checkpoints_is_an_error_after_a_warning_of_each(self, tmp_path):
        for step in (1, 2):
            (save_checkpoint(tmp_path, step, checkpoint()) / "state.json").write_text("{}")
        warnings: list[str] = []
        with pytest.raises(UserError, match="no whole checkpoint is left"):
            load_latest(tmp_path, warnings.append)
        assert [text.split(":")[0][-8:] for text in warnings] == ["00000002", "00000001"]

    def test_is_mended_by_saving_the_same_step_again(self, tmp_path):
        folder = save_checkpoint(tmp_path, 3, checkpoint(1))
        (folder / "state.json").write_text("{}")
        verify(save_checkpoint(tmp_path, 3, checkpoint(2)))
        assert load_latest(tmp_path, warn=pytest.fail).state == {"value": 2}


def test_where_nothing_was_saved_there_is_no_checkpoint(tmp_path):
    assert load_latest(tmp_path / "never", warn=pytest.fail) is None
    assert saved_steps(tmp_path / "never") == []


def test_the_weights_hash_depends_on_the_weights_alone(tmp_path):
    one = Checkpoint(checkpoint(1).weights, checkpoint(2).optimizer, {"seconds": 3})
    hashes = [weights_hash(save_checkpoint(tmp_path, i, c)) for i, c in enumerate((checkpoint(1), one, checkpoint(2)))]
    assert hashes[0] == hashes[1] != hashes[2]
    assert hashes[0] == json.loads((tmp_path / "step_00000000" / "checksums.json").read_bytes())["model.safetensors"]
