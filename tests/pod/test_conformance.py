"""The conformance suite itself, against every backend that this machine can start, by `nucleus doctor --backends`."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

import pytest
from tests.integration.site import USER, Site

from nucleus.pod.spec import LADDER
from nucleus.testing.conformance import bed, commands, containment, frame, lifecycle, suite, workspace
from nucleus.testing.conformance.bed import FailedError, NotHereError


@pytest.fixture(params=["root", "user"])
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    made = Site(0 if request.param == "root" else USER)
    yield made
    made.close()


def said(site: Site, *flags: str, timeout: float = 100) -> dict[str, Any]:
    done = site.cli("doctor", "--backends", "--json", *flags, timeout=timeout)
    assert done.stdout, done.stderr
    body = json.loads(done.stdout)
    assert done.returncode == body["exit_code"]
    return body


def wrong(report: dict[str, Any]) -> list[dict[str, Any]]:
    return [each for each in report["checks"] if each["verdict"] == "failed"]


@pytest.mark.parametrize("rung", LADDER)
def test_every_kind_keeps_every_promise(site: Site, rung: str) -> None:
    """The whole suite against each kind that this machine can start, as root and as an ordinary user."""
    if rung == "qemu":
        site.cli("image", "build", timeout=100)  # where it cannot be, the rung says so
    whole = rung == "namespaces" or "NUCLEUS_BACKENDS" in os.environ  # `make test-backends`
    everything = said(site, "--only", rung, *(["--full"] if whole else []), timeout=400)
    if reason := everything["not_tried"].get(rung):
        assert rung != "namespaces"
        pytest.skip(f"{rung}: {reason}")
    (report,) = everything["backends"]
    assert wrong(report) == []
    assert report["conforms"] is True
    assert [each["check"] for each in report["checks"]] == suite.checks(short=not whole)
    left_out = {each["check"] for each in report["checks"] if each["verdict"] == "not here"}
    allowed = {"end.descriptors", "limits.memory"} if site.uid else {"limits.memory"}
    assert left_out <= allowed, left_out
    assert not [path for path in site.directory.parent.glob("nucleus-conformance-*") if path.owner() == str(site.uid)]


def test_a_table_for_people(site: Site) -> None:
    done = site.cli("doctor", "--backends", timeout=200)
    assert done.returncode == 0, done.stdout
    rows = done.stdout.splitlines()
    assert any(row.startswith("run.exit-0 ") and "passed" in row for row in rows)
    left_out = 1 if site.uid else 0  # a user cannot count the builder's descriptors
    passed = len(suite.checks(short=True)) - left_out
    assert f"namespaces: {passed} passed, 0 failed, {left_out} not here" in rows
    assert any(row.startswith("firecracker: not tried: ") for row in rows)


def test_wrong_words_are_refused(site: Site) -> None:
    assert site.cli("doctor", "--full").returncode == 2
    assert site.cli("doctor", "--backends", "--floor", "firecracker").returncode == 6


def test_names_are_unique_and_the_short_form_is_a_part() -> None:
    names = suite.checks()
    assert len(names) == len(set(names)) >= 60
    assert set(suite.checks(short=True)) < set(names)
    assert {name.split(".")[0] for name in names} >= {"run", "streams", "files", "contained", "limits", "out", "end"}


class Broken:
    """A pod that answers, and wrongly: what has to be found."""

    isolation: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self) -> None:
        self.host = self

    def operate(self, **operation: Any) -> dict[str, Any]:
        return {"content": "x", "encoding": "utf-8", "size": 1, "truncated": False, "created": None, "paths": ["x"],
                "matches": [], "exit_code": 0}  # fmt: skip

    ok = operate

    def run(self, *argv: str, **more: Any) -> bed.Ran:
        return bed.Ran(99, 42, b"{}", b"wrong", False, False)

    sh = python = run

    def send(self, **operation: Any) -> int:
        return 1

    def answer(self, number: int) -> dict[str, Any]:
        return {"result": {"exit_code": 1, "signal": None, "stdout": "", "stderr": "", "encoding": "utf-8",
                           "stdout_truncated": False, "stderr_truncated": False, "timed_out": False}}  # fmt: skip


LENIENT = {
    # What a pod that answers everything in the same words gets by with: they look at the absence of something.
    "limits.memory", "limits.one-file", "limits.private-places", "files.blocked-names", "files.name-that-is-not-utf-8",
}  # fmt: skip


@pytest.mark.parametrize("check", [*commands.checks.all, *workspace.checks.all], ids=lambda check: check.name)
def test_a_broken_pod_is_found_out(check: frame.Check) -> None:
    outcome = frame.carry_out(check, Broken())
    assert outcome.verdict == "failed" or check.name in LENIENT, outcome


def test_a_probe_that_gets_through_is_found_out() -> None:
    class Open:
        def answers(self) -> dict[str, Any]:
            return dict.fromkeys(containment.NAMES, "open") | {"mounts": ["1 1 0:1 / /usr rw,nosuid - ext4 x rw"]}

    for check in containment.CHECKS:
        assert frame.carry_out(check, Open()).verdict == "failed", check.name


def test_what_is_left_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bed, "SETTLE_SECONDS", 0.1)

    class Left(lifecycle.Ended):
        def __init__(self) -> None:
            self.before = {"mounts": 1}

        def _seen(self) -> dict[str, int]:
            return {"mounts": 2}

    with pytest.raises(FailedError, match="2, 1 before"):
        Left().same("mounts")


def test_outcomes() -> None:
    def here(_: object) -> str:
        return "found"

    def not_here(_: object) -> None:
        raise NotHereError("no cgroups")

    def bug(_: object) -> None:
        raise KeyError("x")

    got = [frame.carry_out(frame.Check(work.__name__, work, True), None) for work in (here, not_here, bug)]
    assert [(o.verdict, o.reason) for o in got] == [
        ("passed", "found"), ("not here", "no cgroups"), ("failed", "KeyError: 'x'"),
    ]  # fmt: skip
    report = frame.Report("namespaces", {}, tuple(got))
    assert report.conforms is False
    assert report.lines()[-1] == "namespaces: 1 passed, 1 failed, 1 not here"
    assert frame.Report("namespaces", {}, (got[1],)).conforms is False
