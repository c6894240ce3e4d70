"""A Hub on this machine: the paths that `huggingface_hub` asks for, and the faults that a network has."""

import hashlib
import json
import re
import socket
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit


@dataclass
class Repository:
    """What the Hub knows of a model. Files in `large` are kept in LFS: another host serves them, by their SHA-256."""

    files: dict[str, bytes]
    large: set[str] = field(default_factory=set)
    commit: str = "a" * 40
    refs: tuple[str, ...] = ("main",)
    gated: bool = False
    architecture: str | None = None

    def entry(self, name: str) -> dict[str, Any]:
        content = self.files[name]
        entry: dict[str, Any] = {"size": len(content), "oid": git_sha1(content)}
        if name in self.large:
            entry["lfs"] = {"size": len(content), "sha256": sha256(content), "pointerSize": 134}
        return entry

    def etag(self, name: str) -> str:
        return sha256(self.files[name]) if name in self.large else git_sha1(self.files[name])


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def git_sha1(content: bytes) -> str:
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    token: str | None
    range: str | None


@dataclass(frozen=True)
class Answer:
    """What a server sends, and how much of it before it hangs up."""

    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None
    length: bool = True


Fault = Callable[[Answer], Answer]
"""What becomes of an answer."""


def drop(after: int) -> Fault:
    """The connection breaks when so many bytes of the body were sent."""
    return lambda answer: Answer(answer.status, answer.body, answer.headers, cut=after)


def shorten(to: int) -> Fault:
    """So many bytes are sent, and nothing tells that there were more."""
    return lambda answer: Answer(answer.status, answer.body[:to], answer.headers, length=False)


def refuse(status: int, body: bytes = b"", **headers: str) -> Fault:
    """Another answer; in names of headers _ stands for -."""
    return lambda _: Answer(status, body, {name.replace("_", "-"): value for name, value in headers.items()})


def falsify(answer: Answer) -> Answer:
    """A byte of the body is another one."""
    return Answer(answer.status, bytes([answer.body[0] ^ 1]) + answer.body[1:], answer.headers)


