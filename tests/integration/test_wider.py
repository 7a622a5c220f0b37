"""A wider answer through a real pod: as often as was said, and a hijacked agent cannot stretch it (root and user)."""

from __future__ import annotations

import json
import subprocess
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

from .held import Held
from .site import BIN, Site

POLICY = """version: 1
name: asks-to-write
capabilities: {read_files: always, write_files: low_risk, edit_files: low_risk, run_bash: low_risk}
approve: [write_files, edit_files]
"""


class Person:
    """Somebody in a second terminal. Context manager: present while it lasts."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._watch = site.start([str(BIN / "nucleus"), "approvals", "watch", "--json"])

    def __enter__(self) -> Person:
        return self

    def request(self) -> dict[str, Any]:
        """The next request."""
        assert self._watch.stdout is not None
        while True:
            event = json.loads(self._watch.stdout.readline())
            if event["event"] == "request":
                found: dict[str, Any] = event["request"]
                return found

    def says(self, verb: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        done = self._site.cli("approvals", verb, *arguments)
        assert done.returncode == 0, done.stderr
        return done

    def __exit__(self, *_: object) -> None:
        self._watch.terminate()
        self._watch.communicate(timeout=30)


def write(held: Held, path: str, content: str = "x") -> dict[str, Any]:
    return held.operate(kind="write", path=path, content=content)


def granted(site: Site, held: Held, times: int) -> str:
    """Writes notes.txt once, the person allowing it `times` times; the grant's name. Nobody is present afterwards."""
    with Person(site) as person, ThreadPoolExecutor(1) as pool:
        reply = pool.submit(write, held, "notes.txt", "one")
        while wait([reply], 0.5).done:  # until the person has sat down
            assert nobody_said_yes(reply.result())
            reply = pool.submit(write, held, "notes.txt", "one")
        request = person.request()
        assert {"kind": "path", "shown": 'write to "notes.txt", any content'} in request["scopes"]
        person.says("approve", request["request"], "--scope", "path", "--times", str(times))
        assert reply.result(30)["status"] == "ok", reply.result()
    (grant,) = json.loads(site.cli("approvals", "grants", "--json").stdout)
    assert grant["left"] == times - 1
    return str(grant["grant"])


def nobody_said_yes(reply: dict[str, Any]) -> bool:
    return reply.get("kind") == "approval_required" and "no approver is present" in reply["error"]


def test_a_path_twice_and_the_third_time_it_asks_again(site: Site) -> None:
    policy = site.write("../policy.yaml", POLICY)
    with Held(site, policy=str(policy)) as held:
        grant = granted(site, held, 2)
        assert nobody_said_yes(write(held, "other.txt"))
        assert write(held, "notes.txt", "two")["status"] == "ok"
        assert (site.workspace / "notes.txt").read_text() == "two"
        assert nobody_said_yes(write(held, "notes.txt", "three"))
        assert (site.workspace / "notes.txt").read_text() == "two"
        assert site.cli("approvals", "grants", "--json").stdout == "[]\n"
    records = [record for record in site.records() if record["pod"] == held.start["pod"]]
    approvals = [record for record in records if record["event"] == "approval"]
    assert [(r["context"]["grant"]["grant"], r["context"]["grant"]["number"]) for r in approvals] == [
        (grant, 1), (grant, 2),
    ]  # fmt: skip
    for approval in approvals:  # on record before what it allowed
        intent = next(
            r for r in records if r["event"] == "intent" and r["operation_hash"] == approval["operation_hash"]
        )
        assert approval["seq"] < intent["seq"]
    assert site.verify().returncode == 0


def test_a_hijacked_agent_cannot_stretch_it(site: Site) -> None:
    policy = site.write("../policy.yaml", POLICY)
    secret = site.write("secret.txt", "kept")
    notes = site.workspace / "notes.txt"
    with Held(site, policy=str(policy)) as held:
        grant = granted(site, held, 5)
        for path in ("notes.txt/../secret.txt", "./sub/../secret.txt", "Notes.txt", "notes.txt ", "notes.txt/x",
                     "sub/notes.txt", "note\u0455.txt"):  # fmt: skip
            assert nobody_said_yes(write(held, path)), path
        assert nobody_said_yes(held.operate(kind="edit", path="notes.txt", old="one", new="two"))
        assert write(held, "./sub/../notes.txt", "spelled otherwise")["status"] == "ok"
        assert notes.read_text() == "spelled otherwise"
        # The name now leads elsewhere: what it leads to is decided again, and nobody was asked for that.
        link = "import os; os.unlink('notes.txt'); os.symlink('secret.txt', 'notes.txt')"
        assert held.operate(kind="run", argv=["python3", "-c", link])["status"] == "ok"
        assert notes.is_symlink()
        reply = write(held, "notes.txt", "stolen")
        assert (reply["kind"], reply["rule"]) == ("denied", "approve.write_files")
        assert secret.read_text() == "kept"
        (left,) = json.loads(site.cli("approvals", "grants", "--json").stdout)
        assert left["left"] == 2, "a count that was burnt is burnt, and what did not fit burnt none"
        assert site.cli("approvals", "revoke", grant).returncode == 0
        notes.unlink()
        assert nobody_said_yes(write(held, "notes.txt"))
    assert site.verify().returncode == 0


def test_another_pod_asks_for_itself(site: Site) -> None:
    policy = site.write("../policy.yaml", POLICY)
    with Held(site, policy=str(policy)) as held, Held(site, policy=str(policy)) as other:
        granted(site, held, 9)
        assert nobody_said_yes(write(other, "notes.txt"))
        assert write(held, "notes.txt")["status"] == "ok"
