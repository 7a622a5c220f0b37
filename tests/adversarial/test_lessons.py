"""What broke in an earlier implementation of this design, tried again through the public door, as root and as a user.

One test a lesson; `SPECIFICATION.md`, "Lessons", has the whole list with the tests of the single rooms.
"""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from integration.held import Held
from integration.site import BIN, REPOSITORY, USER, Site
from integration.test_processes import Process, children
from nucleus.audit.record import FIELDS
from nucleus.lattice import capability as cap
from nucleus.lattice import parse_policy
from nucleus.store.policies import profile_text

SECRET = "planted-4711"
MODULE = re.compile(r"\bnucleus(?:\.\w+)+")
HEAD = "version: 1\nname: {name}\ncapabilities: {caps}\n"


@pytest.fixture(scope="module", params=["root", "user"])
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    made = Site(0 if request.param == "root" else USER)
    made.write(".env", f"TOKEN={SECRET}\n")
    made.write("tokenizer.rs", "fn token() {}\n")
    made.write("src/a.py", "token = 1\n")
    os.symlink(".env", made.workspace / "notes.txt")
    os.lchown(made.workspace / "notes.txt", made.uid, made.uid)
    yield made
    made.close()


@pytest.fixture(scope="module")
def codegen(site: Site) -> Iterator[Held]:
    with Held(site) as held:
        yield held


def policy(site: Site, name: str, caps: str, more: str = "") -> str:
    return str(site.write(f"../{name}.yaml", HEAD.format(name=name, caps=caps) + more))


def last(site: Site, event: str) -> dict[str, Any]:
    return [record for record in site.records() if record["event"] == event][-1]


def explained(site: Site, *words: str) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(site.cli("policy", "explain", "--json", *words).stdout)
    return value


def test_a_post_body_and_a_free_url_are_ways_out(site: Site) -> None:
    with Held(site, profile="web_research") as held:
        for more in ({"method": "POST", "body": SECRET}, {"url": f"https://example.com/?q={SECRET}"}):
            reply = held.operate(kind="web_fetch", **{"url": "https://example.com/", **more})
            assert reply["kind"] == "approval_required"
            assert last(site, "denied")["decision"]["verdict"] == "ask"
    for profile in ("web_research", "pr_review"):
        options = ("--profile", profile, "--egress", "--")
        for words in (("web_fetch", "https://example.com/", "POST"), ("web_search", "x")):
            assert explained(site, *options, *words)["verdict"] == "ask"


def test_searches_reads_and_links_give_nothing_of_a_blocked_file(codegen: Held) -> None:
    found = codegen.operate(kind="grep", pattern="TOKEN|token", ignore_case=True)
    assert {match["path"] for match in found["result"]["matches"]} == {"tokenizer.rs", "src/a.py"}
    assert ".env" not in codegen.operate(kind="glob", pattern="**")["result"]["paths"]
    for name in (".env", "notes.txt", "src/../.env", ".ENV"):
        reply = codegen.operate(kind="read", path=name)
        assert (reply["kind"], reply["rule"]) == ("denied", "paths.block"), name
    shown = codegen.operate(kind="run", argv=["python3", "-c", "print(open('notes.txt').read())"])
    assert SECRET not in json.dumps(shown)


def test_one_yes_is_enough_for_one_operation_and_for_no_second(site: Site) -> None:
    with Held(site, answer="approve") as held:
        reply = held.operate(kind="run", argv=["sh", "-c", "eval echo yes"])
    assert reply["result"]["stdout"] == "yes\n"
    records = [record for record in site.records() if record["pod"] == held.start["pod"]]
    assert [record["event"] for record in records].count("approval") == 1
    # The receipt names who approved.
    outcome = next(record for record in records if record["event"] == "outcome")
    assert outcome["decision"]["approver"] == f"uid:{site.uid}"
    with Held(site) as held:
        assert held.operate(kind="run", argv=["sh", "-c", "eval echo yes"])["kind"] == "approval_required"


def test_the_argv_that_was_decided_is_the_argv_that_runs(site: Site, codegen: Held) -> None:
    words = ["a b", "'; rm -rf x", "$(id)", "", '--x="y z"', "ü"]
    argv = ["python3", "-c", "import json, sys; print(json.dumps(sys.argv[1:]))", *words]
    reply = codegen.operate(kind="run", argv=argv)
    assert json.loads(reply["result"]["stdout"]) == words
    assert last(site, "intent")["operation"]["argv"] == argv


