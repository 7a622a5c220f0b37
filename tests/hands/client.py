"""A gate in miniature: forks hands over a socketpair and talks to it."""

from __future__ import annotations

import os
import signal
import socket
from typing import Any

from nucleus.frames import Decoder, Frame, encode
from nucleus.hands import main

ENV = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/nonexistent", "LANG": "C.UTF-8"}


class Gate:
    """Our end of the channel to one forked hands."""

    def __init__(self, root: str, *, env: dict[str, str] | None = None, command_filter: bytes | None = None) -> None:
        self.socket, theirs = socket.socketpair()
        self.pid = os.fork()
        if self.pid == 0:
            status = 99
            try:
                self.socket.close()
                signal.alarm(120)  # no test leaves a hands behind
                status = main.serve(theirs, root, ENV if env is None else env, command_filter, reaper=False)
            finally:
                os._exit(status)
        theirs.close()
        self.socket.settimeout(20)
        self._decoder = Decoder()
        self._frames: list[Frame] = []
        self._next = 0

    def send(self, op: str, body: bytes = b"", **fields: Any) -> int:
        self._next += 1
        self.socket.sendall(encode({"id": self._next, "op": op, **fields}, body))
        return self._next

    def receive(self) -> Frame:
        while not self._frames:
            data = self.socket.recv(1 << 20)
            if not data:
                raise EOFError
            self._frames += self._decoder.feed(data)
        return self._frames.pop(0)

    def call(self, op: str, body: bytes = b"", **fields: Any) -> Frame:
        ident = self.send(op, body, **fields)
        frame = self.receive()
        assert frame.header["id"] == ident
        return frame

    def ok(self, op: str, body: bytes = b"", **fields: Any) -> tuple[dict[str, Any], bytes]:
        frame = self.call(op, body, **fields)
        assert "ok" in frame.header, frame.header
        return frame.header["ok"], frame.body

    def error(self, op: str, body: bytes = b"", **fields: Any) -> dict[str, Any]:
        frame = self.call(op, body, **fields)
        assert "error" in frame.header, frame.header
        assert "/tmp" not in str(frame.header)
        error: dict[str, Any] = frame.header["error"]
        return error

    def run(self, *argv: str, stdin: bytes = b"", **fields: Any) -> tuple[dict[str, Any], bytes, bytes]:
        ok, body = self.ok("run", stdin, argv=list(argv), **fields)
        return ok, body[: ok["stdout_bytes"]], body[ok["stdout_bytes"] :]

    def close(self) -> int:
        """End the channel; returns hands' exit status."""
        self.socket.close()
        _, status = os.waitpid(self.pid, 0)
        return os.waitstatus_to_exitcode(status)
