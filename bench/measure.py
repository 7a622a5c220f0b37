"""What every comparison shares: who is measured in turn, how often, what is said of the values, and in which words.

A `Group` is measured in rounds: each round takes every `Way` once, beginning with another one each time, so that what
else the machine does falls on all of them. `run` goes through all groups once per lap and over all laps again, so that
every figure has values from the whole length of the run. Medians, p25 to p75; a ratio is one of medians.

A way of ours that fails ends the run. A peer or floor that fails is dropped, with the error that it printed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import select
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
NUCLEUS = str(BIN / "nucleus")
TESTS = str(ROOT / "tests")  # the sites and worlds of the tests

ANSWER_S = 120
T = TypeVar("T")
Values = Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class Scale:
    """How much of everything: 0 tiny (a smoke test, seconds), 1 quick (about three minutes), 2 full."""

    level: int
    laps: int

    def pick(self, tiny: T, quick: T, full: T) -> T:
        return (tiny, quick, full)[self.level]


SCALES = {"tiny": Scale(0, 1), "quick": Scale(1, 2), "full": Scale(2, 4)}


@dataclass(frozen=True)
class Metric:
    """A row: its title, unit, whether less is better, who has no such thing, with the reason, and is it one of README's."""

    title: str
    unit: str = "ms"
    less: bool = True
    lacks: Mapping[str, str] = field(default_factory=dict)
    headline: bool = True


@dataclass(frozen=True)
class Way:
    """Somebody who is measured. `take` gives one value or several for each title; `kind` is ours, floor or peer."""

    name: str
    kind: str
    take: Callable[[], Values]


@dataclass
class Group:
    """What is measured in turn. `warm`: every lap begins with a round that does not count; else only the first does."""

    metrics: list[Metric]
    ways: list[Way]
    rounds: int = 1
    warm: bool = True
    absent: dict[str, str] = field(default_factory=dict)


Suite = Callable[[Scale], AbstractContextManager[list[Group]]]


def elapsed(call: Callable[[], object], scale: float = 1e3) -> float:
    """Milliseconds (or another unit) of wall time."""
    started = time.perf_counter()
    call()
    return (time.perf_counter() - started) * scale


def single(
    title: str,
    takes: Iterable[tuple[str, str, Callable[[], float]]],
    *,
    unit: str = "ms",
    less: bool = True,
    headline: bool = True,
    **more: Any,
) -> Group:
    """A group of one metric, its ways as (name, kind, what gives a value)."""

    def way(name: str, kind: str, take: Callable[[], float]) -> Way:
        return Way(name, kind, lambda: {title: [take()]})

    return Group([Metric(title, unit, less, headline=headline)], [way(*one) for one in takes], **more)


def command(argv: Sequence[str | Path], **keywords: Any) -> Callable[[], float]:
    """Milliseconds of a whole process, start to end; raises with what it printed when it fails."""
    words = [str(word) for word in argv]

    def call() -> float:
        started = time.perf_counter()
        done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=60, **keywords)
        taken = (time.perf_counter() - started) * 1e3
        if done.returncode != 0:
            said = (done.stderr or done.stdout).decode("utf-8", "replace").strip()
            raise Failed(f"exit {done.returncode}: {said[-400:]}")
        return taken

    return call


class Failed(Exception):
    """Somebody who was measured could not do it."""


