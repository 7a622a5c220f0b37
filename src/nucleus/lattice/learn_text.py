"""A proposal as a policy file for a person to review: each line with what it rests on.

Promises: the text parses to the proposal's policy exactly, or there is none (`InvalidError`); what came from the agent,
names and words, is quoted in values and escaped in comments, so it can begin no line; what still asks and what was
refused stands at the end, as comments. Shortens its comments, never its rules, to fit a policy file.
Does not: learn (`learn`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from nucleus.errors import InvalidError
from nucleus.lattice import capability as cap
from nucleus.lattice.commands import analyse
from nucleus.lattice.compiled import Rules
from nucleus.lattice.decision import is_listed
from nucleus.lattice.emit import identities
from nucleus.lattice.explain import dollars, duration, folded
from nucleus.lattice.identities import DEFAULT
from nucleus.lattice.learn import Proposal
from nucleus.lattice.learn_evidence import Entry, Event, Facts
from nucleus.lattice.load import parse_policy
from nucleus.lattice.policy import Argument, CommandRule, Everything, Policy, ToolRule, modes
from nucleus.limits import LIMITS

_NS = 1_000_000_000
_WIDTH = 116  # of a line with its comment; a longer comment stands above its line
_SHOWN = 160  # characters of one text of the agent's in a comment
_EXAMPLES = 3  # of one command rule
_SIZES = ((12, 200), (4, 40), (1, 8), (0, 0))  # (records named in a line, operations listed at the end), largest first


def text_of(proposal: Proposal, facts: Facts) -> str:
    """The file.

    Raises:
        InvalidError: rule ``learn.text``: what was learnt does not fit a policy file.
    """
    problem = ""
    for records, listed in _SIZES:
        text = _Writer(proposal, facts, records, listed).text()
        if len(text.encode("utf-8")) > LIMITS.policy_bytes:
            problem = f"it would be longer than {LIMITS.policy_bytes} bytes"
            continue
        try:
            if parse_policy(text, NAMED) == proposal.policy:
                return text
            problem = "it does not read back as it was meant"
        except InvalidError as error:
            problem = error.message
        break
    raise InvalidError(
        f"no policy file can hold what was learnt: {problem}",
        rule="learn.text",
        next_step="Learn a shorter piece of work.",
    )


NAMED = "the proposal"


def quoted(text: str) -> str:
    """A YAML double-quoted scalar."""
    marks = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\t": "\\t"}
    return '"' + "".join(marks.get(c) or (c if c.isprintable() else f"\\U{ord(c):08X}") for c in text) + '"'


def comment(text: str, limit: int = _SHOWN) -> str:
    """Foreign text on one line of a comment."""
    shown = text if len(text) <= limit else text[: limit - 1] + "…"
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in shown)


class _Writer:
    def __init__(self, proposal: Proposal, facts: Facts, records: int, listed: int) -> None:
        self.proposal, self.facts, self.policy = proposal, facts, proposal.policy
        self.records, self.listed = records, listed
        self.lines: list[str] = []

    def text(self) -> str:
        self._head()
        self._capabilities()
        self._paths()
        self._commands()
        self._hosts()
        self._tools()
        self._limits()
        self._rest()
        return "\n".join(self.lines) + "\n"

    def add(self, line: str, note: str = "") -> None:
        if note and len(line) + len(note) > _WIDTH:
            self.lines += [f"{line[: len(line) - len(line.lstrip())]}# {note}", line]
        else:
            self.lines.append(f"{line}  # {note}" if note else line)

    def rests(self, entry: Entry) -> str:
        """What a line rests on."""
        return "; ".join(filter(None, (comment(entry.note), self._evidence(entry.events))))

    def _evidence(self, events: list[Event]) -> str:
        unique = list({event.seq: event for event in events}.values())
        kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(Counter(e.kind for e in unique).items()))
        who = []
        by_base = [event for event in unique if not event.approver]
        if by_base:
            who.append(f"{len(by_base)} allowed by the base{self._records(event.seq for event in by_base)}")
        for approver in sorted({event.approver for event in unique} - {""}):
            mine = [event for event in unique if event.approver == approver]
            answers = self._records((event.approval for event in mine if event.approval), ", answers")
            who.append(f"{len(mine)} approved by {comment(approver)}{self._records(e.seq for e in mine)}{answers}")
        return f"{kinds}: {'; '.join(who)}"

    def _records(self, numbers: Iterable[int], title: str = "") -> str:
        found = sorted(set(numbers))
        if not found or not self.records:
            return ""
        more = f" and {len(found) - self.records} more" if len(found) > self.records else ""
        shown = ", ".join(map(str, found[: self.records]))
        return f"{title} seq {shown}{more}" if title else f" (seq {shown}{more})"

    # --- the file, from the top ---

    def _head(self) -> None:
        facts, proposal = self.facts, self.proposal
        accepted = len(proposal.allowed) + len(proposal.still) + len(proposal.uncovered)
        self.lines += [
            f"# Proposed by `nucleus learn` from what pod {comment(facts.pod)} was allowed under {comment(facts.base)}",
            f"# (policy digest {comment(facts.digest)}).",
            f"# {accepted} operations were accepted: {len(proposal.allowed)} of them need nobody under this policy, "
            f"{len(proposal.still)} still ask. {len(proposal.refused)} were refused.",
            "# Numbers after `seq` are records of the audit log: `nucleus audit show LOG --seq N`.",
            "# Review each line: what a hijacked agent was allowed to do is in here too.",
        ]
        if facts.shared:
            self.lines.append("# WARNING --share-workspace: what the agent read past the gate is not on record.")
        self.lines += ["version: 1", f"name: {self.policy.name}", f"description: {quoted(self.policy.description)}"]

    def _capabilities(self) -> None:
        self.lines.append("capabilities:" + ("" if self.proposal.levels else " {}"))
        for name, entry in self.proposal.levels.items():
            level = cap.LEVEL_NAMES[cap.level(self.policy.capabilities, name)]
            note = self.rests(entry)
            self.add(f"  {name}: {level}", f"WARNING {note}" if entry.note else note)
        attended = [name for name in self.proposal.levels if name in self.proposal.attended]
        if attended:
            self.lines.append("approve:")
            for name in attended:
                self.add(f"  - {name}", comment(self.proposal.attended[name]))
        if self.policy.two_people:
            self.add(f"two_people: [{', '.join(sorted(self.policy.two_people))}]", "the base's own")
        if self.policy.identities != DEFAULT:
            self.lines += identities(self.policy.identities)

    def _paths(self) -> None:
        self.lines.append("paths:")
        writes = {"write_files", "edit_files"} & set(self.proposal.levels)
        if writes and self.proposal.paths:
            self.lines.append("  # One list for reading and writing: what stands here may also be written.")
        self._list("allow", self.proposal.paths, _path)
        if any(event.kind in ("git_status", "git_diff") for event in self.proposal.allowed):
            self.lines.append("  # git_status and git_diff show only what is on this list.")
        for entry in self.proposal.searched:
            glob = quoted(_path(entry.value)) if entry.value != "**" else '"**"'
            self.lines.append(
                f"  # A search shows only what is on this list; to let it show the rest, add - {comment(glob)}: "
                f"{self._evidence(entry.events)}"
            )
        for entry in self.proposal.unblocked:
            self.lines.append(
                f"  # WARNING {comment(str(entry.value))} looks sensitive and is not blocked: {self.rests(entry)}"
            )
        self.lines.append(f"  block: [{', '.join(map(quoted, folded(self.policy.paths_block)))}]")

    def _commands(self) -> None:
        self.lines.append("commands:")
        self._list("allow", self.proposal.commands, lambda rule: rule, self._rule)
        for entry in self.proposal.asks_dropped:
            self.lines.append(f"  # the base asks for `{comment(str(entry.value))}`: {self.rests(entry)}")
        for name, rules in (("ask", self.policy.commands_ask), ("deny", self.policy.commands_deny)):
            if rules:
                self.lines.append(f"  {name}:")
                self.lines += sorted(f"    - {_rule(rule)}" for rule in rules)

    def _rule(self, entry: Entry) -> str:
        examples: list[str] = []
        for event in entry.events:
            argv = event.operation.argv
            # Examples are read as if run at the root: what is flagged only there is no example.
            if is_listed((Rules(frozenset((entry.value,))),), analyse(argv)):
                words = f"[{', '.join(map(quoted, argv))}]"
                if words not in examples:
                    examples.append(words)
        shown = ", ".join(examples[: min(_EXAMPLES, self.records)])
        return _rule(entry.value, f", match: [{shown}]" if shown else "")

    def _hosts(self) -> None:
        self.lines.append("hosts:")
        self._list("allow", self.proposal.hosts, lambda host: host)
        for name, hosts in (("ask", self.policy.hosts_ask), ("deny", self.policy.hosts_deny)):
            if hosts:
                self.lines.append(f"  {name}: [{', '.join(map(quoted, sorted(hosts)))}]")

    def _tools(self) -> None:
        rules = {rule for table in self.policy.tools for rule in table}
        self.lines.append("tools:" if rules else "tools: {}")
        known = {entry.value: entry for entry in self.proposal.tools}
        for rule in sorted(rules, key=lambda rule: rule.name):
            entry = known.get(rule)
            note = self.rests(entry) if entry else "the base never allows it"
            if rule.name in self.proposal.attended:
                note = f"{comment(self.proposal.attended[rule.name])}; {note}"
            self.add(f"  {_tool(rule)}", note)
        for entry in self.proposal.undeclared:
            self.lines.append(
                f"  # {comment(quoted(entry.value))}: {{legs: [...]}}: a person has to say which legs it has: "
                f"{self._evidence(entry.events)}"
            )

    def _list(
        self,
        name: str,
        entries: list[Entry],
        plain: Callable[[Any], Any],
        written: Callable[[Entry], str] | None = None,
    ) -> None:
        self.lines.append(f"  {name}:" + ("" if entries else " []"))
        for entry in entries:
            value = written(entry) if written is not None else quoted(plain(entry.value))
            self.add(f"    - {value}", self.rests(entry))

    def _limits(self) -> None:
        facts, policy = self.facts, self.policy
        spent = f"spent ${dollars(facts.spent)}, at most ${dollars(facts.held)} held at one time"
        self.add(f'budget: {{limit_usd: "{dollars(policy.budget_limit)}"}}', f"{spent}: twice the one and the other")
        took = -(-(facts.ended_ns - facts.started_ns) // _NS)
        self.add(f"time_window: {_window(policy)}", f"the work took {took} s, waiting for people included: twice that")
        self.add(f"isolation: {{floor: {policy.isolation_floor}}}", "the base's")
        self.add(f"trifecta: [{', '.join(modes(policy.trifecta))}]", "the base's")

    def _rest(self) -> None:
        proposal = self.proposal
        self._section(
            "Still needs a person each time",
            [
                f"still asks: {_what(event)}, because {comment(d.rule)}: {comment(d.reason)}"
                for event, d in proposal.still
            ],
        )
        self._section(
            "Accepted, but no policy file can say it: refused from now on",
            [f"{_what(event)}: {comment(d.rule)}: {comment(d.detail)}" for event, d in proposal.uncovered],
        )
        self._section(
            "Refused, and not covered",
            [f"refused: {_what(event)}, {comment(event.rule)}: {comment(event.reason)}" for event in proposal.refused],
        )
        if self.facts.unread:
            self.lines.append(f"# {self.facts.unread} requests were no operation, or are not on record whole.")

    def _section(self, title: str, lines: list[str]) -> None:
        if lines:
            self.lines += ["", f"# {title}:", *(f"#   {line}" for line in lines[: self.listed])]
        if len(lines) > self.listed:
            self.lines.append(f"#   and {len(lines) - self.listed} more; the audit log has them")


def _what(event: Event) -> str:
    return f"{comment(event.shown())} (seq {event.seq})"


def _path(glob: str) -> str:
    """As a file says it: from the root of the workspace."""
    return "./" + glob.lstrip("/")


def _rule(rule: CommandRule, more: str = "") -> str:
    if rule.group:
        return f"{{set: {rule.group}}}"
    args = f", args: [{', '.join(map(_argument, rule.args))}]" if rule.args else ""
    return f"{{program: {quoted(rule.program)}{args}, rest: {rule.rest}{more}}}"


def _argument(argument: Argument) -> str:
    if argument.kind != "literal":
        return f"{{type: {argument.kind}}}"
    if len(argument.values) == 1:
        return quoted(argument.values[0])
    return f"{{one_of: [{', '.join(map(quoted, argument.values))}]}}"


def _tool(rule: ToolRule) -> str:
    legs = ", ".join(name for name, bit in cap.LEG_NAMES.items() if rule.legs & bit)
    where = f", destination: [{', '.join(map(quoted, rule.destination))}]" if rule.destination else ""
    approve = ", approve: true" if rule.approve else ""
    return f"{quoted(rule.name)}: {{legs: [{legs}]{where}, level: {cap.LEVEL_NAMES[rule.level]}{approve}}}"


def _window(policy: Policy) -> str:
    from datetime import UTC, datetime, timedelta  # rare

    def moment(at_ns: int) -> str:
        return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=at_ns // _NS)).strftime("%Y-%m-%dT%H:%M:%SZ")

    window = policy.time_window
    parts = [f'duration: "{duration(window.duration_ns)}"']
    if window.not_before_ns:
        parts.append(f'not_before: "{moment(window.not_before_ns)}"')
    if not isinstance(window.not_after_ns, Everything):
        parts.append(f'not_after: "{moment(window.not_after_ns)}"')
    return f"{{{', '.join(parts)}}}"


__all__ = ["comment", "quoted", "text_of"]
