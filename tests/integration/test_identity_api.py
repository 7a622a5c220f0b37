"""The Workload API through the public door: `nucleus identity serve`, real processes of several uids, the log."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Coroutine, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_der_private_key
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from integration import workload_client
from integration.held import Held
from integration.site import USER, Site
from integration.workload_client import Client, connected
from nucleus.identity import jwt_svid
from nucleus.identity import workload_proto as proto
from nucleus.identity.listener import API_UID, CONNECTIONS_OF_A_UID, LISTENER_UID
from nucleus.identity.svid import pem_to_der
from nucleus.identity.verify import verify_svid
from nucleus.identity.workload_api import HEADER
from nucleus.kernel import syscalls

NAME = "spiffe://nucleus.local/"
OTHER = 40_511  # another user, registered for what the tests register


class Served(Site):
    """A site whose Workload API is being served."""

    def __init__(self, uid: int, *options: str) -> None:
        super().__init__(uid)
        self.socket = str(self.directory / "api" / "w.sock")
        self.server = self.start([str(Path(sys.executable).parent / "nucleus"), "identity", "serve", "--socket",
                                  self.socket, *options])  # fmt: skip
        assert self.server.stdout is not None
        line = self.server.stdout.readline()
        assert line, self.server.communicate()[1]
        assert json.loads(line) == {"SPIFFE_ENDPOINT_SOCKET": f"unix://{self.socket}"}

    def add(self, name: str, *selectors: str, **options: str) -> str:
        flags = [word for one in selectors for word in ("--selector", one)]
        more = [word for key, value in options.items() for word in (f"--{key}", value)]
        done = self.cli("identity", "entries", "add", "--id", NAME + name, *flags, *more)
        assert done.returncode == 0, done.stderr
        return done.stdout.split()[0]

    def remove(self, entry: str) -> None:
        assert self.cli("identity", "entries", "remove", entry).returncode == 0

    def caller(self, uid: int, *words: str, program: str = sys.executable, **env: str) -> dict[str, Any]:
        """A process of `uid` that calls."""

        with Site.another(uid) as become:
            done = subprocess.run(
                [program, str(Path(workload_client.__file__)), self.socket, *words],
                preexec_fn=become, capture_output=True, text=True, timeout=60, cwd="/",
                env={"PYTHONPATH": os.pathsep.join(path for path in sys.path if path), **env},
            )  # fmt: skip
        assert done.returncode == 0, done.stderr
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    def found(self, event: str, **wanted: Any) -> list[dict[str, Any]]:
        return [r for r in self.records() if r["event"] == event and wanted.items() <= r["context"].items()]

    def end(self) -> None:
        self.server.send_signal(signal.SIGTERM)
        _, err = self.server.communicate(timeout=20)
        assert (self.server.returncode, err) == (0, "")

    def close(self) -> None:
        if self.server.poll() is None:
            self.server.kill()
        self.server.communicate()
        super().close()


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    made = Served(0)
    made.add("root", "unix:uid:0")
    yield made
    made.close()


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(work)


def refused(work: Coroutine[Any, Any, Any]) -> Status:
    with pytest.raises(GRPCError) as caught:
        run(work)
    return caught.value.status


async def first(path: str, name: str = "FetchX509SVID", **keywords: Any) -> Any:
    async with connected(path, **keywords) as client:
        return await client.first(name)


async def call(path: str, name: str, message: Any, **keywords: Any) -> Any:
    async with connected(path, **keywords) as client:
        return await client.call(name, message)


def test_an_svid_its_key_and_its_bundle_fit_together(served: Served) -> None:
    answer = run(first(served.socket))
    (svid,) = answer.svids
    assert svid.spiffe_id == NAME + "root"
    leaf = x509.load_der_x509_certificate(svid.x509_svid)
    assert load_der_private_key(svid.x509_svid_key, None).public_key() == leaf.public_key()
    roots = {"nucleus.local": tuple(pem_to_der(served.cli("identity", "bundle").stdout))}
    assert b"".join(roots["nucleus.local"]) == svid.bundle
    assert str(verify_svid([svid.x509_svid], roots, time.time_ns(), role="server")) == svid.spiffe_id
    assert 3_500 < (leaf.not_valid_after_utc.timestamp() - time.time()) <= 3_600
    record = served.found("identity.issued", pid=os.getpid())[-1]
    assert (record["principal"], record["operation"]) == (svid.spiffe_id, "fetch_x509_svid")
    assert record["context"]["uid"] == 0


def test_a_jwt_svid_is_fetched_and_validated_by_us_and_by_the_bundle(served: Served) -> None:
    answer = run(call(served.socket, "FetchJWTSVID", proto.JWTSVIDRequest(audience=["a", "b"])))
    (svid,) = answer.svids
    bundle = run(first(served.socket, "FetchJWTBundles")).bundles["spiffe://nucleus.local"]
    keys = {"nucleus.local": jwt_svid.read_jwks(bundle)}
    found = jwt_svid.validate(svid.svid, "b", keys, time.time_ns())
    assert (str(found.spiffe_id), found.audience) == (NAME + "root", ("a", "b"))
    assert 290 < found.expires_ns / 1e9 - time.time() <= 300
    valid = run(call(served.socket, "ValidateJWTSVID", proto.ValidateJWTSVIDRequest(audience="a", svid=svid.svid)))
    assert valid.spiffe_id == NAME + "root"
    assert valid.claims["sub"] == NAME + "root"
    assert list(valid.claims["aud"]) == ["a", "b"]
    assert served.found("identity.issued", audience=["a", "b"])


@pytest.mark.parametrize(("audience", "token"), [("c", None), ("a", "x.y.z"), ("", None), ("a", "")])
def test_a_token_that_is_not_valid_is_an_invalid_argument(served: Served, audience: str, token: str | None) -> None:
    if token is None:
        token = run(call(served.socket, "FetchJWTSVID", proto.JWTSVIDRequest(audience=["a"]))).svids[0].svid
    asked = proto.ValidateJWTSVIDRequest(audience=audience, svid=token)
    assert refused(call(served.socket, "ValidateJWTSVID", asked)) is Status.INVALID_ARGUMENT


def test_a_jwt_svid_is_for_somebody_and_of_an_own_id(served: Served) -> None:
    none = proto.JWTSVIDRequest()
    other = proto.JWTSVIDRequest(audience=["a"], spiffe_id=NAME + "not-mine")
    own = proto.JWTSVIDRequest(audience=["a"], spiffe_id=NAME + "root")
    assert refused(call(served.socket, "FetchJWTSVID", none)) is Status.INVALID_ARGUMENT
    assert refused(call(served.socket, "FetchJWTSVID", other)) is Status.PERMISSION_DENIED
    assert len(run(call(served.socket, "FetchJWTSVID", own)).svids) == 1


@pytest.mark.parametrize("metadata", [{}, {HEADER: "TRUE"}, {HEADER: "true,true"}, {"x": "true"}])
@pytest.mark.parametrize("name", ["FetchX509SVID", "FetchX509Bundles", "FetchJWTBundles"])
def test_without_the_security_header_nothing_is_served(served: Served, name: str, metadata: dict[str, str]) -> None:
    assert refused(first(served.socket, name, metadata=metadata)) is Status.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("name", "message"),
    [("FetchJWTSVID", proto.JWTSVIDRequest(audience=["a"])), ("ValidateJWTSVID", proto.ValidateJWTSVIDRequest())],
)
def test_without_the_security_header_no_token_is_looked_at(served: Served, name: str, message: Any) -> None:
    assert refused(call(served.socket, name, message, metadata={})) is Status.INVALID_ARGUMENT


def test_a_caller_without_an_entry_is_refused_and_on_record(served: Served) -> None:
    assert served.caller(OTHER, "x509") == {"status": "PERMISSION_DENIED"}
    assert served.caller(OTHER, "jwt", "a") == {"status": "PERMISSION_DENIED"}
    refusals = served.found("identity.refused", uid=OTHER)
    assert len(refusals) == 1  # the second within ten seconds is counted, not written
    assert not served.found("identity.issued", uid=OTHER)


def test_each_uid_gets_its_own(served: Served) -> None:
    entry = served.add("other", f"unix:uid:{OTHER}", "unix:gid:" + str(OTHER))
    assert served.caller(OTHER, "x509") == {"svids": [NAME + "other"]}
    assert served.caller(OTHER, "jwt", "a")["svids"] == [NAME + "other"]
    assert served.caller(OTHER + 1, "x509") == {"status": "PERMISSION_DENIED"}
    served.remove(entry)
    assert served.caller(OTHER, "x509") == {"status": "PERMISSION_DENIED"}


def test_a_path_and_a_hash_are_those_of_the_executable(served: Served, tmp_path: Path) -> None:
    python = os.path.realpath(sys.executable)
    digest = hashlib.sha256(Path(python).read_bytes()).hexdigest()
    entries = [
        served.add("by-path", "unix:uid:0", f"unix:path:{python}"),
        served.add("by-hash", "unix:uid:0", f"unix:sha256:{digest}"),
        served.add("by-other-hash", "unix:uid:0", f"unix:sha256:{'0' * 64}"),
        served.add("by-other-path", "unix:uid:0", "unix:path:/bin/true"),
    ]
    answer = served.caller(0, "x509")
    assert answer["svids"] == [NAME + name for name in ("root", "by-path", "by-hash")]
    assert served.found("identity.issued", sha256=digest, path=python)
    # The same program by another name is another path, and the same content.
    copy = tmp_path / "copy"
    shutil.copy(python, copy)
    answer = served.caller(0, "x509", program=str(copy), LD_LIBRARY_PATH=f"{sys.base_prefix}/lib",
                           PYTHONHOME=sys.base_prefix)  # fmt: skip
    assert answer["svids"] == [NAME + name for name in ("root", "by-hash")]
    for entry in entries:
        served.remove(entry)


def test_a_path_of_ones_own_mount_namespace_is_no_path(served: Served, tmp_path: Path) -> None:
    """Any user can mount a program of theirs over a registered one, in a namespace of their own."""
    python = os.path.realpath(sys.executable)
    entry = served.add("by-path", f"unix:path:{python}")
    copy = tmp_path / "copy"
    shutil.copy(python, copy)

    def hide() -> None:
        syscalls.unshare(syscalls.CLONE_NEWNS)
        syscalls.mount("", "/", "", syscalls.MS_REC | syscalls.MS_PRIVATE)
        syscalls.mount(str(copy), python, "", syscalls.MS_BIND)

    done = subprocess.run(
        [python, workload_client.__file__, served.socket, "x509"], preexec_fn=hide, capture_output=True, text=True,
        env={"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}, timeout=60, cwd="/",
    )  # fmt: skip
    assert json.loads(done.stdout) == {"svids": [NAME + "root"]}, done.stderr
    served.remove(entry)


def test_entries_that_change_are_pushed_to_who_they_concern(served: Served) -> None:
    async def work() -> None:
        async with connected(served.socket) as client, client.stream("FetchX509SVID") as stream:
            assert len((await stream.next()).svids) == 1
            entry = await asyncio.to_thread(served.add, "second", "unix:uid:0", hint="two")
            more = await stream.next()
            assert [(one.spiffe_id, one.hint) for one in more.svids] == [(NAME + "root", ""), (NAME + "second", "two")]
            unrelated = await asyncio.to_thread(served.add, "unrelated", "unix:uid:1")
            with pytest.raises(TimeoutError):
                await stream.next(4)
            await asyncio.to_thread(served.remove, unrelated)
            await asyncio.to_thread(served.remove, entry)

    run(work())


def test_who_is_registered_no_more_loses_the_stream(served: Served) -> None:
    async def work() -> None:
        async with connected(served.socket) as client, client.stream("FetchX509SVID") as stream:
            await stream.next()
            entries = json.loads(served.cli("identity", "entries", "list", "--json").stdout)["entries"]
            await asyncio.to_thread(served.remove, entries[0]["entry"])
            try:
                with pytest.raises(GRPCError) as caught:
                    await stream.next()
                assert caught.value.status is Status.PERMISSION_DENIED
            finally:
                await asyncio.to_thread(served.add, "root", "unix:uid:0")

    run(work())


def test_a_process_that_became_another_program_gets_nothing_more(served: Served, tmp_path: Path) -> None:
    """It connects, passes the socket on, and execs a registered program: the connection stays what it was."""
    code = (
        "import os, socket, sys\n"
        "s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); s.set_inheritable(True)\n"
        "os.write(1, b'.'); sys.stdin.readline()\n"
        "os.execv('/bin/sleep', ['sleep', '30'])\n"
    )
    ours, theirs = socket.socketpair()
    with ours, theirs:
        child = subprocess.Popen(
            [sys.executable, "-c", code.replace("s.set_inheritable(True)",
             "s.set_inheritable(True); socket.send_fds(socket.socket(fileno=int(sys.argv[2])), [b'x'], [s.fileno()])"),
             served.socket, str(theirs.fileno())],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=(theirs.fileno(),), text=True,
        )  # fmt: skip
        try:
            assert child.stdout is not None
            assert child.stdin is not None
            child.stdout.read(1)
            _, fds, _, _ = socket.recv_fds(ours, 1, 1)

            async def work() -> Any:
                loop = asyncio.get_running_loop()
                sock = socket.socket(fileno=fds[0])
                async with connected(served.socket) as client:

                    async def create() -> Any:
                        return (await loop.create_connection(client.channel._protocol_factory, sock=sock))[1]

                    client.channel._create_connection = create  # type: ignore[method-assign]
                    before = await client.first("FetchX509SVID")
                    child.stdin.write("go\n")
                    child.stdin.flush()
                    for _ in range(200):
                        if os.readlink(f"/proc/{child.pid}/exe").endswith(("sleep", "coreutils", "busybox")):
                            break
                        await asyncio.sleep(0.02)
                    with pytest.raises(GRPCError) as caught:
                        await client.first("FetchX509SVID")
                    child.kill()
                    child.wait()
                    with pytest.raises(GRPCError) as ended:
                        await client.call("FetchJWTSVID", proto.JWTSVIDRequest(audience=["a"]))
                    return before, caught.value.status, ended.value.status

            before, status, ended = run(work())
        finally:
            child.kill()
            child.communicate()
    assert [one.spiffe_id for one in before.svids] == [NAME + "root"]
    assert (status, ended) == (Status.PERMISSION_DENIED, Status.PERMISSION_DENIED)
    assert served.found(
        "identity.refused", pid=child.pid, reason="the calling process runs another program than when it connected"
    )


# -- what a hostile client may try ---------------------------------------------------------------------------------


def test_a_message_over_the_bound_is_refused_before_it_is_read(served: Served) -> None:
    big = proto.JWTSVIDRequest(audience=["x" * 20_000])
    assert refused(call(served.socket, "FetchJWTSVID", big)) is Status.RESOURCE_EXHAUSTED
    many = proto.JWTSVIDRequest(audience=["x"] * 17)
    assert refused(call(served.socket, "FetchJWTSVID", many)) is Status.INVALID_ARGUMENT


@pytest.mark.parametrize(
    "data", [b"", b"GET / HTTP/1.1\r\n\r\n", b"\0" * 100, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 64]
)
def test_bytes_that_are_no_http_2_end_that_connection_alone(served: Served, data: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as raw:
        raw.settimeout(10)
        raw.connect(served.socket)
        raw.sendall(data)
        raw.shutdown(socket.SHUT_WR)
        with suppress(ConnectionResetError):
            while raw.recv(65_536):  # until its end: a timeout would fail here
                pass
    assert run(first(served.socket)).svids


def test_mutated_calls_end_their_own_connection_and_the_server_lives(served: Served) -> None:
    """A standard client's bytes, with some of them changed, cut or repeated: nobody else notices."""
    from h2.config import H2Configuration
    from h2.connection import H2Connection

    client = H2Connection(H2Configuration(header_encoding="utf-8"))
    client.initiate_connection()
    names = {":method": "POST", ":scheme": "http", ":path": "/SpiffeWorkloadAPI/FetchJWTSVID", ":authority": "x",
             "te": "trailers", "content-type": "application/grpc", HEADER: "true"}  # fmt: skip
    client.send_headers(1, list(names.items()))
    message = proto.JWTSVIDRequest(audience=["a"]).SerializeToString()
    client.send_data(1, b"\0" + len(message).to_bytes(4) + message, end_stream=True)
    good = client.data_to_send()
    chance = random.Random(4711)
    answers = 0
    for round_ in range(400):
        data = bytearray(good)
        for _ in range(chance.randrange(0 if round_ == 0 else 1, 4)):
            at = chance.randrange(len(data))
            match chance.randrange(3):
                case 0:
                    data[at] = chance.randrange(256)
                case 1:
                    del data[at : at + chance.randrange(1, 9)]
                case _:
                    data[at:at] = data[at : at + chance.randrange(1, 40)]
        with socket.socket(socket.AF_UNIX) as raw, suppress(BrokenPipeError, ConnectionResetError):
            raw.settimeout(15)
            raw.connect(served.socket)
            raw.sendall(data)
            raw.shutdown(socket.SHUT_WR)
            while raw.recv(65_536):
                answers += 1
    assert answers
    time.sleep(1)
    assert run(first(served.socket)).svids
    assert served.server.poll() is None