class Worker:
    """A process that is asked by lines and answers each with one of JSON; the first one says that it is ready."""

    def __init__(self, argv: Sequence[str | Path], **keywords: Any) -> None:
        self._child = subprocess.Popen(
            [str(word) for word in argv], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, **keywords,
        )  # fmt: skip
        self.ready = self._line()

    def ask(self, line: str) -> Any:
        assert self._child.stdin is not None
        try:
            self._child.stdin.write(line + "\n")
            self._child.stdin.flush()
        except BrokenPipeError:
            pass  # it says why below
        return self._line()

    def _line(self) -> Any:
        assert self._child.stdout is not None
        if not select.select([self._child.stdout], [], [], ANSWER_S)[0]:  # one line an answer: nothing else is buffered
            self._child.kill()
            raise Failed(f"no answer within {ANSWER_S} s")
        line = self._child.stdout.readline()
        if not line:
            said = self._child.communicate(timeout=30)[1].strip()
            raise Failed(said[-400:] or "it ended without a word")
        value = json.loads(line)
        if isinstance(value, dict) and "failed" in value:
            raise Failed(value["failed"])
        return value

    def close(self) -> None:
        """Its standard input ends, and so does it."""
        if self._child.poll() is None:
            self._child.communicate(timeout=60)
        for pipe in (self._child.stdin, self._child.stdout, self._child.stderr):
            if pipe is not None:
                pipe.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def answer(asked: Callable[[str], Any], ready: Any = True) -> None:
    """A worker's own loop."""
    print(json.dumps(ready), flush=True)
    for line in sys.stdin:
        try:
            value = asked(line.strip())
        except Exception as error:
            value = {"failed": f"{type(error).__name__}: {error}"[:400]}
        print(json.dumps(value), flush=True)


# --- the run ---


def run(suites: Mapping[str, Suite], scale: Scale, say: Callable[[str], None] = lambda _: None) -> list[dict[str, Any]]:
    """Measure all suites together, lap by lap; the rows."""
    with ExitStack() as stack:
        groups: list[tuple[str, Group]] = []
        for name, suite in suites.items():
            say(f"{name}: set up")
            groups += [(name, group) for group in stack.enter_context(suite(scale))]
        values: list[dict[str, dict[str, list[float]]]] = [{} for _ in groups]
        for lap in range(scale.laps):
            for number, (name, group) in enumerate(groups):
                started = time.monotonic()
                _lap(group, lap, values[number], scale)
                say(f"lap {lap + 1} of {scale.laps}: {name}, {time.monotonic() - started:.1f} s")
        return [row for (name, group), found in zip(groups, values, strict=True) for row in rows(name, group, found)]


def _lap(group: Group, lap: int, found: dict[str, dict[str, list[float]]], scale: Scale) -> None:
    discard = scale.level > 0 and (lap == 0 or group.warm)
    for number in range(group.rounds + discard):
        turn = (lap * group.rounds + number) % max(len(group.ways), 1)
        for way in [*group.ways[turn:], *group.ways[:turn]]:
            if way.name in group.absent:
                continue
            try:
                taken = way.take()
            except (Failed, OSError, subprocess.SubprocessError) as error:
                if way.kind == "ours":
                    raise
                group.absent[way.name] = " ".join(str(error).split())[-300:]
                continue
            if number >= discard:
                for title, many in taken.items():
                    found.setdefault(title, {}).setdefault(way.name, []).extend(many)


def spread(values: Sequence[float]) -> dict[str, float]:
    """What is said of the values."""
    ordered = sorted(values)
    low, middle, high = statistics.quantiles(ordered, n=4, method="inclusive") if len(ordered) > 1 else ordered * 3
    p99 = ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
    return {
        "median": middle, "p25": low, "p75": high, "min": ordered[0], "max": ordered[-1], "p99": p99, "n": len(ordered)
    }  # fmt: skip


def rows(suite: str, group: Group, found: dict[str, dict[str, list[float]]]) -> list[dict[str, Any]]:
    """One a metric. Each other's `ratio` is our first way's median by theirs: below 1 we are quicker, in times."""
    out = []
    for metric in group.metrics:
        by_name = found.get(metric.title, {})
        ways = [
            {"name": way.name, "kind": way.kind, **spread(by_name[way.name])}
            for way in group.ways
            if by_name.get(way.name) and way.name not in metric.lacks
        ]
        ours = next((way["median"] for way in ways if way["kind"] == "ours"), None)
        for way in ways:
            if way["kind"] != "ours" and ours is not None:
                way["ratio"] = ours / way["median"]
        row = {
            "suite": suite,
            "title": metric.title,
            "unit": metric.unit,
            "less": metric.less,
            "headline": metric.headline,
        }
        out.append({**row, "ways": ways, "absent": {**group.absent, **metric.lacks}})
    return out


