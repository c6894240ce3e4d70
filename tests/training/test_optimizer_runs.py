"""Runs with every optimizer: they learn, are resumed to the last bit, and are saved with what they are judged by."""

import pytest
import torch

from shearling.data.shards import open_dataset
from shearling.data.stream import BatchStream, EvaluationSet
from shearling.training import checkpoints, loop
from shearling.training.evaluate import evaluate
from shearling.training.loop import train
from shearling.training.optimizers import OPTIMIZERS
from shearling.training.optimizers.sophia import SophiaUpdates
from shearling.training.run_folder import RunFolder
from shearling.training.spec import ExperimentSpec
from shearling.training.state import build_state, load_weights
from shearling.training.step import train_step

OPTIONS = {
    "adafactor": {"learning_rate": 0.3}, "muon": {"learning_rate": 0.02, "rate_of_others": 0.01},
    "sgd": {"learning_rate": 0.3}, "lion": {"learning_rate": 1e-3}, "soap": {"every": 3}, "sophia": {"every": 3},
}  # fmt: skip


def of_kind(experiment, kind: str, **others) -> ExperimentSpec:
    # A map of options takes the place of the tiny experiment's whole: its rate is AdamW's.
    options = {"kind": kind, "learning_rate": 1e-2, **OPTIONS.get(kind, {})}
    return experiment(training={"optimizer": options, "save_every": 3}, **others)


def final_folder(config: ExperimentSpec):
    return checkpoints.step_folder(RunFolder(config.output_dir).checkpoints, config.training.steps)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_every_kind_learns_and_is_resumed_to_the_last_bit(experiment, tmp_path, monkeypatch, kind):
    whole, stopped = (of_kind(experiment, kind, output_dir=str(tmp_path / name)) for name in ("whole", "stopped"))
    results = train(whole)
    assert results["loss"] < results["first"]["loss"] - 0.1

    def crash(state, *arguments, **named):
        if state.progress.step == 7:
            raise RuntimeError("crash")
        return train_step(state, *arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", crash)
        with pytest.raises(RuntimeError, match="crash"):
            train(stopped)
    train(stopped, resume=True)
    assert checkpoints.weights_hash(final_folder(whole)) == checkpoints.weights_hash(final_folder(stopped))


def test_schedule_free_is_saved_with_the_weights_that_were_evaluated(experiment):
    config = of_kind(experiment, "schedule_free")
    results = train(config)
    state = build_state(config, torch.device("cpu"), False)
    saved = checkpoints.load_checkpoint(final_folder(config))
    load_weights(state.model, saved.weights)
    held_out = EvaluationSet.take(open_dataset(config.data.path, "validation"), config.data.validation_tokens)
    found = evaluate(
        state.model, held_out, 12, seq_len=config.data.seq_len, sequences=4, mask_documents=False,
        objective=config.training.objective,
    )  # fmt: skip
    assert found.loss == pytest.approx(results["loss"], abs=1e-6)
    trained = {path.partition("/")[2] for path in saved.optimizer if path.startswith("trained/")}
    assert trained == {name for name, _ in state.model.named_parameters()}


def test_sophia_measures_curvature_on_labels_that_the_model_draws(experiment, monkeypatch):
    config = of_kind(experiment, "sophia")
    state = build_state(config, torch.device("cpu"), False)
    stream = BatchStream(open_dataset(config.data.path, "train"), 32, 8, seed=0)
    seen = []

    def note(self, n_targets):
        gradient = state.model.lm_head.weight_VD.grad
        seen.append((n_targets, gradient.norm().item()))

    monkeypatch.setattr(SophiaUpdates, "note_curvature", note)
    figures = [train_step(state, stream.batch(step), config, factor=0.0) for step in range(4)]
    assert [n for n, _ in seen] == [4 * 32] * 2  # a micro-batch, at steps 0 and 3
    # A fresh model's labels are next to uniform, and so cost it log V, whatever the text is.
    assert all(0 < norm < 10 for _, norm in seen)
    assert seen[0][1] != pytest.approx(figures[0][1], rel=0.01)
