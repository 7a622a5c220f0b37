"""From what was accepted to the tightest policy that would have allowed it unattended.

Evidence in (`Event`s of one pod, in the order of the log, and `Facts`), `Proposal` out:

 1. Capabilities: those that were used, `low_risk` first, `always` only where that alone makes an operation unattended.
 2. Paths (`learn_paths`), commands (`learn_commands`), hosts and tools as they were seen. What a line rests on stays
    with it (`Entry`).
 3. What the base denies or blocks stays denied and blocked; budget and window are measured, never above the base's.
 4. Self-check: each accepted operation is decided again by the one decision function; what is not allowed is said
    (`still`), and a level is raised only for operations that it makes unattended.
 5. Self-check: an operation that was refused and would now be allowed takes back what made it so: a folded directory,
    a generalized command, at last the unattended capability.

Promises: what was refused is never covered, except that nobody answered and the very same was approved later; a file
that was approved although it looks sensitive is in `Proposal.unblocked`.
Relies on: operations as `validate_operation` normalized them.
Does not: read a log or write text (`learn_text`); know which legs a tool has (a person declares that).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from nucleus.errors import InvalidError
from nucleus.lattice import capability as cap
from nucleus.lattice import learn_commands
from nucleus.lattice.commands import Command, analyse
from nucleus.lattice.compiled import Rules
from nucleus.lattice.decision import Context, caught, decide
from nucleus.lattice.exposure import NOTHING, tool_rules
from nucleus.lattice.implies import host_covered
from nucleus.lattice.learn_evidence import Entry, Event, Facts
from nucleus.lattice.learn_paths import blocked, directories_of, names, path_entries, searched
from nucleus.lattice.policy import CommandRule, Everything, Policy, TimeWindow, ToolRule
from nucleus.lattice.session import Session
from nucleus.model.decision import TWO_PEOPLE, Decision, Verdict
from nucleus.validate.urls import split_url

CENT = 10_000  # micro-dollars
MINUTE_NS = 60_000_000_000
NAME = "learned"
_HOST = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-._")


@dataclass(slots=True)
class Proposal:
    """What was learnt. `still`: accepted, but asked for again; `uncovered`: accepted, and no policy file can say it."""

    policy: Policy
    levels: dict[str, Entry] = field(default_factory=dict)
    paths: list[Entry] = field(default_factory=list)
    folded: set[str] = field(default_factory=set)
    searched: list[Entry] = field(default_factory=list)
    commands: list[Entry] = field(default_factory=list)
    hosts: list[Entry] = field(default_factory=list)
    tools: list[Entry] = field(default_factory=list)
    undeclared: list[Entry] = field(default_factory=list)
    unblocked: list[Entry] = field(default_factory=list)
    asks_dropped: list[Entry] = field(default_factory=list)
    attended: dict[str, str] = field(default_factory=dict)
    allowed: list[Event] = field(default_factory=list)
    still: list[tuple[Event, Decision]] = field(default_factory=list)
    uncovered: list[tuple[Event, Decision]] = field(default_factory=list)
    refused: list[Event] = field(default_factory=list)


def learn(base: Policy, events: list[Event], facts: Facts) -> Proposal:
    """The proposal; the module says how it comes about.

    Args:
        base: the policy that the pod ran under.
        events: accepted and refused operations, in the order of the log.
        facts: of the pod.
    """
    draft = _Draft(base, events, facts)
    while True:
        proposal = draft.proposal()
        decisions = draft.replay(proposal.policy)
        if draft.raised(decisions):  # 4
            continue
        if not draft.took_back(proposal):  # 5
            break
    for event, decision in zip(draft.accepted, decisions, strict=True):
        if decision.verdict is Verdict.ALLOW:
            proposal.allowed.append(event)
        else:
            (proposal.still if decision.verdict is Verdict.ASK else proposal.uncovered).append((event, decision))
    return proposal


class _Draft:
    """The evidence, and what has been raised or taken back so far."""

    def __init__(self, base: Policy, events: list[Event], facts: Facts) -> None:
        self.base, self.facts = base, facts
        self.accepted = [event for event in events if event.accepted and event.operation is not None]
        self.refused = [event for event in events if not event.accepted]
        self.analysed: dict[int, Command] = {
            event.seq: analyse(event.operation.argv, event.operation.cwd)
            for event in self.accepted if event.kind == "run"
        }  # fmt: skip
        self.always: dict[str, tuple[str, int]] = {}  # capability or tool -> (rule that asked, record)
        self.attended: dict[str, str] = {}  # capability or tool -> why a person stays asked
        self.flat: set[str] = set()  # directories that are not folded
        self.exact: set[str] = set()  # programs whose words are not generalized
        self.unlisted: set[tuple[str, tuple[str, ...]]] = set()
        self.hosts_out: set[str] = set()

    # --- building ---

    def proposal(self) -> Proposal:
        """All lists and the policy that they make."""
        out = Proposal(self.base, refused=self.refused, attended=dict(self.attended))
        self._levels(out)
        named = [(event, list(names(event, self.analysed.get(event.seq)))) for event in self.accepted]
        out.paths, out.folded = path_entries(named, None if self._lists_paths else self.flat)
        out.searched = searched(self.accepted, out.paths)
        self._hosts(out)
        self._tools(out)
        out.commands = learn_commands.entries(
            [(event, self.analysed[event.seq]) for event in self.accepted if event.kind == "run"],
            self.exact, self.unlisted,
        )  # fmt: skip
        block, out.unblocked = blocked(self.base.paths_block, named)
        asks = self._asks(out)
        levels = {name: cap.ALWAYS if name in self.always else cap.LOW_RISK for name in out.levels}
        out.policy = Policy(
            name=NAME,
            description=f"What pod {self.facts.pod} was allowed under {self.facts.base}.",
            capabilities=cap.pack(levels, (frozenset(self.attended) | self.base.two_people) & frozenset(levels)),
            budget_limit=self._budget(),
            time_window=self._window(),
            paths_allow=frozenset((frozenset(entry.value for entry in out.paths),)),
            paths_block=block,
            commands_allow=frozenset((frozenset(entry.value for entry in out.commands),)),
            commands_ask=asks,
            commands_deny=self.base.commands_deny,
            hosts_allow=frozenset((frozenset(entry.value for entry in out.hosts),)),
            hosts_ask=frozenset(
                line
                for line in self.base.hosts_ask
                if not any(host_covered(entry.value, (line,)) for entry in out.hosts)
            ),
            hosts_deny=self.base.hosts_deny,
            isolation_floor=self.base.isolation_floor,
            trifecta=self.base.trifecta,
            two_people=self.base.two_people,
            identities=self.base.identities,
            tools=frozenset((frozenset(entry.value for entry in out.tools) | self._forbidden(),)),
        )
        return out

    @property
    def _lists_paths(self) -> bool:
        """The base has an allow list of its own: a directory that is folded could leave it."""
        return not isinstance(self.base.paths_allow, Everything)

    def _levels(self, out: Proposal) -> None:
        """Step 1."""
        for name in cap.NAMES:
            events = [event for event in self.accepted if name in self._capabilities(event)]
            if events:
                rule, seq = self.always.get(name, ("", 0))
                out.levels[name] = Entry(name, events, _why(rule, seq))

    def _capabilities(self, event: Event) -> tuple[str, ...]:
        if event.kind == "run":
            return ("run_bash", *self.analysed[event.seq].requires)
        return () if event.kind == "tool" else (str(event.operation.capability),)

    def _asks(self, out: Proposal) -> frozenset[CommandRule]:
        """The base's ask rules, but those that catch what was approved."""
        asks = self.base.commands_ask
        for rule in sorted(asks, key=str):
            one = Rules(frozenset((rule,)))
            events = [
                event
                for event in self.accepted
                if event.kind == "run"
                and any(caught(one, layer.program, layer.args) for layer in self.analysed[event.seq].layers)
            ]
            if events:
                asks -= {rule}
                out.asks_dropped.append(Entry(rule, events))
        return asks

    def _hosts(self, out: Proposal) -> None:
        found: dict[str, list[Event]] = {}
        for event in self.accepted:
            urls = self.analysed[event.seq].urls if event.kind == "run" else [getattr(event.operation, "url", "")]
            for host in dict.fromkeys(_host(url) for url in urls):
                if host and host not in self.hosts_out:
                    found.setdefault(host, []).append(event)
        out.hosts = [Entry(host, events) for host, events in sorted(found.items())]

    def _tools(self, out: Proposal) -> None:
        """What the base declares of the tools that were called, one table; nothing for what it does not declare."""
        called: dict[str, list[Event]] = {}
        for event in self.accepted:
            if event.kind == "tool":
                called.setdefault(f"{event.operation.server}/{event.operation.tool}", []).append(event)
        for name, events in sorted(called.items()):
            rules = tool_rules(self.base, events[0].operation)
            if not all(rule.name for rule in rules):
                out.undeclared.append(Entry(name, events))
                continue
            legs = 0
            for rule in rules:
                legs |= rule.legs
            same = len({rule.destination for rule in rules}) == 1
            level = cap.ALWAYS if name in self.always else cap.LOW_RISK
            found = ToolRule(name, legs, rules[0].destination if same else (), level, name in self.attended)
            asked, seq = self.always.get(name, ("", 0))
            out.tools.append(Entry(found, events, _why(asked, seq)))

    def _forbidden(self) -> frozenset[ToolRule]:
        """Tools that the base never allows: left out they would merely ask."""
        return frozenset(
            ToolRule(rule.name, 0, (), cap.NEVER)
            for table in self.base.tools for rule in table if rule.level == cap.NEVER
        )  # fmt: skip

    def _budget(self) -> int:
        """Twice what it cost and once what was held, in whole cents."""
        needed = 2 * self.facts.spent + self.facts.held
        return min(max(-(-needed // CENT), 1) * CENT, self.base.budget_limit)

    def _window(self) -> TimeWindow:
        window = self.base.time_window
        age = max(self.facts.ended_ns - self.facts.started_ns, 1)
        duration = min(-(-2 * age // MINUTE_NS) * MINUTE_NS, window.duration_ns)
        return TimeWindow(duration, window.not_before_ns, window.not_after_ns)

    # --- checking ---

    def replay(self, policy: Policy) -> list[Decision]:
        """Step 4: what `policy` says of each accepted operation, in order and with what had been seen by then."""
        facts = self.facts
        session = Session(policy, task=facts.task, trusted_workspace=facts.trusted_workspace, egress=facts.egress)
        out = []
        for event in self.accepted:
            out.append(decide(policy, event.operation, self._context(event, session)))
            session.before(event.operation)
        return out

    def _context(self, event: Event, session: Session | None = None) -> Context:
        """Without a session: nothing was seen, which asks least."""
        facts = self.facts
        return Context(
            now_ns=max(event.at_ns, facts.started_ns),
            started_ns=facts.started_ns,
            egress=facts.egress,
            trusted_workspace=facts.trusted_workspace,
            isolation=facts.isolation,
            seen=session.seen if session is not None else NOTHING,
            knowledge=session.knowledge if session is not None else None,
            task=facts.task,
        )

    def raised(self, decisions: list[Decision]) -> bool:
        """Step 4: raise what low_risk alone keeps from being unattended. True when something was raised."""
        changed = False
        for event, decision in zip(self.accepted, decisions, strict=True):
            asks = [rule for rule, verdict in decision.met if verdict is Verdict.ASK]
            if decision.verdict is not Verdict.ASK or not all(rule.startswith("low_risk.") for rule in asks):
                continue
            for obligation in decision.obligations:
                if obligation == TWO_PEOPLE:
                    continue
                name = obligation.removeprefix("approval:")
                if name == "tools":
                    name = f"{event.operation.server}/{event.operation.tool}"
                if name not in self.always:
                    self.always[name] = (asks[0], event.seq)
                    changed = True
        return changed

    def took_back(self, proposal: Proposal) -> bool:
        """Step 5. True when something was taken back: build again, levels from the lowest on."""
        approved = {event.identity for event in self.accepted}
        for event in self.refused:
            if event.operation is None or not event.by_policy or (event.unanswered and event.identity in approved):
                continue
            policy = proposal.policy
            if decide(policy, event.operation, self._context(event)).verdict is not Verdict.ALLOW:
                continue
            self._take_back(event, proposal)
            self.always.clear()
            return True
        return False

    def _take_back(self, event: Event, proposal: Proposal) -> None:
        operation, why = event.operation, f"record {event.seq} was refused, and no line tells it from what was allowed"
        if event.kind == "run":
            plain = analyse(operation.argv, operation.cwd).plain
            assert plain is not None
            if plain.program not in self.exact:
                self.exact.add(plain.program)
            elif plain in self.unlisted:
                self.attended["run_bash"] = why
            else:
                self.unlisted.add((plain.program, plain.args))
            return
        if event.kind == "tool":
            self.attended[f"{operation.server}/{operation.tool}"] = why
            return
        if event.kind == "web_fetch" and (host := _host(operation.url)) and host not in self.hosts_out:
            self.hosts_out.add(host)
            return
        folded = proposal.folded & directories_of(event)
        self.flat |= folded
        if not folded:
            self.attended[str(operation.capability)] = why


def _why(rule: str, seq: int) -> str:
    return f"always, because at low_risk record {seq} would ask ({rule})" if rule else ""


def _host(url: str) -> str:
    """The host of `url` where a policy can name it, else ""."""
    try:
        host = split_url("url", url).host if url else ""
    except InvalidError:
        return ""
    return host if set(host) <= _HOST else ""
