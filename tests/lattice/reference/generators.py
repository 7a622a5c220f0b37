"""Random policies, operations and contexts out of pools that meet each other: as plain facts and as the product's."""

# ruff: noqa: SIM905 (a pool of words is easier to read, and to add to, as words)

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Any, NamedTuple

from nucleus.errors import InvalidError
from nucleus.lattice import Context, strings
from nucleus.lattice import capability as cap
from nucleus.lattice.commands import analyse
from nucleus.lattice.exposure import Exposure
from nucleus.lattice.paths import SENSITIVE
from nucleus.lattice.policy import EVERYTHING as ALL
from nucleus.lattice.policy import FLOORS, Argument, CommandRule, Policy, TimeWindow, ToolRule
from nucleus.lattice.provenance import Knowledge
from nucleus.model.operation import ADAPTER, Base
from nucleus.validate import validate_operation
from nucleus.validate.paths import validate_glob

from . import facts as f

NS = 1_000_000_000
POLICY_CASES = 100  # cases that share one policy
OPERATIONS = 600  # operations that the policies of one seed share

NAMES = (
    "a b c src lib docs data x.py y.PY notes.txt token tokens.json .env .ENV.local my.env id_rsa Secrets secrets.yaml "
    ".git .GIT config hooks pre-commit .envrc .vscode settings.json .mcp.json api_token token.txt .config gcloud .kube "
    ".hg hgrc é.md abe ace a-c _netrc .ssh known_hosts Makefile .github ÉÄ [x] x] .claude .gitmodules .aws .docker "
    "config.json main.go.bak K ſ İ"
).split()  # fmt: skip
NAME_GLOBS = (
    "* *.py *.PY .env* *env ?x ? a? [ab] [!a] [a-c] a[b-d]e a[b-]c *a* s*c **.py a**b sr** [x] []] [!]] x] [ *.* "
    "[A-C] é* **"
).split()
HOSTS = "a.com x.a.com y.x.a.com b.org evil-a.com A.com localhost 10.0.0.1 x.org evil-x.org www.x.org [::1]".split()
HOST_LINES = "a.com *.a.com *.x.a.com b.org *.org *.com x.org localhost 10.0.0.1 *.localhost evil-a.com".split()
TARGETS = ["", "/", "//", "/x", "/path?q", "?q=1", "/?", "?", "/a/b.py", "/.env", "/Path?Q", "/x.", "/(y)", "/x/"]
PEOPLE = (
    "bob@x.org bob x.org evil-x.org https://x.org/path?q https://x.org http://www.x.org/ origin main feature/a dev "
    "pod-1 #general @bob Alice Smith release-1.0 upstream 13 Bob@X.org mailto:bob@x.org a.com/x é https://a.com/path?q "
    "+1-555 docs/a.txt x.a.com true 1.5 fork ! ... @# a/b/ x.org/path?Q straße STRASSE www. x.org:443 "
    "https://x.org:443/ http://x.org:443/ http://x.org:80/ https://x.org:80 http://x.org. ftp://x.org 7 #13 #7 13 "
    "localhost http://localhost/"
).split()  # fmt: skip
PEOPLE += ["Alice Smith", "Alice  Smith", "(bob@x.org)", "bob@x.org, eve@e.org", "the 13 of June", "ｂｏｂ", "", " "]
FILLERS = (
    "send the report to and then merge into please look at mail channel id number no 13 7 for . , : ! (thanks)".split()
)
SERVERS, TOOLS = ("mail", "cal", "db"), ("send", "read", "search", "add")
FIELDS = ("to", "cc", "id", "text")
LEGS = ("private", "untrusted", "exfiltration", "state")
WRAPPERS = [
    ["env"], ["env", "A=1"], ["env", "PATH=x"], ["timeout", "5"], ["nice", "-n", "3"], ["nohup"], ["sudo"], ["xargs"],
    ["find", ".", "-exec"], ["bash", "-c"], ["time"], ["git", "-C", "src"], ["stdbuf", "-o", "L"], ["/usr/bin/env"],
]  # fmt: skip
PROGRAMS = (
    "ls cat git rm cp touch grep find sed tar make python3 python3.11 node bash sh curl wget gh ssh npm cargo "
    "./build.sh src/tool.py /usr/bin/git /opt/x psql unknown tee mv vim docker pytest echo go pip git2 "
    "gh op npm vault rm2 go1.22 node18 wget2 lua5.4 zsh5 ksh93 tclsh8.6"
).split()
WORDS = (
    "push commit remote status log show -m -f -rf -v --force -c --output=x 5 12 0 -1 x word origin main install "
    "publish pr create add HEAD HEAD:.env -- * -la diff clone --exec=x -i s/a/b/ . .. /etc/passwd /workspace/src/a "
    "auth login token @x ٣ +4"
).split()
KINDS = (
    "read write edit glob grep run run run git_status git_diff git_commit web_fetch web_fetch web_search git_push "
    "create_pr manage_pods tool tool tool"
).split()


