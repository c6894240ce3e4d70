"""The training loop: what it computes, records, refuses, and survives."""

import json
import math
import shutil
import signal
import time

import pytest
import torch
import torch.nn.functional as F

from shearling.config import load
from shearling.data.shards import open_dataset
from shearling.data.stream import BatchStream, EvaluationSet
from shearling.errors import Interrupted, UserError
from shearling.files import locked
from shearling.models.transformer import Transformer
from shearling.training import checkpoints, step
from shearling.training.device import pick_compile
from shearling.training.evaluate import evaluate
from shearling.training.loop import train
from shearling.training.run_folder import RunFolder
from shearling.training.spec import ExperimentSpec
from shearling.training.state import build_state, load_weights
from shearling.training.step import train_step

CPU = torch.device("cpu")


def final_hash(config: ExperimentSpec) -> str:
    folder = checkpoints.step_folder(RunFolder(config.output_dir).checkpoints, config.training.steps)
    return checkpoints.weights_hash(folder)


@pytest.fixture
def swapped_tokenizer(corpus, tmp_path):
    """The corpus with one byte of its tokenizer's file changed."""
    folder = tmp_path / "swapped"
    shutil.copytree(corpus, folder)
    file = folder / "tokenizer" / "tokenizer.model"
    content = file.read_bytes().replace(b"<unk>", b"<unx>", 1)
    assert content != file.read_bytes()
    file.write_bytes(content)
    return folder


