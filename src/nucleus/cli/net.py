"""`nucleus net`: what running pods may reach and reach now, what they reached, and a person's changes while they run.

Promises: a change is on record before it holds; a rule that is taken away ends the connections that it had let through;
what an agent chose is escaped. Relies on: the resident helper (a private builder's pod is nobody else's).
Does not: change a policy file.
"""

from __future__ import annotations

import json
import os
import sys

from nucleus.cli.main import printable
from nucleus.cli.options import FLAG, ONE, invalid, parse
from nucleus.pod import runtime

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

USAGE = """\
usage: nucleus net show [--pod POD] [--json]
       nucleus net log [--pod POD] [--json]
       nucleus net allow RULE [--trusted] [--pod POD]
       nucleus net deny RULE [--pod POD]

  show   the rules that hold in running pods, and their open connections
  log    connections that were made or refused, the last 50
  allow  RULE (host, host:port, *.host, range:port) for a running pod, from now until it ends; on record.
         --trusted: you vouch for it, so that the trifecta does not ask for it
  deny   take it away again, and cut what it had let through

Without --pod: the only pod that runs.
"""
LINES = 50
_TABLE = {"pod": ONE, "json": FLAG, "trusted": FLAG, "help": FLAG}


def main(argv: list[str]) -> int:
    """Run the verb. Raises NucleusError."""
    options, words = parse(argv, _TABLE)
    given: list[str] = []
    while words:  # options may follow the words
        given.append(words[0])
        more, words = parse(words[1:], _TABLE)
        options.update({name: value for name, value in more.items() if value})
    if options["help"]:
        sys.stdout.write(USAGE)
        return 0
    match given:
        case ["log"]:
            return _log(options["pod"], options["json"])
        case ["show"]:
            return _with_helper(lambda approver: _show(approver, options["pod"], options["json"]))
        case ["allow" | "deny" as verb, rule]:
            return _with_helper(lambda approver: _change(approver, verb, rule, options))
    raise invalid("net show, net log, net allow RULE, or net deny RULE")


def _with_helper(act: Any) -> int:
    from nucleus.cli.approvals import Approver
    from nucleus.cli.launcher import Launcher

    channel = runtime.connect_helper()
    if channel is None:
        raise invalid("no pod runs here: the resident helper is not up")
    with Launcher(channel) as launcher:
        approver = Approver(launcher.attach_approver())
        try:
            return int(act(approver))
        finally:
            approver.close()


def _pods(approver: Any, pod: str) -> list[str]:
    return [pod] if pod else list(approver.call("net_state")["pods"])


def _only(approver: Any, pod: str) -> str:
    found = _pods(approver, pod)
    if len(found) != 1:
        names = ", ".join(found) if found else "none"
        raise invalid(f"which pod? --pod POD; running: {names}")
    return found[0]


def _show(approver: Any, pod: str, as_json: bool) -> int:
    from nucleus.errors import InvalidError

    states = {}
    for name in _pods(approver, pod):
        try:
            states[name] = approver.call("net_state", pod=name)
        except InvalidError as error:
            states[name] = {"note": error.message}
    if as_json:
        sys.stdout.write(json.dumps({"pods": states}) + "\n")
        return 0
    for name, state in states.items():
        sys.stdout.write(f"{name}\n")
        if "note" in state:
            sys.stdout.write(f"  {state['note']}\n")
            continue
        for number, rules in enumerate(state["allow"]):
            title = "allow" if number == 0 else "and   "
            sys.stdout.write("".join(f"  {title} {printable(rule)}\n" for rule in rules) or f"  {title} (nothing)\n")
        sys.stdout.write("".join(f"  deny  {printable(host)}\n" for host in state["deny"]))
        for one in state["connections"]:
            how = "waiting" if one.get("waiting") else f"{one.get('up')} up, {one.get('down')} down"
            sys.stdout.write(
                printable(f"  open  {one.get('host')}:{one.get('port')} {one.get('protocol')}: {how}") + "\n"
            )
    if not states:
        sys.stdout.write("no pod runs\n")
    return 0


def _change(approver: Any, verb: str, rule: str, options: dict[str, Any]) -> int:
    name = _only(approver, options["pod"])
    said = approver.call("net_change", pod=name, verb=verb, rule=rule, trusted=options["trusted"])
    if options["json"]:
        sys.stdout.write(json.dumps({"pod": name, **said}) + "\n")
        return 0
    what = "allowed" if verb == "allow" else "taken away"
    cut = f"; {said['cut']} connections cut" if said.get("cut") else ""
    sys.stdout.write(printable(f"{name}: {rule} {what}{cut}") + "\n")
    return 0


def _log(pod: str, as_json: bool) -> int:
    from nucleus.cli.why import records_backwards

    found: list[dict[str, Any]] = []
    for record in records_backwards(os.path.join(runtime.state_dir(), "audit.jsonl")):
        operation = record.get("operation")
        asked = isinstance(operation, dict) and operation.get("kind") in (
            "connect",
            "web_fetch",
            "web_search",
            "git_push",
        )
        wanted = (asked and record.get("event") != "intent") or record.get("event") == "network.changed"
        if wanted and (not pod or record.get("pod") == pod):
            found.append(record)
        if len(found) == LINES:
            break
    for record in reversed(found):
        sys.stdout.write((json.dumps(record) if as_json else _line(record)) + "\n")
    if not found:
        sys.stderr.write("no connection is on record\n")
    return 0


def _line(record: dict[str, Any]) -> str:
    import time

    when = time.strftime("%H:%M:%S", time.localtime(int(record.get("time_ns", 0)) // 1_000_000_000))
    if record.get("event") == "network.changed":
        context = record.get("context") or {}
        return printable(
            f"{when} {record.get('pod')} {context.get('change')} {context.get('host')}:{context.get('port')}"
            f" by {record.get('principal')}"
        )
    operation, outcome = record.get("operation") or {}, record.get("outcome") or {}
    to = operation.get("url") or operation.get("query") or f"{operation.get('host')}:{operation.get('port')}"
    words = [str(operation.get(name)) for name in ("protocol", "method", "path") if operation.get(name)]
    status = str(outcome.get("status", ""))
    end = (
        f"{outcome.get('up', 0)} up, {outcome.get('down', 0)} down" if status == "ok" else str(outcome.get("rule", ""))
    )
    return printable(f"{when} {record.get('pod')} {to} {' '.join(words)} -> {status} {end}")[:400]
