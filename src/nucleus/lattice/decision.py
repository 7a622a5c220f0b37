"""The one decision function: policy, operation and context in, one `Decision` out.

Deny beats ask beats allow; among equals the first of this order is reported:

 1. isolation floor      the pod is weaker than the policy demands: deny
 2. time window          over, or not yet: deny
 3. capability           never: deny; a command needs the capability of what it does too (`git push` is git_push)
 4. paths                blocked or not on the allow list: deny (block wins); protected names are read-only: deny
 5. commands, hosts      deny rules deny, ask rules ask
 6. approve              the policy wants a person for this capability: ask
 7. trifecta             private data, untrusted content and a way out together: the way out asks
 8. risk                 what `low_risk` leaves unattended is the table below; all else asks

low_risk, unattended    | only where
------------------------|---------------------------------------------------------------------------------
read, glob, grep, git_* | the path is not sensitive (each result is decided again by name)
write, edit             | the path is not sensitive (nor protected, which no level lifts)
run                     | the command is listed, plain (no wrapper trick), its files are not sensitive; an
                        | interpreter or shell script only where the pod has no egress
git_commit              | always: it stays in the pod
web_fetch               | GET or HEAD without a body, to a listed host
web_search              | always (the trifecta rule covers the query)
manage_pods             | list
git_push, create_pr     | never

`always` drops the risk conditions, not lists: an unlisted command or host still asks.
Promises: pure and total on validated operations; monotone: if a ≤ b and both are normalized, a's decision is at most
b's. Reasons hold no values of the operation, so they can be shown to the agent; `detail` is for the person.
Does not: see what a running program does (isolation does), or hold state.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nucleus.errors import InvalidError
from nucleus.lattice import capability as cap
from nucleus.lattice.commands import Command, analyse
from nucleus.lattice.paths import is_protected, is_sensitive
from nucleus.lattice.policy import (
    FLOORS,
    CommandRule,
    Everything,
    Policy,
    is_blocked,
    not_allowed,
)
from nucleus.model.decision import Decision, Verdict
from nucleus.validate.urls import split_url

if TYPE_CHECKING:  # pydantic's weight, for a name
    from nucleus.model.operation import Base


@dataclass(frozen=True, slots=True)
class Context:
    """What decisions depend on besides policy and operation.

    Args:
        now_ns: wall clock, nanoseconds since the epoch.
        started_ns: when the pod started, same clock.
        egress: the pod has a way out.
        trusted_workspace: the user vouches for the workspace (``--trust-workspace``).
        isolation: the pod's rung: one of `policy.FLOORS`; anything else is below every floor.
        task: the user's own task text (for modes that look at it; ``static`` does not).
    """

    now_ns: int
    started_ns: int
    egress: bool = False
    trusted_workspace: bool = False
    isolation: str = FLOORS[0]
    task: str = ""


_RANK = {Verdict.ALLOW: 0, Verdict.ASK: 1, Verdict.DENY: 2}


class _Case:
    """Findings about one operation; the gravest, and among equals the first, is the decision."""

    def __init__(self, policy: Policy, context: Context) -> None:
        self.policy = policy
        self.context = context
        with_legs = cap.legs(egress=context.egress, trusted_workspace=context.trusted_workspace)
        self.normal = cap.nu(policy.capabilities, with_legs)
        self.found: Decision | None = None
        self.obligations: list[str] = []

    def deny(self, rule: str, reason: str, detail: str = "", next_step: str = "") -> None:
        self._add(Decision(Verdict.DENY, rule, reason, detail, next_step))

    def ask(self, capability: str, rule: str, reason: str, detail: str = "", next_step: str = "") -> None:
        obligation = f"approval:{capability}"
        if obligation not in self.obligations:
            self.obligations.append(obligation)
        step = next_step or "Approve it as it is asked, or change the policy."
        self._add(Decision(Verdict.ASK, rule, reason, detail, step, (obligation,)))

    def _add(self, decision: Decision) -> None:
        if self.found is None or _RANK[decision.verdict] > _RANK[self.found.verdict]:
            self.found = decision

    def low_risk(self, capability: str) -> bool:
        return cap.level(self.normal, capability) == cap.LOW_RISK

    def result(self, capability: str) -> Decision:
        found = self.found
        if found is None:
            level = cap.LEVEL_NAMES[cap.level(self.normal, capability)]
            return Decision(
                Verdict.ALLOW, f"capabilities.{capability}", "allowed by the policy", f"{capability}: {level}"
            )
        if found.verdict is not Verdict.ASK:
            return found
        return Decision(found.verdict, found.rule, found.reason, found.detail, found.next_step, tuple(self.obligations))


def decide(policy: Policy, operation: Base, context: Context) -> Decision:
    """Decide one validated operation.

    Args:
        policy: as parsed; it is normalized here for `context`.
        operation: as `validate_operation` returned it.
        context: the facts of the pod and the moment.

    Returns:
        The decision; `obligations` is non-empty exactly when the verdict is ask.
    """
    case = _Case(policy, context)
    kind = str(getattr(operation, "kind", ""))
    _isolation(case)  # 1
    _window(case)  # 2
    capability = operation.capability
    if kind == "run":
        _run(case, operation)
    else:
        _capability(case, capability)  # 3
        for path in _paths_of(operation):  # 4
            _path(case, path, capability, write=operation.effect, search=kind in ("glob", "grep"))
        if kind == "web_fetch":
            _host(case, getattr(operation, "url", ""), capability)  # 5
        _attended(case, capability)  # 6, 7
        _risk(case, kind, operation)  # 8
    return case.result(capability)


def decide_path(policy: Policy, path: str, write: bool = False) -> Decision | None:
    """The denial that the path rules give for one name (a search result, a resolved symlink), or None.

    Args:
        policy: the pod's policy.
        path: relative to the workspace, normalized.
        write: the name would be changed.
    """
    if (glob := is_blocked(policy, path)) is not None:
        return _denied("paths.block", "this path is blocked by the policy", f"paths.block: {glob}")
    if (missing := not_allowed(policy, path)) is not None:
        return _denied("paths.allow", "this path is not on the policy's allow list", f"paths.allow: {missing}")
    if write and (glob := is_protected(path)) is not None:
        return _denied(
            "paths.protected",
            "this path is read-only: it would run on the host later",
            f"protected: {glob}",
            "No policy lifts this; change the file yourself, outside the pod.",
        )
    return None


def _denied(rule: str, reason: str, detail: str, next_step: str = "") -> Decision:
    step = next_step or f"Change `{rule}` in the policy if this file is meant to be reachable."
    return Decision(Verdict.DENY, rule, reason, detail, step)


def _paths_of(operation: Base) -> list[str]:
    out: list[str] = []
    for name in operation.path_fields:
        value = getattr(operation, name)
        out += [value] if isinstance(value, str) else list(value)
    return out


# --- steps 1 and 2 ---


def _isolation(case: _Case) -> None:
    here, floor = case.context.isolation, case.policy.isolation_floor
    if here not in FLOORS or FLOORS.index(here) < FLOORS.index(floor):
        case.deny(
            "isolation.floor",
            "the pod's isolation is below the policy's floor",
            f"isolation.floor: {floor}; the pod has: {here}",
            f"Run where {floor} is available, or lower the floor.",
        )


def _window(case: _Case) -> None:
    window, context = case.policy.time_window, case.context
    age = context.now_ns - context.started_ns
    late = not isinstance(window.not_after_ns, Everything) and context.now_ns >= window.not_after_ns
    # A clock that ran backwards is no reason to go on.
    if age < 0 or age >= window.duration_ns or late or context.now_ns < window.not_before_ns:
        case.deny(
            "time_window",
            "outside the policy's time window",
            f"age {max(age, 0) // 1_000_000_000} s, duration {window.duration_ns // 1_000_000_000} s",
            "Start a new pod, or widen `time_window` in the policy.",
        )


# --- steps 3, 6 and 7: capabilities ---


def _capability(case: _Case, name: str) -> None:
    if cap.level(case.normal, name) == cap.NEVER:
        case.deny(
            f"capabilities.{name}",
            f"the policy never allows {name}",
            f"capabilities.{name}: never",
            f"Set `capabilities.{name}` in the policy, or pick another profile.",
        )


def _attended(case: _Case, name: str) -> None:
    if cap.level(case.normal, name) == cap.NEVER or cap.unattended(case.normal, name):
        return
    if not cap.unattended(case.policy.capabilities, name):
        case.ask(name, f"approve.{name}", f"the policy wants a person's approval for {name}", f"approve: {name}")
        return
    case.ask(
        name,
        "trifecta.static",
        f"{name} could carry private data out after untrusted content was read",
        "private data, untrusted content and a way out are all enabled: " + _live(case),
        "Approve it as it is asked, or take one of the three legs out of the policy.",
    )


def _live(case: _Case) -> str:
    with_legs = cap.legs(egress=case.context.egress, trusted_workspace=case.context.trusted_workspace)
    parts = []
    for title, leg in (
        ("private", with_legs.private), ("untrusted", with_legs.untrusted), ("exfiltration", with_legs.exfiltration)
    ):  # fmt: skip
        names = [cap.NAMES[i] for i in leg if cap.level(case.normal, cap.NAMES[i]) != cap.NEVER]
        parts.append(f"{title}: {', '.join(names)}")
    return "; ".join(parts)


# --- step 4 ---


def _path(case: _Case, path: str, capability: str, *, write: bool, search: bool = False) -> None:
    found = decide_path(case.policy, path, write)
    # A search may start above the allow list: what it finds is decided name by name.
    if found is not None and not (search and found.rule == "paths.allow"):
        case.deny(found.rule, found.reason, found.detail, found.next_step)
    elif case.low_risk(capability) and (glob := is_sensitive(path)) is not None:
        case.ask(capability, "low_risk.sensitive_path", "the path looks sensitive", f"sensitive: {glob}")


# --- step 5 ---


def _host(case: _Case, url: str, capability: str) -> None:
    try:
        host = split_url("url", url).host
    except InvalidError:
        case.ask(capability, "hosts.allow", "the address cannot be read", "not a plain URL")
        return
    policy = case.policy
    if (line := _host_line(policy.hosts_deny, host)) is not None:
        case.deny("hosts.deny", "this host is denied by the policy", f"hosts.deny: {line}", "Change `hosts.deny`.")
    elif (line := _host_line(policy.hosts_ask, host)) is not None:
        case.ask(capability, "hosts.ask", "the policy asks for this host", f"hosts.ask: {line}")
    elif not isinstance(policy.hosts_allow, Everything) and any(
        _host_line(hosts, host) is None for hosts in policy.hosts_allow
    ):
        case.ask(
            capability,
            "hosts.allow",
            "this host is not on the policy's list",
            "hosts.allow",
            f"Add {host} to `hosts.allow`.",
        )


def _host_line(lines: frozenset[str], host: str) -> str | None:
    """The line that names `host`: itself, or ``*.parent`` for anything below the parent."""
    for line in sorted(lines):
        if line == host or (line.startswith("*.") and host.endswith(line[1:])):
            return line
    return None


def _run(case: _Case, operation: Base) -> None:
    """Steps 3 to 8 for a command."""
    argv: tuple[str, ...] = getattr(operation, "argv", ())
    cwd: str = getattr(operation, "cwd", ".")
    command = analyse(argv, cwd)
    needed = ["run_bash", *(name for name in cap.NAMES if name in command.requires)]
    for name in needed:
        _capability(case, name)
    _path(case, cwd, "run_bash", write=False, search=True)
    for path in dict.fromkeys(command.paths):
        _path(case, path, "run_bash", write=path in command.written, search=path in command.weak)
    _lines(case, command)
    for url in command.urls:
        _host(case, url, "run_bash")
    for name in needed:
        _attended(case, name)
    _run_risk(case, command, needed)


def _lines(case: _Case, command: Command) -> None:
    for layer in command.layers:
        if (line := _caught(case.policy.commands_deny, layer.program, layer.args)) is not None:
            case.deny(
                "commands.deny",
                "this command is denied by the policy",
                f"commands.deny: {line}",
                "Change `commands.deny`.",
            )
        elif (line := _caught(case.policy.commands_ask, layer.program, layer.args)) is not None:
            case.ask("run_bash", "commands.ask", "the policy asks for this command", f"commands.ask: {line}")


def _caught(rules: frozenset[CommandRule], program: str, args: tuple[str, ...]) -> CommandRule | None:
    bare = program.rpartition("/")[2]
    return next((rule for rule in rules if rule.catches(program, args) or rule.catches(bare, args)), None)


def _listed(policy: Policy, command: Command) -> bool:
    if isinstance(policy.commands_allow, Everything):
        return True
    plain = command.plain
    if plain is None:
        return False
    program, args = plain.program, plain.args
    return all(
        # A set is about plain commands: one that leaves its program's job must be named itself.
        any(rule.admits(program, args) and not (rule.group and command.flags) for rule in rules)
        for rules in policy.commands_allow
    )


# --- step 8: the table ---


def _run_risk(case: _Case, command: Command, needed: list[str]) -> None:
    if not _listed(case.policy, command):
        detail = command.flags[0] if command.flags else "commands.allow"
        case.ask("run_bash", "commands.allow", "this command is not on the policy's list", detail)
    if case.low_risk("run_bash"):
        if command.flags:
            case.ask("run_bash", "low_risk.run_bash", "this command can do more than its words say", command.flags[0])
        if command.runs_code and case.context.egress:
            case.ask(
                "run_bash", "low_risk.run_bash", "code runs unattended only in a pod without egress", command.runs_code
            )
    for name in needed[1:]:
        if name in ("git_push", "create_pr", "web_fetch", "web_search") and case.low_risk(name):
            case.ask(name, f"low_risk.{name}", f"{name} through a command needs a person", name)


def _risk(case: _Case, kind: str, operation: Any) -> None:
    """What `low_risk` asks for besides sensitive paths; see the module's table."""
    capability = operation.capability
    if not case.low_risk(capability):
        return
    if kind == "web_fetch" and (operation.method not in ("GET", "HEAD") or operation.body):
        case.ask(
            capability, "low_risk.web_fetch", "a request that sends data needs a person", f"method {operation.method}"
        )
    elif kind in ("git_push", "create_pr"):
        case.ask(
            capability, f"low_risk.{capability}", f"{capability} needs a person", f"capabilities.{capability}: low_risk"
        )
    elif kind == "manage_pods" and operation.action != "list":
        case.ask(capability, "low_risk.manage_pods", "changing pods needs a person", f"action {operation.action}")
