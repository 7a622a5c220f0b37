"""SPECIFICATION.md and the documents: every link exists, no promise twice, and what README says can be typed in."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import specification
from integration.site import BIN, Site
from specification import LINK, PENDING, ROOT, dangling, functions_of, pages, parameters_of, rows, sections, text

NUCLEUS = str(BIN / "nucleus")
# Printed by these, and nothing is changed or waited for.
HARMLESS = ("doctor", "exec", "policy")


# --- SPECIFICATION.md ---


def test_every_link_exists() -> None:
    assert dangling(rows()) == []


def test_a_test_that_is_deleted_is_missed() -> None:
    """Each of them, one after another; and a parameter that is none."""
    found = rows()
    for path, name, _ in {link for _, _, shown in found for link in LINK.findall(shown)}:
        without = dangling(found, lambda at, path=path, name=name: functions_of(at) - ({name} if at == path else set()))
        assert without, (path, name)
        assert all(line.endswith(f": no test {path}::{name}") for line in without)
    path, name = "tests/test_architecture.py", "test_imports_go_downwards"
    row = [("X-1", "p", f"`{path}::{name}[one]`")]
    assert dangling(row, parameters=lambda _: frozenset({f"{name}[one]"})) == []
    assert dangling(row, parameters=lambda _: frozenset({f"{name}[two]"})) == [
        f"X-1: no parameters {path}::{name}[one]"
    ]
    assert dangling([("X-1", "p", f"`tests/none.py::{name}`")]) == [f"X-1: no test tests/none.py::{name}"]
    assert dangling([("X-1", "p", "by hand")]) == ["X-1: neither a test nor *pending*"]


def test_parameters_are_those_that_pytest_collects() -> None:
    found = parameters_of("tests/test_architecture.py")
    assert any(name.startswith("test_imports_go_downwards[") for name in found)


def test_a_test_that_never_runs_shows_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "test_x.py").write_text("@pytest.mark.skip(reason='later')\ndef test_a(): ...\n\ndef test_b(): ...\n")
    monkeypatch.setattr(specification, "ROOT", tmp_path)
    assert functions_of.__wrapped__("test_x.py") == {"test_b"}


def test_the_count_is_printed() -> None:
    done = subprocess.run([sys.executable, "tests/specification.py"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    pending = sum(shown == PENDING for _, _, shown in rows())
    assert re.fullmatch(rf"SPECIFICATION.md: {len(rows())} promises: .*, {pending} pending.*\n", done.stdout)
    assert "tests/specification.py" in text("Makefile").split("\ncheck:", 1)[1].split("\n\n", 1)[0]


def test_every_page_and_section_is_represented() -> None:
    known = {ident: shown for ident, _, shown in rows()}
    named = pages()
    wanted = {("README.md", title) for title in sections("README.md")} | {("SECURITY.md", "")}
    wanted |= {(f"docs/{path.name}", "") for path in (ROOT / "docs").glob("*.md")}
    assert set(named) == wanted, set(named) ^ wanted
    for place, idents in named.items():
        assert set(idents) <= set(known), (place, set(idents) - set(known))
        assert any(known[ident] != PENDING for ident in idents), f"{place}: nothing of it is shown"


def test_ids_and_promises_are_unique() -> None:
    found = rows()
    idents = [ident for ident, _, _ in found]
    promises = [promise.lower().rstrip(".") for _, promise, _ in found]
    assert sorted(set(idents)) == sorted(idents)
    assert sorted(set(promises)) == sorted(promises)
    for ident in idents:
        name, number = ident.split("-")
        assert number == "1" or f"{name}-{int(number) - 1}" in idents, f"{ident}: a gap before it"


def test_every_room_of_tests_is_linked() -> None:
    linked = {Path(path).parent for _, _, shown in rows() for path, _, _ in LINK.findall(shown)}
    rooms = {path.parent.relative_to(ROOT) for path in (ROOT / "tests").rglob("test_*.py")}
    assert rooms <= linked, rooms - linked


def test_the_threat_model_is_represented() -> None:
    table = text("docs/threat-model.md").split("## What holds against them", 1)[1].split("\n## ", 1)[0]
    lines = [line for line in table.splitlines() if line.startswith("|")][2:]
    known = {ident for ident, _, shown in rows() if shown != PENDING}
    assert len(lines) >= 10
    for line in lines:
        idents = re.findall(r"\b[A-Z]+-\d+\b", line.rstrip("|").rpartition("|")[2])
        assert idents, line
        assert set(idents) <= known, (line, set(idents) - known)


# --- README.md and docs/policy.md ---


def commands() -> list[list[str]]:
    """The command of each line of README's "Use"; what follows two blanks says what it does."""
    block = text("README.md").split("## Use", 1)[1].split("```", 2)[1]
    found = [re.split(r" {2,}", line.strip())[0] for line in block.splitlines() if line.strip()]
    return [shlex.split(line) for line in found]


