"""`nucleus policy`: list, show, check, explain or compare policies. Starts no process and asks no helper.

Promises: `explain` asks the same decision function as the gate; exit 0 allow, 3 deny, 4 ask (2: the input is invalid).
Does not: carry anything out.
"""

from __future__ import annotations

from nucleus.cli.options import FLAG, ONE, invalid, parse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nucleus.lattice import Context, Policy
    from nucleus.model.operation import Base

USAGE = """\
usage: nucleus policy list
       nucleus policy show [--profile NAME | --policy FILE] [--json]
       nucleus policy check FILE
       nucleus policy explain [--profile NAME | --policy FILE] [options] [--] OPERATION ...
       nucleus policy compare A B          A, B: a profile's name or a policy file

  --profile NAME      a bundled policy (default: restrictive)
  --policy FILE       a policy file
  --json              as JSON
  --egress            explain: as in a pod that has a way out
  --trust-workspace   explain: as with a trusted workspace
  --isolation RUNG    explain: as in a pod of this rung (default: namespaces)

operations: read PATH | write PATH | edit PATH | glob PATTERN [PATH] | grep PATTERN [PATH] | run [--] PROGRAM ARG ...
            git_status | git_diff | git_commit [PATH ...] | web_fetch URL [METHOD] | web_search WORD ...
            git_push [REMOTE [REF]] | create_pr TITLE | manage_pods create|list|destroy [NAME]

exit codes of explain: 0 allowed unattended, 3 denied, 4 a person must approve
"""
_POLICY = {"profile": ONE, "policy": ONE, "json": FLAG, "help": FLAG}
_EXPLAIN = {**_POLICY, "egress": FLAG, "trust-workspace": FLAG, "isolation": ONE}


def main(argv: list[str]) -> int:
    """Run one `nucleus policy ...`; return the exit code.

    Raises:
        InvalidError: the command line, the policy or the operation is invalid.
    """
    verb, rest = (argv[0], argv[1:]) if argv else ("--help", [])
    if verb in ("--help", "-h", "help") or rest[:1] in (["--help"], ["-h"]):
        print(USAGE, end="")
        return 0
    verbs = {"list": _list, "show": _show, "check": _check, "explain": _explain, "compare": _compare}
    if verb not in verbs:
        raise invalid(f"unknown: policy {verb[:100]!r}")
    return verbs[verb](rest)


def _load(values: dict[str, Any]) -> Policy:
    from nucleus.lattice import parse_policy
    from nucleus.store.policies import load_policy_text

    return parse_policy(*load_policy_text(values["profile"] or None, values["policy"] or None))


def _dump(data: Any) -> None:
    import json

    print(json.dumps(data, indent=2, ensure_ascii=True))


def _list(rest: list[str]) -> int:
    from nucleus.lattice import parse_policy
    from nucleus.store.policies import profile_names, profile_text

    if rest:
        raise invalid("policy list takes no arguments")
    for name in profile_names():
        print(f"{name:20} {parse_policy(profile_text(name), f'profile {name}').description}")
    return 0


def _show(rest: list[str]) -> int:
    from nucleus.lattice.explain import explain_policy, policy_data

    values, words = parse(rest, _POLICY)
    if words:
        raise invalid(f"policy show: unexpected {words[0][:100]!r}")
    policy = _load(values)
    if values["json"]:
        _dump(policy_data(policy))
    else:
        print(explain_policy(policy))
    return 0


def _check(rest: list[str]) -> int:
    from nucleus.lattice import policy_digest
    from nucleus.store.policies import load_policy_text

    if len(rest) != 1:
        raise invalid("policy check takes one file")
    policy = _load({"profile": "", "policy": rest[0]})
    print(f"{policy.name}: valid, sha256 {policy_digest(load_policy_text(None, rest[0])[0])}")
    return 0


def _explain(rest: list[str]) -> int:
    from nucleus.lattice import decide
    from nucleus.lattice.explain import explain_decision
    from nucleus.model.decision import Verdict
    from nucleus.validate import validate_operation

    values, words = parse(rest, _EXPLAIN)
    policy = _load(values)
    operation = validate_operation(_operation(words))
    decision = decide(policy, operation, _context(values))
    if values["json"]:
        _dump(
            {
                "policy": policy.name,
                "operation": operation.model_dump(mode="json"),
                "verdict": decision.verdict.value,
                "rule": decision.rule,
                "reason": decision.reason,
                "detail": decision.detail,
                "next_step": decision.next_step,
                "obligations": list(decision.obligations),
            }
        )
    else:
        print(explain_decision(decision))
    return {Verdict.ALLOW: 0, Verdict.DENY: 3, Verdict.ASK: 4}[decision.verdict]


