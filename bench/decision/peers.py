"""The same twenty rules for each engine: `make(case list) -> (judge, inputs)`.

Every engine is given its best form: policies and entities parsed beforehand, requests built beforehand as Python values
(turning those into the engine's own is part of its call), and the facts (path, command line, host) ready-made, where
Nucleus finds them itself in the timed call. Each says why it decided so, as far as its API does.

What they cannot express, and so is not asked of them: reading a command (wrappers, options, a push inside `env git -C x
push`), names of sensitive files and protected paths that no policy names, block lists that ignore case, the trifecta as
a consequence of the other rules (it is one more rule here), budget, time window and isolation floor. And besides:

- cedarpy: allow or deny only; "ask" is a forbid policy named ``ask:...``, told from a denial by its annotation.
- regorus: all of it, the precedence written out by hand. Two rows: its interpreter, and its compiled `Rvm`.
- agent-governance-toolkit: a rule has one condition on one field, no "and"; there is no "ask", so `block` stands for it.
- casbin: allow or deny only, and no word why (FastEnforcer keeps its rules in a set, so no order either); "ask" is a
  second question, whether the action may happen unattended. Rules are repeated per action, because FastEnforcer is fast
  only where it can select them by exact keys.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from bench.decision.cases import CONTEXT, POLICY, Case

Judge = Callable[[Any], str]
Peer = tuple[Judge, list[Any]]

AGENT = "agent"
ALLOWED = ("read_files", "grep_search", "write_files", "run_bash", "edit_files", "web_fetch")


# --- ours ---


def nucleus(cases: list[Case]) -> Peer:
    from nucleus.lattice.decision import decide
    from nucleus.lattice.load import parse_policy

    policy = parse_policy(POLICY, "bench")

    def judge(operation: Any) -> str:
        return decide(policy, operation, CONTEXT).verdict

    return judge, [case.operation for case in cases]


# --- the floor: what a few lines of Python would do, without a word why ---


def floor(cases: list[Case]) -> Peer:
    levels = dict.fromkeys(ALLOWED, "allow") | {"edit_files": "ask", "web_fetch": "ask"}
    roots = ("src/", "tests/", "docs/")
    listed = ("git diff ", "git log ", "git status ", "pytest ", "make ")

    def judge(facts: tuple[str, str, str, str]) -> str:
        action, path, command, host = facts
        level = levels.get(action, "deny")
        if path != "." and not path.startswith(roots):
            return "deny"
        if path.endswith((".pem", ".key")) or "/secrets/" in path or "/.env" in path:
            return "deny"
        if host and host.endswith(".evil.example"):
            return "deny"
        if command:
            if command.startswith(("rm ", "git push")):
                return "deny"
            if not command.startswith(listed) or command.startswith("make install"):
                return "ask"
        return level

    return judge, [(case.action, case.path, case.command, case.host) for case in cases]


# --- cedarpy ---

CEDAR = (
    "".join(
        f'@id("allow:{name}") permit(principal == Agent::"{AGENT}", action == Action::"{name}", resource);\n'
        for name in ALLOWED
    )
    + """
@id("deny:git_push") forbid(principal, action == Action::"run_bash", resource)
  when { context.command == "git push" || context.command like "git push *" };
@id("deny:paths.allow") forbid(principal, action, resource)
  unless { context.path like "src/*" || context.path like "tests/*" || context.path like "docs/*" || context.path == "." };
@id("deny:paths.block.secrets") forbid(principal, action, resource)
  when { context.path like "secrets/*" || context.path like "*/secrets/*" };
@id("deny:paths.block.pem") forbid(principal, action, resource)
  when { context.path like "*.pem" || context.path like "*.pem/*" };
@id("deny:paths.block.key") forbid(principal, action, resource)
  when { context.path like "*.key" || context.path like "*.key/*" };
@id("deny:paths.block.env") forbid(principal, action, resource)
  when { context.path like ".env*" || context.path like "*/.env*" };
@id("deny:rm") forbid(principal, action == Action::"run_bash", resource) when { context.program == "rm" };
@id("ask:make") forbid(principal, action == Action::"run_bash", resource) when { context.command like "make install*" };
@id("ask:commands.allow") forbid(principal, action == Action::"run_bash", resource)
  unless { context.program == "make" || context.program == "pytest" || context.command like "git diff *"
           || context.command like "git log *" || context.command like "git status *" };