def run(argv: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(BIN / argv[0]), *argv[1:]], capture_output=True, text=True, check=False, timeout=60)


def test_readmes_verbs_and_flags_exist() -> None:
    overview = run(["nucleus", "help"]).stdout
    assert {argv[0] for argv in commands()} == {"nucleus", "nucleus-audit"}
    for program, verb, *words in commands():
        shown = run([program, verb, "--help"])
        assert shown.returncode == 0, (verb, shown.stderr)
        assert verb in shown.stdout
        assert program == "nucleus-audit" or re.search(rf"^  {verb} ", overview, re.MULTILINE), verb
        options = words[: words.index("--")] if "--" in words else words
        for flag in (word for word in options if word.startswith("--")):
            assert re.search(rf"{flag}\b", shown.stdout), (verb, flag)
    for verb in re.findall(r"^  ([a-z]+)  ", overview, re.MULTILINE):
        assert verb == "help" or run(["nucleus", verb, "--help"]).returncode == 0, verb


@pytest.fixture
def site() -> Iterator[Site]:
    made = Site(0)
    yield made
    made.close()


def test_readmes_commands_do_what_it_says(site: Site) -> None:
    seen = []
    for program, verb, *words in commands():
        if program != "nucleus" or verb not in HARMLESS:
            continue
        flags = ["--workdir", str(site.workspace)] if verb == "exec" else []
        seen.append((verb, words, site.cli(verb, *flags, *words)))
    doctor, codegen, read_only, policy = (done for _, _, done in seen)
    assert doctor.returncode == 0
    assert "namespaces" in doctor.stdout
    assert (codegen.returncode, codegen.stdout) == (0, "42\n"), codegen.stderr
    assert read_only.returncode == 3
    assert "rule: capabilities.run_bash" in read_only.stderr
    assert "next: " in read_only.stderr
    assert policy.returncode == 0
    assert "codegen" in policy.stdout
    explained = site.cli("policy", "explain", "--profile", "codegen", "--", "run", "git", "push")
    assert explained.returncode == 3
    assert "capabilities.git_push" in explained.stdout
    assert site.verify().returncode == 0


def verdict(policy: Path, *operation: str) -> str:
    return run(["nucleus", "policy", "explain", "--policy", str(policy), "--", *operation]).stdout.partition(":")[0]


def test_readmes_first_policy_is_one(tmp_path: Path) -> None:
    policy = tmp_path / "my-agent.yaml"
    policy.write_text(text("README.md").split("```yaml\n", 1)[1].split("```", 1)[0])
    for operation, expected in (
        (("read", "src/a.py"), "allow"),
        (("glob", "**"), "allow"),
        (("edit", "src/a.py"), "allow"),
        (("run", "python3", "-m", "unittest"), "allow"),
        (("git_commit",), "allow"),
        (("read", ".env"), "deny"),
        (("read", "customers/list.csv"), "deny"),
        (("git_push",), "deny"),
        (("web_fetch", "https://example.com/"), "deny"),
        (("run", "bash", "-c", "true"), "ask"),
        (("run", "nosuchprogram"), "ask"),
    ):
        assert verdict(policy, *operation) == expected, operation


