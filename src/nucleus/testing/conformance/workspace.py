"""Checks of the conformance suite: files by the gate and by commands, names, links, modes, searches, git."""

from __future__ import annotations

import base64
import os

from nucleus.limits import LIMITS
from nucleus.testing.conformance.bed import Bed, LivePod, Refused, content
from nucleus.testing.conformance.frame import Checks, expect

checks = Checks()
NAMES = (
    "with space", "ümläut", "u\u0308-decomposed", "漢字", "😀", "-dash", "quote'\"", "back\\slash", "tab\there",
    "new\nline", "dot.", "x" * 250,
)  # fmt: skip
PREPARED = {
    "there.txt": "before the pod\n", "blocked": "BLOCKED", "below/blocked": "BLOCKED", ".envrc": "export A=1\n",
    "below/deep/file": "deep\n", "tool.sh": "#!/bin/sh\necho tool\n",
}  # fmt: skip


def prepare(bed: Bed) -> None:
    """What the workspace has before the pod sees it."""
    for name, text in PREPARED.items():
        bed.put(name, text, 0o755 if name.endswith(".sh") else 0o644)
    os.symlink("there.txt", f"{bed.workspace}/link-inside")
    os.symlink(bed.host.secret, f"{bed.workspace}/link-outside")
    os.symlink("/", f"{bed.workspace}/link-root")
    os.mkfifo(f"{bed.workspace}/fifo")


def _refused(pod: LivePod, **operation: object) -> None:
    result = pod.operate(**operation)
    expect(isinstance(result, Refused), f"{operation}: {str(result)[:120]}")


@checks("files.what-was-there-is-there", short=True)
def _(pod: LivePod) -> None:
    expect(content(pod.ok(kind="read", path="there.txt")) == b"before the pod\n", "read by the gate")
    expect(pod.sh("cat below/deep/file && ./tool.sh").out == b"deep\ntool\n", "read by a command")


@checks("files.write-then-read", short=True)
def _(pod: LivePod) -> None:
    expect(pod.ok(kind="write", path="new/dir/file", content="ü one\n")["created"] is True, "created")
    expect(content(pod.ok(kind="read", path="new/dir/file")) == "ü one\n".encode(), "read back")
    expect(pod.ok(kind="write", path="new/dir/file", content="two\n")["created"] is False, "replaced")
    expect(pod.run("/bin/cat", "new/dir/file").out == b"two\n", "seen by a command")


@checks("files.of-a-command-read-by-the-gate", short=True)
def _(pod: LivePod) -> None:
    pod.sh("printf 'made\\n' > by-command")
    expect(content(pod.ok(kind="read", path="by-command")) == b"made\n", "read")


@checks("files.binary")
def _(pod: LivePod) -> None:
    data = bytes(range(256))
    pod.ok(kind="write", path="binary", content=base64.b64encode(data).decode(), encoding="base64")
    expect(content(pod.ok(kind="read", path="binary")) == data, "bytes were changed on their way")


@checks("files.empty")
def _(pod: LivePod) -> None:
    pod.ok(kind="write", path="empty", content="")
    expect(pod.ok(kind="read", path="empty")["size"] == 0, "size")