def test_unknown_calls_and_messages_that_are_none(served: Served) -> None:
    async def unknown() -> Any:
        async with connected(served.socket) as client:
            return await _raw(client, "/SpiffeWorkloadAPI/Nope", b"")

    async def broken() -> Any:
        async with connected(served.socket) as client:
            return await _raw(client, "/SpiffeWorkloadAPI/FetchJWTSVID", b"\x0a\xff\xff\xff")

    # grpclib's answer to it is without a content type, of which its own client makes UNKNOWN.
    assert refused(unknown()) in (Status.UNIMPLEMENTED, Status.UNKNOWN)
    assert refused(broken()) is Status.INVALID_ARGUMENT


async def _raw(client: Client, path: str, data: bytes) -> Any:
    from grpclib.client import UnaryUnaryMethod

    class Message:
        @staticmethod
        def FromString(data: bytes) -> bytes:
            return data

        def SerializeToString(self) -> bytes:
            return data

    return await UnaryUnaryMethod(client.channel, path, Message, Message)(Message(), metadata=client.metadata)


def test_streams_of_a_connection_and_connections_of_a_uid_are_bounded(served: Served) -> None:
    async def streams() -> int:
        async with connected(served.socket) as client:
            opened, failed = [], 0
            for _ in range(20):
                stream = client.stream("FetchX509Bundles")
                await stream.__aenter__()
                opened.append(stream)
            for stream in opened:
                try:
                    await stream.next()
                except GRPCError as error:
                    failed += error.status is Status.RESOURCE_EXHAUSTED
            return failed

    assert run(streams()) == 4
    time.sleep(0.2)
    held = []
    try:
        for _ in range(CONNECTIONS_OF_A_UID + 8):
            raw = socket.socket(socket.AF_UNIX)
            raw.settimeout(1)
            raw.connect(served.socket)
            held.append(raw)
        greeted = 0
        for raw in held:
            try:
                greeted += bool(raw.recv(1))
            except TimeoutError:
                continue
        assert greeted == CONNECTIONS_OF_A_UID
        served.caller(OTHER, "x509")  # another user's are another's
    finally:
        for raw in held:
            raw.close()
    time.sleep(0.3)
    assert run(first(served.socket)).svids


