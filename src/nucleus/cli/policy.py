"""`nucleus policy`: list, show, check, explain, diff or meet policies. Starts no process and asks no helper.

Promises: `explain` and `diff` ask the same decision function as the gate. Exit codes: `explain` 0 allow, 3 deny, 4 ask;
`diff` 0, or with --fail-if-looser 3 when B is looser anywhere; 2: the input is invalid.
Does not: carry anything out.
"""

from __future__ import annotations

from nucleus.cli.options import FLAG, ONE, invalid, parse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nucleus.lattice import Policy
    from nucleus.lattice.load import Loaded
    from nucleus.model.operation import Base

USAGE = """\
usage: nucleus policy list [--json]
       nucleus policy show [--profile NAME | --policy FILE] [--json]
       nucleus policy check [--json] FILE
       nucleus policy explain [--profile NAME | --policy FILE] [options] [--] OPERATION ...
       nucleus policy diff [--json] [--fail-if-looser] A B     also: nucleus policy compare
       nucleus policy meet A B                                 the policy that both allow, as YAML
       nucleus policy schema                                   the file format as JSON Schema (2020-12)

  A, B                a bundled policy's name or a policy file
  --profile NAME      a bundled policy (default: restrictive)
  --policy FILE       a policy file
  --json              as JSON
  --fail-if-looser    diff: exit 3 when B is looser than A, not comparable with it, or loses an ask
  --egress            explain: as in a pod that has a way out
  --trust-workspace   explain: as with a trusted workspace
  --isolation RUNG    explain: as in a pod of this rung (default: namespaces)
  --seen WHAT         explain: what the session has seen: private, untrusted, steered (one or more, by commas)
  --task TEXT         explain: the user's task, which names the destinations it trusts
  --as SPIFFE_ID      explain: as this caller asks (default: the pod's own agent)

operations: read PATH | write PATH | edit PATH | glob PATTERN [PATH] | grep PATTERN [PATH] | run [--] PROGRAM ARG ...
            git_status | git_diff | git_commit [PATH ...] | web_fetch URL [METHOD] | web_search WORD ...
            git_push [REMOTE [REF]] | create_pr TITLE | manage_pods create|list|destroy [NAME]
            tool SERVER/TOOL [JSON]

exit codes of explain: 0 allowed unattended, 3 denied, 4 a person must approve
"""
_JSON = {"json": FLAG, "help": FLAG}
_POLICY = {"profile": ONE, "policy": ONE, **_JSON}
_EXPLAIN = {**_POLICY, "egress": FLAG, "trust-workspace": FLAG, "isolation": ONE, "seen": ONE, "task": ONE, "as": ONE}
_DIFF = {**_JSON, "fail-if-looser": FLAG}


def main(argv: list[str]) -> int:
    """Run one `nucleus policy ...`; return the exit code.

    Raises:
        InvalidError: the command line, the policy or the operation is invalid.
    """
    verb, rest = (argv[0], argv[1:]) if argv else ("--help", [])
    if verb in ("--help", "-h", "help") or rest[:1] in (["--help"], ["-h"]):
        print(USAGE, end="")
        return 0
    verbs = {
        "list": _list, "show": _show, "check": _check, "explain": _explain, "diff": _diff, "compare": _diff,
        "meet": _meet, "schema": _schema,
    }  # fmt: skip
    if verb not in verbs:
        raise invalid(f"unknown: policy {verb[:100]!r}")
    return verbs[verb](rest)


def _load(profile: str, path: str) -> Loaded:
    """A bundled policy, a file's, or the default."""
    from nucleus.lattice import load_policy
    from nucleus.store.policies import bundled, load_policy_text

    return load_policy(*load_policy_text(profile or None, path or None), bundled())


def _named(word: str) -> Policy:
    from nucleus.store.policies import profile_names

    known = word in profile_names()
    return _load(word if known else "", "" if known else word).policy


def _two(rest: list[str], verb: str) -> tuple[str, str]:
    if len(rest) != 2:
        raise invalid(f"policy {verb} takes two policies")
    return rest[0], rest[1]


def _dump(data: Any) -> None:
    import json

    print(json.dumps(data, indent=2, ensure_ascii=True))


def _show_text(text: str) -> None:
    """A policy's words come from a file: none of them speaks to the terminal."""
    from nucleus.cli.main import printable

    print(printable(text))


def _list(rest: list[str]) -> int:
    from nucleus.lattice import parse_policy
    from nucleus.store.policies import bundled

    values, words = parse(rest, _JSON)
    if words:
        raise invalid("policy list takes no arguments")
    texts = bundled()
    found = [parse_policy(text, f"profile {name}", texts) for name, text in texts.items()]
    if values["json"]:
        _dump([{"name": policy.name, "description": policy.description} for policy in found])
    else:
        print("\n".join(f"{policy.name:20} {policy.description}" for policy in found))
    return 0