class Case(NamedTuple):
    """One case: the facts for the reference, and the same for the product."""

    rules: f.Rules
    asked: f.Asked
    moment: f.Moment
    policy: Policy
    operation: Base
    context: Context


# --- paths, globs, hosts ---


def some(random: Random, pool: Any, most: int) -> tuple[Any, ...]:
    return tuple(dict.fromkeys(random.choice(pool) for _ in range(random.randint(0, most))))


def path(random: Random) -> str:
    style = random.random()
    if style < 0.1:
        return "".join(random.choice("aabB/c") for _ in range(random.randint(1, 8))).strip("/") or "a"
    depth = random.choice((1, 1, 2, 2, 3, 4, 6))
    names = [random.choice(NAMES) for _ in range(depth)]
    if random.random() < 0.1:
        names = [random.choice((str.upper, str.title))(name) for name in names]
    text = "/".join(names)
    return random.choice(("", "", "", "", "./", "c/../", "/workspace/", "././")) + text + random.choice(("", "", "/"))


def glob(random: Random, allow: bool = False) -> str:
    """What a policy file may hold; in an allow list `load_lists` makes ``/name`` of ``./name``."""
    while True:
        found = once(any_glob(random))
        try:
            validate_glob("glob", found)
        except InvalidError:
            continue
        plain = "/" not in found.rstrip("/") and "**" not in found
        return f"/{found}" if allow and plain and random.random() < 0.2 else found


def once(glob: str) -> str:
    """Without what is said twice: nobody writes it, and nothing says what it would mean for the root."""
    for twice, plain in (("//", "/"), ("***", "**"), ("**/**", "**")):
        while twice in glob:
            glob = glob.replace(twice, plain)
    return glob


def any_glob(random: Random) -> str:
    style = random.random()
    if style < 0.15:
        text = "".join(random.choice(("a", "b", "/", "*", "?", "**", "[ab]", "[!a]", "/**/", "**/")) for _ in range(5))
        return once(text).strip("/") or "a"
    if style < 0.25:
        return random.choice(SENSITIVE)
    depth = random.choice((1, 1, 1, 2, 2, 3))
    names = [random.choice(NAMES if random.random() < 0.5 else NAME_GLOBS) for _ in range(depth)]
    return random.choice(("", "", "", "", "**/")) + "/".join(names) + random.choice(("", "", "/", "/**"))


def url(random: Random) -> str:
    host = random.choice(HOSTS)
    host = host.upper() if random.random() < 0.1 else host
    port = random.choice(("", "", "", ":443", ":8080"))
    return random.choice(("https://", "http://", "https://", "HTTPS://")) + host + port + random.choice(TARGETS)


# --- policies ---


def allow(random: Random, line: Any, everything: float) -> Any:
    """Everything, one list, or a conjunction of several; empty ones too."""
    if random.random() < everything:
        return f.EVERYTHING
    lists = random.choice((1, 1, 1, 2, 3))
    return tuple(tuple(dict.fromkeys(line() for _ in range(random.choice((0, 1, 2, 3, 5, 8))))) for _ in range(lists))


def argument(random: Random) -> f.Argument:
    kind = random.choice(("literal", "literal", "word", "integer", "path"))
    return f.Argument(
        kind, tuple(random.choice(WORDS) for _ in range(random.randint(1, 3))) if kind == "literal" else ()
    )


def command_rule(random: Random) -> f.Rule:
    if random.random() < 0.4:
        return f.Rule(
            group=random.choice(("ordinary", "ordinary", "shell_strings", "interpreters", "shells", "network"))
        )
    args = tuple(argument(random) for _ in range(random.choice((0, 0, 1, 1, 2, 3))))
    return f.Rule(random.choice((*PROGRAMS, "*", "env")), "", args, random.choice(("any", "any", "none", "paths")))


