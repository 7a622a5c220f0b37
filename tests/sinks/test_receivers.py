"""Syslog, OTLP, S3 and PostgreSQL: what they get, and what their answers do. Receivers of our own, on loopback."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import select
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from integration.postgres import PASSWORD, Server
from nucleus.cli.audit import main

from .given import Book, Receiver, Web, certificate, secret

Captured = pytest.CaptureFixture[str]
# RFC 5424 section 6, as strict as its ABNF for what we send
MESSAGE = re.compile(
    rb"<(\d{1,3})>1 (\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z) ([!-~]{1,255}) nucleus - ([!-~]{1,32}) "
    rb'\[nucleus@32473((?: [a-z]{1,32}="(?:[^"\\\]]|\\["\\\]])*")*)\] (.*)',
    re.DOTALL,
)


@pytest.fixture
def book(tmp_path: Path) -> Iterator[Book]:
    made = Book(tmp_path)
    yield made
    made.close()


# Syslog


def values(data: bytes) -> dict[str, str]:
    found = re.findall(rb' ([a-z]+)="((?:[^"\\]|\\.)*)"', data)
    return {name.decode(): re.sub(r"\\(.)", r"\1", value.decode()) for name, value in found}


@pytest.mark.parametrize("kind", ["tcp", "tls", "unix"])
def test_syslog_messages_are_those_of_the_rfc(kind: str, book: Book, tmp_path: Path) -> None:
    context, roots = certificate(tmp_path)
    path = str(tmp_path / "log.sock") if kind == "unix" else ""
    receiver = Receiver(context if kind == "tls" else None, path)
    to = f"syslog+unix:{path}" if path else f"syslog+{kind}://localhost:{receiver.port}"
    more = ("--roots", roots) if kind == "tls" else ()
    try:
        book.write(5, principal='spiffe://x/"]\\\n\u202e\ud800').write(1, context={"much": "x" * 9_000})
        assert book.ship(to, *more) == 0
        book.write(3)
        assert book.ship(to, *more) == 0
    finally:
        receiver.close()
    found = [MESSAGE.fullmatch(message) for message in receiver.messages]
    assert all(found), receiver.messages
    events = [match[4].decode() for match in found if match]
    kinds = ["outcome", "outcome", "denied"]
    assert events == [*kinds, *kinds, "checkpoint", *kinds, "checkpoint"]
    bodies = [match[6] for match in found if match]
    lines = book.lines()
    assert bodies[:5] == [line.rstrip(b"\n") for line in lines[:5]]
    assert bodies[5] == b'{"cut":true,"bytes":%d}' % (len(lines[5]) - 1)
    facts = [values(match[5]) for match in found if match]
    assert facts[5]["hash"] == json.loads(lines[5])["hash"]
    assert [fact.get("seq") for fact in facts[:6]] == ["1", "2", "3", "4", "5", "6"]
    assert facts[0]["principal"].startswith('spiffe://x/"]\\ ')
    assert {match[1] for match in found if match} == {b"110", b"108", b"109"}  # 13 * 8 and info, warning, notice
    note = Path(f"{book.path}.checkpoints").read_bytes().split(b"\n\n")
    assert base64.b64decode(bodies[6]) == b"\n\n".join(note[2:4]) + b"\n"


def test_a_receiver_that_hangs_up_gets_the_batch_again(book: Book, capsys: Captured) -> None:
    receiver = Receiver()
    receiver.hang_up_after = 3
    to = f"syslog+tcp://127.0.0.1:{receiver.port}"
    try:
        book.write(8)
        codes = [book.ship(to) for _ in range(3)]
    finally:
        receiver.close()
    numbers = [json.loads(match[6])["seq"] for message in receiver.messages if (match := MESSAGE.fullmatch(message))
               and match[4] != b"checkpoint"]  # fmt: skip
    assert codes[-1] == 0
    assert set(codes) <= {0, 4}
    assert set(numbers) == set(range(1, 9))


def test_a_certificate_that_is_not_to_be_trusted_gets_nothing(book: Book, tmp_path: Path, capsys: Captured) -> None:
    context, roots = certificate(tmp_path, "another.example")
    receiver = Receiver(context)
    to = f"syslog+tls://localhost:{receiver.port}"
    try:
        book.write(3)
        assert book.ship(to, "--roots", roots) == 4
        assert "certificate is not accepted" in capsys.readouterr().err
        assert book.ship(to) == 4
    finally:
        receiver.close()
    assert receiver.messages == []


def swallow(door: socket.socket, port: int) -> None:
    """Somebody on the way: passes the handshake on and nothing after it, and ends the connection in good form."""
    client = door.accept()[0]
    with client, socket.create_connection(("127.0.0.1", port)) as server:
        passed = 0
        while passed < 2:  # ClientHello, Finished
            for end in select.select([client, server], [], [], 5)[0]:
                data = end.recv(65_536)
                (server if end is client else client).sendall(data)
                passed += end is client
        client.settimeout(0.5)
        with suppress(OSError):
            while client.recv(65_536):
                pass
        client.shutdown(socket.SHUT_WR)
        with suppress(OSError):
            client.recv(1)


@pytest.mark.parametrize("more", ["", "?close=abrupt"])
def test_who_cuts_tls_on_the_way_is_not_taken_for_the_receiver(more: str, book: Book, tmp_path: Path) -> None:
    context, roots = certificate(tmp_path)
    receiver = Receiver(context)
    door = socket.create_server(("127.0.0.1", 0))
    between = threading.Thread(target=swallow, args=(door, receiver.port))
    between.start()
    try:
        book.write(3)
        if not more:
            assert book.ship(f"syslog+tls://localhost:{door.getsockname()[1]}", "--roots", roots) == 4
            assert book.sent()["seq"] == 0
            assert receiver.messages == []
        else:  # what that option is for
            receiver.abrupt = True
            assert book.ship(f"syslog+tls://localhost:{receiver.port}{more}", "--roots", roots) == 0
            socket.create_connection(door.getsockname()).close()
    finally:
        between.join(20)
        door.close()
        receiver.close()


# OTLP


def test_otlp_records_and_the_answers_that_stop_or_delay_them(book: Book, tmp_path: Path, capsys: Captured) -> None:
    answers: list[tuple[int, dict[str, str], bytes]] = [
        (503, {"Retry-After": "3"}, b""),
        (429, {}, b""),
        (200, {}, b'{"partialSuccess":{}}'),
        (200, {}, b"{}"),
        (200, {}, b'{"partialSuccess":{"rejectedLogRecords":"2","errorMessage":"too old"}}'),
        (400, {}, b""),
        (307, {"Location": "http://192.0.2.1/"}, b""),
        (200, {}, b"<html>"),
        (200, {}, b'{"partialSuccess":{"rejectedLogRecords":1e999}}'),
        (200, {"Content-Length": "100"}, b"{"),
    ]
    web = Web(lambda *_: answers.pop(0))
    to, token = f"otlp+http://localhost:{web.port}", secret(tmp_path, "Authorization: Bearer s3cret-token")
    try:
        book.write(5, principal="\0\ud800")
        assert [book.ship(to, "--secret", token) for _ in range(3)] == [4, 4, 0]
        book.write(2)
        assert [book.ship(to, "--secret", token) for _ in range(5)] == [1, 1, 1, 1, 1]
        said = capsys.readouterr()
        assert "rejects 2 of 2 records: too old" in said.out
        assert [line for line in said.out.splitlines() if "answers" in line] == [
            "REFUSED (rejected): the collector answers 400", "REFUSED (rejected): the collector answers 307",
        ]  # fmt: skip
        assert book.ship(to, "--secret", token) == 4
        assert "s3cret" not in said.out + said.err + json.dumps(book.sent())
    finally:
        web.close()
    assert not answers
    method, path, headers, body = web.seen[2]
    assert (method, path, headers["authorization"]) == ("POST", "/v1/logs", "Bearer s3cret-token")
    (resource,) = json.loads(body)["resourceLogs"]
    (scope,) = resource["scopeLogs"]
    first = scope["logRecords"][0]
    line = book.lines()[0].decode().rstrip("\n")
    assert first["body"] == {"stringValue": line}
    assert first["timeUnixNano"] == str(json.loads(line)["time_ns"])
    assert (first["severityNumber"], first["eventName"]) == (9, "nucleus.audit.outcome")
    attributes = {item["key"]: item["value"]["stringValue"] for item in first["attributes"]}
    assert attributes["nucleus.principal"] == "\\u0000\\ud800"
    assert attributes["nucleus.seq"] == "1"
    assert [len(json.loads(body)["resourceLogs"][0]["scopeLogs"][0]["logRecords"]) for *_, body in web.seen[:4]] == [
        5, 5, 5, 1,
    ]  # fmt: skip


# S3


class Store:
    """Objects, as S3 keeps them: nothing is overwritten when that is asked for."""

    def __init__(self) -> None:
        self.objects: dict[str, tuple[bytes, dict[str, str]]] = {}
        self.lose_answers = 0

    def answer(self, method: str, path: str, headers: dict[str, str], body: bytes) -> Any:
        digest = hashlib.sha256(body)
        if method == "HEAD":
            found = self.objects.get(path)
            return (200, found[1], b"") if found else (404, {}, b"")
        if headers["x-amz-content-sha256"] != digest.hexdigest():
            return 400, {}, b"<Error/>"
        if headers["x-amz-checksum-sha256"] != base64.b64encode(digest.digest()).decode():
            return 400, {}, b"<Error/>"
        if path in self.objects and headers.get("if-none-match") == "*":
            return 412, {}, b"<Error/>"
        self.objects[path] = (body, {"x-amz-meta-sha256": headers["x-amz-meta-sha256"]})
        if self.lose_answers:
            self.lose_answers -= 1
            return 503, {}, b"<Error/>"
        return 200, {}, b""


def test_s3_objects_put_together_are_the_log(book: Book, tmp_path: Path, capsys: Captured) -> None:
    store = Store()
    context, roots = certificate(tmp_path)
    web = Web(store.answer, context)
    keys = secret(tmp_path, "AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY")
    to = f"s3://audit-logs/one%20host?region=eu-central-1&endpoint=https://localhost:{web.port}"
    more = ("--secret", keys, "--roots", roots)
    try:
        store.lose_answers = 1
        book.write(7)
        assert book.ship(to, *more) == 4  # it was stored, and the answer lost
        book.write(5)
        assert book.ship(to, *more) == 0
        names = sorted(store.objects)
        assert names == [
            "/audit-logs/one%20host/000000000001-000000000007.jsonl",
            "/audit-logs/one%20host/000000000008-000000000012.jsonl",
            "/audit-logs/one%20host/checkpoints/000000000012",
        ]
        assert b"".join(store.objects[name][0] for name in names[:2]) == b"".join(book.lines())
        together, pin = tmp_path / "together.jsonl", tmp_path / "pin"
        together.write_bytes(b"".join(store.objects[name][0] for name in names[:2]))
        pin.write_bytes(store.objects[names[2]][0])
        key = ("--key", f"{book.path}.vkey")
        assert main(["verify", str(together), "--checkpoint", str(pin), *key]) == 0
        book.write(2)
        store.objects["/audit-logs/one%20host/000000000013-000000000014.jsonl"] = (b"x", {"x-amz-meta-sha256": "0"})
        assert book.ship(to, *more) == 1
        assert "is there already, with other contents" in capsys.readouterr().out
    finally:
        web.close()
    assert web.seen[0][2]["authorization"].startswith("AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/")
    assert all("wJalr" not in json.dumps(headers) for _, _, headers, _ in web.seen)


# PostgreSQL


def test_rows_come_once_and_none_is_changed(book: Book, postgres: Server, tmp_path: Path, capsys: Captured) -> None:
    schema = "ship"
    to = postgres.url(schema)
    book.write(5, principal="\0\ud800'; DROP TABLE x")
    assert book.ship(to) == 0
    state = (book.state / "ship.json").read_bytes()
    book.write(1_200)
    assert book.ship(to) == 0
    (book.state / "ship.json").write_bytes(state)  # as after a crash: the same come again
    assert book.ship(to) == 0
    count = postgres.sql(f"SELECT count(*), min(seq), max(seq) FROM {schema}.records")
    assert count == "1205|1|1205"
    lines = postgres.sql(f"SELECT line FROM {schema}.records ORDER BY seq").splitlines()
    assert [line.encode() + b"\n" for line in lines] == book.lines()
    assert postgres.sql(f"SELECT principal FROM {schema}.records WHERE seq=1") == "\\u0000\\ud800'; DROP TABLE x"
    assert postgres.sql(f"SELECT max(size) FROM {schema}.checkpoints") == "1205"
    postgres.sql(f"UPDATE {schema}.records SET pod='other', line='other' WHERE seq=1205")
    (book.state / "ship.json").write_bytes(state)
    capsys.readouterr()
    assert book.ship(to) == 1
    assert "has other records where these belong" in capsys.readouterr().out


def test_a_role_that_may_only_add_is_enough_and_a_server_that_restarts_gets_the_rest(
    book: Book, postgres: Server, tmp_path: Path, capsys: Captured
) -> None:
    schema = "shipadd"
    book.write(3)
    assert book.ship(postgres.url(schema)) == 0
    postgres.sql(
        f"GRANT USAGE ON SCHEMA {schema} TO guarded",
        f"GRANT SELECT, INSERT ON ALL TABLES IN SCHEMA {schema} TO guarded",
    )
    to = postgres.url(schema).replace("user=nucleus", "user=guarded")
    other = book.state.parent / "other"
    other.mkdir(0o700)
    argv = ["ship", "--state", str(other), "--log", book.path, "--to", to]
    assert main([*argv, "--secret", secret(tmp_path, "wrong")]) == 4
    password = secret(tmp_path, PASSWORD)
    assert main([*argv, "--secret", password]) == 0
    book.write(3)
    postgres.stop(immediately=True)
    assert main([*argv, "--secret", password]) == 4
    postgres.start()
    assert main([*argv, "--secret", password]) == 0
    assert postgres.sql(f"SELECT count(*) FROM {schema}.records") == "6"
    said = capsys.readouterr()
    assert PASSWORD not in said.out + said.err


# Addresses


@pytest.mark.parametrize(
    "to",
    [
        "", "file:relative", "file://host/x", "gopher://x", "syslog+tcp://logs.example.com:601", "syslog+udp://x",
        "otlp+http://collector.example.com", "syslog+tls://", "syslog+tls://h:99999", "syslog+tls://h?max=1",
        "syslog+tls://h?min=1", "s3://bucket", "s3://B?region=x", "s3://bucket?region=eu&endpoint=http://far.example",
        "s3://bucket?region=eu", "postgresql://u:pw@h/d", "postgresql://u@h/d?sslmode=disable",
        "otlp+https://user:pw@h", "otlp+https://token@h", "syslog+tls://h#x", "postgresql://h/d",
    ],
)  # fmt: skip
def test_an_address_that_is_none_or_not_safe_is_refused(book: Book, to: str, capsys: Captured) -> None:
    book.write(1)
    assert book.ship(to) == 2
    said = capsys.readouterr()
    assert "pw" not in said.err
    assert not (book.state / "ship.json").exists()


def test_a_secret_that_others_can_read_is_refused(book: Book, tmp_path: Path, capsys: Captured) -> None:
    book.write(1)
    path = Path(secret(tmp_path, "Authorization: x"))
    path.chmod(0o644)
    assert book.ship("otlp+http://localhost:1", "--secret", str(path)) == 2
    assert "closed to others" in capsys.readouterr().err
    for text in ("no colon here", "Host: x", "Content-Length: 3", "bad name: x"):
        assert book.ship("otlp+http://localhost:1", "--secret", secret(tmp_path, text)) == 2
