"""`web_fetch` through the gateway: what a policy lists is fetched, what it does not is asked, redirects are decided."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from .held import Held
from .world import World

POLICY = """\
version: 1
name: fetches
capabilities: {web_fetch: always}
hosts:
  allow: [allowed.test, private.test, meta.test, loop.test, mixed.test, api.test, badcert.test]
  deny: [evil.test]
trifecta: provenance
"""
TASK = "Read https://allowed.test and https://api.test"


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    made = World()
    try:
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def held(world: World) -> Iterator[Held]:
    with Held(world, policy=world.policy(POLICY), spec={"task": TASK}) as made:
        yield made


def fetch(held: Held, url: str, **more: Any) -> dict[str, Any]:
    return held.operate(kind="web_fetch", url=url, **more)


def test_text(held: Held, world: World) -> None:
    reply = fetch(held, "https://allowed.test/plain")
    assert reply["status"] == "ok", reply
    assert reply["result"]["content"] == "hello from allowed.test/plain\n"
    assert reply["result"]["status"] == 200
    (seen,) = world.seen(target="/plain")
    assert seen["sni"] == "allowed.test"
    assert not {"cookie", "authorization"} & set(seen["headers"])


def test_a_page_is_readable(held: Held) -> None:
    content = fetch(held, "https://allowed.test/page")["result"]["content"]
    assert "# Head" in content
    assert "One & two" in content
    assert "evil()" not in content


def test_charset_and_other_types(held: Held) -> None:
    assert fetch(held, "https://allowed.test/latin")["result"]["content"] == "café"
    image = fetch(held, "https://allowed.test/image")["result"]
    assert (image["content"], image["encoding"], image["content_type"]) == ("", "none", "image/png")
    assert fetch(held, "https://allowed.test/image", raw=True)["result"]["content"].startswith("iVBORw0K")


def test_size_is_capped(held: Held) -> None:
    result = fetch(held, "https://allowed.test/big", limit=1000)["result"]
    assert (len(result["content"]), result["truncated"]) == (1000, True)


def test_time_is_capped(held: Held) -> None:
    reply = fetch(held, "https://allowed.test/slow?20", timeout_ms=300)
    assert reply["kind"] == "operation_failed"
    assert reply["rule"] == "network.timeout"


def test_a_redirect_is_decided(held: Held, world: World) -> None:
    there = fetch(held, "https://allowed.test/redirect?to=https://api.test/there")
    assert there["status"] == "ok", there
    assert there["result"]["url"] == "https://api.test/there"
    for target, rule in (("https://evil.test/x", "hosts.deny"), ("http://169.254.169.254/latest", "hosts.allow")):
        refused = fetch(held, f"https://allowed.test/redirect?to={target}")
        assert refused["rule"] == rule, refused
    assert not world.seen(address="93.184.216.66")


def test_a_loop_of_redirects_ends(held: Held) -> None:
    reply = fetch(held, "https://allowed.test/redirect?to=/redirect?to=/redirect")
    assert reply["kind"] in ("operation_failed", "denied"), reply


@pytest.mark.parametrize("name", ["private.test", "meta.test", "loop.test", "mixed.test"])
def test_a_listed_name_that_leads_inside_is_refused(held: Held, world: World, name: str) -> None:
    reply = fetch(held, f"http://{name}/inside")
    assert reply["kind"] == "no_egress" or "not public" in json.dumps(reply), reply
    assert not world.seen(target="/inside")


def test_the_certificate_is_checked(held: Held) -> None:
    reply = fetch(held, "https://badcert.test/")
    assert reply["kind"] == "operation_failed"
    assert "certificate" in reply["error"]


def test_an_unlisted_host_and_a_body_ask(held: Held, world: World) -> None:
    assert fetch(held, "https://other.test/")["kind"] == "approval_required"
    assert fetch(held, "https://evil.test/")["rule"] == "hosts.deny"
    assert not world.seen(address="93.184.216.35")


def test_it_is_charged_and_on_record(held: Held, world: World) -> None:
    reply = fetch(held, "https://allowed.test/charged")
    assert reply["cost"] >= 500
    record = [one for one in world.records() if one["event"] == "outcome"][-1]
    assert record["operation"]["url"] == "https://allowed.test/charged"
