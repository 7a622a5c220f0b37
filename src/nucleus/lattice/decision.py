"""The one decision function: policy, operation and context in, one `Decision` out.

Deny beats ask beats allow; among equals the first of this order is reported, and `Decision.met` lists them all:

 1. isolation floor      the pod is weaker than the policy demands: deny
 2. time window          over, or not yet: deny
 3. capability           never: deny; a command needs the capability of what it does too (`git push` is git_push);
                         an external tool has what `tools` declares of it, and one that is not declared asks;
                         `identities.operations` names who may, and this caller is not among them: deny
 4. paths                blocked or not on the allow list: deny (block wins); protected names are read-only: deny
 5. commands, hosts      deny rules deny, ask rules ask
 6. approve              the policy wants a person for this capability or tool: ask
 7. trifecta             private data, untrusted content and a way out together: the way out asks (`trifecta`: modes)
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
connect                 | always: the list says what is meant; the trifecta asks unless the rule is `trusted`
git_push, create_pr     | never
tool                    | it neither exfiltrates nor changes state

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
from nucleus.lattice import identities, network, strings, trifecta
from nucleus.lattice.commands import Command, analyse
from nucleus.lattice.compiled import Compiled, Rules, compiled
from nucleus.lattice.exposure import NOTHING, Exposure, tool_rules
from nucleus.lattice.network import NetRule
from nucleus.lattice.paths import is_protected, is_sensitive
from nucleus.lattice.policy import FLOORS, Policy, ToolRule
from nucleus.lattice.provenance import Knowledge
from nucleus.lattice.tables import STRINGS
from nucleus.model.decision import TWO_PEOPLE, Decision, Verdict
from nucleus.validate import shell
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
        seen: what the session has seen so far.
        knowledge: the destinations that it knows; None: those of `task` alone.
        task: the user's own task text.
        caller: the SPIFFE ID that the door has proven; "" for none.
        own: that is the pod's own agent, orchestrator or gateway.
    """

    now_ns: int
    started_ns: int
    egress: bool = False
    trusted_workspace: bool = False
    isolation: str = FLOORS[0]
    seen: Exposure = NOTHING
    knowledge: Knowledge | None = None
    task: str = ""
    caller: str = ""
    own: bool = True


ALLOW, ASK, DENY = Verdict.ALLOW, Verdict.ASK, Verdict.DENY
_RANK = {ALLOW: 0, ASK: 1, DENY: 2}
_STRENGTH = {name: rank for rank, name in enumerate(FLOORS)}
_MET_HERE_AND_NOW = _MET_ISOLATION, _MET_WINDOW = ("isolation.floor", ALLOW), ("time_window", ALLOW)
_MET_CAPABILITY = {name: (f"capabilities.{name}", ALLOW) for name in cap.NAMES}
_MET_PATHS, _MET_COMMANDS, _MET_HOSTS = ("paths", ALLOW), ("commands", ALLOW), ("hosts", ALLOW)
_MET_APPROVE = {name: (f"approve.{name}", ALLOW) for name in cap.NAMES}
_MET_TRIFECTA = {mode: (f"trifecta.{mode}", ALLOW) for mode in ("static", "session", "provenance")}
_MET_RISK = {name: (f"low_risk.{name}", ALLOW) for name in cap.NAMES}


Finding = tuple[Verdict, str, str, str, str]  # as the first fields of a Decision


