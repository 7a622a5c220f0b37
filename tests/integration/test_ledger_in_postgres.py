"""A ledger in PostgreSQL, by the command line: chosen, used, copied, lost and found again."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from .postgres import PASSWORD, Server
from .site import USER, Site


@pytest.fixture(params=["root", "user"])
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    made = Site(0 if request.param == "root" else USER)
    yield made
    made.close()


def use(site: Site, url: str) -> None:
    site.cli("helper", "stop")
    done = site.cli("ledger", "use", feed=url)
    assert done.returncode == 0, done.stderr
    assert PASSWORD not in done.stdout


def spent(site: Site, name: str) -> int:
    done = site.cli("budget", "list", "--json")
    assert done.returncode == 0, done.stderr
    return int(next(one["spent"] for one in json.loads(done.stdout)["accounts"] if one["account"] == name))


def test_it_is_chosen_and_has_what_the_log_has(site: Site, postgres: Server) -> None:
    schema = "s" + os.urandom(6).hex()
    assert site.exec("true").returncode == 0
    assert site.cli("budget", "create", "acme", "--limit", "1").returncode == 0
    assert site.exec("true", flags=("--budget-account", "acme")).returncode == 0
    before = spent(site, "acme")
    assert before > 0
    use(site, postgres.url(schema))
    assert spent(site, "acme") == before  # put there from the log
    done = site.exec("true", flags=("--budget-account", "acme"))
    assert done.returncode == 0, done.stderr
    assert spent(site, "acme") > before
    assert int(postgres.sql(f"SELECT spent FROM {schema}.accounts WHERE name='acme'")) == spent(site, "acme")
    copy = site.directory / "copy.sqlite3"
    assert site.cli("ledger", "backup", str(copy)).returncode == 0
    for words in ((), (str(copy),)):
        said = json.loads(site.cli("ledger", "check", "--json", *words).stdout)
        assert (said["ok"], said["accounts"]) == (True, 1)
    assert site.verify().returncode == 0
    site.cli("helper", "stop")
    assert json.loads(site.cli("ledger", "check", "--json").stdout)["ok"]  # by nobody's authority
    now = spent(site, "acme")
    site.cli("helper", "stop")
    done = site.cli("ledger", "use", "--file")
    assert done.returncode == 0, done.stderr
    assert spent(site, "acme") == now  # and back again
    assert site.verify().returncode == 0


def test_a_server_that_goes_away_refuses_and_is_found_again(site: Site, postgres: Server) -> None:
    use_schema = "s" + os.urandom(6).hex()
    assert site.exec("true").returncode == 0
    use(site, postgres.url(use_schema))
    assert site.exec("true").returncode == 0
    postgres.stop(immediately=True)
    try:
        done = site.exec("touch", "made")
        assert done.returncode not in (0, 1)
        assert "audit_unavailable" in done.stderr, done.stderr
        assert not (site.workspace / "made").exists()
    finally:
        postgres.start()
    for _ in range(40):
        if (done := site.exec("touch", "made")).returncode == 0:
            break
        time.sleep(0.25)
    assert done.returncode == 0, done.stderr
    assert site.verify().returncode == 0


def test_a_url_that_does_not_work_changes_nothing(site: Site, postgres: Server) -> None:
    assert site.exec("true").returncode == 0
    site.cli("helper", "stop")
    for url, rule in (
        (f"postgresql://guarded:{PASSWORD}x@/postgres?host={postgres.socket}", "ledger.connect"),
        ("postgresql://u@db.example/d?sslmode=disable", "ledger.url"),
        ("", "ledger.url"),
    ):
        done = site.cli("ledger", "use", feed=url)
        assert done.returncode != 0
        assert f"rule: {rule}" in done.stderr
        assert PASSWORD not in done.stderr
        assert not (site.directory / "state/ledger.url").exists()
    assert site.exec("true").returncode == 0
    running = site.cli("ledger", "use", feed=postgres.url("x"))
    assert "rule: store.locked" in running.stderr


def test_a_password_is_in_one_file_of_the_authoritys_alone(root_site: Site, postgres: Server) -> None:
    assert root_site.exec("true").returncode == 0
    url = f"postgresql://guarded:{PASSWORD}@/postgres?host={postgres.socket}&schema=s{os.urandom(6).hex()}"
    use(root_site, url)
    assert root_site.exec("true").returncode == 0
    state = root_site.directory / "state"
    with_it = [path for path in state.rglob("*") if path.is_file() and PASSWORD.encode() in path.read_bytes()]
    assert with_it == [state / "ledger.url"]
    facts = with_it[0].stat()
    assert (facts.st_mode & 0o777, facts.st_uid) == (0o600, state.stat().st_uid)
    found = 0
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes() + Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:
            continue
        found += PASSWORD.encode() in words
    assert found == 0
