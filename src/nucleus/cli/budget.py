"""`nucleus budget`: what pods may spend, together and each, and what a person changes of it.

Promises: amounts are dollars as written, read by digits (`budget.money`); each change has an id, so that a request that
is sent twice happens once; what is printed of others' text is escaped.
Relies on: the authority, which puts every change on record with who and why. Starts the helper where none runs.
Does not: change what a policy says of a single pod.
"""

from __future__ import annotations

import json
import os
import sys

from nucleus.cli.main import printable
from nucleus.cli.options import FLAG, ONE, invalid, parse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nucleus.cli.approvals import Approver

USAGE = """\
usage: nucleus budget create ACCOUNT --limit DOLLARS [--window 30d] [--reason TEXT] [--id ID] [--json]
       nucleus budget list [--json]
       nucleus budget show [ACCOUNT | --pod POD] [--json]
       nucleus budget top-up ACCOUNT DOLLARS [--reason TEXT] [--id ID] [--json]
       nucleus budget top-up --pod POD DOLLARS [--reason TEXT] [--id ID] [--json]
       nucleus budget charge POD (DOLLARS | --micro-dollars N) [--reason TEXT] [--id ID] [--json]
       nucleus budget default ACCOUNT | --none [--reason TEXT]
       nucleus budget history [ACCOUNT | --pod POD] [--json]

  create   a budget that pods share: acme, then acme/research, then acme/research@nightly for the session `nightly` of
           its pods. What is spent beneath is spent above too. --window: the limit is for so long, then for so long
           again (90s, 45m, 4h, 30d); without it, for good
  top-up   raise a limit for good; it holds for running pods at once
  charge   what a pod used that no gate saw (a model called elsewhere); takes what is left, exit code 5 if that was less
  default  the account of pods that are started without --budget-account
  history  what people did to budgets, the newest first

A person names a pod's account when starting it: nucleus run --budget-account acme/research (NUCLEUS_BUDGET_ACCOUNT).
The same --id again does nothing and answers as the first time.
"""
_TABLE = {
    "limit": ONE, "window": ONE, "reason": ONE, "id": ONE, "pod": ONE, "micro-dollars": ONE, "none": FLAG,
    "json": FLAG, "help": FLAG,
}  # fmt: skip
_TAKES = {
    "create": ("limit", "window", "reason", "id"),
    "list": (),
    "show": ("pod",),
    "top-up": ("reason", "id", "pod"),
    "charge": ("micro-dollars", "reason", "id"),
    "default": ("none", "reason", "id"),
    "history": ("pod",),
}
_SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
_EXHAUSTED = 5


def main(argv: list[str]) -> int:
    """Run the verb. Raises NucleusError."""
    options, words = _split(argv)
    if options["help"] or not words:
        sys.stdout.write(USAGE)
        return 0 if options["help"] else 2
    verb, given = words[0], words[1:]
    if verb not in _TAKES:
        raise invalid(f"the verbs of budget are {', '.join(_TAKES)}")
    for name, value in options.items():
        if value and name not in (*_TAKES[verb], "json"):
            raise invalid(f"budget {verb} takes no --{name}")
    request = _request(verb, given, options)
    from nucleus.cli.approvals import Approver
    from nucleus.cli.launcher import Launcher

    with Launcher.open() as launcher:
        approver = Approver(launcher.attach_approver())
        try:
            return _carry_out(approver, verb, request, options["json"])
        finally:
            approver.close()


def _split(argv: list[str]) -> tuple[dict[str, Any], list[str]]:
    """The options, wherever they stand, and the words. Raises InvalidError."""
    options, words = parse(argv, _TABLE)
    given: list[str] = []
    while words:
        given.append(words[0])
        more, words = parse(words[1:], _TABLE)
        for name, value in more.items():
            if value and options[name] and _TABLE[name] == ONE:
                raise invalid(f"--{name} is given twice")
            options[name] = value or options[name]
    return options, given


def _request(verb: str, given: list[str], options: dict[str, Any]) -> dict[str, Any]:
    """What to ask of the authority: op and fields. Raises InvalidError."""
    from nucleus.budget import money, names

    change = {"entry": options["id"] or f"cli-{os.urandom(12).hex()}", "reason": options["reason"]}
    match verb, given:
        case "create", [account]:
            window = _window(options["window"]) if options["window"] else 0
            limit = money.parse(options["limit"], "--limit")
            return {
                "op": "budget_create",
                **change,
                "account": names.check(account),
                "amount": limit,
                "window_ns": window,
            }
        case "top-up", [amount] if options["pod"]:
            return {"op": "budget_top_up", **change, "pod": options["pod"], "amount": money.positive(amount)}
        case "top-up", [account, amount] if not options["pod"]:
            name = names.check(account)
            return {"op": "budget_top_up", **change, "account": name, "amount": money.positive(amount)}
        case "charge", [pod, *amount] if len(amount) == (0 if options["micro-dollars"] else 1):
            micro = money.positive(amount[0]) if amount else _micro(options["micro-dollars"])
            return {"op": "budget_charge", **change, "pod": pod, "amount": micro}
        case "default", [] if options["none"]:
            return {"op": "budget_default", **change}
        case "default", [account] if not options["none"]:
            return {"op": "budget_default", **change, "account": names.check(account)}
        case ("list", []) | ("show", []):
            return {"op": "budget_show", "pod": options["pod"]}
        case ("show", [account]) if not options["pod"]:
            return {"op": "budget_show", "account": names.check(account)}
        case "history", []:
            return {"op": "budget_history", "pod": options["pod"]}
        case "history", [account] if not options["pod"]:
            return {"op": "budget_history", "account": names.check(account)}
    raise invalid(f"budget {verb}: `nucleus budget --help` shows how")


