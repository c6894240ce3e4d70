"""The phase on random data: what it reads, what it leaves, and its control arms."""

import json
import math

import numpy as np
import pytest
import torch

from shearling.config import differences, load
from shearling.data.shards import open_dataset
from shearling.data.stream import BatchStream
from shearling.seeding import derive_seed
from shearling.training.loop import train
from shearling.training.spec import ExperimentSpec
from shearling.training.state import build_state
from shearling.training.step import update
from shearling.training.warmup import KINDS, WarmupData, redraw, warm_up
from shearling.training.warmup_controls import control_arms

CPU = torch.device("cpu")
SHIFTED = ["iid_shifted", "unigram", "shuffled", "dyck"]
UNIFORM_TARGETS = ["iid_unpaired", "gaussian", "random_labels"]
BERT = {"model": {"arch": "bert", "vocab_size": 301}, "training": {"objective": {"kind": "masked_token"}}}


def data_of(config: ExperimentSpec) -> WarmupData:
    return WarmupData(config, open_dataset(config.data.path, "train"))


def phase(config: ExperimentSpec, state) -> list:
    return list(warm_up(state, config, open_dataset(config.data.path, "train")))


class TestItsOptions:
    @pytest.mark.parametrize("kind", SHIFTED)
    def test_refuse_next_tokens_to_a_model_that_reads_them(self, warmed, kind):
        with pytest.raises(ValueError, match=rf"random_warmup\.kind {kind} .*take iid_unpaired"):
            warmed(kind, **BERT)

    @pytest.mark.parametrize("kind", [*UNIFORM_TARGETS, "real"])
    def test_give_such_a_model_the_other_kinds(self, warmed, kind):
        assert warmed(kind, **BERT).random_warmup.kind == kind

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ({"kind": "dyck", "k": 151}, r"k 151 needs 302 tokens, more than model\.vocab_size 300"),
            ({"warmup_steps": 5}, "warmup_steps 5 leaves nothing of the phase's 5 steps"),
            (
                {"schedule": "continue", "training": {"schedule": {"warmup_steps": 0}}},
                "set random_warmup.schedule: fresh",
            ),
            ({"std": 1.0}, "std"),
        ],
    )
    def test_that_cannot_be_or_would_have_no_effect_are_refused(self, warmed, options, said):
        with pytest.raises(ValueError, match=said):
            warmed(**options)

    def test_leave_short_names_to_those_of_training(self, root, tmp_path):
        config = tmp_path / "warmed.yaml"
        config.write_text(
            f"extends: [{root}/configs/experiments/preln.yaml, {root}/configs/training/warmup_experiments.yaml]\n"
        )
        overrides = ["steps=7000", "learning_rate=0.5", "warmup_steps=3", "keep=moments", "random_warmup.steps=30"]
        spec = load(ExperimentSpec, config, overrides).value
        assert (spec.training.steps, spec.training.schedule.warmup_steps) == (7000, 3)
        assert spec.training.optimizer.learning_rate == 0.5
        assert (spec.random_warmup.steps, spec.random_warmup.keep) == (30, "moments")
        assert load(ExperimentSpec, config, ["random_warmup=null"]).value.random_warmup is None


