"""Where a conversion is refused, what it may replace, and what is left where it ends early."""

import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from convert_models import left_in, logits, made

from shearling.cli import main
from shearling.engine.reference import ReferenceEngine
from shearling.errors import UserError
from shearling.experiments.convert import convert
from shearling.formats import Checkpoint, StoredTensor
from shearling.formats.run_folder import write_run_folder


class TestRefusals:
    @pytest.mark.parametrize(
        ("name", "options", "words"),
        [
            ("a.gguf", {"to": "ggufs"}, "--to ggufs: no format that is written here: did you mean gguf"),
            ("x", {"to": "GGUF"}, r"--to GGUF: .*did you mean gguf\?"),
            ("x", {"to": "hf"}, r"--to hf: .*did you mean huggingface\?"),
            ("x", {"to": "HF"}, r"--to HF: .*did you mean huggingface\?"),
            ("x", {"to": "safetensors"}, r"--to safetensors: .*did you mean huggingface\?"),
            ("x", {"to": "llama.cpp"}, r"--to llama\.cpp: .*did you mean gguf\?"),
            ("x", {"to": ".bin"}, r"--to \.bin: .*did you mean llama2c\?"),
            ("x", {"to": "llama2.c"}, r"--to llama2\.c: .*did you mean llama2c\?"),
            ("x", {"to": "onnx"}, r"--to onnx: .*one of run, huggingface, gguf, llama2c"),
            ("a.gguf", {"to": "llama2c"}, "named as GGUF"),
            ("a.pth", {}, r"no model is written as \.pth: name a file \.gguf or \.bin, or a folder; with --to run, "),
            ("a.bim", {}, r"no model is written as \.bim \(did you mean \.bin\?\)"),
            ("a.Guff", {}, r"no model is written as \.Guff \(did you mean \.gguf\?\)"),
            ("v1.5.safetensors", {}, r"no model is written as \.safetensors"),
            ("a.gguf", {"dtype": "f16", "quantize": "q8_0"}, "give one"),
            ("a.gguf", {"dtype": "q8_0"}, "--dtype q8_0: one of f32, f16, bf16"),
            ("a.gguf", {"quantize": "f16"}, "--quantize f16: one of .*; for floats there is --dtype"),
            ("a.gguf", {"quantize": "q9"}, "--quantize q9: one of q8_0"),
            ("a.gguf", {"quantize": "int4"}, "int4: GGUF holds .*; int4 can go into a run folder"),
            ("hf", {"quantize": "q8_0"}, "q8_0 can go into a run folder or GGUF"),
            ("a.gguf", {"group_size": 32}, "has no effect without --quantize"),
            ("a.gguf", {"quantize": "q8_0", "group_size": 64}, "q8_0 has no groups of 64"),
            ("a.gguf", {"version": 2}, "--version 2: has no effect"),
            ("a.bin", {"version": 3}, "--version 3: one of 0, 1, 2"),
            ("a.bin", {"version": 1, "quantize": "q8_0"}, "take version 2"),
            ("a.bin", {"version": 2, "dtype": "f32"}, "take version 0 or 1"),
            ("a.bin", {"dtype": "bf16"}, "bf16: llama2.c's .bin holds f32, int8"),
            ("gone/a.gguf", {}, "gone: no such folder: make it first"),
            ("source/experiment_config.yaml/a.gguf", {}, "experiment_config.yaml: is no folder: name another"),
            (f"{'x' * 300}.gguf", {}, r"cannot be written \(File name too long\): name another destination"),
            (f"{'x' * 250}.gguf", {}, r"cannot be written \(File name too long\): .*name another destination"),
        ],
    )
    def test_of_options_come_before_anything_is_written(self, tmp_path, name, options, words):
        made(tmp_path / "source")
        with pytest.raises(UserError, match=words):
            convert(tmp_path / "source", tmp_path / name, **options)
        assert left_in(tmp_path) == {"source"}

    @pytest.mark.parametrize("name", ["a.gguf", "a.bin", "hf"])
    def test_of_what_the_format_cannot_hold_name_the_option(self, tmp_path, name):
        made(tmp_path / "source", placement={"kind": "sandwich"})
        with pytest.raises(UserError, match=r"model\.placement\.kind: LLaMA's graph has no such thing.*--to run can"):
            convert(tmp_path / "source", tmp_path / name)
        assert left_in(tmp_path) == {"source"}

    def test_of_what_llama2c_s_constants_exclude_leave_nothing(self, tmp_path):
        made(tmp_path / "source", norm={"kind": "rmsnorm", "eps": 1e-6})
        with pytest.raises(UserError, match=r"norm\.eps"):
            convert(tmp_path / "source", tmp_path / "a.bin")
        assert left_in(tmp_path) == {"source"}

    def test_of_what_is_there_already(self, tmp_path):
        made(tmp_path / "source")
        (tmp_path / "a.gguf").write_text("mine")
        with pytest.raises(UserError, match="is there already: name another destination, or give --overwrite"):
            convert(tmp_path / "source", tmp_path / "a.gguf")
        assert (tmp_path / "a.gguf").read_text() == "mine"

    @pytest.mark.parametrize("dest", ["source", "source/../source", "link"])
    def test_of_the_source_itself_even_to_overwrite(self, tmp_path, dest):
        made(tmp_path / "source")
        (tmp_path / "link").symlink_to("source")
        (tmp_path / "here").mkdir()
        with pytest.raises(UserError, match="source and destination are one"):
            convert(tmp_path / "source", tmp_path / "here" / ".." / dest, to="run", overwrite=True)

    def test_of_a_folder_that_holds_the_source(self, tmp_path):
        made(tmp_path / "out" / "source")
        with pytest.raises(UserError, match="holds the source"):
            convert(tmp_path / "out" / "source", tmp_path / "out", overwrite=True)

    def test_of_a_loop_of_links(self, tmp_path):
        made(tmp_path / "source")
        (tmp_path / "loop").symlink_to("loop")
        with pytest.raises(UserError, match="loop"):
            convert(tmp_path / "source", tmp_path / "loop", overwrite=True)

    def test_of_a_folder_that_holds_no_model(self, tmp_path):
        made(tmp_path / "source")
        (tmp_path / "letters").mkdir()
        (tmp_path / "letters" / "to_ada.txt").write_text("Dear Ada")
        with pytest.raises(UserError, match="holds no model, so it is not overwritten"):
            convert(tmp_path / "source", tmp_path / "letters", overwrite=True)
        assert (tmp_path / "letters" / "to_ada.txt").exists()

    def test_of_a_file_that_is_no_model(self, tmp_path):
        made(tmp_path / "source")
        (tmp_path / "a.gguf").write_text("Dear Ada")
        with pytest.raises(UserError, match="holds no model, so it is not overwritten"):
            convert(tmp_path / "source", tmp_path / "a.gguf", overwrite=True)
        assert (tmp_path / "a.gguf").read_text() == "Dear Ada"

    def test_of_what_is_neither_file_nor_folder(self, tmp_path):
        made(tmp_path / "source")
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(UserError, match="holds no model, so it is not overwritten"):
            convert(tmp_path / "source", tmp_path / "pipe", to="gguf", overwrite=True)
        assert (tmp_path / "pipe").is_fifo()

    @pytest.mark.parametrize("option", ["tokenizer", "data"])
    def test_of_what_is_read_besides_the_source(self, tmp_path, assets, option):
        made(tmp_path / "source", vocab_size=512)
        read = shutil.copy(assets / "tokenizers" / "tok512" / "tok512.bin", tmp_path / "a.gguf")
        with pytest.raises(UserError, match=f"{read}: is read, as tokenizer or data: name another"):
            convert(tmp_path / "source", tmp_path / "a.gguf", overwrite=True, **{option: read})

    def test_of_a_folder_that_holds_what_is_read_besides_the_source(self, tmp_path):
        convert(made(tmp_path / "source"), tmp_path / "hf")
        (tmp_path / "hf" / "a.txt").write_text("Dear Ada")
        with pytest.raises(UserError, match=r"hf: holds .*a\.txt, which is read"):
            convert(tmp_path / "source", tmp_path / "hf", data=tmp_path / "hf" / "a.txt", overwrite=True)

    def test_of_a_file_in_the_place_of_a_folder(self, tmp_path):
        made(tmp_path / "source")
        (tmp_path / "hf").write_text("")
        with pytest.raises(UserError, match="is a file, and a Hugging Face folder is a folder"):
            convert(tmp_path / "source", tmp_path / "hf", overwrite=True)

    @pytest.mark.parametrize(("name", "to"), [("a.gguf", "gguf"), ("hf", "huggingface"), ("run", "run")])
    def test_of_numbers_that_half_precision_cannot_hold(self, tmp_path, name, to):
        made(tmp_path / "source", init_std=1e5)
        with pytest.raises(UserError, match="bf16"):
            convert(tmp_path / "source", tmp_path / name, to=to, dtype="f16")
        assert left_in(tmp_path) == {"source"}


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["convert", "", "a.gguf"], "SOURCE"),
        (["convert", "source", ""], "DEST"),
        (["convert", "source", "a.gguf", "-z", ""], "--tokenizer"),
        (["convert", "source", "a.gguf", "--data", ""], "--data"),
        (["download", "stories260K", "--out", ""], "--out"),
    ],
)
def test_an_empty_path_is_called_one(tmp_path, monkeypatch, capsys, arguments, word):
    made(tmp_path / "source")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert re.fullmatch(rf"Error: .*{word}.*: an empty path: name a file or folder; the one you are in is \.", last)
    assert left_in(tmp_path) == {"source"}


