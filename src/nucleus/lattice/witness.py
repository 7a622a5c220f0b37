"""Operations that show where two policies differ: generated from what they say, decided by the function that decides.

Promises: every witness was decided by `decide` under both policies in the same context; the same two policies give the
same ones.
Does not: prove that there is no difference where it finds none: `diff` says what is proved.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from nucleus.errors import InvalidError
from nucleus.lattice import capability as cap
from nucleus.lattice import identities as ids
from nucleus.lattice import tables
from nucleus.lattice.decision import Context, decide, decide_path
from nucleus.lattice.exposure import NOTHING, Exposure
from nucleus.lattice.network import PROTOCOLS, NetRule
from nucleus.lattice.policy import FLOORS, Argument, CommandRule, Everything, Policy
from nucleus.model import operation as ops
from nucleus.model.decision import TWO_PEOPLE, Decision, Verdict
from nucleus.validate import validate_operation

RANK = {Verdict.ALLOW: 0, Verdict.ASK: 1, Verdict.DENY: 2}
TASK = "known@example.org https://example.org/known main origin known"  # a task that names what candidates name
_PRIVATE, _UNTRUSTED = Exposure(private=("read notes.txt",)), Exposure(untrusted=("web_fetch https://example.org/",))
_BOTH = _PRIVATE.join(_UNTRUSTED)
_PATHS = ("README.md", "src/main.py", ".env", "notes.txt", "secrets/key")
_ARGVS: tuple[tuple[str, ...], ...] = (
    ("true",), ("python3", "x.py"), ("git", "status"), ("git", "push"), ("git", "commit", "-m", "x"), ("./x",),
    ("curl", "https://example.org/"), ("gh", "pr", "create"), ("bash", "-c", "ls"), ("nosuchprogram",), ("touch", "x"),
    ("cat", ".env"),
)  # fmt: skip
_FEW = 3  # of the contexts, for what is told apart by lists: no way out, a trusted workspace, a way out


@dataclass(frozen=True, slots=True)
class Witness:
    """One operation that the second policy decides more loosely than the first, in one context."""

    operation: ops.Base
    context: Context
    before: Decision
    after: Decision

    @property
    def lost_ask(self) -> bool:
        """A person was asked, and is no longer."""
        return self.before.verdict is Verdict.ASK and self.after.verdict is not Verdict.ASK


def witnesses(a: Policy, b: Policy) -> Iterator[Witness]:
    """Every candidate that `b` decides more loosely than `a`, the simplest first."""
    base = _base(a, b)
    plain = list(_valid((*_plain(), *_calls(a, b))))
    contexts = list(_contexts(base))
    for context in contexts:
        yield from _decided(a, b, plain, context)
    for context in _odd_contexts(a, b, base):
        yield from _decided(a, b, plain, context)
    listed = list(_valid((*_listed(a, b), *_programs(a, b))))
    for context in contexts[:_FEW]:
        yield from _decided(a, b, listed, context)


def _decided(a: Policy, b: Policy, candidates: Iterable[ops.Base], context: Context) -> Iterator[Witness]:
    for operation in candidates:
        after = decide(b, operation, context)
        if after.verdict is Verdict.DENY:
            continue
        before = decide(a, operation, context)
        if rank(after) < rank(before):
            yield Witness(operation, context, before, after)


def rank(decision: Decision) -> tuple[int, bool]:
    """How strict: the verdict, and two people's yes above one's."""
    return RANK[decision.verdict], TWO_PEOPLE in decision.obligations


def _valid(candidates: Iterable[ops.Base]) -> Iterator[ops.Base]:
    """Those that would pass the door, once each."""
    seen = set()
    for candidate in candidates:
        try:
            operation = validate_operation(candidate)
        except InvalidError:
            continue
        key = repr(operation)
        if key not in seen:
            seen.add(key)
            yield operation


# --- contexts ---


def _base(a: Policy, b: Policy) -> Context:
    """A moment inside both windows where there is one, on a rung that is enough for both."""
    now = max(a.time_window.not_before_ns, b.time_window.not_before_ns, 1)
    return Context(now_ns=now, started_ns=now, isolation=FLOORS[-1])


def _contexts(base: Context) -> Iterator[Context]:
    for seen in (NOTHING, _BOTH):
        for egress in (False, True):
            for trusted in (False, True):
                yield replace(base, egress=egress, trusted_workspace=trusted, seen=seen)
    for seen in (_PRIVATE, _UNTRUSTED):
        for egress in (False, True):
            yield replace(base, egress=egress, seen=seen)
    yield replace(base, seen=_BOTH, task=TASK)
    yield replace(base, egress=True, seen=_BOTH, task=TASK)


def _odd_contexts(a: Policy, b: Policy, base: Context) -> Iterator[Context]:
    """Callers that one of the two names, weaker rungs, and both sides of each end of the two windows."""
    for caller in sorted(_callers(a) | _callers(b)):
        yield replace(base, caller=caller, own=False)
    for rung in FLOORS[:-1]:
        yield replace(base, isolation=rung)
    moments = {base.now_ns}
    for window in (a.time_window, b.time_window):
        moments |= {window.not_before_ns, window.not_before_ns - 1}
        if not isinstance(window.not_after_ns, Everything):
            moments |= {window.not_after_ns, window.not_after_ns - 1}
    ages = {0}
    for window in (a.time_window, b.time_window):
        ages |= {window.duration_ns, window.duration_ns - 1}
    for now in sorted(moments):
        for age in sorted(ages):
            yield replace(base, now_ns=now, started_ns=now - age)


def _callers(policy: Policy) -> set[str]:
    """One ID for each entry of ``identities.operations`` that is not the pod's own."""
    patterns = {
        one for subject, found in policy.identities if subject.startswith(f"{ids.OPERATIONS}.") for one in found
    }
    return {f"{one[:-1]}caller" if one.endswith("/*") else one for one in patterns - {ids.OWN}}


