"""Cost against load, as curves: the audit log as it grows, clients at once, and trees that are searched; pods are in `pods`.

    python -m bench.curves audit-curve|clients|tree|pods [--scale quick]

Each point is a median with its p25 to p75 where there are several values; whoever is compared takes turns at each load.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import json
import os
import ssl
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from bench import measure
from bench.measure import TESTS, Scale, spread

Points = list[list[float]]
WARM_S = 0.15
NAMES = "**/vector_*.h"  # few enough for one answer, whatever the tree


def curve(name: str, title: str, x: str, y: str, log: list[str], series: dict[str, Points]) -> dict[str, Any]:
    drawn = [{"name": one, "points": points} for one, points in series.items() if points]
    return {"name": name, "title": title, "x": x, "y": y, "log": log, "series": drawn}


def point(x: float, values: list[float]) -> list[float]:
    found = spread(values)
    return [x, found["median"], found["p25"], found["p75"]]


# --- the audit log ---


def audit(scale: Scale) -> list[dict[str, Any]]:
    """Microseconds of a record appended to a log of so many, in durable batches of 64; seconds to verify all of it."""
    from bench.audit import BATCH, record
    from nucleus.audit.chain import Head, extend
    from nucleus.store.audit_log import AuditLog

    marks = scale.pick((64, 640), (1_000, 10_000, 100_000), (1_000, 10_000, 100_000, 1_000_000))
    appended: dict[str, Points] = {"chain, tree, write, sync": [], "write and sync alone": []}
    verified: dict[str, Points] = {"verify": [], "verify --quick": [], "SHA-256 of each line": []}
    with tempfile.TemporaryDirectory(dir=".") as directory:
        log, bare = AuditLog(directory), os.open(f"{directory}/bare", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        number, head = 0, Head()
        for mark in marks:
            kept: dict[str, list[float]] = {name: [] for name in appended}
            while number < mark:
                batch = [record(one) for one in range(number, min(number + BATCH, mark))]
                started = time.perf_counter()
                for one in batch:
                    log.stage(one)
                log.write()
                middle = time.perf_counter()
                late = mark - number <= 6_400  # the last hundred batches before the mark
                if late:
                    lines = []
                    for one in batch:
                        head, line = extend(head, one)
                        lines.append(line)
                    begun = time.perf_counter()
                    os.write(bare, b"".join(lines))
                    os.fdatasync(bare)
                    kept["write and sync alone"].append((time.perf_counter() - begun) * 1e6 / len(batch))
                    kept["chain, tree, write, sync"].append((middle - started) * 1e6 / len(batch))
                number += len(batch)
            for name, values in kept.items():
                appended[name].append(point(mark, values))
            for name, check in _verifiers(directory).items():
                verified[name].append([mark, measure.elapsed(check, 1)])
        log.close()
        os.close(bare)
    every = "records in the log"
    return [
        curve("audit-append", "A record appended to the audit log", every, "microseconds a record, durable in batches of 64", ["x"], appended),
        curve("audit-verify", "The audit log verified", every, "seconds for all of it", ["x", "y"], verified),
    ]  # fmt: skip


def _verifiers(directory: str) -> dict[str, Callable[[], None]]:
    """Over all of the log's files, closed segments first."""
    import hashlib

    from bench.audit import CHUNK, HASH_TAIL
    from nucleus.audit.verify import Verifier
    from nucleus.store.audit_log import FILE
    from nucleus.store.segments import closed

    paths = [segment.path for segment in closed(f"{directory}/{FILE}")] + [f"{directory}/{FILE}"]

    def ours(*, strict: bool) -> None:
        verifier = Verifier(strict=strict)
        for path in paths:
            with open(path, "rb", buffering=0) as file:
                while chunk := file.read(CHUNK):
                    verifier.feed(chunk)
        if not verifier.finish().ok:
            raise SystemExit("the bench's log does not verify")

    def floor() -> None:
        for path in paths:
            with open(path, "rb", buffering=CHUNK) as file:
                for line in file:
                    if hashlib.sha256(line[: -HASH_TAIL - 1]).hexdigest().encode() != line[-67:-3]:
                        raise SystemExit("the bench's log does not verify")

    return {
        "verify": lambda: ours(strict=True),
        "verify --quick": lambda: ours(strict=False),
        "SHA-256 of each line": floor,
    }


# --- clients at once ---


def clients(scale: Scale) -> list[dict[str, Any]]:
    """Requests a second, and how long one takes, from so many connections that each ask again at once."""
    from bench.identity import REQUEST, Pair
    from bench.streaming import Served

    counts = scale.pick((1, 4), (1, 4, 16, 64, 128), (1, 2, 4, 8, 16, 32, 64, 128))
    seconds, rounds = scale.pick(0.05, 0.5, 0.8), scale.pick(1, 1, 3)
    body = b'{"path":"kb.txt"}'
    read = (
        b"POST /v1/read HTTP/1.1\r\nHost: gate\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        % len(body)
    )
    names = ("GET at the door", "bare aiohttp", "read, whole gate")
    rates: dict[str, Points] = {name: [] for name in names}
    waits: dict[str, Points] = {f"{name}, {part}": [] for name in names for part in ("p50", "p99")}
    with closing(Pair()) as pair, closing(Served()) as served:
        address, context = served.address()
        targets = {
            "GET at the door": (pair.door.address, pair.context, REQUEST),
            "bare aiohttp": (pair.bare.address, pair.context, REQUEST),
            "read, whole gate": (address, context, read + body),
        }
        for count in counts:
            found: dict[str, dict[str, list[float]]] = {name: {"rate": [], "p50": [], "p99": []} for name in names}
            for _ in range(rounds):
                for name, target in targets.items():
                    taken, rate = asyncio.run(_asked(*target, count, seconds))
                    found[name]["rate"].append(rate)
                    summary = spread(taken)
                    found[name]["p50"].append(summary["median"])
                    found[name]["p99"].append(summary["p99"])
            for name in names:
                rates[name].append(point(count, found[name]["rate"]))
                for part in ("p50", "p99"):
                    waits[f"{name}, {part}"].append(point(count, found[name][part]))
    return [
        curve("clients-rate", "Requests at the gate's door", "connections that ask at once", "requests a second", ["x"], rates),
        curve("clients-wait", "How long a request takes", "connections that ask at once", "milliseconds", ["x", "y"], waits),
    ]  # fmt: skip