def _context(values: dict[str, Any]) -> Context:
    """A pod that has just started."""
    import time

    from nucleus.lattice import Context
    from nucleus.lattice.policy import FLOORS

    rung = values["isolation"] or FLOORS[0]
    if rung not in FLOORS:
        raise invalid(f"--isolation must be one of {', '.join(FLOORS)}")
    now = time.time_ns()
    return Context(
        now_ns=now, started_ns=now, egress=values["egress"], trusted_workspace=values["trust-workspace"], isolation=rung
    )


# Which fields an operation's words fill, in order; the last name takes all that is left when it ends in "*".
_FIELDS: dict[str, tuple[str, ...]] = {
    "read": ("path",), "write": ("path",), "edit": ("path",), "glob": ("pattern", "path"), "grep": ("pattern", "path"),
    "run": ("argv*",), "git_status": (), "git_diff": (), "git_commit": ("paths*",), "web_fetch": ("url", "method"),
    "web_search": ("query*",), "git_push": ("remote", "ref"), "create_pr": ("title",),
    "manage_pods": ("action", "name"),
}  # fmt: skip
_FILLED = {"write": {"content": ""}, "edit": {"old": "-", "new": ""}, "git_commit": {"message": "-"}}


def _operation(words: list[str]) -> Base:
    """The operation that `words` name. Raises InvalidError."""
    from pydantic import ValidationError

    from nucleus.model.operation import ADAPTER

    kind, rest = (words[0], words[1:]) if words else ("", [])
    if kind not in _FIELDS:
        raise invalid(f"unknown operation {kind[:100]!r}; known: {', '.join(_FIELDS)}")
    if rest[:1] == ["--"]:
        rest = rest[1:]
    raw: dict[str, Any] = {"kind": kind, **_FILLED.get(kind, {})}
    for name in _FIELDS[kind]:
        if name.endswith("*"):
            raw[name[:-1]], rest = (" ".join(rest) if name == "query*" else list(rest)), []
        elif rest:
            raw[name], rest = rest[0], rest[1:]
    if rest:
        raise invalid(f"{kind}: unexpected {rest[0][:100]!r}")
    try:
        return ADAPTER.validate_python(raw)
    except ValidationError as error:
        first = error.errors()[0]
        raise invalid(f"{kind}: {'.'.join(map(str, first['loc'][1:]))}: {first['msg']}") from None


def _compare(rest: list[str]) -> int:
    """Effective decisions, capability by capability, and every ask that B loses against A."""
    from nucleus.lattice import leq

    if len(rest) != 2:
        raise invalid("policy compare takes two policies")
    a, b = (_named(word) for word in rest)
    below, above = leq(b, a), leq(a, b)
    relation = {
        (True, True): "as permissive as",
        (True, False): "at most as permissive as",
        (False, True): "at least as permissive as",
    }
    print(f"{b.name} is {relation.get((below, above), 'neither tighter nor looser than')} {a.name}")
    lost = 0
    for egress in (False, True):
        for name, old, new in _effective(a, b, egress):
            if old != new:
                loses = old[1] == "ask" and new[1] == "unattended"
                lost += loses
                where = "with egress" if egress else "without egress"
                print(f"  {name:12} {where:14}  {' '.join(old)} -> {' '.join(new)}{'   LOST ASK' if loses else ''}")
    if lost:
        print(f"  {lost} lost: they asked under {a.name} and run unattended under {b.name}")
    return 0


def _named(word: str) -> Policy:
    from nucleus.store.policies import profile_names

    known = word in profile_names()
    return _load({"profile": word if known else "", "policy": "" if known else word})


def _effective(a: Policy, b: Policy, egress: bool) -> list[tuple[str, tuple[str, str], tuple[str, str]]]:
    from nucleus.lattice import capability as cap

    with_legs = cap.legs(egress=egress, trusted_workspace=False)
    normal = [cap.nu(policy.capabilities, with_legs) for policy in (a, b)]

    def state(value: int, name: str) -> tuple[str, str]:
        level = cap.level(value, name)
        return cap.LEVEL_NAMES[level], "" if level == cap.NEVER else "unattended" if cap.unattended(
            value, name
        ) else "ask"

    return [(name, state(normal[0], name), state(normal[1], name)) for name in cap.NAMES]
