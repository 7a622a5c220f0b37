"""What this machine can do, tried as root, as an ordinary user, and on machines that we make poorer ourselves."""

from __future__ import annotations

import json
import os
import signal
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from harness import USER, as_user

from nucleus.kernel import landlock, seccomp, syscalls
from nucleus.pod import detect
from nucleus.pod.backend import LADDER
from nucleus.pod.detect import REQUIRED, Fact, backend_choice
from nucleus.pod.guests import GUESTS
from nucleus.pod.gvisor import Gvisor

ALL = {
    "root", "user namespaces", "mnt namespace", "pid namespace", "net namespace", "ipc namespace", "uts namespace",
    "cgroup namespace", "mount api", "proc mount", "idmapped mounts", "seccomp", "landlock", "openat2", "pidfd",
    "session keyring", "cgroup memory", "cgroup pids", "cgroup cpu", "kvm", "/usr/bin/python3", "git",
}  # fmt: skip
GOOD = [Fact(name, True, "done", "every pod") for name in sorted(REQUIRED)]


def elsewhere(prepare: Callable[[], None], workspace: str | None = None) -> dict[str, Fact]:
    """The facts that a forked child finds after `prepare`."""

    def work() -> str:
        prepare()
        return json.dumps([fact.as_dict() for fact in detect.detect(workspace)])

    ok, text = detect.probe(work, seconds=20)
    assert ok, text
    rows: list[dict[str, Any]] = json.loads(text)
    for row in rows:
        assert row.pop("required") is (row["name"] in REQUIRED)
    return {row["name"]: Fact(**row) for row in rows}


def needs_root() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to be root and an ordinary user")


def left() -> tuple[str, list[str], list[str]]:
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    spaces = [os.readlink(f"/proc/self/ns/{kind}") for kind in ("mnt", "user", "net", "pid", "uts", "ipc", "cgroup")]
    return Path("/proc/self/mountinfo").read_text(), children, spaces


def test_as_root_everything_a_pod_needs_is_here_and_nothing_is_left(tmp_path: Path) -> None:
    needs_root()
    before, fds = left(), len(os.listdir("/proc/self/fd"))
    began = time.monotonic()
    facts = {fact.name: fact for fact in detect.detect(str(tmp_path))}
    assert time.monotonic() - began < 10
    assert left() == before
    assert len(os.listdir("/proc/self/fd")) == fds
    assert os.listdir(tmp_path) == []
    assert facts.keys() == ALL
    assert [facts[name].detail for name in sorted(REQUIRED) if not facts[name].ok] == []
    assert facts["idmapped mounts"].detail.startswith(str(tmp_path))
    assert backend_choice(list(facts.values())).backend == "namespaces"


def test_as_an_ordinary_user() -> None:
    needs_root()
    facts = elsewhere(lambda: as_user(USER))
    assert facts.keys() == ALL
    assert not facts["root"].ok
    assert "share" in facts["root"].detail
    assert [facts[name].detail for name in sorted(REQUIRED) if not facts[name].ok] == []
    assert backend_choice(list(facts.values())).backend == "namespaces"
    for name in ("cgroup memory", "cgroup pids", "cgroup cpu"):
        assert facts[name].ok or facts[name].next_step


def test_supplementary_groups_are_named() -> None:
    needs_root()

    def prepare() -> None:
        as_user(0)
        os.setgroups([4, 20])
        os.setresgid(USER, USER, USER)
        os.setresuid(USER, USER, USER)

    facts = elsewhere(prepare)
    assert not facts["no supplementary groups"].ok
    assert not facts["no supplementary groups"].required


def test_a_machine_without_user_namespaces() -> None:
    """For real: a user namespace whose own limit of further ones is 0."""
    needs_root()

    def prepare() -> None:
        syscalls.unshare(syscalls.CLONE_NEWUSER)
        for name, text in (("uid_map", "0 0 1"), ("setgroups", "deny"), ("gid_map", "0 0 1")):
            Path(f"/proc/self/{name}").write_text(text)
        Path("/proc/sys/user/max_user_namespaces").write_text("0")
        # An ordinary user: root's probes would take a uid that does not exist in here.
        os.geteuid = lambda: 1000

    facts = elsewhere(prepare)
    assert not facts["user namespaces"].ok
    assert "No space left" in facts["user namespaces"].detail, "the kernel's own word for this limit"
    assert "max_user_namespaces" in facts["user namespaces"].next_step
    assert facts["mnt namespace"].next_step == "See user namespaces."
    choice = backend_choice(list(facts.values()))
    assert choice.backend == ""
    assert "user namespaces" in {fact.name for fact in choice.missing}


def without_calls(*numbers: int) -> Callable[[], None]:
    """A machine whose kernel lacks these calls, by a filter."""

    def prepare() -> None:
        code = [struct.pack("=HBBI", 0x20, 0, 0, 0)]
        for number in numbers:
            code += [struct.pack("=HBBI", 0x15, 0, 1, number), struct.pack("=HBBI", 0x06, 0, 0, 0x00050000 | 38)]
        code.append(struct.pack("=HBBI", 0x06, 0, 0, 0x7FFF0000))
        syscalls.set_no_new_privs()
        seccomp.install(b"".join(code))

    return prepare


def test_an_old_kernel_without_landlock_still_makes_pods() -> None:
    facts = elsewhere(without_calls(444, 445, 446))
    assert not facts["landlock"].ok
    assert "lsm=" in facts["landlock"].next_step
    assert backend_choice(list(facts.values())).backend == "namespaces"


