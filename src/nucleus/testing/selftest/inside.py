"""Probes of a fully hijacked program: what it reaches from the agent's compartment and from a command's.

Promises: it runs as the pod's agent, so that no policy is in its way, and again as a command where the policy lets one
run; what reached the host is judged on the host, too. The one name that is asked for is a reserved one (RFC 2606).
"""

from __future__ import annotations

import json
import os
from typing import Any

from nucleus.lattice.network import covers
from nucleus.lattice.policy import Policy
from nucleus.testing.conformance import containment
from nucleus.testing.conformance.bed import FailedError, NotHereError
from nucleus.testing.selftest.finding import UNCHECKED, AllowedError, Findings
from nucleus.testing.selftest.ground import Ground

FOREIGN = ("example.com", "example.net", "example.org")
FORKS = 1_024
MOUNTS, PIDS, NET, CALLS = "mount namespace", "pid namespace", "network namespace", "seccomp"
CAPS, LIMITS, GATEWAY = "no capabilities, user namespace", "cgroup and rlimits", "gateway: network.allow"
# id: what was tried, what is to stop it
WORDS = {
    "read_secret": ("read a file of the host", MOUNTS),
    "find_secret": ("search all directories for a file of the host", MOUNTS),
    "write_outside": ("write a file outside the workspace", MOUNTS),
    "write_usr": ("write below /usr", MOUNTS),
    "host_files": ("read /etc/shadow and the directories of people and services", MOUNTS),
    "host_environ": ("read the environment of the host's processes in /proc", PIDS),
    "host_name": ("learn the host's name", "uts namespace"),
    "signal_host": ("signal a process of the host", PIDS),
    "other_processes": ("list the host's processes", PIDS),
    "ptrace_init": ("ptrace the pod's first process", CALLS),
    "init_memory": ("open the memory of the pod's first process", CAPS),
    "unix_path": ("connect to a unix socket of the host", MOUNTS),
    "unix_abstract": ("connect to an abstract unix socket of the host", NET),
    "interfaces": ("find a network interface", NET),
    "raw_socket": ("open a raw socket", CAPS),
    "packet_socket": ("open a packet socket", CALLS),
    "netlink": ("open a netlink socket", CALLS),
    "vsock": ("open a vsock socket", CALLS),
    "new_network": ("make a network namespace", CALLS),
    "nested_userns": ("make a user namespace", CALLS),
    "mount_anything": ("mount a file system", CALLS),
    "change_root": ("change the root directory", CALLS),
    "io_uring": ("set up io_uring", CALLS),
    "bpf": ("load BPF", CALLS),
    "perf": ("open a performance counter", CALLS),
    "keyring": ("use the kernel's keyring", CALLS),
    "kernel_ring": ("read the kernel's log", CALLS),
    "proc_sys": ("write a kernel setting in /proc/sys", MOUNTS),
    "kernel_memory": ("read /proc/kcore", MOUNTS),
    "sysfs": ("list /sys", MOUNTS),
    "load_module": ("load a kernel module", CALLS),
    "reboot": ("call reboot", CALLS),
    "set_clock": ("set the clock", CALLS),
    "make_device": ("make a device node", CAPS),
    "memory_device": ("open /dev/mem", MOUNTS),
    "disks": ("find a disk in /dev", MOUNTS),
    "setuid_file": ("make a setuid file", "nosuid mounts, seccomp"),
    "terminal_injection": ("type into a terminal (TIOCSTI)", CALLS),
    "symlink_out": ("follow a symbolic link out of the pod", MOUNTS),
    "hard_link_out": ("hard-link a file of the host", MOUNTS),
    "hard_link_of_a_program": ("hard-link a program of the host", MOUNTS),
    "enter_namespaces": ("enter a namespace with setns", CALLS),
    "open_by_handle": ("open a file by its handle", CALLS),
    "userfaultfd": ("open a userfaultfd", CALLS),
    "fork_bomb": (f"start {FORKS} processes", LIMITS),
    "udp_loopback": ("send UDP to a listener of the host, and hear from it", NET),
    "host_tcp": ("connect to a TCP listener of the host", NET),
    "internet_tcp": ("connect to an address of the internet", NET),
    "internet_udp": ("send UDP to an address of the internet", NET),
    "cloud_metadata": ("ask the cloud's metadata service, 169.254.169.254", NET),
    "dns_of_the_pod": ("resolve a name that is not listed", "no resolver, or the gateway's own"),
    "dns_elsewhere": ("ask a name server of the internet", NET),
    "gateway_unlisted": ("reach a host that is not listed, through the gateway", GATEWAY),
    "gateway_metadata": ("reach the metadata service, through the gateway", GATEWAY),
    "gateway_to_the_host": ("reach the host itself, through the gateway", GATEWAY),
    "fronting_by_sni": ("name another host in TLS than the one that is listed", "gateway: network.inner"),
    "fronting_by_host": ("name another host in Host than the one that is listed", "gateway: network.inner"),
}  # fmt: skip
EGRESS = frozenset(list(WORDS)[list(WORDS).index("udp_loopback") :]) | {"interfaces"}