def test_a_flood_of_one_uid_is_cut_and_another_is_served(served: Served) -> None:
    async def flood() -> int:
        async with connected(served.socket) as client:
            cut = 0
            for _ in range(250):
                try:
                    await client.call("ValidateJWTSVID", proto.ValidateJWTSVIDRequest(audience="a", svid="x"))
                except GRPCError as error:
                    cut += error.status is Status.RESOURCE_EXHAUSTED
            return cut

    assert run(flood()) > 20
    assert served.caller(OTHER, "x509") == {"status": "PERMISSION_DENIED"}
    time.sleep(1)


def test_the_processes_hold_no_more_than_they_need(served: Served) -> None:
    pid = served.server.pid
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    (api,) = [child for child in children if "workload_api" in Path(f"/proc/{child}/cmdline").read_text()]

    def status(of: Any) -> dict[str, str]:
        lines = Path(f"/proc/{of}/status").read_text().splitlines()
        return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}

    listener, server = status(pid), status(api)
    assert set(listener["Uid"].split()) == {str(LISTENER_UID)}
    assert int(listener["CapPrm"], 16) == 1 << syscalls.CAP_SYS_PTRACE | 1 << syscalls.CAP_DAC_READ_SEARCH
    assert set(server["Uid"].split()) == {str(API_UID)}
    assert int(server["CapPrm"], 16) == int(server["CapEff"], 16) == 0
    assert (listener["NoNewPrivs"], server["NoNewPrivs"]) == ("1", "1")
    assert (listener["Groups"], server["Groups"]) == ("", "")


