"""The zygote: a process that has done the imports, holds no key, and forks the compartments of every pod.

`python -I -m nucleus.pod.zygote`, empty environment, descriptor 3 = SOCK_SEQPACKET from the builder.
  configure {base}                       → {ok: {root, landlock, missing: [...]}}
  make_network {}                        → {ok: {digest}} + [network namespace, and sockets in it: the gate's listener,
                                           the gateway's four listeners, two that hear of changes]
  check_network {} + [network namespace] → {ok: {digest}}: what it looks like now
  cut_network {} + [network namespace]   → {ok: {}}: every link of it is down
  make_mapping {uid_map, gid_map}        → {ok: {}} + [user namespace with these maps, for an idmapped mount]
  fork {} + [status]                     → {ok: {pid}}; what it is to become is said on the status channel
Promises: before any pod it is in a mount namespace of its own (it receives the host's mounts, sends none), in a network
namespace of its own that has no way out, not dumpable; as an ordinary user also in a user namespace of its own, so
that from there on root and user are the same code. Ends with the builder (channel and PR_SET_PDEATHSIG).
Relies on: `nucleus.kernel`; user namespaces. Does not: parse what a pod wrote, or reap for the builder (pidfds do).
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import sys
from typing import Any

from nucleus.errors import InvalidError, NucleusError, SandboxError
from nucleus.kernel import landlock, seccomp, syscalls
from nucleus.network import firewall, netlink
from nucleus.network import netns as network
from nucleus.pod import compartment
from nucleus.pod.packets import Packet, close_all, error_body, recv_packet, send_packet

GATE_ADDRESS = ("127.0.0.1", 7443)
PROFILES = ("hands", "commands", "agent", "guest")


def main() -> int:
    """Serve the builder until it is gone."""
    control = socket.socket(fileno=3)
    syscalls.set_pdeathsig(signal.SIGKILL)
    syscalls.set_name("nucleus-zygote")
    syscalls.set_child_subreaper()
    os.umask(0o022)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps: nobody waits here
    server = Server(control)
    _preload()
    gc.enable()
    gc.collect()
    gc.freeze()
    while server.serve_one():
        pass
    return 0


def _preload() -> None:
    """Import what compartments need: there is no site-packages where they go."""
    import encodings.idna
    import stringprep

    import nucleus.hands.main
    import nucleus.lattice.paths

    assert encodings.idna, stringprep
    assert nucleus.hands.main, nucleus.lattice.paths


class Server:
    """The zygote's side of the builder's channel."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._zygote: compartment.Zygote | None = None
        self._rules = False  # this machine has nftables
        self._home = -1  # our own network namespace, to come back to

    def serve_one(self) -> bool:
        """Answer one request; False at the end of the channel."""
        packet = recv_packet(self._control)
        if packet is None:
            return False
        fds: list[int] = []
        try:
            ok = self._serve(packet, fds)
            answer: dict[str, Any] = {"ok": ok}
        except (NucleusError, OSError, KeyError, TypeError, ValueError) as error:
            answer = {"error": error_body(error)}
        try:
            send_packet(self._control, {"id": packet.body.get("id"), **answer}, fds)
        except OSError:
            return False  # the builder is gone
        finally:
            close_all([*fds, *packet.fds])
        return True

    def _serve(self, packet: Packet, fds: list[int]) -> dict[str, Any]:
        op = packet.body.get("op")
        if op == "configure":
            return self._configure(packet.body["base"], packet.body["sdk"])
        if self._zygote is None:
            raise InvalidError("the zygote is not configured", rule="zygote.configure")
        if op == "make_network":
            made, digest = self._make_network()
            fds += made
            return {"digest": digest}
        if op in ("check_network", "cut_network"):
            return self._in_network(packet.fds[0], cut=op == "cut_network")
        if op == "make_mapping":
            fds.append(compartment.mapping_namespace(packet.body["uid_map"], packet.body["gid_map"]))
            return {}
        if op == "fork":
            return {"pid": self._fork(packet, self._zygote)}
        raise InvalidError("unknown request", rule="zygote.op")

    def _configure(self, base: str, sdk: str) -> dict[str, Any]:
        """Enter our own namespaces, build the shared parts, compile the filters."""
        root = os.geteuid() == 0
        missing = []
        if not root:
            _enter_user_namespace()
            if len(os.getgroups()) > 1:
                missing.append("supplementary groups stay (only root can drop them)")
        syscalls.unshare(syscalls.CLONE_NEWNS | syscalls.CLONE_NEWNET)
        # A slave: a disk that is mounted later can still be a workspace; nothing of ours reaches the host.
        syscalls.mount("", "/", "", syscalls.MS_REC | syscalls.MS_SLAVE, "")
        self._home = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        from nucleus.pod import view

        view.prepare_base(base, sdk)
        has_landlock = landlock.abi() > 0
        if not has_landlock:
            missing.append("landlock")
        self._rules = _has_nftables()
        if not self._rules:
            missing.append("nftables (the pod's network has no rules of its own; no gateway without them)")
        filters = {profile: seccomp.compile_profile(profile) for profile in PROFILES}
        self._zygote = compartment.Zygote(base, root, filters, has_landlock)
        syscalls.set_dumpable(False)
        return {"root": root, "landlock": has_landlock, "missing": missing}

    def _make_network(self) -> tuple[list[int], dict[str, str]]:
        """A network namespace with nothing but `lo`, the sockets that belong inside it, and what it looks like.

        A socket belongs to the namespace in which it was made: the gate accepts there and stays outside itself.
        """
        syscalls.unshare(syscalls.CLONE_NEWNET)
        try:
            netns = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            made = [netns]
            try:
                made.append(_listen())
                network.configure(rules=self._rules)
                made += network.listeners()
                made += network.watchers()
                digest = network.digest()
            except BaseException:
                close_all(made)
                raise
        finally:
            syscalls.setns(self._home, syscalls.CLONE_NEWNET)
        return made, digest

    def _in_network(self, netns: int, *, cut: bool) -> dict[str, Any]:
        syscalls.setns(netns, syscalls.CLONE_NEWNET)
        try:
            if cut:
                netlink.links_down()
                return {}
            return {"digest": network.digest()}
        finally:
            syscalls.setns(self._home, syscalls.CLONE_NEWNET)

    def _fork(self, packet: Packet, zygote: compartment.Zygote) -> int:
        """Fork one compartment's helper, which hears and says everything else itself."""
        (status,) = packet.fds
        pid = os.fork()
        if pid == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            self._control.detach()  # closed with everything else but the status channel
            compartment.start(socket.socket(fileno=status), zygote)
        return pid


