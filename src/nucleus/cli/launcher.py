"""The launcher's end of the builder's channel, and what a pod needs from the person's side: policy text, workspace.

Promises: requests are matched by id, events kept in order; a workspace that is the root, or that holds or is inside
the state or runtime directory, is refused before anything is started.
Relies on: `nucleus.pod.packets` for bounds. Imports little: it is on the path of `nucleus exec`.
Does not: parse a policy (the gate does) or look inside the workspace.
"""

from __future__ import annotations

import os
from _socket import socket  # `socket` imports enum and selectors

from nucleus.cli.options import invalid
from nucleus.pod import packets, runtime

TYPE_CHECKING = False
if TYPE_CHECKING:
    from socket import socket as ApproverSocket
    from typing import Any

_END_SECONDS = 10.0  # pods are destroyed, and the log's last checkpoint is signed
CREATE_TIMEOUT_S = 60.0  # a cold helper starts three processes first
_PACKETS_KEPT = 256  # events that nobody has read yet


class Launcher:
    """A connected builder.

    Args:
        channel: seqpacket socket; owned from here on.
    """

    def __init__(self, channel: socket) -> None:
        self._channel = channel
        self._number = 0
        self._events: list[dict[str, Any]] = []
        channel.settimeout(CREATE_TIMEOUT_S)

    @classmethod
    def open(cls) -> Launcher:
        """The resident helper, or a private builder when NUCLEUS_NO_HELPER is set. Raises SandboxError."""
        return cls(runtime.open_builder(os.environ.get("NUCLEUS_NO_HELPER", "") in ("", "0")))

    def fileno(self) -> int:
        """For poll."""
        return self._channel.fileno()

    def call(self, op: str, fds: tuple[int, ...] = (), **fields: Any) -> packets.Packet:
        """Send a request and wait for its answer; the packet's body is the answer's `ok`.

        Raises:
            NucleusError: what the builder reported; SandboxError when it is gone.
        """
        self._number += 1
        try:
            try:
                packets.send_packet(self._channel, {"id": self._number, "op": op, **fields}, fds)
            except BrokenPipeError:
                pass  # refused before it was asked: the reason waits to be read
            while True:
                try:
                    packet = packets.recv_packet(self._channel)
                except ConnectionResetError:  # said before what is still to be read
                    packet = packets.recv_packet(self._channel)
                if packet is None:
                    raise _gone()
                if packet.body.get("id") == self._number or (packet.body.get("id") is None and "error" in packet.body):
                    break  # without an id: whoever we are, we may not even ask
                self._event(packet)
        except OSError as error:
            raise _gone(f": {error}") from error
        try:
            return packets.Packet(packets.checked(packet.body), packet.fds)
        except BaseException:
            packets.close_all(packet.fds)
            raise

    def _event(self, packet: packets.Packet) -> None:
        packets.close_all(packet.fds)  # events carry none
        if len(self._events) < _PACKETS_KEPT:
            self._events.append(packet.body)

    def events(self, *, wait: bool = False) -> list[dict[str, Any]]:
        """The events so far; with `wait`, first read the packet that poll announced. Raises SandboxError at the end."""
        if wait:
            try:
                packet = packets.recv_packet(self._channel)
            except OSError as error:
                raise _gone(f": {error}") from error
            if packet is None:
                raise _gone()
            self._event(packet)
        events, self._events = self._events, []
        return events

    def wait_gone(self) -> None:
        """Wait for the builder's end: its pods are gone and the authority has signed its log."""
        from nucleus.errors import SandboxError

        self._channel.settimeout(_END_SECONDS)
        try:
            while True:
                self.events(wait=True)
        except SandboxError:
            return

    def create_pod(self, spec: dict[str, Any], fds: tuple[int, ...]) -> Pod:
        """Make a pod. Raises NucleusError as the builder or the gate reported it."""
        packet = self.call("create_pod", fds, spec=spec)
        pty = ((spec.get("agent") or {}).get("stdio")) == "pty"
        if len(packet.fds) != (2 if pty else 1):
            packets.close_all(packet.fds)
            raise _gone(": it sent the wrong descriptors")
        return Pod(packet.body, socket(fileno=packet.fds[0]), packet.fds[1] if pty else -1)

    def attach_approver(self) -> ApproverSocket:
        """A channel to the authority with the approver's role."""
        import socket  # weight: only where somebody answers

        packet = self.call("attach_approver")
        if len(packet.fds) != 1:
            packets.close_all(packet.fds)
            raise _gone(": it sent the wrong descriptors")
        return socket.socket(fileno=packet.fds[0])

    def close(self) -> None:
        """Close the channel: the builder destroys our pods."""
        self._channel.close()

    def __enter__(self) -> Launcher:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Pod:
    """A running pod. `gate` is our channel to its gate, `pty` the agent's master or -1; both are ours to close.

    `isolation` and `budget_limit` (micro-dollars) are as the builder answered; `gate_id`, `workload` and `spiffe`
    (paths) too, where the pod is served.
    """

    def __init__(self, answer: dict[str, Any], gate: socket, pty: int) -> None:
        isolation, limit = answer.get("isolation"), answer.get("budget_limit")
        self.name = str(answer.get("pod", ""))
        self.isolation: dict[str, Any] = isolation if isinstance(isolation, dict) else {}
        self.budget_limit = limit if type(limit) is int else 0
        self.gate_id = str(answer.get("gate_id", ""))
        self.workload = str(answer.get("workload", ""))
        self.spiffe = str(answer.get("spiffe", ""))
        self.set_aside: list[str] = []
        self.gate = gate
        self.pty = pty

    def close(self) -> None:
        """Close our channel to the gate, which ends the pod, and the pty."""
        self.gate.close()
        if self.pty >= 0:
            os.close(self.pty)
            self.pty = -1


