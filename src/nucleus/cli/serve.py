"""`nucleus serve`: a pod for an orchestrator on this host. It reaches the gate over mutual TLS 1.3 with its own SVID.

The picture of the seed ("orchestrator ⇄ tool proxy, both by SVID"). What is printed is not secret: the address, the
gate's SPIFFE ID, and the Workload socket, from which only this user's processes get the orchestrator's SVID. Another
process of the host may connect to the port; without that SVID it does not get past the handshake.
`nucleus serve -- COMMAND` starts the orchestrator with the same three variables that an agent in a pod has.
Does not: sandbox the orchestrator. Relies on: `nucleus run`'s options.
"""

from __future__ import annotations

import ipaddress
import json
import os
import select
import signal
import socket
import subprocess
import sys

from nucleus.cli.exec import is_utf8, pod_spec
from nucleus.cli.launcher import Launcher, failed, open_workspace
from nucleus.cli.options import FLAG, MANY, ONE, invalid, parse
from nucleus.errors import SandboxError

USAGE = """\
usage: nucleus serve [options] [-- ORCHESTRATOR [ARGUMENT...]]

  --profile NAME       a bundled policy (default: restrictive)
  --policy FILE        a policy file
  --workdir DIR        the workspace (default: the current directory)
  --trust-workspace    the workspace's content is not untrusted input
  --isolation RUNG     at least this rung: namespaces, gvisor, qemu, firecracker (default: the policy's floor)
  --toolchain DIR      show DIR read-only in the pod (repeatable)
  --task TEXT          the person's own words for the task
  --listen ADDR:PORT   a loopback address (default: 127.0.0.1:0, a free port)
  --namespace NAME     the pod's namespace (default: default)
  --session NAME       what pods of this name have seen counts in the next one
  --budget-account A   charge A and the accounts above it, too (`nucleus budget`)

Without ORCHESTRATOR: prints {gate, gate_id, workload, spiffe} as JSON and serves until interrupted.
With it: NUCLEUS_GATE, NUCLEUS_GATE_ID, NUCLEUS_WORKLOAD_SOCKET (`workload`) and SPIFFE_ENDPOINT_SOCKET (`spiffe`, the
standard Workload API) are in its environment; its exit code is returned.
"""
OPTIONS = {
    "profile": ONE,
    "policy": ONE,
    "workdir": ONE,
    "trust-workspace": FLAG,
    "isolation": ONE,
    "toolchain": MANY,
    "task": ONE,
    "listen": ONE,
    "namespace": ONE,
    "session": ONE,
    "budget-account": ONE,
    "help": FLAG,
}


def main(argv: list[str]) -> int:
    """Run the verb. Raises NucleusError."""
    options, command = parse(argv, OPTIONS)
    if options["help"]:
        sys.stdout.write(USAGE)
        return 0
    if not all(map(is_utf8, (*command, options["task"]))):
        raise invalid("an argument is not UTF-8")
    spec = pod_spec(options) | {"task": options["task"], "serve": True}
    workspace, spec["workdir"] = open_workspace(options["workdir"])
    with _listener(options["listen"] or "127.0.0.1:0") as listener, Launcher.open() as launcher:
        host, port = listener.getsockname()[:2]
        try:
            pod = launcher.create_pod(spec, (workspace, listener.fileno()))
        finally:
            os.close(workspace)
        door = {
            "gate": f"https://{f'[{host}]' if ':' in host else host}:{port}",
            "gate_id": pod.gate_id,
            "workload": f"unix://{pod.workload}",
            "spiffe": f"unix://{pod.spiffe}",
        }
        try:
            return _orchestrate(door, command) if command else _wait(door, launcher)
        finally:
            pod.close()


def _listener(address: str) -> socket.socket:
    """A listening socket on a loopback address. Raises InvalidError."""
    host, _, port = address.rpartition(":")
    try:
        ip = ipaddress.ip_address(host.strip("[]"))
        number = int(port)
    except ValueError:
        raise invalid("--listen is ADDRESS:PORT") from None
    if not ip.is_loopback or not 0 <= number < 65_536:
        raise invalid("--listen takes a loopback address")
    try:
        return socket.create_server(
            (str(ip), number), family=socket.AF_INET6 if ip.version == 6 else socket.AF_INET, backlog=64
        )
    except OSError as error:
        raise SandboxError(f"{address}: {error.strerror}", rule="serve.listen") from error


def _orchestrate(door: dict[str, str], command: list[str]) -> int:
    names = {"NUCLEUS_GATE": "gate", "NUCLEUS_GATE_ID": "gate_id"}
    names |= {"NUCLEUS_WORKLOAD_SOCKET": "workload", "SPIFFE_ENDPOINT_SOCKET": "spiffe"}
    environment = dict(os.environ) | {name: door[key] for name, key in names.items()}
    try:
        code = subprocess.call(command, env=environment)
    except OSError as error:
        raise invalid(f"{command[0]}: {error.strerror}") from None
    return code if code >= 0 else 128 - code


def _wait(door: dict[str, str], launcher: Launcher) -> int:
    """Serve until SIGINT or SIGTERM; a pod that fails meanwhile is an error."""
    sys.stdout.write(json.dumps(door) + "\n")
    sys.stdout.flush()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        while True:
            select.select([launcher], [], [])
            for event in launcher.events(wait=True):
                if event.get("event") == "pod_failed":
                    raise failed(event)
    except KeyboardInterrupt:
        return 0
