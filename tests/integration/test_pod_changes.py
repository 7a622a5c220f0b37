"""`workspace: copy`: what a pod changed, looked at, taken over, put back, through the command line."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from nucleus.pod import copies

from .site import Site
from .test_pods_that_stay import create, pod, show, write

COPY = "workspace: copy"


def within(site: Site, name: str, code: str) -> str:
    """Run Python in a pod; in base64, so that no policy takes its text for paths."""
    packed = base64.b64encode(code.encode()).decode()
    return pod(site, "exec", name, "--", "python3", "-c", f"import base64; exec(base64.b64decode('{packed}'))")


def changed(site: Site, name: str) -> dict[str, str]:
    found = json.loads(pod(site, "diff", name, "--json"))
    return {one["path"]: one["what"] for one in found["changes"]}


def snapshot(root: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for path in sorted(root.rglob("*")):
        info = path.lstat()
        what: Any = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else "dir"
        found[str(path.relative_to(root))] = (what, info.st_mode & 0o7777, info.st_uid)
    return found


@pytest.fixture(autouse=True)
def empty(request: pytest.FixtureRequest) -> None:
    for name in ("site", "root_site"):
        if name in request.fixturenames:
            site = request.getfixturevalue(name)
            site.cli("pod", "rm", "work", "--force", "--discard")
            for path in site.workspace.iterdir():
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def filled(site: Site) -> dict[str, Any]:
    site.write("kept.txt", "as it was\n")
    site.write("changed.txt", "one\ntwo\nthree\n")
    site.write("gone.txt", "goes\n")
    (site.workspace / "directory").mkdir()
    os.chown(site.workspace / "directory", site.uid, site.uid)
    site.write("directory/inner.txt", "inner\n")
    (site.workspace / "link").symlink_to("kept.txt")
    os.chown(site.workspace / "link", site.uid, site.uid, follow_symlinks=False)
    return snapshot(site.workspace)


WORK = """
import os, shutil
open('changed.txt', 'w').write('one\\n2\\nthree\\n')
os.remove('gone.txt'); shutil.rmtree('directory'); open('directory', 'w').write('a file now')
os.makedirs('new/deep'); open('new/deep/file.bin', 'wb').write(bytes(range(256)))
os.symlink('/etc/passwd', 'new/out'); os.remove('link'); os.symlink('changed.txt', 'link')
os.chmod('kept.txt', 0o755)
"""
CHANGES = {
    "changed.txt": "modified", "directory": "type", "directory/inner.txt": "deleted", "gone.txt": "deleted",
    "kept.txt": "mode", "link": "modified", "new": "added", "new/deep": "added", "new/deep/file.bin": "added",
    "new/out": "added",
}  # fmt: skip


def test_what_a_pod_did_is_shown_and_taken_over_when_a_person_says_so(site: Site) -> None:
    before = filled(site)
    create(site, "work", COPY)
    within(site, "work", WORK)
    assert snapshot(site.workspace) == before  # not yet
    assert changed(site, "work") == CHANGES
    shown = pod(site, "diff", "work")
    assert "-two\n+2\n" in shown
    assert "+-> /etc/passwd" in shown
    assert re.search(r"after: 256 bytes, sha256 [0-9a-f]{64}", shown)
    assert "mode: kept.txt (" in shown
    digest = shown.split()[-1]
    done = pod(site, "apply", "work", "--expect", digest)
    assert "10 of 10 changes taken over" in done
    now = snapshot(site.workspace)
    assert now["changed.txt"][0] == b"one\n2\nthree\n"
    assert (now["directory"][0], now["new/out"][0], now["link"][0]) == (b"a file now", "/etc/passwd", "changed.txt")
    assert now["new/deep/file.bin"][0] == bytes(range(256))
    assert now["kept.txt"][1] == 0o755
    assert "gone.txt" not in now
    assert {uid for _, _, uid in now.values()} == {uid for _, _, uid in before.values()}
    assert not [name for name in os.listdir(site.workspace) if name.startswith(".nucleus")]
    assert changed(site, "work") == {}
    assert within(site, "work", "print(open('changed.txt').read())").startswith("one\n2\n")
    (record,) = [one for one in site.records() if one["event"] == "workspace.applied"]
    assert (record["context"]["digest"], record["context"]["changes"], record["principal"]) == (
        digest,
        10,
        f"uid:{site.uid}",
    )
    assert record["pod"] == show(site, "work")["pod"]
    pod(site, "rm", "work", "--force")
    assert not os.path.exists(copies_of(site) / "work")
    assert site.verify().returncode == 0


def copies_of(site: Site) -> Path:
    return Path(f"{site.directory}/state-copies")


def test_some_of_it_and_what_changed_in_both_places(site: Site) -> None:
    filled(site)
    create(site, "work", COPY)
    within(site, "work", WORK)
    assert "3 of 10 changes taken over" in pod(site, "apply", "work", "new/deep")  # with the directory above
    assert (site.workspace / "new/deep/file.bin").exists()
    assert not (site.workspace / "new/out").is_symlink()
    site.write("changed.txt", "mine\n")
    site.write("directory/another.txt", "mine, too\n")
    refused = site.cli("pod", "apply", "work")
    assert refused.returncode == 2
    assert "rule: pod.conflict" in refused.stderr
    assert "directory" in refused.stderr
    assert (site.workspace / "changed.txt").read_text() == "mine\n"
    assert (site.workspace / "gone.txt").exists()  # nothing of it
    pod(site, "apply", "work", "gone.txt", "kept.txt")
    assert not (site.workspace / "gone.txt").exists()
    assert site.cli("pod", "apply", "work", "changed.txt").returncode == 2
    pod(site, "apply", "work", "changed.txt", "--overwrite")
    assert (site.workspace / "changed.txt").read_text() == "one\n2\nthree\n"
    # A directory that has somebody else's file in it never becomes something else.
    assert site.cli("pod", "apply", "work", "directory", "--overwrite").returncode == 2
    assert (site.workspace / "directory/another.txt").read_text() == "mine, too\n"
    kept = site.cli("pod", "rm", "work", "--force")
    assert (kept.returncode, "rule: pod.unapplied" in kept.stderr) == (2, True)
    assert "directory" in changed(site, "work")
    pod(site, "rm", "work", "--discard")
    assert os.listdir(copies_of(site)) == []


def test_checkpoints_and_back_without_ghosts(site: Site) -> None:
    before = filled(site)
    create(site, "work", COPY)
    within(site, "work", "open('first', 'w').write('1')")
    assert pod(site, "checkpoint", "work", "one") == "kept as one\n"
    within(site, "work", WORK + "os.remove('first'); open('second', 'w').write('2')")
    pod(site, "checkpoint", "work", "two")
    assert pod(site, "checkpoint", "work") == "one\ntwo\n"
    assert site.cli("pod", "checkpoint", "work", "one").returncode == 2
    pod(site, "rollback", "work", "one")
    see = "import os; print(sorted(os.listdir('.')), open('changed.txt').read().split(), os.path.isdir('directory'))"
    names = sorted([*{path.split("/")[0] for path in before}, "first"])
    assert within(site, "work", see) == f"{names} ['one', 'two', 'three'] True\n"
    assert changed(site, "work") == {"first": "added"}
    within(site, "work", "open('first', 'a').write('more'); open('third', 'w')")
    pod(site, "rollback", "work", "two")
    assert within(site, "work", "print(open('second').read(), open('directory').read())") == "2 a file now\n"
    pod(site, "rollback", "work")
    assert changed(site, "work") == {}
    assert site.cli("pod", "rollback", "work", "none").returncode == 2
    pod(site, "rm", "work", "--force")


def test_nothing_is_kept_or_taken_over_while_a_command_runs(site: Site) -> None:
    create(site, "work", COPY)
    running = site.start(
        [*site_cli(), "pod", "exec", "work", "--", "python3", "-c", "import time; open('up','w'); time.sleep(60)"]
    )
    try:
        while "up" not in changed(site, "work"):
            time.sleep(0.05)
        for words in (("apply", "work"), ("checkpoint", "work", "a"), ("rollback", "work")):
            refused = site.cli("pod", *words)
            assert (refused.returncode, "a command runs" in refused.stderr) == (6, True), refused
    finally:
        running.kill()
        running.communicate()
    pod(site, "kill", "work")
    pod(site, "apply", "work", "up")
    assert (site.workspace / "up").exists()
    pod(site, "rm", "work", "--discard")


def site_cli() -> list[str]:
    from .site import BIN

    return [str(BIN / "nucleus")]


def test_a_hostile_tree_takes_nothing_out_and_brings_nothing_in(root_site: Site) -> None:
    site = root_site
    site.write("plain.txt", "plain\n")
    secret = site.home / "secret"
    secret.write_text("of the host\n")
    create(site, "work", COPY)
    hostile = f"""