# --- candidates ---


def _plain() -> Iterator[ops.Base]:
    """Each capability's plain operation, and the usual ones beside it."""
    yield ops.Read(path="README.md")
    yield ops.Glob(pattern="**")
    yield ops.Grep(pattern="x")
    yield from _on_path("src/main.py", writes_only=True)
    yield ops.Run(argv=("true",))
    yield ops.WebSearch(query="x")
    yield ops.WebFetch(url="https://example.org/")
    yield ops.WebFetch(url="https://example.org/known")
    yield ops.WebFetch(url="https://example.org/", method="POST", body="x")
    yield ops.GitStatus()
    yield ops.GitCommit(message="x")
    yield ops.GitPush()
    yield ops.GitPush(ref="main")
    yield ops.GitPush(remote="elsewhere")
    yield ops.CreatePr(title="x")
    yield ops.ManagePods(action="list")
    yield ops.ManagePods(action="create", name="known")
    yield ops.ManagePods(action="create", name="other")
    for path in _PATHS:
        yield from _on_path(path)
    for argv in _ARGVS:
        yield ops.Run(argv=argv)
    yield ops.CallTool(server="undeclared", tool="tool")


def _on_path(path: str, *, writes_only: bool = False) -> Iterator[ops.Base]:
    if not writes_only:
        yield ops.Read(path=path)
    yield ops.Write(path=path, content="")
    yield ops.Edit(path=path, old="-", new="")
    if not writes_only:
        yield ops.Glob(pattern="**", path=path)
        yield ops.Grep(pattern="x", path=path)
        yield ops.Run(argv=("cat", path))
        yield ops.Run(argv=("touch", path))
        yield ops.GitCommit(message="x", paths=(path,))


def _listed(a: Policy, b: Policy) -> Iterator[ops.Base]:
    """What the entries name in which the two policies differ."""
    home = _home(a, b)
    for glob in sorted(_difference(a, b, "paths_allow", "paths_block")):
        names = _names(glob.lstrip("/"))
        for path in (*names, *(f"{home}/{name}" for name in names[:2] if home)):
            yield from (ops.Read(path=path), ops.Write(path=path, content=""), ops.Run(argv=("cat", path)))
    for line in sorted(_difference(a, b, "hosts_allow", "hosts_ask", "hosts_deny")):
        for host in (f"sub.{line[2:]}", line[2:]) if line.startswith("*.") else (line, f"sub.{line}"):
            yield ops.WebFetch(url=f"https://{host}/")
            yield ops.WebFetch(url=f"https://{host}/", method="POST", body="x")
            yield ops.Run(argv=("curl", f"https://{host}/"))
    for connection in _entries(a.network) | _entries(b.network):
        yield from _connections(connection)
    rules = _difference(a, b, "commands_allow", "commands_ask", "commands_deny")
    if cap.level(a.capabilities, "run_bash") != cap.level(b.capabilities, "run_bash"):
        rules |= _entries(a.commands_allow) | _entries(b.commands_allow)  # what low_risk asks for, and always does not
    for rule in sorted(rules, key=str):
        if not rule.group:
            for argv in _argvs(rule):
                yield ops.Run(argv=argv)
                yield ops.Run(argv=("env", *argv))


