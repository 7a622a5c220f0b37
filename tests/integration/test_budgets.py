"""Budgets by the public door: accounts, top-ups while a command runs, reports from outside, the ledger's copies."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import time
from collections.abc import Iterator
from typing import Any

import pytest

from .held import Held
from .site import BIN, Site

TICKS = "import time\nfor n in range(60): print(n, flush=True); time.sleep(0.25)"


@pytest.fixture(scope="module", params=[0, 40_322], ids=["root", "user"])
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    site = Site(request.param)
    yield site
    site.close()


def poor(site: Site, limit: str) -> str:
    text = f"version: 1\nname: poor\nextends: codegen\nbudget: {{limit_usd: '{limit}'}}\n"
    return str(site.write(f"../poor-{limit}.yaml", text))


def budget(site: Site, *words: str) -> dict[str, Any]:
    done = site.cli("budget", *words, "--json")
    assert done.returncode == 0, done.stderr
    value: dict[str, Any] = json.loads(done.stdout)
    return value


def account(site: Site, name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(one for one in budget(site, "list")["accounts"] if one["account"] == name)
    return found


def test_commands_of_a_team_spend_what_the_organization_has(site: Site) -> None:
    assert site.cli("budget", "create", "acme", "--limit", "1.00", "--window", "30d").returncode == 0
    assert site.cli("budget", "create", "acme/team", "--limit", "0.000500").returncode == 0
    done = site.exec("true", flags=("--budget-account", "acme/team"))
    assert done.returncode == 0, done.stderr
    spent = account(site, "acme/team")["spent"]
    assert spent > 0
    assert account(site, "acme")["spent"] == spent
    assert account(site, "acme")["window_ns"] == 30 * 86_400 * 10**9
    charged = [r["context"]["charged"] for r in site.records() if r["event"] == "outcome"]
    assert charged[-1] == spent
    for _ in range(5):
        done = site.exec("true", flags=("--budget-account", "acme/team"))
    assert done.returncode == 5
    assert "rule: budget.account" in done.stderr
    assert "nucleus budget top-up acme/team" in done.stderr
    assert site.cli("budget", "top-up", "acme/team", "0.01", "--reason", "more").returncode == 0
    assert site.exec("true", flags=("--budget-account", "acme/team")).returncode == 0
    history = site.cli("budget", "history", "acme/team").stdout
    assert f"top-up acme/team $0.01 by uid:{site.uid}" in history
    assert history.rstrip().splitlines()[0].endswith(": more")


def test_an_account_that_is_none_starts_no_pod(site: Site) -> None:
    done = site.exec("true", flags=("--budget-account", "nobody"))
    assert done.returncode == 2
    assert "rule: budget.account" in done.stderr
    done = site.exec("true", flags=("--budget-account", "../x"))
    assert done.returncode == 2
    assert "rule: budget.name" in done.stderr


@pytest.mark.parametrize(
    "words",
    [("create", "x", "--limit", "NaN"), ("create", "x", "--limit", "1e400"), ("create", "x", "--limit", "inf"),
     ("create", "x", "--limit=-1"), ("create", "x", "--limit", "0.0000001"), ("create", "x"),
     ("create", "X", "--limit", "1"),
     ("create", "x", "--limit", "1", "--window", "0d"), ("create", "x", "--limit", "1", "--window", "1e9d"),
     ("top-up", "x", "0"), ("top-up", "x", "9999999999"), ("top-up", "x", "1", "--id", "a b"), ("charge", "p", "inf"),
     ("charge", "p", "--micro-dollars", "-1"), ("charge", "p", "--micro-dollars", "1.5"), ("show", "none"),
     ("nothing",)],
)  # fmt: skip
def test_what_is_no_amount_or_name_is_refused(site: Site, words: tuple[str, ...]) -> None:
    before = len(site.records())
    done = site.cli("budget", *words)
    assert done.returncode == 2, done.stdout
    assert "rule: " in done.stderr
    assert not [r for r in site.records()[before:] if r["event"] == "budget.changed"]


def test_a_command_runs_as_long_as_it_is_paid_for(site: Site) -> None:
    done = site.cli(
        "exec", "--policy", poor(site, "0.000350"), "--workdir", str(site.workspace), "--", "python3", "-c", TICKS
    )
    assert done.returncode == 5, done.stderr
    assert "rule: budget.exhausted" in done.stderr
    ticks = done.stdout.split()
    assert ticks[:3] == ["0", "1", "2"]
    assert 6 <= len(ticks) <= 20  # 350 pay for 5 s, of which 2 are kept for ending it
    outcome = [r for r in site.records() if r["event"] == "outcome"][-1]
    assert outcome["outcome"]["status"] == "budget_exhausted"
    assert outcome["context"]["charged"] <= outcome["context"]["reserved"] == 350


def test_a_top_up_keeps_a_running_command_going(site: Site) -> None:
    argv = [str(BIN / "nucleus"), "exec", "--policy", poor(site, "0.000351"), "--workdir", str(site.workspace)]
    code = "import time\nfor n in range(24): print(n, flush=True); time.sleep(0.25)"
    with site.start([*argv, "--", "python3", "-c", code]) as child:
        while not (pods := budget(site, "list")["pods"]) or not pods[-1]["reserved"]:
            time.sleep(0.05)
        assert budget(site, "top-up", "--pod", pods[-1]["pod"], "0.01")["limit"] == 10_351
        out, err = child.communicate(timeout=30)
    assert child.returncode == 0, err
    assert out.split() == [str(n) for n in range(24)]
    outcome = [r for r in site.records() if r["event"] == "outcome"][-1]
    assert outcome["context"]["reserved"] > 351
    assert 400 <= outcome["context"]["charged"] <= 500


def test_an_operation_gets_its_partial_output_and_the_rest_of_the_budget_is_free(site: Site) -> None:
    with Held(site, policy=poor(site, "0.000352")) as held:
        reply = held.operate(kind="run", argv=["python3", "-c", TICKS], cwd=".")
        assert (reply["kind"], reply["rule"]) == ("budget_exhausted", "budget.exhausted")
        assert reply["result"]["stdout"].startswith("0\n1\n2\n")
        assert reply["result"]["exit_code"] is None
        pod = budget(site, "show", "--pod", held.start["pod"])["pods"][0]
        assert pod["reserved"] == 0
        assert pod["spent"] <= 352


def test_tokens_used_elsewhere_are_charged_to_a_pod(site: Site) -> None:
    with Held(site, policy=poor(site, "0.010000")) as held:
        pod = held.start["pod"]
        asked = ("charge", pod, "--micro-dollars", "9000", "--reason", "model", "--id", f"usage-{site.uid}")
        assert budget(site, *asked)["charged"] == 9_000
        assert budget(site, *asked)["again"]
        assert budget(site, "show", "--pod", pod)["pods"][0]["spent"] == 9_000
        reply = held.operate(kind="run", argv=["true"], cwd=".", timeout_ms=600_000)
        assert reply["status"] == "ok"  # with what is left
        done = site.cli("budget", "charge", pod, "0.5")
        assert done.returncode == 5
        assert "more was reported than is left" in done.stdout
        assert held.operate(kind="read", path="none")["kind"] == "budget_exhausted"
    record = next(r for r in site.records() if r["context"].get("entry") == f"usage-{site.uid}")
    assert (record["event"], record["principal"]) == ("budget.changed", f"uid:{site.uid}")
    assert site.verify().returncode == 0


def test_an_agent_reaches_no_budget(site: Site) -> None:
    done = site.cli("budget", "create", "agents", "--limit", "0.001000")
    assert done.returncode == 0
    env = {"NUCLEUS_BUDGET_ACCOUNT": "agents"}
    code = "import os; print('account' in str(dict(os.environ)).lower(), os.path.exists('/run/nucleus/helper.sock'))"
    argv = ["/usr/bin/env", *(f"{k}={v}" for k, v in env.items()), str(BIN / "nucleus"), "run", "--profile", "codegen"]
    with site.start([*argv, "--workdir", str(site.workspace), "--", "python3", "-c", code]) as child:
        out, err = child.communicate(timeout=60)
    assert out == "False False\n", err
    started = [r for r in site.records() if r["event"] == "pod.start"][-1]
    assert started["context"]["account"] == "agents"


def test_the_ledger_is_checked_and_backed_up_while_it_runs(site: Site) -> None:
    copy = site.directory / "backup.sqlite3"
    done = site.cli("ledger", "backup", str(copy))
    assert done.returncode == 0, done.stderr
    assert copy.stat().st_mode & 0o777 == 0o600
    before = copy.read_bytes()
    again = site.cli("ledger", "backup", str(copy))
    assert again.returncode == 2
    assert "rule: ledger.exists" in again.stderr
    assert copy.read_bytes() == before
    for words in ((), (str(copy),)):
        said = json.loads(site.cli("ledger", "check", "--json", *words).stdout)
        assert said["ok"], said
        assert said["accounts"] >= 1
    copy.write_bytes(before[:4_096] + os.urandom(4_096) + before[8_192:])
    assert site.cli("ledger", "check", str(copy)).returncode in (1, 6)
    copy.unlink()


def test_a_backup_that_is_put_back_gets_what_came_since_from_the_log(site: Site) -> None:
    copy = site.directory / "older.sqlite3"
    ledger = site.directory / "state/ledger.sqlite3"
    assert site.cli("ledger", "backup", str(copy)).returncode == 0
    assert site.cli("budget", "create", "later", "--limit", "1").returncode == 0
    assert site.exec("true", flags=("--budget-account", "later")).returncode == 0
    spent = account(site, "later")["spent"]
    stop(site)
    owner = ledger.stat()
    for suffix in ("", "-wal"):
        (site.directory / f"state/ledger.sqlite3{suffix}").unlink(missing_ok=True)
    shutil.copy(copy, ledger)
    ledger.chmod(0o600)
    os.chown(ledger, owner.st_uid, owner.st_gid)
    assert account(site, "later")["spent"] == spent
    said = [r for r in site.records() if r["event"] == "recovery" and "behind" in r["outcome"]["status"]]
    assert said[-1]["context"] == {"pods": 1, "entries": 1}
    assert site.verify().returncode == 0


def stop(site: Site) -> None:
    site.cli("helper", "stop")
    assert site.cli("ledger", "check").returncode == 0  # its lock is free, and nobody has it


def test_a_newer_ledger_is_refused_with_what_to_do(site: Site) -> None:
    stop(site)
    path = site.directory / "state/ledger.sqlite3"
    kept = path.read_bytes()
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version=99")
    db.close()
    newer = path.read_bytes()
    done = site.exec("true")
    assert done.returncode == 6
    assert "rule: ledger.newer" in done.stderr
    assert "next: Run the newer nucleus" in done.stderr
    assert path.read_bytes() == newer
    site.cli("helper", "stop")
    path.write_bytes(kept)
    assert site.exec("true").returncode == 0


REPORT = """
import json
from nucleus.sdk.client import Gate, GateError
gate, said = Gate(), []
for fields in ({"id": "u-1", "micro_dollars": 400}, {"id": "u-1", "micro_dollars": 400, "reason": ""},
               {"id": "u-1", "micro_dollars": 401}, {"id": "u-2", "micro_dollars": 1.5}, {"id": "u-2"},
               {"id": "u-2", "micro_dollars": 1, "pod": "other"}, {"id": "u-3", "micro_dollars": 10**9}):
    try:
        said.append(gate.exchange("charge", fields))
    except GateError as error:
        said.append(error.code)
