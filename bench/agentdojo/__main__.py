"""`python -m bench.agentdojo`: attack success, questions and utility of each trifecta mode, assuming total hijack.

usage: python -m bench.agentdojo [--suite NAME|FILE ...] [--mode static|session|provenance|all|none]
                                 [--tools MAP.yaml] [--approver ideal|careless ...] [--json] [--verbose] [--fast]

  --suite    workspace, slack, travel, banking (AgentDojo v1.2.2), or a Python file that defines TaskSuite objects;
             repeatable (default: workspace slack)
  --mode     the trifecta mode of the policy (default: provenance); none: ungated
  --tools    the tool map (default: bench/agentdojo/tools.yaml)
  --json     one JSON object on standard output
  --approver ideal: says no to every call of the attack; careless: what one who says yes to a tenth of them lets
             through as well (default: both)
  --fast     --approver ideal, and without the attacker who knows the rules (attack_success_worst)
  --verbose  with --json: also which pairs succeeded and what was asked
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
VENV = ROOT / ".venv-agentdojo"
VERSION = "v1.2.2"
NAMES = ("workspace", "slack", "travel", "banking")


class UsageError(Exception):
    """The command line names something that is not there."""


def _own_python() -> None:
    """Go on in the benchmark's own virtual environment, made when it is missing, unless this python has AgentDojo."""
    if importlib.util.find_spec("agentdojo") and importlib.util.find_spec("re2"):
        return
    python, done = VENV / "bin" / "python", VENV / ".done"
    wanted = (HERE / "requirements.txt").read_text() + (ROOT / "uv.lock").read_text()
    if not done.exists() or done.read_text() != wanted:
        print(f"bench.agentdojo: setting up {VENV.name} (once)", file=sys.stderr)
        try:
            _set_up(python)
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"bench.agentdojo: cannot set up {VENV.name} (`make setup` first?): {error}", file=sys.stderr)
            raise SystemExit(1) from None
        done.write_text(wanted)
    print(f"bench.agentdojo: goes on in {VENV.name}, which has AgentDojo", file=sys.stderr)
    os.environ["PYTHONPATH"] = f"{ROOT / 'src'}{os.pathsep}{ROOT}"
    os.execv(python, [str(python), "-m", "bench.agentdojo", *sys.argv[1:]])


def _set_up(python: Path) -> None:
    uv = ROOT / ".venv" / "bin" / "uv"
    own = subprocess.run(  # our own dependencies, in the versions of the lock
        [uv, "export", "-q", "--frozen", "--no-dev", "--no-emit-project", "--no-hashes"],
        check=True, cwd=ROOT, stdout=subprocess.PIPE, text=True,
    ).stdout  # fmt: skip
    subprocess.run([uv, "venv", "-q", "--allow-existing", "--python", sys.executable, VENV], check=True)
    subprocess.run(
        [uv, "pip", "install", "-q", "--python", python, "-r", HERE / "requirements.txt", "-r", "-"],
        check=True, input=own, text=True,
    )  # fmt: skip


def _suites(names: list[str]) -> list[Any]:
    for name in names:  # before AgentDojo is imported, which takes seconds
        if name not in NAMES and not name.endswith(".py"):
            raise UsageError(f"no suite {name!r}; known: {', '.join(NAMES)}, or a .py file")
        if name not in NAMES and not Path(name).is_file():
            raise UsageError(f"cannot read {name}")
    if len(set(names)) != len(names):
        raise UsageError("a suite is named twice")
    found: list[Any] = []
    for name in names:
        if name in NAMES:
            from agentdojo.task_suite.load_suites import get_suite

            found.append(get_suite(VERSION, name))
        else:
            found += _from_file(Path(name))
    if len({suite.name for suite in found}) != len(found):
        raise UsageError("two of the suites have the same name")
    return found


def _from_file(path: Path) -> list[Any]:
    from agentdojo.task_suite.task_suite import TaskSuite

    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"cannot read {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    sys.path.insert(0, str(path.resolve().parent))
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UsageError(f"{path}: {type(error).__name__}: {error}") from error
    found = list({id(value): value for value in vars(module).values() if isinstance(value, TaskSuite)}.values())
    if not found:
        raise UsageError(f"{path} defines no TaskSuite")
    return found