class _Case:
    """Findings about one operation; the gravest, and among equals the first, is the decision."""

    __slots__ = ("context", "found", "levels", "met", "obligations", "policy", "ready", "settled", "standing")

    def __init__(self, policy: Policy, context: Context) -> None:
        self.policy = policy
        self.context = context
        self.ready = ready = compiled(policy)
        seen = context.seen
        bits = 0 if seen is NOTHING else seen.bits()
        self.standing = standing = ready.standing(context.egress, context.trusted_workspace, bits)
        self.levels = standing.levels
        self.settled = standing.settled
        self.found: Finding | None = None
        self.obligations: list[str] = []
        self.met: list[tuple[str, Verdict]] = []

    def deny(self, rule: str, reason: str, detail: str = "", next_step: str = "") -> None:
        self._add((DENY, rule, reason, detail, next_step))

    def ask(self, capability: str, rule: str, reason: str, detail: str = "", next_step: str = "") -> None:
        obligation = f"approval:{capability}"
        if obligation not in self.obligations:
            self.obligations.append(obligation)
        self._add((ASK, rule, reason, detail, next_step or "Approve it as it is asked, or change the policy."))

    def _add(self, finding: Finding) -> None:
        self.met.append((finding[1], finding[0]))
        if self.found is None or _RANK[finding[0]] > _RANK[self.found[0]]:
            self.found = finding

    def low_risk(self, capability: str) -> bool:
        return self.levels[capability] == cap.LOW_RISK

    def level(self, capability: str) -> int:
        return self.levels[capability]

    def result(self, rule: str, detail: str) -> Decision:
        found = self.found
        if found is None:
            self.met.append((rule, ALLOW))
            return Decision(ALLOW, rule, "allowed by the policy", detail, "", (), tuple(self.met))
        obligations = tuple(self.obligations) if found[0] is ASK else ()
        if obligations and any(name.partition(":")[2] in self.policy.two_people for name in obligations):
            obligations = (*obligations, TWO_PEOPLE)
        return Decision(*found, obligations, tuple(self.met))


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
    kind = getattr(operation, "kind", "")
    ready, now = case.ready, context.now_ns
    # A clock that ran backwards is no reason to go on.
    if (
        _STRENGTH.get(context.isolation, -1) >= ready.floor
        and 0 <= now - context.started_ns < ready.lasts_ns
        and ready.starts_ns <= now < ready.ends_ns
    ):
        case.met += _MET_HERE_AND_NOW
    else:
        _isolation(case)  # 1
        _window(case)  # 2
    if kind == "run":
        _run(case, operation)
        return case.result(*case.standing.passed["run_bash"])
    if kind == "tool":
        return _tool(case, operation)
    if kind == "connect":
        return _connect(case, operation)
    capability = operation.capability
    _capability(case, capability)  # 3
    if operation.path_fields:
        paths = _paths_of(operation)
        for path in paths:  # 4
            _path(case, path, capability, write=operation.effect, search=kind in ("glob", "grep"))
        if paths:
            case.met.append(_MET_PATHS)
    listed = kind == "web_fetch" and _host(case, getattr(operation, "url", ""), capability)  # 5
    _attended(case, capability, operation, listed=listed)  # 6, 7
    _risk(case, kind, operation)  # 8
    return case.result(*case.standing.passed[capability])


def decide_path(policy: Policy, path: str, write: bool = False) -> Decision | None:
    """The denial that the path rules give for one name (a search result, a resolved symlink), or None.

    Args:
        policy: the pod's policy.
        path: relative to the workspace, normalized.
        write: the name would be changed.
    """
    ready = compiled(policy)
    found = _refusal(ready, path, write, ready.touchy.find(path))
    return None if found is None else Decision(*found)


def _refusal(ready: Compiled, path: str, write: bool, touchy: str | None) -> Finding | None:
    """`touchy`: what ``ready.touchy`` found; the first of ``paths.block`` where it is one of them."""
    glob = touchy if touchy is None or touchy in ready.policy.paths_block else ready.blocked.find(path)
    if glob is not None:
        return _denied("paths.block", "this path is blocked by the policy", f"paths.block: {glob}")
    # Before the allow list: a caller may waive a miss there, for a word that may be no path, but never this.
    if write and touchy is not None and (glob := is_protected(path)) is not None:
        return _denied(
            "paths.protected",
            "this path is read-only: it would run on the host later",
            f"protected: {glob}",
            "No policy lifts this; change the file yourself, outside the pod.",
        )
    for globs, text in ready.allowed:
        if globs.find(path) is None:
            return _denied("paths.allow", "this path is not on the policy's allow list", f"paths.allow: {text}")
    return None


def _denied(rule: str, reason: str, detail: str, next_step: str = "") -> Finding:
    step = next_step or f"Change `{rule}` in the policy if this file is meant to be reachable."
    return DENY, rule, reason, detail, step


def _paths_of(operation: Base) -> list[str]:
    out: list[str] = []
    for name in operation.path_fields:
        value = getattr(operation, name)
        out += [value] if isinstance(value, str) else list(value)
    return out


# --- steps 1 and 2 ---


def _isolation(case: _Case) -> None:
    here = case.context.isolation
    if _STRENGTH.get(here, -1) < case.ready.floor:
        floor = case.policy.isolation_floor
        case.deny(
            "isolation.floor",
            "the pod's isolation is below the policy's floor",
            f"isolation.floor: {floor}; the pod has: {here}",
            f"Run where {floor} is available, or lower the floor.",
        )
    else:
        case.met.append(_MET_ISOLATION)


