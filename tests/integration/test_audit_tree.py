"""The signed log through the public door: when it is signed, what a witness refuses, what a third party can check.

Everything here is done with `nucleus` and `nucleus-audit` on a state directory that real operations have filled.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from audit.forge import rechain  # of our tests
from nucleus.audit.checkpoint import Checkpoint
from nucleus.audit.merkle import Tree
from nucleus.audit.note import Note, encode
from nucleus.store.note_keys import load

from .held import Held
from .site import BIN, Site

WITNESS = 40_411
STRANGER = 40_412


def audit(site: Site, *arguments: str, code: int = 0) -> str:
    """`nucleus-audit` to its end; standard output."""
    done = site.cli(*arguments, program="nucleus-audit")
    assert done.returncode == code, (arguments, done.returncode, done.stdout, done.stderr)
    return done.stdout


def as_json(site: Site, *arguments: str, code: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(audit(site, *arguments, "--json", code=code))
    return found


def sizes(site: Site) -> list[int]:
    """Of the checkpoints."""
    path = Path(f"{site.audit_log}.checkpoints")
    notes = path.read_text().split("\n\n") if path.exists() else []
    return [int(note.split("\n")[1]) for note in notes[::2] if note]


def stopped(site: Site) -> Path:
    """The log, once the helper has ended and signed the last of it."""
    site.cli("helper", "stop")
    return site.audit_log


@pytest.fixture
def filled(root_site: Site) -> Site:
    """A site with a few operations on record, all of them signed."""
    for argv in (["true"], ["sh", "-c", "exit 3"]):
        root_site.exec(*argv)
    stopped(root_site)
    assert sizes(root_site) == [len(root_site.records())]
    return root_site


def test_checkpoints_come_by_number_by_time_and_at_the_end(site: Site) -> None:
    with Held(site) as held:
        for _ in range(300):
            assert held.operate(kind="read", path=".env")["kind"] == "denied"
        assert sizes(site)[-1:] == [256]
        deadline = time.monotonic() + 15
        while len(sizes(site)) < 2 and time.monotonic() < deadline:
            time.sleep(0.2)
        assert sizes(site)[1] > 300  # ten seconds after the first that was not signed
    stopped(site)
    assert sizes(site)[-1] == len(site.records())
    assert sizes(site) == sorted(set(sizes(site)))


def test_what_verify_says_with_and_without_a_pin(filled: Site, tmp_path: Path) -> None:
    log = str(filled.audit_log)
    said = as_json(filled, "verify", log, code=3)
    assert (said["ok"], said["complete"], said["verdict"]) == (
        True, False, "internally consistent, completeness unknown",
    )  # fmt: skip
    assert "internally consistent, completeness unknown" in audit(filled, "verify", log, code=3)
    kept = filled.directory / "kept"
    kept.write_bytes(Path(f"{log}.checkpoints").read_bytes().removesuffix(b"\n"))
    shutil.copy(f"{log}.vkey", filled.directory / "log.vkey")
    pin = ("--checkpoint", str(kept), "--key", str(filled.directory / "log.vkey"))
    assert as_json(filled, "verify", log, *pin)["complete"]
    filled.exec("true")  # it grows, and stays complete up to there
    stopped(filled)
    assert f"complete up to record {len(filled.records()) - 4}" in audit(filled, "verify", log, *pin)
    lines = filled.audit_log.read_bytes().splitlines(keepends=True)
    filled.audit_log.write_bytes(b"".join(lines[:5]))
    assert as_json(filled, "verify", log, *pin, code=1)["kind"] == "cut"
    for name in (".checkpoints", ".vkey"):  # whoever removes those leaves a log that proves nothing, and it says so
        os.unlink(log + name)
    assert as_json(filled, "verify", log, code=3)["complete"] is False
    assert as_json(filled, "verify", log, *pin, code=1)["kind"] == "cut"


# The witness


class Watch:
    """A witness under a uid of its own."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.directory = Path(tempfile.mkdtemp(prefix="nucleus-witness-", dir="/tmp"))
        self.directory.chmod(0o700)
        os.chown(self.directory, WITNESS, WITNESS)
        self.argv = (
            "witness", "--state", str(self.directory), "--key", str(self.directory / "key"), "--log",
            str(site.audit_log), "--uid", str(WITNESS),
        )  # fmt: skip

    def look(self, code: int = 0) -> dict[str, Any]:
        return as_json(self.site, *self.argv, code=code)

    def files(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in self.directory.iterdir()}

    @property
    def key(self) -> str:
        return (self.directory / "witness.vkey").read_text().strip()


