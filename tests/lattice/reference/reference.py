"""`decide` once more, from the specification: the docstrings of `nucleus.lattice` and docs/policy.md.

Shared with the product, as given facts that have tests of their own: the tables of names (`tables.SETS`, the globs
`SENSITIVE` and `PROTECTED`), what `commands.analyse` and `strings.read` say of a command, and whether `split_url` takes
a word of a command for a URL. All else is here a second time and in another way: findings are gathered in the order of
the eight steps, each step asks its question of everything that the operation touches, and the gravest wins.

Where the specification says nothing, what the product does was taken over, and stands here so that it is said:

- a search, and the directory of a command, may start off the allow list; a word that may be no path is not held to it
- a path is asked for one thing: blocked, then protected, then not allowed, then sensitive (with the paths, step 4)
- committing a path by name counts as writing to it
- a host is asked for one thing: deny, ask, or not on the list; one that asks is not listed
- a command's host asks for run_bash; a command that is on no list is a matter of step 8, whatever the level
- a set of commands has plain ones only; `/opt/x/git` is caught by rules for git, and allowed by its own rule or ``*``
- who is asked by `approve` is not asked again by the trifecta for the same capability; a tool may be asked by both
- of a tool, an undeclared one asks for nothing else; truth values are no destination
- who may is asked for each capability that is needed, whatever its level; the pod's own has `own` and its ID
- a single letter, and a bare number that is not called one, is no destination that a text can name
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from nucleus.errors import InvalidError
from nucleus.lattice.commands import Command
from nucleus.lattice.paths import PROTECTED, SENSITIVE
from nucleus.lattice.strings import join
from nucleus.validate.urls import split_url

from . import matching as m
from .facts import EVERYTHING, Asked, Moment, Rules, Tool

CAPABILITY = {
    "read": "read_files", "write": "write_files", "edit": "edit_files", "glob": "glob_search", "grep": "grep_search",
    "run": "run_bash", "git_status": "read_files", "git_diff": "read_files", "git_commit": "git_commit",
    "web_fetch": "web_fetch", "web_search": "web_search", "git_push": "git_push", "create_pr": "create_pr",
    "manage_pods": "manage_pods",
}  # fmt: skip
ORDER = (
    "read_files", "write_files", "edit_files", "run_bash", "glob_search", "grep_search", "web_search", "web_fetch",
    "git_commit", "git_push", "create_pr", "manage_pods",
)  # fmt: skip
STRENGTH = ["namespaces", "gvisor", "qemu", "firecracker"]
ALL_LEGS = frozenset(("private", "untrusted", "exfiltration", "state"))
UNDECLARED = Tool("", ALL_LEGS, (), "low_risk", True)


@dataclass(frozen=True)
class Outcome:
    """What was decided. `why`: every rule that found something, with its verdict."""

    verdict: str
    rule: str
    obligations: frozenset[str]
    why: tuple[tuple[str, str], ...]


class Findings:
    """What was found, in order; an ask names the capability that a person has to approve."""

    def __init__(self) -> None:
        self.found: list[tuple[str, str, str]] = []

    def deny(self, rule: str) -> None:
        self.found.append(("deny", rule, ""))

    def ask(self, rule: str, capability: str) -> None:
        self.found.append(("ask", rule, "approval:" + capability))

    def outcome(self, otherwise: str) -> Outcome:
        why = tuple((rule, verdict) for verdict, rule, _ in self.found)
        for gravest in ("deny", "ask"):
            for verdict, rule, _ in self.found:
                if verdict == gravest:
                    asks = frozenset(obligation for _, _, obligation in self.found if obligation)
                    return Outcome(verdict, rule, asks if gravest == "ask" else frozenset(), why)
        return Outcome("allow", otherwise, frozenset(), why)


def decide(rules: Rules, asked: Asked, moment: Moment) -> Outcome:
    """The decision."""
    found = Findings()
    isolation_floor(found, rules, moment)
    time_window(found, rules, moment)
    if asked.kind == "tool":
        who(found, rules, moment, "tools")
        tool(found, rules, asked, moment)
        return found.outcome("tools." + asked.fields["server"])
    asked = read(rules, asked)
    needed = capabilities(asked)
    for name in needed:
        if level(rules, name) == "never":
            found.deny("capabilities." + name)
        who(found, rules, moment, name)
    paths(found, rules, asked)
    commands(found, rules, asked)
    hosts(found, rules, asked)
    for name in needed:
        if level(rules, name) == "never":
            continue
        if name in rules.approve:  # who is asked anyway is not asked a second time
            found.ask("approve." + name, name)
        else:
            trifecta(found, rules, asked, moment, name)
    risk(found, rules, asked, moment)
    return found.outcome("capabilities." + needed[0])


def level(rules: Rules, name: str) -> str:
    return rules.levels.get(name, "never")


def capabilities(asked: Asked) -> list[str]:
    """The operation's own, then those of what a command does."""
    if asked.kind != "run":
        return [CAPABILITY[asked.kind]]
    return ["run_bash", *(name for name in ORDER if name in asked.command.requires)]


