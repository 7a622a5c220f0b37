"""`python -m bench.redos`: the ReDoS scan on public corpora of patterns.

usage: python -m bench.redos [--scratch DIR] [--json] [--list] [--patterns NAME=FILE ...] [--every N]

  --scratch   where packages are fetched to and the oracle's answers are kept (default: a temporary directory)
  --patterns  one more corpus: a file of patterns in Python's or JavaScript's syntax, one a line (CodeQL's and rxxr2's lists
              are on no package registry; whoever has them can measure them so)
  --list      also the patterns that are missed, or refused for nothing
  --every     run every N-th of the patterns that pass in RE2, besides all suspicious ones (default: 1)

Ground truth: recheck (npm), which finds an attack string for what a backtracking engine takes exponential time on, and
proves the rest safe or polynomial. It is asked about every pattern that repeats a group; the others cannot be
exponential. What the scan lets pass is run by RE2 in the search worker's own code, on attack strings of 100 KB.
Needs node and the network (npm, PyPI) the first time.

  exponential  patterns that recheck has an exponential attack for
  caught       of these: refused by the scan
  missed       of these: passed by the scan, and tried in node's engine with recheck's attack
  harmless     refused, or RE2 is done with 100 KB well before the deadline
  false        not exponential, RE2 could compile it, refused all the same. In the tools' lists these are `(a+)+` and the
               like: harmless to recheck because nothing after them can fail, refused by design
  unsupported  RE2 cannot compile it either (lookaround, back-references, other dialects): refused, not counted as false
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import re2

from bench.redos import pins
from bench.redos.corpora import HERE, Pattern, corpora, npm
from bench.redos.engine import Engine
from nucleus.limits import LIMITS
from nucleus.validate.patterns import scan

SECONDS = 2.0  # of RE2 for one pattern and one file
ORACLE_MS = 1_500
SIZE = 100_000
REPEATED_GROUP = re.compile(r"\)(?:[*+]|\{\d)")
GENERAL = [
    "a" * SIZE,
    "0" * SIZE,
    " " * SIZE,
    "\t" * SIZE,
    "ab" * (SIZE // 2),
    '"' * SIZE,
    "\\" * SIZE,
    "<a " * (SIZE // 3),
]

Answer = list[Any]


def ask(patterns: list[Pattern], scratch: Path) -> dict[Pattern, Answer]:
    """recheck's answers, kept in `scratch`."""
    kept = scratch / "oracle.json"
    known: dict[str, Answer] = json.loads(kept.read_text()) if kept.exists() else {}
    wanted = {json.dumps(p.for_oracle()): p for p in patterns}
    missing = [key for key in wanted if key not in known]
    if missing:
        program = npm(scratch, pins.ORACLE) / "package" / "lib" / "browser.js"
        with subprocess.Popen(
            ["node", "--max-old-space-size=2048", str(HERE / "oracle.cjs"), str(program), str(ORACLE_MS)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        ) as node:  # fmt: skip
            assert node.stdin is not None
            assert node.stdout is not None
            for number, key in enumerate(missing):
                node.stdin.write(key + "\n")
                node.stdin.flush()
                known[key] = json.loads(node.stdout.readline())
                if number % 50 == 49:
                    print(f"bench.redos: oracle {number}/{len(missing)}", file=sys.stderr)
                    kept.write_text(json.dumps(known))
            node.stdin.close()
        kept.write_text(json.dumps(known))
    return {p: known[json.dumps(p.for_oracle())] for p in patterns}


def attack(answer: Answer, size: int) -> str:
    """recheck's attack, pumped to about `size` characters."""
    _, _, pumps, suffix, _ = answer
    rounds = max(1, size // max(1, sum(len(pump) for _, pump in pumps)))
    return "".join(str(prefix) + str(pump) * rounds for prefix, pump in pumps) + str(suffix)


def explodes(pattern: Pattern, answer: Answer) -> bool:
    """Does node's engine hang on a short attack?"""
    for size in (30, 60, 120, 300):
        text = attack(answer, size).replace("\0", "\x01")
        try:
            subprocess.run(
                ["node", str(HERE / "explode.cjs"), *pattern.for_oracle(), text],
                timeout=3,
                capture_output=True,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return True
    return False


def compiles(text: str) -> bool:
    options = re2.Options()
    options.log_errors = False
    try:
        re2.compile(text, options)
    except re2.error:
        return False
    return True


def run_all(patterns: list[Pattern], answers: dict[Pattern, Answer], every: int) -> dict[str, Any]:
    """Passed patterns in RE2, on the general lines and each on its own attack."""
    slow: list[tuple[str, str, float]] = []
    outcomes: Counter[str] = Counter()
    worst = 0.0
    tried = 0
    peak = 0
    with tempfile.TemporaryDirectory() as directory:
        for number, text in enumerate(GENERAL):
            (Path(directory) / f"general{number}").write_text(text + "\x01\n")
        engine = Engine(Path(directory), SECONDS)
        for number, pattern in enumerate(patterns):
            answer = answers.get(pattern)
            if answer is None and number % every:
                continue
            tried += 1
            includes = ["general*"]
            if answer is not None and answer[2]:
                (Path(directory) / "own").write_text(attack(answer, SIZE), errors="replace")
                includes.append("own")
            for include in includes:
                ran = engine.run(pattern.for_re2(), include)
                outcomes[ran.outcome] += 1
                worst, peak = max(worst, ran.seconds), max(peak, ran.kib)
                if ran.outcome not in ("ok", "refused"):
                    slow.append((pattern.source, ran.outcome, ran.seconds))
        engine.close()
    return {
        "tried": tried,
        "outcomes": dict(outcomes),
        "worst_ms": round(worst * 1e3, 1),
        "peak_mib": peak // 1024,
        "not_done": slow,
    }


def measure(name: str, patterns: set[Pattern], answers: dict[Pattern, Answer], every: int) -> dict[str, Any]:
    """All figures of one corpus."""
    row: dict[str, Any] = {"corpus": name, "patterns": len(patterns)}
    small = sorted(
        (p for p in patterns if len(p.for_re2().encode(errors="replace")) <= LIMITS.pattern_bytes),
        key=lambda p: (p.source, p.flags),
    )
    row["over_size"] = len(patterns) - len(small)
    kinds: Counter[str] = Counter()
    passed, missed, false, hidden = [], [], [], 0
    exponential = caught = unknown = unsupported = supported_harmless = 0
    took: list[float] = []
    for pattern in small:
        text = pattern.for_re2()
        started = time.perf_counter()
        finding = scan(text)
        took.append(time.perf_counter() - started)
        answer = answers.get(pattern, ["safe", "safe", [], "", ""])
        bad = answer[0] == "vulnerable" and answer[1] == "exponential"
        understood = compiles(text)
        if finding is None:
            passed.append(pattern)
        if bad:
            exponential += 1
            caught += finding is not None
            hidden += finding is not None and finding.kind in ("unsupported", "syntax")
            if finding is None:
                missed.append(pattern)
        elif not understood:
            unsupported += 1
        elif answer[0] == "unknown":
            unknown += 1
        else:
            supported_harmless += 1
            if finding is not None:
                kinds[finding.kind] += 1
                false.append((pattern.source, finding.kind, finding.position))
    ran = run_all(passed, answers, every)
    row |= {
        "exponential": exponential, "caught": caught, "caught_as_unsupported": hidden,
        "missed": [(p.source, "explodes in node" if explodes(p, answers[p]) else "does not explode in node") for p in missed],
        "harmless": len(small) - len(passed) + ran["tried"] - len({source for source, *_ in ran["not_done"]}),
        "of": len(small) - len(passed) + ran["tried"],
        "supported_harmless": supported_harmless, "false_refusals": len(false), "false_kinds": dict(kinds), "false": false,
        "unsupported": unsupported, "oracle_undecided": unknown,
        "scan_ms": {"median": round(sorted(took)[len(took) // 2] * 1e3, 3), "max": round(max(took) * 1e3, 2)} if took else {},
        "re2": ran,
    }  # fmt: skip
    return row


def total(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The sums; a pattern in two corpora counts twice."""
    sums = ("patterns", "over_size", "exponential", "caught", "caught_as_unsupported", "harmless", "of", "supported_harmless",
            "false_refusals", "unsupported", "oracle_undecided")  # fmt: skip
    row: dict[str, Any] = {"corpus": "all"} | {key: sum(row[key] for row in rows) for key in sums}
    row["false_kinds"] = dict(sum((Counter(one["false_kinds"]) for one in rows), Counter()))
    row["scan_ms"] = {key: max(one["scan_ms"][key] for one in rows if one["scan_ms"]) for key in ("median", "max")}
    row["re2"] = {key: max(one["re2"][key] for one in rows) for key in ("worst_ms", "peak_mib")} | {"not_done": []}
    return row | {"missed": [], "false": []}


def share(part: int, whole: int) -> str:
    return f"{part}/{whole} ({100 * part / whole:.1f} %)" if whole else "none"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.redos", usage=__doc__, add_help=False)
    parser.add_argument("--scratch")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--patterns", action="append", default=[])
    parser.add_argument("--every", type=int, default=1)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        scratch = Path(chosen.scratch or temporary)
        scratch.mkdir(parents=True, exist_ok=True)
        found = corpora(scratch)
        for item in chosen.patterns:
            name, _, file = item.partition("=")
            lines = Path(file).read_text().splitlines()
            found[name] = {Pattern(line, "", True) for line in lines if line}
        suspicious = sorted(
            {p for group in found.values() for p in group if REPEATED_GROUP.search(p.source)},
            key=lambda p: (p.source, p.flags),
        )
        answers = ask(suspicious, scratch)
        rows = [measure(name, group, answers, chosen.every) for name, group in found.items()]
    rows.append(total(rows))
    if chosen.json:
        print(json.dumps(rows, indent=1))
        return 0
    for row in rows:
        print(f"{row['corpus']}: {row['patterns']} patterns, {row['over_size']} over {LIMITS.pattern_bytes} bytes")
        print(
            f"  exponential, caught by the scan  {share(row['caught'], row['exponential'])}, {row['caught_as_unsupported']} of them as unsupported"
        )
        print(
            f"  caught or harmless               {share(row['harmless'], row['of'])}; RE2 worst {row['re2']['worst_ms']} ms, peak {row['re2']['peak_mib']} MiB"
        )
        print(
            f"  false refusals                   {share(row['false_refusals'], row['supported_harmless'])} {row['false_kinds']}"
        )
        print(
            f"  unsupported by RE2 {row['unsupported']}, oracle undecided {row['oracle_undecided']}; scan median {row['scan_ms']['median']} ms, max {row['scan_ms']['max']} ms"
        )
        if chosen.list:
            for key in ("missed", "false"):
                for item in row[key]:
                    print(f"    {key}: {item}")
            for item in row["re2"]["not_done"]:
                print(f"    not done: {item}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
