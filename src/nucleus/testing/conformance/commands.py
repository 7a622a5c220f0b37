"""Checks of the conformance suite: programs, their streams, directory, environment, time and limits."""

from __future__ import annotations

import hashlib
import json
import time

from nucleus.limits import LIMITS
from nucleus.testing.conformance.bed import MARKER, LivePod, NotHereError, Refused, ran
from nucleus.testing.conformance.frame import Checks, expect

checks = Checks()
WAIT_SECONDS = 30.0
ALLOWED_ENVIRONMENT = {"PATH", "HOME", "LANG", "USER", "LOGNAME", "TMPDIR", "TERM"}


@checks("run.exit-0", short=True)
def _(pod: LivePod) -> None:
    done = pod.run("/bin/true")
    expect((done.code, done.signal) == (0, None), done)


@checks("run.exit-code", short=True)
def _(pod: LivePod) -> None:
    for code in (1, 7, 127, 137, 255):
        done = pod.sh(f"exit {code}")
        expect((done.code, done.signal) == (code, None), f"exit {code}: {done.code}, signal {done.signal}")


@checks("run.signal-is-no-exit-code", short=True)
def _(pod: LivePod) -> None:
    for number in (6, 9, 11, 15):
        done = pod.sh(f"kill -{number} $$")
        expect((done.code, done.signal) == (None, number), f"signal {number}: {done.code}, signal {done.signal}")


@checks("run.argv-arrives-exactly")
def _(pod: LivePod) -> None:
    words = ["", " two  words ", "'\"\\$(x)`", "a\nb\tc", "ü ✓ 漢 😀", "-n", "*", "~"]
    script = "import json, sys; print(json.dumps(sys.argv[1:]))"
    got = json.loads(pod.python(script, *words).out)
    expect(got == words, got)


@checks("run.no-such-program", short=True)
def _(pod: LivePod) -> None:
    result = pod.operate(kind="run", argv=["no-such-program"])
    expect(isinstance(result, Refused) and result.rule == "hands.not_executable", result)


@checks("run.not-executable")
def _(pod: LivePod) -> None:
    pod.ok(kind="write", path="plain", content="text")
    result = pod.operate(kind="run", argv=["/workspace/plain"])
    expect(isinstance(result, Refused) and result.rule.startswith("hands."), result)


@checks("run.script-of-the-workspace")
def _(pod: LivePod) -> None:
    pod.ok(kind="write", path="script", content="#!/bin/sh\necho ran\n")
    expect(pod.sh("chmod 755 script && ./script").out == b"ran\n", "a script with the x bit does not run")


@checks("run.several-at-once")
def _(pod: LivePod) -> None:
    began = time.monotonic()
    numbers = [pod.send(kind="run", argv=["/bin/sh", "-c", f"sleep 1; echo {n}"]) for n in range(4)]
    answers = [ran(pod.answer(number)["result"]).out for number in reversed(numbers)]
    expect(answers == [b"3\n", b"2\n", b"1\n", b"0\n"], answers)
    expect(time.monotonic() - began < 3.5, "four sleeps of a second ran one after another")


@checks("streams.apart", short=True)
def _(pod: LivePod) -> None:
    done = pod.sh("echo out; echo err >&2")
    expect((done.out, done.err) == (b"out\n", b"err\n"), done)


@checks("streams.binary")
def _(pod: LivePod) -> None:
    wanted = bytes(range(256)) * 4
    script = "import sys; sys.stdout.buffer.write(bytes(range(256)) * 4); sys.stderr.buffer.write(bytes([0, 255, 128]))"
    done = pod.python(script)
    expect(done.out == wanted and done.err == b"\0\xff\x80", "bytes were changed on their way")


@checks("streams.stdin", short=True)
def _(pod: LivePod) -> None:
    expect(pod.run("/bin/cat", stdin="ü\n\0end").out == "ü\n\0end".encode(), "stdin is not what was sent")


@checks("streams.stdin-ends")
def _(pod: LivePod) -> None:
    done = pod.run("/bin/cat", timeout_ms=20_000)
    expect((done.code, done.out) == (0, b""), done)