def _show(rest: list[str]) -> int:
    from nucleus.lattice.explain import explain_policy, policy_data

    values, words = parse(rest, _POLICY)
    if words:
        raise invalid(f"policy show: unexpected {words[0][:100]!r}")
    loaded = _load(values["profile"], values["policy"])
    if values["json"]:
        _dump({**policy_data(loaded.policy), "extends": list(loaded.lineage)})
        return 0
    _show_text(explain_policy(loaded.policy))
    if loaded.lineage:
        print(f"  extends: {', '.join(loaded.lineage)}")
    return 0


def _check(rest: list[str]) -> int:
    import sys
    import time

    from nucleus.cli.main import printable
    from nucleus.lattice.lint import warnings

    values, words = parse(_flags_first(rest, _JSON), _JSON)
    if len(words) != 1:
        raise invalid("policy check takes one file")
    loaded = _load("", words[0])
    found = warnings(loaded.policy, time.time_ns())
    if values["json"]:
        _dump(
            {
                "name": loaded.policy.name,
                "valid": True,
                "sha256": loaded.digest,
                "extends": list(loaded.lineage),
                "warnings": found,
            }
        )
        return 0
    extends = f", extends {', '.join(loaded.lineage)}" if loaded.lineage else ""
    print(f"{loaded.policy.name}: valid, sha256 {loaded.digest}{extends}")
    for warning in found:
        sys.stderr.write(printable(f"warning: {warning}\n"))
    return 0


def _explain(rest: list[str]) -> int:
    from nucleus.cli.policy_diff import decision_data
    from nucleus.cli.policy_words import context, operation
    from nucleus.lattice import decide
    from nucleus.lattice.explain import explain_decision
    from nucleus.model.decision import Verdict
    from nucleus.validate import validate_operation

    values, words = parse(rest, _EXPLAIN)
    policy = _load(values["profile"], values["policy"]).policy
    asked = validate_operation(operation(words))
    decision = decide(policy, asked, context(values))
    carried = decision.verdict is Verdict.DENY or not _needs_egress(asked) or values["egress"]
    if values["json"]:
        facts = {"policy": policy.name, "operation": asked.model_dump(mode="json"), **decision_data(decision)}
        _dump({**facts, "pod": "" if carried else "no_egress"})
    else:
        _show_text(explain_decision(decision))
        if not carried:
            print("  pod: no egress in this pod: whatever is decided, the gate answers no_egress (see --egress)")
    return {Verdict.ALLOW: 0, Verdict.DENY: 3, Verdict.ASK: 4}[decision.verdict]


def _needs_egress(operation: Base) -> bool:
    return operation.egress


def _diff(rest: list[str]) -> int:
    """Effective decisions, dimension by dimension, and operations that show what B loosens against A."""
    from nucleus.cli import policy_diff
    from nucleus.lattice.diff import diff

    values, words = parse(_flags_first(rest, _DIFF), _DIFF)
    named = _two(words, "diff")
    a, b = (_named(word) for word in named)
    found = diff(a, b)
    if values["json"]:
        _dump(policy_diff.data(found, a, b, named))
    else:
        _show_text(policy_diff.text(found, a, b, named))
    return policy_diff.LOOSER_EXIT if values["fail-if-looser"] and found.looser else 0


def _flags_first(rest: list[str], table: dict[str, str]) -> list[str]:
    """Flags may also follow A and B, as people type them."""
    flags = [word for word in rest if word[:2] == "--" and table.get(word[2:]) == FLAG]
    return [*flags, *(word for word in rest if word not in flags)]


def _meet(rest: list[str]) -> int:
    from dataclasses import replace

    from nucleus.errors import InvalidError
    from nucleus.lattice import meet, parse_policy
    from nucleus.lattice.emit import emit

    a, b = (_named(word) for word in _two(rest, "meet"))
    name = f"{a.name}-and-{b.name}"[:63]
    found = replace(meet(a, b), name=name, description=f"What both {a.name} and {b.name} allow.")
    text = emit(found)
    if parse_policy(text, "the meet") != found:
        raise InvalidError("the meet cannot be written down as one policy", rule="policy.meet")
    print(text, end="")
    return 0


def _schema(rest: list[str]) -> int:
    from nucleus.lattice.schema import policy_schema

    if rest:
        raise invalid("policy schema takes no arguments")
    _dump(policy_schema())
    return 0