# --- steps 1 and 2 ---


def isolation_floor(found: Findings, rules: Rules, moment: Moment) -> None:
    strong_enough = STRENGTH[STRENGTH.index(rules.floor) :]
    if moment.isolation not in strong_enough:
        found.deny("isolation.floor")


def time_window(found: Findings, rules: Rules, moment: Moment) -> None:
    age = moment.now - moment.started
    over = rules.not_after is not None and moment.now >= rules.not_after
    if age < 0 or age >= rules.duration or moment.now < rules.not_before or over:
        found.deny("time_window")


# --- step 3, who ---


def who(found: Findings, rules: Rules, moment: Moment, name: str) -> None:
    """Each list of the operation has to name the caller, by its ID, by a prefix, or as the pod's."""
    for subject, listed in rules.callers:
        if subject != name:
            continue
        below = {moment.caller[:at] + "/*" for at in range(len(moment.caller)) if moment.caller[at:][:1] == "/"}
        ways = {moment.caller, *(["own"] if moment.own else []), *below} - {"", "spiffe:/*", "spiffe://*"}
        if not ways & set(listed):
            found.deny("identity.operation")


# --- step 4 ---


@lru_cache(maxsize=1 << 16)
def is_sensitive(path: str) -> bool:
    return m.any_covers(SENSITIVE, path, True)


@lru_cache(maxsize=1 << 16)
def is_protected(path: str) -> bool:
    return m.any_covers(PROTECTED, path, True)


@dataclass(frozen=True)
class Touched:
    """One path that the operation names. `weak`: it may be none; `place`: where to look, not what to read."""

    path: str
    written: bool = False
    weak: bool = False
    place: bool = False


def touched(asked: Asked) -> list[Touched]:
    fields = asked.fields
    if asked.kind == "read":
        return [Touched(fields["path"])]
    if asked.kind in ("write", "edit"):
        return [Touched(fields["path"], written=True)]
    if asked.kind in ("glob", "grep"):
        return [Touched(fields["path"], place=True)]
    if asked.kind == "git_commit":
        return [Touched(path, written=True) for path in fields["paths"]]
    if asked.kind == "run":
        command = asked.command
        return [
            Touched(fields["cwd"], place=True),
            *(Touched(path, path in command.written, path in command.weak) for path in command.paths),
        ]
    return []


def paths(found: Findings, rules: Rules, asked: Asked) -> None:
    for one in touched(asked):
        if m.any_covers(rules.paths_block, one.path, True):
            found.deny("paths.block")
        elif one.written and is_protected(one.path):
            found.deny("paths.protected")
        elif not one.weak and not one.place and not m.allowed(rules.paths_allow, one.path):
            found.deny("paths.allow")
        elif level(rules, capabilities(asked)[0]) == "low_risk" and is_sensitive(one.path):
            found.ask("low_risk.sensitive_path", capabilities(asked)[0])


# --- step 5 ---


def commands(found: Findings, rules: Rules, asked: Asked) -> None:
    if asked.kind != "run":
        return
    for program, args in asked.command.layers:
        if any(m.catches(rule, program, args) for rule in rules.commands_deny):
            found.deny("commands.deny")
        elif any(m.catches(rule, program, args) for rule in rules.commands_ask):
            found.ask("commands.ask", "run_bash")