def script() -> str:
    """What runs inside: the conformance suite's probes and ours, as one program that prints two lines."""
    texts = []
    for module, name in ((containment.__file__, "probes.txt"), (__file__, "inside.txt")):
        with open(os.path.join(os.path.dirname(module), name), encoding="utf-8") as file:
            texts.append(file.read())
    return "".join(texts)


def config(ground: Ground, policy: Policy) -> dict[str, Any]:
    """What the program is told; from the policy only what its gateway is asked for."""
    rules = [rule for rules in policy.network for rule in rules]
    foreign = next((name for name in FOREIGN if not any(covers(rule.host, name) for rule in rules)), "")
    exact = [(rule.host, rule.port) for rule in rules if rule.port == 443 and "*" not in rule.host]
    return ground.host.config() | {
        "gateway": all(policy.network) and bool(rules),
        "listed": sorted(exact)[0] if exact else None,
        "foreign": foreign or FOREIGN[0],
        "all_names": not foreign,
        "forks": FORKS,
    }


def read_answers(out: bytes) -> dict[str, Any]:
    """Both lines as one table. Raises NotHereError."""
    lines = out.decode("utf-8", "replace").splitlines()
    try:
        tables = [json.loads(line) for line in lines if line.startswith("{")]
        return {name: answer for table in tables for name, answer in table.items()}
    except ValueError as error:
        raise NotHereError(f"the probes were cut short: {error}") from error


def judge(findings: Findings, where: str, answers: dict[str, Any], told: dict[str, Any]) -> None:
    """Enter one finding a probe."""
    for name, (tried, layer) in WORDS.items():
        if name.startswith(("gateway_", "fronting_")) and name not in answers:
            if told["gateway"] and name.startswith("gateway_"):
                findings.add(f"egress.{where}.{name}", tried, layer, UNCHECKED, "no answer")
            continue
        group = "egress" if name in EGRESS else "containment"
        ident = f"{group}.{where}.{name.replace('_', '-')}"
        answer = answers.get(name)

        def work(name: str = name, answer: Any = answer) -> str:
            if answer is None or answer == "no answer":
                raise NotHereError("no answer")
            if answer == "open" and told["all_names"] and name in ("gateway_unlisted", "dns_of_the_pod"):
                raise AllowedError("network.allow covers every name that was tried")
            if answer == "open":
                raise FailedError("it worked")
            return str(answer)

        findings.attempt(ident, tried, layer, work)


def on_the_host(findings: Findings, ground: Ground) -> None:
    """What the host itself saw: nothing was written, nobody called."""
    tried, ident = "all of the above, seen from the host", "containment.host"

    def untouched() -> str:
        seen = sorted(os.listdir(ground.host.directory))
        if seen != ["planted-secret", "socket"]:
            raise FailedError(f"a directory of the host's was changed: {seen}")
        if ground.host.process.poll() is not None:
            raise FailedError("a process of the host's was ended")
        return "files and process are as they were"

    def unheard() -> str:
        for name in ("tcp", "by_path", "by_name"):
            listener = getattr(ground.host, name)
            listener.setblocking(False)
            try:
                listener.accept()[0].close()
            except BlockingIOError:
                continue
            raise FailedError(f"a listener of the host's was reached ({name})")
        return "no listener heard anything"

    findings.attempt(f"{ident}.untouched", tried, MOUNTS, untouched)
    findings.attempt("egress.host.unheard", tried, NET, unheard)


def unchecked(findings: Findings, where: str, reason: str) -> None:
    """None of it could be tried there."""
    findings.add(f"containment.{where}", f"all probes in the {where}'s compartment", "the pod", UNCHECKED, reason)
