"""Conversion: the model that comes out is the one that went in, or nothing comes out."""

import errno
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from convert_models import LLAMA2C, left_in, logits, made

from shearling.cli import main
from shearling.data.tokenizers import load_tokenizer, train_tokenizer
from shearling.data.tokenizers.conversion import to_sentencepiece, to_tokenizer_bin
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
            ({"activation": "relu2", "logit_softcap": 5.0, "value_embeddings": 1}, "run"),
            ({"arch": "gpt2", "norm": {"kind": "layernorm"}, "position": {"kind": "learned"}, "activation": "gelu",
              "attention_bias": True, "feedforward_bias": True}, "huggingface"),
            ({"arch": "bert", "norm": {"kind": "layernorm"}, "position": {"kind": "learned"}, "activation": "gelu_erf",
              "attention_bias": True, "feedforward_bias": True, "placement": {"kind": "post"}, "final_norm": False,
              "embedding_norm": True, "init": "plain"}, "huggingface"),
        ],
        ids=["sandwich", "ngpt", "native", "gpt2", "bert"],
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

    @pytest.mark.parametrize(("name", "reason"), [("gone", "No such file"), ("x" * 300, "File name too long")])
    def test_of_what_cannot_be_read_is_refused(self, tok512, name, reason):
        with pytest.raises(UserError, match=rf"{name}: cannot be read \({reason}"):
            sample_tokens(Path(name), load_tokenizer(tok512))

    def test_of_what_is_no_text_is_refused(self, stories, tok512, tmp_path):
        with pytest.raises(UserError, match=r"stories260K\.bin: no text in UTF-8"):
            sample_tokens(stories, load_tokenizer(tok512))

    def test_of_a_text_whose_beginning_ends_within_a_letter_is_of_what_is_whole(self, tok512, tmp_path, monkeypatch):
        module = sys.modules["shearling.experiments.convert.perplexity"]  # its package has a function of that name
        monkeypatch.setattr(module, "BYTES_READ", 3)
        (tmp_path / "a.txt").write_text("Zoé")
        tokenizer = load_tokenizer(tok512)
        assert sample_tokens(tmp_path / "a.txt", tokenizer) == [tokenizer.bos_id, *tokenizer.encode("Zo")]

    def test_without_rounding_does_not_change(self, trained, corpus, tmp_path):
        assert convert(trained, tmp_path / "a.gguf", data=corpus)["perplexity"]["change_percent"] == pytest.approx(
            0, abs=1e-3
        )

    def test_needs_the_model_s_tokenizer(self, trained, corpus, stories, tok512, tmp_path):
        with pytest.raises(UserError, match="needs the model's tokenizer"):
            convert(made(tmp_path / "bare"), tmp_path / "a.gguf", data=corpus)
        with pytest.raises(UserError, match="another tokenizer than the model's"):
            convert(stories, tmp_path / "a.gguf", tokenizer=tok512, data=corpus)


@pytest.fixture(scope="module")
def other300() -> dict[str, bytes]:
    """Another tokenizer of 300 pieces, in the files that are looked for beside a model."""
    other = train_tokenizer([f"Quite {n} other words, and {2 * n} pieces of them." for n in range(300)], 300)
    content = to_tokenizer_bin(other)
    return {"tok300.bin": content, "tokenizer.bin": content, "tokenizer.model": to_sentencepiece(other)}