def _micro(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or len(text) > 18 or int(text) == 0:
        raise invalid("--micro-dollars is a whole number, more than 0")
    return int(text)


def _window(text: str) -> int:
    """Nanoseconds of ``90s``, ``45m``, ``4h`` or ``30d``."""
    number, unit = text[:-1], text[-1:]
    if unit not in _SECONDS or not (number.isascii() and number.isdigit()) or len(number) > 9 or int(number) == 0:
        raise invalid("--window is a time such as 90s, 45m, 4h or 30d")
    return int(number) * _SECONDS[unit] * 1_000_000_000


def _carry_out(approver: Approver, verb: str, request: dict[str, Any], as_json: bool) -> int:
    said = approver.call(**request)
    code = _EXHAUSTED if said.get("unpaid") else 0
    if verb == "show" and (name := request.get("account") or request.get("pod")):
        said = _only(said, str(name), "account" if request.get("account") else "pod")
    if as_json:
        sys.stdout.write(json.dumps(said) + "\n")
        return code
    lines = {"list": _list, "show": _list, "history": _history}.get(verb)
    text = lines(said) if lines is not None else _changed(verb, request, said)
    sys.stdout.write(printable(text))
    return code


def _only(said: dict[str, Any], name: str, kind: str) -> dict[str, Any]:
    """The one that was asked for, and what is beneath it. Raises InvalidError: there is none."""
    from nucleus.budget.names import levels

    if kind == "pod":
        accounts: list[Any] = []
        pods = [one for one in said["pods"] if one["pod"] == name]
    else:
        accounts = [one for one in said["accounts"] if name in levels(one["account"])]
        pods = [one for one in said["pods"] if one["account"] and name in levels(one["account"])]
    if not accounts and not pods:
        raise invalid(f"there is no {kind} of this name" + (" that runs" if kind == "pod" else ""))
    return {**said, "accounts": accounts, "pods": pods}


def _list(said: dict[str, Any]) -> str:
    from nucleus.budget.money import dollars

    lines = []
    for one in (*said["accounts"], *said["pods"]):
        left = one["limit"] - one["spent"] - one["reserved"]
        line = f"{one.get('pod') or one['account']}: ${dollars(left)} of ${dollars(one['limit'])} left"
        line += f", ${dollars(one['spent'])} spent"
        if one["reserved"]:
            line += f", ${dollars(one['reserved'])} reserved"
        if one.get("window_ns"):
            line += f"; each {_span(one['window_ns'])}, this one since {_when(one['since_ns'])}"
        if "pod" in one:
            line += f"; {one['account'] or 'no account'}"
            if one["free"] < left:
                line += f", where ${dollars(one['free'])} is left for it"
        elif one["account"] == said["default"]:
            line += "; the default"
        lines.append(line + "\n")
    return "".join(lines) or "no account, and no pod runs: `nucleus budget create ACCOUNT --limit 5.00`\n"


def _changed(verb: str, request: dict[str, Any], said: dict[str, Any]) -> str:
    from nucleus.budget.money import dollars

    again = " (as before: this id was used)" if said.get("again") else ""
    if verb == "charge":
        short = f"; ${dollars(said['unpaid'])} more was reported than is left" if said["unpaid"] else ""
        return f"{request['pod']}: ${dollars(said['charged'])} charged{short}{again}\n"
    if verb == "default":
        return f"default: {request.get('account') or 'none'}{again}\n"
    return f"{said.get('account') or said.get('pod')}: the limit is ${dollars(said['limit'])}{again}\n"


def _history(said: dict[str, Any]) -> str:
    from nucleus.budget.money import dollars

    lines = []
    for one in said["entries"]:
        about = " ".join(filter(None, (one["pod"], one["account"])))
        amount = f"${dollars(one['charged'])} of " if one["change"] == "charge" else ""
        line = f"{_when(one['time_ns'])} {one['change']} {about} {amount}${dollars(one['amount'])} by {one['who']}"
        lines.append(f"{line} ({one['entry']})" + (f": {one['reason']}" if one["reason"] else "") + "\n")
    return "".join(lines) or "nothing is on record\n"


def _span(nanoseconds: int) -> str:
    seconds = nanoseconds // 1_000_000_000
    unit = next((name for name in "dhm" if seconds % _SECONDS[name] == 0), "s")
    return f"{seconds // _SECONDS[unit]}{unit}"


def _when(time_ns: int) -> str:
    import time

    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(time_ns // 1_000_000_000))
