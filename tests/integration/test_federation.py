"""Federation through the public door: our bundle endpoint, foreign trust domains, and who is given their bundles."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from integration.foreign import Domain, Server, web_certificate
from integration.site import USER, Site
from integration.test_identity_api import OTHER, Served, call, first, refused, run
from integration.test_sds import fetched, secrets
from integration.test_serve import Served as Gate
from integration.test_serve import call as call_gate
from integration.workload_client import connected
from nucleus.errors import SandboxError
from nucleus.identity import bundle, bundle_client, sds_proto
from nucleus.identity import workload_proto as proto
from nucleus.identity.federation import Relationship
from nucleus.identity.spiffe_id import SpiffeId
from nucleus.identity.svid import pem_to_der
from nucleus.identity.tls import client_context, peer_chain
from nucleus.identity.verify import verify_svid

NUCLEUS = str(Path(sys.executable).parent / "nucleus")
FOREIGN = "foreign.example"


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    made = Served(0)
    made.add("root", "unix:uid:0", **{"federates-with": FOREIGN})
    made.add("other", f"unix:uid:{OTHER}")
    yield made
    made.close()


@pytest.fixture(scope="module")
def domain(tmp_path_factory: pytest.TempPathFactory) -> Domain:
    return Domain(tmp_path_factory.mktemp("foreign"), FOREIGN)


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Server]:
    chain, key, root = web_certificate("localhost")
    (tmp_path / "root.pem").write_text(root)
    server = Server(chain, key)
    yield server
    server.close()


@pytest.fixture(autouse=True)
def nothing_left(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "served" in request.fixturenames:
        served = request.getfixturevalue("served")
        for one in federations(served):
            served.cli("identity", "federate", "remove", one["trust_domain"])


def federations(site: Site) -> list[dict[str, Any]]:
    done = site.cli("identity", "federate", "list", "--json")
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)["federations"]
    return found


def federate(site: Site, url: str, root: Path | None, name: str = FOREIGN) -> subprocess.CompletedProcess[str]:
    more = ("--ca", str(root)) if root else ()
    return site.cli("identity", "federate", "add", name, "--url", url, "--profile", "https_web", *more)


def added(site: Site, server: Server, document: dict[str, Any], tmp_path: Path, name: str = FOREIGN) -> None:
    server.says(document)
    done = federate(site, server.url, tmp_path / "root.pem", name)
    assert done.returncode == 0, done.stderr


def refresh(site: Site, *words: str) -> subprocess.CompletedProcess[str]:
    return site.cli("identity", "federate", "refresh", *words)


# -- who is given a foreign bundle ---------------------------------------------------------------------------------


def test_only_a_workload_whose_entry_names_it_is_given_a_foreign_bundle(
    served: Served, domain: Domain, web: Server, tmp_path: Path
) -> None:
    before = run(first(served.socket))
    assert dict(before.federated_bundles) == {}
    added(served, web, domain.document(), tmp_path)
    answer = run(first(served.socket))
    assert list(answer.federated_bundles) == [f"spiffe://{FOREIGN}"]
    roots = b"".join(domain.ca.roots(time.time_ns())[FOREIGN])
    assert answer.federated_bundles[f"spiffe://{FOREIGN}"] == roots
    bundles = run(first(served.socket, "FetchX509Bundles")).bundles
    assert (sorted(bundles), bundles[f"spiffe://{FOREIGN}"]) == (
        [f"spiffe://{FOREIGN}", "spiffe://nucleus.local"], roots)  # fmt: skip
    jwt = run(first(served.socket, "FetchJWTBundles")).bundles
    kids = [key["kid"] for key in json.loads(jwt[f"spiffe://{FOREIGN}"])["keys"]]
    assert kids == list(domain.keys.public(time.time_ns()))

    # Envoy's form of it.
    by_sds = secrets(run(fetched(served.socket, f"spiffe://{FOREIGN}", "ALL")))
    theirs = by_sds[f"spiffe://{FOREIGN}"].validation_context.trusted_ca.inline_bytes.decode()
    assert b"".join(pem_to_der(theirs)) == roots
    validator = by_sds["ALL"].validation_context.custom_validator_config.typed_config.value
    known = sds_proto.SPIFFECertValidatorConfig.FromString(validator).trust_domains
    assert {one.name: len(pem_to_der(one.trust_bundle.inline_bytes.decode())) for one in known} == {
        FOREIGN: len(domain.ca.roots(time.time_ns())[FOREIGN]),
        "nucleus.local": 1,
    }

    script = """
