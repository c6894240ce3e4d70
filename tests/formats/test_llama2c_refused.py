"""llama2.c's files that are damaged or contradict themselves, and models that its programs cannot run."""

import struct
from pathlib import Path

import numpy as np
import pytest
from llama2c_files import checkpoint_of, file_of, llama

from shearling.errors import UserError
from shearling.formats.llama2c import read_llama2c, write_llama2c
from shearling.quantization import parse_codec

FIELDS = {name: 4 * index for index, name in enumerate(
    ("dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "seq_len"))}  # fmt: skip
INT_MIN, INT_MAX = -(2**31), 2**31 - 1


def with_integer(content: bytes, value: int, at: int) -> bytes:
    return content[:at] + struct.pack("<i", value) + content[at + 4 :]


class TestAFileIsRefused:
    def refused(self, path: Path, message: str) -> None:
        with pytest.raises(UserError, match=message) as error:
            read_llama2c(path)
        assert str(path) in str(error.value)
        assert len(str(error.value).splitlines()) == 1

    @pytest.mark.parametrize("version", [0, 1, 2])
    @pytest.mark.parametrize("length", [0, 1, 20])
    def test_that_ends_within_its_header(self, version, length, bin_file):
        self.refused(bin_file(file_of(llama(), version)[:length]), "ends within its header")

    @pytest.mark.parametrize("version", [0, 1, 2])
    @pytest.mark.parametrize(("change", "message"), [(-3, "it ends 3 bytes early"), (5, "it is 5 bytes too long")])
    def test_of_another_length_than_its_header_says(self, version, change, message, bin_file):
        content = file_of(llama(), version)
        self.refused(bin_file(content[:change] if change < 0 else content + bytes(change)), message)

    @pytest.mark.parametrize("field", FIELDS)
    @pytest.mark.parametrize("value", [0, -1, INT_MIN, INT_MAX])
    def test_with_an_integer_that_cannot_be(self, field, value, bin_file):
        self.refused(bin_file(with_integer(file_of(llama(), 1), value, 8 + FIELDS[field])), field)
        # -1 is one token and a classifier of its own: only the length tells that this is not so
        message = "bytes too long" if (field, value) == ("vocab_size", -1) else field
        self.refused(bin_file(with_integer(file_of(llama(), 0), value, FIELDS[field])), message)

    @pytest.mark.parametrize(
        ("field", "value", "message"),
        [
            ("n_heads", 3, "dim 32 is not a multiple of n_heads 3"),
            ("n_kv_heads", 3, "n_heads 4 is not a multiple of n_kv_heads 3"),
            ("n_heads", 32, "even head size"),
            ("dim", 2**21, "dim: should be less than or equal to 1048576, not 2097152"),
            ("n_layers", 1024, "early"),
        ],
    )
    def test_whose_sizes_do_not_go_together(self, field, value, message, bin_file):
        self.refused(bin_file(with_integer(file_of(llama(), 1), value, 8 + FIELDS[field])), message)

    @pytest.mark.parametrize("version", [0, 3, -1, INT_MAX])
    def test_of_an_unknown_version(self, version, bin_file):
        self.refused(bin_file(with_integer(file_of(llama(), 1), version, 4)), f"version {version} of llama2.c")

    def test_with_a_flag_that_is_none(self, bin_file):
        content = bytearray(file_of(llama(), 1))
        content[36] = 7
        self.refused(bin_file(bytes(content)), "shared classifier: 7")

    @pytest.mark.parametrize("group", [0, -4, 64, 5, INT_MIN, INT_MAX])
    def test_with_groups_that_do_not_divide_the_width(self, group, bin_file):
        self.refused(
            bin_file(with_integer(file_of(llama(), 2), group, 37)), f"group_size: {group} does not divide dim 32"
        )

    @pytest.mark.parametrize("scale", [np.nan, np.inf, -np.inf])
    def test_with_a_scale_that_is_not_finite(self, scale, bin_file):
        content = bytearray(file_of(llama(tie_word_embeddings=True), 2))
        content[-4:] = struct.pack("<f", scale)
        self.refused(
            bin_file(bytes(content)), r"layers\.1\.feedforward\.branch\.up_proj\.weight: a scale .* NaN or infinite"
        )


INSTEAD = "write a .gguf or a Hugging Face folder instead"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm": {"kind": "rmsnorm", "eps": 1e-6}}, f"norm.eps 1e-06, where llama2.c computes with 1e-05: {INSTEAD}"),
        ({"position": {"kind": "rope", "theta": 5e5}}, f"theta 500000, where llama2.c computes with 10000: {INSTEAD}"),
        ({"position": {"kind": "rope", "scaling": {"kind": "linear", "factor": 2.0}}}, f"position.scaling.*{INSTEAD}"),
        ({"sliding_window": 4}, f"sliding_window.*{INSTEAD}"),
        ({"attention_bias": True}, f"attention_bias.*{INSTEAD}"),
        ({"feedforward_bias": True}, f"feedforward_bias.*{INSTEAD}"),
        ({"placement": {"kind": "post"}}, "placement.kind: .* keep the model in a run folder"),
        ({"qk_norm": {"kind": "per_head"}, "embedding_norm": True}, "qk_norm, embedding_norm: "),
        ({"activation": "relu2", "logit_softcap": 15.0}, "activation, logit_softcap: "),
        ({"arch": "bert"}, "arch: "),
    ],
)
@pytest.mark.parametrize("version", [0, 2])
def test_a_model_that_llama2c_cannot_run_is_refused_before_a_file_is_made(options, message, version, tmp_path):
    progress = []
    with pytest.raises(UserError, match=message) as error:
        write_llama2c(tmp_path / "x.bin", checkpoint_of(**options), version=version, progress=progress.append)
    assert str(error.value).startswith("outputs/tiny: ")
    assert not (tmp_path / "x.bin").exists()
    assert progress == []


@pytest.mark.parametrize(
    ("version", "codec", "message"),
    [
        (0, "f16", "version 0 of llama2.c's files holds f32, not f16"),
        (1, "q8_0", "version 1 of llama2.c's files holds f32, not q8_0"),
        (2, "q8_0", "version 2 of llama2.c's files holds int8, not q8_0"),
        (2, "f32", "version 2 of llama2.c's files holds int8, not f32: version 1 holds f32"),
        (3, None, "version 3: llama2.c's files are of version 0, 1, 2"),
    ],
)
def test_what_a_version_does_not_hold_is_refused(version, codec, message, tmp_path):
    with pytest.raises(UserError, match=message):
        write_llama2c(
            tmp_path / "x.bin",
            checkpoint_of(),
            version=version,
            codec=codec and parse_codec(codec),
            progress=lambda count: None,
        )
    assert not (tmp_path / "x.bin").exists()
