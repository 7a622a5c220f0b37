"""Shipping the audit log to a file: `nucleus-audit ship` against a copy that syncs as often and looks at nothing.

    python -m bench.ship [--rounds N] [--records N] [--postgres URL]

Whole processes, interleaved, in one run: ours sees the log grow (tree, signatures), verifies every record, keeps its
cursor durably for each batch of 1,000 and appends; the floor reads lines, and appends and syncs 1,000 at a time. With
--postgres the same log there, too.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from nucleus.audit.record import Record
from nucleus.store.audit_log import AuditLog
from nucleus.store.checkpoints import Checkpoints

PROGRAM = str(Path(sys.executable).parent / "nucleus-audit")
FLOOR = """
import os, sys
out = os.open(sys.argv[2], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
def flush(lines):
    os.write(out, b"".join(lines)); os.fdatasync(out); lines.clear()
lines = []
for line in open(sys.argv[1], "rb"):
    lines.append(line)
    if len(lines) == 1000:
        flush(lines)
flush(lines)
"""


def made(directory: str, records: int) -> str:
    """A log with so many records, signed every 256."""
    log, checkpoints = AuditLog(directory), Checkpoints(directory, "nucleus.local")
    for number in range(records):
        log.stage(Record(
            event="outcome", time_ns=time.time_ns(), mono_ns=time.monotonic_ns(), pod="pod-0123456789",
            request_id=f"{number:032x}", principal="spiffe://nucleus.local/pod/pod-0123456789/agent",
            operation={"kind": "read", "path": f"src/module/file{number}.py"}, operation_hash="0" * 64,
            decision={"verdict": "allow", "rule": "capabilities.read_files"},
            outcome={"status": "ok", "bytes": 4_096, "duration_ns": 400_000}, context={"reservation": f"{number:032x}"},
        ))  # fmt: skip
        if log.staged == 256:
            log.write()
            checkpoints.sign(log.tree)
    log.write()
    checkpoints.sign(log.tree)
    path = log.path
    log.close()
    checkpoints.close()
    return path


def timed(argv: list[str]) -> float:
    """Seconds of a whole process."""
    started = time.perf_counter()
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def main() -> int:
    """Print the figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--records", type=int, default=20_000)
    parser.add_argument("--postgres", default="")
    given = parser.parse_args()
    directory = tempfile.mkdtemp(prefix="nucleus-bench-ship-")
    try:
        path = made(directory, given.records)
        size = os.path.getsize(path)
        results: dict[str, list[float]] = {"floor": [], "ours": [], "postgres": []}
        for number in range(given.rounds):
            state, copy = f"{directory}/state{number}", f"{directory}/copy{number}"
            os.mkdir(state, 0o700)
            ours = [PROGRAM, "ship", "--state", state, "--log", path, "--to"]
            results["floor"].append(timed([sys.executable, "-I", "-c", FLOOR, path, f"{copy}.floor"]))
            results["ours"].append(timed([*ours, f"file:{copy}"]))
            if given.postgres:
                shutil.rmtree(state)
                os.mkdir(state, 0o700)
                mark = "&" if "?" in given.postgres else "?"
                name = f"bench_ship_{os.urandom(4).hex()}"
                results["postgres"].append(timed([*ours, f"{given.postgres}{mark}schema={name}"]))
        print(f"{given.records} records, {size / 1e6:.1f} MB")
        for name, seconds in results.items():
            if seconds:
                median = statistics.median(seconds)
                ratio = statistics.median([mine / floor for mine, floor in zip(seconds, results["floor"], strict=True)])
                rate = given.records / median
                print(f"{name:10} {median:6.2f} s  {rate:9,.0f} records/s  {ratio:5.1f} x floor")
    finally:
        shutil.rmtree(directory)
    return 0


if __name__ == "__main__":
    sys.exit(main())
