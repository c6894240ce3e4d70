"""Which format a path is of shows in its content; what is none is refused with what was looked for."""

import shutil
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from shearling.data.tokenizers import load_tokenizer
from shearling.errors import UserError
from shearling.formats import FORMATS, format_of, open_checkpoint
from shearling.quantization import CODECS, GROUPED


@pytest.fixture
def stories(assets) -> Path:
    return assets / "models" / "stories260K.bin"


HEADERS = {
    "gguf": b"GGUF" + struct.pack("<IQQ", 3, 0, 0),
    "llama2c": struct.pack("<7i", 64, 172, 5, 8, 4, 512, 512),
    "llama2c, a head of its own": struct.pack("<7i", 64, 172, 5, 8, 4, -512, 512),
    "llama2c, version 2": b"24ka" + struct.pack("<i7iBi", 2, 64, 172, 5, 8, 4, 512, 512, 1, 4),
}


@pytest.mark.parametrize("name", ["model.bin", "model.gguf", "model", "model.txt"])
@pytest.mark.parametrize("kind", HEADERS)
def test_a_file_is_known_by_its_first_bytes_whatever_its_name(tmp_path, kind, name):
    (tmp_path / name).write_bytes(HEADERS[kind] + b"\0" * 64)
    assert format_of(tmp_path / name) == kind.partition(",")[0]


@pytest.mark.parametrize(
    ("sign", "kind"),
    [("experiment_config.yaml", "run"), ("config.json", "huggingface"), ("params.json", "meta")],
)
def test_a_folder_is_known_by_a_file_in_it(tmp_path, sign, kind):
    (tmp_path / sign).write_text("{}")
    assert format_of(tmp_path) == kind


def test_a_hugging_face_folder_with_meta_s_file_beside_is_the_former(tmp_path):
    for name in ("config.json", "params.json"):
        (tmp_path / name).write_text("{}")
    assert format_of(tmp_path) == "huggingface"


@pytest.mark.parametrize(
    "content",
    [b"", b"GGU", b"24k", b"hello, this is a text and no model", b"\x80\x02}q\0" * 20, b"PK\x03\x04" + b"\0" * 60,
     struct.pack("<7i", 64, 172, 5, 7, 4, 512, 512), struct.pack("<7i", 64, -172, 5, 8, 4, 512, 512),
     struct.pack("<7i", 64, 172, 5, 8, 3, 512, 512), struct.pack("<7i", 64, 172, 5, 0, 0, 512, 512),
     struct.pack("<7i", 64, 172, 5, 8, 4, -(2**31), 512)],
)  # fmt: skip
def test_a_file_of_no_format_is_refused_with_what_was_looked_for(tmp_path, content):
    (tmp_path / "model.bin").write_bytes(content)
    with pytest.raises(
        UserError, match=r"model\.bin: no model that is read here; looked for GGUF's magic, the header of"
    ):
        format_of(tmp_path / "model.bin")


def test_a_folder_of_no_format_is_refused_with_what_was_looked_for(tmp_path):
    with pytest.raises(UserError, match=r"looked for experiment_config\.yaml .*, config\.json .*, params\.json"):
        format_of(tmp_path)


def test_a_folder_around_a_model_file_is_refused_with_the_file_to_give(tmp_path, stories):
    shutil.copy(stories, tmp_path / "small.bin")
    with pytest.raises(UserError, match=r"it holds small\.bin: give that file"):
        open_checkpoint(tmp_path)


def test_a_file_of_a_model_folder_is_refused_with_the_folder_to_give(tmp_path):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(UserError, match=rf"{tmp_path.name} is a Hugging Face folder: give that"):
        open_checkpoint(tmp_path / "model.safetensors")


def test_what_is_not_there_is_refused(tmp_path):
    with pytest.raises(UserError, match="no such file or folder"):
        open_checkpoint(tmp_path / "gone")


@pytest.mark.parametrize("text", ["", "."])
def test_an_empty_path_is_told_to_be_the_folder_that_one_is_in(tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"^\. \(as an empty path is read\): no model that is read here; looked for"):
        open_checkpoint(Path(text))


def test_a_file_that_may_not_be_read_is_refused(tmp_path, monkeypatch):
    def denied(*_, **__):
        raise PermissionError(13, "Permission denied")

    (tmp_path / "model.bin").write_bytes(b"GGUF")
    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(UserError, match="Permission denied"):
        open_checkpoint(tmp_path / "model.bin")


def test_a_tokenizer_that_is_given_takes_the_place_of_the_model_s(tmp_path, stories, assets):
    given = assets / "tokenizers" / "tok512" / "tok512.bin"
    assert open_checkpoint(shutil.copy(stories, tmp_path / "alone.bin")).tokenizer is None
    assert open_checkpoint(tmp_path / "alone.bin", given).tokenizer.vocab_size == 512


def test_every_format_s_codecs_exist():
    assert {name for known in FORMATS.values() for name in known.codecs} <= CODECS.keys() | GROUPED.keys()


def test_opening_a_model_loads_nothing_heavy(stories):
    code = "import sys\nfrom pathlib import Path\nfrom shearling.formats import open_checkpoint\n"
    code += f"open_checkpoint(Path({str(stories)!r}))\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert not {"torch", "transformers", "gguf", "scipy", "matplotlib"} & set(done.stdout.split())


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(assets):
    checkpoint = open_checkpoint(assets / "models" / "stories260K.bin", assets / "tokenizers" / "tok512" / "tok512.bin")
    other = replace(checkpoint, load_tokenizer=lambda: load_tokenizer(assets / "tokenizers" / "llama2"))
    with pytest.raises(UserError, match="32000 tokens, and the model only 512"):
        _ = other.tokenizer