import os, socket
os.symlink({str(site.home)!r}, 'outside')
os.mkfifo('fifo')
s = socket.socket(socket.AF_UNIX); s.bind('sock')
open('setuid', 'w').write('x')
open('esc\\x1b[2Jape', 'w').write('\\x1b]0;title\\x07 and \\u202e')
open(b'bytes\\xff', 'w').write('y')
os.mkdir('closed'); open('closed/in', 'w').write('z'); os.chmod('closed', 0)
"""
    within(site, "work", hostile)
    (copies_of(site) / "work/tree/setuid").chmod(0o6777)  # its own system call filter would not let it
    shown = pod(site, "diff", "work")
    assert "\x1b" not in shown
    assert "\u202e" not in shown
    assert "of the host" not in shown
    assert "never taken over, no file or closed: fifo" in shown
    pod(site, "apply", "work")
    now = snapshot(site.workspace)
    assert now["outside"][0] == str(site.home)
    assert now["setuid"][1] == 0o777
    assert {"fifo", "sock"}.isdisjoint(now)
    assert secret.read_text() == "of the host\n"
    # The person's own directory becomes a link meanwhile: nothing is written through it.
    (site.workspace / "place").mkdir()
    os.chown(site.workspace / "place", site.uid, site.uid)
    pod(site, "rm", "work", "--force", "--discard")
    create(site, "work", COPY)
    within(site, "work", "open('place/file', 'w').write('w')")
    (site.workspace / "place").rmdir()
    (site.workspace / "place").symlink_to(site.home)
    refused = site.cli("pod", "apply", "work", "--overwrite")
    assert (refused.returncode, "rule: pod.conflict" in refused.stderr) == (2, True)
    assert not (site.home / "file").exists()
    pod(site, "rm", "work", "--force", "--discard")


def test_a_copy_outlives_its_pod_and_is_nobody_elses(site: Site) -> None:
    create(site, "work", COPY)
    within(site, "work", "open('made', 'w').write('m')")
    os.kill(show(site, "work")["keeper"], signal.SIGKILL)
    while show(site, "work")["state"] == "running":
        time.sleep(0.05)
    assert changed(site, "work") == {"made": "added"}
    again = site.cli("pod", "create", write(site, "work", COPY))
    assert again.returncode == 2
    pod(site, "apply", "work")
    assert (site.workspace / "made").read_text() == "m"
    pod(site, "rm", "work")
    direct = site.cli("pod", "diff", "work")
    assert (direct.returncode, "no pod 'work'" in direct.stderr) == (2, True)
    create(site, "work")
    direct = site.cli("pod", "diff", "work")
    assert (direct.returncode, "works on its workspace itself" in direct.stderr) == (2, True)
    pod(site, "rm", "work", "--force")
    wrong = site.cli("pod", "create", write(site, "work", "workspace: overlay"))
    assert (wrong.returncode, "workspace is direct or copy" in wrong.stderr) == (2, True)


def test_what_a_pod_has_closed_is_named_and_never_taken_for_empty(site: Site) -> None:
    filled(site)
    create(site, "work", COPY)
    within(
        site, "work", "import os; os.mkdir('shut'); open('shut/in', 'w'); os.chmod('shut', 0); os.chmod('directory', 0)"
    )
    within(site, "work", "import os; open('mute', 'w').write('m'); os.chmod('mute', 0)")
    shown = pod(site, "diff", "work")
    if site.uid:
        for name in ("shut", "directory", "mute"):
            assert f"never taken over, no file or closed: {name}" in shown
        assert "inner.txt" not in shown
        assert "0 of 0 changes" in pod(site, "apply", "work")
    else:  # whom nothing is closed to
        assert changed(site, "work") == {"shut": "added", "shut/in": "added", "directory": "mode", "mute": "added"}
    assert (site.workspace / "directory/inner.txt").read_text() == "inner\n"
    pod(site, "rollback", "work")
    assert changed(site, "work") == {}
    assert within(site, "work", "print(open('directory/inner.txt').read())") == "inner\n\n"
    within(site, "work", "import os; os.mkdir('shut'); open('shut/in', 'w'); os.chmod('shut', 0)")
    pod(site, "rm", "work", "--force", "--discard")
    assert os.listdir(copies_of(site)) == []


@pytest.mark.parametrize("at", range(0, 60, 3))
def test_a_crash_in_a_take_over_leaves_all_of_it_or_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """The process dies at the nth change that it makes; whoever comes next finishes, or undoes."""
    original = tmp_path / "original"
    original.mkdir()
    for name in ("a", "b", "c"):
        (original / name).write_text(name)
    (original / "d").mkdir()
    (original / "d/e").write_text("e")
    monkeypatch.setenv("NUCLEUS_STATE", str(tmp_path / "state"))
    copy, _ = copies.create("pod", str(original))
    tree = Path(copy.tree)
    (tree / "a").write_text("A")
    (tree / "b").unlink()
    (tree / "d/e").unlink()
    (tree / "d").rmdir()
    (tree / "d").symlink_to("a")
    (tree / "n").mkdir()
    (tree / "n/m").write_text("M")
    before, after = snapshot(original), snapshot(tree)
    pid = os.fork()
    if pid == 0:
        left = [at]
        for name in ("rename", "unlink", "rmdir", "mkdir", "symlink", "fsync", "fchmod", "replace"):
            monkeypatch.setattr(os, name, dying(getattr(os, name), left))
        try:
            with copy.locked():
                copy.apply(lambda _: True)
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    found = copies.find("pod")
    assert found is not None
    with found.locked():
        now = snapshot(original)
        assert now in (before, after), at
        assert bool(found.changes()[0]) == (now == before)
        found.apply(lambda _: True)
        assert snapshot(original) == after
        assert found.changes() == ([], [])
    copies.discard(found)


def dying(function: Any, left: list[int]) -> Any:
    def called(*arguments: Any, **keywords: Any) -> Any:
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left[0] -= 1
        return function(*arguments, **keywords)

    return called


def test_too_much_for_a_copy_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUCLEUS_STATE", str(tmp_path / "state"))
    monkeypatch.setattr("nucleus.pod.trees.MAX_ENTRIES", 3)
    original = tmp_path / "original"
    original.mkdir()
    for number in range(5):
        (original / str(number)).write_text("x")
    with pytest.raises(copies.InvalidError, match="too much for a copy"):
        copies.create("pod", str(original))
    assert copies.find("pod") is None
    assert os.listdir(tmp_path / "state-copies") == []


def test_a_copy_under_gvisor(root_site: Site) -> None:
    made = root_site.cli("pod", "create", write(root_site, "work", "workspace: copy\n  isolation: gvisor"))
    if made.returncode == 6 and "gvisor" in made.stderr:
        pytest.skip(made.stderr.splitlines()[0][:200])
    assert made.returncode == 0, made.stderr
    on_another_rung(root_site)


def on_another_rung(site: Site) -> None:
    """What is alike on every rung, in a pod "work" that is there."""
    within(site, "work", "import os; open('made', 'w').write('m'); os.mkdir('d'); open('d/new', 'w').write('n')")
    assert changed(site, "work") == {"made": "added", "d": "added", "d/new": "added"}
    refused = site.cli("pod", "rollback", "work")
    assert (refused.returncode, "rule: pod.running" in refused.stderr) == (2, True)
    pod(site, "apply", "work")
    assert (site.workspace / "made").read_text() == "m"
    assert {(site.workspace / one).stat().st_uid for one in ("made", "d", "d/new")} == {site.workspace.stat().st_uid}
    pod(site, "kill", "work")
    pod(site, "rollback", "work")
    pod(site, "rm", "work")