def test_a_push_is_a_push_and_a_tokenizer_is_no_token(codegen: Held) -> None:
    for line in ("git push", "git -C src push", "env A=1 git --no-pager push origin", "timeout 5 git push"):
        assert codegen.operate(kind="run", argv=line.split())["rule"] == "capabilities.git_push", line
    assert codegen.operate(kind="read", path="tokenizer.rs")["status"] == "ok"
    for line in ("cat tokenizer.rs", "grep -rn token src", "echo exec chmod token"):
        assert codegen.operate(kind="run", argv=line.split())["status"] == "ok", line


def test_five_commands_do_not_empty_a_budget_and_everything_is_charged(site: Site) -> None:
    caps = "{run_bash: low_risk, read_files: always, glob_search: always, grep_search: always, write_files: low_risk}"
    with Held(site, policy=policy(site, "frugal", caps, "budget: {limit_usd: '0.011000'}\n")) as held:
        for _ in range(5):
            reply = held.operate(kind="run", argv=["true"])
            assert reply["status"] == "ok", reply
            assert 0 < reply["cost"] < 1_000  # its reservation is 6,200: five unreturned ones would be too many
        for operation in (
            {"kind": "read", "path": "tokenizer.rs"},
            {"kind": "write", "path": "made.txt", "content": "x"},
            {"kind": "glob", "pattern": "**"},
            {"kind": "grep", "pattern": "token"},
        ):
            reply = held.operate(**operation)
            assert reply["cost"] > 0, operation
            assert last(site, "outcome")["context"]["charged"] == reply["cost"]


def test_a_command_has_a_path_and_a_home_and_nothing_of_ours(codegen: Held) -> None:
    reply = codegen.operate(kind="run", argv=["python3", "-c", "import json, os; print(json.dumps(dict(os.environ)))"])
    environment = json.loads(reply["result"]["stdout"])
    assert os.path.isabs(environment["HOME"])
    assert "/usr/bin" in environment["PATH"].split(":")
    assert not [name for name in environment if name.startswith(("NUCLEUS", "SPIFFE"))]


def test_a_policy_is_used_whole_whatever_its_name(site: Site) -> None:
    path = policy(site, "permissive", "{read_files: always}", 'paths: {allow: everything, block: ["src/"]}\n')
    with Held(site, policy=path) as held:
        assert held.operate(kind="run", argv=["true"])["rule"] == "capabilities.run_bash"
        assert held.operate(kind="write", path="x", content="x")["rule"] == "capabilities.write_files"
        assert held.operate(kind="read", path="src/a.py")["rule"] == "paths.block"
        assert held.operate(kind="read", path="tokenizer.rs")["status"] == "ok"


def test_empty_lists_allow_nothing(site: Site) -> None:
    lists = "paths: {allow: []}\ncommands: {allow: []}\n"
    with Held(site, policy=policy(site, "empty", "{read_files: always, run_bash: always}", lists)) as held:
        assert held.operate(kind="read", path="tokenizer.rs")["rule"] == "paths.allow"
        assert held.operate(kind="run", argv=["true"])["kind"] in ("denied", "approval_required")


def test_the_default_log_passes_its_own_verifier_and_every_field_is_inside(site: Site, codegen: Held) -> None:
    assert codegen.operate(kind="run", argv=["true"])["status"] == "ok"
    assert site.verify().returncode == 0
    lines = site.audit_log.read_text().splitlines()
    records = [json.loads(line) for line in lines]
    at = next(n for n, record in enumerate(records) if record["event"] == "outcome")
    assert tuple(records[at]) == FIELDS
    request = records[at]["request_id"]
    order = [record["event"] for record in records if record["request_id"] == request]
    assert order.index("intent") < order.index("outcome")
    forged = site.directory / "forged.jsonl"
    for name in FIELDS:
        value = records[at][name]
        other = value + 1 if isinstance(value, int) else {**value, "x": 1} if isinstance(value, dict) else "0" * 64
        changed = json.dumps({**records[at], name: other}, separators=(",", ":"))
        forged.write_text("\n".join([*lines[:at], changed, *lines[at + 1 :]]) + "\n")
        done = subprocess.run([BIN / "nucleus-audit", "verify", forged], capture_output=True, text=True, check=False)
        assert done.returncode == 1, name
        assert str(at + 1) in done.stdout, (name, done.stdout)


