"""`nucleus approvals notify`: a webhook and a command hear of each request; the answer is given elsewhere."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import queue
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from .site import BIN, Site

SECRET = b"a secret of 24 bytes or s"


class Hook(BaseHTTPRequestHandler):
    """Answers what it is told to, and keeps what it got."""

    answers: queue.Queue[int] = queue.Queue()
    got: queue.Queue[tuple[dict[str, str], bytes]] = queue.Queue()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.got.put(({name.lower(): value for name, value in self.headers.items()}, body))
        self.send_response(200 if self.answers.empty() else self.answers.get())
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def hook() -> Iterator[str]:
    Hook.answers, Hook.got = queue.Queue(), queue.Queue()
    server = HTTPServer(("127.0.0.1", 0), Hook)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/hook?x=1"
    server.shutdown()
    thread.join(10)
    server.server_close()


ASKS = ("exec", "--profile", "codegen", "--approvals", "none", "--workdir")


def test_a_webhook(root_site: Site, hook: str) -> None:
    secret = root_site.directory / "secret"
    secret.write_bytes(b"whsec_" + base64.b64encode(SECRET) + b"\n")
    secret.chmod(0o600)
    Hook.answers.put(503)  # the first attempt is made again
    argv = [str(BIN / "nucleus"), "approvals", "notify", "--webhook", hook, "--secret-file", str(secret)]
    with root_site.start(argv) as notify:
        assert notify.stderr is not None
        assert "notifying" in notify.stderr.readline()
        words = (*ASKS, str(root_site.workspace), "--", "sh", "-c", "eval echo yes")
        with root_site.start([str(BIN / "nucleus"), *words]) as child:
            first, body = Hook.got.get(timeout=20)
            headers, again = Hook.got.get(timeout=20)
            assert (again, headers["webhook-id"]) == (body, first["webhook-id"])
            signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
            made = base64.b64encode(hmac.digest(SECRET, signed, hashlib.sha256)).decode()
            assert headers["webhook-signature"] == f"v1,{made}"
            event = json.loads(body)
            assert event["event"] == "request"
            assert 'argv: ["sh", "-c", "eval echo yes"]' in event["request"]["display"]
            assert root_site.cli("approvals", "approve", event["request"]["request"]).returncode == 0
            out, err = child.communicate(timeout=30)
        assert (child.returncode, out) == (0, "yes\n"), err
        resolved = json.loads(Hook.got.get(timeout=20)[1])
        assert (resolved["event"], resolved["verdict"]) == ("resolved", "approve")
        notify.terminate()
        notify.communicate(timeout=30)


def test_a_command(root_site: Site) -> None:
    heard = root_site.directory / "heard"
    program = root_site.directory / "hear"
    program.write_text(f"#!/bin/sh\ncat >> {heard}; echo >> {heard}; env > {heard}.env\n")
    program.chmod(0o755)
    with root_site.start([str(BIN / "nucleus"), "approvals", "notify", "--", str(program)]) as notify:
        assert notify.stderr is not None
        assert "notifying" in notify.stderr.readline()
        words = (*ASKS, str(root_site.workspace), "--", "sh", "-c", "eval echo yes")
        with root_site.start([str(BIN / "nucleus"), *words]) as child:
            request = waited(heard)["request"]["request"]
            assert root_site.cli("approvals", "deny", request).returncode == 0
            assert child.wait(30) != 0
            child.communicate(timeout=10)
        notify.terminate()
        notify.communicate(timeout=30)
    names = {line.partition("=")[0] for line in Path(f"{heard}.env").read_text().splitlines()}
    assert names <= {"PATH", "HOME", "LANG", "PWD", "SHLVL", "_", "OLDPWD"}


def waited(path: Path) -> dict[str, Any]:
    for _ in range(200):
        if path.exists() and path.read_text().endswith("\n"):
            found: dict[str, Any] = json.loads(path.read_text().splitlines()[0])
            return found
        threading.Event().wait(0.1)
    raise AssertionError("nobody was told")


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ((), "notify takes"), (("--webhook", "https://a.test/", "--", "true"), "notify takes"),
        (("--webhook", "http://a.test/"), "https"), (("--webhook", "ftp://a.test/"), "https"),
        (("--webhook", "https://u:p@a.test/"), "no plain URL"), (("--webhook", "https://"), "no plain URL"),
        (("--webhook", "https://a.test:x/"), "no URL"), (("--secret-file", "/x", "--", "true"), "signs a webhook"),
        (("--webhook", "https://a.test/", "--secret-file", "/nowhere"), "cannot be read"),
        (("--webhook", "https://a.test/", "--secret-file", "/etc/passwd"), "mode 0600"),
        (("--nonsense",), "unknown option"),
    ],
)  # fmt: skip
def test_wrong_words(root_site: Site, words: tuple[str, ...], problem: str) -> None:
    done = root_site.cli("approvals", "notify", *words)
    assert done.returncode == 2
    assert problem in done.stderr
