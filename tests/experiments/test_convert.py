"""Conversion: the model that comes out is the one that went in, or nothing comes out."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from convert_models import LLAMA2C, left_in, logits, made

from shearling.cli import main
from shearling.data.tokenizers import load_tokenizer
from shearling.engine.reference import ReferenceEngine
from shearling.errors import UserError
from shearling.experiments.convert import convert, report
from shearling.experiments.convert.perplexity import SAMPLE_TOKENS, perplexity, sample_tokens
from shearling.formats import open_checkpoint
from shearling.models.transformer import Transformer
from shearling.training.loop import train


@pytest.fixture
def stories(assets) -> Path:
    return assets / "models" / "stories260K.bin"


@pytest.fixture
def tok512(assets) -> Path:
    return assets / "tokenizers" / "tok512" / "tok512.bin"


@pytest.fixture(scope="module")
def trained(tmp_path_factory, make_experiment) -> Path:
    """A run folder of twelve steps."""
    config = make_experiment(tmp_path_factory.mktemp("trained"), model=LLAMA2C)
    train(config)
    return config.output_dir


class TestTheResult:
    def test_round_all_formats_is_the_trained_model_to_the_last_bit(self, trained, tmp_path):
        steps = {"a.gguf": {}, "hf": {}, "c.bin": {}, "d.bin": {"version": 1}, "run": {"to": "run"}}
        source = trained
        for name, options in steps.items():
            figures = convert(source, tmp_path / name, **options)
            assert not figures["rounded"]
            source = tmp_path / name
        np.testing.assert_array_equal(logits(source), logits(trained))
        ours, theirs = open_checkpoint(source), open_checkpoint(trained)
        assert ours.spec.max_seq_len == theirs.spec.max_seq_len
        assert ours.tokenizer.encode("Lily saw a cat. 🐑") == theirs.tokenizer.encode("Lily saw a cat. 🐑")

    def test_in_a_folder_is_what_transformers_loads(self, trained, tmp_path):
        from transformers import AutoModelForCausalLM, AutoTokenizer

        convert(trained, tmp_path / "hf")
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval()
        with torch.no_grad():
            expected = theirs(torch.arange(3, 33)[None]).logits[0].numpy()
        np.testing.assert_allclose(logits(trained), expected, atol=1e-4)
        words = "Lily saw a cat. Tom lost the 3rd hat"
        ids = AutoTokenizer.from_pretrained(tmp_path / "hf").encode(words, add_special_tokens=False)
        assert ids == open_checkpoint(trained).tokenizer.encode(words)

    def test_in_gguf_is_what_llama_cpp_loads(self, trained, tmp_path):
        llama_cpp = pytest.importorskip("llama_cpp")
        convert(trained, tmp_path / "a.gguf")
        theirs = llama_cpp.Llama(str(tmp_path / "a.gguf"), n_ctx=32, logits_all=True, verbose=False)
        theirs.eval(list(range(3, 33)))
        np.testing.assert_allclose(logits(trained), np.array(theirs.eval_logits), atol=0.02)

    @pytest.mark.parametrize(
        ("name", "options", "codecs", "bits"),
        [
            ("a.gguf", {"quantize": "q8_0"}, ["q8_0"], 8.5),
            ("a.gguf", {"quantize": "Q4_0"}, ["q4_0"], 4.5),
            ("a.gguf", {"dtype": "fp16"}, ["f16"], 16),
            ("hf", {"dtype": "bf16"}, ["bf16"], 16),
            ("a.bin", {"quantize": "q8_0"}, ["int8"], 8.5),
            ("a.bin", {"quantize": "int8", "group_size": 32}, ["int8"], 9),
            ("a.bin", {"version": 2}, ["int8"], 8.5),
            ("run", {"quantize": "nf4", "to": "run"}, ["nf4"], 4.5),
            ("run", {"quantize": "int4", "group_size": 32, "to": "run"}, ["int4"], 4.75),
        ],
    )
    def test_has_the_weights_that_were_asked_for(self, tmp_path, name, options, codecs, bits):
        figures = convert(made(tmp_path / "source"), tmp_path / name, **options)
        assert figures["codecs"] == codecs
        assert figures["rounded"]
        # The norms' gains stay in 32 bits.
        assert bits <= figures["bits_per_weight"] < bits + 0.2
        assert 0 < figures["logits"]["largest"] < figures["logits"]["scale"]

    def test_keeps_the_source_s_weights_where_nothing_is_asked(self, tmp_path):
        half = convert(made(tmp_path / "source"), tmp_path / "half.gguf", dtype="f16")
        again = convert(tmp_path / "half.gguf", tmp_path / "hf")
        assert (half["codecs"], again["codecs"], again["rounded"]) == (["f16"], ["f16"], False)
        eight = convert(tmp_path / "source", tmp_path / "v2.bin", quantize="q8_0")
        again = convert(tmp_path / "v2.bin", tmp_path / "again.bin")
        assert (eight["version"], again["version"], again["rounded"]) == (2, 2, False)

    def test_is_the_same_file_each_time(self, tmp_path):
        made(tmp_path / "source")
        for name in ("a.gguf", "b.gguf"):
            convert(tmp_path / "source", tmp_path / name, quantize="q4_0")
        assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()

    @pytest.mark.parametrize(
        ("name", "options"), [("v1.bin", {"version": 1}), ("a.gguf", {}), ("hf", {}), ("run", {"to": "run"})]
    )
    def test_of_published_weights_writes_as_they_do(self, tmp_path, stories, tok512, name, options):
        convert(stories, tmp_path / name, tokenizer=tok512, **options)
        np.testing.assert_allclose(logits(tmp_path / name), logits(stories), atol=1e-4)
        text = "Once upon a time, Zoë met a 🐑."
        assert open_checkpoint(tmp_path / name).tokenizer.encode(text) == load_tokenizer(tok512).encode(text)

    @pytest.mark.parametrize("name", ["a.gguf", "hf", "run"])
    @pytest.mark.parametrize(
        "options",
        [
            {"n_kv_heads": 1, "tie_embeddings": False},
            {"position": {"kind": "rope", "theta": 5e5, "scaling": {"kind": "linear", "factor": 2.0}}},
            {"position": {"kind": "rope", "scaling": {"kind": "llama3", "factor": 8.0, "original_max_seq_len": 32}}},
            {"position": {"kind": "rope", "scaling": {"kind": "yarn", "factor": 4.0, "original_max_seq_len": 16}}},
        ],
        ids=["one key head and a head of its own", "linear", "llama3", "yarn"],
    )
    def test_keeps_the_variants_of_llama_s_graph(self, tmp_path, options, name):
        made(tmp_path / "source", **options)
        convert(tmp_path / "source", tmp_path / name, to="run" if name == "run" else None)
        np.testing.assert_allclose(logits(tmp_path / name), logits(tmp_path / "source"), atol=1e-4)

    @pytest.mark.parametrize(
        ("options", "to"),
        [
            ({"placement": {"kind": "sandwich"}, "norm": {"kind": "layernorm"}}, "run"),
            ({"placement": {"kind": "ngpt"}, "final_norm": False}, "run"),
            ({"arch": "gpt2", "norm": {"kind": "layernorm"}, "position": {"kind": "learned"}, "activation": "gelu",
              "attention_bias": True, "feedforward_bias": True}, "huggingface"),
            ({"arch": "bert", "norm": {"kind": "layernorm"}, "position": {"kind": "learned"}, "activation": "gelu_erf",
              "attention_bias": True, "feedforward_bias": True, "placement": {"kind": "post"}, "final_norm": False,
              "embedding_norm": True, "init": "plain"}, "huggingface"),
        ],
        ids=["sandwich", "ngpt", "gpt2", "bert"],
    )  # fmt: skip
    def test_beyond_llama_is_compared_by_the_torch_model(self, tmp_path, options, to):
        figures = convert(made(tmp_path / "source", **options), tmp_path / "result", to=to)
        assert figures["format"] == to
        assert figures["logits"]["largest"] <= 1e-4 * figures["logits"]["scale"]


class TestPerplexity:
    def test_of_random_weights_without_a_preference_is_the_vocabulary(self, tmp_path):
        folder = made(tmp_path / "source", init_std=1e-6)
        assert perplexity(ReferenceEngine(open_checkpoint(folder)), list(range(100))) == pytest.approx(300, rel=1e-3)

    def test_is_that_of_the_training_loop(self, trained, corpus):
        """With one window for all, the loop's evaluation predicts the same tokens from the same ones."""
        model = Transformer(open_checkpoint(trained).spec).eval()
        checkpoint = open_checkpoint(trained)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(torch.from_numpy(checkpoint.tensors[name].read()))
            tokens = sample_tokens(corpus, checkpoint.tokenizer, 65)
            losses = []
            for part in (tokens[:32], tokens[32:64]):
                given = model.logits(model(torch.tensor([part[:-1]])))[0]
                losses.append(torch.nn.functional.cross_entropy(given, torch.tensor(part[1:])))
        assert perplexity(ReferenceEngine(checkpoint), tokens) == pytest.approx(torch.stack(losses).mean().exp().item())

    @pytest.mark.parametrize("kind", ["folder", "text"])
    def test_is_told_of_both_models_on_the_same_tokens(self, trained, corpus, tmp_path, kind):
        data = corpus if kind == "folder" else corpus.parent / "stories.txt"
        figures = convert(trained, tmp_path / "a.gguf", quantize="q4_0", data=data)["perplexity"]
        assert 100 < figures["tokens"] <= SAMPLE_TOKENS
        assert 1 < figures["source"] < 300
        assert figures["change_percent"] == pytest.approx(100 * (figures["result"] / figures["source"] - 1))
        assert figures["change_percent"] != 0

    def test_without_rounding_does_not_change(self, trained, corpus, tmp_path):
        assert convert(trained, tmp_path / "a.gguf", data=corpus)["perplexity"]["change_percent"] == pytest.approx(
            0, abs=1e-3
        )

    def test_needs_the_model_s_tokenizer(self, trained, corpus, stories, tok512, tmp_path):
        with pytest.raises(UserError, match="needs the model's tokenizer"):
            convert(made(tmp_path / "bare"), tmp_path / "a.gguf", data=corpus)
        with pytest.raises(UserError, match="another tokenizer than the model's"):
            convert(stories, tmp_path / "a.gguf", tokenizer=tok512, data=corpus)


