"""What a command in the work compartment tried against the host, and what stops it now. Each case here got through.

All of them go through the public door, as root and as an ordinary user.
"""

from __future__ import annotations

import json
import os
import resource
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from integration.held import Held
from integration.site import USER, Site
from nucleus.pod.aftermath import SUFFIX

PRELUDE = """
import os, socket, subprocess
def attempt(name, act):
    try:
        act()
        print(name, "GOT THROUGH")
    except OSError as error:
        print(name, "held", error.strerror)
def write(path, text):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    open(path, "w").write(text)
EVIL = "[core]\\n\\tfsmonitor = touch /tmp/owned\\n"
"""
REDIRECTS = """
attempt("commondir", lambda: write(".git/commondir", "../evil\\n"))
attempt("config.worktree", lambda: write(".git/config.worktree", EVIL))
attempt("commondir of a submodule", lambda: write(".git/modules/sub/commondir", "../../../evil\\n"))
attempt("another directory for a submodule", lambda: os.rename(".git/modules/sub", ".git/modules/old"))
attempt("another directory for all submodules", lambda: os.rename(".git/modules", ".git/old"))
attempt("commondir of a worktree elsewhere", lambda: write(".git/worktrees/tree/commondir", "../../../evil\\n"))
attempt("config of a bare repository", lambda: write("bare.git/config", EVIL))
attempt("hook of a bare repository", lambda: write("bare.git/hooks/post-update", "evil"))
attempt("through a symlink to a protected directory", lambda: write("dotfiles/claude/settings.json", "evil"))
"""
SWAPS = """
os.rename("nest", "nest2"); write("nest/.git/config", EVIL); write("nest/.git/hooks/post-commit", "evil")
os.rename("ide", "ide2"); write("ide/.vscode/tasks.json", "evil")
write("dark/.envrc", "evil"); os.chmod("dark", 0o311)
write("stone/.envrc", "evil"); os.chmod("stone", 0o555)
subprocess.run(["git", "init", "-q", "--bare", "new"], check=True); write("new/config", EVIL)
os.unlink(".claude"); os.symlink("evil", ".claude")
write("repo/.git/HEAD", "x"); write("repo/.git/modules/a/HEAD", "x"); write("repo/.git/modules/a/config", EVIL)
"""


@pytest.fixture(params=["root", "user"])
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    made = Site(0 if request.param == "root" else USER)
    yield made
    made.close()


def git(site: Site, *arguments: str, cwd: Path | None = None) -> str:
    """Git as the site's user on the host, with nothing of ours in the way."""
    settings = ["user.name=a", "user.email=a@b", "protocol.file.allow=always"]
    argv = ["git", "-C", str(cwd or site.workspace), *(word for each in settings for word in ("-c", each)), *arguments]
    with site.start(argv) as child:
        out, error = child.communicate(timeout=30)
    assert child.returncode == 0, error
    return out


def repository(site: Site) -> None:
    """A repository without hooks, with a submodule, a worktree outside, a repository inside and a bare one."""
    git(site, "init", "-q", "--template=", ".")
    git(site, "config", "extensions.worktreeConfig", "true")
    other = site.directory / "other"
    for path in (other, site.workspace / "nest"):
        git(site, "init", "-q", str(path))
        git(site, "commit", "-q", "--allow-empty", "-m", "x", cwd=path)
    git(site, "submodule", "--quiet", "add", str(other), "sub")
    git(site, "clone", "-q", "--bare", str(other), "bare.git")
    git(site, "commit", "-q", "-m", "x")
    git(site, "worktree", "add", "-q", str(site.directory / "tree"))
    site.write("ide/.vscode/tasks.json", "mine")
    site.write("dotfiles/claude/settings.json", "mine")
    (site.workspace / ".claude").symlink_to("dotfiles/claude")


def test_git_is_not_led_elsewhere(site: Site) -> None:
    repository(site)
    site.write("attack.py", PRELUDE + REDIRECTS)
    done = site.exec("python3", "attack.py")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("held") == 9, done.stdout
    site.cli("helper", "stop")
    assert not os.path.lexists(site.workspace / ".git/commondir"), "a placeholder stayed"
    assert not os.path.lexists(site.workspace / ".git/config.worktree")
    assert not list(site.workspace.rglob("*" + SUFFIX))
    assert git(site, "status", "--porcelain", "--", "sub", ".gitmodules") == ""
    assert git(site, "status", "--porcelain", cwd=site.directory / "tree") == ""


def test_what_was_there_is_known_by_its_inode(site: Site) -> None:
    """Renaming a directory above a protected name, modes that hide it, repositories that are not called `.git`."""
    repository(site)
    site.write("attack.py", PRELUDE + SWAPS)
    done = site.exec("python3", "attack.py")
    assert done.returncode == 0, done.stdout + done.stderr
    site.cli("helper", "stop")
    work = site.workspace
    for name in ("nest/.git/hooks", "ide/.vscode", "dark/.envrc", "stone/.envrc", ".claude"):
        assert not os.path.lexists(work / name), name
        assert os.path.lexists(work / (name + SUFFIX)), name
    for name in ("nest/.git/config", "new/config", "repo/.git/modules/a/config"):
        assert "fsmonitor" not in (work / name).read_text(), name
    assert (work / "ide2/.vscode/tasks.json").read_text() == "mine"
    assert not list((work / "nest2/.git").glob("*" + SUFFIX)), "what was moved is still what it was"


