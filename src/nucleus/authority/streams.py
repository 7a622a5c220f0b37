"""Framed stream sockets for a single-threaded loop: bounded in both directions, never blocking.

Promises: at most one frame's limit is buffered per peer on the way in, `out_limit` bytes on the way out; a peer that
breaks the framing, goes away, or does not read what it asked for is closed, and only it.
Does not: know what a frame means.
"""

from __future__ import annotations

import json
import select
import socket
from typing import Any

from nucleus.errors import InvalidError, NucleusError
from nucleus.frames import Decoder, Frame, encode

READ_BYTES = 65_536  # one read of one peer in one turn of the loop: a few ms of work at most
MAX_ID = (1 << 53) - 1


class Stream:
    """One channel.

    Args:
        sock: a connected stream socket; owned from here on.
        epoll: where it is registered.
        in_limit: bytes of one frame. out_limit: bytes that may wait to be read by the peer.
    """

    def __init__(self, sock: socket.socket, epoll: select.epoll, in_limit: int, out_limit: int) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.fd = sock.fileno()
        self.open = True
        self._epoll = epoll
        self._decoder = Decoder(in_limit)
        self._out = bytearray()
        self._out_limit = out_limit
        epoll.register(self.fd, select.EPOLLIN)

    def read(self, frames: list[tuple[Any, Frame]]) -> bool:
        """Take what is there into `frames` as (self, frame); False when the peer is gone or broke the framing."""
        try:
            data = self.sock.recv(READ_BYTES)
        except BlockingIOError:
            return True
        except OSError:
            return False
        if not data:
            return False
        try:
            for frame in self._decoder.feed(data):
                ident = frame.header.get("id")
                if type(ident) is not int or not 0 <= ident <= MAX_ID:
                    return False
                frames.append((self, frame))
        except InvalidError:
            return False
        return True

    def answer(self, ident: int, ok: dict[str, Any]) -> None:
        """Send ``{id, ok}``."""
        self.send({"id": ident, "ok": ok})

    def fail(self, ident: int, error: NucleusError) -> None:
        """Send ``{id, error}``."""
        body = {"code": error.code, "message": error.message, "rule": error.rule, "next_step": error.next_step}
        self.send({"id": ident, "error": body})

    def send(self, header: dict[str, Any]) -> None:
        """Send a frame, or as much as fits, the rest later. A peer over its bound is closed."""
        if not self.open:
            return
        try:
            data = encode(header)
            if not self._out:
                sent = self.sock.send(data)
                if sent == len(data):
                    return
                data = data[sent:]
        except BlockingIOError:
            pass
        except (OSError, InvalidError):
            self.shut()
            return
        if len(self._out) + len(data) > self._out_limit:
            self.shut()
            return
        if not self._out:
            self._epoll.modify(self.fd, select.EPOLLIN | select.EPOLLOUT)
        self._out += data

    def flush(self) -> None:
        """The peer reads again."""
        try:
            sent = self.sock.send(self._out)
        except BlockingIOError:
            return
        except OSError:
            self.shut()
            return
        del self._out[:sent]
        if not self._out:
            self._epoll.modify(self.fd, select.EPOLLIN)

    def shut(self) -> None:
        """End it from our side; the loop sees its end in its next turn and cleans up."""
        if self.open:
            self.open = False
            try:
                self.sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                return

    def close(self) -> None:
        """Give up the descriptor. Called by the loop alone."""
        self.open = False
        self._epoll.unregister(self.fd)
        self.sock.close()


def quoted(text: str) -> str:
    """A peer's text for a message: JSON, short."""
    return json.dumps(text[:64])
