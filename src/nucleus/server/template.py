"""The gate template: a process that has done a gate's imports, holds no key, and forks one gate per pod.

`python -I -m nucleus.server.template`, empty environment, descriptor 3 = SOCK_SEQPACKET from the builder.
  spawn {id, config} + [authority channel, hands channel, launcher channel, gateway channel(, TLS listener)(, tools)]
    → {id, ok: {pid, block, protect, policy_digest, policy_name, budget_limit, floor, gateway}}  from the gate itself
  spawn_gateway {id, config: {pod, uid, opens}} + [gate channel, transparent, proxy, DNS by UDP, DNS by TCP(, vault)]
    → {id, ok: {pid, ca}}                                                                     from the gateway itself
  event to the builder: {event: "gate_exit", pid, status}
Promises: reads nothing but its builder's packets; every byte that is not ours (policy text included) is parsed in the
forked gate, after it took its uid. Ends when the builder does.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import os
import select
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from nucleus.errors import InvalidError, NucleusError, SandboxError
from nucleus.kernel import reachable, syscalls
from nucleus.lattice import load_policy
from nucleus.lattice.identities import PODS, lists_of
from nucleus.pod import packets
from nucleus.pod.backend import rung
from nucleus.sanitize import sanitize
from nucleus.server import gate
from nucleus.server.egress import outward_facts
from nucleus.server.wire import error_object
from nucleus.store.policies import bundled

_IDLE_S = 0.2
# In pieces: a request that comes meanwhile waits for one of them, not for all.
_LATER = (
    "ssl",
    "cryptography.x509",
    "multidict",
    "yarl",
    "aiohttp.http",
    "aiohttp.web",
    "nucleus.server.agent_door",
    "nucleus.network.gateway",
    "nucleus.network.proxy",
    "nucleus.network.pod_ca",
)
_profiles: dict[str, str] = {}  # filled before the first fork


def main() -> int:
    """Serve spawn requests until the builder closes descriptor 3."""
    control = socket.socket(fileno=3)
    syscalls.set_dumpable(False)
    syscalls.set_pdeathsig(signal.SIGKILL)
    reachable.keep()  # gates are forked from here, and have uids of their own
    wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    _first_policy()
    cold = list(_LATER)
    while True:
        ready: list[int] = select.select([control.fileno(), wake_read], [], [], _IDLE_S if cold else None)[0]
        if not ready:
            _warm_up(cold.pop(0))
            continue
        if wake_read in ready:
            os.read(wake_read, 4096)
            _reap(control)
        if control.fileno() in ready:
            packet = packets.recv_packet(control, max_fds=6)
            if packet is None:
                return 0
            if (child := _spawn(control, packet.body, packet.fds)) is not None:
                for descriptor in (wake_read, wake_write):
                    os.close(descriptor)
                return child()


def _first_policy() -> None:
    """Parse a profile of ours once: the YAML reader's import and the matchers' tables are 28 of a gate's 40 ms."""
    # A gate reads no file for a policy that extends one of these: its uid may not even see where they lie.
    _profiles.update(bundled())
    profile = "restrictive"
    load_policy(_profiles[profile], profile)
    gc.enable()
    gc.freeze()  # a collection in a child would touch, and so copy, every page that it shares with us


def _warm_up(module: str) -> None:
    """While nobody waits: import a part of what only gates with an agent need, so that none of them pays for it."""
    importlib.import_module(module)
    if module == _LATER[0]:
        sanitize("/a /home/b/c token=x")  # compiles its patterns: 7 ms of a gate's first refusal
    gc.freeze()


def _reap(control: socket.socket) -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        try:
            packets.send_packet(control, {"event": "gate_exit", "pid": pid, "status": status})
        except OSError:
            return  # the builder went first: the next packet says so