@pytest.fixture
def watch(filled: Site) -> Iterator[Watch]:
    made = Watch(filled)
    yield made
    shutil.rmtree(made.directory)


def grow(site: Site) -> None:
    site.exec("true")
    stopped(site)


def sign_anew(site: Site, *, keep: bool) -> None:
    """What whoever has the authority's key can do: sign the log as it is now; `keep`: behind what was signed before."""
    path = site.audit_log
    key = load_as_owner(path.parent / "audit.key")
    tree = Tree()
    tree.extend(path.read_bytes().splitlines())
    checkpoint = Checkpoint(key.name, tree.size, tree.root())
    data = encode(Note(checkpoint.text, (key.signature(checkpoint.text),))) + b"\n"
    file = Path(f"{path}.checkpoints")
    file.write_bytes((file.read_bytes() if keep else b"") + data)


def load_as_owner(path: Path) -> Any:
    owner = path.stat().st_uid
    os.seteuid(owner)
    try:
        return load(str(path))
    finally:
        os.seteuid(0)


def test_a_witness_cosigns_growth_and_keeps_its_last_size(watch: Watch) -> None:
    site, log = watch.site, str(watch.site.audit_log)
    first = len(site.records())
    assert watch.look() == {"ok": True, "size": first, "new": True}
    assert watch.look() == {"ok": True, "size": first, "new": False}
    owners = {path.name: (path.stat().st_uid, path.stat().st_mode & 0o777) for path in watch.directory.iterdir()}
    assert {"key", "witness.json"} <= owners.keys()
    assert set(owners.values()) == {(WITNESS, 0o600)}
    assert site.audit_log.stat().st_uid != WITNESS
    grow(site)
    assert watch.look() == {"ok": True, "size": first + 4, "new": True}
    assert json.loads((watch.directory / "witness.json").read_text())["tree"].startswith(f"{first + 4} ")
    said = as_json(site, "verify", log, "--witness", watch.key)
    assert (said["complete"], said["tree"]["cosigned"]) == (True, first + 4)
    another = watch.key.replace("/", "x", 1)
    audit(site, "verify", log, "--witness", another, code=2)  # the id is of key and name


@pytest.mark.parametrize(
    ("harm", "code"),
    [
        ("cut", "shrink"), ("cut and signed anew", "shrink"), ("checkpoints cut", "rewind"), ("rewritten", "fork"),
        ("rewritten and signed anew", "fork"), ("rewritten in the middle, the end kept", "fork"),
        ("another key", "signature"), ("a forged signature", "signature"),
    ],
)  # fmt: skip
def test_a_witness_refuses_and_goes_on_when_the_log_is_back(watch: Watch, harm: str, code: str) -> None:
    site, log = watch.site, watch.site.audit_log
    checkpoints = Path(f"{log}.checkpoints")
    watch.look()
    good = {path: path.read_bytes() for path in (log, checkpoints)}
    state = watch.files()
    later = {**good}
    if harm in ("another key", "a forged signature", "rewritten in the middle, the end kept"):
        grow(site)
        later = {path: path.read_bytes() for path in (log, checkpoints)}
    match harm:
        case "cut" | "cut and signed anew":
            log.write_bytes(b"".join(log.read_bytes().splitlines(keepends=True)[:-2]))
            if harm != "cut":
                sign_anew(site, keep=True)
        case "checkpoints cut":
            checkpoints.write_bytes(b"")
        case "rewritten" | "rewritten and signed anew":
            rechain(log, lambda record: {**record, "pod": "pod-0000000000"})
            if harm != "rewritten":
                sign_anew(site, keep=True)
        case "rewritten in the middle, the end kept":
            lines = log.read_bytes().splitlines(keepends=True)
            rechain(log, lambda record: {**record, "pod": record["pod"] if record["seq"] < 3 else "pod-0000000000"})
            forged = log.read_bytes().splitlines(keepends=True)
            size = len(good[log].splitlines())
            # what was cosigned keeps its last line, so that only the tree can tell
            log.write_bytes(b"".join([*forged[: size - 1], lines[size - 1], *forged[size:]]))
            sign_anew(site, keep=True)
            checkpoints.write_bytes(good[checkpoints] + checkpoints.read_bytes()[len(later[checkpoints]) :])
        case "another key":
            text = checkpoints.read_text()
            name = text.split("\n")[0]
            checkpoints.write_text(
                good[checkpoints].decode() + text[len(good[checkpoints]) :].replace(name, name + "x")
            )
        case "a forged signature":
            data = bytearray(checkpoints.read_bytes())
            at = data.rindex(b" ") + 20
            data[at] = data[at] ^ 1 if chr(data[at] ^ 1).isalnum() else ord("A")
            checkpoints.write_bytes(data)
    said = watch.look(code=1)
    assert (said["ok"], said["code"]) == (False, code), said
    assert watch.files() == state
    for path, data in later.items():
        path.write_bytes(data)
    assert watch.look()["ok"]