print(json.dumps(said))
"""


def test_an_orchestrator_reports_what_it_used_under_its_own_name(site: Site) -> None:
    argv = ("serve", "--policy", poor(site, "0.001000"), "--workdir", str(site.workspace))
    done = site.cli(*argv, "--", str(BIN / "python"), "-c", REPORT)
    assert done.returncode == 0, done.stderr
    first, again, other, *bad, last = json.loads(done.stdout)
    assert first == {"charged": 400, "unpaid": 0, "free": 600}
    assert again == {**first, "again": True}
    assert {other, *bad} == {"invalid_request"}
    assert last == {"charged": 600, "unpaid": 10**9 - 600, "free": 0}
    records = [r for r in site.records() if r["event"] == "budget.changed"][-2:]
    assert [r["context"]["charged"] for r in records] == [400, 600]
    assert all(r["principal"].endswith(f"/sa/orchestrator-{r['pod']}") for r in records)


def test_an_agent_cannot_report(site: Site) -> None:
    code = (
        "from nucleus.sdk.client import Gate, GateError\n"
        "try: print(Gate().exchange('charge', {'id': 'x', 'micro_dollars': 1}))\n"
        "except GateError as error: print(error.status, error.code)\n"
    )
    done = site.cli("run", "--profile", "codegen", "--workdir", str(site.workspace), "--", "python3", "-c", code)
    assert done.stdout == "404 not_found\n", done.stdout + done.stderr