def tool_table(random: Random) -> tuple[f.Tool, ...]:
    names = [f"{server}/{tool}" for server in SERVERS for tool in (*TOOLS, "*")]
    density = {leg: random.choice((0.0, 0.1, 0.5, 0.9)) for leg in LEGS}
    return tuple(
        f.Tool(
            name,
            frozenset(leg for leg in LEGS if random.random() < density[leg]),
            tuple(random.sample(FIELDS, random.choice((0, 1, 1, 2)))),
            random.choice(("never", "low_risk", "low_risk", "always", "always")),
            random.random() < 0.2,
        )
        for name in random.sample(names, random.choice((0, 2, 6, 10, 15)))
    )


CALLERS = ("spiffe://td/a", "spiffe://td/a/b", "spiffe://td/ab", "spiffe://td", "spiffe://tda/b", "spiffe://other/a/b")
NAMED = ("own", *CALLERS, "spiffe://td/a/*", "spiffe://td/*", "spiffe://other/a/*")


def callers(random: Random) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Lists for some operations, long enough to let somebody through."""
    count = random.choice((0, 0, 0, 1, 2, 4))
    names = (random.choice((*cap.NAMES, "tools", "run_bash", "git_push")) for _ in range(count))
    return tuple((name, tuple(random.sample(NAMED, random.choice((0, 2, 5, 7))))) for name in names)


def rules(random: Random) -> f.Rules:
    enabled = random.choice((0.15, 0.4, 0.8, 0.95, 1.0, 1.0))
    levels = {name: random.choice(("low_risk", "always")) for name in cap.NAMES if random.random() < enabled}
    start = random.choice((0, 0, 0, 0, 0, 900 * NS, 1000 * NS, 1010 * NS))
    return f.Rules(
        levels=levels,
        approve=frozenset(name for name in cap.NAMES if random.random() < random.choice((0.0, 0.0, 0.15))),
        duration=random.choice((60 * NS, 3600 * NS, 3600 * NS)),
        not_before=start,
        not_after=random.choice((None, None, None, 1020 * NS, 5000 * NS)),
        paths_allow=allow(random, lambda: glob(random, allow=True), 0.6),
        paths_block=tuple(dict.fromkeys(glob(random) for _ in range(random.choice((0, 1, 2, 5))))),
        commands_allow=allow(random, lambda: command_rule(random), 0.3),
        commands_ask=some(random, [command_rule(random) for _ in range(4)], 2),
        commands_deny=some(random, [command_rule(random) for _ in range(4)], 1),
        hosts_allow=allow(random, lambda: random.choice(HOST_LINES), 0.3),
        hosts_ask=some(random, HOST_LINES, 1),
        hosts_deny=some(random, HOST_LINES, 1),
        floor=random.choice((*FLOORS, *[FLOORS[0]] * 8)),
        modes=frozenset(random.choice((("static",), ("session",), ("provenance",), ("provenance", "static"),
                                       ("session", "static"), ("provenance", "session"),
                                       ("provenance", "session", "static")))),
        tables=tuple(dict.fromkeys(tool_table(random) for _ in range(random.choice((1, 1, 1, 2))))),
        callers=callers(random),
    )  # fmt: skip


def command_of(rule: f.Rule) -> CommandRule:
    return CommandRule(rule.program, rule.group, tuple(Argument(a.kind, a.values) for a in rule.args), rule.rest)


def tool_of(tool: f.Tool) -> ToolRule:
    legs = sum(cap.LEG_NAMES[leg] for leg in tool.legs)
    return ToolRule(tool.name, legs, tool.destination, cap.LEVELS[tool.level], tool.approve)


def policy_of(given: f.Rules) -> Policy:
    """The product's policy that says the same."""

    def allow_of(lists: Any, line: Any = lambda text: text) -> Any:
        return ALL if lists == f.EVERYTHING else frozenset(frozenset(map(line, lines)) for lines in lists)

    return Policy(
        name="random",
        capabilities=cap.pack({name: cap.LEVELS[level] for name, level in given.levels.items()}, given.approve),
        budget_limit=1,
        time_window=TimeWindow(given.duration, given.not_before, ALL if given.not_after is None else given.not_after),
        paths_allow=allow_of(given.paths_allow),
        paths_block=frozenset(given.paths_block),
        commands_allow=allow_of(given.commands_allow, command_of),
        commands_ask=frozenset(map(command_of, given.commands_ask)),
        commands_deny=frozenset(map(command_of, given.commands_deny)),
        hosts_allow=allow_of(given.hosts_allow),
        hosts_ask=frozenset(given.hosts_ask),
        hosts_deny=frozenset(given.hosts_deny),
        isolation_floor=given.floor,
        trifecta="+".join(sorted(given.modes)),
        tools=frozenset(frozenset(map(tool_of, table)) for table in given.tables),
        identities=frozenset((f"operations.{name}", frozenset(listed)) for name, listed in given.callers),
    )


