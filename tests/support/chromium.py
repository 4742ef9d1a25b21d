"""Drives headless Chromium for tests, over its DevTools protocol."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aiohttp import ClientSession

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def find_browser() -> str | None:
    """The first browser on the PATH."""
    return next((path for name in BROWSERS if (path := shutil.which(name))), None)


class Browser:
    """A browser with one page of so many pixels, which sends `headers` with every request."""

    def __init__(self, program: str, profile: Path, headers: dict[str, str], size: str = "1400,900") -> None:
        self._profile, self._headers, self._number = profile, headers, 0
        self._size = dict(zip(("width", "height"), map(int, size.split(",")), strict=True))
        self.events: list[dict[str, Any]] = []
        """What the page did: its requests, its exceptions, what it wrote to the console."""
        self._process = subprocess.Popen(
            [
                program,
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-dev-shm-usage",
                f"--window-size={size}",
                "--remote-debugging-port=0",
                f"--user-data-dir={profile}",
                "about:blank",
            ],
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )

    async def visit(
        self, url: str, texts: list[str], picture: Path, seconds: float = 60.0, scripts: Sequence[tuple[str, Any]] = ()
    ) -> str:
        """The text of a page once it has all of `texts`, and a picture of it. Raises AssertionError if it has not.

        Then each of the `scripts`, expressions, must have the value beside it.
        """
        async with ClientSession() as session:
            async with session.get(f"http://127.0.0.1:{await self._port()}/json") as answer:
                pages = [page for page in await answer.json(content_type=None) if page["type"] == "page"]
            async with session.ws_connect(pages[0]["webSocketDebuggerUrl"], max_msg_size=1 << 27) as socket:
                for domain in ("Network", "Runtime", "Log"):
                    await self._call(socket, f"{domain}.enable")
                await self._call(socket, "Network.setExtraHTTPHeaders", headers=self._headers)
                shape = {**self._size, "deviceScaleFactor": 1, "mobile": False}  # no window is narrower than 500
                await self._call(socket, "Emulation.setDeviceMetricsOverride", **shape)
                await self._call(socket, "Page.navigate", url="about:blank")  # the same page but for its #part stays
                await self._call(socket, "Page.navigate", url=url)
                shown, until = "", time.monotonic() + seconds
                while not all(text in shown for text in texts):
                    assert time.monotonic() < until, f"{url} lacks {texts}: {shown}"
                    await asyncio.sleep(0.3)
                    body = "document.body ? document.body.innerText : ''"
                    found = await self._call(socket, "Runtime.evaluate", expression=body)
                    shown = found["result"].get("value", "")
                image = await self._call(socket, "Page.captureScreenshot", format="png")
                for script, expected in scripts:
                    found = await self._call(socket, "Runtime.evaluate", expression=script, returnByValue=True)
                    assert found["result"].get("value") == expected, f"{script}: {found}"
        picture.write_bytes(base64.b64decode(image["data"]))
        return shown

    async def _port(self) -> int:
        """Written by the browser once it listens."""
        file = self._profile / "DevToolsActivePort"
        while not file.exists() or not file.read_text():
            assert self._process.poll() is None, "the browser has ended"
            await asyncio.sleep(0.1)
        return int(file.read_text().splitlines()[0])

    async def _call(self, socket: Any, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        await socket.send_str(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while True:
            answer = json.loads((await socket.receive()).data)
            if answer.get("id") == self._number:
                return answer["result"]
            self.events.append(answer)

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(10)