import asyncio, json, sys
from integration.workload_client import connected
async def main():
    async with connected(sys.argv[1]) as client:
        x509 = await client.first("FetchX509SVID")
        bundles = [await client.first(name) for name in ("FetchX509Bundles", "FetchJWTBundles")]
        print(json.dumps([list(x509.federated_bundles), *[sorted(one.bundles) for one in bundles]]))
asyncio.run(main())
"""
    with Site.another(OTHER) as become:
        done = subprocess.run(
            [sys.executable, "-c", script, served.socket], preexec_fn=become, capture_output=True, text=True,
            timeout=60, cwd="/", env={"PYTHONPATH": ":".join(path for path in sys.path if path)},
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [[], ["spiffe://nucleus.local"], ["spiffe://nucleus.local"]]


def test_a_foreign_bundle_that_changes_is_pushed_and_one_that_is_removed_is_taken_back(
    served: Served, domain: Domain, web: Server, tmp_path: Path
) -> None:
    added(served, web, domain.document(5), tmp_path)
    own = Domain(tmp_path, FOREIGN)  # the same name with new keys, as after a rotation

    async def scenario() -> None:
        async with connected(served.socket) as client, client.stream("FetchX509SVID") as messages:
            assert (await messages.next()).federated_bundles[f"spiffe://{FOREIGN}"]
            web.says(own.document(6))
            done = await asyncio.to_thread(refresh, served, FOREIGN)
            assert done.stdout == f"{FOREIGN}: a new bundle, sequence 6\n", done.stderr
            pushed = (await messages.next()).federated_bundles
            assert pushed[f"spiffe://{FOREIGN}"] == b"".join(own.ca.roots(time.time_ns())[FOREIGN])
            done = await asyncio.to_thread(served.cli, "identity", "federate", "remove", FOREIGN)
            assert done.returncode == 0, done.stderr
            assert dict((await messages.next()).federated_bundles) == {}

    run(scenario())
    changes = [record["context"]["change"] for record in served.found("identity.federated")]
    assert changes[-3:] == ["add", "refresh", "remove"]


# -- who a foreign bundle speaks for -------------------------------------------------------------------------------


def test_a_foreign_bundle_verifies_its_own_svids_and_no_others(
    served: Served, domain: Domain, web: Server, tmp_path: Path
) -> None:
    svid = tmp_path / "svid.pem"
    svid.write_text(domain.svid("/peer").cert_pem)
    assert served.cli("identity", "verify", str(svid)).returncode != 0
    added(served, web, domain.document(), tmp_path)
    done = served.cli("identity", "verify", str(svid))
    assert (done.returncode, done.stdout) == (0, f"spiffe://{FOREIGN}/peer\n")
    # The foreign CA signs a name of ours: our name has our roots.
    ours = Domain(tmp_path, "nucleus.local")
    svid.write_text(ours.svid("/peer").cert_pem)
    forged = served.cli("identity", "verify", str(svid))
    assert forged.returncode != 0
    assert "path" in forged.stderr


def test_a_foreign_token_is_validated_by_its_own_keys_and_for_whom_it_is_federated(
    served: Served, domain: Domain, web: Server, tmp_path: Path
) -> None:
    token = domain.token("/peer", "us")
    asked = proto.ValidateJWTSVIDRequest(audience="us", svid=token)
    assert refused(call(served.socket, "ValidateJWTSVID", asked)) is Status.INVALID_ARGUMENT
    added(served, web, domain.document(), tmp_path)
    answer = run(call(served.socket, "ValidateJWTSVID", asked))
    assert answer.spiffe_id == f"spiffe://{FOREIGN}/peer"
    done = served.cli("identity", "verify", "-", "--audience", "us", feed=token)
    assert done.stdout.startswith(f"spiffe://{FOREIGN}/peer for us"), done.stderr
    # Its key under our name, and under another's.
    for name in ("nucleus.local", "third.example"):
        forged = proto.ValidateJWTSVIDRequest(audience="us", svid=domain.token("/peer", "us", name))
        assert refused(call(served.socket, "ValidateJWTSVID", forged)) is Status.INVALID_ARGUMENT


def test_a_document_with_our_roots_does_not_make_our_names_foreign(
    served: Served, domain: Domain, web: Server, tmp_path: Path
) -> None:
    ours = json.loads(served.cli("identity", "bundle", "--format", "spiffe").stdout)
    web.says({**ours, "spiffe_sequence": 1})
    done = federate(served, web.url, tmp_path / "root.pem")
    assert done.returncode != 0
    assert "a root's SPIFFE ID is not that of" in done.stderr
    assert federations(served) == []
    done = federate(served, web.url, tmp_path / "root.pem", "nucleus.local")
    assert done.returncode != 0
    assert "our own trust domain" in done.stderr


# -- endpoints: https_web ------------------------------------------------------------------------------------------


def test_an_endpoint_with_another_certificate_is_refused_and_the_last_bundle_stays(
    served: Served, domain: Domain, web: Server, tmp_path: Path
) -> None:
    added(served, web, domain.document(5), tmp_path)
    kept = federations(served)
    chain, key, _ = web_certificate("localhost")
    web.shows(chain, key)
    done = refresh(served)
    assert done.returncode == 1
    assert "certificate is refused" in done.stderr
    assert (federations(served), web.asked) == (kept, 1)


def test_the_endpoints_name_is_checked(served: Served, domain: Domain, web: Server, tmp_path: Path) -> None:
    web.says(domain.document())
    done = federate(served, web.url.replace("localhost", "127.0.0.1"), tmp_path / "root.pem")
    assert done.returncode != 0
    assert "certificate is refused" in done.stderr
    done = federate(served, web.url, None)  # not of this machine's roots
    assert done.returncode != 0
    assert "certificate is refused" in done.stderr
    assert (federations(served), web.asked) == ([], 0)


def test_a_sequence_never_goes_back(served: Served, domain: Domain, web: Server, tmp_path: Path) -> None:
    added(served, web, domain.document(5), tmp_path)
    (kept,) = federations(served)
    for older in (domain.document(4), {"keys": domain.document()["keys"]}):
        web.says(older)
        done = refresh(served, FOREIGN)
        assert done.returncode == 1
        assert "went back" in done.stderr
    assert federations(served) == [kept]
    web.says(domain.document(5))
    assert refresh(served, FOREIGN).stdout == f"{FOREIGN}: unchanged, sequence 5\n"
    assert federations(served)[0]["fetched_ns"] > kept["fetched_ns"]


@pytest.mark.parametrize(
    "raw",
    [
        b"HTTP/1.1 302 Found\r\nLocation: http://localhost/\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: https://" + b"a" * 64 + b".example/\r\nContent-Length: 0\r\n\r\n",
        b'HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n{"keys": []}',
        b'HTTP/1.1 200 OK\r\n\r\n{"keys": []}',
        b"HTTP/1.1 200 OK\r\nContent-Length: 400000\r\n\r\n" + b" " * 400_000,
        b"HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\nnot anything",
        b"\xff\xfe" * 100,
        b"",
    ],
    ids=[
        "redirect to http",
        "redirect in a circle",
        "redirect to no name",
        "truncated",
        "no length",
        "oversize",
        "no json",
        "no http",
        "nothing",
    ],
)
def test_answers_that_are_no_bundle(served: Served, web: Server, tmp_path: Path, raw: bytes) -> None:
    web.raw = raw
    done = federate(served, web.url, tmp_path / "root.pem")
    assert done.returncode not in (0, 70)
    assert "internal_error" not in done.stderr, done.stderr
    assert federations(served) == []


def test_a_name_with_many_silent_addresses_takes_no_longer_than_one(monkeypatch: pytest.MonkeyPatch) -> None:
    silent = []
    for _ in range(6):
        door = socket.socket()
        door.bind(("127.0.0.1", 0))
        door.listen(0)
        silent.append(door)
        for _ in range(3):  # its queue is full: nobody answers the next one
            waiting = socket.socket()
            waiting.setblocking(False)
            waiting.connect_ex(door.getsockname())
            silent.append(waiting)
    doors = [each for each in silent if each.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)]
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", door.getsockname()) for door in doors]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    monkeypatch.setattr(bundle_client, "FETCH_S", 1.0)
    one = Relationship(FOREIGN, "https://many.example/", "https_web", "", "", "", 0)
    began = time.monotonic()
    with pytest.raises(SandboxError):
        bundle_client.fetch(one, {})
    assert time.monotonic() - began < 3
    for each in silent:
        each.close()


def test_redirects_are_followed_a_little_and_prove_the_same(
    served: Served, domain: Domain, web: Server, tmp_path: Path
) -> None:
    chain, key, root = web_certificate("localhost")
    other = Server(chain, key)
    try:
        other.says(domain.document())
        web.raw = f"HTTP/1.1 307 Moved\r\nLocation: {other.url}\r\nContent-Length: 0\r\n\r\n".encode()
        done = federate(served, web.url, tmp_path / "root.pem")
        assert "certificate is refused" in done.stderr
        assert federations(served) == []
        with (tmp_path / "root.pem").open("a") as file:
            file.write(root)
        done = federate(served, web.url, tmp_path / "root.pem")
        assert done.returncode == 0, done.stderr
        assert [one["url"] for one in federations(served)] == [web.url]
    finally:
        other.close()


def test_watch_fetches_by_the_hint(served: Served, domain: Domain, web: Server, tmp_path: Path) -> None:
    added(served, web, domain.document(spiffe_refresh_hint=1), tmp_path)
    assert federations(served)[0]["refresh_s"] == bundle.MIN_REFRESH_S
    with served.start([NUCLEUS, "identity", "federate", "refresh", "--watch"]) as watch:
        assert watch.stdout is not None
        assert watch.stdout.readline() == f"{FOREIGN}: unchanged, sequence 1\n"
        watch.send_signal(signal.SIGTERM)
        _, err = watch.communicate(timeout=20)
        assert (watch.returncode, err) == (0, "")
    assert web.asked == 2


# -- endpoints: https_spiffe ---------------------------------------------------------------------------------------


def test_an_https_spiffe_endpoint_proves_its_id_by_its_own_trust_domains_bundle(
    served: Served, domain: Domain, tmp_path: Path
) -> None:
    svid = domain.svid("/endpoint")
    server = Server(svid.cert_pem, svid.key_pem)
    server.says(domain.document(3))
    first_bundle = tmp_path / "bundle.json"
    first_bundle.write_text(json.dumps(domain.document(2)))
    words = ("identity", "federate", "add", FOREIGN, "--url", server.url, "--profile", "https_spiffe")

    def add(endpoint: str, file: Path) -> subprocess.CompletedProcess[str]:
        return served.cli(*words, "--endpoint-id", f"spiffe://{FOREIGN}/{endpoint}", "--bundle", str(file))

    try:
        done = add("another", first_bundle)
        assert done.returncode != 0
        assert f"the endpoint is spiffe://{FOREIGN}/endpoint" in done.stderr
        impostor = tmp_path / "impostor.json"
        impostor.write_text(json.dumps(Domain(tmp_path, FOREIGN).document()))
        assert "certificate is refused" in add("endpoint", impostor).stderr
        assert (federations(served), server.asked) == ([], 0)
        done = add("endpoint", first_bundle)
        assert done.returncode == 0, done.stderr
        server.says(domain.document(4))
        assert refresh(served).stdout == f"{FOREIGN}: a new bundle, sequence 4\n"
    finally:
        server.close()


def test_an_endpoint_of_a_third_trust_domain_is_proved_by_that_ones_bundle(
    served: Served, domain: Domain, web: Server, tmp_path: Path
) -> None:
    third = Domain(tmp_path, "third.example")
    svid = third.svid("/endpoint")
    server = Server(svid.cert_pem, svid.key_pem)
    server.says(domain.document())
    words = ("identity", "federate", "add", FOREIGN, "--url", server.url, "--profile", "https_spiffe",
             "--endpoint-id", "spiffe://third.example/endpoint")  # fmt: skip
    try:
        assert "no federation" in served.cli(*words).stderr
        added(served, web, third.document(), tmp_path, "third.example")
        done = served.cli(*words)
        assert done.returncode == 0, done.stderr
        assert refresh(served, FOREIGN).returncode == 0
    finally:
        server.close()


# -- our own endpoint ----------------------------------------------------------------------------------------------


@contextmanager
def endpoint(site: Site, *options: str) -> Iterator[dict[str, Any]]:
    with site.start([NUCLEUS, "identity", "endpoint", "--listen", "127.0.0.1:0", *options]) as child:
        assert child.stdout is not None
        try:
            line = child.stdout.readline()
            assert line, child.communicate()[1]
            yield json.loads(line)
            child.send_signal(signal.SIGTERM)
            _, err = child.communicate(timeout=20)
            assert (child.returncode, err) == (0, "")
        finally:
            if child.poll() is None:
                child.kill()


def ask(url: str, context: ssl.SSLContext, request: bytes = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n") -> tuple[bytes, Any]:
    port = int(url.split(":")[2].split("/")[0])
    with (
        socket.create_connection(("127.0.0.1", port), 10) as raw,
        context.wrap_socket(raw, server_hostname="localhost") as tls,
    ):
        tls.sendall(request)
        data = b""
        while more := tls.recv(65_536):
            data += more
        return data, (tls.version(), peer_chain(tls) if context.verify_mode else [])


def anybody() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


@pytest.mark.parametrize("uid", [0, USER])
def test_our_endpoint_with_an_svid(uid: int) -> None:
    site = Site(uid)
    try:
        with endpoint(site) as said:
            assert said == {"url": said["url"], "profile": "https_spiffe",
                            "endpoint_id": "spiffe://nucleus.local/bundle-endpoint"}  # fmt: skip
            document = site.cli("identity", "bundle", "--format", "spiffe").stdout.strip()
            roots = {"nucleus.local": tuple(pem_to_der(site.cli("identity", "bundle").stdout))}
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname = False
            for der in roots["nucleus.local"]:
                context.load_verify_locations(cadata=der)
            data, (version, chain) = ask(said["url"], context)
            head, _, body = data.partition(b"\r\n\r\n")
            assert (version, head.split(b"\r\n")[0], body.decode()) == ("TLSv1.3", b"HTTP/1.1 200 OK", document)
            assert str(verify_svid(chain, roots, time.time_ns(), role="server")) == said["endpoint_id"]
            found = bundle.read(body, "nucleus.local")
            assert found.x509 == roots["nucleus.local"]
            assert found.sequence > 1_700_000_000
            assert {key["use"] for key in json.loads(body)["keys"]} == {"x509-svid", "jwt-svid"}
            context = anybody()
            context.maximum_version = ssl.TLSVersion.TLSv1_2
            with pytest.raises(ssl.SSLError):
                ask(said["url"], context)
    finally:
        site.close()


def test_our_endpoint_with_a_certificate_of_the_webs_is_one_that_we_can_federate_with(
    served: Served, tmp_path: Path
) -> None:
    chain, key, root = web_certificate("localhost")
    cert_file, key_file, root_file = tmp_path / "c.pem", tmp_path / "k.pem", tmp_path / "root.pem"
    cert_file.write_text(chain), key_file.write_text(key), root_file.write_text(root)
    with endpoint(served, "--cert", str(cert_file), "--key", str(key_file), "--path", "/b.json") as said:
        assert said["profile"] == "https_web"
        url = said["url"].replace("127.0.0.1", "localhost")
        # Another Nucleus would federate under the same name; here the name is refused, after all else was right.
        done = federate(served, url, root_file)
        assert "a root's SPIFFE ID is not that of" in done.stderr
        assert ask(url, anybody())[0].startswith(b"HTTP/1.1 404 ")
        chain2, key2, root2 = web_certificate("localhost")
        cert_file.write_text(chain2), key_file.write_text(key2), root_file.write_text(root2)
        end = time.monotonic() + 20
        while "certificate is refused" in federate(served, url, root_file).stderr:
            assert time.monotonic() < end


def test_hostile_callers_of_our_endpoint(served: Served) -> None:
    with endpoint(served) as said:
        url, port = said["url"], int(said["url"].split(":")[2].split("/")[0])
        for request, status in (
            (b"POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\n", b"HTTP/1.1 405"),
            (b"GET /../../etc/passwd HTTP/1.1\r\n\r\n", b"HTTP/1.1 404"),
            (b"GET / HTTP/9\r\n\r\n", b"HTTP/1.1 400"),
            (b"\x00\r\n\r\n", b"HTTP/1.1 400"),
            (b"HEAD / HTTP/1.1\r\n\r\n", b"HTTP/1.1 200"),
            (b"GET / HTTP/1.1\r\nX: " + b"a" * 100_000, b""),
        ):
            data = b""
            with suppress(OSError):
                data = ask(url, anybody(), request)[0]
            assert data.startswith(status)
            assert not data or data.count(b"\r\n\r\n") == 1
            assert b"keys" not in data
        # Whoever holds connections open is one of a few of his address, and is dropped.
        held = [socket.create_connection(("127.0.0.1", port), 10) for _ in range(60)]
        try:
            closed = 0
            for sock in held[32:]:
                sock.settimeout(10)
                with suppress(ConnectionResetError):
                    closed += sock.recv(1) == b""
            assert closed == len(held) - 32
            for sock in held[:32]:  # the handshake's time is over
                sock.settimeout(15)
                with suppress(ConnectionResetError):
                    assert sock.recv(1) == b""
            assert ask(url, anybody())[0].startswith(b"HTTP/1.1 200 OK")
        finally:
            for sock in held:
                sock.close()


def test_our_sequence_goes_up_with_the_content_and_only_with_it(served: Served) -> None:
    def sequence() -> int:
        return int(json.loads(served.cli("identity", "bundle", "--format", "spiffe").stdout)["spiffe_sequence"])

    before = sequence()
    assert sequence() == before


# -- tokens of a revoked name --------------------------------------------------------------------------------------


def test_a_token_of_a_revoked_name_is_refused_at_once(served: Served) -> None:
    served.add("brief", f"unix:uid:{OTHER}", "unix:gid:0")
    token = served.cli("identity", "issue", "spiffe://nucleus.local/brief", "--audience", "us").stdout.strip()
    asked = proto.ValidateJWTSVIDRequest(audience="us", svid=token)
    assert run(call(served.socket, "ValidateJWTSVID", asked)).spiffe_id == "spiffe://nucleus.local/brief"
    done = served.cli("identity", "revoke", "spiffe://nucleus.local/brief", "--reason", "stolen")
    assert done.returncode == 0, done.stderr
    with pytest.raises(GRPCError, match="revoked"):
        run(call(served.socket, "ValidateJWTSVID", asked))
    done = served.cli("identity", "verify", "-", "--audience", "us", feed=token)
    assert done.returncode != 0
    assert "revoked" in done.stderr
    # A restored name gets tokens again; what it had stays refused.
    assert served.cli("identity", "restore", "spiffe://nucleus.local/brief").returncode == 0
    with pytest.raises(GRPCError, match="revoked"):
        run(call(served.socket, "ValidateJWTSVID", asked))
    time.sleep(1.1)  # a token says its second
    token = served.cli("identity", "issue", "spiffe://nucleus.local/brief", "--audience", "us").stdout.strip()
    again = proto.ValidateJWTSVIDRequest(audience="us", svid=token)
    assert run(call(served.socket, "ValidateJWTSVID", again)).spiffe_id == "spiffe://nucleus.local/brief"


# -- a foreign peer at a gate's door -------------------------------------------------------------------------------


REQUEST = (
    b"POST /v1/read HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 2\r\n"
    b"Connection: close\r\n\r\n{}"
)


def knock(gate: str, domain: Domain, path: str) -> bytes:
    """A request to a gate with a foreign SVID; b"": the handshake was refused."""
    svid = domain.svid(path)
    context = client_context(svid)
    context.verify_mode = ssl.CERT_NONE  # who we are is what matters here
    host, _, port = gate.removeprefix("https://").rpartition(":")
    data = b""
    with (
        suppress(ssl.SSLError, ConnectionResetError),
        socket.create_connection((host, int(port)), 10) as raw,
        context.wrap_socket(raw) as tls,
    ):
        tls.sendall(REQUEST)
        while more := tls.recv(65_536):
            data += more
    return data


def test_a_foreign_peer_at_a_gates_door_is_refused_under_its_own_name(
    domain: Domain, web: Server, tmp_path: Path
) -> None:
    site = Site(0)
    try:
        gate = Gate(site)
        try:
            peer = f"spiffe://{FOREIGN}/peer"

            def reasons() -> list[str]:
                return [r["outcome"]["reason"] for r in site.records() if r["event"] == "unauthenticated"]

            def until(there: Any) -> None:
                end = time.monotonic() + 15
                while not there():
                    assert time.monotonic() < end, reasons()
                    time.sleep(0.05)

            assert knock(gate.door["gate"], domain, "/peer") == b""
            until(lambda: any("handshake failed" in reason for reason in reasons()))
            added(site, web, domain.document(), tmp_path)
            until(lambda: knock(gate.door["gate"], domain, "/peer").startswith(b"HTTP/1.1 401"))
            assert any(peer in reason for reason in reasons())
            # The same CA under our orchestrator's own name: our bundle, which does not know it.
            ours = Domain(tmp_path, "nucleus.local")
            name = SpiffeId.parse(gate.door["gate_id"].replace("gate-", "orchestrator-"))
            assert not knock(gate.door["gate"], ours, name.path).startswith(b"HTTP/1.1 2")
            assert call_gate(site, gate.door)["run"] == "42\n"  # ours is served as before
            assert site.cli("identity", "federate", "remove", FOREIGN).returncode == 0
            until(lambda: knock(gate.door["gate"], domain, "/peer") == b"")
        finally:
            assert gate.stop() == 0
    finally:
        site.close()
