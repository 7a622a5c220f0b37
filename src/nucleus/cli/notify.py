"""`nucleus approvals notify`: somebody elsewhere hears of each request, by a command or a webhook.

 1. Events come as to any watcher, escaped by the authority; who notifies counts as present, so that requests wait.
 2. One after the other, in order: a command with the event as JSON on its standard input, or a POST of it.
 3. A queue of `QUEUE` events; what comes beyond it is dropped, and said.

Promises: an answer is never taken here: it is given by `approve` or `deny`, under the approver's own name. No secret in
an argument or the environment of a command. A webhook is HTTPS (HTTP to this machine alone), no redirect is followed,
the body is signed as Standard Webhooks has it (HMAC-SHA256 over ``id.timestamp.body``) where a secret is given.
Relies on: the resident helper. Does not: keep what could not be delivered.
"""

from __future__ import annotations

import json
import os
import queue
import secrets
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from nucleus.cli.main import printable
from nucleus.cli.options import FLAG, ONE, invalid, parse

if TYPE_CHECKING:
    from nucleus.cli.approvals import Approver

QUEUE = 256
COMMAND_S = 30.0
ANSWER_BYTES = 65_536
ATTEMPTS = 3
_TABLE = {"webhook": ONE, "secret-file": ONE, "pod": ONE, "help": FLAG}
Deliver = Callable[[bytes], str]  # "" or why not


def options(argv: list[str]) -> tuple[dict[str, Any], Deliver]:
    """Read the words behind ``notify``. Raises InvalidError."""
    values, command = parse(argv, _TABLE)
    if values["help"]:
        return values, lambda _: ""
    if bool(values["webhook"]) == bool(command):
        raise invalid("notify takes --webhook URL or, behind --, a program and its arguments")
    if values["secret-file"] and not values["webhook"]:
        raise invalid("--secret-file signs a webhook")
    if command:
        return values, lambda body: _run(command, body)
    return values, webhook(values["webhook"], _secret(values["secret-file"]))


def run(approver: Approver, deliver: Deliver, pod: str = "") -> int:
    """Until the authority ends, or we are interrupted."""
    waiting: queue.Queue[bytes | None] = queue.Queue(QUEUE)
    worker = threading.Thread(target=_work, args=(waiting, deliver), daemon=True)
    worker.start()
    try:
        found = approver.call("watch", **({"pod": pod} if pod else {})).get("requests", [])
        events = [{"event": "request", "request": request} for request in found]
        poll = select.poll()
        poll.register(approver.fileno(), select.POLLIN)
        _tell("notifying; Ctrl-C ends it")
        while True:
            for event in events:
                body = json.dumps({**event, "time_ns": time.time_ns()}, separators=(",", ":")).encode()
                try:
                    waiting.put_nowait(body)  # 3
                except queue.Full:
                    _tell("an event was dropped: deliveries are too slow")
            poll.poll()
            approver.receive()
            events, approver.events = approver.events, []
    finally:
        try:
            waiting.put(None, timeout=1)
        except queue.Full:
            pass
        worker.join(COMMAND_S)


def _work(waiting: queue.Queue[bytes | None], deliver: Deliver) -> None:
    while (body := waiting.get()) is not None:
        problem = deliver(body)
        if problem:
            _tell(f"not delivered: {problem}")


def _run(command: list[str], body: bytes) -> str:
    known = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    try:
        done = subprocess.run(
            command, input=body, timeout=COMMAND_S, env=known, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"the command took more than {COMMAND_S:.0f} s"
    except OSError as error:
        return f"the command cannot be run: {error.strerror}"
    return f"the command ended with {done.returncode}" if done.returncode else ""


def webhook(url: str, secret: bytes) -> Deliver:
    """POSTs to `url`, signed where there is a secret. Raises InvalidError."""
    from urllib.parse import urlsplit

    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise invalid("--webhook is no URL") from None
    if parts.scheme != "https" and not (parts.scheme == "http" and host in ("127.0.0.1", "::1", "localhost")):
        raise invalid("a webhook is https, or http to this machine")
    if not host or parts.username is not None or parts.fragment or not url.isascii() or not url.isprintable():
        raise invalid("--webhook is no plain URL")
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")

    def deliver(body: bytes) -> str:
        ident, problem = f"msg_{secrets.token_hex(12)}", ""
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(4.0**attempt / 4)
            problem, again = _post(parts.scheme, host, port, target, _signed(ident, body, secret), body)
            if not again:
                return problem
        return problem

    return deliver


def _signed(ident: str, body: bytes, secret: bytes) -> dict[str, str]:
    """Headers of one attempt (Standard Webhooks 1.0)."""
    import base64
    import hashlib
    import hmac

    at = str(int(time.time()))
    headers = {
        "Content-Type": "application/json",
        "User-Agent": "nucleus",
        "webhook-id": ident,
        "webhook-timestamp": at,
    }
    if secret:
        mac = hmac.digest(secret, f"{ident}.{at}.".encode() + body, hashlib.sha256)
        headers["webhook-signature"] = f"v1,{base64.b64encode(mac).decode()}"
    return headers


def _post(
    scheme: str, host: str, port: int | None, target: str, headers: dict[str, str], body: bytes
) -> tuple[str, bool]:
    """(what was wrong, is it worth another attempt)."""
    import http.client
    import ssl

    connection: http.client.HTTPConnection
    if scheme == "https":
        connection = http.client.HTTPSConnection(host, port, timeout=10, context=ssl.create_default_context())
    else:
        connection = http.client.HTTPConnection(host, port, timeout=10)
    try:
        connection.request("POST", target, body, headers)
        answer = connection.getresponse()
        answer.read(ANSWER_BYTES)
    except (OSError, http.client.HTTPException) as error:
        return f"the webhook cannot be reached ({type(error).__name__})", True
    finally:
        connection.close()
    if 200 <= answer.status < 300:
        return "", False
    return f"the webhook answered {answer.status}", answer.status >= 500 or answer.status == 429


def _secret(path: str) -> bytes:
    """The secret of a file that is the person's alone. Raises InvalidError."""
    import base64
    import binascii
    import stat

    if not path:
        return b""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            status = os.fstat(fd)
            data = os.read(fd, 4_097)
        finally:
            os.close(fd)
    except OSError as error:
        raise invalid(f"--secret-file cannot be read: {error.strerror}") from None
    if not stat.S_ISREG(status.st_mode) or status.st_uid not in (os.geteuid(), 0) or status.st_mode & 0o077:
        raise invalid("--secret-file is a plain file of yours, mode 0600")
    text = data.strip()
    try:
        found = base64.b64decode(text[6:], validate=True) if text.startswith(b"whsec_") else text
    except binascii.Error:
        raise invalid("--secret-file: what follows whsec_ is base64") from None
    if not 16 <= len(found) <= 4_096:
        raise invalid("--secret-file holds 16 to 4,096 bytes")
    return found


def _tell(text: str) -> None:
    sys.stderr.write(f"nucleus: {printable(text)}\n")
    sys.stderr.flush()
