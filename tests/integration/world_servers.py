"""The outside, for tests: a network namespace of its own with public-looking addresses on lo, names, and servers.

`python world_servers.py DIRECTORY`, as root. What reaches a server is a line of DIRECTORY/requests.jsonl;
DIRECTORY/ca.pem is the authority that this world's system store trusts. Prints "ready", ends with its stdin.
"""

from __future__ import annotations

import asyncio
import datetime
import io
import json
import os
import ssl
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from nucleus.kernel import syscalls

NAMES = {
    "allowed.test": ["93.184.216.34"], "www.allowed.test": ["93.184.216.34"], "other.test": ["93.184.216.35"],
    "evil.test": ["93.184.216.66"], "private.test": ["10.9.9.9"], "meta.test": ["169.254.169.254"],
    "loop.test": ["127.0.0.1"], "mixed.test": ["93.184.216.34", "10.9.9.9"], "api.test": ["93.184.216.36"],
    "search.test": ["93.184.216.37"], "git.test": ["93.184.216.38"], "badcert.test": ["93.184.216.39"],
}  # fmt: skip
ADDRESSES = sorted({address for found in NAMES.values() for address in found} - {"127.0.0.1"})
BIG = 8_388_608


class Outside:
    """All servers; each request is recorded before it is answered."""

    def __init__(self, directory: Path) -> None:
        self.log = (directory / "requests.jsonl").open("a", buffering=1)
        self.repositories = directory / "repositories"

    def record(self, **seen: Any) -> None:
        self.log.write(json.dumps({"t": time.monotonic_ns(), **seen}) + "\n")

    async def http(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """A small HTTP/1.1 server: /redirect?to=, /big, /slow, /sse, /echo, else a page."""
        local = writer.get_extra_info("sockname")
        sni = getattr(writer.get_extra_info("ssl_object"), "told", None)
        try:
            while (line := await reader.readline()) not in (b"", b"\r\n"):
                method, target, _ = line.decode("latin-1").split(" ", 2)
                headers: dict[str, str] = {}
                while (raw := await reader.readline()) not in (b"", b"\r\n"):
                    name, _, value = raw.decode("latin-1").partition(":")
                    headers[name.strip().lower()] = value.strip()
                if headers.get("transfer-encoding") == "chunked":
                    body = b""
                    while size := int(await reader.readline(), 16):
                        body += (await reader.readexactly(size + 2))[:-2]
                    await reader.readline()
                else:
                    body = await reader.readexactly(int(headers.get("content-length", "0")))
                self.record(
                    server="http", address=local[0], port=local[1], sni=sni, method=method, target=target,
                    headers=headers, body=body.decode("latin-1")[:500],
                )  # fmt: skip
                await self._answer(writer, method, target, headers, body)
                if headers.get("connection", "").lower() == "close":
                    break
        except (OSError, ValueError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _answer(
        self, writer: asyncio.StreamWriter, method: str, target: str, headers: dict[str, str], body: bytes
    ) -> None:
        path, _, query = target.partition("?")
        if ".git/" in path:
            await self._git(writer, method, path, query, headers, body)
            return
        if path in ("/v1/messages", "/v1/chat/completions"):
            await self._model(writer, json.loads(body))
            return
        status, kind, extra = "200 OK", "text/plain; charset=utf-8", ""
        text = f"hello from {headers.get('host', '')}{path}\n".encode()
        if path == "/redirect":
            status, extra, text = "302 Found", f"Location: {query.removeprefix('to=')}\r\n", b""
        elif path == "/big":
            text = b"x" * BIG
        elif path == "/page":
            kind = "text/html; charset=utf-8"
            text = b"<html><head><script>evil()</script></head><body><h1>Head</h1><p>One &amp; two</p></body></html>"
        elif path == "/latin":
            kind, text = "text/plain; charset=iso-8859-1", b"caf\xe9"
        elif path == "/image":
            kind, text = "image/png", b"\x89PNG\r\n" + bytes(100)
        elif path == "/echo":
            kind, text = "application/json", json.dumps({"headers": headers, "body": body.decode("latin-1")}).encode()
        elif path == "/slow":
            await asyncio.sleep(float(query or "1"))
        elif path.startswith(("/simple/", "/files/", "/npm/")):
            kind, text = registry(path, headers["host"])
        elif path.endswith("/pulls"):
            asked = json.loads(body)
            status, kind = "201 Created", "application/json"
            text = json.dumps({"number": 7, "html_url": f"https://api.test/acme/repo/pull/7#{asked['head']}"}).encode()
        elif path == "/search":
            kind = "application/json"
            found = [{"title": "First", "url": "https://allowed.test/1", "content": "about " + query[:80]}]
            text = json.dumps({"results": found}).encode()
        writer.write(
            f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\n{extra}Content-Length: {len(text)}\r\n\r\n".encode()
        )
        if method != "HEAD":
            writer.write(text)
        await writer.drain()

    async def _git(
        self, writer: asyncio.StreamWriter, method: str, path: str, query: str, headers: dict[str, str], body: bytes
    ) -> None:
        """git's own HTTP server, for whoever brings the credential."""
        if "authorization" not in headers:
            writer.write(b"HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic\r\nContent-Length: 0\r\n\r\n")
            return
        environment = {
            "PATH": os.environ["PATH"], "GIT_PROJECT_ROOT": str(self.repositories), "GIT_HTTP_EXPORT_ALL": "1",
            "PATH_INFO": path, "QUERY_STRING": query, "REQUEST_METHOD": method, "REMOTE_USER": "acme",
            "CONTENT_TYPE": headers.get("content-type", ""), "CONTENT_LENGTH": str(len(body)),
            "GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "safe.directory", "GIT_CONFIG_VALUE_0": "*",
        }  # fmt: skip
        process = await asyncio.create_subprocess_exec(
            "git", "http-backend", env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        out, _ = await process.communicate(body)
        head, _, content = out.partition(b"\r\n\r\n")
        status = next((line[8:] for line in head.split(b"\r\n") if line.startswith(b"Status: ")), b"200 OK")
        lines = [line for line in head.split(b"\r\n") if not line.startswith(b"Status: ")]
        lines += [b"Content-Length: %d" % len(content)]
        writer.write(b"HTTP/1.1 " + status + b"\r\n" + b"\r\n".join(lines) + b"\r\n\r\n" + content)
        await writer.drain()

    async def _model(self, writer: asyncio.StreamWriter, asked: dict[str, Any]) -> None:
        """A model in Anthropic's form: `words` of output, as JSON or as a stream; the key is asked for in vain."""
        words = int(str(asked.get("metadata", {}).get("user_id", "10")))
        usage = {"input_tokens": 100, "output_tokens": words}
        if not asked.get("stream"):
            text = json.dumps(
                {"type": "message", "content": [{"type": "text", "text": "word " * words}], "usage": usage}
            )
            head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(text)}\r\n\r\n"
            writer.write((head + text).encode())
            await writer.drain()
            return
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")

        def event(kind: str, **data: Any) -> None:
            text = f"event: {kind}\ndata: {json.dumps({'type': kind, **data})}\n\n".encode()
            writer.write(b"%x\r\n%s\r\n" % (len(text), text))

        event("message_start", message={"usage": {"input_tokens": 100, "output_tokens": 1}})
        for number in range(words):
            if writer.is_closing():
                return
            event("content_block_delta", index=0, delta={"type": "text_delta", "text": f"word{number} "})
            if number % 50 == 0:
                await writer.drain()
                await asyncio.sleep(0.005)
        event("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": words})
        event("message_stop")
        writer.write(b"0\r\n\r\n")
        await writer.drain()

    async def echo(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        local = writer.get_extra_info("sockname")
        self.record(server="tcp", address=local[0], port=local[1])
        writer.write(b"SSH-2.0-test\r\n")
        try:
            while data := await reader.read(65_536):
                self.record(server="tcp", address=local[0], port=local[1], data=data.decode("latin-1")[:200])
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()


class Datagrams(asyncio.DatagramProtocol):
    """Whatever arrives was a leak."""

    def __init__(self, outside: Outside, port: int) -> None:
        self._outside, self._port = outside, port

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self._outside.record(server="udp", port=self._port, data=data.hex()[:200], source=str(addr))


def registry(path: str, host: str) -> tuple[str, bytes]:
    """One package, `tiny`, as PyPI's simple index and npm's registry have it."""
    packed = io.BytesIO()
    if path == "/simple/tiny/":
        return (
            "text/html",
            f'<a href="https://{host}/files/tiny-1.0-py3-none-any.whl">tiny-1.0-py3-none-any.whl</a>'.encode(),
        )
    if path.startswith("/files/"):
        with zipfile.ZipFile(packed, "w") as wheel:
            wheel.writestr("tiny.py", "said = 'tiny here'\n")
            wheel.writestr("tiny-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n")
            wheel.writestr("tiny-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            wheel.writestr("tiny-1.0.dist-info/RECORD", "")
        return "application/zip", packed.getvalue()
    if path.endswith(".tgz"):
        with tarfile.open(fileobj=packed, mode="w:gz") as package:
            for name, content in (
                ("package.json", '{"name": "tiny", "version": "1.0.0"}'),
                ("index.js", "module.exports = 1"),
            ):
                about = tarfile.TarInfo(f"package/{name}")
                about.size = len(content)
                package.addfile(about, io.BytesIO(content.encode()))
        return "application/octet-stream", packed.getvalue()
    dist = {"tarball": f"https://{host}/npm/tiny/-/tiny-1.0.0.tgz"}
    versions = {"1.0.0": {"name": "tiny", "version": "1.0.0", "dist": dist}}
    return "application/json", json.dumps(
        {"name": "tiny", "dist-tags": {"latest": "1.0.0"}, "versions": versions}
    ).encode()


def certificates(directory: Path) -> ssl.SSLContext:
    """A CA of this run and one leaf for every name."""
    now = datetime.datetime.now(datetime.UTC)
    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    ca_name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "Nucleus test CA")])

    def builder(name: x509.Name, public: Any) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder().subject_name(name).issuer_name(ca_name).public_key(public)
            .serial_number(x509.random_serial_number()).not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=2))
        )  # fmt: skip

    ca = (
        builder(ca_name, ca_key.public_key())
        .add_extension(x509.BasicConstraints(True, 0), True)
        .add_extension(x509.KeyUsage(True, False, False, False, False, True, True, False, False), True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(ca_key.public_key()), False)
        .sign(ca_key, hashes.SHA256())
    )
    alternatives = x509.SubjectAlternativeName([x509.DNSName(name) for name in NAMES if name != "badcert.test"])
    leaf = (
        builder(x509.Name([]), key.public_key())
        .add_extension(alternatives, True)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), False)
        .sign(ca_key, hashes.SHA256())
    )
    (directory / "ca.pem").write_bytes(ca.public_bytes(serialization.Encoding.PEM))
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (directory / "leaf.pem").write_bytes(leaf.public_bytes(serialization.Encoding.PEM) + pem)
    (directory / "leaf.pem").chmod(0o600)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(directory / "leaf.pem")
    context.sni_callback = lambda made, name, _: setattr(made, "told", name)
    return context