def _has_nftables() -> bool:
    """Tried in our own network namespace, in which nothing happens."""
    try:
        firewall.install()
    except OSError:
        return False
    return True


def _listen() -> int:
    syscalls.bring_loopback_up()
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as listener:
        listener.bind(GATE_ADDRESS)
        listener.listen(128)
        return listener.detach()


def _enter_user_namespace() -> None:
    """As an ordinary user: be "root" of a namespace in which only our own uid exists.

    Raises:
        SandboxError: rule ``pod.userns``: this machine does not allow it.
    """
    uid, gid = os.geteuid(), os.getegid()
    try:
        syscalls.unshare(syscalls.CLONE_NEWUSER)
        for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
            with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
                file.write(text)
        # Some systems let the namespace be made and take its capabilities away: try one.
        syscalls.unshare(syscalls.CLONE_NEWUTS)
    except OSError as error:
        raise SandboxError(
            f"this machine does not let an ordinary user make a user namespace: {error.strerror}{_userns_reason()}",
            rule="pod.userns",
            next_step="Allow unprivileged user namespaces, or run Nucleus as root.",
        ) from error


def _userns_reason() -> str:
    """Which known switch forbids it, if one does."""
    switches = {
        "/proc/sys/kernel/apparmor_restrict_unprivileged_userns": ("1", " (AppArmor restricts them: Ubuntu's default)"),
        "/proc/sys/kernel/unprivileged_userns_clone": ("0", " (kernel.unprivileged_userns_clone is 0)"),
        "/proc/sys/user/max_user_namespaces": ("0", " (user.max_user_namespaces is 0)"),
    }
    for path, (forbids, reason) in switches.items():
        try:
            with open(path, encoding="ascii") as file:
                if file.read().strip() == forbids:
                    return reason
        except OSError:
            continue
    return ""


if __name__ == "__main__":
    sys.exit(main())
