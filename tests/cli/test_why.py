"""`nucleus why` on logs as the authority writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nucleus.cli import main as cli


def record(event: str, **more: Any) -> dict[str, Any]:
    return {
        "v": 1, "seq": 1, "time_ns": 1_700_000_000_000_000_000, "pod": "pod-1", "event": event, "request_id": "r1",
        "operation": {}, "decision": {}, "outcome": {}, **more,
    }  # fmt: skip


CONNECT = record(
    "denied",
    request_id="r2",
    operation={"kind": "connect", "host": "evil.test", "port": 22, "method": "\x1b[31m"},
    decision={"verdict": "deny", "rule": "network.allow", "detail": "network.allow: nothing covers evil.test:22"},
    outcome={"status": "denied", "rule": "network.allow", "reason": "the policy lists no connection to this host"},
)
READ = record(
    "denied", operation={"kind": "read", "path": ".env"}, decision={"verdict": "deny", "rule": "paths.block"},
    outcome={"status": "denied", "reason": "this path is blocked by the policy"},
)  # fmt: skip
FINE = record("outcome", outcome={"status": "ok"})


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NUCLEUS_STATE", str(tmp_path))
    return tmp_path


def write(state: Path, *records: dict[str, Any], tail: str = "") -> None:
    (state / "audit.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records) + tail)


def why(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = cli.main(["why", *arguments])
    out, err = capsys.readouterr()
    return code, out, err


def test_the_last_refusal(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(state, READ, CONNECT, FINE, tail='{"half a li')
    code, out, _ = why(capsys, "--last")
    assert code == 0
    assert "rule:   network.allow" in out
    assert "- evil.test:22" in out
    assert "\x1b" not in out


def test_of_a_pod_and_of_a_request(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(state, READ, CONNECT)
    assert "paths.block" in why(capsys, "--request", "r1")[1]
    assert why(capsys, "--pod", "other")[0] == 1
    data = json.loads(why(capsys, "--json")[1])
    assert data["record"]["request_id"] == "r2"
    assert data["next_step"].endswith("- evil.test:22")


def test_nothing_refused_no_log_and_bad_words(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = why(capsys)
    assert code == 6
    assert "cannot be read" in err
    write(state, FINE)
    code, _, err = why(capsys)
    assert code == 1
    assert "nothing was refused" in err
    assert why(capsys, "x")[0] == 2


@pytest.mark.parametrize(
    ("host", "port", "line"),
    [
        ("a.com", 443, "a.com"), ("a.com", 22, "a.com:22"), ("10.0.0.1", 80, "10.0.0.1/32:80"),
        ("fd00::1", 443, '"[fd00::1/128]:443"'),
    ],
)  # fmt: skip
def test_the_line_to_add_is_a_rule(host: str, port: int, line: str) -> None:
    from nucleus.cli.why import line_to_add
    from nucleus.lattice.network import covers, parse_target

    assert line_to_add({"host": host, "port": port}) == line
    name, found = parse_target(line.strip('"'))
    assert found == port
    assert covers(name, host)