class TestItsData:
    @pytest.mark.parametrize("kind", KINDS)
    def test_have_trainings_shape_and_depend_on_seed_and_step_alone(self, warmed, kind):
        config = warmed(kind)
        data = data_of(config)
        third = data.examples(3)
        assert third.inputs.shape == ((8, 32, 32) if kind == "gaussian" else (8, 32))
        assert third.targets.shape == (8, 32)
        again = data_of(warmed(kind, training={"micro_batch": 3}, steps=50)).examples(3)
        assert (again.inputs == third.inputs).all()
        assert (again.targets == third.targets).all()
        for other in (data.examples(4), data_of(warmed(kind, seed=1)).examples(3)):
            assert (other.inputs != third.inputs).any()
            assert (other.targets != third.targets).any()

    @pytest.mark.parametrize("kind", [*SHIFTED, "real"])
    def test_that_are_shifted_have_the_next_token_as_target(self, warmed, kind):
        examples = data_of(warmed(kind)).examples(0)
        assert (examples.inputs[:, 1:] == examples.targets[:, :-1]).all()

    @pytest.mark.parametrize("kind", UNIFORM_TARGETS)
    def test_that_are_not_have_uniform_targets_of_no_relation_to_inputs(self, warmed, kind):
        data = data_of(warmed(kind))
        parts = [data.examples(step) for step in range(40)]
        targets = np.concatenate([part.targets for part in parts])
        assert (targets.min(), targets.max()) == (0, 299)
        counts = np.bincount(targets.ravel(), minlength=300)
        assert ((counts - counts.mean()) ** 2 / counts.mean()).sum() == pytest.approx(299, abs=4 * math.sqrt(2 * 299))
        inputs = np.concatenate([part.inputs for part in parts])
        next_inputs = inputs[:, 1:, 0] if kind == "gaussian" else inputs[:, 1:]
        assert abs(np.corrcoef(next_inputs.ravel(), targets[:, :-1].ravel())[0, 1]) < 0.05

    def test_of_text_are_the_same_sequences_whatever_the_kind_but_not_trainings(self, warmed):
        real, labels, mixed = (data_of(warmed(kind)).examples(2) for kind in ("real", "random_labels", "shuffled"))
        assert (labels.inputs == real.inputs).all()
        whole = [np.concatenate((each.inputs, each.targets[:, -1:]), axis=1) for each in (real, mixed)]
        assert (np.sort(whole[0]) == np.sort(whole[1])).all()
        assert (whole[0] != whole[1]).any()
        config = warmed("real")
        dataset = open_dataset(config.data.path, "train")
        assert (BatchStream(dataset, 32, 8, derive_seed(0, "data")).batch(2).tokens != whole[0]).any()
        assert (BatchStream(dataset, 32, 8, derive_seed(0, "random_warmup", "text")).batch(2).tokens == whole[0]).all()

    def test_of_text_keep_their_documents_apart_as_training_does(self, warmed):
        for kind in ("real", "random_labels"):
            assert data_of(warmed(kind)).examples(0).document_ids is None
            assert data_of(warmed(kind, data={"mask_documents": True})).examples(0).document_ids.shape == (8, 32)

    def test_of_a_masked_token_model_mask_as_training_does(self, warmed):
        examples = data_of(warmed("real", **BERT)).examples(0)
        assert 0 < examples.n_targets < 8 * 32
        assert (examples.inputs == 300).any()

    def test_of_unigrams_have_the_frequencies_of_the_training_text(self, warmed):
        config = warmed("unigram")
        data, dataset = data_of(config), open_dataset(config.data.path, "train")
        drawn = np.concatenate([data.examples(step).inputs.ravel() for step in range(40)])
        expected = np.bincount(dataset.tokens(0, dataset.total_tokens), minlength=300) / dataset.total_tokens
        assert np.bincount(drawn, minlength=300) / drawn.size == pytest.approx(expected, abs=0.02)

    def test_of_brackets_take_the_first_tokens(self, warmed):
        examples = data_of(warmed("dyck", k=7)).examples(0)
        assert set(np.unique(examples.inputs)) == set(range(14))


class TestTheLossFloor:
    """No model can know an independent uniform target: the least loss is that of the uniform guess, ln V."""

    @pytest.mark.parametrize("kind", ["iid_unpaired", "iid_shifted", "gaussian"])
    def test_is_reached_from_above_and_never_passed(self, warmed, kind):
        floor = math.log(50)
        model = {"vocab_size": 50, "init_std": 0.5}
        config = warmed(kind, steps=200, learning_rate=1e-2, model=model, training={"tokens_per_update": 512})
        losses = [step.loss for step in warm_up(build_state(config, CPU, False), config, None)]
        assert losses[0] > 1.5 * floor
        assert 0.995 * floor < np.mean(losses[-20:]) < 1.02 * floor
        assert min(losses) > 0.99 * floor

    def test_is_not_one_where_there_is_something_to_learn(self, warmed):
        model = {"vocab_size": 50}
        config = warmed("dyck", k=2, steps=100, learning_rate=1e-2, model=model, training={"tokens_per_update": 512})
        losses = [step.loss for step in warm_up(build_state(config, CPU, False), config, None)]
        assert losses[-1] < 0.5 * math.log(50)