def _window(case: _Case) -> None:
    ready, context = case.ready, case.context
    now = context.now_ns
    age = now - context.started_ns
    # A clock that ran backwards is no reason to go on.
    if not (0 <= age < ready.lasts_ns and ready.starts_ns <= now < ready.ends_ns):
        window = case.policy.time_window
        case.deny(
            "time_window",
            "outside the policy's time window",
            f"age {max(age, 0) // 1_000_000_000} s, duration {window.duration_ns // 1_000_000_000} s",
            "Start a new pod, or widen `time_window` in the policy.",
        )
    else:
        case.met.append(_MET_WINDOW)


# --- steps 3, 6 and 7: capabilities ---


def _capability(case: _Case, name: str) -> None:
    if case.levels[name] == cap.NEVER:
        case.deny(
            f"capabilities.{name}",
            f"the policy never allows {name}",
            f"capabilities.{name}: never",
            f"Set `capabilities.{name}` in the policy, or pick another profile.",
        )
    else:
        case.met.append(_MET_CAPABILITY[name])
    if case.ready.operators:
        _caller(case, name)


def _caller(case: _Case, name: str) -> None:
    """Step 3, who: `name` is a capability, ``tools`` or ``network``."""
    lists, context = case.ready.operators.get(name, ()), case.context
    for patterns in lists:
        if not identities.matches(patterns, context.caller, own=context.own):
            case.deny(
                "identity.operation",
                f"the policy does not name this caller for {name}",
                f"identities.operations.{name}: {', '.join(sorted(patterns)) or '(nobody)'}",
                f"Call as one of them, or change `identities.operations.{name}`.",
            )
            return
    if lists:
        case.met.append(("identity.operation", ALLOW))


def _attended(case: _Case, name: str, operation: Any, *, listed: bool = False) -> None:
    """Steps 6 and 7 for one capability."""
    settled = case.settled.get(name)
    if settled is not None:
        case.met += settled
        return
    if case.levels[name] == cap.NEVER:
        return
    if not cap.unattended(case.policy.capabilities, name):
        case.ask(name, f"approve.{name}", f"the policy wants a person's approval for {name}", f"approve: {name}")
        return
    case.met.append(_MET_APPROVE[name])
    if name not in trifecta.ROADS:
        return
    ready, context = case.ready, case.context
    if ready.static:
        _static(case, name, not cap.unattended(case.standing.normal, name))
    if ready.session or ready.provenance:
        what = trifecta.outward(name, operation, egress=context.egress, listed=listed, seen=context.seen)
        _by_session(case, name, what)


def _static(case: _Case, name: str, asks: bool) -> None:
    """Step 7, mode ``static``."""
    if not asks:
        case.met.append(_MET_TRIFECTA["static"])
        return
    case.ask(
        name,
        "trifecta.static",
        f"{name} could carry private data out after untrusted content was read",
        f"private data, untrusted content and a way out are all enabled: {case.standing.live}; "
        f"seen so far: {trifecta.sources(case.context.seen)}",
        "Approve it as it is asked, or take one of the three legs out of the policy.",
    )


def _by_session(case: _Case, name: str, what: trifecta.Outward) -> None:
    """Step 7, modes ``session`` and ``provenance``."""
    ready, seen = case.ready, case.context.seen
    if ready.session:
        if trifecta.session_asks(what, seen):
            case.ask(
                name,
                "trifecta.session",
                f"{name} could carry private data out after untrusted content was read",
                f"this session has seen: {trifecta.sources(seen)}",
            )
        else:
            case.met.append(_MET_TRIFECTA["session"])
    if ready.provenance:
        knowledge = case.context.knowledge or Knowledge(case.context.task)
        why = trifecta.provenance_asks(what, knowledge)
        if why is not None:
            case.ask(
                name,
                "trifecta.provenance",
                f"{name} acts outside, on a destination that the user did not name",
                f"{why}; this session has seen: {trifecta.sources(seen)}",
                "Approve it as it is asked, or name the destination in the task.",
            )
        else:
            case.met.append(_MET_TRIFECTA["provenance"])


# --- external tools ---


def _tool(case: _Case, operation: Any) -> Decision:
    """Steps 3, 6, 7 and 8 for a call of an external tool; each of the policy's tables has its say."""
    name = f"{operation.server}/{operation.tool}"
    if case.ready.operators:
        _caller(case, "tools")
    for rule in tool_rules(case.policy, operation):
        _tool_by(case, rule, name, operation)
    return case.result(f"tools.{operation.server}", f"tools: {name}")


