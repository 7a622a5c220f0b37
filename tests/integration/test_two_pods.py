"""Two pods of one helper at the same time: nothing of the one is there for the other (root and user)."""

from __future__ import annotations

import json
import threading
import time

from .held import Held
from .site import Site
from .test_processes import Process

AGENT = {"argv": ["sleep", "300"], "env": {}, "stdio": "pipes"}
# What a hijacked command in one pod tries against the other: its processes, and what listens in it.
LISTEN = """
import os, socket, time
server = socket.create_server(("127.0.0.1", 4711))
open("up", "w").close()
while os.path.exists("up"):
    time.sleep(0.01)
"""
REACH = """
import json, os, socket
found = []
for pid in os.listdir("/proc"):
    if pid.isdigit() and pid != str(os.getpid()):
        try:
            found += [pid] if b"marker-of-two" in open(f"/proc/{pid}/cmdline", "rb").read() else []
        except OSError:
            pass
with socket.socket() as sock:
    sock.settimeout(1)
    reached = sock.connect_ex(("127.0.0.1", 4711))
print(json.dumps({"processes": found, "port": reached == 0}))
"""


def test_nothing_of_one_pod_is_there_for_the_other(site: Site) -> None:
    with Held(site, spec={"agent": AGENT}) as one, Held(site, spec={"agent": AGENT}) as two:
        pods = {pod["pod"]: pod for pod in one.status()["pods"]}
        mine, other = pods[one.start["pod"]], pods[two.start["pod"]]
        for kind in ("user", "mnt", "pid", "net", "ipc", "uts", "cgroup"):
            names = {Process(pid).namespace(kind) for pid in mine["pids"]}
            assert names.isdisjoint(Process(pid).namespace(kind) for pid in other["pids"]), kind
        uids = [Process(pid).uids for pid in (*mine["pids"], mine["gate"], *other["pids"], other["gate"])]
        if site.uid == 0:
            assert len(set().union(*uids)) == 6
        # A command of the other pod listens, at a port of its own: here nobody does, and it is not seen.
        server = {"kind": "run", "argv": ["python3", "-c", LISTEN, "marker-of-two"], "timeout_ms": 5_000}
        thread = threading.Thread(target=lambda: two.operate(**server))
        thread.start()
        up = site.workspace / "up"
        deadline = time.monotonic() + 5
        while not up.exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        reply = one.operate(kind="run", argv=["python3", "-c", REACH])
        up.unlink()
        thread.join()
        assert json.loads(reply["result"]["stdout"]) == {"processes": [], "port": False}
