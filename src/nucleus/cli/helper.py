"""`nucleus helper`: what the resident helper is doing, and its end."""

from __future__ import annotations

import sys

from nucleus.cli.launcher import Launcher
from nucleus.cli.options import FLAG, invalid, parse
from nucleus.pod import runtime

USAGE = """\
usage: nucleus helper status [--json]
       nucleus helper stop

The resident helper keeps the zygote and the authority warm; it starts by itself and ends when idle.
`stop` ends it, destroys every pod that it made, and returns when all is written.
"""


def main(argv: list[str]) -> int:
    """Run the verb: 0, or 1 when no helper runs. Raises NucleusError."""
    verb, rest = (argv[0], argv[1:]) if argv else ("", [])
    options, extra = parse([verb, *rest] if verb.startswith("-") else rest, {"json": FLAG, "help": FLAG})
    if options["help"]:
        sys.stdout.write(USAGE)
        return 0
    if verb not in ("status", "stop") or extra:
        raise invalid("helper status, or helper stop")
    channel = runtime.connect_helper()
    if channel is None:
        sys.stdout.write("{}\n" if options["json"] else "no helper runs\n")
        return 1
    with Launcher(channel) as launcher:
        answer = launcher.call(verb).body
        if verb == "stop":
            launcher.wait_gone()
    if verb == "stop":
        sys.stdout.write("stopped\n")
        return 0
    import json

    from nucleus.cli.main import printable

    if options["json"]:
        sys.stdout.write(json.dumps(answer) + "\n")
    else:
        sys.stdout.write(printable("".join(f"{name}: {json.dumps(value)}\n" for name, value in answer.items())))
    return 0