def _tool_by(case: _Case, rule: ToolRule, name: str, operation: Any) -> None:
    label = "tools"
    if not rule.name:
        case.ask(
            label,
            "tools.undeclared",
            "the policy does not declare this tool: it counts as private, untrusted and a way out",
            f"tools: {name} is not declared; seen so far: {trifecta.sources(case.context.seen)}",
            f"Approve it as it is asked, or declare `{name}` with its legs under `tools` in the policy.",
        )
        return
    if rule.level == cap.NEVER:
        case.deny("tools.level", "the policy never allows this tool", f"tools: {rule.name}: never")
        return
    case.met.append(("tools.level", ALLOW))
    if rule.approve:
        case.ask(label, "tools.approve", "the policy wants a person's approval for this tool", f"tools: {rule.name}")
    what = trifecta.outward_tool(rule, operation.arguments)
    if case.ready.static and rule.legs & cap.EXFILTRATION:
        # As for ν: the private and untrusted legs are whatever the policy enables or the session has seen.
        context = case.context
        with_legs = cap.legs(egress=context.egress, trusted_workspace=context.trusted_workspace)
        outside = case.ready.tools | context.seen.bits() | cap.EXFILTRATION
        _static(case, label, bool(cap.trifecta(case.policy.capabilities, with_legs, outside)))
    _by_session(case, label, what)
    if rule.level == cap.LOW_RISK and rule.legs & trifecta.OUTWARD:
        case.ask(
            label,
            "low_risk.tools",
            "a tool that sends or changes something needs a person",
            f"tools: {rule.name}: low_risk",
            f"Approve it as it is asked, or set `level: always` for `{rule.name}`.",
        )


# --- connections ---


def _connect(case: _Case, operation: Any) -> Decision:
    """Steps 5 to 7 for a connection out of the pod; each list of ``network.allow`` has to admit it."""
    host, port = operation.host, operation.port
    if case.ready.operators:
        _caller(case, "network")
    to = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    if (line := case.ready.hosts_deny.find(host)) is not None:
        case.deny("hosts.deny", "this host is denied by the policy", f"hosts.deny: {line}", "Change `hosts.deny`.")
    elif (line := case.ready.hosts_ask.find(host)) is not None:
        case.ask("network", "hosts.ask", "the policy asks for this host", f"hosts.ask: {line}")
    if operation.fault:
        case.deny("network.fault", "the gateway does not send such a request on", operation.fault)
    # The name inside is the one that the other side acts on.
    if operation.inner and operation.inner != host and not network.is_address(host):
        case.deny("network.inner", *_INNER.get(operation.inner, _INNER[""]))
    else:
        case.met.append(("network.inner", ALLOW))
    admitted: list[tuple[NetRule, ...]] = []
    for rules in case.policy.network:
        found = network.rules_for(rules, host, port)
        if not found:
            case.deny(
                "network.allow",
                "the policy lists no connection to this host and port",
                f"network.allow: nothing covers {to}",
                f"Add {_as_rule(host, port)} to `network.allow` in the policy.",
            )
            continue
        asked = operation.protocol, operation.method, operation.path
        fits = tuple(rule for rule in found if network.admits(rule, *asked))
        if not fits:
            case.deny(
                "network.request",
                "the policy does not allow this request to the host",
                f"network.allow: {'; '.join(map(str, found))}; this is {' '.join(asked[:2])}".rstrip(),
                "Change the rule's protocol, methods or paths.",
            )
            continue
        case.met.append(("network.allow", ALLOW))
        admitted.append(fits)
    if len(admitted) == len(case.policy.network):
        _connect_attended(case, operation, admitted)
    return case.result("network.allow", f"network.allow: {to}")


_INNER = {
    "": ("the connection names another host than the one it was opened for", "", ""),
    "-": ("the connection does not name its host", "TLS without a server name (SNI), or HTTP without a Host", ""),
    "ech": ("the connection hides which host it is for", "Encrypted Client Hello", "Switch it off in the client."),
}


def _as_rule(host: str, port: int) -> str:
    if network.is_address(host):
        return f'`"[{host}/128]:{port}"`' if ":" in host else f"`{host}/32:{port}`"
    return f"`{host}`" if port == 443 else f"`{host}:{port}`"


