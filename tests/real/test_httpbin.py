"""Redirects, sizes, encodings and slow answers of httpbin, to curl and to `web_fetch`."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from integration.held import Held
from integration.world import World

from .conftest import REAL, end, ready

POLICY = """
version: 1
name: httpbin
capabilities: {read_files: always, run_bash: always, web_fetch: always}
hosts: {allow: [other.test]}
commands: {allow: everything}
trifecta: session
network:
  allow:
    - {host: other.test, port: 8090, protocol: http, trusted: true, methods: [GET, HEAD, POST]}
"""
BASE = "http://other.test:8090"


@pytest.fixture
def httpbin(world: World) -> Iterator[World]:
    server = world.server(f"{REAL}/venv/bin/python", "-m", "httpbin.core", "--host", "0.0.0.0", "--port", "8090")
    try:
        ready(world, server, f"{BASE}/get")
        yield world
    finally:
        end(server)


def test_curl(httpbin: World) -> None:
    """What curl does with a server, it does through the gateway, in one pod."""
    script = f"""
        cd /tmp; c() {{ curl -sS --max-time 20 "$@"; echo; }}
        c -L -o /dev/null -w '%{{http_code}} %{{num_redirects}}' {BASE}/redirect/5
        c -o /dev/null -w '%{{http_code}}' {BASE}/status/418
        c -o /dev/null -w '%{{size_download}}' {BASE}/bytes/100000
        c -o /dev/null -w '%{{size_download}}' '{BASE}/stream-bytes/90000?chunk_size=1000'
        c --compressed {BASE}/gzip | grep -c gzipped
        c -o /dev/null -w '%{{size_download}}' '{BASE}/range/2048'
        c -o /dev/null -w '%{{http_code}}' -r 0-99 {BASE}/range/1024
        c -X POST -d a=b {BASE}/post | grep -c '"a": "b"'
        head -c 3000000 /dev/zero | c -o /dev/null -w '%{{http_code}}' -X POST -H Expect: --data-binary @- {BASE}/post
        c -o /dev/null -w '%{{http_code}}' -X DELETE {BASE}/delete
        c -o /dev/null -w '%{{http_code}}' -L '{BASE}/redirect-to?url=http://169.254.169.254/latest'
        c -o /dev/null -w '%{{http_code}}' -I {BASE}/get
        c '{BASE}/drip?duration=1&numbytes=10&delay=0' | wc -c
    """
    policy = httpbin.policy(POLICY)
    done = httpbin.cli("exec", "--policy", policy, "--workdir", str(httpbin.workspace), "--", "sh", "-c", script)
    said = done.stdout.split()
    wanted = ["200", "5", "418", "100000", "90000", "1", "2048", "206", "1", "200", "403", "403", "200", "11"]
    assert said == wanted, (said, done.stderr)


def test_web_fetch(httpbin: World) -> None:
    fetches = {
        "/html": "Herman Melville", "/encoding/utf8": "∮ E⋅da = Q", "/gzip": '"gzipped": true',
        "/deflate": '"deflated": true', "/redirect/3": f'"url": "{BASE}/get"', "/json": "slideshow",
        "/links/3/0": "Links",
    }  # fmt: skip
    with Held(httpbin, policy=httpbin.policy(POLICY)) as held:
        for path, wanted in fetches.items():
            answer = held.operate(kind="web_fetch", url=BASE + path)
            assert answer.get("status") == "ok", (path, answer)
            assert wanted in json.dumps(answer["result"], ensure_ascii=False).replace('\\"', '"'), (path, answer)
        away = held.operate(kind="web_fetch", url=f"{BASE}/redirect-to?url=http://169.254.169.254/")
        assert away["kind"] == "denied", away
        assert away["rule"] == "hosts.allow", away
        assert held.operate(kind="web_fetch", url=f"{BASE}/redirect/30")["kind"] == "operation_failed"
        assert "404" in json.dumps(held.operate(kind="web_fetch", url=f"{BASE}/status/404"))