class TestAFolderSName:
    @pytest.mark.parametrize("name", ["mine-v1.5", "SmolLM2-1.7B", "Llama-3.2-1B-Instruct", ".hidden", "mine."])
    def test_may_have_dots_before_other_things_than_letters(self, tmp_path, name):
        assert convert(made(tmp_path / "source"), tmp_path / name)["format"] == "huggingface"
        assert (tmp_path / name / "config.json").is_file()

    def test_may_be_any_where_the_format_is_named(self, tmp_path):
        made(tmp_path / "source")
        for to, name in (("huggingface", "a.mine"), ("gguf", "b.mine")):
            assert convert(tmp_path / "source", tmp_path / name, to=to)["format"] == to

    def test_may_be_any_where_the_folder_is_there(self, tmp_path):
        (tmp_path / "a.mine").mkdir()
        convert(made(tmp_path / "source"), tmp_path / "a.mine", overwrite=True)
        assert (tmp_path / "a.mine" / "config.json").is_file()


class TestOverwriting:
    def test_replaces_an_empty_file(self, tmp_path):
        (tmp_path / "a.gguf").touch()
        convert(made(tmp_path / "source"), tmp_path / "a.gguf", overwrite=True)
        np.testing.assert_allclose(logits(tmp_path / "a.gguf"), logits(tmp_path / "source"), atol=1e-4)

    @pytest.mark.parametrize(("name", "options"), [("a.gguf", {}), ("hf", {}), ("run", {"to": "run"})])
    def test_replaces_the_model_that_was_there(self, tmp_path, name, options):
        convert(made(tmp_path / "old", init_std=0.1), tmp_path / name, **options)
        convert(made(tmp_path / "new", init_std=0.3), tmp_path / name, overwrite=True, **options)
        np.testing.assert_allclose(logits(tmp_path / name), logits(tmp_path / "new"), atol=1e-4)
        assert left_in(tmp_path) == {"old", "new", name}

    def test_that_fails_leaves_the_old_model(self, tmp_path):
        convert(made(tmp_path / "source"), tmp_path / "hf")
        before = logits(tmp_path / "hf")
        with pytest.raises(KeyboardInterrupt):
            convert(tmp_path / "source", tmp_path / "hf", overwrite=True, dtype="bf16", engine=interrupted)
        np.testing.assert_array_equal(logits(tmp_path / "hf"), before)