def _spawn(control: socket.socket, request: dict[str, Any], fds: list[int]) -> Callable[[], int] | None:
    """Fork a gate. In the child returns what it has to run; in the template None."""
    child = {"spawn": (_gate, 4, 6), "spawn_gateway": (_gateway, 5, 6)}.get(str(request.get("op")))
    if child is None or not child[1] <= len(fds) <= child[2] or not isinstance(request.get("config"), dict):
        for fd in fds:
            os.close(fd)
        error = SandboxError("malformed request to the gate template", rule="gate.template")
        packets.send_packet(control, {"id": request.get("id"), "error": error_object(error)})
        return None
    if os.fork() != 0:
        for fd in fds:
            os.close(fd)
        return None
    # The child never returns to the template's loop: no state of one pod is left to the next.
    start = child[0]
    return lambda: start(control, request, fds)


def _gate(control: socket.socket, request: dict[str, Any], fds: list[int]) -> int:
    """The child: unprivileged, then the policy, then serve."""
    sockets = [socket.socket(fileno=fd) for fd in fds]
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        config = gate.Config.from_dict(request["config"])
        gate.become_unprivileged(config.uid)
        syscalls.set_pdeathsig(signal.SIGKILL)  # cleared by the change of uid
        syscalls.set_name("nucleus-gate")
        loaded = load_policy(config.policy_text, config.policy_source, _profiles)
        policy = loaded.policy
        config = replace(config, isolation=rung(config.isolation, policy.isolation_floor))
    except NucleusError as error:
        packets.send_packet(control, {"id": request.get("id"), "error": error_object(error)})
        return error.exit_code
    except OSError as error:
        failed = SandboxError(f"gate start: {error.strerror}", rule="gate.start")
        packets.send_packet(control, {"id": request.get("id"), "error": error_object(failed)})
        return failed.exit_code
    facts = {
        "pid": os.getpid(),
        "block": list(policy.hidden_globs()),
        "protect": list(policy.protected_globs()),
        "policy_digest": loaded.digest,
        "policy_name": policy.name,
        "budget_limit": policy.budget_limit,
        "floor": policy.isolation_floor,
        "gateway": policy.needs_gateway(),
        "pods": [sorted(patterns) for patterns in lists_of(policy.identities, PODS)],
        **outward_facts(policy),
    }
    packets.send_packet(control, {"id": request.get("id"), "ok": facts})
    control.close()
    authority, hands, launcher, egress, *rest = sockets
    tools = rest.pop() if config.tools and rest else None
    asyncio.run(gate.serve(config, policy, authority, hands, launcher, egress, rest[0] if rest else None, tools))
    return 0


def _gateway(control: socket.socket, request: dict[str, Any], fds: list[int]) -> int:
    """The child that is a pod's gateway: unprivileged before it reads a byte, then serve."""
    sockets = [socket.socket(fileno=fd) for fd in fds]
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        gate.become_unprivileged(int(request["config"]["uid"]))
        syscalls.set_pdeathsig(signal.SIGKILL)  # cleared by the change of uid
        syscalls.set_name("nucleus-gateway")
        from nucleus.network import gateway  # weight: only pods whose policy has a way out

        opens = [str(host) for host in request["config"].get("opens", [])]
        authority = gateway.pod_authority(opens)
    except (NucleusError, OSError, KeyError, ValueError) as error:
        failed = error if isinstance(error, NucleusError) else SandboxError(str(error), rule="network.start")
        packets.send_packet(control, {"id": request.get("id"), "error": error_object(failed)})
        return 1
    ca = authority.certificate_pem().decode("ascii") if authority is not None else ""
    packets.send_packet(control, {"id": request.get("id"), "ok": {"pid": os.getpid(), "ca": ca}})
    control.close()
    channel, transparent, proxy, dns_udp, dns_tcp, *vault = sockets
    listeners = transparent, proxy, dns_udp, dns_tcp
    asyncio.run(gateway.serve(channel, *listeners, authority, vault[0] if vault else None))
    return 0


def process() -> None:
    """Be the template, or one of its gates. Does not return."""
    try:
        code = main()
    except InvalidError as error:  # the builder's packets are ours: a malformed one is a bug or an attack
        sys.stderr.write(error.diagnostics() + "\n")
        code = 1
    # No interpreter teardown: a gate has nothing left to flush, and exit handlers of libraries are not ours.
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    process()
