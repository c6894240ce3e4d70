"""`bench decode`: that all run the same model, what it refuses, and that its figures follow from what it measured."""

import json
import subprocess
import sys
from statistics import median

import numpy as np
import pytest

from shearling.bench.ceilings import UNIT, Ceilings, last_cache_bytes, read, read_bandwidth
from shearling.bench.decode_models import for_peer, prepare, random_model, smallest
from shearling.bench.decode_report import decode_table, summarize
from shearling.bench.process import STATUS
from shearling.cli import main
from shearling.formats import open_checkpoint
from shearling.models.spec import ModelSpec
from shearling.quantization import CODECS

SHAPE = {
    "d_model": 64, "n_layers": 2, "n_heads": 2, "intermediate_size": 96, "vocab_size": 320, "max_seq_len": 64,
}  # fmt: skip
MATRICES = 2 * (4 * 64 * 64 + 3 * 64 * 96) + 320 * 64


@pytest.fixture
def tiny(tmp_path):
    (tmp_path / "tiny.yaml").write_text(json.dumps({"model": SHAPE}))
    return str(tmp_path / "tiny.yaml")


def status(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(["bench", "decode", *arguments])
    return caught.value.code or 0


@pytest.mark.slow
def test_a_tiny_model_against_llama_cpp_and_transformers(tiny, capsys):
    pytest.importorskip("llama_cpp")
    options = ("--rounds", "1", "--tokens", "12", "--prompt", "20", "--batch", "3", "--threads", "1", "--json")
    assert status("--model", tiny, "--quantize", "f32", *options) == 0
    output = capsys.readouterr()
    results = json.loads(output.out)
    ours, *peers = results["entries"]
    assert [entry["contender"] for entry in results["entries"]] == ["shearling", "llama.cpp", "transformers"]
    assert {entry["weights"] for entry in results["entries"]} == {"f32"}
    assert ours["bytes_per_token"] >= 4 * MATRICES == peers[0]["bytes_per_token"] == peers[1]["bytes_per_token"]
    for entry in results["entries"]:
        assert 0 < entry["first_token_seconds"] < 60
        assert len(entry["cold_starts"]) == 3
        assert 2**25 < entry["peak_bytes"] < 2**33
        assert entry["decode_share"] > 0
        assert entry["prefill_share"] > 0
        assert all(speed > 0 for speeds in entry["rounds"].values() for speed in speeds)
    assert ours["batch_tokens_per_second"] > 0
    for peer in peers:
        assert peer["batch_tokens_per_second"] is None
        ratio = results["ratios"][peer["contender"]]
        assert ratio["decode"] == pytest.approx(ours["decode_tokens_per_second"] / peer["decode_tokens_per_second"])
        assert ratio["prefill"] == pytest.approx(ours["prefill_tokens_per_second"] / peer["prefill_tokens_per_second"])
        assert ratio["same_tokens"] == 12
    assert decode_table(results).count("\n") > 8
    assert "round 1 of 1" in output.err


class TestRefusals:
    @pytest.mark.parametrize("peer", ["nobody", "shearling"])
    def test_of_an_unknown_peer_names_those_known(self, tiny, capsys, peer):
        assert status("--model", tiny, "--against", peer) == 2
        assert capsys.readouterr().err == (
            f"error: --against {peer}: no such peer; known are llama.cpp, transformers\n"
        )

    @pytest.mark.parametrize(("peer", "module"), [("llama.cpp", "llama_cpp"), ("transformers", "transformers")])
    def test_of_a_peer_that_is_not_installed_names_the_extra(self, tiny, capsys, monkeypatch, peer, module):
        monkeypatch.setitem(sys.modules, module, None)
        assert status("--model", tiny, "--against", peer) == 2
        assert "pip install 'shearling[bench]'" in capsys.readouterr().err

    def test_of_a_missing_file(self, capsys):
        assert status("--model", "nothing.gguf", "--against", "") == 2
        assert capsys.readouterr().err.startswith("error: --model nothing.gguf: no such file")

    def test_of_a_file_that_is_no_model(self, tmp_path, capsys):
        (tmp_path / "text.gguf").write_text("no model")
        assert status("--model", str(tmp_path / "text.gguf"), "--against", "") == 2
        assert "text.gguf: no model" in capsys.readouterr().err

    @pytest.mark.parametrize("option", ["--tokens", "--prompt"])
    def test_of_a_text_beyond_the_context(self, tiny, capsys, option):
        assert status("--model", tiny, "--against", "", "--tokens", "1", "--prompt", "1", option, "65") == 2
        assert f"{option} 65: the model's context is 64: lower it" in capsys.readouterr().err

    def test_of_an_unknown_codec_names_those_known(self, tiny, capsys):
        assert status("--model", tiny, "--against", "", "--quantize", "q6_k") == 2
        assert capsys.readouterr().err == "error: --quantize q6_k: one of f32, bf16, q8_0, q4_0, q4_1\n"

    def test_of_a_network_beyond_llama_s_graph(self, tmp_path, capsys):
        (tmp_path / "other.yaml").write_text(json.dumps({"model": {**SHAPE, "norm": {"kind": "layernorm"}}}))
        assert status("--model", str(tmp_path / "other.yaml"), "--against", "") == 2
        assert "which LLaMA's graph has not" in capsys.readouterr().err


@pytest.mark.skipif(not STATUS.is_file(), reason="no /proc here")
def test_the_peak_of_a_process_is_not_its_parent_s():
    held = np.ones(30_000_000)  # 240 MB
    code = "from shearling.bench.process import peak_bytes; print(peak_bytes())"
    peak = int(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)
    assert 2**22 < peak < held.nbytes / 2


class TestTheModel:
    @pytest.mark.parametrize(("codec", "bits"), [("f32", 32), ("bf16", 16), ("q8_0", 8.5), ("q4_0", 4.5), ("q4_1", 5)])
    def test_of_a_shape_is_stored_as_asked(self, tiny, tmp_path, codec, bits):
        work = prepare(tiny, codec, tmp_path, print)
        assert work.weights == codec
        assert work.bytes_per_token == MATRICES * bits / 8
        assert work.prefill_flops_per_token == 2 * (MATRICES - 320 * 64)

    def test_is_the_same_each_time(self):
        spec = ModelSpec(**SHAPE)
        one, other = random_model(spec), random_model(spec)
        assert all((one.tensors[name].read() == other.tensors[name].read()).all() for name in one.tensors)

    def test_has_a_vocabulary_to_write_with(self, tiny, tmp_path):
        tokenizer = prepare(tiny, None, tmp_path, print).checkpoint.tokenizer
        assert tokenizer.vocab_size == 320
        assert tokenizer.decode([tokenizer.bos_id, 319]) == "60"

    def test_looks_up_an_untied_embedding_and_reads_none_of_it(self, tmp_path):
        (tmp_path / "untied.yaml").write_text(json.dumps({"model": {**SHAPE, "tie_embeddings": False}}))
        assert prepare(str(tmp_path / "untied.yaml"), "f32", tmp_path, print).bytes_per_token == 4 * MATRICES

    def test_in_a_gguf_file_is_taken_as_it_is(self, tiny, tmp_path):
        made = prepare(tiny, "q4_0", tmp_path, print)
        (tmp_path / "elsewhere").mkdir()
        again = prepare(str(made.gguf), None, tmp_path / "elsewhere", print)
        assert again.gguf == made.gguf
        assert again.weights == "q4_0"

    def test_of_another_format_is_converted(self, tiny, tmp_path):
        made = prepare(tiny, "f32", tmp_path, print)
        folder, _ = for_peer(made, "huggingface", tmp_path, print)
        (tmp_path / "elsewhere").mkdir()
        again = prepare(str(folder), "q8_0", tmp_path / "elsewhere", print)
        name = "layers.1.feedforward.branch.down_proj.weight"
        stored = CODECS["q8_0"].encode(made.checkpoint.tensors[name].read())
        assert (again.checkpoint.tensors[name].parts[0] == stored[0]).all()

    def test_for_transformers_has_the_quantized_weights_in_bf16(self, tiny, tmp_path):
        work = prepare(tiny, "q8_0", tmp_path, print)
        folder, stored = for_peer(work, "huggingface", tmp_path, print)
        assert stored == "bf16"
        name = "layers.0.feedforward.branch.up_proj.weight"
        theirs, ours = open_checkpoint(folder).tensors[name], work.checkpoint.tensors[name].read()
        assert theirs.codec.name == "bf16"
        np.testing.assert_allclose(theirs.read(), ours, rtol=2**-8)

    def test_without_weights_is_of_the_same_kind(self, tiny, tmp_path):
        few = smallest(prepare(tiny, "q4_1", tmp_path, print), tmp_path)
        assert few.weights == "q4_1"
        assert few.bytes_per_token < 2**15


class TestCeilings:
    def test_the_reading_kernel_reads_every_number(self):
        numbers = np.random.default_rng(0).integers(0, 9, 3 * UNIT).astype(np.float32)
        assert read(numbers.ctypes.data, numbers.size, 2) == 2 * numbers.sum()

    def test_a_bandwidth_is_that_of_a_memory(self):
        assert 1e8 < read_bandwidth(1 << 20, threads=2, seconds=0.05) < 1e13

    def test_the_last_cache_is_the_largest_of_data(self, tmp_path):
        for number, (kind, size) in enumerate([("Data", "48K"), ("Instruction", "64M"), ("Unified", "32M")]):
            (tmp_path / f"index{number}").mkdir()
            (tmp_path / f"index{number}" / "type").write_text(f"{kind}\n")
            (tmp_path / f"index{number}" / "size").write_text(f"{size}\n")
        assert last_cache_bytes(tmp_path) == 32 << 20

    def test_a_system_that_does_not_say_has_no_known_cache(self, tmp_path):
        assert last_cache_bytes(tmp_path / "nothing") is None

    @pytest.mark.slow
    def test_are_all_positive(self):
        with Ceilings(1) as machine:
            for figures in (machine.peaks, machine.bandwidths(), machine.bandwidths()):
                assert all(figure is None or figure > 0 for figure in figures.values())


SPEEDS = {
    "shearling": {"decode": [400.0, 100.0, 300.0], "prefill": [900.0, 1000.0, 1100.0], "batch": [1.0, 3.0, 2.0]},
    "peer": {"decode": [100.0, 200.0, 50.0], "prefill": [500.0, 500.0, 500.0]},
}
PEAKS = {"cache_bytes": 1500, "fp32_flops": 1e5, "bf16_flops": 4e5}
BANDWIDTHS = [
    {"dram_bytes_per_second": dram * 1e6, "cache_bytes_per_second": cache * 1e6}
    for dram, cache in ((1, 4), (2, 5), (1, 2))
]


class TestTheReport:
    def results(self, first_tokens=None, peaks=PEAKS, bandwidths=BANDWIDTHS):
        facts = {
            "shearling": {
                "weights": "q8_0", "bytes_per_token": 1000, "peak_bytes": 5000, "text": [1, 2, 3, 4],
                "anonymous_bytes": 2000,
            },
            "peer": {"weights": "f32", "bytes_per_token": 2000, "peak_bytes": 8000, "text": [1, 2, 9, 4]},
        }  # fmt: skip
        what = {"model": "tiny", "weights": "q8_0", "threads": 2, "tokens": 4, "prompt": 9, "batch": 2, "rounds": 3}
        memory = {"weights_bytes": 1600, "kv_bytes": 200, "without_model_bytes": 3000}
        starts = {"shearling": [1.0, 2.0, 4.0], "peer": [3.0, 2.0, 6.0]} if first_tokens is None else first_tokens
        return summarize(what, SPEEDS, starts, facts, peaks, bandwidths, flops_per_token=40, memory=memory)

    def test_ratios_are_medians_of_the_rounds_ratios(self):
        ratio = self.results()["ratios"]["peer"]
        assert ratio["decode"] == median([400 / 100, 100 / 200, 300 / 50])
        assert ratio["prefill"] == 2.0
        assert ratio["first_token"] == 1.5
        assert ratio["memory"] == 5000 / 8000
        assert "batch" not in ratio

    def test_figures_are_medians_over_rounds(self):
        ours, peer = self.results()["entries"]
        assert (ours["decode_tokens_per_second"], ours["batch_tokens_per_second"]) == (300.0, 2.0)
        assert ours["first_token_seconds"] == 2.0
        assert peer["decode_tokens_per_second"] == 100.0
        assert peer["batch_tokens_per_second"] is None

    def test_a_share_is_of_the_cache_where_the_weights_fit_into_it(self):
        ours, peer = self.results()["entries"]
        assert ours["decode_ceiling"] == "cache"
        assert peer["decode_ceiling"] == "DRAM"

    def test_a_share_is_the_median_of_what_it_was_in_each_round(self):
        ours, peer = self.results()["entries"]
        assert ours["decode_share"] == pytest.approx(1000 * median([400 / 4e6, 100 / 5e6, 300 / 2e6]))
        assert peer["decode_share"] == pytest.approx(2000 * median([100 / 1e6, 200 / 2e6, 50 / 1e6]))

    def test_bandwidths_are_medians_over_rounds(self):
        ceilings = self.results()["ceilings"]
        assert (ceilings["dram_bytes_per_second"], ceilings["cache_bytes_per_second"]) == (1e6, 4e6)
        assert ceilings["rounds"] == BANDWIDTHS

    def test_a_share_is_of_dram_where_the_cache_is_unknown(self):
        unknown = [{**each, "cache_bytes_per_second": None} for each in BANDWIDTHS]
        results = self.results(peaks={**PEAKS, "cache_bytes": None}, bandwidths=unknown)
        assert results["entries"][0]["decode_ceiling"] == "DRAM"
        assert results["entries"][0]["decode_share"] == pytest.approx(1000 * median([400 / 1e6, 100 / 2e6, 300 / 1e6]))
        assert "size of the cache unknown" in decode_table(results)

    def test_prefill_is_held_against_the_peak_of_what_weights_are_stored_as(self):
        ours, peer = self.results()["entries"]
        assert ours["prefill_share"] == 1000 * 40 / 4e5
        assert peer["prefill_share"] == 500 * 40 / 1e5

    def test_memory_over_weights_leaves_out_libraries_and_the_cache_of_keys(self):
        assert self.results()["memory"]["over_weights"] == (5000 - 3000 - 200) / 1600

    def test_tokens_are_the_same_up_to_the_first_that_differs(self):
        assert self.results()["ratios"]["peer"]["same_tokens"] == 2

    def test_as_text_has_a_line_for_each_contender(self):
        lines = decode_table(self.results()).splitlines()
        assert lines[2].split()[:5] == ["shearling", "q8_0", "300", "1,000", "2"]
        assert lines[3].split()[:5] == ["peer", "f32", "100", "500", "-"]
        assert "decode 4.00 x, prefill 2.00 x, first token 1.50 x" in lines[4]

    def test_as_text_counts_in_the_singular_where_there_is_one(self):
        results = self.results()
        assert "2 threads: 4 tokens decoded, 9 read at once, 2 sequences side by side; 3 rounds" in decode_table(
            results
        )
        ones = results | dict.fromkeys(("threads", "tokens", "batch", "rounds"), 1)
        assert "1 thread: 1 token decoded, 9 read at once, 1 sequence side by side; 1 round\n" in decode_table(ones)

    def test_as_text_without_cold_starts_says_nothing_of_them(self):
        assert "first token 1" not in decode_table(self.results(first_tokens={}))
