"""`web_search` against searx itself (Debian's), which searches an engine of this world."""

from __future__ import annotations

import secrets
import shutil
from pathlib import Path

import pytest
import yaml

from integration.held import Held
from integration.world import World

from .conftest import end, ready

POLICY = """
version: 1
name: searx
capabilities: {web_search: always}
trifecta: session
network:
  allow:
    - {service: searxng, host: search.test, port: 8888, protocol: http}
"""
EXAMPLE = Path("/usr/share/doc/searx/examples/settings.yml")
LOCAL = {
    "name": "local", "engine": "json_engine", "shortcut": "l", "categories": "general", "results_query": "results",
    "search_url": "http://search.test/search?q={query}&format=json", "url_query": "url", "title_query": "title",
    "content_query": "content", "enable_http": True,
}  # fmt: skip


def test_a_search(world: World) -> None:
    if shutil.which("searx-run") is None or not EXAMPLE.exists():
        pytest.skip("searx is not installed (Debian package)")
    settings = world.outside / "searx.yml"
    made = yaml.safe_load(EXAMPLE.read_text())
    made["engines"] = [LOCAL]
    made["search"] |= {"formats": ["html", "json"]}
    made["server"] |= {"bind_address": "0.0.0.0", "port": 8888, "secret_key": secrets.token_hex(16)}
    settings.write_text(yaml.safe_dump(made))
    server = world.server("searx-run", SEARX_SETTINGS_PATH=str(settings))
    try:
        ready(world, server, "http://search.test:8888/")
        with Held(world, policy=world.policy(POLICY)) as held:
            answer = held.operate(kind="web_search", query="what & is=it")
        assert answer["status"] == "ok", (answer, (world.outside / "server.log").read_text()[-2_000:])
        titles = [one["title"] for one in answer["result"]["results"]]
        assert titles, (answer, (world.outside / "server.log").read_text()[-3_000:])
    finally:
        end(server)
