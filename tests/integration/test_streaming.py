"""What a command writes comes while it runs; how it ended comes at the end."""

from __future__ import annotations

import json
import os
import pty
import random
import subprocess
import time
from typing import Any

from nucleus.limits import LIMITS

from .site import BIN, Site
from .test_serve import Served

SLOW = "import sys, time\nprint('first', flush=True)\ntime.sleep(3)\nprint('second')\nprint('third', file=sys.stderr)"
POLICY = """
version: 1
name: all
capabilities: {read_files: always, write_files: always, edit_files: always, run_bash: always, glob_search: always,
  grep_search: always}
commands: {allow: everything}
"""


def words(site: Site, *argv: str, flags: tuple[str, ...] = ()) -> list[str]:
    policy = site.directory / "all.yaml"
    policy.write_text(POLICY)
    policy.chmod(0o644)
    return [
        str(BIN / "nucleus"), "exec", "--policy", str(policy), "--workdir", str(site.workspace), *flags, "--", *argv,
    ]  # fmt: skip


def run(site: Site, *argv: str, flags: tuple[str, ...] = ()) -> subprocess.CompletedProcess[bytes]:
    with site.start(words(site, *argv, flags=flags), text=False) as child:
        out, err = child.communicate(timeout=60)
    return subprocess.CompletedProcess(argv, child.returncode, out, err)


def test_a_line_comes_when_it_is_written(root_site: Site) -> None:
    root_site.exec("true")  # the helper is warm
    with root_site.start(words(root_site, "python3", "-c", SLOW), text=False) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"first\n"
        came = time.monotonic()
        assert child.stdout.read() == b"second\n"
        assert time.monotonic() - came > 2
        assert child.stderr is not None
        assert child.stderr.read() == b"third\n"
        assert child.wait() == 0


def test_every_byte_once_and_in_order(root_site: Site) -> None:
    """Binary, more than is sent at a time, in bursts, on both streams."""
    code = """
import os, time
for number in range(40):
    os.write(1, bytes(range(256)) * 100)
    os.write(2, b"%d\\n" % number)
    if number % 10 == 0:
        time.sleep(0.08)
"""
    done = run(root_site, "python3", "-c", code)
    assert done.stdout == bytes(range(256)) * 4_000
    assert done.stderr == b"".join(b"%d\n" % number for number in range(40))


def test_more_than_is_kept_is_cut_and_said(root_site: Site) -> None:
    size = LIMITS.output_bytes + 10_000
    code = f"import sys, time\nprint('a' * 999, flush=True); time.sleep(.2)\nsys.stdout.write('b' * {size})"
    done = run(root_site, "python3", "-c", code)
    assert done.stdout == (b"a" * 999 + b"\n" + b"b" * size)[: LIMITS.output_bytes]
    assert b"stdout was truncated" in done.stderr


def test_a_reader_that_stops_gets_the_rest_at_the_end(root_site: Site) -> None:
    code = "import sys\nfor n in range(60):\n sys.stdout.write(str(n % 10) * 65536)\n sys.stdout.flush()"
    with root_site.start(words(root_site, "python3", "-c", code), text=False) as child:
        time.sleep(2)
        out, _ = child.communicate(timeout=60)
    assert out == b"".join(str(n % 10).encode() * 65_536 for n in range(60))[: LIMITS.output_bytes]


def test_exit_code_signal_and_deadline_are_told_apart(root_site: Site) -> None:
    for argv, flags, code, told in (
        (("sh", "-c", "echo x; exit 3"), (), 3, (3, None, False)),
        (("python3", "-c", "print('x', flush=True); import os; os.kill(os.getpid(), 15)"), (), 143, (None, 15, False)),
        (
            ("python3", "-c", "print('x', flush=True); import time; time.sleep(60)"),
            ("--timeout", "1"),
            143,
            (None, 15, True),
        ),
    ):
        done = run(root_site, *argv, flags=flags)
        assert (done.returncode, done.stdout) == (code, b"x\n"), done
        assert (b"ran into its deadline" in done.stderr) == told[2]
        result = json.loads(run(root_site, *argv, flags=(*flags, "--json")).stdout)["result"]
        assert (result["exit_code"], result["signal"], result["timed_out"]) == told
        assert result["stdout"] == "x\n"


def test_on_a_terminal_nothing_is_obeyed(root_site: Site) -> None:
    """A control sequence that is cut in two by the pieces is shown all the same."""
    code = "import os, time\nfor c in b'\\x1b]0;evil\\x07ok\\n': os.write(1, bytes([c])); time.sleep(.06)"
    ours, theirs = pty.openpty()
    with root_site.start(
        words(root_site, "python3", "-c", code, flags=("--approvals", "none")), stdout=theirs
    ) as child:
        os.close(theirs)
        shown = b""
        try:
            while data := os.read(ours, 4096):
                shown += data
        except OSError:
            pass
        os.close(ours)
        assert child.wait(60) == 0
    assert b"\x1b" not in shown
    assert b"ok" in shown


CLIENT = """
import json, sys, time
from nucleus.sdk.client import Gate
gate, came, began = Gate(), [], time.monotonic()
tell = lambda name, text: came.append((name, text, time.monotonic() - began))
result = gate.run(["python3", "-c", SLOW], on_output=tell)
quiet = gate.run(["true"], on_output=lambda name, text: came.append((name, text, -1)))
try:
    refused = gate.run(["git", "push"], on_output=print)
except Exception as error:
    refused = str(error)
print(json.dumps({"came": came, "stdout": result["stdout"], "quiet": quiet["exit_code"], "refused": refused}))
"""


