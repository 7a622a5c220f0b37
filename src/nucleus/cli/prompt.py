"""Approval requests of one pod, asked on the launcher's own terminal. Used only where the agent cannot reach it.

Numbered steps of one question:
 1. only requests of our own pod; others wait for their own approver;
 2. what was typed before the question, or too soon after it, is thrown away: no yes to what was not seen;
 3. foreign text is escaped, however it came;
 4. anything but a plain yes is a no; the end of the terminal is the end of the approver, which is a no;
 5. a wider answer (`wider`) is shown by itself and needs a second yes, under 2 again; without it the question is back.
Does not: hold or see a token; the authority keeps them.
"""

from __future__ import annotations

import os
import socket
import termios
import time

from nucleus.cli.main import printable
from nucleus.cli.wider import Wider, choices, chosen, grant_line
from nucleus.sdk import wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

QUESTION = "allow this once? [y/N] "
READING_S = 0.3  # an answer that comes sooner was meant for something else
SWAPPED_S = 2.0  # the same where the question before was taken away: the hand may be on its way already
_LINE = 1024  # bytes of an answer
_QUEUE = 64  # requests of our pod that wait for the question before them


def open_terminal() -> int:
    """Our controlling terminal, or -1 when there is none."""
    try:
        return os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return -1


class Prompt:
    """A watching approver.

    Args:
        channel: to the authority, role approver; owned.
        terminal: a tty; owned.
    """

    def __init__(self, channel: socket.socket, terminal: int) -> None:
        self._pod = ""
        self._channel = channel
        self._terminal = terminal
        self._reader = wire.Reader()
        self._queue: list[dict[str, Any]] = []
        self._asking: dict[str, Any] | None = None
        self._wider: Wider | None = None
        self._since = 0.0
        self._reading = READING_S
        self._number = 1
        self._present = False

    @property
    def pod(self) -> str:
        """The pod whose requests are asked here. Setting it makes us present, for that pod and no other."""
        return self._pod

    @pod.setter
    def pod(self, name: str) -> None:
        self._pod = name
        self._present = False
        self._channel.sendall(wire.encode({"id": 1, "op": "watch", "pod": name}))
        # Present before the first operation is sent: the gate's question goes another way and could be faster.
        while not self._present and self._channel.fileno() >= 0:
            self._receive()

    @property
    def busy(self) -> bool:
        """A question is on the terminal."""
        return self._asking is not None

    def fds(self) -> list[int]:
        """What to poll for."""
        fds = [self._channel.fileno()] if self._channel.fileno() >= 0 else []
        return [*fds, self._terminal] if self._asking is not None else fds

    def serve(self, ready: set[int]) -> None:
        """Act on what poll found."""
        if self._channel.fileno() in ready:
            self._receive()
        if self._asking is not None and self._terminal in ready:
            self._answered()
        if self._asking is None and self._queue and self.pod:
            self._ask(self._queue.pop(0))

    def close(self) -> None:
        """Stop being an approver."""
        self._channel.close()
        if self._terminal >= 0:
            os.close(self._terminal)
            self._terminal = -1

    def _receive(self) -> None:
        try:
            data = self._channel.recv(262_144)
            self._reader.feed(data)
            while (frame := self._reader.take()) is not None:
                self._event(frame[0])
        except (OSError, ValueError):
            data = b""
        if not data:
            self._channel.close()
            self._queue.clear()
            if self._asking is not None:
                self._say("nucleus: the authority is gone; nothing was approved\n")
                self._asking = None

    def _event(self, header: dict[str, Any]) -> None:
        request = header.get("request")
        if header.get("id") == 1:
            self._present = True
        elif header.get("event") == "request" and isinstance(request, dict):
            if request.get("pod") == self.pod and len(self._queue) < _QUEUE:  # 1
                self._queue.append(request)
        elif header.get("event") == "resolved":
            self._queue = [item for item in self._queue if item.get("request") != request]
            if self._asking is not None and self._asking.get("request") == request:
                self._say(f"\nnucleus: no longer asked ({header.get('verdict')})\n")
                self._asking = self._wider = None
                self._reading = SWAPPED_S
        elif header.get("event") == "assent":
            self._say(f"\nnucleus: {header.get('approver')} has said yes; one more person has to\n")
            if self._asking is not None:
                self._say(self._question)
        elif header.get("event") == "granted":
            self._say(f"\nnucleus: allowed by grant {grant_line(header.get('grant'))}\n")
            if self._asking is not None:
                self._say(self._question)

    def _ask(self, request: dict[str, Any]) -> None:
        self._asking = request
        decision, display = request.get("decision"), request.get("display")
        decision = decision if isinstance(decision, dict) else {}
        lines = [
            "",
            f"nucleus: approval needed: {decision.get('reason', '')}",
            f"  rule: {decision.get('rule', '')}",
            *(f"  {line}" for line in (display if isinstance(display, list) else [])),
            *choices(request),
        ]
        # One line stays one line, so that no text of the operation's can look like a question of ours.
        self._put("\n".join(line.replace("\n", "\\n") for line in lines) + "\n")

    @property
    def _question(self) -> str:
        return QUESTION if self._wider is None else self._wider.question()

    def _put(self, text: str) -> None:
        """Show `text` and the question; what comes from now on may be an answer."""
        termios.tcflush(self._terminal, termios.TCIFLUSH)  # 2
        self._say(text + self._question)
        self._since = time.monotonic()

    def _answered(self) -> None:
        try:
            answer = os.read(self._terminal, _LINE)
        except OSError:
            answer = b""
        if answer and time.monotonic() - self._since < self._reading:  # 2
            self._say(f"nucleus: too quick to have been read\n{self._question}")
            self._since = time.monotonic()
            return
        asked, wider, self._reading = self._asking, self._wider, READING_S
        assert asked is not None
        yes = answer.strip().lower() in (b"y", b"yes")  # 4
        if answer and wider is not None and not yes:  # 5
            self._wider = None
            self._put("\n".join(["nucleus: not wider", *choices(asked)]) + "\n")
            return
        if wider is None and not yes:
            self._wider = chosen(asked, answer.decode("utf-8", "replace"))
            if self._wider is not None:
                self._put(f"nucleus: {self._wider.text()}\n")
                return
        self._asking = self._wider = None
        self._number += 1
        message = {
            "id": self._number,
            "op": "approve" if yes else "deny",
            "request": asked.get("request"),
            "reason": "answered at the launcher's terminal",
            **(wider.fields() if yes and wider is not None else {}),
        }
        try:
            self._channel.sendall(wire.encode(message))
        except OSError:
            self._say("nucleus: the authority is gone; nothing was approved\n")
        if not answer:
            self._channel.close()

    def _say(self, text: str) -> None:
        try:
            os.write(self._terminal, printable(text).encode("utf-8", "backslashreplace"))  # 3
        except OSError:
            return