def test_no_command_line_and_no_environment_holds_a_secret(site: Site) -> None:
    agent = {"argv": ["sleep", "300"], "env": {}, "stdio": "pipes"}
    with Held(site, answer="approve", spec={"agent": agent}) as held:
        # An approval's token and two SVIDs exist by now.
        assert held.operate(kind="run", argv=["sh", "-c", "eval true"])["status"] == "ok"
        status = held.status()
        pod = next(pod for pod in status["pods"] if pod["pod"] == held.start["pod"])
        pids = [*status["pids"].values(), pod["gate"], *pod["pids"]]
        pids += [child for pid in pids for child in children(pid)]
        for pid in pids:
            words = Path(f"/proc/{pid}/cmdline").read_bytes() + Process(pid).environment()
            assert b"BEGIN" not in words
            assert not re.search(rb"[0-9a-fA-F]{32}|[A-Za-z0-9+]{40}", words), (pid, words)


@pytest.mark.parametrize("pattern", ["(a|a)+", "((a+))+", "(a+)+", "a{1000,}"])
def test_patterns_that_blow_up_are_refused(codegen: Held, pattern: str) -> None:
    assert codegen.operate(kind="grep", pattern=pattern)["kind"] == "invalid_request"


def test_patterns_and_urls_within_the_promise_pass(codegen: Held) -> None:
    assert codegen.operate(kind="grep", pattern="a{2,}")["status"] == "ok"
    url = "https://example.com/".ljust(2_048, "x")
    assert codegen.operate(kind="web_fetch", url=url)["kind"] != "invalid_request"
    reply = codegen.operate(kind="web_fetch", url=url + "x")
    assert reply["kind"] == "invalid_request"
    assert "2048" in reply["error"].replace(",", "")


OPERATIONS: list[tuple[dict[str, Any], tuple[str, ...]]] = [
    ({"kind": "read", "path": "src/a.py"}, ("read", "src/a.py")),
    ({"kind": "read", "path": ".env"}, ("read", ".env")),
    ({"kind": "write", "path": ".git/hooks/x", "content": ""}, ("write", ".git/hooks/x")),
    ({"kind": "run", "argv": ["true"]}, ("run", "--", "true")),
    ({"kind": "run", "argv": ["git", "-C", "x", "push"]}, ("run", "--", "git", "-C", "x", "push")),
    ({"kind": "run", "argv": ["cat", ".env"]}, ("run", "--", "cat", ".env")),
    ({"kind": "run", "argv": ["curl", "https://x.org/"]}, ("run", "--", "curl", "https://x.org/")),
    ({"kind": "git_push"}, ("git_push",)),
    ({"kind": "manage_pods", "action": "list"}, ("manage_pods", "list")),
]


def test_what_is_explained_is_what_the_gate_decides(site: Site) -> None:
    for profile in ("codegen", "restrictive", "fix_issue"):
        with Held(site, profile=profile) as held:
            for operation, words in OPERATIONS:
                said = explained(site, "--profile", profile, "--", *words)
                held.operate(**operation)
                pod = [record for record in site.records() if record["pod"] == held.start["pod"]]
                found = pod[-1]["decision"]
                assert (found["verdict"], found["rule"]) == (said["verdict"], said["rule"]), (profile, words)