def interrupted(checkpoint: Checkpoint) -> ReferenceEngine:
    raise KeyboardInterrupt


class TestWhatIsHalfDone:
    @pytest.mark.parametrize(("name", "options"), [("a.gguf", {}), ("a.bin", {}), ("hf", {}), ("run", {"to": "run"})])
    def test_goes_when_the_user_interrupts(self, tmp_path, name, options):
        made(tmp_path / "source")
        with pytest.raises(KeyboardInterrupt):
            convert(tmp_path / "source", tmp_path / name, engine=interrupted, **options)
        assert left_in(tmp_path) == {"source"}

    @pytest.mark.parametrize(("name", "options"), [("a.gguf", {}), ("hf", {})])
    def test_has_another_name_where_the_process_is_killed_and_is_replaced_later(self, tmp_path, name, options):
        made(tmp_path / "source")
        code = "import os\nfrom pathlib import Path\nfrom shearling.experiments.convert import convert\n"
        code += f"convert(Path('source'), Path({name!r}), engine=lambda _: os.kill(os.getpid(), 9))"
        killed = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, timeout=60)
        assert killed.returncode == -signal.SIGKILL
        assert left_in(tmp_path) == {"source", f".draft_{name}"}
        convert(tmp_path / "source", tmp_path / name, **options)
        assert left_in(tmp_path) == {"source", name}

    @pytest.mark.parametrize(("name", "options"), [("a.gguf", {}), ("a.bin", {}), ("hf", {}), ("run", {"to": "run"})])
    def test_goes_when_the_disk_is_full(self, tmp_path, name, options):
        made(tmp_path / "source")

        def small_disk() -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

        code = "from pathlib import Path\nfrom shearling.errors import UserError\n"
        code += "from shearling.experiments.convert import convert\n"
        code += f"try:\n    convert(Path('source'), Path({name!r}), **{options!r})\n"
        code += "except UserError as error:\n    print(error)"
        done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, timeout=60, capture_output=True, text=True,
                              preexec_fn=small_disk)  # fmt: skip
        assert done.stdout == f"{name}: cannot be written (File too large): make room\n", done.stderr
        assert left_in(tmp_path) == {"source"}

    def test_goes_when_a_weight_reads_back_as_another(self, tmp_path, monkeypatch):
        made(tmp_path / "source")

        def wrong(path, checkpoint, *, codec, progress):
            name = "layers.1.feedforward.branch.up_proj.weight"
            numbers = checkpoint.tensors[name].read().copy()
            numbers[127, 63] += 1e-6
            other = dict(checkpoint.tensors) | {name: StoredTensor.of(numbers)}
            return write_run_folder(path, replace(checkpoint, tensors=other), codec=codec, progress=progress)

        monkeypatch.setattr("shearling.formats.run_folder.write_run_folder", wrong)
        with pytest.raises(UserError, match=r"layers\.1\.feedforward\.branch\.up_proj\.weight is not what was written"):
            convert(tmp_path / "source", tmp_path / "run", to="run")
        assert left_in(tmp_path) == {"source"}

    def test_goes_when_the_file_describes_another_model(self, tmp_path, monkeypatch):
        made(tmp_path / "source")

        def wrong(path, checkpoint, *, codec, progress):
            spec = checkpoint.spec.model_copy(update={"max_seq_len": 32})
            return write_run_folder(path, replace(checkpoint, spec=spec), codec=codec, progress=progress)

        monkeypatch.setattr("shearling.formats.run_folder.write_run_folder", wrong)
        with pytest.raises(UserError, match="read back, its max_seq_len are not the source's"):
            convert(tmp_path / "source", tmp_path / "run", to="run")
        assert left_in(tmp_path) == {"source"}

    def test_goes_when_logits_differ_though_nothing_was_rounded(self, tmp_path):
        made(tmp_path / "source")

        def wrong(checkpoint: Checkpoint) -> ReferenceEngine:
            theta = 10_000.0 if checkpoint.origin.endswith("source") else 20_000.0
            position = checkpoint.spec.position.model_copy(update={"theta": theta})
            spec = checkpoint.spec.model_copy(update={"position": position})
            return ReferenceEngine(replace(checkpoint, spec=spec))

        with pytest.raises(UserError, match=r"its logits differ by .* though no weight was rounded"):
            convert(tmp_path / "source", tmp_path / "run", to="run", engine=wrong)
        assert left_in(tmp_path) == {"source"}