def test_a_pod_is_a_selector_and_its_processes_are_known_by_their_namespace(served: Served) -> None:
    """Here by the pod's own first process: a socket of ours is not in a pod (ADR 14)."""
    from nucleus.identity.attestation import pid_namespace
    from nucleus.identity.listener import Pods

    with Held(served) as held:
        name = held.start["pod"]
        status = json.loads(served.cli("helper", "status", "--json").stdout)["pods"]
        pods = Pods(lambda: status)
        pids = [pid for pod in status if pod["pod"] == name for pid in pod["pids"]]
        assert pids
        for pid in pids:
            namespace = pid_namespace(pid)
            assert namespace is not None
            assert pods(namespace) == name
        own = pid_namespace(os.getpid())
        assert own is not None
        assert pods(own) is None
        assert pods((1, 1)) is None


# -- the verbs -----------------------------------------------------------------------------------------------------


def test_entries_are_on_record_and_outlive_the_helper(served: Served) -> None:
    entry = served.add("kept", "unix:uid:77", ttl="24h")
    done = served.cli("identity", "entries", "add", "--id", NAME + "kept", "--selector", "unix:uid:77")
    assert (done.returncode, "there is an entry with this ID" in done.stderr) == (2, True)
    assert [r["context"]["change"] for r in served.found("identity.entry", entry=entry)] == ["add"]
    assert served.found("identity.entry", entry=entry)[0]["principal"] == "uid:0"
    served.remove(entry)
    assert [r["context"]["change"] for r in served.found("identity.entry", entry=entry)] == ["add", "remove"]
    assert served.cli("identity", "entries", "remove", entry).returncode == 2
    assert served.verify().returncode == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--id", "spiffe://other.test/a", "--selector", "unix:uid:1"], "vouches for nucleus.local alone"),
        (["--id", NAME + "ns/default/sa/gate-x", "--selector", "unix:uid:1"], "this name is a pod's"),
        (["--id", NAME + "a", "--selector", "unix:user:x"], "unknown selector"),
        (["--id", NAME + "a", "--selector", "unix:uid:1", "--ttl", "30s"], "60 s to 86400 s"),
        (["--id", NAME + "a", "--selector", "unix:uid:1", "--ttl", "25h"], "60 s to 86400 s"),
        (["--id", NAME + "a"], "at least one --selector"),
    ],
)
def test_an_entry_that_is_refused_says_why(served: Served, words: list[str], said: str) -> None:
    done = served.cli("identity", "entries", "add", *words)
    assert done.returncode == 2
    assert said in done.stderr


