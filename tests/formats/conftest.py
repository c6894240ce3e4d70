"""A Hub that is on this machine, Hugging Face folders to spoil, and files and folders with whatever content."""

import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from hub_server import HubServer
from meta_folders import save as save_shards

from shearling.formats import hub_client
from shearling.formats.hub import Hub


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    """An empty Hub. Who asks it has no token, and the library does not ask the real one how to describe its user."""
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY", True)
    with HubServer().running() as server:
        yield server


@pytest.fixture
def said() -> list[str]:
    """What `hub` told its user."""
    return []


@pytest.fixture
def hub(server: HubServer, tmp_path: Path, said: list[str]) -> Hub:
    """`server`, with a cache of its own."""
    return Hub(server.url, tmp_path / "cache", say=said.append)


@pytest.fixture
def naps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that were waited: recorded, and not slept."""
    naps: list[float] = []
    monkeypatch.setattr(hub_client.time, "sleep", naps.append)
    return naps


@pytest.fixture(scope="session")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder of each family, by its name in `huggingface_folders`."""
    from huggingface_folders import bert, gpt2, llama, mistral, saved, yarn  # tests of the Hub do without PyTorch

    folder = tmp_path_factory.mktemp("originals")
    return {make.__name__: saved(make(), folder / make.__name__) for make in (llama, mistral, yarn, gpt2, bert)}


@pytest.fixture
def copy(originals: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    """A folder to spoil: `copy("gpt2")`."""
    return lambda name: Path(shutil.copytree(originals[name], tmp_path / name))


@pytest.fixture
def bin_file(tmp_path: Path) -> Callable[[bytes], Path]:
    """A llama2.c file with these bytes: `bin_file(content)`."""

    def save(content: bytes) -> Path:
        (tmp_path / "model.bin").write_bytes(content)
        return tmp_path / "model.bin"

    return save


@pytest.fixture
def meta_folder(tmp_path: Path) -> Callable[..., Path]:
    """A folder of these shards: `meta_folder([state], norm_eps=1e-6)`; a parameter that is `...` goes."""
    return partial(save_shards, tmp_path / "llama")
