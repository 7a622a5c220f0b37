"""glob and grep against ripgrep and a plain scandir walk, on the same synthetic tree, in one run.

    python -m bench.search [--runs N] [--json]      (as root, for the pod)

Each is measured in turn, N rounds; wall time, medians and minima. "worker": the search as the worker runs it, in this
process, with the exclude list of the `codegen` profile. "door": the whole operation of a live pod, through gate and
record, with that profile. ripgrep is one process a search, `--json -j1`, hidden files included; it is installed from
Debian where that is possible and it is missing. The file cache is warm.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "tests"))

from bench.search.tree import FILES, NEEDLE, NEEDLES, build  # noqa: E402
from integration.held import Held  # noqa: E402
from integration.site import Site  # noqa: E402
from nucleus.hands import search  # noqa: E402
from nucleus.hands.root import Root  # noqa: E402
from nucleus.lattice.load import parse_policy  # noqa: E402
from nucleus.store.policies import profile_text  # noqa: E402

PATTERNS = {
    "literal": NEEDLE,
    "any case": "(?i)" + NEEDLE,
    "class first": "[a-z]+_the_hay = [0-9]+",
    "alternation": "(?:zebra|needle)_in_the",
    "no literal": "[q-z]{3}[0-9]{9}[a-f]+",
}
SMALL_FILES, SMALL_BYTES = 500, 2_500_000


def scandir_walk(top: str) -> int:
    """The floor of a glob: every entry, its kind, no order."""
    count, waiting = 0, [top]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                else:
                    count += 1
    return count


def ripgrep() -> str:
    """Where ripgrep is; installed where root can, "" where there is none."""
    if shutil.which("rg") is None and os.geteuid() == 0 and shutil.which("apt-get"):
        words = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", "ripgrep"]
        subprocess.run(words, stdout=subprocess.DEVNULL, check=False)
    return shutil.which("rg") or ""


class Calls:
    """What is measured, by name."""

    def __init__(self, site: Site, held: Held, program: str) -> None:
        self.top, self.held, self.program = site.workspace, held, program
        self.root = Root(str(self.top))
        self.exclude = list(parse_policy(profile_text("codegen"), "codegen").hidden_globs())

    def rg(self, pattern: str, path: str) -> Callable[[], int]:
        argv = [self.program, "--json", "-j1", "--hidden", "--no-ignore", "-e", pattern, str(self.top / path)]

        def call() -> int:
            done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, check=False)
            return done.stdout.count(b'{"type":"match"')

        return call

    def worker(self, kind: str, **fields: Any) -> Callable[[], int]:
        run = search.glob if kind == "glob" else search.grep

        def call() -> int:
            found = run(self.root, {"exclude": self.exclude, "details": True, **fields})
            return len(found["paths" if kind == "glob" else "matches"])

        return call

    def door(self, kind: str, **fields: Any) -> Callable[[], int]:
        def call() -> int:
            reply = self.held.operate(kind=kind, **fields)
            return len(reply["result"]["paths" if kind == "glob" else "matches"])

        return call

    def all(self) -> dict[str, Callable[[], int]]:
        calls: dict[str, Callable[[], int]] = {"scandir walk": lambda: scandir_walk(str(self.top / "big"))}
        names = {"pattern": "**/*.h", "path": "big"}
        calls["glob, worker"] = self.worker("glob", **names)
        calls["glob by mtime, worker"] = self.worker("glob", sort="mtime", **names)
        calls["glob gitignore, worker"] = self.worker("glob", gitignore=True, **names)
        calls["glob, door"] = self.door("glob", **names)
        for name, pattern in PATTERNS.items():
            for where, add in (("worker", self.worker), ("door", self.door)):
                calls[f"{name}, {where}"] = add("grep", pattern=pattern, path="big")
            if self.program:
                calls[f"{name}, rg"] = self.rg(pattern, "big")
        calls["500 files, worker"] = self.worker("grep", pattern=NEEDLE, path="small")
        calls["500 files, door"] = self.door("grep", pattern=NEEDLE, path="small")
        calls["an empty directory, door"] = self.door("grep", pattern=NEEDLE, path="empty")
        if self.program:
            calls["500 files, rg"] = self.rg(NEEDLE, "small")
        return calls


def measure(calls: dict[str, Callable[[], int]], runs: int) -> tuple[dict[str, list[float]], dict[str, int]]:
    counts = {name: call() for name, call in calls.items()}
    figures: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(runs):
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            figures[name].append((time.perf_counter() - started) * 1e3)
    return figures, counts


def verdicts(middle: dict[str, float]) -> list[str]:
    def ratio(one: str, other: str, aim: str) -> str:
        return f"{one}: {middle[one] / middle[other]:.2f} x {other} (aim {aim})" if other in middle else ""

    rows = [ratio(f"glob, {where}", "scandir walk", "2") for where in ("worker", "door")]
    rows += [ratio(f"{name}, {where}", f"{name}, rg", "2") for name in PATTERNS for where in ("worker", "door")]
    rows += [f"500 files, {where}: {middle[f'500 files, {where}']:.1f} ms (aim 10)" for where in ("worker", "door")]
    return [row for row in rows if row]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    program = ripgrep()
    site = Site(0)
    try:
        for name, sizes in (("big", ()), ("small", (SMALL_FILES, SMALL_BYTES)), ("empty", (0, 0))):
            (site.workspace / name).mkdir()
            build(site.workspace / name, *sizes)
        with Held(site) as held:
            figures, counts = measure(Calls(site, held, program).all(), options.runs)
    finally:
        site.close()
    for name in PATTERNS:
        found = {counts[key] for key in counts if key.startswith(f"{name}, ")}
        if found != ({0} if name == "no literal" else {NEEDLES}):
            raise SystemExit(f"{name}: the searches disagree: {found}")
    if counts["scandir walk"] != FILES:
        raise SystemExit("the tree is not what it should be")
    middle = {name: statistics.median(values) for name, values in figures.items()}
    if options.json:
        print(
            json.dumps(
                {name: {"median_ms": middle[name], "min_ms": min(v), "n": len(v)} for name, v in figures.items()}
            )
        )
        return
    print(f"{'ms':<28}{'median':>9}{'min':>9}{'results':>9}")
    for name, values in figures.items():
        print(f"{name:<28}{middle[name]:>9.2f}{min(values):>9.2f}{counts[name]:>9}")
    print()
    print("\n".join(verdicts(middle)))


if __name__ == "__main__":
    main()
