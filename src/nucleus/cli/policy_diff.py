"""`nucleus policy diff`: what changes from A to B, line by line or as JSON.

Promises: nothing is called tighter that is not proved so; every loosening has an operation that shows it, decided under
both policies by the gate's own function, or the line says that none was found.
Does not: compare (`lattice.diff` does).
"""

from __future__ import annotations

from nucleus.cli.policy_words import flags_of, words_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nucleus.lattice import Policy
    from nucleus.lattice.diff import Diff, Shown
    from nucleus.model.decision import Decision

LOOSER_EXIT = 3
_EACH = 3  # witnesses of one change that are shown; --json has all that were found
_NO_OPERATION = ("budget",)  # no decision depends on it


def text(found: Diff, a: Policy, b: Policy, words: tuple[str, str]) -> str:
    """For a person. `words`: how the command line named A and B."""
    lines = [_headline(found, a.name, b.name)]
    for item in found.dimensions:
        if item.relation == "same":
            continue
        lines.append(f"  {item.relation:12}  {item.name:25}  {item.before} -> {item.after}")
        if found.looser and item.relation != "tighter" and item.name not in _NO_OPERATION and not found.shows(item):
            lines.append(f"  {'':12}  {'':25}  (unproved: no operation found that shows it)")
    lines += _witness_lines(found, a, b, words)
    return "\n".join(lines)


def _headline(found: Diff, a: str, b: str) -> str:
    if found.relation != "incomparable":
        relation = {"same": "decides as", "tighter": "is tighter than", "looser": "is LOOSER than"}[found.relation]
        return f"{b} {relation} {a}"
    if any(item.relation == "tighter" for item in found.dimensions):
        return f"{b} is tighter than {a} in some ways and LOOSER in others"
    return f"{b} is not comparable with {a}"


def _witness_lines(found: Diff, a: Policy, b: Policy, words: tuple[str, str]) -> list[str]:
    lines: list[str] = []
    shown: dict[tuple[str, ...], int] = {}
    for item in found.witnesses:
        key = (item.witness.before.rule, *item.dimensions)
        shown[key] = shown.get(key, 0) + 1
        if shown[key] <= _EACH:
            lines += ["", *_one(item, a, b, words)]
    left = sum(count - _EACH for count in shown.values() if count > _EACH)
    if left:
        lines += ["", f"and {left} more operations of the same kinds (--json lists them)"]
    asks = len(found.lost_asks)
    if asks:
        lines += ["", f"{asks} lost: asked under {a.name}, and run unattended under {b.name}"]
    return lines


def _one(item: Shown, a: Policy, b: Policy, words: tuple[str, str]) -> list[str]:
    import shlex

    witness = item.witness
    width = max(len(a.name), len(b.name))
    title = "LOST ASK" if witness.lost_ask else "LOOSER"
    command = shlex.join(_explain(item, words[1]))
    return [
        f"{title}  {shlex.join(words_of(witness.operation))}  ({_where(item)})",
        f"  {a.name:{width}}  {_decided(witness.before)}",
        f"  {b.name:{width}}  {_decided(witness.after)}",
        f"  shows: {', '.join(item.dimensions)}" if item.dimensions else "  shows: a change",
        f"  $ {command}",
    ]


def _decided(decision: Decision) -> str:
    line = f" ({decision.detail})" if decision.detail and decision.rule not in decision.detail else ""
    return f"{decision.verdict.value:5}  {decision.rule}: {decision.reason}{line if len(line) < 100 else ''}"


def _where(item: Shown) -> str:
    context, parts = item.witness.context, []
    parts.append("egress" if context.egress else "no egress")
    parts.append("trusted workspace" if context.trusted_workspace else "untrusted workspace")
    seen = [name for name in ("private", "untrusted") if getattr(context.seen, name)]
    if seen:
        parts.append(f"{' and '.join(seen)} data seen")
    if context.task:
        parts.append("the task names the destination")
    if item.witness.before.rule == "isolation.floor":
        parts.append(f"isolation {context.isolation}")
    if item.witness.before.rule == "time_window":
        parts.append(f"{(context.now_ns - context.started_ns) // 1_000_000_000} s after the pod's start")
    return ", ".join(parts)


def _explain(item: Shown, word: str) -> list[str]:
    from nucleus.store.policies import profile_names

    name = ["--profile", word] if word in profile_names() else ["--policy", word]
    operation = words_of(item.witness.operation)
    return ["nucleus", "policy", "explain", *name, *flags_of(item.witness.context), "--", *operation]


def data(found: Diff, a: Policy, b: Policy, words: tuple[str, str]) -> dict[str, Any]:
    """For programs."""
    return {
        "a": a.name,
        "b": b.name,
        "relation": found.relation,
        "looser": found.looser,
        "lost_asks": len(found.lost_asks),
        "dimensions": [
            {
                "name": item.name,
                "relation": item.relation,
                "a": item.before,
                "b": item.after,
                "witnessed": found.shows(item),
            }
            for item in found.dimensions
        ],
        "witnesses": [_witness_data(item, words) for item in found.witnesses],
    }


def _witness_data(item: Shown, words: tuple[str, str]) -> dict[str, Any]:
    witness, context = item.witness, item.witness.context
    return {
        "lost_ask": witness.lost_ask,
        "dimensions": list(item.dimensions),
        "operation": witness.operation.model_dump(mode="json"),
        "context": {
            "egress": context.egress,
            "trusted_workspace": context.trusted_workspace,
            "isolation": context.isolation,
            "seen": context.seen.to_data(),
            "task": context.task,
            "now_ns": context.now_ns,
            "started_ns": context.started_ns,
        },
        "a": decision_data(witness.before),
        "b": decision_data(witness.after),
        "explain": _explain(item, words[1]),
    }


def decision_data(decision: Decision) -> dict[str, Any]:
    """One decision as plain data."""
    return {
        "verdict": decision.verdict.value,
        "rule": decision.rule,
        "reason": decision.reason,
        "detail": decision.detail,
        "next_step": decision.next_step,
        "obligations": list(decision.obligations),
        "met": [{"rule": rule, "verdict": verdict.value} for rule, verdict in decision.met],
    }
