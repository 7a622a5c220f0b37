"""Checks of the conformance suite: what a pod leaves in the workspace, and that nothing else of it is left."""

from __future__ import annotations

import glob
import os

from nucleus.testing.conformance.bed import Bed, LivePod, NotHereError, family, settles
from nucleus.testing.conformance.frame import Check, expect


class Ended:
    """A pod's life from outside: what was there before, while it ran, and after its end."""

    def __init__(self, bed: Bed) -> None:
        self.bed = bed
        bed.end(bed.pod())  # what the builder keeps for the next pod is there from now on
        self.builder = int(bed.status()["pids"]["builder"])
        settles(lambda: len(family(self.builder)), -1)
        self.before = self._seen()
        pod = bed.pod()
        self.script(pod)
        self.pids = {int(pid) for each in bed.status()["pods"] for pid in (*each["pids"], each["gate"])}
        self.live = {each for each in family(self.builder) if each[0] in self.pids}
        self.set_aside = bed.end(pod)

    def script(self, pod: LivePod) -> None:
        """What the pod does to the workspace."""
        pod.sh(
            "setsid sleep 7654 & echo made > out.txt; mkdir -p out-dir/sub; echo x > out-dir/sub/f; chmod 751 out.txt; "
            "ln -s out.txt out-link; rm -f out-old; mv out-moved out-there; echo evil > .mcp.json; "
            "printf '\\001\\377' > 'out \u00fc'; mkdir out-empty"
        )

    def _seen(self) -> dict[str, int]:
        """How many of each there are that a pod is made of."""
        seen = {
            "processes": len(family(self.builder)),
            "mounts": len(_lines("/proc/self/mountinfo")),
            "cgroups": len(glob.glob(f"/sys/fs/cgroup/**/nucleus/pod-{self.builder}-*", recursive=True)),
            "pod directories": len(os.listdir(f"{self.bed.directory}/run/pods")),
            "network namespaces": len({_link(pid, "net") for pid, _ in family(self.builder)}),
        }
        try:
            seen["descriptors"] = sum(not kept(self.builder, fd) for fd in os.listdir(f"/proc/{self.builder}/fd"))
        except PermissionError:
            seen["descriptors"] = -1
        return seen

    def same(self, what: str) -> str:
        """Is there as much of it as before? Raises FailedError or NotHereError."""
        if self.before[what] < 0:
            raise NotHereError("an ordinary user cannot look into the builder")
        expect(
            settles(lambda: self._seen()[what], self.before[what]), f"{self._seen()[what]}, {self.before[what]} before"
        )
        return str(self.before[what])


def _lines(path: str) -> list[str]:
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.readlines()


def kept(pid: int, fd: str) -> bool:
    """Is it an id map that the builder keeps, one for each slot that a pod was ever in (at most 64)? Which slot a pod
    gets depends on the other builders of this machine."""
    try:
        return os.readlink(f"/proc/{pid}/fd/{fd}").startswith("user:")
    except FileNotFoundError:
        return True  # the listing's own


def _link(pid: int, kind: str) -> str:
    try:
        return os.readlink(f"/proc/{pid}/ns/{kind}")
    except OSError:
        return ""


def prepare(bed: Bed) -> None:
    """What the workspace has before the pods of these checks."""
    bed.put("out-old", "goes\n")
    bed.put("out-moved", "moves\n")


def _processes(ended: Ended) -> None:
    expect(not {each for each in ended.live if each in family(ended.builder)}, "one of the pod's processes lives on")
    ended.same("processes")


def _files(ended: Ended) -> None:
    top = ended.bed.workspace
    with (
        open(f"{top}/out.txt", "rb") as one,
        open(f"{top}/out-dir/sub/f", "rb") as two,
        open(f"{top}/out ü", "rb") as raw,
    ):
        expect((one.read(), two.read(), raw.read()) == (b"made\n", b"x\n", b"\1\xff"), "another content")
    expect(os.stat(f"{top}/out.txt").st_mode & 0o777 == 0o751, oct(os.stat(f"{top}/out.txt").st_mode))
    expect(os.readlink(f"{top}/out-link") == "out.txt", "the link leads elsewhere")
    expect(os.path.isdir(f"{top}/out-empty"), "the empty directory is not there")


def _removed(ended: Ended) -> None:
    top = ended.bed.workspace
    expect(not os.path.lexists(f"{top}/out-old"), "what was removed is there")
    expect(not os.path.lexists(f"{top}/out-moved") and os.path.isfile(f"{top}/out-there"), "what was moved is not")


def _owner(ended: Ended) -> None:
    top = ended.bed.workspace
    for name in ("out.txt", "out-dir", "out-dir/sub/f", "out-link"):
        found = os.lstat(f"{top}/{name}")
        expect(found.st_uid == os.stat(top).st_uid, f"{name} belongs to uid {found.st_uid}")


def _aside(ended: Ended) -> None:
    top = ended.bed.workspace
    expect(not os.path.lexists(f"{top}/.mcp.json"), "what a host program would run is in place")
    expect(any(".mcp.json" in line for line in ended.set_aside), ended.set_aside)


def _clean(ended: Ended) -> None:
    found = [name for name in os.listdir(ended.bed.workspace) if name.startswith(".nucleus")]
    expect(not found, f"ours is left: {found}")


def _blocked(ended: Ended) -> None:
    for name in ("blocked", ".envrc"):
        expect(os.path.isfile(f"{ended.bed.workspace}/{name}"), f"{name} is gone from the workspace")


CHECKS = [
    Check("out.files", _files, True),
    Check("out.removed-and-moved", _removed, False),
    Check("out.owner", _owner, True),
    Check("out.set-aside", _aside, False),
    Check("out.nothing-of-ours", _clean, False),
    Check("out.hidden-files-are-untouched", _blocked, True),
    Check("end.processes", _processes, True),
    *(
        Check(f"end.{what.replace(' ', '-')}", lambda ended, what=what: ended.same(what), True)  # type: ignore[misc]
        for what in ("mounts", "cgroups", "network namespaces", "pod directories", "descriptors")
    ),
]


class Two:
    """Two pods of one workspace at once."""

    def __init__(self, bed: Bed) -> None:
        self.one, self.two = bed.pod(), bed.pod()


def _apart(two: Two) -> None:
    two.one.sh("echo secret > /tmp/mine; echo secret > $HOME/mine")
    seen = two.two.sh("cat /tmp/mine $HOME/mine 2>/dev/null; ls -A /tmp $HOME").out
    expect(b"secret" not in seen and b"mine" not in seen, seen)


def _processes_apart(two: Two) -> None:
    number = two.one.send(kind="run", argv=["/bin/sleep", "8765"], timeout_ms=4_000)
    seen = two.two.sh("cat /proc/[0-9]*/cmdline | tr '\\0' '\\n'").out
    expect(b"8765" not in seen, "one pod sees the other's process")
    cancelled = two.two.run("/bin/true")
    expect(cancelled.code == 0, cancelled)
    expect(two.one.answer(number)["result"]["timed_out"], "the sleep ended otherwise")


def _end_of_one(two: Two) -> None:
    two.one.close()
    expect(two.two.run("/bin/true").code == 0, "the other pod ended with it")


PAIR = [
    Check("two-pods.private-places", _apart, False),
    Check("two-pods.processes", _processes_apart, False),
    Check("two-pods.one-ends", _end_of_one, False),
]