async def _asked(
    address: tuple[str, int], context: ssl.SSLContext, request: bytes, count: int, seconds: float
) -> tuple[list[float], float]:
    """Milliseconds of every request that began within `seconds`, after a while that does not count; answers a second."""
    pairs = []
    for at in range(0, count, 16):  # new connections cost more than what is measured
        some = (asyncio.open_connection(*address, ssl=context, server_hostname="") for _ in range(min(16, count - at)))
        pairs += await asyncio.gather(*some)
    begin = time.perf_counter() + min(WARM_S, seconds)
    end, ended, taken = begin + seconds, [begin], list[float]()

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        started = time.perf_counter()
        while started < end or not taken:
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n", 1)[0])
            reply = await reader.readexactly(length)
            if not head.startswith(b"HTTP/1.1 200"):
                raise measure.Failed(f"{head[:60]!r} {reply[:200]!r}")
            done = time.perf_counter()
            if begin <= started:
                taken.append((done - started) * 1e3)
                ended[0] = done
            started = done

    try:
        await asyncio.gather(*(one(*pair) for pair in pairs))
    finally:
        for _, writer in pairs:
            writer.transport.abort()
    return taken, len(taken) / (ended[0] - begin)


# --- trees ---


def tree(scale: Scale) -> list[dict[str, Any]]:
    """Milliseconds of a glob and a grep below a directory of so many files, of 4 KB on average."""
    import shutil

    from bench.search.__main__ import NEEDLE, Calls, scandir_walk
    from bench.search.tree import build

    sys.path.insert(0, TESTS)
    from integration.held import Held
    from integration.site import Site

    sizes, rounds = scale.pick((20, 40), (100, 800, 6_400), (100, 400, 1_600, 6_400, 25_600)), scale.pick(1, 3, 7)
    globs: dict[str, Points] = {name: [] for name in ("at the door", "in the worker", "scandir walk")}
    greps: dict[str, Points] = {name: [] for name in ("at the door", "in the worker", "ripgrep -j1")}
    site = Site(0)
    try:
        for size in sizes:
            (site.workspace / f"t{size}").mkdir()
            build(site.workspace / f"t{size}", size, size * 4_096)
        with Held(site) as held:
            calls = Calls(site, held, shutil.which("rg") or "")
            for size in sizes:
                found = [
                    calls.door("glob", pattern=NAMES, path=f"t{size}"),
                    calls.worker("glob", pattern=NAMES, path=f"t{size}"),
                ]
                found.append(lambda top=f"{site.workspace}/t{size}": scandir_walk(top))
                _measured(globs, found, size, rounds)
                _measured(greps, [call for _, _, call in calls.greps(NEEDLE, f"t{size}")], size, rounds)
    finally:
        site.close()
    return [
        curve("tree-glob", f"glob {NAMES}", "files in the tree", "milliseconds", ["x", "y"], globs),
        curve("tree-grep", "grep of a word, files of 4 KB", "files in the tree", "milliseconds", ["x", "y"], greps),
    ]


def _measured(lines: dict[str, Points], calls: list[Callable[[], Any]], at: float, rounds: int) -> None:
    values: dict[str, list[float]] = {name: [] for name in lines}
    for number in range(rounds + 1):
        for name, call in zip(lines, calls, strict=False):  # without ripgrep there is one fewer
            taken = measure.elapsed(call)
            if number or rounds == 1:
                values[name].append(taken)
    for name, found in values.items():
        if found:
            lines[name].append(point(at, found))


def pods(scale: Scale) -> list[dict[str, Any]]:
    """Milliseconds to make one more, and MiB of each: `bench.pods`."""
    return importlib.import_module("bench.pods").curve(scale)


CURVES: dict[str, Callable[[Scale], list[dict[str, Any]]]] = {
    "pods": pods, "audit-curve": audit, "clients": clients, "tree": tree
}  # fmt: skip


def lines(drawn: list[dict[str, Any]]) -> Iterator[str]:
    """As numbers, for a terminal."""
    for one in drawn:
        yield f"{one['title']}: {one['y']}, by {one['x']}"
        for series in one["series"]:
            yield f"  {series['name']:<28}" + "  ".join(
                f"{at[0]:,.0f}: {measure.number(at[1])}" for at in series["points"]
            )


def main() -> int:
    from bench.plot import chart

    parser = argparse.ArgumentParser(prog="python -m bench.curves", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("curve", choices=list(CURVES))
    parser.add_argument("--scale", choices=list(measure.SCALES), default="quick")
    parser.add_argument("--out", type=Path, help="a directory for the plots")
    options = parser.parse_args()
    with ExitStack():
        drawn = CURVES[options.curve](measure.SCALES[options.scale])
    print("\n".join(lines(drawn)))
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        for one in drawn:
            (options.out / f"{one['name']}.svg").write_text(chart(one))
        (options.out / f"{options.curve}.json").write_text(json.dumps(drawn))
    return 0


if __name__ == "__main__":
    sys.exit(main())