def test_the_policy_page_shows_a_policy(tmp_path: Path) -> None:
    policy = tmp_path / "my-policy.yaml"
    policy.write_text(text("docs/policy.md").split("```yaml\n", 1)[1].split("```", 1)[0])
    for operation, expected in (
        (("read", "src/a.py"), "allow"),
        (("read", "data/a.csv"), "deny"),
        (("write", "src/a.py"), "ask"),
        (("edit", "src/a.py"), "deny"),
        (("run", "psql", "-f", "a.sql"), "allow"),
        (("run", "rm", "x"), "ask"),
        (("run", "git", "remote", "add", "x", "y"), "deny"),
        (("run", "git", "status"), "allow"),
        (("run", "nosuchprogram"), "ask"),
    ):
        assert verdict(policy, *operation) == expected, operation
    subcommands = set(re.findall(r"`(list|show|check|explain|compare)\b", text("docs/policy.md")))
    shown = run(["nucleus", "policy", "--help"]).stdout
    assert len(subcommands) >= 4
    assert all(f"nucleus policy {word}" in shown for word in subcommands | {"list"})


# --- docs/design.md and the ADRs ---


def test_the_contract_names_what_the_code_speaks() -> None:
    from nucleus.audit.record import EVENTS, FIELDS
    from nucleus.authority.service import _GATE, GATE_EVENTS
    from nucleus.hands.git import OPERATIONS as GIT
    from nucleus.hands.main import _FILE_OPERATIONS, _SEARCHES
    from nucleus.hands.protocol import CODES
    from nucleus.pod import runtime

    page = text("docs/design.md")

    def listed(after: str, until: str) -> list[str]:
        return re.findall(r"`([a-z_.0-9]+)`", page.split(after, 1)[1].split(until, 1)[0])

    assert f"`{' '.join(FIELDS)}`" in page
    assert set(listed("a gate appends ", ";")) == GATE_EVENTS
    assert set(listed("all events are ", ".\n")) == EVENTS
    assert set(listed("hands error codes:", ".\n")) == CODES
    gate = page.split("## gate → authority", 1)[1].split("\n## ", 1)[0]
    assert set(re.findall(r"^\| `([a-z_]+)`", gate, re.MULTILINE)) == set(_GATE)
    hands = page.split("## gate ⇄ hands", 1)[1].split("\n## ", 1)[0]
    named = set(re.findall(r"`([a-z_]+)(?: \{[^`]*)?`", "".join(re.findall(r"^\| (.*?) \|", hands, re.MULTILINE))))
    assert named == {*_FILE_OPERATIONS, *_SEARCHES, *GIT, "run", "cancel"}
    adr = text("docs/adr/0001-processes.md")
    for uid in (runtime.AUTHORITY_UID, runtime.GATE_UID, runtime.POD_UID):
        assert f"0x{uid:08x}" in page
        assert f"0x{uid:08x}" in adr


def test_every_dependency_has_its_line_and_its_hashes() -> None:
    project = tomllib.loads(text("pyproject.toml"))["project"]
    names = {re.split(r"[<>=]", line)[0].lower() for line in project["dependencies"]}
    table = re.findall(r"^\| ([A-Za-z0-9-]+) ", text("docs/adr/0003-runtime-dependencies.md"), re.MULTILINE)
    assert names == {name.lower() for name in table} - {"package"}
    for package in tomllib.loads(text("uv.lock"))["package"]:
        if "registry" in package["source"]:
            files = [*package.get("wheels", ()), *([package["sdist"]] if "sdist" in package else [])]
            assert files, package["name"]
            assert all(file["hash"].startswith("sha256:") for file in files), package["name"]