def _measure(suite: Any, made: Any, *, careless: bool, worst: bool) -> dict[str, Any]:
    """All counts of one suite."""
    from bench.agentdojo.handmade import KNOWN
    from bench.agentdojo.replay import Suite

    replay = Suite(suite, made, KNOWN)
    users, injections = list(suite.user_tasks.values()), list(suite.injection_tasks.values())
    counts: dict[str, Any] = dict.fromkeys(
        ("pairs", "attack_success", "benign_tasks", "benign_asked", "prompts", "utility_refused", "utility_ideal"), 0
    )
    counts |= {"attack_prompts": 0, "attack_success_native": 0, "pairs_native": 0}
    counts |= ({"attack_success_careless": 0.0} if careless else {}) | ({"attack_success_worst": 0} if worst else {})
    counts["ground_truths_native"] = sum(map(replay.is_native, (*users, *injections)))
    counts["ground_truths_hand_made"] = len(users) + len(injections) - counts["ground_truths_native"]
    spent: list[int] = []
    won_pairs, asked = [], []
    for task in users:
        useful, run = replay.benign(task, approve=True)
        spent += run.spent_ns
        counts["benign_tasks"] += 1
        counts["utility_ideal"] += useful
        counts["utility_refused"] += replay.benign(task, approve=False)[0]
        counts["benign_asked"] += bool(run.asked)
        counts["prompts"] += len(run.asked)
        asked += [{"task": task.ID, **vars(one)} for one in run.asked]
        cut = replay.hijacked_after(task)
        for injection in injections:
            ideal = replay.attack(task, injection, cut)
            won, run = ideal
            spent += run.spent_ns
            native = replay.is_native(task) and replay.is_native(injection)
            counts["pairs"] += 1
            counts["pairs_native"] += native
            counts["attack_success"] += won
            counts["attack_success_native"] += won and native
            counts["attack_prompts"] += len(run.attack_asked)
            if careless:
                counts["attack_success_careless"] += replay.careless(task, injection, cut, ideal)
            if worst:
                counts["attack_success_worst"] += won or replay.worst(task, injection, cut)
            if won:
                won_pairs.append(f"{task.ID} {injection.ID}")
    return counts | {"spent": spent, "succeeded": won_pairs, "asked": asked}


def _add(rows: list[dict[str, Any]]) -> dict[str, Any]:
    total: dict[str, Any] = {}
    for row in rows:
        for key, value in row.items():
            total[key] = value if key not in total else total[key] + value
    return total


def _fits(tools: Any, path: Path, suites: list[Any]) -> None:
    """Raises MapError where the tool map does not fit the suites."""
    from bench.agentdojo import toolmap

    if strange := sorted(set(tools.suites) - {suite.name for suite in suites} - set(NAMES)):
        raise toolmap.MapError(f"{path}: no such suite {strange[0]!r}; known: {', '.join(NAMES)}, or one of --suite")
    for suite in suites:
        known = {
            tool.name: frozenset(tool.parameters.model_json_schema().get("properties", {})) for tool in suite.tools
        }
        toolmap.check(tools, suite.name, known, path)


def main() -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.agentdojo", description=__doc__, add_help=True,
                                     formatter_class=argparse.RawDescriptionHelpFormatter, usage=argparse.SUPPRESS)  # fmt: skip
    parser.add_argument("--suite", action="append", nargs="+", default=None)
    parser.add_argument("--mode", choices=("static", "session", "provenance", "all", "none"), default="provenance")
    parser.add_argument("--tools", type=Path, default=HERE / "tools.yaml")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--verbose", action="store_true")
    parser.add_argument("--fast", action="store_true")
    parser.add_argument("--approver", action="append", nargs="+", choices=("ideal", "careless"), default=None)
    options = parser.parse_args()

    from bench.agentdojo import guard, toolmap

    try:
        tools = toolmap.read(options.tools)
        suites = _suites([name for group in options.suite or [["workspace", "slack"]] for name in group])
        _fits(tools, options.tools, suites)
    except (UsageError, toolmap.MapError) as error:
        print(f"bench.agentdojo: {error}", file=sys.stderr)
        return 2
    careless = not options.fast and any("careless" in group for group in options.approver or [["careless"]])
    rows: dict[str, dict[str, Any]] = {}
    for suite in suites:
        made = None if options.mode == "none" else guard.policy(tools, suite.name, options.mode)
        rows[suite.name] = _measure(suite, made, careless=careless, worst=not options.fast)
        declared = tools.suites.get(suite.name, {})
        rows[suite.name]["tools_undeclared"] = sum(function.name not in declared for function in suite.tools)
    rows["all"] = _add(list(rows.values()))
    for row in rows.values():
        spent = row.pop("spent")
        row["decision_us"] = round(statistics.median(spent) / 1000, 2) if spent else 0.0
        if careless:
            row["attack_success_careless"] = round(row["attack_success_careless"], 2)
        row["mode"] = options.mode
        if not options.verbose:
            del row["succeeded"], row["asked"]
    if options.json:
        print(json.dumps(rows, indent=2, default=str))
    else:
        _print(rows, options.mode)
    return 0


def _print(rows: dict[str, dict[str, Any]], mode: str) -> None:
    def share(count: float, of: int) -> str:
        return f"{count:g}/{of} {100 * count / (of or 1):.1f} %"

    print(f"AgentDojo {VERSION}, trifecta: {mode}, assuming total hijack")
    print(f"{'suite':12}{'attack success':>18}{'worst order':>18}{'careless':>11}{'benign asked':>16}{'prompts':>9}"
          f"{'utility no/yes':>16}{'decision':>11}")  # fmt: skip
    for name, row in rows.items():
        pairs = row["pairs"]
        worst = share(row["attack_success_worst"], pairs) if "attack_success_worst" in row else "-"
        slips = (
            f"{100 * row['attack_success_careless'] / (pairs or 1):.1f} %" if "attack_success_careless" in row else "-"
        )
        asked, utility = (
            share(row["benign_asked"], row["benign_tasks"]),
            f"{row['utility_refused']}/{row['utility_ideal']}",
        )
        print(f"{name:12}{share(row['attack_success'], pairs):>18}{worst:>18}{slips:>11}{asked:>16}{row['prompts']:>9}"
              f"{utility:>16}{row['decision_us']:>8} µs")  # fmt: skip


if __name__ == "__main__":
    _own_python()
    raise SystemExit(main())
