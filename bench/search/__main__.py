"""glob and grep against ripgrep and a plain scandir walk, on the same synthetic tree, in one run.

    python -m bench.search [--scale quick] [--laps N] [--json]      (as root, for the pod)

"worker": the search as the worker runs it, in this
process, with the exclude list of the `codegen` profile. "door": the whole operation of a live pod, through gate and
record, with that profile. ripgrep is one process a search, `--json -j1`, hidden files included. The file cache is warm.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from bench import measure, peers
from bench.measure import TESTS, Group, Scale, single
from bench.search.tree import BYTES, FILES, NEEDLE, NEEDLES, build

sys.path.insert(0, TESTS)

from integration.held import Held
from integration.site import Site
from nucleus.hands import search
from nucleus.hands.root import Root
from nucleus.lattice.load import parse_policy
from nucleus.store.policies import profile_text

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

    def globs(self) -> list[tuple[str, str, Callable[[], int]]]:
        """(name, kind, call)"""
        names = {"pattern": "**/*.h", "path": "big"}
        return [
            ("at the door", "ours", self.door("glob", **names)),
            ("in the worker", "ours", self.worker("glob", **names)),
            ("worker, by mtime", "ours", self.worker("glob", sort="mtime", **names)),
            ("worker, gitignore", "ours", self.worker("glob", gitignore=True, **names)),
            ("scandir walk", "floor", lambda: scandir_walk(str(self.top / "big"))),
        ]

    def greps(self, pattern: str, path: str) -> list[tuple[str, str, Callable[[], int]]]:
        """(name, kind, call)"""
        calls = [
            ("at the door", "ours", self.door("grep", pattern=pattern, path=path)),
            ("in the worker", "ours", self.worker("grep", pattern=pattern, path=path)),
        ]
        return calls + ([("ripgrep -j1", "peer", self.rg(pattern, path))] if self.program else [])


def checked(call: Callable[[], int], wanted: int | None) -> Callable[[], float]:
    """Milliseconds; that the number of results is the one that is right is looked at each time."""

    def take() -> float:
        started = time.perf_counter()
        found = call()
        taken = (time.perf_counter() - started) * 1e3
        if wanted is not None and found != wanted:
            raise AssertionError(f"{found} results, not {wanted}")
        return taken

    return take


@contextmanager
def suite(scale: Scale) -> Iterator[list[Group]]:
    program = shutil.which("rg") or ""
    absent = {} if program else {"ripgrep": peers.absent("rg")}
    site = Site(0)
    sizes = scale.pick((60, 100_000), (FILES, BYTES), (FILES, BYTES))
    small = scale.pick((30, 50_000), (SMALL_FILES, SMALL_BYTES), (SMALL_FILES, SMALL_BYTES))
    rounds = scale.pick(1, 3, 4)
    try:
        for name, (files, size) in (("big", sizes), ("small", small)):
            (site.workspace / name).mkdir()
            build(site.workspace / name, files, size)
        with Held(site) as held:
            calls = Calls(site, held, program)
            found = [
                (name, kind, checked(call, sizes[0] if kind == "floor" else None)) for name, kind, call in calls.globs()
            ]
            groups = [single(f"glob `**/*.h`, {sizes[0]:,} files", found, rounds=rounds)]
            for words, pattern in PATTERNS.items():
                wanted = 0 if words == "no literal" else min(NEEDLES, sizes[0])
                takes = [(name, kind, checked(call, wanted)) for name, kind, call in calls.greps(pattern, "big")]
                title, shown = f"grep, {sizes[1] / 1e6:.0f} MB, {words}", words in ("literal", "no literal")
                groups.append(single(title, takes, rounds=rounds, absent=dict(absent), headline=shown))
            takes = [(name, kind, checked(call, NEEDLES)) for name, kind, call in calls.greps(NEEDLE, "small")]
            groups.append(single(f"grep, {small[0]} files, literal", takes, rounds=rounds, absent=dict(absent)))
            yield groups
    finally:
        site.close()


def main() -> int:
    for name, why in peers.install().items():
        print(f"not installed: {name}: {why}", file=sys.stderr)
    return measure.program("search", __doc__, suite)


if __name__ == "__main__":
    sys.exit(main())