class TestTheTokenizerBesideABin:
    def test_is_found_again(self, trained, tmp_path):
        figures = convert(trained, tmp_path / "a.bin")
        assert left_in(tmp_path) == {"a.bin", "tok300.bin"}
        assert "tok300.bin" in figures["notes"][0]

    @pytest.mark.parametrize("given", ["tok512.bin", "mine.bin"])
    def test_that_was_named_is_found_by_its_size_whatever_its_file_is_called(self, stories, tok512, tmp_path, given):
        mine = Path(shutil.copy(tok512, tmp_path / given))
        figures = convert(stories, tmp_path / "out.bin", tokenizer=mine)
        assert figures["notes"] == [f"the tokenizer is {tmp_path / 'tok512.bin'}"]
        assert left_in(tmp_path) == {"out.bin", "tok512.bin", given}
        text = "Once upon a time, Zoë met a 🐑."
        assert open_checkpoint(tmp_path / "out.bin").tokenizer.encode(text) == load_tokenizer(tok512).encode(text)

    def test_that_is_there_already_stays_as_it_is(self, stories, tok512, tmp_path):
        """The same tokenizer with another number in its header, which no program reads."""
        mine = tmp_path / "tok512.bin"
        mine.write_bytes(b"\x09\0\0\0" + tok512.read_bytes()[4:])
        before = mine.stat()
        figures = convert(stories, tmp_path / "out.bin", tokenizer=tok512)
        assert figures["notes"] == [f"the tokenizer is {mine}"]
        assert (mine.stat().st_mtime_ns, mine.stat().st_ino) == (before.st_mtime_ns, before.st_ino)

    @pytest.mark.parametrize("name", ["tok300.bin", "tokenizer.bin", "tokenizer.model"])
    @pytest.mark.parametrize("content", ["another's", "damaged"])
    def test_is_not_taken_from_another_model(self, trained, tmp_path, name, content, other300):
        (tmp_path / name).write_bytes(other300[name] if content == "another's" else b"no tokenizer")
        before = (tmp_path / name).read_bytes()
        with pytest.raises(UserError, match=rf"{name}: another tokenizer, which would be taken for that of .*a\.bin"):
            convert(trained, tmp_path / "a.bin")
        assert left_in(tmp_path) == {name}
        assert (tmp_path / name).read_bytes() == before

    def test_of_another_size_is_no_matter(self, trained, tmp_path, tok512):
        shutil.copy(tok512, tmp_path / "tokenizer.bin")
        assert convert(trained, tmp_path / "a.bin")["notes"] == [f"the tokenizer is {tmp_path / 'tok300.bin'}"]
        ours, theirs = open_checkpoint(tmp_path / "a.bin").tokenizer, open_checkpoint(trained).tokenizer
        assert ours.encode("Lily saw a cat.") == theirs.encode("Lily saw a cat.")

    def test_is_replaced_with_a_word_where_it_can_be_no_other_model_s(self, trained, tmp_path, other300):
        (tmp_path / "tok300.bin").write_bytes(other300["tok300.bin"])
        figures = convert(trained, tmp_path / "a.bin", overwrite=True)
        assert figures["notes"] == [f"the tokenizer is {tmp_path / 'tok300.bin'}, in place of another that was there"]
        ours, theirs = open_checkpoint(tmp_path / "a.bin").tokenizer, open_checkpoint(trained).tokenizer
        assert ours.encode("Lily saw a cat.") == theirs.encode("Lily saw a cat.")

    def test_does_not_replace_a_folder(self, trained, tmp_path):
        (tmp_path / "tok300.bin").mkdir()
        with pytest.raises(UserError, match=r"tok300\.bin: another tokenizer.*another folder$"):
            convert(trained, tmp_path / "a.bin", overwrite=True)
        assert (tmp_path / "tok300.bin").is_dir()

    def test_is_not_replaced_where_another_model_lies_beside_it(self, trained, stories, tmp_path, other300):
        shutil.copy(stories, tmp_path / "stories.bin")
        (tmp_path / "tok300.bin").write_bytes(other300["tok300.bin"])
        with pytest.raises(UserError, match=r"\(perhaps that of stories\.bin\).*another folder$"):
            convert(trained, tmp_path / "a.bin", overwrite=True)
        assert (tmp_path / "tok300.bin").read_bytes() == other300["tok300.bin"]

    @pytest.mark.parametrize("name", ["tok512.bin", "tokenizer.bin"])
    def test_keeps_its_name_from_the_model(self, stories, tok512, tmp_path, name):
        with pytest.raises(UserError, match=f"{name}: a model's tokenizer goes by this name: name the model otherwise"):
            convert(stories, tmp_path / name, tokenizer=tok512, overwrite=True)
        assert left_in(tmp_path) == set()

    def test_with_fewer_pieces_than_the_model_is_to_be_named(self, tok512, tmp_path):
        figures = convert(made(tmp_path / "source", vocab_size=520), tmp_path / "a.bin", tokenizer=tok512)
        file = tmp_path / "tok520.bin"
        assert figures["notes"] == [
            f"the tokenizer is {file}; it has fewer pieces than the model has rows: give it with -z {file}"
        ]
        assert open_checkpoint(tmp_path / "a.bin").tokenizer is None
        assert open_checkpoint(tmp_path / "a.bin", file).tokenizer.vocab_size == 512

    def test_that_cannot_be_written_leaves_no_model(self, trained, tmp_path, monkeypatch):
        def full(path, content):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(Path, "write_bytes", full)
        with pytest.raises(UserError, match=r"tok300\.bin: cannot be written \(No space left on device\): make room"):
            convert(trained, tmp_path / "a.bin")
        assert left_in(tmp_path) == set()

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
        monkeypatch.setattr("shearling.progress.SECONDS_BETWEEN_LINES", -1)
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