@checks("files.big")
def _(pod: LivePod) -> None:
    text = "0123456789abcde\n" * (LIMITS.content_bytes // 32)
    pod.ok(kind="write", path="big", content=text)
    expect(content(pod.ok(kind="read", path="big")) == text.encode(), "4 MiB came back otherwise")
    pod.sh("rm big")


@checks("files.part")
def _(pod: LivePod) -> None:
    pod.ok(kind="write", path="part", content="0123456789")
    result = pod.ok(kind="read", path="part", offset=3, limit=4)
    expect((content(result), result["truncated"], result["size"]) == (b"3456", True, 10), result)


@checks("files.edit")
def _(pod: LivePod) -> None:
    pod.ok(kind="write", path="edit", content="one two\n")
    pod.ok(kind="edit", path="edit", old="two", new="three")
    expect(content(pod.ok(kind="read", path="edit")) == b"one three\n", "edited")
    _refused(pod, kind="edit", path="edit", old="absent", new="x")


@checks("files.missing", short=True)
def _(pod: LivePod) -> None:
    result = pod.operate(kind="read", path="no-such-file")
    expect(isinstance(result, Refused) and result.rule == "hands.not_found", result)


@checks("files.mode-is-kept")
def _(pod: LivePod) -> None:
    pod.ok(kind="write", path="mode", content="#!/bin/sh\n")
    pod.sh("chmod 750 mode")
    pod.ok(kind="write", path="mode", content="#!/bin/sh\necho x\n")
    expect(pod.run("/usr/bin/stat", "-c", "%a", "mode").out == b"750\n", "the mode was lost")


@checks("files.no-setuid-bit")
def _(pod: LivePod) -> None:
    pod.sh("cp /bin/true suid; chmod 4755 suid; chmod 2755 suid; mkdir -m 2777 sgid")
    modes = pod.sh("stat -c %a suid sgid").out.split()
    expect(all(int(mode, 8) & 0o6000 == 0 for mode in modes), modes)


@checks("files.odd-names")
def _(pod: LivePod) -> None:
    for name in NAMES:
        made = pod.operate(kind="write", path=f"odd/{name}", content=name)
        if isinstance(made, Refused):  # a door may refuse a name; what it takes has to arrive
            expect(made.kind == "invalid_request", (name, made))
            pod.run("/usr/bin/python3", "-I", "-c", "import sys; open(sys.argv[1], 'w').write('x')", f"odd/{name}")
        else:
            expect(content(pod.ok(kind="read", path=f"odd/{name}")) == name.encode(), repr(name))
    got = pod.run("/usr/bin/python3", "-I", "-c", "import os; print(ascii(sorted(os.listdir('odd'))))").out
    expect(got.decode().strip() == ascii(sorted(NAMES)), got)


@checks("files.name-that-is-not-utf-8")
def _(pod: LivePod) -> None:
    done = pod.python("import os\nopen(b'raw-\\xff\\xfe', 'w').close()\nprint(b'raw-\\xff\\xfe' in os.listdir(b'.'))")
    expect(done.out == b"True\n", done)
    pod.ok(kind="glob", pattern="raw-*")


@checks("files.too-long-a-name")
def _(pod: LivePod) -> None:
    _refused(pod, kind="write", path="x" * 256, content="x")


@checks("files.deep")
def _(pod: LivePod) -> None:
    name = "/".join(["d"] * 60) + "/file"
    pod.ok(kind="write", path=name, content="deep")
    expect(content(pod.ok(kind="read", path=name)) == b"deep", "read")


@checks("files.many")
def _(pod: LivePod) -> None:
    made = pod.python("import os\nos.mkdir('many')\nfor n in range(2000): open(f'many/{n:04}', 'w').write(str(n))")
    expect(made.code == 0, made.err)
    found = pod.ok(kind="glob", pattern="many/*", limit=1_000)
    expect(len(found["paths"]) == 1_000 and found["truncated"] is True, (len(found["paths"]), found["truncated"]))
    expect(content(pod.ok(kind="read", path="many/1999")) == b"1999", "the last one")


@checks("files.out-of-the-workspace", short=True)
def _(pod: LivePod) -> None:
    for name in ("../x", "/etc/passwd", "a/../../x", "..", "/proc/self/environ", "\0", "a\0b"):
        _refused(pod, kind="read", path=name)
        _refused(pod, kind="write", path=name, content="x")


@checks("links.inside")
def _(pod: LivePod) -> None:
    expect(content(pod.ok(kind="read", path="link-inside")) == b"before the pod\n", "read through a link")


@checks("links.outside", short=True)
def _(pod: LivePod) -> None:
    for name in ("link-outside", "link-root/etc/passwd", "link-root/proc/1/environ"):
        _refused(pod, kind="read", path=name)
    pod.operate(kind="write", path="link-outside", content="x")
    _refused(pod, kind="write", path="link-root/tmp/x", content="x")
    done = pod.run("/bin/cat", "link-outside")
    expect(b"PLANTED" not in done.out + done.err, "a command reads through it")


@checks("links.made-by-a-command")
def _(pod: LivePod) -> None:
    pod.sh("ln -sfn /etc etc; ln -sfn .. up; ln -sfn loop loop; ln -sfn /proc/self/root magic")
    for name in ("etc/passwd", "up/etc/passwd", "loop", "magic/etc/passwd"):
        _refused(pod, kind="read", path=name)


@checks("files.fifo-does-not-hang")
def _(pod: LivePod) -> None:
    _refused(pod, kind="read", path="fifo")
    pod.sh("mkfifo another")
    _refused(pod, kind="read", path="another")
    pod.sh("rm -f another")


@checks("files.blocked-names", short=True)
def _(pod: LivePod) -> None:
    for name in ("blocked", "below/blocked"):
        _refused(pod, kind="read", path=name)
        done = pod.python("import sys; print(open(sys.argv[1][::-1]).read())", name[::-1])
        expect(b"BLOCKED" not in done.out, f"a command reads {name}")
    done = pod.sh("grep -r BLOCKED . 2>/dev/null")
    expect(b"BLOCKED" not in done.out, f"found by grep: {done.out!r}")


@checks("files.protected-names")
def _(pod: LivePod) -> None:
    script = """
import os
name = "crvne."[::-1]
for change in (lambda: open(name, "w").write("evil"), lambda: os.unlink(name), lambda: os.rename(name, "moved")):
    try:
        change()
    except OSError:
        pass
print(open(name).read(), end="")
"""
    done = pod.python(script)
    expect(done.out == b"export A=1\n", done)


@checks("search.glob", short=True)
def _(pod: LivePod) -> None:
    pod.sh("mkdir -p found/deep; touch found/a.py found/deep/b.py found/c.txt")
    found = pod.ok(kind="glob", pattern="found/**/*.py")
    expect(sorted(found["paths"]) == ["found/a.py", "found/deep/b.py"], found["paths"])


@checks("search.grep")
def _(pod: LivePod) -> None:
    pod.ok(kind="write", path="grep/file", content="one\nneedle 42\n")
    found = pod.ok(kind="grep", pattern="needle [0-9]+", path="grep")
    expect([(m["path"], m["line"]) for m in found["matches"]] == [("grep/file", 2)], found["matches"])


@checks("git.commit")
def _(pod: LivePod) -> None:
    made = pod.sh("git init -q -b main . && git config user.name n && git config user.email e@example.org && echo ok")
    expect(made.out == b"ok\n", made.err)
    done = pod.ok(kind="git_commit", message="first", paths=["there.txt"])
    expect(pod.sh("git log --format=%s").out == b"first\n", done)
    pod.ok(kind="git_status")