def _connect_attended(case: _Case, operation: Any, admitted: list[tuple[NetRule, ...]]) -> None:
    """Steps 6 and 7. The most permissive rule of a list counts, and the strictest list."""
    label = "network"
    if any(all(rule.approve for rule in fits) for fits in admitted):
        case.ask(label, "network.approve", "the policy wants a person's approval for this connection")
    else:
        case.met.append(("network.approve", ALLOW))
    if all(any(rule.trusted for rule in fits) for fits in admitted):
        return
    context = case.context
    if case.ready.static:
        with_legs = cap.legs(egress=context.egress, trusted_workspace=context.trusted_workspace)
        outside = case.ready.tools | context.seen.bits() | cap.EXFILTRATION | cap.UNTRUSTED
        _static(case, label, bool(cap.trifecta(case.policy.capabilities, with_legs, outside)))
    _by_session(case, label, trifecta.Outward(trifecta.OUTWARD, (operation.host,)))


# --- step 4 ---


def _path(case: _Case, path: str, capability: str, *, write: bool, search: bool = False) -> None:
    ready = case.ready
    glob = ready.touchy.find(path)
    if glob is not None or not (search or ready.listed_paths(path)):
        _listed_path(case, path, capability, glob, write=write, search=search)


def _listed_path(case: _Case, path: str, capability: str, glob: str | None, *, write: bool, search: bool) -> None:
    """Some list has something to say of `path`; `glob`: what `touchy` found first."""
    found = _refusal(case.ready, path, write, glob)
    # A search may start above the allow list: what it finds is decided name by name.
    if found is not None and not (search and found[1] == "paths.allow"):
        case.deny(*found[1:])
    elif glob is not None and case.low_risk(capability) and (glob := is_sensitive(path)) is not None:
        case.ask(capability, "low_risk.sensitive_path", "the path looks sensitive", f"sensitive: {glob}")


# --- step 5 ---


def _host(case: _Case, url: str, capability: str) -> bool:
    """Step 5 for a URL. True when its host is listed."""
    try:
        host = split_url("url", url).host
    except InvalidError:
        case.ask(capability, "hosts.allow", "the address cannot be read", "not a plain URL")
        return False
    ready = case.ready
    if (line := ready.hosts_deny.find(host)) is not None:
        case.deny("hosts.deny", "this host is denied by the policy", f"hosts.deny: {line}", "Change `hosts.deny`.")
    elif (line := ready.hosts_ask.find(host)) is not None:
        case.ask(capability, "hosts.ask", "the policy asks for this host", f"hosts.ask: {line}")
    elif any(hosts.find(host) is None for hosts in ready.hosts):
        case.ask(
            capability,
            "hosts.allow",
            "this host is not on the policy's list",
            "hosts.allow",
            f"Add {host} to `hosts.allow`.",
        )
    else:
        case.met.append(_MET_HOSTS)
        return True
    return False


_RUN_ALONE = ("run_bash",)
_CONNECTING = frozenset(("web_fetch", "web_search"))


def _run(case: _Case, operation: Base) -> None:
    """Steps 3 to 8 for a command."""
    argv: tuple[str, ...] = getattr(operation, "argv", ())
    cwd: str = getattr(operation, "cwd", ".")
    command, composed = _command(case, argv, cwd)
    requires = command.requires
    if requires and case.ready.connects:
        requires = requires - _CONNECTING  # each connection is decided by itself, whatever the words say
    needed = ("run_bash", *(name for name in cap.NAMES if name in requires)) if requires else _RUN_ALONE
    for name in needed:
        _capability(case, name)
    ready = case.ready
    # Most paths are on no list that could say something: so much is found here, the rest in `_listed_path`.
    listed, find = ready.listed_paths, ready.touchy.find
    if (glob := find(cwd)) is not None:
        _listed_path(case, cwd, "run_bash", glob, write=False, search=True)
    paths, weak = command.paths, command.weak
    for path in paths if len(paths) < 2 else dict.fromkeys(paths):
        glob = find(path)
        if glob is not None or (path not in weak and not listed(path)):
            _listed_path(case, path, "run_bash", glob, write=path in command.written, search=path in weak)
    case.met.append(_MET_PATHS)
    _lines(case, command)
    for url in () if case.ready.connects else command.urls:
        _host(case, url, "run_bash")
    for name in needed:
        _attended(case, name, operation)
    _run_risk(case, command, needed, listed=composed or is_listed(ready.listed, command))