@checks("streams.stdin-of-a-mebibyte")
def _(pod: LivePod) -> None:
    text = ("0123456789abcde\n" * (LIMITS.stdin_bytes // 16))[: LIMITS.stdin_bytes]
    got = pod.run("/usr/bin/sha256sum", stdin=text).out.split()[0].decode()
    expect(got == hashlib.sha256(text.encode()).hexdigest(), "another digest")


@checks("streams.stdin-that-nobody-reads")
def _(pod: LivePod) -> None:
    done = pod.run("/bin/true", stdin="x" * LIMITS.stdin_bytes, timeout_ms=20_000)
    expect(done.code == 0, done)


@checks("streams.big-output")
def _(pod: LivePod) -> None:
    done = pod.sh(f"head -c {LIMITS.output_bytes} /dev/zero; head -c {LIMITS.output_bytes} /dev/zero >&2")
    expect(len(done.out) == len(done.err) == LIMITS.output_bytes and not done.cut, (len(done.out), len(done.err)))


@checks("streams.more-is-cut-and-said")
def _(pod: LivePod) -> None:
    done = pod.sh(f"head -c {LIMITS.output_bytes * 3} /dev/zero; exit 3")
    expect(done.cut and len(done.out) <= LIMITS.output_bytes, (done.cut, len(done.out)))
    expect(done.code == 3, f"ended with {done.code}, signal {done.signal}")


@checks("streams.no-terminal")
def _(pod: LivePod) -> None:
    done = pod.sh("for n in 0 1 2; do test -t $n && echo $n; done; (: < /dev/tty) 2>/dev/null && echo tty; true")
    expect(done.out == b"", f"a terminal: {done.out!r}")


@checks("streams.nothing-inherited")
def _(pod: LivePod) -> None:
    script = "import os; print(*[os.readlink(f'/proc/self/fd/{n}') for n in range(3, 64) if os.path.lexists(f'/proc/self/fd/{n}')])"  # noqa: E501
    done = pod.run("/usr/bin/python3", "-I", "-c", script)
    expect(done.out == b"\n", f"open: {done.out!r}")


@checks("directory.is-the-workspace", short=True)
def _(pod: LivePod) -> None:
    expect(pod.run("/bin/pwd").out == b"/workspace\n", "another directory")


@checks("directory.below")
def _(pod: LivePod) -> None:
    pod.sh("mkdir -p one/two")
    expect(pod.run("/bin/pwd", cwd="one/two").out == b"/workspace/one/two\n", "another directory")


@checks("directory.not-outside", short=True)
def _(pod: LivePod) -> None:
    pod.sh("ln -sfn /usr outside")
    for name in ("..", "/usr", "one/../../usr", "outside", "no-such-directory"):
        result = pod.operate(kind="run", argv=["/bin/pwd"], cwd=name)
        expect(isinstance(result, Refused), f"{name}: {result}")


@checks("environment.exactly", short=True)
def _(pod: LivePod) -> None:
    done = pod.run("/usr/bin/env", "-0")
    got = dict(item.split("=", 1) for item in done.out.decode().split("\0") if item)
    expect(MARKER not in got, "the host's environment travelled")
    expect(set(got) <= ALLOWED_ENVIRONMENT, f"also {sorted(set(got) - ALLOWED_ENVIRONMENT)}")
    expect({"PATH", "HOME", "LANG"} <= set(got), f"only {sorted(got)}")
    expect(all(got[name] for name in ("PATH", "HOME")), got)


@checks("environment.home-and-tmp-are-private-and-writable")
def _(pod: LivePod) -> None:
    done = pod.sh('ls -A "$HOME" /tmp; echo x > "$HOME/f" && echo x > /tmp/f && rm "$HOME/f" /tmp/f && echo ok')
    expect(done.out.endswith(b"ok\n"), done)


@checks("environment.identity", short=True)
def _(pod: LivePod) -> None:
    script = "import json; print(json.dumps(dict(l.split(':', 1) for l in open('/proc/self/status'))))"
    status = {key: value.strip() for key, value in json.loads(pod.python(script).out).items()}
    # A guest's kernel has ids of its own; the capabilities are what counts, and it may not have every line.
    ids = [["1000"] * 4] if pod.isolation["kernel"] == "shared" else [["1000"] * 4, ["0"] * 4]
    expect(
        status["Uid"].split() == status["Gid"].split() and status["Uid"].split() in ids, (status["Uid"], status["Gid"])
    )
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        expect(int(status.get(name, "0"), 16) == 0, f"{name} is {status.get(name)}")
    expect((status.get("NoNewPrivs", "1"), status["Seccomp"]) == ("1", "2"), status)


@checks("time.deadline-ends-it", short=True)
def _(pod: LivePod) -> None:
    began = time.monotonic()
    done = pod.sh("echo before; sleep 60", timeout_ms=1_500)
    expect(done.timed_out and time.monotonic() - began < WAIT_SECONDS, (done, time.monotonic() - began))
    expect(done.out == b"before\n", f"what it had said is lost: {done.out!r}")


@checks("time.deadline-ends-what-it-started")
def _(pod: LivePod) -> None:
    pod.sh("(setsid sh -c 'trap \"\" TERM HUP INT; sleep 4321') & trap '' TERM; sleep 60", timeout_ms=1_000)
    _gone(pod, "4321")


@checks("time.what-is-left-behind-ends", short=True)
def _(pod: LivePod) -> None:
    began = time.monotonic()
    done = pod.sh("setsid sleep 5432 & sleep 5432 & echo started", timeout_ms=60_000)
    expect(done.code == 0 and done.out == b"started\n", done)
    expect(time.monotonic() - began < WAIT_SECONDS, "a background process held the command open")
    _gone(pod, "5432")


def _gone(pod: LivePod, word: str) -> None:
    script = "import glob, sys; print(sum(sys.argv[1].encode() in open(p, 'rb').read().split(b'\\0')[1:2] for p in glob.glob('/proc/[0-9]*/cmdline')))"  # noqa: E501
    left = pod.python(script, word).out.strip()
    expect(left == b"0", f"{left.decode()} of its processes live on")


@checks("time.clock")
def _(pod: LivePod) -> str:
    before = time.time()
    inside = float(pod.python("import time; print(time.time())").out)
    expect(before - 3 < inside < time.time() + 3, f"{inside - before:+.1f} s")
    return f"{inside - before:+.2f} s"


@checks("limits.memory")
def _(pod: LivePod) -> str:
    _limited(pod, "memory")
    done = pod.python(
        "import mmap\nm = mmap.mmap(-1, 3 << 30)\nfor n in range(0, 3 << 30, 4096): m[n] = 1", timeout_ms=90_000
    )
    expect(done.code != 0, "3 GiB were to be had")
    expect(pod.run("/bin/true").code == 0, "the pod did not outlive it")
    return f"signal {done.signal}" if done.signal else f"exit code {done.code}"


@checks("limits.processes")
def _(pod: LivePod) -> str:
    script = """
import os, signal, time
made = []
try:
    for _ in range(3000):
        pid = os.fork()
        if pid == 0:
            time.sleep(60)
            os._exit(0)
        made.append(pid)
except OSError:
    pass
print(len(made))
for pid in made:
    os.kill(pid, signal.SIGKILL)
"""
    count = int(pod.python(script, timeout_ms=60_000).out)
    expect(count < 3_000, "3000 processes were to be had")
    expect(pod.run("/bin/true").code == 0, "the pod did not outlive it")
    return f"{count} processes"


@checks("limits.descriptors")
def _(pod: LivePod) -> None:
    script = "import os\nn = 0\ntry:\n    while n < 100000:\n        os.dup(0); n += 1\nexcept OSError: pass\nprint(n)"
    expect(int(pod.python(script).out) < 100_000, "100000 descriptors were to be had")


@checks("limits.private-places")
def _(pod: LivePod) -> None:
    for place in ("/tmp", "/home/agent", "/dev/shm"):  # noqa: S108 -- the pod's own
        done = pod.sh(f"head -c 2G /dev/zero > {place}/big; s=$?; rm -f {place}/big; exit $s", timeout_ms=90_000)
        expect(done.code not in (0, None), f"2 GiB fit into {place}")


@checks("limits.one-file")
def _(pod: LivePod) -> None:
    done = pod.sh("truncate -s 64G big; s=$?; rm -f big; exit $s")
    expect(done.code != 0, "a file of 64 GiB")


@checks("limits.no-core-file")
def _(pod: LivePod) -> None:
    done = pod.sh("mkdir -p core-here && cd core-here && sh -c 'ulimit -c unlimited 2>/dev/null; kill -SEGV $$'; ls -A")
    expect(done.out == b"", f"left {done.out!r}")


def _limited(pod: LivePod, what: str) -> None:
    if f"cgroup {what}" in pod.isolation.get("missing", []):
        raise NotHereError(f"no cgroup for {what} (the pod says so itself)")
