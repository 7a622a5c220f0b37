"""The builder's children (authority, gate template, zygote): how they are talked to (`boot` starts them).

Promises: a request to a child that is gone, or a child that goes while one waits, is a SandboxError.
Relies on: `nucleus.pod.packets`. Does not: restart a child; the builder ends instead.
"""

from __future__ import annotations

import itertools
from _socket import socket
from collections.abc import Callable, Sequence
from typing import Any

from nucleus.errors import InvalidError, SandboxError
from nucleus.pod.loop import Future, Loop
from nucleus.pod.packets import Packet, checked, close_all, recv_packet, send_packet


class Peer:
    """Requests and answers by id over one seqpacket channel; events go to a callback.

    Args:
        name: for messages.
        channel: our end, non-blocking; owned by the peer from now on.
        on_event: called with each packet that answers nothing; owns its descriptors.
        on_gone: called once when the other end closes or sends what is no packet.
    """

    def __init__(
        self,
        name: str,
        channel: socket,
        loop: Loop,
        on_event: Callable[[Packet], None],
        on_gone: Callable[[], None],
    ) -> None:
        self.name = name
        self._channel = channel
        self._loop = loop
        self._on_event = on_event
        self._on_gone = on_gone
        self._ids = itertools.count(1)
        self._waiting: dict[int, Future[Packet]] = {}
        self.open = True
        loop.on_readable(channel.fileno(), self._readable)

    def call(self, op: str, fds: Sequence[int] = (), **fields: Any) -> Future[Packet]:
        """Send a request; the future is the answer's packet with its `ok` as the body."""
        answer: Future[Packet] = Future()
        number = next(self._ids)
        self._waiting[number] = answer
        try:
            if not self.open:
                raise BrokenPipeError
            send_packet(self._channel, {"id": number, "op": op, **fields}, fds)
        except (OSError, InvalidError) as error:
            del self._waiting[number]
            answer.fail(SandboxError(f"the {self.name} cannot be reached: {error}", rule=f"pod.{self.name}"))
        return answer

    def close(self) -> None:
        """Close the channel; whoever waits gets a SandboxError."""
        if not self.open:
            return
        self.open = False
        self._loop.forget(self._channel.fileno())
        self._channel.close()
        waiting, self._waiting = self._waiting, {}
        for answer in waiting.values():
            answer.fail(SandboxError(f"the {self.name} is gone", rule=f"pod.{self.name}"))

    def _readable(self) -> None:
        while self.open:
            try:
                packet = recv_packet(self._channel)
            except BlockingIOError:
                return
            except (InvalidError, OSError):
                packet = None
            if packet is None:
                self.close()
                self._on_gone()
                return
            self._dispatch(packet)

    def _dispatch(self, packet: Packet) -> None:
        number = packet.body.get("id")
        answer = self._waiting.pop(number, None) if type(number) is int else None
        if answer is None or answer.done:
            if number is None:
                self._on_event(packet)
            else:
                close_all(packet.fds)  # an answer after its deadline
            return
        try:
            answer.set(Packet(checked(packet.body), packet.fds))
        except Exception as error:  # noqa: BLE001 -- delivered to the waiter
            close_all(packet.fds)
            answer.fail(error)
