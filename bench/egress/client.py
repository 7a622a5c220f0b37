"""The client that is measured: standard library alone, the same code wherever it runs; by a proxy where one is named."""

import json
import os
import socket
import ssl
import statistics
import time
from urllib.parse import urlsplit

PROXY = urlsplit(os.environ.get("http_proxy") or os.environ.get("HTTP_PROXY") or "")
NUMBER = 60


def connected(host, port):
    if not PROXY.hostname:
        return socket.create_connection((host, port))
    made = socket.create_connection((PROXY.hostname, PROXY.port))
    made.sendall(f"CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode())
    answer = b""
    while not answer.endswith(b"\r\n\r\n"):
        answer += made.recv(1)
    assert b" 200" in answer.split(b"\r\n")[0], answer
    return made


def request(sock, host, path, close=False):
    more = "Connection: close\r\n" if close else ""
    sock.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\n{more}\r\n".encode())
    data = b""
    while b"\r\n\r\n" not in data:
        data += sock.recv(65536)
    head, _, body = data.partition(b"\r\n\r\n")
    length = int(
        next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")).split(b":")[1]
    )
    left = length - len(body)
    while left > 0:
        left -= len(sock.recv(min(left, 1 << 20)))
    return length


def plain(host):
    """To an HTTP server: a proxy gets the whole URL."""
    if not PROXY.hostname:
        return socket.create_connection((host, 80)), ""
    return socket.create_connection((PROXY.hostname, PROXY.port)), f"http://{host}"


def timed(act, number=NUMBER):
    act()
    found = []
    for _ in range(number):
        began = time.perf_counter()
        act()
        found.append((time.perf_counter() - began) * 1e3)
    return statistics.median(found)


def tls(host):
    context = ssl.create_default_context()
    return context.wrap_socket(connected(host, 443), server_hostname=host)


def new_http():
    sock, prefix = plain("allowed.test")
    with sock:
        request(sock, "allowed.test", f"{prefix}/x", close=True)


def new_tls(host):
    with tls(host) as sock:
        request(sock, host, "/x")


def first_byte():
    with connected("other.test", 22) as sock:
        sock.recv(100)


def bulk(number=8):
    with tls("allowed.test") as sock:
        began = time.perf_counter()
        moved = sum(request(sock, "allowed.test", "/big") for _ in range(number))
        return moved / 1e6 / (time.perf_counter() - began)


def main():
    out = {}
    sock, prefix = plain("allowed.test")
    with sock:
        out["HTTP request, kept connection, ms"] = timed(lambda: request(sock, "allowed.test", f"{prefix}/x"))
    out["HTTP request, new connection, ms"] = timed(new_http)
    with tls("allowed.test") as sock:
        out["TLS tunnel, request on a kept one, ms"] = timed(lambda: request(sock, "allowed.test", "/x"))
    out["TLS tunnel, new, first answer, ms"] = timed(lambda: new_tls("allowed.test"), 30)
    with tls("api.test") as sock:
        out["TLS opened, request on a kept one, ms"] = timed(lambda: request(sock, "api.test", "/x"))
    out["TLS opened, new, first answer, ms"] = timed(lambda: new_tls("api.test"), 30)
    if not PROXY.hostname:
        out["TCP, first byte, ms"] = timed(first_byte)
    out["bulk through the tunnel, MB/s"] = bulk()
    print(json.dumps(out))


main()
