"""What a command is decided to be: wrappers, escapes, git by any route, names in words. Lessons' defects among them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nucleus.lattice import Context, Policy, decide, parse_policy
from nucleus.lattice.commands import analyse, resolve_program
from nucleus.model.decision import Decision, Verdict
from nucleus.model.operation import Run
from nucleus.validate import validate_operation

QUIET = Context(now_ns=10, started_ns=5)
EGRESS = Context(now_ns=10, started_ns=5, egress=True)
HEAD = "version: 1\nname: t\n"
ALL_LOW = "capabilities: {read_files: always, write_files: low_risk, run_bash: low_risk, git_commit: low_risk}\n"


def policy(extra: str = "", capabilities: str = ALL_LOW) -> Policy:
    return parse_policy(HEAD + capabilities + extra, "t")


def decided(line: str | list[str], extra: str = "", capabilities: str = ALL_LOW, context: Context = QUIET) -> Decision:
    argv = line.split() if isinstance(line, str) else line
    return decide(policy(extra, capabilities), validate_operation(Run(argv=tuple(argv))), context)


@pytest.mark.parametrize(
    "line",
    [
        "true", "echo hello", "git status", "git diff", "git log -p -- src", "git -C sub status", "python3 -m unittest",
        ["python3", "-c", "print(6*7)"], "python3 x.py", "pytest -q", "timeout 5 pytest", "nice -n 5 make -j2",
        "env FOO=1 pytest", "nohup make", "/usr/bin/git status", "cat tokenizer.rs", "grep -rn token src",
        "grep -r password .", "find . -name *.py", "sed -n 1,5p a.py", "sed -i s/foo/bar/g x.py",
        "sed -n /foo/,$p f", ["sed", "-e", "s/a\\/b/c/;s|x|y|gI", "-e", "2,3d", "f"], "awk {print$1} f",
        "make test", "npm test", "cargo build --release", "go test ./...", "tar xf a.tar", "cp a b", "rm -r build",
        ["git", "commit", "-m", "update .env handling"], ["python3", "-c", "print(ev.key)"], "stdbuf -oL pytest",
        "time make", "python3.11 x.py", "ls", "cat README.md",
    ],
)  # fmt: skip
def test_ordinary_work_is_unattended_without_egress(line: str | list[str]) -> None:
    found = decided(line)
    assert found.verdict is Verdict.ALLOW, found


@pytest.mark.parametrize(
    "line",
    [
        ["bash", "-c", "ls"], ["sh", "-ec", "ls"], ["busybox", "sh"], "bash", "env -S ls", ["env",
        "LD_PRELOAD=x.so", "ls"],
        "env GIT_SSH_COMMAND=x git status", "env PATH=. ls", "xargs rm", "sudo ls", "find . -exec rm {} ;",
        "find . -delete", "find . -fprintf x y", "git -c core.pager=x status", "git --exec-path=. status",
        "git --git-dir=x status", "git unknownalias", "git cat-file -p abc", "git archive HEAD", "git grep -Oless x",
        "git diff --output=x", "git diff --ext-diff", "git bisect run make",
        "tar cf a b --checkpoint-action=exec=sh", "tar xf a --to-command=sh", "tar -I sh -xf a", "sed 1e\\ id f",
        "sed s/a/b/e f", "sed -n wfile f", "sed -es/a/b/w f", "sed /x/e f", "sed -f x f", ["awk",
        'BEGIN{system("id")}'], ["awk", '{print | "sh"}'], "vim -c :!sh", "gdb x",
        "rg --pre sh x", "sort --compress-program=sh x", "split --filter=sh x", "./run.sh", "/tmp/x", "sub/git status",
        "nosuchprogram", "strace ls", "unshare ls", "chroot . ls", "timeout 5 bash -c ls", "nice env -S ls",
        "make --eval=x",
        "less x", "man ls", "eval x",
    ],
)  # fmt: skip
def test_what_leaves_its_job_asks(line: str | list[str]) -> None:
    found = decided(line)
    assert found.verdict is Verdict.ASK, found
    assert found.obligations == ("approval:run_bash",)


@pytest.mark.parametrize(
    "line",
    [
        "git push", "git -C x push", "env git push", "env A=1 git push origin", "nice -n 3 git push",
        "timeout 9 git push",
        "timeout -s KILL 9 git push", "nohup git push", "/usr/bin/git push", "git -c a=b push", "git --no-pager push",
        "sudo -u x git push", "xargs git push", "xargs -n1 git push", "find . -exec git push ;", "git-push",
        "/usr/lib/git-core/git-push", ["bash", "-c", "git push"], ["bash", "-lc", "cd x && git push"],
        "setsid git push",
        ["sh", "-c", "true;git -C x push"], ["sh", "-c", "$(git push)"], ["env", "-S", "git push"], "git send-pack x",
        ["su", "-c", "git push"], ["watch", "git push"], "stdbuf -o0 env nice git push", "busybox git push",
        "env -C sub git push", "env -u A git push",
        "timeout -vs KILL 5 git push",
        "env -iu A git push",
        "env -uA git push",
    ],
)  # fmt: skip
def test_git_push_by_any_route_needs_git_push(line: str | list[str]) -> None:
    found = decided(line)
    assert (found.verdict, found.rule) == (Verdict.DENY, "capabilities.git_push"), found


def test_other_capabilities_behind_commands() -> None:
    bare = "capabilities: {run_bash: low_risk}\n"
    assert decided("git commit -m x", capabilities=bare).rule == "capabilities.git_commit"
    assert decided("git -C x merge y", capabilities=bare).rule == "capabilities.git_commit"
    assert decided("gh pr create", capabilities=bare).rule == "capabilities.create_pr"
    assert decided("gh -R a/b pr create", capabilities=bare).rule == "capabilities.create_pr"
    assert decided("touch x", capabilities=bare).rule == "capabilities.write_files"
    for line in (
        "curl http://x",
        "env wget x",
        "nc -l 1",
        "ssh h",
        "scp a h:b",
        "git fetch",
        "npm publish",
        "docker push x",
    ):
        assert decided(line, capabilities=bare).rule == "capabilities.web_fetch", line


def test_low_risk_push_through_a_command_asks() -> None:
    found = decided("git push", capabilities="capabilities: {run_bash: low_risk, git_push: low_risk}\n")
    assert found.verdict is Verdict.ASK
    assert "approval:git_push" in found.obligations


@pytest.mark.parametrize(
    "line",
    [
        "cat .env", "cat ./.env", "cat a/../.env", "cat /workspace/.env", "head -n1 .ENV", "tool --file=.env",
        "tool -f.env",
        "curl -d @.env", "git show HEAD:.env", "git show HEAD:./.env", "git cat-file -p HEAD:sub/.env",
        "git diff -- .env",
        "git log -p -- config/secrets/a", "git archive HEAD .env", "git grep x -- .env", "cp .env x", "tar cf x .env",
        "cat token", "ls secrets", "env X=.env true", ["bash", "-c", "cat .env"], ["bash", "-c", "cat<.env"],
        ["python3", "-c", "print(open('.env').read())"], "sed -n p .env", "grep x .env", "grep -e x .env",
        "xargs cat .env",
        "git -C sub show HEAD:.env", "diff a,.env", "git blame .env", "rg --file .env",
    ],
)  # fmt: skip
def test_words_that_name_a_blocked_path_are_denied(line: str | list[str]) -> None:
    extra = 'paths: {block: ["@sensitive"]}\n'
    full = ALL_LOW.replace("}", ", web_fetch: always}")
    found = decided(line, extra, full)
    assert (found.verdict, found.rule) == (Verdict.DENY, "paths.block"), found


def test_paths_are_relative_to_the_commands_directory() -> None:
    op = validate_operation(Run(argv=("cat", "../.env"), cwd="sub"))
    assert decide(policy(), op, QUIET).rule == "paths.block"
    op = validate_operation(Run(argv=("ls",), cwd="secrets"))
    assert decide(policy(), op, QUIET).rule == "paths.block"


@pytest.mark.parametrize(
    "line",
    [
        "touch .git/hooks/pre-commit",
        "cp x .vscode/settings.json",
        "tee .mcp.json",
        "rm -r .claude",
        "sed -i s/a/b/ .envrc.x/../.husky/x",
    ],
)
def test_protected_names_are_not_written_by_commands(line: str) -> None:
    assert decided(line, "paths: {block: []}\n").rule == "paths.protected"


def test_interpreters_are_low_risk_only_without_egress() -> None:
    low = "capabilities: {run_bash: low_risk}\n"
    assert decided("python3 x.py", capabilities=low).verdict is Verdict.ALLOW
    found = decided("python3 x.py", capabilities=low, context=EGRESS)
    assert found.verdict is Verdict.ASK
    # run_bash is all three legs there, so the trifecta asks even for `true`.
    assert decided("true", capabilities=low, context=EGRESS).rule == "trifecta.static"


def test_rules_match_words_not_strings() -> None:
    deny = "commands: {deny: [{program: rm}, {program: git, args: [push, {one_of: [--force, -f]}]}]}\n"
    assert decided("rm x", deny).rule == "commands.deny"
    assert decided("env rm x", deny).rule == "commands.deny"
    assert decided("/bin/rm x", deny).rule == "commands.deny"
    assert decided("./rm x", deny).rule == "commands.deny"
    assert decided(["bash", "-c", "true; rm x"], deny).rule == "commands.deny"
    assert decided("grep rm notes.txt", deny).verdict is Verdict.ALLOW
    assert decided("rmdir x", deny).verdict is Verdict.ALLOW
    push = ALL_LOW.replace("}", ", git_push: always}")
    assert decided("git -C a push origin x --force", deny, push).rule == "commands.deny"
    assert decided("git push", deny, push).rule != "commands.deny"


def test_allow_rules_are_exact_and_typed() -> None:
    rules = """commands:
  allow:
    - {program: psql, args: [-f, {type: path}], rest: none}
    - {program: tool, args: [run, {type: integer}], rest: paths}
    - {program: ./build.sh}