def _command(case: _Case, argv: tuple[str, ...], cwd: str) -> tuple[Command, bool]:
    """The analysis; whether it is a shell string that every list admits as its commands. Elsewhere one is flagged."""
    found = strings.read(argv, cwd) if len(argv) == 3 and argv[1] == "-c" else None
    if found is None:
        command = analyse(argv, cwd)
        if isinstance(reason := shell.of(argv), shell.Unclear):
            command.flags.insert(0, f"a shell string with {reason.reason}")
        return command, False
    if _composed(case.ready.listed, found):
        return found.whole, True
    # What its commands ask for is asked for in any case: a policy that has no strings never decides more.
    command = analyse(argv, cwd)
    strings.join(command, found.whole)
    for part in found.parts:
        if not is_listed(case.ready.listed, part) and part.plain is not None:
            command.flags.insert(0, f"{part.plain.program} in a shell string")
            break
    return command, False


def _composed(lists: tuple[Rules, ...] | None, found: strings.Composite) -> bool:
    """Does each of an allow list's lists have shell strings, and each command of this one?"""
    plain = found.whole.plain
    return lists is None or all(
        plain is not None
        and any(rule.group == STRINGS for rule, _ in rules.of(plain.program))
        and all(is_listed((rules,), part) for part in found.parts)
        for rules in lists
    )


def _lines(case: _Case, command: Command) -> None:
    ready = case.ready
    watched = ready.watched
    for program, args in command.layers:
        if watched is not None and program not in watched and "/" not in program:
            continue
        if (line := caught(ready.deny, program, args)) is not None:
            case.deny(
                "commands.deny",
                "this command is denied by the policy",
                f"commands.deny: {line}",
                "Change `commands.deny`.",
            )
        elif (line := caught(ready.ask, program, args)) is not None:
            case.ask("run_bash", "commands.ask", "the policy asks for this command", f"commands.ask: {line}")


def caught(rules: Rules, program: str, args: tuple[str, ...]) -> str | None:
    """The text of the rule of an ask or deny list that catches one layer of a command."""
    for rule, text in rules.of(program):
        if rule.finds(args):
            return text
    if "/" in program:
        for rule, text in rules.of(program.rpartition("/")[2]):
            if rule.finds(args):
                return text
    return None


def is_listed(lists: tuple[Rules, ...] | None, command: Command) -> bool:
    """Is the command on each of an allow list's lists? None: everything is."""
    if lists is None:
        return True
    plain = command.plain
    if plain is None:
        return False
    program, args = plain.program, plain.args
    for rules in lists:
        for rule, _ in rules.of(program):
            # A set is about plain commands: one that leaves its program's job must be named itself.
            if rule.fits(args) and not (rule.group and (command.flags or rule.group == STRINGS)):
                break
        else:
            return False
    return True


# --- step 8: the table ---


def _run_risk(case: _Case, command: Command, needed: tuple[str, ...], *, listed: bool) -> None:
    if not listed and command.credentials:
        case.deny(
            "commands.credentials",
            "this command handles credentials",
            command.credentials,
            "Name the program in `commands.allow` if it is meant.",
        )
    elif not listed:
        detail = command.flags[0] if command.flags else "commands.allow"
        case.ask("run_bash", "commands.allow", "this command is not on the policy's list", detail)
    else:
        case.met.append(_MET_COMMANDS)
    if (command.flags or command.runs_code) and case.low_risk("run_bash"):
        if command.flags:
            case.ask("run_bash", "low_risk.run_bash", "this command can do more than its words say", command.flags[0])
        if command.runs_code and case.context.egress:
            case.ask(
                "run_bash", "low_risk.run_bash", "code runs unattended only in a pod without egress", command.runs_code
            )
    if needed is _RUN_ALONE:
        return
    for name in needed[1:]:
        if name in ("git_push", "create_pr", "web_fetch", "web_search") and case.low_risk(name):
            case.ask(name, f"low_risk.{name}", f"{name} through a command needs a person", name)


_RISKY = frozenset(("web_fetch", "git_push", "create_pr", "manage_pods"))


def _risk(case: _Case, kind: str, operation: Any) -> None:
    """What `low_risk` asks for besides sensitive paths; see the module's table."""
    if kind not in _RISKY:
        return
    capability = operation.capability
    if kind == "git_push" and (operation.forced or operation.delete):
        # Whatever the level: what is lost there is not in the workspace to get it back from.
        case.ask(
            capability, "git_push.lossy", "this push deletes a ref or drops history on the remote", operation.target
        )
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
