"""Whoever answers in PostgreSQL's place: another user of this host who took the port while the server was down."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from .given import Book, secret

Captured = pytest.CaptureFixture[str]
PASSWORD = "the-real-password"
OK = b"R\0\0\0\x08\0\0\0\0"
READY = b"Z\0\0\0\x05I"


class Impostor:
    """Says `script` one part after the other, each after it has heard something; keeps all that it hears."""

    def __init__(self, *script: bytes, flood: bool = False) -> None:
        self.heard, self.said = b"", 0
        self._script, self._flood = (b"N", *script), flood  # no TLS
        self._door = socket.create_server(("127.0.0.1", 0))
        self._door.settimeout(20)
        self.to = f"postgresql://shipper@127.0.0.1:{self._door.getsockname()[1]}/audit"
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        try:
            found = self._door.accept()[0]
            with found:
                found.settimeout(10)
                for part in self._script:
                    self.heard += found.recv(65_536)
                    found.sendall(part)
                while self._flood and self.said < 1 << 28:
                    self.said += found.send(bytes(1 << 20))
                while more := found.recv(65_536):
                    self.heard += more
        except OSError:
            pass

    def close(self) -> None:
        self._door.close()
        self._thread.join(30)


@pytest.fixture
def book(tmp_path: Path) -> Iterator[Book]:
    made = Book(tmp_path)
    yield made.write(3, principal="spiffe://nucleus.local/of-the-record")
    made.close()


@pytest.mark.parametrize(
    "script",
    [
        (b"R\0\0\0\x08\0\0\0\3",),
        (b"R\0\0\0\x0c\0\0\0\5salt",),
        (OK + READY, b"C\0\0\0\x08SET\0" + READY, *[b"T\0\0\0\6\0\0" + b"C\0\0\0\x08SET\0" + READY] * 8),
    ],
    ids=["asks for it in clear", "asks for its hash", "asks for nothing"],
)
def test_an_impostor_gets_neither_password_nor_records(
    script: tuple[bytes, ...], book: Book, tmp_path: Path, capsys: Captured
) -> None:
    impostor = Impostor(*script)
    try:
        assert book.ship(impostor.to, "--secret", secret(tmp_path, PASSWORD)) == 4
    finally:
        impostor.close()
    assert PASSWORD.encode() not in impostor.heard
    assert b"md5" not in impostor.heard
    assert b"CREATE" not in impostor.heard
    assert b"of-the-record" not in impostor.heard
    assert PASSWORD not in "".join(capsys.readouterr())


def test_an_answer_without_an_end_is_not_kept(book: Book) -> None:
    impostor = Impostor(OK + READY, b"D\x7f\xff\xff\xff", flood=True)
    try:
        assert book.ship(impostor.to) == 4
    finally:
        impostor.close()
    assert impostor.said < 1 << 26


@pytest.mark.parametrize(
    "answer", [b"R\0\0\0\4", b"R\xff\xff\xff\xff", b"?\0\0\0\4", b"E\0\0\0\4", b"R\0\0\0\x0c\0\0\0\x0a\xff\xff\0\0"]
)
def test_what_is_not_its_protocol_is_another_try_later(answer: bytes, book: Book, tmp_path: Path) -> None:
    impostor = Impostor(answer)
    try:
        assert book.ship(impostor.to, "--secret", secret(tmp_path, PASSWORD)) == 4
    finally:
        impostor.close()