"""
    assert decided("psql -f a.sql", rules).verdict is Verdict.ALLOW
    assert decided("psql -f a.sql x", rules).rule == "commands.allow"
    assert decided("psql -f ../a.sql", rules).rule == "commands.allow"
    assert decided("psql -f /etc/x", rules).rule == "commands.allow"
    assert decided("tool run 5 a b/c", rules).verdict is Verdict.ALLOW
    assert decided("tool run x", rules).rule == "commands.allow"
    assert decided("tool run 5 --x", rules).rule == "commands.allow"
    assert decided("./build.sh", rules).verdict is Verdict.ALLOW
    assert decided("true", rules).rule == "commands.allow"
    assert decided("timeout 5 ./build.sh", rules).verdict is Verdict.ALLOW


def test_an_empty_allow_list_allows_nothing_and_so_does_the_meet_of_disjoint_lists() -> None:
    from nucleus.lattice import meet

    for level in ("low_risk", "always"):
        caps = f"capabilities: {{run_bash: {level}}}\n"
        assert decided("true", "commands: {allow: []}\n", caps).verdict is Verdict.ASK
        a, b = (policy(f"commands: {{allow: [{{program: {name}}}]}}\n", caps) for name in ("true", "false"))
        for name in ("true", "false", "ls"):
            assert decide(meet(a, b), Run(argv=(name,)), QUIET).verdict is Verdict.ASK


def test_always_drops_risk_but_not_lists() -> None:
    always = "capabilities: {run_bash: always}\n"
    assert decided(["bash", "-c", "ls"], "commands: {allow: everything}\n", always).verdict is Verdict.ALLOW
    assert decided(["bash", "-c", "ls"], "commands: {allow: [{program: bash}]}\n", always).verdict is Verdict.ALLOW
    assert decided(["bash", "-c", "ls"], "", always).verdict is Verdict.ASK
    # A rule for a wrapper, or for what is behind a tricky one, does not cover the rest.
    assert decided("timeout 5 bash -c ls", "commands: {allow: [{program: timeout}]}\n", always).verdict is Verdict.ASK
    assert decided("env LD_PRELOAD=x ls", "commands: {allow: [{program: ls}]}\n", always).verdict is Verdict.ASK
    assert (
        decided("git -c a=b status", "commands: {allow: [{program: git, args: [status]}]}\n", always).verdict
        is Verdict.ASK
    )


def test_programs_resolve_by_directory() -> None:
    assert resolve_program("git") == "git"
    assert resolve_program("/usr/local/bin/git") == "git"
    assert resolve_program("/usr/bin/../../workspace/git") == "/usr/bin/../../workspace/git"
    assert resolve_program("bin/git") == "bin/git"


def test_analysis_is_bounded() -> None:
    import time

    start = time.perf_counter()
    analyse(("env",) * 1000 + ("git", "push"))
    analyse(("bash", "-c", "git push;" * 1700))
    analyse(("tool", *[f"--x{i}=a:b,c@d" for i in range(900)]))
    analyse(("xargs", *["sudo"] * 900))
    assert time.perf_counter() - start < 1.0


def test_flags_name_the_reason() -> None:
    assert "find -exec" in decided("find . -exec rm {} ;").detail


WORDS = st.sampled_from(
    [
        "git",
        "push",
        "-C",
        "x",
        "env",
        "-S",
        "A=1",
        "bash",
        "-c",
        "git push",
        "timeout",
        "5",
        "-k",
        "find",
        "-exec",
        ";",
        "--",
        "sed",
        "-e",
        "s/a",
        "awk",
        "xargs",
        "sudo",
        "-",
        "",
        "=",
        ":",
        "@",
        ".env",
        "HEAD:.env",
        "python3",
        "gh",
        "\x00",
        "é",
    ]
)


@given(st.lists(WORDS | st.text(max_size=6), min_size=1, max_size=10))
def test_any_argv_is_decided(argv: list[str]) -> None:
    command = analyse(tuple(argv))
    assert command.plain is not None
    found = decide(policy(), Run(argv=tuple(argv)), QUIET)
    if any(word == ".env" for word in argv[1:]) and argv[0] == "cat":
        assert found.verdict is Verdict.DENY


@given(st.lists(st.sampled_from(["env", "nice", "nohup", "setsid", "timeout 5", "env A=1", "stdbuf -oL"]), max_size=5))
def test_wrappers_never_change_the_capability(wrappers: list[str]) -> None:
    argv = [word for wrapper in wrappers for word in wrapper.split()] + ["git", "push"]
    assert decided(argv).rule == "capabilities.git_push"


def test_a_shell_with_a_script_file_is_an_interpreter() -> None:
    for line in ("bash run_tests.sh", "sh -x build.sh", "timeout 5 bash x.sh"):
        assert decided(line).verdict is Verdict.ALLOW
        assert decided(line, context=EGRESS).verdict is Verdict.ASK
    for line in ("bash", "sh -s", "bash -", "bash -xc ls"):
        assert decided(line).verdict is Verdict.ASK


@pytest.mark.parametrize(
    "line",
    ["gh auth token", "gh -R a/b auth status", "gh config get x", "aws sts get-session-token", "gcloud auth login",
     "npm token list", "env A=b npm config get //x:_authToken", "git credential fill",
     "git -C src credential-store get", "op read x", "vault kv get x", "xargs npm login", "timeout 5 docker login",
     "ssh-add -L"],
)  # fmt: skip
def test_tools_that_handle_credentials_are_denied_by_default(line: str) -> None:
    levels = "capabilities: {read_files: always, run_bash: low_risk, web_fetch: always}\nhosts: {allow: everything}\n"
    for words in (line, ["sh", "-c", f"ls && {line}"]):
        made = decided(words, "commands: {allow: [{set: ordinary}, {set: shell_strings}]}\n", levels)
        assert (made.verdict, made.rule) == (Verdict.DENY, "commands.credentials")
        assert made.next_step == "Name the program in `commands.allow` if it is meant."
        assert decided(words, "commands: {allow: everything}\n", levels).verdict is Verdict.ASK


def test_a_tool_that_handles_credentials_can_be_named() -> None:
    named = "commands: {allow: [{program: npm, args: [whoami]}]}\n"
    assert decided("npm whoami", named, "capabilities: {run_bash: always}\n").verdict is Verdict.ALLOW
    assert decided("npm token", named, "capabilities: {run_bash: always}\n").rule == "commands.credentials"