def test_issue_and_verify(served: Served) -> None:
    out = served.directory / "issued"
    done = served.cli("identity", "issue", NAME + "batch", "--out", str(out), "--ttl", "5m")
    assert done.returncode == 0, done.stderr
    assert (out / "key.pem").stat().st_mode & 0o777 == 0o600
    good = served.cli("identity", "verify", str(out / "svid.pem"))
    assert (good.returncode, good.stdout) == (0, NAME + "batch\n")
    assert served.cli("identity", "verify", str(out / "svid.pem"), "--bundle", str(out / "bundle.pem")).returncode == 0
    wrong = served.cli("identity", "verify", str(out / "bundle.pem"))
    assert wrong.returncode == 3
    assert "X509-SVID 5.2" in wrong.stderr
    again = served.cli("identity", "issue", NAME + "batch", "--out", str(out))
    assert (again.returncode, "there already" in again.stderr) == (2, True)
    token = served.cli("identity", "issue", NAME + "batch", "--audience", "a").stdout
    assert served.cli("identity", "verify", "-", "--audience", "a", feed=token).stdout.startswith(
        NAME + "batch for a until"
    )
    bad = served.cli("identity", "verify", "-", "--audience", "b", feed=token)
    assert (bad.returncode, "(3.2)" in bad.stderr) == (3, True)
    assert served.found("identity.issued", requested_by="uid:0")
    reserved = served.cli("identity", "issue", NAME + "ns/default/sa/orchestrator-x", "--audience", "a")
    assert reserved.returncode == 2


