"""The benchmark's policy of twenty rules, and the operations that every engine has to judge alike.

Promises: operations vary (no two of a group are equal), so that a memo of one helps nobody; each says its verdict; each
has one path, and the facts that the peers are given ready-made: path, program, command line, host. Ours gets the
operation alone and finds them itself (wrappers, options, URLs).
Does not: import a peer, or read a clock.

The twenty rules: 1 to 4 read, grep, write and run are allowed; 5 edit asks; 6 web_fetch asks (private data, untrusted
content and a way out together); 7 git push never; 8 to 10 three directories are allowed; 11 to 14 four globs are
blocked; 15 to 17 three programs are listed, all others ask; 18 `make install` asks; 19 `rm` is denied; 20 the hosts
below one domain are denied.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, cycle
from typing import Any

from nucleus.lattice.decision import Context
from nucleus.model.operation import ADAPTER, Base
from nucleus.validate.operation import validate_operation

EACH = 120  # operations of a group

POLICY = """\
version: 1
name: bench
capabilities:
  read_files: always
  grep_search: always
  write_files: low_risk
  run_bash: low_risk
  edit_files: low_risk
  web_fetch: low_risk
  git_push: never
approve: [edit_files]
paths:
  allow: ["src/", "tests/", "docs/"]
  block: ["secrets/", "*.pem", "*.key", ".env*"]
commands:
  allow:
    - {program: git, args: [{one_of: [diff, log, status]}]}
    - {program: pytest}
    - {program: make}
  ask:
    - {program: make, args: [install]}
  deny:
    - {program: rm}
hosts:
  allow: everything
  deny: ["*.evil.example"]
budget: {limit_usd: "5.00"}
time_window: {duration: 1h}
isolation: {floor: namespaces}
trifecta: static
"""

CONTEXT = Context(now_ns=2_000_000_000, started_ns=1_000_000_000)


@dataclass(frozen=True, slots=True)
class Case:
    """One operation, the verdict that every engine must reach, and the facts that peers are given."""

    operation: Base
    verdict: str
    action: str
    path: str
    command: str = ""
    host: str = ""

    @property
    def program(self) -> str:
        return self.command.partition(" ")[0]


_ROOTS = ("src", "tests", "docs")
_PACKAGES = ("billing", "parser", "web/api", "core", "tools/cli", "report", "worker", "store/sql")
_FILES = ("main.py", "model.rs", "index.ts", "util.go", "handler.c", "README.md", "schema.sql")
_BLOCKED = (
    "src/{}/secrets/{}.txt", "docs/{}/{}.pem", "tests/{}/{}.key", "src/{}/.env.{}", "vendor/{}/{}.c", "build/{}/{}.o",
)  # fmt: skip


def _files(*roots: str) -> Iterator[str]:
    """Ever new paths below `roots`."""
    for number, root, package, file in zip(count(1), cycle(roots), cycle(_PACKAGES), cycle(_FILES), strict=False):
        yield f"{root}/{package}/v{number}/{file}"


def _refused() -> Iterator[str]:
    for number, form, package in zip(count(1), cycle(_BLOCKED), cycle(_PACKAGES), strict=False):
        yield form.format(package, f"n{number}")


def _operation(data: dict[str, Any]) -> Base:
    return validate_operation(ADAPTER.validate_python(data))


def _run(verdict: str, *argv: str, path: str = ".") -> Case:
    return Case(_operation({"kind": "run", "argv": list(argv)}), verdict, "run_bash", path, " ".join(argv))


def _file(verdict: str, kind: str, path: str) -> Case:
    more: dict[str, Any] = {
        "write": {"content": "x\n"}, "edit": {"old": "a", "new": "b"}, "grep": {"pattern": "TODO"},
    }.get(kind, {})  # fmt: skip
    operation = _operation({"kind": kind, "path": path, **more})
    return Case(operation, verdict, operation.capability, path)


def _fetch(verdict: str, host: str, number: int) -> Case:
    operation = _operation({"kind": "web_fetch", "url": f"https://{host}/page/{number}?q={number}"})
    return Case(operation, verdict, "web_fetch", ".", host=host)


def _run_allow(number: int, good: Iterator[str], bad: Iterator[str]) -> Case:
    path = next(good)
    argv = (
        ("git", "diff", "--stat", path), ("git", "log", "--oneline", path), ("pytest", "-q", path), ("make", path),
        ("git", "status", path), ("pytest", path, "-x"),
    )[number % 6]  # fmt: skip
    return _run("allow", *argv, path=path)


def _run_deny(number: int, good: Iterator[str], bad: Iterator[str]) -> Case:
    if number % 6 == 0:
        return _run("deny", "git", "push", "origin", f"topic-{number}")
    path = next(good) if number % 6 == 1 else next(bad)
    argv = (
        ("rm", path), ("git", "diff", path), ("pytest", "-q", path), ("make", path), ("cat", path),
    )[number % 6 - 1]  # fmt: skip
    return _run("deny", *argv, path=path)


def _run_ask(number: int, good: Iterator[str], bad: Iterator[str]) -> Case:
    path = next(good)
    argv = (
        ("make", "install", path), ("cat", path), ("grep", "-n", "TODO", path), ("python3", path), ("sed", "-n", "5p", path),
        ("mkdir", "-p", path),
    )[number % 6]  # fmt: skip
    return _run("ask", *argv, path=path)


def groups() -> dict[str, list[Case]]:
    """`EACH` distinct operations for each of: run, file and fetch, by verdict. No fetch is allowed by this policy."""
    good, bad = _files(*_ROOTS), _refused()
    numbers = range(EACH)
    kinds = ("read", "grep", "write")
    return {
        "run allow": [_run_allow(n, good, bad) for n in numbers],
        "run deny": [_run_deny(n, good, bad) for n in numbers],
        "run ask": [_run_ask(n, good, bad) for n in numbers],
        "file allow": [_file("allow", kinds[n % 3], next(good)) for n in numbers],
        # A search below a directory that is merely not listed is decided name by name: reads and writes only.
        "file deny": [_file("deny", kinds[n % 2 * 2], next(bad)) for n in numbers],
        "file ask": [_file("ask", "edit", next(good)) for n in numbers],
        "fetch deny": [_fetch("deny", f"h{n}.evil.example", n) for n in numbers],
        "fetch ask": [_fetch("ask", f"docs{n}.example.org", n) for n in numbers],
    }
