"""`make fuzz`: each target for a while, in a process of its own, and a table of what came of it."""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CORPUS = ROOT / "fuzz" / "corpus"
GROWN = ROOT / ".fuzz"
MAX_INPUT = 2_048


def fuzz(name: str, arguments: list[str]) -> None:
    """In the child: hand over to atheris, which does not return."""
    import atheris

    with atheris.instrument_imports(include=["nucleus"], enable_loader_override=False):
        from fuzz.targets import TARGETS
    atheris.Setup([sys.argv[0], *arguments], TARGETS[name])
    atheris.Fuzz()


def campaign(name: str, seconds: int, runs: int) -> tuple[str, bool]:
    """One target: its line of the table, and whether something was found."""
    grown, found = GROWN / "corpus" / name, GROWN / "found" / name
    for directory in (grown, found):
        directory.mkdir(parents=True, exist_ok=True)
    seeds = [str(CORPUS / name)] if (CORPUS / name).is_dir() else []
    limit = [f"-runs={runs}"] if runs else [f"-max_total_time={seconds}"]
    command = [
        sys.executable, "-m", "fuzz", "--child", name, str(grown), *seeds, *limit, f"-max_len={MAX_INPUT}",
        "-timeout=10",
        "-rss_limit_mb=1500", f"-artifact_prefix={found}/", "-print_final_stats=1", "-close_fd_mask=1",
    ]  # fmt: skip
    done = subprocess.run(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace"
    )
    total = re.search(r"number_of_executed_units: (\d+)", done.stderr)
    speed = re.search(r"average_exec_per_sec:\s+(\d+)", done.stderr)
    covered = re.findall(r"cov: (\d+)", done.stderr)
    count = int(total.group(1)) if total else 0
    line = f"{name:12} {count:>10} {int(speed.group(1)) if speed else 0:>8} {covered[-1] if covered else '-':>8}"
    if done.returncode == 0:
        return f"{line}  nothing", False
    sys.stderr.write(done.stderr[-6_000:])
    wrote = re.search(r"Test unit written to (\S+)", done.stderr)
    again = f"make fuzz TARGET={name} REPLAY={os.path.relpath(wrote.group(1), ROOT)}" if wrote else "see above"
    return f"{line}  FOUND: {again}", True


def main() -> int:
    """0: nothing was found."""
    if sys.argv[1:2] == ["--child"]:
        fuzz(sys.argv[2], sys.argv[3:])
        return 0
    parser = argparse.ArgumentParser(prog="fuzz")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--runs", type=int, default=0)
    parser.add_argument("--target", default="")
    parser.add_argument("--replay", default="")
    options = parser.parse_args()
    from fuzz.targets import TARGETS

    names = [options.target] if options.target else list(TARGETS)
    if options.replay:
        TARGETS[names[0]](Path(options.replay).read_bytes())
        print("it holds")
        return 0
    print(f"{'target':12} {'runs':>10} {'per s':>8} {'coverage':>8}  findings", flush=True)
    found = False
    for name in names:
        line, one = campaign(name, options.seconds, options.runs)
        print(line, flush=True)
        found |= one
    return int(found)


if __name__ == "__main__":
    sys.exit(main())