class TestTheTokenizerBesideABin:
    def test_is_found_again(self, trained, tmp_path):
        figures = convert(trained, tmp_path / "a.bin")
        assert left_in(tmp_path) == {"a.bin", "tok300.bin"}
        assert "tok300.bin" in figures["notes"][0]

    def test_of_another_model_is_left_as_it_is(self, trained, tmp_path):
        (tmp_path / "tok300.bin").write_bytes(b"another's")
        figures = convert(trained, tmp_path / "a.bin")
        assert (tmp_path / "tok300.bin").read_bytes() == b"another's"
        assert "another tokenizer" in figures["notes"][0]

    def test_that_llama2c_cannot_hold_is_not_written(self, tmp_path, assets):
        made(tmp_path / "source", vocab_size=50257)
        gpt2 = assets / "tokenizers" / "gpt2" / "gpt2_vocab.json"
        figures = convert(tmp_path / "source", tmp_path / "a.bin", tokenizer=gpt2)
        assert "no tokenizer was written" in figures["notes"][0]
        assert left_in(tmp_path) == {"source", "a.bin"}


class TestTheCommand:
    def run(self, capsys, *arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(["convert", *arguments])
        return ended.value.code or 0, *capsys.readouterr()

    def test_tells_what_it_wrote_and_how_it_was_compared(self, tmp_path, capsys, monkeypatch):
        monkeypatch.chdir(tmp_path)
        made(tmp_path / "source")
        status, out, _ = self.run(capsys, "source", "a.gguf", "--quantize", "q8_0")
        assert status == 0
        assert out.startswith("a.gguf: GGUF, q8_0\n")
        assert f"{Path('a.gguf').stat().st_size / 1e6:.1f} MB on disk" in out
        assert "64 tokens compared" in out

    def test_prints_its_figures_as_json(self, tmp_path, capsys, monkeypatch):
        monkeypatch.chdir(tmp_path)
        made(tmp_path / "source")
        status, out, _ = self.run(capsys, "source", "hf", "--dtype", "bf16", "--json")
        figures = json.loads(out)
        assert status == 0
        assert (figures["dest"], figures["format"], figures["codecs"]) == ("hf", "huggingface", ["bf16"])
        assert report(figures).startswith("hf: a Hugging Face folder, bf16\n")

    def test_says_nothing_of_progress_where_it_takes_a_moment(self, tmp_path, capsys):
        convert(made(tmp_path / "source"), tmp_path / "a.gguf")
        assert capsys.readouterr().err == ""

    def test_tells_rate_and_time_left_where_it_takes_longer(self, tmp_path, capsys, monkeypatch):
        monkeypatch.setattr("shearling.experiments.convert.SECONDS_OF_SILENCE", -1)
        monkeypatch.setattr("shearling.formats.progress.SECONDS_BETWEEN_LINES", -1)
        convert(made(tmp_path / "source"), tmp_path / "a.gguf")
        err = capsys.readouterr().err
        for what in ("writing", "reading back"):
            assert re.search(rf"^{what}: 0\.\d of 0\.\d MB, .* MB/s, 0 s left$", err, re.MULTILINE)
        assert "comparing logits" in err

    def test_ends_with_a_line_where_it_cannot_be_done(self, tmp_path, capsys):
        status, out, err = self.run(capsys, str(tmp_path / "gone"), str(tmp_path / "a.gguf"))
        assert (status, out) == (2, "")
        assert err.splitlines() == [f"error: {tmp_path / 'gone'}: no such file or folder: check the path"]


@pytest.mark.slow
def test_memory_does_not_grow_with_the_model(tmp_path):
    """490 MB of bf16 weights are quantized and compared by a process that stays well below them."""
    spec = {"d_model": 1024, "n_layers": 18, "n_heads": 16, "intermediate_size": 3072, "vocab_size": 4096}
    code = f"""
import resource
from pathlib import Path
import numpy as np
from shearling.experiments.convert import convert
from shearling.formats import Checkpoint, StoredTensor
from shearling.formats.specification import expected_shapes
from shearling.formats.run_folder import write_run_folder
from shearling.models.spec import ModelSpec
from shearling.quantization import CODECS
spec = ModelSpec(**{spec!r})
numbers = np.random.default_rng(0).integers(0x3C00, 0x3D00, 1 << 22, dtype=np.uint16)
tensors = {{}}
for name, shape in expected_shapes(spec).items():
    part = numbers[: int(np.prod(shape))].reshape(shape)
    tensors[name] = StoredTensor(shape, CODECS["bf16"], (part,))
write_run_folder(Path("source"), Checkpoint(spec, tensors, "halves", "made"), progress=lambda _: None)
started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
figures = convert(Path("source"), Path("a.gguf"), quantize="q8_0")
print(figures["source_bytes"] >> 10, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - started)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    weights, grown = map(int, done.stdout.split())
    assert weights > 400_000
    assert grown < 300_000