def test_bundle_and_show(served: Served) -> None:
    spiffe = json.loads(served.cli("identity", "bundle", "--format", "spiffe").stdout)
    assert {key["use"] for key in spiffe["keys"]} == {"x509-svid", "jwt-svid"}
    assert all(len(key["x5c"]) == 1 for key in spiffe["keys"] if key["use"] == "x509-svid")
    jwks = json.loads(served.cli("identity", "bundle", "--format", "jwks").stdout)
    shown = json.loads(served.cli("identity", "show", "--json").stdout)
    assert [key["kid"] for key in jwks["keys"]] == shown["jwt_keys"]
    assert "PRIVATE" not in served.cli("identity", "bundle").stdout


def test_a_second_server_of_one_socket_is_refused_and_a_dead_ones_replaced() -> None:
    one = Served(0)
    try:
        second = one.cli("identity", "serve", "--socket", one.socket)
        assert (second.returncode, "is being served" in second.stderr) == (6, True)
        file = one.directory / "file"
        file.write_text("x")
        third = one.cli("identity", "serve", "--socket", str(file))
        assert (third.returncode, file.read_text()) == (6, "x")
        one.end()
        again = one.start([str(Path(sys.executable).parent / "nucleus"), "identity", "serve", "--socket", one.socket])
        assert again.stdout is not None
        assert again.stdout.readline()
        again.send_signal(signal.SIGTERM)
        assert again.communicate(timeout=20)[1] == ""
    finally:
        one.close()


def test_ten_rotations_and_the_end_of_the_authority() -> None:
    fast = Served(0, "--refresh", "1")
    try:
        fast.add("fast", "unix:uid:0", ttl="1m")

        async def work() -> list[int]:
            serials: list[int] = []
            async with connected(fast.socket) as client, client.stream("FetchX509SVID") as stream:
                for _ in range(11):
                    message = await stream.next()
                    serials.append(x509.load_der_x509_certificate(message.svids[0].x509_svid).serial_number)
            return serials

        assert len(set(run(work()))) == 11
        assert fast.cli("helper", "stop").returncode == 0
        assert fast.server.wait(20) == 6
        assert "the authority has ended" in fast.server.communicate()[1]
    finally:
        fast.close()


def test_an_ordinary_users_own() -> None:
    """No privilege anywhere: the user's own callers are attested, and no other user may connect."""
    own = Served(USER)
    try:
        own.add("mine", f"unix:uid:{USER}", f"unix:path:{os.path.realpath(sys.executable)}")
        assert own.caller(USER, "x509") == {"svids": [NAME + "mine"]}
        assert os.stat(own.socket).st_mode & 0o777 == 0o600
        own.end()
        assert not os.path.exists(own.socket)
    finally:
        own.close()
