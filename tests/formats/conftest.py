"""A Hub that is on this machine."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import HubServer

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