def test_over_http_and_in_the_client(root_site: Site) -> None:
    served = Served(root_site)
    names = {"NUCLEUS_GATE": "gate", "NUCLEUS_GATE_ID": "gate_id", "NUCLEUS_WORKLOAD_SOCKET": "workload"}
    variables = {name: served.door[key] for name, key in names.items()}
    code = SLOW.replace("sys, time", "sys, time").replace("time.sleep(3)", "time.sleep(1)")
    with root_site.script(f"import os; os.environ.update({variables!r})\nSLOW = {code!r}\n" + CLIENT) as child:
        out, err = child.communicate(timeout=60)
    assert served.stop() == 0
    assert out, err
    told: dict[str, Any] = json.loads(out)
    assert told["stdout"] == "first\nsecond\n"
    (name, text, at) = told["came"][0]
    assert (name, text) == ("stdout", "first\n")
    assert at < 0.9  # the command slept for a second after it
    assert told["quiet"] == 0
    assert "git_push" in told["refused"]


def test_a_client_that_goes_away_ends_its_command(root_site: Site) -> None:
    marker = root_site.workspace / "alive"
    code = "import time\nwhile True:\n open('alive', 'a').write('x'); print('x', flush=True); time.sleep(.05)"
    with root_site.start(words(root_site, "python3", "-c", code), text=False) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"x\n"
        child.kill()
        child.communicate()
    deadline = time.monotonic() + 20
    while not any(one["event"] == "pod.stop" for one in root_site.records()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    size = marker.stat().st_size
    time.sleep(0.3)
    assert marker.stat().st_size == size
    outcome = next(one for one in root_site.records() if one["event"] in ("outcome", "recovery"))
    assert outcome["context"]["charged"] > 0


def test_who_does_not_ask_for_it_gets_one_answer(root_site: Site) -> None:
    """A launcher that knows nothing of streams: one frame, the reply."""
    from .held import Held

    with Held(root_site) as held:
        assert held.operate(kind="run", argv=["echo", "x"])["result"]["stdout"] == "x\n"


SEARCHER = """
import json
from nucleus.sdk.client import Gate
gate, told = Gate(), []
tell = lambda files, size: told.append((files, size))
long = gate.exchange("grep", {"pattern": "a.{60}b.{60}9", "limit": 5}, on_progress=tell)["result"]
quick = gate.exchange("glob", {"pattern": "*.none"}, on_progress=lambda *_: told.append("quick"))["result"]
print(json.dumps({"told": told, "files": long["files"], "bytes": long["bytes"], "quick": quick["paths"]}))
"""


def test_a_search_that_takes_long_says_how_far_it_is(root_site: Site) -> None:
    """Files and bytes that it has gone through, growing; a quick one says nothing before its answer."""
    chosen = random.Random(1)  # of too many states for RE2 to keep, and so slow
    text = "\n".join("".join(chosen.choices("abcdefghijklmnopqrstuvwxyz", k=150)) for _ in range(5_000))
    for number in range(40):
        (root_site.workspace / f"{number}.txt").write_text(text)
    served = Served(root_site)
    names = {"NUCLEUS_GATE": "gate", "NUCLEUS_GATE_ID": "gate_id", "NUCLEUS_WORKLOAD_SOCKET": "workload"}
    variables = {name: served.door[key] for name, key in names.items()}
    with root_site.script(f"import os; os.environ.update({variables!r})\n" + SEARCHER) as child:
        out, err = child.communicate(timeout=60)
    assert served.stop() == 0
    assert out, err
    answer = json.loads(out)
    told = answer["told"]
    assert told
    assert told == sorted(told)
    assert all(0 < files <= answer["files"] and 0 < size <= answer["bytes"] for files, size in told)
    assert answer["quick"] == []


def test_over_mcp_who_asks_for_progress_hears_how_much_there_is_and_not_what(root_site: Site) -> None:
    served = Served(root_site)
    names = {"NUCLEUS_GATE": "gate", "NUCLEUS_GATE_ID": "gate_id", "NUCLEUS_WORKLOAD_SOCKET": "workload"}
    variables = {name: served.door[key] for name, key in names.items()}
    hello = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}
    call = {"name": "run", "arguments": {"argv": ["python3", "-c", SLOW]}}
    asked = [("initialize", hello), ("tools/call", {**call, "_meta": {"progressToken": 7}})]
    lines = [
        json.dumps({"jsonrpc": "2.0", "id": number, "method": method, "params": params}) + "\n"
        for number, (method, params) in enumerate(asked)
    ]
    bridge = "from nucleus.sdk.mcp import main; raise SystemExit(main())"
    start = f"import os; os.environ.update({variables!r})\n{bridge}"
    with root_site.script(start, stdin=subprocess.PIPE) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        for line in lines:
            child.stdin.write(line)
            child.stdin.flush()
        told = [json.loads(child.stdout.readline()) for _ in range(3)]
        child.stdin.close()
        assert child.wait(30) == 0
    assert served.stop() == 0
    assert told[0]["result"]["serverInfo"]["name"] == "nucleus"
    assert told[1]["method"] == "notifications/progress"
    assert told[1]["params"] == {"progressToken": 7, "progress": 1, "message": "running: 6 characters of output so far"}
    assert told[2]["result"]["content"][0]["text"] == "first\nsecond\n"