def read(rules: Rules, asked: Asked) -> Asked:
    """A shell string is its commands where every allow list has such strings and each of them; else it is flagged, and
    what its commands ask for is asked for all the same."""
    if asked.string is None:
        return asked
    whole, parts = asked.string
    lists = [] if rules.commands_allow == EVERYTHING else rules.commands_allow
    composed = all(
        any(rule.group == "shell_strings" and m.names_program(rule, whole.plain.program) for rule in lines)
        and all(any(m.admits(rule, *part.plain, bool(part.flags)) for rule in lines) for part in parts)
        for lines in lists
    )
    if composed:
        return replace(asked, command=whole, composed=True)
    both = Command()
    join(both, asked.command)
    join(both, whole)
    both.plain = asked.command.plain
    return replace(asked, command=both)


def listed_command(rules: Rules, asked: Asked) -> bool:
    if rules.commands_allow == EVERYTHING or asked.composed:
        return True
    program, args = asked.command.plain
    flagged = bool(asked.command.flags)
    return all(any(m.admits(rule, program, args, flagged) for rule in lines) for lines in rules.commands_allow)


@lru_cache(maxsize=1 << 12)
def is_url(word: str) -> bool:
    try:
        split_url("url", word)
    except InvalidError:
        return False
    return True


def urls(asked: Asked) -> list[str]:
    if asked.kind == "web_fetch":
        return [asked.fields["url"]]
    return list(asked.command.urls) if asked.kind == "run" else []


def hosts(found: Findings, rules: Rules, asked: Asked) -> None:
    for url in urls(asked):
        verdict = host_verdict(rules, url)
        if verdict == "hosts.deny":
            found.deny(verdict)
        elif verdict:
            found.ask(verdict, CAPABILITY[asked.kind])


def host_verdict(rules: Rules, url: str) -> str:
    """The rule that stands against the URL's host; "" where it is listed."""
    if not is_url(url):
        return "hosts.allow"
    host = m.host_of(url)
    if any(m.names_host(line, host) for line in rules.hosts_deny):
        return "hosts.deny"
    if any(m.names_host(line, host) for line in rules.hosts_ask):
        return "hosts.ask"
    return "" if m.listed_host(rules.hosts_allow, host) else "hosts.allow"


# --- step 7 ---

LOOKING = frozenset(("read_files", "glob_search", "grep_search"))


def legs_of_capability(name: str, moment: Moment) -> set[str]:
    """Which legs of the trifecta a capability brings when it is enabled."""
    if name in LOOKING:
        return {"private"} if moment.trusted else {"private", "untrusted"}
    if name in ("web_fetch", "web_search"):
        return {"untrusted", "exfiltration"}
    if name in ("git_push", "create_pr"):
        return {"exfiltration"}
    if name == "run_bash":
        return {"private", "untrusted", "exfiltration"} if moment.egress else {"private", "untrusted"}
    return set()


def live_legs(rules: Rules, moment: Moment) -> set[str]:
    """All legs that are live: by enabled capabilities, declared tools, and what was seen."""
    live: set[str] = set()
    for name in set(CAPABILITY.values()):
        if level(rules, name) != "never":
            live |= legs_of_capability(name, moment)
    for table in rules.tables:
        for one in table:
            if one.level != "never":
                live |= one.legs
    if moment.private:
        live.add("private")
    if moment.untrusted:
        live.add("untrusted")
    return live


def complete(legs: set[str]) -> bool:
    return {"private", "untrusted", "exfiltration"} <= legs


@dataclass(frozen=True)
class Out:
    """What is done outside: which legs, and whereto; what names nothing can be known by nobody.

    `reads`: the untrusted leg is its own, not one that comes with the answer.
    """

    legs: frozenset[str] = frozenset()
    destinations: tuple[str, ...] = ()
    reads: bool = False


NOWHERE = Out()
BOTH = frozenset(("exfiltration", "state"))


def outward(rules: Rules, asked: Asked, moment: Moment, name: str) -> Out:
    """The table of `nucleus.lattice.trifecta`."""
    fields = asked.fields
    if name == "run_bash":
        return Out(ALL_LEGS, reads=True) if moment.egress else NOWHERE
    if name not in ("web_fetch", "web_search", "git_push", "create_pr", "manage_pods"):
        return NOWHERE
    if asked.kind == "run":
        return Out(BOTH)
    if name == "web_fetch":
        sends = fields["method"] not in ("GET", "HEAD") or fields["body"] != ""
        unlisted = host_verdict(rules, fields["url"]) != ""
        rest = fields["url"].split("://", 1)[1].lstrip("/")
        says = moment.private and (("/" in rest and rest.split("/", 1)[1] != "") or "?" in rest)
        legs = {"exfiltration"} if sends or unlisted or says else set()
        return Out(frozenset(legs | ({"state"} if sends else set())), (fields["url"],))
    if name == "web_search":
        return Out(frozenset(("exfiltration",)) if moment.private else frozenset())
    if name == "git_push":
        ref = () if fields["ref"] == "HEAD" else (fields["ref"],)
        return Out(BOTH, (fields["remote"], *ref))
    if name == "create_pr":
        return Out(BOTH, (fields["base"],))
    names = (fields["name"],) if fields["name"] else ()
    return NOWHERE if fields["action"] == "list" else Out(frozenset(("state",)), names)


