from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from integration.postgres import keep_in
from nucleus.authority.identities import Issuer
from nucleus.authority.peers import APPROVER, GATE
from nucleus.authority.service import Service
from nucleus.errors import NucleusError
from nucleus.frames import Frame
from nucleus.store.audit_log import AuditLog
from nucleus.store.ledger import Ledger

from .harness import HASH, TRUST_DOMAIN, WHO, Authority, state_directory


@pytest.fixture
def state() -> Iterator[Path]:
    # pytest's own directories are 0700 root's: the authority's uid could not walk them.
    top = Path(tempfile.mkdtemp(prefix="authority-"))
    top.chmod(0o755)
    yield state_directory(top / "state")
    shutil.rmtree(top)


@pytest.fixture
def start(state: Path) -> Iterator[Callable[..., Authority]]:
    running: list[Authority] = []

    def make(**options: Any) -> Authority:
        authority = Authority(state, **options)
        running.append(authority)
        return authority

    yield make
    for authority in running:
        if authority.process.poll() is None:
            authority.stop()


@pytest.fixture
def authority(start: Callable[..., Authority]) -> Authority:
    return start()


class Ear:
    """A channel that keeps what it is sent."""

    def __init__(self, kind: str, *, pod: str = "", uid: int = -1) -> None:
        self.kind, self.pod, self.uid = kind, pod, uid
        self.attested = None
        self.answers_only = False
        self.seen: list[dict[str, Any]] = []

    def send(self, header: dict[str, Any]) -> None:
        self.seen.append(header)

    def answer(self, ident: int, ok: dict[str, Any]) -> None:
        self.send({"id": ident, "ok": ok})

    def fail(self, ident: int, error: NucleusError) -> None:
        self.send({"id": ident, "error": {"code": error.code, "rule": error.rule}})

    def shut(self) -> None:
        self.seen.append({"shut": True})


class TestService(Service):
    """The service with its clocks in our hand."""

    __test__ = False

    def __init__(self, directory: str) -> None:
        self.wall, self.mono = 10**18, 10**9
        ledger = Ledger(directory)
        ledger.load()
        log = AuditLog(directory)
        super().__init__(ledger, log, Issuer(directory, TRUST_DOMAIN), TRUST_DOMAIN, lambda: (self.wall, self.mono))

    def pass_time(self, wall: int, mono: int) -> None:
        self.wall += wall
        self.mono += mono

    def frame(self, channel: Any, ident: int, **header: Any) -> None:
        if header["op"] == "ask":
            header = {
                "operation": {"kind": "run"},
                "operation_hash": HASH,
                "principal": WHO,
                "decision": {"rule": "r", "reason": "why"},
                "display": ["x"],
                **header,
            }
        self.turn([(channel, Frame({"id": ident, **header}))])


@pytest.fixture(params=["sqlite", "postgres"])
def in_process(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[tuple[TestService, Ear, Ear]]:
    tmp_path.chmod(0o700)
    if request.param == "postgres":
        keep_in(request.getfixturevalue("postgres"), tmp_path)
    service = TestService(str(tmp_path))
    service.register_pod("p1", "default", {})
    gate, approver = Ear(GATE, pod="p1"), Ear(APPROVER, uid=7)
    service.frame(gate, 1, op="open_budget", limit=1000, window_ns=0)
    service.frame(approver, 1, op="watch")
    yield service, gate, approver
    service.ledger.close()
    service.log.close()