def test_the_agents_own_tools_see_no_workspace(site: Site) -> None:
    look = "ls -A /workspace; find / ( -path /usr -o -path /proc ) -prune -o -name tokenizer.rs -print; true"
    look = look.replace("(", r"\(").replace(")", r"\)")
    done = site.cli(
        "run", "--profile", "codegen", "--workdir", str(site.workspace), "--", "sh", "-c", f"({look}) 2>/dev/null"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""


def test_an_unmet_floor_names_the_cause(site: Site) -> None:
    path = policy(site, "strong", "{run_bash: low_risk}", "isolation: {floor: firecracker}\n")
    done = site.cli("exec", "--policy", path, "--workdir", str(site.workspace), "--", "true")
    assert done.returncode == 6
    assert "firecracker" in done.stderr
    assert "namespaces" in done.stderr
    assert "Traceback" not in done.stderr


# In the order of `cap.NAMES` as people know it: read write edit run glob grep search fetch commit push pr pods; each
# Never, Low risk or Always. Then micro-dollars, minutes, and what asks.
KNOWN = "read_files write_files edit_files run_bash glob_search grep_search web_search web_fetch git_commit git_push"
PROFILES = """
default             ALLNAALLLNLN  5000000  60 write_files edit_files web_search web_fetch git_commit create_pr
permissive          AAAAAAAAAAAA 10000000 240 run_bash git_push create_pr
restrictive         ANNNAANNNNNN   500000  10
read_only           ANNNAANNNNNN  5000000  60
filesystem_readonly ANNNAANNNNNN  5000000  60
network_only        NNNNNNLLNNNN  1000000  30
web_research        LNNNAALLNNNN  1500000  45
code_review         ANNNAALNNNNN  1000000  30 web_search
edit_only           ALLNAANNNNNN  1500000  45
local_dev           ALLLAANNLNNN  3000000 120
codegen             ALLLAANNLNNN  5000000  60
fix_issue           ALLLAALLLLLN  2000000  60 run_bash web_search web_fetch git_commit git_push create_pr
release             ALLLAALLLLLN  5000000 120 run_bash git_push create_pr
demo                ALLLAALLLLLN  2000000  45 write_files edit_files run_bash git_push create_pr
database_client     NNNLNNNNNNNN  2000000  60
pr_review           ANNNAALLNNNN  1500000  30
pr_approve          ANNLAALLNLNN  1000000  15 run_bash git_push
orchestrator        LNNNLLNNNNNA 50000000 240
"""


@pytest.mark.parametrize("row", PROFILES.strip().splitlines(), ids=lambda row: row.split()[0])
def test_the_profiles_are_those_that_people_know(row: str) -> None:
    name, letters, budget, minutes, *asks = row.split()
    policy = parse_policy(profile_text(name), name)
    order = [*KNOWN.split(), "create_pr", "manage_pods"]
    names = {cap.NEVER: "N", cap.LOW_RISK: "L", cap.ALWAYS: "A"}
    assert "".join(names[cap.level(policy.capabilities, item)] for item in order) == letters
    assert (policy.budget_limit, policy.window_ns) == (int(budget), int(minutes) * 60_000_000_000)
    enabled = {item for item, letter in zip(order, letters, strict=True) if letter != "N"}
    assert {item for item in enabled if not cap.unattended(policy.capabilities, item)} == set(asks)


def test_every_module_is_on_the_live_path() -> None:
    """Most of that code base's bugs: a mechanism that exists, and that nothing calls."""
    source = REPOSITORY / "src"
    modules = {
        ".".join(path.relative_to(source).with_suffix("").parts).removesuffix(".__init__"): path
        for path in source.rglob("*.py")
    }
    verbs = {f"nucleus.cli.{verb}" for verb in ast.literal_eval(_assigned(modules["nucleus.cli.main"], "VERBS"))}
    waiting = {"nucleus.cli.main", "nucleus.cli.audit", "nucleus.sdk.mcp", "nucleus.sdk.client"} | verbs
    reached: set[str] = set()
    while waiting:
        name = waiting.pop()
        reached.add(name)
        tree = ast.parse(modules[name].read_text())
        said = {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}  # docstrings call nothing
        for node in ast.walk(tree):
            named: set[str] = set()
            if isinstance(node, ast.Import):
                named = {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                named = {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in said:
                named = set(MODULE.findall(node.value))  # `-m nucleus.pod.builder`
            waiting |= {n for n in named if n in modules} - reached
    packages = {name for name in modules if modules[name].name == "__init__.py"}
    # The room of what breaks things on purpose is on no live path; then tests have to use it.
    tests = "".join(path.read_text() for path in (REPOSITORY / "tests").rglob("*.py"))
    shared = {name for name in modules if name.startswith("nucleus.testing.") and f"from {name} import" in tests}
    assert set(modules) - reached - packages - shared == set()


def _assigned(path: Path, name: str) -> str:
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            return ast.unparse(node.value)
    raise AssertionError(name)
