"""What is taken of the Hub for a name, and what is refused."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hub_models import LLAMA, TINY, brought, files_below, folder_of, noise, offline, refusal
from hub_server import Repository, sha256

from shearling.formats import download as downloads
from shearling.formats.download import LLAMA2_TOKENIZER, NAMES, Pinned, Published, download


class TestNames:
    def test_stories260k_comes_with_its_tokenizer_and_the_command_to_run(self, server, hub, assets):
        model = (assets / "models/stories260K.bin").read_bytes()
        tokens = (assets / "tokenizers/tok512/tok512.bin").read_bytes()
        files = {"stories260K/stories260K.bin": model, "stories260K/tok512.bin": tokens, "stories260K/a.pt": b"pickle"}
        server.repositories["karpathy/tinyllamas"] = Repository(files, set(files), downloads.TINYLLAMAS)
        result = download("Stories260k", hub)
        assert (result.model.read_bytes(), result.tokenizer.read_bytes()) == (model, tokens)
        assert result.render() == f"{result.model}\nnext: shearling generate {result.model} -z {result.tokenizer}"
        assert sorted(server.files_asked) == ["stories260K/stories260K.bin", "stories260K/tok512.bin"]

    def test_the_tokenizer_of_larger_stories_is_llama_2s(self, assets):
        content = (assets / "tokenizers/llama2/tokenizer.model").read_bytes()
        assert (LLAMA2_TOKENIZER.size, LLAMA2_TOKENIZER.sha256) == (len(content), sha256(content))

    @pytest.mark.parametrize(
        ("name", "shape"),
        [
            ("stories260K", (64, 172, 5, 8, 4, 512, 512)),
            ("stories15M", (288, 768, 6, 6, 6, 32000, 256)),
            ("stories42M", (512, 1376, 8, 8, 8, 32000, 1024)),
            ("stories110M", (768, 2048, 12, 12, 12, 32000, 1024)),
        ],
    )
    def test_bytes_in_the_table_are_those_of_the_file_format(self, name, shape):
        dim, hidden, layers, heads, kv_heads, vocab, seq = shape
        keys = dim * kv_heads // heads
        numbers = vocab * dim + layers * (2 * dim + 2 * dim * dim + 2 * dim * keys + 3 * dim * hidden) + dim
        assert NAMES[name].size == 28 + 4 * (numbers + seq * dim // heads)

    def test_a_file_that_was_exchanged_on_the_hub_is_refused(self, server, hub, monkeypatch):
        server.repositories[TINY] = Repository({"a.bin": b"other", "t.bin": b"tokens"})
        pins = [
            Pinned(TINY, "a" * 40, "a.bin", 5, sha256(b"known")),
            Pinned(TINY, "a" * 40, "t.bin", 6, sha256(b"tokens")),
        ]
        monkeypatch.setitem(NAMES, "tiny", Published("a model", TINY, 5, *pins))
        assert "a.bin: what came is not what the Hub lists" in refusal("tiny", hub)
        assert download("tiny", hub, revision="main").model.read_bytes() == b"other"

    def test_an_unknown_name_gets_a_guess(self, hub):
        assert "did you mean stories15M" in refusal("storys15M", hub)
        assert "others are named OWNER/NAME" in refusal("gpt2", hub)

    def test_a_short_name_of_a_repository_brings_its_folder(self, server, hub):
        server.repositories["HuggingFaceTB/SmolLM2-135M"] = folder_of()
        assert "model.safetensors" in brought(download("smollm2-135m", hub))

    def test_the_list_shows_every_name(self):
        lines = downloads.describe_names().splitlines()
        assert [line.split()[0] for line in lines] == list(NAMES)
        assert "60.8 MB" in lines[1]


class TestFolder:
    def test_weights_tokenizer_and_configuration_are_taken_and_nothing_else(self, server, hub):
        held = server.repositories[TINY] = folder_of()
        taken = {"config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"}
        assert brought(download(TINY, hub)) == {name: held.files[name] for name in taken}

    def test_shards_are_those_of_the_index(self, server, hub):
        shards = {f"model-0000{i}-of-00002.safetensors": noise(300, i) for i in (1, 2)}
        index = json.dumps({"weight_map": {f"t{i}": name for i, name in enumerate(shards)}}).encode()
        more = {"model.safetensors.index.json": index, "consolidated.safetensors": noise(600), **shards}
        held = folder_of(**more)
        del held.files["model.safetensors"]
        server.repositories[TINY] = held
        files = brought(download(TINY, hub))
        assert {name for name in files if "safetensors" in name} == {"model.safetensors.index.json", *shards}

    @pytest.mark.parametrize(
        ("config", "told"),
        [
            ({"model_type": "gpt2"}, r"model_type: 'gpt2' .* llama or mistral"),
            ({"hidden_size": 8}, r"model_type: None"),
            ({**LLAMA, "quantization_config": {"quant_method": "gptq"}}, r"quantization_config: .* not read"),
            ({**LLAMA, "hidden_act": "gelu"}, r"config.json: hidden_act: \"gelu\" is none that is read here"),
            ({**LLAMA, "head_dim": 5}, r"head_dim: 5 cannot be expressed"),
            (b"{", r"config.json: no JSON"),
            (b"[1]", r"config.json: should hold a map"),
        ],
    )
    def test_what_cannot_be_read_is_refused_before_its_weights_are_fetched(self, server, hub, config, told):
        server.repositories[TINY] = folder_of(config)
        assert re.search(told, refusal(TINY, hub))
        assert server.files_asked == ["config.json"]

    @pytest.mark.parametrize("shard", ["../evil.safetensors", "a/b.safetensors", "model.bin", 3])
    def test_an_index_names_files_of_its_folder_only(self, server, hub, shard):
        held = folder_of(**{"model.safetensors.index.json": json.dumps({"weight_map": {"t": shard}}).encode()})
        del held.files["model.safetensors"]
        server.repositories[TINY] = held
        assert "weight_map: should be a map" in refusal(TINY, hub)

    def test_pickled_weights_are_refused(self, server, hub):
        held = server.repositories[TINY] = folder_of()
        del held.files["model.safetensors"]
        assert "its weights are pickled (pytorch_model.bin)" in refusal(TINY, hub)

    def test_a_repository_without_a_model_is_refused(self, server, hub):
        server.repositories[TINY] = Repository({"README.md": b"nothing"})
        assert "holds no model that is read here" in refusal(TINY, hub)


class TestGguf:
    @pytest.fixture
    def files(self, server) -> dict[str, bytes]:
        files = {f"tiny-{kind}.gguf": noise(size, size) for kind, size in {"Q8_0": 800, "Q4_0": 400}.items()}
        server.repositories[TINY] = Repository(dict(files), set(files), architecture="llama")
        return files

    @pytest.mark.parametrize("wanted", ["tiny-Q4_0.gguf", "q4_0"])
    def test_one_of_several_is_named(self, hub, files, wanted):
        assert download(f"{TINY}:{wanted}", hub).model.read_bytes() == files["tiny-Q4_0.gguf"]

    def test_the_only_one_needs_no_name(self, server, hub):
        server.repositories[TINY] = Repository({"a.gguf": b"GGUF"}, {"a.gguf"})
        assert download(TINY, hub).model.name == "a.gguf"

    @pytest.mark.parametrize(
        ("wanted", "told"), [("", "2 GGUF files"), (":Q5", "Q5: no such GGUF file"), (":q", "2 GGUF")]
    )
    def test_else_the_choice_is_shown_smallest_first(self, hub, files, wanted, told):
        error = refusal(TINY + wanted, hub)
        assert told in error
        assert f"{TINY}:tiny-Q4_0.gguf (400 bytes), {TINY}:tiny-Q8_0.gguf (800 bytes)" in error

    def test_another_architecture_is_refused_unfetched(self, server, hub, files):
        server.repositories[TINY].architecture = "qwen3moe"
        assert "its architecture, qwen3moe, is no graph of LLaMA's" in refusal(f"{TINY}:q4_0", hub)
        assert server.files_asked == []

    def test_a_part_of_a_split_file_is_refused(self, server, hub):
        server.repositories[TINY] = Repository({"a-00001-of-00002.gguf": b"GGUF"})
        assert "a part of a GGUF file" in refusal(TINY, hub)


class TestOut:
    def test_files_of_subfolders_come_side_by_side_and_the_cache_stays_empty(self, server, hub, tmp_path, monkeypatch):
        files = {"deep/a.bin": b"weights", "deep/t.bin": b"tokens"}
        server.repositories[TINY] = Repository(files, {"deep/a.bin"})
        pins = [Pinned(TINY, "a" * 40, name, len(content), sha256(content)) for name, content in files.items()]
        monkeypatch.setitem(NAMES, "tiny", Published("a model", TINY, 5, *pins))
        result = download("tiny", hub, out=tmp_path / "out")
        assert (result.model, result.tokenizer) == (tmp_path / "out/a.bin", tmp_path / "out/t.bin")
        assert brought(result) == {"a.bin": b"weights", "t.bin": b"tokens"}
        assert not hub.cache.exists()
        assert download("tiny", offline(hub), out=tmp_path / "out").files[0].fetched == 0

    def test_what_is_cached_is_copied_even_offline(self, server, hub, tmp_path):
        held = server.repositories[TINY] = folder_of()
        download(TINY, hub)
        files = brought(download(TINY, offline(hub), out=tmp_path / "out"))
        assert files["model.safetensors"] == held.files["model.safetensors"]

    def test_another_file_of_the_user_is_not_overwritten(self, server, hub, tmp_path):
        server.repositories[TINY] = folder_of()
        (tmp_path / "out").mkdir()
        (tmp_path / "out/tokenizer.json").write_bytes(b"my own")
        assert f"{tmp_path}/out/tokenizer.json: another file is there already" in refusal(
            TINY, hub, out=tmp_path / "out"
        )
        assert files_below(tmp_path / "out") == ["tokenizer.json"]


class TestTrial:
    def test_it_shows_sizes_and_writes_nothing(self, server, hub, tmp_path):
        server.repositories[TINY] = folder_of(**{"model.safetensors": noise(2_000_000)})
        result = download(TINY, hub, dry_run=True)
        assert result.model is None
        lines = result.render().splitlines()
        assert re.fullmatch(rf"{TINY}/model.safetensors +2.0 MB +2.0 MB to fetch", lines[-2])
        assert lines[-1] == "2.0 MB in all, 2.0 MB to fetch"
        assert files_below(tmp_path) == []
        assert server.files_asked == ["config.json"]

    def test_it_shows_what_is_there(self, server, hub):
        server.repositories[TINY] = folder_of()
        download(TINY, hub)
        assert all("is here" in line for line in download(TINY, hub, dry_run=True).render().splitlines()[:-1])


class TestCommand:
    def run(self, server, tmp_path, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "shearling", "download", *arguments],
            capture_output=True,
            text=True,
            timeout=60,
            env={**os.environ, "HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "home")},
        )

    def test_prints_the_path_and_the_next_command(self, server, tmp_path):
        held = server.repositories[TINY] = folder_of()
        done = self.run(server, tmp_path, TINY)
        path, command = done.stdout.splitlines()
        assert (done.returncode, done.stderr) == (0, "")
        assert (Path(path) / "model.safetensors").read_bytes() == held.files["model.safetensors"]
        assert path.startswith(str(tmp_path / "home"))
        assert command == f"next: shearling generate {path}"

    def test_prints_json(self, server, tmp_path):
        server.repositories[TINY] = folder_of()
        shown = json.loads(self.run(server, tmp_path, TINY, "--out", str(tmp_path / "out"), "--json").stdout)
        assert shown["model"] == str(tmp_path / "out")
        assert {file["name"]: file["size"] for file in shown["files"]}["model.safetensors"] == 5_000

    def test_a_mistake_is_a_line_and_status_two(self, server, tmp_path):
        done = self.run(server, tmp_path, "some/tiny")
        assert (done.returncode, done.stdout) == (2, "")
        assert re.fullmatch(r"error: some/tiny: no such model on http.*\n", done.stderr)

    def test_lists_names(self, server, tmp_path):
        done = self.run(server, tmp_path, "--list")
        assert "stories110M" in done.stdout
        assert list(json.loads(self.run(server, tmp_path, "--list", "--json").stdout)) == list(NAMES)

    def test_a_missing_name_is_told(self, server, tmp_path):
        done = self.run(server, tmp_path)
        assert (done.returncode, "shearling download --list" in done.stderr) == (2, True)
