"""The README's picture: a DAG's newest run in a running Airflow, taken through chromedriver; a tool of developers.

Start ``make demo`` in another terminal, then, with the address and the password that it prints::

    .venv/bin/python -m sandbox.screenshot http://127.0.0.1:PORT PASSWORD docs/images/airflow.png

Needs ``chromium`` and ``chromedriver`` on the PATH (Debian: ``apt-get install chromium chromium-driver``).
"""

from __future__ import annotations

import argparse
import base64
import json
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sandbox.airflow_api import AirflowApi
from sandbox.errors import SandboxError
from sandbox.ports import free_port, is_listening
from sandbox.processes import ServerProcess
from spark_jobs.contracts.errors import EtlError

_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
_EXPAND = 'button[aria-label="Expand all extra JSON"]'
_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-proxy-server"),
    "--force-device-scale-factor=1",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Take the picture and return the exit code."""
    parser = argparse.ArgumentParser(prog="sandbox.screenshot", description="A picture of a DAG's newest run.")
    parser.add_argument("url", help="address of the Airflow UI")
    parser.add_argument("password", help="password of the user admin")
    parser.add_argument("target", type=Path, help="the PNG file to write")
    parser.add_argument("--dag", default="orders-per-5-minutes")
    parser.add_argument("--task", default="run_pipeline", help="empty: the run's overview")
    parser.add_argument("--tab", default="xcom", help="of the task's page; empty: its log")
    parser.add_argument("--click", default=_EXPAND, help="CSS selector of what is clicked before; empty: nothing")
    parser.add_argument("--text", default="return_value", help="what the page must show before the picture is taken")
    parser.add_argument("--size", default="1400x740", help="of the page, in pixels")
    chosen = parser.parse_args(arguments)
    try:
        _picture(chosen)
    except EtlError as error:
        print(error, file=sys.stderr)
        return int(error.exit_code)
    return 0


def _picture(chosen: argparse.Namespace) -> None:
    airflow = _Login(chosen.url, chosen.password)
    runs = airflow.api("GET", f"/dags/{quote(chosen.dag)}/dagRuns", order_by="-start_date", limit=1)["dag_runs"]
    if not runs:
        raise SandboxError(f"The DAG {chosen.dag} has no run", cure="trigger it")
    page = f"{chosen.url}/dags/{quote(chosen.dag)}/runs/{quote(runs[0]['dag_run_id'])}"
    page += "".join(f"/{part}" for part in (chosen.task and f"tasks/{chosen.task}", chosen.tab) if part)
    with tempfile.TemporaryDirectory() as folder:
        browser = Browser(Path(folder), chosen.size)
        try:
            browser.open(chosen.url)
            browser.set_cookie("_token", airflow.token())
            browser.open(page)
            if chosen.click:
                browser.click(chosen.click)
            browser.wait_for(chosen.text)
            chosen.target.parent.mkdir(parents=True, exist_ok=True)
            chosen.target.write_bytes(browser.picture())
        finally:
            browser.close()


class _Login(AirflowApi):
    user = "admin"

    def __init__(self, url: str, password: str) -> None:
        super().__init__(url)
        self._password = password

    @property
    def password(self) -> str:
        return self._password

    def token(self) -> str:
        """Return the token that the UI keeps in a cookie."""
        return self._login()["Authorization"].removeprefix("Bearer ")


class Browser:
    """A headless Chromium, driven by the W3C WebDriver protocol.

    :param folder: for its profile and log. :param size: ``WIDTHxHEIGHT``.
    """

    def __init__(self, folder: Path, size: str) -> None:
        port = free_port()
        self._address = f"http://127.0.0.1:{port}"
        self._driver = ServerProcess(
            "chromedriver", ["chromedriver", f"--port={port}"], log=folder / "chromedriver.log"
        )
        self._driver.wait_until(lambda: is_listening(port), seconds=30)
        flags = [*_FLAGS, f"--user-data-dir={folder / 'profile'}"]
        wanted = {"browserName": "chrome", "goog:chromeOptions": {"args": flags}}
        self._session = str(self._send("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})["sessionId"])
        width, height = (int(number) for number in size.split("x"))
        # The page's size, whatever frame the window has.
        shape = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self._command("POST", "/goog/cdp/execute", {"cmd": "Emulation.setDeviceMetricsOverride", "params": shape})

    def open(self, url: str) -> None:
        """Go to a page."""
        self._command("POST", "/url", {"url": url})

    def set_cookie(self, name: str, value: str) -> None:
        """Set a cookie of the page's host."""
        self._command("POST", "/cookie", {"cookie": {"name": name, "value": value, "path": "/"}})

    def wait_for(self, text: str, *, seconds: float = 60) -> None:
        """Wait until the page shows ``text``, and a moment longer, for what still moves.

        :raises SandboxError: it does not within ``seconds``.
        """
        deadline = time.monotonic() + seconds
        while text not in (shown := self._run("return document.body.innerText")):
            if time.monotonic() > deadline:
                raise SandboxError(f"The page does not show {text!r}", found=shown[:500])
            time.sleep(0.5)
        time.sleep(2)

    def click(self, selector: str, *, seconds: float = 60) -> None:
        """Wait for the element that a CSS selector names, and click it.

        :raises SandboxError: it is not there within ``seconds``.
        """
        script = f"const e = document.querySelector({json.dumps(selector)}); if (e) e.click(); return e !== null"
        deadline = time.monotonic() + seconds
        while self._run(script) != "True":
            if time.monotonic() > deadline:
                raise SandboxError(f"The page has no {selector}")
            time.sleep(0.5)

    def picture(self) -> bytes:
        """Return the window's content as PNG."""
        return base64.b64decode(self._command("GET", "/screenshot"))

    def close(self) -> None:
        """End browser and driver."""
        self._driver.stop(seconds=5)

    def _run(self, script: str) -> str:
        return str(self._command("POST", "/execute/sync", {"script": script, "args": []}))

    def _command(self, method: str, path: str, body: object = None) -> Any:
        return self._send(method, f"/session/{self._session}{path}", body)

    def _send(self, method: str, path: str, body: object = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self._address + path, data=data, headers={"Content-Type": "application/json"}, method=method
        )
        with _opener.open(request, timeout=120) as answer:
            return json.load(answer)["value"]


if __name__ == "__main__":
    sys.exit(main())