@pytest.mark.parametrize("where", ["host.sock", ".git/fsmonitor--daemon.ipc"])
def test_a_socket_of_the_host_in_the_workspace(site: Site, where: str) -> None:
    git(site, "init", "-q", ".")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(site.workspace / where))
        listener.listen(1)
        listener.setblocking(False)
        os.chown(site.workspace / where, site.uid, site.uid)
        code = f"import socket; s = socket.socket(socket.AF_UNIX); s.connect({where!r}); print('CONNECTED')"
        site.write("attack.py", code)
        done = site.exec("python3", "attack.py")
        assert "CONNECTED" not in done.stdout
        assert "PermissionError" in done.stderr
        with pytest.raises(BlockingIOError):
            listener.accept()


def test_a_placeholder_stays_as_long_as_a_pod_needs_it(site: Site) -> None:
    """The first pod made `.git/hooks`; when it ends the second one must not be able to make it again."""
    git(site, "init", "-q", "--template=", ".")
    site.write("attack.py", PRELUDE + "attempt('hook', lambda: write('.git/hooks/post-commit', 'evil'))\n"
               "attempt('commondir', lambda: write('.git/commondir', 'evil'))\n")  # fmt: skip
    first = Held(site)
    with Held(site) as second:
        first.__exit__(None, None, None)
        site.exec("true")  # the first one is gone for sure
        reply = second.operate(kind="run", argv=["python3", "attack.py"])
        assert reply["result"]["stdout"].count("held") == 2, reply
    site.cli("helper", "stop")
    assert not os.path.lexists(site.workspace / ".git/commondir")
    assert not os.path.lexists(site.workspace / ".git/hooks")


def test_a_config_that_the_host_replaced_while_the_pod_ran(site: Site) -> None:
    """`git config` on the host renames over the file, which takes our mount off it in the pod."""
    git(site, "init", "-q", ".")
    site.write("attack.py", PRELUDE + "open('.git/config', 'a').write(EVIL)")
    with Held(site) as pod:
        git(site, "config", "remote.origin.url", "https://example.com/x")
        pod.operate(kind="run", argv=["python3", "attack.py"])
    site.cli("helper", "stop")
    config = (site.workspace / ".git/config").read_text()
    assert "fsmonitor" not in config
    assert "https://example.com/x" in config
    assert "fsmonitor" in (site.workspace / (".git/config" + SUFFIX)).read_text()
    stop = [record for record in site.records() if record["event"] == "pod.stop"]
    assert ".git/config was made in the pod" in json.dumps(stop)


def test_a_fork_bomb_that_leaves_its_session(site: Site) -> None:
    """Its members share the processor with hands, which must not need its share of it to end them."""
    site.write("attack.py", """
import os
while True:
    try:
        if os.fork() == 0:
            os.setsid()
    except OSError:
        pass
""")  # fmt: skip
    with Held(site) as pod:
        pod.operate(kind="run", argv=["python3", "attack.py"], timeout_ms=1_000)
        end = time.monotonic() + 20
        while pod.operate(kind="run", argv=["true"]).get("status") != "ok":
            assert time.monotonic() < end, "the pod does not come back"


def test_no_core_dump_and_no_lease(site: Site) -> None:
    """With a limit of 0 a core_pattern that is a pipe would run a program of the host's root on what the pod chose."""
    site.write("attack.py", """
import fcntl, os, resource
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
print(resource.getrlimit(resource.RLIMIT_CORE))
try:
    fcntl.fcntl(os.open("attack.py", os.O_RDONLY), fcntl.F_SETLEASE, fcntl.F_RDLCK)
except PermissionError:
    print("held")
""")  # fmt: skip
    hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
    expected = "(1, 1)" if hard else "(0, 0)"
    assert site.exec("python3", "attack.py").stdout == f"{expected}\nheld\n"


def test_a_directory_that_moves_while_a_second_pod_looks_for_blocked_names(site: Site) -> None:
    """One pod carries the directory of `.env` from where the walk has not been to where it has: 1 start in 6 fell."""
    for number in range(200):
        site.write(f"m{number}/x", "")
    site.write("aa/d/.env", "CANARY")
    site.write("zz/x", "")
    site.write("swap.py", """
import os, time
end = time.time() + 30
while time.time() < end and not os.path.exists("stop"):
    os.rename("aa/d", "zz/d"); os.rename("zz/d", "aa/d")
    open("zz/busy", "w").close(); os.unlink("zz/busy")
""")  # fmt: skip
    site.write("look.py", """
import os
for top in ("aa/d", "zz/d") * 20:
    try:
        print(open(top + "/.env").read())
    except OSError:
        pass
""")  # fmt: skip
    with Held(site) as first, ThreadPoolExecutor(1) as thread:
        swapping = thread.submit(first.operate, kind="run", argv=["python3", "swap.py"], timeout_ms=40_000)
        done = [site.exec("python3", "look.py") for _ in range(15)]
        site.write("stop", "")
        assert swapping.result()["result"]["exit_code"] == 0
    assert not any("CANARY" in each.stdout for each in done)
    assert all(each.returncode == 0 or "is being changed" in each.stderr for each in done)
    assert sum(each.returncode == 0 for each in done) > 7, "other pods start all the same"
