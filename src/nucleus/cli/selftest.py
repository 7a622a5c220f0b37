"""`nucleus selftest`: on this machine, with this policy, what holds when an agent is hijacked, and what does not.

Promises: everything is tried against real pods of a private builder, in a scratch workspace; nothing of the person's is
written, and the contents of their workspace are not read. Exit code 0: all that was tried holds; 1: something does not
hold; 6: something could not be checked, or no pod could be made.
Does not: judge the policy. What it allows is named, for the person to judge.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nucleus.testing.selftest.finding import Finding

USAGE = """\
usage: nucleus selftest [--policy FILE | --profile NAME] [--workspace DIR] [--json]

A hijacked agent's attempts, made on this machine against a pod with your policy, in about a minute: out of the pod,
out to the network, past the policy, the approvals and the budget, and into the audit log. Nothing of yours is changed.

  --policy FILE     the policy to try
  --profile NAME    a bundled one (default: restrictive)
  --workspace DIR   names of files there that the policy blocks are tried, too (their contents are not read)
  --json            for programs

exit codes: 0 all that was tried holds, or your policy allows it; 1 something does not hold; 2 invalid;
            6 something could not be checked
"""


def main(argv: list[str]) -> int:
    """Run the verb; 0, 1 or 6. Raises InvalidError."""
    from nucleus.cli.options import FLAG, ONE, invalid, parse

    options, extra = parse(argv, {"policy": ONE, "profile": ONE, "workspace": ONE, "json": FLAG, "help": FLAG})
    if options["help"]:
        sys.stdout.write(USAGE)
        return 0
    if extra:
        raise invalid(f"selftest takes no argument {extra[0][:100]!r}")
    if options["workspace"] and not os.path.isdir(options["workspace"]):
        raise invalid(f"--workspace: {options['workspace']!r} is not a directory")
    from nucleus.cli.launcher import policy_text
    from nucleus.cli.main import printable
    from nucleus.lattice.load import load_policy
    from nucleus.store.policies import bundled

    text, source = policy_text(options)
    policy = load_policy(text, source, bundled()).policy
    from nucleus.testing.selftest.suite import run  # weight: the conformance suite's bed, and what it needs

    report = run(text, source, policy, options["workspace"], (lambda found: None) if options["json"] else _show)
    if options["json"]:
        import json

        sys.stdout.write(json.dumps(report.as_dict(), indent=2) + "\n")
    else:
        sys.stdout.write(printable("\n".join(report.lines())) + "\n")
    return report.exit_code


MARKS = {"holds": "ok ", "does not hold": "NOT", "allowed by your policy": "-- ", "not checked": "?  "}


def _show(found: Finding) -> None:
    """One line as it comes."""
    from nucleus.cli.main import printable

    line = printable(f"{MARKS[found.verdict]} {found.id:<42} {found.tried}: {found.evidence}".replace("\n", " "))
    sys.stdout.write(line[:200] + "\n")
    sys.stdout.flush()
