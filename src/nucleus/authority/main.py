"""The authority process: ``python -I -m nucleus.authority.main`` with the builder's seqpacket channel on descriptor 3.

Numbered steps of its start, none of which a peer other than the builder can reach:
 1. Not dumpable, no core files, nothing that it makes is open to others.
 2. The first packet is `configure {state_dir, trust_domain, uid}`.
 3. Root becomes that uid for good: no groups, no capabilities, no_new_privs.
 4. Only then the state is locked, opened, verified and recovered, and the approval key is made.
 5. The answer `{ok: {}}`; serve until the builder is gone.

An error in 2 to 4 is the answer to `configure`, and the process ends with 1.
"""

from __future__ import annotations

import gc
import os
import resource
import signal
import socket
import sys
from typing import Any

from nucleus.authority import fields
from nucleus.authority.clock import Clock, system
from nucleus.authority.identities import Issuer
from nucleus.authority.loop import Loop
from nucleus.authority.recovery import Scan, at_start
from nucleus.authority.service import Service
from nucleus.authority.signing import Signer, open_log
from nucleus.errors import InvalidError, NucleusError, SandboxError
from nucleus.identity.spiffe_id import SpiffeId
from nucleus.kernel import reachable, syscalls
from nucleus.pod.packets import close_all, error_body, recv_packet, send_packet
from nucleus.store.ledger import Ledger
from nucleus.store.lock import lock_state

BUILDER_FD = 3


def main() -> int:
    """Run the process; its exit code."""
    os.umask(0o077)  # 1
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    syscalls.set_dumpable(False)
    builder = socket.socket(fileno=BUILDER_FD)
    ident: object = None
    try:
        packet = recv_packet(builder)  # 2
        if packet is None:
            return 0
        close_all(packet.fds)
        ident = packet.body.get("id")
        loop = _configure(builder, packet.body)
    except (NucleusError, OSError) as error:
        send_packet(builder, {"id": ident, "error": error_body(error)})
        return 1
    gc.enable()
    gc.collect()
    gc.freeze()
    send_packet(builder, {"id": ident, "ok": {}})  # 5
    loop.run()
    return 0


def _configure(builder: socket.socket, body: dict[str, Any]) -> Loop:
    if body.get("op") != "configure":
        raise InvalidError("the first packet is configure", rule="packets.op")
    state_dir = fields.text(body, "state_dir", 4_096)
    trust_domain = SpiffeId(fields.text(body, "trust_domain", 255)).trust_domain
    if not state_dir.startswith("/"):
        raise InvalidError("state_dir is not an absolute path", rule="frames.field")
    become(fields.uid(body) if "uid" in body else os.geteuid())  # 3
    return Loop(builder, *open_state(state_dir, trust_domain))


def become(uid: int) -> None:
    """Step 3. A process that is not root keeps the uid that it has.

    Raises:
        SandboxError: root was asked for, or another uid by a process that cannot change.
    """
    parent = os.getppid()
    if os.geteuid() == 0:
        if uid == 0:
            raise SandboxError("the authority never runs as root", rule="authority.uid")
        reachable.keep()
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    elif uid != os.geteuid():
        raise SandboxError(f"cannot become uid {uid}", rule="authority.uid")
    syscalls.drop_all_capabilities()
    syscalls.set_no_new_privs()
    syscalls.set_dumpable(False)  # a change of uid sets it to the system's default again
    syscalls.set_pdeathsig(signal.SIGKILL)  # and forgets this one
    if os.getppid() != parent:
        raise SandboxError("the builder is gone", rule="authority.parent")


def open_state(state_dir: str, trust_domain: str, clock: Clock = system) -> tuple[Service, str, Signer]:
    """Step 4: what the loop serves, its trust domain, and what signs the log. The lock is held until the process ends.

    Raises:
        AuditError: another authority has the state, the log does not verify or is not what was signed, or something
            of the state cannot be opened.
        SandboxError: the directory is not ours.
    """
    lock_state(state_dir)
    ledger = Ledger(state_dir)
    ledger.load()
    scan = Scan()
    signer = open_log(state_dir, trust_domain, ledger, scan.see)
    log = signer.log
    at_start(ledger, log, scan, clock, log.torn)
    if log.head.seq:
        ledger.checkpoint(log.head, signer.state())
    issuer = Issuer(state_dir, trust_domain)
    service = Service(ledger, log, issuer, trust_domain, clock, f"{state_dir}/credentials")
    return service, trust_domain, signer


if __name__ == "__main__":
    sys.exit(main())
