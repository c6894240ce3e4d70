"""Diagnostics: each definition on a tensor whose answer is known, what a probe sees, and what a run records."""

import dataclasses
import json
import math

import numpy as np
import pytest
import scipy.stats
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from shearling.config import fingerprint
from shearling.errors import Interrupted
from shearling.models.layers.placements import PLACEMENTS
from shearling.models.spec import ModelSpec
from shearling.models.transformer import Transformer
from shearling.training import checkpoints, loop
from shearling.training.diagnostics import definitions
from shearling.training.diagnostics.probe import Probe, layer_weights
from shearling.training.diagnostics.recorder import measure
from shearling.training.diagnostics.registry import DIAGNOSTICS
from shearling.training.diagnostics.spec import ALL, GROUPS, DiagnosticsSpec
from shearling.training.examples import IGNORED, Examples
from shearling.training.loop import train
from shearling.training.run_folder import RunFolder
from shearling.training.step import train_step

PER_LAYER = ALL[: ALL.index("log_z")]


def scalar(value: torch.Tensor) -> float:
    assert value.shape == ()
    return value.item()


class TestDefinitions:
    def test_residual_variance_is_over_features_and_a_mean_over_tokens(self):
        x_BTD = torch.tensor([[[1.0, -1.0], [5.0, 5.0]], [[13.0, 7.0], [0.0, 4.0]]])
        assert scalar(definitions.residual_variance(x_BTD)) == pytest.approx((1 + 0 + 9 + 4) / 4)

    @pytest.mark.parametrize(
        ("x", "y", "distance"),
        [
            ([1, 0], [0, 3], 0.5),
            ([1, 1], [2, 2], 0),
            ([1, 0], [-1, 0], 1),
            ([1, 0], [1, 1], 0.25),
            ([0, 0], [1, 0], 0.5),
        ],
        ids=["orthogonal", "same direction", "opposite", "45 degrees", "zero vector"],
    )
    def test_angular_distance(self, x, y, distance):
        x_BTD, y_BTD = torch.tensor([[x]]).float(), torch.tensor([[y]]).float()
        assert scalar(definitions.angular_distance(x_BTD, y_BTD)) == pytest.approx(distance, abs=1e-7)

    def test_max_over_median_is_of_magnitudes(self):
        assert scalar(definitions.max_over_median(torch.tensor([[1.0, -2.0, 2.0], [0.5, -100.0, 4.0]]))) == 50

    def test_kurtosis_of_two_values_is_the_least_there_is_and_of_an_outlier_large(self):
        assert scalar(definitions.kurtosis(torch.tensor([[3.0, 7.0], [7.0, 3.0]]))) == -2
        n = 1000
        one = torch.zeros(n).index_fill(0, torch.tensor([3]), 50.0)
        assert scalar(definitions.kurtosis(one)) == pytest.approx(scipy.stats.kurtosis(one.double().numpy()))
        assert scalar(definitions.kurtosis(one)) == pytest.approx(n, rel=0.01)

    def test_attention_entropy_of_uniform_causal_rows_is_1_and_of_sure_ones_0(self):
        visible_HTS = torch.ones(2, 5, 5, dtype=torch.bool).tril()
        uniform = definitions.attention_entropies(torch.zeros(2, 5, 5), visible_HTS)
        assert uniform.shape == (2 * 4,)  # the first row of each head sees one key and says nothing
        torch.testing.assert_close(uniform, torch.ones(8))
        sure = definitions.attention_entropies(1e4 * torch.eye(5).expand(2, 5, 5), visible_HTS)
        torch.testing.assert_close(sure, torch.zeros(8))

    def test_attention_entropy_is_scipys_over_what_each_row_sees(self):
        scores_HTS = torch.randn(1, 4, 4, generator=torch.Generator().manual_seed(0))
        documents_T = torch.tensor([0, 0, 0, 1])
        visible_HTS = ((documents_T[:, None] == documents_T) & torch.ones(4, 4, dtype=torch.bool).tril())[None]
        rows = [scipy.stats.entropy(scores_HTS[0, i, : i + 1].double().exp().numpy()) / math.log(i + 1) for i in (1, 2)]
        assert definitions.attention_entropies(scores_HTS, visible_HTS).tolist() == pytest.approx(rows)

    def test_largest_attention_logit_is_of_visible_pairs(self):
        products_HTS = torch.tensor([[[-3.0, 9.0], [-2.0, -5.0]]])
        assert scalar(definitions.largest_attention_logit(products_HTS, torch.ones(1, 2, 2).bool().tril())) == -2

    def test_norms_are_over_all_tensors_of_a_layer(self):
        before = [torch.tensor([[3.0]]), torch.tensor([0.0, 4.0])]
        after = [torch.tensor([[3.0]]), torch.tensor([0.5, 4.0])]
        assert scalar(definitions.l2_norm(before)) == 5
        assert scalar(definitions.update_norm(before, after)) == 0.5
        assert scalar(definitions.relative_update_norm(before, after)) == 0.1

    def test_log_z_of_zero_logits_is_the_logarithm_of_the_vocabulary(self):
        assert definitions.log_z(torch.zeros(2, 300)).tolist() == pytest.approx([math.log(300)] * 2)
        assert definitions.log_z(torch.full((1, 300), 1e4)).tolist() == pytest.approx([1e4 + math.log(300)])

    @pytest.mark.parametrize(
        ("confidences", "correct", "error"),
        [
            ([0.75] * 4, [1, 1, 1, 0], 0.0),
            ([0.95] * 4, [1, 0, 1, 0], 0.45),
            ([1.0] * 3, [1, 1, 1], 0.0),
            ([0.3] * 2 + [0.9] * 2, [1, 1, 1, 0], 0.5 * 0.7 + 0.5 * 0.4),
            ([0.95, 0.91], [1, 0], 0.5 * 0.05 + 0.5 * 0.91),
            ([0.61, 0.66], [1, 0], abs(1 - 1.27) / 2),
        ],
        ids=["calibrated", "overconfident", "sure and right", "errors of two signs", "two bins", "one bin"],
    )
    def test_expected_calibration_error(self, confidences, correct, error):
        found = definitions.expected_calibration_error(torch.tensor(confidences), torch.tensor(correct).bool())
        assert scalar(found) == pytest.approx(error, abs=1e-6)


