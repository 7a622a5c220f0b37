"""The audit log against its floors, interleaved in one run: durable appends, verification, readers, memory.

    python -m bench.audit [--scale quick] [--laps N] [--gigabyte]

floors   append: a bare loop that writes made lines and calls fdatasync after every 64
         verify: a bare loop over the same lines that hashes each and compares it with the hash in the line
Each round does ours and the floor one after the other on the same disk (the working directory's).
`--gigabyte` writes a log of 1 GB and shows every reader's peak memory (RSS of its own process) and throughput.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.measure import Group, Scale, arguments, chosen, run, single, text_table
from nucleus.audit.chain import Head, extend
from nucleus.audit.record import HASH_TAIL, Record
from nucleus.audit.verify import Verifier
from nucleus.store.audit_log import AuditLog

BATCH = 64
COUNT = 20_000
CHUNK = 1 << 20


def record(number: int) -> Record:
    """As a gate writes one: an allowed read's outcome."""
    return Record(
        "outcome", 1_795_459_815_000_000_000 + number, number, "pod-51da589267", f"{number:032x}",
        "spiffe://nucleus.local/ns/default/sa/agent-pod-51da589267",
        {"kind": "read", "path": f"src/file{number % 1000}.py", "offset": 0, "limit": 65_536}, "2c1c353f26d3debf" * 4,
        {"verdict": "allow", "rule": "capabilities.read_files", "detail": "read_files: always", "obligations": [],
         "approver": ""},
        {"status": "ok", "bytes": 1_234}, {"reservation": f"{number:032x}", "reserved": 6_200, "charged": 150},
    )  # fmt: skip


def lines(count: int) -> list[bytes]:
    """A chain."""
    head, made = Head(), []
    for number in range(count):
        head, line = extend(head, record(number))
        made.append(line)
    return made


def append_ours(directory: str, made: list[Record]) -> None:
    """Encode, chain, tree, write, sync: as the authority does."""
    log = AuditLog(directory)
    for at in range(0, len(made), BATCH):
        for one in made[at : at + BATCH]:
            log.stage(one)
        log.write()
    log.close()


def append_floor(directory: str, made: list[bytes]) -> None:
    """The disk alone."""
    fd = os.open(f"{directory}/floor", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for at in range(0, len(made), BATCH):
        os.write(fd, b"".join(made[at : at + BATCH]))
        os.fdatasync(fd)
    os.close(fd)


def verify_ours(path: str, *, strict: bool = True) -> None:
    """What `nucleus-audit verify` does to a line; with --quick unless `strict`."""
    verifier = Verifier(strict=strict)
    with open(path, "rb", buffering=0) as file:
        while chunk := file.read(CHUNK):
            verifier.feed(chunk)
    if not verifier.finish().ok:
        raise SystemExit("the bench's log does not verify")


def verify_floor(path: str) -> None:
    """The hash alone."""
    sha256 = hashlib.sha256
    with open(path, "rb", buffering=CHUNK) as file:
        for line in file:
            if sha256(line[: -HASH_TAIL - 1]).hexdigest().encode() != line[-67:-3]:
                raise SystemExit("the bench's log does not verify")


@contextmanager
def suite(scale: Scale) -> Iterator[list[Group]]:
    """One log per take; its verification is of the last one."""
    count = scale.pick(500, 10_000, COUNT)
    made, encoded = [record(number) for number in range(count)], lines(count)
    with tempfile.TemporaryDirectory(dir=".") as directory:
        read = f"{directory}/read"
        os.mkdir(read)
        append_ours(read, made)
        log = f"{read}/audit.jsonl"

        def rate(work: Callable[[], None]) -> float:
            started = time.perf_counter()
            work()
            return count / (time.perf_counter() - started)

        def appended(work: Callable[[str, Any], None], what: Any) -> float:
            with tempfile.TemporaryDirectory(dir=directory) as fresh:
                return rate(lambda: work(fresh, what))

        yield [
            single(
                "audit: records appended, durable in batches of 64",
                [
                    ("encode, chain, tree, write", "ours", lambda: appended(append_ours, made)),
                    ("write made lines, fdatasync", "floor", lambda: appended(append_floor, encoded)),
                ],
                unit="/s", less=False, rounds=scale.pick(1, 2, 2), warm=False,
            ),
            single(
                "audit: records verified",
                [
                    ("`verify`", "ours", lambda: rate(lambda: verify_ours(log))),
                    ("`verify --quick`", "ours", lambda: rate(lambda: verify_ours(log, strict=False))),
                    ("SHA-256 of each line", "floor", lambda: rate(lambda: verify_floor(log))),
                ],
                unit="/s", less=False, rounds=scale.pick(1, 2, 2), warm=False,
            ),
        ]  # fmt: skip


def gigabyte(size: int = 1_000_000_000) -> None:
    """Memory that does not grow: every reader on a log that is larger than it may hold."""
    program = str(Path(sys.executable).parent / "nucleus-audit")
    with tempfile.TemporaryDirectory(dir=".") as directory:
        path, head, number, done = f"{directory}/audit.jsonl", Head(), 0, 0
        with open(path, "wb", buffering=CHUNK) as file:
            while done < size:
                head, line = extend(head, record(number))
                number, done = number + 1, done + file.write(line)
        print(f"{number:,} records, {done:,} bytes")
        for argv in (
            ["verify", path, "--consistent"], ["verify", path, "--consistent", "--quick"], ["stats", path, "--json"], ["query", path, "--kind", "denied"],
            ["tail", path, "--lines", "10"], ["export", path, "--format", "csv"],
            ["export", path, "--format", "ocsf"],
        ):  # fmt: skip
            start = time.perf_counter()
            pid = subprocess.Popen([program, *argv], stdout=subprocess.DEVNULL)
            _, status, used = os.wait4(pid.pid, 0)
            pid.returncode = os.waitstatus_to_exitcode(status)
            took = time.perf_counter() - start
            said = {"command": " ".join([argv[0], *argv[2:]]), "exit": pid.returncode, "seconds": round(took, 1)}
            said |= {"mb_per_s": round(done / took / 1e6, 1), "peak_rss_mb": round(used.ru_maxrss / 1024, 1)}
            print(json.dumps(said), flush=True)


def main() -> int:
    """See the module."""
    parser = arguments("bench.audit", __doc__)
    parser.add_argument("--gigabyte", action="store_true")
    options = parser.parse_args()
    if options.gigabyte:
        gigabyte()  # first: a child's peak begins with what this process has
    measured = run({"audit": suite}, chosen(options))
    print(json.dumps(measured, indent=1) if options.json else text_table(measured))
    print(f"this process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB at most", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
