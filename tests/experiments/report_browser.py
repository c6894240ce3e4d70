"""A headless Chromium, driven through pipes by its DevTools protocol (https://chromedevtools.github.io/devtools-protocol)."""

import base64
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

# The protocol's pipes are file descriptors 3 and 4 of the browser; first both are moved out of each other's way.
_LAUNCH = """
import fcntl, os, sys
ends = [fcntl.fcntl(int(end), fcntl.F_DUPFD, 10) for end in sys.argv[1:3]]
os.dup2(ends[0], 3), os.dup2(ends[1], 4)
os.execv(sys.argv[3], sys.argv[3:])
"""


def find() -> str | None:
    """The browser's path, or None where there is none."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """One window, to be closed. What needs the network fails: its proxy is a port where nobody listens.

    Attributes:
        requests: addresses that pages asked for.
        complaints: what the console said, a refusal of the page's policy for one.
    """

    def __init__(self, program: str, profile: Path) -> None:
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self._number = 0
        their_input, ours = os.pipe()
        answers, their_output = os.pipe()
        self._input, self._output = os.fdopen(ours, "wb", buffering=0), os.fdopen(answers, "rb")
        self._buffer = b""
        self._process = subprocess.Popen(
            [
                sys.executable, "-c", _LAUNCH, str(their_input), str(their_output), program, "--headless",
                "--no-sandbox", "--remote-debugging-pipe", "--proxy-server=127.0.0.1:9", "--disable-gpu",
                "--disable-dev-shm-usage", "--disable-background-networking", "--no-first-run",
                f"--user-data-dir={profile}",
            ],
            pass_fds=(their_input, their_output), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(their_input)
        os.close(their_output)
        target = self._ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self._ask(f"{domain}.enable")

    def open(self, page: Path, *, scheme: str = "light", width: int = 1200) -> None:
        """Load a page, by day or night (`light`, `dark`), in a window of so many CSS pixels."""
        self.requests.clear()
        self.complaints.clear()
        self._ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self._ask(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600
        )
        self._loaded = False
        failure = self._ask("Page.navigate", url=page.as_uri()).get("errorText")
        assert failure is None, f"{page}: {failure}"
        while not self._loaded:
            self._hear()
        self.run("Promise.all([...document.images].map(image => image.decode().catch(() => null)))")

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression in the page, which the page's own policy does not concern."""
        answer = self._ask("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def screenshot(self) -> bytes:
        """The whole page as PNG."""
        return base64.b64decode(self._ask("Page.captureScreenshot", captureBeyondViewport=True)["data"])

    def close(self) -> None:
        """End the browser."""
        self._input.close()  # which it takes for the end
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._output.close()

    def _ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if session := getattr(self, "_session", None):
            message["sessionId"] = session
        self._input.write(json.dumps(message).encode() + b"\0")
        while (answer := self._hear()).get("id") != self._number:
            pass
        assert "error" not in answer, answer
        result: dict[str, Any] = answer["result"]
        return result

    def _hear(self) -> dict[str, Any]:
        """The next message; what is an event is noted."""
        while b"\0" not in self._buffer:
            piece = os.read(self._output.fileno(), 1 << 16)
            assert piece, f"the browser ended, status {self._process.poll()}"
            self._buffer += piece
        text, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        match message.get("method"):
            case "Network.requestWillBeSent":
                self.requests.append(message["params"]["request"]["url"])
            case "Page.loadEventFired":
                self._loaded = True
            case "Log.entryAdded":
                self.complaints.append(message["params"]["entry"]["text"])
        return message