def flat(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


class TestARun:
    def test_learns_its_text(self, experiment):
        results = train(experiment(training={"steps": 60, "evaluate_every": 30}))
        assert results["first"]["loss"] == pytest.approx(math.log(300), abs=0.2)
        assert results["loss"] < 0.5 * results["first"]["loss"]
        assert (results["skipped_steps"], results["outcome"]) == (0, "finished")

    def test_leaves_a_folder_that_says_everything(self, experiment):
        config = experiment()
        results = train(config)
        run = RunFolder(config.output_dir)
        assert load(ExperimentSpec, run.config).value == config
        assert json.loads(run.results.read_text()) == results
        assert "step 12: validation loss" in run.log.read_text()
        assert (run.tokenizer / "tokenizer.model").exists()
        assert (run.checkpoints / "latest").readlink().name == "step_00000012"
        provenance = json.loads(run.provenance.read_text())
        assert provenance["packages"]["torch"] == torch.__version__
        lines = run.read_metrics()
        assert [line["step"] for line in lines if "loss" in line] == list(range(1, 13))
        evaluations = [line for line in lines if "validation_loss" in line]
        assert [line["step"] for line in evaluations] == [0, 6, 12]
        assert 0 == evaluations[0]["seconds"] < evaluations[1]["seconds"] < evaluations[2]["seconds"]
        assert results["tokens"] == 12 * 256
        assert results["seconds"] > 0
        assert results["weights_sha256"] == final_hash(config)
        assert results["perplexity"] == pytest.approx(math.exp(results["loss"]))

    def test_is_the_same_twice(self, experiment, tmp_path):
        first, second = experiment(), experiment(output_dir=str(tmp_path / "again"))
        train(first)
        train(second)
        assert final_hash(first) == final_hash(second)

    def test_depends_on_its_seed(self, experiment, tmp_path):
        first, second = experiment(), experiment(output_dir=str(tmp_path / "again"), seed=1)
        train(first)
        train(second)
        assert final_hash(first) != final_hash(second)

    def test_of_minutes_spends_them(self, experiment):
        config = experiment(training={"minutes": 0.1, "evaluate_every": None, "save_every": None})
        began = time.perf_counter()
        results = train(config)
        assert results["seconds"] == pytest.approx(6, abs=1)
        assert time.perf_counter() - began < 12
        rates = [line["learning_rate"] for line in RunFolder(config.output_dir).read_metrics() if "loss" in line]
        assert rates[-1] == pytest.approx(0.1 * max(rates), rel=0.2)

    def test_of_minutes_counts_what_came_before_it(self, experiment):
        config = experiment(training={"minutes": 0.1, "evaluate_every": None, "save_every": None})
        results = train(config, began=time.perf_counter() - 4)
        assert results["seconds"] == pytest.approx(2, abs=1)
        rates = [line["learning_rate"] for line in RunFolder(config.output_dir).read_metrics() if "loss" in line]
        assert rates[-1] == pytest.approx(0.1 * max(rates), rel=0.2)

    @pytest.mark.parametrize(
        "options", [{"save_every": 1, "evaluate_every": None}, {"evaluate_every": 1, "save_every": None}]
    )
    def test_of_minutes_evaluates_and_saves_its_last_step(self, experiment, options):
        config = experiment(training={"minutes": 0.04, "optimizer": {"learning_rate": 1e-9}, **options})
        results = train(config)
        run = RunFolder(config.output_dir)
        last = max(line["step"] for line in run.read_metrics())
        assert results["step"] == last == checkpoints.saved_steps(run.checkpoints)[-1]

    def test_keeps_the_best_and_the_last_checkpoints(self, experiment):
        # A learning rate far too high after a good start: later evaluations are worse than the first.
        config = experiment(training={"optimizer": {"learning_rate": 3.0}, "clip": None, "steps": 8})
        results = train(config)
        root = RunFolder(config.output_dir).checkpoints
        assert results["best"]["step"] == 0
        assert checkpoints.saved_steps(root) == [0, 6, 8]
        assert (root / "best").readlink().name == "step_00000000"


class TestAStep:
    def test_accumulates_micro_batches_to_the_gradient_of_the_whole(self, experiment):
        norms, ends = [], []
        for micro_batch in (8, 3):
            config = experiment(training={"micro_batch": micro_batch, "precision": "fp32"})
            state = build_state(config, CPU, compile_blocks=False)
            batch = BatchStream(open_dataset(config.data.path, "train"), 32, 8, seed=0).batch(0)
            norms.append(train_step(state, batch, config, factor=1e-3 / config.training.optimizer.learning_rate))
            ends.append(flat(state.model))
        assert norms[0] == pytest.approx(norms[1], rel=1e-5)
        torch.testing.assert_close(*ends, rtol=1e-4, atol=1e-6)

    def test_is_adamw_in_float64_with_decay_on_matrices_alone(self, experiment):
        config = experiment(
            training={"precision": "fp32", "clip": 0.05, "optimizer": {"weight_decay": 0.5, "eps": 1e-6}}
        )
        state = build_state(config, CPU, compile_blocks=False)
        stream = BatchStream(open_dataset(config.data.path, "train"), 32, 8, seed=0)
        weights = {name: p.detach().double() for name, p in state.model.named_parameters()}
        first, second = ({name: torch.zeros_like(w) for name, w in weights.items()} for _ in range(2))
        for t in range(1, 4):
            batch = stream.batch(t)
            shadow = Transformer(config.model).double()
            load_weights(shadow, weights)
            shadow.dtype = torch.float64
            tokens = torch.from_numpy(batch.tokens)
            hidden = shadow(tokens[:, :-1])
            F.cross_entropy((hidden @ shadow.lm_head.weight_VD.t()).flatten(0, 1), tokens[:, 1:].flatten()).backward()
            gradients = {name: p.grad for name, p in shadow.named_parameters()}
            norm = torch.cat([g.flatten() for g in gradients.values()]).norm()
            train_step(state, batch, config, factor=0.01 / config.training.optimizer.learning_rate)
            for name, w in weights.items():
                g = gradients[name] * min(1.0, 0.05 / norm.item())
                first[name] = 0.9 * first[name] + 0.1 * g
                second[name] = 0.95 * second[name] + 0.05 * g**2
                update = first[name] / (1 - 0.9**t) / ((second[name] / (1 - 0.95**t)).sqrt() + 1e-6)
                decay = 0.5 if w.ndim == 2 else 0.0
                weights[name] = w - 0.01 * (update + decay * w)
        for name, p in state.model.named_parameters():
            torch.testing.assert_close(p.detach().double(), weights[name], rtol=1e-3, atol=2e-5)

    def test_that_is_not_finite_changes_no_weight_and_is_counted(self, experiment, monkeypatch):
        config = experiment()
        state = build_state(config, CPU, compile_blocks=False)
        batch = BatchStream(open_dataset(config.data.path, "train"), 32, 8, seed=0).batch(0)
        before = flat(state.model)
        real = step.head_loss
        monkeypatch.setattr(step, "head_loss", lambda *a: real(*a) * math.nan)
        train_step(state, batch, config, factor=1e-2 / config.training.optimizer.learning_rate)
        assert torch.equal(flat(state.model), before)
        assert (state.progress.skipped, state.progress.step) == (1, 1)
        monkeypatch.setattr(step, "head_loss", real)
        train_step(state, batch, config, factor=1e-2 / config.training.optimizer.learning_rate)
        assert not torch.equal(flat(state.model), before)
        assert state.progress.skipped_in_a_row == 0


def test_a_loss_that_stays_not_finite_stops_the_run_and_says_where_to_look(experiment, monkeypatch):
    real = step.head_loss
    monkeypatch.setattr(step, "head_loss", lambda *a: real(*a) * math.nan)
    with pytest.raises(UserError, match=r"not finite for\s3 steps in a row(?s:.*)learning_rate"):
        train(experiment(training={"max_skipped": 3}))


def test_a_run_that_diverged_leaves_its_results_and_is_no_run_to_go_on_with(experiment, monkeypatch):
    real = step.head_loss
    config = experiment(training={"max_skipped": 3})
    with monkeypatch.context() as patch:
        patch.setattr(step, "head_loss", lambda *a: real(*a) * math.nan)
        with pytest.raises(UserError, match="not finite"):
            train(config)
    results = json.loads(RunFolder(config.output_dir).results.read_text())
    assert (results["outcome"], results["skipped_steps"], results["weights_sha256"]) == ("diverged", 3, None)
    assert results["tokens"] == 3 * 256
    assert results["loss"] == results["first"]["loss"] == pytest.approx(math.log(300), abs=0.2)
    with pytest.raises(UserError, match="the run diverged: it stopped after 768 tokens"):
        train(config, resume=True)
    assert json.loads(RunFolder(config.output_dir).results.read_text()) == results


def test_evaluation_is_the_mean_over_tokens_and_bits_over_bytes_in_float64(experiment):
    config = experiment(data={"seq_len": 7, "validation_tokens": 300}, training={"tokens_per_update": 70})
    state = build_state(config, CPU, compile_blocks=False)
    state.model.dtype = torch.float32
    held_out = EvaluationSet.take(open_dataset(config.data.path, "validation"), 300)
    got = evaluate(state.model, held_out, 0, seq_len=7, sequences=3, mask_documents=False)
    tokens, total = torch.from_numpy(held_out.tokens), 0.0
    for start in range(0, len(tokens) - 1, 7):
        piece = tokens[start : start + 8]
        logits = state.model.logits(state.model(piece[None, :-1]))[0].double()
        total -= logits.log_softmax(-1)[torch.arange(len(piece) - 1), piece[1:]].sum().item()
    assert got.loss == pytest.approx(total / (len(tokens) - 1), rel=1e-6)
    assert got.bits_per_byte == pytest.approx(total / math.log(2) / held_out.n_bytes, rel=1e-6)


class TestResuming:
    def stopped_at(self, config: ExperimentSpec, steps: int, monkeypatch) -> None:
        """Run `config` until a step later than `steps` fails like a crash would."""
        import shearling.training.loop as loop

        def crash(state, *arguments, **named):
            if state.progress.step >= steps:
                raise RuntimeError("crash")
            return train_step(state, *arguments, **named)

        with monkeypatch.context() as patch:
            patch.setattr(loop, "train_step", crash)
            with pytest.raises(RuntimeError, match="crash"):
                train(config)

    @pytest.mark.parametrize(
        "options",
        [{}, {"model": {"dropout": 0.1, "attention_dropout": 0.1}}, {"data": {"mask_documents": True}}],
        ids=["plain", "dropout", "document-masking"],
    )
    def test_ends_bit_identical_to_a_run_never_stopped(self, experiment, tmp_path, monkeypatch, options):
        whole, stopped = experiment(**options), experiment(**options, output_dir=str(tmp_path / "stopped"))
        train(whole)
        self.stopped_at(stopped, 7, monkeypatch)
        results = train(stopped, resume=True)
        assert final_hash(whole) == final_hash(stopped)
        lines = RunFolder(stopped.output_dir).read_metrics()
        assert [line["step"] for line in lines if "loss" in line] == list(range(1, 13))
        assert results["best"] == json.loads(RunFolder(whole.output_dir).results.read_text())["best"]

    @pytest.mark.parametrize("damage", ["truncated", "altered", "missing", "no sums"])
    def test_goes_back_past_a_damaged_checkpoint(self, experiment, tmp_path, monkeypatch, capsys, damage):
        whole, stopped = experiment(), experiment(output_dir=str(tmp_path / "stopped"))
        train(whole)
        self.stopped_at(stopped, 7, monkeypatch)
        root = RunFolder(stopped.output_dir).checkpoints
        assert checkpoints.saved_steps(root) == [4, 6]
        path = root / "step_00000006" / "optimizer.safetensors"
        content = path.read_bytes()
        if damage == "truncated":
            path.write_bytes(content[:-1])
        elif damage == "altered":
            path.write_bytes(content[:-100] + bytes([content[-100] ^ 1]) + content[-99:])
        elif damage == "missing":
            path.unlink()
        else:
            (root / "step_00000006" / "checksums.json").write_text("{}")
        train(stopped, resume=True)
        assert final_hash(whole) == final_hash(stopped)
        output = capsys.readouterr()
        assert "damaged" in output.out + output.err

    @pytest.mark.parametrize("at", [6, 12])
    def test_makes_up_for_an_evaluation_that_a_signal_cut_short(self, experiment, tmp_path, monkeypatch, at):
        import shearling.training.loop as loop

        whole, stopped = experiment(), experiment(output_dir=str(tmp_path / "stopped"))
        expected = train(whole)

        def interrupted(model, held_out, step, **named):
            if step == at:
                raise Interrupted(signal.SIGTERM)
            return evaluate(model, held_out, step, **named)

        with monkeypatch.context() as patch:
            patch.setattr(loop, "evaluate", interrupted)
            with pytest.raises(Interrupted):
                train(stopped)
        results = train(stopped, resume=True)
        assert {key: results[key] for key in ("step", "loss", "best", "first")} == {
            key: expected[key] for key in ("step", "loss", "best", "first")
        }
        evaluations = [
            line["step"] for line in RunFolder(stopped.output_dir).read_metrics() if "validation_loss" in line
        ]
        assert evaluations == [0, 6, 12]

    def test_repairs_links_that_a_kill_left_behind(self, experiment, monkeypatch):
        config = experiment()
        train(config)
        root = RunFolder(config.output_dir).checkpoints
        for name in ("latest", "best"):
            checkpoints.point(root, name, 10)
        train(config, resume=True)
        assert (root / "best").readlink().name == (root / "latest").readlink().name == "step_00000012"

    def test_where_no_checkpoint_is_whole_is_refused(self, experiment):
        config = experiment()
        train(config)
        for state in RunFolder(config.output_dir).checkpoints.glob("step_*/state.json"):
            state.write_text("{}")
        with pytest.raises(UserError, match="no whole checkpoint is left"):
            train(config, resume=True)

    def test_of_a_finished_run_changes_nothing(self, experiment):
        config = experiment()
        first = train(config)
        again = train(config, resume=True)
        assert {**again, "seconds": 0, "mfu": 0, "tokens_per_second": 0} == {
            **first, "seconds": 0, "mfu": 0, "tokens_per_second": 0,
        }  # fmt: skip

    def test_where_nothing_began_begins(self, experiment):
        assert train(experiment(), resume=True)["step"] == 12


class TestRefusals:
    def test_of_a_folder_that_holds_a_run(self, experiment):
        train(experiment())
        with pytest.raises(UserError, match="--resume"):
            train(experiment())

    @pytest.mark.parametrize(
        ("options", "named"),
        [
            ({"seed": 1}, "seed"),
            ({"training": {"clip": 0.5}}, "training.clip"),
            ({"model": {"d_model": 64}}, "d_model"),
        ],
    )
    def test_of_resuming_with_other_options_names_them(self, experiment, options, named):
        train(experiment())
        with pytest.raises(UserError, match=named):
            train(experiment(**options), resume=True)

    def test_of_resuming_on_other_data(self, experiment, tmp_path):
        from shearling.data.prepare import prepare

        train(experiment())
        (tmp_path / "other.txt").write_text("\n<|endoftext|>\n".join(f"Another story, number {i}." for i in range(200)))
        for name, how in (
            ("same-tokenizer", {"tokenizer": experiment().data.path / "tokenizer"}),
            ("new", {"vocab_size": 290}),
        ):
            prepare([str(tmp_path / "other.txt")], tmp_path / name, **how)
            other = experiment(data={"path": str(tmp_path / name)})
            with pytest.raises(UserError, match="data"):
                train(other, resume=True)

    def test_of_data_whose_tokenizer_was_swapped(self, experiment, swapped_tokenizer):
        config = experiment(data={"path": str(swapped_tokenizer)})
        with pytest.raises(UserError, match="not the tokenizer that these tokens were made with"):
            train(config)

    def test_of_writing_into_the_data(self, experiment):
        with pytest.raises(UserError, match="the folder of the data"):
            train(experiment(output_dir=str(experiment().data.path)))

    def test_of_a_vocabulary_smaller_than_the_tokenizers(self, experiment):
        with pytest.raises(UserError, match=r"model\.vocab_size 200 is smaller than the 300"):
            train(experiment(model={"vocab_size": 200}))

    def test_of_a_folder_that_another_process_trains_in(self, experiment):
        config = experiment()
        with locked(config.output_dir), pytest.raises(UserError, match="another process"):
            train(config)


class TestCompiling:
    def test_is_off_and_says_so_without_a_compiler(self, monkeypatch):
        monkeypatch.setenv("PATH", "")
        assert pick_compile("auto", CPU) == (False, "off: no C++ compiler (g++ or clang++) found")
        with pytest.raises(UserError, match="compiler"):
            pick_compile(True, CPU)

    @pytest.mark.slow
    def test_keeps_the_loss(self, experiment):
        try:
            pick_compile(True, CPU)
        except UserError as reason:
            pytest.skip(str(reason))
        losses = []
        for compile_blocks in (False, True):
            config = experiment(training={"precision": "fp32"})
            state = build_state(config, CPU, compile_blocks)
            stream = BatchStream(open_dataset(config.data.path, "train"), 32, 8, seed=0)
            losses.append(
                [
                    train_step(state, stream.batch(i), config, factor=1e-2 / config.training.optimizer.learning_rate)[0]
                    for i in range(4)
                ]
            )
        assert losses[0] == pytest.approx(losses[1], rel=1e-4)