@id("ask:edit_files") forbid(principal, action == Action::"edit_files", resource);
@id("ask:trifecta") forbid(principal, action == Action::"web_fetch", resource);
@id("deny:hosts") forbid(principal, action == Action::"web_fetch", resource) when { context.host like "*.evil.example" };
"""
)


def cedar(cases: list[Case]) -> Peer:
    from cedarpy import Entities, PolicySet, is_authorized

    policies = PolicySet.from_str(CEDAR)
    entities = Entities.from_json_str(json.dumps([{"uid": {"type": "Agent", "id": AGENT}, "attrs": {}, "parents": []}]))

    def judge(request: Any) -> str:
        result = is_authorized(request, policies, entities)
        if result.allowed:
            return "allow"
        names = result.diagnostics.id_annotations_by_reason.values()
        return "ask" if names and all(name.startswith("ask:") for name in names) else "deny"

    def request(case: Case) -> dict[str, Any]:
        context = {"path": case.path, "program": case.program, "command": case.command, "host": case.host}
        return {
            "principal": {"type": "Agent", "id": AGENT},
            "action": {"type": "Action", "id": case.action},
            "resource": {"type": "Workspace", "id": "w"},
            "context": context,
        }

    return judge, [request(case) for case in cases]


# --- regorus ---

REGO = """
package bench

allowed := {"read_files", "grep_search", "write_files", "run_bash", "edit_files", "web_fetch"}

deny contains "principal" if input.principal != "agent"
deny contains "capability" if not input.action in allowed
deny contains "git_push" if startswith(input.command, "git push")
deny contains "paths.allow" if not listed_path
deny contains "paths.block.secrets" if contains(input.path, "/secrets/")
deny contains "paths.block.secrets" if startswith(input.path, "secrets/")
deny contains "paths.block.pem" if endswith(input.path, ".pem")
deny contains "paths.block.key" if endswith(input.path, ".key")
deny contains "paths.block.env" if contains(input.path, "/.env")
deny contains "paths.block.env" if startswith(input.path, ".env")
deny contains "rm" if input.program == "rm"
deny contains "hosts" if endswith(input.host, ".evil.example")

listed_path if startswith(input.path, "src/")
listed_path if startswith(input.path, "tests/")
listed_path if startswith(input.path, "docs/")
listed_path if input.path == "."

ask contains "edit_files" if input.action == "edit_files"
ask contains "trifecta" if input.action == "web_fetch"
ask contains "make" if startswith(input.command, "make install")
ask contains "commands.allow" if { input.action == "run_bash"; not listed_command }

listed_command if input.program == "make"
listed_command if input.program == "pytest"
listed_command if startswith(input.command, "git diff ")
listed_command if startswith(input.command, "git log ")
listed_command if startswith(input.command, "git status ")

decision := {"verdict": "deny", "why": deny} if count(deny) > 0
else := {"verdict": "ask", "why": ask} if count(ask) > 0
else := {"verdict": "allow", "why": set()}
"""


def regorus(cases: list[Case]) -> Peer:
    import regorus as library

    engine = library.Engine()
    engine.add_policy("bench.rego", REGO)

    def judge(request: Any) -> str:
        engine.set_input(request)
        return str(engine.eval_rule("data.bench.decision")["verdict"])

    return judge, [facts(case) for case in cases]


def regorus_compiled(cases: list[Case]) -> Peer:
    import regorus as library

    program = library.Program.compile_from_modules("{}", [("bench.rego", REGO)], ["data.bench.decision"])
    machine = library.Rvm()
    machine.load_program(program)
    machine.set_data_json("{}")

    def judge(request: Any) -> str:
        machine.set_input_json(json.dumps(request))
        return str(json.loads(machine.execute())["verdict"])

    return judge, [facts(case) for case in cases]


def facts(case: Case) -> dict[str, str]:
    return {
        "principal": AGENT, "action": case.action, "path": case.path, "program": case.program,
        "command": case.command, "host": case.host,
    }  # fmt: skip


# --- agent-governance-toolkit ---

_AGT_RULES: tuple[tuple[str, str, str, Any, str], ...] = (
    ("git_push", "command", "matches", r"^git push( |$)", "deny"),
    ("paths.allow", "path", "matches", r"^(?!(src|tests|docs)/|\.$)", "deny"),
    ("paths.block.secrets", "path", "matches", r"(^|/)secrets/", "deny"),
    ("paths.block.pem", "path", "matches", r"\.pem(/|$)", "deny"),
    ("paths.block.key", "path", "matches", r"\.key(/|$)", "deny"),
    ("paths.block.env", "path", "matches", r"(^|/)\.env", "deny"),
    ("rm", "program", "eq", "rm", "deny"),
    ("hosts", "host", "matches", r"\.evil\.example$", "deny"),
    ("make", "command", "matches", r"^make install", "block"),
    ("edit_files", "action", "eq", "edit_files", "block"),
    ("trifecta", "action", "eq", "web_fetch", "block"),
    ("commands.make", "program", "eq", "make", "allow"),
    ("commands.pytest", "program", "eq", "pytest", "allow"),
    ("commands.git", "command", "matches", r"^git (diff|log|status) ", "allow"),
    ("commands.allow", "action", "eq", "run_bash", "block"),
    ("read_files", "action", "eq", "read_files", "allow"),
    ("grep_search", "action", "eq", "grep_search", "allow"),
    ("write_files", "action", "eq", "write_files", "allow"),
)


def agt(cases: list[Case]) -> Peer:
    from agent_os.policies.evaluator import PolicyEvaluator
    from agent_os.policies.schema import PolicyDocument

    rules = [
        {"name": name, "condition": {"field": field, "operator": operator, "value": value}, "action": action,
         "priority": 100 - index}
        for index, (name, field, operator, value, action) in enumerate(_AGT_RULES)
    ]  # fmt: skip
    evaluator = PolicyEvaluator([PolicyDocument.model_validate({"name": "bench", "rules": rules})])
    names = {"allow": "allow", "deny": "deny", "block": "ask"}

    def judge(context: Any) -> str:
        return names[evaluator.evaluate(context).action]

    return judge, [{key: value for key, value in facts(case).items() if value} for case in cases]


# --- casbin ---

CASBIN_MODEL = """
[request_definition]
r = sub, act, facts

