"""Registration entries: what they may say, whom they match, and the file that they are kept in."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from nucleus.errors import InvalidError, NucleusError
from nucleus.identity import entries as module
from nucleus.identity.entries import Entries, Facts, check_selector, make

from .certificates import TRUST_DOMAIN

WEB = f"spiffe://{TRUST_DOMAIN}/web"
CALLER = Facts(1000, 100, frozenset({27, 44}), "/usr/bin/web", "ab" * 32, "p1", 7)


def entry(**changes: Any) -> module.Entry:
    return make({"spiffe_id": WEB, "selectors": ["unix:uid:1000"], **changes}, TRUST_DOMAIN)


@pytest.mark.parametrize(
    "selector",
    [
        "unix:uid:1000",
        "unix:gid:100",
        "unix:supplementary_gid:27",
        "unix:path:/usr/bin/web",
        f"unix:sha256:{'ab' * 32}",
        "nucleus:pod:p1",
    ],
)
def test_each_kind_of_selector_holds_for_its_caller_and_for_nobody_of_whom_nothing_is_known(selector: str) -> None:
    assert check_selector(selector) == selector
    assert CALLER.holds(selector)
    assert not Facts(1, 1).holds(selector)


@pytest.mark.parametrize(
    "selector",
    [
        "", "unix", "unix:uid", "unix:uid:", "unix:uid:01", "unix:uid:-1", "unix:uid:1 ", "unix:uid:4294967295",
        "unix:uid:1_0", "unix:uid:١", "unix:user:root", "UNIX:uid:1", "unix:path:bin", "unix:path:/a/../b",
        "unix:path:/a/", "unix:path:/a\n", "unix:path:/a\0", "unix:sha256:abc", f"unix:sha256:{'AB' * 32}",
        "nucleus:pod:",
        "nucleus:pod:A", "nucleus:pod:a/b", "k8s:ns:x", "unix:path:/" + "a" * 5000,
    ],
)  # fmt: skip
def test_a_selector_that_can_never_hold_is_refused(selector: str) -> None:
    with pytest.raises(InvalidError):
        check_selector(selector)


def test_every_selector_of_an_entry_has_to_hold() -> None:
    both = entry(selectors=["unix:uid:1000", "unix:path:/usr/bin/web"])
    assert both.matches(CALLER)
    assert not both.matches(Facts(1000, 100, path="/usr/bin/other"))
    assert not both.matches(Facts(1001, 100, path="/usr/bin/web"))
    assert not module.Entry("x", WEB, ()).matches(CALLER)


def test_a_hash_is_wanted_only_where_it_would_decide() -> None:
    hashed = entry(selectors=["unix:uid:1000", f"unix:sha256:{'ab' * 32}"])
    assert hashed.wants_hash(Facts(1000, 1, sha256=""))
    assert not hashed.wants_hash(Facts(1000, 1, sha256=None))
    assert not hashed.wants_hash(Facts(1, 1, sha256=""))
    assert not entry().wants_hash(Facts(1000, 1, sha256=""))


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"spiffe_id": "spiffe://other.test/web"}, "identity.trust_domain"),
        ({"spiffe_id": f"spiffe://{TRUST_DOMAIN}"}, "identity.path"),
        ({"spiffe_id": f"spiffe://{TRUST_DOMAIN}/ns/default/sa/gate-p1"}, "identity.reserved"),
        ({"spiffe_id": f"spiffe://{TRUST_DOMAIN}/ns/x/sa/agent-"}, "identity.reserved"),
        ({"spiffe_id": f"spiffe://{TRUST_DOMAIN}/ns/x/sa/orchestrator-p"}, "identity.reserved"),
        ({"spiffe_id": 7}, "spiffe.type"),
        ({"selectors": []}, "identity.entry"),
        ({"selectors": "unix:uid:1"}, "identity.entry"),
        ({"selectors": ["unix:uid:1"] * 17}, "identity.entry"),
        ({"ttl_s": 59}, "identity.ttl"),
        ({"ttl_s": 86_401}, "identity.ttl"),
        ({"ttl_s": True}, "identity.ttl"),
        ({"ttl_s": 3600.0}, "identity.ttl"),
        ({"hint": "a b"}, "identity.entry"),
        ({"more": 1}, "identity.entry"),
    ],
)
def test_an_entry_that_is_not_made(changes: dict[str, Any], rule: str) -> None:
    with pytest.raises(InvalidError) as caught:
        entry(**changes)
    assert caught.value.rule == rule


def test_the_bounds_of_a_life() -> None:
    assert entry().ttl_s == 3_600
    assert (entry(ttl_s=60).ttl_s, entry(ttl_s=86_400).ttl_s) == (60, 86_400)


def test_they_are_kept_and_removed(tmp_path: Path) -> None:
    path = str(tmp_path / "entries.json")
    kept = Entries(path, TRUST_DOMAIN)
    first, second = entry(), entry(spiffe_id=WEB + "2", selectors=["unix:uid:1000", "unix:uid:1000"])
    kept.add(first)
    kept.add(second)
    assert second.selectors == ("unix:uid:1000",)
    assert [one.entry for one in Entries(path, TRUST_DOMAIN).matching(CALLER)] == [first.entry, second.entry]
    assert os.stat(path).st_mode & 0o777 == 0o600
    kept.remove(first.entry)
    assert Entries(path, TRUST_DOMAIN).all() == [second] == kept.all()
    with pytest.raises(InvalidError):
        kept.get(first.entry)
    with pytest.raises(InvalidError):
        kept.check_new(second)
    assert os.listdir(tmp_path) == ["entries.json"]


def test_one_id_once_for_a_caller_and_never_more_than_fit_an_answer(tmp_path: Path) -> None:
    kept = Entries(str(tmp_path / "entries.json"), TRUST_DOMAIN)
    kept.add(entry())
    kept.add(entry(selectors=["unix:gid:100"], ttl_s=60))
    assert [one.ttl_s for one in kept.matching(CALLER)] == [3_600]
    for number in range(40):
        kept.add(entry(spiffe_id=f"{WEB}/{number}"))
    assert len(kept.matching(CALLER)) == module.MATCHES


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{}",
        b'{"version":2,"entries":[]}',
        b'{"version":1,"entries":[{}]}',
        b'{"version":1,"entries":7}',
        b"\xff",
        json.dumps({"version": 1, "entries": [module.Entry("0" * 12, WEB, ("unix:uid:1",)).to_wire()] * 2}).encode(),
        json.dumps({"version": 1, "entries": [module.Entry("x", WEB, ("unix:uid:1",)).to_wire()]}).encode(),
        json.dumps({"version": 1, "entries": [module.Entry("0" * 12, WEB, ()).to_wire()]}).encode(),
    ],
)
def test_a_damaged_file_is_refused_and_left(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "entries.json"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(NucleusError) as caught:
        Entries(str(path), TRUST_DOMAIN)
    assert caught.value.rule == "identity.entries"
    assert path.read_bytes() == content


@pytest.mark.parametrize("how", ["link", "mode", "twice", "directory"])
def test_a_file_that_is_not_ours_alone_is_refused(tmp_path: Path, how: str) -> None:
    path, other = tmp_path / "entries.json", tmp_path / "other"
    other.write_text('{"version":1,"entries":[]}')
    other.chmod(0o600)
    if how == "link":
        path.symlink_to(other)
    elif how == "twice":
        os.link(other, path)
    elif how == "directory":
        path.mkdir()
    else:
        path.write_bytes(other.read_bytes())
        path.chmod(0o640)
    with pytest.raises(NucleusError):
        Entries(str(path), TRUST_DOMAIN)


def test_a_write_that_crashed_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "entries.json"
    Entries(str(path), TRUST_DOMAIN).add(entry())
    (tmp_path / "entries.json.new").write_bytes(b"half")
    kept = Entries(str(path), TRUST_DOMAIN)
    assert len(kept.all()) == 1
    kept.add(entry(spiffe_id=WEB + "/b"))
    assert len(Entries(str(path), TRUST_DOMAIN).all()) == 2
