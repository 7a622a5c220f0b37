"""Checks of the conformance suite: what a fully hijacked command reaches. One script tries all of it, once a pod."""

from __future__ import annotations

import json
import os
from typing import Any

from nucleus.testing.conformance.bed import Bed, FailedError, LivePod
from nucleus.testing.conformance.frame import Check, expect

SHORT = {"read_secret", "tcp_out", "unix_path", "raw_socket", "host_environ", "mount_anything", "disks", "interfaces"}
NAMES = (
    "read_secret", "find_secret", "write_outside", "write_usr", "host_files", "host_environ", "host_name",
    "signal_host", "other_processes", "ptrace_init", "init_memory",
    "tcp_loopback", "udp_loopback", "tcp_out", "tcp6_out", "unix_path", "unix_abstract", "interfaces", "routes",
    "raw_socket", "packet_socket", "netlink", "vsock", "new_network",
    "nested_userns", "mount_anything", "change_root", "io_uring", "bpf", "perf", "keyring", "kernel_ring", "proc_sys",
    "kernel_memory", "sysfs", "load_module", "reboot", "set_clock",
    "make_device", "memory_device", "disks", "setuid_file", "terminal_injection",
)  # fmt: skip


# What a guest has of its own is nobody's secret. Its routes lead into the pod's network, as the other probes try.
OWN = {"sysfs", "routes"}


class Probed:
    """A pod's answers, asked for once."""

    def __init__(self, pod: LivePod, bed: Bed) -> None:
        self._pod, self._bed = pod, bed
        self._answers: dict[str, Any] | None = None
        self.own_kernel = pod.isolation["kernel"] == "own"

    def answers(self) -> dict[str, Any]:
        """What each probe found. Raises FailedError."""
        if self._answers is None:
            with open(os.path.join(os.path.dirname(__file__), "probes.txt"), encoding="utf-8") as file:
                script = file.read()
            done = self._pod.python(script, json.dumps(self._bed.host.config()), timeout_ms=100_000)
            if done.code != 0:
                raise FailedError(f"the probes ended with {done.code}, signal {done.signal}: {done.err[-200:]!r}")
            self._answers = json.loads(done.out)
        return self._answers


def _check(name: str) -> Check:
    def work(probed: Probed) -> str:
        answer = str(probed.answers()[name])
        if name in OWN and probed.own_kernel:
            return "the guest's own"
        expect(answer != "open", "reached")
        return answer[:80]

    return Check(f"contained.{name.replace('_', '-')}", work, name in SHORT)


def _mounts(probed: Probed) -> str:
    """The mount table of a pod names nothing of the host's but the pieces that every pod shows."""
    if probed.own_kernel:
        return "the guest's own"
    writable = set()
    for line in probed.answers()["mounts"]:
        left, _, right = line.partition(" - ")
        fields = left.split()
        point, options, kind = fields[4], set(fields[5].split(",")), right.split()[0]
        if "ro" not in options:
            writable.add(point)  # below /proc: the masks, each a /dev/null; `proc_sys` tries the rest
        expect("nosuid" in options or point == "/dev" or point.startswith("/dev/"), f"{point} ({kind}) is not nosuid")
    unexpected = {
        point for point in writable if point not in ("/workspace", "/tmp", "/home/agent", "/proc")  # noqa: S108
        and not point.startswith(("/dev/", "/proc/", "/workspace/"))
    }  # fmt: skip
    expect(not unexpected, f"writable: {sorted(unexpected)}")
    return ""


def _outside_is_untouched(probed: Probed) -> None:
    probed.answers()
    directory = probed._bed.host.directory
    expect(sorted(os.listdir(directory)) == ["planted-secret", "socket"], os.listdir(directory))


CHECKS = [
    *(_check(name) for name in NAMES),
    Check("contained.mounts", _mounts, False),
    Check("contained.outside-is-untouched", _outside_is_untouched, True),
]
