"""One decision by Nucleus and by four policy engines, interleaved in one run.

    python -m bench.decision [--scale quick] [--laps N] [--json]

 1. every engine judges every operation of `cases`; one verdict that differs ends the run
 2. each round, each engine in turn decides a group's 120 distinct operations, four times over (so that waking up after
    another engine weighs little); a round's figure is the mean of that pass, per decision
 3. `parse_policy` is timed on the bundled profiles and on the benchmark's policy, imports excluded

All engines are in one process, in the peers' environment `.venv-bench`, which the first run makes; one that does not
install is named. Garbage collection is off while a pass is timed, as in timeit, and done between passes.
"""

from __future__ import annotations

import gc
import importlib
import os
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from bench import peers
from bench.measure import ROOT, Group, Metric, Scale, Way, Worker, answer, program

CYCLES = 4
KINDS = {"run": "one decision: a command", "file": "one decision: a file", "fetch": "one decision: a fetch"}
LOADS = {"profiles": "a bundled profile's text parsed", "bench": "a policy of twenty rules parsed"}
SHOWN = {"nucleus": ("`decide`", "ours"), "floor": ("a few lines of Python, no reason given", "floor")}


def check(judge: Any, inputs: list[Any], cases: list[Any], engine: str) -> None:
    for given, case in zip(inputs, cases, strict=True):
        got = judge(given)
        if got != case.verdict:
            raise SystemExit(f"{engine} says {got}, expected {case.verdict}: {case.operation!r}")


def one_pass(judge: Any, inputs: list[Any]) -> float:
    """Microseconds per decision."""
    gc.collect(0)
    gc.disable()
    started = time.perf_counter_ns()
    for _ in range(CYCLES):
        for given in inputs:
            judge(given)
    elapsed = time.perf_counter_ns() - started
    gc.enable()
    return elapsed / len(inputs) / CYCLES / 1e3


class Engines:
    """All that can be imported, checked against each other."""

    def __init__(self) -> None:
        from bench.decision.cases import groups
        from bench.decision.peers import PEERS

        self.absent: dict[str, str] = {}
        self.ready: dict[str, dict[str, tuple[Any, list[Any]]]] = {}
        for name, (module, make) in PEERS.items():
            try:
                importlib.import_module(module)
            except ImportError as error:
                self.absent[name] = str(error)
                continue
            self.ready[name] = {group: make(cases) for group, cases in groups().items()}
            for group, cases in groups().items():
                check(*self.ready[name][group], cases, name)

    def ask(self, line: str) -> Any:
        """`NAME KIND`: a pass over each group of the kind, by group; or `load WHICH`."""
        name, _, kind = line.rpartition(" ")
        if name == "load":
            return _load(kind)
        return {group: one_pass(*ready) for group, ready in self.ready[name].items() if group.startswith(kind)}


def _load(which: str) -> float:
    """Milliseconds to parse one policy's text, on average of those there are."""
    from bench.decision.cases import POLICY
    from nucleus.lattice.load import parse_policy

    profiles = sorted((ROOT / "src/nucleus/lattice/profiles").glob("*.yaml"))
    texts = [(path.name, path.read_text()) for path in profiles] if which == "profiles" else [("bench", POLICY)]
    started = time.perf_counter()
    for name, text in texts:
        parse_policy(text, name)
    return (time.perf_counter() - started) * 1e3 / len(texts)


@contextmanager
def suite(scale: Scale) -> Iterator[list[Group]]:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}
    with ExitStack() as stack:
        worker = stack.enter_context(Worker([_python(), "-m", "bench.decision", "--worker"], env=environment, cwd=ROOT))
        absent = {name: f"not installed: {why}" for name, why in worker.ready["absent"].items()}
        rounds = scale.pick(1, 6, 8)

        def way(name: str, kind: str, title: str) -> Way:
            shown, role = SHOWN.get(name, (name, "peer"))
            return Way(shown, role, lambda: {title: [statistics.mean(worker.ask(f"{name} {kind}").values())]})

        def load(which: str, title: str) -> Way:
            return Way("`parse_policy`", "ours", lambda: {title: [worker.ask(f"load {which}")]})

        yield [
            Group(
                [Metric(title, "µs")],
                [way(name, kind, title) for name in worker.ready["engines"]],
                rounds,
                absent=dict(absent),
            )
            for kind, title in KINDS.items()
        ] + [Group([Metric(title, headline=False)], [load(which, title)], rounds) for which, title in LOADS.items()]


def _python() -> str:
    """The peers', where it has what Nucleus needs to decide; else this one, and every peer is missing."""
    whole = all(peers.has_module(name) for name in ("pydantic", "yaml", "re2"))
    return str(peers.PYTHON) if whole else sys.executable


def main() -> int:
    if sys.argv[1:] == ["--worker"]:
        engines = Engines()
        answer(engines.ask, {"engines": list(engines.ready), "absent": engines.absent})
        return 0
    for name, why in peers.install().items():
        print(f"not installed: {name}: {why}", file=sys.stderr)
    return program("decision", __doc__, suite)


if __name__ == "__main__":
    sys.exit(main())
