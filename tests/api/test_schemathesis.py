"""The HTTP API against its own document: schemathesis makes the requests, a real gate answers them.

schemathesis speaks plain HTTP to a small forwarder of ours on loopback, which holds the orchestrator's SVID.
"""

from __future__ import annotations

import contextlib
import http.client
import http.server
import os
import re
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from integration.site import Site
from integration.test_serve import Served
from nucleus.sdk.identity import Source, check_peer

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = os.environ.get("NUCLEUS_API_EXAMPLES", "60")
# Mutual TLS is the forwarder's here; and a body that fits the schema may be refused: what a path, a pattern or a URL
# may be is more than a schema can say.
LEFT_OUT = "ignored_auth,positive_data_acceptance"


@contextlib.contextmanager
def forwarder(door: dict[str, str]) -> Iterator[str]:
    """An address that passes requests on to the gate as they are."""
    source = Source(door["workload"])
    host, port = door["gate"].removeprefix("https://").rsplit(":", 1)

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def forward(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            connection = http.client.HTTPSConnection(host, int(port), context=source.current()[1], timeout=60)
            try:
                connection.connect()
                check_peer(connection.sock, door["gate_id"])
                connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
                for name, value in self.headers.items():
                    if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                        connection.putheader(name, value)
                connection.putheader("Content-Length", str(len(body)))
                connection.endheaders(body)
                answer = connection.getresponse()
                data = answer.read()
            finally:
                connection.close()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def __getattr__(self, name: str) -> Any:
            if name.startswith("do_"):
                return self.forward
            raise AttributeError(name)

        def log_message(self, *_: object) -> None:
            """Quiet."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.timeout(1_200)
def test_every_answer_is_one_of_the_document(root_site: Site, schemathesis: Path) -> None:
    root_site.write("a.txt", "alpha\n")
    served = Served(root_site)
    try:
        with forwarder(served.door) as address:
            done = subprocess.run(
                [
                    str(schemathesis), "run", str(ROOT / "docs/openapi.json"), "--url", address, "--seed", "1",
                    "--max-examples", EXAMPLES, "--exclude-checks", LEFT_OUT, "--no-color",
                    "--phases", "examples,coverage,fuzzing", "--suppress-health-check", "all", "--warnings", "off",
                ],
                capture_output=True, text=True, timeout=1_100, check=False, cwd=root_site.directory,
            )  # fmt: skip
    finally:
        assert served.stop() == 0
    summary = re.findall(r"^ *(?:Test cases|Operations|API|✅|❌).*$|\d+ generated.*", done.stdout, re.MULTILINE)
    print("\n".join(summary))
    assert done.returncode == 0, done.stdout[-6_000:] + done.stderr[-2_000:]