class TestSpikeScore:
    CALM = [1.0, -1.0] * 600  # mean 0, deviation 1

    def test_is_the_share_of_values_7_deviations_off(self):
        values = [*self.CALM, 6.9, -7.3]  # the first widens what the second is held against to 1.02
        assert definitions.spike_score(values, least=1000) == 1 / 202

    def test_is_held_against_the_values_before_alone(self):
        assert definitions.spike_score([*self.CALM, 100.0], least=1200) == 1

    def test_forgets_what_lies_further_back_than_the_window(self):
        old, new = [100.0, 300.0] * 50, [1.0, -1.0] * 500
        assert definitions.spike_score([*old, *new, 8.0], least=1100) == 1

    def test_of_a_constant_is_0(self):
        assert definitions.spike_score([2.0] * 200) == 0

    def test_of_too_few_values_is_not_a_number(self):
        assert math.isnan(definitions.spike_score([1.0] * 100))
        assert math.isnan(definitions.spike_score([]))


SHAPE = {"d_model": 16, "n_layers": 3, "n_heads": 4, "intermediate_size": 24, "vocab_size": 40, "max_seq_len": 12}


def model_of(**options) -> Transformer:
    model = Transformer(ModelSpec.model_validate({**SHAPE, "init_std": 0.3, **options}), seed=1)
    return model.eval()


@pytest.fixture
def examples() -> Examples:
    tokens = np.random.default_rng(0).integers(40, size=(5, 13))
    return Examples(tokens[:, :-1], tokens[:, 1:])


def loss_of(model: Transformer, examples: Examples) -> torch.Tensor:
    hidden, targets = model(torch.from_numpy(examples.inputs)), torch.from_numpy(examples.targets)
    return F.cross_entropy(model.logits(hidden).flatten(0, 1), targets.flatten())


