"""Headless Chromium, driven over its debugging pipe: a page, what it asks of the network, what its console says."""

import base64
import contextlib
import fcntl
import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SWITCHES = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--remote-debugging-pipe", "--hide-scrollbars",
    "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream",
)  # fmt: skip
SILENCE = 100  # seconds in which a browser that works answers any command


class Page:
    """One tab. `asked`: addresses that it has requested; `complaints`: errors and warnings of its console, and exceptions."""

    def __init__(self, to: int, back: int) -> None:
        self.to, self.back, self.number, self.rest, self.session = to, back, 0, b"", None
        self.asked: list[str] = []
        self.complaints: list[str] = []
        self.silent = False  # then every later test fails at once
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network", "DOM"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The result of one command; what happens meanwhile is recorded."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters} | (
            {"sessionId": self.session} if self.session else {}
        )
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self.to, data) :]
        while (answer := self._read()).get("id") != self.number:
            self._record(answer.get("method"), answer.get("params", {}))
        assert "error" not in answer, answer["error"]
        return answer["result"]

    def _read(self) -> dict[str, Any]:
        parts = [self.rest]
        while b"\0" not in parts[-1]:
            self.silent = self.silent or not select.select([self.back], [], [], SILENCE)[0]
            assert not self.silent, f"Chromium has not answered for {SILENCE} s"
            part = os.read(self.back, 1 << 20)
            assert part, "Chromium has ended"
            parts.append(part)
        message, _, self.rest = b"".join(parts).partition(b"\0")
        return json.loads(message)

    def _record(self, method: str | None, about: dict[str, Any]) -> None:
        match method:
            case "Network.requestWillBeSent":
                self.asked.append(about["request"]["url"])
            case "Runtime.exceptionThrown":
                self.complaints.append(str(about["exceptionDetails"]))
            case "Runtime.consoleAPICalled" if about["type"] in ("error", "warning", "assert"):
                self.complaints.append(str(about["args"]))
            case "Log.entryAdded" if about["entry"]["level"] in ("error", "warning"):
                self.complaints.append(str(about["entry"]))

    def run(self, script: str) -> Any:
        """The value of an asynchronous function's body, as JSON."""
        result = self.call(
            "Runtime.evaluate", expression=f"(async () => {{ {script} }})()", awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def wait(self, condition: str, seconds: float = 60) -> None:
        """Until a JavaScript expression holds."""
        end = time.monotonic() + seconds
        while not self.run(f"return Boolean({condition})"):
            assert time.monotonic() < end, f"{condition}: not after {seconds} s; the page says {self.text('#status')!r}"
            time.sleep(0.05)

    def text(self, selector: str) -> str:
        return self.run(f"return document.querySelector({selector!r}).textContent")

    def press(self, key: str) -> None:
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, text=key if kind == "keyDown" and len(key) == 1 else "")

    def click(self, selector: str) -> None:
        self.run(f"document.querySelector({selector!r}).click()")

    def choose(self, selector: str, file: Path) -> None:
        """Gives a file to a file input."""
        node = self.call("Runtime.evaluate", expression=f"document.querySelector({selector!r})")["result"]["objectId"]
        self.call("DOM.setFileInputFiles", files=[str(file)], objectId=node)

    def look(self, width: int, height: int, scheme: str = "light", scale: float = 1) -> None:
        """The size of the window and the colours that its user prefers."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=width < 600)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def picture(self, path: Path, whole: bool = True) -> None:
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", captureBeyondViewport=whole)["data"]))


@contextlib.contextmanager
def browsing(profile: Path) -> Iterator[Page]:
    """A tab in a browser of its own, whose profile is the folder `profile`."""
    (commands, to), (back, answers) = os.pipe(), os.pipe()
    ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (commands, answers)]  # clear of 3 and 4, where Chromium expects them
    start = "import os, sys; a, b = map(int, sys.argv[1:3]); os.dup2(a, 3); os.dup2(b, 4); os.execv(sys.argv[3], sys.argv[3:])"
    process = subprocess.Popen(
        [sys.executable, "-c", start, *map(str, ends), str(CHROMIUM), *SWITCHES, f"--user-data-dir={profile}"],
        pass_fds=ends, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    for end in (commands, answers, *ends):
        os.close(end)
    try:
        page = Page(to, back)
        yield page
        page.session = None
        if not page.silent:
            page.call("Browser.close")
    finally:
        os.close(to)
        os.close(back)
        with contextlib.suppress(subprocess.TimeoutExpired):  # it ends with its pipe
            process.wait(10)
        process.kill()
        process.wait()