def test_a_witness_without_its_state_or_another_key_says_so(watch: Watch) -> None:
    watch.look()
    other = Watch(watch.site)
    try:
        shutil.copy(watch.directory / "witness.json", other.directory)  # root's: not its own
        audit(watch.site, *other.argv, code=2)
    finally:
        shutil.rmtree(other.directory)
    vkey = Path(f"{watch.site.audit_log}.vkey")
    name, _, rest = vkey.read_text().partition("+")
    assert name
    assert rest
    (watch.directory / "witness.json").write_text("{}")
    audit(watch.site, *watch.argv, code=2)
    audit(watch.site, "witness", *watch.argv[1:-1], "0", code=2)  # never as root


def test_a_witness_follows_over_rotations(watch: Watch) -> None:
    site = watch.site
    setting = site.audit_log.parent / "audit.segment-bytes"
    setting.write_text("4096")
    setting.chmod(0o644)
    argv = [str(BIN / "nucleus-audit"), *watch.argv, "--follow", "--interval", "1"]
    with site.start(argv) as child:
        try:
            for _ in range(4):
                grow(site)
            deadline = time.monotonic() + 15
            path = watch.directory / "witness.json"
            want = f'"tree": "{len(all_lines(site))} '
            while not (path.exists() and want in path.read_text()) and time.monotonic() < deadline:
                time.sleep(0.1)
            assert child.poll() is None
        finally:
            child.send_signal(signal.SIGINT)
            out, err = child.communicate(timeout=10)
    assert child.returncode == 0, err
    assert f"cosigned: {len(all_lines(site))} records" in out
    assert len(list(site.audit_log.parent.glob("audit-*.jsonl"))) >= 2
    said = as_json(site, "verify", str(site.audit_log), "--witness", watch.key)
    assert said["complete"]
    assert said["records"] == len(all_lines(site))


def all_lines(site: Site) -> list[bytes]:
    """Of all files of the log, in order."""
    paths = [*sorted(site.audit_log.parent.glob("audit-*.jsonl")), site.audit_log]
    return [line for path in paths for line in path.read_bytes().splitlines()]


# A third party


