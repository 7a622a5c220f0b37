"""Prove the laws of the capability lattice, refute what is false, break what should break: one line each.

    python -m proofs [--json]        from the repository's root; `make prove`

 1. every claim in every context by Z3 (`prove`), the expected refutations with a counterexample
 2. every mutant of the algebra must break a claim (`mutants`)
 3. the laws of one element on CPython's ints, exhaustively (`sweep`)

Exit 1 when anything comes out otherwise than expected. The first run makes `.venv-prove` with z3-solver in it, by the
hashes of requirements.txt; nothing that ships depends on it.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
VENV = ROOT / ".venv-prove"
UV = ROOT / ".venv" / "bin" / "uv"
INSIDE = "NUCLEUS_PROVE_INSIDE"


def install() -> None:
    """`.venv-prove`, made anew when requirements.txt is another."""
    stamp, wanted = VENV / ".requirements", (HERE / "requirements.txt").read_text()
    if stamp.exists() and stamp.read_text() == wanted:
        return
    subprocess.run([UV, "venv", "-q", "--clear", "--python", sys.executable, VENV], check=True)
    pip = [str(UV), "pip", "install", "-q", "--require-hashes", "--python", str(VENV / "bin" / "python")]
    subprocess.run([*pip, "-r", str(HERE / "requirements.txt")], check=True)
    stamp.write_text(wanted)


def reexec() -> None:
    install()
    python = str(VENV / "bin" / "python")
    os.chdir(ROOT)
    environment = {**os.environ, INSIDE: "1", "PYTHONPATH": f"{ROOT / 'src'}"}
    os.execve(python, [python, "-m", "proofs", *sys.argv[1:]], environment)  # noqa: S606


def claims(out: list[dict[str, Any]]) -> None:
    """Step 1."""
    from proofs.claims import CLAIMS
    from proofs.prove import run

    for claim in CLAIMS:
        found = run(claim)
        out.append({
            "step": "claim", "name": claim.name, "verdict": found.verdict, "expected": found.expected,
            "contexts": found.contexts, "ms": round(found.milliseconds, 1), "counterexample": found.counterexample,
        })  # fmt: skip
        say(out[-1])


def mutants(out: list[dict[str, Any]]) -> None:
    """Step 2."""
    from proofs.claims import CLAIMS
    from proofs.mutants import MUTANTS, mutant
    from proofs.prove import run

    for name in MUTANTS:
        started = time.perf_counter()
        with mutant(name):
            broken = next((claim.name for claim in CLAIMS if not run(claim).expected), None)
        out.append({
            "step": "mutant", "name": name, "verdict": "survived" if broken is None else "caught",
            "expected": broken is not None, "ms": round((time.perf_counter() - started) * 1e3, 1), "by": broken,
        })  # fmt: skip
        say(out[-1])


def exhaustive(out: list[dict[str, Any]]) -> None:
    """Step 3."""
    from proofs.prove import element
    from proofs.sweep import sweep

    found = sweep()
    entry: dict[str, Any] = {
        "step": "sweep", "name": f"{found.states:,} states on ints", "verdict": "broken" if found.broken else "held",
        "expected": found.broken is None, "ms": round(found.milliseconds, 1), "counterexample": (),
    }  # fmt: skip
    if found.broken is not None:
        law, a, context, outside = found.broken
        entry["counterexample"] = (f"{law}: {{{element(a)}}}", f"{context}; outside {outside}")
    out.append(entry)
    say(entry)


QUIET = False


def say(entry: dict[str, Any]) -> None:
    if QUIET:
        return
    verdict = entry["verdict"] + (" as expected" if entry["verdict"] == "refuted" and entry["expected"] else "")
    flag = "" if entry["expected"] else "UNEXPECTED "
    by = f"  (by: {entry['by']})" if entry.get("by") else ""
    print(f"{entry['ms']:9.1f} ms  {flag}{verdict}: {entry['name']}{by}", flush=True)
    for line in entry.get("counterexample", ()):
        print(f"{'':17}{line}")


def main() -> int:
    global QUIET
    parser = argparse.ArgumentParser(prog="python -m proofs", description="Prove the laws of the capability lattice.")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of lines")
    QUIET = parser.parse_args().json
    started = time.perf_counter()
    out: list[dict[str, Any]] = []
    for step in (claims, mutants, exhaustive):
        step(out)
    count = {
        name: sum(entry["verdict"] == name for entry in out) for name in ("proved", "refuted", "caught", "held")
    }  # fmt: skip
    bad = [entry["name"] for entry in out if not entry["expected"]]
    seconds = time.perf_counter() - started
    if QUIET:
        print(json.dumps({"results": out, "totals": count, "unexpected": bad, "seconds": round(seconds, 2)}))
    else:
        print(
            f"{count['proved']} proved, {count['refuted']} refuted as expected, {count['caught']} mutants caught, "
            f"sweep {'held' if count['held'] else 'BROKEN'}, in {seconds:.1f} s"
            if not bad
            else f"UNEXPECTED: {'; '.join(bad)} ({seconds:.1f} s)"
        )
    return 1 if bad else 0


if __name__ == "__main__":
    if INSIDE not in os.environ and importlib.util.find_spec("z3") is None:
        reexec()
    sys.exit(main())