class HubServer:
    """Repositories by name, the requests that came, and faults that wait: by path, one for each request to it."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.requests: list[Request] = []
        self.faults: dict[str, deque[Fault]] = defaultdict(deque)
        self.body_bytes = 0
        self.token: str | None = None
        self._connections: list[socket.socket] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"

    @property
    def files_asked(self) -> list[str]:
        """Names of the files whose content was asked for, in order."""
        return [unquote(r.path).split("/resolve/")[1].split("/", 1)[1] for r in self.requests if "/resolve/" in r.path]

    def file_path(self, repository: str, name: str) -> str:
        """Where the content of a file comes from: the path that faults of its transfer are filed under."""
        held = self.repositories[repository]
        return f"/cdn/{held.etag(name)}" if name in held.large else f"/{repository}/resolve/{held.commit}/{name}"

    @contextmanager
    def running(self) -> Iterator["HubServer"]:
        thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield self
        finally:
            self.stop()
            thread.join()

    def stop(self) -> None:
        """From now on nobody listens there."""
        self._server.shutdown()
        self._server.server_close()
        for connection in self._connections:
            with suppress(OSError):  # the other side has closed it
                connection.shutdown(socket.SHUT_RDWR)

    def answer(self, request: Request, query: dict[str, list[str]]) -> Answer:
        for pattern, give in self._paths:
            if match := re.fullmatch(pattern, request.path):
                return give(self, request, query, *map(unquote, match.groups()))
        return Answer(404)

    def _models(self, _: Request, query: dict[str, list[str]]) -> Answer:
        author, search = query.get("author", [""])[0], query.get("search", [""])[0]
        names = [
            name
            for name in self.repositories
            if name.startswith(f"{author}/" if author else "") and search.casefold() in name.casefold()
        ]
        return _json([{"id": name} for name in names])

    def _info(self, _: Request, __: dict[str, list[str]], name: str, revision: str) -> Answer:
        held, missing = self._held(name, revision)
        if missing:
            return missing
        siblings = [{"rfilename": file, **_as_blob(held.entry(file))} for file in held.files]
        gguf = {"gguf": {"architecture": held.architecture}} if held.architecture else {}
        return _json({"id": name, "sha": held.commit, "siblings": siblings, **gguf})

    def _tree(self, _: Request, __: dict[str, list[str]], name: str, revision: str) -> Answer:
        held, missing = self._held(name, revision)
        return missing or _json([{"type": "file", "path": file, **_as_tree(held.entry(file))} for file in held.files])

    def _refs(self, _: Request, __: dict[str, list[str]], name: str) -> Answer:
        held = self.repositories[name]
        branches = [{"name": ref, "ref": f"refs/heads/{ref}", "targetCommit": held.commit} for ref in held.refs]
        return _json({"branches": branches, "converts": [], "tags": []})

    def _resolve(self, request: Request, _: dict[str, list[str]], name: str, revision: str, file: str) -> Answer:
        held, missing = self._held(name, revision)
        if missing:
            return missing
        if held.gated and request.token is None:
            return Answer(401, b"Access is restricted.", {"X-Error-Code": "GatedRepo"})
        if file not in held.files:
            return Answer(404, headers={"X-Error-Code": "EntryNotFound"})
        known = {"ETag": f'"{held.etag(file)}"', "X-Repo-Commit": held.commit}
        if file not in held.large:
            return _ranged(request, held.files[file], known)
        linked = {"X-Linked-Etag": f'"{held.etag(file)}"', "X-Linked-Size": str(len(held.files[file]))}
        # "localhost" is another host than 127.0.0.1, as the Hub's store of large files is.
        location = {"Location": f"http://localhost:{self.port}/cdn/{held.etag(file)}"}
        return Answer(302, b"", {**known, **linked, **location})

    def _cdn(self, request: Request, _: dict[str, list[str]], digest: str) -> Answer:
        contents = (held.files[name] for held in self.repositories.values() for name in held.large & held.files.keys())
        return _ranged(request, next(content for content in contents if sha256(content) == digest), {})

    def _held(self, name: str, revision: str) -> tuple[Repository, Answer | None]:
        held = self.repositories.get(name)
        if held is None:
            return Repository({}), Answer(401, headers={"X-Error-Code": "RepoNotFound"})
        if revision not in (*held.refs, held.commit):
            return held, Answer(404, headers={"X-Error-Code": "RevisionNotFound"})
        return held, None

    _paths = (
        (r"/api/models", _models),
        (r"/api/models/([^/]+/[^/]+)/revision/([^/]+)", _info),
        (r"/api/models/([^/]+/[^/]+)/tree/([^/]+)", _tree),
        (r"/api/models/([^/]+/[^/]+)/refs", _refs),
        (r"/cdn/([0-9a-f]+)", _cdn),
        (r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", _resolve),
    )

    def _handler(hub) -> type[BaseHTTPRequestHandler]:  # noqa: N805 (self is the handler)
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                hub._connections.append(self.connection)

            def do_GET(self) -> None:
                url = urlsplit(self.path)
                token = self.headers.get("Authorization", "").removeprefix("Bearer ") or None
                request = Request(self.command, url.path, token, self.headers.get("Range"))
                hub.requests.append(request)
                if hub.token and token and token != hub.token and not url.path.startswith("/cdn/"):
                    answer = refuse(401, X_Error_Message="Invalid credentials in Authorization header")(Answer(200))
                else:
                    answer = hub.answer(request, parse_qs(url.query))
                if hub.faults[url.path] and self.command == "GET":
                    answer = hub.faults[url.path].popleft()(answer)
                self._send(answer)

            do_HEAD = do_GET

            def _send(self, answer: Answer) -> None:
                self.send_response(answer.status)
                for name, value in answer.headers.items():
                    self.send_header(name, value)
                if answer.length:
                    self.send_header("Content-Length", str(len(answer.body)))
                else:
                    self.send_header("Connection", "close")
                self.end_headers()
                if self.command == "GET":
                    sent = answer.body[: answer.cut]
                    with suppress(ConnectionError):  # who asked has heard enough
                        self.wfile.write(sent)
                        hub.body_bytes += len(sent) if "/cdn/" in self.path or "/resolve/" in self.path else 0
                if answer.cut is not None or not answer.length:
                    self.close_connection = True

            def log_message(self, *_: object) -> None:
                """Says nothing."""

        return Handler


def _json(value: Any) -> Answer:
    return Answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})


def _as_blob(entry: dict[str, Any]) -> dict[str, Any]:
    return {"size": entry["size"], "blobId": entry["oid"], **({"lfs": entry["lfs"]} if "lfs" in entry else {})}


def _as_tree(entry: dict[str, Any]) -> dict[str, Any]:
    if "lfs" not in entry:
        return entry
    lfs = entry["lfs"]
    return {**entry, "lfs": {"size": lfs["size"], "oid": lfs["sha256"], "pointerSize": lfs["pointerSize"]}}


def _ranged(request: Request, content: bytes, headers: dict[str, str]) -> Answer:
    match = re.fullmatch(r"bytes=(\d+)-", request.range or "")
    if not match:
        return Answer(200, content, headers)
    start = int(match[1])
    if start >= len(content):
        return Answer(416, headers={**headers, "Content-Range": f"bytes */{len(content)}"})
    return Answer(
        206, content[start:], {**headers, "Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
    )