class TestWhatItLeaves:
    def test_is_what_its_steps_made_of_the_weights(self, warmed):
        config = warmed("iid_unpaired", warmup_steps=2, learning_rate=3e-3)
        ours, theirs = (build_state(config, CPU, False) for _ in range(2))
        steps = phase(config, ours)
        data = data_of(config)
        for number, rate in enumerate([1e-3, 2e-3, 3e-3, 3e-3, 3e-3]):
            update(theirs, data.examples(number), config, number, rate / config.training.optimizer.learning_rate)
        assert [step.learning_rate for step in steps] == pytest.approx([1e-3, 2e-3, 3e-3, 3e-3, 3e-3])
        for mine, other in zip(ours.model.parameters(), theirs.model.parameters(), strict=True):
            assert torch.equal(mine, other)

    def test_has_a_new_optimizer_unless_that_is_carried(self, warmed):
        for policy, steps in (("reset", set()), ("carry", {5.0})):
            config = warmed(optimizer_state=policy)
            state = build_state(config, CPU, False)
            phase(config, state)
            assert {each["step"].item() for each in state.optimizer.parts[0].state.values()} == steps
            update(state, data_of(config).examples(9), config, 9, factor=1.0)  # it is the model's optimizer
            assert len(state.optimizer.parts[0].state) == len(list(state.model.parameters()))

    def test_counts_no_step_and_no_token_of_training(self, warmed):
        config = warmed()
        state = build_state(config, CPU, False)
        phase(config, state)
        assert (state.progress.step, state.progress.tokens, state.progress.warmed.steps) == (0, 0, 5)

    def test_of_vectors_has_the_embedding_untouched_where_that_is_no_head(self, warmed):
        config = warmed("gaussian", model={"tie_embeddings": False})
        state = build_state(config, CPU, False)
        before = {name: p.clone() for name, p in state.model.named_parameters()}
        phase(config, state)
        same = {name for name, p in state.model.named_parameters() if torch.equal(p, before[name])}
        assert same == {"embed.weight"}

    def test_of_moments_has_each_tensors_mean_and_deviation_and_no_more(self, warmed):
        options = {"model": {"d_model": 64, "placement": {"kind": "rezero"}}, "learning_rate": 1e-2}
        kept, drawn = (warmed(**options, keep=keep) for keep in ("weights", "moments"))
        states = [build_state(config, CPU, False) for config in (kept, drawn)]
        for config, state in zip((kept, drawn), states, strict=True):
            phase(config, state)
        others = dict(states[1].model.named_parameters())
        for name, p in states[0].model.named_parameters():
            p, other = p.detach().double(), others[name].detach().double()
            if p.numel() == 1:
                assert p == other != 0
                continue
            assert not torch.equal(p, other)
            error = p.std().item() / math.sqrt(p.numel())
            assert other.mean().item() == pytest.approx(p.mean().item(), abs=5 * error)
            assert other.std().item() == pytest.approx(p.std().item(), abs=5 * error)
            assert abs(torch.corrcoef(torch.stack((p.flatten(), other.flatten())))[0, 1]) < 5 / math.sqrt(p.numel())

    def test_of_moments_keeps_the_weights_of_ngpt_on_their_sphere(self, warmed):
        model = build_state(warmed(model={"placement": {"kind": "ngpt"}, "final_norm": False}), CPU, False).model
        redraw(model, seed=0)
        torch.testing.assert_close(model.embed.weight.norm(dim=1), torch.ones(300))

    def test_trains_branches_that_a_residual_warm_up_would_hold_at_zero(self, warmed):
        config = warmed(model={"placement": {"kind": "pre", "residual_warmup": 100}})
        state = build_state(config, CPU, False)
        before = state.model.layers[0].attention.branch.q_proj.weight.clone()
        phase(config, state)
        assert not torch.equal(state.model.layers[0].attention.branch.q_proj.weight, before)


class TestControls:
    def test_are_the_same_experiment_but_for_the_phase(self, warmed):
        config = warmed("gaussian", std=0.1, warmup_steps=2, schedule="continue", optimizer_state="carry")
        arms = control_arms(config)
        assert list(arms) == ["none", "real", "moments"]
        assert [arm.name for arm in arms.values()] == ["tiny-none", "tiny-real", "tiny-moments"]
        assert len({arm.output_dir for arm in (config, *arms.values())}) == 4
        for arm in arms.values():
            assert all(key.startswith("random_warmup") for key in differences(config, arm))
            assert ExperimentSpec.model_validate(arm.model_dump()) == arm
        assert arms["none"].random_warmup is None
        own, real = config.random_warmup, arms["real"].random_warmup
        assert real.kind == "real"
        for key in ("steps", "learning_rate", "warmup_steps", "optimizer_state", "schedule", "keep"):
            assert getattr(real, key) == getattr(own, key)
        changed = ["random_warmup.optimizer_state", "random_warmup.keep"]  # moments know nothing of other weights
        assert differences(config, arms["moments"]) == changed

    def test_are_not_made_of_what_is_one_already(self, warmed, experiment):
        assert control_arms(experiment()) == {}
        assert list(control_arms(warmed("real"))) == ["none", "moments"]
        assert list(control_arms(warmed(keep="moments"))) == ["none", "real"]

    def test_run_on_an_encoder_too(self, warmed):
        for arm in control_arms(warmed("iid_unpaired", **BERT)).values():
            assert json.dumps(train(arm), allow_nan=False)


def test_moments_of_other_weights_are_not_carried_over(warmed):
    with pytest.raises(ValueError, match="set optimizer_state: reset"):
        warmed(keep="moments", optimizer_state="carry")
