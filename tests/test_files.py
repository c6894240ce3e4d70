"""Files that are whole or absent, their checksums, and folders held against other processes."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from shearling import files
from shearling.errors import UserError
from shearling.files import locked, sha256_file, write_atomically

HOLD = """
import sys
from pathlib import Path
from shearling.files import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("size", [0, 1, 2**20, 2**20 + 1])
def test_a_checksum_is_that_of_the_whole_content(tmp_path, size):
    content = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    (tmp_path / "file").write_bytes(content)
    assert sha256_file(tmp_path / "file") == hashlib.sha256(content).hexdigest()


class TestWriting:
    @pytest.mark.parametrize(
        ("content", "written"), [("naïve\n", "naïve\n".encode()), (b"\x00\r\n", b"\x00\r\n"), ("", b"")]
    )
    def test_replaces_the_content_and_leaves_nothing_else(self, tmp_path, content, written):
        path = tmp_path / "file"
        path.write_bytes(b"something longer that was there")
        write_atomically(path, content)
        assert path.read_bytes() == written
        assert list(tmp_path.iterdir()) == [path]

    def test_that_fails_leaves_the_old_content_and_nothing_else(self, tmp_path, monkeypatch):
        def full(_):
            raise OSError(28, "full")

        path = tmp_path / "file"
        path.write_text("old")
        monkeypatch.setattr(files, "flush", full)
        with pytest.raises(OSError, match="full"):
            write_atomically(path, "new")
        assert path.read_text() == "old"
        assert list(tmp_path.iterdir()) == [path]

    def test_that_is_interrupted_leaves_the_old_content_and_nothing_else(self, tmp_path, monkeypatch):
        def interrupt(_):
            raise KeyboardInterrupt

        path = tmp_path / "file"
        path.write_text("old")
        monkeypatch.setattr(files, "flush", interrupt)
        with pytest.raises(KeyboardInterrupt):
            write_atomically(path, "new")
        assert path.read_text() == "old"
        assert list(tmp_path.iterdir()) == [path]

    def test_goes_into_a_pipe_and_does_not_take_its_place(self, tmp_path):
        pipe = tmp_path / "pipe"
        os.mkfifo(pipe)
        reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
        write_atomically(pipe, "content")
        assert os.read(reader, 100) == b"content"
        os.close(reader)
        assert pipe.is_fifo()
        assert list(tmp_path.iterdir()) == [pipe]

    def test_shows_no_other_process_half_a_file(self, tmp_path, monkeypatch):
        path, seen = tmp_path / "file", []
        path.write_text("old")
        monkeypatch.setattr(files, "flush", lambda _: seen.append(path.read_text()))
        write_atomically(path, "new")
        assert seen == ["old", "new"]  # before the rename, and after it


class TestALock:
    def test_keeps_another_process_out_until_it_ends(self, tmp_path):
        folder = tmp_path / "made" / "on the way"
        holder = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UserError, match="another process writes here"), locked(folder):
            pass
        holder.kill()  # no time to tidy up
        holder.communicate()
        with locked(folder):
            pass

    def test_is_free_again_after_a_failure(self, tmp_path):
        for _ in range(2):
            with pytest.raises(RuntimeError, match="inside"), locked(tmp_path):
                raise RuntimeError("inside")

    def test_of_a_place_that_cannot_be_a_folder_names_it(self, tmp_path):
        (tmp_path / "file").touch()
        for path in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/nowhere")):
            with pytest.raises(UserError, match=f"{path}: cannot be written"), locked(path):
                pass