def failed(event: dict[str, Any]) -> Exception:
    """The error of a ``pod_failed`` event."""
    from nucleus.errors import SandboxError

    error = event.get("error")
    try:
        packets.checked({"error": error if isinstance(error, dict) else {"message": str(error)}})
    except Exception as reported:  # noqa: BLE001 -- `checked` raises the error that was reported
        return reported
    return SandboxError("the pod failed", rule="pod.failed")


def policy_text(options: dict[str, Any]) -> tuple[str, str]:
    """The policy's text and where it came from, by --profile or --policy (default: the profile `restrictive`).

    Raises:
        InvalidError: both are given, or there is no such profile or file.
    """
    if options["profile"] and options["policy"]:
        raise invalid("--profile and --policy exclude each other")
    from nucleus.store.policies import load_policy_text

    return load_policy_text(profile=options["profile"] or None, path=options["policy"] or None)


def open_workspace(path: str) -> tuple[int, str]:
    """Open the workspace as O_PATH; return the descriptor and its canonical name.

    Raises:
        InvalidError: rule ``cli.workdir``: no directory, the root, or too close to our own state.
    """
    from nucleus.errors import InvalidError

    try:
        fd = os.open(path or ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        raise InvalidError(f"the workspace {path!r} cannot be opened: {error}", rule="cli.workdir") from error
    try:
        name = os.readlink(f"/proc/self/fd/{fd}")
        reason = _unfit(os.fstat(fd), name)
    except OSError as error:
        reason = str(error)
    if reason:
        os.close(fd)
        raise InvalidError(
            f"{path or '.'} cannot be a workspace: {reason}",
            rule="cli.workdir",
            next_step="Name a project directory with --workdir.",
        )
    return fd, name


def _unfit(found: os.stat_result, name: str) -> str:
    """Why a directory must not be a workspace; "" when it may. Compared by inode, so no spelling gets around it."""
    if os.path.samestat(found, os.stat("/")):
        return "it is the root directory"
    for what, own in (("state", runtime.state_dir()), ("runtime", runtime.runtime_dir())):
        own = os.path.realpath(own)
        if any(os.path.samestat(found, stat) for stat in _ancestors(own)):
            return f"it contains nucleus' {what} directory {own}"
        try:
            mine = os.stat(own)
        except FileNotFoundError:
            continue
        if any(os.path.samestat(mine, stat) for stat in _ancestors(name)):
            return f"it is inside nucleus' {what} directory {own}"
    return ""


def _ancestors(path: str) -> list[os.stat_result]:
    """The stat of `path` and of each directory above it, as far as they exist; not of the root."""
    found = []
    while path not in ("/", ""):
        try:
            found.append(os.stat(path))
        except FileNotFoundError:
            pass
        path = os.path.dirname(path)
    return found


def _gone(more: str = "") -> Exception:
    from nucleus.errors import SandboxError

    return SandboxError(
        f"the builder is gone{more}", rule="launcher.builder", next_step="Try again with --no-helper to see why."
    )