# --- operations ---


def destination(random: Random) -> Any:
    """What a tool's argument may hold."""
    style = random.random()
    if style < 0.15:
        return random.choice(("13", "7", 13, 7, "#13", "number 7"))
    if style < 0.3:
        return [random.choice(PEOPLE) for _ in range(random.randint(2, 3))]
    if style < 0.6:
        return spelled(random, random.choice(PEOPLE))
    if style < 0.75:
        return [random.choice(PEOPLE) for _ in range(random.randint(0, 3))]
    return random.choice((None, "", [], {}, 13, 1.5, True, False, 0, {"to": "bob", "n": None}, [["x.org"], ""], [""]))


def argv(random: Random) -> list[str]:
    words: list[str] = ["bash", "-c"] if random.random() < 0.15 else []
    while random.random() < 0.25 and len(words) < 12:
        words += random.choice(WRAPPERS)
    words.append(random.choice(PROGRAMS))
    for _ in range(random.choice((0, 1, 1, 2, 3, 5))):
        style = random.random()
        words.append(
            random.choice(WORDS) if style < 0.55 else path(random) if style < 0.85 else url(random)
            if style < 0.95 else random.choice(("http://", "https://bad host/", "http://u@a.com/", "https://a.com"))
        )  # fmt: skip
    if words[:2] == ["bash", "-c"]:
        text = " ".join(words[2:])
        if random.random() < 0.7:
            joined = random.choice((" | ", " && ", " || ", "; ", " > ", " 2>&1; "))
            text = joined.join((text, *(" ".join(argv(random)) for _ in range(random.choice((0, 1, 1, 2))))))
            text = random.choice(("", "", "cd src && ", "cd a; ", "cd .. && ", "eval ")) + text
        words = [random.choice(("bash", "sh")), "-c", text]
    return words


def fields(random: Random, kind: str) -> dict[str, Any]:
    """The fields of an operation of `kind`."""
    ref = random.choice(("HEAD", "main", "feature/a", "dev", "HEAD"))
    match kind:
        case "read":
            return {"path": path(random)}
        case "write":
            return {"path": path(random), "content": ""}
        case "edit":
            return {"path": path(random), "old": "x", "new": "y"}
        case "glob":
            return {"path": random.choice((".", path(random))), "pattern": random.choice(("*", "**/*.py", ".env"))}
        case "grep":
            return {
                "path": random.choice((".", path(random))),
                "pattern": "x",
                "include": random.choice(("**", "*.py")),
            }
        case "run":
            return {"argv": argv(random), "cwd": random.choice((".", ".", ".", path(random)))}
        case "git_diff":
            return {"staged": random.random() < 0.5}
        case "git_commit":
            return {"message": "m", "paths": [path(random) for _ in range(random.randint(0, 2))]}
        case "web_fetch":
            method = random.choice(("GET", "GET", "GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"))
            known = random.choice([one for one in PEOPLE if one.startswith("http")])
            return {
                "url": random.choice((url(random), url(random), known)),
                "method": method,
                "body": random.choice(("", "", "x")),
            }
        case "web_search":
            return {"query": "how"}
        case "git_push":
            return {"remote": random.choice(("origin", "upstream", "fork")), "ref": ref}
        case "create_pr":
            return {"title": "t", "base": random.choice(("main", "dev", "release-1.0"))}
        case "manage_pods":
            name = random.choice(("pod-1", "pod", "dev", ""))
            return {"action": random.choice(("create", "list", "destroy")), "name": name}
        case "tool":
            given = {name: destination(random) for name in FIELDS if random.random() < 0.6}
            return {
                "server": random.choice((*SERVERS, *SERVERS, *SERVERS, "other")),
                "tool": random.choice((*TOOLS, *TOOLS, *TOOLS, "other", "*")),
                "arguments": given,
            }
    return {}