@pytest.mark.parametrize(
    ("numbers", "name"),
    [((437,), "openat2"), ((428,), "mount api"), ((442,), "mount api"), ((434,), "pidfd"), ((424,), "pidfd")],
)
def test_an_old_kernel_without_what_a_pod_needs_makes_none(numbers: tuple[int, ...], name: str) -> None:
    facts = elsewhere(without_calls(*numbers))
    assert not facts[name].ok
    assert "not implemented" in facts[name].detail
    assert facts[name].next_step
    choice = backend_choice(list(facts.values()))
    assert choice.backend == ""
    assert facts[name] in choice.missing


def test_a_file_system_that_cannot_be_idmapped() -> None:
    needs_root()
    fact = next(fact for fact in detect.detect("/proc") if fact.name == "idmapped mounts")
    assert not fact.ok
    assert "ext4" in fact.next_step
    gone = detect._idmapped("/nowhere", True)
    assert not gone.ok
    assert "/nowhere" in gone.detail


def test_landlocks_abi_is_the_kernels() -> None:
    if not landlock.abi():
        pytest.skip("no Landlock here")
    assert detect._landlock().detail.startswith(f"ABI {landlock.abi()}")


# The frame


def test_a_probe_that_hangs_is_a_fact_that_is_not_so() -> None:
    def work() -> str:
        if os.fork() == 0:  # a grandchild goes with it
            time.sleep(60)
        time.sleep(60)
        return "never"

    before = left()
    began = time.monotonic()
    assert detect.probe(work, seconds=0.2) == (False, "no answer in 0.2 s")
    assert time.monotonic() - began < 5
    assert left() == before


def test_a_probe_that_is_killed_or_ends_by_itself() -> None:
    def killed() -> str:
        os.kill(os.getpid(), signal.SIGKILL)
        return "never"

    def ended() -> str:
        os._exit(3)

    assert detect.probe(killed) == (False, "the probe ended with signal 9")
    assert detect.probe(ended) == (False, "the probe ended with exit code 3")


def test_a_process_that_a_probe_leaves_does_not_hold_the_answer_up() -> None:
    def work() -> str:
        if os.fork() == 0:
            time.sleep(60)
        return "done"

    before = left()
    began = time.monotonic()
    assert detect.probe(work) == (True, "done")
    assert time.monotonic() - began < 2
    assert left() == before


def test_a_probe_that_raises() -> None:
    def refused() -> str:
        raise PermissionError(1, "Operation not permitted")

    def odd() -> str:
        raise ValueError("odd")

    assert detect.probe(refused) == (False, "Operation not permitted")
    assert detect.probe(odd) == (False, "odd")
    assert detect.probe(lambda: "ü") == (True, "ü")


def test_ubuntus_switch_is_recognised(tmp_path: Path) -> None:
    switch = tmp_path / "apparmor_restrict_unprivileged_userns"
    switch.write_text("1\n")
    rows = [(str(tmp_path / "absent"), "1", "no"), (str(switch), "1", "the switch")]
    assert detect.userns_next_step(rows) == "the switch"
    switch.write_text("0\n")
    assert "container" in detect.userns_next_step(rows)
    assert any("apparmor_restrict_unprivileged_userns" in advice for _, _, advice in detect._SWITCHES)


# The choice


def test_auto_takes_namespaces_and_says_why_not_a_stronger_one() -> None:
    kvm = Fact("kvm", True, "opens (API 12); whether a guest boots is not tried", "firecracker")
    choice = backend_choice([*GOOD, kvm])
    assert choice.backend == "namespaces"
    assert set(choice.not_stronger) == set(LADDER) - {"namespaces"}
    assert all("not in this version" in choice.not_stronger[name] for name in set(choice.not_stronger) - set(GUESTS))
    assert "not tried" in choice.not_stronger["firecracker"]


@pytest.mark.parametrize("floor", ["", "none", "namespaces"])
def test_a_floor_that_is_met(floor: str) -> None:
    assert backend_choice(GOOD, floor).backend == "namespaces"


def test_a_guest_is_taken_for_a_floor_where_it_starts_and_never_in_its_stead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Gvisor, "lacking", lambda _: "")
    assert backend_choice(GOOD, "gvisor").backend == "gvisor"
    assert backend_choice(GOOD).backend == "namespaces"
    monkeypatch.setattr(Gvisor, "lacking", lambda _: "there is no runsc")
    assert backend_choice(GOOD, "gvisor").backend == ""
    assert "there is no runsc" in backend_choice(GOOD, "gvisor").why
    assert "there is no runsc" in backend_choice(GOOD).not_stronger["gvisor"]


@pytest.mark.parametrize("floor", ["firecracker", "Namespaces", "vm"])
def test_a_floor_that_is_unmet_or_unknown_fails_closed(floor: str) -> None:
    choice = backend_choice(GOOD, floor)
    assert choice.backend == ""
    assert floor in choice.why


@pytest.mark.parametrize("name", sorted(REQUIRED))
def test_each_required_fact_counts(name: str) -> None:
    bad = [Fact(fact.name, fact.name != name, "x", "every pod") for fact in GOOD]
    assert [fact.name for fact in backend_choice(bad).missing] == [name]
    assert backend_choice(bad).backend == ""


def test_what_was_not_tried_is_missing() -> None:
    assert backend_choice([]).backend == ""
    assert {fact.name for fact in backend_choice(GOOD[1:]).missing} == {GOOD[0].name}
