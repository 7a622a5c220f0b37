"""The client that is measured: standard library alone, the same code wherever it runs; by a proxy where one is named."""

import base64
import http.client
import json
import os
import ssl
import statistics
import sys
import time
from contextlib import closing
from urllib.parse import urlsplit

PROXY = urlsplit(os.environ.get("http_proxy") or os.environ.get("HTTP_PROXY") or "")
NUMBER = int(sys.argv[1])


AUTH = {}
if PROXY.username:
    pair = base64.b64encode(f"{PROXY.username}:{PROXY.password}".encode()).decode()
    AUTH = {"Proxy-Authorization": f"Basic {pair}"}


def connection(host, port):
    """To `host`; a proxy is asked for a tunnel."""
    if not PROXY.hostname:
        return http.client.HTTPConnection(host, port)
    made = http.client.HTTPConnection(PROXY.hostname, PROXY.port)
    made.set_tunnel(host, port, AUTH)
    return made


def connected(host, port):
    made = connection(host, port)
    made.connect()
    return made.sock


def plain(host):
    """To an HTTP server; a proxy gets the whole URL."""
    if not PROXY.hostname:
        return http.client.HTTPConnection(host, 80), ""
    return http.client.HTTPConnection(PROXY.hostname, PROXY.port), f"http://{host}"


def request(conn, host, path):
    conn.request("GET", path, headers={"Host": host, **AUTH})
    answer = conn.getresponse()
    body = answer.read()
    assert answer.status == 200, (answer.status, body[:200])
    return len(body)


def timed(act, number=NUMBER):
    act()
    found = []
    for _ in range(number):
        began = time.perf_counter()
        act()
        found.append((time.perf_counter() - began) * 1e3)
    return statistics.median(found)


CONTEXT = ssl.create_default_context()


def tls(host):
    made = http.client.HTTPConnection(host, 443)
    made.sock = CONTEXT.wrap_socket(connected(host, 443), server_hostname=host)
    made.auto_open = False
    return made


def new_http():
    conn, prefix = plain("allowed.test")
    with closing(conn):
        request(conn, "allowed.test", f"{prefix}/x")


def new_tls(host):
    with closing(tls(host)) as conn:
        request(conn, host, "/x")


def first_byte():
    with connected("other.test", 22) as sock:
        sock.recv(100)


def bulk(number):
    with closing(tls("allowed.test")) as conn:
        began = time.perf_counter()
        moved = sum(request(conn, "allowed.test", "/big") for _ in range(number))
        return moved / 1e6 / (time.perf_counter() - began)


def main():
    out = {}
    conn, prefix = plain("allowed.test")
    with closing(conn):
        out["HTTP request, kept connection, ms"] = timed(lambda: request(conn, "allowed.test", f"{prefix}/x"))
    out["HTTP request, new connection, ms"] = timed(new_http)
    with closing(tls("allowed.test")) as conn:
        out["TLS tunnel, request on a kept one, ms"] = timed(lambda: request(conn, "allowed.test", "/x"))
    out["TLS tunnel, new, first answer, ms"] = timed(lambda: new_tls("allowed.test"), NUMBER // 2)
    with closing(tls("api.test")) as conn:
        out["TLS opened, request on a kept one, ms"] = timed(lambda: request(conn, "api.test", "/x"))
    out["TLS opened, new, first answer, ms"] = timed(lambda: new_tls("api.test"), NUMBER // 2)
    if not PROXY.hostname:
        out["TCP, first byte, ms"] = timed(first_byte)
    out["bulk through the tunnel, MB/s"] = bulk(max(1, NUMBER // 6))
    print(json.dumps(out))


main()