def asked_of(operation: Any) -> f.Asked:
    """The plain facts of a validated operation."""
    data = operation.model_dump()
    command = analyse(operation.argv, operation.cwd) if operation.kind == "run" else None
    string = strings.read(operation.argv, operation.cwd) if operation.kind == "run" else None
    return f.Asked(data.pop("kind"), data, command, string)


def operation(random: Random) -> tuple[f.Asked, Base]:
    """A random valid operation; what validation refuses is drawn again."""
    kind = random.choice(KINDS)
    while True:
        try:
            made = validate_operation(ADAPTER.validate_python({"kind": kind, **fields(random, kind)}))
        except InvalidError:
            continue
        return asked_of(made), made


# --- contexts ---


def spelled(random: Random, text: str) -> str:
    """`text`, in one of the spellings of people."""
    style = random.randint(0, 15)
    edge = [
        text.upper(), text.title(), f'"{text}"', f"({text})", f"<{text}>", text + ".", text + "?!", "@" + text,
        "#" + text, "mailto:" + text, "https://" + text, "www." + text, "".join(
            chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in text), text, text + "@", text + "#",
    ]  # fmt: skip
    return edge[style] if random.random() < 0.6 else text


def text(random: Random) -> str:
    words = []
    for _ in range(random.randint(0, 12)):
        words.append(spelled(random, random.choice(PEOPLE)) if random.random() < 0.5 else random.choice(FILLERS))
    return " ".join(words)


@dataclass(frozen=True)
class Learnt:
    """What a session knows: for the reference, and for the product."""

    texts: tuple[str, ...] | None
    values: tuple[str, ...]
    task: str
    knowledge: Knowledge | None


def learnt(random: Random) -> Learnt:
    task = text(random)
    if random.random() < 0.4:
        return Learnt(None, (), task, None)
    texts = tuple(text(random) for _ in range(random.randint(0, 2)))
    values = tuple(spelled(random, random.choice(PEOPLE)) for _ in range(random.randint(0, 6)))
    knowledge = Knowledge(task)
    for one in texts:
        knowledge.learn("a tool", one)
    for value in values:
        knowledge.learn_value("a tool", value)
    # What is passed beside a knowledge is not asked.
    return Learnt((task, *texts), values, random.choice((task, "bob x.org origin main")), knowledge)


def moment(random: Random, given: f.Rules, known: Learnt) -> tuple[f.Moment, Context]:
    started = 1000 * NS
    edges = [given.duration + started, given.not_before, started]
    if given.not_after is not None:
        edges.append(given.not_after)
    if random.random() < 0.06:
        now = max(0, random.choice(edges) + random.choice((-1, 0, 1)))
    else:
        now = max(started, given.not_before)
    isolation = random.choice((*FLOORS, "chroot", *[given.floor] * 45))
    egress, trusted = random.random() < 0.5, random.random() < 0.5
    private = ("read a",) if random.random() < 0.5 else ()
    untrusted = ("fetch b",) if random.random() < 0.5 else ()
    own = random.random() < 0.5
    caller = "spiffe://td/ns/default/sa/agent-1" if own else random.choice(("", *CALLERS))
    told = f.Moment(
        now, started, egress, trusted, isolation, bool(private), bool(untrusted), known.task, known.texts, known.values,
        caller, own,
    )  # fmt: skip
    seen = Exposure(private, untrusted, random.random() < 0.3)
    context = Context(now, started, egress, trusted, isolation, seen, known.knowledge, known.task, caller, own)
    return told, context


def case(policies: int, operations: int, contexts: int) -> Case:
    """One case out of three seeds."""
    given = rules(Random(policies))
    asked, made = operation(Random(operations))
    source = Random(contexts)
    told, context = moment(source, given, learnt(source))
    return Case(given, asked, told, policy_of(given), made, context)


def cases(seed: int, count: int) -> Iterator[Case]:
    """`count` cases, the same ones each time for one seed."""
    random = Random(seed)
    operations = [operation(random) for _ in range(min(OPERATIONS, count))]
    knowledge = [learnt(random) for _ in range(60)]
    left = count
    while left:
        given = rules(random)
        policy = policy_of(given)
        for _ in range(min(POLICY_CASES, left)):
            asked, made = random.choice(operations)
            told, context = moment(random, given, random.choice(knowledge))
            yield Case(given, asked, told, policy, made, context)
            left -= 1