class TestAProbe:
    def test_sees_the_stream_around_each_layer(self, examples):
        model = model_of()
        x_BTD, context = model.enter(model.embed(torch.from_numpy(examples.inputs)))
        variances, angles = [], []
        for layer in model.layers:
            y_BTD = layer(x_BTD, context)
            variances.append(y_BTD.var(dim=-1, correction=0).mean().item())
            cosine = (F.normalize(x_BTD, dim=-1) * F.normalize(y_BTD, dim=-1)).sum(dim=-1)
            angles.append((torch.rad2deg(cosine.acos()) / 180).mean().item())
            x_BTD = y_BTD
        found = measure(model, examples, ["residual_variance", "angular_distance"])
        assert found["residual_variance"] == pytest.approx(variances, rel=1e-5)
        assert found["angular_distance"] == pytest.approx(angles, rel=1e-4)

    def test_of_two_streams_looks_at_the_first(self, examples):
        model = model_of(placement={"kind": "residual"})
        x_BTD = Probe(model, examples).forward.outputs[-1]
        assert x_BTD.shape == (5, 12, 16)  # it has just been normed by RMSNorm
        torch.testing.assert_close(x_BTD.square().mean(dim=-1), torch.ones(5, 12), rtol=1e-3, atol=0)

    def test_gradient_norms_are_those_of_a_backward_pass(self, examples):
        model = model_of()
        found = measure(model, examples, ["gradient_norm"])["gradient_norm"]
        assert all(parameter.grad is None for parameter in model.parameters())
        loss_of(model, examples).backward()
        expected = [math.sqrt(sum(p.grad.square().sum().item() for p in layer.parameters())) for layer in model.layers]
        assert found == pytest.approx(expected, rel=1e-4)

    def test_a_weight_without_a_gradient_counts_as_one_of_zeros(self, examples):
        model = model_of()
        expected = measure(model, examples, ["gradient_norm"])
        model.layers[1].register_parameter("idle", nn.Parameter(torch.ones(3)))
        assert measure(model, examples, ["gradient_norm"]) == expected

    def test_leaving_out_a_layer_that_is_the_identity_costs_nothing(self, examples):
        model = model_of()
        with torch.no_grad():
            model.layers[1].attention.branch.o_proj.weight.zero_()
            model.layers[1].feedforward.branch.down_proj.weight.zero_()
        costs = measure(model, examples, ["layer_removal_loss"])["layer_removal_loss"]
        assert costs[1] == 0
        assert abs(costs[0]) > 1e-3
        assert abs(costs[2]) > 1e-3

    def test_leaving_out_a_layer_gives_the_loss_of_the_model_without_it(self, examples):
        model = model_of()
        costs = measure(model, examples, ["layer_removal_loss"])["layer_removal_loss"]
        whole = loss_of(model, examples).item()
        layers = list(model.layers)
        for i, cost in enumerate(costs):
            model.layers = nn.ModuleList(layers[:i] + layers[i + 1 :])
            assert cost == pytest.approx(loss_of(model, examples).item() - whole, abs=1e-5)

    @pytest.mark.parametrize(
        "options",
        [{}, {"n_kv_heads": 2}, {"arch": "bert"}, {"position": {"kind": "none"}}],
        ids=["plain", "grouped keys", "both ways", "no positions"],
    )
    def test_attention_without_queries_is_uniform_and_has_logits_of_zero(self, examples, options):
        model = model_of(**options)
        with torch.no_grad():
            model.layers[0].attention.branch.q_proj.weight.zero_()
        found = measure(model, examples, ["attention_entropy", "largest_attention_logit"])
        assert found["attention_entropy"][0] == pytest.approx(1, abs=1e-6)
        assert found["largest_attention_logit"][0] == 0
        assert found["attention_entropy"][1] < 1
        assert found["largest_attention_logit"][1] > 0

    def test_attention_sees_its_document_alone(self, examples):
        model = model_of()
        documents = np.tile(np.arange(12), (5, 1))  # each token a document: no row sees more than itself
        alone = dataclasses.replace(examples, document_ids=documents)
        assert measure(model, alone, ["attention_entropy"]) == {"attention_entropy": [None] * 3}

    def test_attention_falling_with_distance_is_not_uniform(self, examples):
        model = model_of(position={"kind": "alibi"})
        with torch.no_grad():
            model.layers[0].attention.branch.q_proj.weight.zero_()
        found = measure(model, examples, ["attention_entropy", "largest_attention_logit"])
        assert 0.1 < found["attention_entropy"][0] < 0.99
        assert found["largest_attention_logit"][0] == 0  # the bias is no part of it

    def test_largest_attention_logit_is_that_of_the_scores(self, examples):
        model = model_of(n_layers=1, position={"kind": "none"}, n_kv_heads=2)
        attention = model.layers[0].attention
        with torch.no_grad():
            x_BTD = attention.norm(model.embed(torch.from_numpy(examples.inputs)))
            q = attention.branch.q_proj(x_BTD).double().view(5, 12, 4, 4)
            k = attention.branch.k_proj(x_BTD).double().view(5, 12, 2, 4)
        largest = max(
            (q[b, t, h] @ k[b, s, h // 2]).item() / 2
            for b in range(5) for t in range(12) for s in range(t + 1) for h in range(4)
        )  # fmt: skip
        found = measure(model, examples, ["largest_attention_logit"])["largest_attention_logit"]
        assert found == [pytest.approx(largest, rel=1e-5)]

    def test_a_head_of_zeros_knows_nothing(self, examples):
        model = model_of(tie_embeddings=False)
        nn.init.zeros_(model.head.weight)
        found = measure(model, examples, ["log_z", "calibration_error"])
        hits = float((examples.targets == 0).mean())  # among equals the first token is the likeliest
        assert found["log_z"] == pytest.approx(math.log(40))
        assert found["calibration_error"] == pytest.approx(abs(hits - 1 / 40), abs=1e-6)

    def test_asks_the_head_where_something_is_predicted(self, examples):
        model = model_of()
        targets = np.where(np.arange(12) % 3 == 1, examples.targets, IGNORED)
        found = measure(model, dataclasses.replace(examples, targets=targets), ["log_z"])["log_z"]
        logits_BTV = model.logits(model(torch.from_numpy(examples.inputs)))
        assert found == pytest.approx(logits_BTV[:, 1::3].logsumexp(dim=-1).mean().item())

    def test_what_is_not_finite_is_none(self, examples):
        model = model_of()
        with torch.no_grad():
            model.layers[1].attention.branch.q_proj.weight.fill_(torch.nan)
        found = measure(model, examples, ALL)
        assert found["residual_variance"][0] > 0
        assert found["residual_variance"][1:] == [None, None]
        assert found["log_z"] is None
        json.dumps(found, allow_nan=False)

    @pytest.mark.parametrize("kind", PLACEMENTS)
    def test_measures_every_placement(self, examples, kind):
        model = model_of(placement={"kind": kind}, final_norm=kind != "ngpt")
        found = measure(model, examples, ALL, before=layer_weights(model))
        assert list(found) == list(ALL)
        for name in PER_LAYER:
            assert len(found[name]) == 3
            assert all(map(math.isfinite, found[name])), name
        assert found["update_norm"] == [0, 0, 0]
        assert math.isfinite(found["log_z"])
        assert 0 <= found["calibration_error"] <= 1

    def test_leaves_the_model_and_the_random_state_as_they_were(self, examples):
        model = model_of(dropout=0.5, placement={"kind": "pre", "residual_warmup": 5}).train()
        model.step = 7
        weights = [weight.clone() for weight in model.parameters()]
        random = torch.get_rng_state()
        found = measure(model, examples, ALL, step=3)
        assert measure(model, examples, ALL, step=3) == found != measure(model, examples, ALL, step=0)
        assert model.training
        assert model.step == 7
        assert torch.equal(torch.get_rng_state(), random)
        assert all(map(torch.equal, weights, model.parameters()))
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())

    def test_sees_into_compiled_blocks(self, examples):
        plain, compiled = model_of(), model_of()
        for layer in compiled.layers:
            layer.compile(backend="eager")
        compiled(torch.from_numpy(examples.inputs))
        assert measure(compiled, examples, GROUPS["cheap"]) == measure(plain, examples, GROUPS["cheap"])


def lines_of(config) -> list[dict]:
    return RunFolder(config.output_dir).read_diagnostics()


def final_hash(config) -> str:
    return checkpoints.weights_hash(RunFolder(config.output_dir).checkpoints / "latest")


class TestARun:
    def test_measures_nothing_unless_told(self, experiment):
        config = experiment()
        train(config)
        assert not RunFolder(config.output_dir).diagnostics.exists()
        assert lines_of(config) == []

    def test_records_each_measured_step_and_the_last(self, experiment):
        config = experiment(training={"diagnostics": {"every": 5, "names": ["all"], "sequences": 3}})
        train(config)
        lines = lines_of(config)
        assert [(line["step"], line["tokens"]) for line in lines] == [(0, 0), (5, 1280), (10, 2560), (12, 3072)]
        for line in lines:
            assert list(line) == ["step", "tokens", *ALL]
            assert all(len(line[name]) == 2 for name in PER_LAYER)
        assert lines[0]["log_z"] == pytest.approx(math.log(300), abs=0.1)
        assert all(0.5 < value <= 1 for value in lines[0]["attention_entropy"])
        # Of step 0 there is no update, and no weights are kept for a last step off the beat.
        assert [line["update_norm"] == [None, None] for line in lines] == [True, False, False, True]

    def test_of_masked_tokens_is_measured_too(self, experiment):
        config = experiment(
            model={"arch": "bert", "vocab_size": 301},
            training={"objective": {"kind": "masked_token"}, "diagnostics": {"every": 12, "names": ["all"]}},
        )
        train(config)
        last = lines_of(config)[-1]
        assert all(math.isfinite(value) for name in PER_LAYER for value in last[name])
        assert math.isfinite(last["log_z"])

    def test_records_how_far_the_last_step_moved_each_layer(self, experiment):
        diagnostics = {"every": 3, "names": ["update_norm", "relative_update_norm"]}
        config = experiment(training={"diagnostics": diagnostics, "save_every": 1, "keep_last": 20})
        train(config)
        root = RunFolder(config.output_dir).checkpoints
        for line in lines_of(config)[1:]:
            old, new = (
                load_file(checkpoints.step_folder(root, step) / "model.safetensors")
                for step in (line["step"] - 1, line["step"])
            )
            for layer in range(2):
                names = [name for name in old if name.startswith(f"layers.{layer}.")]
                moved = math.sqrt(sum((new[name] - old[name]).double().square().sum().item() for name in names))
                size = math.sqrt(sum(old[name].double().square().sum().item() for name in names))
                assert line["update_norm"][layer] == pytest.approx(moved)
                assert line["relative_update_norm"][layer] == pytest.approx(moved / size)

    @pytest.mark.parametrize(
        "options",
        [
            {"model": {"dropout": 0.2, "attention_dropout": 0.2}},
            {"data": {"mask_documents": True}},
            {"model": {"placement": {"kind": "pre", "residual_warmup": 4}}},
        ],
        ids=["dropout", "document masking", "residual warm-up"],
    )
    def test_ends_with_the_weights_of_one_that_measures_nothing(self, experiment, tmp_path, options):
        plain = experiment(**options)
        measured = experiment(
            **options,
            training={"diagnostics": {"every": 1, "names": ["all"]}},
            output_dir=str(tmp_path / "measured"),
        )
        losses = [train(plain)["loss"], train(measured)["loss"]]
        assert losses[0] == losses[1]
        assert final_hash(plain) == final_hash(measured)
        assert fingerprint(plain) == fingerprint(measured)

    @pytest.mark.parametrize("how", ["killed", "interrupted"])
    def test_resumed_has_the_lines_of_one_never_stopped(self, experiment, tmp_path, monkeypatch, how):
        training = {"diagnostics": {"every": 2, "names": ["all"]}, "save_every": 3, "evaluate_every": None}
        whole = experiment(training=training)
        stopped = experiment(training=training, output_dir=str(tmp_path / "stopped"))
        train(whole)

        def stop(state, *arguments, **named):
            if state.progress.step == 8:
                raise {"killed": RuntimeError("killed"), "interrupted": Interrupted(15)}[how]
            return train_step(state, *arguments, **named)

        with monkeypatch.context() as patch:
            patch.setattr(loop, "train_step", stop)
            with pytest.raises((RuntimeError, Interrupted)):
                train(stopped)
        assert lines_of(stopped)[-1]["step"] == 8
        train(stopped, resume=True)
        assert lines_of(stopped) == lines_of(whole)

    def test_writes_a_spike_score_of_its_history(self, experiment):
        config = experiment(
            training={
                "steps": 110,
                "tokens_per_update": 32,
                "evaluate_every": None,
                "save_every": None,
                "diagnostics": {"every": 55, "names": ["loss_spike_score", "gradient_norm_spike_score"]},
            }
        )
        train(config)
        steps = [line for line in RunFolder(config.output_dir).read_metrics() if "gradient_norm" in line]
        assert lines_of(config)[-1] == {
            "step": 110,
            "tokens": 110 * 32,
            "loss_spike_score": definitions.spike_score([line["loss"] for line in steps]),
            "gradient_norm_spike_score": definitions.spike_score([line["gradient_norm"] for line in steps]),
        }
        assert lines_of(config)[0]["loss_spike_score"] is None


class TestOptions:
    def test_name_what_the_registry_holds(self):
        assert tuple(DIAGNOSTICS) == ALL

    def test_measure_nothing_unless_told(self):
        assert DiagnosticsSpec().every is None

    def test_stand_for_groups_and_single_ones_each_once(self):
        assert DiagnosticsSpec().measured == GROUPS["cheap"]
        assert set(GROUPS["cheap"]) == set(ALL) - {"layer_removal_loss"}
        assert DiagnosticsSpec(names=("layer_removal_loss", "cheap", "log_z")).measured == ALL
        assert DiagnosticsSpec(names=("log_z", "kurtosis")).measured == ("kurtosis", "log_z")
