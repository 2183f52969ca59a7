"""A real browser that is driven by the DevTools protocol, https://chromedevtools.github.io/devtools-protocol/."""

import itertools
import json
import re
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

from tests.support.pages import CHROMIUM, FLAGS

WAIT_S = 120.0
"""Longest wait for something on a page: a busy machine is slow, a broken page never gets there."""
REPORTS = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
"""Events of which a sound page causes none."""
KEY_CODES = {"Escape": 27, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}
"""Of keys without a character; https://w3c.github.io/uievents/#fixed-virtual-key-codes."""


class Page:
    """One tab."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket, self._numbers = socket, itertools.count(1)
        self.complaints: list[str] = []
        """What the console said, and exceptions that nobody caught."""
        for domain in ("Page", "Runtime", "Log"):
            self._call(f"{domain}.enable")

    def open(self, url: str, *, width: int = 1280, height: int = 800) -> None:
        """Load a page in a window of this size."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self._call("Emulation.setDeviceMetricsOverride", **size)
        self._call("Page.navigate", url=url)

    def reload(self) -> None:
        """Load the page again, at its present address; returns once the new one is there."""
        self.run("window.isOld = true")
        self._call("Page.reload")
        end = time.monotonic() + WAIT_S
        while self._is_old():
            assert time.monotonic() < end, f"never came back: {self.complaints}"
            time.sleep(0.05)

    def _is_old(self) -> bool:
        try:
            return bool(self.run("window.isOld || document.readyState !== 'complete'"))
        except AssertionError:  # asked while one page gives way to the other
            return True

    def run(self, script: str) -> Any:
        """Value of an expression, awaited if it is a promise."""
        answer = self._call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            raise AssertionError(f"{script}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def wait(self, condition: str) -> Any:
        """Value of an expression once it is true."""
        end = time.monotonic() + WAIT_S
        while not (value := self.run(condition)):
            assert time.monotonic() < end, f"never came true: {condition}; the page says {self.complaints}"
            time.sleep(0.05)
        return value

    def click(self, selector: str) -> None:
        """Click an element, once it is there and can be clicked."""
        found = f"document.querySelector({json.dumps(selector)})"
        self.wait(f"{found} && !{found}.disabled")
        self.run(f"{found}.click()")

    def press(self, key: str) -> None:
        """Press a key on what has the focus."""
        more = {"text": key} if len(key) == 1 else {"windowsVirtualKeyCode": KEY_CODES[key]}
        self._call("Input.dispatchKeyEvent", type="keyDown", key=key, code=key, **more)
        self._call("Input.dispatchKeyEvent", type="keyUp", key=key, code=key)

    def move(self, x: float, y: float) -> None:
        """Move the mouse to a place."""
        self._call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def drag(self, x0: float, y0: float, x1: float, y1: float) -> None:
        """Move the mouse with its left button down."""
        for kind, x, y in (("mousePressed", x0, y0), ("mouseMoved", x1, y1), ("mouseReleased", x1, y1)):
            self._call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=1, clickCount=1)

    def _call(self, method: str, **params: Any) -> dict[str, Any]:
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            message = json.loads(self._socket.recv(timeout=WAIT_S))
            if message.get("method") in REPORTS:
                self.complaints.append(json.dumps(message["params"]))
            if message.get("id") == number:
                assert "error" not in message, f"{method}: {message['error']}"
                answer: dict[str, Any] = message["result"]
                return answer


@contextmanager
def browser(folder: Path) -> Iterator[Page]:
    """A tab of a browser of its own, with its profile in a folder."""
    assert CHROMIUM is not None
    flags = [*FLAGS, "--remote-debugging-port=0", f"--user-data-dir={folder}/profile", "about:blank"]
    with subprocess.Popen([CHROMIUM, *flags], stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            place = next(match[1] for line in process.stderr if (match := re.search(r"ws://([^/]+)/", line)))
            with urllib.request.urlopen(f"http://{place}/json/list", timeout=WAIT_S) as answer:
                tabs = json.load(answer)
            address = next(tab["webSocketDebuggerUrl"] for tab in tabs if tab["type"] == "page")
            with connect(address, max_size=None) as socket:
                yield Page(socket)
        finally:
            process.terminate()
