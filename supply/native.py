"""What of the trust base is not memory-safe, and what bytes reach it: the table of docs/memory-safety.md.

Promises: each package that a user gets with compiled code is in `WHEELS`, or `table` raises; versions are the lock's.
What the wheels bundle is `sbom.BUNDLED`'s; what the system brings is `SYSTEM`. The kernel interfaces that we call past
Python are read from the source of `nucleus/kernel`.
Does not: know the system that somebody runs on: `SYSTEM` has the versions of Debian 12, on which the tests run.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path

from supply import lock, sbom

# The processes that the page explains above its table.
GATE, GATEWAY, AUTHORITY, WORKLOAD, POD, PERSON = "gate", "gateway", "authority", "workload API", "pod", "the person"


@dataclass(frozen=True, slots=True)
class Piece:
    """One native piece.

    Attributes:
        name: as its package, or the system, calls it.
        version: that we have, or "" where nobody says it.
        language: of what is compiled.
        why: it is there.
        reached: which bytes that an attacker chooses reach it.
        confined: the process that whoever breaks it has, and nothing more.
    """

    name: str
    version: str
    language: str
    why: str
    reached: str
    confined: str


# name: (language, why, which attacker-controlled bytes, which process)
WHEELS = {
    "aiohttp": ("C", "HTTP/1.1 of the agent's door, web_fetch's client",
                "requests of the pod's agent; answers of web servers", f"{GATE}, {GATEWAY}"),
    "cffi": ("C", "cryptography's binding to OpenSSL", "none: it passes pointers", f"{GATE}, {GATEWAY}, {AUTHORITY}"),
    "cryptography": ("Rust, over OpenSSL", "X.509, ECDSA, AEAD, SSH's primitives",
                     "certificates and signatures of peers; an SSH server's key exchange",
                     f"{GATE}, {GATEWAY}, {AUTHORITY}"),
    "frozenlist": ("C", "aiohttp's lists of handlers", "none: only lists that aiohttp makes", f"{GATE}, {GATEWAY}"),
    "google-re2": ("C++", "matching in linear time", "patterns of the agent, and the files they are matched with", POD),
    "multidict": ("C", "aiohttp's and grpclib's headers", "header names and values, already split by a parser",
                  f"{GATE}, {GATEWAY}, {WORKLOAD}"),
    "propcache": ("C", "yarl's and aiohttp's cached properties", "none: only objects that aiohttp makes",
                  f"{GATE}, {GATEWAY}"),
    "protobuf": ("C (upb)", "messages of the SPIFFE Workload API",
                 "messages of any local process, their length bounded", WORKLOAD),
    "pydantic-core": ("Rust", "strict models of requests",
                      "requests of the pod's agent, after our checks of size, depth and duplicates", GATE),
    "python-pkcs11": ("C (Cython)", "PKCS#11, with the extra `pkcs11` and a token that was chosen alone",
                      "none: what a token answers, whose library is native code too", AUTHORITY),
    "pyyaml": ("C (libyaml)", "policies; the parser that we use is its Python one, the C one is loaded with it",
               "none: a policy is the person's, never the workspace's", GATE),
    "rpds-py": ("Rust", "jsonschema's maps, with the extra `tools` alone",
                "schemas and answers of the person's own MCP servers", PERSON),
    "yarl": ("C", "aiohttp's URLs", "URLs that our strict parser has taken; targets of requests", f"{GATE}, {GATEWAY}"),
}  # fmt: skip

SYSTEM = (
    Piece("CPython", "3.11.2", "C", "the interpreter; its json, ssl, sqlite3, zlib, hashlib and socket modules in C",
          "every byte from a pod passes its sockets, json and bytes", f"{GATE}, {GATEWAY}, {AUTHORITY}"),
    Piece("OpenSSL", "3.0", "C", "TLS, by Python's ssl (another copy than cryptography's)",
          "handshakes and records of pods and of web servers", f"{GATE}, {GATEWAY}"),
    Piece("SQLite", "3.40.1", "C", "the ledger", "fields of gates' frames, as bound values, never as SQL",
          AUTHORITY),
    Piece("glibc", "2.36", "C", "the C library; getaddrinfo for what a gateway connects to",
          "DNS answers, to its resolver", GATEWAY),
    Piece("zlib", "1.2.13", "C", "gzip of web servers' answers", "answers of web servers",
          f"{GATEWAY}; output capped as it streams"),
    Piece("Linux", "5.12", "C", "namespaces, seccomp, Landlock, cgroups, netlink: the walls themselves",
          "the system calls that the pod's seccomp filter lets through",
          "nothing: a bug in an allowed system call is an escape"),
    Piece("git", "2.39", "C", "status, diff, commit, push, each inside the pod", "any repository", POD),
)  # fmt: skip


def pieces(packages: list[lock.Package]) -> list[Piece]:
    """Wheels with compiled code, what they bundle, the system.

    Args:
        packages: what a user gets (`lock.runtime`).

    Raises:
        ValueError: a package has compiled code and no line, or a line and none.
    """
    native = {one.name: one for one in packages if one.native}
    if native.keys() != WHEELS.keys():
        raise ValueError(f"supply/native.py has not exactly what is native: {sorted(native.keys() ^ WHEELS.keys())}")
    found = []
    for name, package in sorted(native.items()):
        found.append(Piece(name, package.version, *WHEELS[name]))
        for owner, inside, language, version in sbom.BUNDLED:
            if owner == name:
                _, _, reached, confined = WHEELS[name]
                found.append(
                    Piece(f"{inside} (in {name})", version, language, f"what {name} stands on", reached, confined)
                )
    return [*found, *SYSTEM]


def table() -> str:
    """The table, for `make docs`."""
    rows = [
        "| piece | version | language | why | attackers' bytes that reach it | process that it could take |",
        "|---|---|---|---|---|---|",
    ]
    for piece in pieces(lock.runtime(lock.read())):
        at = "at least " if piece in SYSTEM else ""
        version = f"{at}{piece.version}" if piece.version else "the wheel does not say"
        rows.append(
            f"| {piece.name} | {version} | {piece.language} | {piece.why} | {piece.reached} | {piece.confined} |"
        )
    calls = ", ".join(f"`{name}`" for name in kernel_interfaces())
    return "\n".join(rows) + f"\n\nCalled by ctypes, in `src/nucleus/kernel` alone: {calls}.\n"


def kernel_interfaces(room: Path = lock.ROOT / "src/nucleus/kernel") -> list[str]:
    """Names of libc's functions and of system calls that the room calls by ctypes, sorted."""
    found = set()
    for path in room.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "_libc":
                found.add(node.attr)
            elif isinstance(node, ast.Call) and ast.unparse(node.func) == "_call":
                first = node.args[0]
                if isinstance(first, ast.Constant) and isinstance(first.value, str):
                    found.add(first.value)
    found.discard("syscall")
    return sorted(found | {"openat2", "seccomp"})  # by number: openat2.py, seccomp.py
