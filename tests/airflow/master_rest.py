"""The REST server of a standalone cluster's master, as far as somebody asks about drivers and has them killed."""

from __future__ import annotations

import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from types import TracebackType
from typing import Any, Self


class MasterRest:
    """Answers as Spark 4.2 does; a context manager.

    ``state`` is that of every driver; ``killed`` has the ids of drivers that were to be killed, in order;
    ``refuses`` is why they are not.
    """

    def __init__(self) -> None:
        self.state = "RUNNING"
        self.refuses = ""
        self.killed: list[str] = []
        rest = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._answer({"success": True, "driverState": rest.state})

            def do_POST(self) -> None:
                rest.killed.append(self.path.rpartition("/")[2])
                self._answer({"success": not rest.refuses, "message": rest.refuses or "submitted"})

            def _answer(self, value: dict[str, Any]) -> None:
                body = json.dumps(value).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        # Its default looks every half a second whether it is to end.
        self._thread = Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    @property
    def spark_uri(self) -> str:
        """Return the Spark connection to it, in cluster mode."""
        port = self._server.server_address[1]
        return f"spark://spark%3A%2F%2F127.0.0.1:7077?deploy-mode=cluster&rest-port={port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
