"""`nucleus doctor`: what isolation this machine gives, what is missing, and what to do about it.

Promises: exit 0 when a namespaces pod can be made here, 6 when not, with each thing that is missing and its next step;
what a pod would start without is named too. Everything was tried, nothing is guessed (`nucleus.pod.detect`).
Does not: start a pod or a helper, or change anything on the machine, but for `--backends`, which tries pods of its own
in a directory of its own (`nucleus.testing.conformance`) and removes both.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from nucleus.pod.detect import Choice, Fact

USAGE = """\
usage: nucleus doctor [--workspace DIR] [--floor BACKEND] [--backends [--only BACKEND] [--full]] [--json]

What this machine can do for a pod, each found by trying it. Exit code 0: a pod can be made; 6: it cannot.

  --workspace DIR   the directory whose file system is tried (default: the current one)
  --floor BACKEND   the weakest backend that will do: namespaces, gvisor, qemu, firecracker
  --backends        make pods of each backend that can be started here (not weaker than --floor) and check what every
                    pod promises; exit code 6 when one does not keep it
  --only BACKEND    with --backends: this one alone
  --full            with --backends: every check, not only those that matter most
  --json            for programs
"""
ADVISORY = (
    "An agent outside any pod under the approver's own uid is advisory only: it can do what that person can. "
    "`nucleus run` puts it into a pod."
)
SHARED_UID = (
    "As an ordinary user all of our processes (launcher, builder, authority, gates) share one uid with everything "
    "else you run; pods are kept from them by their namespaces, not by a uid."
)
SHARED_KERNEL = "A namespaces pod shares the host's kernel; the audit log says so of each pod."


def main(argv: list[str]) -> int:
    """Run the verb: 0 or 6. Raises InvalidError."""
    from nucleus.cli.options import FLAG, ONE, invalid, parse

    words = {"workspace": ONE, "floor": ONE, "backends": FLAG, "only": ONE, "full": FLAG, "json": FLAG, "help": FLAG}
    options, extra = parse(argv, words)
    if options["help"]:
        sys.stdout.write(USAGE)
        return 0
    if extra:
        raise invalid(f"doctor takes no argument {extra[0][:100]!r}")
    from nucleus.errors import SandboxError
    from nucleus.pod.detect import backend_choice, detect
    from nucleus.pod.spec import LADDER

    if options["floor"] not in ("", "none", *LADDER):
        raise invalid(f"--floor is one of {', '.join(LADDER)}")
    if options["full"] and not options["backends"]:
        raise invalid("--full goes with --backends")
    if options["only"] and (not options["backends"] or options["only"] not in LADDER):
        raise invalid(f"--only goes with --backends, and is one of {', '.join(LADDER)}")
    if options["backends"]:
        return _backends(options)
    facts = detect(os.path.abspath(options["workspace"] or os.getcwd()))
    choice = backend_choice(facts, options["floor"])
    code = 0 if choice.backend else SandboxError.exit_code
    if options["json"]:
        import json

        sys.stdout.write(json.dumps(report(facts, choice, code), indent=2) + "\n")
    else:
        from nucleus.cli.main import printable

        sys.stdout.write(printable("\n".join(lines(facts, choice)) + "\n"))
    return code


def _backends(options: dict[str, Any]) -> int:
    """The conformance suite against each backend that can be started here; 0 or 6."""
    from nucleus.cli.main import printable
    from nucleus.errors import SandboxError
    from nucleus.pod.detect import startable
    from nucleus.pod.spec import LADDER
    from nucleus.testing.conformance.suite import run

    least = LADDER.index(options["floor"]) if options["floor"] in LADDER else 0
    wanted = [options["only"]] if options["only"] else list(LADDER[least:])
    found = startable(wanted)
    reports, rows = [], []
    for name in wanted:
        if reason := found[name]:
            rows.append(f"{name}: not tried: {reason}")
            continue
        if not options["json"]:
            sys.stderr.write(f"nucleus: trying {name}\n")
        reports.append(run(name, short=not options["full"]))
        rows += [*reports[-1].lines(), ""]
    code = 0 if reports and all(each.conforms for each in reports) else SandboxError.exit_code
    if options["json"]:
        import json

        not_tried = {name: found[name] for name in wanted if found[name]}
        body = {"ok": code == 0, "exit_code": code, "backends": [r.as_dict() for r in reports], "not_tried": not_tried}
        sys.stdout.write(json.dumps(body, indent=2) + "\n")
    else:
        sys.stdout.write(printable("\n".join(rows) + "\n"))
    return code


def report(facts: Sequence[Fact], choice: Choice, code: int) -> dict[str, Any]:
    """What --json prints."""
    return {
        "ok": code == 0,
        "exit_code": code,
        "backend": choice.backend or None,
        "why": choice.why,
        "not_stronger": choice.not_stronger,
        "missing": [fact.name for fact in choice.missing],
        "missing_limits": [fact.name for fact in _missing_limits(facts)],
        "weaker": [fact.name for fact in _weaker(facts)],
        "notes": _notes(facts),
        "facts": [fact.as_dict() for fact in facts],
    }


def lines(facts: Sequence[Fact], choice: Choice) -> list[str]:
    """What a person reads: the table, the answer, what to do."""
    width = max(len(fact.name) for fact in facts)
    rows = [f"{_mark(fact)} {fact.name:<{width}}  {fact.detail}" for fact in facts]
    rows.append("")
    if choice.backend:
        rows.append(f"A pod can be made: {choice.backend} ({choice.why}).")
    else:
        rows.append(f"No pod can be made: {choice.why}.")
    rows += [f"  not {name}: {why}" for name, why in choice.not_stronger.items()]
    for title, found in (("Missing", choice.missing), ("A pod starts without", _weaker(facts))):
        if found:
            rows += ["", f"{title}:"]
            for fact in found:
                rows.append(f"  {fact.name}: {fact.detail} (for {fact.needed_for})")
                if fact.next_step:
                    rows.append(f"    next: {fact.next_step}")
    return [*rows, "", *_notes(facts)]


def _mark(fact: Fact) -> str:
    return "yes" if fact.ok else "NO " if fact.required else "no "


def _missing_limits(facts: Sequence[Fact]) -> list[Fact]:
    return [fact for fact in facts if fact.name.startswith("cgroup ") and not fact.required and not fact.ok]


def _weaker(facts: Sequence[Fact]) -> list[Fact]:
    """What is not so and not required, but for a backend that this version does not have."""
    return [fact for fact in facts if not fact.ok and not fact.required and fact.name != "kvm"]


def _notes(facts: Sequence[Fact]) -> list[str]:
    notes = [ADVISORY, SHARED_KERNEL]
    if any(fact.name == "root" and not fact.ok for fact in facts):
        notes.insert(0, SHARED_UID)
    limits = [fact.name.removeprefix("cgroup ") for fact in _missing_limits(facts)]
    if limits:
        notes.insert(0, f"Missing cgroup limits: {', '.join(limits)}. Only rlimits hold a pod there.")
    return notes