def enter(directory: Path) -> None:
    """The namespaces of this world: addresses on lo, a hosts file, a store that trusts the CA."""
    syscalls.unshare(syscalls.CLONE_NEWNET | syscalls.CLONE_NEWNS)
    syscalls.mount("", "/", "", syscalls.MS_REC | syscalls.MS_PRIVATE)
    lines = ["127.0.0.1 localhost", *(f"{at} {name}" for name, found in NAMES.items() for at in found)]
    (directory / "hosts").write_text("\n".join(lines) + "\n")
    (directory / "nsswitch.conf").write_text("passwd: files\ngroup: files\nhosts: files dns\n")
    (directory / "resolv.conf").write_text("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
    for name in ("hosts", "nsswitch.conf", "resolv.conf"):
        syscalls.mount(str(directory / name), f"/etc/{name}", "", syscalls.MS_BIND)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    for address in ADDRESSES:
        subprocess.run(["ip", "address", "add", f"{address}/32", "dev", "lo"], check=True)


def trusted(directory: Path) -> None:
    """This world's system store trusts the CA of `certificates`."""
    store = Path("/etc/ssl/certs/ca-certificates.crt")
    joined = directory / "store.pem"
    joined.write_bytes((store.read_bytes() if store.exists() else b"") + (directory / "ca.pem").read_bytes())
    if store.exists():
        syscalls.mount(str(joined), str(store), "", syscalls.MS_BIND)


async def ssh(directory: Path, outside: Outside) -> None:
    """git over SSH at port 2222, for whoever has the key that lies in the directory."""
    import asyncssh

    server, client = (asyncssh.generate_private_key("ssh-ed25519") for _ in range(2))
    (directory / "ssh_host_key.pub").write_bytes(server.export_public_key())
    (directory / "ssh_client_key").write_bytes(client.export_private_key())
    (directory / "ssh_authorized").write_bytes(client.export_public_key())

    async def run(process: Any) -> None:
        outside.record(server="ssh", command=process.command)
        verb, _, path = str(process.command).partition(" ")
        repository = str(outside.repositories / path.strip("'"))
        words = ["git", "-c", "safe.directory=*", verb.removeprefix("git-"), repository]
        child = await asyncio.create_subprocess_exec(*words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        await process.redirect(stdin=child.stdin, stdout=child.stdout)
        process.exit(await child.wait())

    await asyncssh.listen(
        "0.0.0.0", 2222, server_host_keys=[server], authorized_client_keys=str(directory / "ssh_authorized"),
        process_factory=run, encoding=None,
    )  # fmt: skip


async def main(directory: Path, context: ssl.SSLContext) -> None:
    """Serve until stdin ends."""
    outside = Outside(directory)
    servers = [await asyncio.start_server(outside.http, "0.0.0.0", port) for port in (80, 8080)]
    servers += [await asyncio.start_server(outside.http, "0.0.0.0", port, ssl=context) for port in (443, 8443)]
    servers += [await asyncio.start_server(outside.echo, "0.0.0.0", port) for port in (22, 5432, 9999)]
    await ssh(directory, outside)
    loop = asyncio.get_running_loop()
    for port in (53, 443, 9999):
        await loop.create_datagram_endpoint(lambda port=port: Datagrams(outside, port), local_addr=("0.0.0.0", port))
    print("ready", flush=True)
    await loop.run_in_executor(None, sys.stdin.read)
    os._exit(0)


if __name__ == "__main__":
    where = Path(sys.argv[1])
    enter(where)
    made = certificates(where)
    trusted(where)
    asyncio.run(main(where, made))