def elsewhere(directory: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    """`nucleus-audit` by somebody who has nothing but the files in `directory`."""
    with Site.another(STRANGER) as become:
        return subprocess.run(
            [str(BIN / "nucleus-audit"), *argv], cwd=directory, preexec_fn=become, capture_output=True, text=True,
            env={"PATH": "/usr/bin:/bin", "HOME": str(directory)}, check=False, timeout=30,
        )  # fmt: skip


def test_a_receipt_is_checked_offline_with_the_public_key_alone(watch: Watch) -> None:
    site, log = watch.site, str(watch.site.audit_log)
    watch.look()
    key = Path(f"{log}.vkey").read_text().strip()
    seq = next(record["seq"] for record in site.records() if record["event"] == "intent")
    receipt = audit(site, "receipt", log, "--seq", str(seq))
    proof = audit(site, "prove", log, "--seq", str(seq))
    old = audit(site, "prove", log, "--from", str(sizes(site)[0]))
    grow(site)
    grown = audit(site, "prove", log, "--from", str(sizes(site)[0]))
    assert not os.access(log, os.R_OK, effective_ids=True) or os.geteuid() == 0
    away = Path(tempfile.mkdtemp(prefix="nucleus-third-", dir="/tmp"))
    try:
        for name, text in {"receipt": receipt, "proof": proof, "same": old, "grown": grown}.items():
            (away / name).write_text(text)
        line = site.audit_log.read_bytes().splitlines()[seq - 1]
        (away / "line").write_bytes(line)
        (away / "other").write_bytes(line.replace(b"true", b"rm"))
        away.chmod(0o755)
        assert elsewhere(away, "query", log).returncode == 2  # the log itself is not theirs to read
        for argv, code in (
            (["receipt"], 0), (["proof"], 0), (["proof", "--record", "line"], 0), (["same"], 0), (["grown"], 0),
            (["receipt", "--witness", watch.key], 0), (["proof", "--record", "other"], 1),
            (["grown", "--witness", watch.key], 1),  # its newer checkpoint is not cosigned yet
        ):  # fmt: skip
            done = elsewhere(away, "check-proof", *argv, "--key", key)
            assert done.returncode == code, (argv, done.stdout, done.stderr)
        shown = elsewhere(away, "check-proof", "receipt", "--key", key, "--json")
        assert json.loads(shown.stdout)["record"] == json.loads(line)
        lines = receipt.split("\n")
        for at in range(len(lines) - 1):  # every line of it matters
            for changed in ([*lines[:at], *lines[at + 1 :]], [*lines[:at], lines[at] + "A", *lines[at + 1 :]]):
                if "\n".join(changed) == receipt or (at > 6 and "nucleus-witness" in lines[at]):
                    continue
                (away / "bad").write_text("\n".join(changed))
                done = elsewhere_here(away / "bad", key)
                assert done == 1, (at, lines[at])
        forged = key[:-4] + "AAA="
        assert elsewhere(away, "check-proof", "receipt", "--key", forged).returncode == 2
    finally:
        shutil.rmtree(away)


def elsewhere_here(path: Path, key: str) -> int:
    """`check-proof` in this process, for many."""
    from nucleus.cli.audit import main

    return main(["check-proof", str(path), "--key", key])


# The readers


def test_the_readers_and_a_rotation(filled: Site) -> None:
    log = str(filled.audit_log)
    filled.exec("cat", ".env")
    setting = filled.audit_log.parent / "audit.segment-bytes"
    stopped(filled)
    setting.write_text("4096")
    setting.chmod(0o644)
    argv = [str(BIN / "nucleus-audit"), "tail", log, "--lines", "3", "--follow", "--json"]
    before = len(all_lines(filled))
    with filled.start(argv) as child:
        try:
            for _ in range(4):
                filled.exec("true")
            stopped(filled)
            deadline = time.monotonic() + 15
            assert child.stdout is not None
            seen = []
            while len(seen) < len(all_lines(filled)) - before + 3 and time.monotonic() < deadline:
                seen.append(json.loads(child.stdout.readline())["seq"])
            time.sleep(0.3)
            assert int(Path(f"/proc/{child.pid}/status").read_text().split("VmHWM:")[1].split()[0]) < 80_000
        finally:
            child.send_signal(signal.SIGINT)
            child.communicate(timeout=10)
    assert child.returncode == 0
    total = len(all_lines(filled))
    assert seen == list(range(before - 2, total + 1))
    assert list(filled.audit_log.parent.glob("audit-*.jsonl"))
    assert as_json(filled, "verify", log, code=3)["records"] == total
    found = [json.loads(line) for line in audit(filled, "query", log, "--kind", "pod.start", "--json").splitlines()]
    assert [record["event"] for record in found] == ["pod.start"] * 7
    stats = as_json(filled, "stats", log)
    assert stats["records"] == total
    assert stats["by"]["kind"]["pod.stop"] == 7
    assert stats["bytes"] == sum(len(line) + 1 for line in all_lines(filled))
    assert len(audit(filled, "export", log, "--format", "ocsf").splitlines()) == total
    missing = sorted(filled.audit_log.parent.glob("audit-*.jsonl"))[0]
    data = missing.read_bytes()
    missing.unlink()
    said = as_json(filled, "verify", log, code=1)
    assert said["kind"] == "head"
    last = json.loads(data.splitlines()[-1])["seq"]
    assert f"the segment with records 1 to {last} is not there" in said["remarks"]
    assert f"records 1 to {last} missing" in said["problem"]