[policy_definition]
p = sub, act, facts, eft

[policy_effect]
e = some(where (p.eft == allow)) && !some(where (p.eft == deny))

[matchers]
m = r.sub == p.sub && r.act == p.act && regexMatch(r.facts, p.facts)
"""
_CASBIN_DENY = (
    r"path=(?!(src|tests|docs)/|\.;)",
    r"path=([^;]*/)?secrets/",
    r"path=[^;]*\.pem(/|;)",
    r"path=[^;]*\.key(/|;)",
    r"path=([^;]*/)?\.env",
)
_CASBIN_MORE = {
    "run_bash": (r".*;command=git push( |;)", r".*;command=rm "),
    "web_fetch": (r".*;host=.*\.evil\.example$",),
}
_CASBIN_UNATTENDED: dict[str, tuple[tuple[str, str], ...]] = {
    "run_bash": (
        (r".*;command=make install", "deny"),
        (r".*;command=make ", "allow"),
        (r".*;command=pytest ", "allow"),
        (r".*;command=git (diff|log|status) ", "allow"),
    ),
    "web_fetch": (),
    "edit_files": (),
}


def casbin(cases: list[Case]) -> Peer:
    from casbin.fast_enforcer import FastEnforcer
    from casbin.model import FastModel

    model = FastModel([0, 1])
    model.load_model_from_text(CASBIN_MODEL)
    for action in ALLOWED:
        for pattern in (*_CASBIN_DENY, *_CASBIN_MORE.get(action, ())):
            model.add_policy("p", "p", [AGENT, action, pattern, "deny"])
        model.add_policy("p", "p", [AGENT, action, ".*", "allow"])
        for pattern, effect in _CASBIN_UNATTENDED.get(action, ((".*", "allow"),)):
            model.add_policy("p", "p", [AGENT, f"{action} unattended", pattern, effect])
    enforcer = FastEnforcer(model, cache_key_order=[0, 1])

    def judge(request: tuple[str, str, str, str]) -> str:
        sub, act, unattended, line = request
        if not enforcer.enforce(sub, act, line):
            return "deny"
        return "allow" if enforcer.enforce(sub, unattended, line) else "ask"

    return judge, [
        (AGENT, case.action, f"{case.action} unattended", f"path={case.path};command={case.command};host={case.host}")
        for case in cases
    ]


REFERENCE = "cedarpy"
PEERS: dict[str, tuple[str, Callable[[list[Case]], Peer]]] = {
    # name: (what has to be importable, maker)
    "nucleus": ("nucleus.lattice.decision", nucleus),
    "floor": ("sys", floor),
    "cedarpy": ("cedarpy", cedar),
    "regorus": ("regorus", regorus),
    "regorus compiled": ("regorus", regorus_compiled),
    "agent-governance-toolkit": ("agent_os.policies.evaluator", agt),
    "casbin": ("casbin.fast_enforcer", casbin),
}
