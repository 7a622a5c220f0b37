"""Every comparison in one interleaved run, then the cost against load: `make bench`.

    python -m bench [--scale full] [--laps N] [--only NAME,…] [--out DIR] [--publish] [--note TEXT]

Peers are installed first (`bench.peers`; NUCLEUS_BENCH_INSTALL=0 forbids it). Writes latest.json, latest.md and a plot for
every curve below --out (bench/results). With --publish the plots go to docs/plots, all of it to docs/bench.md, and the headlines between README's markers.
Exit 1 when one of our own measurements fails; a peer that cannot run is named with the error it printed.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench import curves, measure, peers
from bench.measure import ROOT, SCALES, Scale, Suite
from bench.plot import chart

SUITES = ("oneshot", "decision", "ledger", "audit", "identity", "egress", "search", "streaming")
MODULES = {"decision": "bench.decision.__main__", "egress": "bench.egress.__main__", "search": "bench.search.__main__"}
ROOT_ONLY = {"egress", "search", "tree"}  # their sites are those of the tests
README = ROOT / "README.md"
READING = """What a sandbox promises differs, and so does what its figure holds. `exec` and `run` of Nucleus are an operation that is
authenticated, decided, charged, recorded durably (two syncs) and run in namespaces, Landlock and seccomp; bwrap here is new namespaces
over the whole root, read-only; Sandlock and nono-py are Landlock and seccomp in the caller's own process tree; srt and codex
are bwrap and seccomp, srt with a proxy. The engines of "one decision" judge the same twenty rules (`bench/decision/peers.py`
says what they cannot express). "No sandbox", "fork, exec" and the like are floors: nobody does the work for less.
"""
BEGIN, END = "<!-- bench: made by `make bench` -->\n", "<!-- end of bench -->\n"


def suites(names: Sequence[str]) -> dict[str, Suite]:
    return {name: importlib.import_module(MODULES.get(name, f"bench.{name}")).suite for name in names}


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def measured(scale: Scale, names: Sequence[str], drawn: Sequence[str]) -> dict[str, Any]:
    """All of latest.json."""
    not_installed = peers.install()
    for name, why in not_installed.items():
        say(f"not installed: {name}: {why}")
    about = measure.machine()
    started = time.monotonic()
    rows = measure.run(suites(names), scale, say)
    found = []
    for name in drawn:
        before = time.monotonic()
        found += curves.CURVES[name](scale)
        say(f"curve: {name}, {time.monotonic() - before:.1f} s")
    return {
        "measured": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "seconds": round(time.monotonic() - started), "machine": {**about, "load_after": os.getloadavg()[0]},
        "peers": peers.versions(), "not_installed": not_installed, "rows": rows, "curves": found,
    }  # fmt: skip


def preamble(result: Mapping[str, Any]) -> str:
    """When and where, and how to read it."""
    machine, note = result["machine"], result["note"]
    return (
        f"Measured on {result['measured']}: {machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB, "
        f"Linux {machine['kernel']}, Python {machine['python']}, load average {machine['load']:.1f} before and "
        f"{machine['load_after']:.1f} after (our own in it)"
        f"{f'; {note}' if note else ''}. One run of {result['seconds'] // 60} minutes, everybody in turn; median (p25–p75), "
        "× is Nucleus's median by theirs.\n\n"
    )


def document(result: Mapping[str, Any], plots: str) -> str:
    """All of it: docs/bench.md."""
    versions = ", ".join(f"{name} {version}" for name, version in result["peers"].items())
    failed = "".join(f"Not installed: {name}: `{why}`\n\n" for name, why in result["not_installed"].items())
    failed += "".join(f"Not run: {name}: {why}\n\n" for name, why in result["not_run"].items())
    images = "\n\n".join(f"![{one['title']}]({plots}/{one['name']}.svg)" for one in result["curves"])
    return (
        f"# Measured\n\n`make bench` makes this page. {preamble(result)}{measure.markdown_table(result['rows'])}\n"
        f"{failed}Peers: {versions}.\n\n{READING}\n## Cost against load\n\n{images}\n"
    )


def summary(result: Mapping[str, Any]) -> str:
    """README's part: the rows that are headlines."""
    rows = [row for row in result["rows"] if row["headline"]]
    return preamble(result) + measure.markdown_table(rows)


def write(result: Mapping[str, Any], out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    (out / "latest.json").write_text(json.dumps(result, indent=1) + "\n")
    (out / "latest.md").write_text(document(result, "."))
    draw(result, out)


def draw(result: Mapping[str, Any], out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    for curve in result["curves"]:
        (out / f"{curve['name']}.svg").write_text(chart(curve))


def publish(result: Mapping[str, Any], readme: Path = README) -> None:
    """docs/plots, docs/bench.md, and README between its markers."""
    text = readme.read_text()
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{readme.name} has no place for it: {BEGIN.strip()} … {END.strip()}")
    draw(result, ROOT / "docs" / "plots")
    (ROOT / "docs" / "bench.md").write_text(document(result, "plots"))
    readme.write_text(before + begin + summary(result) + end + after)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scale", choices=list(SCALES), default="full")
    parser.add_argument("--laps", type=int, default=0)
    parser.add_argument("--only", default="", help=f"of {', '.join((*SUITES, *curves.CURVES))}")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results")
    parser.add_argument("--publish", action="store_true")
    parser.add_argument("--again", action="store_true", help="measure nothing: publish what --out holds")
    parser.add_argument("--note", default="", help="said of the machine, as what else ran on it")
    options = parser.parse_args()
    if options.again:
        publish(json.loads((options.out / "latest.json").read_text()))
        return 0
    wanted = options.only.split(",") if options.only else [*SUITES, *curves.CURVES]
    if unknown := set(wanted) - {*SUITES, *curves.CURVES}:
        parser.error(f"--only: there is no {', '.join(sorted(unknown))}")
    not_run = {} if os.geteuid() == 0 else {name: "needs root" for name in wanted if name in ROOT_ONLY}
    for name, why in not_run.items():
        say(f"not run: {name}: {why}")
    wanted = [name for name in wanted if name not in not_run]
    names = [name for name in SUITES if name in wanted]
    result = measured(measure.chosen(options), names, [name for name in curves.CURVES if name in wanted])
    result |= {"note": options.note, "not_run": not_run}
    write(result, options.out)
    if options.publish:
        publish(result)
    print(measure.text_table(result["rows"]))
    print(f"{result['seconds']} s; {options.out}/latest.json, latest.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
