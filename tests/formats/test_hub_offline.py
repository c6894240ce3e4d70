"""Downloads where the Hub is out of reach, goes out of reach, or is not to be asked."""

import json
import re
import socket
import threading
import time

import pytest
from hub_models import TINY, folder_of, noise, offline, refusal
from hub_server import drop, refuse
from huggingface_hub import hf_hub_download

from shearling.errors import UserError
from shearling.formats import hub_client
from shearling.formats.download import download
from shearling.formats.hub import Hub


def test_the_cache_is_taken_and_nothing_is_asked(server, hub):
    server.repositories[TINY] = folder_of()
    first = download(TINY, hub)
    server.requests.clear()
    again = Hub(server.url, hub.cache, offline=True, say=print)
    assert download(TINY, again).model == first.model
    assert download(TINY, again, revision="a" * 40).model == first.model
    assert server.requests == []


@pytest.mark.parametrize("gone", ["host", "busy"])
def test_a_hub_out_of_reach_is_told_and_the_cache_taken(server, hub, said, naps, gone):
    server.repositories[TINY] = folder_of()
    first = download(TINY, hub)
    if gone == "host":
        server.stop()
    else:
        server.faults[f"/api/models/{TINY}/revision/main"].extend([refuse(503)] * 6)
    assert download(TINY, hub).model == first.model
    assert re.search(f"{server.url}.*(cannot be reached|HTTP 503).*: taking what is in the cache", said[-1])


def test_a_hub_out_of_reach_with_nothing_cached_is_an_error(server, hub):
    server.stop()
    error = refusal(TINY, hub)
    assert f"{server.url} cannot be reached" in error
    assert f"{TINY} at main is not in the cache\n{hub.cache} holds no model: run the command again" in error


def test_what_was_never_cached_is_an_error(hub):
    assert f"offline, and {TINY} at main is not in the cache" in refusal(TINY, offline(hub))
    assert "offline, and stories260K/tok512.bin of karpathy/tinyllamas is not in the cache" in refusal(
        "stories260K", offline(hub)
    )
    assert not hub.cache.exists()


@pytest.mark.parametrize(
    ("endpoint", "reason"),
    [
        ("http://nonexistent.invalid", r"[^)]*[Nn]ame[^)]*"),
        ("http://127.0.0.1:9", "Connection refused"),
        ("https://127.0.0.1:9", "Connection refused"),
    ],
)
@pytest.mark.parametrize(
    ("name", "missing"),
    [(TINY, f"{TINY} at main"), ("stories260K", "stories260K/tok512.bin of karpathy/tinyllamas")],
    ids=["repository", "pinned"],
)
def test_no_network_is_told_at_once(hub, said, endpoint, reason, name, missing):
    began = time.monotonic()
    error = refusal(name, Hub(endpoint, hub.cache, say=said.append))
    assert time.monotonic() - began < 5
    assert said == []
    assert re.fullmatch(
        rf"offline: {endpoint} cannot be reached \({reason}\), and {missing} is not in the cache\n"
        rf"{hub.cache} holds no model: run the command again where there is a network, or check HF_ENDPOINT",
        error,
    )


@pytest.mark.parametrize("there", ["", "new", "new/deep"])
def test_folders_that_nothing_came_to_are_as_they_were(hub, tmp_path, there):
    models = tmp_path / "models"
    (models / there).mkdir(parents=True)
    refusal("stories260K", Hub("http://127.0.0.1:9", hub.cache, say=print), out=models / "new" / "deep")
    left = {path.relative_to(models).as_posix() for path in models.rglob("*")}
    assert left == {"": set(), "new": {"new"}, "new/deep": {"new", "new/deep", "new/deep/.lock"}}[there]


def test_what_is_in_the_cache_is_told(server, hub):
    server.repositories["some/other"] = server.repositories[TINY] = folder_of()
    hf_hub_download(TINY, "config.json", cache_dir=hub.cache, endpoint=server.url)
    download("some/other", hub)
    away = offline(hub)
    assert f"{hub.cache} holds of it config.json: run" in refusal(TINY, away, revision="v2")
    assert f"{hub.cache} holds some/other, some/tiny: run" in refusal("a/third", away)


def test_a_network_that_goes_in_the_middle_is_waited_for(server, hub, monkeypatch):
    server.repositories[TINY] = folder_of(**{"model.safetensors": noise(3_000_000)})
    server.faults[server.file_path(TINY, "model.safetensors")].append(drop(1_200_000))
    naps = []

    def nap(seconds: float) -> None:
        if not naps:
            server.stop()
        naps.append(seconds)

    monkeypatch.setattr(hub_client.time, "sleep", nap)
    error = refusal(TINY, hub)
    assert naps == [1.0, *hub_client.WAITS]
    assert error.startswith("offline: ")
    assert "with model.safetensors at 1.2 of 3.0 MB: the same command goes on from there" in error


def test_a_failure_of_encryption_is_not_called_a_lack_of_network(hub):
    def answer_plainly() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(4096)
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=answer_plainly).start()
        url = f"https://127.0.0.1:{listener.getsockname()[1]}"
        error = refusal(TINY, Hub(url, hub.cache, say=print))
    assert re.match(rf"{url} cannot be reached \(.*SSL.*\), and .*\n.*: see to this machine's clock", error)


def test_an_endpoint_that_is_no_address_is_told(tmp_path):
    with pytest.raises(UserError, match=r"HF_ENDPOINT: huggingface\.co: should begin with https://"):
        Hub("huggingface.co", tmp_path, say=print)


def test_a_cache_with_a_part_of_the_model_is_an_error(server, hub):
    shards = {f"model-0000{i}-of-00002.safetensors": noise(300, i) for i in (1, 2)}
    index = json.dumps({"weight_map": {f"t{i}": name for i, name in enumerate(shards)}}).encode()
    held = server.repositories[TINY] = folder_of(**{"model.safetensors.index.json": index, **shards})
    del held.files["model.safetensors"]
    for name in ("config.json", "model.safetensors.index.json", "model-00001-of-00002.safetensors"):
        hf_hub_download(TINY, name, cache_dir=hub.cache, endpoint=server.url)
    assert "model-00002-of-00002.safetensors: not in the cache" in refusal(TINY, offline(hub))


def test_a_cache_without_weights_is_an_error(server, hub):
    server.repositories[TINY] = folder_of()
    hf_hub_download(TINY, "config.json", cache_dir=hub.cache, endpoint=server.url)
    assert "its weights are not in the cache" in refusal(TINY, offline(hub))


def test_another_host_that_the_hub_sends_on_to_is_named(server, hub, naps):
    server.repositories[TINY] = folder_of()
    path = f"/{TINY}/resolve/{server.repositories[TINY].commit}/model.safetensors"
    server.faults[path].extend([refuse(302, Location="http://127.0.0.1:9/store")] * 6)
    error = refusal(TINY, hub)
    assert "offline: http://127.0.0.1:9 cannot be reached (Connection refused), and model.safetensors of" in error
    assert f"{hub.cache} holds of it config.json, tokenizer.json, tokenizer_config.json: run" in error
