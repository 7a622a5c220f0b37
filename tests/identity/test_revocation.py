"""The list of revoked identities: what it refuses, how long, and what a damaged file comes to."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from nucleus.errors import DeniedError, InvalidError, NucleusError
from nucleus.identity import revocation
from nucleus.identity.revocation import LIFE_NS, DenyList, Revocations, issued_ns, make, new_serial, read_serial

NOW = 1_800_000_000_000_000_000
DOMAIN = "nucleus.local"
NAME = f"spiffe://{DOMAIN}/a"
HOUR_NS = 3_600 * 1_000_000_000


def test_a_serial_number_says_when_and_fits_a_certificate() -> None:
    serials = {new_serial(NOW) for _ in range(1_000)}
    assert len(serials) == 1_000
    assert all(issued_ns(one) == NOW and 0 < one.bit_length() <= 127 for one in serials)
    assert issued_ns(1 << 150) == issued_ns(0) == issued_ns(-1) == 0


@pytest.mark.parametrize("text", ["1F:2e:03", "1f2e03", "1F2E03"])
def test_serial_numbers_as_tools_write_them(text: str) -> None:
    assert read_serial(text) == 0x1F2E03


@pytest.mark.parametrize("text", ["", "0", "g", "1" * 41, "0x1f", "-1", " 1", "1\n", "١"])
def test_what_is_no_serial_number(text: str) -> None:
    assert read_serial(text) is None


@pytest.mark.parametrize(
    "what",
    ["", "zz", 7, None, "spiffe://other/a", f"spiffe://{DOMAIN}", "spiffe://UPPER/a", f"{1 << 150:x}", "abc",
     f"{new_serial(NOW + 1):x}", f"{new_serial(NOW - LIFE_NS):x}"],
)  # fmt: skip
def test_what_cannot_be_revoked(what: object) -> None:
    with pytest.raises(InvalidError):
        make(what, "why", DOMAIN, NOW)


@pytest.mark.parametrize("reason", ["", "  ", "x" * 257, None, 3])
def test_a_revocation_has_a_reason(reason: object) -> None:
    with pytest.raises(InvalidError):
        make(NAME, reason, DOMAIN, NOW)


def test_a_serial_number_until_its_certificate_has_ended(tmp_path: Path) -> None:
    listed = Revocations(str(tmp_path / "r.json"))
    serial = new_serial(NOW)
    listed.add(make(f"{serial:x}", "lost", DOMAIN, NOW + HOUR_NS), NOW + HOUR_NS)
    assert listed.refuses(NAME, serial)
    assert not listed.refuses(NAME, serial + 1)
    listed.check(NAME)  # its workload gets another
    assert [one.until_ns for one in listed.all(NOW + LIFE_NS - 1)] == [NOW + LIFE_NS]
    assert listed.all(NOW + LIFE_NS) == []


def test_a_name_with_all_that_it_had_and_nothing_more_is_issued(tmp_path: Path) -> None:
    path = str(tmp_path / "r.json")
    listed = Revocations(path)
    before, foreign = new_serial(NOW), 1 << 150
    listed.add(make(NAME, "taken over", DOMAIN, NOW), NOW)
    for seen in (listed, Revocations(path)):  # and it outlives the process
        assert seen.refuses(NAME, before)
        assert seen.refuses(NAME, foreign)
        assert not seen.refuses(f"spiffe://{DOMAIN}/b", before)
        with pytest.raises(DeniedError):
            seen.check(NAME)
        assert len(seen.all(NOW + 100 * LIFE_NS)) == 1  # kept until a person restores it
    listed.restore(NAME, NOW + HOUR_NS)
    listed.check(NAME)
    assert listed.refuses(NAME, before)
    assert not listed.refuses(NAME, new_serial(NOW + HOUR_NS))
    with pytest.raises(InvalidError):
        listed.restore(NAME, NOW)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600


def test_the_list_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(revocation, "MAX_SERIALS", 2)
    listed = Revocations(str(tmp_path / "r.json"))
    for _ in range(2):
        listed.add(make(f"{new_serial(NOW):x}", "x", DOMAIN, NOW), NOW)
    with pytest.raises(InvalidError):
        listed.check_new(make(f"{new_serial(NOW):x}", "x", DOMAIN, NOW), NOW)
    listed.check_new(make(f"{new_serial(NOW + LIFE_NS):x}", "x", DOMAIN, NOW + LIFE_NS), NOW + LIFE_NS)


GOOD = {"serial": "ab", "spiffe_id": "", "reason": "x", "at_ns": 1, "until_ns": 2, "blocked": False}


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b'{"version": 2, "revoked": []}', b'{"version": 1, "revoked": {}, "more": 1}',
     *(json.dumps({"version": 1, "revoked": [{**GOOD, **bad}]}).encode() for bad in (
         {"serial": ""}, {"spiffe_id": "spiffe://a/b"}, {"serial": "xyz"}, {"at_ns": "1"}, {"blocked": 1}, {"more": 1},
     )),
     json.dumps({"version": 1, "revoked": [GOOD, GOOD]}).encode()],
)  # fmt: skip
def test_a_damaged_list_is_refused_and_left_as_it_is(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "r.json"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(NucleusError) as caught:
        Revocations(str(path))
    assert caught.value.rule == "identity.revocations"
    assert path.read_bytes() == content


def test_what_a_gate_is_told_is_read_strictly_and_forgotten_in_time() -> None:
    deny = DenyList()
    serial = new_serial(NOW)
    deny.add({"serial": f"{serial:x}", "spiffe_id": "", "at_ns": NOW, "until_ns": NOW + 5})
    deny.prune(NOW + 4)
    assert deny.refuses(NAME, serial)
    deny.prune(NOW + 5)
    assert not deny.refuses(NAME, serial)
    for bad in ({}, {"serial": "", "spiffe_id": "", "at_ns": 1, "until_ns": 2}, {"serial": 5}):
        with pytest.raises(InvalidError):
            deny.add(bad)