# --- words ---


def number(value: float) -> str:
    """Three digits."""
    if value >= 99.95:
        return f"{value:,.0f}"
    if value >= 9.995:
        return f"{value:.1f}"
    return f"{value:.2f}" if value >= 0.0995 else f"{value:.4f}"


def text_table(measured: Iterable[Mapping[str, Any]]) -> str:
    """For a terminal."""
    lines = []
    for row in measured:
        lines.append(f"{row['title']}, {row['unit']}{'' if row['less'] else ' (more is better)'}")
        for way in row["ways"]:
            ratio = f"  Nucleus / it: {way['ratio']:.2f}" if "ratio" in way else ""
            lines.append(
                f"  {way['kind']:<6}{way['name']:<34}{number(way['median']):>10}"
                f"  {number(way['p25']) + ' to ' + number(way['p75']):<22}{way['n']:>6}{ratio}"
            )
        lines += [f"  not measured: {name}: {why}" for name, why in row["absent"].items()]
    return "\n".join(lines)


def markdown_table(measured: Sequence[Mapping[str, Any]]) -> str:
    """For README: a line a row, each cell a median with its p25 to p75."""
    lines = ["| what | Nucleus | floor | peers |", "|---|---|---|---|"]
    why: dict[tuple[str, str], list[str]] = {}
    for row in measured:
        cells = {
            kind: "<br>".join(_cell(way, row["unit"]) for way in row["ways"] if way["kind"] == kind)
            for kind in ("ours", "floor", "peer")
        }
        lines.append(f"| {row['title']} | {cells['ours']} | {cells['floor'] or '—'} | {cells['peer'] or '—'} |")
        for name, reason in row["absent"].items():
            why.setdefault((name, reason), []).append(row["title"])
    for (name, reason), titles in why.items():
        shown = reason.replace("|", "\\|").replace("`", "'")
        lines.append(f"\nNot measured: {name} ({'; '.join(titles)}): `{shown}`")
    return "\n".join(lines) + "\n"


def _cell(way: Mapping[str, Any], unit: str) -> str:
    mark = "**" if way["kind"] == "ours" else ""
    ratio = f", ×{way['ratio']:.2f}" if "ratio" in way else ""
    return (
        f"{way['name']} {mark}{number(way['median'])}{mark} {unit} ({number(way['p25'])}–{number(way['p75'])}){ratio}"
    )


def machine() -> dict[str, Any]:
    """Of what class it is; nothing that names it."""
    model = "unknown processor"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": model, "cores": len(os.sched_getaffinity(0)), "kernel": platform.release().partition("-")[0],
        "memory_gib": round(memory / 2**30), "python": platform.python_version(), "load": os.getloadavg()[0],
    }  # fmt: skip


def arguments(name: str, doc: str | None) -> argparse.ArgumentParser:
    """What every program here takes."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {name}", description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scale", choices=list(SCALES), default="quick")
    parser.add_argument("--laps", type=int, default=0, help="times through all of it (by the scale)")
    parser.add_argument("--json", action="store_true", help="the figures as JSON")
    return parser


def chosen(options: argparse.Namespace) -> Scale:
    scale = SCALES[options.scale]
    return Scale(scale.level, options.laps) if options.laps > 0 else scale


def program(name: str, doc: str | None, suite: Suite) -> int:
    """One suite as a program of its own."""
    options = arguments(f"bench.{name}", doc).parse_args()
    measured = run({name: suite}, chosen(options), lambda text: print(text, file=sys.stderr))
    print(json.dumps(measured, indent=1) if options.json else text_table(measured))
    return 0
