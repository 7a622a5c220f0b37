"""What the way out costs: the same small client inside a pod, outside it, and in Anthropic's sandbox-runtime.

    python -m bench.egress [--scale quick] [--laps N] [--json] [--gateways N]      (as root)

All servers are in a network namespace of this program's own, and the clients in another one that a veth pair joins to it
(srt refuses its own host's addresses); nothing leaves the machine. A value is the median of the requests within one run of
the client. --gateways: proportional set size (PSS) of N gateways at rest.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from bench import peers
from bench.measure import TESTS, Failed, Group, Metric, Scale, Way, arguments, chosen, run, text_table

HERE = Path(__file__).resolve().parent
sys.path.insert(0, TESTS)

from integration.held import Held  # noqa: E402
from integration.world import World  # noqa: E402
from nucleus.kernel import syscalls  # noqa: E402

POLICY = """
version: 1
name: bench
capabilities: {read_files: always, run_bash: always}
commands: {allow: everything}
trifecta: session
budget: {limit_usd: "1000.00"}
network:
  allow:
    - {host: allowed.test, trusted: true}
    - {host: allowed.test, port: 80, trusted: true}
    - {host: other.test, port: 22, trusted: true}
    - {host: api.test, protocol: https, trusted: true}
"""
OPENED = "egress: TLS opened"
METRICS = [
    Metric("egress: HTTP request, kept connection"),
    Metric("egress: HTTP request, new connection", headline=False),
    Metric("egress: TLS tunnel, request on a kept one", headline=False),
    Metric("egress: TLS tunnel, new, first answer"),
    Metric("egress: TLS opened, request on a kept one", headline=False),
    Metric("egress: TLS opened, new, first answer"),
    Metric("egress: TCP, first byte", lacks={"in srt": "it has a SOCKS proxy, which the client does not speak"}),
    Metric("egress: bulk through the tunnel", "MB/s", less=False),
]
SRT = {
    "network": {"allowedDomains": ["allowed.test", "other.test", "api.test"], "deniedDomains": []},
    "filesystem": {"denyRead": [], "allowWrite": ["/tmp"], "denyWrite": []},
}


class Apart(World):
    """A world whose person lives in a network namespace of its own, a veth pair away from the servers."""

    def __init__(self) -> None:
        super().__init__()
        inside = "from nucleus.kernel import syscalls as s; s.unshare(s.CLONE_NEWNET); print(flush=True); input()"
        self._apart = subprocess.Popen(
            [sys.executable, "-c", inside], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            preexec_fn=self._enter,
        )  # fmt: skip
        assert self._apart.stdout is not None
        self._apart.stdout.readline()
        self._ip(f"link add nb0 type veth peer name nb1 netns {self._apart.pid}")
        self._ip("address add 93.184.217.1/30 dev nb0")
        self._ip("link set nb0 up")
        servers, net = self._namespaces, os.open(f"/proc/{self._apart.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self._namespaces = [(net, syscalls.CLONE_NEWNET), *(one for one in servers if one[1] == syscalls.CLONE_NEWNS)]
        for descriptor, kind in servers:
            if kind == syscalls.CLONE_NEWNET:
                os.close(descriptor)
        for words in ("link set lo up", "address add 93.184.217.2/30 dev nb1", "link set nb1 up"):
            self._ip(words)
        self._ip("route add default via 93.184.217.1")

    def _ip(self, words: str) -> None:
        subprocess.run(["ip", *words.split()], check=True, preexec_fn=self._enter)

    def close(self) -> None:
        self._apart.communicate(b"\n")
        super().close()


def figures(out: str, err: str, code: int) -> dict[str, list[float]]:
    """What the client printed."""
    if code != 0 or not out.strip():
        raise Failed(err.strip()[-300:] or f"exit {code} without a word")
    found = json.loads(out.strip().splitlines()[-1])
    return {f"egress: {name.rpartition(', ')[0]}": [float(value)] for name, value in found.items()}


def ways(world: World, scale: Scale) -> Iterator[Way]:
    count = str(scale.pick(2, 20, 40))
    script = str(world.workspace / "client.py")
    policy = world.policy(POLICY)
    authority = str(world.outside / "ca.pem")

    def started(*words: str, **env: str) -> Callable[[], dict[str, list[float]]]:
        words = ("env", *(f"{name}={value}" for name, value in env.items()), *words) if env else words

        def take() -> dict[str, list[float]]:
            child = world.start(list(words))
            out, err = child.communicate(timeout=120)
            return figures(out, err, child.returncode)

        return take

    def pod() -> dict[str, list[float]]:
        words = ("exec", "--policy", policy, "--workdir", str(world.workspace), "--", "python3", "client.py", count)
        done = world.cli(*words, timeout=120)
        return figures(done.stdout, done.stderr, done.returncode)

    yield Way("in a pod", "ours", pod)
    yield Way("no sandbox", "floor", started("python3", script, count))
    if program := peers.srt():
        for name, more in (
            ("in srt", {}),
            ("in srt, tlsTerminate", {"tlsTerminate": {"extraCaCertPaths": [authority]}}),
        ):
            settings = world.workspace / f"srt{len(more)}.json"
            settings.write_text(json.dumps({**SRT, "network": {**SRT["network"], **more}}))
            take = started(
                program, "--settings", str(settings), "python3", script, count, NODE_EXTRA_CA_CERTS=authority
            )
            yield Way(name, "peer", only(take, opened=bool(more)))


def only(take: Callable[[], dict[str, list[float]]], *, opened: bool) -> Callable[[], dict[str, list[float]]]:
    """srt looks inside all TLS or none: of each of its two ways what it is for."""
    return lambda: {title: values for title, values in take().items() if title.startswith(OPENED) == opened}


@contextmanager
def suite(scale: Scale) -> Iterator[list[Group]]:
    with closing(Apart()) as world:
        world.write("client.py", (HERE / "client.py").read_text())
        absent = {} if peers.srt() else {"srt": peers.absent("srt")}
        yield [Group(METRICS, list(ways(world, scale)), scale.pick(1, 1, 2), warm=False, absent=absent)]


def memory(world: World, policy: str, count: int) -> None:
    """PSS and private memory of `count` gateways, each after one connection."""
    held = [Held(world, policy=policy) for _ in range(count)]
    try:
        for one in held:
            one.operate(
                kind="run", argv=["python3", "-c", "import socket; socket.create_connection(('other.test',22)).recv(9)"]
            )
        found = [pid for pid in os.listdir("/proc") if pid.isdigit() and _name(pid) == "nucleus-gateway"]
        rows = [_rollup(pid) for pid in found]
        if len(rows) != count:
            print(f"gateways: {len(rows)} found of {count}")
        pss = [row["Pss"] for row in rows]
        private = [row["Private_Clean"] + row["Private_Dirty"] for row in rows]
        print(
            f"{len(rows)} gateways: PSS {sum(pss) / 1024:.0f} MB in all, {statistics.median(pss) / 1024:.1f} MB each; "
            f"private {statistics.median(private) / 1024:.1f} MB each"
        )
    finally:
        for one in held:
            one.child.communicate(timeout=30)


def _name(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def _rollup(pid: str) -> dict[str, int]:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    return {line.split(":")[0]: int(line.split()[1]) for line in lines}


def main() -> int:
    """See the module."""
    parser = arguments("bench.egress", __doc__)
    parser.add_argument("--gateways", type=int, default=0)
    options = parser.parse_args()
    for name, why in peers.install().items():
        print(f"not installed: {name}: {why}", file=sys.stderr)
    measured = run({"egress": suite}, chosen(options))
    print(json.dumps(measured, indent=1) if options.json else text_table(measured))
    if options.gateways:
        with closing(World()) as world:
            memory(world, world.policy(POLICY), options.gateways)
    return 0


if __name__ == "__main__":
    sys.exit(main())
