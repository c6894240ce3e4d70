"""An interrupted preparation goes on, and ends with the bytes of one that was not interrupted."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from shearling.data.manifest import JOURNAL, MANIFEST
from shearling.data.prepare import prepare
from shearling.data.shards import open_dataset
from shearling.errors import UserError

SLOWED = """
import sys, time
from pathlib import Path
from shearling.data import prepare as module
from shearling.data.tokenizers import SentencePieceTokenizer

module.BATCH_CHARACTERS = 2000
module.SECONDS_BETWEEN_JOURNALS = 0.0
encode = SentencePieceTokenizer.encode_batch
SentencePieceTokenizer.encode_batch = lambda self, texts: (time.sleep(0.02), encode(self, texts))[1]
source, out = sys.argv[1:]
module.prepare([source], Path(out), vocab_size=400, tokens_per_shard=3000, progress=lambda progress: None)
"""


def arguments(source: Path) -> dict:
    return {"sources": [str(source)], "vocab_size": 400, "tokens_per_shard": 3000, "progress": lambda progress: None}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def journaled_documents(out: Path) -> int:
    try:
        return json.loads((out / JOURNAL).read_text())["documents"]
    except FileNotFoundError:
        return -1


@pytest.fixture
def source(make_documents, tmp_path: Path) -> Path:
    path = tmp_path / "source.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in make_documents(1500)) + "broken\n")
    return path


def start_and_stop(source: Path, out: Path, after_documents: int, how: signal.Signals) -> int:
    """Run in a process of its own until its journal tells of so many documents, then stop it; its exit status."""
    with subprocess.Popen([sys.executable, "-c", SLOWED, str(source), str(out)], stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + 60
        while journaled_documents(out) < after_documents:
            assert process.poll() is None, process.stderr.read().decode()
            assert time.monotonic() < deadline
            time.sleep(0.002)
        os.kill(process.pid, how)
        return process.wait(timeout=20)


def test_killed_at_several_moments_it_ends_with_the_same_bytes(tmp_path: Path, source: Path):
    out = tmp_path / "killed"
    for after in (0, 1, 300, 900):
        assert start_and_stop(source, out, after, signal.SIGKILL) == -signal.SIGKILL
        assert not (out / MANIFEST).exists()
    resumed = prepare(out=out, **arguments(source))
    whole = prepare(out=tmp_path / "whole", **arguments(source))
    assert resumed == whole
    assert resumed.problems == 1
    assert contents(out) == contents(tmp_path / "whole")


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT to another process")
def test_ctrl_c_ends_it_at_once_and_it_goes_on_later(tmp_path: Path, source: Path):
    out = tmp_path / "interrupted"
    began = time.monotonic()
    assert start_and_stop(source, out, 100, signal.SIGINT) != 0
    assert time.monotonic() - began < 20
    resumed = prepare(out=out, **arguments(source))
    assert resumed == prepare(out=tmp_path / "whole", **arguments(source))


@pytest.fixture
def interrupted(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose preparation broke off after some documents were journaled."""
    out = tmp_path / "broken_off"
    calls = 0

    def break_off(self, tokens, lengths, n_bytes):
        nonlocal calls
        calls += 1
        if calls > 30:
            raise KeyboardInterrupt
        original(self, tokens, lengths, n_bytes)

    from shearling.data.writer import SplitWriter

    original = SplitWriter.append
    with monkeypatch.context() as patch:
        patch.setattr(SplitWriter, "append", break_off)
        patch.setattr("shearling.data.prepare.BATCH_CHARACTERS", 2000)
        patch.setattr("shearling.data.prepare.SECONDS_BETWEEN_JOURNALS", 0.0)
        with pytest.raises(KeyboardInterrupt):
            prepare(out=out, **arguments(source))
    assert journaled_documents(out) > 0
    return out


def test_an_unfinished_folder_is_not_opened_and_says_what_to_do(interrupted: Path):
    with pytest.raises(UserError, match=r"not finished; run the same `shearling prepare` command again"):
        open_dataset(interrupted, "train")


def test_it_does_not_go_on_with_other_arguments(interrupted: Path, source: Path):
    with pytest.raises(UserError, match=r"vocab_size was 400 and is 500"):
        prepare(out=interrupted, **{**arguments(source), "vocab_size": 500})


def test_it_does_not_go_on_with_changed_sources(interrupted: Path, source: Path):
    source.write_text(source.read_text() + '{"text": "one more"}\n')
    with pytest.raises(UserError, match="a source has changed since the work was interrupted"):
        prepare(out=interrupted, **arguments(source))


def test_lost_shard_bytes_are_noticed(interrupted: Path, source: Path):
    (interrupted / "train_00001.bin").unlink(missing_ok=True)
    last = sorted(interrupted.glob("train_*.bin"))[-1]
    last.write_bytes(b"")
    with pytest.raises(UserError, match=r"\.bin: (shorter than when|missing)"):
        prepare(out=interrupted, **arguments(source))


def test_what_was_written_before_is_not_encoded_again(interrupted: Path, source: Path, monkeypatch: pytest.MonkeyPatch):
    from shearling.data.tokenizers import SentencePieceTokenizer

    done, encoded = journaled_documents(interrupted), 0
    original = SentencePieceTokenizer.encode_batch

    def count(self, texts):
        nonlocal encoded
        encoded += len(texts)
        return original(self, texts)

    monkeypatch.setattr(SentencePieceTokenizer, "encode_batch", count)
    monkeypatch.setattr("shearling.data.prepare.train_tokenizer", None)
    prepare(out=interrupted, **{**arguments(source), "workers": 1})
    assert encoded == 1500 - done
