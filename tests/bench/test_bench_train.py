"""`bench train`: what it refuses, and that its figures follow from what it measured."""

import json
import math
from statistics import median

import pytest
import torch

from shearling.bench.contenders import CONTENDERS, llama_config
from shearling.bench.report import training_table
from shearling.bench.shapes import load_shape
from shearling.bench.train import Entry, _report, bench_train
from shearling.cli import main
from shearling.errors import UserError
from shearling.models.cost import training_flops_per_token
from shearling.models.norm_spec import LayerNormSpec
from shearling.models.rope import inverse_frequencies
from shearling.models.spec import Llama3ScalingSpec, ModelSpec, RoPESpec

TINY = """
model: {d_model: 32, n_layers: 1, n_heads: 2, intermediate_size: 64, vocab_size: 100, max_seq_len: 16}
"""
SPEC = ModelSpec(d_model=32, n_layers=1, n_heads=2, intermediate_size=64, vocab_size=100, max_seq_len=16)


@pytest.fixture
def tiny(tmp_path):
    (tmp_path / "tiny.yaml").write_text(TINY)
    return str(tmp_path / "tiny.yaml")


def status(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(["bench", "train", *arguments])
    return caught.value.code or 0


def bench(spec=SPEC, against=("transformers",), seq_len=16, **options):
    return bench_train(
        spec, against, **{"batch": 2, "seq_len": seq_len, "rounds": 1, "steps": 1, "say": lambda _: None, **options}
    )


@pytest.mark.slow
def test_a_tiny_model_against_transformers(tiny, capsys, monkeypatch):
    monkeypatch.setattr("shearling.bench.train.cxx_compiler", lambda: None)  # compiling takes a minute
    assert status("--model", tiny, "--batch", "2", "--seq-len", "16", "--rounds", "1", "--steps", "2", "--json") == 0
    output = capsys.readouterr()
    results = json.loads(output.out)
    assert "no C++ compiler found: eager only" in output.err
    ours, theirs = results["entries"]
    assert (ours["contender"], theirs["contender"]) == ("shearling", "transformers")
    assert {ours["mode"], theirs["mode"]} == {"eager"}
    ratio = results["ratios"]["transformers"]
    assert ratio["speed"] == pytest.approx(ours["tokens_per_second"] / theirs["tokens_per_second"])
    assert ratio["memory"] == pytest.approx(ours["peak_bytes"] / theirs["peak_bytes"])
    for entry in results["entries"]:
        assert 2**26 < entry["peak_bytes"] < 2**33  # a process that has loaded torch, and no more than this machine
        flops = entry["tokens_per_second"] * training_flops_per_token(SPEC, 16)
        assert entry["mfu"] == pytest.approx(flops / results["peak_flops"])
    assert training_table(results).splitlines()[-1].startswith("ours / transformers")


class TestTheReport:
    def entries(self):
        return [
            Entry("shearling", False, [2.0, 1.0, 4.0], 10, 50, 300),
            Entry("shearling", True, [1.0, 2.0, 3.0], 10, 50, 400),
            Entry("peer", False, [3.0, 3.0, 3.0], 10, 50, 200),
            Entry("peer", True, [5.0, 5.0, 5.0], 10, 50, 100),
        ]

    def test_compares_each_at_its_best(self):
        # Medians: ours 2.0 both eager and compiled, of which the first counts; the peer 3.0 eager.
        ratio = _report(self.entries(), 7, 1e3)["ratios"]["peer"]
        assert ratio["speed"] == median([3 / 2, 3 / 1, 3 / 4])
        assert ratio["memory"] == 300 / 200

    def test_gives_speeds_as_medians_over_rounds(self):
        entries = _report(self.entries(), 7, 1e3)["entries"]
        assert [entry["tokens_per_second"] for entry in entries] == [250.0, 250.0, 500 / 3, 100.0]
        assert entries[3]["mfu"] == 100 * 7 / 1e3

    def test_as_text_has_a_line_for_each_entry_and_ratio(self):
        results = _report(self.entries(), 7, 1e3)
        lines = training_table(results).splitlines()
        assert len(lines) == 2 + 4 + 1
        assert "1.50 x speed, 1.50 x memory" in lines[-1]


class TestRefusals:
    @pytest.mark.parametrize("peer", ["nobody", "shearling"])
    def test_of_an_unknown_peer_names_those_known(self, tiny, capsys, peer):
        assert status("--model", tiny, "--against", f"transformers,{peer}") == 2
        error = f"error: --against {peer}: no such peer; known are litgpt, transformers\n"
        assert capsys.readouterr().err == error

    def test_of_an_unknown_model_names_those_known(self, capsys, root, monkeypatch):
        monkeypatch.chdir(root)
        assert status("--model", "999M") == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: --model 999M: no such file, and no such name; known are ")
        assert "llama-15m" in line

    def test_of_a_file_that_is_no_model(self, tmp_path, capsys):
        (tmp_path / "other.yaml").write_text("training: {steps: 3}\n")
        assert status("--model", str(tmp_path / "other.yaml")) == 2
        assert "other.yaml" in capsys.readouterr().err

    def test_of_sequences_longer_than_the_context(self):
        with pytest.raises(UserError, match=r"--seq-len 17: the model's max_seq_len is 16"):
            bench(seq_len=17)

    @pytest.mark.parametrize("option", ["--batch", "--rounds", "--steps", "--seq-len"])
    def test_of_counts_below_one(self, tiny, capsys, option):
        assert status("--model", tiny, option, "0") == 2
        assert option in capsys.readouterr().err

    @pytest.mark.parametrize(
        "changed", [{"norm": LayerNormSpec()}, {"activation": "gelu"}, {"sliding_window": 8}, {"dropout": 0.1}]
    )
    def test_of_a_network_that_the_peer_does_not_have(self, changed):
        from transformers import LlamaConfig

        with pytest.raises(UserError, match="Llama has no"):
            llama_config(SPEC.model_copy(update=changed), LlamaConfig)

    @pytest.mark.slow
    def test_by_a_contender_s_own_process_reach_the_user(self, monkeypatch):
        monkeypatch.setattr("shearling.bench.train.cxx_compiler", lambda: None)
        with pytest.raises(UserError, match="Llama has no"):
            bench(SPEC.model_copy(update={"activation": "gelu"}))

    @pytest.mark.parametrize(("peer", "extra"), [("transformers", "bench"), ("litgpt", "litgpt")])
    def test_of_a_peer_that_is_not_installed_names_the_extra(self, monkeypatch, peer, extra):
        import sys

        monkeypatch.setitem(sys.modules, peer, None)
        with pytest.raises(UserError, match=rf"pip install 'shearling\[{extra}\]'"):
            CONTENDERS[peer](SPEC, False)


@pytest.mark.parametrize("peer", ["transformers", "litgpt"])
def test_a_peer_learns_what_it_is_shown(peer):
    pytest.importorskip(peer)
    step = CONTENDERS[peer](SPEC, False)
    tokens = torch.randint(SPEC.vocab_size, (2, 17), generator=torch.Generator().manual_seed(0))
    losses = [step(tokens) for _ in range(30)]
    assert losses[0] > math.log(SPEC.vocab_size) - 0.3  # litgpt's own initial weights give more
    assert losses[-1] < losses[0] - 0.5


@pytest.mark.parametrize("name", ["15M", "llama-15m", "LLAMA-15M", "configs/models/llama-15m.yaml"])
def test_a_model_is_found_by_file_name_or_size(root, monkeypatch, name):
    monkeypatch.chdir(root)
    assert load_shape(name) == load_shape("configs/models/llama-15m.yaml")
    assert load_shape(name).d_model == 288


def test_a_model_that_is_not_found_is_refused_with_what_could_be_given(root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outside = (
        "no configs/models/ here whose names could be given: give a YAML file .*; `bench decode` takes a model's file"
    )
    with pytest.raises(UserError, match=f"--model nope: no such file, and {outside}"):
        load_shape("nope")
    monkeypatch.chdir(root)
    with pytest.raises(UserError, match=r"--model nope: no such file, and no such name; known are .*llama-15m.*: give"):
        load_shape("nope")


@pytest.mark.parametrize("bias", [True, False])
def test_a_peer_s_network_has_as_many_parameters_as_ours(bias):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from shearling.models.transformer import Transformer

    spec = SPEC.model_copy(update={"attention_bias": bias, "feedforward_bias": bias, "tie_embeddings": bias})
    with torch.device("meta"):
        theirs = LlamaForCausalLM(llama_config(spec, LlamaConfig))
    assert sum(p.numel() for p in theirs.parameters()) == sum(p.numel() for p in Transformer(spec).parameters())


def test_a_peer_s_network_turns_by_our_scaled_frequencies():
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    scaling = Llama3ScalingSpec(factor=8.0, original_max_seq_len=8)
    spec = SPEC.model_copy(update={"position": RoPESpec(theta=500.0, scaling=scaling)})
    theirs = LlamaForCausalLM(llama_config(spec, LlamaConfig)).model.rotary_emb.inv_freq
    torch.testing.assert_close(theirs, torch.from_numpy(inverse_frequencies(spec)[0]))
