"""Transfers from the Hub and its cache, against a server that speaks the Hub's paths, and against its own library."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hub_models import TINY, brought, counter, files_below, folder_of, noise, refusal
from hub_server import Answer, Repository, drop, falsify, refuse, sha256, shorten
from huggingface_hub import hf_hub_download, scan_cache_dir, snapshot_download
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shearling.errors import UserError
from shearling.files import locked
from shearling.formats import download as downloads
from shearling.formats.download import NAMES, Download, download
from shearling.formats.hub import Hub


class TestTransfer:
    @pytest.fixture
    def weights(self, server) -> str:
        """Path that the weights come from."""
        server.repositories[TINY] = folder_of(**{"model.safetensors": noise(3_000_000)})
        return server.file_path(TINY, "model.safetensors")

    def whole(self, server, result: Download) -> bool:
        return brought(result)["model.safetensors"] == server.repositories[TINY].files["model.safetensors"]

    def ranges(self, server, path: str) -> list[str | None]:
        return [request.range for request in server.requests if request.path == path]

    @pytest.mark.parametrize("fault", [drop, shorten])
    def test_a_broken_connection_is_taken_up_where_it_broke(self, server, hub, naps, weights, fault):
        server.faults[weights].extend([fault(1_200_000), drop(500_000)])
        assert self.whole(server, download(TINY, hub))
        first, second, third = self.ranges(server, weights)
        assert (first, second, third) == (None, "bytes=1200000-", "bytes=1700000-")
        assert len(naps) == 2

    def test_a_server_that_knows_no_ranges_sends_the_file_anew(self, server, hub, naps, weights):
        content = server.repositories[TINY].files["model.safetensors"]
        server.faults[weights].extend([drop(1_200_000), lambda _: Answer(200, content)])
        taken = []
        result = download(TINY, hub, meter=counter(taken))
        assert self.whole(server, result)
        assert sum(taken) == sum(file.size for file in result.files)

    @pytest.mark.parametrize("out", [None, "out"])
    def test_another_command_goes_on_where_one_gave_up(self, server, hub, naps, weights, tmp_path, out):
        folder = tmp_path / out if out else None
        server.faults[weights].extend([drop(1_200_000), *[refuse(503)] * 6])
        error = refusal(TINY, hub, out=folder)
        assert "with model.safetensors at 1.2 of 3.0 MB: the same command goes on from there" in error
        assert len(naps) == 6
        trial = download(TINY, hub, out=folder, dry_run=True)
        assert [file.fetched for file in trial.files if file.name == "model.safetensors"] == [1_800_000]
        before = server.body_bytes
        assert self.whole(server, download(TINY, Hub(server.url, hub.cache, say=print), out=folder))
        assert server.body_bytes - before <= 1_800_000 + 500  # and config.json, looked into once more
        assert self.ranges(server, weights)[-1] == "bytes=1200000-"

    def test_a_killed_process_loses_little_of_what_came(self, server, hub, tmp_path, weights):
        code = (
            "import os, sys\n"
            "from pathlib import Path\n"
            "from shearling.formats.hub import Hub\n"
            "from shearling.formats.download import download\n"
            "from contextlib import contextmanager\n"
            "came = 0\n"
            "def advance(count):\n"
            "    global came\n"
            "    came += count\n"
            "    if came > 1_500_000: os._exit(9)\n"
            "@contextmanager\n"
            "def meter(*_): yield advance\n"
            "download(sys.argv[1], Hub(sys.argv[2], Path(sys.argv[3]), say=print), meter=meter)\n"
        )
        command = [sys.executable, "-c", code, TINY, server.url, str(hub.cache)]
        killed = subprocess.run(command, timeout=60, env={**os.environ, "HF_HUB_DISABLE_TELEMETRY": "1"})
        assert killed.returncode == 9
        assert self.whole(server, download(TINY, hub))
        last = self.ranges(server, weights)[-1]
        assert last is not None
        assert int(last.removeprefix("bytes=").rstrip("-")) >= 1_000_000

    @pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
    @pytest.mark.parametrize("out", [None, "out"])
    def test_wrong_bytes_are_removed_and_told(self, server, hub, weights, tmp_path, name, out):
        folder = tmp_path / out if out else None
        server.faults[server.file_path(TINY, name)].append(falsify)
        assert f"{name}: what came is not what the Hub lists (its checksum differs), and was removed" in refusal(
            TINY, hub, out=folder
        )
        assert not [path for path in files_below(tmp_path) if name in path or path.endswith(".incomplete")]
        assert self.whole(server, download(TINY, hub, out=folder))

    def test_what_is_longer_than_listed_is_not_taken(self, server, hub, weights):
        content = noise(3_000_000)
        server.faults[weights].append(lambda _: Answer(200, content + bytes(50_000_000), length=False))
        taken = []
        download(TINY, hub, meter=counter(taken))
        assert sum(taken) == sum(file.size for file in download(TINY, hub, dry_run=True).files)
        assert server.body_bytes < 50_000_000

    @pytest.mark.parametrize("path", [f"/api/models/{TINY}/revision/main", "weights"])
    @pytest.mark.parametrize(
        ("fault", "seconds"),
        [
            (refuse(429, Retry_After="7"), 7.0),
            (refuse(429, ratelimit='"api";r=0;t=55'), 55.0),
            (refuse(503), 1.0),
            (refuse(502), 1.0),
        ],
        ids=["retry-after", "ratelimit", "503", "502"],
    )
    def test_a_busy_hub_is_asked_again(self, server, hub, naps, said, weights, path, fault, seconds):
        server.faults[weights if path == "weights" else path].append(fault)
        assert self.whole(server, download(TINY, hub))
        assert naps == [seconds]
        assert re.search(rf"HTTP (429|50\d) .*: again in {seconds:g} s", said[0])

    def test_a_hub_that_asks_for_hours_is_not_waited_for(self, server, hub, naps, weights):
        server.faults[weights].append(refuse(429, Retry_After="7200"))
        assert "HTTP 429" in refusal(TINY, hub)
        assert naps == []

    def test_progress_counts_every_byte_once(self, server, hub, naps, weights):
        server.faults[weights].extend([drop(1_000_000), drop(7)])
        totals, taken = [], []
        download(TINY, hub, meter=counter(taken, totals))
        sizes = sum(file.size for file in download(TINY, hub, dry_run=True).files)
        assert totals == [(sizes, 0)]
        assert sum(taken) == sizes

    def test_two_commands_do_not_write_the_same_files(self, hub, weights):
        with locked(hub.cache / ".locks" / "models--some--tiny"):
            assert "another process writes here" in refusal(TINY, hub)


class TestCache:
    def test_a_second_call_transfers_nothing(self, server, hub):
        server.repositories[TINY] = folder_of()
        first = download(TINY, hub)
        server.requests.clear()
        second = download(TINY, Hub(server.url, hub.cache, say=print))
        assert second.model == first.model
        assert server.files_asked == []
        assert [file.fetched for file in second.files] == [0, 0, 0, 0]

    def test_a_new_commit_fetches_only_what_changed(self, server, hub):
        held = server.repositories[TINY] = folder_of()
        download(TINY, hub)
        server.repositories[TINY] = replace(held, commit="b" * 40, files={**held.files, "tokenizer.json": b"{1}"})
        server.requests.clear()
        again = Hub(server.url, hub.cache, say=print)
        assert [file.fetched for file in download(TINY, again, dry_run=True).files] == [0, 3, 0, 0]
        assert brought(download(TINY, again))["tokenizer.json"] == b"{1}"
        assert server.files_asked == ["tokenizer.json"]

    def test_a_file_that_was_cut_short_on_the_disk_is_fetched_again(self, server, hub):
        held = server.repositories[TINY] = folder_of()
        weights = download(TINY, hub).model / "model.safetensors"
        with weights.open("r+b") as file:
            file.truncate(100)
        assert brought(download(TINY, hub))["model.safetensors"] == held.files["model.safetensors"]

    def test_the_hubs_own_library_finds_what_we_cached(self, server, hub):
        held = server.repositories[TINY] = folder_of()
        download(TINY, hub)
        for name in ("config.json", "model.safetensors"):
            path = hf_hub_download(TINY, name, cache_dir=hub.cache, local_files_only=True)
            assert Path(path).read_bytes() == held.files[name]
        scan = scan_cache_dir(hub.cache)
        assert [(repo.repo_id, list(repo.refs)) for repo in scan.repos] == [(TINY, ["main"])]
        assert not scan.warnings

    def test_what_the_hubs_own_library_cached_is_not_fetched(self, server, hub):
        held = server.repositories[TINY] = folder_of()
        snapshot_download(TINY, cache_dir=hub.cache, endpoint=server.url)
        server.requests.clear()
        result = download(TINY, hub)
        assert (result.model / "model.safetensors").read_bytes() == held.files["model.safetensors"]
        assert server.files_asked == []

    def test_a_full_disk_is_seen_before_the_transfer(self, server, hub, monkeypatch):
        server.repositories[TINY] = folder_of()
        monkeypatch.setattr(downloads.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 100}))
        assert "5.2 kB are to come, and 100 bytes are free: make room" in refusal(TINY, hub)
        assert server.files_asked == ["config.json"]

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no device that is always full")
    def test_a_disk_that_fills_meanwhile_is_told(self, server, hub):
        server.repositories[TINY] = folder_of()
        digest = sha256(server.repositories[TINY].files["model.safetensors"])
        partial = hub.cache / "models--some--tiny" / "blobs" / f"{digest}.shearling.incomplete"
        partial.parent.mkdir(parents=True)
        partial.symlink_to("/dev/full")
        assert re.search("cannot be written .No space left on device.: make room", refusal(TINY, hub))

    def test_a_folder_that_cannot_be_written_is_told(self, server, hub, tmp_path):
        server.repositories[TINY] = folder_of()
        (tmp_path / "file").write_text("")
        assert "cannot be written" in refusal(TINY, hub, out=tmp_path / "file" / "below")


class TestRights:
    def test_a_gated_model_says_what_to_do(self, server, hub):
        server.repositories[TINY] = replace(folder_of(), gated=True)
        error = refusal(TINY, hub)
        assert f"accept the licence at {server.url}/{TINY}" in error
        assert "HF_TOKEN" in error
        server.repositories[TINY] = replace(Repository({"a.gguf": b"GGUF"}), gated=True)
        assert "accept the licence" in refusal(TINY, hub)
        assert not [name for name in files_below(hub.cache) if name.endswith(".incomplete")]

    def test_the_token_goes_to_the_hub_and_to_no_other_host(self, server, hub, monkeypatch):
        server.repositories[TINY] = replace(folder_of(), gated=True)
        server.token = "hf_mine"
        monkeypatch.setenv("HF_TOKEN", server.token)
        download(TINY, hub)
        tokens = {request.path.startswith("/cdn/"): request.token for request in server.requests}
        assert tokens == {False: "hf_mine", True: None}

    def test_an_invalid_token_is_told(self, server, hub, monkeypatch):
        server.repositories[TINY] = folder_of()
        server.token = "hf_mine"
        monkeypatch.setenv("HF_TOKEN", "hf_old")
        assert re.search(r"HTTP 401 .*HF_TOKEN.* is not valid", refusal(TINY, hub))

    def test_a_forbidden_file_is_told(self, server, hub):
        server.repositories[TINY] = folder_of()
        server.faults[server.file_path(TINY, "config.json")].append(refuse(403))
        assert re.search(r"HTTP 403 .*your token may not read it", refusal(TINY, hub))


class TestMistakes:
    @pytest.fixture(autouse=True)
    def _models(self, server):
        server.repositories[TINY] = replace(folder_of(), refs=("main", "v1.0"))

    @pytest.mark.parametrize(("name", "meant"), [("some/tyni", TINY), ("SOME/TINY", TINY), ("loud/name", "LOUD/NAME")])
    def test_a_repository_that_is_not_there_gets_a_guess(self, server, hub, name, meant):
        server.repositories["LOUD/NAME"] = folder_of()
        assert f"did you mean {meant}?" in refusal(name, hub)

    def test_a_revision_that_is_not_there_gets_a_guess(self, hub):
        assert "v1: no such branch, tag or commit: did you mean v1.0?" in refusal(TINY, hub, revision="v1")

    def test_a_guess_that_cannot_be_had_hides_nothing(self, server, hub):
        server.faults["/api/models"].append(refuse(403))
        error = refusal("some/tyni", hub)
        assert "some/tyni: no such model" in error
        assert "did you mean" not in error

    def test_a_file_that_the_revision_lacks_gets_a_guess(self, server, hub):
        server.repositories["karpathy/tinyllamas"] = Repository({"stories15M.pt": b"x"})
        tokenizer = NAMES["stories15M"].tokenizer
        server.repositories[tokenizer.repository] = Repository({tokenizer.name: b"x"}, commit=tokenizer.commit)
        assert "stories15M.bin: no such file at main: did you mean stories15M.pt?" in refusal(
            "stories15M", hub, revision="main"
        )

    @pytest.mark.parametrize("name", ["some/../tiny", "/tiny", "some/", "a b/c", "some/ti--ny"])
    def test_what_is_no_name_is_told(self, hub, name):
        assert "OWNER/NAME" in refusal(name, hub)

    @pytest.mark.parametrize("revision", ["../..", "a/.git", "x y", "/../x"])
    def test_what_is_no_revision_is_told(self, server, hub, revision):
        assert "no revision" in refusal(TINY, hub, revision=revision)
        assert server.requests == []


class TestHostileAnswers:
    INFO = f"/api/models/{TINY}/revision/main"

    @pytest.mark.parametrize(
        "name", ["../evil.gguf", "/etc/evil.gguf", "a/../../evil.gguf", "a\\evil.gguf", "e\nvil.gguf"]
    )
    def test_a_name_that_leads_elsewhere_is_no_file(self, server, hub, tmp_path, name):
        server.repositories[TINY] = Repository({name: b"GGUF"})
        assert "holds no model" in refusal(TINY, hub, out=tmp_path / "out")

    @pytest.mark.parametrize("digest", ["../../evil", "a" * 63, 7, None])
    def test_a_checksum_that_is_none_is_no_file(self, server, hub, digest):
        entry = {"rfilename": "a.gguf", "size": 4, "blobId": digest}
        body = json.dumps({"id": TINY, "sha": "a" * 40, "siblings": [entry]}).encode()
        server.faults[self.INFO].append(refuse(200, body))
        assert "holds no model" in refusal(TINY, hub)

    def test_a_configuration_of_gigabytes_is_not_read(self, server, hub):
        entry = {"rfilename": "config.json", "size": 1 << 40, "blobId": "a" * 40}
        body = json.dumps({"id": TINY, "sha": "a" * 40, "siblings": [entry]}).encode()
        server.faults[self.INFO].append(refuse(200, body))
        assert "bytes are too many" in refusal(TINY, hub)

    def test_a_login_page_is_no_answer(self, server, hub):
        server.faults[self.INFO].append(refuse(200, b"<html>please pay</html>"))
        assert "its answer is not the Hub's" in refusal(TINY, hub)

    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(data=st.data())
    def test_any_json_is_a_listing_or_a_refusal(self, server, hub, data):
        anything = st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(max_size=8),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
            max_leaves=6,
        )
        lfs = st.fixed_dictionaries({"size": anything, "sha256": anything, "pointerSize": anything}) | anything
        entry = st.fixed_dictionaries(
            {"rfilename": anything, "size": anything, "blobId": anything}, optional={"lfs": lfs}
        )
        keys = {"id": anything, "sha": st.just("a" * 40) | anything}
        more = {"siblings": st.lists(entry | anything, max_size=3) | anything, "gguf": anything, "tags": anything}
        answer = data.draw(st.fixed_dictionaries(keys, optional=more) | anything)
        server.faults[self.INFO].append(refuse(200, json.dumps(answer).encode()))
        try:
            listing = hub.listing(TINY)
        except UserError:
            return
        assert all(re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", file.digest) for file in listing.files.values())
