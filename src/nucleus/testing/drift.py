"""The drift injector: a pod's network changed from outside, as an administrator, another program or an attacker would.

Promises: each change is one that a tool of the host makes; `Opened` is the worst of them: rules gone, and a link to an
uplink with address and route, all by one process that waited inside the namespace for its word.
Relies on: root; nft, ip, nsenter (Debian: nftables, iproute2, util-linux). Does not: judge what follows.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from types import TracebackType

CHANGES: dict[str, list[str]] = {
    "flush": ["nft", "flush", "ruleset"],
    "rule": ["nft", "insert", "rule", "inet", "nucleus", "output", "accept"],
    "policy": ["nft", "add", "chain", "inet", "nucleus", "output", "{", "policy", "accept", ";", "}"],
    "legacy": ["iptables-legacy", "-I", "OUTPUT", "-j", "ACCEPT"],
    "iptables": ["iptables-nft", "-I", "OUTPUT", "-j", "ACCEPT"],
    "link": ["ip", "link", "add", "leak0", "type", "veth", "peer", "name", "leak1"],
    "address": ["ip", "address", "add", "192.0.2.9/32", "dev", "lo"],
    "route": ["ip", "route", "add", "blackhole", "192.0.2.0/24"],
    "sysctl": ["sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"],
}
UPLINK, INSIDE = "192.0.2.1", "192.0.2.2"
SECONDS = 10.0


def missing(change: str) -> str:
    """The program that a change needs and this machine has not, or ""."""
    program = CHANGES[change][0]
    return "" if shutil.which(program) else program


def inject(pid: int, change: str) -> int:
    """Change the network of process `pid`; monotonic nanoseconds of when the change was begun.

    Raises:
        subprocess.CalledProcessError: it could not be made.
    """
    began = time.monotonic_ns()
    subprocess.run(["nsenter", f"--net=/proc/{pid}/ns/net", *CHANGES[change]], check=True, capture_output=True)
    return began


class Uplink:
    """A namespace with one end of a link whose other end waits, down, to be moved into a pod. Context manager.

    Args:
        name: of the namespace and, with a digit, of the link's ends; at most 12 characters.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> Uplink:
        name = self.name
        for words in (
            ["netns", "add", name],
            ["link", "add", f"{name}0", "netns", name, "type", "veth", "peer", "name", f"{name}1", "netns", name],
            ["-n", name, "address", "add", f"{UPLINK}/24", "dev", f"{name}0"],
            ["-n", name, "link", "set", f"{name}0", "up"],
        ):
            subprocess.run(["ip", *words], check=True, capture_output=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        subprocess.run(["ip", "netns", "delete", self.name], check=False, capture_output=True)

    def open_into(self, pid: int) -> int:
        """Rules gone, link, address, route; as `inject`. What fails because the pod is gone by then is no error."""
        name = self.name
        words = (
            f"ip -n {name} link set {name}1 netns {pid} && nsenter --net=/proc/{pid}/ns/net sh -c '"
            f"nft flush ruleset; ip address add {INSIDE}/24 dev {name}1; ip link set {name}1 up'"
        )
        began = time.monotonic_ns()
        subprocess.run(["sh", "-c", words], check=False, capture_output=True, timeout=SECONDS)
        return began