def _connections(rule: NetRule) -> Iterator[ops.Base]:
    """What one rule of ``network.allow`` names, and what lies beside it."""
    host = f"sub.{rule.host[2:]}" if rule.host.startswith("*.") else rule.host.partition("/")[0]
    names = (host, f"sub.{host}") if "/" not in rule.host else (host,)
    for name in names:
        for protocol in PROTOCOLS:
            for method in ("", *(rule.methods or ("GET",)), "DELETE"):
                paths = [f"/{name}" for glob in rule.paths for name in _names(glob.lstrip("/"))] or ["/"]
                for path in paths if method else [""]:
                    yield ops.Connect(conn=1, host=name, port=rule.port, protocol=protocol, method=method, path=path)


def _home(a: Policy, b: Policy) -> str:
    """A directory that both policies allow, or "" for the workspace itself."""
    globs = sorted(_entries(a.paths_allow) | _entries(b.paths_allow))
    for name in (name for glob in globs for name in _names(glob.lstrip("/"))):
        if decide_path(a, name) is None and decide_path(b, name) is None:
            return name
    return ""


def _difference(a: Policy, b: Policy, *fields: str) -> set[Any]:
    """The entries of those lists that are not in the same list of both."""
    out: set[Any] = set()
    for field in fields:
        mine, theirs = _entries(getattr(a, field)), _entries(getattr(b, field))
        if getattr(a, field) != getattr(b, field):
            # Two conjunctions may hold the same entries in other lists.
            out |= (mine ^ theirs) or (mine | theirs)
    return out


def _entries(value: Any) -> set[Any]:
    if isinstance(value, Everything):
        return set()
    return {entry for item in value for entry in (item if isinstance(item, frozenset) else (item,))}


def _names(glob: str) -> list[str]:
    """Paths that `glob` covers, or nearly: shortest first."""
    texts = [""]
    at = 0
    while at < len(glob):
        at, choices = _step(glob, at)
        texts = [text + choice for text in texts for choice in choices][:8]
    out = []
    for text in texts:
        clean = text.strip("/")
        if clean:
            out += [clean, f"{clean}/x.txt", f"d/{clean}", clean.upper()]
    return list(dict.fromkeys(out))


def _step(glob: str, at: int) -> tuple[int, tuple[str, ...]]:
    """The next place in `glob`, and what may stand for what is between."""
    if glob.startswith("**/", at):
        return at + 3, ("", "d/")
    if glob[at] == "*":
        end = at + 1
        while glob[end : end + 1] == "*":
            end += 1
        return end, ("x", "")
    if glob[at] == "?":
        return at + 1, ("x",)
    if glob[at] == "[" and (end := glob.find("]", at + 2 + (glob[at + 1 : at + 2] in "!^"))) > 0:
        body = glob[at + 1 : end]
        return end + 1, ("~", "x") if body[:1] in ("!", "^") else (body[0],)
    return at + 1, (glob[at],)


def _argvs(rule: CommandRule) -> list[tuple[str, ...]]:
    program = "nosuchprogram" if rule.program == "*" else rule.program
    argvs: list[tuple[str, ...]] = [(program,)]
    for argument in rule.args:
        argvs = [(*argv, word) for argv in argvs for word in _samples(argument)][:6]
    out: list[tuple[str, ...]] = []
    for argv in argvs:
        out += [argv, (*argv, "x"), (*argv, "--version"), *((*argv, option) for option in _escapes(program))]
    return [*out, (program,)]


def _samples(argument: Argument) -> tuple[str, ...]:
    return {"literal": argument.values, "integer": ("1",), "path": ("notes.txt",)}.get(argument.kind, ("x",))


def _escapes(program: str) -> tuple[str, ...]:
    """An option by which the program leaves its job."""
    return tables.ESCAPE_OPTIONS.get(program, ())[:1]


def _programs(a: Policy, b: Policy) -> Iterator[ops.Base]:
    """The programs of the sets in which the policies differ."""
    groups = {rule.group for rule in _difference(a, b, "commands_allow", "commands_ask", "commands_deny")} - {""}
    for program in sorted({name for group in groups for name in tables.SETS[group]}):
        yield ops.Run(argv=(program,))
        yield ops.Run(argv=(program, "x"))
        for option in _escapes(program):
            yield ops.Run(argv=(program, option))


def _calls(a: Policy, b: Policy) -> Iterator[ops.Base]:
    names = {rule.name: rule.destination for policy in (a, b) for table in policy.tools for rule in table}
    for name in sorted(names):
        server, _, tool = name.partition("/")
        called = "any_tool" if tool == "*" else tool
        yield ops.CallTool(server=server, tool=called)
        for value in ("", "known@example.org", "unknown@example.org") if names[name] else ():
            yield ops.CallTool(server=server, tool=called, arguments=dict.fromkeys(names[name], value))