def modes(found: Findings, rules: Rules, moment: Moment, out: Out, static: bool, capability: str) -> None:
    if "static" in rules.modes and static and complete(live_legs(rules, moment)):
        found.ask("trifecta.static", capability)
    if "session" in rules.modes and "exfiltration" in out.legs:
        seen = set(out.legs) if out.reads else set(out.legs) - {"untrusted"}
        seen |= {"private"} if moment.private else set()
        seen |= {"untrusted"} if moment.untrusted else set()
        if complete(seen):
            found.ask("trifecta.session", capability)
    if "provenance" in rules.modes and out.legs & BOTH and not known(moment, out.destinations):
        found.ask("trifecta.provenance", capability)


def known(moment: Moment, destinations: tuple[str, ...]) -> bool:
    if not destinations:
        return False
    texts = (moment.task,) if moment.texts is None else moment.texts
    return all(m.named(destination, texts, moment.values) for destination in destinations)


def trifecta(found: Findings, rules: Rules, asked: Asked, moment: Moment, name: str) -> None:
    static = "exfiltration" in legs_of_capability(name, moment)
    modes(found, rules, moment, outward(rules, asked, moment, name), static, name)


# --- step 8 ---

SENDING = ("web_fetch", "web_search", "git_push", "create_pr")  # through a command, low_risk asks


def risk(found: Findings, rules: Rules, asked: Asked, moment: Moment) -> None:
    """The table of `nucleus.lattice.decision`."""
    own, fields = capabilities(asked)[0], asked.fields
    low = level(rules, own) == "low_risk"
    if asked.kind == "run":
        if not listed_command(rules, asked):  # whatever the level
            if asked.command.credentials:
                found.deny("commands.credentials")
            else:
                found.ask("commands.allow", own)
        if low and (asked.command.flags or (asked.command.runs_code and moment.egress)):
            found.ask("low_risk.run_bash", own)
        for name in capabilities(asked)[1:]:
            if level(rules, name) == "low_risk" and name in SENDING:
                found.ask("low_risk." + name, name)
    elif not low:
        return
    elif asked.kind in ("git_push", "create_pr"):
        found.ask("low_risk." + own, own)
    elif asked.kind == "web_fetch" and (fields["method"] not in ("GET", "HEAD") or fields["body"]):
        found.ask("low_risk.web_fetch", own)
    elif asked.kind == "manage_pods" and fields["action"] != "list":
        found.ask("low_risk.manage_pods", own)


# --- tools: steps 3, 6, 7, 8 ---


def declared(table: tuple[Tool, ...], server: str, name: str) -> Tool:
    """The exact name beats the star."""
    for wanted in (f"{server}/{name}", f"{server}/*"):
        for one in table:
            if one.name == wanted:
                return one
    return UNDECLARED


def tool(found: Findings, rules: Rules, asked: Asked, moment: Moment) -> None:
    fields = asked.fields
    each = [declared(table, fields["server"], fields["tool"]) for table in rules.tables]
    for one in each:
        if one.level == "never":
            found.deny("tools.level")
        elif one is UNDECLARED:
            found.ask("tools.undeclared", "tools")
    each = [one for one in each if one is not UNDECLARED and one.level != "never"]
    for one in each:
        if one.approve:
            found.ask("tools.approve", "tools")
    for one in each:
        modes(found, rules, moment, tool_out(one, fields["arguments"]), "exfiltration" in one.legs, "tools")
    for one in each:
        if one.level == "low_risk" and one.legs & BOTH:
            found.ask("low_risk.tools", "tools")


def tool_out(one: Tool, arguments: dict[str, Any]) -> Out:
    where: list[str] = []
    for name in one.destination:
        where += m.leaves(arguments.get(name))
    return Out(one.legs, tuple(where))
